//! Clocks that jump by years, forwards and back, while a node runs.
//!
//! In       libfaketime, which tells a process the time that a file names (Debian: `faketime`).
//! Out      the same answers and the same store, whatever the time of day is.
//! Not here parsing times that servers tell (`source::date`), waits that they ask for (`retry`).

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::Value;

use super::program;
use crate::support::{Carrack, Server, car, data};

const LEAF: u64 = 1 << 20;
const YEAR_S: i64 = 365 * 86_400;

/// The library that tells another time, which Debian installs beside the program.
fn library() -> PathBuf {
    program("faketime");
    let lib = fs::read_dir("/usr/lib").unwrap();
    let dirs = lib.map(|entry| entry.unwrap().path());
    let mut names = dirs.map(|dir| dir.join("faketime/libfaketimeMT.so.1"));
    names.find(|name| name.is_file()).unwrap()
}

fn now_s() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap()
}

struct Node {
    carrack: Carrack,
    server: Server,
    root: String,
    leaves: Vec<String>,
    before: Vec<u8>,
    file: PathBuf,
}

impl Node {
    fn write(&self, bytes: &[u8]) {
        let handle = File::options().write(true).open(&self.file).unwrap();
        handle.write_all_at(bytes, LEAF + 5).unwrap();
    }

    fn is_served(&self, leaf: usize) -> bool {
        let path = format!("/ipfs/{}?format=raw", self.leaves[leaf]);
        let reply = self.server.get(&path);
        let expected = self.before.chunks(LEAF as usize).nth(leaf).unwrap();
        assert!(reply.status == 404 || reply.ok().body == expected);
        self.server.get(&path).status == 200
    }

    /// All that a node does, at the time that its clock tells. `year`: how far that is off.
    fn works(&self, year: i64, turn: u64) {
        assert!((0..3).all(|leaf| self.is_served(leaf)));
        let path = format!("/ipfs/{}?format=car", self.root);
        assert!(self.server.get(&path).ok().whole);
        self.write(b"other bytes");
        // First the one that is wrong: a sound one would vouch for what is in memory of the file.
        let served = [1, 0, 2].map(|leaf| self.is_served(leaf));
        assert_eq!(served, [false, true, true]);
        let status = self.carrack.run(&["status", "--json"]).ok().json();
        let stale = status[0]["stale"].as_array().unwrap();
        let named = |one: &&Value| one["path"].as_str().unwrap().ends_with("three leaves");
        let since = stale.iter().find(named).unwrap()["since"].as_i64().unwrap();
        let expected = (now_s() + year * YEAR_S).max(0);
        let is_near = (since - expected).abs() < YEAR_S;
        assert!(is_near, "the clock did not jump: {since}, not {expected}");
        self.carrack.run(&["source", "status"]).ok();
        let at = LEAF as usize + 5;
        self.write(&self.before[at..at + 11]);
        assert!(self.is_served(1), "put back");
        // A file that was written just now, by a clock of another year.
        let name = format!("new {turn}");
        let new = self.carrack.path(&name);
        data::file(&new, 70 + turn, 5000);
        let root = self.carrack.add_one(&new);
        let raw = self.server.get(&format!("/ipfs/{root}?format=raw"));
        assert_eq!(raw.ok().body, fs::read(&new).unwrap());
        data::file(&new, 170 + turn, 5000);
        let again = self.carrack.add_one(&new);
        assert_ne!(root, again, "a change of the same length is seen");
        self.carrack.run(&["verify", &self.root]).ok();
    }
}

#[test]
fn clocks_that_jump_by_years_change_no_answer() {
    let library = library();
    let mut carrack = Carrack::new();
    let clock = carrack.path("clock");
    let set = |offset: &str| {
        // In one step: the process may read it at any time.
        fs::write(clock.with_extension("new"), offset).unwrap();
        fs::rename(clock.with_extension("new"), &clock).unwrap();
    };
    set("+0");
    let file = carrack.path("three leaves");
    data::file(&file, 47, 3 * LEAF);
    carrack.set("LD_PRELOAD", &library);
    carrack.set("FAKETIME_TIMESTAMP_FILE", &clock);
    for name in [
        "FAKETIME_NO_CACHE",
        "FAKETIME_DONT_FAKE_MONOTONIC",
        "NO_FAKE_STAT",
    ] {
        carrack.set(name, "1".as_ref());
    }
    let root = carrack.add_one(&file);
    let id = carrack.run(&["id"]).ok().text().to_owned();
    let before = fs::read(&file).unwrap();
    let leaves = before.chunks(LEAF as usize);
    let leaves = leaves.map(|leaf| car::raw(leaf).to_string()).collect();
    let server = carrack.serve_peers::<&str>(&[]);
    let node = Node {
        carrack,
        server,
        root,
        leaves,
        before,
        file,
    };
    let began = Instant::now();
    let years = [10, -10, 0, -60, 10];
    for (turn, year) in (0..).zip(years) {
        set(&format!("{year:+}y"));
        node.works(year, turn);
    }
    assert!(began.elapsed() < Duration::from_secs(100), "it waited");
    let Node {
        carrack,
        server,
        leaves,
        ..
    } = node;
    ends_well(server);
    // A store of ten years ahead, opened by a clock that is right again, and by one of before.
    for year in [0, -10] {
        set(&format!("{year:+}y"));
        assert_eq!(carrack.run(&["id"]).ok().text(), id);
        let server = carrack.serve::<&str>(&[]);
        for leaf in &leaves {
            server.get(&format!("/ipfs/{leaf}?format=raw")).ok();
        }
        ends_well(server);
    }
}

fn ends_well(server: Server) {
    let (status, said) = server.terminate();
    assert!(status.success() && !said.contains("panicked"), "{said}");
}
