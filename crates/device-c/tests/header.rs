//! The header is the one that the source makes.
#![allow(missing_docs, clippy::unwrap_used)]

use std::path::Path;

#[test]
fn the_committed_header_is_the_one_that_the_source_makes() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let committed = here.join("include/countersign_device.h");
    let config = cbindgen::Config::from_file(here.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_config(config)
        .with_src(here.join("src/boundary.rs"))
        .generate()
        .unwrap()
        .write(&mut made);
    if std::env::var_os("WRITE_HEADER").is_some() {
        std::fs::write(&committed, &made).unwrap();
    }
    assert!(
        std::fs::read(&committed).unwrap_or_default() == made,
        "write it anew: WRITE_HEADER=1 cargo test --package countersign-device-c --test header"
    );
}
