//! Whether bytes are the block that a CID names.
//!
//! In       a multihash and a block, whole or in pieces.
//! Out      nothing, or [`HashError`].
//! Limits   the hash functions boxo's `verifcid` allows; digests of [`DIGEST_LEN_MIN`] to
//!          [`DIGEST_LEN_MAX`] bytes, identity up to [`IDENTITY_LEN_MAX`]. A digest shorter than
//!          its function's output is compared with the front of the output.
//! Not here the length of blocks: whoever reads them limits it.
//!
//! Codes: <https://github.com/multiformats/multicodec/blob/master/table.csv>

use sha1::Digest;
use sha3::digest::{ExtendableOutput, Update, XofReader};

use crate::cid::{IDENTITY, IDENTITY_LEN_MAX, SHA1, SHA2_256};
use crate::{Cid, DIGEST_LEN_MAX, Multihash};

pub use crate::sha256::Sha256;

/// Fewest bytes of a digest that is more than a checksum.
pub const DIGEST_LEN_MIN: usize = 20;

const SHA2_512: u64 = 0x13;
const SHA3_512: u64 = 0x14;
const SHA3_384: u64 = 0x15;
const SHA3_256: u64 = 0x16;
const SHA3_224: u64 = 0x17;
const SHAKE_256: u64 = 0x19;
const KECCAK_224: u64 = 0x1a;
const KECCAK_256: u64 = 0x1b;
const KECCAK_384: u64 = 0x1c;
const KECCAK_512: u64 = 0x1d;
const BLAKE3: u64 = 0x1e;
const DBL_SHA2_256: u64 = 0x56;
/// The code of BLAKE2b with n bytes of output is this plus n; n is at most 64.
const BLAKE2B: u64 = 0xb200;
/// The code of BLAKE2s with n bytes of output is this plus n; n is at most 32.
const BLAKE2S: u64 = 0xb240;
const BLAKE2B_MIN: u64 = BLAKE2B + DIGEST_LEN_MIN as u64;
const BLAKE2B_MAX: u64 = BLAKE2B + 64;
const BLAKE2S_MIN: u64 = BLAKE2S + DIGEST_LEN_MIN as u64;
const BLAKE2S_MAX: u64 = BLAKE2S + 32;

/// Why a block is not accepted under a multihash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HashError {
    /// The hash function is unknown or too weak.
    #[error("hash function 0x{code:x} is not accepted")]
    NotAllowed {
        /// Its multicodec.
        code: u64,
    },
    /// The digest is shorter than is safe, or longer than the function's output.
    #[error("digest of {len} bytes is not accepted for hash function 0x{code:x}")]
    BadLength {
        /// Multicodec of the function.
        code: u64,
        /// Length of the digest in bytes.
        len: usize,
    },
    /// The bytes are another block.
    #[error("bytes do not hash to the digest")]
    Mismatch,
}

/// Whether blocks under this multihash can be verified here at all.
///
/// # Errors
/// `NotAllowed` and `BadLength`.
pub fn check_allowed(multihash: &Multihash) -> Result<(), HashError> {
    let (code, len) = (multihash.code(), usize::from(multihash.size()));
    let output_len = output_len(code).ok_or(HashError::NotAllowed { code })?;
    let len_min = if code == IDENTITY { 0 } else { DIGEST_LEN_MIN };
    if len < len_min || len > output_len {
        return Err(HashError::BadLength { code, len });
    }
    Ok(())
}

/// Whether a function is good enough to read old data and too weak for new: SHA-1 (git) is
/// broken, the double SHA2-256 of Bitcoin is used by no block store.
pub const fn is_legacy(code: u64) -> bool {
    matches!(code, SHA1 | DBL_SHA2_256)
}

/// Verifies that `data` is the block `cid` names. Copies nothing.
///
/// # Errors
/// `Mismatch`: other bytes. `NotAllowed`, `BadLength`: nobody can say.
pub fn verify(cid: &Cid, data: &[u8]) -> Result<(), HashError> {
    let multihash = cid.hash();
    if multihash.code() == SHA2_256 && multihash.size() == 32 {
        return matches(&sha256(data), multihash.digest());
    }
    let mut verifier = Verifier::new(multihash)?;
    verifier.update(data);
    verifier.finish()
}

/// The SHA2-256 digest of `data`.
pub fn sha256(data: &[u8]) -> [u8; 32] {
    Sha256::digest(data)
}

/// Verifies a block that comes in pieces; the state is a few hundred bytes, whatever the block.
#[derive(Debug, Clone)]
pub struct Verifier {
    expected: Multihash,
    state: State,
}

/// One of the functions at work. The large states are boxed: SHA2-256 is nearly every block.
#[derive(Debug, Clone)]
enum State {
    /// The bytes so far equal the digest up to here; `None` once they do not.
    Identity(Option<usize>),
    Sha2_256(Sha256),
    DblSha2_256(Sha256),
    Sha2_512(Box<sha2::Sha512>),
    Sha1(Box<sha1::Sha1>),
    Sha3_224(Box<sha3::Sha3_224>),
    Sha3_256(Box<sha3::Sha3_256>),
    Sha3_384(Box<sha3::Sha3_384>),
    Sha3_512(Box<sha3::Sha3_512>),
    Keccak224(Box<sha3::Keccak224>),
    Keccak256(Box<sha3::Keccak256>),
    Keccak384(Box<sha3::Keccak384>),
    Keccak512(Box<sha3::Keccak512>),
    Shake256(Box<sha3::Shake256>),
    Blake2b(Box<blake2b_simd::State>),
    Blake2s(Box<blake2s_simd::State>),
    Blake3(Box<blake3::Hasher>),
}

impl Verifier {
    /// Begins a block that shall have this multihash.
    ///
    /// # Errors
    /// As [`check_allowed`].
    pub fn new(expected: &Multihash) -> Result<Self, HashError> {
        check_allowed(expected)?;
        let code = expected.code();
        let state = State::new(code).ok_or(HashError::NotAllowed { code })?;
        Ok(Self {
            expected: *expected,
            state,
        })
    }

    /// Takes the next piece of the block.
    pub fn update(&mut self, data: &[u8]) {
        match &mut self.state {
            State::Identity(equal_len) => {
                *equal_len = equal_len.and_then(|at| {
                    let end = at.checked_add(data.len())?;
                    (self.expected.digest().get(at..end)? == data).then_some(end)
                });
            }
            State::Sha2_256(state) | State::DblSha2_256(state) => state.update(data),
            State::Sha2_512(state) => Digest::update(&mut **state, data),
            State::Sha1(state) => Digest::update(&mut **state, data),
            State::Sha3_224(state) => Digest::update(&mut **state, data),
            State::Sha3_256(state) => Digest::update(&mut **state, data),
            State::Sha3_384(state) => Digest::update(&mut **state, data),
            State::Sha3_512(state) => Digest::update(&mut **state, data),
            State::Keccak224(state) => Digest::update(&mut **state, data),
            State::Keccak256(state) => Digest::update(&mut **state, data),
            State::Keccak384(state) => Digest::update(&mut **state, data),
            State::Keccak512(state) => Digest::update(&mut **state, data),
            State::Shake256(state) => Update::update(&mut **state, data),
            State::Blake2b(state) => {
                state.update(data);
            }
            State::Blake2s(state) => {
                state.update(data);
            }
            State::Blake3(state) => {
                state.update(data);
            }
        }
    }

    /// Whether all that was given is the block.
    ///
    /// # Errors
    /// `Mismatch`.
    pub fn finish(self) -> Result<(), HashError> {
        let digest = self.expected.digest();
        match self.state {
            State::Identity(equal_len) => {
                if equal_len == Some(digest.len()) {
                    Ok(())
                } else {
                    Err(HashError::Mismatch)
                }
            }
            State::Sha2_256(state) => matches(&state.finalize(), digest),
            State::DblSha2_256(state) => matches(&Sha256::digest(&state.finalize()), digest),
            State::Sha2_512(state) => matches(&state.finalize(), digest),
            State::Sha1(state) => matches(&state.finalize(), digest),
            State::Sha3_224(state) => matches(&state.finalize(), digest),
            State::Sha3_256(state) => matches(&state.finalize(), digest),
            State::Sha3_384(state) => matches(&state.finalize(), digest),
            State::Sha3_512(state) => matches(&state.finalize(), digest),
            State::Keccak224(state) => matches(&state.finalize(), digest),
            State::Keccak256(state) => matches(&state.finalize(), digest),
            State::Keccak384(state) => matches(&state.finalize(), digest),
            State::Keccak512(state) => matches(&state.finalize(), digest),
            State::Shake256(state) => {
                let mut output = [0; DIGEST_LEN_MAX];
                state.finalize_xof().read(&mut output);
                matches(&output, digest)
            }
            State::Blake2b(state) => matches(state.finalize().as_bytes(), digest),
            State::Blake2s(state) => matches(state.finalize().as_bytes(), digest),
            State::Blake3(state) => {
                let mut output = [0; DIGEST_LEN_MAX];
                state.finalize_xof().fill(&mut output);
                matches(&output, digest)
            }
        }
    }
}

impl State {
    fn new(code: u64) -> Option<Self> {
        Some(match code {
            IDENTITY => Self::Identity(Some(0)),
            SHA1 => Self::Sha1(Box::default()),
            SHA2_256 => Self::Sha2_256(Sha256::default()),
            SHA2_512 => Self::Sha2_512(Box::default()),
            DBL_SHA2_256 => Self::DblSha2_256(Sha256::default()),
            SHA3_224 => Self::Sha3_224(Box::default()),
            SHA3_256 => Self::Sha3_256(Box::default()),
            SHA3_384 => Self::Sha3_384(Box::default()),
            SHA3_512 => Self::Sha3_512(Box::default()),
            KECCAK_224 => Self::Keccak224(Box::default()),
            KECCAK_256 => Self::Keccak256(Box::default()),
            KECCAK_384 => Self::Keccak384(Box::default()),
            KECCAK_512 => Self::Keccak512(Box::default()),
            SHAKE_256 => Self::Shake256(Box::default()),
            BLAKE3 => Self::Blake3(Box::default()),
            BLAKE2B_MIN..=BLAKE2B_MAX => {
                let mut params = blake2b_simd::Params::new();
                params.hash_length((code - BLAKE2B) as usize);
                Self::Blake2b(Box::new(params.to_state()))
            }
            BLAKE2S_MIN..=BLAKE2S_MAX => {
                let mut params = blake2s_simd::Params::new();
                params.hash_length((code - BLAKE2S) as usize);
                Self::Blake2s(Box::new(params.to_state()))
            }
            _ => return None,
        })
    }
}

/// The longest digest of an accepted function, in bytes; `None`: not accepted.
const fn output_len(code: u64) -> Option<usize> {
    Some(match code {
        IDENTITY => IDENTITY_LEN_MAX,
        SHA1 => 20,
        SHA3_224 | KECCAK_224 => 28,
        SHA2_256 | DBL_SHA2_256 | SHA3_256 | KECCAK_256 => 32,
        SHA3_384 | KECCAK_384 => 48,
        SHA2_512 | SHA3_512 | KECCAK_512 => 64,
        SHAKE_256 | BLAKE3 => DIGEST_LEN_MAX,
        BLAKE2B_MIN..=BLAKE2B_MAX => (code - BLAKE2B) as usize,
        BLAKE2S_MIN..=BLAKE2S_MAX => (code - BLAKE2S) as usize,
        _ => return None,
    })
}

/// `check_allowed` has made sure that the digest is not longer than the output.
fn matches(output: &[u8], digest: &[u8]) -> Result<(), HashError> {
    if output.starts_with(digest) {
        Ok(())
    } else {
        Err(HashError::Mismatch)
    }
}

#[cfg(test)]
mod tests;
