//! Files and folders in whose place somebody puts something else while they are added.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, RenameFlags, mknodat, renameat_with};

use super::{Fixture, bytes, car, import_options, options, raw};
use crate::error::{ErrorKind, Result};
use crate::ingest::add::add;
use crate::ingest::rescan::{Rescanned, rescan};
use crate::ingest::{Progress, Quiet};

/// Exchanges what two names mean, as fast as it can, while `work` runs.
fn while_swapping(one: &Path, two: &Path, work: impl FnOnce()) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                renameat_with(CWD, one, CWD, two, RenameFlags::EXCHANGE).unwrap();
                // Whoever renames without a pause keeps all others from the directory.
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        let _over = Over(&over); // However the work ends.
        work();
    });
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn secret(n: u64) -> Vec<u8> {
    format!("secret {n}").into_bytes()
}

fn fifo(path: &Path) {
    mknodat(CWD, path, FileType::Fifo, Mode::RWXU, 0).unwrap();
}

fn again(fixture: &Fixture) -> Result<Rescanned> {
    let root = fixture.store().catalog().roots()?.pop().unwrap();
    let sources = fixture.blocks.extents().sources();
    let (options, stop) = (import_options(), AtomicBool::new(false));
    rescan(fixture.store(), sources, &root, &options, &mut Quiet, &stop)
}

/// Swaps a folder for a symlink as soon as something was read.
struct Swaps<'a> {
    folder: &'a Path,
    link: &'a Path,
    is_done: bool,
}

impl Progress for Swaps<'_> {
    fn update(&mut self, _what: &str, _done: u64, _total: Option<u64>) {
        if !std::mem::replace(&mut self.is_done, true) {
            let flags = RenameFlags::EXCHANGE;
            renameat_with(CWD, self.folder, CWD, self.link, flags).unwrap();
        }
    }
}

/// While a big file is read the folders behind it are listed, as far as that is done ahead.
fn swapped_behind_a_big_file(n_folders: u32) {
    let fixture = Fixture::new();
    fixture.write("tree/a", &bytes(1, 48 << 20)); // More ranges than may be under way.
    for n in 0..n_folders {
        fixture.write(&format!("tree/b{n:02}/file"), b"between");
    }
    fixture.write("tree/z/below/file", b"inside");
    fixture.write("outside/below/file", &secret(1));
    let (folder, link) = (fixture.path("tree/z"), fixture.path("link"));
    symlink(fixture.path("outside"), &link).unwrap();
    let (paths, stop) = ([fixture.path("tree")], AtomicBool::new(false));
    let mut options = options();
    options.n_threads = 1;
    let (folder, link, is_done) = (folder.as_path(), link.as_path(), false);
    let mut swaps = Swaps {
        folder,
        link,
        is_done,
    };
    let report = add(fixture.store(), &paths, &options, &mut swaps, &stop).unwrap();
    assert!(
        swaps.is_done && !fixture.has(&raw(&secret(1))),
        "it was added"
    );
    assert_eq!(report.n_left_out, 1, "{report:?}");
    assert!(report.left_out[0].why.contains("symlink"), "{report:?}");
}

#[test]
fn a_folder_swapped_before_its_files_are_opened_lets_in_nothing_from_outside() {
    swapped_behind_a_big_file(0);
}

#[test]
fn a_folder_swapped_before_it_is_listed_lets_in_nothing_from_outside() {
    swapped_behind_a_big_file(40);
}

/// What lies outside has the names of what lies inside, so that no step of an add fails for want
/// of a name.
#[test]
fn a_folder_swapped_for_a_symlink_at_any_moment_lets_in_nothing_from_outside() {
    let fixture = Fixture::new();
    for n in 0..40 {
        fixture.write(&format!("tree/a/below/{n}"), &bytes(n, 100));
        fixture.write(&format!("outside/below/{n}"), &secret(n));
    }
    let link = fixture.path("link");
    symlink(fixture.path("outside"), &link).unwrap();
    let (tree, folder) = (fixture.path("tree"), fixture.path("tree/a"));
    while_swapping(&folder, &link, || {
        for _ in 0..10 {
            let _ = fixture.add_with(&[&tree], &options()); // Whatever it meets.
            let came_in = (0..40).find(|n| fixture.has(&raw(&secret(*n))));
            assert_eq!(came_in, None, "a file from outside was added");
        }
    });
    let report = fixture.add(&[&tree]);
    assert_eq!(report.n_left_out, 0, "{report:?}");
}

/// D1: whatever stands in a file's place when it is opened, the add ends, and has only files.
#[test]
fn a_file_swapped_for_a_fifo_or_a_symlink_is_never_followed_nor_waited_for() {
    let fixture = Fixture::new();
    let outside = fixture.write("outside", &secret(1));
    let file = fixture.write("tree/file", b"inside");
    fixture.write("tree/other", b"other");
    let (link, pipe) = (fixture.path("link"), fixture.path("pipe"));
    symlink(&outside, &link).unwrap();
    fifo(&pipe);
    for other in [&link, &pipe] {
        while_swapping(&file, other, || {
            for _ in 0..5 {
                let _ = fixture.add_with(&[&fixture.path("tree")], &options());
                assert!(!fixture.has(&raw(&secret(1))));
            }
        });
    }
    assert!(fixture.has(&raw(b"other")));
}

#[test]
fn a_root_in_whose_place_a_symlink_came_is_an_error_of_that_root() {
    for is_folder in [true, false] {
        let fixture = Fixture::new();
        let inside = fixture.write("place/file", b"inside");
        fixture.write("outside/file", &secret(1));
        let (root, target) = match is_folder {
            true => (fixture.path("place"), fixture.path("outside")),
            false => (inside, fixture.path("outside/file")),
        };
        let before = fixture.add(&[&root]).roots[0].cid;
        fs::rename(&root, fixture.path("away")).unwrap();
        symlink(target, &root).unwrap();
        let error = again(&fixture).unwrap_err();
        assert!(error.chain().contains("symlink"), "{}", error.chain());
        assert!(!fixture.has(&raw(&secret(1))));
        fs::remove_file(&root).unwrap();
        fs::rename(fixture.path("away"), &root).unwrap();
        assert_eq!(again(&fixture).unwrap().report.roots[0].cid, before);
    }
}

#[test]
fn a_car_in_whose_place_a_symlink_came_is_an_error_of_that_root() {
    let fixture = Fixture::new();
    let of = |data: &[u8]| car(&[raw(data)], &[(raw(data), data.to_vec())]);
    let inside = fixture.write("in.car", &of(b"inside"));
    let outside = fixture.write("out.car", &of(&secret(1)));
    fixture.import(&inside, &import_options()).unwrap();
    fs::remove_file(&inside).unwrap();
    symlink(&outside, &inside).unwrap();
    let error = again(&fixture).unwrap_err();
    assert!(error.chain().contains("symlink"), "{}", error.chain());
    assert!(!fixture.has(&raw(&secret(1))));
}

/// A folder above the root is no part of it; but what was resolved once is not resolved again.
#[test]
fn a_symlink_above_a_root_is_followed_when_it_is_named_and_not_later() {
    let fixture = Fixture::new();
    let data = fixture.path("data_link");
    fixture.write("mnt/tree/file", b"inside");
    fixture.write("other/tree/file", &secret(1));
    symlink(fixture.path("mnt"), &data).unwrap();
    fixture.add(&[&data.join("tree")]);
    assert!(fixture.has(&raw(b"inside")));
    fs::remove_file(&data).unwrap();
    symlink(fixture.path("other"), &data).unwrap();
    assert!(again(&fixture).unwrap().changes.is_empty(), "it is in mnt");
    fs::rename(fixture.path("mnt"), fixture.path("gone")).unwrap();
    symlink(fixture.path("other"), fixture.path("mnt")).unwrap();
    again(&fixture).unwrap_err();
    assert!(!fixture.has(&raw(&secret(1))));
}

/// D1: such files have bytes that no length tells, or a length without end.
#[test]
fn files_that_the_kernel_makes_up_are_left_out_and_named() {
    let fixture = Fixture::new();
    for path in ["/proc/version", "/proc/self/status"] {
        let report = fixture.add(&[Path::new(path)]);
        assert_eq!((report.roots.len(), report.n_left_out), (0, 1), "{path}");
        assert!(report.left_out[0].why.contains("kernel"), "{report:?}");
    }
}

#[test]
fn devices_and_pipes_are_no_files() {
    let fixture = Fixture::new();
    let pipe = fixture.path("pipe");
    fifo(&pipe);
    for path in [Path::new("/dev/null"), &pipe] {
        let error = fixture.add_with(&[path], &options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        let error = fixture.import(path, &import_options()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

/// A name of a file is as good as any other: whoever may link to a file from below a root brings
/// it in (the kernel asks that they may write to it: `protected_hardlinks`).
#[test]
fn hard_links_are_files_like_others() {
    let fixture = Fixture::new();
    let file = fixture.write("tree/one", b"data");
    let other: PathBuf = fixture.path("tree/two");
    fs::hard_link(&file, &other).unwrap();
    assert_eq!(fixture.add(&[&fixture.path("tree")]).files_hashed, 2);
    fs::remove_file(&file).unwrap();
    assert_eq!(fixture.cat(&raw(b"data")).unwrap(), b"data");
    fs::write(&other, b"DATA").unwrap();
    let error = fixture.cat(&raw(b"data")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Changed);
}
