//! v2: to be written.
