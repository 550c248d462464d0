//! Issuing by a CA that is a process of its own: this process registers what that one issues, and has no key to issue
//! with.
//!
//! The CA is asked between a look at the registry's rules and the registry's transaction, so that the one writer never
//! waits for a socket. A cut in between leaves a certificate that only the CA knows: nobody is admitted by it, and asking
//! again is answered with it.

use std::collections::HashMap;
use std::sync::Arc;

use countersign_authority::KeyStore;
use countersign_factory::{ProfileKind, RevocationReason};
use countersign_identity::{AuthorityId, CertificateFacts, TenantId, signed};
use countersign_policy::facts::CredentialKind;
use countersign_policy::{Admission, CredentialState, Custody, FactSource};
use countersign_registry::{
    Actor, EndedCredential, EndedCursor, IssueOutcome, IssueRequest, IssuedHere, NewAuthority, NewCredential,
    Origin, Registry, Requester,
};
use parking_lot::Mutex;
use zeroize::Zeroizing;

use super::issuance::Wanted;
use super::{AuthorityDraft, Service};
use crate::ca::link::{self, CaLink};
use crate::ca::protocol::{
    Base64, DescribedAuthority, ENDED_MAX, End, Ended, Evidence, IssueCall, IssuedAnswer, SecretText,
};
use crate::failure::Failure;

/// What a requester showed: evidence for whoever must judge it again.
#[derive(Clone, Default)]
pub enum Shown {
    /// Nothing.
    #[default]
    Nothing,
    /// A one-time secret.
    Secret(Zeroizing<String>),
    /// A certificate whose key it proved to hold to us, DER, and perhaps a proof for others.
    Certificate {
        /// The certificate, DER.
        certificate: Vec<u8>,
        /// [`countersign_factory::renewal_proof`].
        proof: Option<Vec<u8>>,
    },
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Nothing => "Nothing",
            Self::Secret(_) => "Secret",
            Self::Certificate { .. } => "Certificate",
        })
    }
}

/// Waits for the CA off the async threads.
async fn off_thread<T: Send + 'static>(
    run: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(run)
        .await
        .map_err(|e| Failure::internal(format!("the CA was not asked: {e}")))?
}

impl Service {
    /// Registers authorities of the CA: the one that a draft names, or, without one, all whose tenants are here.
    ///
    /// # Errors
    /// [`Failure`], for one if the CA cannot be reached or has no such authority.
    pub(super) fn adopt_from_ca(
        &self,
        ca: &CaLink,
        actor: &Actor,
        draft: Option<AuthorityDraft>,
    ) -> Result<(), Failure> {
        let mut found = 0;
        for theirs in ca.authorities()? {
            let draft = match &draft {
                Some(draft) if draft.id != theirs.id => continue,
                Some(draft) => draft.clone(),
                None => AuthorityDraft {
                    id: theirs.id.clone(),
                    tenant: theirs.tenant.clone(),
                    rule: countersign_identity::IdentityRule::default(),
                    admission: Admission::RegisteredOnly,
                    key_store: KeyStore::Ca,
                },
            };
            if draft.tenant != theirs.tenant {
                return Err(Failure::invalid(format!(
                    "authority {} of the CA vouches for tenant {}, not {}; hint: --tenant {}",
                    theirs.id, theirs.tenant, draft.tenant, theirs.tenant
                )));
            }
            found += 1;
            if self.registry.facts().policy(&draft.tenant).is_some() {
                self.adopt_one(actor, draft, &theirs)?;
            }
        }
        match draft {
            Some(draft) if found == 0 => Err(Failure::not_found(
                format!("the CA has no authority {}", draft.id),
                &format!("countersign ca authority add {}, on the CA", draft.id),
            )),
            _ => Ok(()),
        }
    }

    fn adopt_one(
        &self,
        actor: &Actor,
        draft: AuthorityDraft,
        theirs: &DescribedAuthority,
    ) -> Result<(), Failure> {
        link::keep(&self.authority_folder(&draft.id), theirs)?;
        if self.registry.facts().authority(&draft.id).is_some() {
            return Ok(());
        }
        let new = NewAuthority {
            id: draft.id,
            tenant: draft.tenant,
            origin: Origin::Managed,
            rule: draft.rule,
            admission: draft.admission,
            certificate: theirs.certificate.0.clone(),
        };
        self.registry.register_authority(actor.clone(), new)?;
        Ok(())
    }

    /// Whether the CA holds the key of an authority of ours.
    pub(super) fn is_held_by_ca(&self, id: &AuthorityId) -> bool {
        matches!(KeyStore::of(&self.authority_folder(id)), Ok(KeyStore::Ca))
    }

    /// What the CA is to judge by.
    fn evidence(&self, wanted: &Wanted, kind: ProfileKind) -> Result<Evidence, Failure> {
        let device = wanted.device.clone();
        match (&wanted.requester, &wanted.shown) {
            (Requester::Operator, _) => Ok(Evidence::Batch { device, batch: None }),
            (Requester::Secret(_), Shown::Secret(text)) => Ok(Evidence::Secret {
                device,
                secret: SecretText::new(text.to_string()),
            }),
            // A manufacturer's certificate is ours to judge, and says nothing to the CA: there a batch must cover the id. So it must
            // for a factory certificate, to which none leads.
            (Requester::Certificate(_) | Requester::Expired(_), Shown::Certificate { certificate, .. })
                if kind == ProfileKind::Factory || !self.is_issued_by_ca(&wanted.tenant, certificate)? =>
            {
                Ok(Evidence::Batch { device, batch: None })
            }
            // Also an expired one, in the renewal lane: the CA has a limit of its own for those.
            (
                Requester::Certificate(_) | Requester::Expired(_),
                Shown::Certificate { certificate, proof },
            ) => Ok(Evidence::Certificate {
                certificate: Base64(certificate.clone()),
                proof: proof.clone().map(Base64),
            }),
            // So are a claim and an attestation.
            (Requester::Claim(_) | Requester::Attested, _) => Ok(Evidence::Batch { device, batch: None }),
            _ => Err(Failure::internal("what was shown cannot be handed on to the CA")),
        }
    }

    /// Whether a certificate names an authority of the CA that is the tenant's as its issuer.
    fn is_issued_by_ca(&self, tenant: &TenantId, certificate: &[u8]) -> Result<bool, Failure> {
        let issuer = CertificateFacts::parse(certificate)
            .map_err(|e| Failure::invalid(e.to_string()))?
            .issuer_der;
        let own = self.own_authorities(tenant)?;
        let mut named = own.subjects.iter().filter(|(_, subject)| *subject == issuer);
        Ok(named.any(|(id, _)| self.is_held_by_ca(id)))
    }

    /// Issues by the CA.
    ///
    /// # Errors
    /// [`Failure`]; then nothing that was minted is registered.
    pub(super) async fn issue_apart(
        &self,
        ca: CaLink,
        actor: Actor,
        id: AuthorityId,
        wanted: Wanted,
    ) -> Result<IssueOutcome, Failure> {
        if wanted.dated.is_some() {
            return Err(Failure::invalid("the CA dates what it issues"));
        }
        let missing = wanted.missing;
        let profile = self.profile(wanted.profile.as_deref())?;
        let key = wanted
            .request
            .key()
            .fingerprint()
            .map_err(|e| Failure::internal(e.to_string()))?;
        let call = IssueCall {
            authority: id,
            profile: profile.name.clone(),
            request: Base64(wanted.request.der().to_vec()),
            evidence: self.evidence(&wanted, profile.kind)?,
        };
        let request = IssueRequest {
            tenant: wanted.tenant,
            device: wanted.device,
            key,
            kind: profile.kind,
            choice: self.choice_of(&profile),
            profile: profile.name,
            authority: wanted.authority,
            demands_new_key: profile.new_key,
            idempotency_key: wanted.idempotency_key,
            attestation: wanted.attestation,
            requester: match wanted.requester {
                // The registry does not know the CA's secrets.
                Requester::Secret(_) => Requester::JudgedByCa,
                other => other,
            },
        };
        // Who may not ask is not told which devices there are, nor how they stand.
        if request.requester == Requester::JudgedByCa {
            let (asked, call) = (ca.clone(), call.clone());
            off_thread(move || asked.check(call)).await?;
        }
        let (registry, by, asked) = (self.registry.clone(), actor.clone(), request.clone());
        let before = off_thread(move || Ok(registry.issue_check_for(by, asked, missing)?)).await?;
        if let Some(same) = before {
            return Ok(same);
        }
        let (registry, ended) = (self.registry.clone(), self.ended_told.clone());
        let answer = off_thread(move || {
            // What lapsed or was revoked here must be so there before it is asked for more.
            ended.tell(&registry, &ca, &call.authority)?;
            ca.issue(call)
        })
        .await?;
        let new = self.accept(answer, &request)?;
        let (outcome, _) = self
            .change(move |r| r.issue_for(actor, request, missing, move |_| Ok(new)))
            .await?;
        Ok(outcome)
    }

    /// Takes a certificate from the CA, if it is what was asked for.
    fn accept(&self, answer: IssuedAnswer, request: &IssueRequest) -> Result<NewCredential, Failure> {
        let der = answer.certificate.0;
        let wrong = |what: &str| Failure::internal(format!("the CA's certificate is not registered: {what}"));
        let certificate = CertificateFacts::parse(&der).map_err(|e| wrong(&e.to_string()))?;
        if certificate.public_key_sha256 != request.key {
            return Err(wrong("it is for another key"));
        }
        let issuer = self.registry.authority_certificate(&answer.authority)?;
        signed::key_of(&issuer)
            .and_then(|key| signed::Signed::parse(&der)?.verify(&key))
            .map_err(|e| wrong(&e.to_string()))?;
        Ok(NewCredential {
            certificate,
            kind: match answer.kind {
                ProfileKind::Factory => CredentialKind::Factory,
                ProfileKind::Operational => CredentialKind::Operational,
            },
            state: CredentialState::Issued,
            custody: Custody::Unknown,
            authority: Some(answer.authority),
            issued: Some(IssuedHere {
                certificate: der,
                profile: request.profile.clone(),
                batch: None,
            }),
        })
    }

    /// Tells the CA of every certificate that has ended here. Safe to repeat.
    ///
    /// # Errors
    /// [`Failure`] if the CA cannot be reached; the next time tells it all the same.
    pub fn tell_ca(&self) -> Result<(), Failure> {
        let Some(ca) = &self.ca else { return Ok(()) };
        for ours in self.registry.own_authorities(None)? {
            if self.is_held_by_ca(&ours.id) {
                self.ended_told.tell(&self.registry, ca, &ours.id)?;
            }
        }
        Ok(())
    }
}

/// How far the CA knows what has ended, by authority. In memory: after a restart everything is told again, at once.
#[derive(Debug, Default)]
pub struct EndedTold(Mutex<HashMap<AuthorityId, Arc<Mutex<EndedCursor>>>>);

impl EndedTold {
    /// Tells the CA what has ended since the last time. One at a time tells of an authority; whoever waited for it finds
    /// told what it came for.
    ///
    /// # Errors
    /// [`Failure`] if the CA cannot be reached, or another one has been telling it for longer than one answer may take.
    fn tell(&self, registry: &Registry, ca: &CaLink, authority: &AuthorityId) -> Result<(), Failure> {
        let of_authority = self.0.lock().entry(authority.clone()).or_default().clone();
        let mut cursor = of_authority.try_lock_for(ca.timeout()).ok_or_else(|| {
            Failure::unavailable(
                format!("the CA is still being told what has ended of authority {authority}"),
                "ask again: this comes after a restart with a long history, or from a slow CA",
            )
        })?;
        tell_from(
            &mut cursor,
            ENDED_MAX,
            |after, limit| Ok(registry.ended_after(authority, after, limit)?),
            |ended| ca.end(authority, ended),
        )
    }
}

/// Hands on page after page, and moves the cursor behind each that arrived.
fn tell_from(
    cursor: &mut EndedCursor,
    page: usize,
    read: impl Fn(&EndedCursor, usize) -> Result<Vec<EndedCredential>, Failure>,
    mut tell: impl FnMut(&[Ended]) -> Result<(), Failure>,
) -> Result<(), Failure> {
    loop {
        let ended = read(cursor, page)?;
        let Some(last) = ended.last() else {
            return Ok(());
        };
        let told: Vec<Ended> = ended.iter().map(as_told).collect();
        tell(&told)?;
        *cursor = EndedCursor {
            revision: last.revision,
            serial: last.serial.clone(),
        };
        if ended.len() < page {
            return Ok(());
        }
    }
}

fn as_told(entry: &EndedCredential) -> Ended {
    Ended {
        serial: entry.serial.clone(),
        how: match entry.state {
            CredentialState::Lapsed => End::Lapsed,
            CredentialState::Superseded => End::Superseded,
            // Also what ended with its authority.
            _ => End::Revoked,
        },
        reason: entry.reason.unwrap_or(RevocationReason::Unspecified),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(revision: u64, serial: &str) -> EndedCredential {
        EndedCredential {
            serial: serial.into(),
            state: CredentialState::Revoked,
            reason: None,
            revision,
        }
    }

    #[test]
    fn what_arrived_is_not_told_again_and_what_did_not_is() {
        let history: Vec<_> = [(1, "a"), (2, "b"), (2, "c"), (2, "d"), (5, "a")]
            .map(|(revision, serial)| ended(revision, serial))
            .into();
        let read = |after: &EndedCursor, limit: usize| {
            let after = (after.revision, after.serial.clone());
            let rest = history.iter().filter(|e| (e.revision, e.serial.clone()) > after);
            Ok(rest.take(limit).cloned().collect())
        };
        let (mut cursor, mut told) = (EndedCursor::default(), Vec::new());
        let cut = tell_from(&mut cursor, 2, read, |page| {
            if told.len() == 2 {
                return Err(Failure::internal("cut"));
            }
            told.extend(page.iter().map(|e| e.serial.clone()));
            Ok(())
        });
        assert!(cut.is_err());
        assert_eq!(told, ["a", "b"]);
        tell_from(&mut cursor, 2, read, |page| {
            assert!(page.len() <= 2);
            told.extend(page.iter().map(|e| e.serial.clone()));
            Ok(())
        })
        .unwrap();
        assert_eq!(told, ["a", "b", "c", "d", "a"]);
        tell_from(&mut cursor, 2, read, |_| panic!("nothing is left")).unwrap();
    }
}
