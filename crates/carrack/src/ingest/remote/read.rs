//! Objects are read and hashed as their bytes arrive.
//!
//! In       an object's path and version; the whole of it, or a range of its leaves.
//! Out      digests, and the version whose bytes were hashed.
//! Limits   a piece of a body is held, and what `cut` holds.
//! Not here how many reads go on at once and what becomes of the digests (`ingest::remote`).
//!
//! A read that breaks off goes on where it stopped, under the same version: no byte is fetched
//! again.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use super::cut::Cutter;
use crate::ingest::hash::{Digest, LeafRule};
use crate::source::retry::Patient;
use crate::source::validator::ObjectStamp;
use crate::source::{SourceError, SourceErrorKind};
use crate::store::hasher::Hasher;
use crate::store::sources::OpenSource;

/// How often an object that changes while it is read is read again.
pub(super) const ATTEMPTS_MAX: u32 = 3;
/// Requests in a row that bring nothing before a read is given up: about a minute.
const REQUESTS_MAX: u32 = 16;

/// What every read of one add shares.
pub(super) struct Reads {
    pub(super) source: Arc<OpenSource>,
    pub(super) rule: LeafRule,
    pub(super) hasher: Hasher,
    /// Reads that wait because the source asked for it.
    pub(super) n_throttled: AtomicU64,
    /// Small enough to be read by one request, in bytes.
    pub(super) whole_len_max: u64,
}

/// One thing to find out.
pub(super) struct Job {
    pub(super) token: u64,
    pub(super) path: Arc<[u8]>,
    pub(super) task: Task,
}

pub(super) enum Task {
    /// What the object is now.
    Stat,
    /// All of its bytes.
    Whole {
        stamp: ObjectStamp,
        /// The listing did not tell enough to be held to.
        stat_first: bool,
        /// What is remembered of it.
        known: Option<Arc<ObjectStamp>>,
    },
    /// Leaves `first..first + n`.
    Range {
        stamp: Arc<ObjectStamp>,
        first: u64,
        n: u64,
    },
}

/// What came of a job.
pub(super) struct Finding {
    pub(super) token: u64,
    pub(super) result: Result<Found, SourceError>,
}

pub(super) enum Found {
    /// The object is this now, and was not read.
    Stamp(ObjectStamp),
    /// The version whose bytes were hashed, the first leaf, and the digests.
    Leaves(Arc<ObjectStamp>, u64, Vec<Digest>),
}

/// Whether an object that was `known` is still the same; more than the length must speak for it.
pub(in crate::ingest) fn is_same(known: &ObjectStamp, now: &ObjectStamp) -> bool {
    let tells = (known.version.is_some() && now.version.is_some())
        || (known.etag.is_some() && now.etag.is_some())
        || (known.modified.is_some() && now.modified.is_some());
    tells && known.agrees_with(now)
}

impl Reads {
    /// Does a job. Cancel-safe: it only reads.
    pub(super) async fn run(self: Arc<Self>, job: Job) -> Finding {
        let Job { token, path, task } = job;
        let result = match task {
            Task::Stat => self.stat(&path).await.map(Found::Stamp),
            Task::Range { stamp, first, n } => {
                let digests = self.leaves(&path, &stamp, first, n).await;
                digests.map(|digests| Found::Leaves(stamp, first, digests))
            }
            Task::Whole {
                stamp,
                stat_first,
                known,
            } => self.whole(&path, stamp, stat_first, known).await,
        };
        Finding { token, result }
    }

    async fn whole(
        &self,
        path: &[u8],
        mut stamp: ObjectStamp,
        mut stat_first: bool,
        known: Option<Arc<ObjectStamp>>,
    ) -> Result<Found, SourceError> {
        let mut attempt = 1;
        loop {
            if stat_first {
                stamp = self.stat(path).await?;
                if stamp.size > self.whole_len_max
                    || known.as_ref().is_some_and(|known| is_same(known, &stamp))
                {
                    return Ok(Found::Stamp(stamp));
                }
            }
            match self.leaves(path, &stamp, 0, u64::MAX).await {
                Ok(digests) => return Ok(Found::Leaves(Arc::new(stamp), 0, digests)),
                Err(error) if error.kind == SourceErrorKind::Changed && attempt < ATTEMPTS_MAX => {
                    (attempt, stat_first) = (attempt + 1, true);
                }
                Err(error) => return Err(error),
            }
        }
    }

    async fn stat(&self, path: &[u8]) -> Result<ObjectStamp, SourceError> {
        patient(&self.source, &self.n_throttled).stat(path).await
    }

    async fn leaves(
        &self,
        path: &[u8],
        stamp: &ObjectStamp,
        first: u64,
        n: u64,
    ) -> Result<Vec<Digest>, SourceError> {
        let mut cutter = Cutter::new(self.rule, &self.hasher, stamp.size, first, n);
        let start = self.rule.leaf(first, stamp.size).0;
        let end = self.rule.leaf(first.saturating_add(n), stamp.size).0;
        let range = start..end.min(stamp.size);
        let source = patient(&self.source, &self.n_throttled);
        source.each_piece(path, stamp, range, &mut cutter).await?;
        cutter.finish().await?.ok_or_else(cut_short)
    }
}

/// A source as adds and imports ask it.
pub(in crate::ingest) fn patient<'a>(
    source: &'a OpenSource,
    n_throttled: &'a AtomicU64,
) -> Patient<'a> {
    Patient {
        source: source.source.as_ref(),
        limiter: &source.limiter,
        attempts: REQUESTS_MAX,
        n_throttled,
    }
}

fn cut_short() -> SourceError {
    SourceError::new(SourceErrorKind::Unreachable, "the answer ended early")
}
