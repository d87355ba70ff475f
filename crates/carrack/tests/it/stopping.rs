//! How a node ends: it says so, finishes what it is asked for, or ends at once.
//!
//! In       signals to a running `serve`.
//! Out      what clients see meanwhile, and the exit code.
//! Not here answers on connections of all kinds (`http::listener`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::cut_answers::served;
use crate::support::http::{self, Answer};
use crate::support::{Carrack, Server};

/// Far beyond what any of these takes on a busy machine, and below the 30 s of downloads.
const PATIENCE: Duration = Duration::from_secs(20);

/// A download that stands still: more than sockets take is left of it.
fn stalled(server: &Server, root: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    let request = format!("GET /ipfs/{root}?format=car HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_exact(&mut [0; 1]).unwrap();
    stream
}

/// Asks until the answer is `until`; the answers, `None` for a port that is closed.
fn readyz_until(server: &Server, until: Option<u16>) -> Vec<Option<u16>> {
    let started = Instant::now();
    let mut answers = Vec::new();
    while answers.last() != Some(&until) {
        assert!(started.elapsed() < PATIENCE, "{:?}", answers.last());
        let status = |answer: Answer| answer.status;
        answers.push(http::try_get(&server.url, "/readyz").map(status));
        std::thread::park_timeout(Duration::from_millis(5));
    }
    answers
}

#[test]
fn a_node_that_is_told_to_stop_says_503_for_a_while_and_then_closes_its_port() {
    let carrack = Carrack::new();
    let config = "http.drain_time_s = 3\n";
    std::fs::write(carrack.path("node.toml"), config).unwrap();
    let file = carrack.path("node.toml");
    let server = carrack.serve(&["--config", file.to_str().unwrap()]);
    server.signal(Signal::TERM);
    let answers = readyz_until(&server, None);
    let n_said = answers.iter().filter(|it| **it == Some(503)).count();
    assert!(n_said > 0, "{answers:?}");
    let (status, log) = server.ended_within(PATIENCE);
    assert_eq!(status.code(), Some(0), "{log}");

    // Who sits at a terminal does not wait.
    let server = carrack.serve(&["--config", file.to_str().unwrap()]);
    let started = Instant::now();
    server.signal(Signal::INT);
    let (status, log) = server.ended_within(PATIENCE);
    assert_eq!(status.code(), Some(0), "{log}");
    assert!(started.elapsed() < Duration::from_secs(3));
}

#[test]
fn downloads_are_finished_after_one_signal_and_cut_by_a_second() {
    let carrack = Carrack::new();
    let (server, _, root) = served(&carrack);
    let mut finishes = stalled(&server, &root);
    server.signal(Signal::TERM);
    readyz_until(&server, None);
    let mut bytes = Vec::new();
    let copied = finishes.read_to_end(&mut bytes);
    assert!(
        copied.is_ok() && bytes.ends_with(b"0\r\n\r\n"),
        "{copied:?}"
    );
    assert_eq!(server.ended_within(PATIENCE).0.code(), Some(0));

    let server = carrack.serve::<&str>(&[]);
    let mut cut = stalled(&server, &root);
    server.signal(Signal::TERM);
    readyz_until(&server, Some(503));
    server.signal(Signal::TERM);
    let started = Instant::now();
    let (status, _) = server.ended_within(PATIENCE);
    assert_eq!(status.code(), Some(130));
    assert!(started.elapsed() < Duration::from_secs(5));
    let mut bytes = Vec::new();
    assert!(cut.read_to_end(&mut bytes).is_err(), "a reset");
}
