//! Reading what lies in sources elsewhere: each byte once, for everybody who waits for it.
//!
//! In       a [`Place`] and a range of its bytes, wanted now or announced for later.
//! Out      the bytes as they came; nothing here knows what they must hash to.
//! Limits   [`ExtentLimits`].
//! Not here local files (`source::local`), hashing (`store::block`).

mod ahead;
mod budget;
mod control;
mod convoy;
mod delivery;
mod fetch;
mod inner;
#[cfg(test)]
#[cfg(feature = "model")]
mod model;
mod pieces;
mod plan;
mod reserve;
mod stats;
mod sync;
mod table;
#[cfg(test)]
#[cfg(not(feature = "model"))]
mod testing;
#[cfg(test)]
#[cfg(not(feature = "model"))]
mod tests;

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinHandle;

use self::inner::{Inner, cells, stopping};
use self::stats::count;
use crate::source::SourceError;
use crate::source::validator::ObjectStamp;
use crate::store::location::ContainerId;
use crate::store::sources::{OpenSource, Sources};

pub use self::pieces::Pieces;
pub use self::plan::{Planned, Ticket};
pub use self::stats::ExtentStats;
pub use crate::source::limiter::Lane;

/// Bounds of all reads of one store.
#[derive(Debug, Clone)]
pub struct ExtentLimits {
    /// Bytes in flight and landed together.
    pub bytes_max: u64,
}

/// One version of one object of a source.
#[derive(Debug)]
pub struct Place {
    /// The container that it is.
    pub container: ContainerId,
    /// Where it lies.
    pub source: Arc<OpenSource>,
    /// Its path there.
    pub path: Box<[u8]>,
    /// Its version.
    pub stamp: Arc<ObjectStamp>,
}

/// All reads of one store. Clones share them.
#[derive(Debug, Clone)]
pub struct Extents {
    inner: Arc<Inner>,
}

impl Extents {
    /// The reads of the store whose sources these are.
    #[must_use]
    pub fn new(sources: Arc<Sources>, limits: ExtentLimits) -> Self {
        Self {
            inner: Inner::new(sources, &limits),
        }
    }

    /// The sources that are read.
    #[must_use]
    pub fn sources(&self) -> &Arc<Sources> {
        &self.inner.sources
    }

    /// The bytes of `range`: joins whoever reads them, else reads just them. Cancel-safe.
    ///
    /// # Errors
    /// Those of the source, after what can be tried again was.
    pub async fn read(
        &self,
        place: &Arc<Place>,
        range: Range<u64>,
        lane: Lane,
    ) -> Result<Pieces, SourceError> {
        let inner = &self.inner;
        let coming = inner.want(place, range.clone(), lane, 0)?;
        if lane == Lane::Block
            && let Some(ahead) = inner.cursors.note(place, &range)
        {
            inner.read_ahead(place, ahead);
        }
        let pieces = coming.all().await?;
        count(&inner.counters.served_bytes, pieces.len() as u64);
        Ok(pieces)
    }

    /// Whether all of `range` is in memory, or on its way.
    #[must_use]
    pub(in crate::store) fn has(&self, place: &Place, range: Range<u64>) -> bool {
        let table = &self.inner.table;
        cells(place, range, 0).all(|(key, range)| table.missing(key, &range) == 0)
    }

    /// The bytes of `range` anew, whatever is in memory of them: that is forgotten. Cancel-safe.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_again(
        &self,
        place: &Arc<Place>,
        range: Range<u64>,
    ) -> Result<Pieces, SourceError> {
        let inner = &self.inner;
        for (key, part) in cells(place, range.clone(), 0) {
            inner.settle(&inner.table.forget(key, &part));
        }
        let alone = inner.table.number();
        let pieces = inner.want(place, range, Lane::Block, alone)?.all().await?;
        count(&inner.counters.served_bytes, pieces.len() as u64);
        Ok(pieces)
    }

    /// What the object is now.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn stat(&self, place: &Arc<Place>) -> Result<ObjectStamp, SourceError> {
        let place = Arc::clone(place);
        let asking = self.begin(async move { place.source.source.stat(&place.path).await })?;
        asking
            .await
            .ok()
            .flatten()
            .unwrap_or_else(|| Err(stopping()))
    }

    /// Begins something that goes on whoever waits for it; `None` comes of it if it is ended
    /// because the node stops.
    pub(in crate::store) fn begin<T: Send + 'static>(
        &self,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<JoinHandle<Option<T>>, SourceError> {
        let handle = self.inner.handle()?;
        let inner = Arc::clone(&self.inner);
        let until_closing = async move {
            tokio::select! {
                done = work => Some(done),
                () = inner.closing.cancelled() => None,
            }
        };
        Ok(self.inner.tasks.spawn_on(until_closing, &handle))
    }

    /// The reads of one response.
    #[must_use]
    pub fn planned(&self) -> Planned {
        Planned::new(&self.inner)
    }

    /// What reads cost so far, and hold now.
    #[must_use]
    pub fn stats(&self) -> ExtentStats {
        let held = self.inner.budget.held();
        ExtentStats {
            n_fetches: self.inner.tasks.len() as u64,
            in_flight_bytes: held.in_flight,
            landed_bytes: held.landed,
            bytes_max: self.inner.bytes_max,
            ..self.inner.counters.stats()
        }
    }

    /// Ends all reads: who waits gets an error, and nobody is taken in any more. Waits at most
    /// `timeout` for what is under way. Answers whether all of it has ended.
    pub async fn close(&self, timeout: Duration) -> bool {
        let inner = &self.inner;
        inner.closing.cancel();
        inner.settle(&inner.table.close(&stopping()));
        inner.tasks.close();
        tokio::time::timeout(timeout, inner.tasks.wait())
            .await
            .is_ok()
    }
}
