//! SHA2-256, the hash of nearly every block.
//!
//! In       bytes, in pieces.
//! Out      32 bytes.
//! Limits   the state is about 100 bytes.
//! Not here other hashes, and what a digest must equal (`verify`).
//!
//! By `ring`: on processors without instructions for SHA it is twice as fast as `sha2`, with them
//! as fast. Several messages at once are hashed in lanes where that is faster.

#[cfg(target_arch = "x86_64")]
#[expect(
    clippy::indexing_slicing,
    clippy::big_endian_bytes,
    reason = "lanes and variables are counted by constants; SHA-2 is big-endian"
)]
mod lanes;

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

/// How many messages of like length [`digest_all`] hashes in little more time than one.
#[must_use]
pub fn messages_at_once() -> usize {
    #[cfg(target_arch = "x86_64")]
    if lanes::are_here() && !is_x86_feature_detected!("sha") {
        return lanes::LANES;
    }
    1
}

/// The digests of `messages`, in their order.
#[must_use]
pub fn digest_all(messages: &[&[u8]]) -> Vec<Digest> {
    #[cfg(target_arch = "x86_64")]
    if gain_in_lanes(messages)
        && let Some(digests) = lanes::digest_all(messages)
    {
        return digests;
    }
    messages.iter().map(|data| Sha256::digest(data)).collect()
}

/// Whether the longest message is at most a third of all, and nothing is faster: all lanes take as
/// long as the longest message does in its lane, which is half as fast as alone.
#[cfg(target_arch = "x86_64")]
fn gain_in_lanes(messages: &[&[u8]]) -> bool {
    let len: usize = messages.iter().map(|data| data.len()).sum();
    let len_max = messages.iter().map(|data| data.len()).max();
    len_max.is_some_and(|max| max <= len / 3) && messages_at_once() > 1
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

    use super::{Sha256, digest_all};

    fn expected(messages: &[Vec<u8>]) -> Vec<[u8; 32]> {
        let digests = messages
            .iter()
            .map(|data| sha2::Sha256::digest(data).into());
        digests.collect()
    }

    fn slices(messages: &[Vec<u8>]) -> Vec<&[u8]> {
        messages.iter().map(Vec::as_slice).collect()
    }

    /// Lengths at which the padding takes one block more, and about all numbers of lanes.
    #[test]
    fn messages_of_every_length_are_hashed_at_once() {
        for n in [0, 1, 2, 15, 16, 17, 40, 200] {
            let message = |index: usize| vec![index as u8; index];
            let messages: Vec<_> = (0..n).map(message).collect();
            assert_eq!(digest_all(&slices(&messages)), expected(&messages), "{n}");
        }
    }

    #[test]
    fn lanes_are_hashed_on_processors_that_have_them() {
        let messages: Vec<_> = (0..33).map(|index| vec![index; 70_000]).collect();
        let messages = slices(&messages);
        let has_others = is_x86_feature_detected!("sha") || !super::lanes::are_here();
        assert!(super::gain_in_lanes(&messages) || has_others);
        let digests = super::lanes::digest_all(&messages);
        assert_eq!(digests.is_some(), super::lanes::are_here());
    }

    proptest! {
        #[test]
        fn digests_of_many_are_those_of_each(
            messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..700), 0..50),
        ) {
            assert_eq!(digest_all(&slices(&messages)), expected(&messages));
        }

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
