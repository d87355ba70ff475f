//! The index before and after, entry by entry.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use carrack_formats::Cid;
use carrack_formats::unixfs::profile::{UNIXFS_V0_2015, UNIXFS_V1_2025};

use super::{RebuildOptions, RebuildReport, is_local, rebuild, rebuild_catalog};
use crate::error::{ErrorKind, Result};
use crate::ingest::add::AddOptions;
use crate::ingest::tests::{Fixture, bytes, car, car_v2, import_options, options, raw};
use crate::store::location::{ContainerId, Location};
use crate::store::{OpenMode, Store};

/// Lowest location of each key in each container: what an index promises.
type Dump = BTreeMap<(u64, Vec<u8>, ContainerId), Location>;

fn dump(store: &Store) -> Dump {
    let mut dump = Dump::new();
    for segment in store.index().live_segments() {
        segment.each(&mut |code, digest, location| {
            let key = (code, digest.to_vec(), location.container);
            let lowest = dump.entry(key).or_insert(location);
            *lowest = (*lowest).min(location);
        });
    }
    dump
}

fn blocks(n: u64) -> Vec<(Cid, Vec<u8>)> {
    let block = |seed| bytes(seed, 100 + seed as usize);
    (0..n)
        .map(|seed| (raw(&block(seed)), block(seed)))
        .collect()
}

fn run(store: &Store, verify: bool) -> Result<RebuildReport> {
    let stop = AtomicBool::new(false);
    rebuild(store, RebuildOptions { verify }, &mut |_, _, _| {}, &stop)
}

/// Folders under two profiles, an older version of a file that is still promised, CARs of both
/// versions, a salvaged one, and packs with copies.
fn filled() -> Fixture {
    let fixture = Fixture::new();
    let tree = fixture.path("tree");
    fixture.write("tree/empty", b"");
    fixture.write("tree/small", b"small");
    fixture.write("tree/zeros", &vec![0; 5 << 20]); // One leaf, five times.
    fixture.write("tree/sub/large", &bytes(1, (9 << 20) + 17));
    for index in 0..3000 {
        let name = format!("tree/many/{index:0>90}");
        fixture.write(&name, format!("{index}").as_bytes());
    }
    std::os::unix::fs::symlink("small", tree.join("link")).unwrap();
    fixture.add(&[&tree]);
    let wrapped = UNIXFS_V0_2015.with_chunk_size(1000).unwrap();
    let narrow = UNIXFS_V1_2025.with_chunk_size(700).unwrap();
    for profile in [wrapped, narrow.with_link_width(3).unwrap()] {
        let options = AddOptions {
            profile,
            ..options()
        };
        fixture
            .add_with(&[&tree.join("sub"), &tree.join("small")], &options)
            .unwrap();
    }
    let name = format!("tree/many/{:0>90}", 77);
    fixture.write(&name, b"77 anew");
    fixture.write("tree/sub/large", &bytes(2, (9 << 20) + 17));
    fixture.add(&[&tree]);
    let blocks = blocks(300);
    let plain = car(&[blocks[0].0], &blocks);
    let v1 = fixture.write("v1.car", &plain);
    let v2 = fixture.write("v2.car", &car_v2(&plain));
    fixture.import(&v1, &import_options()).unwrap();
    fixture.import(&v2, &import_options()).unwrap();
    fixture
        .import_copy(&car(&[blocks[5].0], &blocks[5..9]), &import_options())
        .unwrap();
    let mut damaged = car(&[blocks[20].0], &blocks[20..40]);
    let at = damaged.len() - 10;
    damaged[at] ^= 1;
    let salvaged = fixture.write("salvaged.car", &damaged);
    let salvage = crate::ingest::import::ImportOptions {
        salvage: true,
        ..import_options()
    };
    assert_eq!(fixture.import(&salvaged, &salvage).unwrap().n_bad, 1);
    fixture
}

fn segments(fixture: &Fixture) -> Vec<std::path::PathBuf> {
    let dir = fixture.store().dir().join("segments");
    let files = std::fs::read_dir(dir).unwrap();
    files.map(|file| file.unwrap().path()).collect()
}

/// The same store, opened by a process that may look at a damaged index alone.
fn with_any_index(fixture: Fixture) -> (tempfile::TempDir, Arc<Store>) {
    let Fixture { dir, blocks } = fixture;
    drop(blocks);
    let data = dir.path().join("data");
    let store = Store::open(&data, OpenMode::AnyIndex).unwrap();
    (dir, Arc::new(store))
}

#[test]
fn a_rebuilt_index_has_every_entry_at_its_place() {
    let fixture = filled();
    let before = dump(fixture.store());
    assert!(before.len() > 3000 + 2 * 9000 + 600);
    for verify in [false, true] {
        let report = run(fixture.store(), verify).unwrap();
        assert_eq!((report.n_kept, report.n_left_out), (0, 0), "{report:?}");
        assert_eq!(report.n_bad, 1, "of the CAR that was salvaged");
        assert!(dump(fixture.store()) == before);
    }
    for path in segments(&fixture) {
        std::fs::remove_file(path).unwrap();
    }
    let (dir, store) = with_any_index(fixture);
    assert!(!store.lost_segments().is_empty() && store.index().n_records() == 0);
    let report = run(&store, false).unwrap();
    assert_eq!((report.n_kept, report.n_left_out), (0, 0), "{report:?}");
    assert_eq!(report.n_entries as usize, before.len());
    assert!(dump(&store) == before);
    assert!(store.lost_segments().is_empty());
    drop(store);
    let store = Store::open(&dir.path().join("data"), OpenMode::Existing).unwrap();
    assert!(dump(&store) == before);
    store.index().check().unwrap();
}

#[test]
fn a_store_with_a_damaged_index_names_the_command_that_helps() {
    let fixture = filled();
    let path = segments(&fixture).remove(0);
    std::fs::write(&path, b"CRKSEG01").unwrap();
    let (dir, store) = with_any_index(fixture);
    drop(store);
    let error = Store::open(&dir.path().join("data"), OpenMode::Existing).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(
        error.to_string().contains("carrack index rebuild"),
        "{error}"
    );
}

#[test]
fn what_cannot_be_read_keeps_its_entries_or_is_named() {
    let fixture = filled();
    let before = dump(fixture.store());
    let car = fixture.path("v1.car");
    let away = fixture.path("away");
    std::fs::rename(&car, &away).unwrap();
    let report = run(fixture.store(), false).unwrap();
    assert_eq!((report.n_kept, report.n_left_out), (1, 0));
    assert!(dump(fixture.store()) == before, "the old index had them");
    for path in segments(&fixture) {
        std::fs::remove_file(path).unwrap();
    }
    let (dir, store) = with_any_index(fixture);
    let report = run(&store, false).unwrap();
    assert_eq!((report.n_kept, report.n_left_out), (0, 1));
    assert_eq!(report.left_out[0].0, car);
    assert_eq!(dump(&store).len(), before.len() - 300);
    std::fs::rename(&away, &car).unwrap();
    // The catalog has forgotten that it knows the CAR: importing reads it again.
    let stop = AtomicBool::new(false);
    let quiet = &mut crate::ingest::Quiet;
    crate::ingest::import::import(&store, &car, &import_options(), quiet, &stop).unwrap();
    assert_eq!(dump(&store).len(), before.len());
    drop(dir);
}

#[test]
fn a_rebuild_that_is_stopped_changes_nothing() {
    let fixture = filled();
    let (before, files) = (dump(fixture.store()), segments(&fixture));
    let stop = AtomicBool::new(false);
    let mut n_told = 0;
    let mut watch = |_: &str, _: u64, _: Option<u64>| {
        n_told += 1;
        stop.store(n_told > 3, std::sync::atomic::Ordering::Relaxed);
    };
    let options = RebuildOptions { verify: true };
    let error = rebuild(fixture.store(), options, &mut watch, &stop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(dump(fixture.store()) == before);
    let sorted = |mut files: Vec<std::path::PathBuf>| {
        files.sort();
        files
    };
    assert_eq!(sorted(segments(&fixture)), sorted(files), "nothing is left");
}

#[test]
fn a_touched_car_is_hashed_and_a_changed_one_is_not_believed() {
    let fixture = Fixture::new();
    let blocks = blocks(20);
    let path = fixture.write("a.car", &car(&[blocks[0].0], &blocks));
    fixture.import(&path, &import_options()).unwrap();
    let before = dump(fixture.store());
    let mut car = std::fs::read(&path).unwrap();
    std::fs::write(&path, &car).unwrap();
    run(fixture.store(), false).unwrap();
    assert!(dump(fixture.store()) == before);
    let at = car.len() - 50;
    car[at] ^= 1;
    std::fs::write(&path, &car).unwrap();
    assert_eq!(run(fixture.store(), false).unwrap().n_bad, 1);
    assert_eq!(dump(fixture.store()).len(), 19);
    assert!(Path::new(&path).is_file());
}

/// Where the sections of a CAR of `blocks` begin, and the CAR.
fn section_starts(car: &[u8], blocks: &[(Cid, Vec<u8>)]) -> Vec<usize> {
    let find = |data: &[u8]| car.windows(data.len()).position(|part| part == data);
    let start = |(cid, data): &(Cid, Vec<u8>)| {
        let head = cid.to_bytes().len() + if data.len() + 36 < 128 { 1 } else { 2 };
        find(data).unwrap() - head
    };
    blocks.iter().map(start).collect()
}

/// A store whose only pack has a wrong length at its 20th of 51 sections; where, and the pack.
fn with_a_wrong_length() -> (Fixture, usize, std::path::PathBuf) {
    let fixture = Fixture::new();
    let blocks = blocks(51);
    let copied = car(&[blocks[0].0], &blocks);
    fixture.import_copy(&copied, &import_options()).unwrap();
    let packs = fixture.store().dir().join("packs");
    let pack = std::fs::read_dir(packs).unwrap().next().unwrap();
    let pack = pack.unwrap().path();
    let mut bytes = std::fs::read(&pack).unwrap();
    let at = section_starts(&bytes, &blocks)[20];
    bytes[at] ^= 1;
    std::fs::write(&pack, bytes).unwrap();
    (fixture, at, pack)
}

#[test]
fn what_cannot_be_read_of_a_pack_is_named_and_a_rebuild_does_not_grow_the_index() {
    let (fixture, at, pack) = with_a_wrong_length();
    let before = dump(fixture.store());
    let len = std::fs::metadata(&pack).unwrap().len();
    for verify in [false, true, false, true] {
        let report = run(fixture.store(), verify).unwrap();
        let part = &report.cut[0];
        assert_eq!((part.offset, part.len), (at as u64, len - at as u64));
        assert!(part.is_kept && part.path == pack, "{part:?}");
        assert_eq!(report.n_entries as usize, before.len(), "{report:?}");
        assert!(dump(fixture.store()) == before);
    }
    for path in segments(&fixture) {
        std::fs::remove_file(path).unwrap();
    }
    let (_dir, store) = with_any_index(fixture);
    let report = run(&store, false).unwrap();
    assert_eq!((report.n_entries, report.cut[0].is_kept), (20, false));
}

#[test]
fn a_catalog_made_anew_names_what_it_leaves_out_of_a_pack() {
    let (fixture, at, pack) = with_a_wrong_length();
    let len = std::fs::metadata(&pack).unwrap().len();
    let Fixture { dir, blocks } = fixture;
    drop(blocks);
    let data = dir.path().join("data");
    std::fs::remove_file(data.join("catalog.redb")).unwrap();
    let report = rebuild_catalog(&data, &mut |_, _, _| {}, &AtomicBool::new(false)).unwrap();
    assert_eq!((report.n_blocks, report.cut.len()), (20, 1), "{report:?}");
    let part = &report.cut[0];
    assert_eq!((part.offset, part.len), (at as u64, len - at as u64));
    assert!(!part.is_kept && part.path == pack);
}

#[test]
fn a_rebuild_of_a_salvaged_car_that_was_cut_does_not_grow_the_index() {
    let fixture = Fixture::new();
    let blocks = blocks(40);
    let mut cut = car(&[blocks[0].0], &blocks);
    cut.truncate(cut.len() - 60);
    let path = fixture.write("cut.car", &cut);
    let salvage = crate::ingest::import::ImportOptions {
        salvage: true,
        ..import_options()
    };
    fixture.import(&path, &salvage).unwrap();
    fixture.import_copy(&cut, &salvage).unwrap();
    fixture.add(&[&path]);
    let before = dump(fixture.store());
    for _ in 0..3 {
        let report = run(fixture.store(), false).unwrap();
        assert_eq!(report.n_entries as usize, before.len(), "{report:?}");
        assert!(report.cut.is_empty() && report.n_bad == 1, "{report:?}");
        assert!(dump(fixture.store()) == before);
    }
}

/// What an import salvaged behind a part that cannot be read is not found again by reading on.
#[test]
fn what_was_salvaged_behind_a_broken_part_stays_in_a_rebuilt_index() {
    let fixture = Fixture::new();
    let blocks = blocks(40);
    let good = car(&[blocks[0].0], &blocks);
    let last = car(&[blocks[0].0], &blocks[..39]).len();
    let path = fixture.write("x.car", &[&good[..last], &[0; 50], &good[last..]].concat());
    let salvage = crate::ingest::import::ImportOptions {
        salvage: true,
        ..import_options()
    };
    fixture.import(&path, &salvage).unwrap();
    assert!(fixture.has(&blocks[39].0));
    let before = dump(fixture.store());
    for _ in 0..2 {
        let report = run(fixture.store(), false).unwrap();
        assert!(report.cut.is_empty() && report.n_bad == 1, "{report:?}");
        assert!(dump(fixture.store()) == before);
    }
    segments(&fixture)
        .into_iter()
        .for_each(|path| std::fs::remove_file(path).unwrap());
    let (_dir, store) = with_any_index(fixture);
    let report = run(&store, false).unwrap();
    assert_eq!(report.cut.len(), 1, "it is named: {report:?}");
}

#[test]
fn a_lost_format_is_named_and_written_again_and_a_sound_catalog_stays() {
    for text in [None, Some("")] {
        let Fixture { dir, blocks } = filled();
        drop(blocks);
        let data = dir.path().join("data");
        let format = data.join("format");
        let whole = std::fs::read(&format).unwrap();
        match text {
            None => std::fs::remove_file(&format).unwrap(),
            Some(text) => std::fs::write(&format, text).unwrap(),
        }
        for mode in [OpenMode::Create, OpenMode::Read, OpenMode::AnyIndex] {
            let error = Store::open(&data, mode).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            assert!(
                error.to_string().contains("index rebuild --catalog"),
                "{error}"
            );
        }
        let catalog = std::fs::read(data.join("catalog.redb")).unwrap();
        let report = rebuild_catalog(&data, &mut |_, _, _| {}, &AtomicBool::new(false));
        assert!(report.unwrap().is_format_alone);
        assert_eq!(std::fs::read(&format).unwrap(), whole);
        assert!(std::fs::read(data.join("catalog.redb")).unwrap() == catalog);
        Store::open(&data, OpenMode::Existing).unwrap();
        // With the catalog lost, too.
        std::fs::remove_file(&format).unwrap();
        std::fs::remove_file(data.join("catalog.redb")).unwrap();
        let report = rebuild_catalog(&data, &mut |_, _, _| {}, &AtomicBool::new(false)).unwrap();
        assert!(!report.is_format_alone && report.n_packs > 0, "{report:?}");
        Store::open(&data, OpenMode::Existing).unwrap();
    }
}

#[test]
fn a_file_of_another_user_is_not_damage() {
    let dir = tempfile::tempdir().unwrap();
    let denied = std::io::Error::from(std::io::ErrorKind::PermissionDenied);
    let error = crate::store::recover::not_let_in(dir.path(), denied);
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.to_string().contains("user"), "{error}");
    assert!(!is_local(&error), "a rebuild ends");
}
