//! Whose key it is, and whether that device may come in now.

use std::sync::Arc;

use countersign_identity::{Anchor, HeldPath, IdentityFields, Timestamp, VerifiedChain};
use countersign_policy::facts::TlsFacts;
use countersign_policy::first_contact::Contact;
use countersign_policy::{CredentialFacts, Denial, DenialCode, DeviceFacts, FactSource, Stage};

use super::{Authorised, Connected};
use crate::exchange::refused::{Abandoned, Refused};
use crate::exchange::trace::Trace;
use crate::judge::{self, Circumstances};
use crate::node::Node;
use crate::shaping::attempts::Standing;

/// A peer that proved to hold the key of a certificate with a path to a registered anchor. Not admitted to anything.
#[derive(Debug)]
pub struct Handshaken {
    pub(super) trace: Trace,
    pub(super) chain: VerifiedChain,
    pub(super) tls: TlsFacts,
    pub(super) first_contact_over: bool,
    pub(super) standing: Standing,
}

/// What identification came to.
pub(crate) enum Identification {
    /// Device and credential are known.
    Known(Box<Identified>),
    /// The credential is not known, and the authority's admission may let it be learned: ask, then identify again.
    FirstContact(Box<Handshaken>, Box<Contact>),
}

impl Handshaken {
    /// Reads the device id, and looks up device and credential.
    ///
    /// # Errors
    /// [`Refused`] if the certificate names no device, or one that is not known by this certificate.
    pub(crate) fn identify(mut self, facts: &dyn FactSource) -> Result<Identification, Box<Refused>> {
        if let Standing::Over(wait) | Standing::FarOver(wait) = self.standing {
            let denial = Denial::from(DenialCode::DeviceRate).retry_after(wait);
            return Err(Box::new(self.refuse(denial)));
        }
        match self.look_up(facts) {
            Ok(Some((device, credential))) => {
                self.trace.passed(Stage::Identify);
                // A leaf that its authority issued itself is known by its credential.
                let path = self.chain.held().filter(|_| self.chain.intermediates() > 0);
                let (not_after, path) = (self.chain.not_after(), path.cloned());
                let named = match self.chain.pinned_device() {
                    Some(_) => None,
                    None => Some(Arc::new(IdentityFields::of(self.chain.leaf()))),
                };
                let (_, anchor) = self.chain.into_parts();
                Ok(Identification::Known(Box::new(Identified {
                    trace: self.trace,
                    anchor,
                    not_after,
                    path,
                    named,
                    device,
                    credential,
                    tls: self.tls,
                })))
            }
            Ok(None) => match judge::contact(&self.chain) {
                Ok(contact) => Ok(Identification::FirstContact(Box::new(self), Box::new(contact))),
                Err(denial) => Err(Box::new(self.refuse(denial))),
            },
            Err(denial) => Err(Box::new(self.refuse(denial))),
        }
    }

    /// `None`: the credential is not known, and may be learned.
    fn look_up(
        &mut self,
        facts: &dyn FactSource,
    ) -> Result<Option<(Arc<DeviceFacts>, CredentialFacts)>, Denial> {
        let id = judge::device_id(&self.chain)?;
        self.trace.device = Some(id.clone());
        judge::identify(facts, &self.chain, &id, !self.first_contact_over)
    }

    /// Whether certificate and proof are those of an earlier handshake.
    pub(crate) fn is_resumed(&self) -> bool {
        self.tls.resumed
    }

    /// The registry has learned what it was asked to.
    pub(crate) fn learned(mut self) -> Self {
        self.first_contact_over = true;
        self.trace.fact("first_contact", "learned");
        self
    }

    /// Why its path does not hold any more. What ended after the path was checked finds no credential of whoever was not known yet.
    pub(crate) fn path_fault(&self, node: &Node) -> Option<Denial> {
        let fault = self.chain.held()?.fault(&node.facts.anchors())?;
        Some(Denial::from(&fault))
    }

    /// The device went away.
    pub(crate) fn abandon(self) -> Abandoned {
        Abandoned { trace: self.trace }
    }

    /// Refuses it.
    pub(crate) fn refuse(self, denial: Denial) -> Refused {
        Refused {
            trace: self.trace,
            denial,
        }
    }
}

/// A known device with a known credential. Whether it may come in now is another question.
#[derive(Debug)]
pub struct Identified {
    pub(super) trace: Trace,
    pub(super) anchor: Arc<Anchor>,
    pub(super) not_after: Timestamp,
    pub(super) path: Option<Arc<HeldPath>>,
    pub(super) named: Option<Arc<IdentityFields>>,
    pub(super) device: Arc<DeviceFacts>,
    pub(super) credential: CredentialFacts,
    pub(super) tls: TlsFacts,
}

impl Identified {
    /// Lifecycle, then policies.
    ///
    /// # Errors
    /// [`Refused`] with the denial of the decision.
    pub(crate) fn decide(
        mut self,
        facts: &dyn FactSource,
        now: Timestamp,
    ) -> Result<Authorised, Box<Refused>> {
        let decided = judge::connect(
            facts,
            &self.device,
            &self.credential,
            (&self.anchor.authority, self.anchor.generation),
            Circumstances {
                source: self.trace.source.ip(),
                tls: self.tls,
                now,
            },
        );
        match decided {
            Ok((permit, _)) => {
                self.trace.passed(Stage::Policy);
                self.trace.policies = permit.policies().iter().map(|p| p.to_string()).collect();
                let connected = Connected {
                    device: self.device,
                    credential: self.credential,
                    anchor: self.anchor,
                    not_after: self.not_after,
                    path: self.path,
                    named: self.named,
                    tls: self.tls,
                };
                Ok(Authorised {
                    trace: self.trace,
                    connected,
                    permit,
                })
            }
            Err(denial) => {
                self.trace.policies = denial.policies.clone();
                Err(Box::new(Refused {
                    trace: self.trace,
                    denial,
                }))
            }
        }
    }
}
