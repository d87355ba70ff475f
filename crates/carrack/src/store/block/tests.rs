//! Sources that change, go away, come back or lie, and packs that are damaged.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use carrack_formats::Cid;

use super::{Change, OpenContainer, Scope, State};
use crate::error::ErrorKind;
use crate::ingest::tests::{Fixture, bytes, car, import_options, raw};
use crate::store::catalog::StaleReason;
use crate::store::location::Location;

/// One file of two blocks of 2 KiB, its CAR in place of a second copy.
struct Setup {
    fixture: Fixture,
    file: PathBuf,
    data: Vec<u8>,
    cids: [Cid; 2],
}

const BLOCK: usize = 2048;

fn setup() -> Setup {
    let fixture = Fixture::new();
    let data = bytes(1, 2 * BLOCK);
    let file = fixture.write("file", &data);
    let mut options = crate::ingest::tests::options();
    options.profile = options.profile.with_chunk_size(BLOCK as u32).unwrap();
    fixture.add_with(&[&file], &options).unwrap();
    let cids = [raw(&data[..BLOCK]), raw(&data[BLOCK..])];
    Setup {
        fixture,
        file,
        data,
        cids,
    }
}

impl Setup {
    fn kind(&self, index: usize) -> Option<ErrorKind> {
        let cid = &self.cids[index];
        let blocks = &self.fixture.blocks;
        let expected = &self.data[index * BLOCK..][..BLOCK];
        if let Ok(Some(block)) = blocks.try_get(cid) {
            assert_eq!(block, expected);
        }
        let got = blocks.get_blocking(cid);
        let stat = blocks.stat(cid).unwrap();
        assert_eq!(stat.is_some(), got.is_ok(), "{got:?}");
        got.map(|block| assert_eq!(block, expected))
            .err()
            .map(|error| error.kind())
    }

    fn states(&self) -> Vec<&'static str> {
        let stop = false.into();
        let found = self.fixture.blocks.survey(Scope::default(), &stop).unwrap();
        let changes = found.iter().flat_map(|source| &source.changes);
        let name = |change: &Change| match change.state {
            State::Live => "touched",
            state => state.name(),
        };
        changes.map(name).collect()
    }

    fn edit(&self, offset: usize) {
        let file = File::options().write(true).open(&self.file).unwrap();
        file.write_all_at(&[!self.data[offset]], offset as u64)
            .unwrap();
    }

    fn put_back(&self) {
        fs::write(&self.file, &self.data).unwrap();
    }
}

#[test]
fn a_file_that_changed_is_out_of_service_until_it_is_put_back() {
    let setup = setup();
    type Change = dyn Fn(&Path);
    let changes: [(&Change, &str); 6] = [
        (&|path| fs::remove_file(path).unwrap(), "missing"),
        (&|path| fs::write(path, b"short").unwrap(), "stale"),
        (&|path| fs::write(path, vec![0; 9000]).unwrap(), "stale"),
        (
            &|path| fs::write(path, vec![0; 2 * BLOCK]).unwrap(),
            "stale",
        ),
        (
            &|path| {
                fs::remove_file(path).unwrap();
                fs::create_dir(path).unwrap();
            },
            "stale",
        ),
        (
            &|path| {
                fs::rename(path, path.with_extension("old")).unwrap();
                symlink(path.with_extension("old"), path).unwrap();
            },
            "stale",
        ),
    ];
    for (index, (change, state)) in changes.iter().enumerate() {
        assert_eq!(setup.kind(0), None, "before {index}");
        change(&setup.file);
        for _ in 0..2 {
            assert_eq!(setup.kind(0), Some(ErrorKind::Changed), "{index}");
            assert_eq!(setup.kind(1), Some(ErrorKind::Changed), "{index}");
        }
        let states = setup.states();
        assert_eq!(states.len(), 1, "{index}");
        assert!(
            [*state, "touched"].contains(&states[0]),
            "{index} {states:?}"
        );
        if setup.file.is_dir() {
            fs::remove_dir(&setup.file).unwrap();
        }
        let _ = fs::remove_file(&setup.file);
        setup.put_back();
        assert_eq!((setup.kind(0), setup.kind(1)), (None, None), "{index}");
        assert!(
            setup.fixture.blocks.store().stale().all().is_empty(),
            "{index}"
        );
    }
}

/// Good blocks of a version do not clear it of its bad ones.
#[test]
fn a_good_block_does_not_acquit_a_bad_one() {
    let setup = setup();
    setup.edit(BLOCK);
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed));
    let locations = setup.fixture.blocks.locate(setup.cids[0].hash()).unwrap();
    let blocks = &setup.fixture.blocks;
    blocks.check(&setup.cids[0], locations[0]).unwrap();
    assert_eq!(setup.states(), ["stale"], "verifying the good block");
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed));
    let location = blocks.locate(setup.cids[1].hash()).unwrap()[0];
    assert!(blocks.check(&setup.cids[1], location).is_err());
    setup.put_back();
    blocks.check(&setup.cids[1], location).unwrap();
    assert_eq!((setup.kind(0), setup.kind(1)), (None, None));
}

#[test]
fn marks_outlive_the_process_and_go_with_their_container() {
    let mut setup = setup();
    setup.edit(5);
    assert_eq!(setup.kind(0), Some(ErrorKind::Changed));
    setup.fixture = setup.fixture.reopened();
    let marks = setup.fixture.blocks.store().stale().all();
    assert_eq!(marks.len(), 1);
    assert_eq!(marks[0].1.reason, StaleReason::Mismatch);
    assert_eq!(setup.kind(0), Some(ErrorKind::Changed));
    let root = setup.fixture.store().catalog().roots().unwrap()[0].cid;
    setup.fixture.remove(&root);
    setup.fixture.blocks.store().stale().touch();
    setup.fixture.blocks.save_stale();
    assert!(setup.fixture.blocks.store().stale().all().is_empty());
    let saved = setup.fixture.store().catalog().stale_marks().unwrap();
    assert!(saved.is_empty());
}

#[test]
fn every_copy_is_tried_before_an_error() {
    let setup = setup();
    let block = setup.data[..BLOCK].to_vec();
    let car = car(&[setup.cids[0]], &[(setup.cids[0], block)]);
    let car_path = setup.fixture.write("copy.car", &car);
    setup.fixture.import(&car_path, &import_options()).unwrap();
    setup.edit(0);
    assert_eq!(setup.kind(0), None, "from the car");
    fs::remove_file(&car_path).unwrap();
    assert_eq!(setup.kind(0), Some(ErrorKind::Changed));
    setup.put_back();
    assert_eq!(setup.kind(0), None, "from the file");
    fs::remove_file(&setup.file).unwrap();
    setup.fixture.import_copy(&car, &import_options()).unwrap();
    assert_eq!(setup.kind(0), None, "from the pack");
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed));
}

/// Open files of a dropped container give nothing more.
#[test]
fn what_was_dropped_is_not_found_though_it_was_just_read() {
    let setup = setup();
    let root = setup.fixture.store().catalog().roots().unwrap()[0].cid;
    for cid in [root, setup.cids[0], setup.cids[1]] {
        assert!(setup.fixture.has(&cid));
        setup.fixture.blocks.stat(&cid).unwrap().unwrap();
    }
    setup.fixture.remove(&root);
    for cid in [root, setup.cids[0], setup.cids[1]] {
        assert!(!setup.fixture.has(&cid));
        assert_eq!(setup.fixture.blocks.stat(&cid).unwrap(), None);
        assert!(!matches!(setup.fixture.blocks.try_get(&cid), Ok(Some(_))));
    }
}

/// A plan that was made before an add replaced its container goes on with the new one.
#[test]
fn a_plan_survives_that_its_container_is_replaced() {
    let setup = setup();
    let blocks = &setup.fixture.blocks;
    let old = blocks.locate(setup.cids[1].hash()).unwrap();
    File::options()
        .write(true)
        .open(&setup.file)
        .and_then(|file| file.set_times(FileTimes::new().set_modified(std::time::UNIX_EPOCH)))
        .unwrap();
    let mut options = crate::ingest::tests::options();
    options.profile = options.profile.with_chunk_size(BLOCK as u32).unwrap();
    setup.fixture.add_with(&[&setup.file], &options).unwrap();
    assert_eq!(setup.fixture.n_roots(), 1);
    let mut out = vec![0; BLOCK];
    blocks
        .read_into(&setup.cids[1], &old, &mut None, &mut out)
        .unwrap();
    assert_eq!(out, setup.data[BLOCK..]);
}

#[test]
fn a_damaged_or_missing_pack_is_corrupt() {
    let fixture = Fixture::new();
    let data = bytes(3, 500);
    let car = car(&[raw(&data)], &[(raw(&data), data.clone())]);
    fixture.import_copy(&car, &import_options()).unwrap();
    let pack = fs::read_dir(fixture.path("data/packs")).unwrap().next();
    let pack = pack.unwrap().unwrap().path();
    let whole = fs::read(&pack).unwrap();
    for damage in [whole[..100].to_vec(), vec![0; whole.len()]] {
        fs::write(&pack, damage).unwrap();
        let error = fixture.blocks.get_blocking(&raw(&data)).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
    let fixture = fixture.reopened();
    fs::remove_file(&pack).unwrap();
    let error = fixture.blocks.get_blocking(&raw(&data)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    fs::write(&pack, whole).unwrap();
    assert!(fixture.has(&raw(&data)));
}

/// Index records are claims: one with another length must not make a reader panic.
#[test]
fn a_location_of_another_length_is_an_error() {
    let setup = setup();
    let blocks = &setup.fixture.blocks;
    let location = blocks.locate(setup.cids[0].hash()).unwrap()[0];
    for (len, wrapped) in [(5, true), (5, false), (BLOCK as u32, true)] {
        let lying = Location {
            len,
            wrapped,
            ..location
        };
        let mut last: Option<std::sync::Arc<OpenContainer>> = None;
        let mut out = vec![0; BLOCK + 1];
        for _ in 0..2 {
            let read = blocks.read_into(&setup.cids[0], &[lying], &mut last, &mut out);
            assert_eq!(read.unwrap_err().kind(), ErrorKind::Corrupt);
        }
    }
    assert_eq!(setup.kind(0), None);
}

/// The very bytes that were added lie behind the symlink: it is not followed all the same.
#[test]
fn what_lies_behind_a_symlink_now_is_not_served() {
    for is_folder in [true, false] {
        let fixture = Fixture::new();
        let file = fixture.write("tree/a/file", b"data");
        fixture.add(&[&fixture.path("tree")]);
        let place = if is_folder {
            fixture.path("tree/a")
        } else {
            file
        };
        let away = fixture.path("away");
        fs::rename(&place, &away).unwrap();
        symlink(&away, &place).unwrap();
        for _ in 0..2 {
            let error = fixture.blocks.get_blocking(&raw(b"data")).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Changed);
            assert_eq!(fixture.blocks.stat(&raw(b"data")).unwrap(), None);
        }
        let stop = false.into();
        let found = fixture.blocks.survey(Scope::default(), &stop).unwrap();
        let states: Vec<_> = found
            .iter()
            .flat_map(|one| &one.changes)
            .map(|one| one.state)
            .collect();
        assert_eq!(states, [State::Stale]);
        fs::remove_file(&place).unwrap();
        fs::rename(&away, &place).unwrap();
        assert_eq!(
            fixture.blocks.get_blocking(&raw(b"data")).unwrap(),
            b"data"[..]
        );
    }
}
