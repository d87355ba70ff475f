//! Files with holes, files longer than can be served, and the journals of both.

use std::fs::{self, File};
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Fixture, bytes, options};
use crate::error::ErrorKind;
use crate::ingest::Progress;
use crate::ingest::add::add;

fn sparse(path: &Path, len: u64, data: &[(u64, &[u8])]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = File::create(path).unwrap();
    for (offset, bytes) in data {
        file.seek(SeekFrom::Start(*offset)).unwrap();
        file.write_all(bytes).unwrap();
    }
    file.set_len(len).unwrap();
}

fn journals(fixture: &Fixture) -> Vec<PathBuf> {
    let found = fs::read_dir(fixture.store().journal_dir()).unwrap();
    found.map(|one| one.unwrap().path()).collect()
}

fn journals_len(fixture: &Fixture) -> u64 {
    let lens = journals(fixture)
        .into_iter()
        .map(|path| fs::metadata(path).unwrap().len());
    lens.sum()
}

fn data_len(fixture: &Fixture) -> u64 {
    let mut len = 0;
    for folder in ["packs", "segments"] {
        for one in fs::read_dir(fixture.path("data").join(folder)).unwrap() {
            len += one.unwrap().metadata().unwrap().len();
        }
    }
    len
}

/// Ends an add once so many bytes were seen.
struct EndsAfter<'a>(&'a AtomicBool, u64);

impl Progress for EndsAfter<'_> {
    fn update(&mut self, _what: &str, done: u64, _total: Option<u64>) {
        if done >= self.1 {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

fn interrupted_at(fixture: &Fixture, path: &Path, len: u64) {
    let stop = AtomicBool::new(false);
    let paths = [path.to_owned()];
    let mut progress = EndsAfter(&stop, len);
    let error = add(fixture.store(), &paths, &options(), &mut progress, &stop).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

/// An index record ends at 128 TiB, so the leaves behind that could not be found.
#[test]
fn a_file_too_long_to_be_served_is_left_out_at_once_and_named() {
    let fixture = Fixture::new();
    let shm = Path::new("/dev/shm");
    let dir = match shm.is_dir() {
        true => tempfile::tempdir_in(shm).unwrap(), // 7 EiB are more than ext4 has.
        false => return,
    };
    let tree = dir.path().canonicalize().unwrap();
    for len in [7 << 60, (1 << 47) + 1] {
        sparse(&tree.join(format!("{len}")), len, &[]);
    }
    fs::write(tree.join("small"), b"data").unwrap();
    let report = fixture.add(&[&tree]);
    assert_eq!((report.n_left_out, report.files_hashed), (2, 1));
    for left in &report.left_out {
        assert!(left.why.contains("128 TiB"), "{}", left.why);
    }
    assert_eq!(journals(&fixture), Vec::<PathBuf>::new());
}

#[test]
fn small_chunks_make_a_file_too_long_earlier() {
    let fixture = Fixture::new();
    let path = fixture.path("tree/long");
    sparse(&path, 1 << 43, &[]);
    let mut options = options();
    options.profile = options.profile.with_chunk_size(1024).unwrap();
    let report = fixture.add_with(&[&path], &options).unwrap();
    assert_eq!((report.n_left_out, report.roots.len()), (1, 0));
    assert!(report.left_out[0].why.contains("leaves"), "{report:?}");
}

/// A tebibyte of nothing, but for two places: an entry, a journal record and a node are made for
/// the holes once and not for each of a million leaves.
#[test]
fn holes_cost_neither_journal_nor_index_nor_nodes() {
    let fixture = Fixture::new();
    let path = fixture.path("tree/hole");
    let (len, far) = ((1 << 40) + 5, 700 << 30);
    let data = bytes(1, 3 << 20);
    sparse(&path, len, &[(far, &data), (900 << 30, &data)]);
    interrupted_at(&fixture, &path, 600 << 30);
    let n = journals_len(&fixture);
    assert!((1..4096).contains(&n), "{n} bytes of journal");
    let report = fixture.add(&[&path]);
    assert!(report.bytes_hashed < 500 << 30, "it went on: {report:?}");
    assert_eq!(report.roots[0].bytes, len);
    assert_eq!(journals(&fixture), Vec::<PathBuf>::new());
    let stored = data_len(&fixture);
    assert!(stored < 4 << 20, "{stored} bytes of nodes and entries");
    let cid = report.roots[0].cid;
    let mut reader =
        crate::store::file_reader::FileReader::new(fixture.blocks.clone(), cid, far - 10, far + 20);
    let mut read = Vec::new();
    while let Some(piece) = reader.next_piece().unwrap() {
        read.extend_from_slice(&piece);
    }
    assert_eq!(read, [&[0; 10], &data[..20]].concat());
}

/// The same file without holes has the same CID, interrupted or not.
#[test]
fn holes_and_zeros_are_the_same_bytes() {
    let (hole, zeros) = (Fixture::new(), Fixture::new());
    let (len, middle) = (300_u64 << 20, 101 << 20);
    let data = bytes(2, (5 << 20) + 77);
    let path = hole.path("tree/file");
    sparse(&path, len, &[(3, &data), (middle, &data)]);
    let mut whole = vec![0; usize::try_from(len).unwrap()];
    for start in [3, 101 << 20] {
        whole[start..start + data.len()].copy_from_slice(&data);
    }
    let plain = zeros.write("tree/file", &whole);
    interrupted_at(&hole, &path, 150 << 20);
    assert_eq!(journals(&hole).len(), 1);
    let [one, two] = [(&hole, &path), (&zeros, &plain)].map(|(fixture, path)| {
        let report = fixture.add(&[path]);
        report.roots[0].cid
    });
    assert_eq!(one, two);
    assert!(hole.cat(&one).unwrap() == whole);
}

#[test]
fn journals_that_nobody_continues_are_removed_and_nothing_else() {
    let fixture = Fixture::new();
    let paths = ["gone", "changed", "known", "kept"].map(|name| fixture.path(name));
    for path in &paths {
        sparse(path, 300 << 20, &[(290 << 20, b"data")]);
        interrupted_at(&fixture, path, 30 << 20);
    }
    assert_eq!(journals(&fixture).len(), 4);
    let dir = fixture.store().journal_dir();
    let before = journals(&fixture);
    // A crash between the commit and the end of the journal.
    let copies: Vec<_> = before.iter().map(|path| fs::read(path).unwrap()).collect();
    fixture.add(&[&paths[2]]);
    for (path, copy) in before.iter().zip(&copies) {
        fs::write(path, copy).unwrap();
    }
    let theirs = [
        dir.join("notes.txt"),
        dir.join("my.journal"),
        dir.join(format!("{}.journal", "a".repeat(32))),
    ];
    for path in &theirs {
        fs::write(path, b"somebody's").unwrap();
    }
    fs::remove_file(&paths[0]).unwrap();
    fs::write(&paths[1], b"short now").unwrap();
    let other = fixture.write("other", b"data");
    fixture.add(&[&other]);
    let left = journals(&fixture);
    assert!(theirs.iter().all(|path| left.contains(path)), "{left:?}");
    assert_eq!(left.len(), theirs.len() + 1, "{left:?}");
    let report = fixture.add(&[&paths[3]]);
    assert!(report.bytes_hashed < 20 << 20, "it went on");
}

/// Makes a file long once something else was read.
struct Grows<'a>(&'a Path, bool);

impl Progress for Grows<'_> {
    fn update(&mut self, _what: &str, _done: u64, _total: Option<u64>) {
        if !std::mem::replace(&mut self.1, true) {
            let file = File::options().write(true).open(self.0).unwrap();
            file.set_len(70 << 20).unwrap();
        }
    }
}

#[test]
fn a_file_that_grows_beyond_a_batch_is_read_in_ranges() {
    let fixture = Fixture::new();
    fixture.write("tree/a", &bytes(1, 48 << 20)); // More ranges than may be under way.
    let grown = fixture.write("tree/b", b"short when it is listed");
    let mut options = options();
    options.n_threads = 1;
    let (paths, stop) = ([fixture.path("tree")], AtomicBool::new(false));
    let mut grows = Grows(&grown, false);
    let report = add(fixture.store(), &paths, &options, &mut grows, &stop).unwrap();
    assert_eq!((report.n_left_out, report.roots[0].bytes), (0, 118 << 20));
}
