//! list: to be written.
