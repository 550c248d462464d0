//! The first bytes of a connection, from anybody.
#![no_main]
use countersign_gateway::handshake::hello::{self, Hello};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let whole = hello::read(data);
    // What is complete stays complete, whatever follows.
    if let Hello::Complete(_) = whole {
        let mut more = data.to_vec();
        more.push(0);
        assert_eq!(hello::read(&more), whole);
    }
});
