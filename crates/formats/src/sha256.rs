//! SHA2-256, the hash of nearly every block.
//!
//! In       bytes, in pieces.
//! Out      32 bytes.
//! Limits   the state is about 100 bytes.
//! Not here other hashes, and what a digest must equal (`verify`).
//!
//! By `ring`: on processors without instructions for SHA it is twice as fast as `sha2`, with them
//! as fast.

use ring::digest::{Context, SHA256};

/// A digest.
pub type Digest = [u8; 32];

/// A hash that goes on.
#[derive(Clone)]
pub struct Sha256 {
    context: Context,
}

impl Sha256 {
    /// Nothing hashed yet.
    #[must_use]
    pub fn new() -> Self {
        let context = Context::new(&SHA256);
        Self { context }
    }

    /// The next bytes.
    pub fn update(&mut self, data: &[u8]) {
        self.context.update(data);
    }

    /// The digest of all bytes.
    #[must_use]
    pub fn finalize(self) -> Digest {
        let digest = self.context.finish();
        digest.as_ref().first_chunk().copied().unwrap_or_default()
    }

    /// The digest of `data`.
    #[must_use]
    pub fn digest(data: &[u8]) -> Digest {
        let mut hash = Self::new();
        hash.update(data);
        hash.finalize()
    }
}

impl Default for Sha256 {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for Sha256 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sha256").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop, proptest};
    use sha2::Digest as _;

    use super::Sha256;

    proptest! {
        /// Another implementation is the oracle.
        #[test]
        fn digests_are_those_of_another_implementation(
            data in prop::collection::vec(any::<u8>(), 0..5000),
            cut in 0usize..5000,
        ) {
            let expected: [u8; 32] = sha2::Sha256::digest(&data).into();
            assert_eq!(Sha256::digest(&data), expected);
            let (first, rest) = data.split_at(cut.min(data.len()));
            let mut hash = Sha256::new();
            hash.update(first);
            hash.update(rest);
            assert_eq!(hash.finalize(), expected);
        }
    }
}
