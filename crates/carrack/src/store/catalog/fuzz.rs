//! Values of the catalog: what is read is written as it was, so nothing has two forms.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use super::members;
use super::record::{
    ContainerRecord, DirRecord, PathKey, PathRecord, RootId, RootRecord, StaleMark, row_containers,
    segment_from_bytes, segment_to_bytes,
};
use crate::store::index::SegmentId;

/// The bytes are tried as a value of each table.
pub fn record(bytes: &[u8]) {
    let versioned = [&[1], bytes].concat();
    for bytes in [bytes, &versioned] {
        value(bytes);
    }
}

fn value(bytes: &[u8]) {
    let same = |written: Vec<u8>| assert_eq!(written, bytes);
    if let Ok(record) = ContainerRecord::from_bytes(bytes) {
        same(record.to_bytes());
    }
    if let Ok(record) = PathRecord::from_bytes(bytes) {
        assert_eq!(
            row_containers(bytes).unwrap(),
            [record.container, record.pack]
        );
        same(record.to_bytes());
    }
    if let Ok(record) = DirRecord::from_bytes(bytes) {
        assert_eq!(row_containers(bytes).unwrap()[1], record.pack);
        // The first field has no meaning here: rows of files have it.
        assert_eq!(record.to_bytes()[9..], bytes[9..]);
    }
    if let Ok(record) = RootRecord::from_bytes(RootId(1), bytes) {
        same(record.to_bytes());
    }
    if let Ok(mark) = StaleMark::from_bytes(bytes) {
        same(mark.to_bytes());
    }
    if let Ok(meta) = segment_from_bytes(SegmentId(1), bytes) {
        same(segment_to_bytes(&meta));
    }
    if let Ok(key) = PathKey::from_bytes(bytes) {
        assert_eq!(PathKey::from_bytes(&key.to_bytes()).unwrap(), key);
        let (start, end) = key.tree_range();
        assert!(start < end && key.to_bytes().starts_with(&start));
    }
    let (mut last, mut n_members) = (0, 0);
    let _ = members::decode(bytes, |member| {
        assert!(member.0 >= last);
        (last, n_members) = (member.0, n_members + 1);
    });
    assert!(n_members <= bytes.len());
}
