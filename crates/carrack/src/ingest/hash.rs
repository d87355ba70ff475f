//! Leaves are read and hashed on all cores.
//!
//! In       small files, many a job, or a range of leaves of one big open file.
//! Out      sha2-256 digests of the leaf blocks, in leaf order within a job; jobs end in any order.
//! Limits   the caller keeps at most [`HashPool::in_flight_max`] jobs going, so that neither queue
//!          ever blocks; a worker holds one read buffer, never a whole leaf.
//! Not here trees (`formats::unixfs::build`), what becomes of the digests (`ingest::add`).

use std::io;
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use carrack_formats::sha256::Sha256;
use carrack_formats::unixfs::leaf;

use crate::source::local::LocalFile;
use crate::store::catalog::Validator;

/// A leaf block's sha2-256 digest.
pub type Digest = [u8; 32];

/// Bytes a worker reads at once: small enough to be hashed out of the processor's cache.
const READ_LEN: usize = 256 << 10;
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
    /// Starts `n_threads` workers.
    #[must_use]
    pub fn new(n_threads: usize, rule: LeafRule) -> Self {
        let n_threads = n_threads.max(1);
        let queue = n_threads * JOBS_PER_WORKER;
        let (jobs, job_receiver) = sync_channel(queue);
        let (done_sender, done) = sync_channel(queue);
        let job_receiver = Arc::new(Mutex::new(job_receiver));
        let threads = (0..n_threads)
            .map(|_| {
                let (jobs, done) = (Arc::clone(&job_receiver), done_sender.clone());
                std::thread::spawn(move || work(rule, &jobs, &done))
            })
            .collect();
        Self {
            jobs: Some(jobs),
            done,
            threads,
            in_flight: 0,
        }
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
            Ok(Job::Files(files)) => files
                .into_iter()
                .map(|(token, path)| Done {
                    token,
                    first: 0,
                    result: caught(|| hasher.whole(&path)),
                })
                .collect(),
            Ok(Job::Range {
                token,
                file,
                first,
                n,
            }) => {
                let range = || hasher.range(&file, file.validator.size(), first, u64::from(n));
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

/// One worker's buffer and the framing of its last leaf length.
struct LeafHasher {
    rule: LeafRule,
    buffer: Box<[u8]>,
    frame_of: Option<(u32, Vec<u8>, Vec<u8>)>,
    /// Digest of a full leaf of zeros: holes of sparse files are not read.
    zeros: Option<Digest>,
}

impl LeafHasher {
    fn new(rule: LeafRule) -> Self {
        let buffer = vec![0; READ_LEN].into_boxed_slice();
        Self {
            rule,
            buffer,
            frame_of: None,
            zeros: None,
        }
    }

    /// Opens, reads and hashes a file that stays the same meanwhile.
    fn whole(&mut self, path: &std::path::Path) -> io::Result<(Validator, Vec<Digest>)> {
        for _ in 0..ATTEMPTS_MAX {
            let file = LocalFile::open_settled(path)?;
            let len = file.validator.size();
            let digests = match self.range(&file, len, 0, self.rule.n_leaves(len)) {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => continue,
                result => result?,
            };
            if file.current_validator()? == file.validator {
                return Ok((file.validator.clone(), digests));
            }
        }
        Err(changed_while_read())
    }

    fn range(&mut self, file: &LocalFile, len: u64, first: u64, n: u64) -> io::Result<Vec<Digest>> {
        let mut digests = Vec::new();
        let mut hole_end = 0;
        for index in first..first.saturating_add(n) {
            let (offset, leaf_len) = self.rule.leaf(index, len);
            if leaf_len == self.rule.chunk_size && len > (64 << 20) {
                if offset >= hole_end {
                    hole_end = file.next_data(offset).unwrap_or(0);
                }
                if offset + u64::from(leaf_len) <= hole_end {
                    let zeros = match self.zeros {
                        Some(zeros) => zeros,
                        None => self.leaf(file, offset, leaf_len)?,
                    };
                    self.zeros = Some(zeros);
                    digests.push(zeros);
                    continue;
                }
            }
            digests.push(self.leaf(file, offset, leaf_len)?);
        }
        Ok(digests)
    }

    fn leaf(&mut self, file: &LocalFile, offset: u64, len: u32) -> io::Result<Digest> {
        let mut sha = Sha256::new();
        if !self.rule.raw {
            if self.frame_of.as_ref().is_none_or(|frame| frame.0 != len) {
                let (prefix, suffix) = leaf::frame(len as usize);
                self.frame_of = Some((len, prefix, suffix));
            }
            sha.update(
                self.frame_of
                    .as_ref()
                    .map_or(&[][..], |frame| frame.1.as_slice()),
            );
        }
        let mut done = 0;
        while done < len {
            let want = usize::try_from(len - done)
                .unwrap_or(READ_LEN)
                .min(READ_LEN);
            let chunk = self.buffer.get_mut(..want).unwrap_or_default();
            file.read_exact_at(chunk, offset + u64::from(done))?;
            sha.update(chunk);
            done += u32::try_from(want).unwrap_or(u32::MAX);
        }
        if !self.rule.raw {
            sha.update(
                self.frame_of
                    .as_ref()
                    .map_or(&[][..], |frame| frame.2.as_slice()),
            );
        }
        Ok(sha.finalize())
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
        let mut pool = HashPool::new(2, rule);
        while pool.has_room() {
            pool.submit(Job::Files(vec![(1, "/no such file".into())]));
        }
        assert!(pool.wait().is_some_and(|done| done[0].result.is_err()));
        drop(pool);
    }
}
