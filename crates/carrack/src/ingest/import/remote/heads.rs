//! Sections that an index names: their heads are read, not their blocks.
//!
//! In       an index, of the CARv2 or beside the CAR.
//! Out      each section's place, or the decision to read the CAR instead.
//! Limits   [`READS_MAX`] reads of [`HEAD_LEN`] bytes go on at once.
//! Not here what an index may claim (`claims`).
//!
//! An index of another CAR, or one that lies about where sections are, is refused when the first
//! head does not fit: then the CAR is read. Bytes between sections that the index does not name are
//! read and verified as they are.

use std::sync::atomic::AtomicU64;

use bytes::Bytes;
use carrack_formats::car::{CarLimits, Parser, Section, Step, shards};
use futures_util::{StreamExt, stream};

use super::claims::{self, Claim, INDEX_LEN_MAX};
use super::{CarFailure, Front, Object, RemoteImport, patient};
use crate::source::{SourceError, SourceErrorKind};

/// Heads read at once.
const READS_MAX: usize = 64;
/// Bytes of a section that are read for its length and CID.
const HEAD_LEN: u64 = 128;
/// Sections shorter than this on average are not worth a request each: the CAR is read.
const SECTION_LEN_MIN: u64 = 4 << 10;
/// Claims whose heads are read before anything is kept of them.
pub(super) const LOT: usize = 4096;

/// What the head of a claimed section said.
pub(super) enum Head {
    Section(Section),
    /// Not what the index says.
    Lie,
}

impl RemoteImport<'_, '_> {
    /// Finds the sections by an index. Whether that could be done.
    pub(super) fn by_index(&mut self, front: &Front) -> Result<bool, CarFailure> {
        let Some((name, index)) = self.index(front)? else {
            return Ok(false);
        };
        if let Ok(shards) = shards::parse(&index) {
            return match self.by_shards(&name, shards, front)? {
                true => Ok(true),
                false => Ok(self.refuse(&name, "its positions are not those of this CAR")),
            };
        }
        let claims = match claims::sections(&index, &(front.start..front.end), front.sections) {
            Ok(claims) => claims,
            Err(why) => return Ok(self.refuse(&name, &why)),
        };
        drop(index);
        if (front.end - front.sections) / (claims.len() as u64).max(1) < SECTION_LEN_MIN {
            return Ok(false); // Reading the CAR is cheaper, and verifies it.
        }
        let mut gaps = Vec::new();
        let mut at = front.sections;
        for lot in claims.chunks(LOT) {
            self.check_stop()?;
            for (claim, head) in lot.iter().zip(self.heads(lot)?) {
                let Head::Section(section) = head else {
                    let why = format!("there is no such section at byte {}", claim.start);
                    return Ok(self.refuse(&name, &why));
                };
                if claim.start > at {
                    gaps.push(at..claim.start);
                }
                at = section.end();
                self.options.check_hash(&section)?;
                self.found_section(&section)?;
            }
            self.progress.update("finding", at, Some(front.end));
        }
        self.progress.end("finding");
        if at < front.end {
            gaps.push(at..front.end);
        }
        for gap in gaps {
            match self.stream_sections(gap) {
                Ok(()) => {}
                // The sections around it may be no such sections.
                Err(CarFailure::Car(error)) => return Ok(self.refuse(&name, &error.to_string())),
                Err(failure) => return Err(failure),
            }
        }
        self.report.index = Some(name);
        Ok(true)
    }

    /// Forgets what the index told so far: no row will name the container of these ranges.
    fn refuse(&mut self, name: &str, why: &str) -> bool {
        self.container = self.sink.new_container();
        (self.report.n_blocks, self.report.bytes) = (0, 0);
        self.progress.note(&format!(
            "{name} is not used: {why}; the CAR is read instead"
        ));
        false
    }

    /// The heads of some sections, in order.
    pub(super) fn heads(&self, claims: &[Claim]) -> Result<Vec<Head>, CarFailure> {
        let (object, limits) = (self.object, self.options.limits);
        let reads = stream::iter(claims.iter().map(|claim| read_head(object, limits, *claim)));
        let heads = reads.buffered(READS_MAX).collect::<Vec<_>>();
        let heads = object.wait_for(heads, self.stop)?;
        let heads: Result<Vec<Head>, SourceError> = heads.into_iter().collect();
        Ok(heads?)
    }

    /// The CARv2's index, or one that lies beside the CAR, and what to call it.
    fn index(&self, front: &Front) -> Result<Option<(String, Bytes)>, CarFailure> {
        let size = self.object.stamp.size;
        if let Some(start) = front.index.filter(|start| size - start <= INDEX_LEN_MAX) {
            let index = self.object.bytes(start, size);
            let index = self.object.wait_for(index, self.stop)??;
            return Ok(Some(("the CAR's own index".to_owned(), index)));
        }
        for path in sidecars(&self.object.path) {
            let found = self
                .object
                .wait_for(read_small(self.object, &path), self.stop)?;
            if let Some(index) = found? {
                return Ok(Some((String::from_utf8_lossy(&path).into_owned(), index)));
            }
        }
        Ok(None)
    }
}

/// Where an index of the CAR at `path` may lie.
fn sidecars(path: &[u8]) -> Vec<Vec<u8>> {
    vec![[path, b".idx"].concat()]
}

/// A small object of the same source; `None` if there is none, or none that may be read.
async fn read_small(object: &Object, path: &[u8]) -> Result<Option<Bytes>, SourceError> {
    let throttled = AtomicU64::new(0);
    let stamp = match patient(&object.source, &throttled).stat(path).await {
        Ok(stamp) if stamp.size > 0 && stamp.size <= INDEX_LEN_MAX => stamp,
        Ok(_) => return Ok(None),
        // Whoever may not list a bucket is denied what is not there.
        Err(error) => match error.kind {
            SourceErrorKind::Throttled | SourceErrorKind::Unreachable => return Err(error),
            _ => return Ok(None),
        },
    };
    let beside = Object {
        path: path.into(),
        stamp: stamp.into(),
        ..object.clone()
    };
    beside.bytes(0, beside.stamp.size).await.map(Some)
}

async fn read_head(object: &Object, limits: CarLimits, claim: Claim) -> Result<Head, SourceError> {
    let end = claim.end.min(claim.start.saturating_add(HEAD_LEN));
    let bytes = object.bytes(claim.start, end).await?;
    let mut parser = Parser::resume(limits, claim.start);
    let section = match parser.next(&bytes, false) {
        Ok(Step::Section(section)) => section,
        _ => return Ok(Head::Lie),
    };
    let fits = section.end() <= claim.end && claim.is_of(&section.cid);
    Ok(if fits {
        Head::Section(section)
    } else {
        Head::Lie
    })
}
