//! Fuzzes the journal of an add.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::journal(bytes));
