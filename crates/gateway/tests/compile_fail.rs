//! The gates are types: what would pass by one of them does not compile.
#![allow(missing_docs)]

#[test]
fn the_gates_stay_shut() {
    let t = trybuild::TestCases::new();
    t.compile_fail("tests/fail/*.rs");
}
