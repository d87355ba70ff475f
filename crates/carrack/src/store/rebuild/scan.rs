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
use carrack_formats::cid;
use carrack_formats::verify::is_legacy;

use super::build::Builder;
use super::interrupted;
use crate::error::Error;
use crate::source::local::LocalFile;
use crate::store::catalog::{ContainerKind, ContainerRecord};
use crate::store::location::{ContainerId, Location};

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

/// Adds the sections of a container; gives the number of those that are not what they are called.
pub(super) fn scan(
    path: &Path,
    record: &ContainerRecord,
    id: ContainerId,
    mut trust: Trust,
    builder: &mut Builder<'_>,
    go_on: &mut dyn FnMut(u64) -> bool,
) -> Result<u64, ScanError> {
    let unread = |error: std::io::Error| ScanError::Unread(error.to_string());
    let is_pack = record.kind == ContainerKind::Pack;
    let opened = match is_pack {
        true => LocalFile::open_own(path),
        false => LocalFile::open(path),
    };
    let file = opened.map_err(unread)?;
    let len = file.validator.size();
    if len < record.size || (!is_pack && len != record.size) {
        return Err(ScanError::Unread(
            "its length is not what it was".to_owned(),
        ));
    }
    if !is_pack && file.validator != record.validator && trust == Trust::Whole {
        trust = Trust::Hash; // Touched, or put back: the hash decides.
    }
    let mut sections = Sections::open(&file, record.size).map_err(ScanError::Unread)?;
    let (mut n_bad, mut n_seen) = (0, 0u64);
    let mut data = Vec::new();
    loop {
        let section = match sections.next() {
            Ok(Some(section)) => section,
            Ok(None) => return Ok(n_bad),
            // Where an import that salvaged stopped, too.
            Err(_) if trust == Trust::Salvaged => return Ok(n_bad + 1),
            Err(why) => return Err(ScanError::Unread(why)),
        };
        n_seen += 1;
        if (n_seen.is_multiple_of(REPORT_INTERVAL) || trust != Trust::Whole)
            && !go_on(section.offset)
        {
            return Err(ScanError::Fatal(interrupted()));
        }
        if cid::identity_data(&section.cid).is_some() {
            continue;
        }
        if trust != Trust::Whole {
            data.resize(section.data_len as usize, 0); // At most the limit on sections.
            file.read_exact_at(&mut data, section.data_offset)
                .map_err(unread)?;
            // Whether broken hashes were allowed is not known of a CAR that was salvaged.
            let refused = trust == Trust::Salvaged && is_legacy(section.cid.hash().code());
            if refused || section.verify(&data).is_err() {
                n_bad += 1;
                continue;
            }
        }
        let location = Location {
            container: id,
            offset: section.data_offset,
            len: section.data_len,
            wrapped: false,
        };
        builder
            .push(&section.cid, location)
            .map_err(ScanError::Fatal)?;
    }
}

/// Goes from section to section through a window.
pub(super) struct Sections<'a> {
    file: &'a LocalFile,
    parser: Parser,
    end: u64,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Sections<'a> {
    pub(super) fn open(file: &'a LocalFile, len: u64) -> Result<Self, String> {
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

    pub(super) fn next(&mut self) -> Result<Option<Section>, String> {
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
