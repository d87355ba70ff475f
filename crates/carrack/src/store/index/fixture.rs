//! Segments that any version wrote must be read for ever.

use std::path::Path;
use std::sync::Arc;

use carrack_formats::Multihash;

use super::{Index, RunWriter, SegmentId, SegmentMeta, segment_name};
use crate::durable::temporary;
use crate::store::gate::WriteGate;
use crate::store::location::{ContainerId, Location};

/// Two tables: 100 keys of 32 bytes over two pages, and 3 of 20 bytes.
fn entries() -> Vec<(Multihash, Location)> {
    let mut entries = Vec::new();
    for seed in 0..103u64 {
        let digest = blake3::hash(&seed.to_le_bytes());
        let (code, len) = if seed < 100 { (0x12, 32) } else { (0x11, 20) };
        let location = Location {
            container: ContainerId((seed << 32) + 1),
            offset: seed << 39,
            len: seed as u32 + 5,
            wrapped: seed % 2 == 1,
        };
        entries.push((
            Multihash::wrap(code, &digest.as_bytes()[..len]).unwrap(),
            location,
        ));
    }
    entries
}

fn golden(name: &str) -> Vec<u8> {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    std::fs::read(fixtures.join(name)).unwrap()
}

#[test]
fn fixtures_of_all_versions_are_read() {
    for name in ["segment-v1.seg", "segment-v2.seg"] {
        let golden = golden(name);
        let dir = tempfile::tempdir().unwrap();
        let id = SegmentId(0x1234);
        std::fs::write(dir.path().join(segment_name(id)), &golden).unwrap();
        let meta = SegmentMeta {
            id,
            n_records: 103,
            len: golden.len() as u64,
        };
        let index = Index::open(dir.path(), &[meta]).unwrap();
        index.check().unwrap();
        for (key, location) in entries() {
            assert_eq!(index.first(&key), Some(location));
            index.vouch(&key).unwrap();
        }
    }
}

#[test]
fn the_fixture_is_written_again_byte_for_byte() {
    let again = tempfile::tempdir().unwrap();
    let id = SegmentId(0x1234);
    let mut run = RunWriter::new(again.path(), id, Arc::new(WriteGate::default()));
    for (key, location) in entries() {
        run.push(&key, location).unwrap();
    }
    let meta = run.finish().unwrap().unwrap();
    let golden = golden("segment-v2.seg");
    assert_eq!((meta.n_records, meta.len), (103, golden.len() as u64));
    let bytes = std::fs::read(temporary(&again.path().join(segment_name(id)))).unwrap();
    assert!(bytes == golden, "new bytes need a new version");
}
