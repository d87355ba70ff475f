//! DAGs of other people: signed and git objects, codecs nobody knows, files that lie about their
//! sizes, names of any bytes, very many roots, very deep chains.
//!
//! In       CARs made by hand.
//! Out      what `cat`, `ls`, `export`, `verify` and the gateway say: all of it, or an error.
//! Not here the same CARs given to kubo (`peers::cars`).

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::car::{raw_cid, text, varint};
use crate::support::made::{self, Block};
use crate::support::{Carrack, http};

const NOT_FOUND: i32 = 3;
const LIMIT: i32 = 5;
const PARTIAL: i32 = 6;
const DAG_PB: u64 = 0x70;
const DAG_CBOR: u64 = 0x71;

/// Imports the blocks; the root, which is the first, as text.
fn import(carrack: &Carrack, blocks: &[Block]) -> String {
    let path = carrack.path("made.car");
    fs::write(&path, made::car(&[&blocks[0].cid], blocks)).unwrap();
    let args = ["import", "--allow-legacy-hashes", path.to_str().unwrap()];
    carrack.run(&args).ok();
    text(&blocks[0].cid)
}

fn export(carrack: &Carrack, target: &str, code: i32) -> Vec<Vec<u8>> {
    let out = carrack.path("out.car");
    let _ = fs::remove_file(&out);
    let args = ["export", target, "-o", out.to_str().unwrap()];
    carrack.run(&args).exits(code);
    made::cids_of(&fs::read(out).unwrap())
}

fn cids(blocks: &[Block]) -> Vec<Vec<u8>> {
    blocks.iter().map(|block| block.cid.clone()).collect()
}

#[test]
fn signed_and_git_objects_are_exported_verified_and_served_with_all_below_them() {
    for blocks in [made::jose(), made::git()] {
        let carrack = Carrack::new();
        let root = import(&carrack, &blocks);
        assert_eq!(export(&carrack, &root, 0), cids(&blocks));
        let verify = carrack.run(&["verify", "--json", &root]).ok().json();
        assert_eq!(verify[0]["blocks"], blocks.len());
        let server = carrack.serve::<&str>(&[]);
        let answer = server.get(&format!("/ipfs/{root}?format=car")).ok();
        assert_eq!(made::cids_of(&answer.body), cids(&blocks));
        // What is missing is an error, as for any other codec.
        let other = Carrack::new();
        let short = import(&other, &blocks[..blocks.len() - 1]);
        let out = other.path("out.car");
        let args = ["export", &short, "-o", out.to_str().unwrap()];
        other.run(&args).exits(NOT_FOUND);
        assert!(!out.exists());
        assert_ne!(other.run(&["verify", &short]).code(), 0);
    }
}

#[test]
fn a_codec_whose_links_are_unknown_is_named_by_export_and_verify() {
    let leaf = made::raw(b"leaf");
    let odd = made::block(0x90, b"\xc0".to_vec());
    let root = made::block(DAG_CBOR, made::list(&[&odd.cid, &leaf.cid]));
    let blocks = [root, odd, leaf];
    let carrack = Carrack::new();
    let root = import(&carrack, &blocks);
    assert_eq!(export(&carrack, &root, PARTIAL), cids(&blocks));
    let verify = carrack.run(&["verify", &root]).exits(PARTIAL);
    assert!(verify.stderr.contains("0x90"), "{}", verify.stderr);
    let all = carrack.run(&["verify", "--json"]).exits(PARTIAL).json();
    assert_eq!((&all[0]["bad"], &all[0]["unknown"]), (&0.into(), &1.into()));
    let args = ["export", "--dag-scope", "block", &text(&blocks[1].cid)];
    carrack.run(&args).ok();
    let server = carrack.serve::<&str>(&[]);
    let answer = server.get(&format!("/ipfs/{root}?format=car"));
    assert_eq!(answer.status, 501);
    assert!(String::from_utf8_lossy(&answer.body).contains("0x90"));
    let odd = text(&blocks[1].cid);
    server
        .get(&format!("/ipfs/{odd}?format=car&dag-scope=block"))
        .ok();
}

/// `hello ` and `world` below a node with these sizes.
fn file(sizes: &[u64], filesize: Option<u64>) -> Vec<Block> {
    let leaves = [made::raw(b"hello "), made::raw(b"world")];
    let mut data = vec![0x08, 2];
    if let Some(filesize) = filesize {
        data.extend([vec![0x18], varint(filesize)].concat());
    }
    for size in sizes {
        data.extend([vec![0x20], varint(*size)].concat());
    }
    let links: Vec<(&[u8], &[u8])> = leaves
        .iter()
        .map(|leaf| (&b""[..], &leaf.cid[..]))
        .collect();
    let root = made::block(DAG_PB, made::pb(&links, &data));
    [vec![root], leaves.to_vec()].concat()
}

/// Never a part of the file with a clean end: all of it, or an error.
#[test]
fn files_whose_sizes_do_not_fit_are_read_whole_or_not() {
    for (sizes, filesize) in [
        (&[6, 5][..], Some(11)),
        (&[6, 5], None),
        (&[0, 0], Some(0)),
        (&[0, 0], None),
        (&[6, 0], Some(6)),
        (&[0, 5], Some(5)),
        (&[6, 0], Some(11)),
        (&[], Some(11)),
        (&[6], Some(11)),
        (&[6, 5, 0], Some(11)),
        (&[6, 5], Some(5)),
        (&[6, 5], Some(0)),
        (&[5, 6], Some(11)),
    ] {
        let carrack = Carrack::new();
        let blocks = file(sizes, filesize);
        let root = import(&carrack, &blocks);
        let is_sound = sizes.iter().sum::<u64>() == 11 && sizes.len() == 2;
        let is_sound = is_sound && filesize.is_none_or(|size| size == 11);
        let cat = carrack.run(&["cat", &root]);
        if is_sound {
            assert_eq!(cat.ok().stdout, b"hello world", "{sizes:?} {filesize:?}");
        } else {
            assert_ne!(cat.code(), 0, "{sizes:?} {filesize:?}");
        }
        assert_eq!(export(&carrack, &root, 0).len(), 3);
        carrack.run(&["verify", &root]).ok();
        let server = carrack.serve::<&str>(&[]);
        let path = format!("/ipfs/{root}?format=car&entity-bytes=0:*");
        let answer = server.get(&path);
        let is_whole = answer.status == 200 && answer.whole;
        let n_blocks = is_whole.then(|| made::cids_of(&answer.body).len());
        assert!(n_blocks.is_none_or(|n| n == 3), "{sizes:?} {filesize:?}");
        assert!(n_blocks.is_some() || !is_sound);
    }
}

#[test]
fn names_that_are_not_utf_8_are_asked_for_by_path_and_command_line() {
    let leaves = [made::raw(b"one"), made::raw(b"two")];
    let links = [
        (&b"caf\xe9"[..], &leaves[0].cid[..]),
        (b"d", &leaves[1].cid),
    ];
    let inner = made::block(DAG_PB, made::pb(&links, &[8, 1]));
    let root = made::block(DAG_PB, made::pb(&[(b"\xff", &inner.cid)], &[8, 1]));
    let blocks = [vec![root, inner], leaves.to_vec()].concat();
    let carrack = Carrack::new();
    let root = import(&carrack, &blocks);
    let named = |tail: &[u8]| OsString::from_vec([root.as_bytes(), b"/", tail].concat());
    let cat = |tail: &[u8]| carrack.run(&["cat".into(), named(tail)]);
    assert_eq!(cat(b"\xff/caf\xe9").ok().stdout, b"one");
    assert_eq!(cat(b"\xff/./d/../caf\xe9").ok().stdout, b"one");
    cat(b"\xff/caf\xe8").exits(NOT_FOUND);
    cat(b"../x").exits(2);
    let listed = carrack.run(&["ls".into(), "--json".into(), named(b"\xff")]);
    let listed = listed.ok().json();
    let segment = listed[0]["segment"].as_str().unwrap();
    assert_eq!(segment, "caf%E9");
    let url = format!("ipfs://{root}/%FF/{segment}");
    assert_eq!(carrack.run(&["cat", &url]).ok().stdout, b"one");
    let out = carrack.path("out.car");
    let args = [
        "export".into(),
        named(b"\xff/caf\xe9"),
        "-o".into(),
        out.clone().into_os_string(),
    ];
    carrack.run(&args).ok();
    assert_eq!(made::cids_of(&fs::read(&out).unwrap()).len(), 3);

    // The same commands while a node runs, which gets them over its socket.
    let server = carrack.serve::<&str>(&[]);
    assert_eq!(cat(b"\xff/caf\xe9").ok().stdout, b"one");
    let escaped = format!("%62{}", &root[1..]);
    for path in [
        format!("{root}/%FF/caf%E9"),
        format!("{escaped}/%ff/caf%e9"),
        format!("{root}/x/../%FF/%2e/caf%E9"),
    ] {
        let answer = server.get(&format!("/ipfs/{path}?format=raw")).ok();
        assert_eq!(answer.body, b"one", "{path}");
        let shown = answer.header("x-ipfs-path");
        assert_eq!(shown, Some(&*format!("/ipfs/{root}/%FF/caf%E9")));
        let car = server.get(&format!("/ipfs/{path}?format=car")).ok();
        assert_eq!(made::cids_of(&car.body).len(), 3);
        let name = car.header("content-disposition").unwrap();
        assert!(name.is_ascii(), "{name}");
    }
    for (path, status) in [
        ("%FF/caf%25E9", 404),
        ("%FF%2Fcaf%E9", 404),
        ("%FF/%00", 404),
        ("..", 400),
        ("%2e%2e", 400),
        ("%FF/../../x", 400),
    ] {
        let answer = server.get(&format!("/ipfs/{root}/{path}?format=raw"));
        assert_eq!(answer.status, status, "{path}");
    }
}

#[test]
fn a_car_of_very_many_roots_is_taken_or_refused_by_its_limit() {
    let carrack = Carrack::new();
    let blocks: Vec<Block> = (0..1500_u32).map(|n| made::raw(&n.to_le_bytes())).collect();
    let roots: Vec<&[u8]> = blocks.iter().map(|block| &block.cid[..]).collect();
    let path = carrack.path("roots.car");
    fs::write(&path, made::car(&roots, &blocks)).unwrap();
    let path = path.to_str().unwrap();
    let imported = carrack.run(&["import", "-Q", path]).ok().words();
    assert_eq!(imported.len(), 1500);
    assert_eq!(carrack.run(&["ls", "--json"]).ok().json().len(), 1500);
    let last = text(&blocks[1499].cid);
    let cat = carrack.run(&["cat", &last]).ok();
    assert_eq!(cat.stdout, 1499_u32.to_le_bytes());

    let tiny = [1, 0x55, 0, 0];
    let roots = vec![&tiny[..]; 25_001];
    fs::write(path, made::car(&roots, &[])).unwrap();
    let refused = carrack.run(&["import", path]).exits(LIMIT);
    assert!(refused.stderr.contains("25000 roots"), "{}", refused.stderr);
}

/// Places of which one is a padded CAR.
fn good_and_padded(carrack: &Carrack) -> [PathBuf; 2] {
    let [good, padded] = [b"good", b"padd"].map(|data| made::raw(data));
    let write = |name: &str, block: &Block, tail: &[u8]| {
        let path = carrack.path(name);
        let car = made::car(&[&block.cid], std::slice::from_ref(block));
        fs::write(&path, [&car[..], tail].concat()).unwrap();
        path
    };
    [
        write("good.car", &good, b""),
        write("padded.car", &padded, &[0; 200]),
    ]
}

#[test]
fn serve_serves_what_is_good_and_names_what_is_not() {
    let carrack = Carrack::new();
    let [good, padded] = good_and_padded(&carrack);
    let served = [text(&raw_cid(b"good")), text(&raw_cid(b"padd"))];
    let raw = |cid: &str| format!("/ipfs/{cid}?format=raw");
    for places in [[&padded, &good], [&good, &padded]] {
        let server = carrack.serve(&places);
        server.get(&raw(&served[0])).ok();
        assert_eq!(server.get(&raw(&served[1])).status, 404);
        let (status, log) = server.terminate();
        assert_eq!(status.code(), Some(PARTIAL), "{log}");
        assert!(
            log.contains("padded.car") && log.contains("--allow-padding"),
            "{log}"
        );
        assert!(log.contains("1 of 2 places"), "{log}");
    }
    // A place alone that is none ends it, as before.
    let args = ["serve", "--p2p", "off", "--listen", "127.0.0.1:0"];
    let mut alone: Vec<OsString> = args.iter().map(OsString::from).collect();
    alone.push(padded.clone().into());
    carrack.run(&alone).exits(4);

    let places: [OsString; 3] = ["--allow-padding".into(), good.into(), padded.into()];
    let server = carrack.serve(&places);
    for cid in &served {
        server.get(&raw(cid)).ok();
    }
    assert_eq!(server.terminate().0.code(), Some(0));
}

/// The switch that would help is in the error, and no other.
#[test]
fn errors_name_the_switch_that_helps() {
    let carrack = Carrack::new();
    let [_, padded] = good_and_padded(&carrack);
    let git = carrack.path("git.car");
    let blocks = made::git();
    fs::write(&git, made::car(&[&blocks[0].cid], &blocks)).unwrap();
    let big = carrack.path("big.car");
    let block = made::raw(&vec![7; 3 << 20]);
    let car = made::car(&[&block.cid], std::slice::from_ref(&block));
    fs::write(&big, car).unwrap();
    let huge = carrack.path("huge.car");
    let block = made::raw(&vec![7; 9 << 20]);
    let car = made::car(&[&block.cid], std::slice::from_ref(&block));
    fs::write(&huge, car).unwrap();
    for (path, switch) in [
        (&padded, "--allow-padding"),
        (&git, "--allow-legacy-hashes"),
        (&big, "--allow-big-blocks"),
        (&huge, ""),
    ] {
        let path = path.to_str().unwrap();
        let refused = carrack.run(&["import", path]).exits(4);
        let n_named = refused.stderr.matches("--allow-").count();
        assert_eq!(
            n_named,
            usize::from(!switch.is_empty()),
            "{}",
            refused.stderr
        );
        assert!(refused.stderr.contains(switch), "{}", refused.stderr);
        if !switch.is_empty() {
            carrack.run(&["import", switch, path]).ok();
        }
    }
}

/// The depth of a DAG is a limit with a name, and costs no memory up to it.
#[test]
fn a_chain_of_many_levels_ends_by_a_limit_that_is_named() {
    const N_LEVELS: usize = 20_000;
    let chains: [fn(&[u8]) -> Block; 2] = [
        |below| made::block(DAG_CBOR, made::list(&[below])),
        |below| {
            let data = [8, 2, 0x18, 4, 0x20, 4];
            made::block(DAG_PB, made::pb(&[(b"", below)], &data))
        },
    ];
    for chained in chains {
        let mut blocks = vec![made::raw(b"leaf")];
        for _ in 0..N_LEVELS {
            let below = blocks.last().unwrap().cid.clone();
            blocks.push(chained(&below));
        }
        blocks.reverse();
        let carrack = Carrack::new();
        let root = import(&carrack, &blocks);
        let limit = |outcome: crate::support::Outcome| {
            let outcome = outcome.exits(LIMIT);
            assert!(outcome.stderr.contains("1024 levels"), "{}", outcome.stderr);
        };
        let out = carrack.path("out.car");
        limit(carrack.run(&["export", &root, "-o", out.to_str().unwrap()]));
        assert!(!out.exists());
        limit(carrack.run(&["verify", &root]));
        let server = carrack.serve::<&str>(&[]);
        let before = server.peak_memory();
        let path = format!("/ipfs/{root}?format=car");
        let answer = server.get(&path);
        assert!(answer.status >= 400 || !answer.whole);
        let accept = ("Accept", "application/vnd.ipld.car;meta=eof+json");
        let answer = http::request(&server.url, "GET", &format!("/ipfs/{root}"), &[accept]);
        let said = match answer.status {
            200 => {
                let end = answer.body.iter().rposition(|&byte| byte == 0).unwrap();
                let trailer: Value = serde_json::from_slice(&answer.body[end + 1..]).unwrap();
                trailer["error"].as_str().unwrap().to_owned()
            }
            _ => String::from_utf8(answer.body).unwrap(),
        };
        assert!(said.contains("1024 levels"), "{said}");
        let growth = server.peak_memory() - before;
        assert!(growth < 32 << 20, "{growth}");
    }
}

/// Waiting does not help, so nobody is told to. The limit comes within the first blocks: two of
/// three levels lie in CIDs.
#[test]
fn a_chain_that_is_too_deep_is_no_429() {
    let inside = |below: &[u8]| {
        let list = made::list(&[below]);
        [&[1, 0x71, 0, u8::try_from(list.len()).unwrap()], &list[..]].concat()
    };
    let mut blocks = vec![made::raw(b"leaf")];
    for _ in 0..400 {
        let below = inside(&inside(&blocks.last().unwrap().cid));
        blocks.push(made::block(DAG_CBOR, made::list(&[&below])));
    }
    blocks.reverse();
    let carrack = Carrack::new();
    let root = import(&carrack, &blocks);
    let server = carrack.serve::<&str>(&[]);
    let answer = server.get(&format!("/ipfs/{root}?format=car"));
    let said = String::from_utf8_lossy(&answer.body);
    assert_eq!(answer.status, 501, "{said}");
    assert!(said.contains("1024 levels"), "{said}");
    assert_eq!(answer.header("retry-after"), None);
    drop(server);
    let out = carrack.path("out.car");
    let out = out.to_str().unwrap();
    for args in [&["export", &root, "-o", out][..], &["verify", &root]] {
        carrack.run(args).exits(LIMIT);
    }
}

/// A history is as deep as it is long.
#[test]
fn a_history_of_many_commits_is_whole() {
    let tree = made::git_object("tree", b"");
    let mut blocks = vec![tree.clone()];
    let mut parent = None;
    for _ in 0..5_000 {
        let commit = made::commit(&tree, parent.as_ref());
        parent = Some(commit.clone());
        blocks.push(commit);
    }
    blocks.reverse();
    let carrack = Carrack::new();
    let root = import(&carrack, &blocks);
    assert_eq!(export(&carrack, &root, 0).len(), blocks.len());
    carrack.run(&["verify", &root]).ok();
    let server = carrack.serve::<&str>(&[]);
    let answer = server.get(&format!("/ipfs/{root}?format=car")).ok();
    assert_eq!(made::cids_of(&answer.body).len(), blocks.len());
}
