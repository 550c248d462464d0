//! The end of an exchange that was not granted: recorded, counted and logged once, in one line.

use std::net::SocketAddr;

use countersign_policy::denial::Wire;
use countersign_policy::{Denial, Outcome, Stage};

use super::trace::Trace;
use crate::metrics::count;
use crate::node::Node;

/// A refused exchange. What the device is told follows from the denial's code.
#[derive(Debug)]
pub struct Refused {
    pub(super) trace: Trace,
    pub(super) denial: Denial,
}

impl Refused {
    /// Why.
    pub fn denial(&self) -> &Denial {
        &self.denial
    }

    /// Where it comes from.
    pub(crate) fn source(&self) -> SocketAddr {
        self.trace.source
    }

    /// The version that the device turned out to speak, for the record.
    pub(crate) fn in_protocol(mut self, name: &'static str) -> Self {
        if !self.trace.facts.iter().any(|(key, _)| *key == "protocol") {
            self.trace.fact("protocol", name);
        }
        self
    }

    /// The return code of a 3.1.1 CONNACK (section 3.2.2.3). A fault that has no code of its own is 5, not authorised.
    pub(crate) fn connack_v311(&self) -> u8 {
        match self.denial.code.wire() {
            Wire::Connack { v311, .. } => v311,
            _ => 5,
        }
    }

    /// The reason code of a version 5 CONNACK (section 3.2.2.2).
    pub(crate) fn connack_v5(&self) -> u8 {
        match self.denial.code.wire() {
            Wire::Connack { v5, .. } | Wire::Session { v5 } => v5,
            _ => 0x87,
        }
    }

    /// When the device is told to come again, in seconds, where its protocol can say so. Spread over twice the time, or all who
    /// were refused in one second would come again in one.
    pub(crate) fn retry_after_s(&self) -> Option<u32> {
        let base = self.denial.retry_after_s?;
        let spread = self.trace.id.as_u64() % (u64::from(base) + 1);
        Some(base.saturating_add(u32::try_from(spread).unwrap_or(0)))
    }

    /// Keeps the record of one that is refused a session, and came for something that needs none.
    pub(crate) fn conclude_as_enrolment(mut self, request: &str, node: &Node) {
        count(&node.metrics.enrolment_only);
        self.trace.fact("request", request);
        self.trace.passed(Stage::Greet);
        let record = self.trace.into_record(Outcome::EnrolmentOnly, None);
        tracing::info!(
            exchange.id = %record.id,
            exchange.outcome = Outcome::EnrolmentOnly.name(),
            tenant.id = record.tenant.as_ref().map_or("", |t| t.as_str()),
            device.id = record.device.as_ref().map_or("", |d| d.as_str()),
            source = %record.source,
            "no session: the certificate is for enrolment alone"
        );
        node.sink.record(record);
    }

    /// Keeps the record: ledger row, counter, and one line that can be counted.
    pub(crate) fn conclude(self, node: &Node) {
        let outcome = match self.denial.code.wire() {
            Wire::Device => Outcome::RefusedByDevice,
            _ => Outcome::Refused,
        };
        node.metrics.refused(self.denial.code);
        let at_the_door = matches!(self.denial.code.stage(), Stage::Accept | Stage::ClientHello);
        let record = self.trace.into_refusal(outcome, self.denial);
        if at_the_door && !node.may_log_refusal() {
            return node.sink.record(record);
        }
        let denial = record.denial.as_ref();
        let shown = record.certificate.as_ref();
        tracing::warn!(
            exchange.id = %record.id,
            exchange.outcome = outcome.name(),
            denial.code = denial.map_or("", |d| d.code.as_str()),
            denial.detail = denial.map_or("", |d| d.detail.as_str()),
            tenant.id = record.tenant.as_ref().map_or("", |t| t.as_str()),
            device.id = record.device.as_ref().map_or("", |d| d.as_str()),
            certificate.subject = shown.map_or("", |s| s.subject.as_str()),
            certificate.serial = shown.map_or("", |s| s.serial.as_str()),
            certificate.fingerprint = shown.map(|s| s.fingerprint.to_string()).unwrap_or_default(),
            possession = ?record.possession,
            source = %record.source,
            "exchange refused"
        );
        node.sink.record(record);
    }
}

/// An exchange whose peer went away before it got an answer: nobody refused, and nothing was granted.
#[derive(Debug)]
pub struct Abandoned {
    pub(super) trace: Trace,
}

impl Abandoned {
    /// Keeps the record.
    pub(crate) fn conclude(self, node: &Node) {
        count(&node.metrics.abandoned);
        let record = self.trace.into_record(Outcome::Abandoned, None);
        tracing::debug!(
            exchange.id = %record.id,
            exchange.outcome = Outcome::Abandoned.name(),
            source = %record.source,
            "exchange abandoned"
        );
        node.sink.record(record);
    }
}
