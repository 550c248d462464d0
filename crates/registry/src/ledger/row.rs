//! How an exchange is written into its row: the JSON of [`ExchangeRecord`], which reads it, without what says nothing. A row
//! is half as long so, and four share a page of the database.

use countersign_identity::{AuthorityId, DeviceId, TenantId, Timestamp};
use countersign_policy::exchange::{ShownCertificate, StageOutcome};
use countersign_policy::facts::Generations;
use countersign_policy::{Denial, ExchangeId, ExchangeRecord, Outcome, Possession, StageRecord};
use serde::ser::{Serialize, SerializeSeq, Serializer};

#[derive(serde::Serialize)]
struct Row<'a> {
    id: ExchangeId,
    started: Timestamp,
    source: std::net::SocketAddr,
    listener: &'a str,
    outcome: Outcome,
    stages: Vec<Short<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: &'a Option<TenantId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device: &'a Option<DeviceId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    authority: &'a Option<AuthorityId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    certificate: &'a Option<ShownCertificate>,
    possession: Possession,
    facts: &'a [(String, String)],
    #[serde(skip_serializing_if = "Option::is_none")]
    denial: &'a Option<Denial>,
    policies: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    generations: &'a Option<Generations>,
}

/// `[stage, at_us, took_us]`, and the outcome if it did not pass.
struct Short<'a>(&'a StageRecord);

impl Serialize for Short<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let StageRecord {
            stage,
            at_us,
            took_us,
            outcome,
        } = self.0;
        let mut parts = serializer.serialize_seq(None)?;
        parts.serialize_element(stage)?;
        parts.serialize_element(at_us)?;
        parts.serialize_element(took_us)?;
        if *outcome != StageOutcome::Passed {
            parts.serialize_element(outcome)?;
        }
        parts.end()
    }
}

/// The text of an exchange's row.
pub(super) fn exchange(record: &ExchangeRecord) -> serde_json::Result<String> {
    let ExchangeRecord {
        id,
        started,
        source,
        listener,
        outcome,
        stages,
        tenant,
        device,
        authority,
        certificate,
        possession,
        facts,
        denial,
        policies,
        generations,
    } = record;
    // The usual length of one that was admitted.
    let mut text = Vec::with_capacity(960);
    serde_json::to_writer(
        &mut text,
        &Row {
            id: *id,
            started: *started,
            source: *source,
            listener,
            outcome: *outcome,
            stages: stages.iter().map(Short).collect(),
            tenant,
            device,
            authority,
            certificate,
            possession: *possession,
            facts,
            denial,
            policies,
            generations,
        },
    )?;
    String::from_utf8(text).map_err(serde::ser::Error::custom)
}

/// The text of a stage that comes late.
pub(super) fn stage(stage: &StageRecord) -> serde_json::Result<String> {
    serde_json::to_string(&Short(stage))
}

#[cfg(test)]
mod tests {
    use countersign_policy::Stage;

    use super::*;

    fn record() -> ExchangeRecord {
        let stage = |stage, at_us, took_us, outcome| StageRecord {
            stage,
            at_us,
            took_us,
            outcome,
        };
        let started = Timestamp::from_unix_ms(1_795_719_035_946);
        ExchangeRecord {
            id: ExchangeId::new(started, 7),
            started,
            source: "127.0.0.1:36002".parse().unwrap(),
            listener: "devices".into(),
            outcome: Outcome::Refused,
            stages: vec![
                stage(Stage::Accept, 0, 0, StageOutcome::Passed),
                stage(Stage::ClientCertificate, 422, 400, StageOutcome::TakenOver),
                stage(Stage::Policy, 491, 69, StageOutcome::Failed),
            ],
            tenant: Some("default".parse().unwrap()),
            device: Some("SN-1".parse().unwrap()),
            authority: Some("ca".parse().unwrap()),
            certificate: Some(ShownCertificate {
                fingerprint: countersign_identity::Fingerprint::of(b"x"),
                serial: "0a".into(),
                subject: "CN=\"a\"".into(),
                issuer: "CN=ca".into(),
                chain_length: 2,
            }),
            possession: Possession::Proven,
            facts: vec![("client_id".into(), "SN-1".into())],
            denial: Some(countersign_policy::DenialCode::PolicyForbids.into()),
            policies: vec!["connect".into()],
            generations: None,
        }
    }

    /// What is written is read again, whole; and so is what was written before it was shortened.
    #[test]
    fn a_row_is_the_record() {
        let full = record();
        let empty = ExchangeRecord {
            tenant: None,
            device: None,
            authority: None,
            certificate: None,
            denial: None,
            stages: Vec::new(),
            ..full.clone()
        };
        for record in [full, empty] {
            let text = exchange(&record).unwrap();
            let long = serde_json::to_string(&record).unwrap();
            assert!(text.len() < long.len(), "{text}");
            for text in [text, long] {
                assert_eq!(
                    serde_json::from_str::<ExchangeRecord>(&text).unwrap(),
                    record,
                    "{text}"
                );
            }
        }
        let late = record().stages.remove(2);
        assert_eq!(stage(&late).unwrap(), r#"["policy",491,69,"failed"]"#);
    }
}
