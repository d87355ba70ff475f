//! Blocks of containers in sources elsewhere: read by range, verified, and marked when they are
//! not what they were.
//!
//! In       a CID and the places that may have it; bytes as `store::extent` gives them.
//! Out      verified blocks; marks of objects that are gone, changed or damaged.
//! Not here how reads are shared and bounded (`store::extent`), what a source is (`source`), when
//!          what failed is asked for again (`look_again`).
//!
//! Three nets: the read is conditional on the version that was indexed, its length must be the
//! range's, and the bytes must hash to the CID. Bytes that do not are read once more, past all
//! memory: a transport may fail. If they are wrong again and the object is still that version, only
//! this block is out of service; if it is another version, all blocks of it are.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::unixfs::leaf;
use carrack_formats::verify::{HashError, Verifier};

use super::{Blocks, Found, block_len, not_found, two_lengths};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{SourceError, SourceErrorKind};
use crate::store::blocking;
use crate::store::catalog::{StaleMark, StaleReason, Validator};
use crate::store::extent::{Extents, Lane, Pieces, Place};
use crate::store::hasher::hashes;
use crate::store::location::{ContainerId, Location};
use crate::store::stale::Standing;

/// Blocks up to this length are hashed on the thread that received them, in bytes.
const HASHED_INLINE_MAX: usize = 64 << 10;

/// A container in a source elsewhere.
#[derive(Debug)]
pub struct Elsewhere {
    pub(super) place: Arc<Place>,
    /// Where it is, for people.
    pub(super) shown: String,
    /// [`crate::store::Store::epoch`] before its row was read.
    epoch: u64,
}

/// Where a container lies.
pub(super) enum Whereabouts {
    /// It was dropped.
    Gone,
    /// It is a file of this machine.
    Here,
    Elsewhere(Arc<Elsewhere>),
}

impl Elsewhere {
    /// That its source is not known to be down.
    pub(super) fn require_answers(&self) -> Result<()> {
        if !self.place.source.is_down() {
            return Ok(());
        }
        let what = format!("{}: its source does not answer", self.shown);
        Err(Error::new(ErrorKind::Unreachable, what))
    }
}

impl Blocks {
    /// The reads of what lies elsewhere.
    #[must_use]
    pub fn extents(&self) -> &Extents {
        &self.inner.extents
    }

    /// The verified block, from wherever it lies. Nothing blocks the thread that polls this: files
    /// of this machine are read on the runtime's blocking threads. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::get_blocking`].
    pub async fn get(&self, cid: &Cid) -> Result<Bytes> {
        if let Some(block) = self.try_get(cid)? {
            return Ok(block);
        }
        let (blocks, wanted) = (self.clone(), *cid);
        match blocking(move || blocks.get_here(&wanted)).await? {
            Found::Here(block) => Ok(block),
            Found::Elsewhere(locations) => self.get_elsewhere(cid, &locations).await,
        }
    }

    /// The verified block from the first of `locations` that gives it.
    ///
    /// # Errors
    /// `Changed` if all are out of service, `Unreachable` if one may come back.
    pub async fn get_elsewhere(&self, cid: &Cid, locations: &[Location]) -> Result<Bytes> {
        if locations.iter().any(|at| self.is_served_elsewhere(*at))
            && let Some(block) = self.cached(cid)
        {
            return Ok(block);
        }
        let mut failure: Option<Error> = None;
        for location in locations {
            let error = match self.read_elsewhere(cid, *location).await {
                Ok(Some(block)) => {
                    self.keep(cid, &block);
                    return Ok(block);
                }
                Ok(None) => continue,
                Err(error) => error,
            };
            // A source that may answer later counts for more than an object that changed.
            if failure
                .as_ref()
                .is_none_or(|old| old.kind() == ErrorKind::Changed)
            {
                failure = Some(error);
            }
        }
        Err(failure.unwrap_or_else(|| not_found(cid)))
    }

    /// Fills `out` with the block from the first of `locations` that gives it. Blocks.
    pub(super) fn read_elsewhere_into(
        &self,
        cid: &Cid,
        locations: &[Location],
        out: &mut [u8],
    ) -> Result<()> {
        let handle = self.inner.extents.sources().handle()?;
        let block = handle.block_on(self.get_elsewhere(cid, locations))?;
        if block.len() != out.len() {
            return Err(two_lengths(cid));
        }
        out.copy_from_slice(&block);
        Ok(())
    }

    /// Verifies one copy that lies elsewhere, whatever was found before. What is out of service is
    /// read past all memory.
    pub(super) fn check_elsewhere(&self, cid: &Cid, location: Location) -> Result<bool> {
        let Some(container) = self.elsewhere(location.container)? else {
            return Ok(false);
        };
        let marks = self.inner.store.stale();
        let standing = marks.standing(location.container, location);
        let handle = self.inner.extents.sources().handle()?;
        handle.block_on(async {
            if standing == Standing::Away {
                self.is_back_now(&container).await; // If not, the read says why.
            }
            if standing == Standing::Served {
                self.read_in_service(cid, &container, location).await
            } else {
                self.read_anew(cid, &container, location).await
            }
        })?;
        Ok(true)
    }

    /// Whether a block's copy lies elsewhere, in a container that is known and not out of service:
    /// what the cache has of it may be served.
    pub(super) fn is_served_elsewhere(&self, location: Location) -> bool {
        if !self.inner.store.has_sources() {
            return false;
        }
        let known = self.inner.elsewhere.get(&location.container);
        known.is_some_and(|container| {
            container.epoch == self.inner.store.epoch() && !self.is_noted(location)
        })
    }

    /// The place of the first of `locations` that is in service, if none of them is a file of this
    /// machine: those are read when their turn comes. For plans.
    #[must_use]
    pub fn place(&self, locations: &[Location]) -> Option<(Location, Arc<Place>)> {
        if !self.inner.store.has_sources() {
            return None;
        }
        let mut first = None;
        for location in locations {
            if self.inner.open.get(&location.container).is_some() {
                return None;
            }
            match self.whereabouts(location.container) {
                Ok(Whereabouts::Here) => return None,
                // An error is told by the read, and only if no other copy is good.
                Ok(Whereabouts::Gone) | Err(_) => {}
                Ok(Whereabouts::Elsewhere(container)) => {
                    if first.is_none() && !self.is_noted(*location) {
                        first = Some((*location, Arc::clone(&container.place)));
                    }
                }
            }
        }
        first
    }

    /// The source elsewhere that has a block, if no file of this machine has it, whatever is known
    /// against its copies.
    #[must_use]
    pub fn source_of(&self, cid: &Cid) -> Option<u32> {
        if !self.inner.store.has_sources() {
            return None;
        }
        let mut first = None;
        for location in self.locate(cid.hash()).ok()? {
            match self.whereabouts(location.container) {
                Ok(Whereabouts::Here) => return None,
                Ok(Whereabouts::Gone) | Err(_) => {}
                Ok(Whereabouts::Elsewhere(container)) => {
                    first.get_or_insert(container.place.source.id);
                }
            }
        }
        first
    }

    /// Copies a block that a plan has read to `out`. It is not verified.
    ///
    /// # Errors
    /// `Corrupt`: it has another length.
    pub fn copy_into(
        &self,
        cid: &Cid,
        location: Location,
        pieces: &Pieces,
        out: &mut [u8],
    ) -> Result<()> {
        each_part(cid, location, pieces, out, |_| {})
    }

    /// Verifies bytes that a plan has read and copies the block to `out`.
    ///
    /// # Errors
    /// `Changed`: they are not the block. Nothing is marked: [`Self::get`] finds out why.
    pub fn verify_into(
        &self,
        cid: &Cid,
        location: Location,
        pieces: &Pieces,
        out: &mut [u8],
    ) -> Result<()> {
        let mut verifier = (!pieces.is_proved(cid))
            .then(|| Verifier::new(cid.hash()))
            .transpose()
            .map_err(|error| not_served(cid, error))?;
        each_part(cid, location, pieces, out, |part| {
            if let Some(verifier) = &mut verifier {
                verifier.update(part);
            }
        })?;
        let Some(verifier) = verifier else {
            return Ok(());
        };
        verifier.finish().map_err(|_| mismatch(cid))?;
        pieces.prove(cid);
        Ok(())
    }

    /// The block of an object against which nothing is known.
    pub(super) async fn read_in_service(
        &self,
        cid: &Cid,
        container: &Elsewhere,
        location: Location,
    ) -> Result<Bytes> {
        let (extents, place) = (&self.inner.extents, &container.place);
        let pieces = extents.read(place, range(location), Lane::Block).await;
        let pieces = pieces.map_err(|error| self.failed(container, location, error))?;
        if let Some(block) = self.verified(cid, location, pieces).await? {
            self.found_good(container, location);
            return Ok(block);
        }
        let block = self.read_anew(cid, container, location).await?;
        tracing::warn!(place = container.shown, "bytes came wrong once");
        Ok(block)
    }

    /// The same from the source itself, whatever is in memory.
    async fn read_anew(
        &self,
        cid: &Cid,
        container: &Elsewhere,
        location: Location,
    ) -> Result<Bytes> {
        let (extents, place) = (&self.inner.extents, &container.place);
        let pieces = extents.read_again(place, range(location)).await;
        let pieces = pieces.map_err(|error| self.failed(container, location, error))?;
        if let Some(block) = self.verified(cid, location, pieces).await? {
            self.found_good(container, location);
            return Ok(block);
        }
        // A damaged index is not to be taken for a changed object.
        self.inner.store.index().vouch(cid.hash())?;
        Err(self.wrong_bytes(container, location).await)
    }

    /// One request for a block that was wrong, to see whether it is still.
    pub(super) async fn read_damaged(
        &self,
        cid: &Cid,
        container: &Elsewhere,
        location: Location,
    ) -> Result<Bytes> {
        let (extents, place) = (&self.inner.extents, &container.place);
        let pieces = extents.read_again(place, range(location)).await;
        let pieces = pieces.map_err(|error| self.failed(container, location, error))?;
        let Some(block) = self.verified(cid, location, pieces).await? else {
            return Err(changed_elsewhere(container));
        };
        self.found_good(container, location);
        self.inner.store.stale().give_back(place.source.id);
        Ok(block)
    }

    /// `None`: the bytes are not the block.
    async fn verified(
        &self,
        cid: &Cid,
        location: Location,
        pieces: Pieces,
    ) -> Result<Option<Bytes>> {
        if location.len as usize > HASHED_INLINE_MAX && hashes(cid) && !pieces.is_proved(cid) {
            return self.verified_together(cid, location, pieces).await;
        }
        let (blocks, cid) = (self.clone(), *cid);
        let verify = move || {
            let mut block = blocks.buffer(block_len(location));
            match blocks.verify_into(&cid, location, &pieces, block.as_mut_slice()) {
                Ok(()) => Ok(Some(block.freeze())),
                Err(error) if error.kind() == ErrorKind::Changed => Ok(None),
                Err(error) => Err(error),
            }
        };
        if location.len as usize <= HASHED_INLINE_MAX {
            return verify();
        }
        blocking(verify).await
    }

    /// The same, hashed together with what others read.
    async fn verified_together(
        &self,
        cid: &Cid,
        location: Location,
        pieces: Pieces,
    ) -> Result<Option<Bytes>> {
        let (blocks, wanted) = (self.clone(), *cid);
        let copied = blocking(move || {
            let mut block = blocks.buffer(block_len(location));
            blocks.copy_into(&wanted, location, &pieces, block.as_mut_slice())?;
            Ok((block, pieces))
        });
        let ((block, pieces), digests) = self.hasher().digests(copied.await?).await?;
        let is_good = digests
            .first()
            .is_some_and(|digest| cid.hash().digest() == digest);
        Ok(is_good.then(|| {
            pieces.prove(cid);
            block.freeze()
        }))
    }

    /// What a failed read means: the object may be out of service from now on.
    fn failed(&self, container: &Elsewhere, location: Location, error: SourceError) -> Error {
        let reason = match error.kind {
            SourceErrorKind::Missing => StaleReason::Missing,
            SourceErrorKind::Changed => StaleReason::Changed,
            _ => {
                return Error::with(
                    ErrorKind::Unreachable,
                    format!("{} cannot be read", container.shown),
                    error,
                );
            }
        };
        let mark = StaleMark::new(reason, None, Some(location));
        let id = container.place.container;
        self.inner.store.stale().mark(id, mark);
        let what = format!("{} is not what was added", container.shown);
        Error::with(ErrorKind::Changed, what, error)
    }

    /// Bytes came twice that are not the block: is it another version, or damaged?
    async fn wrong_bytes(&self, container: &Elsewhere, location: Location) -> Error {
        let (place, extents) = (&container.place, &self.inner.extents);
        let (id, expected) = (place.container, &place.stamp);
        let now = match extents.stat(place).await {
            Ok(now) => now,
            Err(error) => return self.failed(container, location, error),
        };
        let marks = self.inner.store.stale();
        let is_same = now.agrees_with(expected);
        let observed = Validator::from(now);
        if is_same {
            marks.mark_damaged(id, observed, location);
        } else {
            let mark = StaleMark::new(StaleReason::Changed, Some(observed), Some(location));
            marks.mark(id, mark);
        }
        changed_elsewhere(container)
    }

    /// A block is as it was. That says nothing of an object that was found away meanwhile: what was
    /// read may have been in memory.
    fn found_good(&self, container: &Elsewhere, location: Location) {
        let (marks, place) = (self.inner.store.stale(), &container.place);
        if marks.standing(place.container, location) != Standing::Away {
            let version = Validator::Object(Arc::clone(&place.stamp));
            marks.found_good(place.container, &version, location);
        }
    }

    /// Whether something is known against a location.
    fn is_noted(&self, location: Location) -> bool {
        let marks = self.inner.store.stale();
        marks.standing(location.container, location) != Standing::Served
    }

    /// Whether something is known against every copy of a block.
    pub(in crate::store) fn are_all_noted(&self, locations: &[Location]) -> bool {
        self.inner.store.stale().any() && locations.iter().all(|at| self.is_noted(*at))
    }

    /// A container in a source elsewhere; `None` if it was dropped or is a file here.
    pub(super) fn elsewhere(&self, id: ContainerId) -> Result<Option<Arc<Elsewhere>>> {
        Ok(match self.whereabouts(id)? {
            Whereabouts::Elsewhere(container) => Some(container),
            Whereabouts::Gone | Whereabouts::Here => None,
        })
    }

    /// Where a container lies. An error is about this copy alone: others may be good.
    ///
    /// # Errors
    /// `Unreachable` if its source cannot be opened; those of the catalog.
    pub(super) fn whereabouts(&self, id: ContainerId) -> Result<Whereabouts> {
        let epoch = self.inner.store.epoch();
        if let Some(known) = self.inner.elsewhere.get(&id)
            && known.epoch == epoch
        {
            return Ok(Whereabouts::Elsewhere(known));
        }
        let Some(record) = self.inner.store.catalog().container(id)? else {
            return Ok(Whereabouts::Gone);
        };
        let Some(stamp) = record.validator.object() else {
            return Ok(Whereabouts::Here);
        };
        let shown = self.path_of(&record).display().to_string();
        let source = self.inner.extents.sources().get(record.source);
        let source = source.map_err(|error| not_opened(&shown, error))?;
        let known = Arc::new(Elsewhere {
            shown,
            place: Arc::new(Place {
                container: id,
                source,
                path: record.path.clone().into_boxed_slice(),
                stamp: Arc::clone(stamp),
            }),
            epoch,
        });
        self.inner.elsewhere.insert(id, Arc::clone(&known));
        Ok(Whereabouts::Elsewhere(known))
    }

    /// Forgets what is known of containers, here and elsewhere: their rows or sources have changed.
    pub fn forget_elsewhere(&self) {
        self.inner.open.clear();
        self.inner.elsewhere.clear();
    }
}

/// Copies a block to `out` and calls `on` with each part of it.
fn each_part(
    cid: &Cid,
    location: Location,
    pieces: &Pieces,
    out: &mut [u8],
    mut on: impl FnMut(&[u8]),
) -> Result<()> {
    if out.len() != block_len(location) || pieces.len() != location.len as usize {
        return Err(two_lengths(cid));
    }
    let (prefix, suffix) = framing(location);
    let parts = [prefix.as_slice()]
        .into_iter()
        .chain(pieces.parts().iter().map(|part| &part[..]))
        .chain([suffix.as_slice()]);
    let mut rest = out;
    for part in parts {
        let (to, after) = rest.split_at_mut(part.len().min(rest.len()));
        to.copy_from_slice(part.get(..to.len()).unwrap_or_default());
        on(to);
        rest = after;
    }
    Ok(())
}

/// The bytes around a leaf that carrack makes again on reading.
fn framing(location: Location) -> (Vec<u8>, Vec<u8>) {
    if location.wrapped {
        leaf::frame(location.len as usize)
    } else {
        (Vec::new(), Vec::new())
    }
}

fn mismatch(cid: &Cid) -> Error {
    Error::new(ErrorKind::Changed, format!("the bytes are not {cid}"))
}

fn not_served(cid: &Cid, error: HashError) -> Error {
    Error::with(ErrorKind::Invalid, format!("{cid} is not served"), error)
}

/// An object, or some of its bytes, is not what was added.
pub(super) fn changed_elsewhere(container: &Elsewhere) -> Error {
    let what = format!("{} changed since it was added", container.shown);
    Error::new(ErrorKind::Changed, what)
}

/// A source whose row or credentials are gone is one that does not answer: what is wrong is not
/// the request, and other copies may be good.
fn not_opened(shown: &str, error: Error) -> Error {
    if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Internal) {
        return error;
    }
    let what = format!("{shown} cannot be read");
    Error::with(ErrorKind::Unreachable, what, error)
}

/// The bytes of a block in its container.
pub(super) fn range(location: Location) -> Range<u64> {
    location.offset..location.offset + u64::from(location.len)
}

#[cfg(test)]
pub(crate) mod tests;
