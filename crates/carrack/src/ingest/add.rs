//! `add`: a tree of files becomes a DAG whose leaves stay where they are.
//!
//! In       paths of files and folders.
//! Out      a root for each; leaves as ranges of the files, interior nodes in a pack.
//! Limits   jobs under way are bounded (`ingest::hash`), so are the directories held
//!          (`ingest::tree`) and the rows not yet committed (`ingest::sink`).
//! Not here CARs (`ingest::import`).
//!
//! One thread scans and builds; workers read and hash. A file whose validator is what an earlier add
//! saw is not opened. Work is committed every few seconds, so that an add that was interrupted goes
//! on where it was.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use carrack_formats::unixfs::build::{FileBuilder, Leaf};
use carrack_formats::unixfs::profile::Profile;
use carrack_formats::unixfs::{dir, leaf};
use ::cid::Version;
use carrack_formats::{Cid, cid};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::hash::{self, Digest, Done, HashPool, Job, LeafRule};
use crate::ingest::journal::{self, Journal, Subject};
use crate::ingest::scan::{self, Entry, EntryKind};
use crate::ingest::sink::Sink;
use crate::ingest::tree::{Directory, Parent, Sum, Tree};
use crate::ingest::{AddReport, AddedRoot, LEFT_OUT_SHOWN_MAX, LeftOut, Progress};
use crate::source::local::{LocalFile, validator_of};
use crate::store::Store;
use crate::store::catalog::{ContainerKind, RootKind, Validator};
use crate::store::location::{ContainerId, Location};

/// Files up to this length are hashed whole by one worker, longer ones in ranges of it, in bytes.
const RANGE_LEN: u64 = 8 << 20;
/// Small files handed to a worker together: at most so many, and so many bytes.
const BATCH_FILES_MAX: usize = 64;
const BATCH_LEN_MAX: u64 = 4 << 20;
/// How often a big file that changes while it is read is read again.
const ATTEMPTS_MAX: u32 = 3;
/// A file written less than this before it was looked at may be written again without a new
/// timestamp: it is not taken for unchanged next time. Nanoseconds.
const RACY_NS: i128 = 20_000_000;

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
    let mut targets = Vec::new();
    for path in paths {
        let real = std::fs::canonicalize(path)
            .context(ErrorKind::Invalid, || format!("cannot add {}", path.display()))?;
        let name = path.file_name().or(real.file_name()).unwrap_or_default().to_owned();
        targets.push((name, real));
    }
    let total = Arc::new(AtomicU64::new(0));
    let measured = Arc::new(AtomicBool::new(false));
    std::thread::scope(|scope| {
        if progress.wants_total() {
            let (total, measured) = (Arc::clone(&total), Arc::clone(&measured));
            let roots: Vec<PathBuf> = targets.iter().map(|target| target.1.clone()).collect();
            scope.spawn(move || {
                measure(roots, options.hidden, &total, stop);
                measured.store(true, Ordering::Release);
            });
        }
        let _ingest = store.ingest_lock();
        let mut adder = Adder::new(store, options, progress, stop, &total, &measured)?;
        adder.run(targets)
    })
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
    started_ns: i128,
}

/// Where a file's sum goes, and which root it counts for.
#[derive(Debug, Clone, Copy)]
struct Place {
    parent: Parent,
    root: usize,
}

struct SmallFile {
    place: Place,
    path: PathBuf,
}

struct BigFile {
    place: Place,
    path: PathBuf,
    file: Arc<LocalFile>,
    container: ContainerId,
    builder: FileBuilder,
    journal: Option<Journal>,
    attempt: u32,
    n_leaves: u64,
    next_leaf: u64,
    waiting: BTreeMap<u64, Vec<Digest>>,
    ranges_out: u32,
    fed: bool,
    n_nodes: u64,
    pack: Option<ContainerId>,
    failure: Option<io::Error>,
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
        let rule =
            LeafRule { chunk_size: options.profile.chunk_size, raw: options.profile.raw_leaves };
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
            started_ns: crate::node::clock::unix_nanoseconds(),
        })
    }

    fn run(&mut self, targets: Vec<(OsString, PathBuf)>) -> Result<AddReport> {
        let outcome = self.run_all(&targets);
        if outcome.is_err() {
            // What is whole stays: the next add goes on from there. The first error is the one told.
            for file in self.big.values_mut() {
                let _ = file.journal.as_mut().map(Journal::flush);
            }
            let _ = self.sink.checkpoint();
        }
        outcome?;
        let mut report = std::mem::take(&mut self.report);
        for (index, sum) in self.sums.iter().enumerate() {
            let (Some(sum), Some(target)) = (sum, targets.get(index)) else { continue };
            let members = self.members.get_mut(index).map(std::mem::take).unwrap_or_default();
            let path = if self.options.wrap {
                target.1.parent().unwrap_or(&target.1).to_owned()
            } else {
                target.1.clone()
            };
            self.sink.root(&sum.cid, &path, RootKind::Add, self.profile, *sum, members)?;
            report.roots.push(AddedRoot {
                cid: sum.cid,
                path,
                bytes: sum.file_len,
                n_blocks: sum.n_blocks,
                n_files: sum.n_files,
            });
        }
        self.sink.checkpoint()?;
        Ok(report)
    }

    fn run_all(&mut self, targets: &[(OsString, PathBuf)]) -> Result<()> {
        if self.options.wrap {
            self.members.push(Vec::new());
            self.sums.push(None);
            let names: Vec<_> = targets.iter().map(|(name, _)| name.as_bytes().to_vec()).collect();
            let directory = self.tree.open(PathBuf::new(), 0, Parent::Root(0), names);
            for (entry, (_, path)) in targets.iter().enumerate() {
                self.target(path, Place { parent: Parent::Entry { directory, entry }, root: 0 })?;
            }
            if let Some(complete) = self.tree.all_listed(directory) {
                self.directory_done(complete)?;
            }
        } else {
            for (root, (_, path)) in targets.iter().enumerate() {
                self.members.push(Vec::new());
                self.sums.push(None);
                self.target(path, Place { parent: Parent::Root(root), root })?;
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
        let meta = std::fs::symlink_metadata(path)
            .context(ErrorKind::Invalid, || format!("cannot add {}", path.display()))?;
        if meta.is_file() {
            return self.file(path.to_owned(), &validator_of(&meta), place);
        }
        if !meta.is_dir() {
            let what = format!("{} is neither a file nor a folder", path.display());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let first = self.enter(path.to_owned(), place).map_err(|error| {
            Error::with(ErrorKind::Unavailable, format!("cannot list {}", path.display()), error)
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
            let parent = Parent::Entry { directory: level.directory, entry: level.next_entry };
            level.next_entry += 1;
            let place = Place { parent, root: level.root };
            let path = level.path.join(&entry.name);
            match entry.kind {
                EntryKind::File(validator) => self.file(path, &validator, place)?,
                EntryKind::Symlink(target) => self.symlink(&path, &target, place)?,
                EntryKind::Unreadable(error) => self.left_out(path, &error, place)?,
                EntryKind::Directory => match self.enter(path.clone(), place) {
                    Ok(level) => levels.push(level),
                    Err(error) => self.left_out(path, &error, place)?,
                },
            }
        }
        Ok(())
    }

    fn enter(&mut self, path: PathBuf, place: Place) -> io::Result<Level> {
        let listing = scan::list(&path, self.options.hidden)?;
        self.report.hidden += listing.hidden;
        self.report.special += listing.special;
        let names = listing.entries.iter().map(|entry| entry.name.as_bytes().to_vec());
        let directory = self.tree.open(path.clone(), place.root, place.parent, names);
        let entries = listing.entries.into_iter();
        Ok(Level { directory, path, entries, next_entry: 0, root: place.root })
    }

    fn file(&mut self, path: PathBuf, validator: &Validator, place: Place) -> Result<()> {
        if let Some(known) = self.sink.known_file(&path, self.profile)?
            && known.validator == *validator
        {
            self.report.files_unchanged += 1;
            self.seen(validator.size);
            self.member(place.root, known.container);
            self.member(place.root, known.pack);
            return self.settle(place.parent, Some(known.sum));
        }
        if validator.size > RANGE_LEN {
            return self.big_file(&path, place, 1);
        }
        let token = self.token();
        self.batch.push((token, path.clone()));
        self.batch_len += validator.size;
        self.small.insert(token, SmallFile { place, path });
        if self.batch.len() >= BATCH_FILES_MAX || self.batch_len >= BATCH_LEN_MAX {
            self.flush_batch()?;
        }
        Ok(())
    }

    fn flush_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.make_room()?;
        self.batch_len = 0;
        let files = std::mem::take(&mut self.batch);
        self.pool.submit(Job::Files(files));
        Ok(())
    }

    /// Opens a big file and hands its ranges to the workers, waiting for room as needed.
    fn big_file(&mut self, path: &Path, place: Place, attempt: u32) -> Result<()> {
        let file = match LocalFile::open(path) {
            Ok(file) => Arc::new(file),
            Err(error) => return self.left_out(path.to_owned(), &error, place),
        };
        file.advise_sequential();
        let len = file.validator.size;
        let n_leaves = self.rule.n_leaves(len);
        let container = self.sink.new_container();
        let (journal, known) = self.journal(path, &file);
        let token = self.token();
        self.big.insert(token, BigFile {
            place,
            path: path.to_owned(),
            file: Arc::clone(&file),
            container,
            builder: FileBuilder::new(&self.options.profile),
            journal,
            attempt,
            n_leaves,
            next_leaf: 0,
            waiting: BTreeMap::new(),
            ranges_out: 0,
            fed: false,
            n_nodes: 0,
            pack: None,
            failure: None,
        });
        let known_len = (known.len() as u64).saturating_mul(u64::from(self.rule.chunk_size)).min(len);
        let mut first = (known.len() as u64).min(n_leaves);
        self.push_leaves(token, known, true)?;
        self.seen(known_len);
        let range_leaves = (RANGE_LEN / u64::from(self.rule.chunk_size)).clamp(1, 1 << 16);
        while first < n_leaves {
            self.check_stop()?;
            self.make_room()?;
            let Some(big) = self.big.get_mut(&token).filter(|big| big.failure.is_none()) else { break };
            let n = range_leaves.min(n_leaves - first);
            big.ranges_out += 1;
            let n_leaves_32 = u32::try_from(n).unwrap_or(u32::MAX);
            let file = Arc::clone(&file);
            self.pool.submit(Job::Range { token, file, first, n: n_leaves_32 });
            first += n;
        }
        if let Some(big) = self.big.get_mut(&token) {
            big.fed = true;
        }
        self.conclude(token)
    }

    fn journal(&self, path: &Path, file: &LocalFile) -> (Option<Journal>, Vec<Digest>) {
        if file.validator.size < journal::FILE_LEN_MIN {
            return (None, Vec::new());
        }
        let subject = Subject {
            path: path.as_os_str().as_bytes(),
            validator: &file.validator,
            profile: self.profile,
        };
        match Journal::open(self.sink.journal_dir(), subject) {
            Ok((journal, known)) => (Some(journal), known),
            Err(error) => {
                tracing::warn!(%error, "no journal: an interrupted add of this file starts over");
                (None, Vec::new())
            }
        }
    }

    fn make_room(&mut self) -> Result<()> {
        while let Some(done) = self.pool.poll() {
            self.finished(done)?;
        }
        while !self.pool.has_room() {
            self.drain_one()?;
        }
        Ok(())
    }

    fn drain_one(&mut self) -> Result<()> {
        self.check_stop()?;
        match self.pool.wait() {
            Some(done) => self.finished(done),
            None => Ok(()),
        }
    }

    fn finished(&mut self, done: Vec<Done>) -> Result<()> {
        for done in done {
            if let Some(small) = self.small.remove(&done.token) {
                self.small_done(small, done)?;
            } else {
                self.range_done(done)?;
            }
        }
        if self.sink.is_due() {
            self.sink.checkpoint()?;
        }
        Ok(())
    }

    fn small_done(&mut self, small: SmallFile, done: Done) -> Result<()> {
        let (validator, digests) = match done.result {
            Ok(hashed) => hashed,
            Err(error) => return self.left_out(small.path, &error, small.place),
        };
        let len = validator.size;
        self.report.files_hashed += 1;
        self.report.bytes_hashed += len;
        self.seen(len);
        let mut builder = FileBuilder::new(&self.options.profile);
        let mut nodes = NodeCount::default();
        // An empty leaf lies nowhere: it is a node like any other.
        let container = if len > 0 { Some(self.sink.new_container()) } else { None };
        for (index, digest) in digests.iter().enumerate() {
            let leaf = self.leaf(container, digest, index as u64, len)?;
            builder.push_leaf(leaf, &mut |cid, block| nodes.push(cid, block));
        }
        let built = builder.finish(&mut |cid, block| nodes.push(cid, block));
        let n_blocks = digests.len() as u64 + nodes.blocks.len() as u64;
        let pack = self.write_nodes(nodes)?.or(container.is_none().then(|| self.sink.pack_id()).flatten());
        let sum = Sum {
            cid: built.cid,
            file_len: len,
            dag_len: built.dag_len,
            n_blocks,
            n_files: 1,
        };
        self.file_done(&small.path, small.place, &validator, container, pack, sum)
    }

    /// Records where a leaf lies and gives it to the builder.
    fn leaf(
        &mut self,
        container: Option<ContainerId>,
        digest: &Digest,
        index: u64,
        file_len: u64,
    ) -> Result<Leaf> {
        let (offset, len) = self.rule.leaf(index, file_len);
        let (version, codec) = match self.rule.raw {
            true => (Version::V1, cid::RAW),
            false => (self.options.profile.cid_version, cid::DAG_PB),
        };
        let cid = cid::from_sha256(version, codec, digest);
        let block_len =
            if self.rule.raw { u64::from(len) } else { leaf::block_len(len as usize) as u64 };
        match container {
            Some(container) => {
                let location = Location { container, offset, len, wrapped: !self.rule.raw };
                self.sink.range(&cid, location)?;
            }
            None => {
                let (mut block, suffix) =
                    if self.rule.raw { (Vec::new(), Vec::new()) } else { leaf::frame(0) };
                block.extend_from_slice(&suffix);
                self.sink.node(&cid, &block)?;
            }
        }
        Ok(Leaf { cid, file_len: u64::from(len), block_len })
    }

    fn write_nodes(&mut self, nodes: NodeCount) -> Result<Option<ContainerId>> {
        let mut pack = None;
        for (cid, block) in nodes.blocks {
            pack = Some(self.sink.node(&cid, &block)?);
        }
        Ok(pack)
    }

    fn range_done(&mut self, done: Done) -> Result<()> {
        let token = done.token;
        let Some(big) = self.big.get_mut(&token) else { return Ok(()) };
        big.ranges_out -= 1;
        match done.result {
            Err(error) => big.failure = Some(error),
            Ok((_, digests)) => {
                let len = (digests.len() as u64).saturating_mul(u64::from(self.rule.chunk_size));
                let len = len.min(big.file.validator.size);
                big.waiting.insert(done.first, digests);
                self.report.bytes_hashed += len;
                self.seen(len);
                while let Some(digests) = self
                    .big
                    .get_mut(&token)
                    .and_then(|big| big.waiting.remove(&big.next_leaf))
                {
                    self.push_leaves(token, digests, false)?;
                }
            }
        }
        self.conclude(token)
    }

    /// The next leaves of a big file, in order.
    fn push_leaves(&mut self, token: u64, digests: Vec<Digest>, journalled: bool) -> Result<()> {
        let Some(mut big) = self.big.remove(&token) else { return Ok(()) };
        let mut nodes = NodeCount::default();
        for digest in &digests {
            if big.next_leaf >= big.n_leaves {
                break;
            }
            let len = big.file.validator.size;
            let leaf = self.leaf(Some(big.container), digest, big.next_leaf, len)?;
            big.builder.push_leaf(leaf, &mut |cid, block| nodes.push(cid, block));
            big.next_leaf += 1;
            if !journalled && let Some(journal) = &mut big.journal && journal.push(*digest).is_err() {
                big.journal = None; // A full disk is told by what must be written.
            }
        }
        big.n_nodes += nodes.blocks.len() as u64;
        big.pack = self.write_nodes(nodes)?.or(big.pack);
        self.big.insert(token, big);
        Ok(())
    }

    /// Ends a big file once nothing of it is under way.
    fn conclude(&mut self, token: u64) -> Result<()> {
        let is_over = |big: &mut BigFile| big.fed && big.ranges_out == 0;
        if !self.big.get_mut(&token).is_some_and(is_over) {
            return Ok(());
        }
        let Some(mut big) = self.big.remove(&token) else { return Ok(()) };
        let same = big.file.current_validator().is_ok_and(|now| now == big.file.validator);
        let cut = matches!(&big.failure, Some(error) if error.kind() == io::ErrorKind::UnexpectedEof);
        if !same || cut {
            big.journal.take().map(Journal::remove);
            if big.attempt < ATTEMPTS_MAX {
                self.again.push_back((big.place, big.path, big.attempt + 1));
                return Ok(());
            }
            return self.left_out(big.path, &hash::changed_while_read(), big.place);
        }
        if let Some(error) = big.failure {
            return self.left_out(big.path, &error, big.place);
        }
        let mut nodes = NodeCount::default();
        let built = big.builder.finish(&mut |cid, block| nodes.push(cid, block));
        let n_nodes = big.n_nodes + nodes.blocks.len() as u64;
        let pack = self.write_nodes(nodes)?.or(big.pack);
        let len = big.file.validator.size;
        let sum = Sum {
            cid: built.cid,
            file_len: len,
            dag_len: built.dag_len,
            n_blocks: big.n_leaves + n_nodes,
            n_files: 1,
        };
        self.report.files_hashed += 1;
        self.sink.forget_after_commit(big.journal.take());
        let validator = &big.file.validator;
        self.file_done(&big.path, big.place, validator, Some(big.container), pack, sum)
    }

    fn file_done(
        &mut self,
        path: &Path,
        place: Place,
        validator: &Validator,
        container: Option<ContainerId>,
        pack: Option<ContainerId>,
        sum: Sum,
    ) -> Result<()> {
        if let Some(container) = container {
            self.sink.container(container, ContainerKind::File, path, validator);
        }
        if !self.is_racy(validator) {
            self.sink.file(path, self.profile, validator, container, pack, sum);
        }
        self.member(place.root, container);
        self.member(place.root, pack);
        self.settle(place.parent, Some(sum))
    }

    /// Whether the file may be written once more without a new timestamp: it is not remembered.
    fn is_racy(&self, validator: &Validator) -> bool {
        let newest = validator.mtime.max(validator.ctime);
        let newest_ns = i128::from(newest.secs) * 1_000_000_000 + i128::from(newest.nanos);
        newest_ns > self.started_ns - RACY_NS
    }

    fn symlink(&mut self, path: &Path, target: &[u8], place: Place) -> Result<()> {
        self.report.symlinks += 1;
        let (built, block) = dir::symlink(target, &self.options.profile);
        let dag_len = block.len() as u64;
        let sum = Sum { cid: built.cid, file_len: 0, dag_len, n_blocks: 1, n_files: 0 };
        let known = self.sink.known_file(path, self.profile)?;
        let pack = match known.filter(|known| known.sum.cid == built.cid) {
            Some(known) => known.pack,
            None => {
                let pack = Some(self.sink.node(&built.cid, &block)?);
                let validator = Validator::default(); // What it points to tells whether it changed.
                self.sink.file(path, self.profile, &validator, None, pack, sum);
                pack
            }
        };
        self.member(place.root, pack);
        self.settle(place.parent, Some(sum))
    }

    fn left_out(&mut self, path: PathBuf, error: &io::Error, place: Place) -> Result<()> {
        self.report.n_left_out += 1;
        if self.report.left_out.len() < LEFT_OUT_SHOWN_MAX {
            self.report.left_out.push(LeftOut { path, why: error.to_string() });
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
        let Directory { path, root, entries, .. } = directory;
        let n_entries = entries.len() as u64;
        let mut fingerprint = blake3::Hasher::new();
        let mut sum = Sum { cid: cid::empty_identity(), file_len: 0, dag_len: 0, n_blocks: 0, n_files: 0 };
        for (name, entry) in entries.iter() {
            let Some(entry) = entry else { continue };
            fingerprint.update(&(name.len() as u64).to_le_bytes()).update(name);
            fingerprint.update(&entry.dag_len.to_le_bytes()).update(&entry.cid.to_bytes());
            sum.file_len += entry.file_len;
            sum.n_blocks += entry.n_blocks;
            sum.n_files += entry.n_files;
        }
        let fingerprint = *fingerprint.finalize().as_bytes();
        if let Some(known) = self.sink.known_directory(&path, self.profile, &fingerprint)? {
            self.member(root, known.pack);
            sum.cid = known.cid;
            sum.dag_len = known.dag_len;
            sum.n_blocks += known.n_nodes;
            return Ok(sum);
        }
        let links = entries.into_iter().filter_map(|(name, entry)| {
            entry.map(|entry| dir::Entry { name, cid: entry.cid, tsize: entry.dag_len })
        });
        let mut nodes = NodeCount::default();
        let built = dir::build(links.collect(), &self.options.profile, &mut |cid, block| {
            nodes.push(cid, block);
        });
        let built = built.map_err(|error| {
            Error::with(ErrorKind::Limit, format!("{} cannot be a directory", path.display()), error)
        })?;
        let n_nodes = nodes.blocks.len() as u64;
        let pack = self.write_nodes(nodes)?;
        self.member(root, pack);
        sum.cid = built.cid;
        sum.dag_len = built.dag_len;
        sum.n_blocks += n_nodes;
        if let Some(pack) = pack {
            self.sink.directory(&path, self.profile, fingerprint, pack, &sum, n_nodes, n_entries);
        }
        Ok(sum)
    }

    fn member(&mut self, root: usize, container: Option<ContainerId>) {
        let (Some(members), Some(container)) = (self.members.get_mut(root), container) else { return };
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
        let total = self.measured.load(Ordering::Acquire).then(|| self.total.load(Ordering::Relaxed));
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

/// Nodes a builder gave, to be written once it is not borrowed any more.
#[derive(Default)]
struct NodeCount {
    blocks: Vec<(Cid, Vec<u8>)>,
}

impl NodeCount {
    fn push(&mut self, cid: Cid, block: Vec<u8>) {
        self.blocks.push((cid, block));
    }
}

/// Adds up the lengths of all files, for an estimate of the time left.
fn measure(roots: Vec<PathBuf>, with_hidden: bool, total: &AtomicU64, stop: &AtomicBool) {
    let mut left = roots;
    while let Some(path) = left.pop() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_file() {
            total.fetch_add(meta.len(), Ordering::Relaxed);
        } else if meta.is_dir() {
            let Ok(listing) = scan::list(&path, with_hidden) else { continue };
            for entry in listing.entries {
                match entry.kind {
                    EntryKind::File(validator) => {
                        total.fetch_add(validator.size, Ordering::Relaxed);
                    }
                    EntryKind::Directory => left.push(path.join(entry.name)),
                    EntryKind::Symlink(_) | EntryKind::Unreadable(_) => {}
                }
            }
        }
    }
}
