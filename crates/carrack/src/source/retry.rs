//! Sources are asked again: how often, after how long, and from which byte on.
//!
//! In       a source, a version of an object, a range, how many requests may come to nothing.
//! Out      the range, without a gap, of that one version; or the error that ended it.
//! Limits   waits of [`WAIT_MIN`] to [`WAIT_MAX`], or what the server asks for up to
//!          [`ASKED_WAIT_MAX`], and up to half as much again. Nothing is held but the piece that is
//!          passed on.
//! Not here how many requests go on at once (`limiter`), reads that are shared (`store::extent`,
//!          which takes its pauses from here).
//!
//! A request that brought [`RENEW_LEN`] bytes is no failed one: a read of any length goes on as
//! long as it gets on, and one that gets a few bytes at a time does not go on for ever. A read that
//! finds another version is over: two versions are never spliced.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use crate::source::limiter::{Lane, Limiter, Outcome};
use crate::source::validator::ObjectStamp;
use crate::source::{Source, SourceError, SourceErrorKind};

/// Before the first repetition.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// Doubling ends here.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Servers that are down for maintenance ask for hours.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(30);
/// Bytes by which a request has got on.
const RENEW_LEN: u64 = 16 << 10;
/// Requests for pages of listings and for heads of objects.
const LISTING_ATTEMPTS: u32 = 6;

/// Who takes the bytes of a range as they come.
pub trait Taker: Send {
    /// Takes the next piece; nothing more is read before this is done.
    ///
    /// # Errors
    /// Ends the read.
    fn take(&mut self, piece: Bytes) -> impl Future<Output = Result<(), SourceError>> + Send;
}

impl<F: FnMut(Bytes) + Send> Taker for F {
    async fn take(&mut self, piece: Bytes) -> Result<(), SourceError> {
        self(piece);
        Ok(())
    }
}

/// A source that is asked as often as it takes, at the pace that its limiter finds.
#[derive(Debug, Clone, Copy)]
pub struct Patient<'a> {
    /// Whom to ask.
    pub source: &'a dyn Source,
    /// How many requests it is asked at a time.
    pub limiter: &'a Arc<Limiter>,
    /// Requests in a row that may bring nothing; the first counts.
    pub attempts: u32,
    /// Who waits because the source asked for it is counted here meanwhile.
    pub n_throttled: &'a AtomicU64,
}

impl Patient<'_> {
    /// What the object at `path` is, asked until there is an answer. Cancel-safe.
    ///
    /// # Errors
    /// That of the last request.
    pub async fn stat(&self, path: &[u8]) -> Result<ObjectStamp, SourceError> {
        let mut patience = Patience::new(self.attempts);
        loop {
            let permit = self.limiter.acquire(Lane::Background, 0).await;
            match self.source.stat(path).await {
                Ok(stamp) => {
                    permit.first_byte();
                    permit.done(Outcome::Good);
                    return Ok(stamp);
                }
                Err(error) => {
                    permit.done(Outcome::from(&error));
                    self.wait(&mut patience, error).await?;
                }
            }
        }
    }

    /// Gives `taker` the bytes of `range` of version `stamp`, in order, each once, however often
    /// the connection breaks. Cancel-safe: what was given was given.
    ///
    /// # Errors
    /// That of the last request; `Changed` as soon as there is another version; the taker's.
    pub async fn each_piece(
        &self,
        path: &[u8],
        stamp: &ObjectStamp,
        range: Range<u64>,
        mut taker: impl Taker,
    ) -> Result<(), SourceError> {
        let Range { mut start, end } = range;
        let mut patience = Patience::new(self.attempts);
        while start < end {
            let mut came = 0;
            let permit = self.limiter.acquire(Lane::Background, 0).await;
            let failure = match self.source.read(path, stamp, start..end).await {
                Err(error) => error,
                Ok(mut pieces) => loop {
                    match pieces.next().await {
                        Some(Ok(piece)) if piece.is_empty() => break cut_short(),
                        Some(Ok(piece)) if piece.len() as u64 > end - start => break too_much(),
                        Some(Ok(piece)) => {
                            start += piece.len() as u64;
                            if came == 0 {
                                permit.first_byte();
                            }
                            came += piece.len() as u64;
                            if came >= RENEW_LEN {
                                patience.renew();
                            }
                            taker.take(piece).await?;
                        }
                        Some(Err(error)) => break error,
                        None => break cut_short(),
                    }
                },
            };
            if start >= end && failure.kind != SourceErrorKind::Unusable {
                permit.done(Outcome::Good); // However the connection ended.
                break;
            }
            permit.done(Outcome::from(&failure));
            self.wait(&mut patience, failure).await?;
        }
        Ok(())
    }

    /// Waits before the next request, or gives the error up.
    async fn wait(&self, patience: &mut Patience, error: SourceError) -> Result<(), SourceError> {
        let is_counted = error.kind == SourceErrorKind::Throttled;
        let _counted = is_counted.then(|| Counted::new(self.n_throttled));
        patience.after(error).await
    }
}

fn cut_short() -> SourceError {
    SourceError::new(SourceErrorKind::Unreachable, "the answer ended early")
}

fn too_much() -> SourceError {
    let why = "more bytes came than were asked for";
    SourceError::new(SourceErrorKind::Unusable, why)
}

/// Counts one while it lives.
struct Counted<'a>(&'a AtomicU64);

impl<'a> Counted<'a> {
    fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Attempts that are left, and the time before the next.
#[derive(Debug)]
pub(super) struct Patience {
    attempts: u32,
    failed: u32,
}

impl Patience {
    /// `attempts` requests in a row may fail; the first counts.
    pub(super) const fn new(attempts: u32) -> Self {
        Self {
            attempts,
            failed: 0,
        }
    }

    /// Something came: all attempts are there again.
    const fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, if `error` passes and one is left. Cancel-safe.
    ///
    /// # Errors
    /// `error`, if there is nothing to wait for.
    pub(super) async fn after(&mut self, error: SourceError) -> Result<(), SourceError> {
        self.failed += 1;
        if !error.is_passing() || self.failed >= self.attempts {
            return Err(error);
        }
        tokio::time::sleep(back_off(self.failed, error.retry_after)).await;
        Ok(())
    }
}

/// The time to wait after `n_failed` failures in a row: what the server `asked` for, within bounds,
/// or doubled each time. Spread over half as much again, so that those who failed together do not
/// come back together; never sooner than was asked for, within bounds.
#[must_use]
pub fn back_off(n_failed: u32, asked: Option<Duration>) -> Duration {
    /// Its upper bits are a sequence whose values lie far apart, however many are taken.
    static NOISE: AtomicU64 = AtomicU64::new(0);
    const STEP: u64 = 0x9e37_79b9_7f4a_7c15; // 2^64 over the golden ratio.
    let least = match asked {
        Some(asked) => asked.clamp(WAIT_MIN, ASKED_WAIT_MAX),
        None => {
            let doublings = n_failed.saturating_sub(1).min(10);
            WAIT_MIN.saturating_mul(1 << doublings).min(WAIT_MAX)
        }
    };
    let noise = NOISE.fetch_add(STEP, Ordering::Relaxed) >> 54; // 0..1024
    let noise = u32::try_from(noise).unwrap_or(0);
    least + least / 2048 * noise
}

/// A request of a listing, repeated as long as its failures pass.
pub(super) async fn patiently<T, F>(mut request: impl FnMut() -> F) -> Result<T, SourceError>
where
    F: Future<Output = Result<T, SourceError>>,
{
    let mut patience = Patience::new(LISTING_ATTEMPTS);
    loop {
        match request().await {
            Ok(value) => return Ok(value),
            Err(error) => patience.after(error).await?,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::source::testing::{Fault, MemorySource};

    /// Each request brings a byte and breaks.
    #[tokio::test]
    async fn requests_that_bring_a_few_bytes_each_do_not_go_on_for_ever() {
        let memory = MemorySource::default();
        let stamp = memory.put("a", vec![7; 100_000]);
        memory.fault("a", Some(Fault::BreaksAfter(1)));
        let patient = Patient {
            source: &memory,
            limiter: &Arc::default(),
            attempts: 3,
            n_throttled: &AtomicU64::new(0),
        };
        let mut n_bytes = 0;
        let taker = |piece: Bytes| n_bytes += piece.len();
        let error = patient.each_piece(b"a", &stamp, 0..stamp.size, taker).await;
        assert_eq!(error.unwrap_err().kind, SourceErrorKind::Unreachable);
        assert_eq!((n_bytes, memory.reads()), (3, 3));
    }

    #[test]
    fn waits_double_spread_and_keep_to_what_is_asked_for_within_bounds() {
        let ms = Duration::from_millis;
        for (n_failed, asked, least) in [
            (0, None, WAIT_MIN),
            (1, None, WAIT_MIN),
            (2, None, ms(200)),
            (4, None, ms(800)),
            (7, None, WAIT_MAX),
            (u32::MAX, None, WAIT_MAX),
            (1, Some(Duration::ZERO), WAIT_MIN),
            (9, Some(ms(700)), ms(700)),
            (1, Some(Duration::MAX), ASKED_WAIT_MAX),
        ] {
            let waits: BTreeSet<_> = (0..64).map(|_| back_off(n_failed, asked)).collect();
            assert!(
                waits
                    .iter()
                    .all(|wait| (least..=least * 3 / 2).contains(wait))
            );
            assert!(waits.len() > 60, "{waits:?}");
            let (first, last) = (*waits.first().unwrap(), *waits.last().unwrap());
            assert!(last - first > least / 3, "{waits:?}");
        }
    }
}
