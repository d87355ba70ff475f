//! Files in the folders of the store, and what the catalog says of each.
//!
//! In       names in `segments/` and `packs/`; the rows of the catalog.
//! Out      what something durable explains is gone: a temporary name says that a file was never
//!          committed, a row of `removed` that a commit took it away. All else is kept and named:
//!          a catalog that is older than the files beside it knows nothing of them.
//! Limits   [`NAMED_MAX`] files are named in the log; rows of files that are gone are dropped when
//!          there are [`GONE_MAX`].
//! Not here how a kept pack is taken in (`rebuild::catalog`).
//!
//! A file is written and synced under its temporary name, listed by a commit, and renamed after
//! it, without a sync of its own: whoever opens it looks for both names (`durable::at_either`),
//! and the next opening for writing makes up for a rename that a crash took back.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::catalog::{ContainerKind, Snapshot};
use super::gate::WriteGate;
use super::index::segment_id_of;
use super::pack::pack_id_of;
use super::recover::{PACKS, SEGMENTS};
use super::{Store, hold};
use crate::durable;
use crate::error::{Context, ErrorKind, Result};

/// Kept files that are named one by one.
const NAMED_MAX: usize = 8;
/// Rows of files that are gone after which they are dropped: that takes two syncs.
const GONE_MAX: usize = 64;

/// The file of a row: its folder and its last name.
pub(super) type FileKey = Vec<u8>;

/// The key of a file in a folder of the store.
pub(super) fn file_key(folder: &str, name: &[u8]) -> FileKey {
    [folder.as_bytes(), b"/", name].concat()
}

fn path_of(dir: &Path, key: &[u8]) -> PathBuf {
    dir.join(OsStr::from_bytes(key))
}

/// A file that the catalog does not list and that nothing explains.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unlisted {
    /// Where it is.
    pub path: PathBuf,
    /// A pack may be the only copy of its blocks; what a segment says can be found out again.
    pub is_pack: bool,
}

impl Unlisted {
    /// What can be done about it.
    #[must_use]
    pub const fn advice(&self) -> &'static str {
        match self.is_pack {
            true => "`carrack index rebuild --catalog` takes it in",
            false => "it holds no data and may be deleted once `carrack verify` finds all sound",
        }
    }
}

/// A file with a name of the store's.
struct Found {
    path: PathBuf,
    folder: &'static str,
    id: u64,
    key: FileKey,
    is_temporary: bool,
}

/// What of a data directory is known once its names are sorted out.
#[derive(Debug, Default)]
pub(super) struct Settled {
    /// The first segment id above all that names have, whoever gave them.
    pub(super) segment: u64,
    /// The same of packs.
    pub(super) pack: u64,
    /// Rows of `removed` whose files are gone.
    pub(super) gone: Vec<FileKey>,
}

impl Settled {
    /// A name that is there is not given again.
    fn take(&mut self, file: &Found) {
        let next = match file.folder {
            SEGMENTS => &mut self.segment,
            _ => &mut self.pack,
        };
        *next = (*next).max(file.id.saturating_add(1));
    }
}

/// What the catalog says of files.
struct Listed {
    segments: HashSet<u64>,
    /// Ascending.
    packs: Vec<FileKey>,
    /// When each was removed, in nanoseconds since 1970.
    removed: HashMap<FileKey, u64>,
}

impl Listed {
    fn of(catalog: &Snapshot) -> Result<Self> {
        let segments = catalog.segments()?.iter().map(|meta| meta.id.0).collect();
        // They come in key order.
        let packs = catalog.packs()?.into_iter();
        let packs = packs.map(|(name, _)| file_key(PACKS, &name)).collect();
        let removed = catalog.removed_files()?.into_iter().collect();
        Ok(Self {
            segments,
            packs,
            removed,
        })
    }

    fn has(&self, file: &Found) -> bool {
        match file.folder {
            SEGMENTS => self.segments.contains(&file.id),
            _ => self.packs.binary_search(&file.key).is_ok(),
        }
    }

    /// Whether a commit removed this very file. One that changed after that, if only by being given
    /// its name, was put there by somebody.
    fn explains(&self, key: &[u8], path: &Path) -> bool {
        let (Some(removed), Ok(meta)) = (self.removed.get(key), path.symlink_metadata()) else {
            return false;
        };
        let changed = i128::from(meta.ctime()) * 1_000_000_000 + i128::from(meta.ctime_nsec());
        changed <= i128::from(*removed)
    }
}

/// Sorts out the names in a data directory. Without a gate, nothing is changed.
pub(super) fn settle(dir: &Path, catalog: &Snapshot, gate: Option<&WriteGate>) -> Result<Settled> {
    let listed = Listed::of(catalog)?;
    let (mut settled, mut kept, mut leftovers) = (Settled::default(), Vec::new(), Vec::new());
    for file in found(dir)? {
        let is_listed = listed.has(&file);
        match (is_listed, gate) {
            (true, Some(gate)) if file.is_temporary => {
                let last = path_of(dir, &file.key);
                // Until it has it, it is found by the other.
                let _ = gate.told(durable::rename_unless_there(&file.path, &last));
            }
            (true, _) => {}
            (false, _) if file.is_temporary || listed.explains(&file.key, &file.path) => {
                leftovers.push(file);
                continue;
            }
            (false, _) => kept.push(Unlisted::of(&file)),
        }
        settled.take(&file);
    }
    let needed = match leftovers.is_empty() || gate.is_none() {
        true => HashSet::new(),
        false => packs_of_containers(catalog)?,
    };
    for file in leftovers {
        // Two tables would have to be damaged for a pack that is needed.
        if gate.is_none() || needed.contains(&file.key) || !is_removed(&file.path) {
            settled.take(&file);
        }
    }
    if gate.is_some() {
        warn_of(&kept);
        settled.gone = listed.removed.keys().cloned().collect();
        let is_gone = |key: &FileKey| !listed.explains(key, &path_of(dir, key));
        settled.gone.retain(is_gone);
    }
    Ok(settled)
}

fn warn_of(kept: &[Unlisted]) {
    for file in kept.iter().take(NAMED_MAX) {
        let (path, advice) = (file.path.display(), file.advice());
        tracing::warn!(%path, "the catalog does not list it, so it is kept: {advice}");
    }
    if kept.len() > NAMED_MAX {
        let n = kept.len();
        tracing::warn!(n, "files are kept that the catalog does not list");
    }
}

/// Gives files that a commit listed their last names.
pub(super) fn give_names(dir: &Path, keys: &[FileKey]) {
    for key in keys {
        let path = path_of(dir, key);
        // One that has it already has no other. Any other failure is made good by the next opening.
        let _ = durable::move_unless_there(&durable::temporary(&path), &path);
    }
}

/// Removes files that no commit lists any more; those that are gone.
pub(super) fn unlink(dir: &Path, keys: Vec<FileKey>) -> Vec<FileKey> {
    let is_gone = |path: &Path| match std::fs::remove_file(path) {
        Ok(()) => true,
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    };
    let mut gone = keys;
    gone.retain(|key| {
        let path = path_of(dir, key);
        is_gone(&durable::temporary(&path)) && is_gone(&path)
    });
    gone
}

impl Store {
    /// Files with names of carrack's that the catalog does not list and that nothing explains.
    ///
    /// # Errors
    /// Those of reading the folders and the catalog.
    pub fn unlisted(&self) -> Result<Vec<Unlisted>> {
        // Looked at first: what has its last name by then is listed by a later snapshot, or its
        // removal is noted there.
        let files = found(&self.dir)?;
        let listed = Listed::of(&self.catalog())?;
        let is_kept = |file: &&Found| {
            !file.is_temporary && !listed.has(file) && !listed.explains(&file.key, &file.path)
        };
        Ok(files.iter().filter(is_kept).map(Unlisted::of).collect())
    }

    /// Rows of `removed` that the next commit may drop: their files will not come back.
    pub(super) fn rows_to_drop(&self) -> Result<Vec<FileKey>> {
        let gone = match &mut *hold(&self.gone) {
            gone if gone.len() < GONE_MAX => return Ok(Vec::new()),
            gone => std::mem::take(gone),
        };
        for folder in [SEGMENTS, PACKS] {
            let synced = self.gate.sync_dir(&self.dir.join(folder));
            synced.inspect_err(|_| hold(&self.gone).extend_from_slice(&gone))?;
        }
        Ok(gone)
    }
}

impl Unlisted {
    fn of(file: &Found) -> Self {
        Self {
            path: file.path.clone(),
            is_pack: file.folder == PACKS,
        }
    }
}

/// Everything that has a name of the store's.
fn found(dir: &Path) -> Result<Vec<Found>> {
    let mut files = Vec::new();
    for folder in [SEGMENTS, PACKS] {
        for (path, name) in names(&dir.join(folder))? {
            let parsed = match folder {
                SEGMENTS => segment_id_of(&name).map(|(id, is_last)| (id.0, is_last)),
                _ => pack_id_of(&name).map(|(id, is_last)| (id.0, is_last)),
            };
            let Some((id, is_last)) = parsed else {
                continue;
            };
            let last = match is_last {
                true => name.as_slice(),
                false => name.strip_suffix(durable::TEMPORARY).unwrap_or(&name),
            };
            files.push(Found {
                path,
                folder,
                id,
                key: file_key(folder, last),
                is_temporary: !is_last,
            });
        }
    }
    Ok(files)
}

/// Keys of packs by the rows of their containers.
fn packs_of_containers(catalog: &Snapshot) -> Result<HashSet<FileKey>> {
    let mut keys = HashSet::new();
    for row in catalog.containers()? {
        let (_, record) = row?;
        if record.kind == ContainerKind::Pack {
            keys.insert(file_key(PACKS, &record.path));
        }
    }
    Ok(keys)
}

/// What lies in a folder of the store.
pub(super) fn names(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let reading = || format!("reading {}", dir.display());
    let mut names = Vec::new();
    let entries = match std::fs::read_dir(dir) {
        // What is listed in it will be missed.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(names),
        entries => entries.context(ErrorKind::Unavailable, reading)?,
    };
    for entry in entries {
        let entry = entry.context(ErrorKind::Unavailable, reading)?;
        names.push((entry.path(), entry.file_name().into_vec()));
    }
    Ok(names)
}

fn is_removed(path: &Path) -> bool {
    let removed = std::fs::remove_file(path);
    if let Err(error) = &removed {
        tracing::warn!(path = %path.display(), %error, "what a crash left was not removed");
    }
    removed.is_ok()
}
