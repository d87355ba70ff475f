//! The index against a `BTreeMap`, and against damaged files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use carrack_formats::Multihash;
use proptest::prelude::*;

use super::format::{self, Header, PAGE_LEN};
use super::{
    Index, LOCATIONS_MAX, Merged, RunWriter, SegmentId, SegmentMeta, merge, plan_merge,
    segment_name,
};
use crate::durable::temporary;
use crate::error::ErrorKind;
use crate::store::gate::WriteGate;
use crate::store::location::{ContainerId, Location};

const SHA2_256: u64 = 0x12;
static NEVER: AtomicBool = AtomicBool::new(false);

/// A uniform digest of `len` bytes.
fn digest(seed: u64, len: usize) -> Vec<u8> {
    let mut digest = vec![0; len];
    blake3::Hasher::new()
        .update(&seed.to_le_bytes())
        .finalize_xof()
        .fill(&mut digest);
    digest
}

fn key(seed: u64) -> Multihash {
    Multihash::wrap(SHA2_256, &digest(seed, 32)).unwrap()
}

fn at(container: u64, offset: u64) -> Location {
    let len = (offset % 1000) as u32;
    Location {
        container: ContainerId(container),
        offset,
        len,
        wrapped: offset.is_multiple_of(3),
    }
}

fn gate() -> Arc<WriteGate> {
    Arc::new(WriteGate::default())
}

fn write(dir: &Path, id: u64, entries: &[(Multihash, Location)]) -> Option<SegmentMeta> {
    let mut run = RunWriter::new(dir, SegmentId(id), gate());
    for (key, location) in entries {
        run.push(key, *location).unwrap();
    }
    run.finish().unwrap()
}

fn get(index: &Index, key: &Multihash) -> Vec<Location> {
    let mut out = Vec::new();
    index.get(key, &mut out);
    out
}

#[test]
fn every_entry_is_found_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    for n in [1u64, 2, 88, 89, 90, 178, 179, 10_000] {
        let entries: Vec<_> = (0..n).map(|i| (key(i), at(i % 7, i * 1000 + i))).collect();
        let meta = write(dir.path(), n, &entries).unwrap();
        assert_eq!(meta.n_records, n);
        let index = Index::open(dir.path(), &[meta]).unwrap();
        index.check().unwrap();
        for (key, location) in &entries {
            assert_eq!(get(&index, key), [*location]);
        }
        for i in n..n + 1000 {
            assert!(!index.contains(&key(i)));
        }
        let keys: Vec<_> = entries
            .iter()
            .map(|entry| entry.0)
            .chain([key(n)])
            .collect();
        let many = index.get_many(&keys);
        assert_eq!(many.len(), keys.len());
        assert_eq!(many.last(), Some(&None));
        assert!(
            many.iter()
                .zip(&entries)
                .all(|(found, entry)| *found == Some(entry.1))
        );
    }
}

#[test]
fn an_empty_run_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    assert!(write(dir.path(), 1, &[]).is_none());
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    let index = Index::open(dir.path(), &[]).unwrap();
    assert!(!index.contains(&key(1)));
    assert_eq!(index.n_records(), 0);
}

#[test]
fn a_dropped_run_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = RunWriter::new(dir.path(), SegmentId(1), gate());
    run.push(&key(1), at(1, 1)).unwrap();
    drop(run);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn several_locations_cross_page_borders() {
    let dir = tempfile::tempdir().unwrap();
    // 300 locations of one key fill more than three pages; neighbours lie on both sides.
    let mut entries: Vec<_> = (0..500).map(|i| (key(i), at(1, i))).collect();
    entries.extend((2..302).map(|container| (key(77), at(container, container))));
    let meta = write(dir.path(), 1, &entries).unwrap();
    let index = Index::open(dir.path(), &[meta]).unwrap();
    let mut all = Vec::new();
    index.visit_many(&[key(77)], |_, location| all.push(location));
    assert_eq!(all.len(), 301);
    assert!(all.is_sorted(), "lowest container first");
    assert_eq!(get(&index, &key(77)).len(), LOCATIONS_MAX);
    for i in 0..500 {
        assert!(index.contains(&key(i)));
    }
}

#[test]
fn one_container_gives_one_record_with_its_lowest_offset() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = RunWriter::new(dir.path(), SegmentId(1), gate());
    for offset in (0..100_000).rev() {
        run.push(&key(1), at(5, offset + 10)).unwrap();
    }
    let mut other = RunWriter::new(dir.path(), SegmentId(2), gate());
    for offset in 0..100_000 {
        other.push(&key(1), at(5, offset + 10)).unwrap();
    }
    assert_eq!(other.len(), 1, "repetitions cost no memory");
    for run in [run, other] {
        let meta = run.finish().unwrap().unwrap();
        assert_eq!(meta.n_records, 1);
        let index = Index::open(dir.path(), &[meta]).unwrap();
        assert_eq!(get(&index, &key(1)), [at(5, 10)]);
    }
}

#[test]
fn kinds_of_digest_do_not_mix() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = Vec::new();
    for (code, len) in [
        (SHA2_256, 32),
        (0x13, 64),
        (0x11, 20),
        (0xb220, 32),
        (0x1e, 128),
        (0x1e, 21),
    ] {
        for seed in 0..200 {
            let key = Multihash::wrap(code, &digest(seed, len)).unwrap();
            entries.push((key, at(code, seed)));
        }
    }
    let meta = write(dir.path(), 1, &entries).unwrap();
    let index = Index::open(dir.path(), &[meta]).unwrap();
    index.check().unwrap();
    for (key, location) in &entries {
        assert_eq!(get(&index, key), [*location]);
    }
    let other_code = Multihash::wrap(0x14, &digest(1, 32)).unwrap();
    let cut = Multihash::wrap(SHA2_256, &digest(1, 31)).unwrap();
    assert!(!index.contains(&other_code) && !index.contains(&cut));
}

#[test]
fn digests_that_are_not_uniform_are_found() {
    let dir = tempfile::tempdir().unwrap();
    let mut entries = Vec::new();
    for i in 0..2000u64 {
        // All share their first 16 bytes: filter, fence and guesses say nothing.
        let mut digest = vec![0xff; 32];
        digest[24..].copy_from_slice(&i.to_le_bytes());
        entries.push((Multihash::wrap(SHA2_256, &digest).unwrap(), at(1, i)));
        // These crowd at the low end.
        let mut low = vec![0; 32];
        low[4..12].copy_from_slice(&(i * i).swap_bytes().to_le_bytes());
        entries.push((Multihash::wrap(SHA2_256, &low).unwrap(), at(2, i)));
    }
    let meta = write(dir.path(), 1, &entries).unwrap();
    let index = Index::open(dir.path(), &[meta]).unwrap();
    for (key, location) in &entries {
        assert_eq!(get(&index, key), [*location]);
    }
}

#[test]
fn what_no_record_holds_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut run = RunWriter::new(dir.path(), SegmentId(1), gate());
    for len in [0, 1, 19] {
        let short = Multihash::wrap(SHA2_256, &digest(1, len)).unwrap();
        assert_eq!(
            run.push(&short, at(1, 1)).unwrap_err().kind(),
            ErrorKind::Invalid
        );
    }
    let most = Location {
        container: ContainerId(Location::CONTAINER_END - 1),
        offset: Location::OFFSET_END - 1,
        len: Location::LEN_END - 1,
        wrapped: true,
    };
    run.push(&key(1), most).unwrap();
    for beyond in [
        Location {
            container: ContainerId(Location::CONTAINER_END),
            ..most
        },
        Location {
            offset: Location::OFFSET_END,
            ..most
        },
        Location {
            len: Location::LEN_END,
            ..most
        },
    ] {
        assert_eq!(
            run.push(&key(1), beyond).unwrap_err().kind(),
            ErrorKind::Limit
        );
    }
    let meta = run.finish().unwrap().unwrap();
    let index = Index::open(dir.path(), &[meta]).unwrap();
    assert_eq!(get(&index, &key(1)), [most]);
}

#[test]
fn filters_let_few_strangers_pass() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..50_000).map(|i| (key(i), at(1, i))).collect();
    let meta = write(dir.path(), 1, &entries).unwrap();
    let segment = super::Segment::open(
        temporary(&dir.path().join(segment_name(meta.id))),
        &meta,
        false,
    )
    .unwrap();
    let table = segment.tables().next().unwrap();
    let passed = (1_000_000..1_100_000u64)
        .filter(|&i| segment.may_contain(&table, super::Probe::new(key(i).digest())))
        .count();
    assert!(passed < 1000, "{passed} of 100,000");
}

#[test]
fn every_cut_of_the_header_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..100).map(|i| (key(i), at(1, i))).collect();
    let meta = write(dir.path(), 1, &entries).unwrap();
    let bytes = std::fs::read(temporary(&dir.path().join(segment_name(meta.id)))).unwrap();
    for cut in (0..PAGE_LEN + 100).chain([bytes.len() - 1]) {
        let error = Header::parse(&bytes[..cut]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "cut at {cut}");
    }
    Header::parse(&bytes).unwrap();
}

#[test]
fn every_flipped_bit_of_the_header_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let meta = write(dir.path(), 1, &[(key(1), at(1, 1))]).unwrap();
    let mut bytes = std::fs::read(temporary(&dir.path().join(segment_name(meta.id)))).unwrap();
    for bit in 0..PAGE_LEN * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        assert!(Header::parse(&bytes).is_err(), "bit {bit}");
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
}

#[test]
fn lying_headers_with_right_checksums_are_errors() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..300).map(|i| (key(i), at(1, i))).collect();
    let meta = write(dir.path(), 1, &entries).unwrap();
    let bytes = std::fs::read(temporary(&dir.path().join(segment_name(meta.id)))).unwrap();
    let honest = Header::parse(&bytes).unwrap();
    let lies: [fn(&mut Header); 11] = [
        |h| h.file_len += 1,
        |h| h.n_records += 1,
        |h| h.tables[0].n_pages = u64::MAX / 8,
        |h| h.tables[0].n_records = u64::MAX,
        |h| h.tables[0].n_filter_blocks = u64::MAX / 64,
        |h| h.tables[0].n_filter_blocks = 0,
        |h| h.tables[0].records_offset = 0,
        |h| h.tables[0].records_offset = u64::MAX - 4095,
        |h| h.tables.push(h.tables[0]),
        |h| h.tables[0].page_sums_offset = 0,
        |h| h.tables[0].page_sums_offset = u64::MAX - 3,
    ];
    for (index, lie) in lies.iter().enumerate() {
        let mut header = honest.clone();
        lie(&mut header);
        let mut forged = bytes.clone();
        forged.splice(..PAGE_LEN, header.encode(PAGE_LEN));
        assert_eq!(
            Header::parse(&forged).unwrap_err().kind(),
            ErrorKind::Corrupt,
            "lie {index}"
        );
    }
    let mut newer = bytes;
    newer[8] = 3;
    assert_eq!(
        Header::parse(&newer).unwrap_err().kind(),
        ErrorKind::Invalid
    );
}

#[test]
fn damaged_sections_are_named_by_check_and_never_merged() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..300).map(|i| (key(i), at(1, i))).collect();
    let meta = write(dir.path(), 1, &entries).unwrap();
    let path = temporary(&dir.path().join(segment_name(meta.id)));
    let honest = std::fs::read(&path).unwrap();
    let layout = Header::parse(&honest).unwrap().tables[0];
    for (what, offset) in [
        ("filter", layout.filter_offset),
        ("fence", layout.fence_offset),
        ("records", layout.records_offset + 4000),
        ("page sums", layout.page_sums_offset + 1),
    ] {
        let mut bytes = honest.clone();
        bytes[offset as usize] ^= 0x10;
        std::fs::remove_file(&path).unwrap(); // A map of the old one may still be open.
        std::fs::write(&path, &bytes).unwrap();
        if what == "filter" || what == "fence" {
            // A filter that lost a bit would hide blocks: it is checked on its way into memory.
            let error = Index::open(dir.path(), &[meta]).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt);
            assert!(error.chain().contains(what), "{}", error.chain());
        }
        let index = Index::open_with(dir.path(), &[meta], 0).unwrap();
        let error = index.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.to_string().contains(what), "{error}");
        // Look-ups in damaged bytes answer something and do not panic.
        for i in 0..400 {
            let _ = get(&index, &key(i));
        }
        if what == "records" {
            let inputs = index.live_segments();
            let error = merge(
                dir.path(),
                SegmentId(9),
                &gate(),
                &inputs,
                &mut |_| Ok(false),
                &NEVER,
            );
            assert_eq!(error.unwrap_err().kind(), ErrorKind::Corrupt);
            assert_eq!(
                std::fs::read_dir(dir.path()).unwrap().count(),
                1,
                "nothing is left"
            );
        }
    }
}

/// A key that was lost to a flipped bit is not taken for one that was never there.
#[test]
fn a_key_in_a_damaged_page_is_an_error_and_no_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..300).map(|i| (key(i), at(1, i))).collect();
    let meta = write(dir.path(), 1, &entries).unwrap();
    let path = temporary(&dir.path().join(segment_name(meta.id)));
    let honest = std::fs::read(&path).unwrap();
    let layout = Header::parse(&honest).unwrap().tables[0];
    let first = layout.records_offset as usize;
    for digest_byte in 0..32 {
        let mut bytes = honest.clone();
        bytes[first + 10 * layout.record_len() + digest_byte] ^= 0x20;
        std::fs::remove_file(&path).unwrap(); // A map of the old one may still be open.
        std::fs::write(&path, &bytes).unwrap();
        let index = Index::open(dir.path(), &[meta]).unwrap();
        let mut n_lost = 0;
        for (key, _) in &entries {
            let mut out = Vec::new();
            match index.locate(key, &mut out) {
                Ok(()) => assert_eq!(out.len(), 1),
                Err(error) => {
                    n_lost += 1;
                    assert_eq!(error.kind(), ErrorKind::Corrupt);
                    assert!(
                        error.to_string().contains("carrack index rebuild"),
                        "{error}"
                    );
                }
            }
        }
        assert!((1..90).contains(&n_lost), "{n_lost}");
    }
    // A wrong place is found by whoever asks after its bytes were wrong.
    let mut bytes = honest;
    bytes[first + 33] ^= 1;
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, &bytes).unwrap();
    let index = Index::open(dir.path(), &[meta]).unwrap();
    let refuted = entries
        .iter()
        .filter(|entry| index.vouch(&entry.0).is_err());
    assert!(refuted.count() > 0);
}

#[test]
fn a_missing_or_swapped_segment_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let one = write(dir.path(), 1, &[(key(1), at(1, 1))]).unwrap();
    let two = write(dir.path(), 2, &[(key(2), at(1, 1))]).unwrap();
    let name = |meta: SegmentMeta| temporary(&dir.path().join(segment_name(meta.id)));
    std::fs::copy(name(one), name(two)).unwrap();
    assert_eq!(
        Index::open(dir.path(), &[two]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    std::fs::remove_file(name(two)).unwrap();
    assert_eq!(
        Index::open(dir.path(), &[two]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    std::fs::write(name(two), b"").unwrap();
    assert_eq!(
        Index::open(dir.path(), &[two]).unwrap_err().kind(),
        ErrorKind::Corrupt
    );
}

#[test]
fn a_stopped_merge_leaves_no_file() {
    let dir = tempfile::tempdir().unwrap();
    let entries: Vec<_> = (0..20_000).map(|i| (key(i), at(1, i))).collect();
    let meta = write(dir.path(), 1, &entries).unwrap();
    let inputs = Index::open(dir.path(), &[meta]).unwrap().live_segments();
    let stop = AtomicBool::new(true);
    let merged = merge(
        dir.path(),
        SegmentId(2),
        &gate(),
        &inputs,
        &mut |_| Ok(false),
        &stop,
    );
    assert_eq!(merged.unwrap(), Merged::Stopped);
    let merged = merge(
        dir.path(),
        SegmentId(2),
        &gate(),
        &inputs,
        &mut |_| Ok(true),
        &NEVER,
    );
    assert_eq!(merged.unwrap(), Merged::Empty);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn tiers_fill_at_eight() {
    let meta = |id: u64, n_records: u64| SegmentMeta {
        id: SegmentId(id),
        n_records,
        len: 0,
    };
    let mut segments: Vec<_> = (0..7).map(|id| meta(id, 10)).collect();
    segments.extend((10..17).map(|id| meta(id, 5000)));
    assert_eq!(plan_merge(&segments), None);
    segments.push(meta(20, 32_767));
    let planned = plan_merge(&segments).unwrap();
    assert_eq!(planned.len(), 8);
    assert!(planned.contains(&SegmentId(20)) && !planned.contains(&SegmentId(1)));
    segments.push(meta(30, 4095));
    assert!(
        plan_merge(&segments).unwrap().contains(&SegmentId(30)),
        "the lowest tier first"
    );
    let many: Vec<_> = (0..100).map(|id| meta(id, 1)).collect();
    assert_eq!(plan_merge(&many).unwrap().len(), super::INPUTS_MAX);
}

#[test]
fn readers_keep_segments_that_were_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let one = write(dir.path(), 1, &[(key(1), at(1, 1))]).unwrap();
    let index = Index::open(dir.path(), &[one]).unwrap();
    let held = index.live_segments();
    index.replace(&[one.id], Vec::new());
    std::fs::remove_file(temporary(&dir.path().join(segment_name(one.id)))).unwrap();
    assert!(!index.contains(&key(1)));
    held[0].check().unwrap();
}

/// One step of the model test.
#[derive(Debug, Clone)]
enum Op {
    /// Entries as (key seed, digest kind, container, offset).
    Run(Vec<(u64, u8, u64, u64)>),
    /// Kills a container.
    Kill(u64),
    /// Merges the segments whose index bit is set.
    Merge(u16),
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let entry = (0..60u64, 0..3u8, 1..8u64, 0..2000u64);
    prop_oneof![
        4 => prop::collection::vec(entry, 0..400).prop_map(Op::Run),
        1 => (1..8u64).prop_map(Op::Kill),
        2 => any::<u16>().prop_map(Op::Merge),
        1 => Just(Op::Reopen),
    ]
}

fn model_key(seed: u64, kind: u8) -> Multihash {
    let (code, len) = [(SHA2_256, 32), (0x11, 20), (0x13, 64)][usize::from(kind)];
    Multihash::wrap(code, &digest(seed, len)).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn the_index_behaves_like_a_map(ops in prop::collection::vec(op(), 1..20)) {
        let dir = tempfile::tempdir().unwrap();
        let mut index = Index::open(dir.path(), &[]).unwrap();
        // (key, container) to the lowest offset: one record each in a run; several over runs
        // until they are merged.
        let mut model: BTreeMap<(u64, u8), BTreeSet<Location>> = BTreeMap::new();
        let mut dead = BTreeSet::new();
        let mut next_id = 1;
        for op in ops {
            match op {
                Op::Run(entries) => {
                    let mut run: BTreeMap<(u64, u8, u64), Location> = BTreeMap::new();
                    let mut listed = Vec::new();
                    for (seed, kind, container, offset) in entries {
                        if dead.contains(&container) {
                            continue; // Ids are never reused.
                        }
                        let location = at(container, offset);
                        listed.push((model_key(seed, kind), location));
                        let least = run.entry((seed, kind, container)).or_insert(location);
                        *least = location.min(*least);
                    }
                    if let Some(meta) = write(dir.path(), next_id, &listed) {
                        prop_assert_eq!(meta.n_records, run.len() as u64);
                        let path = temporary(&dir.path().join(segment_name(meta.id)));
                        let segment = super::Segment::open(path, &meta, false).unwrap();
                        index.replace(&[], vec![Arc::new(segment)]);
                    }
                    next_id += 1;
                    for ((seed, kind, _), location) in run {
                        model.entry((seed, kind)).or_default().insert(location);
                    }
                }
                Op::Kill(container) => {
                    dead.insert(container);
                }
                Op::Merge(mask) => {
                    let inputs: Vec<_> = index
                        .live_segments()
                        .into_iter()
                        .enumerate()
                        .filter(|(bit, _)| mask >> (bit % 16) & 1 == 1)
                        .map(|(_, segment)| segment)
                        .collect();
                    let ids: Vec<_> = inputs.iter().map(|input| input.meta().id).collect();
                    let merged = merge(
                        dir.path(),
                        SegmentId(next_id),
                        &gate(),
                        &inputs,
                        &mut |location| Ok(dead.contains(&location.container.0)),
                        &NEVER,
                    );
                    next_id += 1;
                    let added = match merged.unwrap() {
                        Merged::Segment(meta) => {
                            let path = temporary(&dir.path().join(segment_name(meta.id)));
                            vec![Arc::new(super::Segment::open(path, &meta, false).unwrap())]
                        }
                        Merged::Empty => Vec::new(),
                        Merged::Stopped => unreachable!("nobody raised the flag"),
                    };
                    index.replace(&ids, added);
                    for id in ids {
                        let path = temporary(&dir.path().join(segment_name(id)));
                        std::fs::remove_file(path).unwrap();
                    }
                }
                Op::Reopen => index = Index::open(dir.path(), &index.segments()).unwrap(),
            }
            index.check().unwrap();
            for seed in 0..62 {
                for kind in 0..3 {
                    let mut found = BTreeSet::new();
                    index.visit_many(&[model_key(seed, kind)], |_, location| {
                        found.insert(location);
                    });
                    // Merging may drop all but the lowest offset of a container, and the dead.
                    let known = model.get(&(seed, kind)).cloned().unwrap_or_default();
                    prop_assert!(found.is_subset(&known));
                    let lowest: BTreeMap<_, _> = known
                        .iter()
                        .rev()
                        .filter(|location| !dead.contains(&location.container.0))
                        .map(|location| (location.container, *location))
                        .collect();
                    prop_assert!(lowest.values().all(|location| found.contains(location)));
                }
            }
        }
    }

    #[test]
    fn headers_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..5000)) {
        let _ = Header::parse(&bytes);
        let mut headed = format::MAGIC.to_vec();
        headed.extend_from_slice(&1u32.to_le_bytes());
        headed.extend_from_slice(&bytes);
        prop_assert!(Header::parse(&headed).is_err());
    }
}
