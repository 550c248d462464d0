use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, NameConstraints,
};

use super::*;
use crate::anchor::{Anchor, AnchorState, StoredIntermediate};
use crate::id::{AuthorityId, Generation};
use crate::rule::IdentityRule;

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf() -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name.push(DnType::CommonName, "d1");
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn sign(params: &CertificateParams, ca: &CertificateParams, ca_key: &KeyPair) -> Certificate {
    params
        .signed_by(&key(), &Issuer::from_params(ca, ca_key))
        .unwrap()
}

fn anchor(tenant: &str, state: AnchorState, certificate: &Certificate) -> Arc<Anchor> {
    let id = AuthorityId::new(&format!("{tenant}-ca")).unwrap();
    let tenant = TenantId::new(tenant).unwrap();
    Arc::new(
        Anchor::new(
            tenant,
            id,
            state,
            Generation(1),
            IdentityRule::default(),
            certificate.der(),
        )
        .unwrap(),
    )
}

/// The present, for certificates that rcgen makes valid from 1975 to 4096.
const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);

fn verify(
    anchors: &[Arc<Anchor>],
    asked: Option<&str>,
    certificates: &[&Certificate],
    now: Timestamp,
) -> Result<VerifiedChain, ChainFault> {
    let index = AnchorIndex::new(anchors.iter().cloned());
    let asked = asked.map(|t| TenantId::new(t).unwrap());
    let ders: Vec<_> = certificates.iter().map(|c| c.der().clone()).collect();
    let facts = CertificateFacts::parse(&ders[0]).unwrap();
    VerifiedChain::verify(&index, asked.as_ref(), facts, &ders[0], &ders[1..], now)
}

#[test]
fn a_good_chain_names_its_anchor() {
    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &params, &ca_key);
    let anchors = [anchor("a", AnchorState::Active, &root)];
    for asked in [None, Some("a")] {
        let chain = verify(&anchors, asked, &[&device], NOW).unwrap();
        assert_eq!(chain.anchor().tenant.as_str(), "a");
        assert_eq!(chain.intermediates(), 0);
    }
    let retiring = [anchor("a", AnchorState::Retiring, &root)];
    assert!(verify(&retiring, None, &[&device], NOW).is_ok());
}

#[test]
fn an_anchor_that_does_not_admit_says_why() {
    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &params, &ca_key);
    let fault = |state| verify(&[anchor("a", state, &root)], None, &[&device], NOW).unwrap_err();
    assert!(matches!(
        fault(AnchorState::Retired),
        ChainFault::AuthorityRetired { .. }
    ));
    assert!(matches!(
        fault(AnchorState::Revoked),
        ChainFault::AuthorityRevoked { .. }
    ));

    // RFC 5280 section 6 looks at neither dates nor key usage of an anchor.
    let mut short = ca("short");
    short.not_after = rcgen::date_time_ymd(2026, 1, 1);
    let short_root = short.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &short, &ca_key);
    let expired = verify(
        &[anchor("a", AnchorState::Active, &short_root)],
        None,
        &[&device],
        NOW,
    )
    .unwrap_err();
    assert!(matches!(expired, ChainFault::AnchorExpired { .. }), "{expired:?}");
    let mut signs_nothing = ca("signs nothing");
    signs_nothing.key_usages = vec![KeyUsagePurpose::CrlSign];
    let root = signs_nothing.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &signs_nothing, &ca_key);
    let fault = verify(&[anchor("a", AnchorState::Active, &root)], None, &[&device], NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::IssuerNotCa(_)), "{fault:?}");
    let mut servers_only = ca("servers only");
    servers_only.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let root = servers_only.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &servers_only, &ca_key);
    let fault = verify(&[anchor("a", AnchorState::Active, &root)], None, &[&device], NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::WrongUsage(_)), "{fault:?}");
}

#[test]
fn an_intermediate_that_may_not_sign_is_refused() {
    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let mut middle = ca("middle");
    middle.key_usages = vec![KeyUsagePurpose::CrlSign];
    let middle_key = key();
    let middle_certificate = middle
        .signed_by(&middle_key, &Issuer::from_params(&params, &ca_key))
        .unwrap();
    let device = sign(&leaf(), &middle, &middle_key);
    let anchors = [anchor("a", AnchorState::Active, &root)];
    let fault = verify(&anchors, None, &[&device, &middle_certificate], NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::IssuerNotCa(_)), "{fault:?}");
}

#[test]
fn a_forged_issuer_is_told_from_an_unknown_one() {
    let mut params = ca("root");
    params.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20]);
    let (real, forger) = (key(), key());
    let root = params.self_signed(&real).unwrap();
    let device = sign(&leaf(), &params, &forger);
    let anchors = [anchor("a", AnchorState::Active, &root)];
    let fault = verify(&anchors, None, &[&device], NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::BadSignature { .. }), "{fault:?}");
    let other = ca("somebody else");
    let device = sign(&leaf(), &other, &forger);
    let fault = verify(&anchors, None, &[&device], NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::UnknownCa { .. }), "{fault:?}");
}

#[test]
fn an_authority_of_two_tenants_needs_the_server_name() {
    let (params, ca_key) = (ca("shared root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &params, &ca_key);
    let anchors = [
        anchor("a", AnchorState::Active, &root),
        anchor("b", AnchorState::Active, &root),
    ];
    assert_eq!(
        verify(&anchors, None, &[&device], NOW).unwrap_err(),
        ChainFault::AmbiguousTenant
    );
    assert_eq!(
        verify(&anchors, Some("b"), &[&device], NOW)
            .unwrap()
            .anchor()
            .tenant
            .as_str(),
        "b"
    );
    let foreign = verify(&anchors, Some("c"), &[&device], NOW).unwrap_err();
    assert!(matches!(foreign, ChainFault::ForeignTenant { .. }), "{foreign:?}");
}

#[test]
fn name_constraints_keys_and_sizes() {
    let mut params = ca("constrained");
    params.name_constraints = Some(NameConstraints {
        permitted_subtrees: vec![GeneralSubtree::DnsName("fleet.example".into())],
        excluded_subtrees: vec![],
    });
    let ca_key = key();
    let root = params.self_signed(&ca_key).unwrap();
    let mut outside = leaf();
    outside.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())];
    // One on the anchor counts too.
    let device = sign(&outside, &params, &ca_key);
    let anchors = [anchor("a", AnchorState::Active, &root)];
    assert_eq!(
        verify(&anchors, None, &[&device], NOW).unwrap_err(),
        ChainFault::NameConstraint
    );

    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let anchors = [anchor("a", AnchorState::Active, &root)];
    let unusual = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
    let device = leaf()
        .signed_by(&unusual, &Issuer::from_params(&params, &ca_key))
        .unwrap();
    assert_eq!(
        verify(&anchors, None, &[&device], NOW).unwrap_err(),
        ChainFault::WeakKey
    );

    let device = sign(&leaf(), &params, &ca_key);
    let many: Vec<&Certificate> = std::iter::once(&device)
        .chain(std::iter::repeat_n(&root, 20))
        .collect();
    let fault = verify(&anchors, None, &many, NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::TooLarge { .. }), "{fault:?}");
}

#[test]
fn dates_are_inclusive_at_both_ends() {
    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let mut dated = leaf();
    dated.not_before = rcgen::date_time_ymd(2026, 11, 1);
    dated.not_after = rcgen::date_time_ymd(2026, 11, 30);
    let device = sign(&dated, &params, &ca_key);
    let anchors = [anchor("a", AnchorState::Active, &root)];
    let facts = CertificateFacts::parse(device.der()).unwrap();
    let second = Duration::from_secs(1);
    assert!(verify(&anchors, None, &[&device], facts.not_before).is_ok());
    assert!(verify(&anchors, None, &[&device], facts.not_after).is_ok());
    let early = verify(&anchors, None, &[&device], facts.not_before.minus(second)).unwrap_err();
    assert!(matches!(early, ChainFault::NotYetValid { .. }), "{early:?}");
    let late = verify(&anchors, None, &[&device], facts.not_after.plus(second)).unwrap_err();
    assert!(matches!(late, ChainFault::Expired { .. }), "{late:?}");
}

#[test]
fn an_expired_leaf_is_checked_in_all_else_and_what_is_above_it_must_be_in_force_now() {
    let (root_params, root_key) = (ca("root"), key());
    let root = root_params.self_signed(&root_key).unwrap();
    let (mut middle, middle_key) = (ca("middle"), key());
    let issuer = Issuer::from_params(&root_params, &root_key);
    let middle_certificate = middle.signed_by(&middle_key, &issuer).unwrap();
    let mut dated = leaf();
    dated.not_before = rcgen::date_time_ymd(2026, 9, 1);
    dated.not_after = rcgen::date_time_ymd(2026, 11, 1);
    let device = sign(&dated, &middle, &middle_key);
    let check = |state, device: &Certificate, middle: &Certificate, now| {
        let index = AnchorIndex::new([anchor("a", state, &root)]);
        let facts = CertificateFacts::parse(device.der()).unwrap();
        let tenant = TenantId::new("a").unwrap();
        ExpiredChain::verify(&index, &tenant, facts, device.der(), &[middle.der().clone()], now)
    };
    let active = AnchorState::Active;
    let end = CertificateFacts::parse(device.der()).unwrap().not_after;
    // NOW is in late November 2026.
    let chain = check(active, &device, &middle_certificate, NOW).unwrap();
    assert_eq!(
        (chain.leaf().not_after, chain.anchor().authority.as_str()),
        (end, "a-ca")
    );
    // Not expired: it has no business here.
    for now in [end, end.minus(Duration::from_secs(86_400 * 100))] {
        let fault = check(active, &device, &middle_certificate, now).unwrap_err();
        assert!(matches!(fault, ChainFault::NotYetValid { .. }), "{fault:?}");
    }
    let fault = check(AnchorState::Revoked, &device, &middle_certificate, NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::AuthorityRevoked { .. }), "{fault:?}");
    // The intermediate was valid when the leaf was, and is not now.
    middle.not_after = rcgen::date_time_ymd(2026, 11, 10);
    let ended = middle.signed_by(&middle_key, &issuer).unwrap();
    let fault = check(active, &device, &ended, NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::Expired { .. }), "{fault:?}");
    assert!(check(active, &device, &ended, end.plus(Duration::from_secs(86_400))).is_ok());
    // Everything else is as strict as ever.
    dated.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let server = sign(&dated, &middle, &middle_key);
    let fault = check(active, &server, &middle_certificate, NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::WrongUsage(_)), "{fault:?}");
    let forged = sign(&dated, &middle, &key());
    assert!(check(active, &forged, &middle_certificate, NOW).is_err());
}

#[test]
fn a_malformed_intermediate_is_refused() {
    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let device = sign(&leaf(), &params, &ca_key);
    let index = AnchorIndex::new([anchor("a", AnchorState::Active, &root)]);
    let facts = CertificateFacts::parse(device.der()).unwrap();
    let garbage = [CertificateDer::from(vec![0x30, 0x03, 1, 2, 3])];
    let fault = VerifiedChain::verify(&index, None, facts, device.der(), &garbage, NOW).unwrap_err();
    assert!(matches!(fault, ChainFault::Malformed(_)), "{fault:?}");
}

#[test]
fn a_device_that_sends_only_its_own_certificate_is_completed() {
    let (root_params, root_key) = (ca("root"), key());
    let root = root_params.self_signed(&root_key).unwrap();
    let (params, ca_key) = (ca("issuing"), key());
    let issuing = params
        .signed_by(&ca_key, &Issuer::from_params(&root_params, &root_key))
        .unwrap();
    let device = sign(&leaf(), &params, &ca_key);
    let check = |stored_for: Option<&str>| {
        let mut index = AnchorIndex::new([anchor("a", AnchorState::Active, &root)]);
        if let Some(tenant) = stored_for {
            let stored = StoredIntermediate::new(TenantId::new(tenant).unwrap(), issuing.der()).unwrap();
            index.insert_intermediate(Arc::new(stored));
        }
        let facts = CertificateFacts::parse(device.der()).unwrap();
        VerifiedChain::verify(
            &index,
            Some(&TenantId::new("a").unwrap()),
            facts,
            device.der(),
            &[],
            NOW,
        )
        .map(|c| c.intermediates())
    };
    assert!(matches!(check(None), Err(ChainFault::UnknownCa { .. })));
    assert_eq!(check(Some("a")), Ok(1));
    assert!(matches!(check(Some("b")), Err(ChainFault::UnknownCa { .. })));
}

#[test]
fn of_two_anchors_with_one_key_the_usable_one_decides() {
    let (params, ca_key) = (ca("root"), key());
    let (old, new) = (params.self_signed(&ca_key).unwrap(), {
        let mut renewed = params.clone();
        renewed.not_after = rcgen::date_time_ymd(4000, 1, 1);
        renewed.self_signed(&ca_key).unwrap()
    });
    let device = sign(&leaf(), &params, &ca_key);
    for (first, second) in [
        (AnchorState::Retired, AnchorState::Active),
        (AnchorState::Active, AnchorState::Unproven),
    ] {
        let anchors = [anchor("a", first, &old), anchor("a", second, &new)];
        let chain = verify(&anchors, Some("a"), &[&device], NOW).unwrap();
        assert_eq!(chain.anchor().state, AnchorState::Active);
    }
    let anchors = [anchor("a", AnchorState::Unproven, &new)];
    assert!(matches!(
        verify(&anchors, Some("a"), &[&device], NOW),
        Err(ChainFault::AuthorityUnproven { .. })
    ));
}

/// What was verified once is known again, and nothing but its signatures is taken on trust.
#[test]
fn a_path_that_was_verified_before_is_checked_in_all_but_its_signatures() {
    let (params, ca_key) = (ca("root"), key());
    let root = params.self_signed(&ca_key).unwrap();
    let (issuing, issuing_key) = (ca("issuing"), key());
    let above = issuing
        .signed_by(&issuing_key, &Issuer::from_params(&params, &ca_key))
        .unwrap();
    let mut short = leaf();
    short.not_after = rcgen::date_time_ymd(2027, 1, 1);
    let device = sign(&short, &issuing, &issuing_key);
    let at = |state, generation| {
        let plain = anchor("a", state, &root);
        Anchor::new(
            plain.tenant.clone(),
            plain.authority.clone(),
            state,
            Generation(generation),
            IdentityRule::default(),
            root.der(),
        )
        .map(Arc::new)
        .unwrap()
    };
    let again = |anchor: Arc<Anchor>, certificates: &[&Certificate], now, verified| {
        let ders: Vec<_> = certificates.iter().map(|c| c.der().clone()).collect();
        let facts = CertificateFacts::parse(&ders[0]).unwrap();
        let index = AnchorIndex::new([anchor]);
        VerifiedChain::verify_again(&index, None, facts, &ders[0], &ders[1..], now, verified)
    };
    let active = || at(AnchorState::Active, 1);
    let path = verify(&[active()], None, &[&device, &above], NOW).unwrap().path();
    let chain = again(active(), &[&device, &above], NOW, path).unwrap();
    assert_eq!((chain.path(), chain.intermediates()), (path, 1));

    // Dates and states are those of now.
    let late = Timestamp::from_unix_s(1_900_000_000);
    assert!(matches!(
        again(active(), &[&device, &above], late, path),
        Err(ChainFault::Expired { .. })
    ));
    assert!(matches!(
        again(at(AnchorState::Revoked, 1), &[&device, &above], NOW, path),
        Err(ChainFault::AuthorityRevoked { .. })
    ));
    // Another generation of the authority, be it older or newer, is another path.
    for generation in [0, 2] {
        assert!(matches!(
            again(at(AnchorState::Active, generation), &[&device, &above], NOW, path),
            Err(ChainFault::BadSignature { .. })
        ));
    }
    // A certificate that nobody signed does not come in by a path that it is not on.
    let (stranger_key, forged_key) = (key(), key());
    let forged = sign(&short, &issuing, &forged_key);
    assert!(matches!(
        again(active(), &[&forged, &above], NOW, path),
        Err(ChainFault::BadSignature { .. })
    ));
    // Nor does an issuer of the right name that the root never signed stand in for the one it did.
    let twin = issuing
        .signed_by(&stranger_key, &Issuer::from_params(&params, &stranger_key))
        .unwrap();
    assert!(matches!(
        again(active(), &[&device, &twin], NOW, path),
        Err(ChainFault::BadSignature { .. })
    ));
    let chain = again(active(), &[&device, &twin, &above], NOW, path).unwrap();
    assert_eq!(chain.path(), path);
}

#[test]
fn a_pinned_certificate_is_known_again_by_its_own_path_alone() {
    let own = key();
    let [one, other] = [1, 2].map(|_| leaf().self_signed(&own).unwrap());
    let (tenant, device) = (TenantId::new("a").unwrap(), DeviceId::new("d1").unwrap());
    let facts = |c: &Certificate| CertificateFacts::parse(c.der()).unwrap();
    let chain = VerifiedChain::pinned(&tenant, None, device.clone(), facts(&one), one.der(), NOW).unwrap();
    let again = |c: &Certificate, now| {
        VerifiedChain::pinned_again(
            &tenant,
            None,
            device.clone(),
            facts(c),
            c.der(),
            now,
            chain.path(),
        )
    };
    assert_eq!(again(&one, NOW).unwrap().pinned_device(), Some(&device));
    assert!(matches!(again(&other, NOW), Err(ChainFault::BadSignature { .. })));
    let before_all = Timestamp::from_unix_s(0);
    assert!(matches!(
        again(&one, before_all),
        Err(ChainFault::NotYetValid { .. })
    ));
}
