//! A CAR from a stream: its blocks are copied into a pack.
//!
//! In       any reader of a CARv1 or CARv2.
//! Out      verified blocks in the sink's pack.
//! Limits   one section is held, two where one is bad, and [`READ_LEN`] bytes of what follows.
//! Not here CARs that stay where they are (`ingest::import`).

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use carrack_formats::car::{CarError, Parser, Section, Step, v2};
use carrack_formats::{Cid, cid};

use super::resync::{Resync, front, passed, section_at};
use super::{CarFailure, HEAD_LEN, ImportOptions, ImportReport};
use crate::error::{Error, ErrorKind};
use crate::ingest::Progress;
use crate::ingest::sink::Sink;

/// Bytes taken from a stream at once.
const READ_LEN: usize = 64 << 10;

/// Reads a CAR from a stream and writes its blocks into the pack; gives its roots.
pub(super) fn copy(
    sink: &mut Sink<'_>,
    input: &mut dyn Read,
    options: &ImportOptions,
    report: &mut ImportReport,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Vec<Cid>, CarFailure> {
    let mut stream = Stream {
        input,
        stop,
        chunk: vec![0; READ_LEN],
        bytes: Vec::new(),
        at: 0,
        start: 0,
        eof: false,
        end: u64::MAX,
    };
    stream.fill(v2::START_LEN)?;
    let mut parser = Parser::new(options.limits, 0);
    if v2::is_v2(stream.view().0) == Some(true) {
        let header = v2::parse(stream.view().0, u64::MAX)?; // A stream does not tell its length.
        stream.end = header.data_end();
        parser = Parser::new(options.limits, header.data_offset);
        parser.set_end(stream.end);
    }
    let (mut roots, mut resync) = (None, Resync::default());
    let mut want = HEAD_LEN;
    loop {
        let stepped = stream.step(&mut parser, want).and_then(|step| {
            if let Step::Section(section) = &step
                && !copy_section(sink, &mut stream, section, options, report)?
                && let Some(next) = stream.hidden_in(section, &mut resync, options)?
            {
                parser = stream.parser(options, next);
            }
            Ok(step)
        });
        want = HEAD_LEN;
        match stepped {
            Ok(Step::Need(n)) => want = n,
            Ok(Step::Header(header)) => roots = Some(header.roots),
            Ok(Step::Section(_)) => progress.update("copying", parser.offset(), None),
            Ok(Step::End) => return Ok(roots.unwrap_or_default()),
            // What came before was verified, and so is what follows.
            Err(CarFailure::Car(error)) if options.salvage && roots.is_some() => {
                report.bad(&error);
                let from = parser.offset();
                let next = stream.find_sound(&mut resync, options, from + 1)?;
                let until = next.unwrap_or(stream.start + stream.view().0.len() as u64);
                report.n_untold += until.saturating_sub(from);
                let Some(next) = next else {
                    return Ok(roots.unwrap_or_default());
                };
                parser = stream.parser(options, next);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Verifies and keeps one block; false if it is bad and passed over.
fn copy_section(
    sink: &mut Sink<'_>,
    stream: &mut Stream<'_>,
    section: &Section,
    options: &ImportOptions,
    report: &mut ImportReport,
) -> Result<bool, CarFailure> {
    let len = usize::try_from(section.end() - section.offset).unwrap_or(usize::MAX);
    stream.fill(len)?; // At most the limit on sections.
    let truncated = CarError::Truncated {
        offset: section.offset,
    };
    let framed = stream.view().0.get(..len).ok_or(truncated)?;
    let data = framed
        .get(len - section.data_len as usize..)
        .unwrap_or_default();
    match options
        .check_hash(section)
        .and_then(|()| section.verify(data))
    {
        Ok(()) => {
            if cid::identity_data(&section.cid).is_none() {
                sink.node(&section.cid, data)?;
            }
            report.n_blocks += 1;
            report.bytes += data.len() as u64;
            Ok(true)
        }
        Err(error) if options.salvage => {
            report.bad(&error);
            Ok(false)
        }
        Err(error) => Err(error.into()),
    }
}

/// A stream, and a buffer of what was read and not used yet.
struct Stream<'a> {
    input: &'a mut dyn Read,
    stop: &'a AtomicBool,
    chunk: Vec<u8>,
    bytes: Vec<u8>,
    /// Bytes at the front of the buffer that are used up.
    at: usize,
    /// Place of the next byte in the stream.
    start: u64,
    eof: bool,
    /// Where the CARv1 ends, for a CARv2.
    end: u64,
}

impl Stream<'_> {
    /// What the parser says of the next `want` bytes.
    fn step(&mut self, parser: &mut Parser, want: usize) -> Result<Step, CarFailure> {
        self.skip_to(parser.offset())?;
        self.fill(want)?;
        let (bytes, eof) = self.view();
        let step = parser.next(bytes, eof)?;
        if step == Step::End && self.end != u64::MAX && parser.offset() < self.end {
            // A cut between two sections: the CARv2 says that there is more.
            let offset = parser.offset();
            return Err(CarError::Truncated { offset }.into());
        }
        Ok(step)
    }

    /// A parser that goes on where a section begins.
    fn parser(&self, options: &ImportOptions, offset: u64) -> Parser {
        let mut parser = Parser::resume(options.limits, offset);
        if self.end != u64::MAX {
            parser.set_end(self.end);
        }
        parser
    }

    /// Where a sound section begins inside of a bad one, whose length may be wrong.
    fn hidden_in(
        &mut self,
        bad: &Section,
        resync: &mut Resync,
        options: &ImportOptions,
    ) -> Result<Option<u64>, CarFailure> {
        let len = usize::try_from(bad.end() - bad.offset).unwrap_or(usize::MAX);
        let mut skip = 1;
        while skip < len {
            self.fill(len.saturating_add(HEAD_LEN))?;
            let (bytes, _) = self.view();
            let Some(found) = front(bytes.get(skip..).unwrap_or_default()) else {
                break;
            };
            skip += found;
            if skip >= len {
                break;
            }
            match self.is_sound_at(skip, resync, options)? {
                Some(true) => return Ok(Some(self.start + skip as u64)),
                Some(false) => skip += 1,
                None => break,
            }
        }
        Ok(None)
    }

    /// Where the next sound section begins, from byte `from` of the stream on.
    fn find_sound(
        &mut self,
        resync: &mut Resync,
        options: &ImportOptions,
        from: u64,
    ) -> Result<Option<u64>, CarFailure> {
        let mut at = from;
        while self.reach(at)? {
            self.fill(HEAD_LEN)?;
            let (bytes, is_last) = self.view();
            if bytes.is_empty() {
                break;
            }
            let Some(skip) = front(bytes) else {
                at += passed(bytes.len(), is_last);
                continue;
            };
            at += skip as u64;
            self.reach(at)?;
            match self.is_sound_at(0, resync, options)? {
                Some(true) => return Ok(Some(at)),
                Some(false) => at += 1,
                None => break,
            }
        }
        Ok(None)
    }

    /// Whether a sound section begins `skip` bytes behind the first that is buffered; `None`: no
    /// more is looked for.
    fn is_sound_at(
        &mut self,
        skip: usize,
        resync: &mut Resync,
        options: &ImportOptions,
    ) -> Result<Option<bool>, CarFailure> {
        self.fill(skip.saturating_add(HEAD_LEN))?;
        let (bytes, is_last) = self.view();
        let bytes = bytes.get(skip..).unwrap_or_default();
        let (at, end) = (self.start + skip as u64, self.end);
        let end = (end != u64::MAX).then_some(end);
        let Some(section) = section_at(bytes, is_last, at, end, options) else {
            return Ok(Some(false));
        };
        let len = usize::try_from(section.end() - at).unwrap_or(usize::MAX);
        let until = skip.saturating_add(len);
        self.fill(until)?; // At most two sections.
        let data = self.view().0.get(until - section.data_len as usize..until);
        Ok(match data.map(|data| section.verify(data)) {
            Some(Ok(())) => Some(true),
            Some(Err(_)) if !resync.may_go_on(&section) => None,
            _ => Some(false),
        })
    }

    /// Skips to a byte; false if the stream ends before it.
    fn reach(&mut self, offset: u64) -> Result<bool, CarFailure> {
        match self.skip_to(offset) {
            Ok(()) => Ok(true),
            Err(CarFailure::Car(CarError::Truncated { .. })) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Reads until the buffer holds `want` bytes or the stream ends.
    fn fill(&mut self, want: usize) -> Result<(), CarFailure> {
        if self.bytes.len() - self.at >= want {
            return Ok(());
        }
        self.bytes.drain(..self.at);
        self.at = 0;
        while self.bytes.len() < want && !self.eof {
            if self.stop.load(Ordering::Relaxed) {
                let what = "interrupted; nothing of this CAR was kept";
                return Err(Error::new(ErrorKind::Unavailable, what).into());
            }
            match self.input.read(&mut self.chunk) {
                Ok(0) => self.eof = true,
                Ok(n) => self
                    .bytes
                    .extend_from_slice(self.chunk.get(..n).unwrap_or_default()),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The buffered bytes of the CARv1, and whether it ends there.
    fn view(&self) -> (&[u8], bool) {
        let bytes = self.bytes.get(self.at..).unwrap_or_default();
        let left = usize::try_from(self.end.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let bytes = bytes.get(..left).unwrap_or(bytes);
        (bytes, self.eof || bytes.len() == left)
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), CarFailure> {
        while self.start < offset {
            self.fill(1)?;
            let gap = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
            let n = gap.min(self.bytes.len() - self.at);
            if n == 0 {
                return Err(CarError::Truncated { offset: self.start }.into());
            }
            self.at += n;
            self.start += n as u64;
        }
        Ok(())
    }
}
