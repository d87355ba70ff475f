//! One block out of an open file, hashed as it is read.
//!
//! In       an open file, a location, the CID that its bytes must hash to.
//! Out      the block's bytes, framing made again around a wrapped leaf.
//! Limits   [`SLICE_LEN`] bytes are read and hashed at once.
//! Not here which file, and what a failure means for it (`store::block`).

use std::io;

use carrack_formats::Cid;
use carrack_formats::unixfs::leaf;
use carrack_formats::verify::{HashError, Verifier};

use crate::source::local::LocalFile;
use crate::store::location::Location;

/// Bytes read and hashed at once, so that hashing finds them in the processor's cache.
const SLICE_LEN: usize = 128 << 10;

/// Why the bytes of a location are not the block.
pub(super) enum ReadError {
    /// They cannot be read.
    Io(io::Error),
    /// They do not hash to the CID, or it names no hash that is served.
    Hash(HashError),
}

/// Reads a block and hashes it on the way. `out` is as long as the block.
///
/// # Errors
/// As [`ReadError`] says; `out` holds anything then.
pub(super) fn read_verified(
    cid: &Cid,
    location: Location,
    file: &LocalFile,
    out: &mut [u8],
) -> Result<(), ReadError> {
    let mut verifier = Verifier::new(cid.hash()).map_err(ReadError::Hash)?;
    let mut payload = out;
    if location.wrapped {
        let (prefix, suffix) = leaf::frame(location.len as usize);
        verifier.update(&prefix);
        let (head, rest) = payload.split_at_mut(prefix.len().min(payload.len()));
        head.copy_from_slice(&prefix);
        let (middle, tail) = rest.split_at_mut((location.len as usize).min(rest.len()));
        tail.copy_from_slice(&suffix);
        payload = middle;
        read_slices(file, location.offset, payload, &mut verifier)?;
        verifier.update(&suffix);
    } else {
        read_slices(file, location.offset, payload, &mut verifier)?;
    }
    verifier.finish().map_err(ReadError::Hash)
}

fn read_slices(
    file: &LocalFile,
    offset: u64,
    out: &mut [u8],
    verifier: &mut Verifier,
) -> Result<(), ReadError> {
    let mut at = offset;
    for slice in out.chunks_mut(SLICE_LEN) {
        file.read_exact_at(slice, at).map_err(ReadError::Io)?;
        verifier.update(slice);
        at += slice.len() as u64;
    }
    Ok(())
}
