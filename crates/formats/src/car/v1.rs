//! CARv1 parser: bytes in, places of blocks out.
//!
//! In       bytes of the file from [`Parser::offset`] on, as many as the caller has.
//! Out      the header, then a [`Section`] as soon as its length and CID are there. `data_offset`
//!          is where the block's *data* starts: a range that can be read without parsing.
//! Limits   [`CarLimits`]; each length is checked before anything is done with it, and nothing
//!          but the roots is allocated.
//! Not here reading: the caller seeks over data or feeds it, and [`Section::verify`] says whether
//!          it is the block. CARv2 (`car::v2`).
//!
//! CARv1 has no end mark: a cut between two sections cannot be told from the end. Any other cut is
//! reported, if the caller says how long the input is ([`Parser::set_end`]), or looks itself
//! whether a section's data is there ([`Parser::check_end`]).
//!
//! Spec: <https://ipld.io/specs/transport/car/carv1/>

use super::CarError;
use crate::cid::{self, CID_LEN_MAX};
use crate::dag::cbor::{Head, Reader};
use crate::verify::{HashError, verify};
use crate::{Cid, varint};

/// Longest header, in bytes.
pub const HEADER_LEN_MAX: u64 = 1024 * 1024;
/// Most roots: as many as the longest header holds of those with SHA2-256; 4 MiB as CIDs.
pub const ROOTS_MAX: usize = 25_000;
/// Longest section by default, in bytes: a block of 2 MiB, which is what peers accept, and its CID.
pub const SECTION_LEN_MAX: u64 = 2 * 1024 * 1024 + CID_LEN_MAX as u64;
/// Longest section for whoever asks for it, in bytes: go-car's limit.
pub const SECTION_LEN_MAX_LARGE: u64 = 8 * 1024 * 1024;

/// What is read at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarLimits {
    /// Longest header in bytes.
    pub header_len_max: u64,
    /// Most roots in the header.
    pub roots_max: usize,
    /// Longest section in bytes, CID included. At most [`u32::MAX`] is used.
    pub section_len_max: u64,
    /// Whether zeros up to the end may follow the last section, as Filecoin pieces have them.
    pub allow_zero_padding: bool,
}

impl Default for CarLimits {
    fn default() -> Self {
        Self {
            header_len_max: HEADER_LEN_MAX,
            roots_max: ROOTS_MAX,
            section_len_max: SECTION_LEN_MAX,
            allow_zero_padding: false,
        }
    }
}

/// What stands before the first section.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CarHeader {
    /// The CIDs the file was written for. There may be none.
    pub roots: Vec<Cid>,
    /// 1.
    pub version: u64,
    /// Bytes of the header with its length prefix: the first section starts after them.
    pub len: u64,
}

/// Where one block lies. Offsets count from the start of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Section {
    /// Where the length prefix starts.
    pub offset: u64,
    /// What the data should be.
    pub cid: Cid,
    /// Where the block's data starts.
    pub data_offset: u64,
    /// How many bytes of data there are.
    pub data_len: u32,
}

impl Section {
    /// The byte after the data, where the next section starts.
    pub fn end(&self) -> u64 {
        self.data_offset.saturating_add(u64::from(self.data_len))
    }

    /// Whether `data` is the block of this section.
    ///
    /// # Errors
    /// `HashMismatch`: other bytes. `HashNotAllowed`: nobody can say.
    pub fn verify(&self, data: &[u8]) -> Result<(), CarError> {
        verify(&self.cid, data).map_err(|error| self.hash_error(error))
    }

    /// What a failed [`Verifier`](crate::verify::Verifier) of this section's CID means.
    pub fn hash_error(&self, error: HashError) -> CarError {
        match error {
            HashError::Mismatch => CarError::HashMismatch {
                offset: self.offset,
                cid: Box::new(self.cid),
            },
            source => CarError::HashNotAllowed {
                offset: self.offset,
                source,
            },
        }
    }
}

/// What [`Parser::next`] found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// The slice must have at least so many bytes, counted from [`Parser::offset`] (which may
    /// have moved), or be the last of the input.
    Need(usize),
    /// The header; always the first.
    Header(CarHeader),
    /// The next section. The parser stands at its end now.
    Section(Section),
    /// No section is left.
    End,
}

/// What the parser expects next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Expect {
    Header,
    Section,
    /// Nothing but zeros.
    Padding,
}

/// Reads one CARv1. After an error it stays where the error is.
#[derive(Debug, Clone)]
pub struct Parser {
    limits: CarLimits,
    offset: u64,
    /// Start of the last header or section given out.
    last_start: u64,
    /// The first byte that is no longer of this CAR, where known.
    end: Option<u64>,
    expect: Expect,
}

impl Parser {
    /// A parser for the CAR whose header is at byte `start_offset` of the file.
    pub fn new(mut limits: CarLimits, start_offset: u64) -> Self {
        limits.section_len_max = limits.section_len_max.min(u64::from(u32::MAX));
        Self {
            limits,
            offset: start_offset,
            last_start: start_offset,
            end: None,
            expect: Expect::Header,
        }
    }

    /// A parser for the sections from byte `offset` on, where a section starts: for going on
    /// where another parser stopped.
    pub fn resume(limits: CarLimits, offset: u64) -> Self {
        Self {
            expect: Expect::Section,
            ..Self::new(limits, offset)
        }
    }

    /// Says that the CAR ends at byte `end` of the file: the file's length, or the end of the
    /// payload in a CARv2. A section that passes it is `Truncated` before it is given out, and
    /// bytes from there on are not looked at.
    pub fn set_end(&mut self, end: u64) {
        self.end = Some(end);
    }

    /// The byte of the file that the next slice must start with.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Whether all data of the sections given out lies before byte `file_len`. To be asked at
    /// the end by whoever skips data without reading it.
    ///
    /// # Errors
    /// `Truncated`, with the last section's offset.
    pub fn check_end(&self, file_len: u64) -> Result<(), CarError> {
        if self.offset > file_len {
            return Err(CarError::Truncated {
                offset: self.last_start,
            });
        }
        Ok(())
    }

    /// Reads the next thing from `buf`, whose first byte is byte [`offset`](Self::offset) of the
    /// file. `eof`: no byte follows those in `buf`.
    ///
    /// A [`Section`] means that its data is there only if `eof` was true or
    /// [`set_end`](Self::set_end) was called.
    ///
    /// # Errors
    /// [`CarError`]; asking again gives it again.
    pub fn next(&mut self, buf: &[u8], eof: bool) -> Result<Step, CarError> {
        let (buf, eof) = self.up_to_end(buf, eof)?;
        match self.expect {
            Expect::Header => self.header(buf, eof),
            Expect::Section => self.section(buf, eof),
            Expect::Padding => self.padding(buf, eof),
        }
    }

    /// Hides what is not of this CAR.
    fn up_to_end<'a>(&self, buf: &'a [u8], eof: bool) -> Result<(&'a [u8], bool), CarError> {
        let Some(end) = self.end else {
            return Ok((buf, eof));
        };
        let Some(left) = end.checked_sub(self.offset) else {
            return Err(CarError::Truncated {
                offset: self.last_start,
            });
        };
        match usize::try_from(left).ok().and_then(|left| buf.get(..left)) {
            Some(buf) => Ok((buf, true)),
            None => Ok((buf, eof)),
        }
    }

    fn header(&mut self, buf: &[u8], eof: bool) -> Result<Step, CarError> {
        let offset = self.offset;
        let Some((len, prefix_len)) = self.length(buf)? else {
            return self.need(buf, 1, eof);
        };
        let len_max = self.limits.header_len_max;
        if len > len_max {
            return Err(CarError::HeaderTooLong {
                offset,
                len,
                len_max,
            });
        }
        if len == 0 {
            return Err(CarError::HeaderInvalid {
                offset,
                reason: "it is empty",
            });
        }
        let total_len = prefix_len as u64 + len;
        let Some(body) = part(buf, prefix_len as u64, total_len) else {
            self.check_room(total_len)?;
            return self.need(buf, total_len.saturating_sub(buf.len() as u64), eof);
        };
        let roots = header_roots(body, offset, self.limits.roots_max)?;
        self.last_start = offset;
        self.offset = offset
            .checked_add(total_len)
            .ok_or(CarError::Truncated { offset })?;
        self.expect = Expect::Section;
        Ok(Step::Header(CarHeader {
            roots,
            version: 1,
            len: total_len,
        }))
    }

    fn section(&mut self, buf: &[u8], eof: bool) -> Result<Step, CarError> {
        let offset = self.offset;
        if buf.is_empty() {
            return if eof {
                Ok(Step::End)
            } else {
                Ok(Step::Need(1))
            };
        }
        let Some((len, prefix_len)) = self.length(buf)? else {
            return self.need(buf, 1, eof);
        };
        let len_max = self.limits.section_len_max;
        if len > len_max {
            return Err(CarError::SectionTooLong {
                offset,
                len,
                len_max,
            });
        }
        if len == 0 {
            if !self.limits.allow_zero_padding {
                return Err(CarError::ZeroSection { offset });
            }
            self.expect = Expect::Padding;
            return self.padding(buf, eof);
        }
        let total_len = prefix_len as u64 + len;
        let head_end = total_len.min(buf.len() as u64);
        let head = part(buf, prefix_len as u64, head_end).unwrap_or_default();
        let found =
            cid::read_prefix(head).map_err(|source| CarError::CidInvalid { offset, source })?;
        let Some((cid, cid_len)) = found else {
            if head.len() as u64 == len {
                let source = cid::CidError::Truncated;
                return Err(CarError::CidInvalid { offset, source });
            }
            return self.need(buf, 1, eof);
        };
        let truncated = CarError::Truncated { offset };
        let Some(end) = offset.checked_add(total_len) else {
            return Err(truncated);
        };
        let data_len = len - cid_len as u64; // `head` has at most `len` bytes.
        self.last_start = offset;
        self.offset = end;
        Ok(Step::Section(Section {
            offset,
            cid,
            data_offset: end - data_len,
            data_len: data_len as u32, // At most `section_len_max`, which `new` caps.
        }))
    }

    fn padding(&mut self, buf: &[u8], eof: bool) -> Result<Step, CarError> {
        let n_zeros = buf.iter().take_while(|&&byte| byte == 0).count();
        self.offset = self.offset.saturating_add(n_zeros as u64);
        self.last_start = self.offset;
        if n_zeros < buf.len() {
            return Err(CarError::ZeroSection {
                offset: self.offset,
            });
        }
        if eof {
            Ok(Step::End)
        } else {
            Ok(Step::Need(1))
        }
    }

    fn length(&self, buf: &[u8]) -> Result<Option<(u64, usize)>, CarError> {
        varint::read(buf).map_err(|source| CarError::VarintInvalid {
            offset: self.offset,
            source,
        })
    }

    /// Asks for `more` bytes than there are, which the end of input turns into `Truncated`.
    fn need(&self, buf: &[u8], more: u64, eof: bool) -> Result<Step, CarError> {
        if eof {
            return Err(CarError::Truncated {
                offset: self.offset,
            });
        }
        let more = usize::try_from(more).unwrap_or(usize::MAX);
        Ok(Step::Need(buf.len().saturating_add(more)))
    }

    /// Whether `len` bytes from here lie before the end, as far as that is known.
    fn check_room(&self, len: u64) -> Result<(), CarError> {
        let offset = self.offset;
        if self.end.is_some_and(|end| end.saturating_sub(offset) < len) {
            return Err(CarError::Truncated { offset });
        }
        Ok(())
    }
}

fn part(buf: &[u8], start: u64, end: u64) -> Option<&[u8]> {
    buf.get(usize::try_from(start).ok()?..usize::try_from(end).ok()?)
}

/// Reads `{roots: [link…], version: 1}`; other keys are skipped.
fn header_roots(body: &[u8], offset: u64, roots_max: usize) -> Result<Vec<Cid>, CarError> {
    let cbor = |source| CarError::HeaderCbor { offset, source };
    let invalid = |reason| CarError::HeaderInvalid { offset, reason };
    let mut reader = Reader::new(body);
    let Head::Map(n_pairs) = reader.head().map_err(cbor)? else {
        return Err(invalid("it is no map"));
    };
    let (mut roots, mut version) = (None, None);
    for _ in 0..n_pairs {
        let Head::Text(key) = reader.head().map_err(cbor)? else {
            return Err(invalid("a key is no text"));
        };
        match reader.slice(key) {
            b"version" if version.is_none() => match reader.head().map_err(cbor)? {
                Head::Unsigned(number) => version = Some(number),
                _ => return Err(invalid("the version is no number")),
            },
            b"roots" if roots.is_none() => {
                roots = Some(read_roots(&mut reader, offset, roots_max)?);
            }
            b"version" | b"roots" => return Err(invalid("a key is there twice")),
            _ => reader.value(|_| Ok(())).map_err(cbor)?,
        }
    }
    if reader.at() != body.len() {
        return Err(invalid("bytes follow the map"));
    }
    match (version, roots) {
        (Some(1), Some(roots)) => Ok(roots),
        (Some(1), None) => Err(invalid("it has no roots")),
        (Some(version), _) => Err(CarError::VersionUnknown { offset, version }),
        (None, _) => Err(invalid("it has no version")),
    }
}

fn read_roots(
    reader: &mut Reader<'_>,
    offset: u64,
    roots_max: usize,
) -> Result<Vec<Cid>, CarError> {
    let cbor = |source| CarError::HeaderCbor { offset, source };
    let invalid = |reason| CarError::HeaderInvalid { offset, reason };
    let Head::List(n_roots) = reader.head().map_err(cbor)? else {
        return Err(invalid("the roots are no list"));
    };
    if n_roots > roots_max as u64 {
        return Err(CarError::TooManyRoots { offset, roots_max });
    }
    let mut roots = Vec::new();
    for _ in 0..n_roots {
        let start = reader.at();
        let Head::Tag(42) = reader.head().map_err(cbor)? else {
            return Err(invalid("a root is no link"));
        };
        let span = reader.link(start).map_err(cbor)?;
        roots.push(reader.cid(span).map_err(cbor)?);
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
