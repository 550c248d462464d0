//! What of MQTT is offered at all, whatever policies say: asked of a publish over MQTT and HTTPS, of a subscription, of a case of
//! `policy test` and by `why` alike. A will has codes of its own, for its CONNECT is refused.

use crate::denial::{Denial, DenialCode};

/// Whether a message of this QoS may be published at all.
///
/// # Errors
/// The [`Denial`] for QoS 2 (MQTT-3.2.2-11 lets a server say so) and for retained messages (MQTT-3.2.2-14).
pub fn publish(qos: u8, retain: bool) -> Result<(), Denial> {
    if qos > 1 {
        return Err(DenialCode::QosNotSupported.into());
    }
    if retain {
        return Err(DenialCode::RetainNotSupported.into());
    }
    Ok(())
}

/// Whether a filter may be subscribed to at all.
///
/// # Errors
/// The [`Denial`] for shared subscriptions (MQTT 5 section 3.2.2.3.13).
pub fn subscribe(filter: &str) -> Result<(), Denial> {
    if filter.starts_with("$share/") {
        return Err(DenialCode::SharedSubscription.into());
    }
    Ok(())
}
