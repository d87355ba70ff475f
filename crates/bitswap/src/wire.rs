//! Messages as they lie on the wire.
