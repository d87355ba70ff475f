//! What is out of service: whole containers or ranges of them, why, and since when.
//!
//! In       what the read path saw: a file missing, cut, or with other bytes than were added.
//! Out      marks that the next read, `carrack status` and the catalog can use; and whose turn it
//!          is to look at something that is out of service again.
//! Limits   one mark a container, with at most [`RANGES_MAX`] ranges, and [`RANGES_TOTAL_MAX`] of
//!          all; on behalf of those who ask, one look at a container in [`LOOK_INTERVAL`] and
//!          [`LOOKS_MAX`] at all of a source.
//! Not here the reading (`store::block`); deciding what a changed source means for a request.
//!
//! Each block is proved by its own hash, so bytes that are wrong take their own range out of
//! service and no other: as long as the length is right and they can be read, the rest is served.
//! A container in which too many places are wrong, or [`IN_A_ROW_MAX`] blocks one after the other
//! with no sound one between, was rewritten: all of it is out of service, so that strangers cannot
//! have it hashed for ever. The next look that finds a sound block there opens it again.

mod ranges;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::{Duration, Instant};

use crate::store::catalog::{StaleMark, StaleReason, Validator};
use crate::store::location::{ContainerId, Location};

/// Ranges of one container: a disk that fails or a careless write damages a few places. 16 bytes
/// each, so at most 1 KiB a container.
pub const RANGES_MAX: usize = 64;
/// Ranges of all containers, 4 MiB; beyond it marks are of whole containers.
const RANGES_TOTAL_MAX: usize = 1 << 18;
/// Wrong blocks of a container without a sound one between them: a file that was rewritten is known
/// to be after hashing so many, at most 128 MiB.
const IN_A_ROW_MAX: u32 = 64;
/// How long what was found missing, changed or damaged is left alone.
pub const LOOK_INTERVAL: Duration = Duration::from_secs(10);
/// Looks at what is out of service in one source in [`LOOK_INTERVAL`]. Those that find it back do
/// not count.
const LOOKS_MAX: u32 = 16;

/// Marks in memory; written to the catalog by whoever owns the store.
#[derive(Debug, Default)]
pub struct StaleMarks {
    marks: RwLock<Marks>,
    /// Length of the table, for those who read while nothing is out of service.
    n_marks: AtomicUsize,
    /// For each source, when all its looks so far are paid for.
    looks: Mutex<HashMap<u32, Instant>>,
}

#[derive(Debug, Default)]
struct Marks {
    by_id: HashMap<ContainerId, Entry>,
    /// Those that the catalog does not know as they are now.
    changed: HashSet<ContainerId>,
    n_ranges: usize,
}

#[derive(Debug)]
struct Entry {
    mark: StaleMark,
    /// Blocks found wrong since the last sound one.
    n_in_a_row: AtomicU32,
    /// When it may be looked at again on behalf of those who ask; `None`: now.
    look_at: Option<Instant>,
}

impl Entry {
    fn new(mark: StaleMark) -> Self {
        Self {
            mark,
            n_in_a_row: AtomicU32::new(0),
            look_at: None,
        }
    }
}

impl StaleMarks {
    /// The marks of an earlier run.
    #[must_use]
    pub fn new(marks: impl IntoIterator<Item = (ContainerId, StaleMark)>) -> Self {
        let of = |(id, mark)| (id, Entry::new(mark));
        let by_id: HashMap<_, _> = marks.into_iter().map(of).collect();
        let n_marks = AtomicUsize::new(by_id.len());
        let n_ranges = by_id.values().map(|entry| entry.mark.ranges.len()).sum();
        let marks = RwLock::new(Marks {
            by_id,
            changed: HashSet::new(),
            n_ranges,
        });
        Self {
            marks,
            n_marks,
            looks: Mutex::default(),
        }
    }

    /// Whether anything is out of service.
    #[must_use]
    pub fn any(&self) -> bool {
        self.n_marks.load(Ordering::Acquire) > 0
    }

    /// The mark of a container.
    #[must_use]
    pub fn get(&self, id: ContainerId) -> Option<StaleMark> {
        if !self.any() {
            return None;
        }
        self.read().by_id.get(&id).map(|entry| entry.mark.clone())
    }

    /// Whether any byte of the very version `observed` was found wrong.
    #[must_use]
    pub fn is_refuted(&self, id: ContainerId, observed: &Validator) -> bool {
        self.any() && {
            let marks = self.read();
            let entry = marks.by_id.get(&id);
            entry.is_some_and(|entry| is_of(&entry.mark, observed))
        }
    }

    /// Whether the bytes at `at` of version `observed` of a file are out of service: reading them
    /// again would tell nothing new.
    #[must_use]
    pub fn is_out(&self, id: ContainerId, observed: &Validator, at: Location) -> bool {
        self.any() && {
            let marks = self.read();
            let entry = marks.by_id.get(&id);
            entry.is_some_and(|entry| {
                is_of(&entry.mark, observed) && entry.mark.standing(at) != Standing::Served
            })
        }
    }

    /// How the bytes at `at` of an object of one version stand.
    #[must_use]
    pub fn standing(&self, id: ContainerId, at: Location) -> Standing {
        if !self.any() {
            return Standing::Served;
        }
        let marks = self.read();
        let entry = marks.by_id.get(&id);
        entry.map_or(Standing::Served, |entry| entry.mark.standing(at))
    }

    /// Takes a whole container out of service. The first mark's time stays.
    pub fn mark(&self, id: ContainerId, mark: StaleMark) {
        let mut marks = self.write();
        let look_at = Instant::now().checked_add(LOOK_INTERVAL);
        if let Some(old) = marks.by_id.get_mut(&id)
            && old.mark.observed == mark.observed
            && old.mark.reason == mark.reason
        {
            old.look_at = look_at;
            return;
        }
        self.put(&mut marks, id, mark, look_at);
    }

    /// Takes the block at `at` out of service: it is wrong in version `observed`.
    pub fn mark_damaged(&self, id: ContainerId, observed: Validator, at: Location) {
        let range = span(at);
        let mut marks = self.write();
        let look_at = Instant::now().checked_add(LOOK_INTERVAL);
        let has_room = marks.n_ranges < RANGES_TOTAL_MAX;
        let n_max = if has_room { RANGES_MAX } else { 0 }; // Then it can only widen one.
        let Some(entry) = marks
            .by_id
            .get_mut(&id)
            .filter(|entry| entry.mark.is_of_bytes() && is_of(&entry.mark, &observed))
        else {
            let mut mark = StaleMark::new(StaleReason::Mismatch, Some(observed), Some(at));
            if has_room {
                mark.ranges = vec![range];
            } else {
                mark.reason = StaleReason::Widespread;
            }
            return self.put(&mut marks, id, mark, look_at);
        };
        entry.look_at = look_at;
        let mark = &mut entry.mark;
        if mark.reason == StaleReason::Widespread || ranges::holds(&mark.ranges, &range) {
            return; // Nothing that was not known.
        }
        let n_before = mark.ranges.len();
        let n_in_a_row = entry.n_in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        let is_many = !ranges::insert(&mut mark.ranges, range, n_max);
        if is_many || n_in_a_row >= IN_A_ROW_MAX {
            mark.reason = StaleReason::Widespread;
        }
        let n_after = mark.ranges.len();
        marks.n_ranges = (marks.n_ranges + n_after).saturating_sub(n_before);
        marks.changed.insert(id);
    }

    /// The block at `at` is what it should be in version `observed`. Whether nothing more is known
    /// against that version.
    pub fn found_good(&self, id: ContainerId, observed: &Validator, at: Location) -> bool {
        if !self.any() {
            return true;
        }
        let range = span(at);
        {
            let marks = self.read();
            let Some(entry) = marks.by_id.get(&id) else {
                return true;
            };
            let mark = &entry.mark;
            if mark.is_of_bytes()
                && is_of(mark, observed)
                && mark.reason != StaleReason::Widespread
                && !ranges::meets(&mark.ranges, &range)
            {
                entry.n_in_a_row.store(0, Ordering::Relaxed);
                return false;
            }
        }
        let mut marks = self.write();
        let Some(entry) = marks.by_id.get_mut(&id) else {
            return true;
        };
        if !is_of(&entry.mark, observed) {
            self.take(&mut marks, id); // Of a version that is no more.
            return true;
        }
        if !entry.mark.is_of_bytes() {
            let is_over = entry.mark.offset == at.offset;
            if is_over {
                self.take(&mut marks, id);
            }
            return is_over;
        }
        let n_before = entry.mark.ranges.len();
        *entry.n_in_a_row.get_mut() = 0;
        entry.mark.reason = StaleReason::Mismatch;
        ranges::cut(&mut entry.mark.ranges, &range, RANGES_MAX);
        let n_after = entry.mark.ranges.len();
        marks.n_ranges = (marks.n_ranges + n_after).saturating_sub(n_before);
        marks.changed.insert(id);
        if n_after == 0 {
            self.take(&mut marks, id);
        }
        n_after == 0
    }

    /// Puts a container back into service: it is what was added, or is no more.
    pub fn clear(&self, id: ContainerId) {
        self.clear_if(id, |_| true);
    }

    /// Clears a mark that `is_over`; whether there is none now.
    pub fn clear_if(&self, id: ContainerId, is_over: impl Fn(&StaleMark) -> bool) -> bool {
        if !self.any() {
            return true;
        }
        match self.read().by_id.get(&id) {
            None => return true,
            Some(entry) if !is_over(&entry.mark) => return false,
            Some(_) => {}
        }
        let mut marks = self.write();
        // Another thread may have found something worse meanwhile.
        let entry = marks.by_id.get(&id);
        if entry.is_some_and(|entry| !is_over(&entry.mark)) {
            return false;
        }
        self.take(&mut marks, id);
        true
    }

    /// Whether it is time to look at a container of `source` again for somebody who asks. The next
    /// such look is due after [`LOOK_INTERVAL`].
    pub fn claim_look(&self, id: ContainerId, source: u32) -> bool {
        let now = Instant::now();
        let is_early = |entry: &Entry| entry.look_at.is_some_and(|at| now < at);
        // Most who ask come too early: they hold up nobody.
        if self.read().by_id.get(&id).is_some_and(is_early) {
            return false;
        }
        let mut marks = self.write();
        let Some(entry) = marks.by_id.get_mut(&id) else {
            return true; // It is back.
        };
        if is_early(entry) {
            return false;
        }
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        let paid = looks.entry(source).or_insert(now);
        let from = (*paid).max(now);
        if from.saturating_duration_since(now) > LOOK_INTERVAL.saturating_sub(look_cost()) {
            return false;
        }
        *paid = from + look_cost();
        entry.look_at = now.checked_add(LOOK_INTERVAL);
        true
    }

    /// A look found what it was for: it is as if it had not been.
    pub fn give_back(&self, source: u32) {
        let mut looks = self.looks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(paid) = looks.get_mut(&source) {
            *paid = paid.checked_sub(look_cost()).unwrap_or(*paid);
        }
    }

    /// Lets the next [`Self::take_changes`] give this mark again: it was not saved.
    pub fn touch(&self, id: ContainerId) {
        self.write().changed.insert(id);
    }

    /// What changed since the last call; `None`: nothing is known against it any more.
    pub fn take_changes(&self) -> Vec<(ContainerId, Option<StaleMark>)> {
        if self.read().changed.is_empty() {
            return Vec::new();
        }
        let mut marks = self.write();
        let changed = std::mem::take(&mut marks.changed);
        let now = |id| marks.by_id.get(&id).map(|entry| entry.mark.clone());
        changed.into_iter().map(|id| (id, now(id))).collect()
    }

    /// All marks.
    #[must_use]
    pub fn all(&self) -> Vec<(ContainerId, StaleMark)> {
        let marks = self.read();
        let all = marks.by_id.iter();
        all.map(|(id, entry)| (*id, entry.mark.clone())).collect()
    }

    /// As if [`LOOK_INTERVAL`] had passed.
    #[cfg(test)]
    pub(crate) fn let_interval_pass(&self) {
        self.looks.lock().unwrap().clear();
        let mut marks = self.write();
        marks
            .by_id
            .values_mut()
            .for_each(|entry| entry.look_at = None);
    }

    fn put(
        &self,
        marks: &mut Marks,
        id: ContainerId,
        mut mark: StaleMark,
        look_at: Option<Instant>,
    ) {
        marks.n_ranges += mark.ranges.len();
        if let Some(old) = marks.by_id.get(&id) {
            mark.since_unix = old.mark.since_unix;
            marks.n_ranges = marks.n_ranges.saturating_sub(old.mark.ranges.len());
        }
        let mut entry = Entry::new(mark);
        *entry.n_in_a_row.get_mut() = 1;
        entry.look_at = look_at;
        marks.by_id.insert(id, entry);
        marks.changed.insert(id);
        self.n_marks.store(marks.by_id.len(), Ordering::Release);
    }

    fn take(&self, marks: &mut Marks, id: ContainerId) {
        if let Some(old) = marks.by_id.remove(&id) {
            marks.n_ranges = marks.n_ranges.saturating_sub(old.mark.ranges.len());
            marks.changed.insert(id);
        }
        self.n_marks.store(marks.by_id.len(), Ordering::Release);
    }

    fn read(&self) -> RwLockReadGuard<'_, Marks> {
        self.marks.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> RwLockWriteGuard<'_, Marks> {
        self.marks.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How a block of a container stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// Nothing is known against it.
    Served,
    /// It, or more than could be told apart, was found wrong.
    Damaged,
    /// Its container was found missing or changed.
    Away,
}

impl StaleMark {
    /// A mark of this moment, of the whole container unless ranges are put into it. `at` is the
    /// read that noticed it.
    #[must_use]
    pub fn new(reason: StaleReason, observed: Option<Validator>, at: Option<Location>) -> Self {
        Self {
            reason,
            observed,
            since_unix: crate::clock::unix_seconds(),
            offset: at.map_or(0, |at| at.offset),
            len: at.map_or(0, |at| at.len),
            ranges: Vec::new(),
        }
    }

    /// Whether wrong bytes were read from a version that is there as it should be.
    #[must_use]
    pub fn is_of_bytes(&self) -> bool {
        matches!(self.reason, StaleReason::Mismatch | StaleReason::Widespread)
    }

    fn standing(&self, at: Location) -> Standing {
        match self.reason {
            StaleReason::Mismatch if !ranges::meets(&self.ranges, &span(at)) => Standing::Served,
            StaleReason::Mismatch | StaleReason::Widespread => Standing::Damaged,
            StaleReason::Changed
            | StaleReason::Missing
            | StaleReason::Unreadable
            | StaleReason::Short => Standing::Away,
        }
    }
}

/// Whether a mark is of this very version. A listing tells less of one than an answer does.
fn is_of(mark: &StaleMark, now: &Validator) -> bool {
    match (&mark.observed, now) {
        (Some(Validator::Object(found)), Validator::Object(now)) => found.agrees_with(now),
        (found, now) => found.as_ref() == Some(now),
    }
}

/// The bytes of a block. An empty one has a place, too.
fn span(at: Location) -> Range<u64> {
    at.offset..at.offset.saturating_add(u64::from(at.len.max(1)))
}

/// Time that one look takes from its source's share.
fn look_cost() -> Duration {
    LOOK_INTERVAL / LOOKS_MAX
}
