//! One block out of an open file, hashed as it is read.
//!
//! In       an open file, a location, the CID that its bytes must hash to.
//! Out      the block's bytes, framing made again around a wrapped leaf; a mark where they are not
//!          the block's.
//! Limits   [`SLICE_LEN`] bytes are read and hashed at once.
//! Not here which file (`store::block`), and for how long it is marked (`store::stale`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::unixfs::leaf;
use carrack_formats::verify::{HashError, Verifier};

use super::{Blocks, Found, OpenContainer, block_len, damaged, two_lengths};
use crate::error::{Error, ErrorKind, Result};
use crate::source::local::LocalFile;
use crate::store::buffers::BUFFER_LEN;
use crate::store::catalog::{StaleMark, StaleReason};
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
            let here = |container: Arc<OpenContainer>| self.is_proved(&container, **location);
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
            && !self.is_out_here(container, *location)
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

    pub(super) fn read(
        &self,
        cid: &Cid,
        location: Location,
        container: &Arc<OpenContainer>,
    ) -> Result<Bytes> {
        let len = block_len(location);
        if len > BUFFER_LEN / 2 {
            // What fits a pooled buffer well is spared the clearing of fresh memory.
            let mut block = self.buffer(len);
            self.fill(cid, location, container, block.as_mut_slice())?;
            return Ok(block.freeze());
        }
        let mut block = vec![0; len];
        self.fill(cid, location, container, &mut block)?;
        Ok(Bytes::from(block))
    }

    /// Reads and verifies one block. `out` is as long as the block.
    pub(super) fn fill(
        &self,
        cid: &Cid,
        location: Location,
        container: &Arc<OpenContainer>,
        out: &mut [u8],
    ) -> Result<()> {
        if out.len() != block_len(location) {
            return Err(two_lengths(cid));
        }
        let file = &container.file;
        let outcome = read_verified(cid, location, file, out);
        let reason = match outcome {
            Ok(()) => {
                self.found_good_here(container, location);
                return Ok(());
            }
            Err(ReadError::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                StaleReason::Short
            }
            Err(ReadError::Io(error)) => {
                let what = format!("cannot read {}", container.path.display());
                return Err(Error::with(ErrorKind::Unavailable, what, error));
            }
            Err(ReadError::Hash(HashError::Mismatch)) => StaleReason::Mismatch,
            Err(ReadError::Hash(error)) => {
                return Err(Error::with(
                    ErrorKind::Invalid,
                    format!("{cid} is not served"),
                    error,
                ));
            }
        };
        if container.is_pack {
            let what = format!("{} does not hold {cid} any more", container.path.display());
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        // A damaged index is not to be taken for a changed file.
        self.inner.store.index().vouch(cid.hash())?;
        // A version that came up since the file was opened may not be the one that was read: then
        // nothing is known of either.
        let now = file.current_validator().ok();
        if let Some(observed) = now.filter(|now| *now == file.validator) {
            let marks = self.inner.store.stale();
            match reason {
                StaleReason::Mismatch => marks.mark_damaged(container.id, observed, location),
                _ => {
                    let mark = StaleMark::new(reason, Some(observed), Some(location));
                    marks.mark(container.id, mark);
                }
            }
        } else {
            self.inner.open.remove(&container.id);
        }
        container.proved.store(false, Ordering::Release);
        Err(damaged(&container.path))
    }

    /// A block of an open container was found to be what it should be.
    pub(in crate::store) fn found_good_here(&self, container: &OpenContainer, at: Location) {
        let (marks, version) = (self.inner.store.stale(), &container.file.validator);
        if marks.any() || !container.proved.load(Ordering::Acquire) {
            let is_sound = marks.found_good(container.id, version, at);
            container.proved.store(is_sound, Ordering::Release);
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
