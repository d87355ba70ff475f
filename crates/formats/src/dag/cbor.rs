//! dag-cbor: to be written.

use bytes::Bytes;

use super::{DagError, Links, PathStep};

/// The links of a dag-cbor block.
///
/// # Errors
/// [`DagError`] if the block is no dag-cbor.
pub fn links(_block: &Bytes) -> Result<Links, DagError> {
    Err(DagError::malformed(0, "not readable yet"))
}

/// Follows a path through the maps and lists of a block.
///
/// # Errors
/// [`DagError`] if the block is no dag-cbor.
pub fn resolve(_block: &[u8], _segments: &[&str]) -> Result<PathStep, DagError> {
    Err(DagError::malformed(0, "not readable yet"))
}
