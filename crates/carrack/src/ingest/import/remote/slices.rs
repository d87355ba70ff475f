//! Blocks that a sharded DAG index names.
//!
//! In       the shards of an index.
//! Out      each block's place in the CAR, or the decision to read the CAR instead.
//! Limits   [`SAMPLE`] blocks of each shard are read, one at a time.
//! Not here the index's format (`formats::car::shards`).
//!
//! Writers disagree on what a slice is: the block's bytes, or its section. A sample is read and
//! hashed; what fits neither way is no index of this CAR.

use carrack_formats::car::shards::{Shard, Slice};
use carrack_formats::car::{Parser, Section, Step};
use carrack_formats::{Cid, cid};

use super::claims::Claim;
use super::heads::{Head, LOT};
use super::{CarFailure, Front, RemoteImport};

/// Blocks that are read to learn what the slices of an index are.
const SAMPLE: usize = 16;

/// What slices are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Meaning {
    Blocks,
    Sections,
}

impl RemoteImport<'_, '_> {
    /// Finds the blocks by the shard of an index that is this CAR. Whether there is one.
    pub(super) fn by_shards(
        &mut self,
        name: &str,
        shards: Vec<Shard>,
        front: &Front,
    ) -> Result<bool, CarFailure> {
        for shard in shards {
            let is_inside = |slice: &Slice| {
                let end = slice.offset.checked_add(slice.len);
                slice.offset >= front.sections && end.is_some_and(|end| end <= front.end)
            };
            let limit = self.options.limits.section_len_max;
            let fits = |slice: &Slice| is_inside(slice) && slice.len <= limit;
            if shard.slices.is_empty() || !shard.slices.iter().all(fits) {
                continue;
            }
            let known = match self.meaning(&shard.slices)? {
                Some(Meaning::Blocks) => self.blocks(&shard.slices).map(|()| true)?,
                Some(Meaning::Sections) => self.sections(&shard.slices)?,
                None => continue,
            };
            if known {
                self.report.index = Some(name.to_owned());
            }
            return Ok(known);
        }
        Ok(false)
    }

    /// What the slices are, by a sample of them.
    fn meaning(&self, slices: &[Slice]) -> Result<Option<Meaning>, CarFailure> {
        let mut meaning = None;
        for slice in slices.iter().step_by(slices.len().div_ceil(SAMPLE).max(1)) {
            let end = slice.offset.saturating_add(slice.len);
            let bytes = self.object.bytes(slice.offset, end);
            let bytes = self.object.wait_for(bytes, self.stop)??;
            let now = if section(slice, &bytes, 0).verify(&bytes).is_ok() {
                Meaning::Blocks
            } else {
                let mut parser = Parser::resume(self.options.limits, slice.offset);
                match parser.next(&bytes, true) {
                    Ok(Step::Section(found))
                        if found.end() == end
                            && Claim::of_slice(slice).is_of(&found.cid)
                            && found.verify(data_of(&found, slice, &bytes)).is_ok() =>
                    {
                        Meaning::Sections
                    }
                    _ => return Ok(None),
                }
            };
            if meaning.is_some_and(|before| before != now) {
                return Ok(None);
            }
            meaning = Some(now);
        }
        Ok(meaning)
    }

    fn blocks(&mut self, slices: &[Slice]) -> Result<(), CarFailure> {
        for slice in slices {
            let section = section(slice, &[], slice.len);
            self.options.check_hash(&section)?;
            self.found_section(&section)?;
        }
        Ok(())
    }

    /// Whether the slices all are sections.
    fn sections(&mut self, slices: &[Slice]) -> Result<bool, CarFailure> {
        for lot in slices.chunks(LOT) {
            self.check_stop()?;
            let claims: Vec<Claim> = lot.iter().map(Claim::of_slice).collect();
            for head in self.heads(&claims)? {
                let Head::Section(section) = head else {
                    return Ok(false);
                };
                self.options.check_hash(&section)?;
                self.found_section(&section)?;
            }
        }
        Ok(true)
    }
}

/// A slice that is a block, as if it were a section. Only its multihash is known.
fn section(slice: &Slice, bytes: &[u8], len: u64) -> Section {
    let len = len.max(bytes.len() as u64);
    Section {
        offset: slice.offset,
        cid: Cid::new_v1(cid::RAW, slice.multihash),
        data_offset: slice.offset,
        data_len: u32::try_from(len).unwrap_or(u32::MAX), // At most the limit on sections.
    }
}

fn data_of<'a>(section: &Section, slice: &Slice, bytes: &'a [u8]) -> &'a [u8] {
    let skip = section.data_offset.saturating_sub(slice.offset);
    let skip = usize::try_from(skip).unwrap_or(usize::MAX);
    bytes.get(skip..).unwrap_or_default()
}
