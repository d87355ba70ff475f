//! Sources: where bytes lie before carrack knows them.
//!
//! In       a path.
//! Out      an open, read-only container and the validator of the version that was opened.
//! Not here names of containers (`store::catalog`), what bytes must hash to (`store::block`).

pub mod local;
