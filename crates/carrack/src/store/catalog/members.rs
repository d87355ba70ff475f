//! The containers that a root needs: sorted ids, coded as differences, in chunks.
//!
//! In       ascending ids. Out byte chunks of at most [`CHUNK_LEN_MAX`], and the ids again.
//! Not here who removes what (`remove`).

use super::codec::{Reader, Writer, damaged};
use crate::error::Result;
use crate::store::location::ContainerId;

/// Most bytes of a chunk: about 50,000 ids.
pub(super) const CHUNK_LEN_MAX: usize = 60 * 1024;

/// Chunks of the ids, which must ascend. The first id of each chunk is whole.
pub(super) fn encode(members: &[ContainerId]) -> Vec<Vec<u8>> {
    let mut chunks = Vec::new();
    let mut chunk = Writer::versioned(64);
    let mut last = 0;
    for member in members {
        debug_assert!(member.0 > last || last == 0);
        chunk.varint(member.0 - last);
        last = member.0;
        if chunk.bytes.len() + 10 > CHUNK_LEN_MAX {
            chunks.push(std::mem::replace(&mut chunk, Writer::versioned(64)).bytes);
            last = 0;
        }
    }
    if chunk.bytes.len() > 1 {
        chunks.push(chunk.bytes);
    }
    chunks
}

/// Calls `found` with each id of a chunk, ascending.
pub(super) fn decode(chunk: &[u8], mut found: impl FnMut(ContainerId)) -> Result<()> {
    let mut reader = Reader::versioned(chunk)?;
    let mut last = 0u64;
    while !reader.is_empty() {
        last = last.checked_add(reader.varint()?).ok_or_else(damaged)?;
        found(ContainerId(last));
    }
    Ok(())
}
