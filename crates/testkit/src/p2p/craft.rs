//! Pieces of protobuf, of frames and of yamux, right or wrong, as a test puts them together.
//!
//! In       numbers and bytes.
//! Out      bytes; nothing is checked.
//! Not here messages that are meant to be right: `carrack_bitswap::wire`.

use carrack_formats::varint;

/// A number as an unsigned varint; other than in multiformats it may have all 64 bits.
pub fn number(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(2);
    while value >= 0x80 {
        bytes.push((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// `body` behind its length.
pub fn frame(body: &[u8]) -> Vec<u8> {
    [&number(body.len() as u64), body].concat()
}

/// A field of bytes: strings and messages are that, too.
pub fn bytes_field(field: u64, bytes: &[u8]) -> Vec<u8> {
    [number((field << 3) | 2), frame(bytes)].concat()
}

/// A field that is a number.
pub fn number_field(field: u64, value: u64) -> Vec<u8> {
    [number(field << 3), number(value)].concat()
}

/// An entry of a want-list, as a field of it, behind what `list` holds already.
pub fn push_entry(
    list: &mut Vec<u8>,
    cid: &[u8],
    priority: u64,
    cancel: bool,
    have: bool,
    send_dont_have: bool,
) {
    let fields = [
        bytes_field(1, cid),
        number_field(2, priority),
        number_field(3, cancel.into()),
        number_field(4, have.into()),
        number_field(5, send_dont_have.into()),
    ];
    list.extend(bytes_field(1, &fields.concat()));
}

/// A message of nothing but a want-list, with its length before it.
pub fn want_list(entries: &[u8], full: bool) -> Vec<u8> {
    let list = [entries, &number_field(2, full.into())].concat();
    frame(&bytes_field(1, &list))
}

/// The head of a frame of yamux, for [`super::Dialer::dial_unmuxed`]: version 0, and these.
#[expect(clippy::big_endian_bytes, reason = "yamux writes in network order")]
pub fn yamux_head(kind: u8, flags: u16, stream: u32, len: u32) -> [u8; 12] {
    let ([f0, f1], [s0, s1, s2, s3]) = (flags.to_be_bytes(), stream.to_be_bytes());
    let [l0, l1, l2, l3] = len.to_be_bytes();
    [0, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3]
}

/// The kind of a frame of yamux, and its length or what else stands there.
#[expect(clippy::big_endian_bytes, reason = "yamux writes in network order")]
pub fn yamux_kind_and_len(head: [u8; 12]) -> (u8, u32) {
    let [_, kind, _, _, _, _, _, _, len @ ..] = head;
    (kind, u32::from_be_bytes(len))
}

/// Whether a message has a field of bytes with this number, such as 1, its want-list.
pub fn has_bytes_field(message: &[u8], field: u64) -> bool {
    let mut rest = message;
    while let Some(key) = take_number(&mut rest) {
        let Some(value) = take_number(&mut rest) else {
            return false;
        };
        match (key >> 3, key & 7) {
            (number, 2) if number == field => return true,
            (_, 2) => {
                let len = usize::try_from(value).unwrap_or(usize::MAX);
                rest = rest.get(len..).unwrap_or_default();
            }
            (_, 0) => {}
            _ => return false,
        }
    }
    false
}

fn take_number(bytes: &mut &[u8]) -> Option<u64> {
    let (value, len) = varint::read(bytes).ok()??;
    *bytes = bytes.get(len..)?;
    Some(value)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use carrack_bitswap::wire::{DecodeLimits, Message, WantKind};
    use carrack_formats::cid;

    use super::*;

    #[test]
    fn what_is_crafted_rightly_is_read_rightly() {
        let name = cid::empty_identity().to_bytes();
        let wanted = [&[1, 0x55, 0x12, 0x20], [7; 32].as_slice()].concat();
        let mut list = Vec::new();
        push_entry(&mut list, &wanted, 300, false, true, true);
        push_entry(&mut list, &wanted, 1, true, false, false);
        push_entry(&mut list, &name, 1, false, false, false);
        let message = want_list(&list, true);
        let body = Bytes::from(message).slice(1..);
        assert_eq!(frame(&body).len(), body.len() + 1, "one byte of length");
        let message = Message::decode(&body, &DecodeLimits::default()).unwrap();
        assert!(message.full && message.n_entries_ignored == 1);
        let [want, cancel] = message.entries.as_slice() else {
            panic!("{message:?}");
        };
        assert_eq!(want.cid.to_bytes(), wanted);
        assert_eq!((want.priority, want.want), (300, WantKind::Have));
        assert!(want.send_dont_have && !want.cancel);
        assert!(cancel.cancel && !cancel.send_dont_have);
    }

    #[test]
    fn fields_are_found_behind_others() {
        let message = [
            number_field(5, 300),
            bytes_field(4, b"ab"),
            bytes_field(1, b""),
        ]
        .concat();
        assert!(has_bytes_field(&message, 1) && has_bytes_field(&message, 4));
        assert!(!has_bytes_field(&message, 5) && !has_bytes_field(&message, 2));
        assert!(!has_bytes_field(&bytes_field(2, &bytes_field(1, b"")), 1));
    }
}
