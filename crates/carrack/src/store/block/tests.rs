//! Sources that change, go away, come back or lie, and packs that are damaged.

use std::fs::{self, File, FileTimes};
use std::os::unix::fs::{FileExt, symlink};
use std::path::{Path, PathBuf};

use bytes::Bytes;
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
    cids: Vec<Cid>,
}

const BLOCK: usize = 2048;

fn setup() -> Setup {
    setup_of(2)
}

/// The same with so many blocks.
fn setup_of(n_blocks: usize) -> Setup {
    let fixture = Fixture::new();
    let data = bytes(1, n_blocks * BLOCK);
    let file = fixture.write("file", &data);
    let mut options = crate::ingest::tests::options();
    options.profile = options.profile.with_chunk_size(BLOCK as u32).unwrap();
    fixture.add_with(&[&file], &options).unwrap();
    let cids = data.chunks(BLOCK).map(raw).collect();
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
    assert!(blocks.check(&setup.cids[0], locations[0]).unwrap());
    assert_eq!(setup.states(), ["stale"], "verifying the good block");
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed));
    let location = blocks.locate(setup.cids[1].hash()).unwrap()[0];
    assert!(blocks.check(&setup.cids[1], location).is_err());
    setup.put_back();
    assert!(blocks.check(&setup.cids[1], location).unwrap());
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
    let stale = setup.fixture.blocks.store().stale();
    stale.touch(marks[0].0);
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

/// Six bytes of the third of five leaves: it is refused, and the four others are served one by one,
/// also by the next process; put back, it is served again without anybody's doing.
#[test]
fn a_damaged_block_takes_no_other_with_it() {
    let mut setup = setup_of(5);
    let served =
        |setup: &Setup| -> Vec<bool> { (0..5).map(|index| setup.kind(index).is_none()).collect() };
    for byte in 0..6 {
        setup.edit(2 * BLOCK + 7 + byte);
    }
    let others = [true, true, false, true, true];
    for _ in 0..3 {
        assert_eq!(served(&setup), others);
    }
    assert_eq!(setup.states(), ["stale"]);
    setup.fixture = setup.fixture.reopened();
    assert_eq!(served(&setup), others, "after a restart");
    setup.put_back();
    assert_eq!(served(&setup), [true; 5]);
    assert!(setup.fixture.blocks.store().stale().all().is_empty());
}

/// A file that was rewritten in its length: strangers who ask for all of it have a few dozen blocks
/// hashed, and each of them is refused. Put back, it serves.
#[test]
fn a_rewritten_file_is_known_before_all_of_it_is_hashed() {
    let setup = setup_of(300);
    fs::write(&setup.file, bytes(2, 300 * BLOCK)).unwrap();
    for index in 0..300 {
        let error = setup.fixture.blocks.get_blocking(&setup.cids[index]);
        assert_eq!(error.unwrap_err().kind(), ErrorKind::Changed);
    }
    let marks = setup.fixture.blocks.store().stale().all();
    assert_eq!(marks[0].1.reason, StaleReason::Widespread);
    let n_hashed = marks[0].1.ranges[0].end / BLOCK as u64;
    assert!(n_hashed <= 64, "{n_hashed}");
    let stop = false.into();
    let found = setup.fixture.blocks.survey(Scope::default(), &stop);
    let reason = &found.unwrap()[0].changes[0].reason;
    assert!(reason.contains("in most places"), "{reason}");
    setup.put_back();
    assert_eq!((setup.kind(0), setup.kind(299)), (None, None));
    assert!(!setup.fixture.blocks.store().stale().any());
}

/// Bytes that rotted and were mended by the disk itself: the version is the same all the time.
/// Strangers have the block hashed once an interval, and `verify` whenever it wants.
#[test]
fn what_rotted_and_was_mended_under_its_version_is_served_again() {
    let setup = setup_of(3);
    let blocks = &setup.fixture.blocks;
    let version = crate::source::local::validator_at(&setup.file).unwrap();
    let location = blocks.locate(setup.cids[1].hash()).unwrap()[0];
    let rot = || {
        let marks = blocks.store().stale();
        marks.mark_damaged(location.container, version.clone(), location);
    };
    let all = |setup: &Setup| [setup.kind(0), setup.kind(1), setup.kind(2)];
    for is_by_itself in [true, false] {
        rot();
        for _ in 0..3 {
            assert_eq!(all(&setup), [None, Some(ErrorKind::Changed), None]);
        }
        assert_eq!(setup.states(), ["corrupt"]);
        if is_by_itself {
            blocks.store().stale().let_interval_pass();
        } else {
            assert!(blocks.check(&setup.cids[1], location).unwrap());
        }
        assert_eq!(all(&setup), [None; 3], "{is_by_itself}");
        assert!(!blocks.store().stale().any());
    }
}

/// A block that stays bad is hashed once in an interval, whoever asks and however.
#[test]
fn a_bad_block_is_looked_at_once_in_an_interval() {
    let setup = setup_of(3);
    setup.edit(BLOCK);
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed));
    let marks = setup.fixture.blocks.store().stale();
    let id = marks.all()[0].0;
    marks.let_interval_pass();
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed), "looked at again");
    assert!(!marks.claim_look(id, crate::store::catalog::SOURCE_LOCAL));
}

/// A damaged block among those that are read together, and a sound copy of it in a CAR.
#[tokio::test]
async fn a_damaged_block_takes_nothing_from_those_read_with_it() {
    let setup = setup_of(20);
    setup.edit(7 * BLOCK + 1);
    let expected = |bad: &[usize]| -> Vec<Option<Bytes>> {
        let chunk = |(index, chunk): (usize, &[u8])| {
            (!bad.contains(&index)).then(|| Bytes::copy_from_slice(chunk))
        };
        setup.data.chunks(BLOCK).enumerate().map(chunk).collect()
    };
    for _ in 0..2 {
        let got = setup.fixture.blocks.get_many(setup.cids.clone()).await;
        assert!(got == expected(&[7]));
    }
    let block = setup.data[7 * BLOCK..][..BLOCK].to_vec();
    let car = car(&[setup.cids[7]], &[(setup.cids[7], block)]);
    let path = setup.fixture.write("copy.car", &car);
    setup.fixture.import(&path, &import_options()).unwrap();
    let got = setup.fixture.blocks.get_many(setup.cids.clone()).await;
    assert!(got == expected(&[]));
    assert_eq!(setup.kind(7), None);
}

/// An edited file tells of each of its blocks only what it read.
#[test]
fn nothing_is_promised_of_a_damaged_file_unread() {
    let setup = setup_of(4);
    setup.edit(BLOCK);
    setup.edit(3 * BLOCK);
    assert_eq!(setup.kind(1), Some(ErrorKind::Changed));
    let stat = |index: usize| setup.fixture.blocks.stat(&setup.cids[index]).unwrap();
    let found: Vec<_> = (0..4).map(|index| stat(index).is_some()).collect();
    assert_eq!(found, [true, false, true, false]);
    assert_eq!(setup.states(), ["stale"]);
    let stop = false.into();
    let found = setup
        .fixture
        .blocks
        .survey(Scope::default(), &stop)
        .unwrap();
    let len = BLOCK as u64;
    assert_eq!(found[0].changes[0].ranges, [len..2 * len, 3 * len..4 * len]);
}

/// A CAR that stays where it is, damaged in one of its blocks.
#[test]
fn a_damaged_car_serves_its_other_blocks() {
    let fixture = Fixture::new();
    let data: Vec<Vec<u8>> = (0..6).map(|seed| bytes(seed, BLOCK)).collect();
    let blocks: Vec<(Cid, Vec<u8>)> = data.iter().map(|one| (raw(one), one.clone())).collect();
    let whole = car(&[blocks[0].0], &blocks);
    let path = fixture.write("six.car", &whole);
    fixture.import(&path, &import_options()).unwrap();
    let mut damaged = whole.clone();
    let at = fixture.blocks.locate(blocks[4].0.hash()).unwrap()[0];
    damaged[usize::try_from(at.offset).unwrap() + 9] ^= 1;
    fs::write(&path, &damaged).unwrap();
    let served = |fixture: &Fixture| -> Vec<bool> {
        let get = |(cid, _): &(Cid, Vec<u8>)| fixture.blocks.get_blocking(cid).is_ok();
        blocks.iter().map(get).collect()
    };
    let others = [true, true, true, true, false, true];
    assert_eq!(served(&fixture), others);
    let fixture = fixture.reopened();
    assert_eq!(served(&fixture), others, "after a restart");
    let stop = false.into();
    let found = fixture.blocks.survey(Scope::default(), &stop).unwrap();
    let end = at.offset + u64::from(at.len);
    let damaged = at.offset..end;
    assert_eq!(found[0].changes[0].ranges, vec![damaged]);
    fs::write(&path, &whole).unwrap();
    assert_eq!(served(&fixture), [true; 6]);
}
