//! Fuzzes the frames of a client that has a WebSocket.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| carrack::fuzz::websocket(bytes));
