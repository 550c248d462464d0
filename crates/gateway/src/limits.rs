//! Everything that grows has a limit; each is configurable, and counted when it is reached.

use std::time::Duration;

/// The limits of one gateway. Defaults fit one machine of two cores.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Connections held at once, in any stage. Default 18,000, below the usual open-file limit of 20,000.
    pub connections_max: usize,
    /// Handshakes (accept to the end of TLS, waiting in the queue included) under way at once. Default 8,192; the last
    /// eighth is for sources that hold few.
    pub handshakes_max: usize,
    /// Connections from one source at once: an IPv4 address or an IPv6 /64. Default 1,024: many devices share one
    /// address behind a NAT.
    pub connections_per_source_max: usize,
    /// Connections that one source may open a second, in the long run. Default 200.
    pub source_connects_per_s: u32,
    /// Connections that one source may open at once after a while of quiet. Default 2,048.
    pub source_connect_burst: u32,
    /// Sources that are remembered for their rate. Default 65,536 (about 4 MiB); beyond, rates are forgotten, and counted.
    pub sources_max: usize,
    /// Handshakes that are begun a second; the others wait. Default 2,000: about half a core.
    pub handshakes_per_s: u32,
    /// Handshakes that are begun at once after a while of quiet. Default 500.
    pub handshake_burst: u32,
    /// What may wait for its handshake, in bytes of ClientHellos and 2 KiB each. Default 24 MiB: about 6,000 devices.
    pub handshake_queue_bytes_max: usize,
    /// How long a device may wait for its handshake. Default 10 s.
    pub handshake_queue_timeout: Duration,
    /// Attempts of one device a minute, and at once. Default 120. Counted only where possession of its key was proven.
    pub device_connects_per_minute: u32,
    /// Devices whose attempts are remembered. Default 65,536 (about 4 MiB).
    pub devices_remembered_max: usize,
    /// On a listener behind balancers: from accept to the whole PROXY protocol header. Default 3 s.
    pub proxy_header_timeout: Duration,
    /// The largest PROXY protocol header, in bytes. Default 1,024; it must be at least 52 for TCP over IPv6.
    pub proxy_header_bytes_max: usize,
    /// From accept, or the PROXY protocol header, to the end of the TLS handshake. Default 10 s; begun anew when the turn of a
    /// device that waited has come.
    pub handshake_timeout: Duration,
    /// From the end of the TLS handshake to a whole CONNECT. Default 10 s.
    pub connect_timeout: Duration,
    /// The largest CONNECT packet, in bytes. Default 16 KiB: nobody is known yet.
    pub connect_bytes_max: usize,
    /// The largest packet of an admitted device, in bytes. Default 256 KiB.
    pub packet_bytes_max: usize,
    /// Without any packet for this long a session ends even if it asked for no keep-alive. Default 1 h.
    pub idle_max: Duration,
    /// Without a request for this long an HTTP connection is closed. Default 60 s: each holds one of its device's sessions, and a
    /// connection whose other end is gone says nothing.
    pub http_idle: Duration,
    /// The longest a session may last before the device must prove itself again; each ends in the last fifth of it. Default
    /// 24 h.
    pub session_age_max: Duration,
    /// Chains whose signatures are known to hold, so that a device that comes back does not have them verified again.
    /// Default 65,536, about 100 bytes each; 0: none.
    pub verified_chains_max: usize,
    /// Sessions of one device at once (client-id modes `prefix` and `free`). Default 8.
    pub sessions_per_device_max: usize,
    /// Tokens of one device at once. Default 8.
    pub tokens_per_device_max: usize,
    /// Tokens of all devices at once. Default 50,000; each takes about 1 KiB.
    pub tokens_max: usize,
    /// Of these, tokens of one tenant's devices. Default 40,000: no tenant takes all there are.
    pub tokens_per_tenant_max: usize,
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
    /// Bytes of the topics that are named so, in each direction. Default 8 KiB; a topic that finds no room is counted with the
    /// others.
    pub session_topic_bytes_max: usize,
    /// How often what a live session sent and received is handed to the ledger. Default 60 s: a crash costs so much of it.
    pub session_report_interval: Duration,
    /// After a refusal: how long the last words may take to be read before the socket is closed. Default 1 s.
    pub drain_timeout: Duration,
    /// How often every live session is compared with the facts, in case a change missed one. Default 60 s.
    pub session_sweep: Duration,
    /// After a refusal: how many bytes of the peer are read and thrown away. Default 16 KiB.
    pub drain_bytes_max: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 18_000,
            handshakes_max: 8_192,
            connections_per_source_max: 1_024,
            source_connects_per_s: 200,
            source_connect_burst: 2_048,
            sources_max: 65_536,
            handshakes_per_s: 2_000,
            handshake_burst: 500,
            handshake_queue_bytes_max: 24 * 1024 * 1024,
            handshake_queue_timeout: Duration::from_secs(10),
            device_connects_per_minute: 120,
            devices_remembered_max: 65_536,
            proxy_header_timeout: Duration::from_secs(3),
            proxy_header_bytes_max: 1_024,
            handshake_timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(10),
            connect_bytes_max: 16 * 1024,
            packet_bytes_max: 256 * 1024,
            idle_max: Duration::from_secs(3600),
            http_idle: Duration::from_secs(60),
            session_age_max: Duration::from_secs(24 * 3600),
            verified_chains_max: 65_536,
            sessions_per_device_max: 8,
            tokens_per_device_max: 8,
            tokens_max: 50_000,
            tokens_per_tenant_max: 40_000,
            subscriptions_max: 64,
            outbox_messages_max: 10_000,
            outbox_bytes_max: 4 * 1024 * 1024,
            inflight_max: 256,
            session_topics_max: 64,
            session_topic_bytes_max: 8 * 1024,
            session_report_interval: Duration::from_secs(60),
            drain_timeout: Duration::from_secs(1),
            session_sweep: Duration::from_secs(60),
            drain_bytes_max: 16 * 1024,
        }
    }
}
