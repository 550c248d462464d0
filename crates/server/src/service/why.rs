//! The whole chain of decisions for an identity that is not connected.

use std::net::IpAddr;

use countersign_gateway::judge::Circumstances;
use countersign_gateway::why::{AuthorityFrom, EndsIn, Layer, Presented, Question, Why, why};
use countersign_identity::{AuthorityId, CertificateFacts, DeviceId, Fingerprint, TenantId, Timestamp};
use countersign_policy::decide::Action;
use countersign_policy::facts::CredentialKind;
use countersign_policy::{CredentialState, Denial, DenialCode, FactSource, LifecycleState};
use countersign_registry::query::CredentialView;
use countersign_registry::{RegistryError, StationState};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};

use super::Service;
use super::simulation::{assumed, circumstances_of};
use crate::failure::Failure;

/// Who is asked about, and what.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct WhyAsked {
    /// The tenant; of a device `default`, of a certificate the one that its authority belongs to.
    pub tenant: Option<TenantId>,
    /// A registered device.
    pub device: Option<DeviceId>,
    /// In place of a device: certificates, PEM, leaf first.
    pub certificate: Option<String>,
    /// The client id; the device id if none is given.
    pub client_id: Option<String>,
    /// A topic, or with `subscribe` a filter.
    pub topic: Option<String>,
    /// `publish` (default) or `subscribe`.
    pub action: Option<DataAction>,
    /// When, in milliseconds since 1970; now if it is not given.
    pub at: Option<Timestamp>,
    /// Where from; as last time if it is not given.
    pub source: Option<IpAddr>,
}

/// What is done with a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum DataAction {
    /// To publish to it
    Publish,
    /// To subscribe to it
    Subscribe,
}

/// The verdicts on one credential.
#[derive(Debug, Clone, Serialize)]
pub struct WhyAnswer {
    /// Source, handshake and time that were taken.
    pub source: IpAddr,
    /// Its TLS version.
    pub tls_version: &'static str,
    /// Its key exchange.
    pub tls_group: Option<&'static str>,
    /// When.
    pub at: Timestamp,
    /// The exchange that source and handshake are of; none if they are assumed.
    pub exchange: Option<String>,
    /// Every layer.
    #[serde(flatten)]
    pub why: Why,
}

/// A failure with another cure beside its own.
fn or_else(failure: Failure, cure: Option<String>) -> Failure {
    let hint = match (failure.hint, cure) {
        (Some(hint), Some(cure)) => Some(format!("{hint}; {cure}")),
        (hint, cure) => hint.or(cure),
    };
    Failure { hint, ..failure }
}

impl Service {
    /// Asks every layer about a certificate, or about each credential of a device: the one that it would come with
    /// first.
    ///
    /// # Errors
    /// [`Failure`] if nothing is named that could be asked about.
    pub fn why(&self, asked: &WhyAsked) -> Result<Vec<WhyAnswer>, Failure> {
        match (&asked.certificate, &asked.device) {
            (Some(pem), None) => {
                let chain = CertificateDer::pem_slice_iter(pem.as_bytes())
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(|e| Failure::invalid(format!("the certificate is no PEM: {e}")))?;
                if chain.is_empty() {
                    return Err(Failure::invalid(
                        "there is no certificate in it; hint: give it as PEM",
                    ));
                }
                Ok(vec![self.why_certificates(
                    asked,
                    asked.tenant.as_ref(),
                    &chain,
                )?])
            }
            (None, Some(device)) => self.why_device(asked, device),
            _ => Err(Failure::invalid(
                "name a device or give a certificate, one of both",
            )),
        }
    }

    fn why_device(&self, asked: &WhyAsked, device: &DeviceId) -> Result<Vec<WhyAnswer>, Failure> {
        let tenant = asked.tenant.clone().unwrap_or_else(TenantId::default_tenant);
        if self.registry.device(&tenant, device)?.is_none() {
            let cure = self.journal_of(&tenant, device)?;
            let device = device.clone();
            let failure = Failure::from(RegistryError::NoDevice { tenant, device });
            return Err(or_else(failure, cure));
        }
        let mut credentials = self.registry.credentials(&tenant, device)?;
        if credentials.is_empty() {
            let failure = Failure::refused(format!(
                "device {device} has no certificate: it cannot come in; hint: countersign device provision {device}"
            ));
            return Err(or_else(failure, self.journal_of(&tenant, device)?));
        }
        // They come newest first; those that may be admitted go before those that are not.
        credentials.sort_by_key(|c| match c.state {
            CredentialState::Active => 0,
            CredentialState::Issued => 1,
            _ => 2,
        });
        credentials
            .iter()
            .map(|c| match self.registry.credential_certificate(&c.fingerprint)? {
                Some((Some(der), _)) => {
                    let chain = [CertificateDer::from(der)];
                    self.why_certificates(asked, Some(&tenant), &chain)
                }
                _ => self.why_registered(asked, &tenant, device, c),
            })
            .collect()
    }

    /// What to do if a station has issued a device's certificate: that of a device which is not registered may be on the way.
    fn journal_of(&self, tenant: &TenantId, device: &DeviceId) -> Result<Option<String>, Failure> {
        let stations = self.registry.stations(tenant)?.into_iter();
        let mut may_have = stations.filter(|s| s.state == StationState::Granted && s.terms.ids.fits(device));
        Ok(may_have.next().map(|s| {
            format!(
                "if factory station {} issued its certificate, hand in the station's journal: countersign factory reconcile JOURNAL",
                s.terms.station
            )
        }))
    }

    fn why_certificates(
        &self,
        asked: &WhyAsked,
        tenant: Option<&TenantId>,
        chain: &[CertificateDer<'_>],
    ) -> Result<WhyAnswer, Failure> {
        let fingerprint = chain.first().and_then(|der| CertificateFacts::parse(der).ok());
        let fingerprint = fingerprint.map(|facts| facts.fingerprint);
        self.answer(
            asked,
            fingerprint.as_ref(),
            tenant,
            Presented::Certificates(chain),
        )
    }

    fn why_registered(
        &self,
        asked: &WhyAsked,
        tenant: &TenantId,
        device: &DeviceId,
        credential: &CredentialView,
    ) -> Result<WhyAnswer, Failure> {
        // Of ours every certificate is kept.
        let others = self.registry.authorities()?.into_iter();
        let possible: Vec<AuthorityId> = others
            .filter(|a| a.tenant == *tenant && a.origin == "registered" && a.state.admits())
            .map(|a| a.id)
            .collect();
        let known = self.authority_of(tenant, device, credential, &possible)?;
        let presented = Presented::Registered {
            tenant,
            device,
            fingerprint: &credential.fingerprint,
            authority: match &known {
                Some((authority, from)) => EndsIn::Known(authority, *from),
                None => EndsIn::OneOf(&possible),
            },
            validity: [credential.not_before, credential.not_after],
        };
        self.answer(asked, Some(&credential.fingerprint), Some(tenant), presented)
    }

    /// The authority that a certificate which is not kept leads to, by the best that is known: as it was registered, as it was
    /// seen, as its device is bound, or because there is only one.
    fn authority_of(
        &self,
        tenant: &TenantId,
        device: &DeviceId,
        credential: &CredentialView,
        possible: &[AuthorityId],
    ) -> Result<Option<(AuthorityId, AuthorityFrom)>, Failure> {
        if credential.kind == CredentialKind::Pinned {
            return Ok(Some((AuthorityId::pinned(), AuthorityFrom::Registered)));
        }
        if let Some(authority) = &credential.authority {
            return Ok(Some((authority.clone(), AuthorityFrom::Registered)));
        }
        let ledger = self.registry.ledger();
        ledger.flush();
        let last = ledger.last_handshake(tenant, device)?;
        // By another certificate it shows nothing of this one.
        let shown = last.filter(|last| {
            let certificate = last.certificate.as_ref();
            certificate.is_some_and(|c| c.fingerprint == credential.fingerprint)
        });
        if let Some(authority) = shown.and_then(|last| last.authority) {
            return Ok(Some((authority, AuthorityFrom::Exchange)));
        }
        let bound = self.registry.device(tenant, device)?.and_then(|d| d.authority);
        Ok(match (bound, possible) {
            (Some(bound), _) => Some((bound, AuthorityFrom::Bound)),
            (None, [only]) => Some((only.clone(), AuthorityFrom::Only)),
            (None, _) => None,
        })
    }

    fn answer(
        &self,
        asked: &WhyAsked,
        fingerprint: Option<&Fingerprint>,
        tenant: Option<&TenantId>,
        presented: Presented<'_>,
    ) -> Result<WhyAnswer, Failure> {
        let now = asked.at.unwrap_or_else(|| self.now());
        let (mut circumstances, exchange) = self.last_circumstances(fingerprint, now)?;
        if let Some(source) = asked.source {
            circumstances.source = source;
        }
        let action = match asked.action {
            Some(DataAction::Subscribe) => Action::Subscribe,
            _ => Action::Publish,
        };
        let question = Question {
            asked: tenant,
            presented,
            circumstances,
            client_id: asked.client_id.as_deref(),
            data: asked.topic.as_deref().map(|topic| (action, topic)),
        };
        let mut why = why(self.registry.facts().as_ref(), &question, &|contact| {
            self.registry
                .first_contact_check(contact)
                .unwrap_or_else(|e| Err(Denial::new(DenialCode::RegistryUnavailable, e.to_string())))
        });
        self.say_since_when(&mut why)?;
        Ok(WhyAnswer {
            source: circumstances.source,
            tls_version: circumstances.tls.version,
            tls_group: circumstances.tls.group,
            at: now,
            exchange,
            why,
        })
    }

    /// Adds to what is said of the device's state who brought it there, why, and until when.
    fn say_since_when(&self, why: &mut Why) -> Result<(), Failure> {
        let (Some(tenant), Some(id)) = (&why.tenant, &why.device) else {
            return Ok(());
        };
        let Some(device) = self.registry.device(tenant, id)? else {
            return Ok(());
        };
        let lifecycle = why.layers.iter_mut().find(|l| l.layer == Layer::Lifecycle);
        let Some(layer) = lifecycle.filter(|l| !l.fact.is_empty()) else {
            return Ok(());
        };
        if let Some(moved) = &device.moved {
            layer
                .fact
                .push_str(&format!(", since {} by {}", moved.since, moved.by));
            if !moved.reason.is_empty() {
                layer.fact.push_str(&format!(": {}", moved.reason));
            }
        }
        let until = match device.state {
            LifecycleState::Suspended => device.suspended_until,
            LifecycleState::Quarantined => device.quarantined_until,
            _ => None,
        };
        if let Some(until) = until {
            layer.fact.push_str(&format!("; until {until}"));
        }
        Ok(())
    }

    /// Source and handshake of the device's last exchange, if one is kept.
    fn last_circumstances(
        &self,
        fingerprint: Option<&Fingerprint>,
        now: Timestamp,
    ) -> Result<(Circumstances, Option<String>), Failure> {
        let credential = fingerprint.and_then(|f| self.registry.facts().credential(f));
        let Some(credential) = credential else {
            return Ok((assumed(now), None));
        };
        let ledger = self.registry.ledger();
        ledger.flush();
        let last = ledger.last_handshake(&credential.tenant, &credential.device)?;
        Ok(match last {
            Some(record) => {
                let mut found = circumstances_of(&record, now);
                // Whoever resumes has come by a full handshake before, and soon must again.
                found.tls = found.tls.as_full();
                (found, Some(record.id.to_string()))
            }
            None => (assumed(now), None),
        })
    }
}
