//! Leaves are read and hashed on all cores.
//!
//! In       small files, many a job, or a range of leaves of one big open file.
//! Out      sha2-256 digests of the leaf blocks, in leaf order within a job; jobs end in any order.
//! Limits   the caller keeps at most [`HashPool::in_flight_max`] jobs going, so that neither queue
//!          ever blocks; a worker holds about 512 KiB, or a leaf, 8 MiB where the processor
//!          hashes sixteen messages at once.
//! Not here trees (`formats::unixfs::build`), what becomes of the digests (`ingest::add`).

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use carrack_formats::sha256::{digest_all, messages_at_once};
use carrack_formats::unixfs::leaf;

use crate::error::{Error, ErrorKind, Result};
use crate::ingest::add::files::{RANGE_LEAVES_MAX, RANGE_LEN};
use crate::source::local::LocalFile;
use crate::store::catalog::Validator;
use crate::store::hasher::Messages;
use crate::store::location::Location;

/// A leaf block's sha2-256 digest.
pub type Digest = [u8; 32];

/// Leaves one behind the other.
#[derive(Debug)]
pub enum Leaves {
    /// The digest of each.
    Each(Vec<Digest>),
    /// The digest of all of them, and how many there are.
    Repeated(Digest, u64),
}

impl Leaves {
    /// How many there are.
    #[must_use]
    pub fn n(&self) -> u64 {
        match self {
            Self::Each(digests) => digests.len() as u64,
            Self::Repeated(_, n) => *n,
        }
    }

    /// Their digests: one if they are all the same.
    #[must_use]
    pub fn digests(&self) -> &[Digest] {
        match self {
            Self::Each(digests) => digests,
            Self::Repeated(digest, _) => std::slice::from_ref(digest),
        }
    }
}

/// Longest file that can be served, in bytes: a record of the index cannot hold an offset behind.
pub const FILE_LEN_MAX: u64 = Location::OFFSET_END;
/// Most leaves of one file: as many as the longest has in chunks of 256 KiB. Each costs up to 46
/// bytes of index and, while it is added, 32 of journal: 40 GiB for one file.
pub const LEAVES_MAX: u64 = 1 << 29;

/// Bytes that a worker reads before it hashes, for each message that is hashed at once.
const LOT_LEN_PER_MESSAGE: usize = 512 << 10;
/// How often a file that changes while it is read is read again.
const ATTEMPTS_MAX: u32 = 3;
/// Jobs that may be under way for each worker: one running, some waiting.
const JOBS_PER_WORKER: usize = 4;

/// How a file is cut and its leaves are framed.
#[derive(Debug, Clone, Copy)]
pub struct LeafRule {
    /// Bytes of a leaf, but for a file's last.
    pub chunk_size: u32,
    /// A leaf is the bytes themselves; otherwise they are framed as a dag-pb file node.
    pub raw: bool,
}

impl LeafRule {
    /// Number of leaves of a file of `len` bytes: an empty file has one.
    #[must_use]
    pub fn n_leaves(self, len: u64) -> u64 {
        len.div_ceil(u64::from(self.chunk_size)).max(1)
    }

    /// Why a file of `len` bytes cannot be added; `None`: it can.
    #[must_use]
    pub fn too_long(self, len: u64) -> Option<String> {
        if len > FILE_LEN_MAX {
            let max = FILE_LEN_MAX >> 40;
            return Some(format!(
                "{len} bytes: a file of at most {max} TiB can be served"
            ));
        }
        let n = self.n_leaves(len);
        (n > LEAVES_MAX).then(|| {
            format!("{n} leaves: a file has at most {LEAVES_MAX}; larger chunks make fewer")
        })
    }

    /// The digest of a leaf of `len` zeros.
    #[must_use]
    pub fn zeros(self, len: u32) -> Digest {
        let mut hasher = LeafHasher::new(self);
        let _ = hasher.leaf(len, |_| Ok(())); // Fresh bytes are zeros.
        hasher.hash();
        hasher.digests.pop().unwrap_or_default()
    }

    /// Number of leaves in a part of about `len` bytes, at least one and at most `max`.
    #[must_use]
    pub fn leaves_of(self, len: u64, max: u64) -> u64 {
        (len / u64::from(self.chunk_size)).clamp(1, max)
    }

    /// `(offset, len)` of leaf `index` of a file of `file_len` bytes.
    #[must_use]
    pub fn leaf(self, index: u64, file_len: u64) -> (u64, u32) {
        let offset = index.saturating_mul(u64::from(self.chunk_size));
        let len = file_len
            .saturating_sub(offset)
            .min(u64::from(self.chunk_size));
        (offset, u32::try_from(len).unwrap_or(self.chunk_size))
    }
}

/// What is to be hashed.
#[derive(Debug)]
pub enum Job {
    /// Whole files, each small: token and path.
    Files(Vec<(u64, PathBuf)>),
    /// Leaves `first..first + n` of one file.
    Range {
        /// Given back with the result.
        token: u64,
        /// The open file.
        file: Arc<LocalFile>,
        /// First leaf.
        first: u64,
        /// Number of leaves.
        n: u32,
    },
}

/// What came of one file or range.
#[derive(Debug)]
pub struct Done {
    /// The job's token.
    pub token: u64,
    /// First leaf of `digests`.
    pub first: u64,
    /// Validator of the file whose bytes were hashed, and the digests.
    pub result: io::Result<(Validator, Vec<Digest>)>,
}

/// Threads that hash, with bounded queues.
#[derive(Debug)]
pub struct HashPool {
    jobs: Option<SyncSender<Job>>,
    done: Receiver<Vec<Done>>,
    threads: Vec<JoinHandle<()>>,
    in_flight: usize,
}

impl HashPool {
    /// Starts `n_threads` workers, or as many as there may be.
    ///
    /// # Errors
    /// `Unavailable` if there may be none.
    pub fn new(n_threads: usize, rule: LeafRule) -> Result<Self> {
        let n_threads = n_threads.max(1);
        let queue = n_threads * JOBS_PER_WORKER;
        let (jobs, job_receiver) = sync_channel(queue);
        let (done_sender, done) = sync_channel(queue);
        let job_receiver = Arc::new(Mutex::new(job_receiver));
        let mut threads = Vec::with_capacity(n_threads);
        for n in 0..n_threads {
            let (jobs, done) = (Arc::clone(&job_receiver), done_sender.clone());
            let started = std::thread::Builder::new().spawn(move || work(rule, &jobs, &done));
            match started {
                Ok(thread) => threads.push(thread),
                Err(_) if n > 0 => break,
                Err(error) => {
                    let what = "cannot start threads";
                    return Err(Error::with(ErrorKind::Unavailable, what, error));
                }
            }
        }
        Ok(Self {
            jobs: Some(jobs),
            done,
            threads,
            in_flight: 0,
        })
    }

    /// Most jobs under way at once.
    #[must_use]
    pub fn in_flight_max(&self) -> usize {
        self.threads.len() * JOBS_PER_WORKER
    }

    /// Whether another job may be submitted now.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.in_flight < self.in_flight_max()
    }

    /// Whether no job is under way.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.in_flight == 0
    }

    /// Hands a job to the workers. Call only when there [is room](Self::has_room).
    pub fn submit(&mut self, job: Job) {
        debug_assert!(self.has_room(), "the caller checks for room first");
        if self
            .jobs
            .as_ref()
            .is_some_and(|jobs| jobs.send(job).is_ok())
        {
            self.in_flight += 1;
        }
    }

    /// The next finished job, waiting for it; `None` when none is under way, or the workers have
    /// ended, which they do not before this is dropped.
    pub fn wait(&mut self) -> Option<Vec<Done>> {
        if self.in_flight == 0 {
            return None;
        }
        let done = self.done.recv().ok()?;
        self.in_flight -= 1;
        Some(done)
    }

    /// A finished job, if there is one now.
    pub fn poll(&mut self) -> Option<Vec<Done>> {
        let done = self.done.try_recv().ok()?;
        self.in_flight = self.in_flight.saturating_sub(1);
        Some(done)
    }
}

impl Drop for HashPool {
    fn drop(&mut self) {
        self.jobs = None; // Workers end at the closed queue.
        while self.done.recv().is_ok() {}
        for thread in self.threads.drain(..) {
            let _ = thread.join(); // A worker's panic was reported when it happened.
        }
    }
}

fn work(rule: LeafRule, jobs: &Mutex<Receiver<Job>>, done: &SyncSender<Vec<Done>>) {
    let mut hasher = LeafHasher::new(rule);
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let results = match job {
            Err(_) => return,
            Ok(Job::Files(files)) => hasher.files(files),
            Ok(Job::Range {
                token,
                file,
                first,
                n,
            }) => {
                let range = || hasher.range(&file, first, u64::from(n));
                let result = caught(range).map(|digests| (file.validator.clone(), digests));
                vec![Done {
                    token,
                    first,
                    result,
                }]
            }
        };
        if done.send(results).is_err() {
            return;
        }
    }
}

/// A job whose worker panicked has a result, too: whoever waits for it would wait for ever.
fn caught<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    // A hasher's buffers are written before they are read: a panic leaves nothing half done.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or_else(|_| Err(io::Error::other("a hashing thread panicked")))
}

/// Leaf blocks, one behind the other.
#[derive(Debug, Default)]
pub struct Lot {
    /// Their bytes, and the first of the next one.
    pub bytes: Vec<u8>,
    /// Where each of them ends.
    pub ends: Vec<usize>,
}

impl Lot {
    /// Drops all leaves but the first `n`.
    pub fn truncate(&mut self, n: usize) {
        self.ends.truncate(n);
        self.bytes.truncate(self.ends.last().copied().unwrap_or(0));
    }
}

impl Messages for Lot {
    fn messages(&self) -> Vec<&[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        let leaves = starts.zip(&self.ends);
        let leaves = leaves.map(|(start, end)| self.bytes.get(start..*end).unwrap_or_default());
        leaves.collect()
    }
}

/// One worker's leaves, which are hashed together, over the ends of small files too.
struct LeafHasher {
    rule: LeafRule,
    lot: Lot,
    /// Bytes of a lot that is worth hashing.
    lot_len: usize,
    digests: Vec<Digest>,
}

impl LeafHasher {
    fn new(rule: LeafRule) -> Self {
        Self {
            rule,
            lot: Lot::default(),
            lot_len: LOT_LEN_PER_MESSAGE * messages_at_once(),
            digests: Vec::new(),
        }
    }

    /// Whole files, each as it was at one time.
    fn files(&mut self, files: Vec<(u64, PathBuf)>) -> Vec<Done> {
        self.clear();
        let mut read = Vec::with_capacity(files.len());
        for (token, path) in files {
            let first = self.n_leaves();
            let validator = caught(|| self.whole(&path));
            if validator.is_err() {
                self.truncate(first);
            }
            read.push((token, validator, self.n_leaves() - first));
        }
        let hashed = caught(|| {
            self.hash();
            Ok(())
        });
        let mut digests = self.digests.drain(..);
        let done = read.into_iter().map(|(token, validator, n)| {
            let digests: Vec<Digest> = digests.by_ref().take(n).collect();
            let result = match &hashed {
                Ok(()) => validator.map(|validator| (validator, digests)),
                Err(error) => Err(io::Error::other(error.to_string())),
            };
            Done {
                token,
                first: 0,
                result,
            }
        });
        done.collect()
    }

    /// Leaves `first..first + n` of one file.
    fn range(&mut self, file: &LocalFile, first: u64, n: u64) -> io::Result<Vec<Digest>> {
        self.clear();
        self.read(file, file.validator.size(), first, n)?;
        self.hash();
        Ok(std::mem::take(&mut self.digests))
    }

    /// Opens and reads a file that stays the same meanwhile. `FileTooLarge`: it is to be read in
    /// ranges.
    fn whole(&mut self, path: &std::path::Path) -> io::Result<Validator> {
        let first = self.n_leaves();
        for _ in 0..ATTEMPTS_MAX {
            self.truncate(first);
            let file = LocalFile::open_settled(path)?;
            let len = file.validator.size();
            if len > RANGE_LEN || self.rule.n_leaves(len) > RANGE_LEAVES_MAX {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            match self.read(&file, len, 0, self.rule.n_leaves(len)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                result => result?,
            }
            if file.current_validator()? == file.validator {
                return Ok(file.validator.clone());
            }
        }
        Err(changed_while_read())
    }

    /// Reads leaves behind those that were read before.
    fn read(&mut self, file: &LocalFile, len: u64, first: u64, n: u64) -> io::Result<()> {
        for index in first..first.saturating_add(n) {
            let (offset, leaf_len) = self.rule.leaf(index, len);
            self.leaf(leaf_len, |bytes| file.read_exact_at(bytes, offset))?;
            if self.lot.bytes.len() >= self.lot_len {
                self.hash();
            }
        }
        Ok(())
    }

    /// One more leaf, whose bytes `fill` brings.
    fn leaf(&mut self, len: u32, fill: impl FnOnce(&mut [u8]) -> io::Result<()>) -> io::Result<()> {
        let len = usize::try_from(len).unwrap_or(usize::MAX);
        let frame = (!self.rule.raw).then(|| leaf::frame(len));
        let bytes = &mut self.lot.bytes;
        if let Some((prefix, _)) = &frame {
            bytes.extend_from_slice(prefix);
        }
        let start = bytes.len();
        bytes.resize(start + len, 0);
        fill(bytes.get_mut(start..).unwrap_or_default())?;
        if let Some((_, suffix)) = &frame {
            bytes.extend_from_slice(suffix);
        }
        self.lot.ends.push(bytes.len());
        Ok(())
    }

    /// Hashes what was read.
    fn hash(&mut self) {
        self.digests.extend(digest_all(&self.lot.messages()));
        self.lot.truncate(0);
    }

    fn n_leaves(&self) -> usize {
        self.digests.len() + self.lot.ends.len()
    }

    fn truncate(&mut self, n: usize) {
        self.digests.truncate(n);
        self.lot.truncate(n - self.digests.len());
    }

    /// Nothing is left of an earlier job, however it ended.
    fn clear(&mut self) {
        self.digests.clear();
        self.lot.truncate(0);
    }
}

/// What is reported for a file that never held still.
pub fn changed_while_read() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "changed while it was read")
}

#[cfg(test)]
mod tests {
    use super::{HashPool, Job, LeafRule, caught};

    #[test]
    fn a_panic_is_an_answer() {
        let outcome = caught::<()>(|| panic!("as it must not"));
        assert!(outcome.unwrap_err().to_string().contains("panicked"));
    }

    #[test]
    fn a_pool_that_is_dropped_with_work_in_it_ends() {
        let rule = LeafRule {
            chunk_size: 10,
            raw: true,
        };
        let mut pool = HashPool::new(2, rule).unwrap();
        while pool.has_room() {
            pool.submit(Job::Files(vec![(1, "/no such file".into())]));
        }
        assert!(pool.wait().is_some_and(|done| done[0].result.is_err()));
        drop(pool);
    }
}
