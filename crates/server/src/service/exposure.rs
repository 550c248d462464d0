//! What a device did between two moments: for the report of an incident.

use std::collections::{BTreeMap, HashSet};

use countersign_identity::{DeviceId, TenantId, Timestamp};
use countersign_policy::{ExchangeId, ExchangeRecord, Outcome, SessionRecord, TopicSummary, TopicUse};
use countersign_registry::RegistryError;
use serde::Serialize;

use super::Service;
use crate::failure::Failure;

/// Sessions, and exchanges, that one report lists at most.
const LISTED_MAX: u32 = 5_000;

/// The kind of session that every admitted exchange has.
const CONNECTION: &str = "connection";

/// What a device did between two moments.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Exposure {
    /// Whose.
    pub tenant: TenantId,
    /// Whose.
    pub device: DeviceId,
    /// From this moment on.
    pub from: Timestamp,
    /// Until this moment.
    pub to: Timestamp,
    /// Sessions that were live in between, oldest first.
    pub sessions: Vec<ExposedSession>,
    /// Topics that were published to, in all sessions, in order.
    pub published: Vec<ExposedTopic>,
    /// Topics that were received from, in all sessions, in order.
    pub received: Vec<ExposedTopic>,
    /// Exchanges that began in between and proved the device's key, oldest first: admitted and refused.
    pub exchanges: Vec<ExchangeRecord>,
    /// What may be missing, in plain words; empty if nothing is.
    pub gaps: Vec<String>,
}

/// A session, as far as it is known.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExposedSession {
    /// It is live now.
    pub live: bool,
    /// What it did.
    #[serde(flatten)]
    pub record: SessionRecord,
}

/// A topic, over all sessions.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ExposedTopic {
    /// What was sent, in the sessions that used it within the window.
    #[serde(flatten)]
    pub sum: TopicUse,
    /// In how many sessions.
    pub sessions: u64,
    /// All of it was within the window; else a session began before or ended after it, and its whole count is here.
    pub within: bool,
}

impl Service {
    /// What a device did between two moments.
    ///
    /// # Errors
    /// [`Failure`] if there is no such device, the moments are the wrong way round, or the ledger cannot be read.
    pub fn exposure(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Exposure, Failure> {
        self.exposure_of(tenant, device, (from, to), LISTED_MAX)
    }

    /// The same, with another limit on what is listed.
    pub(super) fn exposure_of(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        (from, to): (Timestamp, Timestamp),
        listed_max: u32,
    ) -> Result<Exposure, Failure> {
        if to < from {
            return Err(Failure::invalid("the window ends before it begins"));
        }
        if self.registry.device(tenant, device)?.is_none() {
            return Err(RegistryError::NoDevice {
                tenant: tenant.clone(),
                device: device.clone(),
            }
            .into());
        }
        let ledger = self.registry.ledger();
        // Asked before the ledger: what ends in between is found there.
        let live = self
            .gateway()
            .map(|g| g.doings(tenant, device))
            .unwrap_or_default();
        ledger.flush();
        let kept = ledger.doings(tenant, device, from, to, listed_max)?;
        let mut sessions = with_live(kept.sessions, live, to);
        let all_known = self.add_unrecorded(&mut sessions, tenant, device, (from, to), listed_max)?;
        sessions.sort_by_key(|s| (s.record.started, s.record.exchange));
        let mut gaps = Vec::new();
        if kept.more {
            gaps.push(format!(
                "there are more than {listed_max} sessions or exchanges: the oldest are listed; ask for a shorter window"
            ));
        } else if !all_known {
            gaps.push(format!(
                "there are more than {listed_max} sessions or exchanges of before the window that may reach into it: a session of which there is nothing but its admission may be missing"
            ));
        }
        let limited = ledger.limited_of(tenant, device);
        if let Some(limited) = limited.filter(|l| l.reaches_into(from, to)) {
            gaps.push(format!(
                "{} refusals between {} and {} were only counted, and are not listed: more in a minute than are kept (ledger.refused_per_source_minute_max)",
                limited.count, limited.first, limited.last
            ));
        }
        let unlisted: u64 = sessions.iter().map(|s| s.record.refusals_unlisted).sum();
        if unlisted > 0 {
            gaps.push(format!(
                "{unlisted} refusals within sessions were only counted, and are not listed: a session's first are kept, its record says how many there were beyond (refusals_unlisted)"
            ));
        }
        let lost = |what: &str, since: Option<Timestamp>| {
            since.filter(|t| *t > from).map(|t| {
                format!("{what} before {t} may be missing: the ledger keeps so many and so old ([ledger] in the configuration)")
            })
        };
        gaps.extend(lost("exchanges", kept.exchanges_whole_since));
        gaps.extend(lost("sessions", kept.sessions_whole_since));
        if let Some(lost) = ledger.lost().filter(|l| l.reaches_into(from, to)) {
            gaps.push(format!(
                "{} records between {} and {} could not be kept: of whom is not known",
                lost.count, lost.first, lost.last
            ));
        }
        let interval = self.config().limits.session_report_interval_s;
        let untold = |s: &&ExposedSession| !s.live && s.record.ended.is_none();
        if sessions.iter().any(|s| untold(&s)) {
            gaps.push(format!(
                "the end of a session is not known: the server ended without a word, and up to {interval} s of topics before it are not counted"
            ));
        }
        Ok(Exposure {
            tenant: tenant.clone(),
            device: device.clone(),
            published: topics(&sessions, from, to, |r| &r.published),
            received: topics(&sessions, from, to, |r| &r.received),
            sessions,
            exchanges: kept.exchanges,
            from,
            to,
            gaps,
        })
    }

    /// Sessions that were admitted and never came to be written: the server ended without a word before it did. Whether
    /// all that may be such was looked at.
    fn add_unrecorded(
        &self,
        sessions: &mut Vec<ExposedSession>,
        tenant: &TenantId,
        device: &DeviceId,
        (from, to): (Timestamp, Timestamp),
        listed_max: u32,
    ) -> Result<bool, Failure> {
        // A token is of the exchange that admitted its connection: it says nothing of that one.
        let connection = |r: &SessionRecord| (r.kind == CONNECTION).then_some(r.exchange);
        let known: HashSet<ExchangeId> = sessions.iter().filter_map(|s| connection(&s.record)).collect();
        let ledger = self.registry.ledger();
        // No session is older than that.
        let age = self.config().limits.session_age_max_s;
        let early = from.minus(std::time::Duration::from_secs(age));
        let kept = ledger.doings(tenant, device, early, to, listed_max)?;
        // The oldest are read. Beyond the last of the sessions it is not known whether an exchange has one.
        let is_cut = kept.more && kept.sessions.len() >= listed_max as usize;
        let known_until = is_cut.then(|| kept.sessions.last().map(|s| s.exchange)).flatten();
        let recorded: HashSet<ExchangeId> = kept.sessions.iter().filter_map(connection).collect();
        for exchange in kept.exchanges {
            let is_new = !known.contains(&exchange.id) && !recorded.contains(&exchange.id);
            if exchange.outcome == Outcome::Admitted
                && is_new
                && known_until.is_none_or(|until| exchange.id < until)
                && let Some(record) = unrecorded(exchange)
            {
                sessions.push(ExposedSession { live: false, record });
            }
        }
        Ok(!kept.more)
    }
}

/// What the ledger has, and what is live now in place of what the ledger has of it.
fn with_live(kept: Vec<SessionRecord>, live: Vec<SessionRecord>, to: Timestamp) -> Vec<ExposedSession> {
    let name = |r: &SessionRecord| (r.exchange, r.kind.clone(), r.name.clone());
    let ended: HashSet<_> = kept.iter().filter(|r| r.ended.is_some()).map(name).collect();
    let live: Vec<_> = live
        .into_iter()
        .filter(|r| r.started <= to && !ended.contains(&name(r)))
        .collect();
    let names: HashSet<_> = live.iter().map(name).collect();
    let kept = kept.into_iter().filter(|r| !names.contains(&name(r)));
    let kept = kept.map(|record| ExposedSession { live: false, record });
    let live = live
        .into_iter()
        .map(|record| ExposedSession { live: true, record });
    kept.chain(live).collect()
}

/// A session of which there is nothing but the exchange that admitted it.
fn unrecorded(exchange: ExchangeRecord) -> Option<SessionRecord> {
    let protocol = exchange.facts.iter().find(|(k, _)| k == "protocol");
    let took = exchange.stages.iter().map(|s| u64::from(s.at_us)).max();
    let started = exchange
        .started
        .plus(std::time::Duration::from_micros(took.unwrap_or(0)));
    Some(SessionRecord {
        exchange: exchange.id,
        kind: CONNECTION.into(),
        name: String::new(),
        tenant: exchange.tenant?,
        device: exchange.device?,
        credential: exchange.certificate?.fingerprint,
        authority: exchange.authority?,
        protocol: protocol.map(|(_, v)| v.clone()).unwrap_or_default(),
        source: exchange.source,
        listener: exchange.listener,
        started,
        seen: started,
        ended: None,
        end: None,
        published: TopicSummary::default(),
        received: TopicSummary::default(),
        refusals_unlisted: 0,
    })
}

fn topics(
    sessions: &[ExposedSession],
    from: Timestamp,
    to: Timestamp,
    of: impl Fn(&SessionRecord) -> &TopicSummary,
) -> Vec<ExposedTopic> {
    let mut found: BTreeMap<String, ExposedTopic> = BTreeMap::new();
    for used in sessions.iter().flat_map(|s| of(&s.record).all()) {
        if used.last < from || used.first > to {
            continue;
        }
        let within = used.first >= from && used.last <= to;
        match found.get_mut(&used.topic) {
            Some(topic) => {
                topic.sum.messages += used.messages;
                topic.sum.bytes += used.bytes;
                topic.sum.first = topic.sum.first.min(used.first);
                topic.sum.last = topic.sum.last.max(used.last);
                topic.sessions += 1;
                topic.within &= within;
            }
            None => {
                let topic = ExposedTopic {
                    sum: used.clone(),
                    sessions: 1,
                    within,
                };
                found.insert(used.topic.clone(), topic);
            }
        }
    }
    found.into_values().collect()
}
