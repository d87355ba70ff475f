//! dag-json: links and paths of a block.
//!
//! In       a block of JSON in which `{"/":"<cid>"}` is a link and `{"/":{"bytes":"…"}}` bytes.
//! Out      spans of the CIDs; the value or link that a path leads to.
//! Limits   [`NESTING_MAX`] containers inside each other; memory is one byte a container that is
//!          open.
//! Not here strictness about white space, order of keys and doubled keys (the first counts for
//!          paths). No encoder.
//!
//! Spec: <https://ipld.io/specs/codecs/dag-json/spec/>

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;

use super::{DagError, LinkForm, Links, NESTING_MAX, PathStep, list_index};
use crate::cid;

/// Finds the links of a dag-json block.
///
/// # Errors
/// [`DagError`] if the block is not one whole JSON value.
pub fn links(block: &Bytes) -> Result<Links, DagError> {
    if let Err(error) = std::str::from_utf8(block) {
        return Err(DagError::malformed(
            error.valid_up_to(),
            "text is not UTF-8",
        ));
    }
    let mut links = Links::new(block.clone(), LinkForm::Text)?;
    let mut reader = Reader {
        bytes: block,
        at: 0,
    };
    reader.value(|span| links.push(span))?;
    reader.space();
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
/// [`DagError`] if the bytes on the way are no dag-json, or the link is no CID.
pub fn resolve<S: AsRef<[u8]>>(block: &[u8], segments: &[S]) -> Result<PathStep, DagError> {
    let mut reader = Reader {
        bytes: block,
        at: 0,
    };
    let mut used = 0;
    if segments.is_empty() {
        return Ok(PathStep::Value { used });
    }
    loop {
        reader.space();
        if let Some(span) = reader.link()? {
            return Ok(PathStep::Link {
                cid: reader.cid(span)?,
                used,
            });
        }
        let Some(segment) = segments.get(used).map(AsRef::as_ref) else {
            return Ok(PathStep::Value { used });
        };
        let found = match reader.peek() {
            Some(b'{') => reader.enter_key(segment)?,
            Some(b'[') => reader.enter_index(segment)?,
            Some(_) => false,
            None => return Err(DagError::Truncated { offset: reader.at }),
        };
        if !found {
            return Ok(PathStep::Missing { used });
        }
        used += 1;
    }
}

/// Reads values one after the other; never looks outside of `bytes`.
#[derive(Debug)]
struct Reader<'a> {
    bytes: &'a [u8],
    /// The next byte; at most `bytes.len()`.
    at: usize,
}

/// A string between its quotes, as it stands.
#[derive(Debug, Clone)]
struct Text {
    span: Range<usize>,
    /// Whether there are backslashes in it.
    escaped: bool,
}

impl<'a> Reader<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// Takes the byte if it is the next one.
    fn take(&mut self, byte: u8) -> bool {
        let is_next = self.peek() == Some(byte);
        self.at += usize::from(is_next);
        is_next
    }

    /// The error for a byte that does not belong here, or for none being left.
    fn unexpected(&self, reason: &'static str) -> DagError {
        if self.at >= self.bytes.len() {
            DagError::Truncated { offset: self.at }
        } else {
            DagError::malformed(self.at, reason)
        }
    }

    fn cid(&self, span: Range<usize>) -> Result<crate::Cid, DagError> {
        let offset = span.start;
        let bytes = self.bytes.get(span).unwrap_or_default();
        let text = std::str::from_utf8(bytes)
            .map_err(|_| DagError::malformed(offset, "text is not UTF-8"))?;
        cid::parse_text(text).map_err(|source| DagError::Link { offset, source })
    }

    /// Reads one value with all that is in it; `on_link` gets the span of each CID in order.
    fn value(
        &mut self,
        mut on_link: impl FnMut(Range<usize>) -> Result<(), DagError>,
    ) -> Result<(), DagError> {
        // The byte that closes each open container.
        let mut open: Vec<u8> = Vec::new();
        loop {
            self.space();
            if let Some(span) = self.link()? {
                on_link(span)?;
            } else if let Some(close) = self.open_or_scalar()? {
                if open.len() >= NESTING_MAX {
                    return Err(DagError::TooDeep { offset: self.at });
                }
                open.push(close);
                if close == b'}' {
                    self.key()?;
                }
                continue;
            }
            loop {
                let Some(&close) = open.last() else {
                    return Ok(());
                };
                self.space();
                if self.take(close) {
                    open.pop();
                } else if self.take(b',') {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                } else {
                    return Err(self.unexpected("a comma or the end of the container is missing"));
                }
            }
        }
    }

    /// Reads a scalar or an empty container whole; enters any other container and returns the
    /// byte that closes it.
    fn open_or_scalar(&mut self) -> Result<Option<u8>, DagError> {
        match self.peek() {
            Some(b'{' | b'[') => {
                let close = if self.peek() == Some(b'{') {
                    b'}'
                } else {
                    b']'
                };
                self.at += 1;
                self.space();
                Ok((!self.take(close)).then_some(close))
            }
            Some(b'"') => self.string().map(|_| None),
            Some(b'-' | b'0'..=b'9') => self.number().map(|()| None),
            _ => {
                for literal in [&b"true"[..], b"false", b"null"] {
                    if self
                        .bytes
                        .get(self.at..)
                        .is_some_and(|rest| rest.starts_with(literal))
                    {
                        self.at += literal.len();
                        return Ok(None);
                    }
                }
                Err(self.unexpected("no value starts like this"))
            }
        }
    }

    /// Reads `"key":`.
    fn key(&mut self) -> Result<Text, DagError> {
        self.space();
        let key = self.string()?;
        self.space();
        if !self.take(b':') {
            return Err(self.unexpected("a colon is missing after the key"));
        }
        Ok(key)
    }

    /// Reads the link that starts here and returns the span of its CID; `None`, and nothing
    /// read, if there is none.
    fn link(&mut self) -> Result<Option<Range<usize>>, DagError> {
        let start = self.at;
        let text = self.link_text();
        match text {
            None => {
                self.at = start;
                Ok(None)
            }
            // No base needs escapes, so only somebody who hides a link writes it with them.
            Some(text) if text.escaped => Err(DagError::malformed(start, "link with escapes")),
            Some(text) => Ok(Some(text.span)),
        }
    }

    /// The string of `{"/":"…"}`. Whatever else stands here is for `value` to judge.
    fn link_text(&mut self) -> Option<Text> {
        if !self.take(b'{') {
            return None;
        }
        self.space();
        if self.peek() != Some(b'"') {
            return None;
        }
        // Looking at the key first spares other maps a second reading of their keys.
        let rest = self.bytes.get(self.at + 1..).unwrap_or_default();
        if !(rest.starts_with(b"/\"") || rest.starts_with(b"\\")) {
            return None;
        }
        let key = self.key().ok()?;
        self.space();
        if self.peek() != Some(b'"') || *self.unescape(&key) != *b"/" {
            return None;
        }
        let text = self.string().ok()?;
        self.space();
        self.take(b'}').then_some(text)
    }

    fn string(&mut self) -> Result<Text, DagError> {
        let quote = self.at;
        if !self.take(b'"') {
            return Err(self.unexpected("a string is missing"));
        }
        let start = self.at;
        let mut escaped = false;
        while let Some(byte) = self.peek() {
            match byte {
                b'"' => {
                    self.at += 1;
                    return Ok(Text {
                        span: start..self.at - 1,
                        escaped,
                    });
                }
                b'\\' => {
                    escaped = true;
                    self.escape()?;
                }
                0..0x20 => return Err(self.unexpected("control character in a string")),
                _ => self.at += 1,
            }
        }
        Err(DagError::Truncated { offset: quote })
    }

    /// Steps over one escape.
    fn escape(&mut self) -> Result<(), DagError> {
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => self.at += 1,
            Some(b'u') => {
                self.at += 1;
                for _ in 0..4 {
                    if !self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
                        return Err(self.unexpected("escape without four hex digits"));
                    }
                    self.at += 1;
                }
            }
            _ => return Err(self.unexpected("unknown escape")),
        }
        Ok(())
    }

    /// What a string means. Halves of surrogate pairs become U+FFFD.
    fn unescape(&self, text: &Text) -> Cow<'a, [u8]> {
        let raw = self.bytes.get(text.span.clone()).unwrap_or_default();
        if !text.escaped {
            return Cow::Borrowed(raw);
        }
        let mut out = Vec::new();
        let mut units: Vec<u16> = Vec::new(); // UTF-16 from `\u` escapes in a row.
        let mut rest = raw;
        while let Some((&byte, after)) = rest.split_first() {
            if byte == b'\\'
                && let Some((b'u', after)) = after.split_first()
                && let Some((digits, after)) = after.split_first_chunk::<4>()
            {
                let digits = std::str::from_utf8(digits).unwrap_or_default();
                units.push(u16::from_str_radix(digits, 16).unwrap_or(0xfffd));
                rest = after;
                continue;
            }
            flush_utf16(&mut units, &mut out);
            if byte != b'\\' {
                out.push(byte);
                rest = after;
                continue;
            }
            let (&letter, after) = after.split_first().unwrap_or((&b'\\', &[]));
            out.push(match letter {
                b'b' => 8,
                b'f' => 12,
                b'n' => b'\n',
                b'r' => b'\r',
                b't' => b'\t',
                other => other,
            });
            rest = after;
        }
        flush_utf16(&mut units, &mut out);
        Cow::Owned(out)
    }

    fn number(&mut self) -> Result<(), DagError> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _signed = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(())
    }

    /// Steps over at least one digit.
    fn digits(&mut self) -> Result<(), DagError> {
        let start = self.at;
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        if self.at == start {
            Err(self.unexpected("a digit is missing"))
        } else {
            Ok(())
        }
    }

    /// Moves to the value of `wanted` in the map that starts here.
    fn enter_key(&mut self, wanted: &[u8]) -> Result<bool, DagError> {
        // `{"/":{"bytes":…}}` is a scalar; dag-json has no maps with this key.
        if self.open_or_scalar()?.is_none() || wanted == b"/" {
            return Ok(false);
        }
        loop {
            let key = self.key()?;
            if *self.unescape(&key) == *wanted {
                return Ok(true);
            }
            if !self.skip_to_next(b'}')? {
                return Ok(false);
            }
        }
    }

    /// Moves to the item `index` of the list that starts here.
    fn enter_index(&mut self, index: &[u8]) -> Result<bool, DagError> {
        let Some(index) = list_index(index) else {
            return Ok(false);
        };
        if self.open_or_scalar()?.is_none() {
            return Ok(false);
        }
        for _ in 0..index {
            if !self.skip_to_next(b']')? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads a value and the comma after it; false if the container ends instead.
    fn skip_to_next(&mut self, close: u8) -> Result<bool, DagError> {
        self.value(|_| Ok(()))?;
        self.space();
        if self.take(b',') {
            Ok(true)
        } else if self.take(close) {
            Ok(false)
        } else {
            Err(self.unexpected("a comma or the end of the container is missing"))
        }
    }
}

fn flush_utf16(units: &mut Vec<u16>, out: &mut Vec<u8>) {
    for unit in char::decode_utf16(units.drain(..)) {
        let unit = unit.unwrap_or(char::REPLACEMENT_CHARACTER);
        out.extend_from_slice(unit.encode_utf8(&mut [0; 4]).as_bytes());
    }
}

#[cfg(test)]
mod tests;
