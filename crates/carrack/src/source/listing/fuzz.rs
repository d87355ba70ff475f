//! What fuzzers do with pages of listings.
