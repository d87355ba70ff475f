//! Ranges of bytes in order: no two of them overlap or touch.
//!
//! In       a list, and a range to put in or to take out.
//! Out      the list as it is then; a range that touches others becomes one with them.
//! Limits   the caller's number of ranges.

use std::ops::Range;

/// Whether `range` has a byte in common with any of `all`.
pub(super) fn meets(all: &[Range<u64>], range: &Range<u64>) -> bool {
    let next = all.partition_point(|one| one.end <= range.start);
    all.get(next).is_some_and(|one| one.start < range.end)
}

/// Whether all of `range` lies in one of `all`.
pub(super) fn holds(all: &[Range<u64>], range: &Range<u64>) -> bool {
    let next = all.partition_point(|one| one.end <= range.start);
    let one = all.get(next);
    one.is_some_and(|one| one.start <= range.start && range.end <= one.end)
}

/// Puts `range` in. False: there would be more than `n_max`, and nothing was changed.
pub(super) fn insert(all: &mut Vec<Range<u64>>, range: Range<u64>, n_max: usize) -> bool {
    let first = all.partition_point(|one| one.end < range.start);
    let touched = all.iter().skip(first);
    let n_touched = touched.take_while(|one| one.start <= range.end).count();
    if n_touched == 0 && all.len() >= n_max {
        return false;
    }
    let mut merged = range;
    for one in all.drain(first..first + n_touched) {
        merged = merged.start.min(one.start)..merged.end.max(one.end);
    }
    all.insert(first, merged);
    true
}

/// Takes `range` out. Where that would leave more than `n_max`, one is not cut in two.
pub(super) fn cut(all: &mut Vec<Range<u64>>, range: &Range<u64>, n_max: usize) {
    let first = all.partition_point(|one| one.end <= range.start);
    let met = all.iter().skip(first);
    let n_met = met.take_while(|one| one.start < range.end).count();
    let mut left = Vec::with_capacity(2);
    for one in all.iter().skip(first).take(n_met) {
        let (before, after) = (one.start..range.start, range.end..one.end);
        left.extend([before, after].into_iter().filter(|part| !part.is_empty()));
    }
    if all.len() - n_met + left.len() <= n_max {
        all.splice(first..first + n_met, left);
    }
}
