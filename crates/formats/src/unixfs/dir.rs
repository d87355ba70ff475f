//! dir: to be written.
