//! Read-ahead for those who announce nothing: on evidence only.
//!
//! In       ranges of blocks as they are asked for, one by one.
//! Out      what will most likely be asked for next.
//! Limits   [`CURSORS_MAX`] readers a container, [`CONTAINERS_MAX`] containers; windows double up to
//!          [`WINDOW_MAX`].
//! Not here whether there is room for it (`budget`).
//!
//! The first read that starts where one ended may be chance; the second opens a window. Reads at
//! random places open none.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::Place;
use crate::store::location::ContainerId;

const CURSORS_MAX: usize = 8;
const CONTAINERS_MAX: usize = 1024;
const WINDOW_MAX: u64 = 8 << 20;

/// Who reads what in order.
#[derive(Debug, Default)]
pub(super) struct Cursors {
    containers: Mutex<HashMap<ContainerId, Vec<Cursor>>>,
}

/// One reader, the last who moved at the end.
#[derive(Debug)]
struct Cursor {
    /// Where its last read ended.
    next: u64,
    /// Reads in a row that started where one ended.
    n_hits: u32,
    window: u64,
    /// How far it was read ahead.
    ahead: u64,
}

impl Cursors {
    /// A block was asked for. Answers what is to be read ahead of it.
    pub(super) fn note(&self, place: &Place, range: &Range<u64>) -> Option<Range<u64>> {
        let containers = self.containers.lock();
        let mut containers = containers.unwrap_or_else(PoisonError::into_inner);
        if containers.len() >= CONTAINERS_MAX && !containers.contains_key(&place.container) {
            containers.clear(); // They are found again after two reads.
        }
        let cursors = containers.entry(place.container).or_default();
        let found = cursors.iter().position(|cursor| cursor.next == range.start);
        let Some(mut cursor) = found.map(|index| cursors.remove(index)) else {
            if cursors.len() >= CURSORS_MAX {
                cursors.remove(0);
            }
            cursors.push(Cursor {
                next: range.end,
                n_hits: 0,
                window: 0,
                ahead: 0,
            });
            return None;
        };
        cursor.next = range.end;
        cursor.n_hits = cursor.n_hits.saturating_add(1);
        let ahead = (cursor.n_hits >= 2).then(|| cursor.open(range, place.stamp.size));
        cursors.push(cursor);
        ahead.flatten()
    }
}

impl Cursor {
    /// The next stretch, when the reader has come through half of the last.
    fn open(&mut self, range: &Range<u64>, size: u64) -> Option<Range<u64>> {
        let left = self.ahead.saturating_sub(range.end);
        if left > self.window / 2 {
            return None;
        }
        let len = range.end - range.start;
        self.window = (self.window * 2).clamp(len.min(WINDOW_MAX), WINDOW_MAX);
        let start = self.ahead.max(range.end);
        let end = (range.end + self.window).min(size);
        self.ahead = self.ahead.max(end);
        (start < end).then_some(start..end)
    }
}
