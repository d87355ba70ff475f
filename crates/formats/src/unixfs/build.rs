//! build: to be written.
