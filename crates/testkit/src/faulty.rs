//! A source that misbehaves: around any other, without a network between.
//!
//! In       a source, and what goes wrong with how many of its reads.
//! Out      the same source, slower or broken, and counts of what was asked of it.
//! Limits   faults strike by count, not by chance: a share of 0.25 strikes each fourth read.
//! Not here faults of a protocol (`proxy`): wrong headers, lost ranges, encodings.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use carrack::source::validator::ObjectStamp;
use carrack::source::{BoxFuture, ByteStream, ObjectStream, Source, SourceError, SourceErrorKind};
use futures_util::stream::{self, StreamExt};

/// What goes wrong with a read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SourceFault {
    /// It fails with this kind before a byte comes.
    Fails(SourceErrorKind),
    /// It breaks off after half of its bytes.
    Breaks,
    /// It ends after half of its bytes as if that were all.
    EndsEarly,
    /// One bit in its middle is another.
    Lies,
    /// It never answers.
    Hangs,
}

/// How a source treats its reads. The default passes them on.
#[derive(Debug, Clone, Default)]
pub struct SourceConduct {
    /// Before the first byte.
    pub latency: Duration,
    /// Bytes a second of one read.
    pub bandwidth: Option<u64>,
    /// Faults and the share of reads that each strikes; the first that strikes is the one.
    pub faults: Vec<(SourceFault, f64)>,
}

/// What was asked of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SourceCounts {
    /// Reads that began.
    pub reads: u64,
    /// Bytes that were given.
    pub bytes: u64,
    /// Reads that are going on.
    pub under_way: u64,
    /// The most of them at once.
    pub under_way_max: u64,
}

/// A source around another.
#[derive(Debug)]
pub struct FaultySource {
    inner: Arc<dyn Source>,
    conduct: Mutex<SourceConduct>,
    counts: Arc<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    reads: AtomicU64,
    bytes: AtomicU64,
    under_way: AtomicU64,
    under_way_max: AtomicU64,
}

/// Counts a read as long as it goes on.
struct UnderWay(Arc<Tally>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl FaultySource {
    /// Passes everything on until it is told otherwise.
    pub fn new(inner: Arc<dyn Source>) -> Self {
        Self {
            inner,
            conduct: Mutex::default(),
            counts: Arc::default(),
        }
    }

    /// From the next read on.
    pub fn set(&self, conduct: SourceConduct) {
        *self.conduct() = conduct;
    }

    /// What was asked so far.
    pub fn counts(&self) -> SourceCounts {
        let get = |count: &AtomicU64| count.load(Ordering::SeqCst);
        SourceCounts {
            reads: get(&self.counts.reads),
            bytes: get(&self.counts.bytes),
            under_way: get(&self.counts.under_way),
            under_way_max: get(&self.counts.under_way_max),
        }
    }

    fn conduct(&self) -> MutexGuard<'_, SourceConduct> {
        self.conduct.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self) -> (SourceConduct, Option<SourceFault>, UnderWay) {
        let tally = &self.counts;
        let number = tally.reads.fetch_add(1, Ordering::SeqCst);
        let now = tally.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        tally.under_way_max.fetch_max(now, Ordering::SeqCst);
        let conduct = self.conduct().clone();
        #[expect(clippy::cast_precision_loss, reason = "tests make no 2^52 reads")]
        let strikes = |share: f64| {
            let before = number as f64;
            ((before + 1.0) * share).floor() > (before * share).floor()
        };
        let fault = conduct.faults.iter().find(|(_, share)| strikes(*share));
        let fault = fault.map(|(fault, _)| *fault);
        (conduct, fault, UnderWay(Arc::clone(tally)))
    }
}

impl Source for FaultySource {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        self.inner.stat(path)
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let (conduct, fault, under_way) = self.begin();
            tokio::time::sleep(conduct.latency).await;
            match fault {
                Some(SourceFault::Hangs) => std::future::pending().await,
                Some(SourceFault::Fails(kind)) => {
                    return Err(SourceError::new(kind, "the test makes it fail"));
                }
                _ => {}
            }
            let half = (range.end - range.start) / 2;
            let body = self.inner.read(path, expected, range).await?;
            let reading = Reading {
                body,
                conduct,
                fault,
                half,
                given: 0,
                under_way,
            };
            let pieces = stream::try_unfold(reading, |mut reading| async move {
                let piece = reading.next().await?;
                Ok(piece.map(|piece| (piece, reading)))
            });
            Ok(Box::pin(pieces) as ByteStream)
        })
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        self.inner.list(prefix)
    }
}

struct Reading {
    body: ByteStream,
    conduct: SourceConduct,
    fault: Option<SourceFault>,
    /// Where the fault strikes.
    half: u64,
    given: u64,
    under_way: UnderWay,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        let Some(piece) = self.body.next().await else {
            return Ok(None);
        };
        let mut piece = piece?;
        let left = self.half.saturating_sub(self.given);
        match self.fault {
            Some(SourceFault::Breaks | SourceFault::EndsEarly) if left == 0 => {
                if self.fault == Some(SourceFault::EndsEarly) {
                    return Ok(None);
                }
                let why = "the test breaks it off";
                return Err(SourceError::new(SourceErrorKind::Unreachable, why));
            }
            Some(SourceFault::Breaks | SourceFault::EndsEarly) => {
                piece.truncate(usize::try_from(left).unwrap_or(usize::MAX));
            }
            Some(SourceFault::Lies) if self.given <= self.half => {
                let mut other = BytesMut::from(piece.as_ref());
                if let Some(byte) = other.get_mut(usize::try_from(left).unwrap_or(usize::MAX)) {
                    *byte ^= 1;
                }
                piece = other.freeze();
            }
            _ => {}
        }
        let len = piece.len() as u64;
        if let Some(bandwidth) = self.conduct.bandwidth {
            let nanos = len.saturating_mul(1_000_000_000) / bandwidth.max(1);
            tokio::time::sleep(Duration::from_nanos(nanos)).await;
        }
        self.given += len;
        self.under_way.0.bytes.fetch_add(len, Ordering::SeqCst);
        Ok(Some(piece))
    }
}
