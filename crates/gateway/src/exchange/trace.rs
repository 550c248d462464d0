//! What an exchange has seen so far. It travels with the stages, by value, and becomes the record.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use countersign_identity::{AuthorityId, DeviceId, TenantId, Timestamp, VerifiedChain};
use countersign_policy::exchange::ShownCertificate;
use countersign_policy::{
    Denial, ExchangeId, ExchangeRecord, Generations, Outcome, Possession, Stage, StageOutcome, StageRecord,
};

/// The growing record of one exchange.
#[derive(Debug)]
pub struct Trace {
    pub(super) id: ExchangeId,
    pub(super) started: Timestamp,
    pub(super) source: SocketAddr,
    listener: Arc<str>,
    accepted: Instant,
    /// The last stage that passed, and when.
    last: (Stage, Instant),
    stages: Vec<StageRecord>,
    pub(super) tenant: Option<TenantId>,
    pub(super) device: Option<DeviceId>,
    pub(super) authority: Option<AuthorityId>,
    pub(super) certificate: Option<ShownCertificate>,
    pub(super) possession: Possession,
    pub(super) facts: Vec<(&'static str, String)>,
    pub(super) policies: Vec<String>,
    pub(super) generations: Option<Generations>,
}

fn micros(from: Instant, to: Instant) -> u32 {
    u32::try_from(to.saturating_duration_since(from).as_micros()).unwrap_or(u32::MAX)
}

impl Trace {
    /// Starts with TCP accept.
    pub(crate) fn new(id: ExchangeId, started: Timestamp, source: SocketAddr, listener: Arc<str>) -> Self {
        let now = Instant::now();
        let mut stages = Vec::with_capacity(Stage::ALL.len());
        stages.push(StageRecord {
            stage: Stage::Accept,
            at_us: 0,
            took_us: 0,
            outcome: StageOutcome::Passed,
        });
        Self {
            id,
            started,
            source,
            listener,
            accepted: now,
            last: (Stage::Accept, now),
            stages,
            tenant: None,
            device: None,
            authority: None,
            certificate: None,
            possession: Possession::Unproven,
            facts: Vec::with_capacity(8),
            policies: Vec::new(),
            generations: None,
        }
    }

    /// The exchange's name.
    pub fn id(&self) -> ExchangeId {
        self.id
    }

    /// Where it comes from.
    pub fn source(&self) -> SocketAddr {
        self.source
    }

    /// Where it came in.
    pub(crate) fn listener(&self) -> &Arc<str> {
        &self.listener
    }

    /// When TCP was accepted.
    pub(crate) fn accepted(&self) -> Instant {
        self.accepted
    }

    pub(super) fn fact(&mut self, key: &'static str, value: impl Into<String>) {
        self.facts.push((key, value.into()));
    }

    /// `stage` held, just now.
    pub(super) fn passed(&mut self, stage: Stage) {
        self.passed_at(stage, Instant::now());
    }

    /// `stage` held, at `at`.
    pub(super) fn passed_at(&mut self, stage: Stage, at: Instant) {
        self.end_stage(stage, at, StageOutcome::Passed);
        self.last = (stage, at);
    }

    fn end_stage(&mut self, stage: Stage, at: Instant, outcome: StageOutcome) {
        self.stages.push(StageRecord {
            stage,
            at_us: micros(self.accepted, at),
            took_us: micros(self.last.1, at),
            outcome,
        });
    }

    /// Certificate and proof are those of the full handshake that began at `proven_at`: a ticket brought them.
    pub(super) fn taken_over(&mut self, chain: &VerifiedChain, chain_length: u8, proven_at: Timestamp) {
        let (leaf, now) = (chain.leaf(), Instant::now());
        self.certificate = Some(ShownCertificate {
            fingerprint: leaf.fingerprint,
            serial: leaf.serial.clone(),
            subject: leaf.subject_text.clone(),
            issuer: leaf.issuer_text.clone(),
            chain_length,
        });
        self.possession = Possession::Proven;
        self.fact("resumed_from", proven_at.to_string());
        for stage in [Stage::ClientCertificate, Stage::CertificateVerify] {
            self.end_stage(stage, now, StageOutcome::TakenOver);
            self.last = (stage, now);
        }
    }

    /// `stage` ended the exchange, at `at`.
    pub(super) fn failed_at(&mut self, stage: Stage, at: Instant) {
        self.end_stage(stage, at, StageOutcome::Failed);
    }

    /// The record of a refusal, whichever side refused.
    pub(super) fn into_refusal(mut self, outcome: Outcome, denial: Denial) -> ExchangeRecord {
        if self.stages.iter().all(|s| s.outcome != StageOutcome::Failed) {
            self.failed_at(denial.code.stage().max(self.last.0), Instant::now());
        }
        self.into_record(outcome, Some(denial))
    }

    /// The record as it stands.
    pub(super) fn into_record(self, outcome: Outcome, denial: Option<Denial>) -> ExchangeRecord {
        ExchangeRecord {
            id: self.id,
            started: self.started,
            source: self.source,
            listener: self.listener.to_string(),
            outcome,
            stages: self.stages,
            tenant: self.tenant,
            device: self.device,
            authority: self.authority,
            certificate: self.certificate,
            possession: self.possession,
            facts: self.facts.into_iter().map(|(k, v)| (k.to_owned(), v)).collect(),
            denial,
            policies: self.policies,
            generations: self.generations,
        }
    }
}
