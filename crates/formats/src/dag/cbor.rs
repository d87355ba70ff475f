//! cbor: to be written.
