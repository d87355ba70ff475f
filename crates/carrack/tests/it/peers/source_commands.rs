//! `carrack source` on a bucket of a real S3 server.
//!
//! In       versitygw behind the proxy.
//! Out      tests of the commands by name: states, a move, and that no secret is written.
//! Not here folders as sources (`crate::sources`).

use std::path::Path;

use carrack_testkit::S3Server;

use crate::sources::is_nowhere;
use crate::support::s3::Bucket;
use crate::support::{Carrack, Outcome, data, finish};

struct Setup {
    carrack: Carrack,
    bucket: Bucket,
}

impl Setup {
    fn new() -> Self {
        let (carrack, bucket) = (Carrack::new(), Bucket::new());
        let tree = carrack.path("tree");
        std::fs::create_dir(&tree).unwrap();
        for index in 0..30u64 {
            data::file(&tree.join(format!("f {index:02}")), index, 20_000 + index);
        }
        bucket.put_tree("old/", &tree);
        Self { carrack, bucket }
    }

    fn run(&self, args: &[&str]) -> Outcome {
        let mut command = self.carrack.command(args);
        command
            .envs(self.bucket.environment())
            .env("RUST_LOG", "trace");
        let outcome = finish(command);
        let told = String::from_utf8_lossy(&outcome.stdout).into_owned() + &outcome.stderr;
        for (name, value) in self.bucket.environment() {
            if name == "AWS_SECRET_ACCESS_KEY" {
                assert!(!told.contains(&value), "{args:?} tells the secret");
                is_nowhere(&self.carrack.path("data"), value.as_bytes());
            }
        }
        outcome
    }

    fn status(&self) -> serde_json::Value {
        self.run(&["source", "status", "atlas", "--json"])
            .ok()
            .json()
            .remove(0)
    }
}

#[test]
fn a_bucket_by_name_tells_what_became_of_it_and_moves() {
    let setup = Setup::new();
    let bucket = &setup.bucket;
    let wrong = Bucket::url("old").replace("data", "nodata");
    let refused = setup.run(&["source", "add", &wrong]);
    assert_ne!(
        refused.code(),
        0,
        "a bucket that is not there is told at once"
    );
    setup
        .run(&["source", "add", &Bucket::url("old"), "--name", "atlas"])
        .ok();
    let listed = setup.run(&["source", "list", "--json"]).ok().json();
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(
        (&listed[0]["kind"], &listed[0]["containers"]),
        (&"s3".into(), &30.into())
    );
    assert_eq!(listed[0]["credentials"], "env");
    assert_eq!(setup.status()["counts"]["live"], 30);

    // The same objects at another place, read there only where samples are taken.
    bucket.put_tree("new/", Path::new(&setup.carrack.path("tree")));
    setup
        .run(&["source", "relocate", "atlas", &Bucket::url("nowhere")])
        .exits(7);
    let moved = setup
        .run(&["source", "relocate", "atlas", &Bucket::url("new")])
        .ok();
    assert!(moved.text().contains("moved, 1 roots"), "{}", moved.text());
    assert_eq!(setup.status()["counts"]["live"], 30);

    bucket.put("new/f 01", b"other");
    bucket.server.delete("new/f 02").unwrap();
    let found = setup.status();
    let counts = (&found["counts"]["stale"], &found["counts"]["missing"]);
    assert_eq!(counts, (&1.into(), &1.into()), "{found}");
    assert_eq!(found["state"], "missing");
    for object in found["objects"].as_array().unwrap() {
        assert!(
            object["path"]
                .as_str()
                .unwrap()
                .starts_with("s3://data/new/f 0")
        );
        assert!(
            object["since"].is_u64() && object["advice"].is_string(),
            "{object}"
        );
    }
    setup.run(&["source", "rescan", "atlas"]).ok();
    assert_eq!(
        setup.run(&["ls", "--json"]).ok().json().len(),
        2,
        "the old root stays"
    );

    // A folder is as good a place.
    let folder = setup.carrack.path("tree");
    let args = [
        "source",
        "relocate",
        "atlas",
        folder.to_str().unwrap(),
        "--allow-missing",
        "1",
    ];
    setup.run(&args).ok();
    let listed = setup.run(&["source", "list", "--json"]).ok().json();
    assert_eq!(listed[0]["kind"], "local");
    setup.run(&["source", "rm", "atlas"]).ok();
    assert_eq!(setup.run(&["ls", "--json"]).ok().json().len(), 0);
    assert!(folder.join("f 01").exists());
}

/// A source that was made on the way to adding something goes with it; one that was asked for
/// stays.
#[test]
fn what_cannot_be_added_leaves_no_source_behind() {
    let setup = Setup::new();
    setup.bucket.put("bad.car", b"no CAR at all");
    let nothing = Bucket::url("nothing");
    let no_bucket = Bucket::url("old").replace("data", "nodata");
    let (good, bad_car) = (Bucket::url("old/"), Bucket::url("bad.car"));
    let no_car = Bucket::url("none/x.car");
    let refused = [
        vec!["add", nothing.as_str()],
        vec!["add", &no_bucket],
        vec!["add", "s3://data/%zz", "s3://Not_A_Bucket/x"],
        vec!["add", &nothing, &no_bucket],
        vec!["import", &bad_car],
        vec!["import", &no_car],
        vec!["serve", &nothing],
        vec!["serve", &no_car],
    ];
    let names = |setup: &Setup| -> Vec<String> {
        let listed = setup.run(&["source", "list", "--json"]).ok().json();
        let name = |row: &serde_json::Value| row["name"].as_str().unwrap().to_owned();
        listed.iter().map(name).collect()
    };
    for serves in [false, true] {
        let server = serves.then(|| setup.carrack.serve::<&str>(&[]));
        for args in refused.iter().filter(|args| !serves || args[0] != "serve") {
            assert_ne!(setup.run(args).code(), 0, "{args:?}");
            assert_eq!(names(&setup), [""; 0], "{args:?}");
        }
        let mut command = setup.carrack.command(&["add", &good]);
        command.envs(setup.bucket.environment());
        command.env("AWS_SECRET_ACCESS_KEY", "wrong");
        assert_ne!(finish(command).code(), 0, "wrong keys");
        assert_eq!(names(&setup), [""; 0]);
        drop(server);
    }
    setup.run(&["source", "add", "--no-scan", &nothing]).ok();
    assert_ne!(setup.run(&["add", &nothing]).code(), 0);
    assert_eq!(names(&setup), [nothing.as_str()], "somebody asked for it");
    setup.run(&["add", &good, &bad_car]).ok();
    setup.run(&["source", "rm", &nothing]).ok();
    assert_eq!(names(&setup), [good.trim_end_matches('/'), &bad_car]);
    // Of several the good ones are added, and nothing stays of the others.
    setup.run(&["add", &nothing, &good, &no_bucket]).exits(6);
    assert_eq!(names(&setup).len(), 2);
    setup.run(&["verify"]).ok();
}

#[test]
fn a_server_that_is_gone_is_unreachable() {
    let setup = Setup::new();
    setup
        .run(&["source", "add", &Bucket::url("old"), "--name", "atlas"])
        .ok();
    let Setup { carrack, bucket } = setup;
    let environment = S3Server::environment("http://127.0.0.1:9");
    drop(bucket);
    let mut command = carrack.command(&["source", "status", "--json"]);
    command.envs(environment);
    let found = finish(command).ok().json().remove(0);
    assert_eq!(found["state"], "unreachable");
    assert_eq!(found["counts"]["unreachable"], 30);
    assert!(found["since"].is_u64(), "{found}");
    let objects = found["objects"].as_array().unwrap();
    assert!(objects.iter().all(|one| one["since"].is_u64()), "{found}");
}
