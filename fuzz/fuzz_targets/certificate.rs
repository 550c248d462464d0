//! Certificates, requests and revocation lists from anybody.
#![no_main]
use countersign_factory::CertificateRequest;
use countersign_identity::{CertificateFacts, RevocationList};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = CertificateFacts::parse(data);
    let _ = CertificateRequest::parse(data);
    let _ = RevocationList::parse(data);
});
