//! What is wrong with a packet.

use crate::reason::ReasonCode;

/// Why bytes are not a packet that may be acted on. The text cites the clause; the reason code is what MQTT 5 is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes break the format.
    #[error("malformed packet: {0}")]
    Malformed(&'static str),
    /// The format holds, the content is not allowed.
    #[error("protocol error: {0}")]
    Protocol(&'static str),
    /// A topic name has wildcards or characters no topic may have.
    #[error("topic name invalid: {0}")]
    TopicName(&'static str),
    /// A topic filter breaks the rules of section 4.7.
    #[error("topic filter invalid: {0}")]
    TopicFilter(&'static str),
    /// A topic alias that is 0 or more than was allowed.
    #[error("topic alias invalid: {0}")]
    TopicAlias(&'static str),
    /// The packet is larger than the receiver allows.
    #[error("the packet has {size} bytes, {limit} are allowed")]
    TooLarge {
        /// Its size, header included.
        size: usize,
        /// What is allowed.
        limit: usize,
    },
    /// CONNECT names a protocol other than MQTT (MQTT-3.1.2-1).
    #[error("the CONNECT packet names another protocol than MQTT (MQTT-3.1.2-1)")]
    ProtocolName,
    /// CONNECT asks for a version that is not spoken here (MQTT-3.1.2-2).
    #[error("protocol level {0} is not served (MQTT-3.1.2-2)")]
    ProtocolLevel(u8),
}

impl DecodeError {
    /// The reason code for DISCONNECT or CONNACK of MQTT 5.
    pub const fn reason(self) -> ReasonCode {
        match self {
            Self::Malformed(_) => ReasonCode::MALFORMED_PACKET,
            Self::Protocol(_) | Self::ProtocolName => ReasonCode::PROTOCOL_ERROR,
            Self::TopicName(_) => ReasonCode::TOPIC_NAME_INVALID,
            Self::TopicFilter(_) => ReasonCode::TOPIC_FILTER_INVALID,
            Self::TopicAlias(_) => ReasonCode::TOPIC_ALIAS_INVALID,
            Self::TooLarge { .. } => ReasonCode::PACKET_TOO_LARGE,
            Self::ProtocolLevel(_) => ReasonCode::UNSUPPORTED_PROTOCOL_VERSION,
        }
    }
}
