//! One fetch: the pieces of one stretch of one object, from its source into the table.
//!
//! In       a fetch that the table opened; room in the budget, if it was taken already.
//! Out      pieces that land as they come; or an error for those who wait then.
//! Limits   [`FIRST_BYTE`], [`IDLE`] and a deadline by lane since the last piece that landed.
//! Not here who wants it (`table`).
//!
//! A request that broke off is made again from the next byte that is missing, of the same version:
//! what has landed stays. `Changed` and `Missing` are final.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use tokio::time::{sleep, timeout};

use super::inner::{Inner, stopping};
use super::reserve::Reserved;
use super::stats::count;
use super::table::{Cancelled, Opened};
use super::{Lane, Place};
use crate::source::limiter::{Outcome, Permit};
use crate::source::retry::back_off;
use crate::source::{SourceError, SourceErrorKind};

/// A server that answers does so within this time.
const FIRST_BYTE: Duration = Duration::from_secs(10);
/// A body that goes on does so within this time.
const IDLE: Duration = Duration::from_secs(20);
/// How long a fetch goes on though nobody wants it: a client that reloads comes back at once.
const LINGER: Duration = Duration::from_millis(50);
/// How long one that has nearly ended may take for the rest.
const FINISH: Duration = Duration::from_secs(1);
/// How often the time in a queue is looked at.
const LOOK_MIN: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_secs(1);

/// A fetch, to be run to its end. Dropping it takes it out of the table.
#[derive(Debug)]
pub(super) struct Job {
    inner: Arc<Inner>,
    place: Arc<Place>,
    opened: Opened,
    reserved: Option<Reserved>,
}

/// How far it has come.
struct Progress {
    /// Index of the piece that is being filled.
    piece: usize,
    buffer: BytesMut,
    /// When the last piece landed, or the first request was made.
    moved: Instant,
    n_requests: u32,
}

impl Job {
    pub(super) fn new(
        inner: &Arc<Inner>,
        place: &Arc<Place>,
        opened: Opened,
        reserved: Option<Reserved>,
    ) -> Self {
        Self {
            inner: Arc::clone(inner),
            place: Arc::clone(place),
            opened,
            reserved,
        }
    }

    /// Reads until all has landed, nobody wants it, or it cannot be read.
    pub(super) async fn run(mut self) {
        let inner = Arc::clone(&self.inner);
        let (key, id) = (self.opened.key, self.opened.id);
        let control = Arc::clone(&self.opened.control);
        let work = self.read();
        tokio::pin!(work);
        let mut is_finishing = false;
        let ended = loop {
            tokio::select! {
                ended = &mut work => break ended,
                () = inner.closing.cancelled() => break Err(stopping()),
                () = async {
                    control.idle().await;
                    sleep(if is_finishing { FINISH } else { LINGER }).await;
                } => match inner.table.cancel(key, id, !is_finishing) {
                    Cancelled::Yes => {
                        count(&inner.counters.n_cancelled, 1);
                        return;
                    }
                    Cancelled::Wanted => is_finishing = false,
                    Cancelled::NearlyDone => {
                        is_finishing = true;
                        control.set_idle();
                    }
                },
            }
        };
        if let Err(error) = &ended {
            count(&inner.counters.n_failed, 1);
            inner.table.end(key, id, error);
        }
    }

    /// Waits for room, then reads with as many attempts as the lane allows.
    async fn read(&mut self) -> Result<(), SourceError> {
        let mut progress = Progress {
            piece: 0,
            buffer: BytesMut::new(),
            moved: Instant::now(),
            n_requests: 0,
        };
        self.down()?;
        self.reserve(&progress).await?;
        let mut n_failed = 0;
        loop {
            let before = progress.piece;
            let Err(error) = self.attempt(&mut progress).await else {
                return Ok(());
            };
            n_failed = if progress.piece > before {
                1
            } else {
                n_failed + 1
            };
            let (n_max, _) = patience(self.lane());
            if !error.is_passing() || n_failed >= n_max || progress.n_requests == 0 {
                return Err(error);
            }
            let pause = back_off(n_failed, error.retry_after);
            if pause.max(error.retry_after.unwrap_or_default()) >= self.left(&progress) {
                return Err(error);
            }
            count(&self.inner.counters.n_retries, 1);
            sleep(pause).await;
        }
    }

    /// Takes room in the budget, if it was not yet.
    async fn reserve(&mut self, progress: &Progress) -> Result<(), SourceError> {
        if self.reserved.is_some() {
            return Ok(());
        }
        let (len, control) = (self.opened.len(), &self.opened.control);
        let wait = Reserved::wait(&self.inner, self.place.source.id, len, control);
        self.reserved = Some(self.in_time(progress, wait).await?);
        Ok(())
    }

    /// Waits for a place among the requests of the source, in whatever lane it is by then.
    async fn permit(&self, progress: &Progress) -> Result<Permit, SourceError> {
        let (limiter, control) = (&self.place.source.limiter, &self.opened.control);
        let wait = async {
            loop {
                tokio::select! {
                    biased;
                    permit = limiter.acquire(control.lane(), control.flow) => {
                        return permit;
                    }
                    () = control.promoted() => {}
                }
            }
        };
        self.in_time(progress, wait).await
    }

    /// What somebody waits for waits for its turn no longer than for its bytes.
    async fn in_time<T>(
        &self,
        progress: &Progress,
        wait: impl Future<Output = T>,
    ) -> Result<T, SourceError> {
        let late = async {
            loop {
                let left = self.left(progress);
                if left.is_zero() && self.lane() <= Lane::Stream {
                    return;
                }
                sleep(left.clamp(LOOK_MIN, LOOK_MAX)).await; // The lane may change.
            }
        };
        tokio::select! {
            biased;
            done = wait => Ok(done),
            () = late => {
                let what = format!("too many reads wait for {}", self.place.source.name);
                Err(SourceError::new(SourceErrorKind::Throttled, what))
            }
        }
    }

    fn lane(&self) -> Lane {
        self.opened.control.lane()
    }

    /// The error of a source that is not to be asked now.
    fn down(&self) -> Result<(), SourceError> {
        if !self.place.source.is_down() {
            return Ok(());
        }
        self.place.source.health.ask().map(drop)
    }

    /// Time that it may still take.
    fn left(&self, progress: &Progress) -> Duration {
        let (_, deadline) = patience(self.lane());
        deadline.saturating_sub(progress.moved.elapsed())
    }

    /// One request, for all that has not come yet.
    async fn attempt(&mut self, progress: &mut Progress) -> Result<(), SourceError> {
        let place = Arc::clone(&self.place);
        let permit = self.permit(progress).await?;
        let leave = place.source.health.ask()?;
        if progress.n_requests == 0 && self.lane() > Lane::Stream {
            progress.moved = Instant::now(); // Nobody counts the time in the queue.
        }
        let ended = self.request(progress, &permit).await;
        let Err(error) = &ended else {
            leave.good();
            permit.done(Outcome::Good);
            return ended;
        };
        leave.failed(error);
        permit.done(Outcome::from(error));
        ended
    }

    async fn request(
        &mut self,
        progress: &mut Progress,
        permit: &Permit,
    ) -> Result<(), SourceError> {
        let Some(range) = self.rest(progress) else {
            return Ok(());
        };
        let place = Arc::clone(&self.place);
        let source = &place.source.source;
        let slow = |what: &str| {
            let what = format!("{what} from {}: it is slow or hangs", place.source.name);
            SourceError::new(SourceErrorKind::Unreachable, what)
        };
        progress.n_requests += 1;
        count(&self.inner.counters.n_requests, 1);
        let mut at = range.start;
        let opening = source.read(&place.path, &place.stamp, range.clone());
        let stream = timeout(FIRST_BYTE.min(self.left(progress)), opening).await;
        let mut stream = stream.map_err(|_| slow("no answer"))??;
        permit.first_byte();
        while at < range.end {
            let part = timeout(IDLE.min(self.left(progress)), stream.next()).await;
            let part = part.map_err(|_| slow("no more bytes"))?;
            let part = part.unwrap_or_else(|| {
                let what = format!("the answer of {} broke off", place.source.name);
                Err(SourceError::new(SourceErrorKind::Unreachable, what))
            })?;
            count(&self.inner.counters.source_bytes, part.len() as u64);
            self.take(progress, &mut at, part);
        }
        Ok(())
    }

    /// What has not come yet.
    fn rest(&self, progress: &Progress) -> Option<Range<u64>> {
        let (piece, last) = (
            self.opened.pieces.get(progress.piece)?,
            self.opened.pieces.last()?,
        );
        Some(piece.start + progress.buffer.len() as u64..last.end)
    }

    /// Copies what came into the pieces that it belongs to, and lands those that are full. A piece
    /// is one allocation of its own: a reader that keeps it keeps nothing else.
    fn take(&mut self, progress: &mut Progress, at: &mut u64, mut part: Bytes) {
        while let Some(piece) = self.opened.pieces.get(progress.piece) {
            let next = piece.start + progress.buffer.len() as u64;
            let skip = as_len(next - *at).min(part.len());
            drop(part.split_to(skip)); // Somebody has it already.
            *at += skip as u64;
            if part.is_empty() {
                return;
            }
            if progress.buffer.is_empty() {
                progress.buffer = BytesMut::with_capacity(as_len(piece.end - piece.start));
            }
            let n = as_len(piece.end - next).min(part.len());
            progress.buffer.extend_from_slice(&part.split_to(n));
            *at += n as u64;
            if *at < piece.end {
                return;
            }
            let (start, len) = (piece.start, piece.end - piece.start);
            let bytes = std::mem::take(&mut progress.buffer).freeze();
            self.land(start, len, bytes);
            progress.piece += 1;
            progress.moved = Instant::now();
        }
        *at += part.len() as u64;
    }

    fn land(&mut self, start: u64, len: u64, bytes: Bytes) {
        let (inner, opened) = (&self.inner, &self.opened);
        if let Some(reserved) = &mut self.reserved {
            reserved.land(len);
        }
        match inner.table.land(opened.key, opened.id, start, bytes) {
            Some(freed) => inner.settle(&freed),
            None => inner.settle(&super::table::Freed {
                len,
                ..Default::default()
            }),
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.inner
            .table
            .end(self.opened.key, self.opened.id, &stopping());
    }
}

/// Attempts in a row without a piece, and time without one.
const fn patience(lane: Lane) -> (u32, Duration) {
    match lane {
        Lane::Block => (3, Duration::from_secs(15)),
        Lane::Stream | Lane::Ahead | Lane::Background => (8, Duration::from_secs(60)),
    }
}

/// A length within one fetch.
fn as_len(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}
