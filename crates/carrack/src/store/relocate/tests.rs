//! Data that moved, and data that only look as if.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{NewPlace, Options, Report, Subject, relocate};
use crate::error::{ErrorKind, Result};
use crate::ingest::tests::{Fixture, bytes, car, import_options, raw};
use crate::source::testing::MemorySource;
use crate::store::block::remote::tests::{BLOCK, Setup};
use crate::store::block::{Scope, State};
use crate::store::catalog::SOURCE_FIRST;

const OPTIONS: Options = Options {
    samples: 64,
    missing_max: 0,
    dry_run: false,
};

fn run(
    fixture: &Fixture,
    subject: &Subject,
    place: &NewPlace,
    options: &Options,
) -> (Result<()>, Report) {
    let (stop, mut report) = (AtomicBool::new(false), Report::default());
    let outcome = relocate(&fixture.blocks, subject, place, options, &stop, &mut report);
    (outcome, report)
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &to);
        } else {
            std::fs::copy(entry.path(), &to).unwrap();
        }
    }
}

/// A folder with files and a CAR, all added, and where it is to go.
fn folder() -> (Fixture, PathBuf, PathBuf) {
    let fixture = Fixture::new();
    for index in 0..40u64 {
        fixture.write(&format!("old/d/{index}"), &bytes(index, 3000));
    }
    fixture.write("old/big", &bytes(99, 5 << 20));
    let blocks: Vec<_> = (0..9).map(|seed| bytes(200 + seed, 700)).collect();
    let blocks: Vec<_> = blocks
        .into_iter()
        .map(|block| (raw(&block), block))
        .collect();
    let roots: Vec<_> = blocks.iter().map(|block| block.0).collect();
    fixture.write("old/x.car", &car(&roots, &blocks));
    let (old, new) = (fixture.path("old"), fixture.path("new"));
    fixture.add(&[&old]);
    fixture
        .import(&old.join("x.car"), &import_options())
        .unwrap();
    (fixture, old, new)
}

fn moves(old: &Path, new: &Path) -> (Subject, NewPlace) {
    let subject = Subject::Folder(old.to_owned(), new.to_owned());
    (subject, NewPlace::Folder(new.to_owned()))
}

fn all_served(fixture: &Fixture) {
    for index in 0..40u64 {
        let data = bytes(index, 3000);
        let block = fixture.blocks.get_blocking(&raw(&data)).unwrap();
        assert_eq!(block, data);
    }
    for seed in 200..209 {
        let data = bytes(seed, 700);
        assert_eq!(fixture.blocks.get_blocking(&raw(&data)).unwrap(), data);
    }
}

#[test]
fn a_copied_folder_is_proved_by_samples_and_nothing_is_added_again() {
    let (fixture, old, new) = folder();
    copy(&old, &new);
    std::fs::remove_dir_all(&old).unwrap();
    let (subject, place) = moves(&old, &new);
    let dry = Options {
        dry_run: true,
        ..OPTIONS
    };
    let (outcome, report) = run(&fixture, &subject, &place, &dry);
    outcome.unwrap();
    assert_eq!(report.n_proved, 0);
    assert!(fixture.blocks.get_blocking(&raw(&bytes(1, 3000))).is_err());
    let (outcome, again) = run(&fixture, &subject, &place, &OPTIONS);
    outcome.unwrap();
    assert_eq!(again.n_sampled, report.n_sampled, "the same blocks");
    // 40 small files, 5 or more blocks of a big one, 9 of the CAR: all there are.
    assert!(again.n_sampled >= 40, "{again:?}");
    assert_eq!(
        (again.n_objects, again.n_missing),
        (43, 0),
        "the CAR was added as a file, too"
    );
    all_served(&fixture);
    let report = fixture.add(&[&new]);
    assert_eq!((report.files_hashed, report.files_unchanged), (0, 42));
    let roots = fixture.store().catalog().roots().unwrap();
    assert!(
        roots
            .iter()
            .all(|root| root.path.starts_with(new.as_os_str().as_encoded_bytes()))
    );
    all_served(&fixture.reopened());
}

#[test]
fn a_renamed_folder_is_proved_by_its_inodes() {
    let (fixture, old, new) = folder();
    std::fs::rename(&old, &new).unwrap();
    let (subject, place) = moves(&old, &new);
    let (outcome, report) = run(&fixture, &subject, &place, &OPTIONS);
    outcome.unwrap();
    assert_eq!(report.n_proved, report.n_objects);
    all_served(&fixture);
}

#[test]
fn a_place_with_other_bytes_or_fewer_objects_changes_nothing() {
    let (fixture, old, new) = folder();
    copy(&old, &new);
    std::fs::write(new.join("big"), bytes(98, 5 << 20)).unwrap();
    let (subject, place) = moves(&old, &new);
    let (outcome, report) = run(&fixture, &subject, &place, &OPTIONS);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Changed);
    assert!(
        report
            .failed
            .iter()
            .all(|(path, _)| path == Path::new("big")),
        "{report:?}"
    );
    std::fs::copy(old.join("big"), new.join("big")).unwrap();
    std::fs::remove_file(new.join("d/7")).unwrap();
    std::fs::write(new.join("d/8"), b"short").unwrap();
    let (outcome, report) = run(&fixture, &subject, &place, &OPTIONS);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Changed);
    let mut missing: Vec<_> = report.missing.iter().map(|one| one.0.clone()).collect();
    missing.sort();
    assert_eq!(missing, [PathBuf::from("d/7"), PathBuf::from("d/8")]);
    all_served(&fixture); // From where it was.
    let some = Options {
        missing_max: 2,
        ..OPTIONS
    };
    run(&fixture, &subject, &place, &some).0.unwrap();
    let error = fixture
        .blocks
        .get_blocking(&raw(&bytes(7, 3000)))
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
    fixture.blocks.get_blocking(&raw(&bytes(9, 3000))).unwrap();
}

#[test]
fn what_was_never_added_cannot_move() {
    let fixture = Fixture::new();
    let (subject, place) = moves(Path::new("/nowhere"), fixture.dir.path());
    let (outcome, _) = run(&fixture, &subject, &place, &OPTIONS);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
}

/// Twenty objects of a few blocks each in a source elsewhere.
fn elsewhere() -> (Setup, Vec<Vec<u8>>) {
    let setup = Setup::new();
    let objects: Vec<_> = (0..20).map(|seed| bytes(seed, 3 * BLOCK + 5)).collect();
    for (index, object) in objects.iter().enumerate() {
        setup.add(&format!("o/{index}"), object);
    }
    (setup, objects)
}

fn new_source(setup: &Setup, url: &str) -> Subject {
    let catalog = setup.fixture.store().catalog();
    let mut record = catalog.source(SOURCE_FIRST).unwrap().unwrap();
    record.url = url.to_owned();
    Subject::Source(SOURCE_FIRST, record)
}

#[test]
fn a_bucket_moves_to_another_and_to_a_folder() {
    let (setup, objects) = elsewhere();
    let handle = setup.fixture.blocks.extents().sources().handle().unwrap();
    let other = Arc::new(MemorySource::default());
    other.put("unrelated", "first, so that no entity tag is the same");
    for (index, object) in objects.iter().enumerate() {
        other.put(&format!("o/{index}"), object.clone());
    }
    let place = NewPlace::Elsewhere(Arc::clone(&other) as _, handle);
    let subject = new_source(&setup, "memory2://");
    let (outcome, report) = run(&setup.fixture, &subject, &place, &OPTIONS);
    outcome.unwrap();
    assert_eq!((report.n_objects, report.n_missing), (20, 0));
    assert!(report.n_sampled >= 60, "{report:?}");
    let sources = setup.fixture.blocks.extents().sources();
    sources.put(SOURCE_FIRST, Arc::clone(&other) as _);
    let before = setup.source.reads();
    let block = setup
        .fixture
        .blocks
        .get_blocking(&raw(&objects[3][..BLOCK]))
        .unwrap();
    assert_eq!(block, objects[3][..BLOCK]);
    assert_eq!(
        setup.source.reads(),
        before,
        "nothing is read at the old place"
    );

    let folder = setup.fixture.path("folder");
    std::fs::create_dir_all(folder.join("o")).unwrap();
    for (index, object) in objects.iter().enumerate() {
        std::fs::write(folder.join(format!("o/{index}")), object).unwrap();
    }
    let subject = new_source(&setup, folder.to_str().unwrap());
    let place = NewPlace::Folder(folder);
    run(&setup.fixture, &subject, &place, &OPTIONS).0.unwrap();
    let before = other.reads();
    let block = setup
        .fixture
        .blocks
        .get_blocking(&raw(&objects[4][..BLOCK]))
        .unwrap();
    assert_eq!(block, objects[4][..BLOCK]);
    assert_eq!(other.reads(), before);
}

#[test]
fn every_object_elsewhere_has_a_state_and_a_time() {
    let (setup, objects) = elsewhere();
    setup.source.put("o/1", bytes(77, 3 * BLOCK + 5));
    setup.source.delete("o/2");
    let mut wrong = objects[3].clone();
    wrong[0] ^= 1;
    setup.source.corrupt("o/3", wrong);
    let blocks = &setup.fixture.blocks;
    blocks.get_blocking(&raw(&objects[3][..BLOCK])).unwrap_err();
    let stop = AtomicBool::new(false);
    let scope = Scope {
        only: Some(SOURCE_FIRST),
        asks: true,
    };
    for _ in 0..2 {
        let found = blocks.survey(scope, &stop).unwrap();
        let [status] = found.as_slice() else {
            panic!("{found:?}")
        };
        assert_eq!(status.counts, [17, 1, 1, 1, 0]);
        assert_eq!(status.state, State::Corrupt);
        let named: Vec<_> = status
            .changes
            .iter()
            .map(|one| (one.path.clone(), one.state))
            .collect();
        let name = |index: u32| PathBuf::from(format!("memory:///o/{index}"));
        let expected = [
            (name(1), State::Stale),
            (name(2), State::Missing),
            (name(3), State::Corrupt),
        ];
        assert_eq!(named, expected);
        assert!(status.changes.iter().all(|one| one.since_unix.is_some()));
        blocks.save_stale();
    }
    // What came back is live again.
    setup.source.corrupt("o/3", objects[3].clone());
    blocks
        .check(
            &raw(&objects[3][..BLOCK]),
            blocks.locate(raw(&objects[3][..BLOCK]).hash()).unwrap()[0],
        )
        .unwrap();
    let found = blocks.survey(scope, &stop).unwrap();
    assert_eq!(found[0].counts, [18, 1, 1, 0, 0]);
}

#[test]
fn a_source_that_does_not_answer_is_unreachable_since_that_was_first_noticed() {
    let (setup, _) = elsewhere();
    let (blocks, stop) = (&setup.fixture.blocks, AtomicBool::new(false));
    let scope = Scope {
        only: Some(SOURCE_FIRST),
        asks: true,
    };
    let survey = || blocks.survey(scope, &stop).unwrap().remove(0);
    setup.source.is_down.store(true, Ordering::SeqCst);
    let before = crate::clock::unix_seconds();
    let first = survey();
    assert_eq!(first.counts, [0, 0, 0, 0, 20]);
    let since = first.since_unix.unwrap();
    assert!(since >= before);
    assert!(
        first
            .changes
            .iter()
            .all(|one| one.since_unix == Some(since))
    );
    while crate::clock::unix_seconds() <= since {
        std::thread::yield_now();
    }
    assert_eq!(
        survey().since_unix,
        Some(since),
        "not since it was asked again"
    );
    setup.source.is_down.store(false, Ordering::SeqCst);
    let live = survey();
    assert_eq!((live.state, live.since_unix), (State::Live, None));
    setup.source.is_down.store(true, Ordering::SeqCst);
    assert!(survey().since_unix.unwrap() > since);
}

/// Nothing can be compared, but a place that is none is not taken for one.
#[test]
fn a_source_without_objects_moves_to_a_place_that_answers() {
    let setup = Setup::new();
    let other = Arc::new(MemorySource::default());
    let catalog = setup.fixture.store().catalog();
    let (id, mut record) = catalog.sources().unwrap().remove(0);
    record.url = "memory://other".to_owned();
    let handle = setup.fixture.blocks.extents().sources().handle().unwrap();
    let place = NewPlace::Elsewhere(Arc::clone(&other) as _, handle);
    let subject = Subject::Source(id, record);
    let url = || {
        setup
            .fixture
            .store()
            .catalog()
            .source(id)
            .unwrap()
            .unwrap()
            .url
    };
    other.is_down.store(true, Ordering::SeqCst);
    let (outcome, _) = run(&setup.fixture, &subject, &place, &OPTIONS);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(url(), "memory://");
    other.is_down.store(false, Ordering::SeqCst);
    let (outcome, report) = run(&setup.fixture, &subject, &place, &OPTIONS);
    outcome.unwrap();
    assert_eq!(report.n_objects, 0);
    assert_eq!(url(), "memory://other");
}

/// However many may be missing: with none that is there, nothing is proved.
#[test]
fn an_empty_place_is_not_that_of_a_source_with_objects() {
    let (setup, objects) = elsewhere();
    let catalog = setup.fixture.store().catalog();
    let (id, record) = catalog.sources().unwrap().remove(0);
    let empty = MemorySource::default();
    let handle = setup.fixture.blocks.extents().sources().handle().unwrap();
    let place = NewPlace::Elsewhere(Arc::new(empty), handle);
    let options = Options {
        missing_max: 1000,
        ..OPTIONS
    };
    let subject = Subject::Source(id, record);
    let (outcome, report) = run(&setup.fixture, &subject, &place, &options);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Changed);
    assert_eq!((report.n_objects, report.n_missing), (20, 20));
    let first = &objects[0][..BLOCK];
    assert_eq!(
        setup.fixture.blocks.get_blocking(&raw(first)).unwrap(),
        first
    );
}
