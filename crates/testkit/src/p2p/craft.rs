//! Pieces of protobuf and frames, right or wrong, as a test puts them together.
//!
//! In       numbers and bytes.
//! Out      bytes; nothing is checked.
//! Not here messages that are meant to be right: `carrack_bitswap::wire`.

use carrack_formats::varint;

/// A number as an unsigned varint.
pub fn number(value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    varint::write(&mut bytes, value);
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
    let mut flags = Vec::with_capacity(16);
    flags.push(2 << 3);
    varint::write(&mut flags, priority);
    let number = u8::from;
    flags.extend([3 << 3, number(cancel), 4 << 3, number(have)]);
    flags.extend([5 << 3, number(send_dont_have)]);
    let mut prefix = Vec::with_capacity(4);
    prefix.push((1 << 3) | 2);
    varint::write(&mut prefix, cid.len() as u64);
    list.push((1 << 3) | 2);
    varint::write(list, (prefix.len() + cid.len() + flags.len()) as u64);
    list.extend([prefix.as_slice(), cid, flags.as_slice()].concat());
}

/// A message of nothing but a want-list, with its length before it.
pub fn want_list(entries: &[u8], full: bool) -> Vec<u8> {
    let list = [entries, &number_field(2, full.into())].concat();
    frame(&bytes_field(1, &list))
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
