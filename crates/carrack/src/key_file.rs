//! The form of the file that holds a node's key: what makes and what leaves one out agree on it.
//!
//! In       bytes.
//! Out      whether they are such a key.
//! Not here keys themselves (`node::identity`).
//!
//! Format: `docs/formats/identity.md`, the private key as libp2p writes it.

/// The file in the data directory.
pub(crate) const FILE_NAME: &str = "identity.key";
/// Bytes of the file: [`HEAD`], the seed, the public key.
pub(crate) const FILE_LEN: usize = 68;
/// Field 1, kind 1 (ed25519); field 2, 64 bytes.
pub(crate) const HEAD: [u8; 4] = [0x08, 0x01, 0x12, 0x40];

/// Whether bytes are a key as this node writes it; `is_begun`: or its beginning.
#[must_use]
pub(crate) fn has_form(bytes: &[u8], is_begun: bool) -> bool {
    let is_whole = bytes.len() == FILE_LEN && bytes.starts_with(&HEAD);
    let may_become_one = bytes.len() < FILE_LEN
        && bytes
            .iter()
            .zip(HEAD)
            .all(|(byte, expected)| *byte == expected);
    is_whole || (is_begun && may_become_one)
}
