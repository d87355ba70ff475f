//! A CAR is read once, in order, with parts fetched ahead; every block is verified.
//!
//! In       where its sections start and end.
//! Out      each section's place.
//! Limits   as `import::remote` says; one section is held behind the parts.
//! Not here CARs with an index that is used (`heads`).

use std::collections::VecDeque;
use std::ops::Range;

use bytes::{Bytes, BytesMut};
use carrack_formats::car::{CarError, Parser, Section, Step};
use tokio::task::{JoinHandle, JoinSet};

use super::{
    BATCHES_MAX, CarFailure, Front, HEAD_LEN, Object, PART_LEN, PARTS_AHEAD, RemoteImport,
};
use crate::error::{Error, ErrorKind};
use crate::ingest::import::{BATCH_LEN, BATCH_SECTIONS};
use crate::source::SourceError;

/// Parts in order, some ahead.
struct Parts<'a> {
    object: &'a Object,
    /// On their way, the next one first. They end when this is dropped.
    parts: VecDeque<Part>,
    next: u64,
    end: u64,
}

struct Part(JoinHandle<Result<Bytes, SourceError>>);

impl Drop for Part {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Sections with their bytes, and what became of each.
type Batch = Vec<(Section, Bytes)>;
type Verified = Vec<(Section, Result<(), CarError>)>;

impl Parts<'_> {
    fn fill(&mut self) {
        while self.parts.len() < PARTS_AHEAD && self.next < self.end {
            let (object, start) = (self.object.clone(), self.next);
            let end = self.end.min(start.saturating_add(PART_LEN));
            let part = async move { object.bytes(start, end).await };
            self.parts.push_back(Part(self.object.handle.spawn(part)));
            self.next = end;
        }
    }
}

impl RemoteImport<'_, '_> {
    /// Reads and verifies everything.
    pub(super) fn stream(&mut self, front: &Front) -> Result<(), CarFailure> {
        self.stream_sections(front.sections..front.end)
    }

    /// Reads and verifies the sections that `range` consists of.
    pub(super) fn stream_sections(&mut self, range: Range<u64>) -> Result<(), CarFailure> {
        let Range { start, end } = range;
        let mut parts = Parts {
            object: self.object,
            parts: VecDeque::new(),
            next: start,
            end,
        };
        let mut verifying = JoinSet::new();
        let mut parser = Parser::resume(self.options.limits, start);
        parser.set_end(end);
        let (mut buffer, mut at) = (BytesMut::new(), start);
        let (mut batch, mut batch_len) = (Batch::new(), 0);
        let mut want = HEAD_LEN;
        let failure = loop {
            self.fill_to(&mut buffer, at, parser.offset(), want, &mut parts)?;
            let skip = usize::try_from(parser.offset().saturating_sub(at)).unwrap_or(usize::MAX);
            let _passed = buffer.split_to(skip.min(buffer.len()));
            at = parser.offset();
            let eof = at.saturating_add(buffer.len() as u64) >= end;
            match parser.next(&buffer, eof) {
                Err(error) => break Some(error),
                Ok(Step::Need(n)) => want = n,
                Ok(Step::Header(_)) => want = HEAD_LEN, // Was read before.
                Ok(Step::End) => break None,
                Ok(Step::Section(section)) if section.end() > end => {
                    let offset = section.offset;
                    break Some(CarError::Truncated { offset });
                }
                Ok(Step::Section(section)) => {
                    want = HEAD_LEN;
                    let len = section.end() - at; // At most the limit on sections.
                    let whole = usize::try_from(len).unwrap_or(usize::MAX);
                    self.fill_to(&mut buffer, at, at, whole, &mut parts)?;
                    let framed = buffer.split_to(whole.min(buffer.len())).freeze();
                    at += framed.len() as u64;
                    let data = framed.len().checked_sub(section.data_len as usize);
                    let data = data.map(|from| framed.slice(from..)).unwrap_or_default();
                    if let Err(error) = self.options.check_hash(&section) {
                        if !self.options.salvage {
                            break Some(error);
                        }
                        self.report.bad(&error);
                        continue;
                    }
                    batch_len += u64::from(section.data_len);
                    batch.push((section, data));
                }
            }
            if batch_len >= BATCH_LEN || batch.len() >= BATCH_SECTIONS {
                let full = std::mem::take(&mut batch);
                batch_len = 0;
                self.verify(full, &mut verifying)?;
                self.progress
                    .update("verifying", parser.offset(), Some(end));
            }
        };
        self.verify(batch, &mut verifying)?;
        while !verifying.is_empty() {
            self.take_verified(&mut verifying)?;
        }
        match failure {
            Some(error) if self.options.salvage => {
                self.report.bad(&error);
                self.report.n_untold += end.saturating_sub(parser.offset());
            }
            Some(error) => return Err(error.into()),
            None => {}
        }
        Ok(())
    }

    /// Until the buffer, which starts at `at`, holds `want` bytes from `offset` on, or all.
    fn fill_to(
        &mut self,
        buffer: &mut BytesMut,
        at: u64,
        offset: u64,
        want: usize,
        parts: &mut Parts<'_>,
    ) -> Result<(), CarFailure> {
        let skip = usize::try_from(offset.saturating_sub(at)).unwrap_or(usize::MAX);
        while buffer.len() < skip.saturating_add(want) {
            parts.fill();
            let Some(mut part) = parts.parts.pop_front() else {
                return Ok(());
            };
            let came = self.object.wait_for(&mut part.0, self.stop)?;
            let ended = |_| Error::new(ErrorKind::Unavailable, "this node is stopping");
            buffer.extend_from_slice(&came.map_err(ended)??);
        }
        Ok(())
    }

    /// Hands a batch to the threads that hash.
    fn verify(
        &mut self,
        batch: Batch,
        verifying: &mut JoinSet<Verified>,
    ) -> Result<(), CarFailure> {
        self.check_stop()?;
        while verifying.len() >= BATCHES_MAX {
            self.take_verified(verifying)?;
        }
        let check = move || {
            let checked = batch.into_iter().map(|(section, data)| {
                let outcome = section.verify(&data);
                (section, outcome)
            });
            checked.collect()
        };
        verifying.spawn_blocking_on(check, &self.object.handle);
        Ok(())
    }

    fn take_verified(&mut self, verifying: &mut JoinSet<Verified>) -> Result<(), CarFailure> {
        let Some(done) = self.object.handle.block_on(verifying.join_next()) else {
            return Ok(());
        };
        let ended = |_| Error::new(ErrorKind::Internal, "a verifying thread ended early");
        for (section, outcome) in done.map_err(ended)? {
            match outcome {
                Ok(()) => self.found_section(&section)?,
                Err(error) if self.options.salvage => self.report.bad(&error),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}
