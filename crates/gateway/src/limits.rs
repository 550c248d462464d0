//! Everything that grows has a limit; each is configurable, and counted when it is reached.

use std::time::Duration;

/// The limits of one gateway. Defaults fit one machine of two cores.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections held at once, in any stage. Default 18,000, below the usual open-file limit of 20,000.
    pub connections_max: usize,
    /// Handshakes (accept to CONNECT) under way at once. Default 4,096.
    pub handshakes_max: usize,
    /// Connections from one address at once. Default 1,024: many devices share one address behind a NAT.
    pub connections_per_source_max: usize,
    /// From accept to the end of the TLS handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// From the end of the TLS handshake to a whole CONNECT. Default 10 s.
    pub connect_timeout: Duration,
    /// The largest CONNECT packet, in bytes. Default 16 KiB: nobody is known yet.
    pub connect_bytes_max: usize,
    /// The largest packet of an admitted device, in bytes. Default 256 KiB.
    pub packet_bytes_max: usize,
    /// Without any packet for this long a session ends even if it asked for no keep-alive. Default 1 h.
    pub idle_max: Duration,
    /// The longest a session may last before the device must prove itself again. Default 24 h.
    pub session_age_max: Duration,
    /// Sessions of one device at once (client-id modes `prefix` and `free`). Default 8.
    pub sessions_per_device_max: usize,
    /// Subscriptions of one session. Default 64.
    pub subscriptions_max: usize,
    /// Messages waiting for one session. Default 10,000; a session that lets more pile up is ended.
    pub outbox_messages_max: usize,
    /// Bytes waiting for one session. Default 4 MiB; a session that lets more pile up is ended.
    pub outbox_bytes_max: usize,
    /// QoS 1 messages sent to one session and not yet acknowledged. Default 256; less if the device asks for less.
    pub inflight_max: u16,
    /// Topics that the ledger names of one session, in each direction. Default 64; more are counted together.
    pub session_topics_max: usize,
    /// How often what a live session sent and received is handed to the ledger. Default 60 s: a crash costs so much of it.
    pub session_report_interval: Duration,
    /// After a refusal: how long the last words may take to be read before the socket is closed. Default 1 s.
    pub drain_timeout: Duration,
    /// After a refusal: how many bytes of the peer are read and thrown away. Default 16 KiB.
    pub drain_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 18_000,
            handshakes_max: 4_096,
            connections_per_source_max: 1_024,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            connect_bytes_max: 16 * 1024,
            packet_bytes_max: 256 * 1024,
            idle_max: Duration::from_secs(3600),
            session_age_max: Duration::from_secs(24 * 3600),
            sessions_per_device_max: 8,
            subscriptions_max: 64,
            outbox_messages_max: 10_000,
            outbox_bytes_max: 4 * 1024 * 1024,
            inflight_max: 256,
            session_topics_max: 64,
            session_report_interval: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(1),
            drain_bytes_max: 16 * 1024,
        }
    }
}
