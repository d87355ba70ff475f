//! The index from outside: looked at, checked, lost, made anew, and made anew in vain.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::support::car::{of_blocks, raw};
use crate::support::{Carrack, data};

/// Exit code for a store that is not as it was written.
const CORRUPT: i32 = 9;

/// A store with folders under two profiles and a CAR, and what its roots are as CARs.
fn filled(seed: u64) -> (Carrack, Vec<(String, Vec<u8>)>) {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, seed, 300, 60_000);
    data::file(&tree.join("large"), seed + 1, 20 << 20);
    data::folder(&carrack.path("many"), 4_000);
    let car = carrack.path("blocks.car");
    let mut random = data::Seeded::new(seed);
    let blocks: Vec<_> = (0..500).map(|_| random.bytes(5_000)).collect();
    fs::write(&car, of_blocks(&blocks)).unwrap();
    let mut roots = vec![
        carrack.add_one(&tree),
        carrack.add_one(&carrack.path("many")),
    ];
    let old = ["--profile", "unixfs-v0-2015", tree.to_str().unwrap()];
    roots.extend(carrack.add(&old));
    let import = ["import", "-Q", car.to_str().unwrap()];
    roots.extend(carrack.run(&import).ok().words());
    let exported = |root: String| {
        let car = fs::read(carrack.export(&root, "before.car")).unwrap();
        (root, car)
    };
    let roots = roots.into_iter().map(exported).collect();
    (carrack, roots)
}

fn segments(carrack: &Carrack) -> Vec<PathBuf> {
    let files = fs::read_dir(carrack.path("data/segments")).unwrap();
    let mut files: Vec<_> = files.map(|file| file.unwrap().path()).collect();
    files.sort();
    files
}

fn status(carrack: &Carrack) -> Value {
    carrack
        .run(&["index", "status", "--json"])
        .ok()
        .json()
        .remove(0)
}

fn all_there(carrack: &Carrack, roots: &[(String, Vec<u8>)]) {
    for (root, car) in roots {
        let now = fs::read(carrack.export(root, "now.car")).unwrap();
        assert!(now == *car, "{root} is not what it was");
    }
    carrack.run(&["verify"]).ok();
}

#[test]
fn a_store_that_lost_its_index_is_made_whole_by_the_command_it_names() {
    let (carrack, roots) = filled(70);
    let before = status(&carrack);
    for path in segments(&carrack) {
        fs::remove_file(path).unwrap();
    }
    let refused = carrack.run(&["ls"]).exits(CORRUPT);
    assert!(refused.stderr.contains("carrack index rebuild"));
    carrack.run(&["index", "verify"]).exits(CORRUPT);
    assert_eq!(status(&carrack)["entries"], 0);
    let report = carrack.run(&["index", "rebuild", "--json"]).ok().json();
    assert_eq!(report[0]["entries"], before["entries"]);
    assert_eq!(report[0]["containers_left_out"], 0);
    carrack.run(&["index", "verify"]).ok();
    all_there(&carrack, &roots);
}

#[test]
fn a_damaged_index_is_found_and_made_anew_while_it_serves() {
    let (carrack, roots) = filled(72);
    let largest = segments(&carrack)
        .into_iter()
        .max_by_key(|path| fs::metadata(path).unwrap().len())
        .unwrap();
    // Digests of the last page but one, which nothing else reads.
    let mut bytes = fs::read(&largest).unwrap();
    let at = bytes.len() - 6_000;
    bytes[at..at + 500].fill(0x55);
    fs::write(&largest, bytes).unwrap();
    let server = carrack.serve::<&str>(&[]);
    let verified = carrack.run(&["index", "verify", "--json"]).exits(CORRUPT);
    assert_eq!(verified.json()[0]["damaged"].as_array().unwrap().len(), 1);
    carrack.run(&["index", "rebuild"]).ok();
    carrack.run(&["index", "verify"]).ok();
    for (root, car) in &roots {
        let answer = server.get(&format!("/ipfs/{root}?format=car")).ok();
        assert!(answer.body == *car, "{root} is not what it was");
    }
    assert_eq!(status(&carrack)["damaged"], serde_json::json!([]));
    drop(server);
    all_there(&carrack, &roots);
}

#[test]
fn a_rebuild_that_is_killed_leaves_the_index_as_it_was() {
    let (carrack, roots) = filled(74);
    let rebuild = ["index", "rebuild", "--verify"];
    let start = Instant::now();
    carrack.run(&rebuild).ok();
    let calm = u64::try_from(start.elapsed().as_micros()).unwrap();
    let mut random = data::Seeded::new(75);
    let (mut before, entries) = (segments(&carrack), status(&carrack)["entries"].clone());
    let mut n_killed = 0;
    for round in 0..12 {
        let delay = Duration::from_micros(random.between(1_000, calm));
        let mut command = carrack.command(&rebuild);
        let mut child = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::park_timeout(delay);
        child.kill().unwrap();
        child.wait().unwrap();
        // The next opening removes what the killed one had written.
        assert_eq!(status(&carrack)["entries"], entries, "round {round}");
        carrack.run(&["index", "verify"]).ok();
        let now = segments(&carrack);
        n_killed += u32::from(now == before);
        before = now;
    }
    assert!(n_killed > 0, "every one was done before it was killed");
    all_there(&carrack, &roots);
}

#[test]
fn disk_use_is_told_by_what_it_is() {
    let (carrack, _) = filled(76);
    let disk = &carrack.run(&["status", "--json"]).ok().json()[0]["disk"];
    let len_below = |dir: &str| -> u64 {
        let files = fs::read_dir(carrack.path("data").join(Path::new(dir))).unwrap();
        files
            .map(|file| file.unwrap().metadata().unwrap().len())
            .sum()
    };
    assert_eq!(disk["index"], len_below("segments"));
    assert_eq!(disk["packs"], len_below("packs"));
    assert!(disk["catalog"].as_u64().unwrap() > 4096);
    assert_eq!(disk["journal"], 0);
    let total = disk["total"].as_u64().unwrap();
    assert!(total > len_below("segments") + len_below("packs"));
}

/// Nothing tells it from a whole one otherwise.
#[test]
fn a_rebuild_that_leaves_out_damaged_blocks_names_them_and_does_not_end_well() {
    let carrack = Carrack::new();
    let mut random = data::Seeded::new(81);
    let blocks: Vec<_> = (0..10).map(|_| random.bytes(2_000)).collect();
    let mut car = of_blocks(&blocks);
    let at = car
        .windows(32)
        .position(|window| window == &blocks[7][..32])
        .unwrap();
    car[at + 900] ^= 1;
    let path = carrack.path("bad.car");
    fs::write(&path, car).unwrap();
    let import = ["import", "-Q", "--salvage", path.to_str().unwrap()];
    carrack.run(&import).exits(6);
    let cid = raw(&blocks[7]).to_string();
    for args in [
        vec!["index", "rebuild"],
        vec!["index", "rebuild", "--verify"],
    ] {
        let report = carrack.run(&args).exits(6);
        assert!(report.text().contains(&cid), "{}", report.text());
        assert!(
            report.stderr.contains("1 blocks are damaged"),
            "{}",
            report.stderr
        );
    }
    let report = carrack.run(&["index", "rebuild", "--json"]).exits(6).json();
    assert_eq!(
        (&report[0]["bad_blocks"], &report[0]["bad"][0]["cid"]),
        (&1.into(), &cid.into())
    );
}
