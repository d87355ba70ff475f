//! `add`: a tree of files becomes a DAG whose leaves stay where they are.
//!
//! In       paths of files and folders.
//! Out      a root for each; leaves as ranges of the files, interior nodes in a pack.
//! Limits   jobs under way are bounded (`ingest::hash`), so are the directories held
//!          (`ingest::tree`) and the rows not yet committed (`ingest::sink`).
//! Not here CARs (`ingest::import`), what lies in sources elsewhere (`ingest::remote`), what
//!          becomes of digests (`ingest::assembly`).
//!
//! One thread scans and builds; workers read and hash. A file whose validator is what an earlier
//! add saw is not opened. Work is committed every few seconds, so that an add that was interrupted
//! goes on where it was.

pub(super) mod files;
mod stretch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use carrack_formats::unixfs::profile::Profile;

use self::files::{BigFile, SmallFile};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::assembly::{Assembly, Place, Watcher};
use crate::ingest::hash::HashPool;
use crate::ingest::journal::Journal;
use crate::ingest::own::{self, Own};
use crate::ingest::scan::{self, Ahead, Entry, EntryKind};
use crate::ingest::sink::Origin;
use crate::ingest::tree::Parent;
use crate::ingest::{AddReport, Changes, LEFT_OUT_SHOWN_MAX, LeftOut, Progress};
use crate::source::nofollow::{self, Kind};
use crate::store::Store;
use crate::store::catalog::Validator;

/// Why what is carrack's own is left out.
const OWN: &str = "it is carrack's own";
/// The same of a file that holds the key of any node.
const KEY: &str = "it is the key of a carrack node";

/// How to add.
#[derive(Debug, Clone)]
pub struct AddOptions {
    /// How files become DAGs.
    pub profile: Profile,
    /// Take hidden files along.
    pub hidden: bool,
    /// One directory of all paths is the only root.
    pub wrap: bool,
    /// Make no root if anything is left out.
    pub strict: bool,
    /// Threads that hash.
    pub n_threads: usize,
}

/// Adds `paths`. Each argument that is a symlink is followed; symlinks below are kept as such.
/// Of several that do not depend on each other the good ones are added, and the report names the
/// others.
///
/// # Errors
/// `Invalid` for a path that does not exist, if it is the only one, or if all are to be wrapped or
/// taken strictly; `Unavailable` when the store cannot be written; `Partial` is not an error here:
/// the report says what was left out.
pub fn add(
    store: &Arc<Store>,
    paths: &[PathBuf],
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<AddReport> {
    add_of(store, Origin::default(), paths, options, progress, stop)
}

/// Adds `paths`, which lie in a folder that is a source of its own.
///
/// # Errors
/// As [`add`].
pub fn add_of(
    store: &Arc<Store>,
    origin: Origin,
    paths: &[PathBuf],
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<AddReport> {
    let targets = Targets::named(paths, options)?;
    add_targets(store, origin, targets, options, progress, stop, false).map(|done| done.0)
}

/// Adds what lies at `path` again, and compares with what earlier adds found. The path was resolved
/// when it was named: it has no symlink in it.
///
/// # Errors
/// As [`add`]; `Invalid` if a symlink is in its place.
pub(in crate::ingest) fn add_again(
    store: &Arc<Store>,
    origin: Origin,
    path: &Path,
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<(AddReport, Changes)> {
    let targets = Targets::resolved(path);
    add_targets(store, origin, targets, options, progress, stop, true)
}

fn add_targets(
    store: &Arc<Store>,
    origin: Origin,
    mut targets: Targets,
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
    audit: bool,
) -> Result<(AddReport, Changes)> {
    let total = Arc::new(AtomicU64::new(0));
    let measured = Arc::new(AtomicBool::new(false));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if progress.wants_total() {
            let (total, measured, over) = (Arc::clone(&total), Arc::clone(&measured), &over);
            let roots: Vec<PathBuf> = targets.unique.iter().map(|one| one.1.clone()).collect();
            let measuring = std::thread::Builder::new().spawn_scoped(scope, move || {
                let own = Own::of(store.dir());
                scan::measure(roots, &own, options.hidden, &total, over);
                measured.store(true, Ordering::Release);
            });
            drop(measuring); // Without it, no total is told.
        }
        let _ingest = store.ingest_lock();
        let watcher = Watcher {
            progress,
            stop,
            total: &total,
            measured: &measured,
        };
        let adder = Adder::new(store, origin, options, watcher);
        let outcome = adder.and_then(|mut adder| adder.run(&mut targets, audit));
        over.store(true, Ordering::Relaxed); // Nobody waits for an estimate any more.
        outcome
    })
}

/// What is to be added, each path once.
struct Targets {
    /// Name and real path.
    unique: Vec<(OsString, PathBuf)>,
    /// For each argument its place in `unique`.
    places: Vec<usize>,
    /// Each stands for itself: one that cannot be added is named, and the others are added.
    are_independent: bool,
    failed: Vec<(PathBuf, Error)>,
}

impl Targets {
    /// What a person named: symlinks in the paths are followed, now and not again.
    fn named(paths: &[PathBuf], options: &AddOptions) -> Result<Self> {
        let wrap = options.wrap;
        let are_independent = paths.len() > 1 && !wrap && !options.strict;
        let (mut unique, mut places, mut failed) = (Vec::new(), Vec::new(), Vec::new());
        let mut known: HashMap<(Option<OsString>, PathBuf), usize> = HashMap::new();
        let mut names = HashSet::new();
        for path in paths {
            let cannot = || format!("cannot add {}", path.display());
            let real = match std::fs::canonicalize(path).context(ErrorKind::Invalid, cannot) {
                Ok(real) => real,
                Err(error) if are_independent => {
                    failed.push((path.clone(), error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            let name = path.file_name().or(real.file_name()).unwrap_or_default();
            let (name, n_before) = (name.to_owned(), unique.len());
            let key = (wrap.then(|| name.clone()), real.clone());
            let place = *known.entry(key).or_insert(n_before);
            if place == n_before {
                unique.push((name.clone(), real));
            }
            if wrap && place == n_before && (name.is_empty() || !names.insert(name)) {
                let why = "its name is empty or another argument's: it cannot be wrapped";
                let what = format!("cannot add {}: {why}", path.display());
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            places.push(place);
        }
        Ok(Self {
            unique,
            places,
            are_independent,
            failed,
        })
    }

    fn resolved(path: &Path) -> Self {
        let name = path.file_name().unwrap_or_default().to_owned();
        Self {
            unique: vec![(name, path.to_owned())],
            places: vec![0],
            are_independent: false,
            failed: Vec::new(),
        }
    }
}

struct Adder<'a> {
    assembly: Assembly<'a>,
    pool: HashPool,
    /// Files handed to the workers, by token.
    small: HashMap<u64, SmallFile>,
    big: HashMap<u64, BigFile>,
    /// Big files that changed while they were read and are to be read again.
    again: VecDeque<(Place, PathBuf, u32)>,
    batch: Vec<(u64, PathBuf)>,
    batch_len: u64,
    /// The argument that is gone through.
    top: PathBuf,
    own: Own,
}

/// What an argument is.
enum Found {
    File(Validator),
    Folder(Ahead, Level),
}

/// One directory on the way down.
struct Level {
    directory: usize,
    path: PathBuf,
    entries: std::vec::IntoIter<Entry>,
    next_entry: usize,
    root: usize,
}

impl<'a> Adder<'a> {
    fn new(
        store: &'a Arc<Store>,
        origin: Origin,
        options: &'a AddOptions,
        watcher: Watcher<'a>,
    ) -> Result<Self> {
        let assembly = Assembly::new(store, origin, options, watcher)?;
        Ok(Self {
            pool: HashPool::new(options.n_threads, assembly.rule)?,
            assembly,
            small: HashMap::new(),
            big: HashMap::new(),
            again: VecDeque::new(),
            batch: Vec::new(),
            batch_len: 0,
            top: PathBuf::new(),
            own: Own::of(store.dir()),
        })
    }

    fn run(&mut self, targets: &mut Targets, audit: bool) -> Result<(AddReport, Changes)> {
        if audit {
            self.assembly.audit();
        }
        let outcome = self.run_all(targets);
        if outcome.is_err() {
            // What is whole stays: the next add goes on there. The first error is told.
            for file in self.big.values_mut() {
                let _ = file.growing.journal.as_mut().map(Journal::flush);
            }
            let _ = self.assembly.sink.checkpoint();
        }
        outcome?;
        let mut roots = Vec::new();
        let n_roots = match self.assembly.is_refused() {
            true => 0,
            false => targets.unique.len(),
        };
        for (index, (_, path)) in targets.unique.iter().take(n_roots).enumerate() {
            roots.push(self.assembly.root(index, path)?);
        }
        self.assembly.sink.checkpoint()?;
        let tops = targets.unique.iter().map(|target| target.1.clone());
        let changes = self.assembly.finish_audit(&tops.collect::<Vec<_>>())?;
        self.assembly.sink.checkpoint()?;
        let mut report = std::mem::take(&mut self.assembly.report);
        let places: &[usize] = if self.assembly.options.wrap {
            &[0]
        } else {
            &targets.places
        };
        let made = places.iter().filter_map(|place| roots.get(*place)?.clone());
        report.roots = made.collect();
        report.failed = std::mem::take(&mut targets.failed);
        Ok((report, changes))
    }

    fn run_all(&mut self, targets: &mut Targets) -> Result<()> {
        if self.assembly.options.wrap {
            self.assembly.begin_root();
            let names = targets.unique.iter();
            let names: Vec<_> = names.map(|(name, _)| name.as_bytes().to_vec()).collect();
            let directory = self
                .assembly
                .tree
                .open(PathBuf::new(), 0, Parent::Root(0), names);
            for (entry, (_, path)) in targets.unique.iter().enumerate() {
                let place = Place {
                    parent: Parent::Entry { directory, entry },
                    root: 0,
                };
                let found = self.look(path, place)?;
                self.take(found, path, place)?;
            }
            if let Some(complete) = self.assembly.tree.all_listed(directory) {
                self.assembly.directory_done(complete)?;
            }
        } else {
            for (root, (_, path)) in targets.unique.iter().enumerate() {
                self.assembly.begin_root();
                let place = Place {
                    parent: Parent::Root(root),
                    root,
                };
                match self.look(path, place) {
                    Ok(found) => self.take(found, path, place)?,
                    Err(error) if targets.are_independent => {
                        targets.failed.push((path.clone(), error));
                    }
                    Err(error) => return Err(error),
                }
            }
        }
        loop {
            self.flush_batch()?;
            if let Some((place, path, attempt)) = self.again.pop_front() {
                self.big_file(&path, place, attempt)?;
            } else if self.pool.is_idle() {
                return Ok(());
            } else {
                self.drain_one()?;
            }
        }
    }

    /// What an argument is. Its errors are about that place alone.
    fn look(&mut self, path: &Path, place: Place) -> Result<Found> {
        let cannot = || format!("cannot add {}", path.display());
        let refused = |why: &str| {
            let what = format!("{}: {why}", cannot());
            Error::new(ErrorKind::Invalid, what)
        };
        // The key of this node lies there.
        let own = || refused("carrack's own files are not for others");
        if self.own.holds(path) {
            return Err(own());
        }
        let looked = nofollow::look(path).context(ErrorKind::Invalid, cannot)?;
        match looked.kind {
            Kind::File if own::is_key(path) => return Err(refused(KEY)),
            Kind::File => return Ok(Found::File(looked.validator)),
            Kind::Directory => {}
            Kind::Symlink => {
                return Err(looked.kind.refused()).context(ErrorKind::Invalid, cannot);
            }
            Kind::Special => {
                let what = format!("{} is neither a file nor a folder", path.display());
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        }
        let mut ahead = Ahead::new(path, &self.own, self.assembly.options.hidden);
        let first = self.enter(&mut ahead, path.to_owned(), place);
        let cannot = || format!("cannot list {}", path.display());
        let first = first.context(ErrorKind::Unavailable, cannot)?;
        let first = first.ok_or_else(own)?;
        Ok(Found::Folder(ahead, first))
    }

    /// One argument, and everything below it.
    fn take(&mut self, found: Found, path: &Path, place: Place) -> Result<()> {
        path.clone_into(&mut self.top);
        let (mut ahead, first) = match found {
            Found::File(validator) => return self.file(path.to_owned(), &validator, place),
            Found::Folder(ahead, first) => (ahead, first),
        };
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            self.assembly.check_stop()?;
            let Some(entry) = level.entries.next() else {
                let directory = level.directory;
                levels.pop();
                if let Some(complete) = self.assembly.tree.all_listed(directory) {
                    self.assembly.directory_done(complete)?;
                }
                continue;
            };
            let parent = Parent::Entry {
                directory: level.directory,
                entry: level.next_entry,
            };
            level.next_entry += 1;
            let place = Place {
                parent,
                root: level.root,
            };
            let path = level.path.join(&entry.name);
            match entry.kind {
                EntryKind::File(validator) if self.own.has_file(&validator) => {
                    self.leave_own(path, OWN, parent)?;
                }
                EntryKind::File(_) if own::is_key(&path) => {
                    self.leave_own(path, KEY, parent)?;
                }
                EntryKind::File(validator) => self.file(path, &validator, place)?,
                EntryKind::Symlink(target) => self.assembly.symlink(&path, &target, place)?,
                EntryKind::Unreadable(error) => self.assembly.unread(&path, error, place)?,
                EntryKind::Directory => match self.enter(&mut ahead, path.clone(), place) {
                    Ok(Some(level)) => levels.push(level),
                    Ok(None) => self.leave_own(path, OWN, parent)?,
                    Err(error) => self.assembly.unread(&path, error, place)?,
                },
            }
        }
        Ok(())
    }

    /// Passes over what is carrack's own, and keys of nodes.
    fn leave_own(&mut self, path: PathBuf, why: &str, parent: Parent) -> Result<()> {
        if self.assembly.report.own.len() < LEFT_OUT_SHOWN_MAX {
            let why = why.to_owned();
            self.assembly.report.own.push(LeftOut { path, why });
        }
        self.assembly.settle(parent, None)
    }

    /// Goes into a directory; `None`: it is carrack's own.
    fn enter(
        &mut self,
        ahead: &mut Ahead,
        path: PathBuf,
        place: Place,
    ) -> io::Result<Option<Level>> {
        let listing = ahead.take(&path)?;
        if listing.is_own {
            return Ok(None);
        }
        self.assembly.report.hidden += listing.hidden;
        self.assembly.report.special += listing.special;
        let names = listing
            .entries
            .iter()
            .map(|entry| entry.name.as_bytes().to_vec());
        let directory = self
            .assembly
            .tree
            .open(path.clone(), place.root, place.parent, names);
        let entries = listing.entries.into_iter();
        Ok(Some(Level {
            directory,
            path,
            entries,
            next_entry: 0,
            root: place.root,
        }))
    }
}
