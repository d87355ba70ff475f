//! Fuzzes pages of listings, headers and names of places.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::listing(bytes));
