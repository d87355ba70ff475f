//! `add` of what lies in a source elsewhere: every object is read once, and stays there.
//!
//! In       a source, and paths below it.
//! Out      a root for each path; leaves as ranges of the objects, interior nodes in a pack.
//! Limits   [`JOBS_MAX`] jobs; a page of the listing and some lots of it wait
//!          (`remote::listing`). Directories are held until their last object was
//!          hashed, as those of an add from this disk are: about 200 bytes an object.
//! Not here what becomes of digests (`ingest::assembly`), files of this machine (`ingest::add`),
//!          which source a URL belongs to (`remote::target`).
//!
//! The calling thread lists, builds and commits; objects are read and hashed on the threads of
//! `store::sources`. What was added before and is still the same version is not read again.

mod cut;
mod listing;
pub(in crate::ingest) mod read;
pub mod target;
#[cfg(test)]
pub(crate) mod tests;
mod walk;

use std::collections::{HashMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::JoinSet;

use self::listing::{Listing, Lot};
use self::read::{ATTEMPTS_MAX, Finding, Found, Job, Reads, Task, is_same};
use self::target::Target;
use self::walk::{Spot, Walk, path_of};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::add::AddOptions;
use crate::ingest::add::files::{LEAVES_AHEAD_MAX, RANGE_LEAVES_MAX, RANGE_LEN};
use crate::ingest::assembly::growing::Growing;
use crate::ingest::assembly::{Assembly, HASHING, Place, Watcher};
use crate::ingest::hash::Leaves;
use crate::ingest::journal::Journal;
use crate::ingest::sink::Origin;
use crate::ingest::tree::Parent;
use crate::ingest::{AddReport, Changes, Progress};
use crate::source::validator::ObjectStamp;
use crate::source::{Listed, SourceError, SourceErrorKind};
use crate::store::Store;
use crate::store::catalog::Validator;
use crate::store::hasher::Hasher;
use crate::store::sources::{OpenSource, Sources};

/// Jobs that read or wait for their turn: as many read as the source's limiter lets.
const JOBS_MAX: usize = 96;
/// Objects from this length on are journalled, in bytes.
const JOURNAL_LEN_MIN: u64 = 16 << 20;
/// Objects that fail one after the other before the source is taken for gone.
const FAILURES_MAX: u32 = 2 * JOBS_MAX as u32;
/// Longest wait before somebody asks whether to stop.
const STOP_INTERVAL: Duration = Duration::from_millis(200);
/// Time between two notes about a source that asks to be left alone.
const NOTE_INTERVAL: Duration = Duration::from_secs(10);

/// Adds `targets`, which all lie in one source.
///
/// # Errors
/// `Invalid` if there is nothing at a target; `Unavailable` if the source cannot be listed, or does
/// not answer any more: what was read is remembered. Single objects that cannot be read are left
/// out.
pub fn add(
    store: &Arc<Store>,
    sources: &Sources,
    targets: &[Target],
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<AddReport> {
    add_audited(store, sources, targets, options, progress, stop, false).map(|done| done.0)
}

/// Adds, and with `audit` compares with what earlier adds found.
///
/// # Errors
/// As [`add`].
pub(in crate::ingest) fn add_audited(
    store: &Arc<Store>,
    sources: &Sources,
    targets: &[Target],
    options: &AddOptions,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
    audit: bool,
) -> Result<(AddReport, Changes)> {
    let Some(first) = targets.first() else {
        return Ok(Default::default());
    };
    if targets.iter().any(|one| one.source.id != first.source.id) {
        let what = "what lies in several sources cannot be wrapped into one directory";
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let origin = Origin {
        source: first.source.id,
        base: PathBuf::new(),
        shown: first.source.source.url().as_bytes().to_vec(),
    };
    let (total, measured) = (AtomicU64::new(0), AtomicBool::new(false));
    let watcher = Watcher {
        progress,
        stop,
        total: &total,
        measured: &measured,
    };
    let handle = sources.handle()?;
    let _ingest = store.ingest_lock();
    let source = Arc::clone(&first.source);
    target::require(store, &source)?;
    let assembly = Assembly::new(store, origin, options, watcher)?;
    RemoteAdder::new(assembly, handle, source).run(targets, audit)
}

struct RemoteAdder<'a> {
    assembly: Assembly<'a>,
    handle: Handle,
    reads: Arc<Reads>,
    jobs: JoinSet<Finding>,
    /// Jobs that are to be started next.
    queue: VecDeque<Job>,
    /// Objects of which something is under way, by token.
    objects: HashMap<u64, Object>,
    /// Big objects whose ranges were not all handed out.
    feeding: VecDeque<u64>,
    /// The argument that is gone through.
    top: PathBuf,
    n_listed: u64,
    n_done: u64,
    n_failed_in_a_row: u32,
    last_note: Instant,
}

/// An object that is being read.
struct Object {
    path: Arc<[u8]>,
    place: Place,
    attempt: u32,
    known: Option<Arc<ObjectStamp>>,
    big: Option<Big>,
}

/// A big one, in ranges.
struct Big {
    growing: Growing,
    stamp: Arc<ObjectStamp>,
    /// First leaf that was not handed out.
    next: u64,
    /// Ranges under way.
    out: u32,
    failure: Option<SourceError>,
}

/// What the calling thread waited for.
enum Event {
    Read(Finding),
    Listed(Option<Lot>),
    Nothing,
    Panicked,
}

impl<'a> RemoteAdder<'a> {
    fn new(assembly: Assembly<'a>, handle: Handle, source: Arc<OpenSource>) -> Self {
        let rule = assembly.rule;
        let whole_len_max = RANGE_LEN.min(RANGE_LEAVES_MAX * u64::from(rule.chunk_size));
        Self {
            assembly,
            handle,
            reads: Arc::new(Reads {
                source,
                rule,
                hasher: Hasher::default(),
                n_throttled: AtomicU64::new(0),
                whole_len_max,
            }),
            jobs: JoinSet::new(),
            queue: VecDeque::new(),
            objects: HashMap::new(),
            feeding: VecDeque::new(),
            top: PathBuf::new(),
            n_listed: 0,
            n_done: 0,
            n_failed_in_a_row: 0,
            last_note: Instant::now(),
        }
    }

    fn run(&mut self, targets: &[Target], audit: bool) -> Result<(AddReport, Changes)> {
        if audit {
            self.assembly.audit();
        }
        let outcome = self.run_all(targets);
        if outcome.is_err() {
            // What is whole stays: the next add goes on there. The first error is told.
            for big in self.objects.values_mut().filter_map(|o| o.big.as_mut()) {
                let _ = big.growing.journal.as_mut().map(Journal::flush);
            }
            let _ = self.assembly.sink.checkpoint();
        }
        outcome?;
        if let Some(remark) = self.reads.source.source.remark() {
            self.assembly.watcher.progress.note(&remark);
        }
        let mut roots = Vec::new();
        let n_roots = match self.assembly.options.wrap {
            _ if self.assembly.is_refused() => 0,
            true => 1,
            false => targets.len(),
        };
        for (index, target) in targets.iter().take(n_roots).enumerate() {
            roots.extend(self.assembly.root(index, &path_of(folder(&target.path)))?);
        }
        self.assembly.sink.checkpoint()?;
        let tops = targets.iter().map(|target| path_of(folder(&target.path)));
        let changes = self.assembly.finish_audit(&tops.collect::<Vec<_>>())?;
        self.assembly.sink.checkpoint()?;
        let mut report = std::mem::take(&mut self.assembly.report);
        report.roots = roots;
        Ok((report, changes))
    }

    fn run_all(&mut self, targets: &[Target]) -> Result<()> {
        let wrap = if self.assembly.options.wrap {
            self.assembly.begin_root();
            let names = targets.iter().map(Target::name);
            let names: Vec<_> = names.collect::<Result<_>>()?;
            let mut sorted = names.clone();
            sorted.sort_unstable();
            sorted.dedup();
            if sorted.len() < names.len() {
                let what = "two of what is to be wrapped have the same name";
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            let tree = &mut self.assembly.tree;
            Some(tree.open(PathBuf::new(), 0, Parent::Root(0), names))
        } else {
            None
        };
        for (entry, target) in targets.iter().enumerate() {
            let place = match wrap {
                Some(directory) => Place {
                    parent: Parent::Entry { directory, entry },
                    root: 0,
                },
                None => {
                    let root = self.assembly.begin_root();
                    let parent = Parent::Root(root);
                    Place { parent, root }
                }
            };
            self.target(target, place)?;
        }
        if let Some(complete) = wrap.and_then(|index| self.assembly.tree.all_listed(index)) {
            self.assembly.directory_done(complete)?;
        }
        let measured = self.assembly.watcher.measured;
        measured.store(true, Ordering::Release);
        while !self.fill(None)? {
            self.wait(None)?;
        }
        Ok(())
    }

    /// One argument, and everything below it, as far as it is listed.
    fn target(&mut self, target: &Target, place: Place) -> Result<()> {
        self.top = path_of(folder(&target.path));
        let source = Arc::clone(&self.reads.source);
        let hidden = self.assembly.options.hidden;
        let mut listing = Listing::begin(source, target.path.clone(), hidden, &self.handle);
        let mut walk = Walk::new(folder(&target.path).to_vec(), place);
        let mut lone: Option<ObjectStamp> = None;
        let n_before = self.n_listed;
        loop {
            self.fill(Some(&mut listing))?;
            while self.has_room()
                && let Some(listed) = listing.lot.pop_front()
            {
                let listed = listed.map_err(|error| cannot_list(&target.url(), error))?;
                self.listed(&mut walk, &mut lone, listed)?;
                self.fill(None)?;
            }
            if listing.lot.is_empty() && listing.is_over {
                break;
            }
            if listing.lot.is_empty() || !self.has_room() {
                self.wait(Some(&mut listing))?;
            }
        }
        match lone {
            Some(stamp) if walk.is_empty() => return self.file(&target.path, stamp, place),
            Some(_) => {
                let path = path_of(folder(&target.path));
                let why = "a folder has the same name".to_owned();
                self.assembly.name_left_out(&path, why);
            }
            None if self.n_listed == n_before => {
                let what = format!(
                    "there is nothing at {}",
                    String::from_utf8_lossy(&target.url())
                );
                return Err(Error::new(ErrorKind::Invalid, what));
            }
            None if walk.is_empty() => walk.open_empty(&mut self.assembly),
            None => {}
        }
        walk.finish(&mut self.assembly)
    }

    /// One entry of a listing. `lone`: the target, if it is an object.
    fn listed(
        &mut self,
        walk: &mut Walk,
        lone: &mut Option<ObjectStamp>,
        listed: Listed,
    ) -> Result<()> {
        self.n_listed += u64::from(listed != Listed::List);
        match listed {
            Listed::List => walk.is_list(),
            Listed::Odd { path, why } => self.assembly.name_left_out(&path_of(&path), why),
            Listed::Object { path, stamp } if walk.is_top(&path) => *lone = Some(stamp),
            Listed::Object { path, stamp } => self.object(walk, &path, stamp)?,
            Listed::Hidden { .. } => self.assembly.report.hidden += 1,
            Listed::Folder { path } if walk.is_top(&path) => {}
            Listed::Folder { path } => {
                let spot = walk.folder(&path, &mut self.assembly)?;
                self.no_place(&path, spot);
            }
        }
        Ok(())
    }

    fn object(&mut self, walk: &mut Walk, path: &[u8], stamp: ObjectStamp) -> Result<()> {
        match walk.object(path, &mut self.assembly)? {
            Spot::At(place) => self.file(path, stamp, place),
            spot => {
                self.no_place(path, Some(spot));
                Ok(())
            }
        }
    }

    /// Counts what has no place in the tree.
    fn no_place(&mut self, path: &[u8], spot: Option<Spot>) {
        match spot {
            None | Some(Spot::At(_)) => {}
            Some(Spot::Hidden) => self.assembly.report.hidden += 1,
            Some(Spot::Odd(why)) => {
                self.assembly.name_left_out(&path_of(path), why.to_owned());
            }
        }
    }

    fn file(&mut self, path: &[u8], stamp: ObjectStamp, place: Place) -> Result<()> {
        if self.assembly.too_long(&path_of(path), stamp.size, place)? {
            self.n_done += 1;
            return Ok(());
        }
        let total = self.assembly.watcher.total;
        total.fetch_add(stamp.size, Ordering::Relaxed);
        // A listing without tags may be a table for people: times to the minute.
        let stat_first = stamp.etag.is_none() && stamp.version.is_none();
        let (sink, profile) = (&self.assembly.sink, self.assembly.profile);
        let known = sink.known_file(&path_of(path), profile)?;
        let known_stamp = known.as_ref().and_then(|known| known.validator.object());
        let known_stamp = known_stamp.map(Arc::clone);
        if let (Some(known), Some(known_stamp)) = (&known, &known_stamp)
            && !stat_first
            && is_same(known_stamp, &stamp)
        {
            self.n_done += 1;
            return self.assembly.unchanged(&path_of(path), known, place);
        }
        if known.is_none() && !stat_first {
            let now = Validator::from(stamp.clone());
            let moved = self.assembly.moved(&self.top, &path_of(path), &now)?;
            if let Some(known) = moved {
                self.n_done += 1;
                return self.assembly.unchanged(&path_of(path), &known, place);
            }
        }
        let token = self.assembly.token();
        let path: Arc<[u8]> = path.into();
        let task = match stamp.size > self.reads.whole_len_max {
            true => Task::Stat,
            false => Task::Whole {
                stamp,
                stat_first,
                known: known_stamp.clone(),
            },
        };
        self.queue.push_back(Job {
            token,
            path: Arc::clone(&path),
            task,
        });
        let object = Object {
            path,
            place,
            attempt: 1,
            known: known_stamp,
            big: None,
        };
        self.objects.insert(token, object);
        Ok(())
    }

    fn has_room(&self) -> bool {
        self.jobs.len() + self.queue.len() < JOBS_MAX
    }

    /// Starts what can be started, without waiting. Whether nothing is left to do.
    fn fill(&mut self, listing: Option<&mut Listing>) -> Result<bool> {
        while let Some(done) = self.jobs.try_join_next() {
            let done = done.map_err(|_| panicked())?;
            self.done(done)?;
        }
        while self.jobs.len() < JOBS_MAX {
            let Some(job) = self.queue.pop_front().or_else(|| self.next_range()) else {
                break;
            };
            let reads = Arc::clone(&self.reads);
            self.jobs.spawn_on(reads.run(job), &self.handle);
        }
        if let Some(listing) = listing
            && listing.lot.is_empty()
            && let Ok(lot) = listing.lots.try_recv()
        {
            listing.lot = lot.into();
        }
        Ok(self.jobs.is_empty() && self.queue.is_empty() && self.feeding.is_empty())
    }

    /// The next range of a big object, unless too many of it came before one that is missing.
    fn next_range(&mut self) -> Option<Job> {
        let rule = self.assembly.rule;
        let range_leaves = rule.leaves_of(RANGE_LEN, RANGE_LEAVES_MAX);
        while let Some(&token) = self.feeding.front() {
            let object = self.objects.get_mut(&token);
            let whole = object.and_then(|object| Some((&object.path, object.big.as_mut()?)));
            let Some((path, big)) = whole else {
                self.feeding.pop_front();
                continue;
            };
            let left = big.growing.n_leaves.saturating_sub(big.next);
            if left == 0 || big.failure.is_some() {
                self.feeding.pop_front();
                continue;
            }
            if big.next - big.growing.next_leaf > LEAVES_AHEAD_MAX {
                return None; // Its first missing range is under way.
            }
            let (first, n) = (big.next, left.min(range_leaves));
            big.next += n;
            big.out += 1;
            let stamp = Arc::clone(&big.stamp);
            return Some(Job {
                token,
                path: Arc::clone(path),
                task: Task::Range { stamp, first, n },
            });
        }
        None
    }

    /// Waits until something was read or listed.
    fn wait(&mut self, listing: Option<&mut Listing>) -> Result<()> {
        self.assembly.check_stop()?;
        self.note_throttling();
        let jobs = &mut self.jobs;
        let (mut lots, wants_lots) = match listing {
            Some(listing) => {
                let wants = listing.lot.is_empty() && !listing.is_over;
                (Some(listing), wants)
            }
            None => (None, false),
        };
        let event = self.handle.block_on(async {
            let next_lot = async {
                match &mut lots {
                    Some(listing) => listing.lots.recv().await,
                    None => None,
                }
            };
            tokio::select! {
                Some(done) = jobs.join_next() => done.map_or(Event::Panicked, Event::Read),
                lot = next_lot, if wants_lots => Event::Listed(lot),
                () = tokio::time::sleep(STOP_INTERVAL) => Event::Nothing,
            }
        });
        match (event, lots) {
            (Event::Read(done), _) => self.done(done),
            (Event::Listed(Some(lot)), Some(listing)) => {
                listing.lot = lot.into();
                Ok(())
            }
            (Event::Listed(None), Some(listing)) => {
                listing.is_over = true;
                Ok(())
            }
            (Event::Panicked, _) => Err(panicked()),
            _ => Ok(()),
        }
    }

    fn note_throttling(&mut self) {
        if self.reads.n_throttled.load(Ordering::Relaxed) > 0
            && self.last_note.elapsed() > NOTE_INTERVAL
        {
            self.last_note = Instant::now();
            let note = format!(
                "{} asks for fewer requests: waiting",
                self.reads.source.source.url()
            );
            self.assembly.watcher.progress.note(&note);
        }
    }

    /// Something came of a job.
    fn done(&mut self, finding: Finding) -> Result<()> {
        let Finding { token, result } = finding;
        let progress = &mut self.assembly.watcher.progress;
        if progress.wants_total() {
            let (n_done, n_listed) = (self.n_done, self.n_listed);
            progress.detail(HASHING, &format!("{n_done} of {n_listed} objects"));
        }
        let Some(object) = self.objects.get_mut(&token) else {
            return Ok(());
        };
        if let Some(big) = &mut object.big {
            big.out -= 1;
            match result {
                Ok(Found::Leaves(_, first, digests)) => {
                    self.n_failed_in_a_row = 0;
                    self.assembly
                        .leaves_came(&mut big.growing, first, Leaves::Each(digests))?;
                    if let Some(journal) = &mut big.growing.journal {
                        let _ = journal.flush(); // A full disk is told by what must be written.
                    }
                }
                Ok(Found::Stamp(_)) => {}
                Err(error) => big.failure = Some(error),
            }
            return self.conclude(token);
        }
        match result {
            Ok(Found::Stamp(stamp)) => self.stamped(token, stamp),
            Ok(Found::Leaves(stamp, _, digests)) => {
                self.n_failed_in_a_row = 0;
                self.n_done += 1;
                let Some(object) = self.objects.remove(&token) else {
                    return Ok(());
                };
                let (path, validator) = (path_of(&object.path), Validator::Object(stamp));
                self.assembly
                    .whole_file(&path, object.place, &validator, &digests)?;
                self.assembly.checkpoint_if_due()
            }
            Err(error) => self.failed(token, error),
        }
    }

    /// What an object is was asked before reading it.
    fn stamped(&mut self, token: u64, stamp: ObjectStamp) -> Result<()> {
        let Some(object) = self.objects.get_mut(&token) else {
            return Ok(());
        };
        self.n_failed_in_a_row = 0;
        let (path, place) = (path_of(&object.path), object.place);
        if object
            .known
            .as_ref()
            .is_some_and(|old| is_same(old, &stamp))
        {
            let known = self
                .assembly
                .sink
                .known_file(&path, self.assembly.profile)?;
            if let Some(known) = known {
                self.objects.remove(&token);
                self.n_done += 1;
                return self.assembly.unchanged(&path, &known, place);
            }
        }
        if stamp.size <= self.reads.whole_len_max {
            let (path, stat_first, known) = (Arc::clone(&object.path), false, None);
            let task = Task::Whole {
                stamp,
                stat_first,
                known,
            };
            self.queue.push_back(Job { token, path, task });
            return Ok(());
        }
        if self.assembly.too_long(&path, stamp.size, place)? {
            self.objects.remove(&token);
            self.n_done += 1;
            return Ok(());
        }
        let stamp = Arc::new(stamp);
        let validator = Validator::Object(Arc::clone(&stamp));
        let growing = self
            .assembly
            .grow(&path, &validator, place, JOURNAL_LEN_MIN)?;
        object.big = Some(Big {
            next: growing.next_leaf,
            growing,
            stamp,
            out: 0,
            failure: None,
        });
        self.feeding.push_back(token);
        self.conclude(token) // The journal may have had all of it.
    }

    /// Ends a big object once nothing of it is under way.
    fn conclude(&mut self, token: u64) -> Result<()> {
        let Some(object) = self.objects.get_mut(&token) else {
            return Ok(());
        };
        let over = object.big.take_if(|big| {
            big.out == 0 && (big.failure.is_some() || big.next == big.growing.n_leaves)
        });
        let Some(big) = over else {
            return Ok(());
        };
        let Some(error) = big.failure else {
            self.objects.remove(&token);
            self.n_done += 1;
            self.assembly.grown(big.growing)?;
            return self.assembly.checkpoint_if_due();
        };
        let mut journal = big.growing.journal;
        let changed = error.kind == SourceErrorKind::Changed;
        if let Some(mut journal) = journal.take() {
            if changed {
                journal.remove();
            } else {
                let _ = journal.flush(); // For the next add.
            }
        }
        if changed && object.attempt < ATTEMPTS_MAX {
            object.attempt += 1;
            let (path, task) = (Arc::clone(&object.path), Task::Stat);
            self.queue.push_back(Job { token, path, task });
            return Ok(());
        }
        self.failed(token, error)
    }

    /// An object will not be part of the result.
    fn failed(&mut self, token: u64, error: SourceError) -> Result<()> {
        let Some(object) = self.objects.remove(&token) else {
            return Ok(());
        };
        self.n_done += 1;
        if error.is_passing() {
            self.n_failed_in_a_row += 1;
            if self.n_failed_in_a_row > FAILURES_MAX {
                let what = "the source does not answer any more; run it again to go on";
                return Err(Error::with(ErrorKind::Unavailable, what, error));
            }
        }
        let why = match error.kind {
            SourceErrorKind::Missing => "deleted since it was listed".to_owned(),
            SourceErrorKind::Changed => "changed while it was read".to_owned(),
            _ => error.to_string(),
        };
        self.assembly
            .left_out(&path_of(&object.path), why, object.place)
    }
}

/// The path of a folder: web servers' end in a slash.
fn folder(path: &[u8]) -> &[u8] {
    path.strip_suffix(b"/").unwrap_or(path)
}

fn cannot_list(url: &[u8], error: SourceError) -> Error {
    let kind = match error.kind {
        SourceErrorKind::Missing | SourceErrorKind::Unusable => ErrorKind::Invalid,
        _ => ErrorKind::Unavailable,
    };
    let what = format!("cannot list {}", String::from_utf8_lossy(url));
    Error::with(kind, what, error)
}

fn panicked() -> Error {
    Error::new(ErrorKind::Internal, "a reading task panicked")
}
