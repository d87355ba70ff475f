//! Messages as they lie on the wire.
//!
//! In       the bytes of a stream, or blocks and presences that shall be sent.
//! Out      [`Message`]s whose blocks are slices of the frame they came in; or the parts of a
//!          frame, in one of four [`Dialect`]s.
//! Limits   [`MESSAGE_LEN_MAX`] bytes a message, checked before anything is allocated;
//!          [`BLOCK_LEN_MAX`] a block, [`CID_LEN_MAX`] a CID; [`DecodeLimits`] for what is kept of
//!          a message. No length that a peer claims is allocated.
//! Not here streams and their deadlines (`server`); whether a block is what its CID says.
//!
//! A field or a value of an enumeration that is not known is passed over, so that a peer may speak
//! a later dialect. What could not be answered anyway (identity CIDs, hash functions that are not
//! accepted, CIDs that are none) is left out and counted. Only what is no protobuf is an error.
//!
//! Spec: <https://specs.ipfs.tech/bitswap-protocol/>; byte tables: `docs/formats/bitswap.md`

use bytes::Bytes;
use carrack_formats::cid::SHA2_256;
use carrack_formats::verify::{self, HashError};
use carrack_formats::{Cid, varint};

mod decode;
mod encode;
mod proto;

pub use self::encode::{Outgoing, block_cost};

/// Most bytes of a message, without its length prefix.
pub const MESSAGE_LEN_MAX: usize = 4 << 20;
/// Most bytes of a block. Every implementation has to take as many.
pub const BLOCK_LEN_MAX: usize = 2 << 20;
/// Most bytes of a CID in a message: a digest of 128 bytes, and four numbers before it.
pub const CID_LEN_MAX: usize = 168;
/// Most bytes of the length before a message; four hold [`MESSAGE_LEN_MAX`].
pub const PREFIX_LEN_MAX: usize = 4;

/// The forms of the protocol, as a stream is negotiated. They share one schema and use more or
/// less of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dialect {
    /// Before versions: as 1.0.0.
    Unversioned,
    /// Blocks are bare bytes; the receiver takes them for SHA2-256.
    V1_0,
    /// Blocks carry the front of their CID.
    V1_1,
    /// Wants for presence, HAVE and DONT_HAVE, pending bytes.
    V1_2,
}

impl Dialect {
    /// All of them in the order in which they are offered.
    pub const OFFERED: [Self; 4] = [Self::V1_2, Self::V1_1, Self::V1_0, Self::Unversioned];

    /// The name that is negotiated.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::V1_2 => "/ipfs/bitswap/1.2.0",
            Self::V1_1 => "/ipfs/bitswap/1.1.0",
            Self::V1_0 => "/ipfs/bitswap/1.0.0",
            Self::Unversioned => "/ipfs/bitswap",
        }
    }

    /// The dialect of this name.
    #[must_use]
    pub fn of(name: &str) -> Option<Self> {
        Self::OFFERED
            .into_iter()
            .find(|dialect| dialect.name() == name)
    }

    /// Whether blocks are sent with the front of their CID.
    #[must_use]
    pub const fn has_prefixes(self) -> bool {
        matches!(self, Self::V1_1 | Self::V1_2)
    }

    /// Whether there are wants for presence, and HAVE and DONT_HAVE as answers.
    #[must_use]
    pub const fn has_presences(self) -> bool {
        matches!(self, Self::V1_2)
    }
}

/// Why bytes are no message. `offset` is counted from the start of the message. After any of these
/// the stream is of no more use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WireError {
    /// The length before a message is no number of at most four bytes.
    #[error("length of a message is malformed")]
    PrefixInvalid,
    /// A message says that it is longer than is allowed.
    #[error("message of {len} bytes, limit is {MESSAGE_LEN_MAX}")]
    MessageTooLong {
        /// Bytes that it claims to have, or has.
        len: u64,
    },
    /// The bytes end inside a field.
    #[error("message ends inside the field at byte {offset}")]
    Truncated {
        /// Where the rest of the field starts.
        offset: usize,
    },
    /// A number has more than 64 bits.
    #[error("number too long at byte {offset}")]
    NumberInvalid {
        /// Where the number starts.
        offset: usize,
    },
    /// A field without a number, or of a wire type that proto3 does not have.
    #[error("field at byte {offset} is malformed")]
    FieldInvalid {
        /// Where the field starts.
        offset: usize,
    },
    /// More fields than any message of use has.
    #[error("message has more than {limit} fields")]
    TooManyFields {
        /// How many are allowed.
        limit: usize,
    },
}

/// The length prefix of a frame: the bytes of the message, and those of the prefix itself.
///
/// `None`: more bytes are needed; [`PREFIX_LEN_MAX`] always decide.
///
/// # Errors
/// `PrefixInvalid`, `MessageTooLong`: before a byte of the message was read.
pub fn frame_len(bytes: &[u8]) -> Result<Option<(usize, usize)>, WireError> {
    let front = bytes.get(..PREFIX_LEN_MAX).unwrap_or(bytes);
    match varint::read(front).map_err(|_| WireError::PrefixInvalid)? {
        None if front.len() == PREFIX_LEN_MAX => Err(WireError::PrefixInvalid),
        None => Ok(None),
        Some((len, _)) if len > MESSAGE_LEN_MAX as u64 => Err(WireError::MessageTooLong { len }),
        Some((len, prefix_len)) => Ok(Some((len as usize, prefix_len))),
    }
}

/// What is kept of one message. What is over a limit is counted and passed over, only the limit
/// on fields is an error: nobody sends that many but to keep a processor busy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DecodeLimits {
    /// Entries of the want-list.
    pub entries_max: usize,
    /// Blocks. A server that asks nobody for blocks sets none.
    pub blocks_max: usize,
    /// Answers whether a block is there.
    pub presences_max: usize,
    /// Fields, those within entries, blocks and presences included.
    pub fields_max: usize,
}

impl DecodeLimits {
    /// Entries of a message that are kept.
    pub(crate) const ENTRIES_MAX: usize = 2 * 1024;
}

impl Default for DecodeLimits {
    fn default() -> Self {
        Self {
            entries_max: Self::ENTRIES_MAX,
            blocks_max: 4 * 1024,
            presences_max: 2 * 1024,
            fields_max: 128 * 1024, // More than fit as entries of CIDs into a message.
        }
    }
}

/// What one message says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Message {
    /// The want-list replaces what the peer wanted before.
    pub full: bool,
    /// Wants and cancels, in the order of the message.
    pub entries: Vec<Entry>,
    /// Entries that were left out: over the limit, no CID, identity, or a hash function that is
    /// not accepted.
    pub n_entries_ignored: usize,
    /// Blocks, whether or not somebody asked for them. Nothing is verified yet.
    pub blocks: Vec<Received>,
    /// Blocks that were left out: over a limit, or with a prefix that is none.
    pub n_blocks_ignored: usize,
    /// HAVE and DONT_HAVE.
    pub presences: Vec<Presence>,
    /// Presences that were left out, as entries are.
    pub n_presences_ignored: usize,
    /// Bytes that the sender has queued for us, as it says. May be anything, negative numbers too.
    pub pending_bytes: i32,
    /// Fields that are not known, or of another type than theirs.
    pub n_fields_ignored: usize,
}

impl Message {
    /// Reads a frame without its length prefix. Blocks are slices of `frame` and keep all of it in
    /// memory.
    ///
    /// Cost: linear in the frame; memory at most what `limits` allow, whatever the frame claims.
    ///
    /// # Errors
    /// [`WireError`] of the first field that is none.
    pub fn decode(frame: &Bytes, limits: &DecodeLimits) -> Result<Self, WireError> {
        decode::message(frame, limits)
    }
}

/// What is wanted of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WantKind {
    /// The block.
    #[default]
    Block,
    /// Whether it is there.
    Have,
}

/// One entry of a want-list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// Which block, and in which codec and version it is answered.
    pub cid: Cid,
    /// Larger is sooner. Means something only beside other entries of the same peer.
    pub priority: i32,
    /// Not wanted any more.
    pub cancel: bool,
    /// The block or its presence.
    pub want: WantKind,
    /// Whether DONT_HAVE is asked for; without, an absent block has no answer.
    pub send_dont_have: bool,
}

/// HAVE or DONT_HAVE.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Presence {
    /// Which block.
    pub cid: Cid,
    /// HAVE.
    pub have: bool,
}

/// The front of a CID, which a block is sent with: all but the digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// Version of the CID, 0 or 1.
    pub version: u64,
    /// Its codec.
    pub codec: u64,
    /// Code of the hash function.
    pub hash_code: u64,
    /// Bytes of the digest.
    pub digest_len: usize,
}

impl Prefix {
    /// The front of `cid`.
    #[must_use]
    pub fn of(cid: &Cid) -> Self {
        Self {
            version: cid.version().into(),
            codec: cid.codec(),
            hash_code: cid.hash().code(),
            digest_len: cid.hash().size().into(),
        }
    }
}

/// A block as it came; its CID is not known before it was hashed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Received {
    /// The front of its CID; `None` in dialects without: SHA2-256, of any codec.
    pub prefix: Option<Prefix>,
    /// The block: a slice of the frame.
    pub data: Bytes,
}

impl Received {
    /// Whether this is the block that `cid` names.
    ///
    /// # Errors
    /// `Mismatch`, if the prefix is another one; else as [`verify::verify`].
    pub fn verify(&self, cid: &Cid) -> Result<(), HashError> {
        if self.prefix.is_some_and(|prefix| prefix != Prefix::of(cid)) {
            return Err(HashError::Mismatch);
        }
        verify::verify(cid, &self.data)
    }

    /// The SHA2-256 digest of the block: what it is found by, unless the prefix names another
    /// function.
    #[must_use]
    pub fn sha256(&self) -> Option<[u8; 32]> {
        let is_sha256 = self
            .prefix
            .is_none_or(|prefix| prefix.hash_code == SHA2_256 && prefix.digest_len == 32);
        is_sha256.then(|| verify::sha256(&self.data))
    }
}

#[cfg(test)]
mod tests;
