//! A message to its bytes.
//!
//! In       blocks, presences and entries, and the dialect of who shall read them.
//! Out      the parts of a frame, its length before it. Long blocks are parts of their own and not
//!          copied.
//! Limits   [`MESSAGE_LEN_MAX`] a message: what does not fit any more is refused.
//! Not here which blocks go together into a message (`server`).

use ::cid::Version;
use bytes::{BufMut, Bytes, BytesMut};
use carrack_formats::{Cid, varint};

use super::{Dialect, Entry, MESSAGE_LEN_MAX, Prefix, WantKind};

/// A block up to this length is copied beside its neighbours: a part costs its writer more.
const COPIED_LEN_MAX: usize = 8 << 10;
/// Most bytes of the front of a CID: a byte for the version, two numbers of at most ten, and a
/// length of at most two.
const PREFIX_LEN_MAX: usize = 23;

const WANTLIST: u8 = 0x0a;
const BLOCKS: u8 = 0x12;
const PAYLOAD: u8 = 0x1a;
const PRESENCES: u8 = 0x22;
const PENDING_BYTES: u8 = 0x28;

/// The first and the second field of what lies in those, as bytes and as a number.
const FIRST_BYTES: u8 = 0x0a;
const SECOND_BYTES: u8 = 0x12;
const SECOND_NUMBER: u8 = 0x10;
const CANCEL: u8 = 0x18;
const WANT_TYPE: u8 = 0x20;
const SEND_DONT_HAVE: u8 = 0x28;

/// One message on its way out.
///
/// There is always a want-list, if an empty one: older peers fall over a message without.
#[derive(Debug, Clone)]
pub struct Outgoing {
    dialect: Dialect,
    /// The entries, encoded.
    entries: Vec<u8>,
    full: bool,
    blocks: Vec<Block>,
    /// Bytes of all blocks with their fields.
    blocks_len: usize,
    /// The presences, encoded.
    presences: Vec<u8>,
    pending_bytes: i32,
}

#[derive(Debug, Clone)]
struct Block {
    prefix: EncodedPrefix,
    data: Bytes,
}

impl Outgoing {
    /// A message with nothing but an empty want-list.
    #[must_use]
    pub const fn new(dialect: Dialect) -> Self {
        Self {
            dialect,
            entries: Vec::new(),
            full: false,
            blocks: Vec::new(),
            blocks_len: 0,
            presences: Vec::new(),
            pending_bytes: 0,
        }
    }

    /// Adds a block. `false`: it does not fit, and nothing is changed.
    #[must_use]
    pub fn push_block(&mut self, cid: &Cid, data: Bytes) -> bool {
        let prefix = EncodedPrefix::of(cid);
        let cost = self.cost_of(prefix.len(), data.len());
        if !self.has_room(cost) {
            return false;
        }
        self.blocks_len += cost;
        self.blocks.push(Block { prefix, data });
        true
    }

    /// Adds HAVE or DONT_HAVE. `false`: the dialect has no such thing, or it does not fit.
    #[must_use]
    pub fn push_presence(&mut self, cid: &Cid, have: bool) -> bool {
        let name = EncodedPrefix::of(cid);
        let len = bytes_len(name.cid_len(cid)) + if have { 0 } else { 2 };
        if !self.dialect.has_presences() || !self.has_room(bytes_len(len)) {
            return false;
        }
        let out = &mut self.presences;
        out.push(PRESENCES);
        varint::write(out, len as u64);
        out.push(FIRST_BYTES);
        name.write_cid(out, cid);
        if !have {
            out.extend_from_slice(&[SECOND_NUMBER, 1]);
        }
        true
    }

    /// Adds a want or a cancel, for whoever asks. `false`: it does not fit, or it wants to know of
    /// a presence in a dialect that can only send blocks.
    #[must_use]
    pub fn push_entry(&mut self, entry: &Entry) -> bool {
        let has_presences = self.dialect.has_presences();
        let is_known = has_presences || entry.want == WantKind::Block;
        let flags = [
            (CANCEL, entry.cancel),
            (WANT_TYPE, entry.want == WantKind::Have),
            (SEND_DONT_HAVE, entry.send_dont_have && has_presences),
        ];
        let n_flags = flags.iter().filter(|(_, is_set)| *is_set).count();
        let priority_len = match entry.priority {
            0 => 0,
            number => 1 + varint::len(number as u64),
        };
        let name = EncodedPrefix::of(&entry.cid);
        let len = bytes_len(name.cid_len(&entry.cid)) + priority_len + 2 * n_flags;
        // The length of the want-list may grow by a byte or two with it.
        if !is_known || !self.has_room(bytes_len(len) + 2) {
            return false;
        }
        let out = &mut self.entries;
        out.push(FIRST_BYTES);
        varint::write(out, len as u64);
        out.push(FIRST_BYTES);
        name.write_cid(out, &entry.cid);
        if entry.priority != 0 {
            out.push(SECOND_NUMBER);
            put_number(out, entry.priority as u64);
        }
        for (tag, _) in flags.into_iter().filter(|(_, is_set)| *is_set) {
            out.extend_from_slice(&[tag, 1]);
        }
        true
    }

    /// Whether the want-list replaces what was wanted before.
    pub const fn set_full(&mut self, full: bool) {
        self.full = full;
    }

    /// Bytes that are queued for the receiver besides this message; dropped in dialects without.
    pub const fn set_pending_bytes(&mut self, pending_bytes: i32) {
        if self.dialect.has_presences() {
            self.pending_bytes = pending_bytes;
        }
    }

    /// Bytes of all parts that [`finish`](Self::finish) makes, the length before them included.
    #[must_use]
    pub fn len(&self) -> usize {
        let len = self.message_len();
        varint::len(len as u64) + len
    }

    /// Whether there is nothing to say: no block, presence or entry. Pending bytes alone are not
    /// worth a message.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.blocks.is_empty() && self.presences.is_empty() && self.entries.is_empty() && !self.full
    }

    /// How many blocks are in.
    #[must_use]
    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The frame in parts, to be written one after the other.
    #[must_use]
    pub fn finish(self) -> Vec<Bytes> {
        let len = self.len();
        let is_long = |block: &&Block| block.data.len() > COPIED_LEN_MAX;
        let long = self.blocks.iter().filter(is_long);
        let (n_long, long_len) =
            long.fold((0, 0), |(n, len), block| (n + 1, len + block.data.len()));
        let mut parts = Vec::with_capacity(2 * n_long + 1);
        let mut part = BytesMut::with_capacity(len - long_len);
        put_number(&mut part, self.message_len() as u64);
        part.put_u8(WANTLIST);
        put_number(&mut part, self.wantlist_len() as u64);
        part.put_slice(&self.entries);
        if self.full {
            part.put_slice(&[SECOND_NUMBER, 1]);
        }
        for block in &self.blocks {
            self.put_front_of(&mut part, block);
            if is_long(&block) {
                parts.push(part.split().freeze());
                parts.push(block.data.clone());
            } else {
                part.put_slice(&block.data);
            }
        }
        part.put_slice(&self.presences);
        if self.pending_bytes != 0 {
            part.put_u8(PENDING_BYTES);
            put_number(&mut part, self.pending_bytes as u64);
        }
        if !part.is_empty() {
            parts.push(part.freeze());
        }
        debug_assert_eq!(parts.iter().map(Bytes::len).sum::<usize>(), len);
        parts
    }

    /// Everything of a block's field but the data.
    fn put_front_of(&self, part: &mut BytesMut, block: &Block) {
        let (prefix, data_len) = (block.prefix.as_bytes(), block.data.len());
        if !self.dialect.has_prefixes() {
            part.put_u8(BLOCKS);
            put_number(part, data_len as u64);
            return;
        }
        part.put_u8(PAYLOAD);
        put_number(part, payload_len(prefix.len(), data_len) as u64);
        part.put_u8(FIRST_BYTES);
        put_number(part, prefix.len() as u64);
        part.put_slice(prefix);
        if data_len > 0 {
            part.put_u8(SECOND_BYTES);
            put_number(part, data_len as u64);
        }
    }

    fn cost_of(&self, prefix_len: usize, data_len: usize) -> usize {
        if self.dialect.has_prefixes() {
            bytes_len(payload_len(prefix_len, data_len))
        } else {
            bytes_len(data_len)
        }
    }

    fn has_room(&self, cost: usize) -> bool {
        // Room for the pending bytes is kept free: they are set when the message is complete.
        let reserved = if self.pending_bytes == 0 { 11 } else { 0 };
        let full = if self.full { 0 } else { 2 };
        self.message_len() + cost + reserved + full <= MESSAGE_LEN_MAX
    }

    fn wantlist_len(&self) -> usize {
        self.entries.len() + if self.full { 2 } else { 0 }
    }

    fn message_len(&self) -> usize {
        let pending_len = match self.pending_bytes {
            0 => 0,
            number => 1 + varint::len(number as u64),
        };
        bytes_len(self.wantlist_len()) + self.blocks_len + self.presences.len() + pending_len
    }
}

/// Bytes that a block adds to a message. In dialects without prefixes it is a few fewer.
#[must_use]
pub fn block_cost(cid: &Cid, data_len: usize) -> usize {
    bytes_len(payload_len(EncodedPrefix::of(cid).len(), data_len))
}

/// Bytes of a field of `len` bytes: its tag, its length and they.
const fn bytes_len(len: usize) -> usize {
    1 + varint::len(len as u64) + len
}

/// Bytes within the field of a block.
const fn payload_len(prefix_len: usize, data_len: usize) -> usize {
    let data = if data_len == 0 {
        0
    } else {
        bytes_len(data_len)
    };
    bytes_len(prefix_len) + data
}

/// A number as protobuf has it: of 64 bits, so that negative ones have ten bytes.
fn put_number(part: &mut impl BufMut, mut number: u64) {
    while number >= 0x80 {
        part.put_u8(number as u8 | 0x80);
        number >>= 7;
    }
    part.put_u8(number as u8);
}

/// The front of a CID, encoded, in place.
#[derive(Debug, Clone, Copy)]
struct EncodedPrefix {
    bytes: [u8; PREFIX_LEN_MAX],
    len: u8,
}

impl EncodedPrefix {
    fn of(cid: &Cid) -> Self {
        let prefix = Prefix::of(cid);
        let mut encoded = Self {
            bytes: [0; PREFIX_LEN_MAX],
            len: 0,
        };
        encoded.push(prefix.version);
        encoded.push(prefix.codec);
        encoded.push(prefix.hash_code);
        encoded.push(prefix.digest_len as u64);
        encoded
    }

    fn push(&mut self, mut number: u64) {
        loop {
            let is_last = number < 0x80;
            let byte = number as u8 | if is_last { 0 } else { 0x80 };
            if let Some(place) = self.bytes.get_mut(usize::from(self.len)) {
                *place = byte;
                self.len += 1;
            }
            if is_last {
                return;
            }
            number >>= 7;
        }
    }

    fn len(&self) -> usize {
        self.len.into()
    }

    /// Bytes of the whole CID. Version 0 has no more than its multihash.
    fn cid_len(&self, cid: &Cid) -> usize {
        let front = self.front_of(cid);
        front.len() + usize::from(cid.hash().size())
    }

    /// The CID with its length before it.
    fn write_cid(&self, out: &mut Vec<u8>, cid: &Cid) {
        varint::write(out, self.cid_len(cid) as u64);
        out.extend_from_slice(self.front_of(cid));
        out.extend_from_slice(cid.hash().digest());
    }

    /// What stands before the digest of the CID itself: in version 0 neither version nor codec,
    /// which are a byte each.
    fn front_of(&self, cid: &Cid) -> &[u8] {
        let is_v0 = cid.version() == Version::V0;
        self.as_bytes()
            .get(if is_v0 { 2 } else { 0 }..)
            .unwrap_or_default()
    }

    fn as_bytes(&self) -> &[u8] {
        self.bytes.get(..self.len()).unwrap_or_default()
    }
}
