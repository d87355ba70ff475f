//! The store: from a CID to verified bytes.

pub mod catalog;
pub mod index;
pub mod location;
pub mod pack;
