//! The disk refuses a write or a sync in the middle of a commit, at every position.

use std::sync::Arc;

use super::file::Access;

use super::{Batch, Catalog, ContainerKind, ContainerRecord, NextIds, Outcome, Validator};
use crate::durable::faults::{clear, fail_after, fail_reads, has_failed};
use crate::store::gate::WriteGate;
use crate::store::location::ContainerId;
use crate::store::{OpenMode, Store};

struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("catalog.redb");
        let mut options = std::fs::File::options();
        let file = options.read(true).write(true).create_new(true).open(&path);
        Catalog::make(&file.unwrap(), &path, &WriteGate::default()).unwrap();
        Self { dir }
    }

    fn open(&self) -> (Catalog, Arc<WriteGate>) {
        let gate = Arc::default();
        let path = self.dir.path().join("catalog.redb");
        let (catalog, _) = Catalog::open(&path, &gate, false).unwrap();
        (catalog, gate)
    }
}

/// Rows of a commit: it allocates pages.
const N_ROWS: u64 = 60;

/// A commit of some pages.
fn batch(first: u64) -> Batch {
    let mut batch = Batch::new();
    for id in first..first + N_ROWS {
        let record = ContainerRecord {
            kind: ContainerKind::File,
            source: 1,
            path: format!("/{id:0>300}").into_bytes(),
            size: id,
            validator: Validator::default(),
        };
        batch.put_container(ContainerId(id), &record);
    }
    batch
}

fn n_containers(catalog: &Catalog) -> u64 {
    catalog.snapshot().n_containers().unwrap()
}

/// Every row is there and can be read from the disk.
fn ids(catalog: &Catalog) -> Vec<u64> {
    let rows = catalog.snapshot();
    let rows = rows.containers().unwrap();
    rows.map(|row| row.unwrap().0.0).collect()
}

/// Room again, writes again: what failed is not there, what succeeds is, and nobody who reads
/// meets an error.
#[test]
fn a_commit_that_met_a_full_disk_changes_nothing_and_the_next_one_succeeds() {
    let (mut n_failed, mut n_synced) = (0, 0);
    for n in 0.. {
        let disk = Disk::new();
        let (catalog, gate) = disk.open();
        assert!(matches!(
            catalog.commit(batch(0), NextIds::FIRST),
            Outcome::Done(_)
        ));
        assert!(matches!(
            catalog.commit(batch(5000), NextIds::FIRST),
            Outcome::Done(_)
        ));
        let before = catalog.snapshot();
        fail_after(n, u64::MAX);
        let outcome = catalog.commit(batch(10_000), NextIds::FIRST);
        let met_failure = has_failed();
        assert_eq!(before.n_containers().unwrap(), 2 * N_ROWS, "{n}: read on");
        let rows = before.containers().unwrap().map(|row| row.unwrap().0.0);
        assert_eq!(rows.count() as u64, 2 * N_ROWS, "{n}: read on");
        drop(before);
        // As long as it is full, further ones fail in the same way.
        let again = (met_failure && gate.check().is_ok())
            .then(|| catalog.commit(batch(20_000), NextIds::FIRST));
        clear();
        match outcome {
            Outcome::Done(_) if !met_failure => {
                assert!(
                    n > 10 && n_failed > 5 && n_synced > 0,
                    "{n} {n_failed} {n_synced}"
                );
                return;
            }
            Outcome::Done(_) => panic!("{n}: done on a disk that took nothing"),
            Outcome::Not(_) if gate.check().is_ok() => {
                n_failed += 1;
                assert!(matches!(again, Some(Outcome::Not(_))), "{n}");
                assert_eq!(n_containers(&catalog), 2 * N_ROWS, "{n}");
                let outcome = catalog.commit(batch(30_000), NextIds::FIRST);
                assert!(matches!(outcome, Outcome::Done(_)), "{n}: {outcome:?}");
                let outcome = catalog.commit(batch(40_000), NextIds::FIRST);
                assert!(matches!(outcome, Outcome::Done(_)), "{n}: {outcome:?}");
                assert_eq!(ids(&catalog).len() as u64, 4 * N_ROWS, "{n}");
            }
            // A sync failed: nothing is written any more, and what is read is what is there.
            Outcome::Not(_) => {
                n_synced += 1;
                assert_eq!(ids(&catalog).len() as u64, 2 * N_ROWS, "{n}");
            }
            Outcome::Doubtful(..) => {
                n_synced += 1;
                assert!(gate.check().is_err());
                assert_eq!(ids(&catalog).len() as u64, 3 * N_ROWS, "{n}");
            }
            Outcome::Unknown(error) => panic!("{n}: {error:?}"),
        }
        let expected = ids(&catalog);
        drop(catalog);
        assert_eq!(
            ids(&disk.open().0),
            expected,
            "{n}: as it was when it was closed"
        );
    }
}

/// The disk is full for one write alone: whatever redb does after it must not reach the file.
#[test]
fn one_refused_write_in_the_middle_leaves_no_half_of_a_commit() {
    for n in 0..60 {
        let disk = Disk::new();
        let (catalog, gate) = disk.open();
        assert!(matches!(
            catalog.commit(batch(0), NextIds::FIRST),
            Outcome::Done(_)
        ));
        fail_after(n, 1);
        let outcome = catalog.commit(batch(10_000), NextIds::FIRST);
        let has_failed = clear();
        let expected = match outcome {
            Outcome::Done(_) | Outcome::Doubtful(..) => 2 * N_ROWS,
            Outcome::Not(_) | Outcome::Unknown(_) => N_ROWS,
        };
        assert_eq!(ids(&catalog).len() as u64, expected, "{n}");
        drop(catalog);
        let (catalog, _) = disk.open();
        assert_eq!(ids(&catalog).len() as u64, expected, "{n}: opened again");
        if !has_failed {
            return;
        }
        drop(gate);
    }
}

/// Pages that a reader of before may need are not written over.
#[test]
fn writing_goes_on_when_those_who_read_at_the_failure_are_done() {
    let disk = Disk::new();
    let (catalog, gate) = disk.open();
    assert!(matches!(
        catalog.commit(batch(0), NextIds::FIRST),
        Outcome::Done(_)
    ));
    let reader = catalog.snapshot();
    fail_after(3, 1);
    let outcome = catalog.commit(batch(1000), NextIds::FIRST);
    assert!(clear() && matches!(outcome, Outcome::Not(_)), "{outcome:?}");
    for _ in 0..2 {
        let outcome = catalog.commit(batch(1000), NextIds::FIRST);
        assert!(matches!(outcome, Outcome::Not(_)), "{outcome:?}");
        assert_eq!(reader.n_containers().unwrap(), N_ROWS);
    }
    gate.check().unwrap();
    drop(reader);
    let outcome = catalog.commit(batch(1000), NextIds::FIRST);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
}

/// More than the page cache holds.
const N_BATCHES: u64 = 1_500;

/// redb refuses all reads once one has failed.
#[test]
fn a_read_that_failed_is_over_when_the_disk_reads_again() {
    let disk = Disk::new();
    let (catalog, _) = disk.open();
    let mut many = batch(0);
    (1..N_BATCHES).for_each(|n| many.append(batch(n * N_ROWS)));
    let outcome = catalog.commit(many, NextIds::FIRST);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    drop(catalog);
    let (catalog, gate) = disk.open();
    catalog.begin_writing().unwrap();
    let rows = |snapshot: &super::Snapshot| -> Option<u64> {
        let rows = snapshot.containers().ok()?;
        rows.map(|row| row.ok().map(|row| row.0.0))
            .collect::<Option<Vec<_>>>()
            .map(|ids| ids.len() as u64)
    };
    fail_reads(true);
    for n in 0..3 {
        assert_eq!(rows(&catalog.snapshot()), None, "{n}");
    }
    fail_reads(false);
    assert_eq!(rows(&catalog.snapshot()), Some(N_BATCHES * N_ROWS));
    gate.check().unwrap();
    let outcome = catalog.commit(batch(N_BATCHES * N_ROWS), NextIds::FIRST);
    assert!(matches!(outcome, Outcome::Done(_)), "{outcome:?}");
    assert_eq!(rows(&catalog.snapshot()), Some((N_BATCHES + 1) * N_ROWS));
    drop(catalog);
    let n_rows = ids(&disk.open().0).len() as u64;
    assert_eq!(n_rows, (N_BATCHES + 1) * N_ROWS);
}

#[test]
fn a_file_that_was_not_closed_is_read_where_nothing_can_be_written() {
    let disk = Disk::new();
    let (catalog, _) = disk.open();
    assert!(matches!(
        catalog.commit(batch(0), NextIds::FIRST),
        Outcome::Done(_)
    ));
    // As a kill leaves it: open for writing, and not closed.
    let killed = disk.dir.path().join("killed.redb");
    std::fs::copy(disk.dir.path().join("catalog.redb"), &killed).unwrap();
    let bytes = std::fs::read(&killed).unwrap();
    fail_after(0, u64::MAX);
    let access = Access::open(&killed, &Arc::default(), true);
    let (reader, _) = Catalog::open(&killed, &Arc::default(), true).unwrap();
    assert!(clear(), "it tried to repair it on the disk first");
    assert_eq!(ids(&reader).len() as u64, N_ROWS);
    drop((access, reader));
    assert!(
        std::fs::read(&killed).unwrap() == bytes,
        "not a byte is written"
    );
}

/// Every sync, rename and write of a first start fails in turn, and the process ends with it.
#[test]
fn a_first_start_that_fails_anywhere_is_made_good_by_the_next() {
    for n in 0.. {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("a/data");
        fail_after(n, u64::MAX);
        let opened = Store::open(&data, OpenMode::Create);
        let has_failed = clear();
        assert_eq!(opened.is_err(), has_failed, "{n}: {opened:?}");
        drop(opened);
        let store = Store::open(&data, OpenMode::Create);
        let store = store.unwrap_or_else(|error| panic!("{n}: {error:?}"));
        store.check_writable().unwrap();
        let mut batch = Batch::new();
        batch.clear_stale(ContainerId(1));
        store.commit(batch).unwrap();
        if !has_failed {
            assert!(n > 15, "{n}: few steps");
            return;
        }
    }
}
