//! Opening, committing, crashing and merging a whole store.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use carrack_formats::{Cid, Multihash};

use super::catalog::{
    Batch, ContainerKind, ContainerRecord, RootKind, RootRecord, SOURCE_LOCAL, SOURCE_STORE,
    Validator,
};
use super::index::FANOUT;
use super::location::{ContainerId, Location};
use super::{Merger, OpenMode, Step, Store, merge_once};
use crate::error::ErrorKind;

fn key(seed: u64) -> Multihash {
    Multihash::wrap(0x12, blake3::hash(&seed.to_le_bytes()).as_bytes()).unwrap()
}

fn open(dir: &Path) -> Store {
    Store::open(dir, OpenMode::Create).unwrap()
}

fn file(path: &str) -> ContainerRecord {
    ContainerRecord {
        kind: ContainerKind::File,
        source: SOURCE_LOCAL,
        path: path.as_bytes().to_vec(),
        size: 10,
        validator: Validator::default(),
    }
}

fn at(container: ContainerId) -> Location {
    Location {
        container,
        offset: 0,
        len: 10,
        wrapped: false,
    }
}

/// Adds one container with the blocks `keys`, and a root of its own.
fn add(store: &Store, keys: std::ops::Range<u64>) -> (ContainerId, RootRecord) {
    let container = store.new_container_id();
    let mut run = store.run_writer().unwrap();
    for seed in keys.clone() {
        run.push(&key(seed), at(container)).unwrap();
    }
    let root = RootRecord {
        id: store.new_root_id(),
        cid: Cid::new_v1(0x55, key(keys.start)),
        path: b"/a".to_vec(),
        name: b"a".to_vec(),
        profile: 1,
        kind: RootKind::Add,
        created_unix: 1,
        bytes: 10,
        n_blocks: 1,
        n_files: 1,
        source: SOURCE_LOCAL,
        is_whole: false,
    };
    let mut batch = Batch::new();
    batch.put_container(container, &file("/a"));
    batch.add_segment(run.finish().unwrap().unwrap());
    batch.put_root(root.clone(), vec![container]);
    store.commit(batch).unwrap();
    (container, root)
}

fn files_below(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                dirs.push(path);
            } else {
                files.insert(path.clone(), std::fs::read(&path).unwrap());
            }
        }
    }
    files
}

#[test]
fn what_was_committed_is_there_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (container, root) = add(&store, 0..1000);
    drop(store);
    let store = Store::open(dir.path(), OpenMode::Existing).unwrap();
    assert_eq!(store.index().first(&key(999)), Some(at(container)));
    assert_eq!(
        store.catalog().container(container).unwrap(),
        Some(file("/a"))
    );
    assert_eq!(store.catalog().roots().unwrap(), [root]);
    assert!(store.new_container_id() > container, "ids are never reused");
    assert!(store.new_root_id().0 > 1);
}

#[test]
fn a_missing_store_is_not_made_unasked() {
    let dir = tempfile::tempdir().unwrap();
    let error = Store::open(&dir.path().join("x"), OpenMode::Existing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_second_opener_is_told_who_holds_it() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let error = Store::open(dir.path(), OpenMode::Create).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Busy);
    assert!(
        error.to_string().contains(&std::process::id().to_string()),
        "{error}"
    );
    drop(store);
    open(dir.path());
}

#[test]
fn a_newer_format_is_refused_without_writing() {
    let dir = tempfile::tempdir().unwrap();
    add(&open(dir.path()), 0..10);
    std::fs::write(dir.path().join("format"), "carrack store 2\n").unwrap();
    std::fs::write(dir.path().join("packs/unlisted.car"), "x").unwrap();
    let before = files_below(dir.path());
    let error = Store::open(dir.path(), OpenMode::Create).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert_eq!(files_below(dir.path()), before);
    std::fs::write(dir.path().join("format"), "garbage").unwrap();
    let error = Store::open(dir.path(), OpenMode::Create).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn what_a_crash_left_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add(&store, 0..10);
    let listed = files_below(dir.path());
    let mut run = store.run_writer().unwrap();
    run.push(&key(77), at(ContainerId(9))).unwrap();
    run.finish().unwrap();
    let mut pack = store.pack_writer().unwrap();
    pack.append(&Cid::new_v1(0x55, key(1)), b"x").unwrap();
    pack.sync().unwrap();
    std::fs::write(dir.path().join("segments/00000000000000ff.seg.tmp"), "x").unwrap();
    drop(store);
    let store = open(dir.path());
    assert!(files_below(dir.path()).keys().eq(listed.keys()));
    assert!(!store.index().contains(&key(77)));
    assert!(store.index().contains(&key(5)));
}

/// As a commit left them whose renames a power cut took back.
#[test]
fn listed_files_are_found_under_their_temporary_names_and_get_their_last_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add(&store, 0..10);
    let mut pack = store.pack_writer().unwrap();
    let cid = Cid::new_v1(0x55, key(1));
    pack.append(&cid, b"x").unwrap();
    let mut record = ContainerRecord {
        kind: ContainerKind::Pack,
        source: SOURCE_STORE,
        path: pack.name().as_bytes().to_vec(),
        size: pack.sync().unwrap(),
        validator: Validator::default(),
    };
    let container = store.new_container_id();
    let mut batch = Batch::new();
    batch.put_container(container, &record);
    store.commit(batch).unwrap();
    // It grows under the name that it was given meanwhile.
    pack.append(&cid, b"y").unwrap();
    record.size = pack.sync().unwrap();
    let mut batch = Batch::new();
    batch.put_container(container, &record);
    store.commit(batch).unwrap();
    let whole = files_below(dir.path());
    assert!(
        whole
            .keys()
            .all(|path| path.extension().is_none_or(|ext| ext != "tmp"))
    );
    drop((pack, store));
    let is_listed = |path: &&PathBuf| {
        let ending = path.extension().unwrap_or_default();
        ending == "seg" || ending == "car"
    };
    let listed = whole.keys().filter(is_listed);
    for path in listed.clone() {
        std::fs::rename(path, crate::durable::temporary(path)).unwrap();
    }
    let reader = Store::open(dir.path(), OpenMode::Read).unwrap();
    assert!(reader.index().contains(&key(5)));
    let opened = crate::source::local::LocalFile::open_own(&reader.pack_path(&record)).unwrap();
    assert_eq!(opened.validator.size(), record.size);
    assert_eq!(reader.unlisted().unwrap(), []);
    drop(reader);
    let store = open(dir.path());
    assert!(store.index().contains(&key(5)));
    assert!(listed.clone().all(|path| path.is_file()));
    assert_eq!(listed.count(), 2);
}

/// What a commit removed is explained for as long as it may come back, and no longer.
#[test]
fn files_that_a_commit_removed_are_removed_again_and_their_rows_do_not_pile_up() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let stop = AtomicBool::new(false);
    let mut n_merges = 0;
    for index in 0..20 * FANOUT as u64 {
        add(&store, index * 10..index * 10 + 10);
        while merge_once(&store, &stop).unwrap() {
            n_merges += 1;
        }
    }
    assert!(n_merges >= 20);
    let rows = store.catalog().removed_files().unwrap();
    assert!(!rows.is_empty() && rows.len() < 90, "{}", rows.len());
    // As after a kill between the commit and the removal, or a power cut that took it back.
    let paths = [0x7777, 0x7778].map(|id| {
        let path = dir
            .path()
            .join("segments")
            .join(super::segment_name(super::SegmentId(id)));
        std::fs::write(&path, b"x").unwrap();
        path
    });
    std::thread::sleep(std::time::Duration::from_millis(20)); // Longer than a tick of its clock.
    let mut batch = Batch::new();
    batch.removed_segments = [0x7777, 0x7778].map(super::SegmentId).to_vec();
    let outcome = store.catalog.commit(batch, store.ids.next());
    assert!(matches!(outcome, super::Outcome::Done(_)), "{outcome:?}");
    assert_eq!(store.unlisted().unwrap(), []);
    drop(store);
    std::thread::sleep(std::time::Duration::from_millis(20));
    std::fs::write(&paths[1], b"mine").unwrap(); // Put there after it was removed.
    let store = open(dir.path());
    assert!(!paths[0].is_file() && paths[1].is_file());
    let unlisted = store.unlisted().unwrap();
    assert!(unlisted.iter().map(|file| &file.path).eq([&paths[1]]));
    for index in 0..20 * FANOUT as u64 {
        add(&store, index * 10..index * 10 + 10);
        while merge_once(&store, &stop).unwrap() {}
    }
    assert!(store.catalog().removed_files().unwrap().len() < 90);
}

#[test]
fn a_missing_listed_segment_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add(&store, 0..10);
    drop(store);
    let segment = std::fs::read_dir(dir.path().join("segments"))
        .unwrap()
        .next()
        .unwrap()
        .unwrap();
    std::fs::remove_file(segment.path()).unwrap();
    let error = Store::open(dir.path(), OpenMode::Create).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains(segment.path().to_str().unwrap()),
        "{error}"
    );
}

#[test]
fn a_commit_that_names_a_missing_segment_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut run = store.run_writer().unwrap();
    run.push(&key(1), at(ContainerId(1))).unwrap();
    let meta = run.finish().unwrap().unwrap();
    std::fs::remove_dir_all(dir.path().join("segments")).unwrap();
    let mut batch = Batch::new();
    batch.put_container(store.new_container_id(), &file("/a"));
    batch.add_segment(meta);
    assert!(store.commit(batch).is_err());
    assert_eq!(store.catalog().n_containers().unwrap(), 0);
    store.check_writable().unwrap();
}

/// A full disk is no reason to lose the next commit, nor to keep what the failed one wrote.
#[test]
fn a_commit_that_fails_leaves_nothing_behind_and_the_next_one_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    add(&store, 0..10);
    for n in [0, 2, 4] {
        let segments = files_below(&dir.path().join("segments"));
        let container = store.new_container_id();
        let mut run = store.run_writer().unwrap();
        run.push(&key(70), at(container)).unwrap();
        let mut batch = Batch::new();
        batch.put_container(container, &file("/b"));
        batch.add_segment(run.finish().unwrap().unwrap());
        crate::durable::faults::fail_after(n, 1);
        let failed = store.commit(batch);
        assert!(crate::durable::faults::clear(), "{n}");
        if store.check_writable().is_err() {
            continue; // It was a sync.
        }
        assert_eq!(failed.unwrap_err().kind(), ErrorKind::Unavailable, "{n}");
        assert!(store.is_resting(), "{n}: what can wait waits");
        assert_eq!(files_below(&dir.path().join("segments")), segments, "{n}");
        assert!(!store.index().contains(&key(70)), "{n}");
        assert!(store.catalog().container(container).unwrap().is_none());
        let (_, root) = add(&store, 100..110);
        assert!(!store.is_resting());
        store.remove_root(root.id).unwrap();
        merge_once(&store, &AtomicBool::new(false)).unwrap();
    }
    drop(store);
    assert!(open(dir.path()).index().contains(&key(5)));
}

#[test]
fn after_a_failed_fsync_nothing_is_committed() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (container, _) = add(&store, 0..10);
    let mut run = store.run_writer().unwrap();
    run.push(&key(50), at(container)).unwrap();
    store.gate.close("fsync of packs/1 failed");
    assert!(run.finish().is_err());
    let mut batch = Batch::new();
    batch.clear_stale(container);
    let error = store.commit(batch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("fsync of packs/1 failed"));
    assert!(store.pack_writer().is_err() && store.run_writer().is_err());
    assert!(store.index().contains(&key(5)), "reads go on");
    assert!(store.catalog().container(container).unwrap().is_some());
    drop(store);
    open(dir.path()).check_writable().unwrap();
}

#[test]
fn merging_keeps_live_records_and_drops_dead_ones() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut roots = Vec::new();
    for index in 0..FANOUT as u64 {
        roots.push(add(&store, index * 100..index * 100 + 100));
    }
    let removed = store.remove_root(roots[0].1.id).unwrap();
    assert_eq!(removed.removed_containers, [roots[0].0]);
    // A container whose row comes after its segment must live.
    let pending = store.new_container_id();
    let mut run = store.run_writer().unwrap();
    run.push(&key(5000), at(pending)).unwrap();
    let mut batch = Batch::new();
    batch.add_segment(run.finish().unwrap().unwrap());
    store.commit(batch).unwrap();

    assert!(store.index().contains(&key(50)));
    assert!(!merge_once(&store, &AtomicBool::new(false)).is_ok_and(|merged| !merged));
    assert_eq!(store.index().segments().len(), 1);
    assert!(!store.index().contains(&key(50)));
    assert!(store.index().contains(&key(150)) && store.index().contains(&key(5000)));
    assert!(!merge_once(&store, &AtomicBool::new(false)).unwrap());
    assert_eq!(
        std::fs::read_dir(dir.path().join("segments"))
            .unwrap()
            .count(),
        1
    );
    drop(store);

    // The next process knows that nobody will add the row any more.
    let store = open(dir.path());
    for index in 1..FANOUT as u64 {
        add(&store, 9000 + index..9001 + index);
    }
    assert!(merge_once(&store, &AtomicBool::new(false)).unwrap());
    assert!(!store.index().contains(&key(5000)));
    assert_eq!(store.index().n_records(), 700 + 7);
}

#[test]
fn a_removed_pack_loses_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let mut pack = store.pack_writer().unwrap();
    pack.append(&Cid::new_v1(0x55, key(1)), b"x").unwrap();
    let record = ContainerRecord {
        kind: ContainerKind::Pack,
        source: SOURCE_STORE,
        path: pack.name().as_bytes().to_vec(),
        size: pack.sync().unwrap(),
        validator: Validator::default(),
    };
    let id = store.new_container_id();
    let mut batch = Batch::new();
    batch.put_container(id, &record);
    store.commit(batch).unwrap();
    drop(store);
    let store = open(dir.path());
    assert_eq!(
        std::fs::metadata(store.pack_path(&record)).unwrap().len(),
        record.size
    );
    let mut batch = Batch::new();
    batch.remove_unneeded();
    assert_eq!(store.commit(batch).unwrap().removed_containers, [id]);
    assert!(!store.pack_path(&record).try_exists().unwrap());
    drop(store);
    open(dir.path());
}

/// What removing costs does not depend on how much is removed: the index is not touched.
#[test]
fn a_container_of_a_million_blocks_goes_in_one_small_transaction() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (kept, _) = add(&store, 0..5000);
    let (large, root) = add(&store, 10_000..1_010_000);
    let before = std::fs::metadata(dir.path().join("catalog.redb"))
        .unwrap()
        .len();
    let start = std::time::Instant::now();
    let removed = store.remove_root(root.id).unwrap();
    let took = start.elapsed();
    assert_eq!(removed.removed_containers, [large]);
    assert!(took < std::time::Duration::from_millis(500), "{took:?}"); // Two fsyncs.
    let after = std::fs::metadata(dir.path().join("catalog.redb"))
        .unwrap()
        .len();
    assert!(after <= before + (1 << 20), "{before} to {after} bytes");
    let stop = AtomicBool::new(false);
    assert_eq!(store.index().n_records(), 1_005_000);
    assert_eq!(store.dead_entries(&stop).unwrap(), 1_000_000);
    // Its segment is full of dead records: it is not left until its tier is full.
    let mut merger = Merger::default();
    assert_eq!(merger.step(&store, &stop), Step::Merged);
    assert_eq!(merger.step(&store, &stop), Step::Idle);
    assert_eq!(store.index().n_records(), 5000);
    assert_eq!(store.index().first(&key(4999)), Some(at(kept)));
    assert_eq!(store.dead_entries(&stop).unwrap(), 0);
}

/// A disk that takes no more is not a reason to lose anything, nor to try all the time.
#[test]
fn a_merge_that_fails_changes_nothing_and_is_tried_again_later() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    for index in 0..FANOUT as u64 {
        add(&store, index * 100..index * 100 + 100);
    }
    let files = files_below(&dir.path().join("segments"));
    // In the place of the file that the merge would write there is a directory.
    let next = store.ids.segment.load(std::sync::atomic::Ordering::Relaxed);
    let name = format!("{}.tmp", super::segment_name(super::SegmentId(next)));
    let obstacle = dir.path().join("segments").join(name);
    std::fs::create_dir(&obstacle).unwrap();
    let stop = AtomicBool::new(false);
    let mut merger = Merger::default();
    assert_eq!(merger.step(&store, &stop), Step::Idle);
    std::fs::remove_dir(&obstacle).unwrap();
    assert_eq!(files_below(&dir.path().join("segments")), files);
    assert!(store.index().contains(&key(750)));
    store.check_writable().unwrap();
    assert_eq!(merger.step(&store, &stop), Step::Idle, "not at once");
    assert!(
        merge_once(&store, &stop).unwrap(),
        "but nothing is in its way"
    );
    assert_eq!(store.index().n_records(), 800);
}

#[test]
fn rows_of_files_go_with_their_containers_and_others_stay() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path());
    let (container, root) = add(&store, 0..10);
    let (other, _) = add(&store, 20..30);
    let row = |container| super::catalog::PathRecord {
        container: Some(container),
        pack: None,
        validator: Validator::default(),
        cid: Cid::new_v1(0x55, key(1)),
        file_len: 1,
        dag_len: 1,
        n_blocks: 1,
    };
    let path = |profile, path: &[u8]| super::catalog::PathKey {
        source: SOURCE_LOCAL,
        profile,
        path: path.to_vec(),
    };
    let mut batch = Batch::new();
    batch.put_path(&path(7, b"/a"), &row(container));
    batch.put_path(&path(u32::MAX, b"/a"), &row(container));
    batch.put_path(&path(8, b"/a"), &row(other)); // A newer version under another profile.
    batch.put_path(&path(7, b"/b"), &row(other));
    for index in 0..100 {
        let name = format!("/c/{index}"); // Among so many, rows are looked up by their paths.
        batch.put_path(&path(7, name.as_bytes()), &row(other));
    }
    store.commit(batch).unwrap();
    store.remove_root(root.id).unwrap();
    let catalog = store.catalog();
    assert_eq!(catalog.path(&path(7, b"/a")).unwrap(), None);
    assert_eq!(catalog.path(&path(u32::MAX, b"/a")).unwrap(), None);
    assert_eq!(catalog.path(&path(8, b"/a")).unwrap(), Some(row(other)));
    assert_eq!(catalog.path(&path(7, b"/b")).unwrap(), Some(row(other)));
}
