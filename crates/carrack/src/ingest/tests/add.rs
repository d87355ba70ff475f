//! Trees of files, added, changed, added again and dropped.

use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use carrack_formats::unixfs::build::{FileBuilder, Leaf};
use carrack_formats::unixfs::leaf;
use carrack_formats::unixfs::list::{Item, entries};
use carrack_formats::unixfs::profile::{Profile, UNIXFS_V0_2015, UNIXFS_V1_2025};
use carrack_formats::{Cid, cid, verify};

use super::{Fixture, bytes, options, raw};
use crate::error::ErrorKind;
use crate::ingest::Progress;
use crate::ingest::add::{AddOptions, add};
use crate::source::local::validator_at;
use crate::store::catalog::{StaleMark, StaleReason};

fn with(profile: Profile) -> AddOptions {
    AddOptions {
        profile,
        ..options()
    }
}

/// The CID by the builder alone, without threads, ranges and stores.
fn expected(data: &[u8], profile: &Profile) -> Cid {
    let mut builder = FileBuilder::new(profile);
    let mut chunks: Vec<&[u8]> = data.chunks(profile.chunk_size as usize).collect();
    if data.is_empty() {
        chunks.push(b"");
    }
    for chunk in chunks {
        let (prefix, suffix) = match profile.raw_leaves {
            true => Default::default(),
            false => leaf::frame(chunk.len()),
        };
        let block = [&prefix, chunk, &suffix].concat();
        let (version, codec) = match profile.raw_leaves {
            true => (::cid::Version::V1, cid::RAW),
            false => (profile.cid_version, cid::DAG_PB),
        };
        let leaf = Leaf {
            cid: cid::from_sha256(version, codec, &verify::sha256(&block)),
            file_len: chunk.len() as u64,
            block_len: block.len() as u64,
        };
        builder.push_leaf(leaf, &mut |_, _| {});
    }
    builder.finish(&mut |_, _| {}).cid
}

#[test]
fn files_of_all_lengths_come_back_whole() {
    let small = UNIXFS_V1_2025.with_chunk_size(1000).unwrap();
    let wrapped = UNIXFS_V0_2015.with_chunk_size(1000).unwrap();
    let tiny = UNIXFS_V1_2025.with_chunk_size(3).unwrap();
    let range = 8 << 20;
    let table: [(Profile, &[usize]); 5] = [
        (
            UNIXFS_V1_2025,
            &[0, 1, 1 << 20, range - 1, range, range + 1],
        ),
        (UNIXFS_V0_2015, &[0, 1, 262_144, 262_145, range + 1]),
        (small, &[999, 1000, 1001, 1_024_000, 1_024_001, range + 7]),
        (wrapped, &[999, 1000, 1001, 174_000, 174_001, range + 7]),
        (tiny, &[3 << 14, (3 << 14) + 1, 200_000]),
    ];
    let data = bytes(1, range + 7);
    for (profile, lens) in table {
        let fixture = Fixture::new();
        for &len in lens {
            let path = fixture.write(&format!("{len}"), &data[..len]);
            let report = fixture.add_with(&[&path], &with(profile.clone())).unwrap();
            let root = &report.roots[0];
            assert_eq!(root.cid, expected(&data[..len], &profile), "{len}");
            assert_eq!((root.bytes, root.n_files), (len as u64, 1));
            assert_eq!(fixture.cat(&root.cid).unwrap(), data[..len], "{len}");
            assert_eq!(report.bytes_hashed, len as u64);
        }
    }
}

fn names(fixture: &Fixture, directory: &Cid) -> Vec<(Vec<u8>, Cid)> {
    let block = fixture.blocks.get_blocking(directory).unwrap();
    let item = |item| match item {
        Ok(Item::Entry { name, cid, .. }) => (name.to_vec(), cid),
        other => panic!("{other:?}"),
    };
    entries(&block).unwrap().map(item).collect()
}

#[test]
fn each_kind_of_entry_has_its_place_in_the_report() {
    let fixture = Fixture::new();
    let tree = fixture.path("tree");
    fixture.write("tree/file", b"data");
    fixture.write("tree/empty", b"");
    fixture.write("tree/.hidden", b"x");
    fixture.write("tree/only hidden/.x", b"x");
    fs::create_dir(tree.join("nothing")).unwrap();
    fs::write(
        tree.join(std::ffi::OsStr::from_bytes(b"\xff\xfe")),
        b"bytes",
    )
    .unwrap();
    symlink("loop", tree.join("loop")).unwrap();
    symlink("..", tree.join("up")).unwrap();
    let _socket = UnixListener::bind(tree.join("socket")).unwrap();
    let fifo = tree.join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR).unwrap();
    let report = fixture.add(&[&tree]);
    assert_eq!((report.hidden, report.special, report.symlinks), (2, 2, 2));
    assert_eq!((report.files_hashed, report.n_left_out), (3, 0));
    let found = names(&fixture, &report.roots[0].cid);
    let found: Vec<&[u8]> = found.iter().map(|entry| entry.0.as_slice()).collect();
    let expected: [&[u8]; 7] = [
        b"empty",
        b"file",
        b"loop",
        b"nothing",
        b"only hidden",
        b"up",
        b"\xff\xfe",
    ];
    assert_eq!(found, expected);
    let hidden = AddOptions {
        hidden: true,
        ..options()
    };
    let report = fixture.add_with(&[&tree], &hidden).unwrap();
    assert_eq!(
        (report.hidden, names(&fixture, &report.roots[0].cid).len()),
        (0, 8)
    );
    let error = fixture.add_with(&[&fifo], &options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let error = fixture.add_with(&[&tree.join("loop")], &options());
    assert_eq!(error.unwrap_err().kind(), ErrorKind::Invalid);
}

#[test]
fn only_what_changed_is_read_again() {
    let fixture = Fixture::new();
    for index in 0..20 {
        fixture.write(&format!("tree/{}/{index}", index % 3), &bytes(index, 500));
    }
    let big = fixture.write("tree/big", &bytes(99, 9 << 20));
    symlink("big", fixture.path("tree/link")).unwrap();
    let tree = fixture.path("tree");
    let first = fixture.add(&[&tree]);
    assert_eq!(first.files_hashed, 21);
    let again = fixture.add(&[&tree]);
    assert_eq!((again.files_hashed, again.files_unchanged), (0, 21));
    assert_eq!(again.roots[0].cid, first.roots[0].cid);
    assert_eq!(again.roots[0].n_blocks, first.roots[0].n_blocks);
    assert_eq!(again.roots[0].n_files, first.roots[0].n_files);
    assert_eq!((fixture.n_roots(), fixture.n_packs()), (1, 1));
    // Touched: read again, and the same.
    File::options()
        .append(true)
        .open(&big)
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH)
        .unwrap();
    let touched = fixture.add(&[&tree]);
    assert_eq!((touched.files_hashed, touched.bytes_hashed), (1, 9 << 20));
    assert_eq!(touched.roots[0].cid, first.roots[0].cid);
    assert_eq!(fixture.n_roots(), 1);
    // Changed: another root.
    fixture.write("tree/1/4", b"changed");
    let changed = fixture.add(&[&tree]);
    assert!(changed.files_hashed <= 2, "{changed:?}"); // The touched one was too new.
    assert_ne!(changed.roots[0].cid, first.roots[0].cid);
    assert_eq!(fixture.cat(&raw(b"changed")).unwrap(), b"changed");
    let fixture = fixture.reopened();
    assert_eq!(
        fixture
            .cat(&expected(&bytes(99, 9 << 20), &UNIXFS_V1_2025))
            .unwrap()
            .len(),
        9 << 20
    );
}

#[test]
fn what_another_root_needs_stays_when_one_goes() {
    let fixture = Fixture::new();
    let inner = bytes(1, 3 << 20);
    fixture.write("a/b/inner", &inner);
    fixture.write("a/outer", b"outer");
    let (outer_path, inner_path) = (fixture.path("a"), fixture.path("a/b"));
    let paths: [&Path; 2] = [&outer_path, &inner_path];
    for order in [[0, 1], [1, 0]] {
        let report = fixture.add(&[paths[order[0]], paths[order[1]]]);
        let [first, second] = [report.roots[0].cid, report.roots[1].cid];
        let file = expected(&inner, &UNIXFS_V1_2025);
        assert_eq!(fixture.n_roots(), 2);
        fixture.remove(&first);
        assert!(fixture.has(&second));
        assert_eq!(fixture.cat(&file).unwrap(), inner);
        fixture.remove(&second);
        assert!(!fixture.has(&second) && !fixture.has(&file));
        assert_eq!((fixture.n_containers(), fixture.n_packs()), (0, 0));
    }
    let report = fixture.add(&[&outer_path]);
    assert_eq!(
        report.files_hashed, 2,
        "nothing is known of what was dropped"
    );
    assert_eq!(fixture.cat(&raw(b"outer")).unwrap(), b"outer");
}

#[test]
fn a_path_given_twice_is_one_root_and_two_answers() {
    let fixture = Fixture::new();
    let path = fixture.write("tree/file", b"data");
    let tree = fixture.path("tree");
    let report = fixture.add(&[&tree, &path, &tree.join("."), &path]);
    let cids: Vec<Cid> = report.roots.iter().map(|root| root.cid).collect();
    assert_eq!(cids[1], raw(b"data"));
    assert_eq!(cids, [cids[0], cids[1], cids[0], cids[1]]);
    assert_eq!(fixture.n_roots(), 2);
}

#[test]
fn wrapping_makes_one_directory_and_refuses_two_of_a_name() {
    let fixture = Fixture::new();
    let (one, two) = (fixture.write("a/x", b"1"), fixture.write("b/y", b"2"));
    let other = fixture.write("b/x", b"3");
    let wrap = AddOptions {
        wrap: true,
        ..options()
    };
    let report = fixture.add_with(&[&one, &two, &one], &wrap).unwrap();
    assert_eq!(report.roots.len(), 1);
    let found = names(&fixture, &report.roots[0].cid);
    assert_eq!(
        found,
        [(b"x".to_vec(), raw(b"1")), (b"y".to_vec(), raw(b"2"))]
    );
    for paths in [
        [&one, &other].as_slice(),
        &[&one, &Path::new("/").to_owned()],
    ] {
        let paths: Vec<&Path> = paths.iter().map(|path| path.as_path()).collect();
        let error = fixture.add_with(&paths, &wrap).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

/// Changes the file whenever something of it was read.
struct Meddler<'a> {
    path: &'a Path,
    times: u32,
}

impl Progress for Meddler<'_> {
    fn update(&mut self, _what: &str, _done: u64, _total: Option<u64>) {
        if self.times > 0 {
            self.times -= 1;
            let len = fs::metadata(self.path).unwrap().len();
            let file = File::options().write(true).open(self.path).unwrap();
            let grows = self.times.is_multiple_of(2);
            file.set_len(if grows { len + 1 } else { len - 9000 })
                .unwrap();
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_read_again_or_left_out() {
    for (times, n_left_out) in [(1, 0), (2, 0), (1000, 1)] {
        let fixture = Fixture::new();
        let path = fixture.write("tree/big", &bytes(1, 20 << 20));
        fixture.write("tree/small", b"data");
        let stop = AtomicBool::new(false);
        let mut meddler = Meddler { path: &path, times };
        let (store, tree) = (fixture.store(), [fixture.path("tree")]);
        let report = add(store, &tree, &options(), &mut meddler, &stop).unwrap();
        assert_eq!(report.n_left_out, n_left_out, "{times}: {report:?}");
        let found = names(&fixture, &report.roots[0].cid);
        assert_eq!(found.len(), 2 - usize::try_from(n_left_out).unwrap());
        if n_left_out == 0 {
            let now = fs::read(&path).unwrap();
            assert_eq!(fixture.cat(&found[0].1).unwrap(), now, "{times}");
        }
    }
}

/// Bytes that rot do not change the times: once they were found bad, an add reads them again.
#[test]
fn a_file_found_bad_is_not_taken_for_known() {
    let fixture = Fixture::new();
    let path = fixture.write("file", b"data");
    fixture.add(&[&path]);
    let location = fixture.blocks.locate(raw(b"data").hash()).unwrap()[0];
    let mark = StaleMark {
        reason: StaleReason::Mismatch,
        observed: Some(validator_at(&path).unwrap()),
        since_unix: 1,
        offset: 0,
        len: 4,
        ranges: std::iter::once(0..4).collect(),
    };
    fixture.store().stale().mark(location.container, mark);
    let fixture = fixture.reopened(); // What was found survives a restart.
    assert_eq!(fixture.add(&[&path]).files_hashed, 1);
    assert_eq!(fixture.add(&[&path]).files_unchanged, 1);
}

#[test]
fn an_interrupted_add_goes_on() {
    let fixture = Fixture::new();
    for index in 0..300 {
        fixture.write(&format!("tree/{index:03}"), &bytes(index, 100_000));
    }
    struct Interrupter<'a>(&'a AtomicBool, u32);
    impl Progress for Interrupter<'_> {
        fn update(&mut self, _what: &str, _done: u64, _total: Option<u64>) {
            self.1 += 1;
            self.0.store(self.1 > 100, Ordering::Relaxed);
        }
    }
    let (stop, tree) = (AtomicBool::new(false), [fixture.path("tree")]);
    let mut interrupter = Interrupter(&stop, 0);
    let outcome = add(fixture.store(), &tree, &options(), &mut interrupter, &stop);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fixture.n_roots(), 0);
    let fixture = fixture.reopened();
    let report = fixture.add(&[&tree[0]]);
    assert!((100..300).contains(&report.files_unchanged), "{report:?}");
    for index in 0..300 {
        assert!(fixture.has(&raw(&bytes(index, 100_000))));
    }
}

#[test]
fn the_store_itself_is_not_added() {
    let fixture = Fixture::new();
    fixture.write("file", b"data");
    let report = fixture.add(&[fixture.dir.path()]);
    let found = names(&fixture, &report.roots[0].cid);
    assert_eq!(found, [(b"file".to_vec(), raw(b"data"))]);
    assert_eq!(report.own.len(), 1);
}

#[test]
fn a_sharded_directory_is_known_again() {
    let fixture = Fixture::new();
    let tree = fixture.path("tree");
    fs::create_dir(&tree).unwrap();
    let first = fixture.write("tree/0", b"data");
    for index in 1..4_000 {
        fs::hard_link(&first, tree.join(format!("{index:060}"))).unwrap();
    }
    let shards = AddOptions {
        profile: UNIXFS_V0_2015,
        ..options()
    };
    let report = fixture.add_with(&[&tree], &shards).unwrap();
    assert_eq!(report.files_hashed, 4_000);
    let again = fixture.add_with(&[&tree], &shards).unwrap();
    assert_eq!(
        (again.files_hashed, again.roots[0].cid),
        (0, report.roots[0].cid)
    );
    assert_eq!(again.roots[0].n_blocks, report.roots[0].n_blocks);
}
