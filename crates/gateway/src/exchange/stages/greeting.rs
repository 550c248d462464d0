//! What the device wants, once it may come in.

use std::sync::Arc;
use std::time::Instant;

use countersign_identity::{Anchor, HeldPath, IdentityFields, TenantId, Timestamp};
use countersign_policy::decide::AdmissionPermit;
use countersign_policy::facts::TlsFacts;
use countersign_policy::{
    ClientIdMode, CredentialFacts, Denial, DenialCode, DeviceFacts, LifecycleState, Outcome, Stage,
};

use crate::exchange::refused::{Abandoned, Refused};
use crate::exchange::trace::Trace;
use crate::judge;
use crate::node::Node;
use crate::session::entry::SessionName;
use crate::session::will::Will;

/// What outlives the handshake.
#[derive(Debug)]
pub(crate) struct Connected {
    pub(crate) device: Arc<DeviceFacts>,
    pub(crate) credential: CredentialFacts,
    pub(crate) anchor: Arc<Anchor>,
    /// The last second at which all of the path is within its dates.
    pub(crate) not_after: Timestamp,
    pub(crate) path: Option<Arc<HeldPath>>,
    /// What identity rules read of the certificate; `None` if it vouches for itself.
    pub(crate) named: Option<Arc<IdentityFields>>,
    pub(crate) tls: TlsFacts,
}

/// A device with a permit, which has not said yet what it wants.
#[derive(Debug)]
pub struct Authorised {
    pub(super) trace: Trace,
    pub(super) connected: Connected,
    pub(super) permit: AdmissionPermit,
}

/// What a CONNECT asks for, as far as admission looks at it.
#[derive(Debug)]
pub(crate) struct Greeting<'a> {
    pub(crate) protocol: &'static str,
    pub(crate) client_id: &'a str,
    pub(crate) persistent: bool,
    pub(crate) will: Option<Result<Will, Denial>>,
    pub(crate) auth_method: Option<&'a str>,
}

impl Authorised {
    /// Checks what a CONNECT asks for against who the device is.
    ///
    /// # Errors
    /// [`Refused`] if the client id is not the device's, or something is asked for that is not offered.
    pub(crate) fn greet(
        mut self,
        greeting: Greeting<'_>,
        mode: ClientIdMode,
    ) -> Result<Greeted, Box<Refused>> {
        let device = self.connected.device.id.as_str();
        let asked = greeting.client_id;
        self.trace.fact("protocol", greeting.protocol);
        self.trace.fact("client_id", asked);
        let own = judge::client_id(mode, &self.connected.device.id, asked);
        let fault = if let Err(denial) = own {
            Some(denial)
        } else if greeting.auth_method.is_some() {
            Some(DenialCode::AuthMethod.into())
        } else if greeting.persistent {
            Some(DenialCode::PersistentSession.into())
        } else {
            None
        };
        let (will, fault) = match (greeting.will, fault) {
            (Some(Ok(will)), None) => (Some(will), None),
            (Some(Err(denial)), None) => (None, Some(denial)),
            (_, fault) => (None, fault),
        };
        if let Some(denial) = fault {
            return Err(Box::new(Refused {
                trace: self.trace,
                denial,
            }));
        }
        // Empty in mode `free`: the server assigns, and the device id is what it assigns (MQTT 5 section 3.1.3.1).
        let assigned = asked.is_empty();
        let name = match assigned || asked == device {
            true => SessionName::Device,
            false => SessionName::Chosen(asked.into()),
        };
        self.trace.passed(Stage::Greet);
        Ok(Greeted {
            trace: self.trace,
            connected: self.connected,
            permit: self.permit,
            name,
            assigned,
            will,
        })
    }

    /// The first request of an HTTP connection: it has no client id, and asks for nothing that outlives it. Its session
    /// goes by a name of its own, so that it takes over no other.
    pub(crate) fn greet_http(mut self, protocol: &'static str, request: &str) -> Greeted {
        self.trace.fact("protocol", protocol);
        self.trace.fact("request", request);
        self.trace.passed(Stage::Greet);
        let name = format!("{protocol}:{}", self.trace.id);
        Greeted {
            trace: self.trace,
            connected: self.connected,
            permit: self.permit,
            name: SessionName::Given(name.into()),
            assigned: false,
            will: None,
        }
    }

    /// Whether it was let into the quarantine lane alone.
    pub(crate) fn is_quarantined(&self) -> bool {
        self.connected.device.state == LifecycleState::Quarantined
    }

    /// The tenant whose rules apply to it.
    pub(crate) fn tenant(&self) -> &TenantId {
        &self.connected.device.tenant
    }

    /// The device went away.
    pub(crate) fn abandon(self) -> Abandoned {
        Abandoned { trace: self.trace }
    }

    /// Refuses it in place of a greeting.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }
}

/// A device whose CONNECT is sound. One step from a session: see `session::grant`.
#[derive(Debug)]
pub struct Greeted {
    pub(super) trace: Trace,
    pub(crate) connected: Connected,
    pub(crate) permit: AdmissionPermit,
    pub(crate) name: SessionName,
    /// The client sent none, so it must be told.
    pub(crate) assigned: bool,
    pub(crate) will: Option<Will>,
}

impl Greeted {
    pub(crate) fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Gives up its parts to the session that is about to be indexed.
    pub(crate) fn into_parts(self) -> (Trace, Connected, AdmissionPermit) {
        (self.trace, self.connected, self.permit)
    }

    /// Refuses it at the last moment.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }
}

impl Trace {
    /// Refuses an exchange whose session was indexed but found stale.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused { trace: self, denial }
    }

    /// The session is granted: the exchange becomes a record.
    pub(crate) fn granted(mut self, permit: &AdmissionPermit, node: &Node) -> Instant {
        self.passed(Stage::Grant);
        self.generations = Some(permit.generations());
        let accepted = self.accepted();
        node.sink.record(self.into_record(Outcome::Admitted, None));
        accepted
    }
}
