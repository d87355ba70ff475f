//! hamt: to be written.
