//! What all reads of one store share, and how a range of a place becomes holds, parts and fetches.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ahead::Cursors;
use super::budget::Budget;
use super::convoy::Convoys;
use super::fetch;
use super::pieces::{Landed, Pieces};
use super::reserve::Reserved;
use super::stats::Counters;
use super::table::{CELL_LEN, Freed, Hold, Key, Opened, Part, Table, Want, Wanted};
use super::{ExtentLimits, Lane, Place};
use crate::source::{SourceError, SourceErrorKind};
use crate::store::sources::Sources;

/// Smallest budget: fetches of a sixteenth of it are 256 KiB.
const BYTES_MIN: u64 = 4 << 20;
/// A fetch is at most this part of the budget, so that many share it.
const FETCH_PART: u64 = 16;

/// Shared by all clones of [`super::Extents`] and by the fetches.
#[derive(Debug)]
pub(super) struct Inner {
    pub(super) sources: Arc<Sources>,
    pub(super) bytes_max: u64,
    pub(super) table: Table,
    pub(super) budget: Budget,
    pub(super) counters: Counters,
    pub(super) convoys: Arc<Convoys>,
    pub(super) cursors: Cursors,
    /// Responses with plans.
    pub(super) plans: AtomicU64,
    pub(super) closing: CancellationToken,
    pub(super) tasks: TaskTracker,
}

/// Interests that are given back when this is dropped.
#[derive(Debug)]
pub(super) struct Holds {
    inner: Arc<Inner>,
    holds: Vec<Hold>,
}

/// A range that is there or will come.
pub(super) struct Coming {
    range: Range<u64>,
    parts: Vec<Part>,
    _holds: Holds,
}

impl Inner {
    pub(super) fn new(sources: Arc<Sources>, limits: &ExtentLimits) -> Arc<Self> {
        let bytes_max = limits.bytes_max.max(BYTES_MIN);
        Arc::new(Self {
            sources,
            bytes_max,
            table: Table::new(bytes_max / FETCH_PART),
            budget: Budget::new(bytes_max),
            counters: Counters::default(),
            convoys: Convoys::new(bytes_max),
            cursors: Cursors::default(),
            plans: AtomicU64::new(0),
            closing: CancellationToken::new(),
            tasks: TaskTracker::new(),
        })
    }

    /// Joins or begins the reads of `range`. With `alone` nothing of others is used.
    pub(super) fn want(
        self: &Arc<Self>,
        place: &Arc<Place>,
        range: Range<u64>,
        lane: Lane,
        alone: u64,
    ) -> Result<Coming, SourceError> {
        let mut coming = Coming {
            range: range.clone(),
            parts: Vec::new(),
            _holds: self.no_holds(),
        };
        for (key, range) in cells(place, range, alone) {
            let want = Want {
                lane,
                flow: place.container.0,
                cuts: &[],
                deliver: true,
                fetch_max: u64::MAX,
            };
            let mut wanted = self.table.want(key, &range, want).map_err(|_| stopping())?;
            coming._holds.holds.append(&mut wanted.holds);
            coming.parts.append(&mut wanted.parts);
            self.begin(place, wanted, None)?;
        }
        Ok(coming)
    }

    /// Starts the tasks of new fetches. Those that cannot start fail, which the table is told.
    pub(super) fn begin(
        self: &Arc<Self>,
        place: &Arc<Place>,
        wanted: Wanted,
        mut reserved: Option<Reserved>,
    ) -> Result<(), SourceError> {
        if wanted.fetches.is_empty() {
            return Ok(());
        }
        let jobs = wanted.fetches.into_iter().map(|opened: Opened| {
            let len = opened.len();
            let reserved = reserved.as_mut().map(|reserved| reserved.split(len));
            fetch::Job::new(self, place, opened, reserved)
        });
        let jobs: Vec<_> = jobs.collect();
        let handle = self.handle()?; // Jobs that are dropped take their fetches out of the table.
        for job in jobs {
            self.tasks.spawn_on(job.run(), &handle);
        }
        Ok(())
    }

    /// The threads that reads run on.
    pub(super) fn handle(&self) -> Result<Handle, SourceError> {
        if self.closing.is_cancelled() {
            return Err(stopping());
        }
        let handle = self.sources.handle();
        handle.map_err(|error| SourceError::new(SourceErrorKind::Unreachable, error.to_string()))
    }

    /// What each response may have ahead of itself. Those that read one object together count once.
    pub(super) fn ahead_share(&self) -> u64 {
        let n_plans = self.plans.load(Ordering::Relaxed);
        let (n_seats, n_convoys) = self.convoys.count();
        let n = n_plans.saturating_sub(n_seats) + n_convoys;
        self.bytes_max / 4 * 3 / n.max(1)
    }

    /// Reads `range` because it is likely to be wanted, if there is room to spare.
    pub(super) fn read_ahead(self: &Arc<Self>, place: &Arc<Place>, range: Range<u64>) {
        for (key, range) in cells(place, range, 0) {
            let missing = self.table.missing(key, &range);
            if missing == 0 {
                continue;
            }
            let Some(reserved) = Reserved::ahead(self, place.source.id, missing) else {
                return;
            };
            let want = Want {
                lane: Lane::Ahead,
                flow: place.container.0,
                cuts: &[],
                deliver: true,
                fetch_max: missing,
            };
            let Ok(mut wanted) = self.table.want(key, &range, want) else {
                return;
            };
            let mut holds = self.no_holds();
            holds.append(&mut wanted.holds);
            let coming = Coming {
                range,
                parts: std::mem::take(&mut wanted.parts),
                _holds: holds,
            };
            let begun = self.begin(place, wanted, Some(reserved));
            if let (Ok(()), Ok(handle)) = (begun, self.handle()) {
                let (inner, all) = (Arc::clone(self), coming.all());
                let wait = async move {
                    tokio::select! {
                        _ = all => {} // Who wants it finds it.
                        () = inner.closing.cancelled() => {}
                    }
                };
                self.tasks.spawn_on(wait, &handle);
            }
        }
    }

    /// Interests in nothing.
    pub(super) fn no_holds(self: &Arc<Self>) -> Holds {
        Holds {
            inner: Arc::clone(self),
            holds: Vec::new(),
        }
    }

    /// Tells the budget what has changed in the table.
    pub(super) fn settle(&self, freed: &Freed) {
        self.budget.freed(freed);
        self.pump();
    }
}

impl Coming {
    /// Waits for all of it. Cancel-safe: dropping it gives the interests back.
    pub(super) async fn all(self) -> Result<Pieces, SourceError> {
        let mut landed: Vec<Landed> = Vec::with_capacity(self.parts.len());
        for part in &self.parts {
            landed.push(match part {
                Part::Here(landed) => landed.clone(),
                Part::Coming(delivery) => (&**delivery).await?,
            });
        }
        Ok(Pieces::of(&landed, &self.range))
    }
}

impl Holds {
    /// More interests.
    pub(super) fn append(&mut self, holds: &mut Vec<Hold>) {
        self.holds.append(holds);
    }
}

impl Drop for Holds {
    fn drop(&mut self) {
        if !self.holds.is_empty() {
            let convoys = &self.inner.convoys;
            let keep = |key: Key, start| convoys.wants(key.container, start);
            let freed = self.inner.table.release(&self.holds, keep);
            self.inner.settle(&freed);
        }
    }
}

/// `range` by the cells that it lies in.
pub(super) fn cells(
    place: &Place,
    range: Range<u64>,
    alone: u64,
) -> impl Iterator<Item = (Key, Range<u64>)> + use<> {
    let container = place.container;
    let mut at = range.start;
    std::iter::from_fn(move || {
        if at >= range.end {
            return None;
        }
        let cell = at / CELL_LEN;
        let end = ((cell + 1) * CELL_LEN).min(range.end);
        let key = Key {
            container,
            cell,
            alone,
        };
        let part = at..end;
        at = end;
        Some((key, part))
    })
}

/// The error of reads that a shutdown ends.
pub(super) fn stopping() -> SourceError {
    let what = "the read was ended: this node is stopping";
    SourceError::new(SourceErrorKind::Unreachable, what)
}
