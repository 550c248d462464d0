//! What would become of an identity that is not connected: every layer's verdict, in the order of an exchange's stages.
//!
//! The verdicts are [`crate::judge`]'s, as for whoever connects. What only a connection can show is taken as given: that
//! the peer holds the key, and that no limit of the node is reached.

use std::sync::Arc;

use countersign_identity::{
    AuthorityId, DeviceId, Fingerprint, Generation, TenantId, Timestamp, VerifiedChain,
};
use countersign_mqtt::QoS;
use countersign_mqtt::topic::{TopicFilter, TopicName};
use countersign_policy::decide::Action;
use countersign_policy::first_contact::Contact;
use countersign_policy::{
    CredentialFacts, Denial, DenialCode, DeviceFacts, FactSource, LifecycleState, Stage,
};
use rustls::pki_types::CertificateDer;

mod answer;

pub use answer::{AuthorityFrom, Layer, LayerVerdict, Verdict, Why};

use crate::judge::{self, Circumstances};
use crate::session::entry::Admission;
use crate::session::token;

/// What is shown, or would be.
#[derive(Debug, Clone, Copy)]
pub enum Presented<'a> {
    /// Certificates, leaf first.
    Certificates(&'a [CertificateDer<'a>]),
    /// A registered credential whose certificate is not kept here: its path cannot be looked at, only its authority.
    Registered {
        /// The tenant.
        tenant: &'a TenantId,
        /// The device.
        device: &'a DeviceId,
        /// The certificate's SHA-256.
        fingerprint: &'a Fingerprint,
        /// What its chain ends in.
        authority: EndsIn<'a>,
        /// When it is valid.
        validity: [Timestamp; 2],
    },
}

/// What the chain of a certificate that is not kept here ends in.
#[derive(Debug, Clone, Copy)]
pub enum EndsIn<'a> {
    /// This authority, and how that is known.
    Known(&'a AuthorityId, AuthorityFrom),
    /// One of these, and nothing tells which; none if no authority of the tenant vouches for anybody.
    OneOf(&'a [AuthorityId]),
}

/// What is asked.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    /// The tenant that a server name would choose; `None` if the authority chooses.
    pub asked: Option<&'a TenantId>,
    /// What is shown.
    pub presented: Presented<'a>,
    /// Under what.
    pub circumstances: Circumstances,
    /// The client id; the device id if none is given.
    pub client_id: Option<&'a str>,
    /// What it would do once it is in, and where.
    pub data: Option<(Action, &'a str)>,
}

/// Asks every layer. `learn` tells what a first contact would bring about, and keeps nothing.
pub fn why(
    facts: &dyn FactSource,
    question: &Question<'_>,
    learn: &dyn Fn(Contact) -> Result<(Arc<DeviceFacts>, CredentialFacts), Denial>,
) -> Why {
    let mut answer = Why::new();
    if let Err((denial, at)) = ask(facts, question, learn, &mut answer) {
        answer.fail(denial, at);
    }
    answer.admitted = !answer.layers.iter().any(|l| l.verdict == Verdict::Failed)
        && answer
            .layers
            .iter()
            .any(|l| l.layer == Layer::ClientId && l.verdict == Verdict::Passed);
    answer
}

/// Who it is, as far as a connection would be asked.
struct Known {
    device: Arc<DeviceFacts>,
    credential: CredentialFacts,
    authority: AuthorityId,
    generation: Generation,
}

fn ask(
    facts: &dyn FactSource,
    question: &Question<'_>,
    learn: &dyn Fn(Contact) -> Result<(Arc<DeviceFacts>, CredentialFacts), Denial>,
    answer: &mut Why,
) -> Result<(), (Denial, Stage)> {
    let known = match question.presented {
        Presented::Certificates(certificates) => shown(facts, question, certificates, learn, answer)?,
        Presented::Registered {
            tenant,
            device,
            fingerprint,
            authority,
            validity,
        } => {
            answer.tenant = Some(tenant.clone());
            answer.device = Some(device.clone());
            answer.fingerprint = Some(*fingerprint);
            if let EndsIn::Known(authority, from) = authority {
                answer.authority = Some(authority.clone());
                answer.authority_from = Some(from);
            }
            registered(
                facts,
                question,
                (tenant, device, fingerprint),
                authority,
                validity,
                answer,
            )?
        }
    };
    answer.set(Layer::Identify, Verdict::Passed, identified(&known));
    let authority = (&known.authority, known.generation);
    let (permit, policy) = judge::connect(
        facts,
        &known.device,
        &known.credential,
        authority,
        question.circumstances,
    )
    .map_err(|d| {
        // Both are asked before policies are; what they found is told whichever of them refuses.
        answer.set(
            Layer::Lifecycle,
            Verdict::NotReached,
            format!("the device is {}", known.device.state),
        );
        answer.set(
            Layer::Credential,
            Verdict::NotReached,
            credential_text(&known.credential),
        );
        (d, Stage::Policy)
    })?;
    let quarantined = known.device.state == LifecycleState::Quarantined;
    let lane = if quarantined {
        ", and a policy opens the lane: diagnostics out, firmware in, nothing else"
    } else {
        ""
    };
    answer.set(
        Layer::Lifecycle,
        Verdict::Passed,
        format!("the device is {}{lane}", known.device.state),
    );
    answer.set(
        Layer::Credential,
        Verdict::Passed,
        credential_text(&known.credential),
    );
    let full = judge::needs_full_handshake(
        facts,
        &known.device.tenant,
        &known.device.id,
        &known.credential.fingerprint,
        &known.authority,
        question.circumstances,
    );
    let tickets = if full {
        "; its tickets are declined, for they refuse it as resumed"
    } else {
        ""
    };
    answer.set(
        Layer::Policy,
        Verdict::Passed,
        format!(
            "connect is permitted by policies of {}{tickets}",
            known.device.tenant
        ),
    );
    answer.policies(Layer::Policy, permit.policies());
    let mode = facts.client_id_mode(&known.device.tenant);
    let asked = question.client_id.unwrap_or(known.device.id.as_str());
    judge::client_id(mode, &known.device.id, asked).map_err(|d| (d, Stage::Greet))?;
    answer.set(
        Layer::ClientId,
        Verdict::Passed,
        format!("client id {asked:?} fits mode {mode}"),
    );
    let now = question.circumstances.now;
    let admission = judge::admission(permit, known.device, policy).map_err(|d| (d, Stage::FirstData))?;
    if quarantined {
        let fact = "none: the lane is MQTT alone";
        answer.set(Layer::Token, Verdict::NotReached, fact);
    } else {
        let spaces = token::names(&admission, token::publishable(&admission, now));
        let fact = match spaces.as_slice() {
            [] => "a token would be good for nothing: no topic space may be published in".to_owned(),
            names => format!("a token would be good to publish in {}", names.join(", ")),
        };
        answer.set(Layer::Token, Verdict::Passed, fact);
    }
    let Some((action, topic)) = question.data else {
        return Ok(());
    };
    data(&admission, action, topic, now, answer).map_err(|d| (d, Stage::FirstData))
}

fn shown(
    facts: &dyn FactSource,
    question: &Question<'_>,
    certificates: &[CertificateDer<'_>],
    learn: &dyn Fn(Contact) -> Result<(Arc<DeviceFacts>, CredentialFacts), Denial>,
    answer: &mut Why,
) -> Result<Known, (Denial, Stage)> {
    let Some((leaf, above)) = certificates.split_first() else {
        return Err((DenialCode::NoCertificate.into(), Stage::ClientCertificate));
    };
    let now = question.circumstances.now;
    let (seen, read) = judge::shown(leaf, above);
    answer.fingerprint = Some(seen.fingerprint);
    answer.serial = Some(seen.serial.clone());
    let asked = question.asked;
    let chain = read
        .and_then(|read| {
            judge::chain(facts, asked, read, leaf, now, |anchors, read| {
                VerifiedChain::verify(anchors, asked, read, leaf, above, now)
            })
        })
        .map_err(|d| (d, Stage::ClientCertificate))?;
    let anchor = chain.anchor().clone();
    answer.tenant = Some(anchor.tenant.clone());
    answer.authority = Some(anchor.authority.clone());
    answer.authority_from = Some(AuthorityFrom::Path);
    let path = match chain.pinned_device() {
        Some(_) => "registered by its fingerprint".to_owned(),
        None => format!(
            "{:?} leads to authority {} with {} intermediate(s) between",
            seen.subject,
            anchor.authority,
            chain.intermediates()
        ),
    };
    answer.set(Layer::Chain, Verdict::Passed, path);
    answer.set(
        Layer::Dates,
        Verdict::Passed,
        format!(
            "valid from {} to {}",
            chain.leaf().not_before,
            chain.leaf().not_after
        ),
    );
    answer.set(
        Layer::Revocation,
        Verdict::Passed,
        "not revoked here, and on no list that is kept",
    );
    let failed = |d| (d, Stage::Identify);
    let id = judge::device_id(&chain).map_err(failed)?;
    answer.device = Some(id.clone());
    let (device, credential) = match judge::identify(facts, &chain, &id, true).map_err(failed)? {
        Some(known) => known,
        None => judge::contact(&chain).and_then(learn).map_err(failed)?,
    };
    Ok(Known {
        device,
        credential,
        authority: anchor.authority.clone(),
        generation: anchor.generation,
    })
}

fn registered(
    facts: &dyn FactSource,
    question: &Question<'_>,
    (tenant, device, fingerprint): (&TenantId, &DeviceId, &Fingerprint),
    ends_in: EndsIn<'_>,
    [not_before, not_after]: [Timestamp; 2],
    answer: &mut Why,
) -> Result<Known, (Denial, Stage)> {
    let failed = |d| (d, Stage::ClientCertificate);
    let (authority, from) = match ends_in {
        EndsIn::Known(authority, from) => (authority, from),
        EndsIn::OneOf(possible) => {
            return Err(failed(Denial::new(DenialCode::UnknownCa, which_of(possible))));
        }
    };
    let now = question.circumstances.now;
    let fault = if now.unix_s() < not_before.unix_s() {
        Some((
            DenialCode::CertificateNotYetValid,
            format!("not valid before {not_before}"),
        ))
    } else if now.unix_s() > not_after.unix_s() {
        Some((DenialCode::CertificateExpired, format!("expired on {not_after}")))
    } else {
        None
    };
    let chain = format!(
        "its certificate is not kept here; it leads to authority {authority}: {}; give it as a file to have its path looked at",
        from.words()
    );
    answer.set(Layer::Chain, Verdict::NotKnown, chain);
    if let Some((code, detail)) = fault {
        return Err(failed(Denial::new(code, detail)));
    }
    // The very decision that a live session is measured by; that it stands is all that is wanted of it here.
    let found = judge::anew(
        facts,
        tenant,
        device,
        fingerprint,
        authority,
        question.circumstances,
    );
    if let Err(denial) = found {
        let layer = Layer::of(denial.code, Stage::Policy);
        if layer <= Layer::Revocation {
            return Err((denial, Stage::Policy));
        }
        if layer == Layer::Identify {
            return Err((denial, Stage::Identify));
        }
    }
    // Nothing is above a certificate that vouches for itself; above any other, nothing was looked at.
    let (verdict, more) = match authority.is_pinned() {
        true => (Verdict::Passed, ""),
        false => (Verdict::NotKnown, "; what is above it is not looked at"),
    };
    answer.set(
        Layer::Dates,
        verdict,
        format!("its own: valid from {not_before} to {not_after}{more}"),
    );
    answer.set(
        Layer::Revocation,
        verdict,
        format!("it is not revoked here, nor by a list that is kept{more}"),
    );
    let unknown = |code: DenialCode| (Denial::from(code), Stage::Identify);
    Ok(Known {
        device: facts
            .device(tenant, device)
            .ok_or_else(|| unknown(DenialCode::UnknownDevice))?,
        credential: facts
            .credential(fingerprint)
            .ok_or_else(|| unknown(DenialCode::UnknownCredential))?,
        authority: authority.clone(),
        generation: facts.authority(authority).map_or(Generation(0), |(_, g)| g),
    })
}

fn which_of(possible: &[AuthorityId]) -> String {
    let names: Vec<&str> = possible.iter().map(AuthorityId::as_str).collect();
    match names.as_slice() {
        [] => "its certificate is not kept here, and no authority of its tenant vouches for anybody".into(),
        names => format!(
            "its certificate is not kept here, and whether it leads to {} is not known: it was never seen, and its device is bound to none; give it as a file",
            names.join(" or ")
        ),
    }
}

fn identified(known: &Known) -> String {
    let device = &known.device;
    let mut text = format!("device {} of tenant {}", device.id, device.tenant);
    if let Some(model) = &device.model {
        text.push_str(&format!(", model {model}"));
    }
    if !device.groups.is_empty() {
        text.push_str(&format!(", groups {}", device.groups.join(" ")));
    }
    if let Some(batch) = &device.batch {
        text.push_str(&format!(", batch {batch}"));
    }
    text
}

fn credential_text(credential: &CredentialFacts) -> String {
    format!(
        "the certificate is {}, {}, its key's custody {}",
        credential.state, credential.kind, credential.custody
    )
}

fn data(
    admission: &Admission,
    action: Action,
    topic: &str,
    now: Timestamp,
    answer: &mut Why,
) -> Result<(), Denial> {
    let invalid = |e: countersign_mqtt::DecodeError| Denial::new(DenialCode::TopicInvalid, e.to_string());
    let (spaces, policies) = match action {
        Action::Connect => return Ok(()),
        Action::Publish => {
            let name = TopicName::new(topic).map_err(invalid)?;
            let spaces = admission.spaces_of_topic(name);
            let permit = admission.publish(name, QoS::AtLeastOnce, false, now);
            (spaces, permit.map(|p| p.policies().to_vec()))
        }
        Action::Subscribe => {
            let filter = TopicFilter::new(topic).map_err(invalid)?;
            let spaces = admission.spaces_of_filter(filter);
            let permit = admission.subscribe(topic, filter, QoS::AtLeastOnce, now);
            (spaces, permit.map(|p| p.policies().to_vec()))
        }
    };
    let within = match spaces.as_slice() {
        [] => format!("{topic} is in no topic space"),
        names => format!("{topic} is in {}", names.join(", ")),
    };
    match policies {
        Ok(policies) => {
            answer.set(Layer::Topic, Verdict::Passed, within);
            answer.policies(Layer::Topic, &policies);
            Ok(())
        }
        Err(denial) => Err(Denial {
            detail: format!("{within}; {}", denial.detail),
            ..denial
        }),
    }
}
