//! What is being read and what has come: the table that all reads of a store share.
//!
//! In       wants of ranges, pieces as they land, failures, and the budget's demands for room.
//! Out      who waits for what, what nobody reads yet, and what nobody wants any more.
//! Limits   a cell is [`CELL_LEN`] bytes of one container; its pieces do not overlap. A piece is at
//!          most [`PIECE_LEN_MAX`] bytes. No lock is held while anything is waited for or woken.
//! Not here when a fetch may begin (`budget`, `source::limiter`), how it reads (`fetch`).
//!
//! A fetch belongs to its cell, not to the first who wanted it. It is given up when no piece of it
//! that has still to come is wanted; the pieces then leave the table in the same step, so that who
//! comes later finds a gap and not somebody else's cancellation.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::Lane;
use super::budget::{Class, Victim};
use super::control::Control;
use super::delivery::Delivery;
use super::pieces::Landed;
use super::sync::{Mutex, hold};
use crate::source::SourceError;
use crate::store::location::ContainerId;

/// Bytes of one container that share an entry of the table. No fetch crosses its borders.
pub(super) const CELL_LEN: u64 = 8 << 20;
/// Pieces are cut where somebody's range begins, but not smaller than this.
const PIECE_LEN_MIN: u64 = 256 << 10;
/// A longer range without a cut lands in pieces of [`PIECE_STEP`].
const PIECE_LEN_MAX: u64 = 2 << 20;
const PIECE_STEP: u64 = 1 << 20;
/// What lies between two gaps and is there already is read again if it is no longer than this:
/// it costs less than a request.
const READ_THROUGH: u64 = 128 << 10;
/// Locks. Cells of one object spread over all of them. Models take a few: their locks are slow.
const N_SHARDS: usize = if cfg!(feature = "model") { 2 } else { 64 };
/// A fetch of which that part (in quarters) has come is finished though nobody waits for it.
const QUARTERS_TO_FINISH: u64 = 3;

/// One cell of one container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub(super) container: ContainerId,
    /// Number of the cell, from the start of the container.
    pub(super) cell: u64,
    /// 0, or the number of a reader who shares with nobody.
    pub(super) alone: u64,
}

/// The table.
#[derive(Debug)]
pub(super) struct Table {
    shards: Box<[Mutex<Shard>]>,
    hasher: RandomState,
    next: AtomicU64,
    fetch_len_max: u64,
}

#[derive(Debug, Default)]
struct Shard {
    cells: HashMap<Key, Cell>,
    closed: bool,
}

/// Invariant: pieces are sorted and do not overlap; a piece that has not landed has its fetch in
/// `fetches`; `Fetch::wanted` is the sum of `interests` of its pieces that have not landed.
#[derive(Debug, Default)]
struct Cell {
    pieces: Vec<Piece>,
    fetches: Vec<Fetch>,
}

#[derive(Debug)]
struct Piece {
    id: u64,
    start: u64,
    end: u64,
    fetch: u64,
    landed: Option<Landed>,
    /// Wants and tickets that hold it.
    interests: u32,
    /// Reads of single blocks that it served.
    n_uses: u32,
    /// How readily it goes, as the budget knows or will know in a moment.
    class: Option<Class>,
    stamp: u32,
    waiting: Vec<Arc<Delivery>>,
}

#[derive(Debug)]
struct Fetch {
    id: u64,
    control: Arc<Control>,
    wanted: u32,
    len: u64,
    landed_len: u64,
}

/// An interest in one piece. To be given back by [`Table::release`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Hold {
    pub(super) key: Key,
    start: u64,
    id: u64,
}

/// What a want found.
#[derive(Debug, Default)]
pub(super) struct Wanted {
    /// Interests in all pieces of the range that are or will be there.
    pub(super) holds: Vec<Hold>,
    /// The pieces in order, if they were asked for.
    pub(super) parts: Vec<Part>,
    /// What is to be read now, by the caller's doing.
    pub(super) fetches: Vec<Opened>,
}

/// A piece that was wanted.
#[derive(Debug)]
pub(super) enum Part {
    Here(Landed),
    Coming(Arc<Delivery>),
}

/// A fetch that is in the table and that nobody reads yet.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) key: Key,
    pub(super) id: u64,
    pub(super) control: Arc<Control>,
    /// Starts and ends of its pieces, ascending.
    pub(super) pieces: Vec<Range<u64>>,
}

impl Opened {
    /// Bytes that it will land.
    pub(super) fn len(&self) -> u64 {
        self.pieces
            .iter()
            .map(|piece| piece.end - piece.start)
            .sum()
    }
}

/// How a want is meant.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want<'a> {
    pub(super) lane: Lane,
    /// Who it is for: these take turns.
    pub(super) flow: u64,
    /// Where ranges that will be asked for begin, ascending.
    pub(super) cuts: &'a [u64],
    /// Whether the bytes are wanted now, or only to be read.
    pub(super) deliver: bool,
    /// Most bytes that may be read for it.
    pub(super) fetch_max: u64,
}

/// What a step asks the budget to know.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Freed {
    /// Bytes that left the table.
    pub(super) len: u64,
    /// Pieces that may be evicted, and how readily.
    pub(super) victims: Vec<(Class, Victim)>,
    /// Numbers of pieces that cannot be any more.
    pub(super) gone: Vec<u64>,
}

/// What became of a fetch that nobody seemed to want.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cancelled {
    /// It is out of the table.
    Yes,
    /// Somebody wants it.
    Wanted,
    /// Most of it has come: it may as well end.
    NearlyDone,
}

/// The table is closed: the node is stopping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Closed;

impl Table {
    /// An empty table whose fetches are at most `fetch_len_max` bytes.
    pub(super) fn new(fetch_len_max: u64) -> Self {
        let shards = (0..N_SHARDS).map(|_| Mutex::new(Shard::default()));
        Self {
            shards: shards.collect(),
            hasher: RandomState::new(),
            next: AtomicU64::new(1),
            fetch_len_max: fetch_len_max.clamp(PIECE_LEN_MIN, CELL_LEN),
        }
    }

    /// A number that nobody had before.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Bytes of `range`, which lies in the cell `key`, that nobody has or reads.
    pub(super) fn missing(&self, key: Key, range: &Range<u64>) -> u64 {
        let shard = hold(self.shard(key));
        let Some(cell) = shard.cells.get(&key) else {
            return range.end - range.start;
        };
        let gaps = cell.gaps(range);
        gaps.iter().map(|gap| gap.end - gap.start).sum()
    }

    /// Takes an interest in `range`, which lies in the cell `key`: joins what is there, and opens
    /// fetches for the gaps.
    pub(super) fn want(
        &self,
        key: Key,
        range: &Range<u64>,
        want: Want<'_>,
    ) -> Result<Wanted, Closed> {
        let mut shard = hold(self.shard(key));
        if shard.closed {
            return Err(Closed);
        }
        let cell = shard.cells.entry(key).or_default();
        let fetches = self.open(key, cell, range, want);
        let mut wanted = Wanted {
            fetches,
            ..Wanted::default()
        };
        let (mut promote, overlap) = (Vec::new(), cell.overlapping(range));
        for piece in cell.pieces.get_mut(overlap).unwrap_or_default() {
            piece.interests += 1;
            wanted.holds.push(Hold {
                key,
                start: piece.start,
                id: piece.id,
            });
            if piece.landed.is_none() {
                let fetch = cell
                    .fetches
                    .iter_mut()
                    .find(|fetch| fetch.id == piece.fetch);
                if let Some(fetch) = fetch {
                    fetch.wanted += 1;
                    promote.push(Arc::clone(&fetch.control));
                }
            }
            if want.deliver {
                if want.lane == Lane::Block {
                    piece.n_uses = piece.n_uses.saturating_add(1);
                }
                wanted.parts.push(piece.part());
            }
        }
        if cell.is_empty() {
            shard.cells.remove(&key);
        }
        drop(shard);
        for control in promote {
            control.promote(want.lane);
        }
        Ok(wanted)
    }

    /// Makes the fetches for the gaps of `range`. Gaps that touch or nearly do share one.
    fn open(&self, key: Key, cell: &mut Cell, range: &Range<u64>, want: Want<'_>) -> Vec<Opened> {
        let mut opened: Vec<Opened> = Vec::new();
        let mut left = want.fetch_max;
        for gap in cell.gaps(range) {
            for piece in cut(&gap, want.cuts, self.fetch_len_max) {
                let len = piece.end - piece.start;
                if len > left {
                    return self.enter(cell, opened); // What was granted is used up.
                }
                left -= len;
                let joins = opened.last().is_some_and(|last| {
                    let (first, end) = (last.pieces.first(), last.pieces.last());
                    first.is_some_and(|first| piece.end - first.start <= self.fetch_len_max)
                        && end.is_some_and(|end| piece.start - end.end <= READ_THROUGH)
                });
                match opened.last_mut().filter(|_| joins) {
                    Some(last) => last.pieces.push(piece),
                    None => opened.push(Opened {
                        key,
                        id: self.number(),
                        control: Control::new(want.lane, want.flow),
                        pieces: vec![piece],
                    }),
                }
            }
        }
        self.enter(cell, opened)
    }

    /// Puts new fetches and their pieces into the cell.
    fn enter(&self, cell: &mut Cell, opened: Vec<Opened>) -> Vec<Opened> {
        for fetch in &opened {
            for piece in &fetch.pieces {
                let index = cell
                    .pieces
                    .partition_point(|other| other.start < piece.start);
                cell.pieces.insert(
                    index,
                    Piece {
                        id: self.number(),
                        start: piece.start,
                        end: piece.end,
                        fetch: fetch.id,
                        landed: None,
                        interests: 0,
                        n_uses: 0,
                        class: None,
                        stamp: 0,
                        waiting: Vec::new(),
                    },
                );
            }
            cell.fetches.push(Fetch {
                id: fetch.id,
                control: Arc::clone(&fetch.control),
                wanted: 0,
                len: fetch.len(),
                landed_len: 0,
            });
        }
        opened
    }

    /// Gives interests back. `keep` tells of a landed piece that nobody holds any more whether
    /// somebody will come for it.
    pub(super) fn release(&self, holds: &[Hold], keep: impl Fn(Key, u64) -> bool) -> Freed {
        let mut freed = Freed::default();
        for &held in holds {
            let mut idle = None;
            let mut shard = hold(self.shard(held.key));
            if let Some(cell) = shard.cells.get_mut(&held.key) {
                idle = cell.release(held, &keep, &mut freed);
                if cell.is_empty() {
                    shard.cells.remove(&held.key);
                }
            }
            drop(shard);
            if let Some(control) = idle {
                control.set_idle();
            }
        }
        freed
    }

    /// A piece of a fetch has come. Answers whether it is in the table now, and for whom it may be
    /// evicted; those who waited have it.
    pub(super) fn land(&self, key: Key, fetch: u64, start: u64, bytes: Bytes) -> Option<Freed> {
        let mut shard = hold(self.shard(key));
        let cell = shard.cells.get_mut(&key)?;
        let index = cell.index_of(start, None)?;
        let piece = cell.pieces.get_mut(index)?;
        if piece.fetch != fetch || piece.landed.is_some() {
            return None;
        }
        let fetch = cell.fetches.iter_mut().find(|other| other.id == fetch)?;
        let landed = Landed::new(piece.id, start, bytes);
        fetch.landed_len += piece.end - piece.start;
        fetch.wanted = fetch.wanted.saturating_sub(piece.interests);
        let idle = (fetch.wanted == 0).then(|| Arc::clone(&fetch.control));
        piece.landed = Some(landed.clone());
        let waiting = std::mem::take(&mut piece.waiting);
        let class = if piece.interests == 0 {
            Class::Spent
        } else {
            Class::Ahead
        };
        piece.class = Some(class);
        let victims = vec![(class, piece.victim(key))];
        drop(shard);
        for delivery in waiting {
            delivery.put(Ok(landed.clone()));
        }
        if let Some(control) = idle {
            control.set_idle();
        }
        Some(Freed {
            victims,
            ..Freed::default()
        })
    }

    /// A fetch has ended. What it did not land fails for those who wait now, and is a gap for those
    /// who come later.
    pub(super) fn end(&self, key: Key, fetch: u64, error: &SourceError) {
        let mut shard = hold(self.shard(key));
        let Some(cell) = shard.cells.get_mut(&key) else {
            return;
        };
        let waiting = cell.remove(fetch);
        if cell.is_empty() {
            shard.cells.remove(&key);
        }
        drop(shard);
        for delivery in waiting {
            delivery.put(Err(error.clone()));
        }
    }

    /// Takes a fetch out of the table if nobody wants what has still to come of it.
    pub(super) fn cancel(&self, key: Key, fetch: u64, finish: bool) -> Cancelled {
        let mut shard = hold(self.shard(key));
        let Some(cell) = shard.cells.get_mut(&key) else {
            return Cancelled::Yes;
        };
        let Some(found) = cell.fetches.iter().find(|other| other.id == fetch) else {
            return Cancelled::Yes;
        };
        if found.wanted > 0 {
            return Cancelled::Wanted;
        }
        if finish && found.landed_len * 4 >= found.len * QUARTERS_TO_FINISH {
            return Cancelled::NearlyDone;
        }
        cell.remove(fetch); // Nobody waits: who waits holds an interest.
        if cell.is_empty() {
            shard.cells.remove(&key);
        }
        Cancelled::Yes
    }

    /// Makes room: takes a piece that the budget chose out of the table, if it still may go.
    pub(super) fn evict(&self, victim: Victim, class: Class) -> Freed {
        let mut freed = Freed::default();
        let mut shard = hold(self.shard(victim.key));
        let Some(cell) = shard.cells.get_mut(&victim.key) else {
            return freed;
        };
        let Some(index) = cell.index_of(victim.start, Some(victim.id)) else {
            return freed;
        };
        let Some(piece) = cell.pieces.get_mut(index) else {
            return freed;
        };
        let spared = match class {
            _ if piece.class != Some(class) => piece.class, // It has changed in the meantime.
            Class::Ahead => None,
            _ if piece.interests > 0 => Some(Class::Ahead),
            Class::Spent if piece.n_uses >= 2 => Some(Class::Again),
            Class::Again if piece.n_uses >= 2 => Some(Class::Again),
            Class::Spent | Class::Again | Class::Kept => None,
        };
        if let Some(class) = spared {
            if class == Class::Again {
                piece.n_uses = 0; // Its second chance.
            }
            piece.class = Some(class);
            freed.victims.push((class, piece.victim(victim.key)));
            return freed;
        }
        freed.len = piece.end - piece.start;
        cell.pieces.remove(index);
        if cell.is_empty() {
            shard.cells.remove(&victim.key);
        }
        freed
    }

    /// Drops what has landed of `range`: it is not what it should be.
    pub(super) fn forget(&self, key: Key, range: &Range<u64>) -> Freed {
        let mut freed = Freed::default();
        let mut shard = hold(self.shard(key));
        if let Some(cell) = shard.cells.get_mut(&key) {
            cell.pieces.retain(|piece| {
                let goes =
                    piece.landed.is_some() && piece.start < range.end && piece.end > range.start;
                if goes {
                    freed.len += piece.end - piece.start;
                    freed.gone.push(piece.id);
                }
                !goes
            });
            if cell.is_empty() {
                shard.cells.remove(&key);
            }
        }
        freed
    }

    /// Fails everybody who waits and takes nobody in any more. Answers the bytes that had landed.
    pub(super) fn close(&self, error: &SourceError) -> Freed {
        let mut freed = Freed::default();
        for shard in &self.shards {
            let cells = {
                let mut shard = hold(shard);
                shard.closed = true;
                std::mem::take(&mut shard.cells)
            };
            for piece in cells.into_values().flat_map(|cell| cell.pieces) {
                if piece.landed.is_some() {
                    freed.len += piece.end - piece.start;
                    freed.gone.push(piece.id);
                }
                for delivery in piece.waiting {
                    delivery.put(Err(error.clone()));
                }
            }
        }
        freed
    }

    /// Cells with anything in them.
    #[cfg(test)]
    #[cfg(not(feature = "model"))]
    pub(super) fn n_cells(&self) -> usize {
        let shards = self.shards.iter();
        shards.map(|shard| hold(shard).cells.len()).sum()
    }

    fn shard(&self, key: Key) -> &Mutex<Shard> {
        let hash = self.hasher.hash_one(key);
        let index = usize::try_from(hash % N_SHARDS as u64).unwrap_or_default();
        #[expect(clippy::indexing_slicing, reason = "there are N_SHARDS shards")]
        &self.shards[index]
    }
}

impl Cell {
    fn is_empty(&self) -> bool {
        self.pieces.is_empty() && self.fetches.is_empty()
    }

    /// Indexes of the pieces that have bytes of `range`.
    fn overlapping(&self, range: &Range<u64>) -> Range<usize> {
        let first = self
            .pieces
            .partition_point(|piece| piece.end <= range.start);
        let end = self.pieces.partition_point(|piece| piece.start < range.end);
        first..end.max(first)
    }

    /// What of `range` no piece has.
    fn gaps(&self, range: &Range<u64>) -> Vec<Range<u64>> {
        let (mut gaps, mut at) = (Vec::new(), range.start);
        for piece in self.pieces.get(self.overlapping(range)).unwrap_or_default() {
            if piece.start > at {
                gaps.push(at..piece.start);
            }
            at = at.max(piece.end);
        }
        if at < range.end {
            gaps.push(at..range.end);
        }
        gaps
    }

    /// Index of the piece that begins at `start`, and that is number `id` if one is given.
    fn index_of(&self, start: u64, id: Option<u64>) -> Option<usize> {
        let found = self
            .pieces
            .binary_search_by_key(&start, |piece| piece.start);
        let index = found.ok()?;
        let piece = self.pieces.get(index)?;
        id.is_none_or(|id| id == piece.id).then_some(index)
    }

    /// One interest less. Answers the fetch that nobody wants any more.
    fn release(
        &mut self,
        held: Hold,
        keep: &impl Fn(Key, u64) -> bool,
        freed: &mut Freed,
    ) -> Option<Arc<Control>> {
        let index = self.index_of(held.start, Some(held.id))?;
        let piece = self.pieces.get_mut(index)?;
        piece.interests = piece.interests.saturating_sub(1);
        if piece.landed.is_none() {
            let fetch = self
                .fetches
                .iter_mut()
                .find(|fetch| fetch.id == piece.fetch)?;
            fetch.wanted = fetch.wanted.saturating_sub(1);
            return (fetch.wanted == 0).then(|| Arc::clone(&fetch.control));
        }
        if piece.interests > 0 {
            return None;
        }
        if held.key.alone != 0 {
            freed.len += piece.end - piece.start;
            freed.gone.push(piece.id);
            self.pieces.remove(index);
            return None;
        }
        let class = if keep(held.key, piece.start) {
            Class::Kept
        } else {
            Class::Spent
        };
        if piece
            .class
            .is_none_or(|before| class < before && before != Class::Again)
        {
            piece.class = Some(class);
            freed.victims.push((class, piece.victim(held.key)));
        }
        None
    }

    /// Takes a fetch out, with its pieces that have not landed. Answers who waited for them.
    fn remove(&mut self, fetch: u64) -> Vec<Arc<Delivery>> {
        let mut waiting = Vec::new();
        self.fetches.retain(|other| other.id != fetch);
        self.pieces.retain_mut(|piece| {
            let goes = piece.fetch == fetch && piece.landed.is_none();
            if goes {
                waiting.append(&mut piece.waiting);
            }
            !goes
        });
        waiting
    }
}

impl Piece {
    fn part(&mut self) -> Part {
        if let Some(landed) = &self.landed {
            return Part::Here(landed.clone());
        }
        let delivery = Arc::new(Delivery::default());
        self.waiting.retain(|other| Arc::strong_count(other) > 1); // Those who left.
        self.waiting.push(Arc::clone(&delivery));
        Part::Coming(delivery)
    }

    fn victim(&mut self, key: Key) -> Victim {
        self.stamp += 1;
        Victim {
            stamp: self.stamp,
            key,
            start: self.start,
            id: self.id,
            len: self.end - self.start,
        }
    }
}

/// Cuts a gap into pieces: where ranges begin that somebody will ask for, so that each of those is
/// one slice, and in steps where there is no such place for long.
fn cut(gap: &Range<u64>, cuts: &[u64], len_max: u64) -> Vec<Range<u64>> {
    let (len_max, step) = (PIECE_LEN_MAX.min(len_max), PIECE_STEP.min(len_max));
    let (mut pieces, mut start) = (Vec::new(), gap.start);
    let inside = cuts.iter().copied().filter(|cut| gap.contains(cut));
    for end in inside.chain([gap.end]) {
        while end - start > len_max {
            pieces.push(start..start + step);
            start += step;
        }
        if end - start >= PIECE_LEN_MIN || (end == gap.end && end > start) {
            pieces.push(start..end);
            start = end;
        }
    }
    pieces
}

/// What the models must find to be wrong.
#[cfg(all(test, feature = "model"))]
mod mutants {
    use super::{Hold, Key, Table, hold};
    use crate::source::SourceError;

    impl Table {
        /// Whether nobody wants a fetch; it stays in the table.
        pub(in super::super) fn is_unwanted(&self, key: Key, fetch: u64) -> bool {
            let shard = hold(self.shard(key));
            let cell = shard.cells.get(&key);
            let found = cell.and_then(|cell| cell.fetches.iter().find(|other| other.id == fetch));
            found.is_some_and(|found| found.wanted == 0)
        }

        /// Ends the fetch of a piece because one of those who wanted it leaves.
        pub(in super::super) fn cancel_for_one(&self, held: &Hold, error: &SourceError) {
            let fetch = {
                let shard = hold(self.shard(held.key));
                let cell = shard.cells.get(&held.key);
                let piece = cell.and_then(|cell| {
                    let index = cell.index_of(held.start, Some(held.id))?;
                    cell.pieces.get(index)
                });
                piece.map(|piece| piece.fetch)
            };
            if let Some(fetch) = fetch {
                self.end(held.key, fetch, error);
            }
        }
    }
}
