//! Fuzzes segments of the index.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::segment(bytes));
