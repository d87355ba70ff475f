//! The links of a block, whatever its codec.
//!
//! In       a verified block and its codec.
//! Out      [`Links`]: its CIDs in document order, as spans of the block; no tree is built.
//! Limits   containers nest at most [`NESTING_MAX`] deep; nothing is allocated from a count that
//!          the block claims; eight bytes of memory a link, besides the block itself.
//! Not here what the links mean (`unixfs`), which are followed (`walk`), hashes (`verify`).
//!
//! Spec: <https://ipld.io/docs/codecs/known/>

pub mod cbor;
pub mod git;
pub mod jose;
pub mod json;
pub mod pb;

use std::ops::Range;

use bytes::Bytes;

use crate::Cid;
use crate::cid::{self, CidError};

/// How deep maps and lists may nest in one block. go-ipld-prime stops there, too.
pub const NESTING_MAX: usize = 1024;

/// Why a block is not what its codec says. `offset` is the byte of the block.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DagError {
    /// The block ends inside a value.
    #[error("block ends inside the value at byte {offset}")]
    Truncated {
        /// Where the value starts.
        offset: usize,
    },
    /// The bytes break a rule of the codec.
    #[error("malformed block at byte {offset}: {reason}")]
    Malformed {
        /// Where.
        offset: usize,
        /// Which rule.
        reason: &'static str,
    },
    /// Maps and lists nest deeper than [`NESTING_MAX`].
    #[error("block nests deeper than {NESTING_MAX} at byte {offset}")]
    TooDeep {
        /// Where the first container too many starts.
        offset: usize,
    },
    /// The block is longer than spans can say.
    #[error("block of {len} bytes is too long for its links to be listed")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// A link is no CID.
    #[error("link at byte {offset} is no cid")]
    Link {
        /// Where the CID should start.
        offset: usize,
        /// What is wrong with it.
        source: CidError,
    },
}

impl DagError {
    pub(crate) const fn malformed(offset: usize, reason: &'static str) -> Self {
        Self::Malformed { offset, reason }
    }
}

/// How CIDs stand in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LinkForm {
    /// As bytes (dag-pb, dag-cbor, dag-jose; the span is without the `00` that stands before a link
    /// in CBOR).
    #[default]
    Binary,
    /// As text (dag-json; the span is what stands between the quotes).
    Text,
    /// As names of git objects, of 20 bytes or 40 hexadecimal digits.
    Git,
}

/// The links of one block in document order.
///
/// Keeps the block alive and eight bytes a link. CIDs are parsed when asked for.
#[derive(Debug, Clone, Default)]
pub struct Links {
    block: Bytes,
    form: LinkForm,
    /// Offset and length; inside of `block`, which is at most 4 GiB.
    spans: Vec<(u32, u32)>,
}

impl Links {
    /// No links as yet; the spans that [`push`](Self::push) takes are of `block`.
    ///
    /// # Errors
    /// `TooLong` for a block over 4 GiB.
    pub fn new(block: Bytes, form: LinkForm) -> Result<Self, DagError> {
        if u32::try_from(block.len()).is_err() {
            return Err(DagError::TooLong { len: block.len() });
        }
        Ok(Self {
            block,
            form,
            spans: Vec::new(),
        })
    }

    /// Appends a link whose CID lies at `span` of the block.
    ///
    /// # Errors
    /// `Malformed` if the span is not inside of the block.
    pub fn push(&mut self, span: Range<usize>) -> Result<(), DagError> {
        if span.start > span.end || span.end > self.block.len() {
            return Err(DagError::malformed(span.start, "link outside of the block"));
        }
        self.spans
            .push((span.start as u32, (span.end - span.start) as u32)); // See `new`.
        Ok(())
    }

    /// How many links there are, repetitions included.
    pub fn len(&self) -> usize {
        self.spans.len()
    }

    /// Whether the block has no links.
    pub fn is_empty(&self) -> bool {
        self.spans.is_empty()
    }

    /// The link with this index; `None` past the last.
    pub fn get(&self, index: usize) -> Option<Result<Cid, DagError>> {
        let &(offset, len) = self.spans.get(index)?;
        let (start, end) = (offset as usize, offset as usize + len as usize);
        let bytes = self.block.get(start..end)?;
        let cid = match self.form {
            LinkForm::Binary => cid::parse_bytes(bytes),
            LinkForm::Git => {
                let no_name = DagError::malformed(start, "no name of a git object");
                return Some(git::cid(bytes).ok_or(no_name));
            }
            LinkForm::Text => match std::str::from_utf8(bytes) {
                Ok(text) => cid::parse_text(text),
                Err(_) => return Some(Err(DagError::malformed(start, "text is not UTF-8"))),
            },
        };
        Some(cid.map_err(|source| DagError::Link {
            offset: start,
            source,
        }))
    }

    /// All links in order.
    pub fn iter(&self) -> impl Iterator<Item = Result<Cid, DagError>> + '_ {
        (0..self.len()).filter_map(|index| self.get(index))
    }

    /// Bytes of memory that are held: the block and the spans.
    pub fn memory_len(&self) -> usize {
        let span_len = size_of::<(u32, u32)>();
        self.block
            .len()
            .saturating_add(self.spans.capacity().saturating_mul(span_len))
    }
}

/// What is known of the links in blocks of a codec.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linking {
    /// [`links`] reads them.
    Read,
    /// There are none: such blocks are bytes or plain data.
    Never,
    /// There may be some, and they are not read here.
    Unknown,
}

/// What is known of the links in blocks of `codec`. A codec that is not listed here is taken for
/// one with links: a DAG that is cut must not look whole.
#[must_use]
pub const fn linking(codec: u64) -> Linking {
    match codec {
        cid::DAG_PB | cid::DAG_CBOR | cid::DAG_JSON | cid::DAG_JOSE | cid::GIT_RAW => Linking::Read,
        // Identity, CBOR, raw, libp2p-key, JSON, MessagePack; CARs, IPNS and peer records, indexes
        // of CARs, which name blocks and do not link to them; Filecoin's commitments.
        0x00
        | cid::CBOR
        | cid::RAW
        | 0x72
        | cid::JSON
        | 0x0201
        | 0x0202
        | 0x0300
        | 0x0301
        | 0x0400
        | 0x0401
        | 0xf101
        | 0xf102 => Linking::Never,
        _ => Linking::Unknown,
    }
}

/// Finds the links of `block`. Codecs that have none, and those unknown here, give none: see
/// [`linking`].
///
/// # Errors
/// [`DagError`] if the block is not what its codec says. That a link is a CID shows only when it
/// is asked for.
pub fn links(codec: u64, block: &Bytes) -> Result<Links, DagError> {
    match codec {
        cid::DAG_PB => pb::links(block),
        cid::DAG_CBOR => cbor::links(block),
        cid::DAG_JSON => json::links(block),
        cid::DAG_JOSE => jose::links(block),
        cid::GIT_RAW => git::links(block),
        _ => Ok(Links::default()),
    }
}

/// How far a path leads inside one block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathStep {
    /// A link is reached; what is left of the path goes on in the block it names.
    Link {
        /// The link.
        cid: Cid,
        /// How many segments led here.
        used: usize,
    },
    /// The path ends at a value inside of this block.
    Value {
        /// How many segments led here: all of them.
        used: usize,
    },
    /// There is no such key or index, or the value is no container.
    Missing {
        /// How many segments could be followed; the next one is not there.
        used: usize,
    },
}

/// A path segment as the index of a list: decimal, no sign, no zeros before it.
fn list_index(segment: &[u8]) -> Option<u64> {
    let is_plain = segment.iter().all(u8::is_ascii_digit);
    if !is_plain || (segment.len() > 1 && segment.starts_with(b"0")) {
        return None;
    }
    std::str::from_utf8(segment).ok()?.parse().ok()
}
