//! pb: to be written.
