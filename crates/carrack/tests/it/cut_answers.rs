//! Answers that fail in the middle never look whole, also where nothing but the connection's end
//! marks theirs.
//!
//! In       a DAG of which one leaf is absent; a node that is killed.
//! Out      resets, where an ordinary close would pass the cut answer off as a whole one.
//! Not here curl and nginx (`peers::cut_answers`), HTTP/2 (`http::listener`).

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;

use sha2::{Digest, Sha256};

use crate::support::car::{header, raw_cid, section, text};
use crate::support::data::Seeded;
use crate::support::{Carrack, Server};

/// Leaves of 256 KiB: more than a node reads before it chooses the status.
const N_LEAVES: u8 = 80;

/// A dag-cbor list of links to leaves, and the CAR of it without the last leaf, or with all.
pub(crate) fn list_in_a_car(seed: u64, whole: bool) -> (Vec<u8>, String) {
    let leaves: Vec<Vec<u8>> = (0..N_LEAVES)
        .map(|n| Seeded::new(seed + u64::from(n)).bytes(256 * 1024))
        .collect();
    let mut list = vec![0x98, N_LEAVES];
    for leaf in &leaves {
        list.extend([0xd8, 42, 0x58, 37, 0]);
        list.extend(raw_cid(leaf));
    }
    let root = [&[1, 0x71, 0x12, 0x20], &Sha256::digest(&list)[..]].concat();
    let mut car = header(&root);
    car.extend(section(&root, &list));
    let n_present = leaves.len() - usize::from(!whole);
    for leaf in &leaves[..n_present] {
        car.extend(section(&raw_cid(leaf), leaf));
    }
    (car, text(&root))
}

/// A node with a DAG that lacks its last leaf and one that is whole, and their roots.
pub(crate) fn served(carrack: &Carrack) -> (Server, String, String) {
    let (cut, whole) = (list_in_a_car(1000, false), list_in_a_car(2000, true));
    for ((bytes, _), name) in [(&cut, "cut.car"), (&whole, "whole.car")] {
        fs::write(carrack.path(name), bytes).unwrap();
        let path = carrack.path(name);
        carrack.run(&["import", path.to_str().unwrap()]);
    }
    (carrack.serve::<&str>(&[]), cut.1, whole.1)
}

fn ask(server: &Server, request: &str) -> TcpStream {
    let mut stream = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
    stream.write_all(request.as_bytes()).unwrap();
    stream
}

#[test]
fn a_car_that_fails_in_the_middle_is_reset_in_every_version() {
    let carrack = Carrack::new();
    let (server, cut, whole) = served(&carrack);
    for end in [
        "HTTP/1.0\r\n\r\n",
        "HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
        "HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        "HTTP/1.1\r\nhost: x\r\n\r\n",
    ] {
        let mut bytes = Vec::new();
        let mut stream = ask(&server, &format!("GET /ipfs/{cut}?format=car {end}"));
        let outcome = stream.read_to_end(&mut bytes);
        assert!(bytes.starts_with(b"HTTP/1."), "{end:?}");
        let error = outcome.expect_err(end);
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{end:?}");
    }
    let mut bytes = Vec::new();
    let mut stream = ask(
        &server,
        &format!("GET /ipfs/{whole}?format=car HTTP/1.0\r\n\r\n"),
    );
    stream.read_to_end(&mut bytes).unwrap();
    let body = bytes.windows(4).position(|it| it == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(bytes[body..], list_in_a_car(2000, true).0);
}

/// Nobody runs any more who could say that the answer is cut.
#[test]
fn an_answer_is_reset_when_the_node_is_killed() {
    let carrack = Carrack::new();
    let (server, _, whole) = served(&carrack);
    let mut stream = ask(
        &server,
        &format!("GET /ipfs/{whole}?format=car HTTP/1.0\r\n\r\n"),
    );
    let mut start = vec![0; 1 << 20];
    stream.read_exact(&mut start).unwrap();
    server.kill();
    let mut rest = Vec::new();
    let error = stream.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
