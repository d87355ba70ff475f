//! UnixFS.

pub mod build;
pub mod dir;
pub mod hamt;
pub mod leaf;
pub mod list;
pub mod node;
pub mod profile;
