//! What must not be lost: files of a person in a data directory, packs of a store whose catalog is.
//!
//! In       folders that are no store, stores with foreign files in them, stores without a catalog.
//! Out      nothing removed but what a crash left under a temporary name.
//! Not here crashes (`crash`), full disks (`disk_full`).

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use crate::support::car::of_blocks;
use crate::support::{Carrack, data};

const INVALID: i32 = 2;
const UNAVAILABLE: i32 = 8;
const CORRUPT: i32 = 9;

/// Every file below a directory, but for the lock.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let meta = fs::symlink_metadata(&path).unwrap();
            if meta.is_dir() {
                left.push(path);
            } else if meta.is_file() && path.file_name().unwrap() != "lock" {
                let bytes = fs::read(&path).unwrap();
                found.insert(path, bytes);
            }
        }
    }
    found
}

fn car_of(seed: u64) -> Vec<u8> {
    let mut random = data::Seeded::new(seed);
    let blocks: Vec<_> = (0..50).map(|_| random.bytes(2_000)).collect();
    of_blocks(&blocks)
}

/// A store with files in place, a CAR in place and a copied one: its roots, the copied one last.
fn filled(carrack: &Carrack) -> Vec<String> {
    let tree = carrack.path("tree");
    data::tree(&tree, 5, 60, 20_000);
    data::file(&tree.join("large"), 6, 3 << 20);
    let mut roots = vec![carrack.add_one(&tree)];
    let other = Carrack::new();
    let copied = other.path("copied");
    data::tree(&copied, 7, 40, 30_000);
    let root = other.add_one(&copied);
    let car = fs::read(other.export(&root, "copied.car")).unwrap();
    fs::write(carrack.path("copied.car"), car).unwrap();
    fs::write(carrack.path("here.car"), car_of(8)).unwrap();
    for args in [vec!["here.car"], vec!["--copy", "copied.car"]] {
        let mut words = vec!["import".to_owned(), "-Q".to_owned()];
        words.extend(args.iter().map(|arg| match arg.ends_with(".car") {
            true => carrack.path(arg).to_str().unwrap().to_owned(),
            false => (*arg).to_owned(),
        }));
        roots.extend(carrack.run(&words).ok().words());
    }
    roots
}

#[test]
fn a_folder_that_holds_something_else_is_refused_and_nothing_in_it_is_touched() {
    for place in [
        "packs/my.car",
        "segments/x",
        "journal/x",
        "my.car",
        "format.txt",
    ] {
        let carrack = Carrack::new();
        let file = carrack.path("data").join(place);
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, car_of(1)).unwrap();
        let before = files(&carrack.path("data"));
        let path = file.to_str().unwrap();
        for args in [
            vec!["ls"],
            vec!["status"],
            vec!["import", path],
            vec!["index", "rebuild"],
        ] {
            let outcome = carrack.run(&args);
            assert!(
                files(&carrack.path("data")) == before,
                "{place} {args:?}: {outcome:?}"
            );
            assert_ne!(outcome.code(), 0, "{place} {args:?}");
        }
        let refused = carrack.run(&["add", path]).exits(INVALID);
        assert!(refused.stderr.contains("--data-dir"), "{}", refused.stderr);
        assert!(
            !carrack.path("data/lock").is_file(),
            "{place}: nothing is made in it"
        );
    }
}

#[test]
fn what_is_there_before_a_first_start_is_no_hindrance() {
    let carrack = Carrack::new();
    fs::create_dir_all(carrack.path("data/lost+found")).unwrap();
    for folder in ["segments", "packs", "journal"] {
        fs::create_dir(carrack.path("data").join(folder)).unwrap(); // A first start that was cut.
    }
    fs::write(carrack.path("data/carrack.toml"), "").unwrap();
    carrack.run(&["id"]).ok();
    filled(&carrack);
    carrack.run(&["verify"]).ok();
}

/// `import D/packs/my.car` removed its own argument.
#[test]
fn files_of_a_person_inside_of_a_store_stay() {
    let carrack = Carrack::new();
    let roots = filled(&carrack);
    let names = [
        "packs/my.car",
        "packs/7.car",
        "packs/00000000000000AB.car",
        "packs/0000000000000001.car.bak",
        "segments/my.seg",
        "segments/notes",
        "journal/notes",
        "catalog.redb.bak",
    ];
    for name in names {
        fs::write(carrack.path("data").join(name), car_of(3)).unwrap();
    }
    fs::create_dir(carrack.path("data/packs/folder")).unwrap();
    let car = carrack.path("data/packs/my.car");
    carrack.run(&["import", "-Q", car.to_str().unwrap()]).ok();
    carrack.run(&["ls"]).ok();
    let server = carrack.serve::<&str>(&[]);
    drop(server);
    carrack.run(&["index", "rebuild"]).ok();
    carrack.run(&["rm", &roots[0]]).ok();
    for name in names {
        let bytes = fs::read(carrack.path("data").join(name));
        assert!(
            bytes.is_ok_and(|bytes| bytes == car_of(3)),
            "{name} is gone or changed"
        );
    }
    carrack.run(&["verify"]).ok();
}

#[test]
fn a_command_that_only_reads_removes_nothing() {
    let carrack = Carrack::new();
    let roots = filled(&carrack);
    // As a crash leaves them: names of files that no commit has listed.
    let leftovers = [
        "packs/00000000000000aa.car.tmp",
        "segments/00000000000000aa.seg.tmp",
    ];
    for name in leftovers {
        fs::write(carrack.path("data").join(name), b"x").unwrap();
    }
    let before = files(&carrack.path("data"));
    let car = carrack.path("out.car");
    for args in [
        vec!["ls"],
        vec!["ls", &roots[0]],
        vec!["status"],
        vec!["verify"],
        vec!["cat", &format!("{}/large", roots[0])],
        vec!["export", &roots[0], "-o", car.to_str().unwrap()],
        vec!["index", "status"],
        vec!["index", "verify"],
        vec!["source", "list"],
        vec!["source", "status"],
        vec!["id"],
    ] {
        carrack.run(&args).ok();
        let mut after = files(&carrack.path("data"));
        after.retain(|path, _| !path.ends_with("identity.key"));
        assert!(after == before, "{args:?} changed the store");
    }
    carrack.add_one(&carrack.path("tree"));
    for name in leftovers {
        let path = carrack.path("data").join(name);
        assert!(!path.is_file(), "removed by a writer: {name}");
    }
}

/// Which packs there are.
fn packs(carrack: &Carrack) -> BTreeMap<PathBuf, Vec<u8>> {
    files(&carrack.path("data/packs"))
}

/// What a person put back is not a crash's leftover: the next command that wrote unlinked packs
/// that an older catalog did not list.
#[test]
fn packs_that_an_older_catalog_does_not_list_are_kept_and_can_be_taken_in() {
    let carrack = Carrack::new();
    let tree = carrack.path("early");
    data::tree(&tree, 1, 5, 3_000);
    carrack.add_one(&tree);
    let catalog = carrack.path("data/catalog.redb");
    let older = fs::read(&catalog).unwrap();
    let roots = filled(&carrack);
    let before = packs(&carrack);
    fs::write(&catalog, older).unwrap();
    // The index may be other than the catalog says: segments were merged since.
    carrack.run(&["index", "rebuild"]).ok();
    data::tree(&carrack.path("late"), 2, 5, 3_000);
    let added = carrack.run(&["add", "-Q", carrack.path("late").to_str().unwrap()]);
    assert!(added.stderr.contains("does not list"), "{}", added.stderr);
    let now = packs(&carrack);
    for (path, bytes) in &before {
        assert!(now.get(path) == Some(bytes), "{} is gone", path.display());
    }
    let status = carrack.run(&["status"]).ok();
    let advice = "carrack index rebuild --catalog";
    assert!(status.text().contains(advice), "{status:?}");
    let verified = carrack.run(&["verify"]).ok();
    assert!(verified.stderr.contains(advice), "{}", verified.stderr);
    carrack.run(&["verify", &roots[2]]).exits(3);
    carrack.run(&["index", "rebuild", "--catalog"]).ok();
    carrack.run(&["verify", &roots[2]]).ok();
    let n_unlisted = |carrack: &Carrack| {
        let status = carrack.run(&["status", "--json"]).ok().json().remove(0);
        status["unlisted"].as_array().unwrap().clone()
    };
    let left = n_unlisted(&carrack);
    assert!(
        left.iter()
            .all(|path| path.as_str().unwrap().ends_with(".seg")),
        "{left:?}"
    );
    let again = carrack
        .run(&["index", "rebuild", "--catalog"])
        .exits(INVALID);
    assert!(again.stderr.contains("is sound"), "{}", again.stderr);
}

/// A pack of a root that was removed, put back out of a backup.
#[test]
fn a_pack_that_is_put_back_by_hand_is_kept() {
    let carrack = Carrack::new();
    let roots = filled(&carrack);
    let before = packs(&carrack);
    carrack.run(&["rm", &roots[2]]).ok();
    let after = packs(&carrack);
    let gone: Vec<_> = before
        .iter()
        .filter(|(path, _)| !after.contains_key(*path))
        .collect();
    assert_eq!(gone.len(), 1, "rm removed the pack of the copied CAR");
    for (path, bytes) in &gone {
        fs::write(path, bytes).unwrap();
    }
    for seed in 0..3 {
        let tree = carrack.path(&format!("more-{seed}"));
        data::tree(&tree, 30 + seed, 5, 3_000);
        carrack.add_one(&tree);
    }
    for (path, bytes) in &gone {
        assert!(fs::read(path).is_ok_and(|now| now == **bytes), "it is gone");
    }
    carrack.run(&["index", "rebuild", "--catalog"]).ok();
    carrack.run(&["verify", &roots[2]]).ok();
}

#[test]
fn an_export_that_fails_leaves_files_of_like_names_alone() {
    let carrack = Carrack::new();
    let roots = filled(&carrack);
    let partial = carrack.path("out.car.partial");
    fs::write(&partial, "mine").unwrap();
    fs::write(carrack.path("out.car"), "mine, too").unwrap();
    fs::write(
        carrack.path("tree/large"),
        data::Seeded::new(99).bytes(3 << 20),
    )
    .unwrap();
    let car = carrack.path("out.car");
    let outcome = carrack.run(&["export", &roots[0], "-o", car.to_str().unwrap()]);
    assert_ne!(outcome.code(), 0);
    assert_eq!(fs::read(&partial).unwrap(), b"mine");
    assert_eq!(fs::read(&car).unwrap(), b"mine, too");
    let n_files = fs::read_dir(carrack.dir()).unwrap().count();
    carrack
        .run(&["export", &roots[2], "-o", car.to_str().unwrap()])
        .ok();
    assert_eq!(
        fs::read_dir(carrack.dir()).unwrap().count(),
        n_files,
        "nothing is left"
    );
}

/// A regular file in the place of the control socket.
#[test]
fn a_file_that_is_called_like_the_socket_stays() {
    let carrack = Carrack::new();
    filled(&carrack);
    let path = carrack.path("data/control.sock");
    fs::write(&path, "mine").unwrap();
    let outcome = carrack.run(&["serve", "--listen", "127.0.0.1:0", "--p2p", "off"]);
    assert_eq!(outcome.code(), UNAVAILABLE, "{}", outcome.stderr);
    assert_eq!(fs::read(&path).unwrap(), b"mine");
    fs::remove_file(&path).unwrap();
    // One that a killed process left is replaced.
    drop(UnixListener::bind(&path).unwrap());
    drop(carrack.serve::<&str>(&[]));
}

/// Cuts the catalog in some way; what is said of it.
fn lose_catalog(path: &Path, how: &str) {
    let len = fs::metadata(path).unwrap().len();
    match how {
        "missing" => fs::remove_file(path).unwrap(),
        "empty" => fs::write(path, b"").unwrap(),
        "zeros" => fs::write(path, vec![0; usize::try_from(len).unwrap()]).unwrap(),
        "cut" => fs::write(path, &fs::read(path).unwrap()[..10_000]).unwrap(),
        other => panic!("{other}"),
    }
}

#[test]
fn a_store_without_a_sound_catalog_is_refused_and_loses_nothing() {
    for how in ["missing", "empty", "zeros", "cut"] {
        let carrack = Carrack::new();
        filled(&carrack);
        lose_catalog(&carrack.path("data/catalog.redb"), how);
        let before = files(&carrack.path("data"));
        let tree = carrack.path("tree");
        for args in [
            vec!["ls"],
            vec!["status"],
            vec!["index", "rebuild"],
            vec!["index", "status"],
            vec!["add", tree.to_str().unwrap()],
            vec!["serve", "--listen", "127.0.0.1:0", "--p2p", "off"],
        ] {
            let outcome = carrack.run(&args);
            let after = files(&carrack.path("data"));
            assert!(after == before, "{how}, {args:?}: {outcome:?}");
            let outcome = outcome.exits(CORRUPT);
            let helps = outcome.stderr.contains("carrack index rebuild --catalog");
            assert!(helps, "{how}, {args:?}: {}", outcome.stderr);
        }
    }
}

#[test]
fn a_lost_catalog_is_made_anew_of_what_packs_tell_and_nothing_is_written_over() {
    for how in ["missing", "empty", "cut"] {
        let carrack = Carrack::new();
        let roots = filled(&carrack);
        let copied = fs::read(carrack.export(&roots[2], "before.car")).unwrap();
        lose_catalog(&carrack.path("data/catalog.redb"), how);
        // A pack that holds nothing sound is no reason to stop, and is kept.
        fs::write(carrack.path("data/packs/00000000000000ee.car"), [7; 999]).unwrap();
        let before = files(&carrack.path("data"));
        let rebuild = ["index", "rebuild", "--catalog"];
        let report = carrack.run(&rebuild).exits(6);
        assert!(
            report.stderr.contains("carrack add PATH"),
            "{}",
            report.stderr
        );
        let after = files(&carrack.path("data"));
        for (path, bytes) in &before {
            let is_kept = after.values().any(|other| other == bytes);
            assert!(
                is_kept || bytes.is_empty(),
                "{how}: {} is gone",
                path.display()
            );
        }
        carrack.run(&rebuild).exits(INVALID); // It is sound now.
        let listed = carrack.run(&["ls", "--json"]).ok().json();
        let cids: Vec<_> = listed
            .iter()
            .map(|root| root["cid"].as_str().unwrap())
            .collect();
        assert!(
            cids.contains(&roots[0].as_str()) && cids.contains(&roots[2].as_str()),
            "{cids:?}"
        );
        let car = fs::read(carrack.export(&roots[2], "after.car")).unwrap();
        assert!(car == copied, "{how}: the copied CAR is whole");
        // What lies in its place is added again, and is the same.
        assert_eq!(carrack.add_one(&carrack.path("tree")), roots[0]);
        let here = carrack.path("here.car");
        let again = carrack
            .run(&["import", "-Q", here.to_str().unwrap()])
            .ok()
            .words();
        assert_eq!(again, [roots[1].as_str()]);
        carrack.run(&["verify"]).ok();
        carrack.run(&["index", "verify"]).ok();
        for root in [&roots[0], &roots[2]] {
            carrack.run(&["rm", root]).ok();
        }
        carrack.run(&["verify"]).ok();
    }
}

#[test]
fn a_catalog_that_is_being_made_anew_and_is_killed_is_made_anew_later() {
    let carrack = Carrack::new();
    let roots = filled(&carrack);
    lose_catalog(&carrack.path("data/catalog.redb"), "empty");
    for delay in [2, 5, 10, 20] {
        let mut child = carrack
            .command(&["index", "rebuild", "--catalog"])
            .spawn()
            .unwrap();
        std::thread::park_timeout(std::time::Duration::from_millis(delay));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    let outcome = carrack.run(&["index", "rebuild", "--catalog"]);
    // The last of them may have been done before it was killed.
    assert!([0, INVALID].contains(&outcome.code()), "{}", outcome.stderr);
    carrack.export(&roots[2], "after.car");
    carrack.add_one(&carrack.path("tree"));
    carrack.run(&["index", "verify"]).ok();
}

/// A file that only bears the name of the lock, and one that a symlink of that name leads to.
#[test]
fn a_file_of_a_person_that_is_called_like_the_lock_is_not_written_over() {
    let carrack = Carrack::new();
    let (dir, outside) = (carrack.path("data"), carrack.path("outside"));
    fs::create_dir(&dir).unwrap();
    let lock = dir.join("lock");
    fs::write(&lock, b"my own words").unwrap();
    carrack.run(&["ls"]).exits(2);
    assert_eq!(fs::read(&lock).unwrap(), b"my own words");
    fs::remove_file(&lock).unwrap();
    fs::write(&outside, b"more of them").unwrap();
    std::os::unix::fs::symlink(&outside, &lock).unwrap();
    assert_ne!(carrack.run(&["ls"]).code(), 0);
    assert_eq!(fs::read(&outside).unwrap(), b"more of them");
}
