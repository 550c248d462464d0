//! The will: what a client asks to be published when its session ends without its word (MQTT 5 section 3.1.2.5).
//!
//! It is decided twice: when it is asked for, and, under the state that ended the session, when it is due. A device that
//! was suspended, quarantined or decommissioned, or whose certificate was revoked or expired, publishes nothing by its last word
//! either: that will is withheld, and the ledger says so.
//!
//! No session outlives its connection here, so a Will Delay Interval ends where it begins (MQTT-3.1.3-9).

use countersign_mqtt::client::Will as Asked;
use countersign_mqtt::topic::TopicName;
use countersign_mqtt::{QoS, Version};
use countersign_policy::decide::DataFacts;
use countersign_policy::{Denial, DenialCode, LifecycleState};

use super::entry::{Admission, EndReason, SessionEntry};
use super::grant::decide_anew;
use crate::data::embedded::Message;
use crate::metrics::count;
use crate::node::Node;

/// The session has ended: its will is published or withheld, once, whoever comes first to it. When this returns it is
/// done.
pub(crate) fn due(entry: &SessionEntry, node: &Node) {
    // Held until it is out: who finds none may go on.
    let mut slot = entry.will.lock();
    let Some(will) = slot.take() else { return };
    if let Err(denial) = will.publish(entry, node) {
        node.metrics.refused(denial.code);
        let age = node.now().since(entry.started).as_micros();
        let at_us = u32::try_from(age).unwrap_or(u32::MAX);
        // However many refusals of its session were kept: it is the last.
        node.refused_in_session(entry, at_us, denial, Some(&will.topic));
    }
}

/// A will that waits for the end of its session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Will {
    topic: Box<str>,
    payload: Box<[u8]>,
    /// As they stand in a PUBLISH.
    properties: Box<[u8]>,
    qos: QoS,
}

impl Will {
    /// Takes what a CONNECT asks for.
    ///
    /// # Errors
    /// The [`Denial`] if it is of a kind that is not offered.
    pub(crate) fn take(asked: &Asked<'_>, version: Version) -> Result<Self, Denial> {
        if asked.qos == QoS::ExactlyOnce {
            return Err(DenialCode::WillQos.into());
        }
        if asked.retain {
            return Err(DenialCode::WillRetain.into());
        }
        let properties = match version {
            Version::V311 => Box::default(),
            Version::V5 => asked.properties.without_will_delay().into(),
        };
        Ok(Self {
            topic: asked.topic.as_str().into(),
            payload: asked.payload.into(),
            properties,
            qos: asked.qos,
        })
    }

    /// Whether the device may publish it now, when it asks for it.
    ///
    /// In the quarantine lane nothing is asked: most clients have a will, and what is outside of the lane is withheld.
    ///
    /// # Errors
    /// The [`Denial`].
    pub(crate) fn check(&self, admission: &Admission, node: &Node) -> Result<(), Denial> {
        if admission.device.state == LifecycleState::Quarantined {
            return Ok(());
        }
        self.decide(admission, node, |_| ()).map_err(|denial| Denial {
            code: match denial.code {
                DenialCode::TopicForbidden => DenialCode::WillForbidden,
                other => other,
            },
            ..denial
        })
    }

    /// Publishes it, if the device, as it stands now, may.
    fn publish(&self, entry: &SessionEntry, node: &Node) -> Result<(), Denial> {
        let stands = match entry.ending() {
            Some(EndReason::CertificateExpired) => Err(DenialCode::CertificateExpired.into()),
            _ => decide_anew(node, entry),
        };
        let published = stands.and_then(|admission| {
            self.decide(&admission, node, |permit| {
                node.router
                    .publish(permit, entry.id, &node.options.limits, || Message {
                        topic: self.topic.clone(),
                        payload: self.payload.clone(),
                        properties: self.properties.clone(),
                        qos: self.qos,
                    });
            })
        });
        match published {
            Ok(()) => {
                count(&node.metrics.wills_published);
                entry.published(&self.topic, self.payload.len(), node);
                Ok(())
            }
            Err(denial) => {
                count(&node.metrics.wills_withheld);
                Err(Denial {
                    detail: format!("{}: {}", denial.code, denial.detail),
                    code: DenialCode::WillWithheld,
                    ..denial
                })
            }
        }
    }

    fn decide(
        &self,
        admission: &Admission,
        node: &Node,
        permitted: impl FnOnce(&countersign_policy::decide::PublishPermit<'_>),
    ) -> Result<(), Denial> {
        let topic =
            TopicName::new(&self.topic).map_err(|e| Denial::new(DenialCode::TopicInvalid, e.to_string()))?;
        let facts = DataFacts {
            spaces: admission.spaces.of_topic(&admission.device.id, topic),
            qos: self.qos as u8,
            retain: false,
            now: node.now(),
        };
        let (permit, device) = (&admission.permit, &admission.device);
        admission
            .policy
            .publish(permit, device, &self.topic, facts)
            .map(|permit| permitted(&permit))
    }
}
