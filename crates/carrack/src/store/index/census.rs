//! Every record of the index as it was at one moment, each to be met once.
//!
//! In       keys that somebody meets on his way; then asks for what was not met.
//! Out      whether a key is new; the records that are left.
//! Limits   memory: one bit a record, and the segments stay mapped until it is dropped.
//! Not here what is there of a record's bytes (`store::block`), who counts (`cli`).

use std::ops::ControlFlow;
use std::sync::Arc;

use carrack_formats::Multihash;

use super::segment::{Probe, Segment, Table};
use super::{Index, damaged_at};
use crate::error::{Error, ErrorKind, Result};
use crate::store::location::Location;

/// What is known of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// It was not met before.
    Now,
    /// It was.
    Before,
    /// There was no record of it.
    Never,
}

/// The records of an index, and which were met.
#[derive(Debug)]
pub struct Census {
    parts: Vec<Part>,
    /// The part and page from which on unmet records are looked for.
    next: (usize, u64),
}

/// One table of a segment.
#[derive(Debug)]
struct Part {
    segment: Arc<Segment>,
    table: Table,
    /// A bit for each record.
    met: Vec<u64>,
}

impl Index {
    /// The records that there are now, none of them met.
    #[must_use]
    pub fn census(&self) -> Census {
        let mut parts = Vec::new();
        for segment in self.live_segments() {
            for table in segment.tables() {
                let n_words = table.layout.n_records.div_ceil(64) as usize;
                parts.push(Part {
                    segment: Arc::clone(&segment),
                    table,
                    met: vec![0; n_words],
                });
            }
        }
        Census {
            parts,
            next: (0, 0),
        }
    }
}

impl Census {
    /// Meets all records of a key.
    pub fn meet(&mut self, key: &Multihash) -> Met {
        let probe = Probe::new(key.digest());
        let mut met = Met::Never;
        for part in &mut self.parts {
            let layout = &part.table.layout;
            if (layout.code, layout.digest_len) != (key.code(), key.digest().len())
                || !part.segment.may_contain(&part.table, probe)
            {
                continue;
            }
            let bits = &mut part.met;
            let found = &mut |number: u64, _: Location| {
                if let Some(word) = bits.get_mut((number / 64) as usize) {
                    let bit = 1 << (number % 64);
                    met = match (*word & bit == 0, met) {
                        (true, _) | (_, Met::Now) => Met::Now,
                        (false, _) => Met::Before,
                    };
                    *word |= bit;
                }
                ControlFlow::Continue(())
            };
            let _ = part.segment.visit_numbered(&part.table, probe, found);
        }
        met
    }

    /// Records that were not met, at least `n_min` and a page more at the most; fewer are all that
    /// are left. Each is given once. They are not met by that.
    ///
    /// # Errors
    /// `Corrupt` if a page is not as it was written.
    pub fn unmet(&mut self, n_min: usize) -> Result<Vec<(Multihash, Location)>> {
        let mut unmet = Vec::new();
        while let Some(part) = self.parts.get(self.next.0) {
            let page = self.next.1;
            if page >= part.table.layout.n_pages {
                self.next = (self.next.0 + 1, 0);
                continue;
            }
            if unmet.len() >= n_min {
                break;
            }
            self.next.1 += 1;
            part.unmet_of_page(page, &mut unmet)?;
        }
        Ok(unmet)
    }
}

impl Part {
    fn unmet_of_page(&self, page: u64, unmet: &mut Vec<(Multihash, Location)>) -> Result<()> {
        let per_page = self.table.layout.records_per_page() as u64;
        let first = page * per_page;
        let is_met = |number: u64| {
            let word = self.met.get((number / 64) as usize);
            word.is_none_or(|word| word >> (number % 64) & 1 == 1)
        };
        if (first..first + per_page).all(is_met) {
            return Ok(());
        }
        if !self.segment.is_sound_page_of(&self.table, page as usize) {
            return Err(damaged_at(&self.segment));
        }
        let code = self.table.layout.code;
        let mut failure = None;
        self.segment
            .each_of_page(&self.table.layout, page, &mut |number, digest, location| {
                if is_met(number) {
                    return;
                }
                match Multihash::wrap(code, digest) {
                    Ok(key) => unmet.push((key, location)),
                    Err(error) => failure = Some(error),
                }
            });
        match failure {
            // No import takes such a digest.
            Some(error) => Err(Error::with(
                ErrorKind::Corrupt,
                "a digest of the index is too long",
                error,
            )),
            None => Ok(()),
        }
    }
}
