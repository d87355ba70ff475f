//! CAR files.

pub mod index;
pub mod v1;
pub mod v2;
pub mod write;
