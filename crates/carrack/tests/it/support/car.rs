//! CARs made by hand, independent of the code under test, so that they can be wrong.
//!
//! In       blocks.
//! Out      the bytes of a CAR.
//! Not here the formats' own tests (`carrack-formats`).

use carrack_formats::{Cid, cid};
use sha2::{Digest, Sha256};

/// A raw CIDv1 of `data`, in bytes.
pub(crate) fn raw_cid(data: &[u8]) -> Vec<u8> {
    let mut cid = vec![0x01, 0x55, 0x12, 0x20];
    cid.extend(Sha256::digest(data));
    cid
}

/// The same, read.
pub(crate) fn raw(data: &[u8]) -> Cid {
    cid::parse_bytes(&raw_cid(data)).unwrap()
}

/// A CID of a block that no test has.
pub(crate) fn absent(number: u64) -> Cid {
    raw(&number.to_le_bytes())
}

/// A CID in lower-case base32 with its multibase letter.
pub(crate) fn text(cid: &[u8]) -> String {
    let mut text = String::from("b");
    let (mut buffer, mut n_bits) = (0_u32, 0_u32);
    for byte in cid.iter().copied().chain([0]) {
        buffer = (buffer << 8) | u32::from(byte);
        n_bits += 8;
        while n_bits >= 5 && text.len() - 1 < (cid.len() * 8).div_ceil(5) {
            n_bits -= 5;
            let index = usize::try_from((buffer >> n_bits) & 31).unwrap();
            text.push(char::from(b"abcdefghijklmnopqrstuvwxyz234567"[index]));
        }
        buffer &= (1 << n_bits) - 1;
    }
    text
}

pub(crate) fn varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(u8::try_from(value & 0x7f).unwrap() | 0x80);
        value >>= 7;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// A length before its bytes.
pub(crate) fn framed(bytes: &[u8]) -> Vec<u8> {
    [varint(bytes.len() as u64), bytes.to_vec()].concat()
}

/// A CARv1 header with one root.
pub(crate) fn header(root: &[u8]) -> Vec<u8> {
    let mut cbor = b"\xa2\x65roots\x81\xd8\x2a\x58\x25\x00".to_vec();
    cbor.extend(root);
    cbor.extend(b"\x67version\x01");
    framed(&cbor)
}

/// A section that claims `cid` for `data`.
pub(crate) fn section(cid: &[u8], data: &[u8]) -> Vec<u8> {
    framed(&[cid, data].concat())
}

/// A valid CARv1 of raw blocks; its root is the first.
pub(crate) fn of_blocks(blocks: &[Vec<u8>]) -> Vec<u8> {
    let mut car = header(&raw_cid(&blocks[0]));
    for block in blocks {
        car.extend(section(&raw_cid(block), block));
    }
    car
}

/// Wraps a CARv1 as a CARv2 with these header fields and this index.
pub(crate) fn v2(
    v1: &[u8],
    data_offset: u64,
    data_len: u64,
    index_offset: u64,
    index: &[u8],
) -> Vec<u8> {
    let mut car = b"\x0a\xa1\x67version\x02".to_vec();
    car.extend([0; 16]);
    for field in [data_offset, data_len, index_offset] {
        car.extend(field.to_le_bytes());
    }
    car.extend(v1);
    car.extend(index);
    car
}

/// Where the data of a CARv2 starts when nothing pads it.
pub(crate) const V2_DATA_OFFSET: u64 = 51;
