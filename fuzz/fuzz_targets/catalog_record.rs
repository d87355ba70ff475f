//! Fuzzes values of the catalog.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::record(bytes));
