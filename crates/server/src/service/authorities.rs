//! Authorities: ours and brought ones, their proof, their rotation.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use countersign_authority::time::{NONCE_BYTES_MAX, TIME_LIFETIME, is_nonce};
use countersign_authority::{Hierarchy, IssuingAuthority, KeyStore, folder, install};
use countersign_factory::est::Bundle;
use countersign_factory::request::pem;
use countersign_identity::{AnchorState, AuthorityId, CertificateFacts, IdentityRule, TenantId, proof};
use countersign_policy::{Admission, FactSource};
use countersign_registry::{Actor, AuthorityMove, NewAuthority, Origin, RegistryError};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::missing_key::open_issuing;
use super::{Deed, Service, Told, blocking};
use crate::failure::Failure;
use crate::token_keys::Pkcs11Keys;

/// How far the time that is signed may be off, as far as we know: the clock is the system's.
const TIME_ACCURACY: Duration = Duration::from_millis(1000);

/// An authority that is about to be.
#[derive(Debug, Clone)]
pub struct AuthorityDraft {
    /// Its id.
    pub id: AuthorityId,
    /// The tenant whose devices it may vouch for.
    pub tenant: TenantId,
    /// Where its certificates carry the device id.
    pub rule: IdentityRule,
    /// What first contacts of its devices may bring about.
    pub admission: Admission,
    /// Where its key is held, if it is ours.
    pub key_store: KeyStore,
}

/// The answer to a registration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The authority.
    pub id: AuthorityId,
    /// Its state: `unproven` if it was brought along.
    pub state: AnchorState,
    /// What the proof must name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

fn read_certificate(pem: &str, what: &str) -> Result<Vec<u8>, Failure> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map(|der| der.to_vec())
        .map_err(|e| Failure::invalid(format!("{what} is no certificate in PEM: {e}")))
}

fn new_code() -> Result<String, Failure> {
    proof::new_code().ok_or_else(|| Failure::internal("the system's random source failed"))
}

/// Held while a certificate is installed: of two for one request the files of one must not go with the row of the other.
static INSTALLING: Mutex<()> = Mutex::new(());

fn new_authority(draft: AuthorityDraft, origin: Origin, certificate: &[u8]) -> NewAuthority {
    NewAuthority {
        id: draft.id,
        tenant: draft.tenant,
        origin,
        rule: draft.rule,
        admission: draft.admission,
        certificate: certificate.to_vec(),
    }
}

impl Service {
    pub(super) fn authority_folder(&self, id: &AuthorityId) -> PathBuf {
        self.data.join("authorities/devices").join(id.as_str())
    }

    /// The authority that a tenant starts with.
    fn first_authority(tenant: &TenantId) -> Result<AuthorityId, Failure> {
        AuthorityId::new(&format!("{tenant}-devices")).map_err(|e| Failure::invalid(e.to_string()))
    }

    /// Makes and registers a tenant's first issuing authority if it has none. Safe to repeat after a cut between the
    /// two.
    pub(super) fn ensure_device_authority(&self, actor: &Actor, tenant: &TenantId) -> Result<(), Failure> {
        let draft = AuthorityDraft {
            id: Self::first_authority(tenant)?,
            tenant: tenant.clone(),
            rule: IdentityRule::default(),
            admission: Admission::RegisteredOnly,
            key_store: KeyStore::File,
        };
        let state = self.registry.facts().authority(&draft.id).map(|(state, _)| state);
        match state {
            // Its key may be lost: that is one reason to revoke it.
            Some(AnchorState::Revoked) => Ok(()),
            _ => match self.make_authority(actor, draft) {
                Err(e) if e.status == 409 => Ok(()),
                other => other,
            },
        }
    }

    /// Makes key, root and issuing CA unless they are there, and registers the issuing CA. It, not its root, is the
    /// anchor: a chain below another issuing CA of the root is not ours.
    fn make_authority(&self, actor: &Actor, draft: AuthorityDraft) -> Result<(), Failure> {
        let path = self.authority_folder(&draft.id);
        let authority = if path.join("issuing.crt").exists() {
            open_issuing(&path, Hierarchy::Devices, &Pkcs11Keys)?
        } else {
            let label = draft.tenant.as_str();
            let (now, store) = (self.minting_time()?, &draft.key_store);
            IssuingAuthority::create_in(&path, Hierarchy::Devices, label, now, store, &Pkcs11Keys)?
        };
        self.adopt(actor, draft, Origin::Managed, authority)
    }

    /// Makes a factory CA of ours: it issues stations, and nothing else.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn create_factory(&self, actor: &Actor, draft: AuthorityDraft) -> Result<(), Failure> {
        self.need_new(&draft)?;
        if draft.admission != Admission::RegisteredOnly {
            return Err(Failure::invalid(
                "a factory CA's devices are let in once their station's journal is reconciled, never at first contact; hint: leave --admission at registered-only",
            ));
        }
        if self.ca.is_some() {
            return Err(Failure::refused(
                "the CA is a process of its own, and has no factory CAs; hint: let the line use a platform without [ca] socket",
            ));
        }
        let path = self.authority_folder(&draft.id);
        let authority = if path.join("issuing.crt").exists() {
            open_issuing(&path, Hierarchy::Devices, &Pkcs11Keys)?
        } else {
            let label = draft.tenant.as_str();
            let (now, store) = (self.minting_time()?, &draft.key_store);
            IssuingAuthority::create_factory_in(&path, label, now, store, &Pkcs11Keys)?
        };
        self.adopt(actor, draft, Origin::Factory, authority)
    }

    fn adopt(
        &self,
        actor: &Actor,
        draft: AuthorityDraft,
        origin: Origin,
        authority: IssuingAuthority,
    ) -> Result<(), Failure> {
        let id = draft.id.clone();
        let new = new_authority(draft, origin, authority.certificate());
        let registered = self.registry.register_authority(actor.clone(), new);
        self.issuing
            .lock()
            .insert(id.clone(), Arc::new(authority.named(id)));
        registered?;
        Ok(())
    }

    /// Makes another authority of ours.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn create_authority(&self, actor: &Actor, draft: AuthorityDraft) -> Result<(), Failure> {
        self.need_new(&draft)?;
        match &self.ca {
            None => self.make_authority(actor, draft),
            Some(ca) if draft.key_store == KeyStore::File => self.adopt_from_ca(ca, actor, Some(draft)),
            Some(_) => Err(self.keys_are_apart()),
        }
    }

    /// The CA is a process of its own: what concerns keys is done there.
    fn keys_are_apart(&self) -> Failure {
        Failure::invalid(
            "the CA is a process of its own, and keys are made there; hint: countersign ca authority add, on the CA, then countersign authority create ID here",
        )
    }

    fn need_new(&self, draft: &AuthorityDraft) -> Result<(), Failure> {
        let facts = self.registry.facts();
        if facts.authority(&draft.id).is_some() {
            return Err(RegistryError::Exists(format!("authority {}", draft.id)).into());
        }
        if facts.policy(&draft.tenant).is_none() {
            return Err(RegistryError::NoTenant(draft.tenant.clone()).into());
        }
        Ok(())
    }

    /// Makes the key of an issuing CA whose certificate an external root is to issue: the request, PEM.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn request_authority(&self, draft: &AuthorityDraft) -> Result<String, Failure> {
        self.need_new(draft)?;
        if self.ca.is_some() {
            return Err(self.keys_are_apart());
        }
        Ok(IssuingAuthority::request_in(
            &self.authority_folder(&draft.id),
            Hierarchy::Devices,
            draft.id.as_str(),
            &draft.key_store,
            &Pkcs11Keys,
        )?)
    }

    /// Installs what the external root issued (PEM, the issuing CA first, the root last), and registers it. Safe to repeat
    /// after a cut, with another certificate too.
    ///
    /// # Errors
    /// [`Failure`]; then nothing is installed.
    pub fn install_authority(
        &self,
        actor: &Actor,
        draft: AuthorityDraft,
        chain: &str,
    ) -> Result<(), Failure> {
        let _one_at_a_time = INSTALLING.lock();
        self.need_new(&draft)?;
        if self.ca.is_some() {
            return Err(self.keys_are_apart());
        }
        let path = self.authority_folder(&draft.id);
        if IssuingAuthority::has_own_root(&path) {
            return Err(Failure::told(
                409,
                &format!(
                    "authority {id} was made here, with a root of its own, and is not registered yet; hint: countersign authority create {id} finishes it",
                    id = draft.id
                ),
            ));
        }
        if !IssuingAuthority::is_requested(&path) {
            return Err(Failure::not_found(
                format!("there is no request of authority {}", draft.id),
                "countersign authority create --csr FILE makes one",
            ));
        }
        let checked =
            IssuingAuthority::check_install(&path, Hierarchy::Devices, chain.as_bytes(), &Pkcs11Keys)
                .map_err(|e| Failure::invalid(e.to_string()))?;
        // Everything that may refuse it comes before it is written: what is there would be taken for installed.
        let new = new_authority(draft.clone(), Origin::Managed, checked.certificate());
        self.registry.register_authority_check(actor.clone(), new)?;
        let authority = checked.write(&Pkcs11Keys)?;
        self.adopt(actor, draft, Origin::Managed, authority)
    }

    /// The key of the authority's root, PEM, to be kept elsewhere; it is deleted here by [`Service::forget_root_key`].
    ///
    /// # Errors
    /// [`Failure`] if it is not here.
    pub fn root_key(&self, id: &AuthorityId) -> Result<String, Failure> {
        let path = self.authority_folder(id).join("root.key");
        if !path.exists()
            && matches!(
                KeyStore::of(&self.authority_folder(id)),
                Ok(KeyStore::Pkcs11 { .. })
            )
        {
            return Err(Failure::not_found(
                format!("the root key of authority {id} is in its token, and cannot leave it"),
                "its label ends in -root: delete it there once the root has nothing more to sign",
            ));
        }
        if !path.exists() {
            return Err(Failure::not_found(
                format!("the root key of authority {id} is not here"),
                "it was taken offline, or the authority is not ours",
            ));
        }
        String::from_utf8(folder::read_private(&path)?)
            .map_err(|_| Failure::internal("the root key's file is damaged"))
    }

    /// Deletes the key of the authority's root. Nothing here needs it: it signs issuing CAs only.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn forget_root_key(&self, id: &AuthorityId) -> Result<(), Failure> {
        self.root_key(id)?;
        std::fs::remove_file(self.authority_folder(id).join("root.key"))
            .map_err(|e| Failure::internal(format!("the root key cannot be deleted: {e}")))
    }

    /// The authority of a tenant that issues: the one that is named, else its newest active one.
    ///
    /// # Errors
    /// [`Failure`] if there is none, or the named one does not issue now.
    pub(super) fn issuing_authority(
        &self,
        tenant: &TenantId,
        named: Option<&AuthorityId>,
    ) -> Result<AuthorityId, Failure> {
        let id = match named {
            Some(id) => id.clone(),
            None => self.registry.issuing_authority(tenant)?.ok_or_else(|| {
                match self.registry.facts().policy(tenant) {
                    None => Failure::from(RegistryError::NoTenant(tenant.clone())),
                    Some(_) => Failure::invalid(format!(
                        "tenant {tenant} has no active authority of ours; hint: countersign authority create"
                    )),
                }
            })?,
        };
        match self.registry.facts().authority(&id) {
            Some((AnchorState::Active, _)) => {}
            Some((state, _)) => {
                return Err(Failure::invalid(format!(
                    "authority {id} is {}: it issues nothing; hint: use an active one",
                    state.name()
                )));
            }
            None => return Err(RegistryError::NoAuthority(id.to_string()).into()),
        }
        if self.registry.is_factory(&id)? {
            return Err(Failure::invalid(format!(
                "authority {id} is a factory CA: it issues stations, no devices; hint: use another authority, or let one of its stations issue"
            )));
        }
        Ok(id)
    }

    /// An authority of ours with its key, whatever its state: a retired one still signs revocation lists.
    ///
    /// # Errors
    /// [`Failure`] if it is not ours.
    pub(crate) fn authority_with_key(&self, id: &AuthorityId) -> Result<Arc<IssuingAuthority>, Failure> {
        if let Some(ca) = &self.ca {
            return Err(Failure::unavailable(
                format!("the CA is a process of its own: no key of authority {id} is used here"),
                &format!("ask it at {}", ca.socket().display()),
            ));
        }
        if let Some(authority) = self.issuing.lock().get(id) {
            return Ok(authority.clone());
        }
        let path = self.authority_folder(id);
        if self.registry.facts().authority(id).is_none() {
            return Err(RegistryError::NoAuthority(id.to_string()).into());
        }
        if !path.join("issuing.crt").exists() {
            return Err(Failure::not_found(
                format!("authority {id} is not ours"),
                "its holder issues its certificates and lists",
            ));
        }
        let authority = open_issuing(&path, Hierarchy::Devices, &Pkcs11Keys)?.named(id.clone());
        let authority = Arc::new(authority);
        self.issuing.lock().insert(id.clone(), authority.clone());
        Ok(authority)
    }

    /// Whether the key of an authority of ours can be reached and signs. It is opened anew: what was unlocked once and is
    /// gone by now would not be noticed otherwise.
    ///
    /// # Errors
    /// [`Failure`] with its cure.
    pub(super) fn check_authority_key(&self, id: &AuthorityId) -> Result<String, Failure> {
        let path = self.authority_folder(id);
        match (&self.ca, self.is_held_by_ca(id)) {
            (Some(_), true) => return Ok("held by the CA".into()),
            (Some(_), false) if !path.join("issuing.key").exists() => return Ok("it is not here".into()),
            (Some(_), false) => {
                return Err(Failure::unavailable(
                    "its key is here, though the CA is a process of its own; it is not used",
                    "renew its devices under an authority of the CA, close it, and delete its folder's *.key",
                ));
            }
            (None, true) => {
                return Err(Failure::unavailable(
                    "it is held by a CA process, and none is configured",
                    "set ca.socket",
                ));
            }
            (None, false) => {}
        }
        let authority = open_issuing(&path, Hierarchy::Devices, &Pkcs11Keys)?;
        authority.check_key()?;
        Ok(format!("it signs, store {}", authority.key_store().name()))
    }

    /// Registers an authority that was brought along: unproven.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn register_authority(
        &self,
        actor: Actor,
        draft: AuthorityDraft,
        certificate: &str,
    ) -> Result<Registered, Failure> {
        let code = new_code()?;
        let new = NewAuthority {
            id: draft.id.clone(),
            tenant: draft.tenant,
            origin: Origin::Registered { code: code.clone() },
            rule: draft.rule,
            admission: draft.admission,
            certificate: read_certificate(certificate, "the authority's file")?,
        };
        let registered = self.change(move |r| r.register_authority(actor, new)).await;
        let (state, _) = registered.map_err(|e| match e.status {
            409 => Failure {
                hint: Some(format!(
                    "countersign authority list shows it; one that is unproven is finished by countersign authority prove {id} PROOF (authority code {id} gives a new code), or by registering it again with --key",
                    id = draft.id
                )),
                ..e
            },
            _ => e,
        })?;
        Ok(Registered {
            id: draft.id,
            state,
            code: Some(code),
        })
    }

    /// Proves possession of a brought authority's key.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn prove_authority(&self, actor: Actor, id: AuthorityId, proof: &str) -> Result<(), Failure> {
        let proof = read_certificate(proof, "the proof")?;
        self.change(move |r| r.prove_authority(actor, id, proof)).await?;
        Ok(())
    }

    /// Gives an unproven authority a new code.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn renew_code(&self, actor: Actor, id: AuthorityId) -> Result<Registered, Failure> {
        let code = new_code()?;
        let (new, of) = (code.clone(), id.clone());
        self.change(move |r| r.renew_code(actor, of, new)).await?;
        Ok(Registered {
            id,
            state: AnchorState::Unproven,
            code: Some(code),
        })
    }

    /// Replaces what is given of an authority's identity rule and admission.
    ///
    /// # Errors
    /// [`Failure`] if by the rule the certificates of more than `leave_out` known devices do not name them.
    pub async fn configure_authority(
        &self,
        actor: Actor,
        id: AuthorityId,
        rule: Option<IdentityRule>,
        admission: Option<Admission>,
        leave_out: u64,
    ) -> Result<Told, Failure> {
        if let Some(rule) = &rule {
            self.check_rule(&id, rule, leave_out).await?;
        }
        let deed = self.authority_deed(&actor, "configure", &id, String::new())?;
        Ok(self
            .deed(deed, move |r| r.configure_authority(actor, id, rule, admission))
            .await?
            .1)
    }

    /// Looks at what is known of certificates: those issued here, and those of live sessions.
    async fn check_rule(&self, id: &AuthorityId, rule: &IdentityRule, leave_out: u64) -> Result<(), Failure> {
        let (registry, by, of) = (self.registry.clone(), rule.clone(), id.clone());
        let mut unnamed = blocking(move || registry.unnamed_by(&of, &by, registry.now())).await?;
        if let Some(gateway) = self.gateway() {
            unnamed.extend(gateway.unnamed_by(id, rule));
        }
        let count = unnamed.len() as u64;
        if count <= leave_out {
            return Ok(());
        }
        let examples: Vec<&str> = unnamed.iter().take(5).map(|device| device.as_str()).collect();
        let more = if count > 5 { ", …" } else { "" };
        Err(Failure::told(
            409,
            &format!(
                "by {rule} the certificates of {count} known device(s) of authority {id} would not name them, and they would be locked out: {}{more}; hint: replace their certificates first, or accept the loss with --leave-out {count}",
                examples.join(", ")
            ),
        ))
    }

    /// Moves an authority, and waits for the sessions that this ends.
    ///
    /// # Errors
    /// [`Failure`], for one if too many devices depend on it.
    pub async fn move_authority(
        &self,
        actor: Actor,
        id: AuthorityId,
        attempted: AuthorityMove,
        reason: String,
    ) -> Result<(AnchorState, Told), Failure> {
        let deed = self.authority_deed(&actor, attempted.name(), &id, reason.clone())?;
        self.deed(deed, move |r| r.move_authority(actor, id, attempted, reason))
            .await
    }

    fn authority_deed(
        &self,
        actor: &Actor,
        what: &str,
        id: &AuthorityId,
        reason: String,
    ) -> Result<Deed, Failure> {
        let all = self.registry.authorities()?;
        let tenant = all.into_iter().find(|a| a.id == *id).map(|a| a.tenant);
        Ok(Deed {
            actor: actor.clone(),
            action: format!("authority.{what}"),
            tenant,
            subject: id.to_string(),
            reason,
        })
    }

    /// Keeps an intermediate for devices that send only their own certificate.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn store_intermediate(
        &self,
        actor: Actor,
        tenant: TenantId,
        certificate: &str,
    ) -> Result<(), Failure> {
        let certificate = read_certificate(certificate, "the intermediate")?;
        self.change(move |r| r.store_intermediate(actor, tenant, certificate))
            .await?;
        Ok(())
    }

    /// The platform roots that devices are to pin, DER: ours, and those that are to come (`enrol.platform_roots`).
    ///
    /// # Errors
    /// [`Failure`] if a configured file cannot be used.
    pub fn platform_roots(&self) -> Result<Vec<Vec<u8>>, Failure> {
        let mut roots = vec![self.platform.root().to_vec()];
        for path in &self.config.enrol.platform_roots {
            let wrong =
                |what: String| Failure::invalid(format!("enrol.platform_roots: {}: {what}", path.display()));
            for certificate in CertificateDer::pem_slice_iter(&folder::read(path)?) {
                let der = certificate.map_err(|e| wrong(e.to_string()))?.to_vec();
                let facts = CertificateFacts::parse(&der).map_err(|e| wrong(e.to_string()))?;
                if facts.ca.is_none() {
                    return Err(wrong(format!("{} is no CA certificate", facts.subject_text)));
                }
                if !roots.contains(&der) {
                    roots.push(der);
                }
            }
        }
        Ok(roots)
    }

    /// The chains of all of the tenant's own authorities that are still admitted, DER.
    ///
    /// # Errors
    /// [`Failure`] if there is no such tenant.
    fn device_authorities(&self, tenant: &TenantId) -> Result<Vec<Vec<u8>>, Failure> {
        if self.registry.facts().policy(tenant).is_none() {
            return Err(RegistryError::NoTenant(tenant.clone()).into());
        }
        Ok(self.own_authorities(tenant)?.chains.clone())
    }

    /// What a device of the tenant is to have of CA certificates, DER: the platform roots that it pins, and the chains of
    /// all of the tenant's own authorities that are still admitted, so that a rotation reaches it before it begins.
    ///
    /// # Errors
    /// [`Failure`] if there is no such tenant.
    pub fn ca_certificates(&self, tenant: &TenantId) -> Result<Vec<Vec<u8>>, Failure> {
        let devices = self.device_authorities(tenant)?;
        let mut found = self.platform_roots()?;
        found.extend(devices);
        Ok(found)
    }

    /// The same with the two hierarchies told apart, and where devices connect.
    ///
    /// # Errors
    /// [`Failure`] if there is no such tenant.
    pub fn bundle(&self, tenant: &TenantId) -> Result<Bundle, Failure> {
        let devices = self.device_authorities(tenant)?;
        let (host, port) = self.address();
        Ok(Bundle::new(&self.platform_roots()?, &devices, host, port))
    }

    /// The time, signed for whoever asked with this nonce.
    ///
    /// # Errors
    /// [`Failure`] if the nonce is none.
    pub fn signed_time(&self, nonce: &str) -> Result<String, Failure> {
        if !is_nonce(nonce) {
            return Err(Failure::invalid(format!(
                "the nonce must be at most {NONCE_BYTES_MAX} of A-Z a-z 0-9 - _"
            )));
        }
        let minted = self.registry.minted_at()?;
        let now = minted.at;
        let mut signer = self.time_signer.lock();
        let good = signer.take().filter(|(made, signer)| {
            self.registry.still_holds(*made) && now.plus(TIME_LIFETIME / 2) < signer.not_after()
        });
        let (_, signer) = match good {
            Some(good) => signer.insert(good),
            None => signer.insert((minted, self.platform.time_signer(now)?)),
        };
        signer
            .sign(now, TIME_ACCURACY, nonce)
            .map_err(|e| Failure::internal(e.to_string()))
    }

    /// What an authority of ours is under, DER: what stands between it and its root, from below, and the root.
    pub(super) fn above(&self, id: &AuthorityId) -> Result<Vec<Vec<u8>>, Failure> {
        let path = self.authority_folder(id);
        let mut found: Vec<_> = install::intermediates(&path, Hierarchy::Devices)?
            .iter()
            .map(|c| c.to_vec())
            .collect();
        let root = folder::read(&path.join("root.crt"))?;
        found.push(read_certificate(
            &String::from_utf8_lossy(&root),
            "the root's file",
        )?);
        Ok(found)
    }

    /// What devices pin: the platform root, PEM.
    pub fn platform_root(&self) -> String {
        pem("CERTIFICATE", self.platform.root())
    }

    /// The issuing CA that issues for a tenant now, and what it is under up to its root, PEM.
    ///
    /// # Errors
    /// [`Failure`].
    pub fn device_ca(&self, tenant: &TenantId) -> Result<String, Failure> {
        let id = self.issuing_authority(tenant, None)?;
        let mut chain = vec![self.registry.authority_certificate(&id)?];
        chain.extend(self.above(&id)?);
        Ok(chain.iter().map(|c| pem("CERTIFICATE", c)).collect())
    }
}
