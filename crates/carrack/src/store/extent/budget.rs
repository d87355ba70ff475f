//! The bytes that reads of sources may hold: one budget for what is in flight and what has landed.
//!
//! In       wants of room before a request is made, pieces that landed, pieces that may go.
//! Out      grants in order of urgency, and which piece to evict for them.
//! Limits   in flight and landed together never exceed `bytes_max`. What one source has in flight
//!          is at most a third of what nobody has in flight: a quarter of all for one source, less
//!          for each of several, and never everything, so that no number of hung sources takes the
//!          room of one that answers. Read-ahead gets at most [`AHEAD_PARTS`] of all.
//! Not here who is served by a source first (`source::limiter`).
//!
//! Landed bytes can always be evicted (who waited for them was given them), bytes in flight end by
//! their deadlines: every want is granted in time, whatever clients do.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use super::Lane;
use super::sync::{Mutex, hold};
use super::table::{Freed, Key};

/// Part of the budget, in quarters, that what nobody waits for yet may fill.
const AHEAD_PARTS: u64 = 3;
/// Part of the budget that pieces keep which nobody wants: one in that many.
const IDLE_PART: u64 = 4;
/// Part of a source's share that read-ahead leaves to those who wait: one in that many.
const SPARED_PART: u64 = 8;

/// What was kept or announced for so long without being read yields to others' read-ahead: clients
/// that stand still shall not slow those that do not.
const STALE: Duration = Duration::from_secs(5);

/// How readily a landed piece is evicted, first to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// It was read, or nobody wants it any more.
    Spent,
    /// It was read more than once, block by block.
    Again,
    /// A reader of the same container is on its way to it.
    Kept,
    /// Somebody has announced that it will be wanted.
    Ahead,
}

/// A piece that may be evicted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Victim {
    pub(super) key: Key,
    pub(super) start: u64,
    pub(super) id: u64,
    pub(super) len: u64,
    /// Counts what was said of it: steps of the table may be told here in another order.
    pub(super) stamp: u32,
}

/// The budget.
#[derive(Debug)]
pub(super) struct Budget {
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    in_flight: u64,
    landed: u64,
    by_source: HashMap<u32, u64>,
    waiting: BTreeMap<Place, Waiting>,
    /// Wants that were granted and do not know it yet.
    granted: HashSet<u64>,
    next: u64,
    /// Landed pieces, in the order in which they go. Each is there once.
    victims: BTreeMap<(Class, u64), (Victim, Instant)>,
    /// Where a piece is in `victims`.
    places: HashMap<u64, (Class, u64)>,
    /// Bytes of `Class::Spent`.
    idle: u64,
}

/// Order of service.
type Place = (Lane, u64);

#[derive(Debug)]
struct Waiting {
    source: u32,
    len: u64,
    waker: Option<Waker>,
}

/// What is to be done so that somebody can be granted.
#[derive(Debug)]
pub(super) enum Step {
    /// Nothing, for now.
    Rest,
    /// Somebody was granted; there may be more.
    Wake(Option<Waker>),
    /// This piece is to go.
    Evict(Victim, Class),
}

/// Whether what nobody waits for yet may be read.
#[derive(Debug)]
pub(super) enum Ahead {
    Granted,
    Refused,
    /// Perhaps, without this piece.
    Evict(Victim, Class),
    /// Perhaps, without this piece, if the reader it was kept for has come past it.
    Kept(Victim),
}

/// Bytes held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Held {
    /// Reserved for requests and not landed.
    pub in_flight: u64,
    /// In memory.
    pub landed: u64,
}

impl Budget {
    pub(super) fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            state: Mutex::default(),
        }
    }

    /// Bytes held now.
    pub(super) fn held(&self) -> Held {
        let state = hold(&self.state);
        Held {
            in_flight: state.in_flight,
            landed: state.landed,
        }
    }

    /// Queues a want of room. To be polled until granted, or withdrawn.
    pub(super) fn enqueue(&self, lane: Lane, source: u32, len: u64) -> (Lane, u64) {
        debug_assert!(len <= self.bytes_max, "fetches are smaller than the budget");
        let mut state = hold(&self.state);
        state.next += 1;
        let place = (lane, state.next);
        let waiting = Waiting {
            source,
            len,
            waker: None,
        };
        state.waiting.insert(place, waiting);
        place
    }

    /// Whether the want at `place` was granted.
    pub(super) fn poll(&self, place: Place, context: &Context<'_>) -> Poll<()> {
        let mut state = hold(&self.state);
        if state.granted.remove(&place.1) {
            return Poll::Ready(());
        }
        if let Some(waiting) = state.waiting.get_mut(&place) {
            waiting.waker = Some(context.waker().clone());
        }
        Poll::Pending
    }

    /// Gives a want up that was not seen granted. Answers whether it had been: then its bytes are
    /// to be released.
    pub(super) fn withdraw(&self, place: Place) -> bool {
        let mut state = hold(&self.state);
        state.waiting.remove(&place);
        state.granted.remove(&place.1)
    }

    /// Moves a want to a more urgent lane. Answers its new place.
    pub(super) fn promote(&self, place: Place, lane: Lane) -> Place {
        let mut state = hold(&self.state);
        match state.waiting.remove(&place) {
            Some(waiting) => {
                state.waiting.insert((lane, place.1), waiting);
                (lane, place.1)
            }
            None => place, // Granted, which goes by the number.
        }
    }

    /// The next thing to do for those who wait. To be called again until it says `Rest`.
    pub(super) fn step(&self) -> Step {
        let mut state = hold(&self.state);
        let fits = |(_, waiting): &(&Place, &Waiting)| {
            state.source_may(waiting.source, waiting.len, self.bytes_max)
        };
        let first = state.waiting.iter().find(fits);
        let Some((&place, waiting)) = first else {
            return state.trim(self.bytes_max / IDLE_PART);
        };
        let (source, len) = (waiting.source, waiting.len);
        if state.in_flight + state.landed + len > self.bytes_max {
            let victim = state.victim(Class::Ahead);
            return victim.map_or(Step::Rest, |(victim, class)| Step::Evict(victim, class));
        }
        let waiting = state.waiting.remove(&place);
        state.granted.insert(place.1);
        state.reserve(source, len);
        Step::Wake(waiting.and_then(|waiting| waiting.waker))
    }

    /// Reserves room for what nobody waits for yet, if there is enough for those who do.
    pub(super) fn ahead(&self, source: u32, len: u64) -> Ahead {
        let mut state = hold(&self.state);
        let (max, share) = (self.bytes_max, self.bytes_max * AHEAD_PARTS / 4);
        let spared = max / 4 / SPARED_PART;
        let mut waiting = state.waiting.values();
        let is_short = waiting.any(|other| state.source_may(other.source, other.len, max));
        if is_short || state.in_flight + len > share || !state.source_may(source, len + spared, max)
        {
            return Ahead::Refused;
        }
        if state.in_flight + state.landed + len > share {
            let victim = state.victim(Class::Again).or_else(|| state.stale());
            return match victim {
                Some((victim, class)) => Ahead::Evict(victim, class),
                None => state.first_kept().map_or(Ahead::Refused, Ahead::Kept),
            };
        }
        state.reserve(source, len);
        Ahead::Granted
    }

    /// Nobody is on the way to a piece that was kept: it is to go.
    pub(super) fn give_up(&self, victim: &Victim) -> Option<(Victim, Class)> {
        let mut state = hold(&self.state);
        let class = state.places.get(&victim.id)?.0;
        state.remove(victim.id);
        Some((*victim, class))
    }

    /// `len` reserved bytes of `source` have landed.
    pub(super) fn landed(&self, source: u32, len: u64) {
        let mut state = hold(&self.state);
        state.release(source, len);
        state.landed += len;
    }

    /// `len` reserved bytes of `source` will not come.
    pub(super) fn release(&self, source: u32, len: u64) {
        hold(&self.state).release(source, len);
    }

    /// What has left the table, and what may.
    pub(super) fn freed(&self, freed: &Freed) {
        if *freed == Freed::default() {
            return;
        }
        let mut state = hold(&self.state);
        debug_assert!(state.landed >= freed.len, "freed more than landed");
        state.landed = state.landed.saturating_sub(freed.len);
        for id in &freed.gone {
            state.remove(*id);
        }
        for (class, victim) in &freed.victims {
            state.insert(*class, *victim);
        }
    }

    /// The bound.
    #[cfg(all(test, feature = "model"))]
    pub(super) const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Whether nobody holds, waits for or was granted anything.
    #[cfg(test)]
    pub(super) fn is_idle(&self) -> bool {
        let state = hold(&self.state);
        state.in_flight == 0
            && state.waiting.is_empty()
            && state.granted.is_empty()
            && state.by_source.values().all(|len| *len == 0)
    }
}

impl State {
    /// Whether `source` may have `len` bytes more in flight.
    fn source_may(&self, source: u32, len: u64, bytes_max: u64) -> bool {
        let has = self.by_source.get(&source).copied().unwrap_or_default();
        let after = self.in_flight + len;
        if after > bytes_max {
            return false;
        }
        let is_first = has == 0 && 2 * len <= bytes_max - self.in_flight;
        is_first || 3 * (has + len) <= bytes_max - after
    }

    fn reserve(&mut self, source: u32, len: u64) {
        self.in_flight += len;
        *self.by_source.entry(source).or_default() += len;
    }

    fn release(&mut self, source: u32, len: u64) {
        debug_assert!(self.in_flight >= len, "released more than was reserved");
        self.in_flight = self.in_flight.saturating_sub(len);
        if let Some(has) = self.by_source.get_mut(&source) {
            *has = has.saturating_sub(len);
            if *has == 0 {
                self.by_source.remove(&source);
            }
        }
    }

    /// What leaves so that pieces that nobody wants do not fill the budget for no use.
    fn trim(&mut self, idle_max: u64) -> Step {
        if self.idle <= idle_max {
            return Step::Rest;
        }
        let victim = self.victim(Class::Spent);
        victim.map_or(Step::Rest, |(victim, class)| Step::Evict(victim, class))
    }

    /// The first piece to go, of the classes up to `last`.
    fn victim(&mut self, last: Class) -> Option<(Victim, Class)> {
        let (&(class, _), &(victim, _)) = self.victims.first_key_value()?;
        if class > last {
            return None;
        }
        self.remove(victim.id);
        Some((victim, class))
    }

    /// The first piece to go, if it is one that was kept for somebody.
    fn first_kept(&self) -> Option<Victim> {
        let (&(class, _), &(victim, _)) = self.victims.first_key_value()?;
        (class == Class::Kept).then_some(victim)
    }

    /// The first piece to go, if nobody came for it for long.
    fn stale(&mut self) -> Option<(Victim, Class)> {
        let (_, (_, since)) = self.victims.first_key_value()?;
        if since.elapsed() < STALE {
            return None;
        }
        self.victim(Class::Ahead)
    }

    fn insert(&mut self, class: Class, victim: Victim) {
        let place = self.places.get(&victim.id);
        let known = place.and_then(|place| self.victims.get(place));
        if known.is_some_and(|(known, _)| known.stamp > victim.stamp) {
            return;
        }
        self.remove(victim.id);
        self.next += 1;
        let place = (class, self.next);
        self.victims.insert(place, (victim, Instant::now()));
        self.places.insert(victim.id, place);
        if class == Class::Spent {
            self.idle += victim.len;
        }
    }

    fn remove(&mut self, id: u64) {
        let place = self.places.remove(&id);
        let victim = place.and_then(|place| self.victims.remove(&place));
        if let Some((victim, _)) = victim
            && place.is_some_and(|(class, _)| class == Class::Spent)
        {
            self.idle = self.idle.saturating_sub(victim.len);
        }
    }
}
