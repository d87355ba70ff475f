//! One file: its bytes as processes see them, as the disk has them, and what lies between.
//!
//! In       writes, lengths, syncs.
//! Out      what the file may be after a cut, by [`Loss`](super::Loss).
//! Limits   [`FILE_LEN_MAX`] bytes.
//! Not here names and modes (`disk`).

use std::collections::BTreeMap;
use std::sync::Arc;

use super::chance::Chance;

/// Longest file, in bytes.
pub const FILE_LEN_MAX: usize = 1 << 30;
/// What the kernel writes back at once.
const PAGE_LEN: usize = 4096;

/// What was done to a file since it was synced.
#[derive(Debug, Clone)]
struct Change {
    /// When, in changes of the whole disk.
    at: u64,
    what: What,
}

#[derive(Debug, Clone)]
enum What {
    Write { offset: usize, data: Vec<u8> },
    SetLen(usize),
}

/// A file's bytes.
#[derive(Debug, Clone, Default)]
pub(super) struct Content {
    now: Arc<Vec<u8>>,
    durable: Arc<Vec<u8>>,
    /// Since the last sync, oldest first.
    changes: Vec<Change>,
    /// A failed sync dropped changes: the disk lacks some of what processes see.
    is_behind: bool,
}

impl Content {
    pub(super) fn bytes(&self) -> &[u8] {
        &self.now
    }

    pub(super) fn is_durable(&self) -> bool {
        self.changes.is_empty() && !self.is_behind
    }

    pub(super) fn oldest_change(&self) -> Option<u64> {
        self.changes.first().map(|change| change.at)
    }

    pub(super) fn write(&mut self, offset: usize, data: &[u8], at: u64) {
        let now = Arc::make_mut(&mut self.now);
        put(now, offset, data);
        let data = data.to_vec();
        let what = What::Write { offset, data };
        self.changes.push(Change { at, what });
    }

    pub(super) fn set_len(&mut self, len: usize, at: u64) {
        Arc::make_mut(&mut self.now).resize(len, 0);
        let what = What::SetLen(len);
        self.changes.push(Change { at, what });
    }

    /// Everything so far is on the disk; but for pages that a failed sync called written.
    pub(super) fn sync(&mut self) {
        if !self.is_behind {
            self.durable = Arc::clone(&self.now);
        }
        let (now, durable) = (&self.now, Arc::make_mut(&mut self.durable));
        for change in self.changes.drain(..) {
            if !self.is_behind {
                continue;
            }
            if let What::Write { offset, data } = change.what {
                let start = offset / PAGE_LEN * PAGE_LEN;
                let end = (offset + data.len()).next_multiple_of(PAGE_LEN);
                let end = end.min(now.len());
                put(durable, start, now.get(start..end).unwrap_or_default());
            }
        }
        durable.resize(now.len(), 0);
        self.is_behind = *durable != **now;
        if !self.is_behind {
            self.durable = Arc::clone(&self.now);
        }
    }

    /// A sync failed: some of it is on the disk, and what is not will not be written by the next.
    pub(super) fn fail_sync(&mut self, sector_len: usize, chance: &mut Chance) {
        self.durable = Arc::new(self.scattered(sector_len, chance));
        self.changes.clear();
        self.is_behind = self.durable != self.now;
    }

    /// The cut came while a sync was writing.
    pub(super) fn sync_partly(&mut self, sector_len: usize, chance: &mut Chance) {
        self.durable = Arc::new(self.scattered(sector_len, chance));
        self.now = Arc::clone(&self.durable);
        self.changes.clear();
        self.is_behind = false;
    }

    /// Becomes what `bytes` say, durably.
    pub(super) fn become_durable(&mut self, bytes: Arc<Vec<u8>>) {
        *self = Self {
            now: Arc::clone(&bytes),
            durable: bytes,
            changes: Vec::new(),
            is_behind: false,
        };
    }

    /// Nothing that was not synced.
    pub(super) fn least(&self) -> Arc<Vec<u8>> {
        Arc::clone(&self.durable)
    }

    /// Everything that was written, except what a failed sync lost.
    pub(super) fn most(&self) -> Arc<Vec<u8>> {
        let mut all = self.clone();
        all.sync();
        all.durable
    }

    /// Everything before `end`, and of what was being written then the first sectors.
    pub(super) fn until(&self, end: u64, sector_len: usize, chance: &mut Chance) -> Vec<u8> {
        let mut bytes = self.durable.to_vec();
        for change in &self.changes {
            match &change.what {
                _ if change.at > end => break,
                What::SetLen(len) => bytes.resize(*len, 0),
                What::Write { offset, data } if change.at < end => put(&mut bytes, *offset, data),
                What::Write { offset, data } => {
                    let n_sectors = chance.below(data.len() / sector_len + 1);
                    let cut = (offset + n_sectors * sector_len) / sector_len * sector_len;
                    let len = cut.saturating_sub(*offset).min(data.len());
                    put(&mut bytes, *offset, data.get(..len).unwrap_or_default());
                }
            }
        }
        bytes
    }

    /// Each sector as it was at any time since the sync, and a length that the file had since.
    pub(super) fn scattered(&self, sector_len: usize, chance: &mut Chance) -> Vec<u8> {
        let lens = self.lens();
        // The length after so many changes is the one on the disk.
        let n_kept = chance.below(lens.len());
        let len = lens.get(n_kept).copied().unwrap_or_default();
        let shrinks = |index: usize| lens.get(index + 1) < lens.get(index);
        // What was written behind a truncation that is not on the disk lies in no file.
        let n_visible = (n_kept..self.changes.len())
            .find(|&index| shrinks(index))
            .unwrap_or(self.changes.len());
        let mut histories: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for (index, change) in self.changes.iter().enumerate().take(n_visible) {
            let (start, end) = match &change.what {
                What::Write { offset, data } => (*offset, offset + data.len()),
                What::SetLen(len) => (*len, lens.get(index).copied().unwrap_or_default()),
            };
            for sector in start / sector_len..end.div_ceil(sector_len) {
                histories.entry(sector).or_default().push(index);
            }
        }
        let up_to_date = chance.below(9);
        let mut bytes = self.durable.to_vec();
        for (sector, history) in histories {
            let is_certain = |&index: &usize| index < n_kept && shrinks(index);
            let least = history.iter().rposition(is_certain).map_or(0, |n| n + 1);
            let n_applied = match chance.is_within(up_to_date) {
                true => history.len(),
                false => least + chance.below(history.len() - least + 1),
            };
            let start = sector * sector_len;
            for &index in history.iter().take(n_applied) {
                if let Some(change) = self.changes.get(index) {
                    change.what.apply_within(&mut bytes, start, sector_len);
                }
            }
        }
        bytes.resize(len, 0);
        bytes
    }

    /// The length on the disk, and after each change.
    fn lens(&self) -> Vec<usize> {
        let mut len = self.durable.len();
        let mut lens = vec![len];
        for change in &self.changes {
            len = match &change.what {
                What::Write { offset, data } => len.max(offset + data.len()),
                What::SetLen(len) => *len,
            };
            lens.push(len);
        }
        lens
    }
}

impl What {
    /// Does to one sector what this did to it; behind a length come zeros.
    fn apply_within(&self, bytes: &mut Vec<u8>, start: usize, sector_len: usize) {
        let end = start + sector_len;
        match self {
            Self::Write { offset, data } => {
                let from = start.max(*offset);
                let to = end.min(offset + data.len());
                if let Some(part) = data.get(from - offset..to.saturating_sub(*offset)) {
                    put(bytes, from, part);
                }
            }
            Self::SetLen(len) => {
                let end = end.min(bytes.len());
                if let Some(part) = bytes.get_mut(start.max(*len)..end) {
                    part.fill(0);
                }
            }
        }
    }
}

/// Writes `data` at `offset`, with zeros before it where there was nothing.
fn put(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if data.is_empty() {
        return;
    }
    let end = offset + data.len();
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    if let Some(place) = bytes.get_mut(offset..end) {
        place.copy_from_slice(data);
    }
}

#[cfg(test)]
mod tests {
    use super::{Chance, Content};

    const SECTOR: usize = 512;

    fn each_sector_is_one_of(bytes: &[u8], versions: &[&[u8]]) -> bool {
        let sector = |of: &[u8], n: usize| {
            let mut sector = of.get(n * SECTOR..).unwrap_or_default().to_vec();
            sector.resize(SECTOR, 0);
            sector
        };
        (0..bytes.len().div_ceil(SECTOR)).all(|n| {
            let is = sector(bytes, n);
            let is_like = |version: &&[u8]| {
                let mut version = sector(version, n);
                // The file may end inside of the sector.
                let len = (bytes.len() - n * SECTOR).min(SECTOR);
                version[len..].fill(0);
                version == is
            };
            versions.iter().any(is_like)
        })
    }

    #[test]
    fn what_was_synced_is_never_lost() {
        for seed in 0..200 {
            let mut chance = Chance::new(seed);
            let mut file = Content::default();
            let mut versions = vec![Vec::new()];
            for at in 0..20 {
                if chance.one_in(4) {
                    file.sync();
                    versions = vec![file.bytes().to_vec()];
                }
                let offset = chance.below(6000);
                file.write(offset, &vec![at as u8 + 1; chance.below(3000)], at);
                versions.push(file.bytes().to_vec());
                let versions: Vec<&[u8]> = versions.iter().map(Vec::as_slice).collect();
                let after = file.scattered(SECTOR, &mut chance);
                assert!(each_sector_is_one_of(&after, &versions), "seed {seed}");
                assert!(after.len() >= versions[0].len(), "seed {seed}");
                let until = file.until(at, SECTOR, &mut chance);
                assert!(each_sector_is_one_of(&until, &versions), "seed {seed}");
            }
            assert_eq!(*file.most(), file.bytes());
            file.sync();
            assert!(file.is_durable());
            assert_eq!(file.scattered(SECTOR, &mut chance), file.bytes());
            assert_eq!(*file.least(), file.bytes());
        }
    }

    #[test]
    fn what_was_not_synced_may_be_anything_between() {
        let mut file = Content::default();
        file.write(0, &[1; 4 * SECTOR], 0);
        file.sync();
        file.write(0, &[2; 4 * SECTOR], 1);
        file.write(0, &[3; 4 * SECTOR], 2);
        let mut seen = std::collections::BTreeSet::new();
        for seed in 0..2000 {
            let bytes = file.scattered(SECTOR, &mut Chance::new(seed));
            seen.insert(bytes.iter().step_by(SECTOR).copied().collect::<Vec<u8>>());
        }
        for wanted in [[1, 1, 1, 1], [3, 3, 3, 3], [3, 1, 2, 1], [1, 2, 3, 3]] {
            assert!(seen.contains(wanted.as_slice()), "never {wanted:?}");
        }
    }

    #[test]
    fn a_truncation_that_happened_leaves_zeros_and_one_that_did_not_hides_what_came_behind_it() {
        let mut file = Content::default();
        file.write(0, &[1; 2 * SECTOR], 0);
        file.sync();
        file.set_len(0, 1);
        file.write(SECTOR, &[2; SECTOR], 2);
        for seed in 0..500 {
            let bytes = file.scattered(SECTOR, &mut Chance::new(seed));
            let sectors: Vec<u8> = bytes.iter().step_by(SECTOR).copied().collect();
            let possible: [&[u8]; 4] = [&[1, 1], &[], &[0, 0], &[0, 2]];
            assert!(possible.contains(&sectors.as_slice()), "{sectors:?}");
        }
    }

    #[test]
    fn a_sync_after_a_failed_one_does_not_write_what_that_lost() {
        let mut lost = 0;
        for seed in 0..100 {
            let mut chance = Chance::new(seed);
            let mut file = Content::default();
            file.write(0, &[1; 4096], 0);
            file.write(8192, &[2; 4096], 1);
            file.fail_sync(SECTOR, &mut chance);
            assert_eq!(file.bytes().len(), 12_288);
            file.write(0, &[3], 2); // This page is written again, as a whole.
            file.sync();
            assert_eq!(file.least()[..4096], file.bytes()[..4096], "seed {seed}");
            lost += usize::from(*file.least() != file.bytes());
        }
        assert!(lost > 50, "{lost}");
    }
}
