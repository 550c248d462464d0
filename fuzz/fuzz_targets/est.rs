//! What enrolment servers and devices read from each other.
#![no_main]
use countersign_factory::est::{Extra, Target, client, read_request};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = read_request(data);
    let _ = client::certificates(data);
    if let Ok(text) = std::str::from_utf8(data) {
        let _ = (Target::parse(text), Extra::parse(text), client::retry_after_s(text));
    }
});
