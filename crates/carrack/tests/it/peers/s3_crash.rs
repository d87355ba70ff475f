//! Kill -9 while a bucket is being added: the next attempt goes on where the last one was.
//!
//! In       `CARRACK_CRASH_ROUNDS` (default 3).
//! Out      a failed test when a root is lost, or when an object that was read is read again.
//! Not here the same for files (`crash`).

use std::path::Path;
use std::process::Stdio;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use carrack_testkit::Conduct;
use carrack_testkit::s3::target_of;

use crate::support::s3::Bucket;
use crate::support::{Carrack, data};

fn rounds() -> u64 {
    let rounds = std::env::var("CARRACK_CRASH_ROUNDS").ok();
    rounds.map_or(3, |rounds| rounds.parse().unwrap())
}

const N_BIG: u64 = 5;
/// Long enough to be journalled, in three ranges.
const BIG_LEN: u64 = 17 << 20;
/// From the last byte of an object on the wire to its leaves in the journal, at most.
const WRITTEN_DOWN: Duration = Duration::from_millis(500);

/// Small objects, and big ones that come at speeds of their own, so that at most moments some are
/// read and some are not. The slowest takes two seconds.
fn fresh_set(bucket: &Bucket, tree: &Path, prefix: &str, seed: u64) {
    data::tree(tree, seed, 60, 4_000);
    for number in 0..N_BIG {
        let path = tree.join(format!("big-{number}"));
        data::file(&path, seed + 1 + number, BIG_LEN + number);
        let conduct = Conduct {
            latency: Duration::from_millis(2),
            bandwidth: Some(4_000_000 << number),
            faults: Vec::new(),
        };
        let target = target_of(&format!("{prefix}big-{number}"));
        bucket.proxy.set_below(&target, conduct);
    }
    bucket.put_tree(prefix, tree);
}

fn bytes_of_big(bucket: &Bucket, prefix: &str) -> Vec<u64> {
    (0..N_BIG)
        .map(|number| bucket.bytes_read(&format!("{prefix}big-{number}")))
        .collect()
}

#[test]
fn kill_9_during_an_add_from_a_bucket_loses_no_root_and_repeats_no_full_read() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let mut random = data::Seeded::new(55);
    let mut done: Vec<(String, Vec<u8>)> = Vec::new();
    let mut n_spared = 0;
    for round in 0..rounds() {
        let (prefix, tree) = (
            format!("round-{round}/"),
            carrack.path(&format!("tree-{round}")),
        );
        fresh_set(&bucket, &tree, &prefix, 500 + 100 * round);
        let local = Carrack::new();
        let root = local.add_one(&tree);
        let car = std::fs::read(local.export(&root, "local.car")).unwrap();
        let url = Bucket::url(&prefix);
        let delay = Duration::from_millis(random.between(50, 2_000));
        let killed = killed_after(&carrack, &bucket, (&prefix, &url, &root), delay);
        if killed.reported {
            let listed = carrack.run(&["ls", "--json"]).ok().json();
            let is_listed = listed.iter().any(|it| it["cid"] == root.as_str());
            assert!(is_listed, "round {round}, {delay:?}: reported and missing");
        }
        let before = bytes_of_big(&bucket, &prefix);
        assert_eq!(carrack.add(&[&url]), [root.as_str()], "round {round}");
        let after = bytes_of_big(&bucket, &prefix);
        for (number, read) in killed.read.iter().enumerate() {
            let again = after[number] - before[number];
            if *read >= BIG_LEN + number as u64 {
                n_spared += 1;
                assert_eq!(
                    again, 0,
                    "round {round}, {delay:?}: object {number} was read twice"
                );
            }
        }
        assert_eq!(carrack.add(&[&url]), [root.as_str()], "round {round}");
        assert_eq!(
            bytes_of_big(&bucket, &prefix),
            after,
            "round {round}: what was added is read again"
        );
        bucket.proxy.clear();
        std::fs::remove_dir_all(&tree).unwrap();
        done.push((root, car));
    }
    eprintln!(
        "{} kills, {n_spared} objects were not read again",
        done.len()
    );
    let server = carrack.serve::<&str>(&[]);
    for (root, car) in &done {
        let answer = server.get(&format!("/ipfs/{root}?format=car")).ok();
        assert!(&answer.body == car, "{root} is served with other bytes");
    }
}

struct Killed {
    /// Whether it had reported its root.
    reported: bool,
    /// What was read of each big object [`WRITTEN_DOWN`] before the end.
    read: Vec<u64>,
}

fn killed_after(
    carrack: &Carrack,
    bucket: &Bucket,
    (prefix, url, root): (&str, &str, &str),
    delay: Duration,
) -> Killed {
    let mut command = carrack.command(&["add", "-Q", url]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait(delay);
    let read = bytes_of_big(bucket, prefix);
    wait(WRITTEN_DOWN);
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    Killed {
        reported: String::from_utf8_lossy(&output.stdout).contains(root),
        read,
    }
}

fn wait(time: Duration) {
    let deadline = Instant::now() + time;
    while let Some(left) = deadline.checked_duration_since(Instant::now()) {
        park_timeout(left);
    }
}
