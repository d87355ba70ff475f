//! What a server's message says.
//!
//! In       the body of a frame.
//! Out      blocks, presences and the bytes said to be pending.
//! Not here frames.

use std::io;

use bytes::Bytes;
use carrack_formats::{Cid, cid, varint};

/// A message of a server.
#[derive(Debug, Default)]
pub struct Message {
    /// Blocks: the prefix of the CID, empty before 1.1.0, and the data.
    pub blocks: Vec<(Bytes, Bytes)>,
    /// CIDs, and whether the server has them.
    pub presences: Vec<(Cid, bool)>,
    /// Bytes that wait to be sent.
    pub pending_bytes: u64,
    /// Whether a want-list is there, as old kubos need it.
    pub has_wantlist: bool,
}

enum Field {
    Number(u64),
    Bytes(Bytes),
}

fn invalid(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn take_number(bytes: &mut Bytes) -> io::Result<u64> {
    let (value, len) = varint::read(bytes)
        .map_err(io::Error::other)?
        .ok_or_else(|| invalid("a number is cut"))?;
    drop(bytes.split_to(len));
    Ok(value)
}

fn take_field(bytes: &mut Bytes) -> io::Result<Option<(u64, Field)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let key = take_number(bytes)?;
    let field = match key & 7 {
        0 => Field::Number(take_number(bytes)?),
        2 => {
            let len = usize::try_from(take_number(bytes)?).unwrap_or(usize::MAX);
            if len > bytes.len() {
                return Err(invalid("a field is cut"));
            }
            Field::Bytes(bytes.split_to(len))
        }
        _ => return Err(invalid("a wire type that bitswap has not")),
    };
    Ok(Some((key >> 3, field)))
}

impl Message {
    /// Reads a message; what is unknown is passed over.
    ///
    /// # Errors
    /// `InvalidData`.
    pub fn decode(mut body: Bytes) -> io::Result<Self> {
        let mut message = Self::default();
        while let Some(field) = take_field(&mut body)? {
            match field {
                (1, Field::Bytes(_)) => message.has_wantlist = true,
                (2, Field::Bytes(data)) => message.blocks.push((Bytes::new(), data)),
                (3, Field::Bytes(block)) => message.blocks.push(decode_block(block)?),
                (4, Field::Bytes(presence)) => {
                    message.presences.push(decode_presence(presence)?);
                }
                (5, Field::Number(len)) => message.pending_bytes = len,
                _ => {}
            }
        }
        Ok(message)
    }
}

fn decode_block(mut bytes: Bytes) -> io::Result<(Bytes, Bytes)> {
    let (mut prefix, mut data) = (Bytes::new(), Bytes::new());
    while let Some(field) = take_field(&mut bytes)? {
        match field {
            (1, Field::Bytes(bytes)) => prefix = bytes,
            (2, Field::Bytes(bytes)) => data = bytes,
            _ => {}
        }
    }
    Ok((prefix, data))
}

fn decode_presence(mut bytes: Bytes) -> io::Result<(Cid, bool)> {
    let (mut name, mut kind) = (Bytes::new(), 0);
    while let Some(field) = take_field(&mut bytes)? {
        match field {
            (1, Field::Bytes(bytes)) => name = bytes,
            (2, Field::Number(number)) => kind = number,
            _ => {}
        }
    }
    let cid = cid::parse_bytes(&name).map_err(io::Error::other)?;
    Ok((cid, kind == 0))
}
