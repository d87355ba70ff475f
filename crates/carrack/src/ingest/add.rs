//! `add`: a tree of files becomes a DAG whose leaves stay where they are.
//!
//! In       paths of files and folders.
//! Out      a root for each; leaves as ranges of the files, interior nodes in a pack.
//! Limits   jobs under way are bounded (`ingest::hash`), so are the directories held
//!          (`ingest::tree`) and the rows not yet committed (`ingest::sink`).
//! Not here CARs (`ingest::import`).
//!
//! One thread scans and builds; workers read and hash. A file whose validator is what an earlier
//! add saw is not opened. Work is committed every few seconds, so that an add that was interrupted
//! goes on where it was.

mod files;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use carrack_formats::cid;
use carrack_formats::unixfs::dir;
use carrack_formats::unixfs::profile::Profile;

use self::files::{BigFile, Nodes, SmallFile};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::hash::{HashPool, LeafRule};
use crate::ingest::journal::Journal;
use crate::ingest::scan::{self, Ahead, Entry, EntryKind};
use crate::ingest::sink::Sink;
use crate::ingest::tree::{Directory, Parent, Sum, Tree};
use crate::ingest::{AddReport, AddedRoot, LEFT_OUT_SHOWN_MAX, LeftOut, Progress};
use crate::source::local::validator_of;
use crate::store::Store;
use crate::store::catalog::{RootKind, Validator};
use crate::store::location::ContainerId;

/// How to add.
#[derive(Debug, Clone)]
pub struct AddOptions {
    /// How files become DAGs.
    pub profile: Profile,
    /// Take hidden files along.
    pub hidden: bool,
    /// One directory of all paths is the only root.
    pub wrap: bool,
    /// Threads that hash.
    pub n_threads: usize,
}

/// Adds `paths`. Each argument that is a symlink is followed; symlinks below are kept as such.
///
/// # Errors
/// `Invalid` for a path that does not exist; `Unavailable` when the store cannot be written;
/// `Partial` is not an error here: the report says what was left out.
pub fn add(
    store: &Arc<Store>,
    paths: &[PathBuf],
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<AddReport> {
    let targets = Targets::new(paths, options.wrap)?;
    let total = Arc::new(AtomicU64::new(0));
    let measured = Arc::new(AtomicBool::new(false));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        if progress.wants_total() {
            let (total, measured, over) = (Arc::clone(&total), Arc::clone(&measured), &over);
            let roots: Vec<PathBuf> = targets.unique.iter().map(|one| one.1.clone()).collect();
            scope.spawn(move || {
                scan::measure(roots, options.hidden, &total, over);
                measured.store(true, Ordering::Release);
            });
        }
        let _ingest = store.ingest_lock();
        let outcome = Adder::new(store, options, progress, stop, &total, &measured)
            .and_then(|mut adder| adder.run(&targets));
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
}

impl Targets {
    fn new(paths: &[PathBuf], wrap: bool) -> Result<Self> {
        let (mut unique, mut places) = (Vec::new(), Vec::new());
        let mut known: HashMap<(Option<OsString>, PathBuf), usize> = HashMap::new();
        let mut names = HashSet::new();
        for path in paths {
            let real = std::fs::canonicalize(path).context(ErrorKind::Invalid, || {
                format!("cannot add {}", path.display())
            })?;
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
        Ok(Self { unique, places })
    }
}

struct Adder<'a> {
    options: &'a AddOptions,
    rule: LeafRule,
    profile: u32,
    pool: HashPool,
    sink: Sink<'a>,
    tree: Tree,
    /// Files handed to the workers, by token.
    small: HashMap<u64, SmallFile>,
    big: HashMap<u64, BigFile>,
    /// Big files that changed while they were read and are to be read again.
    again: VecDeque<(Place, PathBuf, u32)>,
    batch: Vec<(u64, PathBuf)>,
    batch_len: u64,
    next_token: u64,
    members: Vec<Vec<ContainerId>>,
    sums: Vec<Option<Sum>>,
    report: AddReport,
    progress: &'a mut dyn Progress,
    stop: &'a AtomicBool,
    bytes_seen: u64,
    total: &'a AtomicU64,
    measured: &'a AtomicBool,
    /// The store's directory, which changes while it is read.
    own_dir: PathBuf,
}

/// Where a file's sum goes, and which root it counts for.
#[derive(Debug, Clone, Copy)]
struct Place {
    parent: Parent,
    root: usize,
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
        options: &'a AddOptions,
        progress: &'a mut dyn Progress,
        stop: &'a AtomicBool,
        total: &'a AtomicU64,
        measured: &'a AtomicBool,
    ) -> Result<Self> {
        let rule = LeafRule {
            chunk_size: options.profile.chunk_size,
            raw: options.profile.raw_leaves,
        };
        Ok(Self {
            options,
            rule,
            profile: options.profile.fingerprint(),
            pool: HashPool::new(options.n_threads, rule),
            sink: Sink::new(store)?,
            tree: Tree::default(),
            small: HashMap::new(),
            big: HashMap::new(),
            again: VecDeque::new(),
            batch: Vec::new(),
            batch_len: 0,
            next_token: 0,
            members: Vec::new(),
            sums: Vec::new(),
            report: AddReport::default(),
            progress,
            stop,
            bytes_seen: 0,
            total,
            measured,
            own_dir: std::fs::canonicalize(store.dir()).unwrap_or_default(),
        })
    }

    fn run(&mut self, targets: &Targets) -> Result<AddReport> {
        let outcome = self.run_all(&targets.unique);
        if outcome.is_err() {
            // What is whole stays: the next add goes on there. The first error is told.
            for file in self.big.values_mut() {
                let _ = file.journal.as_mut().map(Journal::flush);
            }
            let _ = self.sink.checkpoint();
        }
        outcome?;
        let mut roots = Vec::new();
        for (index, (_, path)) in targets.unique.iter().enumerate() {
            roots.push(self.root(index, path)?);
        }
        self.sink.checkpoint()?;
        let mut report = std::mem::take(&mut self.report);
        let places: &[usize] = if self.options.wrap {
            &[0]
        } else {
            &targets.places
        };
        let made = places.iter().filter_map(|place| roots.get(*place)?.clone());
        report.roots = made.collect();
        Ok(report)
    }

    /// Promises what one target came to; `None` if that was left out.
    fn root(&mut self, index: usize, path: &Path) -> Result<Option<AddedRoot>> {
        let Some(sum) = self.sums.get(index).copied().flatten() else {
            return Ok(None);
        };
        let members = self.members.get_mut(index).map(std::mem::take);
        let path = match self.options.wrap {
            true => path.parent().unwrap_or(path),
            false => path,
        };
        let members = members.unwrap_or_default();
        self.sink
            .root(&sum.cid, path, RootKind::Add, self.profile, sum, members)?;
        Ok(Some(AddedRoot {
            cid: sum.cid,
            path: path.to_owned(),
            bytes: sum.file_len,
            n_blocks: sum.n_blocks,
            n_files: sum.n_files,
        }))
    }

    fn run_all(&mut self, targets: &[(OsString, PathBuf)]) -> Result<()> {
        if self.options.wrap {
            self.members.push(Vec::new());
            self.sums.push(None);
            let names: Vec<_> = targets
                .iter()
                .map(|(name, _)| name.as_bytes().to_vec())
                .collect();
            let directory = self.tree.open(PathBuf::new(), 0, Parent::Root(0), names);
            for (entry, (_, path)) in targets.iter().enumerate() {
                self.target(
                    path,
                    Place {
                        parent: Parent::Entry { directory, entry },
                        root: 0,
                    },
                )?;
            }
            if let Some(complete) = self.tree.all_listed(directory) {
                self.directory_done(complete)?;
            }
        } else {
            for (root, (_, path)) in targets.iter().enumerate() {
                self.members.push(Vec::new());
                self.sums.push(None);
                self.target(
                    path,
                    Place {
                        parent: Parent::Root(root),
                        root,
                    },
                )?;
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

    /// One argument, and everything below it.
    fn target(&mut self, path: &Path, place: Place) -> Result<()> {
        let meta = std::fs::symlink_metadata(path).context(ErrorKind::Invalid, || {
            format!("cannot add {}", path.display())
        })?;
        if meta.is_file() {
            return self.file(path.to_owned(), &validator_of(&meta), place);
        }
        if !meta.is_dir() {
            let what = format!("{} is neither a file nor a folder", path.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut ahead = Ahead::new(path, &self.own_dir, self.options.hidden);
        let first = self.enter(&mut ahead, path.to_owned(), place);
        let first = first.map_err(|error| {
            Error::with(
                ErrorKind::Unavailable,
                format!("cannot list {}", path.display()),
                error,
            )
        })?;
        let mut levels = vec![first];
        while let Some(level) = levels.last_mut() {
            self.check_stop()?;
            let Some(entry) = level.entries.next() else {
                let directory = level.directory;
                levels.pop();
                if let Some(complete) = self.tree.all_listed(directory) {
                    self.directory_done(complete)?;
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
                EntryKind::File(validator) => self.file(path, &validator, place)?,
                EntryKind::Symlink(target) => self.symlink(&path, &target, place)?,
                EntryKind::Unreadable(error) => self.left_out(path, &error, place)?,
                EntryKind::Directory if path == self.own_dir => {
                    self.report.special += 1;
                    self.settle(parent, None)?;
                }
                EntryKind::Directory => match self.enter(&mut ahead, path.clone(), place) {
                    Ok(level) => levels.push(level),
                    Err(error) => self.left_out(path, &error, place)?,
                },
            }
        }
        Ok(())
    }

    fn enter(&mut self, ahead: &mut Ahead, path: PathBuf, place: Place) -> io::Result<Level> {
        let listing = ahead.take(&path)?;
        self.report.hidden += listing.hidden;
        self.report.special += listing.special;
        let names = listing
            .entries
            .iter()
            .map(|entry| entry.name.as_bytes().to_vec());
        let directory = self
            .tree
            .open(path.clone(), place.root, place.parent, names);
        let entries = listing.entries.into_iter();
        Ok(Level {
            directory,
            path,
            entries,
            next_entry: 0,
            root: place.root,
        })
    }

    fn symlink(&mut self, path: &Path, target: &[u8], place: Place) -> Result<()> {
        self.report.symlinks += 1;
        let (built, block) = dir::symlink(target, &self.options.profile);
        let dag_len = block.len() as u64;
        let sum = Sum {
            cid: built.cid,
            file_len: 0,
            dag_len,
            n_blocks: 1,
            n_files: 0,
        };
        let known = self.sink.known_file(path, self.profile)?;
        let pack = match known.filter(|known| known.sum.cid == built.cid) {
            Some(known) => known.pack,
            None => {
                let pack = Some(self.sink.node(&built.cid, &block)?);
                let validator = Validator::default(); // What it points to tells whether it changed.
                self.sink
                    .file(path, self.profile, &validator, None, pack, sum);
                pack
            }
        };
        self.member(place.root, pack);
        self.checkpoint_if_due()?;
        self.settle(place.parent, Some(sum))
    }

    fn left_out(&mut self, path: PathBuf, error: &io::Error, place: Place) -> Result<()> {
        self.report.n_left_out += 1;
        if self.report.left_out.len() < LEFT_OUT_SHOWN_MAX {
            self.report.left_out.push(LeftOut {
                path,
                why: error.to_string(),
            });
        }
        self.settle(place.parent, None)
    }

    /// A result finds its place; directories that become complete are built on the way up.
    fn settle(&mut self, parent: Parent, sum: Option<Sum>) -> Result<()> {
        let (mut parent, mut sum) = (parent, sum);
        loop {
            match parent {
                Parent::Root(index) => {
                    if let Some(place) = self.sums.get_mut(index) {
                        *place = sum;
                    }
                    return Ok(());
                }
                Parent::Entry { directory, entry } => {
                    let Some(complete) = self.tree.settle(directory, entry, sum) else {
                        return Ok(());
                    };
                    parent = complete.parent;
                    sum = Some(self.build(complete)?);
                }
            }
        }
    }

    fn directory_done(&mut self, directory: Directory) -> Result<()> {
        let parent = directory.parent;
        let sum = self.build(directory)?;
        self.settle(parent, Some(sum))
    }

    /// The node, or the shards, of a directory; known ones are not built again.
    fn build(&mut self, directory: Directory) -> Result<Sum> {
        let Directory {
            path,
            root,
            entries,
            ..
        } = directory;
        let n_entries = entries.len() as u64;
        let mut fingerprint = blake3::Hasher::new();
        let mut sum = Sum {
            cid: cid::empty_identity(),
            file_len: 0,
            dag_len: 0,
            n_blocks: 0,
            n_files: 0,
        };
        for (name, entry) in entries.iter() {
            let Some(entry) = entry else { continue };
            fingerprint
                .update(&(name.len() as u64).to_le_bytes())
                .update(name);
            fingerprint
                .update(&entry.dag_len.to_le_bytes())
                .update(&entry.cid.to_bytes());
            sum.file_len += entry.file_len;
            sum.n_blocks += entry.n_blocks;
            sum.n_files += entry.n_files;
        }
        let fingerprint = *fingerprint.finalize().as_bytes();
        if let Some(known) = self
            .sink
            .known_directory(&path, self.profile, &fingerprint)?
        {
            self.member(root, known.pack);
            sum.cid = known.cid;
            sum.dag_len = known.dag_len;
            sum.n_blocks += known.n_nodes;
            return Ok(sum);
        }
        let links = entries.into_iter().filter_map(|(name, entry)| {
            entry.map(|entry| dir::Entry {
                name,
                cid: entry.cid,
                tsize: entry.dag_len,
            })
        });
        let mut nodes = Nodes::default();
        let profile = &self.options.profile;
        let built = dir::build(
            links.collect(),
            profile,
            &mut nodes.written_to(&mut self.sink),
        );
        nodes.check()?;
        let built = built.map_err(|error| {
            Error::with(
                ErrorKind::Limit,
                format!("{} cannot be a directory", path.display()),
                error,
            )
        })?;
        let (n_nodes, pack) = (nodes.n, nodes.pack);
        self.member(root, pack);
        sum.cid = built.cid;
        sum.dag_len = built.dag_len;
        sum.n_blocks += n_nodes;
        if let Some(pack) = pack {
            self.sink.directory(
                &path,
                self.profile,
                fingerprint,
                pack,
                &sum,
                n_nodes,
                n_entries,
            );
        }
        self.checkpoint_if_due()?;
        Ok(sum)
    }

    fn checkpoint_if_due(&mut self) -> Result<()> {
        if self.sink.is_due() {
            self.sink.checkpoint()?;
        }
        Ok(())
    }

    fn member(&mut self, root: usize, container: Option<ContainerId>) {
        let (Some(members), Some(container)) = (self.members.get_mut(root), container) else {
            return;
        };
        if members.last() != Some(&container) {
            members.push(container);
        }
    }

    fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    fn seen(&mut self, len: u64) {
        self.bytes_seen += len;
        let total = self
            .measured
            .load(Ordering::Acquire)
            .then(|| self.total.load(Ordering::Relaxed));
        self.progress.update("hashing", self.bytes_seen, total);
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            let what = "interrupted; run it again to go on where it was";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Ok(())
    }
}
