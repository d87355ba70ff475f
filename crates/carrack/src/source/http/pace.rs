//! How slowly a body may come.
//!
//! In       the pieces of a body, each as a future.
//! Out      the pieces, or the error of a body that comes too slowly.
//! Limits   [`IDLE_TIMEOUT`] for one piece; for all of them [`DATA_TIME_MIN`] or [`PAGE_TIME_MIN`],
//!          and as long as what came takes at [`DATA_RATE_MIN`] or [`PAGE_RATE_MIN`]. Only the time
//!          that was waited counts: whoever takes pieces slowly loses none.
//! Not here the time to the head of an answer (`source::http`).
//!
//! With a deadline for each piece alone, one byte each half a minute holds its reader for ever.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::{IDLE_TIMEOUT, unreachable};
use crate::source::{SourceError, SourceErrorKind};

/// However little came, a body may take so long.
const DATA_TIME_MIN: Duration = Duration::from_secs(60);
const PAGE_TIME_MIN: Duration = Duration::from_secs(30);
/// Bytes a second. Slower than any line that data are served over, also if a hundred reads share
/// it.
const DATA_RATE_MIN: u64 = 1 << 10;
/// Pages of listings come one at a time.
const PAGE_RATE_MIN: u64 = 32 << 10;

/// What was waited for one body.
#[derive(Debug)]
pub(super) struct Pace {
    time_min: Duration,
    rate_min: u64,
    waited: Duration,
    n_bytes: u64,
}

impl Pace {
    /// That of a range of an object.
    pub(super) const fn of_data() -> Self {
        Self::new(DATA_TIME_MIN, DATA_RATE_MIN)
    }

    /// That of a listing.
    pub(super) const fn of_page() -> Self {
        Self::new(PAGE_TIME_MIN, PAGE_RATE_MIN)
    }

    pub(super) const fn new(time_min: Duration, rate_min: u64) -> Self {
        Self {
            time_min,
            rate_min,
            waited: Duration::ZERO,
            n_bytes: 0,
        }
    }

    /// Waits for the next piece, and no longer than the body as a whole may take.
    pub(super) async fn next<T: AsRef<[u8]>>(
        &mut self,
        piece: impl Future<Output = reqwest::Result<Option<T>>>,
        what: &str,
    ) -> Result<Option<T>, SourceError> {
        let left = self.time_max().saturating_sub(self.waited);
        let begun = Instant::now();
        let piece = timeout(IDLE_TIMEOUT.min(left), piece).await;
        self.waited += begun.elapsed();
        let slow = |why: String| {
            let what = format!("{what}: {why}");
            Err(SourceError::new(SourceErrorKind::Unreachable, what))
        };
        match piece {
            Ok(Ok(piece)) => {
                self.n_bytes += piece
                    .as_ref()
                    .map_or(0, |piece| piece.as_ref().len() as u64);
                Ok(piece)
            }
            Ok(Err(error)) => Err(unreachable(&error, what)),
            Err(_) if left <= IDLE_TIMEOUT => slow(format!(
                "only {} bytes came within {} s",
                self.n_bytes,
                self.waited.as_secs()
            )),
            Err(_) => slow(format!("nothing came for {} s", IDLE_TIMEOUT.as_secs())),
        }
    }

    fn time_max(&self) -> Duration {
        self.time_min + Duration::from_millis(self.n_bytes.saturating_mul(1000) / self.rate_min)
    }
}
