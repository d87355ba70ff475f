//! `rescan`: a root's place is gone through again, and what changed becomes a new root.
//!
//! In       a root of an earlier add or import.
//! Out      the root of what is there now; how many files are new, changed, moved or gone. The old
//!          root stays, and with it every block that has not changed.
//! Limits   those of adding, and of `assembly::audit`.
//! Not here when to do it (`cli::commands::serve`, `carrack source rescan`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use carrack_formats::unixfs::profile::{Profile, UNIXFS_V0_2015, UNIXFS_V1_2025};

use crate::error::{Error, ErrorKind, Result};
use crate::ingest::add::{AddOptions, add_again};
use crate::ingest::import::remote::import_remote;
use crate::ingest::import::{ImportOptions, import_at};
use crate::ingest::remote::target::Target;
use crate::ingest::sink::Origin;
use crate::ingest::{AddReport, Changes, Progress, remote};
use crate::store::Store;
use crate::store::catalog::{RootKind, RootRecord, SOURCE_LOCAL};
use crate::store::sources::Sources;

/// What a rescan found.
#[derive(Debug)]
pub struct Rescanned {
    /// What the place comes to now. Its root is the old one if nothing changed.
    pub report: AddReport,
    /// Files that are not what they were.
    pub changes: Changes,
}

/// Goes through the place of `root` again, cut as it was.
///
/// # Errors
/// Those of adding; `Invalid` if the root was cut in a way that is not known here.
pub fn rescan(
    store: &Arc<Store>,
    sources: &Sources,
    root: &RootRecord,
    import_options: &ImportOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Rescanned> {
    let place = place(sources, root)?;
    if root.kind == RootKind::Import {
        return import_again(store, sources, &place, import_options, progress, stop);
    }
    let options = AddOptions {
        profile: profile_of(root.profile)?,
        hidden: had_hidden(store, root, &place)?,
        wrap: false,
        strict: false,
        n_threads: import_options.n_threads,
    };
    rescan_with(store, sources, &place, &options, progress, stop)
}

/// Where a root was made from. Paths of this machine were resolved when they were named: a symlink
/// that is in one now is not followed.
#[derive(Debug, Clone)]
pub enum Place {
    /// A path of this machine.
    Local(PathBuf),
    /// A path in a folder of this machine that is a source of its own.
    Folder(Origin, PathBuf),
    /// A path in a source elsewhere.
    Elsewhere(Target),
}

/// Goes through a place again.
///
/// # Errors
/// Those of adding.
pub fn rescan_with(
    store: &Arc<Store>,
    sources: &Sources,
    place: &Place,
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Rescanned> {
    let (report, changes) = match place {
        Place::Local(path) => {
            let origin = Origin::default();
            add_again(store, origin, path, options, progress, stop)?
        }
        Place::Folder(origin, path) => {
            add_again(store, origin.clone(), path, options, progress, stop)?
        }
        Place::Elsewhere(target) => {
            let targets = std::slice::from_ref(target);
            remote::add_audited(store, sources, targets, options, progress, stop, true)?
        }
    };
    Ok(Rescanned { report, changes })
}

/// Imports the CAR at a place again.
///
/// # Errors
/// Those of importing.
pub fn import_again(
    store: &Arc<Store>,
    sources: &Sources,
    place: &Place,
    options: &ImportOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Rescanned> {
    let imported = match place {
        Place::Local(path) | Place::Folder(_, path) => {
            import_at(store, path, options, progress, stop)?
        }
        Place::Elsewhere(target) => {
            import_remote(store, sources, target, options, false, progress, stop)?
        }
    };
    let changes = Changes {
        changed: u64::from(!imported.unchanged),
        vanished: imported.n_gone,
        ..Changes::default()
    };
    let report = AddReport {
        roots: imported.roots,
        ..AddReport::default()
    };
    Ok(Rescanned { report, changes })
}

/// Where `root` was made from.
///
/// # Errors
/// `NotFound` if its source is not configured any more.
pub fn place(sources: &Sources, root: &RootRecord) -> Result<Place> {
    let path = OsStr::from_bytes(&root.path);
    if root.source == SOURCE_LOCAL {
        return Ok(Place::Local(PathBuf::from(path)));
    }
    let base = sources.shown(root.source, Path::new(""));
    if base.is_absolute() {
        let origin = Origin {
            source: root.source,
            base,
            shown: Vec::new(),
        };
        return Ok(Place::Folder(origin, PathBuf::from(path)));
    }
    let source = sources.get(root.source)?;
    // As the catalog has it: nothing of it is percent-encoded.
    let base = source.source.url().trim_end_matches('/').as_bytes();
    let rest = root.path.strip_prefix(base).unwrap_or_default();
    let path = rest.strip_prefix(b"/").unwrap_or(rest).to_vec();
    Ok(Place::Elsewhere(Target {
        source,
        path,
        is_new: false,
    }))
}

/// The profile with this fingerprint, among those that arguments can make.
fn profile_of(fingerprint: u32) -> Result<Profile> {
    let chunk_sizes = (8..=20).map(|bits| 1u32 << bits);
    for named in [UNIXFS_V1_2025, UNIXFS_V0_2015] {
        let widths = [named.link_width, 174, 1024, 256, 512, 2048, 4096, 8192];
        for chunk_size in std::iter::once(named.chunk_size).chain(chunk_sizes.clone()) {
            for raw in [named.raw_leaves, !named.raw_leaves] {
                for width in widths {
                    let profile = named.clone().with_raw_leaves(raw);
                    let profile = profile.with_chunk_size(chunk_size);
                    let profile = profile.ok().and_then(|one| one.with_link_width(width).ok());
                    if let Some(profile) = profile
                        && profile.fingerprint() == fingerprint
                    {
                        return Ok(profile);
                    }
                }
            }
        }
    }
    let what = "it was added with unusual --chunker or --link-width: add it again with them";
    Err(Error::new(ErrorKind::Invalid, what))
}

/// Whether hidden files were taken along.
fn had_hidden(store: &Store, root: &RootRecord, place: &Place) -> Result<bool> {
    let path = match place {
        Place::Local(path) => path.as_os_str().as_bytes(),
        Place::Folder(origin, path) => {
            let below = path.strip_prefix(&origin.base).unwrap_or(path);
            below.as_os_str().as_bytes()
        }
        Place::Elsewhere(target) => &target.path,
    };
    let top = crate::store::catalog::PathKey {
        source: root.source,
        profile: root.profile,
        path: path.to_vec(),
    };
    for row in store.catalog().paths_below(&top)? {
        let path_below = row?.0.path;
        let below = path_below.get(path.len()..).unwrap_or_default();
        let mut names = below.split(|&byte| byte == b'/');
        if names.any(|name| name.starts_with(b".")) {
            return Ok(true);
        }
    }
    Ok(false)
}
