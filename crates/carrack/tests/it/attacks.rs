//! Hostile CARs, names and requests against a running node: memory stays flat, answers that
//! cannot be whole are cut, and the node goes on. The whole table is `docs/design/attacks.md`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::support::car::{framed, header, raw_cid, section, text, varint};
use crate::support::data::Seeded;
use crate::support::{Carrack, Server, http};

/// What a running node may grow by for one client, in bytes: several times what it reads ahead.
const GROWTH_MAX: u64 = 48 << 20;

fn cid(codec: u8, block: &[u8]) -> Vec<u8> {
    let mut cid = vec![0x01, codec, 0x12, 0x20];
    cid.extend(Sha256::digest(block));
    cid
}

/// A dag-cbor list of links.
fn list(links: &[&[u8]]) -> Vec<u8> {
    let mut block = vec![0x80 | u8::try_from(links.len()).unwrap()];
    for link in links {
        block.extend([0xd8, 42, 0x58, u8::try_from(link.len() + 1).unwrap(), 0]);
        block.extend(*link);
    }
    block
}

/// A dag-pb block of links without names.
fn pb(links: &[&[u8]], data: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for link in links {
        let hash = [&[0x0a][..], &framed(link), &[0x12, 0]].concat();
        block.extend([&[0x12][..], &framed(&hash)].concat());
    }
    block.extend([&[0x0a][..], &framed(data)].concat());
    block
}

/// `n` levels above one leaf, `width` links from each to the one below. The root is last.
fn tower(n: usize, width: usize, leaf: Vec<u8>) -> Vec<(Vec<u8>, Vec<u8>)> {
    let mut blocks = vec![(raw_cid(&leaf), leaf)];
    for _ in 0..n {
        let (below, _) = blocks.last().unwrap();
        let block = list(&vec![below.as_slice(); width]);
        blocks.push((cid(0x71, &block), block));
    }
    blocks
}

/// A CAR whose root is the last block, and the root's text.
fn car(blocks: &[(Vec<u8>, Vec<u8>)]) -> (Vec<u8>, String) {
    let (root, _) = blocks.last().unwrap();
    let mut bytes = header(root);
    for (cid, block) in blocks {
        bytes.extend(section(cid, block));
    }
    (bytes, text(root))
}

/// A node that serves these blocks from a CAR, and the root.
fn served(carrack: &Carrack, blocks: &[(Vec<u8>, Vec<u8>)]) -> (Server, String) {
    let (bytes, root) = car(blocks);
    let path = carrack.path("hostile.car");
    fs::write(&path, bytes).unwrap();
    (carrack.serve(&[&path]), root)
}

fn cids_in(car: &[u8]) -> usize {
    let (mut rest, mut n_frames) = (car, 0);
    while !rest.is_empty() {
        let n = rest.iter().position(|byte| *byte < 0x80).unwrap() + 1;
        let len = rest[..n]
            .iter()
            .rev()
            .fold(0, |len, byte| len << 7 | usize::from(byte & 0x7f));
        rest = &rest[n + len..];
        n_frames += 1;
    }
    n_frames - 1
}

#[test]
fn two_hundred_thousand_tiny_sections_do_not_fill_the_memory() {
    let carrack = Carrack::new();
    let server = carrack.serve::<&str>(&[]);
    let import = |n_blocks: u32| {
        let mut bytes = header(&raw_cid(&0_u32.to_le_bytes()));
        for number in 0..n_blocks {
            let block = number.to_le_bytes();
            bytes.extend(section(&raw_cid(&block), &block));
        }
        let path = carrack.path(&format!("{n_blocks}.car"));
        fs::write(&path, bytes).unwrap();
        carrack.run(&["import", path.to_str().unwrap()]).ok();
    };
    import(2_000);
    let before = server.peak_memory();
    import(200_000);
    let growth = server.peak_memory() - before;
    assert!(growth < GROWTH_MAX, "{growth}");
    let last = text(&raw_cid(&199_999_u32.to_le_bytes()));
    let answer = server.get(&format!("/ipfs/{last}?format=raw")).ok();
    assert_eq!(answer.body, 199_999_u32.to_le_bytes());
}

/// A thousand roots that are not in the CAR must not be looked for section by section.
#[test]
fn a_thousand_roots_cost_an_import_no_time() {
    let blocks: Vec<Vec<u8>> = (0..100_000_u32).map(|n| n.to_le_bytes().to_vec()).collect();
    let time = |n_roots: u16| {
        let mut cbor = b"\xa2\x65roots\x99".to_vec();
        cbor.extend([(n_roots >> 8) as u8, n_roots as u8]);
        for root in 0..n_roots {
            cbor.extend(b"\xd8\x2a\x58\x25\x00");
            cbor.extend(raw_cid(&[&b"absent"[..], &root.to_le_bytes()].concat()));
        }
        cbor.extend(b"\x67version\x01");
        let mut bytes = framed(&cbor);
        for block in &blocks {
            bytes.extend(section(&raw_cid(block), block));
        }
        let carrack = Carrack::new();
        let path = carrack.path("roots.car");
        fs::write(&path, bytes).unwrap();
        let started = Instant::now();
        carrack.run(&["import", "-Q", path.to_str().unwrap()]).ok();
        started.elapsed()
    };
    let (one, thousand) = (time(1), time(1000));
    let slack = Duration::from_secs(1);
    assert!(thousand < one * 3 + slack, "{one:?} {thousand:?}");
}

/// Forty levels with two links each: 41 blocks, or 2^40 of them with duplicates.
#[test]
fn a_diamond_with_duplicates_is_held_back_by_its_reader() {
    let carrack = Carrack::new();
    let leaf = Seeded::new(3).bytes(100_000);
    let (server, root) = served(&carrack, &tower(40, 2, leaf));
    let once = server.get(&format!("/ipfs/{root}?format=car")).ok();
    assert_eq!(cids_in(&once.body), 41);
    let before = server.peak_memory();
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
        let request = format!("GET /ipfs/{root}?format=car&car-dups=y HTTP/1.1\r\nhost: x\r\n\r\n");
        client.write_all(request.as_bytes()).unwrap();
        let mut start = vec![0; 16 << 20];
        client.read_exact(&mut start).unwrap();
        clients.push(client);
    }
    // Nobody reads any more, and others are answered.
    let until = Instant::now() + Duration::from_millis(500);
    while Instant::now() < until {
        server.get(&format!("/ipfs/{root}?format=raw")).ok();
    }
    let growth = server.peak_memory() - before;
    assert!(growth < GROWTH_MAX, "{growth}");
    drop(clients);
    server.get(&format!("/ipfs/{root}?format=car")).ok();
}

#[test]
fn a_chain_deeper_than_the_limit_is_cut() {
    let carrack = Carrack::new();
    let (server, root) = served(&carrack, &tower(3_000, 1, b"end".to_vec()));
    let answer = server.get(&format!("/ipfs/{root}?format=car"));
    assert!(answer.status >= 400 || !answer.whole, "{}", answer.status);
    server
        .get(&format!("/ipfs/{root}?format=car&dag-scope=block"))
        .ok();
    drop(server);
    let export = carrack.run(&[
        "export",
        &root,
        "-o",
        carrack.path("out.car").to_str().unwrap(),
    ]);
    assert_ne!(export.code(), 0);
    assert!(export.stderr.contains("1024"), "{}", export.stderr);
}

/// Sizes in a file's nodes are claims of whoever wrote them.
#[test]
fn files_that_lie_about_their_sizes_are_not_taken_for_whole() {
    let leaf = Seeded::new(4).bytes(50_000);
    for (claimed, filesize) in [(10, 20), (60_000, 120_000), (50_000, 7), (50_000, 1 << 60)] {
        let mut data = [vec![0x08, 2, 0x18], varint(filesize)].concat();
        for _ in 0..2 {
            data.extend([vec![0x20], varint(claimed)].concat());
        }
        let leaf_cid = raw_cid(&leaf);
        let root = pb(&[&leaf_cid, &leaf_cid], &data);
        let blocks = [(leaf_cid, leaf.clone()), (cid(0x70, &root), root)];
        let (bytes, root) = car(&blocks);
        let carrack = Carrack::new();
        let path = carrack.path("lying.car");
        fs::write(&path, bytes).unwrap();
        carrack.run(&["import", path.to_str().unwrap()]).ok();
        if filesize == 2 * claimed {
            let range = |range| carrack.run(&["cat", &root, "--range", range]);
            assert_eq!(range("0-9").ok().stdout, leaf[..10]);
            assert_ne!(range(&format!("{}-{claimed}", claimed - 1)).code(), 0);
        }
        let cat = carrack.run(&["cat", &root]);
        let both = [leaf.clone(), leaf.clone()].concat();
        assert!(
            cat.code() != 0 || cat.stdout == both,
            "{claimed} {filesize}: {}",
            cat.stdout.len()
        );
    }
}

const HOSTILE_NAME: &str = "a\r\nSet-Cookie: x=1\r\n\r\n\x1b[2J\u{202e}gpj.exe";

#[test]
fn hostile_names_break_neither_headers_nor_terminals() {
    let carrack = Carrack::new();
    let folder = carrack.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(HOSTILE_NAME), b"x").unwrap();
    let root = carrack.add_one(&folder);
    let harmless = |what: &str, text: &str| {
        let bad = |c: char| (c.is_control() && c != '\n' && c != '\t') || c == '\u{202e}';
        assert!(!text.contains(bad), "{what}: {text:?}");
        assert!(
            !text.lines().any(|line| line.starts_with("Set-Cookie")),
            "{what}"
        );
    };
    harmless("ls", carrack.run(&["ls", &root]).ok().text());
    let missing = carrack.run(&["cat", &format!("{root}/{HOSTILE_NAME}x")]);
    assert_ne!(missing.code(), 0);
    harmless("cat", &missing.stderr);
    harmless(
        "add",
        &carrack
            .run(&["add", folder.join(HOSTILE_NAME).to_str().unwrap()])
            .ok()
            .stderr,
    );

    let server = carrack.serve::<&str>(&[]);
    let escaped: String = HOSTILE_NAME
        .bytes()
        .map(|byte| format!("%{byte:02x}"))
        .collect();
    for query in [
        "format=car",
        "format=raw",
        &format!("format=car&filename={escaped}"),
    ] {
        let answer = server.get(&format!("/ipfs/{root}/{escaped}?{query}")).ok();
        assert!(answer.header("set-cookie").is_none(), "{query}");
        for name in ["x-ipfs-path", "content-disposition"] {
            let value = answer.header(name).unwrap();
            assert!(
                value.bytes().all(|byte| (b' '..=b'~').contains(&byte)),
                "{value:?}"
            );
        }
    }
    let absent = server.get(&format!("/ipfs/{root}/{escaped}x?format=raw"));
    assert_eq!(absent.status, 404);
    harmless("404", std::str::from_utf8(&absent.body).unwrap());
    let (_, log) = server.terminate();
    harmless("log", &log);
}

/// The decoder of base58 takes quadratic time: a long text must not come to it.
#[test]
fn a_cid_of_a_mebibyte_is_refused_at_once() {
    let carrack = Carrack::new();
    let server = carrack.serve::<&str>(&[]);
    for (len, statuses) in [(5_000, [400, 400]), (1 << 20, [414, 431])] {
        let started = Instant::now();
        let mut client = TcpStream::connect(server.url.strip_prefix("http://").unwrap()).unwrap();
        let cid = "Q".repeat(len);
        // The node may have answered and gone before all of it is written.
        let _ = write!(
            client,
            "GET /ipfs/{cid}?format=raw HTTP/1.1\r\nhost: x\r\n\r\n"
        );
        let mut start = [0; 12];
        client.read_exact(&mut start).unwrap();
        let status = std::str::from_utf8(&start[9..])
            .unwrap()
            .parse::<u16>()
            .unwrap();
        assert!(statuses.contains(&status), "{status}");
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}

/// HEAD promises what GET keeps, before and after the file behind it changed.
#[test]
fn head_tells_what_get_does() {
    let carrack = Carrack::new();
    let file = carrack.path("file");
    fs::write(&file, Seeded::new(9).bytes(300_000)).unwrap();
    let root = carrack.add_one(&file);
    let server = carrack.serve::<&str>(&[]);
    for is_changed in [false, true] {
        if is_changed {
            fs::write(&file, b"other").unwrap();
        }
        for query in ["format=raw", "format=car", "format=car&dag-scope=block"] {
            let path = format!("/ipfs/{root}?{query}");
            let get = server.get(&path);
            let head = http::request(&server.url, "HEAD", &path, &[]);
            assert_eq!(head.status, get.status, "{query} {is_changed}");
            assert_eq!(get.status == 200, !is_changed, "{query}");
            let name = carrack.dir().to_str().unwrap();
            assert!(
                !String::from_utf8_lossy(&get.body).contains(name),
                "{query} tells a path"
            );
            for name in ["etag", "content-type", "cache-control"] {
                assert_eq!(head.header(name), get.header(name), "{query} {name}");
            }
            if let Some(len) = head.header("content-length").filter(|_| !is_changed) {
                assert_eq!(len, get.body.len().to_string(), "{query}");
            }
        }
    }
}
