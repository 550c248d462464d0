//! `[limits]`: one line for each of the gateway's limits.

use std::time::Duration;

use countersign_gateway::Limits;
use serde::{Deserialize, Serialize};

macro_rules! limits {
    ($($(#[$doc:meta])* $name:ident: $kind:ty => $field:ident, $to:expr, $from:expr;)+) => {
        /// `[limits]`
        #[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(deny_unknown_fields, default)]
        pub struct LimitsConfig { $($(#[$doc])* pub $name: $kind,)+ }

        impl Default for LimitsConfig {
            fn default() -> Self {
                let limits = Limits::default();
                Self { $($name: $from(limits.$field),)+ }
            }
        }

        impl LimitsConfig {
            /// As the gateway takes them.
            pub fn to_limits(&self) -> Limits {
                Limits { $($field: $to(self.$name),)+ }
            }
        }
    };
}

fn same<T>(t: T) -> T {
    t
}

fn seconds(d: Duration) -> u64 {
    d.as_secs()
}

limits! {
    /// Connections held at once.
    connections_max: usize => connections_max, same, same;
    /// Handshakes (accept to the end of TLS, waiting included) under way at once.
    handshakes_max: usize => handshakes_max, same, same;
    /// Connections from one address at once.
    connections_per_source_max: usize => connections_per_source_max, same, same;
    /// Connections that one source may open a second.
    source_connects_per_s: u32 => source_connects_per_s, same, same;
    /// Connections that one source may open at once.
    source_connect_burst: u32 => source_connect_burst, same, same;
    /// Sources that are remembered for their rate.
    sources_max: usize => sources_max, same, same;
    /// Handshakes that are begun a second; others wait.
    handshakes_per_s: u32 => handshakes_per_s, same, same;
    /// Handshakes that are begun at once.
    handshake_burst: u32 => handshake_burst, same, same;
    /// What may wait for its handshake, in bytes.
    handshake_queue_bytes_max: usize => handshake_queue_bytes_max, same, same;
    /// How long a device may wait for its handshake, in seconds.
    handshake_queue_timeout_s: u64 => handshake_queue_timeout, Duration::from_secs, seconds;
    /// Attempts of one device a minute, and at once.
    device_connects_per_minute: u32 => device_connects_per_minute, same, same;
    /// Devices whose attempts are remembered.
    devices_remembered_max: usize => devices_remembered_max, same, same;
    /// Behind balancers, from accept to the whole PROXY protocol header, in seconds.
    proxy_header_timeout_s: u64 => proxy_header_timeout, Duration::from_secs, seconds;
    /// The largest PROXY protocol header, in bytes.
    proxy_header_bytes_max: usize => proxy_header_bytes_max, same, same;
    /// From accept to the end of the TLS handshake, in seconds.
    handshake_timeout_s: u64 => handshake_timeout, Duration::from_secs, seconds;
    /// From the end of the TLS handshake to CONNECT, in seconds.
    connect_timeout_s: u64 => connect_timeout, Duration::from_secs, seconds;
    /// The largest CONNECT packet, in bytes.
    connect_bytes_max: usize => connect_bytes_max, same, same;
    /// The largest packet of an admitted device, in bytes.
    packet_bytes_max: usize => packet_bytes_max, same, same;
    /// The longest keep-alive that is granted, in seconds.
    idle_max_s: u64 => idle_max, Duration::from_secs, seconds;
    /// How long an HTTP connection is kept open without a request, in seconds.
    http_idle_s: u64 => http_idle, Duration::from_secs, seconds;
    /// The longest session before the device must prove itself again, in seconds.
    session_age_max_s: u64 => session_age_max, Duration::from_secs, seconds;
    /// Chains whose signatures are known to hold, so that a device that comes back does not have them verified again.
    verified_chains_max: usize => verified_chains_max, same, same;
    /// Sessions of one device at once.
    sessions_per_device_max: usize => sessions_per_device_max, same, same;
    /// Tokens of one device at once.
    tokens_per_device_max: usize => tokens_per_device_max, same, same;
    /// Tokens of all devices at once.
    tokens_max: usize => tokens_max, same, same;
    /// Tokens of one tenant's devices at once.
    tokens_per_tenant_max: usize => tokens_per_tenant_max, same, same;
    /// Subscriptions of one session.
    subscriptions_max: usize => subscriptions_max, same, same;
    /// Messages waiting for one session.
    outbox_messages_max: usize => outbox_messages_max, same, same;
    /// Bytes waiting for one session.
    outbox_bytes_max: usize => outbox_bytes_max, same, same;
    /// QoS 1 messages of one session that are not yet acknowledged.
    inflight_max: u16 => inflight_max, same, same;
    /// Topics of one session that the ledger names, in each direction; more are counted together.
    session_topics_max: usize => session_topics_max, same, same;
    /// Bytes of the topics that are named so, in each direction.
    session_topic_bytes_max: usize => session_topic_bytes_max, same, same;
    /// How often what a live session sent and received goes to the ledger, in seconds.
    session_report_interval_s: u64 => session_report_interval, Duration::from_secs, seconds;
    /// After a refusal, how long the last words may take, in seconds.
    drain_timeout_s: u64 => drain_timeout, Duration::from_secs, seconds;
    /// How often every live session is compared with the registry's facts, in seconds.
    session_sweep_s: u64 => session_sweep, Duration::from_secs, seconds;
    /// After a refusal, how many bytes of the peer are read and thrown away.
    drain_bytes_max: usize => drain_bytes_max, same, same;
}
