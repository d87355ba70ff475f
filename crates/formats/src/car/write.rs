//! CARv1 writer: the bytes before each block.
//!
//! In       roots; CIDs and lengths of blocks.
//! Out      the header, and what stands before each block's data.
//! Limits   none: the caller has blocks of a length that readers accept.
//! Not here the data itself, which is sent as it is.
//!
//! Spec: <https://ipld.io/specs/transport/car/carv1/>

use crate::{Cid, varint};

/// The header of a CARv1 with these roots. Readers of other projects want at least one.
pub fn header(roots: &[Cid]) -> Vec<u8> {
    let mut body = vec![0xa2]; // A map of two pairs, the shorter key first.
    cbor_head(&mut body, 0x60, 5);
    body.extend_from_slice(b"roots");
    cbor_head(&mut body, 0x80, roots.len() as u64);
    for root in roots {
        body.extend_from_slice(&[0xd8, 42]);
        cbor_head(&mut body, 0x40, root.encoded_len() as u64 + 1);
        body.push(0);
        push_cid(&mut body, root);
    }
    cbor_head(&mut body, 0x60, 7);
    body.extend_from_slice(b"version");
    body.push(1);

    let mut out = Vec::with_capacity(body.len() + varint::LEN_MAX);
    varint::write(&mut out, body.len() as u64);
    out.extend_from_slice(&body);
    out
}

/// Appends what stands before `data_len` bytes of block: the section's length and the CID.
pub fn frame_head(out: &mut Vec<u8>, cid: &Cid, data_len: usize) {
    let start = out.len();
    varint::write(
        out,
        (cid.encoded_len() as u64).saturating_add(data_len as u64),
    );
    push_cid(out, cid);
    debug_assert_eq!(out.len() - start + data_len, frame_len(cid, data_len));
}

/// How many bytes a whole section takes, length prefix included.
pub fn frame_len(cid: &Cid, data_len: usize) -> usize {
    let body_len = cid.encoded_len().saturating_add(data_len);
    body_len.saturating_add(varint::len(body_len as u64))
}

fn push_cid(out: &mut Vec<u8>, cid: &Cid) {
    #[expect(clippy::expect_used, reason = "a Vec takes all that is written to it")]
    cid.write_bytes(out).expect("writing to memory");
}

fn cbor_head(out: &mut Vec<u8>, major: u8, argument: u64) {
    #[expect(clippy::big_endian_bytes, reason = "RFC 8949 has network order")]
    match argument {
        0..24 => out.push(major | argument as u8),
        24..0x100 => out.extend_from_slice(&[major | 24, argument as u8]),
        0x100..0x1_0000 => {
            out.push(major | 25);
            out.extend_from_slice(&(argument as u16).to_be_bytes());
        }
        _ => {
            out.push(major | 27);
            out.extend_from_slice(&argument.to_be_bytes());
        }
    }
}
