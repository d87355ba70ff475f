//! Fuzzes the reading of git objects.
#![no_main]

#[allow(dead_code, reason = "each target calls one of the bodies")]
#[path = "../../crates/formats/tests/it/fuzz_bodies/mod.rs"]
mod fuzz_bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_bodies::git_raw(bytes));
