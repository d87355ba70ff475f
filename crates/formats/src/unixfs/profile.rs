//! Import profiles: everything a file's CID depends on besides its bytes.
//!
//! In       a name, or a profile and what to change in it.
//! Out      [`Profile`] and its fingerprint.
//! Limits   a chunk is 1 to [`CHUNK_SIZE_MAX`] bytes, a node has 2 to [`LINK_WIDTH_MAX`] links.
//! Not here which files are taken (hidden ones, symbolic links): that is the scan's business.
//!
//! Spec: <https://specs.ipfs.tech/ipips/ipip-0499/>

use ::cid::Version;

use crate::verify;

/// Largest chunk, in bytes, the same as Go's: with its wrapping a leaf stays within 2 MiB.
pub const CHUNK_SIZE_MAX: u32 = 2 * 1024 * 1024 - 256;

/// Most links of one file node: at about 55 bytes each they stay within a 2 MiB block.
pub const LINK_WIDTH_MAX: u32 = 16_384;

/// When a directory is spread over shards. Only above the limit, not at it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ShardRule {
    /// When its single block would be longer than this many bytes.
    BlockBytes(u64),
    /// When the lengths of all names and binary CIDs add up to more than this.
    LinkBytes(u64),
}

/// How files and directories become blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// The name of the profile this one is or was derived from.
    pub name: &'static str,
    /// CID version of dag-pb blocks; raw leaves are always version 1.
    pub cid_version: Version,
    /// Bytes in a leaf, the last one excepted.
    pub chunk_size: u32,
    /// Whether leaves are bare bytes, or wrapped in dag-pb.
    pub raw_leaves: bool,
    /// Most links of one file node.
    pub link_width: u32,
    /// When a directory is spread over shards.
    pub shard_rule: ShardRule,
}

/// `unixfs-v1-2025`, the default.
pub const UNIXFS_V1_2025: Profile = Profile {
    name: "unixfs-v1-2025",
    cid_version: Version::V1,
    chunk_size: 1024 * 1024,
    raw_leaves: true,
    link_width: 1024,
    shard_rule: ShardRule::BlockBytes(256 * 1024),
};

/// `unixfs-v0-2015`: what most existing content was made with.
pub const UNIXFS_V0_2015: Profile = Profile {
    name: "unixfs-v0-2015",
    cid_version: Version::V0,
    chunk_size: 256 * 1024,
    raw_leaves: false,
    link_width: 174,
    shard_rule: ShardRule::LinkBytes(256 * 1024),
};

/// A profile value that cannot work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProfileError {
    /// A chunk size of zero or above the limit.
    #[error("chunk size {0} is not in 1..={CHUNK_SIZE_MAX}")]
    ChunkSize(u32),
    /// A width with which a tree would not grow, or nodes would be too long.
    #[error("link width {0} is not in 2..={LINK_WIDTH_MAX}")]
    LinkWidth(u32),
}

/// The profile of that name.
#[must_use]
pub fn by_name(name: &str) -> Option<Profile> {
    [UNIXFS_V1_2025, UNIXFS_V0_2015]
        .into_iter()
        .find(|profile| profile.name == name)
}

impl Default for Profile {
    fn default() -> Self {
        UNIXFS_V1_2025
    }
}

impl Profile {
    /// The same with another chunk size.
    ///
    /// # Errors
    /// `ChunkSize`.
    pub fn with_chunk_size(self, chunk_size: u32) -> Result<Self, ProfileError> {
        if !(1..=CHUNK_SIZE_MAX).contains(&chunk_size) {
            return Err(ProfileError::ChunkSize(chunk_size));
        }
        Ok(Self { chunk_size, ..self })
    }

    /// The same with raw leaves, or with wrapped ones.
    #[must_use]
    pub fn with_raw_leaves(self, raw_leaves: bool) -> Self {
        Self { raw_leaves, ..self }
    }

    /// The same with another link width.
    ///
    /// # Errors
    /// `LinkWidth`.
    pub fn with_link_width(self, link_width: u32) -> Result<Self, ProfileError> {
        if !(2..=LINK_WIDTH_MAX).contains(&link_width) {
            return Err(ProfileError::LinkWidth(link_width));
        }
        Ok(Self { link_width, ..self })
    }

    /// A number that differs when any CID could. It is kept on disk: the form below is fixed, and
    /// the name is left out because no CID depends on it.
    #[must_use]
    pub fn fingerprint(&self) -> u32 {
        let (rule, limit) = match self.shard_rule {
            ShardRule::BlockBytes(limit) => (0, limit),
            ShardRule::LinkBytes(limit) => (1, limit),
        };
        let mut bytes = Vec::with_capacity(20);
        bytes.push(u8::from(self.cid_version == Version::V1));
        bytes.push(u8::from(self.raw_leaves));
        bytes.push(rule);
        bytes.extend_from_slice(&self.chunk_size.to_le_bytes());
        bytes.extend_from_slice(&self.link_width.to_le_bytes());
        bytes.extend_from_slice(&limit.to_le_bytes());
        let [a, b, c, d, ..] = verify::sha256(&bytes);
        u32::from_le_bytes([a, b, c, d])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fingerprints_tell_profiles_apart_and_never_change() {
        let v1 = UNIXFS_V1_2025;
        let all = [
            v1.clone(),
            UNIXFS_V0_2015,
            v1.clone().with_chunk_size(1 << 18).unwrap(),
            v1.clone().with_raw_leaves(false),
            v1.clone().with_link_width(174).unwrap(),
        ];
        let mut prints: Vec<u32> = all.iter().map(Profile::fingerprint).collect();
        assert_eq!(prints[..2], [1_422_247_300, 2_981_666_342], "kept on disk");
        prints.sort_unstable();
        prints.dedup();
        assert_eq!(prints.len(), all.len());
    }

    #[test]
    fn values_that_cannot_work_are_refused() {
        assert!(UNIXFS_V1_2025.with_chunk_size(0).is_err());
        assert!(UNIXFS_V1_2025.with_chunk_size(CHUNK_SIZE_MAX + 1).is_err());
        assert!(UNIXFS_V1_2025.with_link_width(1).is_err());
        assert_eq!(by_name("unixfs-v0-2015"), Some(UNIXFS_V0_2015));
        assert_eq!(by_name("unixfs"), None);
    }
}
