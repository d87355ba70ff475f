//! What POSIX promises of a sync holds at every cut, and nothing beyond it always does.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

use super::{Chance, Disk, Kind, Loss, ROOT};

const SECTOR: usize = 512;

fn name(text: &str) -> &OsStr {
    OsStr::new(text)
}

fn file(disk: &mut Disk, path: &str, data: &[u8]) -> u64 {
    let ino = disk.make(ROOT, name(path), Kind::File, 0o600).unwrap();
    disk.write(ino, 0, data).unwrap();
    ino
}

/// What is there after each of many cuts.
fn outcomes(disk: &Disk) -> BTreeSet<Vec<(String, u64)>> {
    let cut = |seed| {
        let mut chance = Chance::new(seed);
        let loss = Loss::any(&mut chance);
        let after = disk.after_cut(loss, SECTOR, &mut chance);
        assert!(after.is_durable());
        after.files().into_iter().collect()
    };
    (0..300).map(cut).collect()
}

#[test]
fn a_synced_file_without_a_synced_name_may_be_gone() {
    let mut disk = Disk::default();
    let ino = file(&mut disk, "a", b"alpha");
    disk.sync(ino).unwrap();
    let there = vec![("a".to_owned(), 5)];
    assert_eq!(outcomes(&disk), BTreeSet::from([Vec::new(), there.clone()]));
    disk.sync(ROOT).unwrap();
    assert!(disk.is_durable());
    assert_eq!(outcomes(&disk), BTreeSet::from([there]));
}

#[test]
fn a_synced_name_of_a_file_that_was_not_synced_may_be_empty() {
    let mut disk = Disk::default();
    file(&mut disk, "a", b"alpha");
    disk.sync(ROOT).unwrap();
    let of = |len| vec![("a".to_owned(), len)];
    assert_eq!(outcomes(&disk), BTreeSet::from([of(0), of(5)]));
}

#[test]
fn a_rename_happens_as_a_whole_or_not_at_all() {
    let mut disk = Disk::default();
    for (path, data) in [("a", b"old".as_slice()), ("b", b"newer")] {
        let ino = file(&mut disk, path, data);
        disk.sync(ino).unwrap();
    }
    disk.sync(ROOT).unwrap();
    let (from, to) = ((ROOT, name("b")), (ROOT, name("a")));
    assert!(disk.rename(from, to, false).is_err(), "nothing is replaced");
    disk.rename(from, to, true).unwrap();
    let before = vec![("a".to_owned(), 3), ("b".to_owned(), 5)];
    let after = vec![("a".to_owned(), 5)];
    assert_eq!(outcomes(&disk), BTreeSet::from([before, after.clone()]));
    disk.sync(ROOT).unwrap();
    assert_eq!(outcomes(&disk), BTreeSet::from([after]));
}

#[test]
fn entries_are_lost_independently_of_each_other_but_not_what_they_build_on() {
    let mut disk = Disk::default();
    for path in ["a", "b"] {
        let ino = file(&mut disk, path, b"x");
        disk.sync(ino).unwrap();
    }
    let (from, to) = ((ROOT, name("a")), (ROOT, name("c")));
    disk.rename(from, to, true).unwrap();
    let names: BTreeSet<String> = outcomes(&disk)
        .into_iter()
        .map(|files| files.into_iter().map(|(name, _)| name).collect())
        .collect();
    let possible = ["", "a", "ab", "b", "c", "bc"].map(String::from);
    assert_eq!(names, BTreeSet::from(possible));
}

#[test]
fn a_directory_that_was_synced_is_gone_with_its_name() {
    let mut disk = Disk::default();
    let dir = disk.make(ROOT, name("d"), Kind::Directory, 0o700).unwrap();
    let ino = disk.make(dir, name("f"), Kind::File, 0o600).unwrap();
    disk.sync(ino).unwrap();
    disk.sync(dir).unwrap();
    let there = vec![("d/f".to_owned(), 0)];
    assert_eq!(outcomes(&disk), BTreeSet::from([Vec::new(), there]));
}

#[test]
fn a_removal_that_was_not_synced_may_come_back_with_its_bytes() {
    let mut disk = Disk::default();
    let ino = file(&mut disk, "a", b"alpha");
    disk.sync(ino).unwrap();
    disk.sync(ROOT).unwrap();
    disk.remove(ROOT, name("a"), false).unwrap();
    assert!(disk.lookup(ROOT, name("a")).is_err());
    let there = vec![("a".to_owned(), 5)];
    assert_eq!(outcomes(&disk), BTreeSet::from([Vec::new(), there]));
    let back = disk.after_cut(Loss::Everything, SECTOR, &mut Chance::new(1));
    let ino = back.find(Path::new("a")).unwrap();
    assert_eq!(back.bytes(ino).unwrap(), b"alpha");
}

#[test]
fn a_mode_is_as_durable_as_its_file() {
    let mut disk = Disk::default();
    let ino = file(&mut disk, "a", b"");
    disk.sync(ROOT).unwrap();
    disk.set_mode(ino, 0o644).unwrap();
    let mode = |disk: &Disk, loss| {
        let after = disk.after_cut(loss, SECTOR, &mut Chance::new(1));
        let ino = after.find(Path::new("a")).unwrap();
        after.attributes(ino).unwrap().mode
    };
    assert_eq!(mode(&disk, Loss::Everything), 0o600);
    assert_eq!(mode(&disk, Loss::Nothing), 0o644);
    disk.sync(ino).unwrap();
    assert_eq!(mode(&disk, Loss::Everything), 0o644);
}

/// Whatever is done: what was there and durable before is there after a cut, unless it was changed
/// since; numbers are never used twice; and without a loss all is as processes saw it.
#[test]
fn what_was_synced_is_there_after_every_cut_of_random_operations() {
    for seed in 0..300 {
        let mut chance = Chance::new(seed);
        let mut disk = Disk::default();
        for _ in 0..60 {
            random_operation(&mut disk, &mut chance);
        }
        let untouched = disk.after_cut(Loss::Nothing, SECTOR, &mut chance.clone());
        assert_eq!(untouched.files(), disk.files(), "seed {seed}");
        let first = disk.next_ino();
        let after = disk.after_cut(Loss::any(&mut chance), SECTOR, &mut chance);
        let mut numbers = after.nodes.keys().filter(|&&ino| ino != ROOT);
        assert!(numbers.all(|&ino| ino >= first), "seed {seed}");
        for entry in disk.entries(ROOT).unwrap() {
            let changed = |of: &str| {
                let mut edits = disk.changes.iter().flat_map(|change| &change.edits);
                edits.any(|((dir, name), _)| *dir == ROOT && name == of)
            };
            let name = entry.name.to_str().unwrap();
            let is_there = after.find(Path::new(name)).is_ok();
            assert!(is_there || changed(name), "seed {seed}: {name} is gone");
        }
        let mut synced = disk.clone();
        let all: Vec<u64> = synced.nodes.keys().copied().collect();
        all.into_iter().for_each(|ino| synced.sync(ino).unwrap());
        assert!(synced.is_durable());
        let after = synced.after_cut(Loss::any(&mut chance), SECTOR, &mut chance);
        assert_eq!(after.files(), disk.files(), "seed {seed}");
    }
}

fn random_operation(disk: &mut Disk, chance: &mut Chance) {
    let names = ["a", "b", "c", "d", "e"];
    let one = name(names[chance.below(names.len())]);
    let other = name(names[chance.below(names.len())]);
    let found = disk.lookup(ROOT, one);
    // Those that fail change nothing.
    let _ = match (chance.below(9), found) {
        (0, _) => disk.make(ROOT, one, Kind::File, 0o600).map(drop),
        (1, _) => disk.make(ROOT, one, Kind::Directory, 0o700).map(drop),
        (2, _) => disk.remove(ROOT, one, chance.one_in(2)),
        (3, _) => disk.rename((ROOT, one), (ROOT, other), chance.one_in(2)),
        (4, Ok(ino)) => disk.set_len(ino, chance.below(2000) as u64),
        (5, Ok(ino)) => disk.sync(ino),
        (6, _) => disk.sync(ROOT),
        (7, Ok(dir)) => disk.make(dir, other, Kind::File, 0o600).map(drop),
        (_, Ok(ino)) => {
            let offset = chance.below(2000) as u64;
            disk.write(ino, offset, &vec![7; chance.below(1500)])
        }
        _ => Ok(()),
    };
}
