//! A CAR from a stream: its blocks are copied into a pack.
//!
//! In       any reader of a CARv1 or CARv2.
//! Out      verified blocks in the sink's pack.
//! Limits   one section is held, and [`READ_LEN`] bytes of what follows.
//! Not here CARs that stay where they are (`ingest::import`).

use std::io::Read;
use std::sync::atomic::{AtomicBool, Ordering};

use carrack_formats::car::{CarError, Parser, Step, v2};
use carrack_formats::cid;

use super::{CarFailure, ImportOptions, ImportReport, PROBLEMS_MAX, Scanned};
use crate::error::{Error, ErrorKind};
use crate::ingest::Progress;
use crate::ingest::sink::Sink;

/// Bytes taken from a stream at once.
const READ_LEN: usize = 64 << 10;

/// Reads a CAR from a stream and writes its blocks into the pack.
pub(super) fn copy(
    sink: &mut Sink<'_>,
    input: &mut dyn Read,
    options: &ImportOptions,
    report: &mut ImportReport,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<Scanned, CarFailure> {
    let chunk = vec![0; READ_LEN];
    let mut stream = Stream {
        input,
        chunk,
        bytes: Vec::new(),
        start: 0,
        eof: false,
        end: u64::MAX,
    };
    stream.fill(v2::START_LEN)?;
    let mut first = 0;
    if v2::is_v2(&stream.bytes) == Some(true) {
        let header = v2::parse(&stream.bytes, u64::MAX)?; // A stream does not tell its length.
        first = header.data_offset;
        stream.end = header.data_end();
        stream.skip_to(first)?;
    }
    let mut parser = Parser::new(options.limits, first);
    let mut scanned = Scanned::new();
    let mut want = 256;
    loop {
        stream.fill(want)?;
        let (bytes, eof) = stream.view();
        match parser.next(bytes, eof)? {
            Step::Need(n) => want = n,
            Step::Header(header) => {
                scanned.start(header.roots);
                stream.skip_to(parser.offset())?;
                want = 256;
            }
            Step::End => return Ok(scanned),
            Step::Section(section) => {
                let head_len = usize::try_from(section.data_offset - section.offset).unwrap_or(0);
                let len = head_len + section.data_len as usize;
                stream.fill(len)?;
                let (bytes, _) = stream.view();
                let data = bytes.get(head_len..len).ok_or(CarError::Truncated {
                    offset: section.offset,
                })?;
                match section.verify(data) {
                    Ok(()) => {
                        if cid::identity_data(&section.cid).is_none() {
                            sink.node(&section.cid, data)?;
                        }
                        scanned.met(&section.cid);
                        report.n_blocks += 1;
                        report.bytes += data.len() as u64;
                    }
                    Err(error) if options.salvage => {
                        report.n_bad += 1;
                        report.problems.push(error.to_string());
                        report.problems.truncate(PROBLEMS_MAX);
                    }
                    Err(error) => return Err(error.into()),
                }
                if stop.load(Ordering::Relaxed) {
                    let what = "interrupted; nothing of this CAR was kept";
                    return Err(Error::new(ErrorKind::Unavailable, what).into());
                }
                stream.skip_to(parser.offset())?;
                want = 256;
                progress.update("copying", parser.offset(), None);
            }
        }
    }
}

/// A stream with a buffer that starts where the parser stands.
struct Stream<'a> {
    input: &'a mut dyn Read,
    chunk: Vec<u8>,
    bytes: Vec<u8>,
    /// Place of the buffer's first byte in the stream.
    start: u64,
    eof: bool,
    /// Where the CARv1 ends, for a CARv2.
    end: u64,
}

impl Stream<'_> {
    /// Reads until the buffer holds `want` bytes or the stream ends.
    fn fill(&mut self, want: usize) -> Result<(), CarFailure> {
        while self.bytes.len() < want && !self.eof {
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
        let left = usize::try_from(self.end.saturating_sub(self.start)).unwrap_or(usize::MAX);
        let bytes = self.bytes.get(..left).unwrap_or(&self.bytes);
        (bytes, self.eof || bytes.len() == left)
    }

    fn skip_to(&mut self, offset: u64) -> Result<(), CarFailure> {
        while self.start < offset {
            self.fill(1)?;
            let gap = usize::try_from(offset - self.start).unwrap_or(usize::MAX);
            let n = gap.min(self.bytes.len());
            if n == 0 {
                return Err(CarError::Truncated { offset: self.start }.into());
            }
            self.bytes.drain(..n);
            self.start += n as u64;
        }
        Ok(())
    }
}
