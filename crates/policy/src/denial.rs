//! Every way to be refused: a stable code, what the device sees, the cause and the cure.
//!
//! The device is told little (an alert or a CONNACK code), the operator everything. `tests/refusals.toml` lists the
//! codes with their wire forms once more, case by case, and a test drives each.

use std::fmt;
use std::str::FromStr;

use countersign_identity::{ChainFault, IdentityFault};
use serde::{Deserialize, Serialize};

use crate::exchange::Stage;

/// A refusal: what was decided, on which facts, by which policies.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Denial {
    /// The stable code.
    pub code: DenialCode,
    /// The facts of this case, for the operator; never sent to the device.
    pub detail: String,
    /// When coming again helps, in seconds; told to the device where its protocol can.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_s: Option<u32>,
    /// The policies that determined it, if policies did.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<String>,
}

impl Denial {
    /// A denial with the facts of this case.
    pub fn new(code: DenialCode, detail: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            retry_after_s: code.retry_after_s(),
            policies: Vec::new(),
        }
    }

    /// The same, with when to come again.
    #[must_use]
    pub fn retry_after(self, wait: std::time::Duration) -> Self {
        // Rounded up: who comes at the second it was told must not be early.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        Self {
            retry_after_s: Some(u32::try_from(seconds).unwrap_or(u32::MAX).max(1)),
            ..self
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.code, self.detail)
    }
}

impl std::error::Error for Denial {}

impl From<DenialCode> for Denial {
    fn from(code: DenialCode) -> Self {
        Self::new(code, code.cause())
    }
}

/// What the device sees of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wire {
    /// The connection is closed, nothing is said.
    Close,
    /// A fatal TLS alert with this number (RFC 9846 section 6).
    Alert(u8),
    /// CONNACK: the return code of MQTT 3.1.1 (section 3.2.2.3) and the reason code of MQTT 5 (section 3.2.2.2).
    Connack {
        /// MQTT 3.1.1.
        v311: u8,
        /// MQTT 5.
        v5: u8,
    },
    /// HTTP: the status.
    Http(u16),
    /// After CONNACK: 3.1.1 closes, MQTT 5 sends DISCONNECT (section 3.14) or an acknowledgement with this code.
    Session {
        /// MQTT 5.
        v5: u8,
    },
    /// The device itself ended it.
    Device,
}

impl Wire {
    /// What a device that speaks HTTP is answered: 429 if it came too often or has its share (quota), 503 where asking again helps (CONNACK 3 in
    /// MQTT 3.1.1), else 403.
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Http(status) => status,
            // Quota exceeded, connection rate exceeded.
            Self::Connack { v5: 0x97 | 0x9f, .. } => 429,
            Self::Connack { v311: 3, .. } => 503,
            _ => 403,
        }
    }
}

macro_rules! catalogue {
    ($($variant:ident $code:literal $stage:ident $wire:expr, $cause:literal, $cure:literal;)+) => {
        /// The stable codes. A code never changes its meaning; new ones are added.
        #[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub enum DenialCode {
            $(#[doc = $cause] $variant),+
        }

        impl DenialCode {
            /// Every code, in the order of the stages.
            pub const ALL: &'static [Self] = &[$(Self::$variant),+];

            /// The stable code, as in ledger, log, metric and API.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $code),+ }
            }

            /// The stage that refuses with it.
            pub const fn stage(self) -> Stage {
                match self { $(Self::$variant => Stage::$stage),+ }
            }

            /// What the device sees.
            pub const fn wire(self) -> Wire {
                use Wire::{Alert, Close, Connack, Device, Http, Session};
                match self { $(Self::$variant => $wire),+ }
            }

            /// When coming again may help, if nothing better is known, in seconds. `None`: not by waiting.
            pub const fn retry_after_s(self) -> Option<u32> {
                match self.wire() {
                    // Somebody has to activate it first, which takes longer than what passes by itself.
                    _ if matches!(self, Self::DevicePending) => Some(60),
                    // Unavailable, busy, quota, rate: what passes. Others with CONNACK 3 ask for what is not offered.
                    Wire::Connack { v5: 0x88 | 0x89 | 0x97 | 0x9f, .. } => Some(10),
                    _ => None,
                }
            }

            /// The cause, in plain words, without the facts of the case.
            pub const fn cause(self) -> &'static str {
                match self { $(Self::$variant => $cause),+ }
            }

            /// What to do about it.
            pub const fn cure(self) -> &'static str {
                match self { $(Self::$variant => $cure),+ }
            }
        }
    };
}

catalogue! {
    // --- accept
    SourceLimit "accept.source-limit" Accept Close,
        "too many connections or handshakes from this address at once",
        "spread the devices' reconnects (back-off with jitter), or raise limits.connections_per_source_max if many devices share one address";
    SourceRate "accept.source-rate" Accept Close,
        "this address opens connections faster than one address may",
        "let devices back off with jitter, or raise limits.source_connects_per_s and source_connect_burst if many share one address";
    HandshakeLimit "accept.handshake-limit" Accept Close,
        "too many handshakes are under way on this node",
        "let devices back off with jitter, or raise limits.handshakes_max";
    ConnectionLimit "accept.connection-limit" Accept Close,
        "this node holds as many connections as it may",
        "add a node, or raise limits.connections_max and the open-file limit";
    Draining "accept.draining" Accept Close,
        "this node is shutting down",
        "connect again; another node or the restarted one answers";
    ProxyUntrusted "accept.proxy-untrusted" Accept Close,
        "the listener takes connections from its balancers alone, and this address is none of them",
        "let devices connect to the balancer; if this is one, add its address to proxy_from of the listener";
    ProxyHeader "accept.proxy-header" Accept Close,
        "a balancer's connection did not begin with a PROXY protocol header that can be believed",
        "let the balancer send PROXY protocol version 2 (binary) over TCP: send-proxy-v2 in HAProxy, proxy_protocol_v2 in AWS";
    ProxyTimeout "accept.proxy-timeout" Accept Close,
        "a balancer's connection brought no whole PROXY protocol header in time",
        "let the balancer send PROXY protocol version 2; the time is limits.proxy_header_timeout_s";
    // --- client-hello
    Plaintext "hello.plaintext" ClientHello Close,
        "the peer spoke without TLS on the TLS port",
        "configure the device for TLS (mqtts, port 8883) with its certificate and key";
    NotTls "hello.not-tls" ClientHello Close,
        "the peer's first bytes are not a TLS ClientHello",
        "check what connects to this port: only MQTT and HTTPS over TLS do";
    HelloTimeout "hello.timeout" ClientHello Close,
        "the peer sent no complete ClientHello in time",
        "check the network path; port scanners and health checks by bare TCP look like this too";
    QueueFull "hello.queue-full" ClientHello Close,
        "more devices wait for a handshake than the node queues, and most of them are of this tenant and address",
        "let devices back off with jitter; then raise limits.handshakes_per_s, or limits.handshake_queue_bytes_max";
    QueueTimeout "hello.queue-timeout" ClientHello Close,
        "the device's turn for a handshake did not come in time",
        "let devices back off with jitter; then raise limits.handshakes_per_s, or limits.handshake_queue_timeout_s";
    TlsVersion "hello.tls-version" ClientHello Alert(70),
        "the peer offers no TLS version that is allowed here",
        "enable TLS 1.3 (or 1.2) in the device's TLS stack";
    UnknownServerName "hello.unknown-server-name" ClientHello Alert(112),
        "the server name that the device asked for belongs to no tenant",
        "let the device connect to a host name of its tenant, or add it: countersign tenant host add";
    NoApplicationProtocol "hello.no-application-protocol" ClientHello Alert(120),
        "none of the application protocols (ALPN) that the device offers is served here",
        "offer \"mqtt\" in ALPN, or no ALPN at all";
    HandshakeParameters "hello.parameters" ClientHello Alert(40),
        "device and server have no cipher suite, group or signature scheme in common",
        "enable X25519 or P-256 and an AEAD cipher suite in the device's TLS stack";
    // --- server-flight
    HandshakeTimeout "handshake.timeout" ServerFlight Close,
        "the device did not finish the TLS handshake in time",
        "check the device's TLS stack and the network path; the time is limits.handshake_timeout_s";
    DeviceUnknownCa "device-alert.unknown-ca" ServerFlight Device,
        "the device does not trust our server certificate: its pinned root is not the one that issued it",
        "give the device the platform root that `countersign authority export platform` prints";
    DeviceCertificateExpired "device-alert.certificate-expired" ServerFlight Device,
        "the device holds our server certificate to be expired or not yet valid",
        "set the device's clock; then look at the server certificate's dates in `countersign doctor`";
    DeviceBadCertificate "device-alert.bad-certificate" ServerFlight Device,
        "the device rejects our server certificate: often its host name is not the one the device connects to",
        "connect by a name that is in the server certificate, or add the name to server.host_names";
    DeviceAlert "device-alert.other" ServerFlight Device,
        "the device ended the handshake with an alert",
        "look at the device's TLS log for the alert's number";
    HandshakeProtocol "handshake.protocol" ServerFlight Alert(10),
        "the device broke the TLS protocol",
        "look at the device's TLS stack; the detail says what was wrong";
    // --- client-certificate
    NoCertificate "chain.no-certificate" ClientCertificate Alert(116),
        "the device showed no certificate",
        "configure the device's certificate and key; then check that its TLS stack sends them when asked";
    ChainMalformed "chain.malformed" ClientCertificate Alert(42),
        "a certificate in the device's chain cannot be read, or has a critical extension nobody knows",
        "look at it with `openssl x509 -text` and issue it anew";
    ChainTooLarge "chain.too-large" ClientCertificate Alert(42),
        "the device sent more certificates than are read",
        "send the device certificate and its intermediates only, leaf first";
    SelfSigned "chain.self-signed" ClientCertificate Alert(48),
        "the device's certificate is self-signed",
        "give the device a certificate from a registered authority: countersign device provision";
    UnknownCa "chain.unknown-ca" ClientCertificate Alert(48),
        "no registered authority issued the device's certificate",
        "register the authority (countersign authority register), or let the device send its intermediate certificates too";
    ChainBadSignature "chain.bad-signature" ClientCertificate Alert(48),
        "the certificate bears the name of a registered authority that did not sign it",
        "if the authority has a new key, register its new certificate; else treat this as a forgery attempt";
    ForeignTenant "chain.foreign-tenant" ClientCertificate Alert(48),
        "the authority is registered, but for another tenant than the server name asked for",
        "let the device connect to its own tenant's host name";
    AmbiguousTenant "chain.ambiguous-tenant" ClientCertificate Alert(48),
        "several tenants have registered this authority and the device sent no server name",
        "let the device send its tenant's host name (SNI)";
    CertificateExpired "chain.expired" ClientCertificate Alert(45),
        "a certificate of the device's chain is expired",
        "issue a new certificate: countersign device provision; then look at why the renewal did not happen";
    CertificateNotYetValid "chain.not-yet-valid" ClientCertificate Alert(45),
        "a certificate of the device's chain is not valid yet",
        "compare the clocks of issuer and server; `countersign doctor` shows ours";
    WrongUsage "chain.wrong-usage" ClientCertificate Alert(43),
        "the device's certificate is not for client authentication",
        "issue it with extended key usage clientAuth and key usage digitalSignature";
    CaAsLeaf "chain.ca-as-leaf" ClientCertificate Alert(43),
        "the device showed a CA certificate as its own",
        "give the device a certificate of its own; a CA's key has no place on a device";
    IssuerNotCa "chain.issuer-not-ca" ClientCertificate Alert(48),
        "an issuer in the device's chain may not issue certificates",
        "issue device certificates by a CA (basicConstraints CA, key usage keyCertSign)";
    PathLength "chain.path-length" ClientCertificate Alert(48),
        "the chain is longer than an issuer's path length allows",
        "issue device certificates by the registered authority itself, or raise its path length in a new CA certificate";
    NameConstraint "chain.name-constraint" ClientCertificate Alert(48),
        "a name constraint of an issuer excludes the device's certificate",
        "issue the device a certificate whose names the CA's name constraints permit, or issue the CA's certificate anew";
    ChainPolicy "chain.policy" ClientCertificate Alert(48),
        "an issuer in the device's chain demands a certificate policy that the chain does not have",
        "issue certificates with the policy that the CA's policyConstraints demand, or drop policyConstraints from the CA";
    ChainRevoked "chain.revoked" ClientCertificate Alert(44),
        "a certificate of the device's chain is on its issuer's revocation list",
        "if the device is trusted again, let the authority issue it a new certificate";
    RevocationUnknown "chain.revocation-unknown" ClientCertificate Alert(48),
        "whether a certificate of the chain is revoked cannot be told: its issuer's revocation list is missing or stale",
        "give the current list: countersign authority crl, with the list of the issuer that the detail names";
    WeakKey "chain.weak-key" ClientCertificate Alert(43),
        "the device's key is too weak or of an unknown kind",
        "use P-256, P-384, Ed25519 or RSA of 2048 bits or more";
    SignatureAlgorithm "chain.signature-algorithm" ClientCertificate Alert(48),
        "the chain is signed with an algorithm that is not accepted",
        "issue with ECDSA and SHA-256, Ed25519, or RSA with SHA-256";
    ChainBudget "chain.budget" ClientCertificate Alert(48),
        "the chain is too costly to check",
        "send the device certificate and its intermediates only, leaf first";
    AuthorityExpired "authority.expired" ClientCertificate Alert(45),
        "the registered authority's own certificate is expired",
        "register the authority's new certificate, then renew the devices' certificates";
    AuthorityUnproven "authority.unproven" ClientCertificate Alert(48),
        "the authority was registered, but possession of its key was not proven",
        "prove it: countersign authority prove, with a certificate that the CA issued for the code";
    AuthorityRetired "authority.retired" ClientCertificate Alert(48),
        "the authority was retired",
        "issue the device a certificate from an active authority";
    AuthorityRevoked "authority.revoked" ClientCertificate Alert(44),
        "the authority was revoked",
        "issue the device a certificate from an active authority";
    CredentialRevoked "credential.revoked" ClientCertificate Alert(44),
        "this certificate was revoked",
        "provision the device anew if it is trusted again: countersign device provision";
    DeviceRateIgnored "credential.rate-ignored" ClientCertificate Alert(49),
        "the device comes far too often, and was told so",
        "look for what lets it connect again and again: a client without back-off, or two holders of one key";
    ResumedWithoutCertificate "resumption.no-certificate" ClientCertificate Connack { v311: 5, v5: 0x87 },
        "a session was resumed that no device's certificate vouches for",
        "this is a bug: report it, and set resumption = false on the listener until it is mended";
    // --- certificate-verify
    PossessionFailed "possession.failed" CertificateVerify Alert(51),
        "the peer did not prove that it holds the certificate's private key",
        "check that key and certificate on the device belong together; if they do, somebody replayed its public certificate";
    // --- identify
    DeviceRate "credential.rate" Identify Connack { v311: 3, v5: 0x9f },
        "the device comes more often than a device may",
        "let it back off with jitter, keep its session or its HTTP connection open, or raise limits.device_connects_per_minute";
    IdentityMissing "identity.missing" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate lacks the field that carries the device id",
        "issue certificates with the device's serial in the field that the authority's identity rule names";
    IdentityMalformed "identity.malformed" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate's identity has characters that no device id may have, such as wildcards",
        "issue a certificate whose id has only A-Z a-z 0-9 . _ : -";
    UnknownDevice "device.unknown" Identify Connack { v311: 5, v5: 0x87 },
        "no device of this id is registered",
        "add it: countersign device add, or countersign device import";
    UnknownCredential "credential.unknown" Identify Connack { v311: 5, v5: 0x87 },
        "the device is known, but this certificate is not registered for it",
        "register the certificate: countersign device import; only an authority of mode known-device learns one for a known device";
    NotReconciled "credential.not-reconciled" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate comes from an offline factory station whose journal has not told of it yet",
        "hand in the station's journal: countersign-station export writes it, countersign factory reconcile takes it, and says why if it refuses this certificate";
    StationRevoked "credential.station-revoked" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate comes from an offline factory station that was revoked before its journal told of it",
        "give the device a new identity if it is trusted: countersign device provision";
    CredentialOfOther "credential.of-other-device" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate names another device than the one it is registered for",
        "look at both devices: the certificate's identity and its registration must agree";
    FirstContactUnbound "first-contact.unbound" Identify Connack { v311: 5, v5: 0x87 },
        "the device is known, but it is not bound to the authority that issued its certificate",
        "bind it, if that is its authority: countersign device bind";
    FirstContactOtherKey "first-contact.other-key" Identify Connack { v311: 5, v5: 0x87 },
        "the device has a certificate already, and came with another one",
        "if the new one is right, revoke the old one (countersign credential revoke); else somebody copied the device's id";
    FirstContactSharedKey "first-contact.shared-key" Identify Connack { v311: 5, v5: 0x87 },
        "the key of the new certificate belongs to another device already",
        "look at both devices: a key that two of them hold was copied; give each a key of its own";
    FirstContactRevokedKey "first-contact.revoked-key" Identify Connack { v311: 5, v5: 0x87 },
        "a certificate for the same key was revoked, other than as superseded",
        "give the device a new key, and a certificate for that";
    FirstContactRevokedBefore "first-contact.revoked-before" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate had been revoked or replaced after the backup was made that the registry was restored from",
        "provision the device anew if it is trusted again: countersign device provision";
    FirstContactPattern "first-contact.pattern" Identify Connack { v311: 5, v5: 0x87 },
        "the id does not fit the pattern of the authority's just-in-time template",
        "correct the certificate's id, or change the template: countersign authority set";
    FirstContactQuota "first-contact.quota" Identify Connack { v311: 5, v5: 0x87 },
        "as many devices came by the authority's just-in-time template as its quota allows",
        "look at who came; then raise the quota: countersign authority set";
    CredentialSuperseded "credential.superseded" Identify Connack { v311: 5, v5: 0x87 },
        "the device uses a newer certificate, and the time in which the old one was admitted too is over",
        "let the device present its newest certificate; if it lost it, provision it anew: countersign device provision";
    CredentialLapsed "credential.lapsed" Identify Connack { v311: 5, v5: 0x87 },
        "the certificate was handed out but not used in time",
        "provision the device anew: countersign device provision";
    // --- policy
    DevicePending "device.pending" Policy Connack { v311: 5, v5: 0x87 },
        "the device is registered but not yet activated",
        "countersign device activate";
    DeviceSuspended "device.suspended" Policy Connack { v311: 5, v5: 0x87 },
        "the device is suspended",
        "countersign device resume, once the reason for the suspension is gone";
    DeviceQuarantined "device.quarantined" Policy Connack { v311: 5, v5: 0x87 },
        "the device is quarantined, and no policy opens the quarantine lane for it, or it came over HTTPS, which the lane does not have",
        "countersign device release, once it is clean; a policy with @quarantine(\"open\") opens the lane";
    DeviceDecommissioned "device.decommissioned" Policy Connack { v311: 5, v5: 0x8a },
        "the device was decommissioned; that is final",
        "if the hardware returns to service, give it a new id and a new key";
    EnrolOnly "credential.enrol-only" Policy Connack { v311: 5, v5: 0x87 },
        "the profile of the device's factory certificate has it enrol, and open no data sessions",
        "let the device enrol for an operational certificate (EST, on an enrolment listener or over HTTPS on this one) and connect with that; or set data_sessions in the profile";
    PolicyForbids "policy.forbidden" Policy Connack { v311: 5, v5: 0x87 },
        "a policy forbids it",
        "look at the policies named with the denial";
    PolicyNoPermit "policy.no-permit" Policy Connack { v311: 5, v5: 0x87 },
        "no policy permits it",
        "add a policy that permits it, or put the device into a group that one names";
    PolicyError "policy.error" Policy Connack { v311: 3, v5: 0x88 },
        "a policy could not be evaluated, so the answer is no",
        "correct the policy named with the denial";
    RegistryUnavailable "registry.unavailable" Policy Connack { v311: 3, v5: 0x88 },
        "the registry cannot be read or written, so nobody is admitted",
        "look at `countersign doctor`: disk space, permissions, and the server's log";
    // --- greet
    ConnectTimeout "greet.timeout" Greet Close,
        "the device finished TLS but sent no MQTT CONNECT in time",
        "check the device's MQTT client; the time is limits.connect_timeout_s";
    NotConnect "greet.not-connect" Greet Close,
        "the first packet was not CONNECT",
        "the device must send CONNECT first (MQTT 3.1.0-1)";
    HttpMalformed "greet.http-malformed" Greet Http(400),
        "what the device sent over a connection that chose HTTP is no HTTP/1.1 request",
        "let the device speak what it offers in ALPN: an MQTT client offers mqtt, or nothing";
    HttpVersion "greet.http-version" Greet Http(505),
        "the device speaks an HTTP version that is not served",
        "let the device speak HTTP/1.1";
    MqttMalformed "mqtt.malformed" Greet Close,
        "the device sent a packet that breaks the MQTT standard",
        "look at the device's MQTT client; the detail cites the clause";
    MqttProtocolName "mqtt.protocol-name" Greet Close,
        "the CONNECT names another protocol than MQTT",
        "use an MQTT 3.1.1 or 5 client";
    MqttVersion "mqtt.version" Greet Connack { v311: 1, v5: 0x84 },
        "the device speaks an MQTT version that is not served",
        "use MQTT 3.1.1 (level 4) or MQTT 5";
    ClientIdMismatch "greet.client-id" Greet Connack { v311: 2, v5: 0x85 },
        "the client id is not one that this device may use",
        "set the client id to the device id of the certificate, or change the tenant's client-id mode";
    PersistentSession "greet.persistent-session" Greet Connack { v311: 3, v5: 0x83 },
        "the device asks for a session that outlives the connection (CleanSession 0), which is not offered here",
        "connect with CleanSession 1; a session that persists comes with a later version";
    WillQos "greet.will-qos" Greet Connack { v311: 3, v5: 0x9b },
        "the device asks for a will of QoS 2, which is not offered here",
        "set the will's QoS to 0 or 1";
    WillRetain "greet.will-retain" Greet Connack { v311: 3, v5: 0x9a },
        "the device asks for a will that is to be retained, which is not offered here",
        "set a will without RETAIN";
    AuthMethod "greet.auth-method" Greet Connack { v311: 5, v5: 0x8c },
        "the device asks for an enhanced authentication method, and none is offered",
        "connect without Authentication Method: the certificate is the authentication";
    PacketTooLarge "mqtt.too-large" Greet Connack { v311: 3, v5: 0x95 },
        "a packet is larger than allowed",
        "send smaller packets, or raise limits.packet_bytes_max";
    // --- grant
    GrantStale "grant.stale" Grant Connack { v311: 3, v5: 0x88 },
        "device, credential, authority or policy changed while the device was connecting",
        "connect again: the decision is then made on the new facts";
    WillForbidden "grant.will" Grant Connack { v311: 5, v5: 0x87 },
        "no policy lets the device publish where its will is to go",
        "set the will to one of the device's own topics, or open a topic space to it by policy";
    SessionLimit "grant.session-limit" Grant Connack { v311: 3, v5: 0x97 },
        "the device holds as many sessions as it may",
        "close the device's other sessions, or raise limits.sessions_per_device_max";
    TokenLimit "token.limit" Grant Http(429),
        "the device, its tenant or this node holds as many session tokens as it may",
        "use a token until it expires, or give it back (POST /oauth2/revoke); else raise limits.tokens_per_device_max, limits.tokens_per_tenant_max or limits.tokens_max";
    TokenScopeForbidden "token.scope-forbidden" Grant Http(400),
        "the device asks for a token with a scope that names no topic space, or one that it may not publish to",
        "ask for publish:SPACE with the name of a space that the tenant's policies let it publish to, or for no scope";
    // --- first-data and after
    TopicForbidden "topic.forbidden" FirstData Session { v5: 0x87 },
        "no policy lets the device publish or subscribe there",
        "publish under the device's own topics, or open a topic space to it by policy";
    TopicInvalid "topic.invalid" FirstData Session { v5: 0x90 },
        "the topic has wildcards or characters that no topic may have",
        "correct the topic";
    SubscriptionLimit "topic.subscription-limit" FirstData Session { v5: 0x97 },
        "the session holds as many subscriptions as it may",
        "subscribe with fewer filters that match more, unsubscribe what is not needed, or raise limits.subscriptions_max";
    SharedSubscription "topic.shared-subscription" FirstData Session { v5: 0x9e },
        "the device asks for a shared subscription ($share), which is not offered here",
        "subscribe without $share: each session gets its own copy";
    SecondConnect "mqtt.second-connect" FirstData Session { v5: 0x82 },
        "the device sent CONNECT twice on one connection",
        "send CONNECT once (MQTT 3.1.0-2)";
    QosNotSupported "mqtt.qos" FirstData Session { v5: 0x9b },
        "the device publishes with QoS 2, which is announced as not supported",
        "use QoS 0 or 1";
    RetainNotSupported "mqtt.retain" FirstData Session { v5: 0x9a },
        "the device publishes a retained message, which is announced as not supported",
        "publish without RETAIN";
    WillWithheld "will.withheld" FirstData Close,
        "the session ended without the device's word, and its will was not published: as the device stands now it may not publish it",
        "none is needed if the device was suspended, quarantined or revoked on purpose; else the detail says what keeps the device out";
    TokenInvalid "token.invalid" FirstData Http(401),
        "the bearer token is none of this platform for this purpose, or it is expired, revoked or ended",
        "let the device ask for a new token (POST /oauth2/token) and send it as it is";
    TokenOtherCertificate "token.other-certificate" FirstData Http(401),
        "the bearer token is bound to another certificate than the one that this connection was opened with",
        "after a renewal ask for a new token; if the token was shown by another device, it was copied: look at both";
    TokenScope "token.scope" FirstData Http(403),
        "the device may publish there, but not with this bearer token: its scope does not cover the topic",
        "ask for a token with the topic's space in its scope (publish:SPACE), or publish without a token";
}

impl DenialCode {
    /// The code that explains a fault of the chain.
    pub const fn of_chain(fault: &ChainFault) -> Self {
        match fault {
            ChainFault::TooLarge { .. } => Self::ChainTooLarge,
            ChainFault::Malformed(_) => Self::ChainMalformed,
            ChainFault::CaAsLeaf => Self::CaAsLeaf,
            ChainFault::SelfSigned => Self::SelfSigned,
            ChainFault::UnknownCa { .. } => Self::UnknownCa,
            ChainFault::BadSignature { .. } => Self::ChainBadSignature,
            ChainFault::ForeignTenant { .. } => Self::ForeignTenant,
            ChainFault::AmbiguousTenant => Self::AmbiguousTenant,
            ChainFault::Expired { .. } => Self::CertificateExpired,
            ChainFault::NotYetValid { .. } => Self::CertificateNotYetValid,
            ChainFault::WrongUsage(_) => Self::WrongUsage,
            ChainFault::IssuerNotCa(_) => Self::IssuerNotCa,
            ChainFault::PathLength => Self::PathLength,
            ChainFault::NameConstraint => Self::NameConstraint,
            ChainFault::Policy => Self::ChainPolicy,
            ChainFault::Revoked { .. } => Self::ChainRevoked,
            ChainFault::RevocationUnknown { .. } => Self::RevocationUnknown,
            ChainFault::WeakKey => Self::WeakKey,
            ChainFault::SignatureAlgorithm => Self::SignatureAlgorithm,
            ChainFault::Budget => Self::ChainBudget,
            ChainFault::AnchorExpired { .. } => Self::AuthorityExpired,
            ChainFault::AuthorityUnproven { .. } => Self::AuthorityUnproven,
            ChainFault::AuthorityRetired { .. } => Self::AuthorityRetired,
            ChainFault::AuthorityRevoked { .. } => Self::AuthorityRevoked,
        }
    }
}

impl From<&ChainFault> for Denial {
    fn from(fault: &ChainFault) -> Self {
        Self::new(DenialCode::of_chain(fault), fault.to_string())
    }
}

impl From<&IdentityFault> for Denial {
    fn from(fault: &IdentityFault) -> Self {
        let code = match fault {
            IdentityFault::Missing(_) => DenialCode::IdentityMissing,
            IdentityFault::Ambiguous(_) | IdentityFault::OtherForm(_) | IdentityFault::Malformed { .. } => {
                DenialCode::IdentityMalformed
            }
        };
        Self::new(code, fault.to_string())
    }
}

impl fmt::Display for DenialCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for DenialCode {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        Self::ALL
            .iter()
            .copied()
            .find(|c| c.as_str() == s)
            .ok_or_else(|| format!("{s:?} is no denial code"))
    }
}

impl TryFrom<String> for DenialCode {
    type Error = String;
    fn try_from(s: String) -> Result<Self, String> {
        s.parse()
    }
}

impl From<DenialCode> for String {
    fn from(code: DenialCode) -> String {
        code.as_str().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::DenialCode;

    #[test]
    fn codes_are_unique_and_each_has_a_cause_and_a_cure() {
        let codes: HashSet<_> = DenialCode::ALL.iter().map(|c| c.as_str()).collect();
        assert_eq!(codes.len(), DenialCode::ALL.len());
        for code in DenialCode::ALL {
            assert!(!code.cause().is_empty() && !code.cure().is_empty(), "{code}");
            assert_eq!(code.as_str().parse(), Ok(*code));
        }
    }

    #[test]
    fn http_says_what_mqtt_says() {
        for (code, status, waits) in [
            (DenialCode::SessionLimit, 429, true),
            (DenialCode::DeviceRate, 429, true),
            (DenialCode::TokenLimit, 429, false),
            (DenialCode::RegistryUnavailable, 503, true),
            (DenialCode::DevicePending, 403, true),
            (DenialCode::DeviceSuspended, 403, false),
        ] {
            assert_eq!(code.wire().http_status(), status, "{code}");
            assert_eq!(code.retry_after_s().is_some(), waits, "{code}");
        }
    }
}
