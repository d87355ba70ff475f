//! Fuzzes frames of bitswap, as a peer sends them.
#![no_main]

#[allow(dead_code, reason = "each target calls one of the bodies")]
#[path = "../../crates/bitswap/tests/it/fuzz_bodies.rs"]
mod fuzz_bodies;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz_bodies::bitswap_frame(bytes));
