//! Links of a block.

pub mod cbor;
pub mod json;
pub mod pb;
