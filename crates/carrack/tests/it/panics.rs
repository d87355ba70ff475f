//! A part of a running node that panics is named at once, starts again, and leaves others alone.
//!
//! In       a node whose parts a test can have panic: builds for release cannot.
//! Out      `/readyz`, the log, and what the part does afterwards.
//! Not here tasks of requests and peers, which end with them (`http::listener`, `carrack_bitswap`).

use std::fs;
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use carrack_testkit::Transport;

use crate::support::{Carrack, Server};

/// A part starts again after a second.
const PATIENCE: Duration = Duration::from_secs(60);

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "never: {what}");
        sleep(Duration::from_millis(5));
    }
}

fn readyz(server: &Server) -> String {
    String::from_utf8(server.get("/readyz").ok().body).unwrap()
}

#[test]
fn parts_that_panic_are_named_at_once_and_start_again() {
    let mut carrack = Carrack::new();
    let (panics, folder) = (carrack.path("panics"), carrack.path("folder"));
    fs::create_dir(&panics).unwrap();
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("file"), b"first").unwrap();
    carrack.set_env("CARRACK_PANIC_DIR", panics.to_str().unwrap());
    let server = carrack.serve_peers(&["--watch", folder.to_str().unwrap()]);
    let root = carrack.run(&["ls", "--json"]).ok().json()[0]["cid"].clone();
    let block = format!("/ipfs/{}?format=raw", root.as_str().unwrap());
    let parts = ["maintenance", "watching", "libp2p", "commands"];
    for part in parts {
        // Done when the part has taken it: each looks several times a second.
        fs::write(panics.join(part), b"").unwrap();
        until(part, || {
            readyz(&server).contains(&format!("degraded: {part}: panicked"))
        });
        server.get(&block).ok();
        until(part, || readyz(&server) == "ready\n");
        server.get(&block).ok();
    }
    // A command that panics is that command's end.
    fs::write(panics.join("command"), b"").unwrap();
    assert_ne!(carrack.run(&["status"]).code(), 0);
    // All of them work again.
    carrack.run(&["status"]).ok();
    let address = carrack.p2p_address(Transport::Tcp);
    let port = address.split('/').nth(4).unwrap();
    TcpStream::connect(format!("127.0.0.1:{port}")).unwrap();
    fs::write(folder.join("file"), b"second").unwrap();
    until("a new root", || {
        carrack.run(&["ls", "--json"]).ok().json().len() > 1
    });
    let (status, log) = server.terminate();
    assert!(status.success(), "{status}");
    for part in parts {
        let told = |line: &str| line.contains("ERROR") && line.contains(part);
        assert!(log.lines().any(told), "{part}: {log}");
    }
}
