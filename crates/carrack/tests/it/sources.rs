//! Places by name: configured, listed, looked after, moved, forgotten; secrets are refused.

use std::fs;
use std::path::Path;

use crate::support::{Carrack, data};

const LEN: u64 = 300_000;

/// A store with a named folder of three files.
fn named_folder() -> (Carrack, std::path::PathBuf) {
    let carrack = Carrack::new();
    let folder = carrack.path("data set");
    fs::create_dir(&folder).unwrap();
    for (seed, name) in ["a", "b", "c"].iter().enumerate() {
        data::file(&folder.join(name), seed as u64, LEN);
    }
    let args = ["source", "add", "--name", "atlas", folder.to_str().unwrap()];
    carrack.run(&args).ok();
    (carrack, folder)
}

fn status(carrack: &Carrack) -> serde_json::Value {
    let args = ["source", "status", "atlas", "--json"];
    carrack.run(&args).ok().json().remove(0)
}

#[test]
fn a_named_folder_lives_moves_and_is_forgotten() {
    let (carrack, folder) = named_folder();
    for serves in [false, true] {
        let server = serves.then(|| carrack.serve::<&str>(&[]));
        let listed = carrack.run(&["source", "list", "--json"]).ok().json();
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0]["name"], "atlas");
        assert_eq!(listed[0]["kind"], "local");
        assert_eq!(listed[0]["containers"], 3);
        assert_eq!(listed[0]["bytes"], 3 * LEN);
        assert_eq!(listed[0]["roots"], 1);
        assert_eq!(status(&carrack)["state"], "live");
        drop(server);
    }
    let root = carrack.run(&["ls", "--json"]).ok().json()[0]["cid"].clone();
    let root = root.as_str().unwrap().to_owned();
    let server = carrack.serve::<&str>(&[]);
    let before = server.get(&format!("/ipfs/{root}?format=car")).ok().body;

    // Touched, cut and gone: each is named, with what to do.
    fs::write(folder.join("b"), b"short").unwrap();
    let away = carrack.path("away");
    fs::rename(folder.join("c"), &away).unwrap();
    let found = status(&carrack);
    assert_eq!(found["state"], "missing");
    assert_eq!(found["counts"]["live"], 1);
    assert_eq!(found["counts"]["stale"], 1);
    assert_eq!(found["counts"]["missing"], 1);
    assert_eq!(found["objects_total"], 2);
    for object in found["objects"].as_array().unwrap() {
        assert!(object["since"].as_u64().is_some(), "{object}");
        assert!(object["advice"].as_str().unwrap().contains("rescan atlas"));
    }
    fs::rename(&away, folder.join("c")).unwrap();
    data::file(&folder.join("b"), 1, LEN);

    // It moves while it is served.
    let moved = carrack.path("moved");
    fs::rename(&folder, &moved).unwrap();
    let args = ["source", "relocate", "atlas", moved.to_str().unwrap()];
    let told = carrack.run(&args).ok();
    assert!(told.text().contains("moved, 1 roots"), "{}", told.text());
    let after = server.get(&format!("/ipfs/{root}?format=car")).ok().body;
    assert_eq!(before, after);
    assert_eq!(status(&carrack)["state"], "live");

    carrack.run(&["source", "rm", "atlas"]).ok();
    assert_eq!(
        carrack.run(&["source", "list", "--json"]).ok().json().len(),
        0
    );
    assert_eq!(carrack.run(&["ls", "--json"]).ok().json().len(), 0);
    assert_eq!(server.get(&format!("/ipfs/{root}?format=raw")).status, 404);
    assert!(moved.join("a").exists(), "bytes are never touched");
}

#[test]
fn a_place_with_other_bytes_is_refused() {
    let (carrack, folder) = named_folder();
    let other = carrack.path("other");
    fs::create_dir(&other).unwrap();
    for (seed, name) in ["a", "b", "c"].iter().enumerate() {
        data::file(&other.join(name), 10 + seed as u64, LEN);
    }
    let args = ["source", "relocate", "atlas", other.to_str().unwrap()];
    let refused = carrack.run(&args).exits(7);
    assert!(refused.text().contains("differs  a"), "{}", refused.text());
    let listed = carrack.run(&["source", "list", "--json"]).ok().json();
    assert_eq!(listed[0]["url"], folder.to_str().unwrap());
    carrack.run(&["verify"]).ok();
}

#[test]
fn names_are_told_when_one_is_wrong() {
    let (carrack, folder) = named_folder();
    for args in [
        ["source", "rm", "altas"].as_slice(),
        &["source", "status", "altas"],
        &["source", "rescan", "altas"],
        &["source", "relocate", "altas", "/"],
    ] {
        let outcome = carrack.run(args).exits(3);
        assert!(
            outcome.stderr.contains("there are atlas"),
            "{}",
            outcome.stderr
        );
    }
    let folder = folder.to_str().unwrap();
    carrack.run(&["source", "add", folder]).exits(2);
    for name in ["atlas", "Upper", "a b", "", "local"] {
        let tmp = carrack.dir().to_str().unwrap();
        carrack
            .run(&["source", "add", "--name", name, tmp])
            .exits(2);
    }
}

#[test]
fn a_secret_in_a_url_is_refused_and_goes_nowhere() {
    let carrack = Carrack::new();
    let secret = "hunter2secret";
    let with_user = format!("https://user:{secret}@127.0.0.1:9/x/");
    let signed = format!("https://127.0.0.1:9/x?X-Amz-Signature={secret}");
    let bucket = format!("s3://key:{secret}@bucket/x");
    let endpoint = format!("http://user:{secret}@127.0.0.1:9");
    let args: [&[&str]; 7] = [
        &["source", "add", &with_user],
        &["source", "add", &signed],
        &["source", "add", &bucket],
        &["source", "add", "s3://bucket/x", "--endpoint", &endpoint],
        &["source", "add", "s3://bucket/x", "--credentials", secret],
        &["source", "rm", &with_user],
        &["source", "relocate", &with_user, &signed],
    ];
    for serves in [false, true] {
        let server = serves.then(|| carrack.serve::<&str>(&[]));
        for args in args {
            let mut command = carrack.command(args);
            command.env("RUST_LOG", "trace");
            let outcome = crate::support::finish(command);
            assert!(
                [2, 3].contains(&outcome.code()),
                "{args:?}: {}",
                outcome.stderr
            );
            let told = outcome.text().to_owned() + &outcome.stderr;
            assert!(!told.contains(secret), "{args:?}: {told}");
        }
        if let Some(server) = server {
            assert!(!server.terminate().1.contains(secret));
        }
        is_nowhere(&carrack.path("data"), secret.as_bytes());
    }
    assert_eq!(
        carrack.run(&["source", "list", "--json"]).ok().json().len(),
        0
    );
}

/// A URL where none belongs is repeated by whoever reports it, without its password.
#[test]
fn a_secret_in_a_misplaced_url_is_told_by_nobody() {
    let carrack = Carrack::new();
    let secret = "hunter2secret";
    let url = format!("https://user:{secret}@127.0.0.1:9/x");
    let signed = format!("https://127.0.0.1:9/x?sig={secret}");
    let path = format!("https:/user:{secret}@127.0.0.1:9/x");
    let assigned = format!("--endpont={url}");
    let log = format!("--access-log={path}");
    let args: [&[&str]; 22] = [
        &[&url],
        &["add", "--bogus", &url],
        &["add", &path, "--json"],
        &["add", &url],
        &["add", "--profile", &url, "."],
        &["add", "--chunker", &url, "."],
        &["add", "--wrap", ".", &signed],
        &["import", &path],
        &["import", &signed],
        &["serve", "--listen", &url],
        &["serve", &url],
        &["serve", &path],
        &["serve", &log],
        &["source", "add", "s3://bucket/x", &url],
        &["source", "add", "s3://bucket/x", &assigned],
        &["source", "add", &path],
        &["source", "relocate", &path, "/"],
        &["cat", &url],
        &["ls", &signed],
        &["verify", &url],
        &["rm", &url, "--json"],
        &["cid", "inspect", &url],
    ];
    for serves in [false, true] {
        let server = serves.then(|| carrack.serve::<&str>(&[]));
        for args in args.iter().filter(|args| !serves || args[0] != "serve") {
            let mut command = carrack.command(args);
            command.env("RUST_LOG", "trace");
            let outcome = crate::support::finish(command);
            assert_ne!(outcome.code(), 0, "{args:?}");
            assert!(!outcome.stderr.is_empty(), "{args:?}");
            let told = outcome.text().to_owned() + &outcome.stderr;
            assert!(!told.contains(secret), "{args:?}: {told}");
        }
        if let Some(server) = server {
            assert!(!server.terminate().1.contains(secret));
        }
        is_nowhere(&carrack.path("data"), secret.as_bytes());
    }
}

/// No file below `dir` has these bytes.
pub(crate) fn is_nowhere(dir: &Path, secret: &[u8]) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            is_nowhere(&path, secret);
        } else if path.is_file() {
            let bytes = fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|window| window == secret);
            assert!(!found, "{}", path.display());
        }
    }
}
