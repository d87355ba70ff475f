//! CIDs: the one parser for text and bytes.
//!
//! In       text or bytes from anybody.
//! Out      a [`Cid`], or why it is none. Nothing panics, whatever the input.
//! Limits   [`CID_LEN_MAX`] bytes, [`TEXT_LEN_MAX`] characters (checked before the base is
//!          decoded: base58 and base36 cost the square of the length), digests of
//!          [`DIGEST_LEN_MAX`] bytes.
//! Not here whether the hash function is one we accept, and whether a block matches (`verify`).
//!
//! Spec: <https://github.com/multiformats/cid>

use ::cid::Version;
use multibase::Base;

use crate::varint::{self, VarintError};
use crate::{Cid, DIGEST_LEN_MAX, Multihash};

/// Codec of a block that is plain bytes.
pub const RAW: u64 = 0x55;
/// Codec of MerkleDAG protobuf, which UnixFS is made of.
pub const DAG_PB: u64 = 0x70;
/// Codec of CBOR with links.
pub const DAG_CBOR: u64 = 0x71;
/// Codec of a signed or encrypted object in CBOR.
pub const DAG_JOSE: u64 = 0x85;
/// Codec of a git object.
pub const GIT_RAW: u64 = 0x78;
/// Codec of JSON with links.
pub const DAG_JSON: u64 = 0x0129;
/// Codec of JSON without links.
pub const JSON: u64 = 0x0200;
/// Codec of CBOR without links.
pub const CBOR: u64 = 0x51;
/// Hash code of SHA2-256.
pub const SHA2_256: u64 = 0x12;
/// Hash code of SHA-1, by which git names objects.
pub const SHA1: u64 = 0x11;
/// Hash code of the function that returns its input: the block is in the CID.
pub const IDENTITY: u64 = 0x00;

/// Most bytes a CID may have.
pub const CID_LEN_MAX: usize = 256;
/// Most characters a CID may have as text. Base 10, the widest base in use, needs 2.41 a byte.
pub const TEXT_LEN_MAX: usize = 640;
/// Most bytes an identity CID may carry (IPIP-512).
pub const IDENTITY_LEN_MAX: usize = 128;

/// Length of a CIDv0: `12 20` and the digest.
const V0_LEN: usize = 34;

/// Why something is not a CID that is accepted here.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CidError {
    /// The input ends inside the CID.
    #[error("cid is cut short")]
    Truncated,
    /// More than [`CID_LEN_MAX`] bytes or [`TEXT_LEN_MAX`] characters.
    #[error("cid is longer than the limit")]
    TooLong,
    /// Bytes follow the CID.
    #[error("{len} bytes follow the cid")]
    Trailing {
        /// How many.
        len: usize,
    },
    /// The version is neither 0 nor 1, or a version 0 that is written out.
    #[error("cid version {version} is unknown")]
    Version {
        /// What stands in its place.
        version: u64,
    },
    /// A number in the CID is no varint.
    #[error("cid holds a malformed number")]
    Varint(#[from] VarintError),
    /// The digest is longer than any that is accepted.
    #[error("digest of {len} bytes, limit is {DIGEST_LEN_MAX}")]
    DigestTooLong {
        /// Its claimed length in bytes.
        len: u64,
    },
    /// The text is in no known base, or has characters outside of its base.
    #[error("cid text does not decode")]
    Text(#[source] multibase::Error),
    /// Text that decodes to a CIDv0 behind a base prefix; version 0 has one text form only.
    #[error("version 0 cid behind a base prefix")]
    PrefixedV0,
}

/// Parses the text of a CID: `Qm…`, or any multibase for version 1. No `/ipfs/` before it.
///
/// # Errors
/// [`CidError`]; text over [`TEXT_LEN_MAX`] fails before it is decoded.
pub fn parse_text(text: &str) -> Result<Cid, CidError> {
    if text.len() > TEXT_LEN_MAX {
        return Err(CidError::TooLong);
    }
    if text.len() < 2 {
        return Err(CidError::Truncated);
    }
    if text.len() == 46 && text.starts_with("Qm") {
        return parse_bytes(&Base::Base58Btc.decode(text).map_err(CidError::Text)?);
    }
    let (_, bytes) = multibase::decode(text).map_err(CidError::Text)?;
    let cid = parse_bytes(&bytes)?;
    if cid.version() == Version::V0 {
        return Err(CidError::PrefixedV0);
    }
    Ok(cid)
}

/// Parses bytes that are one CID and nothing else.
///
/// # Errors
/// [`CidError`]; bytes after the CID are an error, too.
pub fn parse_bytes(bytes: &[u8]) -> Result<Cid, CidError> {
    if bytes.len() > CID_LEN_MAX {
        return Err(CidError::TooLong);
    }
    match read_prefix(bytes)? {
        None => Err(CidError::Truncated),
        Some((cid, len)) if len == bytes.len() => Ok(cid),
        Some((_, len)) => Err(CidError::Trailing {
            len: bytes.len().saturating_sub(len),
        }),
    }
}

/// Parses the CID at the front of `bytes`: the CID and how many bytes it takes.
///
/// `None`: the slice ends inside the CID. [`CID_LEN_MAX`] bytes always decide.
///
/// # Errors
/// [`CidError`] as soon as no continuation could make the bytes a CID.
pub fn read_prefix(bytes: &[u8]) -> Result<Option<(Cid, usize)>, CidError> {
    if let Some(rest) = bytes.strip_prefix(&[0x12, 0x20]) {
        let Some(digest) = rest.first_chunk::<32>() else {
            return Ok(None);
        };
        return Ok(Some((from_sha256(Version::V0, DAG_PB, digest), V0_LEN)));
    }
    if bytes == [0x12] {
        return Ok(None);
    }
    let mut at = 0;
    let Some(version) = number(bytes, &mut at)? else {
        return Ok(None);
    };
    if version != 1 {
        return Err(CidError::Version { version });
    }
    let Some(codec) = number(bytes, &mut at)? else {
        return Ok(None);
    };
    let Some(hash_code) = number(bytes, &mut at)? else {
        return Ok(None);
    };
    let Some(digest_len) = number(bytes, &mut at)? else {
        return Ok(None);
    };
    if digest_len > DIGEST_LEN_MAX as u64 {
        return Err(CidError::DigestTooLong { len: digest_len });
    }
    let end = at + digest_len as usize; // Both are small: at most 28 and DIGEST_LEN_MAX.
    let Some(digest) = bytes.get(at..end) else {
        return Ok(None);
    };
    let multihash = Multihash::wrap(hash_code, digest)
        .map_err(|_| CidError::DigestTooLong { len: digest_len })?;
    Ok(Some((Cid::new_v1(codec, multihash), end)))
}

/// The CID of a block whose SHA2-256 digest is known. `codec` counts for version 1 only: a
/// version 0 CID is always dag-pb.
pub fn from_sha256(version: Version, codec: u64, digest: &[u8; 32]) -> Cid {
    #[expect(clippy::expect_used, reason = "32 bytes are fewer than DIGEST_LEN_MAX")]
    let multihash = Multihash::wrap(SHA2_256, digest).expect("the digest fits");
    match version {
        #[expect(
            clippy::expect_used,
            reason = "what version 0 asks for is what was just made"
        )]
        Version::V0 => Cid::new_v0(multihash).expect("sha2-256 of 32 bytes"),
        Version::V1 => Cid::new_v1(codec, multihash),
    }
}

/// The block that an identity CID carries; `None` for any other CID.
pub fn identity_data(cid: &Cid) -> Option<&[u8]> {
    (cid.hash().code() == IDENTITY).then(|| cid.hash().digest())
}

/// `bafkqaaa`: the identity CID of no bytes, which clients probe gateways with.
pub fn empty_identity() -> Cid {
    Cid::new_v1(RAW, Multihash::default()) // Code 0 and no digest.
}

fn number(bytes: &[u8], at: &mut usize) -> Result<Option<u64>, VarintError> {
    let Some((value, len)) = varint::read(bytes.get(*at..).unwrap_or_default())? else {
        return Ok(None);
    };
    *at += len;
    Ok(Some(value))
}

#[cfg(test)]
mod tests;
