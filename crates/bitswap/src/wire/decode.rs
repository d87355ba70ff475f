//! A message from its bytes.
//!
//! In       a frame without its length.
//! Out      [`Message`].
//! Limits   see [`DecodeLimits`]. Room for entries is made by the bytes that are there, not by a
//!          count that somebody claims.
//! Not here the form of fields (`proto`).
//!
//! As in any protobuf, a scalar field that stands twice counts once, with its last value, and a
//! submessage that stands twice is one with the fields of both.

use ::cid::Version;
use bytes::Bytes;
use carrack_formats::cid::{self, IDENTITY};
use carrack_formats::{Cid, DIGEST_LEN_MAX, varint, verify};

use super::proto::{Budget, Fields, Value};
use super::{
    BLOCK_LEN_MAX, CID_LEN_MAX, DecodeLimits, Entry, MESSAGE_LEN_MAX, Message, Prefix, Presence,
    Received, WantKind, WireError,
};

/// Bytes of the shortest entry that names a block under SHA2-256, for a guess at their number.
const ENTRY_LEN_MIN: usize = 38;

pub(super) fn message(frame: &Bytes, limits: &DecodeLimits) -> Result<Message, WireError> {
    if frame.len() > MESSAGE_LEN_MAX {
        let len = frame.len() as u64;
        return Err(WireError::MessageTooLong { len });
    }
    let mut decoder = Decoder {
        frame,
        limits,
        budget: Budget::new(limits.fields_max),
        message: Message::default(),
    };
    decoder.run()?;
    Ok(decoder.message)
}

struct Decoder<'a> {
    frame: &'a Bytes,
    limits: &'a DecodeLimits,
    budget: Budget,
    message: Message,
}

impl<'a> Decoder<'a> {
    fn run(&mut self) -> Result<(), WireError> {
        let mut fields = Fields::new(self.frame);
        while let Some(field) = fields.next(&mut self.budget)? {
            match (field.number, field.value) {
                (1, Value::Bytes(bytes)) => self.wantlist(fields.within(bytes), bytes.len())?,
                (2, Value::Bytes(bytes)) => self.block(Some(None), bytes),
                (3, Value::Bytes(bytes)) => self.payload(fields.within(bytes))?,
                (4, Value::Bytes(bytes)) => self.presence(fields.within(bytes))?,
                (5, Value::Number(number)) => self.message.pending_bytes = number as i32,
                _ => self.message.n_fields_ignored += 1,
            }
        }
        Ok(())
    }

    fn wantlist(&mut self, mut fields: Fields<'a>, len: usize) -> Result<(), WireError> {
        let room = self.limits.entries_max - self.message.entries.len(); // Never more are kept.
        self.message.entries.reserve(room.min(len / ENTRY_LEN_MIN));
        while let Some(field) = fields.next(&mut self.budget)? {
            match (field.number, field.value) {
                (1, Value::Bytes(_)) if self.message.entries.len() >= self.limits.entries_max => {
                    self.message.n_entries_ignored += 1;
                }
                (1, Value::Bytes(bytes)) => self.entry(fields.within(bytes))?,
                (2, Value::Number(number)) => self.message.full = number != 0,
                _ => self.message.n_fields_ignored += 1,
            }
        }
        Ok(())
    }

    fn entry(&mut self, mut fields: Fields<'a>) -> Result<(), WireError> {
        let mut name: &[u8] = &[];
        let (mut priority, mut cancel, mut want, mut send_dont_have) = (0, false, 0, false);
        while let Some(field) = fields.next(&mut self.budget)? {
            match (field.number, field.value) {
                (1, Value::Bytes(bytes)) => name = bytes,
                (2, Value::Number(number)) => priority = number as i32,
                (3, Value::Number(number)) => cancel = number != 0,
                (4, Value::Number(number)) => want = number as i32,
                (5, Value::Number(number)) => send_dont_have = number != 0,
                _ => self.message.n_fields_ignored += 1,
            }
        }
        let want = match want {
            0 => Some(WantKind::Block),
            1 => Some(WantKind::Have),
            _ if cancel => Some(WantKind::Block), // Whatever it was, it is not wanted any more.
            _ => None,                            // Of a dialect that is not ours.
        };
        if let (Some(cid), Some(want)) = (answerable(name), want) {
            self.message.entries.push(Entry {
                cid,
                priority,
                cancel,
                want,
                send_dont_have,
            });
        } else {
            self.message.n_entries_ignored += 1;
        }
        Ok(())
    }

    fn payload(&mut self, mut fields: Fields<'a>) -> Result<(), WireError> {
        let (mut prefix, mut data): (&[u8], &[u8]) = (&[], &[]);
        while let Some(field) = fields.next(&mut self.budget)? {
            match (field.number, field.value) {
                (1, Value::Bytes(bytes)) => prefix = bytes,
                (2, Value::Bytes(bytes)) => data = bytes,
                _ => self.message.n_fields_ignored += 1,
            }
        }
        self.block(read_prefix(prefix).map(Some), data);
        Ok(())
    }

    /// `prefix`: `None` if it is none, `Some(None)` if none is needed.
    fn block(&mut self, prefix: Option<Option<Prefix>>, data: &[u8]) {
        let has_room = self.message.blocks.len() < self.limits.blocks_max;
        match prefix {
            Some(prefix) if has_room && data.len() <= BLOCK_LEN_MAX => {
                // An empty slice may point anywhere, and keeps nothing in memory.
                let data = match data {
                    [] => Bytes::new(),
                    _ => self.frame.slice_ref(data),
                };
                self.message.blocks.push(Received { prefix, data });
            }
            _ => self.message.n_blocks_ignored += 1,
        }
    }

    fn presence(&mut self, mut fields: Fields<'a>) -> Result<(), WireError> {
        if self.message.presences.len() >= self.limits.presences_max {
            self.message.n_presences_ignored += 1;
            return Ok(());
        }
        let mut name: &[u8] = &[];
        let mut kind = 0;
        while let Some(field) = fields.next(&mut self.budget)? {
            match (field.number, field.value) {
                (1, Value::Bytes(bytes)) => name = bytes,
                (2, Value::Number(number)) => kind = number as i32,
                _ => self.message.n_fields_ignored += 1,
            }
        }
        match (answerable(name), kind) {
            (Some(cid), 0 | 1) => {
                let have = kind == 0;
                self.message.presences.push(Presence { cid, have });
            }
            _ => self.message.n_presences_ignored += 1,
        }
        Ok(())
    }
}

/// The CID, if it is one that can be asked for: not too long, of a hash function that is accepted,
/// and not the block itself.
#[inline]
fn answerable(bytes: &[u8]) -> Option<Cid> {
    // Nearly every CID there is, without a look at limits that it keeps.
    if let [1, codec @ ..0x80, 0x12, 0x20, digest @ ..] = bytes
        && let Ok(digest) = digest.try_into()
    {
        return Some(cid::from_sha256(Version::V1, u64::from(*codec), digest));
    }
    if bytes.len() > CID_LEN_MAX {
        return None;
    }
    let cid = cid::parse_bytes(bytes).ok()?;
    let is_answerable = cid.hash().code() != IDENTITY && verify::check_allowed(cid.hash()).is_ok();
    is_answerable.then_some(cid)
}

/// Four numbers and nothing else.
fn read_prefix(bytes: &[u8]) -> Option<Prefix> {
    let mut rest = bytes;
    let mut number = || {
        let (value, len) = varint::read(rest).ok().flatten()?;
        rest = rest.get(len..)?;
        Some(value)
    };
    let (version, codec, hash_code, digest_len) = (number()?, number()?, number()?, number()?);
    let digest_len = usize::try_from(digest_len).ok()?;
    (rest.is_empty() && version <= 1 && digest_len <= DIGEST_LEN_MAX).then_some(Prefix {
        version,
        codec,
        hash_code,
        digest_len,
    })
}
