//! From a CID to verified bytes: the one read path.
//!
//! In       a CID.
//! Out      the block's bytes, which hash to it; nothing else ever leaves here.
//! Limits   one cache of blocks, bounded in bytes; one of open files, bounded in number. Reading
//!          without blocking is tried for blocks of at most [`INLINE_LEN_MAX`] bytes.
//! Not here the walk over a DAG (`store::car_stream`, `store::resolve`), HTTP.
//!
//! A file of another length than when it was added is refused. One of the same length whose times
//! or inode differ is not refused for that: its bytes are read and hashed. If they are still the
//! block's, they are served (the file was touched, or put back); if not, this block is out of
//! service until the file changes again, or somebody looks and finds it sound (`store::stale`).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use carrack_formats::cid::identity_data;
use carrack_formats::unixfs::leaf;
use carrack_formats::{Cid, Multihash};
use quick_cache::Weighter;
use quick_cache::sync::Cache;
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::source::config::Environment;
use crate::source::local::{self, LocalFile};
use crate::store::Store;
use crate::store::buffers::{BUFFER_LEN, Buffer, BufferPool};
use crate::store::catalog::{ContainerKind, ContainerRecord, SOURCE_LOCAL, StaleMark, StaleReason};
use crate::store::extent::{ExtentLimits, Extents};
use crate::store::hasher::Hasher;
use crate::store::location::{ContainerId, Location};
use crate::store::sources::Sources;

mod look_again;
mod read;
pub(crate) mod remote;
mod survey;

use self::look_again::Looks;
pub use self::remote::Elsewhere;
pub use self::survey::{Change, Scope, SourceStatus, State};

/// Largest block read on the caller's thread when the kernel has it in memory, in bytes: reading
/// and hashing it takes well under half a millisecond.
pub const INLINE_LEN_MAX: u32 = 128 << 10;
/// Containers kept open for further reads.
const OPEN_FILES_MAX: usize = 512;
/// Containers of sources elsewhere that are remembered for further reads: a few hundred bytes each.
const ELSEWHERE_MAX: usize = 16 << 10;
/// Idle frame buffers kept, a little over 1 MiB each.
const FREE_BUFFERS_MAX: usize = 16;
/// Digests longer than this are not cached.
const CACHED_DIGEST_LEN_MAX: usize = 32;

/// All blocks of one store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Blocks {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    store: Arc<Store>,
    open: Cache<ContainerId, Arc<OpenContainer>>,
    cache: Cache<CacheKey, Bytes, ByLength>,
    buffers: Arc<BufferPool>,
    extents: Extents,
    hasher: Hasher,
    elsewhere: Cache<ContainerId, Arc<Elsewhere>>,
    looks: Looks,
}

/// One open version of a container.
#[derive(Debug)]
pub struct OpenContainer {
    id: ContainerId,
    path: PathBuf,
    file: LocalFile,
    is_pack: bool,
    /// [`Store::epoch`] before its row was read.
    epoch: u64,
    /// The file is the version that was added, or a block of it was found good as it is now; and
    /// none was found wrong.
    proved: AtomicBool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct CacheKey {
    code: u64,
    len: u8,
    digest: [u8; CACHED_DIGEST_LEN_MAX],
}

#[derive(Debug, Clone)]
struct ByLength;

impl Weighter<CacheKey, Bytes> for ByLength {
    fn weight(&self, _key: &CacheKey, block: &Bytes) -> u64 {
        // Long blocks lie in pooled buffers; 128 for the entry itself.
        let pooled = block.len() > BUFFER_LEN / 2 && block.len() <= BUFFER_LEN;
        let len = if pooled { BUFFER_LEN } else { block.len() };
        len as u64 + 128
    }
}

/// A look for a block among the files of this machine.
#[derive(Debug)]
pub enum Found<T> {
    /// It is here.
    Here(T),
    /// No file here gives it, but these places may: ask [`Blocks::get`].
    Elsewhere(Vec<Location>),
}

/// Why a location did not give its block.
enum Miss {
    /// The container was dropped: the entry is left from before.
    Dropped,
    /// It lies in a source elsewhere.
    Elsewhere,
    /// The container is not what it was.
    Bad(Error),
}

impl Blocks {
    /// The blocks of `store`, with a cache of at most `cache_len` bytes.
    ///
    /// # Errors
    /// Those of reading the catalog.
    pub fn new(store: Arc<Store>, cache_len: u64) -> Result<Self> {
        let sources = Sources::new(Arc::clone(&store), Environment::default());
        let limits = ExtentLimits {
            bytes_max: 32 << 20,
        };
        Self::with_extents(store, cache_len, Extents::new(sources, limits))
    }

    /// The same, with the reads of what lies elsewhere.
    ///
    /// # Errors
    /// Those of reading the catalog.
    pub fn with_extents(store: Arc<Store>, cache_len: u64, extents: Extents) -> Result<Self> {
        // The estimate of entries only sizes the tables.
        let entries = usize::try_from(cache_len / (64 << 10))
            .unwrap_or(usize::MAX)
            .clamp(64, 1 << 20);
        Ok(Self {
            inner: Arc::new(Inner {
                open: Cache::new(open_files_max()),
                cache: Cache::with_weighter(entries, cache_len, ByLength),
                buffers: BufferPool::new(FREE_BUFFERS_MAX),
                extents,
                hasher: Hasher::default(),
                elsewhere: Cache::new(ELSEWHERE_MAX),
                looks: Looks::default(),
                store,
            }),
        })
    }

    /// The store behind.
    #[must_use]
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }

    /// Where what is read is hashed.
    #[must_use]
    pub fn hasher(&self) -> &Hasher {
        &self.inner.hasher
    }

    /// A buffer for frames.
    #[must_use]
    pub fn buffer(&self, len: usize) -> Buffer {
        self.inner.buffers.take(len)
    }

    /// Length of a block that this node can serve, from the index; `None`: it is not here, or its
    /// source is not what it was. Reads a block only if its file was touched since it was added.
    ///
    /// # Errors
    /// `Corrupt` and `Unavailable`, as [`Self::get_blocking`].
    pub fn stat(&self, cid: &Cid) -> Result<Option<u64>> {
        if let Some(data) = identity_data(cid) {
            return Ok(Some(data.len() as u64));
        }
        let locations = self.locate(cid.hash())?;
        let known = self.first_good(cid, &locations, true, |location, container| {
            if !self.is_proved(container, location) {
                self.read(cid, location, container)?;
            }
            Ok(block_len(location) as u64)
        });
        match known {
            Ok(Found::Here(len)) => Ok(Some(len)),
            Ok(Found::Elsewhere(locations)) => self.stat_elsewhere(cid, &locations),
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Changed) => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Whether a container that is still in the catalog has the block; its file is not looked at.
    ///
    /// # Errors
    /// Those of the index and catalog.
    pub fn holds(&self, cid: &Cid) -> Result<bool> {
        if identity_data(cid).is_some() {
            return Ok(true);
        }
        let locations = self.locate(cid.hash())?;
        let catalog = self.inner.store.catalog();
        for location in locations {
            if catalog.has_container(location.container)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The verified block if that takes no waiting for a disk: it is cached, or small and in the
    /// kernel's memory. `None`: call [`Self::get_blocking`] where blocking is allowed.
    ///
    /// # Errors
    /// `NotFound` if no container has it.
    pub fn try_get(&self, cid: &Cid) -> Result<Option<Bytes>> {
        if let Some(data) = identity_data(cid) {
            return Ok(Some(Bytes::copy_from_slice(data)));
        }
        let locations = self.locate(cid.hash())?;
        if locations.is_empty() {
            return Err(not_found(cid));
        }
        for location in locations {
            if self.is_served_elsewhere(location)
                && let Some(block) = self.cached(cid)
            {
                return Ok(Some(block));
            }
            let Some(container) = self.opened(location.container) else {
                continue;
            };
            if !self.is_proved(&container, location) {
                continue;
            }
            if let Some(block) = self.cached(cid) {
                return Ok(Some(block));
            }
            if location.wrapped || location.len > INLINE_LEN_MAX {
                continue;
            }
            let mut block = vec![0; location.len as usize]; // Bounded by INLINE_LEN_MAX.
            if container.file.read_resident(&mut block, location.offset)
                && carrack_formats::verify::verify(cid, &block).is_ok()
            {
                let block = Bytes::from(block);
                self.keep(cid, &block);
                return Ok(Some(block));
            }
        }
        Ok(None)
    }

    /// The verified block, from wherever it lies: waits for a network, too. Every copy is tried
    /// before an error. Not on a thread that drives futures.
    ///
    /// # Errors
    /// As [`Self::get_here`]; `Unreachable`: a source elsewhere does not answer.
    pub fn get_blocking(&self, cid: &Cid) -> Result<Bytes> {
        match self.get_here(cid)? {
            Found::Here(block) => Ok(block),
            Found::Elsewhere(locations) => {
                let handle = self.inner.extents.sources().handle()?;
                handle.block_on(self.get_elsewhere(cid, &locations))
            }
        }
    }

    /// The verified block if a file of this machine has it.
    ///
    /// # Errors
    /// `NotFound`: no container has it. `Changed`: the file behind it is not what it was.
    /// `Corrupt`: one of carrack's own packs is damaged. `Unavailable`: the disk failed.
    pub fn get_here(&self, cid: &Cid) -> Result<Found<Bytes>> {
        if let Some(data) = identity_data(cid) {
            return Ok(Found::Here(Bytes::copy_from_slice(data)));
        }
        let locations = self.locate(cid.hash())?;
        self.first_good(cid, &locations, false, |location, container| {
            if self.is_proved(container, location)
                && let Some(block) = self.cached(cid)
            {
                return Ok(block);
            }
            let block = self.read(cid, location, container)?;
            self.keep(cid, &block);
            Ok(block)
        })
    }

    /// Where copies of a block lie, by the index.
    ///
    /// # Errors
    /// Those of the index.
    pub fn locate(&self, hash: &Multihash) -> Result<Vec<Location>> {
        let mut locations = Vec::new();
        self.inner.store.index().locate(hash, &mut locations)?;
        Ok(locations)
    }

    /// Fills `out` with the verified block from the first of `locations` that still has it.
    /// `last` is the container read last: neighbours in a plan mostly share one.
    ///
    /// # Errors
    /// As [`Self::get_blocking`].
    pub fn read_into(
        &self,
        cid: &Cid,
        locations: &[Location],
        last: &mut Option<Arc<OpenContainer>>,
        out: &mut [u8],
    ) -> Result<()> {
        let fill = |location, container: &_, out: &mut _| self.fill(cid, location, container, out);
        self.read_with(cid, locations, last, out, fill).map(drop)
    }

    /// Verifies one copy of a block, whatever was found of its container before; `false`: there is
    /// no such copy, for its container was removed and the index has yet to forget it.
    ///
    /// # Errors
    /// As [`Self::get_blocking`].
    pub fn check(&self, cid: &Cid, location: Location) -> Result<bool> {
        let container = match self.opened(location.container) {
            Some(container) => container,
            None => match self.open_anew(location.container, true) {
                Ok(container) => container,
                Err(Miss::Dropped) => return Ok(false),
                Err(Miss::Elsewhere) => return self.check_elsewhere(cid, location),
                Err(Miss::Bad(error)) => return Err(error),
            },
        };
        let mut buffer = self.buffer(block_len(location));
        self.fill(cid, location, &container, buffer.as_mut_slice())?;
        Ok(true)
    }

    /// Path of a container and what it is, for reports.
    ///
    /// # Errors
    /// Those of the catalog.
    pub fn container_path(&self, id: ContainerId) -> Result<Option<PathBuf>> {
        let record = self.inner.store.catalog().container(id)?;
        Ok(record.map(|record| self.path_of(&record)))
    }

    /// What `read` makes of the first copy that is good. `keeps_all`: the block is asked for again
    /// soon, so its file stays open however short it is.
    fn first_good<T>(
        &self,
        cid: &Cid,
        locations: &[Location],
        keeps_all: bool,
        mut read: impl FnMut(Location, &Arc<OpenContainer>) -> Result<T>,
    ) -> Result<Found<T>> {
        if locations.is_empty() {
            return Err(not_found(cid));
        }
        let mut elsewhere = Vec::new();
        let mut failure = match self.first_of(locations, keeps_all, &mut elsewhere, &mut read) {
            Ok(value) => return Ok(Found::Here(value)),
            Err(failure) => failure,
        };
        // An add or import may have taken the place of what the index said a moment ago.
        let now = self.locate(cid.hash())?;
        if now != locations {
            elsewhere.clear();
            match self.first_of(&now, keeps_all, &mut elsewhere, &mut read) {
                Ok(value) => return Ok(Found::Here(value)),
                Err(later) => failure = later,
            }
        }
        if !elsewhere.is_empty() {
            return Ok(Found::Elsewhere(elsewhere));
        }
        Err(failure.unwrap_or_else(|| not_found(cid)))
    }

    /// `Err(None)`: none of the containers is left, or those that are lie elsewhere.
    fn first_of<T>(
        &self,
        locations: &[Location],
        keeps_all: bool,
        elsewhere: &mut Vec<Location>,
        mut read: impl FnMut(Location, &Arc<OpenContainer>) -> Result<T>,
    ) -> Result<T, Option<Error>> {
        let mut failure: Option<Error> = None;
        for location in locations {
            // A file read whole is not read again soon; big ones are kept open.
            let keep = keeps_all || location.offset > 0 || location.len > INLINE_LEN_MAX;
            let error = match self.open(*location, keep) {
                Ok(container) => match read(*location, &container) {
                    Ok(value) => return Ok(value),
                    Err(error) => error,
                },
                Err(Miss::Dropped) => continue,
                Err(Miss::Elsewhere) => {
                    elsewhere.push(*location);
                    continue;
                }
                Err(Miss::Bad(error)) => error,
            };
            // A disk that may answer later counts for more than a file that changed.
            if failure
                .as_ref()
                .is_none_or(|old| old.kind() == ErrorKind::Changed)
            {
                failure = Some(error);
            }
        }
        Err(failure)
    }

    /// Where a container is, for people; the file of one that is here.
    fn path_of(&self, record: &ContainerRecord) -> PathBuf {
        let path = Path::new(std::ffi::OsStr::from_bytes(&record.path));
        match (record.kind, record.source) {
            (ContainerKind::Pack, _) => self.inner.store.pack_path(record),
            (_, SOURCE_LOCAL) => path.to_owned(),
            (_, source) => self.inner.extents.sources().shown(source, path),
        }
    }

    /// A container that is open already, if its row and its file are still the same.
    fn opened(&self, id: ContainerId) -> Option<Arc<OpenContainer>> {
        let container = self.inner.open.get(&id)?;
        if container.epoch == self.inner.store.epoch() && container.is_current() {
            return Some(container);
        }
        self.inner.open.remove(&id);
        None
    }

    /// The container of a block that is in service, or that it is time to look at again.
    fn open(&self, location: Location, keep: bool) -> Result<Arc<OpenContainer>, Miss> {
        let id = location.container;
        let container = match self.opened(id) {
            Some(container) => container,
            None => self.open_anew(id, keep)?,
        };
        if self.is_out_here(&container, location)
            && !self.inner.store.stale().claim_look(id, SOURCE_LOCAL)
        {
            return Err(Miss::Bad(damaged(&container.path)));
        }
        Ok(container)
    }

    /// Whether a block can be promised without reading it.
    fn is_proved(&self, container: &OpenContainer, location: Location) -> bool {
        container.proved.load(Ordering::Acquire) && !self.is_out_here(container, location)
    }

    /// Whether other bytes than were added have been read there from this very version.
    fn is_out_here(&self, container: &OpenContainer, location: Location) -> bool {
        let (marks, version) = (self.inner.store.stale(), &container.file.validator);
        !container.is_pack && marks.is_out(container.id, version, location)
    }

    fn open_anew(&self, id: ContainerId, keep: bool) -> Result<Arc<OpenContainer>, Miss> {
        let epoch = self.inner.store.epoch();
        let record = self
            .inner
            .store
            .catalog()
            .container(id)
            .map_err(Miss::Bad)?;
        let record = record.ok_or(Miss::Dropped)?;
        if record.validator.object().is_some() {
            return Err(Miss::Elsewhere);
        }
        let path = self.path_of(&record);
        let is_pack = record.kind == ContainerKind::Pack;
        let opened = match is_pack {
            true => LocalFile::open_own(&path),
            false => LocalFile::open(&path),
        };
        let file = opened.map_err(|error| self.lost(id, &path, is_pack, error))?;
        if !is_pack && file.validator.size() != record.size {
            // Another length is another file, even where some of its bytes are the same.
            let observed = Some(file.validator.clone());
            let mark = StaleMark::new(StaleReason::Changed, observed, None);
            self.inner.store.stale().mark(id, mark);
            return Err(Miss::Bad(changed(&path)));
        }
        let marks = self.inner.store.stale();
        let is_sound = is_pack
            || (file.validator == record.validator && !marks.is_refuted(id, &file.validator));
        if is_sound {
            marks.clear(id); // It was missing or changed, and is back.
        }
        let proved = AtomicBool::new(is_sound);
        let container = Arc::new(OpenContainer {
            id,
            path,
            file,
            is_pack,
            epoch,
            proved,
        });
        if keep {
            self.inner.open.insert(id, Arc::clone(&container));
        }
        Ok(container)
    }

    /// The file is gone, or is something that cannot be read.
    fn lost(&self, id: ContainerId, path: &Path, is_pack: bool, error: io::Error) -> Miss {
        let reason = match Errno::from_io_error(&error) {
            Some(Errno::NOENT | Errno::NOTDIR) => Some(StaleReason::Missing),
            // A directory, a FIFO or the like has no errno: it is no regular file. Nor has a
            // symlink in the path.
            None => Some(StaleReason::Unreadable),
            Some(Errno::ACCESS | Errno::PERM | Errno::LOOP | Errno::NXIO | Errno::NAMETOOLONG) => {
                Some(StaleReason::Unreadable)
            }
            // Too many open files, no memory, a disk or server that does not answer.
            Some(_) => None,
        };
        let what = format!("{} cannot be opened", path.display());
        match reason {
            None => Miss::Bad(Error::with(ErrorKind::Unavailable, what, error)),
            Some(_) if is_pack => match self.inner.store.catalog().has_container(id) {
                Ok(false) => Miss::Dropped, // Since its row was read.
                Ok(true) => Miss::Bad(Error::with(ErrorKind::Corrupt, what, error)),
                Err(error) => Miss::Bad(error),
            },
            Some(reason) => {
                let mark = StaleMark::new(reason, None, None);
                self.inner.store.stale().mark(id, mark);
                Miss::Bad(Error::with(ErrorKind::Changed, what, error))
            }
        }
    }

    fn cached(&self, cid: &Cid) -> Option<Bytes> {
        self.inner.cache.get(&cache_key(cid)?)
    }

    fn keep(&self, cid: &Cid, block: &Bytes) {
        if let Some(key) = cache_key(cid) {
            self.inner.cache.insert(key, block.clone());
        }
    }
}

impl OpenContainer {
    /// Whether the path still leads to the version that is open. Packs never change.
    fn is_current(&self) -> bool {
        self.is_pack || local::leads_to(&self.path, &self.file.validator)
    }
}

/// Files kept open: a quarter of the descriptors that there are at the most.
fn open_files_max() -> usize {
    use rustix::process::{Resource, getrlimit};
    let limit = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(limit / 4).map_or(OPEN_FILES_MAX, |n| n.clamp(1, OPEN_FILES_MAX))
}

/// Length of the block at `location`, framing included.
#[must_use]
pub fn block_len(location: Location) -> usize {
    let len = location.len as usize;
    if location.wrapped {
        leaf::block_len(len)
    } else {
        len
    }
}

fn cache_key(cid: &Cid) -> Option<CacheKey> {
    let hash = cid.hash();
    let mut digest = [0; CACHED_DIGEST_LEN_MAX];
    digest
        .get_mut(..hash.digest().len())?
        .copy_from_slice(hash.digest());
    Some(CacheKey {
        code: hash.code(),
        len: hash.size(),
        digest,
    })
}

/// No container has the block.
#[must_use]
pub fn not_found(cid: &Cid) -> Error {
    Error::new(ErrorKind::NotFound, format!("{cid} is not here"))
}

fn two_lengths(cid: &Cid) -> Error {
    let what = format!("the index gives {cid} two lengths");
    Error::new(ErrorKind::Corrupt, what)
}

fn damaged(path: &Path) -> Error {
    let what = format!("{} has other bytes there than were added", path.display());
    Error::new(ErrorKind::Changed, what)
}

fn changed(path: &Path) -> Error {
    let what = format!("{} changed since it was added", path.display());
    Error::new(ErrorKind::Changed, what)
}

#[cfg(test)]
mod tests;
