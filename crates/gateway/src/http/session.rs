//! What an admitted device may do over HTTP besides being answered: publish, and ask for tokens. Each is decided at that
//! moment, on its live session.

use std::sync::Arc;
use std::time::Instant;

use countersign_identity::Timestamp;
use countersign_mqtt::QoS;
use countersign_mqtt::topic::TopicName;
use countersign_policy::decide::DataFacts;
use countersign_policy::{Denial, DenialCode, offered};

use crate::data::embedded::Message;
use crate::metrics::count;
use crate::node::Node;
use crate::session::entry::{EndReason, SessionEntry};
use crate::session::token::{self, TokenId, TokenRefusal, TokenView, TokenWish};

/// A message that a device wants to publish.
#[derive(Debug, Clone, Copy)]
pub struct HttpPublish<'a> {
    /// The topic.
    pub topic: &'a str,
    /// How it is delivered to subscribers; 2 is not offered.
    pub qos: QoS,
    /// Whether it is to be kept for later subscribers, which is not offered.
    pub retain: bool,
    /// The payload.
    pub payload: &'a [u8],
    /// Publish under this token: it narrows what the device may do, and never widens it.
    pub token: Option<TokenId>,
}

/// The session of one HTTP connection.
#[derive(Clone)]
pub struct DeviceSession {
    pub(super) node: Arc<Node>,
    pub(super) entry: Arc<SessionEntry>,
    pub(super) expires: Timestamp,
    pub(super) accepted: Instant,
}

impl std::fmt::Debug for DeviceSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DeviceSession")
            .field("exchange", &self.entry.exchange)
            .finish_non_exhaustive()
    }
}

impl DeviceSession {
    /// The largest message, in bytes of topic and payload: the same as over MQTT.
    pub fn message_bytes_max(&self) -> usize {
        self.node.options.limits.packet_bytes_max
    }

    /// Hands a message to every session that subscribed to its topic. When this returns it is in their outboxes, as
    /// after PUBACK.
    ///
    /// # Errors
    /// The [`Denial`], which is counted and in the ledger.
    pub fn publish(&self, publish: HttpPublish<'_>) -> Result<(), Denial> {
        self.try_publish(publish).inspect_err(|denial| {
            if matches!(denial.code, DenialCode::TopicForbidden | DenialCode::TokenScope) {
                count(&self.node.metrics.publishes_denied);
            }
            self.refused(denial.clone(), Some(publish.topic));
        })
    }

    fn try_publish(&self, publish: HttpPublish<'_>) -> Result<(), Denial> {
        let node = &self.node;
        if self.entry.ending().is_some() {
            return Err(DenialCode::GrantStale.into());
        }
        offered::publish(publish.qos as u8, publish.retain)?;
        if publish.topic.len() + publish.payload.len() > self.message_bytes_max() {
            return Err(DenialCode::PacketTooLarge.into());
        }
        let topic = TopicName::new(publish.topic)
            .map_err(|e| Denial::new(DenialCode::TopicInvalid, e.to_string()))?;
        let admission = self.entry.admission();
        let facts = DataFacts {
            spaces: admission.spaces.of_topic(&admission.device.id, topic),
            qos: publish.qos as u8,
            retain: false,
            now: node.now(),
        };
        let decide = |facts| {
            admission
                .policy
                .publish(&admission.permit, &admission.device, topic.as_str(), facts)
        };
        let permit = decide(facts)?;
        if let Some(id) = publish.token {
            let device = &admission.device;
            let token = token::find(node, &device.tenant, &device.id, &id).ok_or(DenialCode::TokenInvalid)?;
            if token.fingerprint() != self.entry.fingerprint() {
                return Err(DenialCode::TokenOtherCertificate.into());
            }
            // Permitted as if the topic were in the scope's spaces alone.
            let scope = token
                .token_facts()
                .map(|t| t.spaces(&admission))
                .unwrap_or_default();
            let spaces = facts.spaces.and(scope);
            if spaces.is_empty() || decide(DataFacts { spaces, ..facts }).is_err() {
                return Err(DenialCode::TokenScope.into());
            }
        }
        node.router
            .publish(&permit, self.entry.id, &node.options.limits, || Message {
                topic: topic.as_str().into(),
                payload: publish.payload.into(),
                properties: Box::default(),
                qos: publish.qos,
            });
        count(&node.metrics.publishes_in);
        self.entry.published(topic.as_str(), publish.payload.len(), node);
        Ok(())
    }

    /// Grants a token to the device, bound to the certificate of this session. It outlives the connection.
    ///
    /// # Errors
    /// [`TokenRefusal`]; a denial is counted and in the ledger.
    pub fn grant_token(&self, wish: TokenWish<'_>) -> Result<TokenView, TokenRefusal> {
        token::grant(&self.node, &self.entry, self.expires, wish).inspect_err(|refusal| {
            self.refused(refusal.denial(), None);
        })
    }

    /// Ends a token of this device; `false` if it has none of that id.
    pub fn revoke_token(&self, id: &TokenId) -> bool {
        let device = &self.entry.admission().device;
        token::find(&self.node, &device.tenant, &device.id, id)
            .is_some_and(|entry| entry.end(EndReason::TokenRevoked))
    }

    /// Keeps a refusal that was decided elsewhere: counted, and in the ledger.
    pub fn refused(&self, denial: Denial, topic: Option<&str>) {
        self.node.metrics.refused(denial.code);
        if self.entry.lists_refusal() {
            let at_us = u32::try_from(self.accepted.elapsed().as_micros()).unwrap_or(u32::MAX);
            self.node.refused_in_session(&self.entry, at_us, denial, topic);
        }
    }
}
