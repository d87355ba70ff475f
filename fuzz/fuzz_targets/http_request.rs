//! Fuzzes requests and the headers of their answers.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::request(bytes));
