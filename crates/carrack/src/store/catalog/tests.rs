//! The catalog against maps in memory, its key order, and its bytes against the fixture.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::Arc;

use carrack_formats::{Cid, Multihash};
use proptest::prelude::*;

use super::codec::Reader;
use super::record::{row_containers, segment_to_bytes};
use super::{
    Batch, Catalog, ContainerKind, ContainerRecord, DirRecord, FileStamp, FileTime, NextIds,
    ObjectStamp, Outcome, PathKey, PathRecord, RootId, RootKind, RootRecord, SOURCE_FIRST,
    SOURCE_LOCAL, SOURCE_STORE, SourceRecord, StaleMark, StaleReason, Validator, members,
    validator_bytes,
};
use crate::error::ErrorKind;
use crate::store::gate::WriteGate;
use crate::store::index::{SegmentId, SegmentMeta};
use crate::store::location::ContainerId;

fn open(dir: &Path) -> Catalog {
    let path = dir.join("catalog.redb");
    if !path.is_file() {
        let file = std::fs::File::create_new(&path).unwrap();
        drop(file);
        let file = std::fs::File::options().read(true).write(true).open(&path);
        Catalog::make(&file.unwrap(), &path, &WriteGate::default()).unwrap();
    }
    try_open(dir).unwrap()
}

fn try_open(dir: &Path) -> crate::Result<Catalog> {
    let opened = Catalog::open(&dir.join("catalog.redb"), &Arc::default(), false);
    opened.map(|(catalog, _)| catalog)
}

fn commit(catalog: &Catalog, batch: Batch) -> Vec<u64> {
    let Outcome::Done(committed) = catalog.commit(batch, NextIds::FIRST) else {
        panic!("a commit failed");
    };
    committed.removed_containers.iter().map(|id| id.0).collect()
}

fn cid(seed: u64) -> Cid {
    let digest = blake3::hash(&seed.to_le_bytes());
    Cid::new_v1(0x70, Multihash::wrap(0x12, digest.as_bytes()).unwrap())
}

fn validator(seed: u64) -> Validator {
    Validator::File(FileStamp {
        dev: 1,
        ino: seed,
        size: seed * 3,
        mtime: FileTime {
            secs: -5,
            nanos: 999_999_999,
        },
        ctime: FileTime {
            secs: 1 << 40,
            nanos: 0,
        },
    })
}

fn container(path: &str, kind: ContainerKind) -> ContainerRecord {
    let source = if kind == ContainerKind::Pack {
        SOURCE_STORE
    } else {
        SOURCE_LOCAL
    };
    let path = path.as_bytes().to_vec();
    ContainerRecord {
        kind,
        source,
        path,
        size: 1 << 50,
        validator: validator(4),
    }
}

fn key(path: &str) -> PathKey {
    PathKey {
        source: SOURCE_LOCAL,
        profile: 7,
        path: path.as_bytes().to_vec(),
    }
}

fn path_record(file: Option<u64>, pack: Option<u64>) -> PathRecord {
    PathRecord {
        container: file.map(ContainerId),
        pack: pack.map(ContainerId),
        validator: validator(2),
        cid: cid(1),
        file_len: 10,
        dag_len: 20,
        n_blocks: 3,
    }
}

fn dir_record(pack: u64) -> DirRecord {
    DirRecord {
        fingerprint: [9; 32],
        pack: Some(ContainerId(pack)),
        cid: cid(2),
        file_len: 100,
        dag_len: 200,
        n_blocks: 1,
        n_entries: 5,
    }
}

fn root(id: u64, seed: u64) -> RootRecord {
    RootRecord {
        id: RootId(id),
        cid: cid(seed),
        path: b"/data/a".to_vec(),
        name: b"a".to_vec(),
        profile: 7,
        kind: RootKind::Add,
        created_unix: 1_700_000_000,
        bytes: 100,
        n_blocks: 4,
        n_files: 2,
        source: SOURCE_LOCAL,
        is_whole: false,
    }
}

fn ids(numbers: impl IntoIterator<Item = u64>) -> Vec<ContainerId> {
    numbers.into_iter().map(ContainerId).collect()
}

#[test]
fn rows_come_back_after_a_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path());
    let mut batch = Batch::new();
    batch.put_container(ContainerId(1), &container("/data/a/f", ContainerKind::File));
    batch.put_container(ContainerId(2), &container("0001.car", ContainerKind::Pack));
    batch.put_path(&key("/data/a/f"), &path_record(Some(1), Some(2)));
    batch.put_dir(&key("/data/a"), &dir_record(2));
    batch.put_root(root(1, 5), ids([2, 1, 2]));
    let mark = StaleMark {
        reason: StaleReason::Short,
        observed: Some(validator(9)),
        since_unix: 5,
        offset: 1 << 40,
        len: 77,
        ranges: Vec::new(),
    };
    batch.put_stale(ContainerId(1), mark.clone());
    let segment = SegmentMeta {
        id: SegmentId(3),
        n_records: 9,
        len: 8192,
    };
    batch.add_segment(segment);
    assert!(!batch.is_empty());
    commit(&catalog, batch);
    drop(catalog);

    let catalog = open(dir.path());
    let snapshot = catalog.snapshot();
    let stored = snapshot.container(ContainerId(1)).unwrap().unwrap();
    assert_eq!(stored, container("/data/a/f", ContainerKind::File));
    assert_eq!(
        snapshot.packs().unwrap(),
        [(b"0001.car".to_vec(), ContainerId(2))]
    );
    let stored = snapshot.path(&key("/data/a/f")).unwrap();
    assert_eq!(stored, Some(path_record(Some(1), Some(2))));
    assert_eq!(snapshot.dir(&key("/data/a")).unwrap(), Some(dir_record(2)));
    assert_eq!(snapshot.root(RootId(1)).unwrap(), Some(root(1, 5)));
    assert_eq!(snapshot.roots_of_cid(&cid(5)).unwrap(), [root(1, 5)]);
    assert_eq!(snapshot.roots_of_cid(&cid(6)).unwrap(), []);
    assert_eq!(snapshot.roots_of_path(b"/data/a").unwrap().len(), 1);
    assert_eq!(snapshot.members(RootId(1)).unwrap(), ids([1, 2]));
    assert_eq!(snapshot.stale(ContainerId(1)).unwrap(), Some(mark.clone()));
    assert_eq!(snapshot.stale_marks().unwrap(), [(ContainerId(1), mark)]);
    assert_eq!(snapshot.segments().unwrap(), [segment]);

    let mut batch = Batch::new();
    batch.clear_stale(ContainerId(1));
    commit(&catalog, batch);
    assert_eq!(
        snapshot.stale_marks().unwrap().len(),
        1,
        "a snapshot does not change"
    );
    assert_eq!(catalog.snapshot().stale(ContainerId(1)).unwrap(), None);
}

#[test]
fn a_tree_is_one_range_in_walk_order() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path());
    // As a walk goes that takes the entries of each directory by name: a, a/b, a/b/c, a!b ...
    let walk = [
        "/a",
        "/a/b",
        "/a/b/c",
        "/a/b/d",
        "/a/b!",
        "/a/b.txt",
        "/a/b\u{ff}",
        "/a!",
        "/aa",
        "/b",
    ];
    let mut batch = Batch::new();
    for path in walk.iter().rev() {
        batch.put_path(&key(path), &path_record(None, None));
    }
    let other = PathKey {
        profile: 8,
        ..key("/a/b")
    };
    batch.put_path(&other, &path_record(None, None));
    commit(&catalog, batch);
    let below = |path: &str| -> Vec<String> {
        let rows = catalog.snapshot().paths_below(&key(path)).unwrap();
        rows.map(|row| String::from_utf8(row.unwrap().0.path).unwrap())
            .collect()
    };
    assert_eq!(below("/"), walk);
    assert_eq!(below(""), walk);
    assert_eq!(below("/a/b"), ["/a/b", "/a/b/c", "/a/b/d"]);
    assert_eq!(below("/a/b/"), ["/a/b", "/a/b/c", "/a/b/d"]);
    assert_eq!(below("/a"), walk[..7]);
    assert_eq!(below("/b"), ["/b"]);
    assert_eq!(below("/c"), [""; 0]);
    let mut batch = Batch::new();
    batch.remove_path(&key("/a/b/c"));
    commit(&catalog, batch);
    assert_eq!(below("/a/b"), ["/a/b", "/a/b/d"]);
    assert!(catalog.snapshot().path(&other).unwrap().is_some());
}

#[test]
fn removing_a_root_takes_what_only_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path());
    let mut batch = Batch::new();
    for id in 1..=4 {
        batch.put_container(
            ContainerId(id),
            &container(&format!("/f{id}"), ContainerKind::File),
        );
        batch.put_path(&key(&format!("/f{id}")), &path_record(Some(id), Some(9)));
    }
    batch.put_container(ContainerId(9), &container("p.car", ContainerKind::Pack));
    batch.put_container(ContainerId(8), &container("q.car", ContainerKind::Pack));
    batch.put_dir(&key("/shared"), &dir_record(9));
    batch.put_dir(&key("/own"), &dir_record(8));
    batch.put_root(root(1, 1), ids([1, 2, 3, 8, 9]));
    batch.put_root(root(2, 1), ids([3, 4, 9]));
    commit(&catalog, batch);
    assert_eq!(catalog.snapshot().roots_of_cid(&cid(1)).unwrap().len(), 2);

    let mut batch = Batch::new();
    batch.remove_root(RootId(1));
    batch.remove_root(RootId(77)); // Not there: nothing happens.
    assert_eq!(commit(&catalog, batch), [1, 2, 8]);
    let snapshot = catalog.snapshot();
    assert_eq!(snapshot.roots().unwrap(), [root(2, 1)]);
    assert_eq!(snapshot.members(RootId(1)).unwrap(), []);
    assert!(snapshot.path(&key("/f1")).unwrap().is_none());
    assert!(snapshot.path(&key("/f3")).unwrap().is_some());
    assert!(
        snapshot.dir(&key("/own")).unwrap().is_none(),
        "its blocks are gone"
    );
    assert!(snapshot.dir(&key("/shared")).unwrap().is_some());
    assert_eq!(snapshot.packs().unwrap().len(), 1);

    // Replaced in one transaction: what both need stays.
    let mut batch = Batch::new();
    batch.put_root(root(3, 2), ids([4, 9]));
    batch.remove_root(RootId(2));
    assert_eq!(commit(&catalog, batch), [3]);
    let mut batch = Batch::new();
    batch.put_container(ContainerId(20), &container("/late", ContainerKind::File));
    commit(&catalog, batch);
    let mut batch = Batch::new();
    batch.remove_unneeded();
    assert_eq!(commit(&catalog, batch), [20]);
}

#[test]
fn member_lists_of_any_size_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path());
    let long: Vec<u64> = (0..200_000).map(|i| i * 300 + 1).collect();
    let lists = [
        vec![],
        vec![1],
        vec![(1 << 40) - 1],
        vec![1, (1 << 40) - 1],
        long.clone(),
    ];
    for (id, list) in (1..).zip(lists) {
        let mut batch = Batch::new();
        batch.put_root(root(id, id), ids(list.iter().copied().rev()));
        commit(&catalog, batch);
        assert_eq!(catalog.snapshot().members(RootId(id)).unwrap(), ids(list));
    }
    for chunk in members::encode(&ids(long)) {
        assert!(chunk.len() <= members::CHUNK_LEN_MAX);
    }
    let mut batch = Batch::new();
    batch.put_root(root(5, 5), ids([7]));
    commit(&catalog, batch);
    assert_eq!(
        catalog.snapshot().members(RootId(5)).unwrap(),
        ids([7]),
        "old chunks are gone"
    );
}

/// A command that only reads changes no byte, and needs no disk that can be written.
#[test]
fn reading_leaves_the_file_alone_and_writing_goes_on_from_there() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("catalog.redb");
    let catalog = open(dir.path());
    commit(&catalog, Batch::new());
    drop(catalog);
    let before = std::fs::read(&path).unwrap();
    let catalog = open(dir.path());
    assert!(catalog.access.lock().unwrap().is_reading());
    let old = catalog.snapshot();
    assert_eq!(old.n_containers().unwrap(), 0);
    assert_eq!(std::fs::read(&path).unwrap(), before);
    let mut batch = Batch::new();
    batch.put_container(ContainerId(7), &container("/x", ContainerKind::File));
    commit(&catalog, batch);
    assert_eq!(old.n_containers().unwrap(), 0, "a snapshot stays");
    assert_eq!(catalog.snapshot().n_containers().unwrap(), 1);
    drop((old, catalog));
    assert_eq!(open(dir.path()).snapshot().n_containers().unwrap(), 1);
}

#[test]
fn a_newer_catalog_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path());
    let mut access = catalog.access.lock().unwrap();
    access.begin_writing().unwrap();
    let transaction = access.begin_write().unwrap();
    transaction
        .open_table(super::META)
        .unwrap()
        .insert("format", 2)
        .unwrap();
    transaction.commit().unwrap();
    drop(access);
    drop(catalog);
    let error = try_open(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn a_file_that_is_no_catalog_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    for bytes in [vec![], vec![7; 10], vec![0; 100_000]] {
        std::fs::write(dir.path().join("catalog.redb"), bytes).unwrap();
        let error = try_open(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    }
}

/// The rows of the fixture: name and bytes as `docs/formats/catalog.md` has them.
fn fixture_rows() -> Vec<(&'static str, Vec<u8>)> {
    let mark = StaleMark {
        reason: StaleReason::Changed,
        observed: Some(validator(9)),
        since_unix: 5,
        offset: 6,
        len: 7,
        ranges: Vec::new(),
    };
    let damaged = StaleMark {
        reason: StaleReason::Mismatch,
        ranges: vec![6..13, 20..1 << 33],
        ..mark.clone()
    };
    let segment = SegmentMeta {
        id: SegmentId(3),
        n_records: 9,
        len: 8192,
    };
    vec![
        ("path key", key("/a/b").to_bytes()),
        (
            "container",
            container("/a/b", ContainerKind::Car).to_bytes(),
        ),
        ("path", path_record(Some(1), Some(2)).to_bytes()),
        ("dir", dir_record(2).to_bytes()),
        ("root", root(1, 5).to_bytes()),
        ("root cid key", super::root_cid_key(&cid(5), RootId(1))),
        ("members", members::encode(&ids([1, 2, 300])).remove(0)),
        ("stale", mark.to_bytes()),
        ("stale with ranges", damaged.to_bytes()),
        ("segment", segment_to_bytes(&segment)),
    ]
}

#[test]
fn values_have_the_bytes_of_version_1() {
    let mut text = String::new();
    for (name, bytes) in fixture_rows() {
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        text.push_str(&format!("{name}: {hex}\n"));
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/catalog-v1.txt");
    assert_eq!(
        text,
        std::fs::read_to_string(&path).unwrap(),
        "new bytes need a new version"
    );
}

/// Marks from before there were ranges are of the block that was read, or of the whole container.
#[test]
fn marks_without_ranges_read_on() {
    let mark = |reason, ranges| StaleMark {
        reason,
        observed: Some(validator(9)),
        since_unix: 5,
        offset: 6,
        len: 7,
        ranges,
    };
    let mut row = mark(StaleReason::Changed, Vec::new()).to_bytes();
    for (byte, reason) in [
        (0, StaleReason::Changed),
        (1, StaleReason::Missing),
        (2, StaleReason::Unreadable),
        (3, StaleReason::Short),
    ] {
        row[1] = byte;
        assert_eq!(
            StaleMark::from_bytes(&row).unwrap(),
            mark(reason, Vec::new())
        );
    }
    row[1] = 4;
    let one = std::iter::once(6..13).collect();
    let one = mark(StaleReason::Mismatch, one);
    assert_eq!(StaleMark::from_bytes(&row).unwrap(), one);
    assert_eq!(one.to_bytes(), row, "as before");
    for (reason, ranges) in [
        (StaleReason::Mismatch, vec![6..13, 14..15]),
        (StaleReason::Mismatch, std::iter::once(6..14).collect()),
        (StaleReason::Widespread, Vec::new()),
        (StaleReason::Widespread, vec![0..5, 1 << 40..1 << 41]),
    ] {
        let mark = mark(reason, ranges);
        assert_eq!(StaleMark::from_bytes(&mark.to_bytes()).unwrap(), mark);
    }
    for ranges in [vec![6..13, 13..15], vec![6..13, 5..20], vec![6..6, 9..10]] {
        let row = mark(StaleReason::Mismatch, ranges).to_bytes();
        assert!(StaleMark::from_bytes(&row).is_err());
    }
}

#[test]
fn every_cut_of_a_value_is_an_error() {
    for (name, bytes) in fixture_rows() {
        for cut in 0..bytes.len() {
            let bytes = &bytes[..cut];
            let error = match name {
                "container" => ContainerRecord::from_bytes(bytes).unwrap_err(),
                "path" => PathRecord::from_bytes(bytes).unwrap_err(),
                "dir" => DirRecord::from_bytes(bytes).unwrap_err(),
                "root" => RootRecord::from_bytes(RootId(1), bytes).unwrap_err(),
                "stale" | "stale with ranges" => StaleMark::from_bytes(bytes).unwrap_err(),
                _ => continue,
            };
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{name} cut at {cut}");
        }
    }
}

proptest! {
    #[test]
    fn values_of_any_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        for first in [1, 2, bytes.first().copied().unwrap_or(0)] {
            let mut bytes = bytes.clone();
            if let Some(byte) = bytes.first_mut() {
                *byte = first;
            }
            let _ = ContainerRecord::from_bytes(&bytes);
            let _ = PathRecord::from_bytes(&bytes);
            let _ = DirRecord::from_bytes(&bytes);
            let _ = RootRecord::from_bytes(RootId(1), &bytes);
            let _ = StaleMark::from_bytes(&bytes);
            let _ = row_containers(&bytes);
            let _ = members::decode(&bytes, |_| ());
            let _ = PathKey::from_bytes(&bytes);
            let _ = Reader::versioned(&bytes).map(|mut reader| reader.varint());
        }
    }

    #[test]
    fn path_keys_come_back(source in any::<u32>(), profile in any::<u32>(), path in "[^\0]{0,40}") {
        let key = PathKey { source, profile, path: path.into_bytes() };
        prop_assert_eq!(PathKey::from_bytes(&key.to_bytes()).unwrap(), key);
    }
}

/// One step of the model test; numbers are small so that steps meet.
#[derive(Debug, Clone)]
enum Op {
    Container(u64),
    Path(u8, u64, u64),
    Root(u64, Vec<u64>),
    RemoveRoot(u64),
    Sweep,
    Stale(u64, bool),
    Commit,
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let id = 1..12u64;
    prop_oneof![
        4 => id.clone().prop_map(Op::Container),
        4 => (0..6u8, id.clone(), id.clone()).prop_map(|(path, a, b)| Op::Path(path, a, b)),
        3 => (1..5u64, prop::collection::vec(id.clone(), 0..8)).prop_map(|(r, m)| Op::Root(r, m)),
        2 => (1..5u64).prop_map(Op::RemoveRoot),
        1 => Just(Op::Sweep),
        2 => (id, any::<bool>()).prop_map(|(id, set)| Op::Stale(id, set)),
        4 => Just(Op::Commit),
        1 => Just(Op::Reopen),
    ]
}

#[test]
fn objects_elsewhere_and_their_sources_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let catalog = open(dir.path());
    let stamp = ObjectStamp {
        size: 5,
        etag: Some("\"e\"".into()),
        version: None,
        modified: Some(FileTime { secs: 7, nanos: 1 }),
    };
    let object = Validator::from(stamp);
    let mut bytes = vec![0xff; 8];
    bytes.extend([
        5, 0, 0, 0, 0, 0, 0, 0, 1, 7, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0,
    ]);
    bytes.extend([3, 0, 0, 0, b'"', b'e', b'"', 0, 0, 0, 0]);
    assert_eq!(validator_bytes(&object), bytes);
    let source = |name: &str| SourceRecord {
        name: name.to_owned(),
        url: "s3://bucket/data".to_owned(),
        endpoint: "http://127.0.0.1:7070".to_owned(),
        region: String::new(),
        credentials: "profile:data".to_owned(),
        created_unix: 1_700_000_000,
        redirects: Vec::new(),
        private: false,
    };
    let allowing = |name: &str| SourceRecord {
        redirects: vec!["https://a".to_owned(), "http://b:81".to_owned()],
        private: true,
        ..source(name)
    };
    assert_eq!(catalog.snapshot().sources().unwrap(), []);
    assert_eq!(catalog.snapshot().next_source(), SOURCE_FIRST);
    let mut batch = Batch::new();
    batch.put_source(2, &source("a"));
    batch.put_source(3, &source("b"));
    let mut record = container("below/the url", ContainerKind::File);
    (record.source, record.validator) = (3, object);
    batch.put_container(ContainerId(1), &record);
    let elsewhere = ContainerRecord {
        source: 2,
        ..record.clone()
    };
    batch.put_container(ContainerId(2), &elsewhere);
    commit(&catalog, batch);
    let known = catalog.snapshot().container(ContainerId(1)).unwrap();
    assert_eq!(known, Some(record));
    let mut batch = Batch::new();
    batch.remove_source(3);
    batch.put_source(4, &allowing("c"));
    commit(&catalog, batch);
    drop(catalog);
    let catalog = open(dir.path());
    let snapshot = catalog.snapshot();
    let sources = [(2, source("a")), (4, allowing("c"))];
    assert_eq!(snapshot.sources().unwrap(), sources);
    assert_eq!(snapshot.source(3).unwrap(), None);
    assert_eq!(snapshot.next_source(), 5, "ids are not used again");
    assert_eq!(snapshot.container(ContainerId(1)).unwrap(), None);
    assert_eq!(snapshot.container(ContainerId(2)).unwrap(), Some(elsewhere));
}

#[derive(Default)]
struct Model {
    containers: BTreeSet<u64>,
    paths: BTreeMap<u8, (u64, u64)>,
    roots: BTreeMap<u64, BTreeSet<u64>>,
    stale: BTreeSet<u64>,
}

impl Model {
    /// Removals come after all puts of a batch.
    fn remove(&mut self, roots: &[u64], sweeps: bool) {
        let mut candidates = BTreeSet::new();
        for root in roots {
            candidates.extend(self.roots.remove(root).unwrap_or_default());
        }
        if sweeps {
            candidates.extend(&self.containers);
        }
        for id in candidates {
            if self.roots.values().any(|members| members.contains(&id)) {
                continue;
            }
            self.containers.remove(&id);
            self.stale.remove(&id);
            self.paths
                .retain(|_, (file, pack)| *file != id && *pack != id);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_catalog_behaves_like_maps(ops in prop::collection::vec(op(), 1..60)) {
        let dir = tempfile::tempdir().unwrap();
        let mut catalog = open(dir.path());
        let mut model = Model::default();
        let mut batch = Batch::new();
        let mut removed = Vec::new();
        let mut sweeps = false;
        for op in ops.into_iter().chain([Op::Commit]) {
            match op {
                Op::Container(id) => {
                    batch.put_container(ContainerId(id), &container("/x", ContainerKind::File));
                    model.containers.insert(id);
                }
                Op::Path(path, file, pack) => {
                    let record = path_record(Some(file), Some(pack));
                    batch.put_path(&key(&format!("/{path}")), &record);
                    model.paths.insert(path, (file, pack));
                }
                Op::Root(id, list) => {
                    batch.put_root(root(id, id), ids(list.iter().copied()));
                    model.roots.insert(id, list.into_iter().collect());
                }
                Op::RemoveRoot(id) => {
                    batch.remove_root(RootId(id));
                    removed.push(id);
                }
                Op::Sweep => {
                    batch.remove_unneeded();
                    sweeps = true;
                }
                Op::Stale(id, true) => {
                    let mark = StaleMark {
                        reason: StaleReason::Missing,
                        observed: None,
                        since_unix: 1,
                        offset: 0,
                        len: 0,
                        ranges: Vec::new(),
                    };
                    batch.put_stale(ContainerId(id), mark);
                    model.stale.insert(id);
                }
                Op::Stale(id, false) => {
                    batch.clear_stale(ContainerId(id));
                    model.stale.remove(&id);
                }
                Op::Commit => {
                    commit(&catalog, std::mem::take(&mut batch));
                    model.remove(&std::mem::take(&mut removed), std::mem::take(&mut sweeps));
                    let snapshot = catalog.snapshot();
                    let mut containers = BTreeSet::new();
                    snapshot.container_ids(|id| { containers.insert(id.0); }).unwrap();
                    prop_assert_eq!(&containers, &model.containers);
                    let paths: BTreeMap<u8, (u64, u64)> = snapshot
                        .paths_below(&key("/"))
                        .unwrap()
                        .map(|row| {
                            let (key, record) = row.unwrap();
                            let ids = (record.container.unwrap().0, record.pack.unwrap().0);
                            (key.path[1] - b'0', ids)
                        })
                        .collect();
                    prop_assert_eq!(&paths, &model.paths);
                    let roots: Vec<u64> =
                        snapshot.roots().unwrap().iter().map(|root| root.id.0).collect();
                    prop_assert!(roots.iter().eq(model.roots.keys()));
                    for (id, list) in &model.roots {
                        let stored = snapshot.members(RootId(*id)).unwrap();
                        prop_assert_eq!(stored, ids(list.iter().copied()));
                    }
                    let stale = snapshot.stale_marks().unwrap();
                    prop_assert!(stale.iter().map(|mark| &mark.0.0).eq(&model.stale));
                }
                Op::Reopen => {
                    if batch.is_empty() {
                        drop(catalog);
                        catalog = open(dir.path());
                    }
                }
            }
        }
    }
}
