//! Kill -9 while a bucket is being added: the next attempt goes on where the last one was.
//!
//! In       `CARRACK_CRASH_ROUNDS` (default 4).
//! Out      a failed test when a root is lost, or when what was read is read again.
//! Not here the same for files (`crash`).

use std::process::Stdio;
use std::time::{Duration, Instant};

use carrack_testkit::Conduct;

use super::s3_fetch::mixed;
use crate::support::s3::Bucket;
use crate::support::{Carrack, data};

fn rounds() -> u64 {
    let rounds = std::env::var("CARRACK_CRASH_ROUNDS").ok();
    rounds.map_or(4, |rounds| rounds.parse().unwrap())
}

const LEN: u64 = 24 << 20;

#[test]
fn kill_9_during_an_add_from_a_bucket_loses_no_root_and_repeats_no_full_read() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let mut random = data::Seeded::new(55);
    let mut done: Vec<(String, String)> = Vec::new();
    for round in 0..rounds() {
        let prefix = format!("round-{round}/");
        let tree = carrack.path(&prefix);
        mixed(&tree, 500 + 100 * round, LEN);
        bucket.put_tree(&prefix, &tree);
        let lens = data::contents(&tree)
            .into_values()
            .map(|it| it.len() as u64);
        let len: u64 = lens.sum();
        let root = Carrack::new().add_one(&tree);
        let url = Bucket::url(&prefix);
        // Slow enough that there is a middle to be killed in.
        bucket.proxy.set(Conduct {
            latency: Duration::from_millis(2),
            bandwidth: Some(20_000_000),
            faults: Vec::new(),
        });
        let stop_at = random.between(0, len * 9 / 10);
        let reported = killed_at(&carrack, &bucket, (&prefix, &url, &root), stop_at);
        let before = bucket.bytes_read(&prefix);
        if reported {
            let listed = carrack.run(&["ls", "--json"]).ok().json();
            let is_listed = listed.iter().any(|it| it["cid"] == root.as_str());
            assert!(is_listed, "round {round}: reported and missing");
        }
        assert_eq!(carrack.add(&[&url]), [root.as_str()], "round {round}");
        let after = bucket.bytes_read(&prefix) - before;
        eprintln!("round {round}: {before} of {len} before the kill, {after} after it");
        assert!(
            before + after <= len + NOT_YET_DURABLE,
            "round {round}: {before} and then {after} bytes were read of {len}"
        );
        assert_eq!(carrack.add(&[&url]), [root.as_str()], "round {round}");
        let again = bucket.bytes_read(&prefix) - before - after;
        assert_eq!(again, 0, "round {round}: what was added is read again");
        done.push((prefix, root));
    }
    bucket.proxy.clear();
    let server = carrack.serve::<&str>(&[]);
    for (prefix, root) in &done {
        let car = server.get(&format!("/ipfs/{root}?format=car")).ok();
        let local = Carrack::new();
        let same = local.add_one(&carrack.path(prefix));
        let expected = std::fs::read(local.export(&same, "local.car")).unwrap();
        assert!(car.body == expected, "{prefix} is served with other bytes");
    }
}

/// What may have been read and not been written down yet when the kill came.
const NOT_YET_DURABLE: u64 = 12 << 20;

/// Runs the add and kills it once so many bytes were read; whether it had reported its root.
fn killed_at(
    carrack: &Carrack,
    bucket: &Bucket,
    (prefix, url, root): (&str, &str, &str),
    stop_at: u64,
) -> bool {
    let mut command = carrack.command(&["add", "-Q", url]);
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while bucket.bytes_read(prefix) < stop_at && child.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "no progress to {stop_at} bytes");
        std::thread::park_timeout(Duration::from_micros(300));
    }
    child.kill().unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8_lossy(&output.stdout).contains(root)
}
