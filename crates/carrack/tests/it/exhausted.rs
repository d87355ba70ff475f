//! A node that has no descriptors left: it serves on, fails what it cannot do with a typed error,
//! and recovers without a restart.
//!
//! In       limits on descriptors that are taken away from a running process and given back.
//! Out      nothing lost, nothing marked as changed, nothing read-only.
//! Not here the limits on connections (`http::limits`).

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use crate::support::{Carrack, data};

/// One connection that is kept.
struct Kept(BufReader<TcpStream>);

impl Kept {
    fn open(url: &str) -> Self {
        let stream = TcpStream::connect(url.strip_prefix("http://").unwrap()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        Self(BufReader::new(stream))
    }

    /// Status and body of an answer with a length.
    fn get(&mut self, path: &str) -> (u16, Vec<u8>) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        self.0.get_mut().write_all(request.as_bytes()).unwrap();
        let (mut status, mut len) = (0, 0);
        for n in 0.. {
            let mut line = String::new();
            self.0.read_line(&mut line).unwrap();
            let line = line.trim_end().to_ascii_lowercase();
            if n == 0 {
                status = line.split(' ').nth(1).unwrap().parse().unwrap();
            }
            if let Some(value) = line.strip_prefix("content-length:") {
                len = value.trim().parse().unwrap();
            }
            if line.is_empty() {
                break;
            }
        }
        let mut body = vec![0; len];
        self.0.read_exact(&mut body).unwrap();
        (status, body)
    }
}

#[test]
fn without_descriptors_a_node_serves_what_is_open_and_recovers_by_itself() {
    let carrack = Carrack::new();
    let [tree, late] = ["tree", "late"].map(|name| carrack.path(name));
    data::tree(&tree, 31, 20, 3_000);
    data::file(&tree.join("large"), 32, 2 << 20);
    let root = carrack.add_one(&tree);
    let server = carrack.serve::<&str>(&[]);
    let mut kept = Kept::open(&server.url);
    let blocks = |kept: &mut Kept| kept.get(&format!("/ipfs/{root}?format=raw"));
    assert_eq!(blocks(&mut kept).0, 200);
    let leaf = carrack.add_one(&tree.join("part 0/0/file-0.bin")); // One that nobody has read yet.
    let n = server.n_descriptors();
    server.limit_descriptors(n);
    assert_eq!(blocks(&mut kept).0, 200, "what is open is served");
    let (status, _) = kept.get(&format!("/ipfs/{leaf}?format=raw"));
    assert!(
        [200, 503].contains(&status),
        "{status}: for now, and not for ever"
    );
    // Connections wait until there are descriptors again.
    let waiting: Vec<_> = (0..20).map(|_| Kept::open(&server.url)).collect();
    assert_eq!(
        blocks(&mut kept).0,
        200,
        "beside connections that cannot be taken in"
    );
    // Writes fail wherever the descriptors end, and say so.
    data::tree(&late, 33, 30, 2_000);
    let mut n_failed = 0;
    drop(waiting);
    for more in 3..14 {
        server.limit_descriptors(n + more);
        let outcome = carrack.run(&["add", "-Q", late.to_str().unwrap()]);
        if outcome.code() != 0 {
            n_failed += 1;
            let (code, stderr) = (outcome.code(), &outcome.stderr);
            assert_eq!(code, 8, "{more} more: no root without its files: {stderr}");
        }
        assert_eq!(blocks(&mut kept).0, 200, "{more} more");
    }
    assert!(n_failed > 0, "no add ran out of descriptors");
    server.limit_descriptors(1024);
    let (status, _) = kept.get(&format!("/ipfs/{leaf}?format=raw"));
    assert_eq!(status, 200, "it was never out of service");
    fs::write(late.join("one more"), b"x").unwrap();
    let added = carrack.add_one(&late);
    carrack.run(&["verify", &added]).ok();
    let status = carrack.run(&["status", "--json"]).ok().json();
    assert_eq!(status[0]["stale"], serde_json::json!([]));
    server.get(&format!("/ipfs/{added}?format=car")).ok();
}

/// More connections than there are descriptors: those that are in are served, with their files.
#[test]
fn connections_leave_descriptors_for_the_files_that_are_served() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 41, 40, 3_000);
    let root = carrack.add_one(&tree);
    let server = carrack.serve_with_descriptors(96);
    let mut first = Kept::open(&server.url);
    assert_eq!(first.get("/healthz").0, 200);
    let mut others: Vec<_> = (0..150).map(|_| Kept::open(&server.url)).collect();
    others.iter_mut().for_each(|other| {
        // Not answered unless it was taken in: its request waits with it.
        let request = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n";
        other.0.get_mut().write_all(request).unwrap();
    });
    // Every file is opened beside them, and the command's socket.
    let verified = carrack.run(&["verify", &root]);
    assert_eq!(verified.code(), 0, "{}", verified.stderr);
    assert_eq!(first.get(&format!("/ipfs/{root}?format=raw")).0, 200);
    data::tree(&carrack.path("late"), 42, 30, 2_000);
    let added = carrack.add_one(&carrack.path("late"));
    assert_eq!(first.get(&format!("/ipfs/{added}?format=raw")).0, 200);
    drop(others);
    server.get(&format!("/ipfs/{added}?format=car")).ok();
}

/// Libraries panic where they may open or start nothing: it is looked for first.
#[test]
fn limits_that_no_command_can_live_with_are_named_and_nothing_panics() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 51, 20, 3_000);
    let limited = |limit: &str| {
        let add = carrack.command(&["add", "-Q", tree.to_str().unwrap()]);
        let mut prlimit = Command::new("prlimit");
        prlimit.args([limit, "--"]).arg(add.get_program());
        prlimit.args(add.get_args());
        for (name, value) in add.get_envs() {
            prlimit.env(name, value.unwrap_or_default());
        }
        prlimit
    };
    for n in [4, 8, 12, 20, 30, 39] {
        let output = limited(&format!("--nofile={n}:{n}")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(8), "{n}: {stderr}");
        assert!(stderr.contains("ulimit -n"), "{n}: {stderr}");
        assert!(!stderr.contains("panicked"), "{n}: {stderr}");
    }
    assert!(!carrack.path("data").exists(), "nothing was made");
    for n in [40, 48, 64] {
        let output = limited(&format!("--nofile={n}:{n}")).output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{n}: {stderr}");
    }
    // Limits of processes are not for root; nobody else runs as this user.
    let stranger = 54_329;
    let mut prlimit = limited("--nproc=1:1");
    let output = prlimit.uid(stranger).gid(stranger).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(8), "{stderr}");
    assert!(stderr.contains("ulimit -u"), "{stderr}");
    assert!(!stderr.contains("panicked"), "{stderr}");
}
