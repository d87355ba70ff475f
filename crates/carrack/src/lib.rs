//! carrack: bytes where they already lie, served as verifiable blocks.
//!
//! In       folders and CAR files on this machine.
//! Out      blocks, CARs and byte ranges over HTTP; the `carrack` command line.
//! Not here the formats themselves (`carrack-formats`).

pub mod cli;
pub mod clock;
pub mod durable;
pub mod error;
#[cfg(any(test, feature = "fuzz"))]
#[doc(hidden)]
pub mod fuzz;
pub mod gateway;
pub mod http;
pub mod ingest;
mod key_file;
pub mod node;
pub mod source;
pub mod store;

pub use error::{Context, Error, ErrorKind, Result};
