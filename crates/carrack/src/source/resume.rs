//! Reads that go on after a connection broke off or a server asked for patience.
//!
//! In       a source, a version of an object, a range, how many attempts may come to nothing.
//! Out      the range, without a gap, of that one version; or the error that ended it.
//! Limits   waits of [`WAIT_MIN`] to [`WAIT_MAX`], or what the server asks for up to
//!          [`ASKED_WAIT_MAX`]. Nothing is held but the piece that is passed on.
//! Not here how many reads go on at once, who waits for them (`store::extent`).
//!
//! An attempt that brought bytes is no failed one: a read of any length goes on as long as
//! it gets on. A read that finds another version is over: two versions are never spliced.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::source::validator::ObjectStamp;
use crate::source::{ByteStream, Source, SourceError, SourceErrorKind};

/// Before the first repetition.
const WAIT_MIN: Duration = Duration::from_millis(100);
/// Doubling ends here.
const WAIT_MAX: Duration = Duration::from_secs(5);
/// Servers that are down for maintenance ask for hours.
const ASKED_WAIT_MAX: Duration = Duration::from_secs(30);
/// Requests for pages of listings and for heads of objects.
const LISTING_ATTEMPTS: u32 = 6;

/// Bytes `range` of version `stamp` of the object at `path`. `attempts` requests in a row may end
/// without a byte before the last one's error is given on.
#[must_use]
pub fn resume(
    source: Arc<dyn Source>,
    path: impl Into<Arc<[u8]>>,
    stamp: Arc<ObjectStamp>,
    range: Range<u64>,
    attempts: u32,
) -> ByteStream {
    let reading = Reading {
        source,
        path: path.into(),
        stamp,
        range,
        body: None,
        patience: Patience::new(attempts),
    };
    Box::pin(stream::try_unfold(reading, |mut reading| async move {
        let piece = reading.next().await?;
        Ok(piece.map(|piece| (piece, reading)))
    }))
}

/// A read on its way.
struct Reading {
    source: Arc<dyn Source>,
    path: Arc<[u8]>,
    stamp: Arc<ObjectStamp>,
    /// What is still to come.
    range: Range<u64>,
    body: Option<ByteStream>,
    patience: Patience,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        while !self.range.is_empty() {
            match self.attempt().await {
                Ok(piece) => {
                    self.patience.renew();
                    self.range.start += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Err(error) => {
                    self.body = None;
                    self.patience.after(error).await?;
                }
            }
        }
        Ok(None)
    }

    async fn attempt(&mut self) -> Result<Bytes, SourceError> {
        let body = match &mut self.body {
            Some(body) => body,
            None => {
                let range = self.range.clone();
                let body = self.source.read(&self.path, &self.stamp, range).await?;
                self.body.insert(body)
            }
        };
        match body.next().await {
            Some(Ok(piece)) if piece.is_empty() => Err(self.cut()),
            Some(Ok(piece)) if piece.len() as u64 > self.range.end - self.range.start => {
                let why = format!("{}: more bytes came than were asked for", self.source.url());
                Err(SourceError::new(SourceErrorKind::Unusable, why))
            }
            Some(result) => result,
            None => Err(self.cut()),
        }
    }

    fn cut(&self) -> SourceError {
        let why = format!("{}: the answer broke off", self.source.url());
        SourceError::new(SourceErrorKind::Unreachable, why)
    }
}

/// Attempts that are left, and the time before the next.
#[derive(Debug)]
pub struct Patience {
    attempts: u32,
    failed: u32,
}

impl Patience {
    /// `attempts` requests in a row may fail; the first counts.
    #[must_use]
    pub const fn new(attempts: u32) -> Self {
        Self {
            attempts,
            failed: 0,
        }
    }

    /// Something came: all attempts are there again.
    pub const fn renew(&mut self) {
        self.failed = 0;
    }

    /// Waits before the next attempt, if `error` passes and one is left. Cancel-safe.
    ///
    /// # Errors
    /// `error`, if there is nothing to wait for.
    pub async fn after(&mut self, error: SourceError) -> Result<(), SourceError> {
        self.failed += 1;
        if !error.is_passing() || self.failed >= self.attempts {
            return Err(error);
        }
        let wait = match error.retry_after {
            Some(asked) => asked.clamp(WAIT_MIN, ASKED_WAIT_MAX),
            None => back_off(self.failed - 1),
        };
        tokio::time::sleep(wait).await;
        Ok(())
    }
}

/// The time to wait after so many failures before: doubled each time, and between half of it and
/// all, so that readers that failed together do not come back together.
fn back_off(failures_before: u32) -> Duration {
    let whole = WAIT_MIN
        .saturating_mul(1 << failures_before.min(10))
        .min(WAIT_MAX);
    let noise = crate::clock::unix_nanoseconds().rem_euclid(1024);
    let noise = u32::try_from(noise).unwrap_or(0);
    whole / 2 + whole / 2048 * noise
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
