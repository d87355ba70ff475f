//! Fuzzes indexes that lie beside CARs.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::claims(bytes));
