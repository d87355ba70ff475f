//! index: to be written.
