//! What is done to a store while the power goes, and what must hold afterwards.
//!
//! In       a stage with an empty disk.
//! Out      a store with something in it, a command, and its promise.
//! Not here when the cut comes.

use std::ffi::OsString;
use std::fs;
use std::path::Path;

use serde_json::Value;

use super::stage::{Ended, Stage};
use crate::support::{Outcome, data};

/// Exit code for what is not there.
const NOT_FOUND: i32 = 3;

/// What a command promises once it has reported.
#[derive(Debug)]
pub(super) enum Promise {
    /// The root that it printed is there.
    Root,
    /// A root is gone.
    Gone(String),
    /// Roots lie below this folder.
    Moved(String),
    /// The same command prints the same again.
    Same,
    /// Nothing but what was there before.
    Nothing,
}

pub(super) struct Flow {
    pub(super) name: &'static str,
    pub(super) command: Vec<OsString>,
    pub(super) promise: Promise,
    /// Roots from before, which the command does not take away, and their CARs.
    old: Vec<(String, Vec<u8>)>,
    /// A node runs on the store, and carries the command out.
    pub(super) is_beside_a_node: bool,
    /// One in so many rounds is enough: each takes long.
    pub(super) cost: u64,
    /// Seeds that showed a fault once.
    pub(super) regressions: &'static [u64],
}

impl Default for Flow {
    fn default() -> Self {
        Self {
            name: "",
            command: Vec::new(),
            promise: Promise::Nothing,
            old: Vec::new(),
            is_beside_a_node: false,
            cost: 1,
            regressions: &[],
        }
    }
}

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn with_path(options: &[&str], path: &Path) -> Vec<OsString> {
    let mut args = words(options);
    args.push(path.into());
    args
}

/// A small tree with files of several blocks among them.
fn tree(stage: &Stage, name: &str, seed: u64) -> std::path::PathBuf {
    let tree = stage.path(name);
    data::tree(&tree, seed, 40, 4_000);
    data::file(&tree.join("large"), seed, 3 << 20);
    tree
}

fn car_of(stage: &Stage, cid: &str) -> Vec<u8> {
    stage.carrack.run(&["export", cid]).ok().stdout
}

/// Adds a tree, which every later flow must leave as it is.
fn old_root(stage: &Stage) -> (String, Vec<u8>) {
    let root = stage.carrack.add_one(&tree(stage, "old", 71));
    let car = car_of(stage, &root);
    (root, car)
}

/// A CAR of a tree that the store does not know.
fn car_file(stage: &Stage) -> std::path::PathBuf {
    let other = crate::support::Carrack::new();
    let root = other.add_one(&tree(stage, "of the car", 73));
    let file = stage.path("in.car");
    fs::rename(other.export(&root, "out.car"), &file)
        .or_else(|_| fs::copy(other.path("out.car"), &file).map(drop))
        .unwrap();
    file
}

pub(super) fn first_start(_stage: &Stage) -> Flow {
    let tcp = "/ip4/127.0.0.1/tcp/0";
    Flow {
        name: "first start",
        command: words(&["serve", "--listen", "127.0.0.1:0", "--p2p", tcp]),
        promise: Promise::Same,
        regressions: &[3],
        ..Flow::default()
    }
}

pub(super) fn identity(_stage: &Stage) -> Flow {
    Flow {
        name: "identity",
        command: words(&["id"]),
        promise: Promise::Same,
        regressions: &[6],
        ..Flow::default()
    }
}

pub(super) fn first_add(stage: &Stage) -> Flow {
    Flow {
        name: "first add",
        command: with_path(&["add", "-Q"], &tree(stage, "new", 72)),
        promise: Promise::Root,
        regressions: &[2],
        ..Flow::default()
    }
}

pub(super) fn add(stage: &Stage) -> Flow {
    Flow {
        name: "add",
        command: with_path(&["add", "-Q"], &tree(stage, "new", 72)),
        promise: Promise::Root,
        old: vec![old_root(stage)],
        regressions: &[2],
        ..Flow::default()
    }
}

/// The same by a node that serves meanwhile.
pub(super) fn add_beside_a_node(stage: &Stage) -> Flow {
    Flow {
        name: "add beside a node",
        is_beside_a_node: true,
        ..add(stage)
    }
}

/// A file that is long enough for a journal of its leaves.
pub(super) fn add_of_a_large_file(stage: &Stage) -> Flow {
    let large = stage.path("large");
    data::file(&large, 76, 257 << 20);
    Flow {
        name: "add of a large file",
        command: with_path(&["add", "-Q"], &large),
        promise: Promise::Root,
        cost: 12,
        ..Flow::default()
    }
}

/// A folder that was added before: its new root takes the place of the old one, which stays.
pub(super) fn add_what_changed(stage: &Stage) -> Flow {
    let old = old_root(stage);
    let changed = tree(stage, "changed", 74);
    stage.carrack.add_one(&changed);
    data::file(&changed.join("more"), 75, 1 << 20);
    Flow {
        name: "add what changed",
        command: with_path(&["add", "-Q"], &changed),
        promise: Promise::Root,
        old: vec![old],
        ..Flow::default()
    }
}

pub(super) fn import(stage: &Stage) -> Flow {
    Flow {
        name: "import",
        command: with_path(&["import", "-Q"], &car_file(stage)),
        promise: Promise::Root,
        old: vec![old_root(stage)],
        regressions: &[2],
        ..Flow::default()
    }
}

pub(super) fn import_of_a_copy(stage: &Stage) -> Flow {
    Flow {
        name: "import --copy",
        command: with_path(&["import", "-Q", "--copy"], &car_file(stage)),
        promise: Promise::Root,
        old: vec![old_root(stage)],
        regressions: &[2],
        ..Flow::default()
    }
}

/// One more add fills a tier of segments, and they become one.
pub(super) fn merge(stage: &Stage) -> Flow {
    let mut old = vec![old_root(stage)];
    for n in 0..6 {
        let file = stage.path(&format!("file-{n}"));
        data::file(&file, 80 + n, 600_000);
        let root = stage.carrack.add_one(&file);
        let car = car_of(stage, &root);
        old.push((root, car));
    }
    Flow {
        name: "merge",
        command: with_path(&["add", "-Q"], &tree(stage, "new", 72)),
        promise: Promise::Root,
        old,
        regressions: &[2],
        ..Flow::default()
    }
}

pub(super) fn index_rebuild(stage: &Stage) -> Flow {
    let mut old = vec![old_root(stage)];
    let car = car_file(stage);
    for args in [&["import", "-Q", "--copy"][..], &["import", "-Q"]] {
        let root = stage.carrack.run(&with_path(args, &car)).ok().words();
        let car = car_of(stage, &root[0]);
        old.push((root[0].clone(), car));
    }
    Flow {
        name: "index rebuild",
        command: words(&["index", "rebuild"]),
        promise: Promise::Nothing,
        old,
        regressions: &[2],
        ..Flow::default()
    }
}

pub(super) fn relocate(stage: &Stage) -> Flow {
    let (from, to) = (stage.path("old"), stage.path("moved"));
    let old = old_root(stage);
    // Both are there, so that every root is whole wherever the cut comes.
    copy(&from, &to);
    let [from, to] = [from, to].map(|path| path.to_str().unwrap().to_owned());
    Flow {
        name: "relocate",
        command: words(&["source", "relocate", &from, &to]),
        promise: Promise::Moved(to),
        old: vec![old],
        regressions: &[2],
        ..Flow::default()
    }
}

pub(super) fn rm(stage: &Stage) -> Flow {
    let old = old_root(stage);
    let car = with_path(&["import", "-Q", "--copy"], &car_file(stage));
    let root = stage.carrack.run(&car).ok().words().remove(0);
    Flow {
        name: "rm",
        command: words(&["rm", &root]),
        promise: Promise::Gone(root),
        old: vec![old],
        regressions: &[2],
        ..Flow::default()
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for (name, bytes) in data::contents(from) {
        let path = to.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

impl Flow {
    /// It runs until it is told to stop.
    pub(super) fn is_service(&self) -> bool {
        self.command[0] == "serve"
    }

    /// Whether these words alone say that it is done, whatever the exit code.
    pub(super) fn is_report(&self, words: &[String]) -> bool {
        match self.promise {
            Promise::Root | Promise::Same => !words.is_empty(),
            Promise::Gone(_) => words.len() >= 2,
            Promise::Moved(_) => words.iter().any(|word| word.starts_with("moved")),
            Promise::Nothing => false,
        }
    }

    fn roots(stage: &Stage) -> Vec<Value> {
        stage.carrack.run(&["ls", "--json"]).ok().json()
    }

    /// What the command promised with these words.
    pub(super) fn holds(&self, stage: &Stage, words: &[String]) {
        match &self.promise {
            Promise::Root => {
                let roots = Self::roots(stage);
                for word in words {
                    let is_listed = roots.iter().any(|root| root["cid"] == word.as_str());
                    assert!(is_listed, "{word} was reported and missing: {roots:?}");
                }
            }
            Promise::Gone(cid) => {
                let roots = Self::roots(stage);
                let is_listed = roots.iter().any(|root| root["cid"] == cid.as_str());
                assert!(!is_listed, "{cid} was dropped and is back");
            }
            Promise::Moved(to) => assert!(Self::is_moved(stage, to), "moved, and moved back"),
            Promise::Same => {
                let id = stage.carrack.run(&["id"]).ok().words();
                assert_eq!(id, words, "another key");
            }
            Promise::Nothing => {}
        }
    }

    fn is_moved(stage: &Stage, to: &str) -> bool {
        let is_there = |root: &Value| root["path"].as_str().unwrap().starts_with(to);
        Self::roots(stage).iter().any(is_there)
    }

    /// What was there before, and all else that is listed, is whole.
    pub(super) fn old_holds(&self, stage: &Stage) {
        let roots = Self::roots(stage);
        for (old, _) in &self.old {
            let is_listed = roots.iter().any(|root| root["cid"] == old.as_str());
            assert!(is_listed, "{old} was there before: {roots:?}");
        }
        stage.carrack.run(&["verify"]).ok();
    }

    /// The bytes that are served are those that were added.
    pub(super) fn bytes_hold(&self, stage: &Stage) {
        for (old, car) in &self.old {
            assert!(&car_of(stage, old) == car, "{old} has other bytes");
        }
    }

    /// Does the same again, to its end; what it said.
    pub(super) fn run_again(&self, stage: &Stage, ended: &Ended) -> Vec<String> {
        if self.is_service() {
            let mut chance = carrack_testkit::power::Chance::new(0);
            let again = stage.run_until_cut(self, &mut chance);
            assert!(again.is_reported, "{}", again.stderr);
            return again.words;
        }
        let is_done = match &self.promise {
            Promise::Gone(cid) => !Self::roots(stage)
                .iter()
                .any(|root| root["cid"] == cid.as_str()),
            Promise::Moved(to) => Self::is_moved(stage, to),
            _ => false,
        };
        let again: Outcome = stage.carrack.run(&self.command);
        let code = if is_done { NOT_FOUND } else { 0 };
        let words = again.exits(code).words();
        let is_same = match self.promise {
            Promise::Root => words == stage.calm.words,
            Promise::Same => !ended.is_reported || words == ended.words,
            _ => true,
        };
        assert!(is_same, "{words:?} instead of {:?}", stage.calm.words);
        words
    }
}
