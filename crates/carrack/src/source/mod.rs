//! Sources: where bytes lie before carrack knows them.
//!
//! In       a path.
//! Out      an open, read-only container and the validator of the version that was opened.
//! Not here what the bytes are called (`store::catalog`) or what they must hash to (`store::block`).

pub mod local;
