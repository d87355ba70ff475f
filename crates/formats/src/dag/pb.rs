//! dag-pb: to be written.

use bytes::Bytes;

use super::{DagError, Links};

/// The links of a dag-pb block.
///
/// # Errors
/// [`DagError`] if the block is no dag-pb.
pub fn links(_block: &Bytes) -> Result<Links, DagError> {
    Err(DagError::malformed(0, "dag-pb is not readable yet"))
}
