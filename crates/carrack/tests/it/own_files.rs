//! Files that must not be written over and keys that must not be published, by whatever name.
//!
//! In       a store, what it serves, and another store below a folder.
//! Out      what a command refuses by name; bytes that are as they were.
//! Not here what may be added of the store itself (`attacks`).

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::support::car::of_blocks;
use crate::support::mount::Mount;
use crate::support::{Carrack, Outcome, data};

const INVALID: i32 = 2;
const VERIFICATION: i32 = 4;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Every regular file below a directory, with its bytes.
fn files(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            found.extend(files(&path));
        } else if kind.is_file() {
            found.push((path.clone(), fs::read(&path).unwrap()));
        }
    }
    found.sort();
    found
}

/// The same of a store, but for what each command writes.
fn lasting(dir: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let mut found = files(dir);
    found.retain(|(path, _)| {
        !["catalog.redb", "lock"]
            .iter()
            .any(|name| path.ends_with(name))
    });
    found
}

fn export(carrack: &Carrack, root: &str, to: &Path) -> Outcome {
    let mut command = carrack.command(&["export", root, "-o", text(to)]);
    command.current_dir(carrack.dir());
    crate::support::finish(command)
}

fn is_refused(outcome: &Outcome, place: &Path, word: &str) {
    assert_eq!(outcome.code(), INVALID, "{place:?}: {}", outcome.stderr);
    assert!(
        outcome.stderr.contains(word),
        "{place:?}: {}",
        outcome.stderr
    );
}

#[test]
fn nothing_is_exported_into_the_data_directory_by_whatever_name() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 61, 20, 3_000);
    carrack.run(&["id"]).ok();
    let root = carrack.add_one(&tree);
    let own = carrack.path("data");
    let known = files(&own);
    assert!(known.iter().any(|(path, _)| path.ends_with("identity.key")));
    assert!(known.iter().any(|(path, _)| text(path).contains("/packs/")));
    let alias = Mount::alias(&own);
    symlink(&own, carrack.path("by link")).unwrap();
    symlink(own.join("format"), carrack.path("link to a file")).unwrap();
    fs::hard_link(own.join("identity.key"), carrack.path("hard link")).unwrap();
    let mut places: Vec<PathBuf> = known.iter().map(|(path, _)| path.clone()).collect();
    let packs = known
        .iter()
        .find(|(path, _)| text(path).contains("/packs/"));
    fs::hard_link(&packs.unwrap().0, carrack.path("link of a pack")).unwrap();
    places.extend([
        own.join("new.car"),
        own.join("packs/new.car"),
        alias.path().join("identity.key"),
        alias.path().join("segments/new.car"),
        carrack.path("by link/format"),
        carrack.path("tree/../data/lock"),
        carrack.path("hard link"),
        carrack.path("link of a pack"),
        carrack.path("link to a file"),
        PathBuf::from("data/catalog.redb"),
        PathBuf::from("data/new.car"),
    ]);
    for served in [false, true] {
        let server = served.then(|| carrack.serve::<&str>(&[]));
        let before = lasting(&own);
        for place in &places {
            is_refused(&export(&carrack, &root, place), place, "data directory");
        }
        assert!(before == lasting(&own), "the store is as it was");
        drop(server);
    }
    carrack.run(&["verify"]).ok();
    export(&carrack, &root, &carrack.path("out.car")).ok();
    export(&carrack, &root, &carrack.path("out.car")).ok(); // In place of an older one.
}

#[test]
fn nothing_is_exported_onto_what_is_served() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    fs::create_dir_all(&tree).unwrap();
    let file = tree.join("big");
    data::file(&file, 62, 3 << 20);
    let root = carrack.add_one(&tree);
    // Written over, it would lose the other block for ever.
    let car = carrack.path("all.car");
    fs::write(&car, of_blocks(&[b"one".to_vec(), b"two".to_vec()])).unwrap();
    let imported = carrack.run(&["import", "-Q", text(&car)]).ok().words();
    let alias = Mount::alias(&tree);
    symlink(&tree, carrack.path("by link")).unwrap();
    symlink(&file, carrack.path("link to a file")).unwrap();
    fs::hard_link(&car, carrack.path("hard link")).unwrap();
    let places = [
        file.clone(),
        car.clone(),
        alias.path().join("big"),
        carrack.path("by link/big"),
        carrack.path("link to a file"),
        carrack.path("hard link"),
        PathBuf::from("all.car"),
        PathBuf::from("tree/../tree/big"),
    ];
    let before = (fs::read(&file).unwrap(), fs::read(&car).unwrap());
    for served in [false, true] {
        let server = served.then(|| carrack.serve::<&str>(&[]));
        for place in &places {
            is_refused(
                &export(&carrack, &root, place),
                place,
                "blocks are served from",
            );
            is_refused(
                &export(&carrack, &imported[0], place),
                place,
                "blocks are served from",
            );
        }
        assert!(before == (fs::read(&file).unwrap(), fs::read(&car).unwrap()));
        drop(server);
    }
    carrack.run(&["verify"]).ok();
    // What is no source any more is a file like any other.
    carrack.run(&["rm", &imported[0]]).ok();
    export(&carrack, &root, &car).ok();
}

#[test]
fn no_access_log_is_written_into_the_store_or_onto_what_is_served() {
    let carrack = Carrack::new();
    let file = carrack.path("file");
    data::file(&file, 63, 100_000);
    carrack.run(&["id"]).ok();
    carrack.add_one(&file);
    let own = carrack.path("data");
    symlink(own.join("access"), carrack.path("leads nowhere yet")).unwrap();
    let places = [
        (file.clone(), "blocks are served from"),
        (own.join("catalog.redb"), "data directory"),
        (own.join("identity.key"), "data directory"),
        (own.join("packs/access.log"), "data directory"),
        (carrack.path("leads nowhere yet"), "data directory"),
    ];
    let before = (
        fs::read(&file).unwrap(),
        fs::read(own.join("identity.key")).unwrap(),
    );
    for (place, word) in &places {
        let args = [
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--p2p",
            "off",
            "--access-log",
        ];
        let mut command = std::process::Command::new("timeout");
        let serve = carrack.command(&[&args[..], &[text(place)]].concat());
        command
            .arg("10")
            .arg(serve.get_program())
            .args(serve.get_args());
        for (name, value) in serve.get_envs() {
            command.env(name, value.unwrap_or_default());
        }
        is_refused(&crate::support::finish(command), place, word);
    }
    let key = fs::read(own.join("identity.key")).unwrap();
    assert!(before == (fs::read(&file).unwrap(), key));
    assert!(!own.join("access").exists() && !own.join("packs/access.log").exists());
    carrack.run(&["verify"]).ok();
}

/// What `ls` lists of a root, one name a line.
fn names(carrack: &Carrack, target: &str) -> Vec<String> {
    let entries = carrack.run(&["ls", target, "--json"]).ok().json();
    let name = |entry: &serde_json::Value| entry["name"].as_str().unwrap().to_owned();
    entries.iter().map(name).collect()
}

#[test]
fn the_key_of_another_store_below_a_folder_is_not_published() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    let other = Carrack::at(&tree.join("other"));
    data::tree(&tree.join("files"), 64, 3, 1_000);
    other.run(&["id"]).ok();
    other.add_one(&tree.join("files")); // The key was first, a store is made around it.
    let key = fs::read(tree.join("other/identity.key")).unwrap();
    // A backup of the key alone, and what a kill left of one.
    fs::create_dir_all(tree.join("backup")).unwrap();
    fs::write(tree.join("backup/identity.key"), &key).unwrap();
    fs::write(tree.join("backup/identity.key.12-0.tmp"), &key[..40]).unwrap();
    // Of the same names, and no key of a node.
    fs::create_dir_all(tree.join("mine")).unwrap();
    fs::write(tree.join("mine/identity.key"), b"to the cellar").unwrap();
    fs::write(tree.join("mine/identity.key.1-1.tmp"), b"to the attic").unwrap();
    fs::write(
        tree.join("mine/config"),
        br#"{"Identity":{"PrivKey":"kubo's"}}"#,
    )
    .unwrap();
    let added = carrack.run(&["add", "-Q", text(&tree)]).ok();
    let root = &added.words()[0];
    for left in [
        "other/identity.key",
        "backup/identity.key",
        "backup/identity.key.12-0.tmp",
    ] {
        let said = format!("{left}: it is the key of a carrack node");
        assert!(added.stderr.contains(&said), "{left}: {}", added.stderr);
    }
    assert!(!names(&carrack, &format!("{root}/other")).contains(&"identity.key".to_owned()));
    assert_eq!(
        names(&carrack, &format!("{root}/backup")),
        Vec::<String>::new()
    );
    assert_eq!(names(&carrack, &format!("{root}/mine")).len(), 3);
    // Also not by its name, which a shell's * would be.
    for path in ["other/identity.key", "backup/identity.key.12-0.tmp"] {
        let outcome = carrack.run(&["add", text(&tree.join(path))]);
        is_refused(&outcome, Path::new(path), "key of a carrack node");
    }
    carrack.add_one(&tree.join("mine/identity.key"));
    // Of a store that is no longer of this form beside its `format`: whatever it holds.
    fs::write(
        tree.join("other/identity.key"),
        b"\x08\x01 a key of a later form",
    )
    .unwrap();
    let server = carrack.serve(&[&tree]);
    let roots = carrack.run(&["ls", "--json"]).ok().json();
    for root in roots.iter().filter(|root| root["path"] == text(&tree)) {
        let other = format!("{}/other", root["cid"].as_str().unwrap());
        assert!(!names(&carrack, &other).contains(&"identity.key".to_owned()));
    }
    drop(server);
}

/// A folder whose file was renamed while nobody looked.
fn renamed(carrack: &Carrack) -> [String; 2] {
    let tree = carrack.path("tree");
    fs::create_dir_all(&tree).unwrap();
    data::file(&tree.join("f"), 65, 3 << 20);
    let first = carrack.add_one(&tree);
    fs::copy(tree.join("f"), tree.join("h")).unwrap();
    fs::remove_file(tree.join("f")).unwrap();
    [first, carrack.add_one(&tree)]
}

#[test]
fn a_root_is_whole_for_verify_if_each_block_has_a_sound_copy() {
    let carrack = Carrack::new();
    let [_, second] = renamed(&carrack);
    let verify = carrack.run(&["verify", &second]).ok();
    let gone = text(&carrack.path("tree/f")).to_owned();
    assert!(verify.stderr.contains("0 bad"), "{}", verify.stderr);
    let said = "3 copies in ";
    assert!(
        verify.stderr.contains(said) && verify.stderr.contains(&gone),
        "{}",
        verify.stderr
    );
    assert_eq!(verify.text(), "");
    let json = carrack.run(&["verify", &second, "--json"]).ok().json();
    let (copies, summary) = (&json[0], &json[1]);
    assert_eq!(
        (&copies["bad_copies"], &copies["path"]),
        (&3.into(), &gone.into())
    );
    assert_eq!(
        (&summary["bad"], &summary["bad_copies"]),
        (&0.into(), &3.into())
    );
    // Each block once, however many copies it has.
    let bytes = summary["bytes"].as_u64().unwrap();
    assert!((3 << 20..(3 << 20) + 2_000).contains(&bytes), "{summary}");
    // All that is listed: the file that is gone is, with its ranges.
    let all = carrack.run(&["verify"]).exits(VERIFICATION);
    assert!(all.stderr.contains("0 bad, 3 bad copies"), "{}", all.stderr);
    assert_eq!(all.text().lines().count(), 3, "{}", all.text());
    assert!(
        all.text()
            .lines()
            .all(|line| line.starts_with("bad copy: ")),
        "{}",
        all.text()
    );
    // The last sound copy of one block.
    let file = carrack.path("tree/h");
    let mut bytes = fs::read(&file).unwrap();
    bytes[2 << 20] ^= 1;
    fs::write(&file, bytes).unwrap();
    let verify = carrack.run(&["verify", &second]).exits(VERIFICATION);
    assert!(verify.stderr.contains("1 bad"), "{}", verify.stderr);
    assert!(
        verify.text().contains("/tree/h bytes "),
        "{}",
        verify.text()
    );
}
