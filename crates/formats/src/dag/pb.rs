//! dag-pb: the protobuf form of a UnixFS block.
//!
//! In       the bytes of one block.
//! Out      [`PbNode`]: its data and a lazy iterator over its links, both borrowed from the block.
//!          Writing: the one canonical form (links sorted by name, then data).
//! Limits   none of its own: memory is constant, time linear in the block, whatever it claims.
//! Not here UnixFS (`unixfs::node`), which lives in the data field; whether a link's CID is
//!          well-formed, which the one who follows the link finds out.
//!
//! Reading takes what the Go implementation takes, and link fields in any order besides: blocks
//! from before the canonical form was fixed are still around. Whatever leaves two readings open
//! (a field twice, links before and after the data, unknown fields) is refused.
//!
//! Spec: <https://ipld.io/specs/codecs/dag-pb/spec/>

use std::ops::Range;

use bytes::Bytes;

use super::{DagError, LinkForm, Links};

const NODE_DATA: u32 = 1;
const NODE_LINKS: u32 = 2;
const LINK_HASH: u32 = 1;
const LINK_NAME: u32 = 2;
const LINK_TSIZE: u32 = 3;

/// Field tag of a length-delimited field with a number under 16.
const fn tag_bytes(field: u32) -> u8 {
    ((field << 3) | 2) as u8
}

/// Why bytes are not a dag-pb block. `offset` is counted from the start of the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PbError {
    /// The bytes end inside a field.
    #[error("message ends inside the field at byte {offset}")]
    Truncated {
        /// Where the field starts.
        offset: usize,
    },
    /// A number is longer than 64 bits.
    #[error("number too long at byte {offset}")]
    VarintInvalid {
        /// Where the number starts.
        offset: usize,
    },
    /// A field that the format does not have, or has in another wire type.
    #[error("field {number} at byte {offset} does not belong here")]
    FieldUnknown {
        /// Where the field starts.
        offset: usize,
        /// Its number.
        number: u32,
    },
    /// A field that may appear once appears again.
    #[error("field {number} appears again at byte {offset}")]
    FieldTwice {
        /// Where the second one starts.
        offset: usize,
        /// Its number.
        number: u32,
    },
    /// A link without a CID.
    #[error("link at byte {offset} names no block")]
    LinkWithoutHash {
        /// Where the link starts.
        offset: usize,
    },
}

/// One link, borrowed from its block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PbLink<'a> {
    /// The binary CID as it stands in the block, not checked.
    pub cid: &'a [u8],
    /// The name; empty when the field is absent.
    pub name: &'a [u8],
    /// Bytes of all blocks below, as whoever wrote the block claims.
    pub tsize: Option<u64>,
}

/// A parsed block. Every link has been looked at once, so that iterating cannot fail.
#[derive(Debug, Clone)]
pub struct PbNode<'a> {
    /// The data field.
    pub data: Option<&'a [u8]>,
    n_links: usize,
    links: &'a [u8],
    links_offset: usize,
}

impl<'a> PbNode<'a> {
    /// Reads `block` through once.
    ///
    /// # Errors
    /// The first field that is cut, unknown, ambiguous, or a link without a CID.
    pub fn parse(block: &'a [u8]) -> Result<Self, PbError> {
        let mut data = None;
        let mut n_links = 0;
        let mut links = 0..0;
        let mut fields = Fields::new(block);
        while let Some(field) = fields.next()? {
            let offset = field.offset;
            match (field.number, field.value) {
                (NODE_DATA, Value::Bytes(bytes)) => {
                    if data.replace(bytes).is_some() {
                        return Err(PbError::FieldTwice {
                            offset,
                            number: NODE_DATA,
                        });
                    }
                }
                (NODE_LINKS, Value::Bytes(link)) => {
                    if n_links == 0 {
                        links.start = offset;
                    } else if offset != links.end {
                        return Err(PbError::FieldTwice {
                            offset,
                            number: NODE_LINKS,
                        });
                    }
                    links.end = fields.pos;
                    n_links += 1;
                    parse_link(link).map_err(|error| error.moved(fields.pos - link.len()))?;
                }
                (number, _) => return Err(PbError::FieldUnknown { offset, number }),
            }
        }
        let links_offset = links.start;
        Ok(Self {
            data,
            n_links,
            links: block.get(links).unwrap_or_default(),
            links_offset,
        })
    }

    /// How many links the block has.
    #[must_use]
    pub fn n_links(&self) -> usize {
        self.n_links
    }

    /// The links in document order.
    #[must_use]
    pub fn links(&self) -> PbLinks<'a> {
        PbLinks {
            links: self.links,
            pos: 0,
        }
    }

    /// Where in the block the links stand: for [`next_link`], which needs no borrowed node.
    #[must_use]
    pub fn links_range(&self) -> Range<usize> {
        self.links_offset..self.links_offset + self.links.len()
    }
}

/// Iterator over the links of a [`PbNode`].
#[derive(Debug, Clone)]
pub struct PbLinks<'a> {
    links: &'a [u8],
    pos: usize,
}

impl<'a> Iterator for PbLinks<'a> {
    type Item = PbLink<'a>;

    fn next(&mut self) -> Option<PbLink<'a>> {
        next_link(self.links, &mut self.pos)
    }
}

/// Reads the link at `pos` and moves `pos` behind it. `links` are the bytes that
/// [`PbNode::links_range`] names; a position elsewhere gives `None`, never a panic.
pub fn next_link<'a>(links: &'a [u8], pos: &mut usize) -> Option<PbLink<'a>> {
    let mut fields = Fields {
        buf: links,
        pos: *pos,
    };
    let field = fields.next().ok()??;
    *pos = fields.pos;
    match field.value {
        Value::Bytes(link) => parse_link(link).ok(),
        _ => None,
    }
}

fn parse_link(message: &[u8]) -> Result<PbLink<'_>, PbError> {
    let (mut cid, mut name, mut tsize) = (None, None, None);
    let mut fields = Fields::new(message);
    while let Some(field) = fields.next()? {
        let number = field.number;
        let again = match (number, field.value) {
            (LINK_HASH, Value::Bytes(bytes)) => cid.replace(bytes).is_some(),
            (LINK_NAME, Value::Bytes(bytes)) => name.replace(bytes).is_some(),
            (LINK_TSIZE, Value::Varint(size)) => tsize.replace(size).is_some(),
            _ => {
                return Err(PbError::FieldUnknown {
                    offset: field.offset,
                    number,
                });
            }
        };
        if again {
            return Err(PbError::FieldTwice {
                offset: field.offset,
                number,
            });
        }
    }
    let cid = cid.ok_or(PbError::LinkWithoutHash { offset: 0 })?;
    Ok(PbLink {
        cid,
        name: name.unwrap_or_default(),
        tsize,
    })
}

/// The links of a dag-pb block.
///
/// # Errors
/// [`DagError`] if the block is no dag-pb.
pub fn links(block: &Bytes) -> Result<Links, DagError> {
    PbNode::parse(block)?;
    let mut links = Links::new(block.clone(), LinkForm::Binary)?;
    let mut node = Fields::new(block);
    while let Some(field) = node.next()? {
        let (NODE_LINKS, Value::Bytes(message)) = (field.number, field.value) else {
            continue;
        };
        let start = node.pos - message.len();
        let mut link = Fields::new(message);
        while let Some(field) = link.next()? {
            if let (LINK_HASH, Value::Bytes(cid)) = (field.number, field.value) {
                links.push(start + link.pos - cid.len()..start + link.pos)?;
            }
        }
    }
    Ok(links)
}

/// Bytes one link takes in a block, its own tag and length included.
#[must_use]
pub fn link_len(cid_len: usize, name_len: usize, tsize: u64) -> usize {
    let message_len = link_message_len(cid_len, name_len, tsize);
    1 + varint_len(message_len as u64) + message_len
}

fn link_message_len(cid_len: usize, name_len: usize, tsize: u64) -> usize {
    let cid_field = 1 + varint_len(cid_len as u64) + cid_len;
    let name_field = 1 + varint_len(name_len as u64) + name_len;
    cid_field + name_field + 1 + varint_len(tsize)
}

/// Appends one link. Links come before the data and sorted by name; the caller sees to both.
///
/// The name is written even when empty, as every implementation does: CIDs depend on it.
pub fn put_link(out: &mut Vec<u8>, cid: &[u8], name: &[u8], tsize: u64) {
    out.push(tag_bytes(NODE_LINKS));
    put_varint(out, link_message_len(cid.len(), name.len(), tsize) as u64);
    put_bytes(out, LINK_HASH, cid);
    put_bytes(out, LINK_NAME, name);
    put_number(out, LINK_TSIZE, tsize);
}

/// Appends the data field, the last one of a block.
pub fn put_data(out: &mut Vec<u8>, data: &[u8]) {
    put_bytes(out, NODE_DATA, data);
}

/// The canonical block of `links` and `data`. Sorts the links by name, equal names keeping
/// their order.
#[must_use]
pub fn encode(links: &mut [PbLink<'_>], data: Option<&[u8]>) -> Vec<u8> {
    links.sort_by(|a, b| a.name.cmp(b.name));
    let mut out = Vec::new();
    for link in links.iter() {
        put_link(&mut out, link.cid, link.name, link.tsize.unwrap_or(0));
    }
    if let Some(data) = data {
        put_data(&mut out, data);
    }
    out
}

// Protobuf itself, as far as dag-pb and UnixFS need it.

/// A field's value by wire type.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Value<'a> {
    Varint(u64),
    Bytes(&'a [u8]),
    /// A fixed-width number; none of our messages needs its value.
    Fixed,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Field<'a> {
    /// Where the field's tag starts.
    pub(crate) offset: usize,
    pub(crate) number: u32,
    pub(crate) value: Value<'a>,
}

/// Walks over the fields of one message.
#[derive(Debug, Clone)]
pub(crate) struct Fields<'a> {
    buf: &'a [u8],
    pub(crate) pos: usize,
}

impl<'a> Fields<'a> {
    pub(crate) fn new(buf: &'a [u8]) -> Self {
        Self { buf, pos: 0 }
    }

    pub(crate) fn at(buf: &'a [u8], pos: usize) -> Self {
        Self { buf, pos }
    }

    pub(crate) fn next(&mut self) -> Result<Option<Field<'a>>, PbError> {
        if self.pos >= self.buf.len() {
            return Ok(None);
        }
        let offset = self.pos;
        let tag = self.varint(offset)?;
        let number = u32::try_from(tag >> 3).unwrap_or(0);
        let value = match tag & 7 {
            0 => Value::Varint(self.varint(offset)?),
            1 => self.take(8, offset).map(|_| Value::Fixed)?,
            2 => {
                let len = self.varint(offset)?;
                let len = usize::try_from(len).map_err(|_| PbError::Truncated { offset })?;
                Value::Bytes(self.take(len, offset)?)
            }
            5 => self.take(4, offset).map(|_| Value::Fixed)?,
            _ => return Err(PbError::FieldUnknown { offset, number }),
        };
        if number == 0 {
            return Err(PbError::FieldUnknown { offset, number });
        }
        Ok(Some(Field {
            offset,
            number,
            value,
        }))
    }

    /// A number of at most ten bytes. Unlike in CIDs and CARs, longer forms than needed are legal.
    fn varint(&mut self, offset: usize) -> Result<u64, PbError> {
        let rest = self.buf.get(self.pos..).unwrap_or_default();
        let mut value = 0_u64;
        for (index, &byte) in rest.iter().take(10).enumerate() {
            if index == 9 && byte > 1 {
                break;
            }
            value |= u64::from(byte & 0x7f) << (7 * index);
            if byte < 0x80 {
                self.pos += index + 1;
                return Ok(value);
            }
        }
        if rest.len() < 10 {
            return Err(PbError::Truncated { offset });
        }
        Err(PbError::VarintInvalid { offset: self.pos })
    }

    fn take(&mut self, len: usize, offset: usize) -> Result<&'a [u8], PbError> {
        let end = self
            .pos
            .checked_add(len)
            .ok_or(PbError::Truncated { offset })?;
        let bytes = self
            .buf
            .get(self.pos..end)
            .ok_or(PbError::Truncated { offset })?;
        self.pos = end;
        Ok(bytes)
    }
}

/// Reads one number at the front of `buf`: an element of a packed field.
pub(crate) fn packed_varint(buf: &[u8]) -> Result<(u64, usize), PbError> {
    let mut fields = Fields::new(buf);
    let value = fields.varint(0)?;
    Ok((value, fields.pos))
}

pub(crate) fn varint_len(value: u64) -> usize {
    (64 - (value | 1).leading_zeros() as usize).div_ceil(7)
}

pub(crate) fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push((value as u8) | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

pub(crate) fn put_bytes(out: &mut Vec<u8>, field: u32, bytes: &[u8]) {
    out.push(tag_bytes(field));
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

pub(crate) fn put_number(out: &mut Vec<u8>, field: u32, value: u64) {
    out.push((field << 3) as u8);
    put_varint(out, value);
}

impl PbError {
    /// The same error, counted from `start` bytes earlier: for messages inside messages.
    fn moved(self, start: usize) -> Self {
        match self {
            Self::Truncated { offset } => Self::Truncated {
                offset: offset + start,
            },
            Self::VarintInvalid { offset } => Self::VarintInvalid {
                offset: offset + start,
            },
            Self::FieldUnknown { offset, number } => Self::FieldUnknown {
                offset: offset + start,
                number,
            },
            Self::FieldTwice { offset, number } => Self::FieldTwice {
                offset: offset + start,
                number,
            },
            Self::LinkWithoutHash { offset } => Self::LinkWithoutHash {
                offset: offset + start,
            },
        }
    }
}

impl From<PbError> for DagError {
    fn from(error: PbError) -> Self {
        match error {
            PbError::Truncated { offset } => Self::Truncated { offset },
            PbError::VarintInvalid { offset } => Self::malformed(offset, "number too long"),
            PbError::FieldUnknown { offset, .. } => {
                Self::malformed(offset, "field does not belong here")
            }
            PbError::FieldTwice { offset, .. } => Self::malformed(offset, "field appears again"),
            PbError::LinkWithoutHash { offset } => Self::malformed(offset, "link names no block"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Vec<u8> {
        let mut links = [
            PbLink {
                cid: &[1, 0x55, 0, 0],
                name: b"b",
                tsize: Some(300),
            },
            PbLink {
                cid: &[1, 0x55, 0, 1, 9],
                name: b"a",
                tsize: Some(0),
            },
        ];
        encode(&mut links, Some(b"data"))
    }

    #[test]
    fn what_was_written_is_read_back_sorted() {
        let block = sample();
        let node = PbNode::parse(&block).unwrap();
        assert_eq!(node.data, Some(&b"data"[..]));
        assert_eq!(node.n_links(), 2);
        let links: Vec<_> = node.links().collect();
        assert_eq!(
            links[0],
            PbLink {
                cid: &[1, 0x55, 0, 1, 9],
                name: b"a",
                tsize: Some(0)
            }
        );
        assert_eq!(
            links[1],
            PbLink {
                cid: &[1, 0x55, 0, 0],
                name: b"b",
                tsize: Some(300)
            }
        );
        let lens: usize = links
            .iter()
            .map(|l| link_len(l.cid.len(), l.name.len(), l.tsize.unwrap()))
            .sum();
        assert_eq!(lens, node.links_range().len());
    }

    #[test]
    fn data_before_links_and_unsorted_links_are_read() {
        let mut block = Vec::new();
        put_data(&mut block, b"x");
        put_link(&mut block, &[1], b"z", 1);
        put_link(&mut block, &[2], b"a", 1);
        let node = PbNode::parse(&block).unwrap();
        assert_eq!(node.data, Some(&b"x"[..]));
        assert_eq!(
            node.links().map(|link| link.cid[0]).collect::<Vec<_>>(),
            [1, 2]
        );
    }

    /// The invalid forms of the dag-pb specification's fixtures.
    #[test]
    fn ambiguous_and_malformed_forms_are_refused() {
        for (hex, why) in [
            (&[0x0a, 1, 0, 0x0a, 1, 0][..], "data twice"),
            (
                &[0x12, 3, 0x0a, 1, 0, 0x0a, 0, 0x12, 3, 0x0a, 1, 0],
                "links around data",
            ),
            (&[0x12, 0], "no hash"),
            (&[0x12, 6, 0x0a, 1, 0, 0x0a, 1, 0], "hash twice"),
            (&[0x12, 7, 0x0a, 1, 0, 0x12, 0, 0x12, 0], "name twice"),
            (&[0x12, 7, 0x0a, 1, 0, 0x18, 0, 0x18, 0], "tsize twice"),
            (&[0x12, 5, 0x0a, 1, 0, 0x20, 0], "unknown link field"),
            (&[0x12, 2, 0x08, 0], "hash as a number"),
            (&[0x12, 5, 0x0a, 1, 0, 0x1a, 0], "tsize as bytes"),
            (&[0x18, 0], "unknown node field"),
            (&[0x08, 0], "data as a number"),
            (&[0x0b, 0x0c], "group"),
            (&[0x02, 0], "field number zero"),
            (&[0x0a, 2, 0], "cut"),
            (
                &[
                    0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1,
                ],
                "length 2^64-1",
            ),
            (
                &[
                    0x0a, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2,
                ],
                "65 bits",
            ),
            (&[0xff], "cut tag"),
        ] {
            assert!(PbNode::parse(hex).is_err(), "{why}");
        }
        assert_eq!(PbNode::parse(&[]).unwrap().n_links(), 0);
    }

    #[test]
    fn every_cut_inside_a_field_is_reported() {
        let block = sample();
        for cut in 0..=block.len() {
            let whole = PbNode::parse(&block[..cut]).is_ok();
            let boundary = cut == block.len() || {
                let mut fields = Fields::new(&block);
                let mut at_end = cut == 0;
                while let Ok(Some(_)) = fields.next() {
                    at_end |= fields.pos == cut;
                }
                at_end
            };
            assert_eq!(whole, boundary, "cut at {cut}");
        }
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(node) = PbNode::parse(&bytes) {
                prop_assert_eq!(node.links().count(), node.n_links());
            }
            let mut pos = 3;
            while next_link(&bytes, &mut pos).is_some() {}
        }

        #[test]
        fn flipped_bytes_never_panic(at in 0..24_usize, byte in any::<u8>()) {
            let mut block = sample();
            block[at] = byte;
            if let Ok(node) = PbNode::parse(&block) {
                prop_assert_eq!(node.links().count(), node.n_links());
            }
        }

        #[test]
        fn numbers_take_the_bytes_foretold(value in any::<u64>()) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(packed_varint(&out), Ok((value, out.len())));
        }
    }
}
