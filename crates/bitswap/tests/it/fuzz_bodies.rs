//! What the fuzz targets do with bytes, one function a target.
//!
//! In       any bytes.
//! Out      a panic, if something that must hold does not.
//! Not here which bytes: a fuzzer (`fuzz/`) or a property test (`fuzz_on_stable`) brings them.

use bytes::Bytes;
use carrack_bitswap::wire::{
    BLOCK_LEN_MAX, CID_LEN_MAX, DecodeLimits, Dialect, Entry, MESSAGE_LEN_MAX, Message, Outgoing,
    PREFIX_LEN_MAX, Prefix, Presence, Received, WantKind, block_cost, frame_len,
};
use carrack_formats::cid::{IDENTITY, RAW};
use carrack_formats::{Cid, Multihash, verify};

/// So few that most messages have more.
const FEW: DecodeLimits = DecodeLimits {
    entries_max: 2,
    blocks_max: 1,
    presences_max: 1,
    fields_max: 128 << 10,
};

/// A frame, and the same bytes as a message: what is read keeps its limits, lies in the frame, and
/// is the same after it was written again.
pub(crate) fn bitswap_frame(bytes: &[u8]) {
    let body_offset = match frame_len(bytes) {
        Ok(Some((len, prefix_len))) => {
            assert!(len <= MESSAGE_LEN_MAX && prefix_len <= PREFIX_LEN_MAX);
            for cut in 0..prefix_len {
                assert_eq!(frame_len(&bytes[..cut]), Ok(None));
            }
            prefix_len
        }
        Ok(None) => {
            assert!(bytes.len() < PREFIX_LEN_MAX);
            0
        }
        Err(_) => 0,
    };
    message(&Bytes::copy_from_slice(&bytes[body_offset..]));
    message(&Bytes::copy_from_slice(bytes));
}

fn message(body: &Bytes) {
    let Ok(message) = Message::decode(body, &DecodeLimits::default()) else {
        return;
    };
    keeps_its_limits(&message, body);
    with_few(&message, body);
    again(&message);
}

fn keeps_its_limits(message: &Message, body: &Bytes) {
    let limits = DecodeLimits::default();
    assert!(message.entries.len() <= limits.entries_max);
    assert!(message.blocks.len() <= limits.blocks_max);
    assert!(message.presences.len() <= limits.presences_max);
    let entries = message.entries.iter().map(|entry| entry.cid);
    let presences = message.presences.iter().map(|presence| presence.cid);
    for cid in entries.chain(presences) {
        assert!(cid.encoded_len() <= CID_LEN_MAX);
        assert_ne!(cid.hash().code(), IDENTITY);
        assert_eq!(verify::check_allowed(cid.hash()), Ok(()));
    }
    let start = body.as_ptr() as usize;
    for block in &message.blocks {
        assert!(block.data.len() <= BLOCK_LEN_MAX);
        let from = block.data.as_ptr() as usize;
        let is_within = from >= start && from + block.data.len() <= start + body.len();
        assert!(is_within || block.data.is_empty(), "copied");
    }
}

/// Lower limits keep the front of the same lists, and count the rest.
fn with_few(message: &Message, body: &Bytes) {
    let few = Message::decode(body, &FEW).unwrap();
    let n_entries = message.entries.len().min(FEW.entries_max);
    assert_eq!(few.entries, message.entries[..n_entries]);
    assert_eq!(
        few.entries.len() + few.n_entries_ignored,
        message.entries.len() + message.n_entries_ignored
    );
    let n_blocks = message.blocks.len().min(FEW.blocks_max);
    assert_eq!(few.blocks, message.blocks[..n_blocks]);
    assert_eq!(
        few.blocks.len() + few.n_blocks_ignored,
        message.blocks.len() + message.n_blocks_ignored
    );
    let n_presences = message.presences.len().min(FEW.presences_max);
    assert_eq!(few.presences, message.presences[..n_presences]);
}

/// A message that was read is written and read as the same.
fn again(message: &Message) {
    let mut out = Outgoing::new(Dialect::V1_2);
    out.set_full(message.full);
    let mut fits = message.entries.iter().all(|entry| out.push_entry(entry));
    let mut blocks = Vec::new();
    for block in &message.blocks {
        if let Some(cid) = block.prefix.and_then(|prefix| named(&prefix)) {
            fits &= out.push_block(&cid, block.data.clone());
            blocks.push(block.clone());
        }
    }
    let mut presences = message.presences.iter();
    fits &= presences.all(|presence| out.push_presence(&presence.cid, presence.have));
    out.set_pending_bytes(message.pending_bytes);
    // Ours may be longer: theirs need not name the want-list, and have no zeros.
    if fits {
        let read = written(out);
        assert_eq!(read.entries, message.entries);
        assert_eq!(read.presences, message.presences);
        assert_eq!(read.blocks, blocks);
        assert_eq!(read.full, message.full);
        assert_eq!(read.pending_bytes, message.pending_bytes);
    }
}

/// Some CID with that front, if there is one.
fn named(prefix: &Prefix) -> Option<Cid> {
    let multihash = Multihash::wrap(prefix.hash_code, &[7; 128][..prefix.digest_len]).unwrap();
    let cid = match prefix.version {
        0 => Cid::new_v0(multihash).ok()?,
        _ => Cid::new_v1(prefix.codec, multihash),
    };
    (Prefix::of(&cid) == *prefix).then_some(cid)
}

/// Writes the frame, whose lengths are right, and reads its message.
fn written(out: Outgoing) -> Message {
    let (len, has_pieces) = (out.len(), !out.is_empty());
    let frame = Bytes::from(out.finish().concat());
    assert_eq!(frame.len(), len);
    let (body_len, prefix_len) = frame_len(&frame).unwrap().unwrap();
    assert_eq!(prefix_len + body_len, len);
    let limits = DecodeLimits {
        entries_max: usize::MAX,
        blocks_max: usize::MAX,
        presences_max: usize::MAX,
        fields_max: usize::MAX,
    };
    let read = Message::decode(&frame.slice(prefix_len..), &limits).unwrap();
    let nothing = read.entries.is_empty() && read.blocks.is_empty() && read.presences.is_empty();
    assert_eq!(
        has_pieces,
        !nothing || read.full || read.n_blocks_ignored > 0
    );
    read
}

/// Bytes as orders to put something into a message, in one of the dialects: what was put in is
/// read, as far as the dialect has it.
pub(crate) fn bitswap_outgoing(bytes: &[u8]) {
    let (&[dialect, pending], mut orders) = bytes.split_first_chunk().unwrap_or((&[0; 2], &[]));
    let dialect = Dialect::OFFERED[usize::from(dialect) % Dialect::OFFERED.len()];
    let has = dialect.has_presences();
    let mut out = Outgoing::new(dialect);
    let mut expected = Message::default();
    while let Some((&[what, number, len], rest)) = orders.split_first_chunk() {
        orders = rest;
        let before = out.len();
        let is_full = before + 256 > MESSAGE_LEN_MAX; // No entry or presence is longer.
        let cid = some_cid(what, number);
        match what % 4 {
            0 => {
                let want = if number & 1 == 0 {
                    WantKind::Block
                } else {
                    WantKind::Have
                };
                let entry = Entry {
                    cid,
                    priority: i32::from(len as i8) << 24,
                    cancel: number & 2 != 0,
                    want,
                    send_dont_have: number & 4 != 0,
                };
                if out.push_entry(&entry) {
                    assert!(has || want == WantKind::Block);
                    let send_dont_have = entry.send_dont_have && has;
                    expected.entries.push(Entry {
                        send_dont_have,
                        ..entry
                    });
                } else {
                    assert!(is_full || !has && want == WantKind::Have);
                }
            }
            1 => {
                let shift = if what >> 4 == 0xf { 14 } else { what >> 6 };
                let data = Bytes::from(vec![number; usize::from(len) << shift]);
                let cost = block_cost(&cid, data.len());
                if out.push_block(&cid, data.clone()) {
                    assert!(out.len() - before <= cost + PREFIX_LEN_MAX);
                    let prefix = dialect.has_prefixes().then(|| Prefix::of(&cid));
                    if data.len() <= BLOCK_LEN_MAX {
                        expected.blocks.push(Received { prefix, data });
                    } else {
                        expected.n_blocks_ignored += 1;
                    }
                } else {
                    assert!(before + cost + 20 > MESSAGE_LEN_MAX);
                }
            }
            2 => {
                let have = number & 1 == 0;
                if out.push_presence(&cid, have) {
                    assert!(has);
                    expected.presences.push(Presence { cid, have });
                } else {
                    assert!(is_full || !has);
                }
            }
            _ => {
                expected.full = number & 1 == 0;
                out.set_full(expected.full);
            }
        }
    }
    let pending = i32::from(pending as i8) << 20;
    out.set_pending_bytes(pending);
    expected.pending_bytes = if has { pending } else { 0 };
    assert_eq!(written(out), expected);
}

fn some_cid(what: u8, number: u8) -> Cid {
    let digest = [number; 64];
    let multihash = |code, len| Multihash::wrap(code, &digest[..len]).unwrap();
    match what >> 2 & 3 {
        0 => Cid::new_v0(multihash(0x12, 32)).unwrap(),
        1 => Cid::new_v1(u64::from(number) << 9, multihash(0x13, 64)),
        _ => Cid::new_v1(RAW, multihash(0x12, 32)),
    }
}
