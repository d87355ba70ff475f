//! dag-cbor: links and paths of a block.
//!
//! In       a block of CBOR in which tag 42 marks links.
//! Out      spans of the CIDs; the value or link that a path leads to.
//! Limits   [`NESTING_MAX`] containers inside each other; a count that the rest of the block
//!          cannot hold is refused; memory is eight bytes a container that is open.
//! Not here strictness: found data has long forms of numbers, unsorted or doubled keys (the first
//!          counts for paths) and other tags. Only lengths left open are refused. No encoder.
//!
//! Spec: <https://ipld.io/specs/codecs/dag-cbor/spec/>

use std::ops::Range;

use bytes::Bytes;

use super::{DagError, LinkForm, Links, NESTING_MAX, PathStep, list_index};
use crate::Cid;
use crate::cid;

/// The tag of a link.
const TAG_LINK: u64 = 42;

/// Finds the links of a dag-cbor block.
///
/// # Errors
/// [`DagError`] if the block is not one whole CBOR value, or a link is no byte string.
pub fn links(block: &Bytes) -> Result<Links, DagError> {
    let mut links = Links::new(block.clone(), LinkForm::Binary)?;
    let mut reader = Reader::new(block);
    reader.value(|span| links.push(span))?;
    if reader.at != block.len() {
        return Err(DagError::malformed(reader.at, "bytes follow the value"));
    }
    Ok(links)
}

/// Follows a path through the maps and lists of a block, up to a link or the end of the path.
///
/// A path without segments ends at the block itself, even if the whole block is a link. What
/// comes after the place that is reached is not looked at.
///
/// # Errors
/// [`DagError`] if the bytes on the way are no dag-cbor, or the link is no CID.
pub fn resolve<S: AsRef<[u8]>>(block: &[u8], segments: &[S]) -> Result<PathStep, DagError> {
    let mut reader = Reader::new(block);
    let mut used = 0;
    if segments.is_empty() {
        return Ok(PathStep::Value { used });
    }
    loop {
        let start = reader.at;
        let head = reader.head()?;
        let segment = segments.get(used).map(AsRef::as_ref);
        let found = match (head, segment) {
            (Head::Tag(TAG_LINK), _) => {
                let span = reader.link(start)?;
                return Ok(PathStep::Link {
                    cid: reader.cid(span)?,
                    used,
                });
            }
            (Head::Tag(_), _) => continue,
            (_, None) => return Ok(PathStep::Value { used }),
            (Head::Map(len), Some(key)) => reader.enter_key(len, key)?,
            (Head::List(len), Some(index)) => reader.enter_index(len, index)?,
            (_, Some(_)) => false,
        };
        if !found {
            return Ok(PathStep::Missing { used });
        }
        used += 1;
    }
}

/// The head of one CBOR item. Strings are read whole; containers are entered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Head {
    Unsigned(u64),
    Bytes(Range<usize>),
    Text(Range<usize>),
    /// How many items follow.
    List(u64),
    /// How many pairs follow.
    Map(u64),
    /// The tagged item follows.
    Tag(u64),
    /// A negative number, a float, a truth value, null.
    Other,
}

/// Reads items one after the other; never looks outside of `bytes`.
#[derive(Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    /// Where the next item starts; at most `bytes.len()`.
    at: usize,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    pub(crate) fn at(&self) -> usize {
        self.at
    }

    pub(crate) fn slice(&self, span: Range<usize>) -> &'a [u8] {
        self.bytes.get(span).unwrap_or_default()
    }

    /// Reads the next head. A string's bytes and the fewest bytes of a container's items are
    /// known to be there.
    pub(crate) fn head(&mut self) -> Result<Head, DagError> {
        let start = self.at;
        let cut = DagError::Truncated { offset: start };
        let Some(&first) = self.bytes.get(start) else {
            return Err(cut);
        };
        let (major, info) = (first >> 5, first & 0x1f);
        let extra_len = match info {
            0..=23 => 0,
            24..=27 => 1usize << (info - 24),
            31 => return Err(DagError::malformed(start, "length is left open")),
            _ => return Err(DagError::malformed(start, "reserved length")),
        };
        let Some(extra) = self.bytes.get(start + 1..start + 1 + extra_len) else {
            return Err(cut);
        };
        let argument = if extra_len == 0 {
            u64::from(info)
        } else {
            extra
                .iter()
                .fold(0, |value, &byte| value << 8 | u64::from(byte))
        };
        let body = start + 1 + extra_len;
        let left = (self.bytes.len() - body) as u64; // `extra` ends inside of the bytes.
        self.at = body;
        Ok(match major {
            0 => Head::Unsigned(argument),
            2 | 3 => {
                if argument > left {
                    return Err(cut);
                }
                self.at = body + argument as usize; // At most `left`.
                if major == 2 {
                    Head::Bytes(body..self.at)
                } else {
                    Head::Text(body..self.at)
                }
            }
            4 if argument > left => return Err(cut),
            4 => Head::List(argument),
            5 if argument > left / 2 => return Err(cut),
            5 => Head::Map(argument),
            6 => Head::Tag(argument),
            7 if info < 20 || info == 24 => {
                return Err(DagError::malformed(start, "unknown simple value"));
            }
            _ => Head::Other,
        })
    }

    /// Reads the rest of a link whose tag, at `start`, was the last head: the span of its CID.
    pub(crate) fn link(&mut self, start: usize) -> Result<Range<usize>, DagError> {
        let Head::Bytes(span) = self.head()? else {
            return Err(DagError::malformed(start, "link is no byte string"));
        };
        // The base prefix "identity", which other bases may not replace.
        if self.bytes.get(span.start) != Some(&0) || span.is_empty() {
            return Err(DagError::malformed(
                start,
                "link does not start with a zero byte",
            ));
        }
        Ok(span.start + 1..span.end)
    }

    pub(crate) fn cid(&self, span: Range<usize>) -> Result<Cid, DagError> {
        let offset = span.start;
        cid::parse_bytes(self.slice(span)).map_err(|source| DagError::Link { offset, source })
    }

    /// Reads one value with all that is in it; `on_link` gets the span of each CID in order.
    pub(crate) fn value(
        &mut self,
        mut on_link: impl FnMut(Range<usize>) -> Result<(), DagError>,
    ) -> Result<(), DagError> {
        // How many values are still to come in each open container; never zero.
        let mut open: Vec<u64> = Vec::new();
        loop {
            let start = self.at;
            let n_items = match self.head()? {
                Head::Tag(TAG_LINK) => {
                    on_link(self.link(start)?)?;
                    0
                }
                Head::Tag(_) => continue, // The value is what follows.
                Head::List(len) => len,
                Head::Map(len) => len * 2, // At most the bytes that are left.
                _ => 0,
            };
            if n_items > 0 {
                if open.len() >= NESTING_MAX {
                    return Err(DagError::TooDeep { offset: start });
                }
                open.push(n_items);
                continue;
            }
            loop {
                let Some(left) = open.last_mut() else {
                    return Ok(());
                };
                *left -= 1;
                if *left > 0 {
                    break;
                }
                open.pop();
            }
        }
    }

    /// Moves to the value of `key` in a map of `len` pairs that was just entered.
    fn enter_key(&mut self, len: u64, key: &[u8]) -> Result<bool, DagError> {
        for _ in 0..len {
            let start = self.at;
            if let Head::Text(span) = self.head()? {
                if self.slice(span) == key {
                    return Ok(true);
                }
            } else {
                self.at = start; // A key of another kind: no path leads there.
                self.value(|_| Ok(()))?;
            }
            self.value(|_| Ok(()))?;
        }
        Ok(false)
    }

    /// Moves to the item `index` of a list of `len` items that was just entered.
    fn enter_index(&mut self, len: u64, index: &[u8]) -> Result<bool, DagError> {
        let Some(index) = list_index(index).filter(|&index| index < len) else {
            return Ok(false);
        };
        for _ in 0..index {
            self.value(|_| Ok(()))?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
