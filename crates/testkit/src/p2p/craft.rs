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
