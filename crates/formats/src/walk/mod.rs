//! The walk.

pub mod resolve;
