//! v1: to be written.
