//! Metrics in the OpenMetrics text format. All names are here, and in the table of docs/metrics.md.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use countersign_policy::FactSource;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};

use crate::service::Service;

#[derive(Debug)]
struct Exported(Arc<Service>);

impl std::fmt::Debug for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Service")
    }
}

type Labelled = Family<Vec<(&'static str, &'static str)>, prometheus_client::metrics::counter::Counter>;

fn counter(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, n: u64) -> std::fmt::Result {
    let metric = ConstCounter::new(n);
    metric.encode(e.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
}

fn gauge(e: &mut DescriptorEncoder<'_>, name: &str, help: &str, n: u64) -> std::fmt::Result {
    let metric = ConstGauge::new(i64::try_from(n).unwrap_or(i64::MAX));
    metric.encode(e.encode_descriptor(name, help, None::<&Unit>, metric.metric_type())?)
}

fn labelled(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> std::fmt::Result {
    let family = Labelled::default();
    for (value, n) in values {
        family.get_or_create(&vec![(label, value)]).inc_by(n);
    }
    family.encode(e.encode_descriptor(name, help, None::<&Unit>, family.metric_type())?)
}

fn labelled_gauge(
    e: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    label: &'static str,
    values: impl IntoIterator<Item = (&'static str, u64)>,
) -> std::fmt::Result {
    let family = Family::<Vec<(&'static str, &'static str)>, Gauge>::default();
    for (value, n) in values {
        family
            .get_or_create(&vec![(label, value)])
            .set(i64::try_from(n).unwrap_or(i64::MAX));
    }
    family.encode(e.encode_descriptor(name, help, None::<&Unit>, family.metric_type())?)
}

impl Collector for Exported {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let e = &mut encoder;
        let of = |n: &AtomicU64| n.load(Ordering::Relaxed);
        if let Some(gateway) = self.0.gateway() {
            let m = gateway.metrics();
            counter(
                e,
                "countersign_connections_accepted",
                "TCP connections accepted",
                of(&m.accepted),
            )?;
            gauge(
                e,
                "countersign_connections",
                "Connections held now, in any stage",
                of(&m.connections),
            )?;
            gauge(
                e,
                "countersign_handshakes",
                "Handshakes under way now",
                of(&m.handshakes),
            )?;
            counter(
                e,
                "countersign_clones_suspected",
                "Credentials that came to be suspected to have two holders",
                of(&m.clones_suspected),
            )?;
            counter(
                e,
                "countersign_clones_unwatched",
                "Devices with sessions at two addresses that were not watched: too many others were",
                of(&m.clones_unwatched),
            )?;
            counter(
                e,
                "countersign_clones_unwatched",
                "Devices with sessions at two addresses that were not watched: too many others were",
                of(&m.clones_unwatched),
            )?;
            let (waiting, queued) = gateway.handshakes_waiting();
            gauge(
                e,
                "countersign_handshakes_waiting",
                "Devices that wait for their handshake now",
                waiting,
            )?;
            counter(
                e,
                "countersign_handshakes_queued",
                "Devices that had to wait for their handshake",
                queued,
            )?;
            let (accounts, forgotten) = gateway.source_accounts();
            gauge(
                e,
                "countersign_source_accounts",
                "Sources whose rate is remembered now",
                accounts,
            )?;
            counter(
                e,
                "countersign_source_accounts_forgotten",
                "Sources that were forgotten though they owed for their rate",
                forgotten,
            )?;
            let (accounts, forgotten) = gateway.device_accounts();
            gauge(
                e,
                "countersign_device_accounts",
                "Devices whose rate is remembered now",
                accounts,
            )?;
            counter(
                e,
                "countersign_device_accounts_forgotten",
                "Devices that were forgotten though they owed for their rate",
                forgotten,
            )?;
            counter(
                e,
                "countersign_refusals_unlogged",
                "Refusals at the door without a line in the log",
                of(&m.refusals_unlogged),
            )?;
            gauge(
                e,
                "countersign_sessions",
                "Live sessions",
                gateway.session_count() as u64,
            )?;
            counter(
                e,
                "countersign_exchanges_admitted",
                "Exchanges that ended in a session",
                of(&m.admitted),
            )?;
            labelled(
                e,
                "countersign_exchanges_refused",
                "Refusals, by stable code",
                "code",
                m.refusals(),
            )?;
            counter(
                e,
                "countersign_exchanges_abandoned",
                "Peers that left before an answer",
                of(&m.abandoned),
            )?;
            counter(
                e,
                "countersign_exchanges_enrolment_only",
                "Devices without a session that enrolled on a device listener: their certificate is for enrolment alone",
                of(&m.enrolment_only),
            )?;
            counter(
                e,
                "countersign_handshakes_resumed",
                "TLS handshakes that resumed a session by a ticket",
                of(&m.tickets.resumed),
            )?;
            counter(
                e,
                "countersign_tickets_issued",
                "Tickets given to devices",
                of(&m.tickets.issued),
            )?;
            counter(
                e,
                "countersign_tickets_withheld",
                "Tickets not given, for the session may not be resumed",
                of(&m.tickets.withheld),
            )?;
            labelled(
                e,
                "countersign_tickets_declined",
                "Tickets not taken, by reason; a full handshake followed",
                "reason",
                m.tickets.declines(),
            )?;
            let chains = gateway.verified_chains();
            labelled(
                e,
                "countersign_verified_chains",
                "Chains looked up among those whose signatures are known to hold, by what was found",
                "outcome",
                [
                    ("hit", of(&chains.hits)),
                    ("miss", of(&chains.misses)),
                    ("stale", of(&chains.stale)),
                ],
            )?;
            counter(
                e,
                "countersign_verified_chains_turnovers",
                "Times that half of the remembered chains went for lack of room",
                of(&chains.turnovers),
            )?;
            gauge(
                e,
                "countersign_verified_chains_kept",
                "Chains whose signatures are known to hold",
                chains.len() as u64,
            )?;
            labelled(
                e,
                "countersign_sessions_ended",
                "Sessions that ended, by reason",
                "reason",
                m.ends(),
            )?;
            counter(
                e,
                "countersign_session_sweeps",
                "Times that every live session was compared with the facts",
                of(&m.sweeps),
            )?;
            counter(
                e,
                "countersign_session_sweep_found",
                "Sessions that a change had missed; each is a bug",
                of(&m.sweep_found),
            )?;
            counter(
                e,
                "countersign_publishes_received",
                "PUBLISH packets accepted",
                of(&m.publishes_in),
            )?;
            counter(
                e,
                "countersign_publishes_sent",
                "PUBLISH packets sent to subscribers",
                of(&m.publishes_out),
            )?;
            counter(
                e,
                "countersign_publishes_denied",
                "PUBLISH packets refused by policy",
                of(&m.publishes_denied),
            )?;
            counter(
                e,
                "countersign_wills_published",
                "Wills published when a session ended without its client's word",
                of(&m.wills_published),
            )?;
            counter(
                e,
                "countersign_wills_withheld",
                "Wills that were due and withheld: the device may not publish them any more",
                of(&m.wills_withheld),
            )?;
            counter(
                e,
                "countersign_subscriptions_denied",
                "Subscriptions refused by policy",
                of(&m.subscriptions_denied),
            )?;
            counter(
                e,
                "countersign_messages_too_large",
                "Messages not sent because the subscriber takes no packet of that size",
                of(&m.messages_too_large),
            )?;
            gauge(e, "countersign_tokens", "Live session tokens", of(&m.tokens))?;
            counter(
                e,
                "countersign_tokens_granted",
                "Session tokens granted",
                of(&m.tokens_granted),
            )?;
            counter(
                e,
                "countersign_tokens_refused",
                "Requests for a session token that were refused",
                of(&m.tokens_refused),
            )?;
            counter(
                e,
                "countersign_session_topics_unnamed",
                "Messages whose topic is not named in their session's summary",
                of(&m.topics_unnamed),
            )?;
            counter(
                e,
                "countersign_panics",
                "Connection tasks that panicked; each is a bug",
                of(&m.panics),
            )?;
        }
        if let Some(tokens) = self.0.tokens() {
            labelled(
                e,
                "countersign_introspections",
                "Introspections, by what they found",
                "result",
                [
                    ("active", of(&tokens.found_active)),
                    ("inactive", of(&tokens.found_inactive)),
                    ("unauthorised", of(&tokens.unauthorised)),
                ],
            )?;
            counter(
                e,
                "countersign_service_strangers",
                "Connections to the listeners for services by who is no registered service",
                of(&tokens.strangers),
            )?;
        }
        let registry = self.0.registry();
        let facts = registry.facts();
        gauge(
            e,
            "countersign_registry_available",
            "1 while decisions may be made",
            u64::from(facts.health().is_ok()),
        )?;
        gauge(
            e,
            "countersign_devices",
            "Registered devices",
            facts.device_count() as u64,
        )?;
        gauge(
            e,
            "countersign_credentials",
            "Registered credentials",
            facts.credential_count() as u64,
        )?;
        // Left out until it is known: a missing metric is seen, a wrong one is not.
        if let Some(totals) = self.0.forecast_totals() {
            labelled_gauge(
                e,
                "countersign_devices_expiring",
                "Devices by when the certificate they live on expires",
                "window",
                totals.devices.named(),
            )?;
            gauge(
                e,
                "countersign_devices_unrenewed",
                "Devices whose certificate is past its renewal point and has not expired",
                totals.unrenewed,
            )?;
            labelled_gauge(
                e,
                "countersign_authorities_expiring",
                "Authorities in use, the platform's too, by when they or their roots expire",
                "window",
                totals.authorities.named(),
            )?;
        }
        labelled(
            e,
            "countersign_minting_refused",
            "Certificates, lists and answers that were not minted for the clock's sake",
            "reason",
            registry.minting_refused(),
        )?;
        if let Some(ca) = self.0.ca() {
            counter(
                e,
                "countersign_ca_status_refused",
                "Lists and OCSP answers that were not asked of the CA, because too many were being asked for",
                ca.status_refused(),
            )?;
        }
        gauge(
            e,
            "countersign_clock_behind_seconds",
            "How far the clock is behind the newest time that is known to have been",
            registry.clock_view().behind_ms / 1000,
        )?;
        counter(
            e,
            "countersign_receipts_forgotten",
            "Receipts that made room for newer ones",
            registry.receipts_forgotten(),
        )?;
        let ledger = registry.ledger();
        counter(
            e,
            "countersign_ledger_written",
            "Exchanges written to the ledger",
            ledger.written(),
        )?;
        counter(
            e,
            "countersign_ledger_dropped",
            "Exchanges lost by the ledger",
            ledger.dropped(),
        )?;
        counter(
            e,
            "countersign_ledger_limited",
            "Exchanges left out by source or device limit",
            ledger.limited(),
        )?;
        counter(
            e,
            "countersign_ledger_crowded",
            "Exchanges of strangers left out because too many of them waited",
            ledger.crowded(),
        )?;
        counter(
            e,
            "countersign_ledger_causes_unnamed",
            "Refusals counted under the other subjects of their code",
            ledger.unnamed(),
        )?;
        labelled(
            e,
            "countersign_ledger_evicted",
            "Rows that went for newer ones, by class",
            "class",
            ledger.evicted(),
        )?;
        labelled_gauge(
            e,
            "countersign_ledger_rows",
            "Rows, by class",
            "class",
            ledger.rows(),
        )
    }
}

/// Answers a scrape.
pub async fn handler(State(service): State<Arc<Service>>) -> Response {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(Exported(service)));
    let mut text = String::new();
    // It may have to read the registry.
    let encoded =
        tokio::task::block_in_place(|| prometheus_client::encoding::text::encode(&mut text, &registry));
    match encoded {
        Ok(()) => (
            [(
                header::CONTENT_TYPE,
                "application/openmetrics-text; version=1.0.0; charset=utf-8",
            )],
            text,
        )
            .into_response(),
        Err(e) => {
            crate::failure::Failure::internal(format!("metrics cannot be encoded: {e}")).into_response()
        }
    }
}
