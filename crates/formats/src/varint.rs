//! varint: to be written.
