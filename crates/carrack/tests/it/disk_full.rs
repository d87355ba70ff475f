//! The disk of the data directory fills up: a clear error, and everything earlier stays served.

use std::fs;

use crate::support::mount::Mount;
use crate::support::{Carrack, data};

/// Exit code for a disk that did not do what it was asked.
const UNAVAILABLE: i32 = 8;
const DISK_LEN: u64 = 48 << 20;

#[test]
fn a_disk_that_fills_up_loses_nothing() {
    let sources = tempfile::TempDir::new().unwrap();
    let [early, late] = ["early", "late"].map(|name| sources.path().join(name));
    data::tree(&early, 61, 200, 5_000);
    data::folder(&late, 15_000);
    let expected = Carrack::new().add_one(&late);
    let mut n_failed = 0;
    for left in [0, 64 << 10, 256 << 10, 1 << 20, 2 << 20, 4 << 20] {
        let disk = Mount::small_disk(DISK_LEN);
        let carrack = Carrack::at(&disk.path().join("data"));
        let root = carrack.add_one(&early);
        let filler = disk.fill_up_to(left);
        let outcome = carrack.run(&["add", "-Q", late.to_str().unwrap()]);
        if outcome.code() != 0 {
            n_failed += 1;
            assert_eq!(
                outcome.code(),
                UNAVAILABLE,
                "{left} bytes left: {}",
                outcome.stderr
            );
            let says_why =
                outcome.stderr.contains("No space left") || outcome.stderr.contains("full");
            assert!(says_why, "{left} bytes left: {}", outcome.stderr);
        }
        // Still full: what was there before opens and serves.
        let server = carrack.serve::<&str>(&[]);
        server.get(&format!("/ipfs/{root}?format=car")).ok();
        drop(server);
        carrack.run(&["verify", &root]).ok();
        fs::remove_file(filler).unwrap();
        assert_eq!(carrack.add_one(&late), expected, "{left} bytes left");
        carrack.run(&["verify"]).ok();
    }
    assert!(n_failed > 0, "no add met a full disk");
}

/// A running node fails what it cannot write, serves meanwhile, and writes again when there is
/// room.
#[test]
fn room_again_writes_again_without_a_restart_at_every_fill_level() {
    let disk = Mount::small_disk(DISK_LEN);
    let sources = tempfile::TempDir::new().unwrap();
    let early = sources.path().join("early");
    data::tree(&early, 62, 100, 5_000);
    let carrack = Carrack::at(&disk.path().join("data"));
    let root = carrack.add_one(&early);
    let server = carrack.serve::<&str>(&[]);
    let car = format!("/ipfs/{root}?format=car");
    let expected = server.get(&car).ok().body;
    let mut n_failed = 0;
    let levels = [0, 8, 24, 48, 96, 192, 256, 384, 512, 640, 768, 1024, 2048];
    for (n, left) in (0..).zip(levels.map(|kib: u64| kib << 10)) {
        let late = sources.path().join(format!("late-{n}"));
        data::tree(&late, 100 + n, 1_500, 300);
        let filler = disk.fill_up_to(left);
        let outcome = carrack.run(&["add", "-Q", late.to_str().unwrap()]);
        if outcome.code() != 0 {
            n_failed += 1;
            let (code, stderr) = (outcome.code(), &outcome.stderr);
            assert_eq!(code, UNAVAILABLE, "{left} bytes left: {stderr}");
            assert!(
                stderr.contains("No space left"),
                "{left} bytes left: {stderr}"
            );
        }
        assert!(
            server.get(&car).ok().body == expected,
            "{left} bytes left: read on"
        );
        let n_listed = carrack.run(&["ls"]).ok().text().lines().count() as u64;
        assert_eq!(n_listed, 1 + n + u64::from(outcome.code() == 0));
        fs::remove_file(filler).unwrap();
        let again = carrack.run(&["add", "-Q", late.to_str().unwrap()]);
        assert_eq!(
            again.code(),
            0,
            "{left} bytes left, room again: {}",
            again.stderr
        );
        carrack.run(&["verify", &again.words()[0]]).ok();
    }
    assert!(n_failed > 5, "{n_failed} adds met a full disk");
    drop(server);
    let files = || {
        let count = |folder| fs::read_dir(disk.path().join("data").join(folder)).unwrap();
        ["packs", "segments"].map(|folder| count(folder).count())
    };
    let left = files();
    carrack.run(&["rm", "bafkqaaa"]).exits(3); // Opened for writing, it removes what is unlisted.
    assert_eq!(files(), left, "what failed left nothing behind");
    carrack.run(&["verify"]).ok();
    carrack.run(&["index", "verify"]).ok();
}
