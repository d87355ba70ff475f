//! What the fuzz targets do with bytes, one function a target.
//!
//! In       any bytes.
//! Out      a panic, if something that must hold does not.
//! Not here which bytes: a fuzzer (`fuzz/`) or the property tests below bring them. The formats
//!          have theirs in their own crate.
//!
//! The bodies lie beside what they try, most of which is private and stays so.

pub use crate::cli::control::fuzz::control;
pub use crate::gateway::fuzz::request;
pub use crate::http::websocket::fuzz::websocket;
pub use crate::ingest::import::remote::claims::claims;
pub use crate::ingest::journal::fuzz::journal;
pub use crate::source::fuzz::listing;
pub use crate::store::catalog::fuzz::record;
pub use crate::store::index::fuzz::segment;

#[cfg(test)]
mod tests;
