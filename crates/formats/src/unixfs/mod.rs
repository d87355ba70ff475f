//! UnixFS: files and directories as blocks, and back.

pub mod build;
pub mod content;
pub mod dir;
pub mod hamt;
pub mod leaf;
pub mod list;
pub mod node;
pub mod profile;
