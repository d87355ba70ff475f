//! Kill -9 at random moments: what was reported done stays, nothing wrong is served, and the next
//! attempt finishes.
//!
//! In       `CARRACK_CRASH_ROUNDS` (default 8).
//! Out      a failed test that names its round and moment.
//! Not here power cuts, which also lose what was not synced (`store` has tests of that).

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use crate::support::{Carrack, data};

fn rounds() -> u64 {
    let rounds = std::env::var("CARRACK_CRASH_ROUNDS").ok();
    rounds.map_or(8, |rounds| rounds.parse().unwrap())
}

/// What is added or imported in one round, and what must come of it.
struct Input {
    args: Vec<OsString>,
    root: String,
    car: Vec<u8>,
}

/// Runs `input` on `carrack` and kills it after `delay`; whether it had reported its root.
fn killed_after(carrack: &Carrack, input: &Input, delay: Duration) -> bool {
    let mut command = carrack.command(&input.args);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + delay;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        park_timeout(left);
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(&input.root)
}

fn crash_loop(seed: u64, make: impl Fn(&Path, u64) -> Input) {
    let mut random = data::Seeded::new(seed);
    let carrack = Carrack::new();
    let mut reported: Vec<Input> = Vec::new();
    let mut whole_time = Duration::from_millis(300);
    for round in 0..rounds() {
        let input = make(carrack.dir(), round);
        let span = u64::try_from(whole_time.as_micros()).unwrap() * 5 / 4;
        let delay = Duration::from_micros(random.between(500, span));
        if killed_after(&carrack, &input, delay) {
            let listed = carrack.run(&["ls", "--json"]).ok().json();
            let is_listed = listed.iter().any(|root| root["cid"] == input.root.as_str());
            assert!(
                is_listed,
                "round {round}, killed after {delay:?}: reported and missing"
            );
        }
        carrack.run(&["verify"]).ok();
        let start = Instant::now();
        assert_eq!(
            carrack.run(&input.args).ok().words(),
            [input.root.as_str()],
            "round {round}"
        );
        whole_time = whole_time.max(start.elapsed());
        reported.push(input);
        let old = &reported[usize::try_from(random.next() % reported.len() as u64).unwrap()];
        let car = fs::read(carrack.export(&old.root, "old.car")).unwrap();
        assert!(
            car == old.car,
            "round {round}, killed after {delay:?}: another CAR than before"
        );
    }
    let server = carrack.serve::<&str>(&[]);
    for input in &reported {
        let answer = server.get(&format!("/ipfs/{}?format=car", input.root)).ok();
        assert!(answer.body == input.car, "served another CAR than before");
    }
}

/// A folder of small and large files, and the CAR that a store without crashes makes of it.
fn fresh_folder(dir: &Path, seed: u64) -> (std::path::PathBuf, String, Vec<u8>) {
    let tree = dir.join(format!("tree-{seed}"));
    data::tree(&tree, seed, 300, 4_000);
    data::file(&tree.join("large"), seed + 1, 5 << 20);
    let calm = Carrack::new();
    let root = calm.add_one(&tree);
    let car = fs::read(calm.export(&root, "out.car")).unwrap();
    (tree, root, car)
}

#[test]
fn kill_9_during_add() {
    crash_loop(51, |dir, round| {
        let (tree, root, car) = fresh_folder(dir, 1_000 + round);
        Input {
            args: vec!["add".into(), "-Q".into(), tree.into()],
            root,
            car,
        }
    });
}

#[test]
fn kill_9_during_import() {
    crash_loop(52, |dir, round| {
        let (_, root, car) = fresh_folder(dir, 2_000 + round);
        let file = dir.join(format!("in-{round}.car"));
        fs::write(&file, &car).unwrap();
        Input {
            args: vec!["import".into(), "-Q".into(), file.into()],
            root,
            car,
        }
    });
}

#[test]
fn kill_9_during_import_of_a_copy() {
    crash_loop(53, |dir, round| {
        let (_, root, car) = fresh_folder(dir, 3_000 + round);
        let file = dir.join(format!("in-{round}.car"));
        fs::write(&file, &car).unwrap();
        let args = vec!["import".into(), "-Q".into(), "--copy".into(), file.into()];
        Input { args, root, car }
    });
}
