//! Who waits for which multihash.
