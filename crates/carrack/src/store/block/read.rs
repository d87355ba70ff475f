//! One block out of an open file, hashed as it is read.
//!
//! In       an open file, a location, the CID that its bytes must hash to.
//! Out      the block's bytes, framing made again around a wrapped leaf.
//! Limits   [`SLICE_LEN`] bytes are read and hashed at once.
//! Not here which file, and what a failure means for it (`store::block`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::unixfs::leaf;
use carrack_formats::verify::{HashError, Verifier};

use super::{Blocks, Found, OpenContainer, block_len};
use crate::error::Result;
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

impl Blocks {
    /// Fills `out` with the bytes of the first of `locations` that can be read, as
    /// [`read_into`](Self::read_into) does, but leaves it to the caller to hash them. `None`: they
    /// are verified already.
    ///
    /// # Errors
    /// As [`read_into`](Self::read_into).
    pub(in crate::store) fn read_unproved(
        &self,
        cid: &Cid,
        locations: &[Location],
        last: &mut Option<Arc<OpenContainer>>,
        out: &mut [u8],
    ) -> Result<Option<(Arc<OpenContainer>, Location)>> {
        let read = |location, container: &Arc<OpenContainer>, out: &mut [u8]| {
            if read_framed(location, &container.file, out, |_| {}).is_ok() {
                return Ok(Some((Arc::clone(container), location)));
            }
            self.fill(cid, location, container, out)?; // Says what is wrong, and notes it.
            Ok(None)
        };
        self.read_with(cid, locations, last, out, read)
            .map(Option::flatten)
    }

    /// The block, if it is in memory and one of `locations` is as it was when it was read.
    pub(in crate::store) fn cached_at(&self, cid: &Cid, locations: &[Location]) -> Option<Bytes> {
        let block = self.cached(cid)?;
        let is_good = |location: &&Location| {
            let open = || self.opened(location.container);
            let here = |container: Arc<OpenContainer>| {
                container.proved.load(Ordering::Acquire) && !self.is_refuted(&container)
            };
            self.is_served_elsewhere(**location) || open().is_some_and(here)
        };
        locations.iter().find(is_good).map(|_| block)
    }

    /// Keeps a block that is a part of more bytes.
    pub(in crate::store) fn keep_copy(&self, cid: &Cid, block: &[u8]) {
        self.keep(cid, &Bytes::copy_from_slice(block));
    }

    /// What `read` makes of the first copy here that is good, as [`Self::read_into`] goes through
    /// them; `None`: `out` is filled with a verified block from elsewhere.
    pub(super) fn read_with<T>(
        &self,
        cid: &Cid,
        locations: &[Location],
        last: &mut Option<Arc<OpenContainer>>,
        out: &mut [u8],
        read: impl Fn(Location, &Arc<OpenContainer>, &mut [u8]) -> Result<T>,
    ) -> Result<Option<T>> {
        if let [location] = locations
            && let Some(container) = last.as_ref().filter(|last| last.id == location.container)
            && let Ok(value) = read(*location, container, out)
        {
            return Ok(Some(value));
        }
        let found = self.first_good(cid, locations, false, |location, container| {
            *last = Some(Arc::clone(container));
            read(location, container, out)
        })?;
        match found {
            Found::Here(value) => Ok(Some(value)),
            Found::Elsewhere(locations) => {
                self.read_elsewhere_into(cid, &locations, out)?;
                Ok(None)
            }
        }
    }
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
) -> std::result::Result<(), ReadError> {
    let mut verifier = Verifier::new(cid.hash()).map_err(ReadError::Hash)?;
    read_framed(location, file, out, |part| verifier.update(part)).map_err(ReadError::Io)?;
    verifier.finish().map_err(ReadError::Hash)
}

/// Reads a block and calls `on` with each part of it.
fn read_framed(
    location: Location,
    file: &LocalFile,
    out: &mut [u8],
    mut on: impl FnMut(&[u8]),
) -> io::Result<()> {
    if out.len() != block_len(location) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    if !location.wrapped {
        return read_slices(file, location.offset, out, &mut on);
    }
    let (prefix, suffix) = leaf::frame(location.len as usize);
    on(&prefix);
    let (head, rest) = out.split_at_mut(prefix.len().min(out.len()));
    head.copy_from_slice(&prefix);
    let (payload, tail) = rest.split_at_mut((location.len as usize).min(rest.len()));
    tail.copy_from_slice(&suffix);
    read_slices(file, location.offset, payload, &mut on)?;
    on(&suffix);
    Ok(())
}

fn read_slices(
    file: &LocalFile,
    offset: u64,
    out: &mut [u8],
    mut on: impl FnMut(&[u8]),
) -> io::Result<()> {
    let mut at = offset;
    for slice in out.chunks_mut(SLICE_LEN) {
        file.read_exact_at(slice, at)?;
        on(slice);
        at += slice.len() as u64;
    }
    Ok(())
}
