//! The sections of a pack or a CAR, read once more.
//!
//! In       a file that the catalog lists, and how far it is to be believed.
//! Out      an entry for each section.
//! Limits   `formats::car`'s, with the longest sections that an import accepts; one section in
//!          memory where it is hashed, a window of the file otherwise.
//! Not here which CARs there are (`rebuild`).

use std::path::Path;

use carrack_formats::car::v1::SECTION_LEN_MAX_LARGE;
use carrack_formats::car::{CarLimits, Parser, Section, Step, v2};
use carrack_formats::verify::is_legacy;
use carrack_formats::{Cid, cid};

use super::build::Builder;
use super::{LEFT_OUT_SHOWN_MAX, interrupted};
use crate::error::Error;
use crate::source::local::LocalFile;
use crate::store::catalog::{ContainerKind, ContainerRecord};
use crate::store::location::{ContainerId, Location};
use crate::store::recover;

/// Bytes asked for at first: the length and the CID of nearly every section.
const HEAD_LEN: usize = 256;
/// Bytes read at once where heads lie close together, and where they do not.
const WINDOW_LEN: usize = 64 << 10;
const WINDOW_LEN_MIN: usize = 512;
/// Sections between two reports.
const REPORT_INTERVAL: u64 = 1024;

/// What is known of a file's sections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Trust {
    /// All were good: their heads say enough.
    Whole,
    /// They are to be hashed again.
    Hash,
    /// Some were bad when it was imported, and its end may be.
    Salvaged,
}

/// Why a container has no entries.
pub(super) enum ScanError {
    /// It cannot be read now; the others can.
    Unread(String),
    /// The rebuild is over.
    Fatal(Error),
}

/// What was found in a container.
#[derive(Debug, Default)]
pub(super) struct Scanned {
    /// Sections that are not what they are called.
    pub(super) n_bad: u64,
    /// The first of them: where each begins, and what it is called if that is known.
    pub(super) bad: Vec<(u64, Option<Cid>)>,
    /// The byte from which on it could not be read, and why.
    pub(super) cut: Option<(u64, String)>,
}

/// Adds the sections of a container, up to where it is no CAR any more.
pub(super) fn scan(
    path: &Path,
    record: &ContainerRecord,
    id: ContainerId,
    mut trust: Trust,
    builder: &mut Builder<'_>,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<Scanned, ScanError> {
    let is_pack = record.kind == ContainerKind::Pack;
    let opened = match is_pack {
        true => LocalFile::open_own(path),
        false => LocalFile::open(path),
    };
    let file = opened.map_err(|error| match is_pack {
        true if error.kind() == std::io::ErrorKind::PermissionDenied => {
            ScanError::Fatal(recover::not_let_in(path, error))
        }
        _ => ScanError::Unread(error.to_string()),
    })?;
    let len = file.validator.size();
    if len < record.size || (!is_pack && len != record.size) {
        return Err(ScanError::Unread(
            "its length is not what it was".to_owned(),
        ));
    }
    if !is_pack && file.validator != record.validator && trust == Trust::Whole {
        trust = Trust::Hash; // Touched, or put back: the hash decides.
    }
    let sections = Sections::open(&file, record.size).map_err(ScanError::Unread)?;
    let scan = Scan {
        file: &file,
        id,
        trust,
        builder,
        data: Vec::new(),
        scanned: Scanned::default(),
    };
    scan.run(sections, go_on)
}

struct Scan<'a, 'b> {
    file: &'a LocalFile,
    id: ContainerId,
    trust: Trust,
    builder: &'a mut Builder<'b>,
    data: Vec<u8>,
    scanned: Scanned,
}

impl Scan<'_, '_> {
    /// Each section is added when the next was found where it ends: a wrong length shows there.
    fn run(
        mut self,
        mut sections: Sections<'_>,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> Result<Scanned, ScanError> {
        let (mut last, mut n_seen) = (None, 0u64);
        let mut broken: Option<(u64, Option<Cid>)> = None;
        loop {
            let next = match (sections.next(), &last) {
                (Err(why), None) => return Err(ScanError::Unread(why)),
                (Err(why), Some(section)) => return self.cut(section, why),
                (Ok(next), _) => next,
            };
            if let Some(section) = &last
                && let Err(error) = self.add(section)?
            {
                // The end of what was salvaged may be cut off.
                let is_broken = self.trust == Trust::Salvaged
                    && error.kind() == std::io::ErrorKind::UnexpectedEof;
                broken = is_broken.then_some((section.offset, Some(section.cid)));
                if !is_broken {
                    self.scanned.cut = Some((section.offset, error.to_string()));
                    return Ok(self.scanned);
                }
            }
            let Some(section) = next else {
                if let Some((offset, cid)) = broken {
                    self.note_bad(offset, cid);
                }
                return Ok(self.scanned);
            };
            n_seen += 1;
            if (n_seen.is_multiple_of(REPORT_INTERVAL) || self.trust != Trust::Whole)
                && !go_on(section.offset)
            {
                return Err(ScanError::Fatal(interrupted()));
            }
            last = Some(section);
        }
    }

    /// Ends behind `last`, or before it if it is not what it is called.
    fn cut(mut self, last: &Section, why: String) -> Result<Scanned, ScanError> {
        let from = match self.is_sound(last) {
            Ok(true) => {
                self.push(last)?;
                last.end()
            }
            Ok(false) | Err(_) => last.offset,
        };
        self.scanned.cut = Some((from, why));
        Ok(self.scanned)
    }

    /// Adds a section, if it is what it is called as far as that is asked.
    fn add(&mut self, section: &Section) -> Result<std::io::Result<()>, ScanError> {
        if cid::identity_data(&section.cid).is_some() {
            return Ok(Ok(()));
        }
        if self.trust != Trust::Whole {
            match self.is_sound(section) {
                Ok(true) => {}
                Ok(false) => {
                    self.note_bad(section.offset, Some(section.cid));
                    return Ok(Ok(()));
                }
                Err(error) => return Ok(Err(error)),
            }
        }
        self.push(section).map(Ok)
    }

    fn note_bad(&mut self, offset: u64, cid: Option<Cid>) {
        self.scanned.n_bad += 1;
        if self.scanned.bad.len() < LEFT_OUT_SHOWN_MAX {
            self.scanned.bad.push((offset, cid));
        }
    }

    fn is_sound(&mut self, section: &Section) -> std::io::Result<bool> {
        self.data.resize(section.data_len as usize, 0); // At most the limit on sections.
        self.file
            .read_exact_at(&mut self.data, section.data_offset)?;
        // Whether broken hashes were allowed is not known of a CAR that was salvaged.
        let refused = self.trust == Trust::Salvaged && is_legacy(section.cid.hash().code());
        Ok(!refused && section.verify(&self.data).is_ok())
    }

    fn push(&mut self, section: &Section) -> Result<(), ScanError> {
        if cid::identity_data(&section.cid).is_some() {
            return Ok(());
        }
        let location = Location {
            container: self.id,
            offset: section.data_offset,
            len: section.data_len,
            wrapped: false,
        };
        let pushed = self.builder.push(&section.cid, location);
        pushed.map_err(ScanError::Fatal)
    }
}

/// Goes from section to section through a window.
pub(in crate::store) struct Sections<'a> {
    file: &'a LocalFile,
    parser: Parser,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Sections<'a> {
    pub(in crate::store) fn open(file: &'a LocalFile, len: u64) -> Result<Self, String> {
        let mut head = vec![
            0;
            usize::try_from(len)
                .unwrap_or(usize::MAX)
                .min(v2::START_LEN)
        ];
        file.read_exact_at(&mut head, 0)
            .map_err(|error| error.to_string())?;
        let (start, end) = if v2::is_v2(&head) == Some(true) {
            let header = v2::parse(&head, len).map_err(|error| error.to_string())?;
            (header.data_offset, header.data_end())
        } else {
            (0, len)
        };
        // What was accepted once is accepted again.
        let limits = CarLimits {
            section_len_max: SECTION_LEN_MAX_LARGE,
            allow_zero_padding: true,
            ..CarLimits::default()
        };
        let mut parser = Parser::new(limits, start);
        parser.set_end(end);
        Ok(Self {
            file,
            parser,
            end,
            start: 0,
            bytes: Vec::new(),
        })
    }

    pub(in crate::store) fn next(&mut self) -> Result<Option<Section>, String> {
        let mut want = HEAD_LEN;
        loop {
            self.look(want).map_err(|error| error.to_string())?;
            let skip = usize::try_from(self.parser.offset() - self.start).unwrap_or(usize::MAX);
            let bytes = self.bytes.get(skip..).unwrap_or_default();
            let eof = self.parser.offset() + bytes.len() as u64 >= self.end;
            match self.parser.next(bytes, eof) {
                Ok(Step::Need(n)) => want = n,
                Ok(Step::Header(_)) => want = HEAD_LEN,
                Ok(Step::End) => return Ok(None),
                Ok(Step::Section(section)) => return Ok(Some(section)),
                Err(error) => return Err(error.to_string()),
            }
        }
    }

    /// Brings `want` bytes from the parser's place, or all up to the end, into the window.
    fn look(&mut self, want: usize) -> std::io::Result<()> {
        let offset = self.parser.offset();
        let window_end = self.start + self.bytes.len() as u64;
        let wanted_end = offset.saturating_add(want as u64).min(self.end);
        if offset >= self.start && wanted_end <= window_end {
            return Ok(());
        }
        let is_far = offset > window_end;
        let len = want.max(if is_far { WINDOW_LEN_MIN } else { WINDOW_LEN });
        let left = usize::try_from(self.end.saturating_sub(offset)).unwrap_or(len);
        self.bytes.resize(len.min(left), 0);
        self.start = offset;
        self.file.read_exact_at(&mut self.bytes, offset)
    }
}
