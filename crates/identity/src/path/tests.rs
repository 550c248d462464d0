//! The search against hostile certificates, and against webpki.
#![allow(clippy::disallowed_methods, reason = "measures how long a search takes")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, GeneralSubtree, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, NameConstraints, SanType,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::*;
use crate::anchor::{AnchorIndex, StoredIntermediate};
use crate::chain::{CHAIN_CERTIFICATES_MAX, VerifiedChain};
use crate::id::{AuthorityId, Generation, TenantId};
use crate::rule::IdentityRule;

/// The present, for certificates that rcgen makes valid from 1975 to 4096.
const NOW: Timestamp = Timestamp::from_unix_s(1_795_000_000);
/// One search is a matter of milliseconds; this leaves room for a busy machine and an unoptimised build.
const WALL_MAX: Duration = Duration::from_millis(500);

fn key() -> KeyPair {
    KeyPair::generate().unwrap()
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

fn leaf(name: &str) -> CertificateParams {
    let mut params = CertificateParams::new(vec![]).unwrap();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params
}

fn signed(params: &CertificateParams, key: &KeyPair, by: (&CertificateParams, &KeyPair)) -> Certificate {
    params.signed_by(key, &Issuer::from_params(by.0, by.1)).unwrap()
}

fn anchor(n: usize, certificate: &[u8]) -> Arc<Anchor> {
    let (tenant, id) = (
        TenantId::new("a").unwrap(),
        AuthorityId::new(&format!("anchor-{n}")).unwrap(),
    );
    let rule = IdentityRule::default();
    Arc::new(Anchor::new(tenant, id, AnchorState::Active, Generation(1), rule, certificate).unwrap())
}

/// What a search came to, and what it cost: signatures and steps.
fn search(
    certificates: &[&Certificate],
    anchors: &[Arc<Anchor>],
) -> (Result<usize, ChainFault>, usize, usize) {
    let facts: Vec<_> = certificates
        .iter()
        .map(|c| CertificateFacts::parse(c.der()).unwrap())
        .collect();
    let nodes = facts
        .iter()
        .zip(certificates)
        .map(|(f, c)| Node::new(f, c.der()).unwrap())
        .collect();
    let demands = ChainDemands::default();
    let registered = AnchorIndex::new(anchors.iter().cloned());
    let mut search = Search::new(nodes, anchors, &registered, &demands, Terms::at(NOW));
    let started = Instant::now();
    let result = search.run().map(|found| found.intermediates);
    assert!(started.elapsed() < WALL_MAX, "{:?}", started.elapsed());
    assert!(search.signatures.len() <= SIGNATURES_MAX && search.steps <= STEPS_MAX + 1);
    (result, search.signatures.len(), search.steps)
}

#[test]
fn dozens_of_one_name_and_key_cost_one_signature_each_way() {
    let (root_params, root_key) = (ca("root"), key());
    let root = root_params.self_signed(&root_key).unwrap();
    let (params, ca_key) = (ca("issuing"), key());
    let other = (ca("nobody"), key());
    // 60 certificates of one name and key, by an issuer that nobody knows; the last one is by the root.
    let strangers: Vec<_> = (0..60)
        .map(|_| signed(&params, &ca_key, (&other.0, &other.1)))
        .collect();
    let real = signed(&params, &ca_key, (&root_params, &root_key));
    let device = signed(&leaf("d1"), &key(), (&params, &ca_key));
    let mut chain: Vec<_> = std::iter::once(&device).chain(&strangers).collect();
    let anchors = [anchor(1, root.der())];
    let (result, signatures, _) = search(&chain, &anchors);
    assert!(matches!(result, Err(ChainFault::UnknownCa { .. })), "{result:?}");
    assert_eq!(
        signatures, 1,
        "the leaf's signature is checked once for all of them"
    );
    chain.push(&real);
    assert_eq!(search(&chain, &anchors).0, Ok(1));
    // The same with forged ones: each bears the name, and did not sign.
    let forged: Vec<_> = (0..60)
        .map(|_| signed(&params, &key(), (&root_params, &root_key)))
        .collect();
    let mut chain: Vec<_> = std::iter::once(&device).chain(&forged).collect();
    let (result, signatures, _) = search(&chain, &anchors);
    assert_eq!((result, signatures), (Err(ChainFault::Budget), SIGNATURES_MAX));
    chain.insert(1, &real);
    assert_eq!(search(&chain, &anchors).0, Ok(1));
}

#[test]
fn a_mesh_of_cross_signed_authorities_is_walked_within_bounds() {
    let cas: Vec<_> = (0..8).map(|n| (ca(&format!("ca {n}")), key())).collect();
    // Each of the eight signed by each of the others: 56 certificates, thousands of ways through, none to an anchor.
    let mut mesh = Vec::new();
    for (n, (params, own)) in cas.iter().enumerate() {
        for (m, by) in cas.iter().enumerate() {
            if n != m {
                mesh.push(signed(params, own, (&by.0, &by.1)));
            }
        }
    }
    let (root_params, root_key) = (ca("root"), key());
    let root = root_params.self_signed(&root_key).unwrap();
    let device = signed(&leaf("d1"), &key(), (&cas[0].0, &cas[0].1));
    let mut chain: Vec<_> = std::iter::once(&device).chain(&mesh).collect();
    let anchors = [anchor(1, root.der())];
    let (result, ..) = search(&chain, &anchors);
    assert_eq!(result, Err(ChainFault::Budget));
    // With a way out of it, it is found.
    let out = signed(&cas[0].0, &cas[0].1, (&root_params, &root_key));
    chain.insert(1, &out);
    assert_eq!(search(&chain, &anchors).0, Ok(1));
}

#[test]
fn a_cycle_ends() {
    let (a, a_key, b, b_key) = (ca("a"), key(), ca("b"), key());
    let a_by_b = signed(&a, &a_key, (&b, &b_key));
    let b_by_a = signed(&b, &b_key, (&a, &a_key));
    let self_signed = a.self_signed(&a_key).unwrap();
    let device = signed(&leaf("d1"), &key(), (&a, &a_key));
    let root = ca("root").self_signed(&key()).unwrap();
    let (result, _, steps) = search(
        &[&device, &a_by_b, &b_by_a, &self_signed],
        &[anchor(1, root.der())],
    );
    assert!(matches!(result, Err(ChainFault::UnknownCa { .. })), "{result:?}");
    assert!(steps < 10, "{steps}");
}

#[test]
fn a_thousand_authorities_of_one_name_are_no_denial_of_service() {
    let params = ca("Device CA");
    let keys: Vec<_> = (0..1000).map(|_| key()).collect();
    let anchors: Vec<_> = keys
        .iter()
        .enumerate()
        .map(|(n, key)| anchor(n, params.self_signed(key).unwrap().der()))
        .collect();
    let index = AnchorIndex::new(anchors);
    let verify = |certificate: &Certificate| {
        let facts = CertificateFacts::parse(certificate.der()).unwrap();
        let started = Instant::now();
        let result = VerifiedChain::verify(&index, None, facts, certificate.der(), &[], NOW);
        assert!(started.elapsed() < WALL_MAX, "{:?}", started.elapsed());
        result
    };
    // By key identifier each finds its own, wherever it is.
    let mut named = leaf("d1");
    named.use_authority_key_identifier_extension = true;
    for n in [0, 499, 999] {
        let chain = verify(&signed(&named, &key(), (&params, &keys[n]))).unwrap();
        assert_eq!(chain.anchor().authority.as_str(), format!("anchor-{n}"));
    }
    // Without one it cannot be told which is meant: eight are tried, and the answer says that it was given up.
    let blind = verify(&signed(&leaf("d1"), &key(), (&params, &keys[999]))).unwrap_err();
    assert_eq!(blind, ChainFault::Budget);
    // A forger may name any of them.
    let forged = verify(&signed(&named, &key(), (&params, &key()))).unwrap_err();
    assert!(matches!(forged, ChainFault::UnknownCa { .. }), "{forged:?}");
}

#[test]
fn hundreds_of_stored_intermediates_of_one_name_and_key_are_bounded() {
    let (root_params, root_key) = (ca("root"), key());
    let root = root_params.self_signed(&root_key).unwrap();
    let (mut params, ca_key) = (ca("issuing"), key());
    let tenant = TenantId::new("a").unwrap();
    let mut index = AnchorIndex::new([anchor(1, root.der())]);
    params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    for _ in 0..300 {
        let expired = signed(&params, &ca_key, (&root_params, &root_key));
        index.insert_intermediate(Arc::new(
            StoredIntermediate::new(tenant.clone(), expired.der()).unwrap(),
        ));
    }
    params.not_after = rcgen::date_time_ymd(4000, 1, 1);
    let device = signed(&leaf("d1"), &key(), (&params, &ca_key));
    let verify = |index: &AnchorIndex| {
        let facts = CertificateFacts::parse(device.der()).unwrap();
        let started = Instant::now();
        let result = VerifiedChain::verify(index, Some(&tenant), facts, device.der(), &[], NOW);
        assert!(started.elapsed() < WALL_MAX, "{:?}", started.elapsed());
        result.map(|c| c.intermediates())
    };
    assert!(matches!(verify(&index), Err(ChainFault::Expired { .. })));
    // The one that is in time is found behind all of them.
    let current = signed(&params, &ca_key, (&root_params, &root_key));
    index.insert_intermediate(Arc::new(
        StoredIntermediate::new(tenant.clone(), current.der()).unwrap(),
    ));
    assert_eq!(verify(&index), Ok(1));
}

/// Small and repeatable: the cases are the same in every run, the keys are not.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn one_in(&mut self, sides: u64) -> bool {
        self.roll(sides) == 0
    }
}

fn random_ca(dice: &mut Dice, name: &str) -> CertificateParams {
    let mut params = ca(name);
    if dice.one_in(3) {
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(u8::try_from(dice.roll(3)).unwrap()));
    } else if dice.one_in(12) {
        params.is_ca = IsCa::ExplicitNoCa;
    }
    if dice.one_in(12) {
        params.not_after = rcgen::date_time_ymd(2020, 1, 1);
    }
    if dice.one_in(12) {
        params.not_before = rcgen::date_time_ymd(2100, 1, 1);
    }
    match dice.roll(12) {
        0 => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
        1 | 2 => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth],
        3 => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::Any],
        _ => {}
    }
    if dice.one_in(4) {
        let base = |dice: &mut Dice| {
            GeneralSubtree::DnsName(["example", "a.example", "b.example"][dice.roll(3) as usize].into())
        };
        params.name_constraints = Some(match dice.roll(2) {
            0 => NameConstraints {
                permitted_subtrees: vec![base(dice)],
                excluded_subtrees: vec![],
            },
            _ => NameConstraints {
                permitted_subtrees: vec![],
                excluded_subtrees: vec![base(dice)],
            },
        });
    }
    params
}

/// Over 600 random hierarchies we accept exactly what webpki accepts.
#[test]
fn agrees_with_webpki() {
    let mut dice = Dice(2026);
    let keys: Vec<_> = (0..8).map(|_| key()).collect();
    let (mut accepted, mut refused) = (0, 0);
    for round in 0..600 {
        let cas: Vec<_> = (0..5_usize)
            .map(|n| (random_ca(&mut dice, &format!("ca {n}")), &keys[n]))
            .collect();
        let mut chain = Vec::new();
        // Roots are 3 and 4; each of 0 to 2 is signed by one or two above it, or by a key that is not its issuer's.
        for n in 0..3 {
            for _ in 0..=dice.roll(2) {
                let m = n + 1 + dice.roll(4 - n as u64) as usize;
                let signer = if dice.one_in(10) { &keys[7] } else { cas[m].1 };
                chain.push(signed(&cas[n].0, cas[n].1, (&cas[m].0, signer)));
            }
        }
        let mut params = leaf("d1");
        params.subject_alt_names = match dice.roll(4) {
            0 => vec![],
            n => vec![SanType::DnsName(
                ["x.example", "x.a.example", "x.b.example"][n as usize - 1]
                    .try_into()
                    .unwrap(),
            )],
        };
        match dice.roll(10) {
            0 => params.extended_key_usages = vec![],
            1 => params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            2 => params.not_after = rcgen::date_time_ymd(2020, 1, 1),
            _ => {}
        }
        let issuer = dice.roll(4) as usize;
        let device = signed(&params, &key(), (&cas[issuer].0, cas[issuer].1));
        // The anchors themselves are sound: what they say is ours to judge, not webpki's.
        let roots: Vec<_> = (3..5)
            .map(|n| ca(&format!("ca {n}")).self_signed(cas[n].1).unwrap())
            .collect();
        let anchors: Vec<_> = roots
            .iter()
            .enumerate()
            .map(|(n, r)| anchor(n, r.der()))
            .collect();
        let all: Vec<_> = std::iter::once(&device).chain(&chain).collect();
        assert!(all.len() <= CHAIN_CERTIFICATES_MAX);
        let (ours, ..) = search(&all, &anchors);
        let theirs = by_webpki(&device, &chain, &roots);
        assert_eq!(
            ours.is_ok(),
            theirs.is_ok(),
            "round {round}: {ours:?}, webpki {theirs:?}"
        );
        match ours {
            Ok(_) => accepted += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(
        accepted > 80 && refused > 80,
        "{accepted} accepted, {refused} refused"
    );
}

fn by_webpki(
    device: &Certificate,
    above: &[Certificate],
    roots: &[Certificate],
) -> Result<(), webpki::Error> {
    let trust: Vec<_> = roots
        .iter()
        .map(|r| webpki::anchor_from_trusted_cert(r.der()).unwrap())
        .collect();
    let above: Vec<CertificateDer<'_>> = above.iter().map(|c| c.der().clone()).collect();
    let end_entity = webpki::EndEntityCert::try_from(device.der())?;
    let time = UnixTime::since_unix_epoch(Duration::from_secs(NOW.unix_s().unsigned_abs()));
    end_entity
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &trust,
            &above,
            time,
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .map(|_| ())
}
