//! Tests of the crate through its public face.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a test fails"
)]

mod fuzz_bodies;
mod fuzz_on_stable;
