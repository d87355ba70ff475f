//! Planned reads: ranges that are announced before they are wanted, merged into few requests.
//!
//! In       ranges in the order in which a response will need them.
//! Out      tickets that give their bytes; fetches that are under way before anybody asks.
//! Limits   a run is at most [`RUN_LEN_MAX`] bytes of one cell, shorter at the start of a response;
//!          what one response has ahead of itself is its share of the budget.
//! Not here how much a response announces: its own window.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::convoy::{Pace, Seat};
use super::inner::{Holds, Inner, cells};
use super::reserve::Reserved;
use super::table::{Hold, Key, Want};
use super::{Lane, Pieces, Place};
use crate::source::SourceError;

/// Neighbours with no more than this between them are read by one request: the bytes between cost
/// less than a round trip.
const GAP_MAX: u64 = 256 << 10;
/// The first run of a response ends after so many bytes; each next one is twice as long.
const RUN_LEN_FIRST: u64 = 1 << 20;
/// The longest run.
const RUN_LEN_MAX: u64 = 8 << 20;
/// Readers of smaller objects do not look at each other.
const CONVOY_SIZE_MIN: u64 = 16 << 20;
/// What any response may have ahead of itself, if the budget has it.
const AHEAD_MIN: u64 = 4 << 20;

/// The reads of one response, announced in its order.
#[derive(Debug)]
pub struct Planned {
    plan: Arc<Plan>,
}

/// A range that somebody will want. Dropping it gives it up.
#[derive(Debug)]
pub struct Ticket {
    plan: Arc<Plan>,
    place: Arc<Place>,
    range: Range<u64>,
    slot: Arc<Slot>,
}

#[derive(Debug)]
pub(super) struct Plan {
    inner: Arc<Inner>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What is announced and not closed yet.
    open: Option<Run>,
    /// What is closed and waits for room.
    deferred: VecDeque<Run>,
    run_len: u64,
    /// Names the response among those who wait for a source. No container has such a number.
    flow: u64,
    /// Bytes of tickets whose runs were issued.
    ahead: u64,
    /// Where it is among those who read the same object.
    seat: Option<Seat>,
}

/// Announced ranges of one cell that are read by one request.
#[derive(Debug)]
struct Run {
    place: Arc<Place>,
    key: Key,
    range: Range<u64>,
    flow: u64,
    members: Vec<(Arc<Slot>, Range<u64>)>,
}

/// What a ticket and its runs share.
#[derive(Debug)]
struct Slot {
    state: Mutex<SlotState>,
}

#[derive(Debug, Default)]
struct SlotState {
    holds: Option<Holds>,
    /// Bytes of it that were issued.
    issued: u64,
    is_over: bool,
}

impl Planned {
    pub(super) fn new(inner: &Arc<Inner>) -> Self {
        let plan = Plan {
            inner: Arc::clone(inner),
            state: Mutex::new(State {
                run_len: RUN_LEN_FIRST,
                flow: inner.table.number() | 1 << 63,
                ..State::default()
            }),
        };
        inner
            .plans
            .fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Self {
            plan: Arc::new(plan),
        }
    }

    /// Says that `range` will be wanted next, after everything announced before. Neighbours merge
    /// into one read.
    pub fn announce(&mut self, place: &Arc<Place>, range: Range<u64>) -> Ticket {
        let slot = Arc::new(Slot {
            state: Mutex::new(SlotState {
                holds: Some(self.plan.inner.no_holds()),
                ..SlotState::default()
            }),
        });
        let run_max = (self.plan.inner.ahead_share() / 2).clamp(RUN_LEN_FIRST, RUN_LEN_MAX);
        let mut state = lock(&self.plan.state);
        state.run_len = state.run_len.min(run_max);
        if place.stamp.size >= CONVOY_SIZE_MIN && state.seat.is_none() {
            let convoys = &self.plan.inner.convoys;
            state.seat = Some(convoys.join(place.container, range.start));
        }
        for (key, part) in cells(place, range.clone(), 0) {
            state.add(place, key, part, &slot);
        }
        self.plan.issue(&mut state);
        drop(state);
        Ticket {
            plan: Arc::clone(&self.plan),
            place: Arc::clone(place),
            range,
            slot,
        }
    }

    /// Nothing more will be announced for now: reads what was.
    pub fn issue(&mut self) {
        let mut state = lock(&self.plan.state);
        state.close_run();
        self.plan.issue(&mut state);
    }
}

impl Ticket {
    /// The source that the range lies in.
    #[must_use]
    pub fn source(&self) -> u32 {
        self.place.source.id
    }

    /// The bytes. Cancel-safe in the sense that a later call of another reader loses nothing.
    ///
    /// # Errors
    /// As [`super::Extents::read`].
    pub async fn bytes(self) -> Result<Pieces, SourceError> {
        let inner = &self.plan.inner;
        if let Some(mut pace) = self.plan.pace(&self.place, &self.range) {
            tokio::select! {
                () = pace.wait() => {}
                () = inner.closing.cancelled() => return Err(super::inner::stopping()),
            }
        }
        self.plan.force(&self.slot);
        let coming = inner.want(&self.place, self.range.clone(), Lane::Stream, 0)?;
        let pieces = coming.all().await?;
        super::stats::count(&inner.counters.served_bytes, pieces.len() as u64);
        Ok(pieces)
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let (holds, issued) = {
            let mut slot = lock(&self.slot.state);
            slot.is_over = true;
            (slot.holds.take(), std::mem::take(&mut slot.issued))
        };
        drop(holds);
        let mut state = lock(&self.plan.state);
        state.ahead = state.ahead.saturating_sub(issued);
        self.plan.issue(&mut state);
    }
}

impl Plan {
    /// Takes the seat of the response further, to `range` of `place`. Answers its pace among those
    /// who read the same object.
    fn pace(&self, place: &Place, range: &Range<u64>) -> Option<Pace> {
        let mut state = lock(&self.state);
        if place.stamp.size < CONVOY_SIZE_MIN {
            state.seat = None;
            return None;
        }
        if state
            .seat
            .as_ref()
            .is_none_or(|seat| seat.container() != place.container)
        {
            state.seat = Some(self.inner.convoys.join(place.container, range.start));
        }
        state.seat.as_ref().map(|seat| seat.go(range.start))
    }

    /// Issues what waits for room, in order, as long as there is some.
    fn issue(self: &Arc<Self>, state: &mut State) {
        while let Some(run) = state.deferred.front_mut() {
            let Some(len) = run.shrink() else {
                state.deferred.pop_front();
                continue;
            };
            let inner = &self.inner;
            let missing = inner.table.missing(run.key, &run.range);
            let mut reserved = None; // What others read already costs nothing.
            if missing > 0 {
                let is_much = state.ahead + len > inner.ahead_share().max(AHEAD_MIN);
                if is_much && state.ahead > 0 {
                    return;
                }
                reserved = Reserved::ahead(inner, run.place.source.id, missing);
                if reserved.is_none() {
                    return;
                }
            }
            if let Some(run) = state.deferred.pop_front() {
                state.ahead += run.begin(inner, Lane::Ahead, reserved, missing);
            }
        }
    }

    /// Issues what `slot` is part of now: somebody waits for it.
    fn force(self: &Arc<Self>, slot: &Arc<Slot>) {
        let mut state = lock(&self.state);
        if state.open.as_ref().is_some_and(|run| run.has(slot)) {
            state.close_run();
        }
        while let Some(index) = state.deferred.iter().position(|run| run.has(slot)) {
            let Some(mut run) = state.deferred.remove(index) else {
                break;
            };
            if run.shrink().is_some() {
                state.ahead += run.begin(&self.inner, Lane::Stream, None, u64::MAX);
            }
        }
        self.issue(&mut state);
    }
}

impl Drop for Plan {
    fn drop(&mut self) {
        self.inner
            .plans
            .fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

impl State {
    /// Adds `range` to the run that is open, or closes that and opens one.
    fn add(&mut self, place: &Arc<Place>, key: Key, range: Range<u64>, slot: &Arc<Slot>) {
        let joins = self.open.as_ref().is_some_and(|run| {
            let gap = range.start.checked_sub(run.range.end);
            run.key == key && gap.is_some_and(|gap| gap <= GAP_MAX)
        });
        if !joins {
            self.close_run();
        }
        let run = self.open.get_or_insert_with(|| Run {
            place: Arc::clone(place),
            key,
            range: range.clone(),
            flow: self.flow,
            members: Vec::new(),
        });
        run.range.end = range.end;
        run.members.push((Arc::clone(slot), range));
        if run.range.end - run.range.start >= self.run_len {
            self.close_run();
        }
    }

    /// Adds nothing more to the run that is open.
    fn close_run(&mut self) {
        if let Some(run) = self.open.take() {
            if run.range.end - run.range.start >= self.run_len {
                self.run_len = (self.run_len * 2).min(RUN_LEN_MAX);
            }
            self.deferred.push_back(run);
        }
    }
}

impl Run {
    fn has(&self, slot: &Arc<Slot>) -> bool {
        self.members
            .iter()
            .any(|(member, _)| Arc::ptr_eq(member, slot))
    }

    /// Leaves out who has gone. Answers the bytes that are left, if any.
    fn shrink(&mut self) -> Option<u64> {
        self.members.retain(|(slot, _)| !lock(&slot.state).is_over);
        let start = self.members.first()?.1.start;
        let end = self.members.last()?.1.end;
        self.range = start..end;
        Some(end - start)
    }

    /// Opens the fetches and gives each ticket its interest. Answers the bytes of the tickets.
    fn begin(
        self,
        inner: &Arc<Inner>,
        lane: Lane,
        reserved: Option<Reserved>,
        fetch_max: u64,
    ) -> u64 {
        let cuts: Vec<u64> = self.members.iter().map(|(_, range)| range.start).collect();
        let want = Want {
            lane,
            flow: self.flow,
            cuts: &cuts,
            deliver: false,
            fetch_max,
        };
        let mut all = inner.no_holds(); // Until the tickets have theirs.
        let Ok(mut wanted) = inner.table.want(self.key, &self.range, want) else {
            return 0;
        };
        all.append(&mut wanted.holds);
        let _ = inner.begin(&self.place, wanted, reserved); // Who asks is told.
        let mut issued = 0;
        for (slot, range) in &self.members {
            let want = Want {
                lane,
                flow: self.flow,
                cuts: &[],
                deliver: false,
                fetch_max: 0,
            };
            let Ok(mut wanted) = inner.table.want(self.key, range, want) else {
                return issued;
            };
            let mut held: Vec<Hold> = std::mem::take(&mut wanted.holds);
            let mut slot = lock(&slot.state);
            match &mut slot.holds {
                Some(holds) => {
                    holds.append(&mut held);
                    slot.issued += range.end - range.start;
                    issued += range.end - range.start;
                }
                None => all.append(&mut held),
            }
        }
        issued
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
