//! Kill -9 at random moments: what was reported done stays, nothing wrong is served, and the next
//! attempt finishes.
//!
//! In       `CARRACK_CRASH_ROUNDS` (default 8).
//! Out      a failed test that names its round and moment.
//! Not here power cuts, which also lose what was not synced (`power`).

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
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
    /// How long it takes when nobody kills it.
    calm_time: Duration,
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
    let mut done: Vec<Input> = Vec::new();
    let mut n_reported = 0;
    for round in 0..rounds() {
        let input = make(carrack.dir(), round);
        let longest = u64::try_from(input.calm_time.as_micros()).unwrap();
        let delay = Duration::from_micros(random.between(500, longest + 1_000));
        if killed_after(&carrack, &input, delay) {
            n_reported += 1;
            let listed = carrack.run(&["ls", "--json"]).ok().json();
            let is_listed = listed.iter().any(|root| root["cid"] == input.root.as_str());
            assert!(is_listed, "round {round}, {delay:?}: reported and missing");
        }
        carrack.run(&["verify"]).ok();
        let again = carrack.run(&input.args).ok().words();
        assert_eq!(again, [input.root.as_str()], "round {round}, {delay:?}");
        done.push(input);
        let old = &done[usize::try_from(random.next() % done.len() as u64).unwrap()];
        let car = fs::read(carrack.export(&old.root, "old.car")).unwrap();
        assert!(
            car == old.car,
            "round {round}, {delay:?}: another CAR than before"
        );
    }
    eprintln!(
        "{} kills, {n_reported} of them after the report",
        done.len()
    );
    let server = carrack.serve::<&str>(&[]);
    for input in &done {
        let answer = server.get(&format!("/ipfs/{}?format=car", input.root)).ok();
        assert!(answer.body == input.car, "served another CAR than before");
    }
}

/// A folder of small files and one of many blocks.
fn fresh_folder(dir: &Path, seed: u64) -> PathBuf {
    let tree = dir.join(format!("tree-{seed}"));
    data::tree(&tree, seed, 300, 4_000);
    data::file(&tree.join("large"), seed + 1, 12 << 20);
    tree
}

/// What a store without crashes makes of the same arguments.
fn expected(args: Vec<OsString>) -> Input {
    let calm = Carrack::new();
    let start = Instant::now();
    let root = calm.run(&args).ok().words().remove(0);
    let calm_time = start.elapsed();
    let car = fs::read(calm.export(&root, "out.car")).unwrap();
    Input {
        args,
        root,
        car,
        calm_time,
    }
}

fn import_of(dir: &Path, seed: u64, options: &[&str]) -> Input {
    let folder = expected(vec![
        "add".into(),
        "-Q".into(),
        fresh_folder(dir, seed).into(),
    ]);
    let file = dir.join(format!("in-{seed}.car"));
    fs::write(&file, &folder.car).unwrap();
    let mut args: Vec<OsString> = vec!["import".into(), "-Q".into()];
    args.extend(options.iter().map(Into::into));
    args.push(file.into());
    expected(args)
}

#[test]
fn kill_9_during_add() {
    crash_loop(51, |dir, round| {
        let tree = fresh_folder(dir, 1_000 + round);
        expected(vec!["add".into(), "-Q".into(), tree.into()])
    });
}

#[test]
fn kill_9_during_import() {
    crash_loop(52, |dir, round| import_of(dir, 2_000 + round, &[]));
}

#[test]
fn kill_9_during_import_of_a_copy() {
    crash_loop(53, |dir, round| import_of(dir, 3_000 + round, &["--copy"]));
}
