//! write: to be written.
