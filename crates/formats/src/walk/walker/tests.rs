use std::collections::{HashMap, HashSet};

use ::cid::Version;
use proptest::prelude::*;
use sha1::Digest as _;

use super::*;
use crate::cid::{DAG_CBOR, DAG_JSON, RAW, from_sha256, parse_text, read_prefix};
use crate::dag::pb::{PbLink, encode};
use crate::unixfs::build::{FileBuilder, Leaf};
use crate::unixfs::dir::{self, Entry};
use crate::unixfs::node::{file_head, put_blocksize, shard};
use crate::unixfs::profile::UNIXFS_V1_2025;
use crate::walk::{ResolveStep, Resolver};
use crate::{varint, verify};

type Blocks = HashMap<Cid, Bytes>;

/// The blocks of `vectors/fixtures.car`.
fn fixtures() -> Blocks {
    let car = include_bytes!("../../../tests/vectors/fixtures.car");
    let mut rest = &car[..];
    let mut section = || {
        let (len, len_len) = varint::read(rest).unwrap()?;
        let (section, after) = rest[len_len..].split_at(len as usize);
        rest = after;
        Some(section)
    };
    section().unwrap();
    let mut blocks = Blocks::new();
    while let Some(section) = section() {
        let (cid, cid_len) = read_prefix(section).unwrap().unwrap();
        verify::verify(&cid, &section[cid_len..]).unwrap();
        blocks.insert(cid, Bytes::copy_from_slice(&section[cid_len..]));
    }
    blocks
}

/// Puts a block into `blocks`.
fn put(blocks: &mut Blocks, codec: u64, block: impl Into<Bytes>) -> Cid {
    let block = block.into();
    let cid = from_sha256(Version::V1, codec, &verify::sha256(&block));
    blocks.insert(cid, block);
    cid
}

/// A dag-pb block without data that links to `children`.
fn node(blocks: &mut Blocks, children: &[Cid]) -> Cid {
    let cids: Vec<Vec<u8>> = children.iter().map(|cid| cid.to_bytes()).collect();
    let mut links: Vec<PbLink<'_>> = cids
        .iter()
        .map(|cid| PbLink {
            cid,
            name: b"",
            tsize: Some(1),
        })
        .collect();
    let block = encode(&mut links, None);
    put(blocks, DAG_PB, block)
}

/// A file node over `children`, each with the block size beside it.
fn file(blocks: &mut Blocks, children: &[(Cid, u64)]) -> Cid {
    let mut data = file_head(children.iter().map(|(_, size)| size).sum());
    children
        .iter()
        .for_each(|(_, size)| put_blocksize(&mut data, *size));
    let cids: Vec<Vec<u8>> = children.iter().map(|(cid, _)| cid.to_bytes()).collect();
    let mut links: Vec<PbLink<'_>> = cids
        .iter()
        .map(|cid| PbLink {
            cid,
            name: b"",
            tsize: Some(1),
        })
        .collect();
    let block = encode(&mut links, Some(&data));
    put(blocks, DAG_PB, block)
}

fn resolve(blocks: &Blocks, root: Cid, path: &[&str]) -> Result<Resolved, (WalkError, Vec<Cid>)> {
    let segments: Vec<&str> = path.to_vec();
    let mut resolver =
        Resolver::new(root, segments, super::super::ResolveLimits::default()).unwrap();
    loop {
        let step = resolver.next().and_then(|step| match step {
            ResolveStep::Done(resolved) => Ok(Some(resolved)),
            ResolveStep::Need(cid) => resolver.provide(&cid, &blocks[&cid]).map(|()| None),
        });
        match step {
            Ok(None) => {}
            Ok(Some(resolved)) => return Ok(resolved),
            Err(error) => return Err((error, resolver.blocks_read().to_vec())),
        }
    }
}

/// Runs a walk to its end: what was sent, and how many blocks were loaded.
fn run(walker: &mut Walker, blocks: &Blocks) -> Result<(Vec<Cid>, usize), WalkError> {
    let mut sent = Vec::new();
    let mut n_loaded = 0;
    loop {
        match walker.next()? {
            Step::End => return Ok((sent, n_loaded)),
            Step::Leaf(cid) => sent.push(cid),
            Step::Need { cid, emit } => {
                if emit {
                    sent.push(cid);
                }
                n_loaded += 1;
                walker.provide(&cid, blocks[&cid].clone())?;
            }
        }
    }
}

fn walk(
    blocks: &Blocks,
    root: Cid,
    scope: Scope,
    range: Option<&str>,
    dups: bool,
) -> Result<Vec<Cid>, WalkError> {
    let range = range.map(|range| range.parse().unwrap());
    let mut walker = Walker::new(
        &Resolved::root(root),
        scope,
        range,
        dups,
        WalkLimits::default(),
    );
    run(&mut walker, blocks).map(|(sent, _)| sent)
}

/// Every CAR request of the vectors, with the CIDs it is answered with in order.
#[test]
fn all_recorded_requests_are_answered_in_order() {
    let blocks = fixtures();
    let cases = include_str!("../../../tests/vectors/car_cases.json");
    let cases: serde_json::Value = serde_json::from_str(cases).unwrap();
    let cases = cases.as_array().unwrap();
    assert_eq!(cases.len(), 26);
    for case in cases {
        let request = case["request"].as_str().unwrap();
        let want: Vec<Cid> = case["blocks"]
            .as_array()
            .unwrap()
            .iter()
            .map(|cid| parse_text(cid.as_str().unwrap()).unwrap())
            .collect();
        let (path, query) = request.split_once(['?', ' ']).unwrap();
        let mut segments = path.strip_prefix("/ipfs/").unwrap().split('/');
        let root = parse_text(segments.next().unwrap()).unwrap();
        let segments: Vec<&str> = segments.collect();
        let param = |name: &str| {
            let rest = query.split_once(name)?.1;
            rest.split(['&', ';', ' ']).next()
        };
        let scope = match param("dag-scope=") {
            None | Some("all") => Scope::All,
            Some("entity") => Scope::Entity,
            Some("block") => Scope::Block,
            Some(other) => panic!("{other}"),
        };
        let range = param("entity-bytes=").map(|range| range.parse().unwrap());
        let dups = param("dups=") == Some("y");
        let sent = match resolve(&blocks, root, &segments) {
            Ok(resolved) => {
                let mut walker = Walker::new(&resolved, scope, range, dups, WalkLimits::default());
                run(&mut walker, &blocks).unwrap().0
            }
            Err((
                WalkError::NotFound {
                    segment,
                    index: 1,
                    last,
                },
                read,
            )) => {
                assert_eq!(segment, "i-do-not-exist");
                assert_eq!(*last, want[1]);
                read
            }
            Err((error, _)) => panic!("{request}: {error}"),
        };
        assert_eq!(sent, want, "{request}");
    }
}

/// Paths into and through documents: `(path, blocks on the way, whether it ends inside)`.
#[test]
fn paths_lead_through_documents() {
    let blocks = fixtures();
    let root = parse_text("bafybeia264q44a3kmfc2otctzu4egp2k235o3t7mslz2yjraymp4nv6asi").unwrap();
    let document = resolve(&blocks, root, &["document"]).unwrap().terminus;
    assert_eq!(document.codec(), DAG_CBOR);
    let single = resolve(&blocks, document, &["files", "single"]).unwrap();
    assert_eq!(single.terminus.codec(), RAW);
    assert_eq!(single.path_blocks, [document]);
    assert_eq!(single.roots, [document, document, single.terminus]);
    assert!(!single.remainder);
    let limits = WalkLimits::default();
    let mut walker = Walker::new(&single, Scope::All, None, false, limits);
    assert_eq!(
        run(&mut walker, &blocks).unwrap().0,
        [document, single.terminus]
    );

    let inside = resolve(&blocks, root, &["document", "files"]).unwrap();
    assert_eq!((inside.terminus, inside.remainder), (document, true));
    assert_eq!(inside.path_blocks, [root]);
    assert_eq!(inside.roots, [root, document, document]);
    let sent = |scope| {
        let mut walker = Walker::new(&inside, scope, None, false, limits);
        run(&mut walker, &blocks).unwrap().0
    };
    assert_eq!(sent(Scope::Entity), [root, document]);
    assert_eq!(sent(Scope::Block), [root, document]);
    assert!(sent(Scope::All).contains(&single.terminus));

    let (error, read) = resolve(&blocks, root, &["document", "files", "none"]).unwrap_err();
    let WalkError::NotFound {
        segment,
        index,
        last,
    } = error
    else {
        panic!("{error}")
    };
    assert_eq!((segment.as_str(), index, *last), ("none", 2, document));
    assert_eq!(read, [root, document]);
}

#[test]
fn a_missing_block_is_asked_for_in_its_place() {
    let blocks = fixtures();
    let root = parse_text("QmYhmPjhFjYFyaoiuNzYv8WGavpSRDwdHWe5B4M5du5Rtk").unwrap();
    let limits = WalkLimits::default();
    let mut walker = Walker::new(&Resolved::root(root), Scope::All, None, false, limits);
    let mut steps = Vec::new();
    while let Step::Need { cid, emit: true } = walker.next().unwrap() {
        let Some(block) = blocks.get(&cid) else {
            let again = walker.next().unwrap();
            assert_eq!(again, Step::Need { cid, emit: true }, "until it is given");
            break;
        };
        steps.push(cid);
        walker.provide(&cid, block.clone()).unwrap();
    }
    assert_eq!(steps.len(), 2, "the root and the first of three children");
}

/// Each block of the fixtures, damaged in every byte, is walked in every scope.
#[test]
fn damaged_fixtures_never_panic() {
    let blocks = fixtures();
    for (cid, block) in blocks.iter().filter(|(_, block)| block.len() < 400) {
        for at in 0..block.len() {
            let mut damaged = block.to_vec();
            damaged[at] ^= 1 << (at % 8);
            let damaged = Bytes::from(damaged);
            for (scope, range) in [
                (Scope::All, None),
                (Scope::Entity, None),
                (Scope::Entity, Some("1:-2")),
            ] {
                let range = range.map(|range| range.parse().unwrap());
                let limits = WalkLimits::default();
                let mut walker = Walker::new(&Resolved::root(*cid), scope, range, true, limits);
                while let Ok(Step::Need { cid: asked, .. }) = walker.next() {
                    if asked != *cid || walker.provide(&asked, damaged.clone()).is_err() {
                        break;
                    }
                }
            }
        }
    }
}

#[test]
fn identity_cids_are_walked_through_but_never_sent() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b"leaf"[..]);
    let cid = leaf.to_bytes();
    let inner = encode(
        &mut [PbLink {
            cid: &cid,
            name: b"in",
            tsize: None,
        }],
        None,
    );
    let identity =
        |codec, data: &[u8]| Cid::new_v1(codec, crate::Multihash::wrap(0, data).unwrap());
    let inner = identity(DAG_PB, &inner);
    let root = node(
        &mut blocks,
        &[identity(RAW, b"text"), inner, identity(RAW, b"")],
    );
    for dups in [false, true] {
        assert_eq!(
            walk(&blocks, root, Scope::All, None, dups),
            Ok(vec![root, leaf])
        );
        assert_eq!(walk(&blocks, inner, Scope::All, None, dups), Ok(vec![leaf]));
        assert_eq!(
            walk(&blocks, identity(RAW, b"x"), Scope::All, None, dups),
            Ok(vec![])
        );
    }
    let resolved = resolve(&blocks, inner, &["in"]).unwrap();
    assert_eq!(
        (resolved.terminus, resolved.path_blocks),
        (leaf, vec![inner])
    );
}

/// A block that links to one.
type Chained = fn(&Cid) -> Bytes;

fn pb_chained(next: &Cid) -> Bytes {
    let cid = next.to_bytes();
    let link = PbLink {
        cid: &cid,
        name: b"",
        tsize: None,
    };
    encode(&mut [link], None).into()
}

fn cbor_chained(next: &Cid) -> Bytes {
    let cid = next.to_bytes();
    let head = [0x81, 0xd8, 42, 0x58, cid.len() as u8 + 1, 0];
    [&head[..], &cid].concat().into()
}

fn file_chained(next: &Cid) -> Bytes {
    let mut data = file_head(5);
    put_blocksize(&mut data, 5);
    let cid = next.to_bytes();
    let link = PbLink {
        cid: &cid,
        name: b"",
        tsize: None,
    };
    encode(&mut [link], Some(&data)).into()
}

fn git_chained(next: &Cid) -> Bytes {
    let name = next.hash().digest().iter();
    let name: String = name.map(|byte| format!("{byte:02x}")).collect();
    let body = format!("tree {name}\n\nmessage");
    format!("commit {}\0{body}", body.len()).into()
}

/// A chain without end: each block links to one that is made up when it is asked for.
fn walk_chain(n_blocks: u32, limits: WalkLimits) -> (u32, Option<WalkError>) {
    let make = |root| Walker::new(&Resolved::root(root), Scope::All, None, false, limits);
    chain(n_blocks, DAG_PB, pb_chained, make)
}

/// The same with any walk over any codec.
fn chain(
    n_blocks: u32,
    codec: u64,
    block: Chained,
    make: impl FnOnce(Cid) -> Walker,
) -> (u32, Option<WalkError>) {
    let cid = |n: u32| {
        let mut digest = [0; 20];
        digest[..4].copy_from_slice(&n.to_le_bytes());
        Cid::new_v1(codec, crate::Multihash::wrap(cid::SHA1, &digest).unwrap())
    };
    let mut walker = make(cid(0));
    for n_loaded in 0..n_blocks {
        match walker.next() {
            Ok(Step::Need { cid: asked, .. }) => assert_eq!(asked, cid(n_loaded)),
            Ok(step) => panic!("{step:?}"),
            Err(error) => {
                assert_eq!(
                    walker.next(),
                    Err(WalkError::Failed),
                    "it never seems to end well"
                );
                return (n_loaded, Some(error));
            }
        }
        let next = block(&cid(n_loaded + 1));
        walker.provide(&cid(n_loaded), next).unwrap();
        assert!(
            walker.stack.len() <= 1,
            "a node with one link is not held open"
        );
    }
    (n_blocks, None)
}

/// With a limit that allows it, a walk of a million levels holds one block; without it ends in an
/// error that names the limit.
#[test]
fn a_chain_of_a_million_blocks_is_walked_in_the_memory_of_one() {
    let n = 1_000_000;
    for depth_max in [1024, u32::MAX] {
        let limits = WalkLimits {
            depth_max,
            ..WalkLimits::default()
        };
        let range = "0:*".parse().unwrap();
        let all = |root| Walker::new(&Resolved::root(root), Scope::All, None, true, limits);
        let file = |root| Walker::read_file(root, Some(range), limits);
        for (n_loaded, error) in [
            chain(n, DAG_PB, pb_chained, all),
            chain(n, DAG_CBOR, cbor_chained, all),
            chain(n, DAG_PB, file_chained, file),
        ] {
            match error {
                None => assert_eq!((n_loaded, depth_max), (n, u32::MAX)),
                Some(WalkError::TooDeep { limit, .. }) => {
                    assert_eq!((n_loaded, limit), (1025, 1024));
                }
                Some(error) => panic!("{error}"),
            }
        }
    }
}

/// The length of a history is no reason to refuse it.
#[test]
fn a_history_of_a_million_commits_is_walked_whole() {
    let limits = WalkLimits::default();
    let all = |root| Walker::new(&Resolved::root(root), Scope::All, None, true, limits);
    let n = 1_000_000;
    assert_eq!(chain(n, GIT_RAW, git_chained, all), (n, None));
}

#[test]
fn a_long_chain_ends_at_the_depth_limit() {
    let (n_loaded, error) = walk_chain(1_000_000, WalkLimits::default());
    assert!(matches!(
        error,
        Some(WalkError::TooDeep { limit: 1024, .. })
    ));
    assert_eq!(n_loaded, 1025);
    let limits = WalkLimits {
        depth_max: u32::MAX,
        ..WalkLimits::default()
    };
    assert_eq!(walk_chain(1_000_000, limits), (1_000_000, None));
}

/// As before with two children a node, so that nodes stay open.
#[test]
fn open_nodes_are_bounded_in_number_and_bytes() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b""[..]);
    let mut cid = leaf;
    for _ in 0..2000 {
        cid = node(&mut blocks, &[cid, leaf]);
    }
    let root = Resolved::root(cid);
    let block_len = blocks[&cid].len();
    let limits = WalkLimits::default();
    let mut walker = Walker::new(&root, Scope::All, None, true, limits);
    assert!(matches!(
        run(&mut walker, &blocks),
        Err(WalkError::TooDeep { .. })
    ));
    assert_eq!(walker.stack_bytes, 1025 * block_len);
    let limit = 100 * (block_len + size_of::<Frame>());
    let limits = WalkLimits {
        stack_bytes_max: limit,
        ..limits
    };
    let mut walker = Walker::new(&root, Scope::All, None, true, limits);
    assert_eq!(
        run(&mut walker, &blocks),
        Err(WalkError::StackTooLarge { limit })
    );
    assert_eq!(walker.stack.len(), 100, "the places in the blocks count");
    let limits = WalkLimits {
        depth_max: 5000,
        ..WalkLimits::default()
    };
    let mut walker = Walker::new(&root, Scope::All, None, true, limits);
    assert_eq!(run(&mut walker, &blocks).unwrap().0.len(), 4001);
    assert_eq!(walker.stack_bytes, 0, "what was held is let go");
}

#[test]
fn a_diamond_is_visited_once_without_duplicates() {
    let mut blocks = Blocks::new();
    let mut cid = put(&mut blocks, RAW, &b"bottom"[..]);
    for _ in 0..30 {
        cid = node(&mut blocks, &[cid, cid]);
    }
    let limits = WalkLimits::default();
    let mut walker = Walker::new(&Resolved::root(cid), Scope::All, None, false, limits);
    let (sent, n_loaded) = run(&mut walker, &blocks).unwrap();
    assert_eq!((sent.len(), n_loaded), (31, 30));
    // With duplicates it is 2^31 - 1 blocks: the caller's budget ends it, memory does not grow.
    let mut walker = Walker::new(&Resolved::root(cid), Scope::All, None, true, limits);
    for _ in 0..10_000 {
        if let Step::Need { cid, .. } = walker.next().unwrap() {
            walker.provide(&cid, blocks[&cid].clone()).unwrap();
        }
        assert!(walker.stack.len() <= 30);
    }
}

#[test]
fn blocks_to_remember_are_limited() {
    let mut blocks = Blocks::new();
    let leaves: Vec<Cid> = (0..20_u8).map(|n| put(&mut blocks, RAW, vec![n])).collect();
    let root = node(&mut blocks, &leaves);
    let limits = WalkLimits {
        visited_max: 10,
        ..WalkLimits::default()
    };
    let mut walker = Walker::new(&Resolved::root(root), Scope::All, None, false, limits);
    assert_eq!(
        run(&mut walker, &blocks),
        Err(WalkError::TooManyBlocks { limit: 10 })
    );
    let mut walker = Walker::new(&Resolved::root(root), Scope::All, None, true, limits);
    assert_eq!(run(&mut walker, &blocks).unwrap().0.len(), 21);
}

#[test]
fn a_block_full_of_links_is_walked_in_place() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b""[..]);
    let n_links = 2 * 1024 * 1024 / 44;
    let wide = node(&mut blocks, &vec![leaf; n_links]);
    assert_eq!(
        walk(&blocks, wide, Scope::All, None, false),
        Ok(vec![wide, leaf])
    );
    let sent = walk(&blocks, wide, Scope::All, None, true).unwrap();
    assert_eq!(sent.len(), 1 + n_links);
}

#[test]
fn malformed_blocks_end_the_walk() {
    let mut blocks = Blocks::new();
    let malformed = put(&mut blocks, DAG_PB, &[0xff][..]);
    let no_cid = put(&mut blocks, DAG_PB, &[0x12, 3, 0x0a, 1, 9][..]);
    for scope in [Scope::All, Scope::Entity] {
        let error = walk(&blocks, malformed, scope, None, false).unwrap_err();
        assert!(matches!(error, WalkError::Block { .. }));
    }
    let error = walk(&blocks, no_cid, Scope::All, None, false).unwrap_err();
    assert!(matches!(error, WalkError::Link { .. }));
    // Asked for without what is below them they are blocks like any other.
    assert_eq!(
        walk(&blocks, malformed, Scope::Block, None, false),
        Ok(vec![malformed])
    );
    assert_eq!(
        walk(&blocks, no_cid, Scope::Entity, None, false),
        Ok(vec![no_cid])
    );
}

#[test]
fn unsound_files_are_refused() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b"12345"[..]);
    let cid = leaf.to_bytes();
    let mut bad = |sizes: &[u64], filesize: u64, n_links: usize| {
        let mut data = file_head(filesize);
        sizes
            .iter()
            .for_each(|size| put_blocksize(&mut data, *size));
        let mut links = vec![
            PbLink {
                cid: &cid,
                name: b"",
                tsize: None
            };
            n_links
        ];
        put(&mut blocks, DAG_PB, encode(&mut links, Some(&data)))
    };
    let counts = [
        bad(&[5], 5, 2),
        bad(&[5, 5], 10, 1),
        bad(&[], 5, 1),
        bad(&[5], 5, 0),
    ];
    let overflow = bad(&[u64::MAX, 1], 5, 2);
    let lie = bad(&[5, 5], 1, 2);
    for root in counts {
        for range in [None, Some("0:*"), Some("0:1")] {
            let error = walk(&blocks, root, Scope::Entity, range, false).unwrap_err();
            assert!(
                matches!(error, WalkError::File { .. }),
                "{range:?}: {error}"
            );
            let over = file(&mut blocks, &[(root, 5)]);
            let error = walk(&blocks, over, Scope::Entity, range, false).unwrap_err();
            assert!(
                matches!(error, WalkError::File { .. }),
                "{range:?}: {error}"
            );
        }
    }
    // What cannot be UnixFS is served as a block, but is no part of a file.
    assert_eq!(
        walk(&blocks, overflow, Scope::Entity, None, false),
        Ok(vec![overflow])
    );
    let over = file(&mut blocks, &[(overflow, 5)]);
    let error = walk(&blocks, over, Scope::Entity, None, false).unwrap_err();
    assert!(matches!(error, WalkError::UnixFs { .. }), "{error}");
    // A file size that lies steers nothing without a range, and is refused with one.
    assert_eq!(
        walk(&blocks, lie, Scope::Entity, None, true),
        Ok(vec![lie, leaf, leaf])
    );
    let error = walk(&blocks, lie, Scope::Entity, Some("-1:*"), true).unwrap_err();
    assert!(matches!(error, WalkError::File { .. }));
    let directory = put(&mut blocks, DAG_PB, &[0x0a, 2, 8, 1][..]);
    let over = file(&mut blocks, &[(directory, 5)]);
    let error = walk(&blocks, over, Scope::Entity, None, false).unwrap_err();
    assert!(
        matches!(error, WalkError::File { .. }),
        "a directory is no part of a file"
    );
}

#[test]
fn unsound_shards_are_refused() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b""[..]);
    let cid = leaf.to_bytes();
    let mut bad = |bitfield: &[u8], fanout: u64, names: &[&[u8]]| {
        let mut links: Vec<_> = names
            .iter()
            .map(|name| PbLink {
                cid: &cid,
                name,
                tsize: None,
            })
            .collect();
        put(
            &mut blocks,
            DAG_PB,
            encode(&mut links, Some(&shard(bitfield, 0x22, fanout))),
        )
    };
    let roots = [
        bad(&[1], 7, &[b"00a"]),
        bad(&[1], 1 << 20, &[b"00a"]),
        bad(&[3], 256, &[b"00a"]),
        bad(&[1; 33], 256, &[&b"00a"[..]; 33]),
        bad(&[1], 256, &[b"0"]),
    ];
    for root in roots {
        let error = walk(&blocks, root, Scope::Entity, None, false).unwrap_err();
        assert!(matches!(error, WalkError::Hamt { .. }), "{error}");
    }
}

/// Shards with eight slots that each hold the next one: deeper than a name's hash reaches.
#[test]
fn nested_shards_end_where_the_hash_does() {
    let mut blocks = Blocks::new();
    let mut cid = put(&mut blocks, RAW, &b""[..]);
    for _ in 0..30 {
        let below = cid.to_bytes();
        let mut links = [PbLink {
            cid: &below,
            name: b"0",
            tsize: None,
        }];
        cid = put(
            &mut blocks,
            DAG_PB,
            encode(&mut links, Some(&shard(&[1], 0x22, 8))),
        );
    }
    let error = walk(&blocks, cid, Scope::Entity, None, false).unwrap_err();
    let source = HamtError::TooDeep;
    assert!(
        matches!(error, WalkError::Hamt { source: s, .. } if s == source),
        "{error}"
    );
}

#[test]
fn a_sharded_directory_is_listed_without_its_entries() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b"leaf"[..]);
    let entries: Vec<Entry> = (0..20_000)
        .map(|n| Entry {
            name: format!("entry {n}").into_bytes(),
            cid: leaf,
            tsize: 4,
        })
        .collect();
    let root = dir::build(entries, &UNIXFS_V1_2025, &mut |cid, block| {
        blocks.insert(cid, block.into());
    });
    let root = root.unwrap().cid;
    let shards = walk(&blocks, root, Scope::Entity, Some("0:5"), false).unwrap();
    assert_eq!(shards.len(), blocks.len() - 1);
    let all = walk(&blocks, root, Scope::All, None, false).unwrap();
    assert_eq!(all.len(), blocks.len());
    let dups = walk(&blocks, root, Scope::All, None, true).unwrap();
    assert_eq!(dups.len(), shards.len() + 20_000);
    for n in [0, 777, 19_999] {
        let resolved = resolve(&blocks, root, &[&format!("entry {n}")]).unwrap();
        assert_eq!(resolved.terminus, leaf);
        assert_eq!(resolved.roots, [root, leaf]);
        assert!(resolved.path_blocks.len() >= 2 && resolved.path_blocks[0] == root);
    }
    let (error, read) = resolve(&blocks, root, &["entry 20000"]).unwrap_err();
    assert!(matches!(error, WalkError::NotFound { index: 0, last, .. } if *last == root));
    assert!(read.len() >= 2);
}

/// A file whose chunks repeat, so that nodes repeat on all levels.
fn repeating_file(n_leaves: usize, period: u8) -> (Blocks, Cid) {
    let mut blocks = Blocks::new();
    let profile = UNIXFS_V1_2025.with_link_width(3).unwrap();
    let mut builder = FileBuilder::new(&profile);
    let mut nodes = Vec::new();
    let mut sink = |cid, block: Vec<u8>| nodes.push((cid, Bytes::from(block)));
    for n in 0..n_leaves {
        let cid = put(&mut blocks, RAW, vec![n as u8 % period; 10]);
        builder.push_leaf(
            Leaf {
                cid,
                file_len: 10,
                block_len: 10,
            },
            &mut sink,
        );
    }
    let root = builder.finish(&mut sink).cid;
    blocks.extend(nodes);
    (blocks, root)
}

/// What a range walk must send, from the definition: each node that holds a wanted byte.
fn expected(blocks: &Blocks, cid: Cid, start: u64, wanted: (u64, u64)) -> (u64, Vec<Cid>) {
    let block = &blocks[&cid];
    if cid.codec() == RAW {
        return (block.len() as u64, vec![cid]);
    }
    let mut sent = vec![cid];
    let mut at = start;
    for link in PbNode::parse(block).unwrap().links() {
        let child = cid::parse_bytes(link.cid).unwrap();
        let (len, below) = expected(blocks, child, at, wanted);
        if at < wanted.1 && at + len > wanted.0 {
            sent.extend(below);
        }
        at += len;
    }
    (at - start, sent)
}

fn first_of_each(cids: &[Cid]) -> Vec<Cid> {
    let mut seen = HashSet::new();
    cids.iter()
        .filter(|cid| seen.insert(**cid))
        .copied()
        .collect()
}

/// Each level claims two bytes more than the one below holds in its first half: the walk of a range
/// comes to every block from every level above it.
#[test]
fn nodes_that_lie_cannot_make_a_range_walk_for_ever() {
    let mut blocks = Blocks::new();
    let mut below = put(&mut blocks, RAW, "leaf");
    let n_levels = 1000;
    for level in 0..n_levels {
        below = file(
            &mut blocks,
            &[(below, 10 + 2 * level), (below, 10 + 2 * level)],
        );
    }
    let range = "1:-2".parse().unwrap();
    let resolved = Resolved::root(below);
    let limits = WalkLimits::default();
    let mut walker = Walker::new(&resolved, Scope::Entity, Some(range), false, limits);
    let mut n_steps = 0;
    let error = loop {
        n_steps += 1;
        match walker.next() {
            Ok(Step::Need { cid, .. }) => walker.provide(&cid, blocks[&cid].clone()).unwrap(),
            Ok(Step::Leaf(_)) => {}
            Ok(Step::End) => panic!("it ended after {n_steps} steps"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, WalkError::File { .. }), "{error}");
    assert!(n_steps < 6 * 1024, "{n_steps}");
}

#[test]
fn ranges_that_hold_no_byte_are_answered_with_the_block() {
    let (blocks, root) = repeating_file(30, 7);
    for range in [
        "300:*",
        "299:-299",
        "-5:3",
        "0:-301",
        "9223372036854775807:*",
    ] {
        assert_eq!(
            walk(&blocks, root, Scope::Entity, Some(range), true),
            Ok(vec![root]),
            "{range}"
        );
    }
    let empty = file(&mut Blocks::new(), &[]);
    let mut with_empty = blocks.clone();
    file(&mut with_empty, &[]);
    for range in ["0:*", "0:0", "-1:*"] {
        let sent = walk(&with_empty, empty, Scope::Entity, Some(range), false);
        assert_eq!(sent, Ok(vec![empty]));
    }
}

#[test]
fn bytes_inside_of_a_node_come_before_its_children() {
    let mut blocks = Blocks::new();
    let leaves = [&b"abc"[..], b"def"].map(|leaf| put(&mut blocks, RAW, leaf));
    let cids = leaves.map(|cid| cid.to_bytes());
    let mut data = vec![8, 2, 0x12, 4, 1, 2, 3, 4, 0x18, 10];
    put_blocksize(&mut data, 3);
    put_blocksize(&mut data, 3);
    let mut links = [0, 1].map(|n: usize| PbLink {
        cid: &cids[n],
        name: b"",
        tsize: None,
    });
    let root = put(&mut blocks, DAG_PB, encode(&mut links, Some(&data)));
    for (range, want) in [
        ("0:3", &[root][..]),
        ("3:4", &[root, leaves[0]]),
        ("4:6", &[root, leaves[0]]),
        ("7:7", &[root, leaves[1]]),
        ("-3:*", &[root, leaves[1]]),
        ("0:*", &[root, leaves[0], leaves[1]]),
    ] {
        let sent = walk(&blocks, root, Scope::Entity, Some(range), true);
        assert_eq!(sent.as_deref(), Ok(want), "{range}");
    }
}

/// Children that claim more or fewer bytes than they have lead to other blocks, never to a panic
/// or a walk without end.
#[test]
fn sizes_that_lie_steer_the_walk_and_nothing_else() {
    let mut blocks = Blocks::new();
    let leaf = put(&mut blocks, RAW, &b"12345"[..]);
    let inner = file(&mut blocks, &[(leaf, 5), (leaf, 5)]);
    let huge = u64::MAX / 2;
    let root = file(&mut blocks, &[(inner, huge), (inner, 0), (inner, huge)]);
    for range in [
        "0:4",
        "100:9223372036854775807",
        "-1:*",
        "0:*",
        "9223372036854775806:*",
    ] {
        let sent = walk(&blocks, root, Scope::Entity, Some(range), true).unwrap();
        assert!(sent.len() <= 10, "{range}");
    }
}

/// A file of two parts whose sizes are what they are told to be.
fn sized(
    blocks: &mut Blocks,
    parts: &[&'static [u8]],
    sizes: &[u64],
    filesize: Option<u64>,
) -> (Cid, Vec<Cid>) {
    let mut data = vec![8, 2];
    if let Some(filesize) = filesize {
        data = file_head(filesize);
    }
    sizes
        .iter()
        .for_each(|size| put_blocksize(&mut data, *size));
    let leaves: Vec<Cid> = parts.iter().map(|part| put(blocks, RAW, *part)).collect();
    let cids: Vec<Vec<u8>> = leaves.iter().map(|cid| cid.to_bytes()).collect();
    let mut links: Vec<PbLink<'_>> = cids
        .iter()
        .map(|cid| PbLink {
            cid,
            name: b"",
            tsize: None,
        })
        .collect();
    let root = put(blocks, DAG_PB, encode(&mut links, Some(&data)));
    (root, leaves)
}

/// No range holds a byte of a file that claims to have none: its reader gets all of it.
#[test]
fn a_file_with_parts_that_claims_to_be_empty_is_sent_whole() {
    for filesize in [Some(0), None] {
        let mut blocks = Blocks::new();
        let (root, leaves) = sized(&mut blocks, &[b"hello ", b"world"], &[0, 0], filesize);
        let whole = [vec![root], leaves].concat();
        for range in [None, Some("0:*"), Some("0:0"), Some("-3:*"), Some("5:9")] {
            for scope in [Scope::Entity, Scope::All] {
                let sent = walk(&blocks, root, scope, range, true);
                assert_eq!(sent, Ok(whole.clone()), "{range:?}");
            }
        }
    }
}

/// A part in the middle that claims no bytes is sent: if it has some, its reader sees it.
#[test]
fn parts_without_a_size_inside_of_a_range_are_sent() {
    let mut blocks = Blocks::new();
    let parts = [&b"abc"[..], b"hidden", b"def"];
    let (root, leaves) = sized(&mut blocks, &parts, &[3, 0, 3], Some(6));
    let [a, hidden, b] = leaves[..] else { panic!() };
    for (range, want) in [
        ("0:*", &[root, a, hidden, b][..]),
        ("1:4", &[root, a, hidden, b]),
        ("0:2", &[root, a]),
        ("3:5", &[root, b]),
    ] {
        let sent = walk(&blocks, root, Scope::Entity, Some(range), true);
        assert_eq!(sent.as_deref(), Ok(want), "{range}");
    }
}

/// One size for each link, and a sum that is the file's: anything else is an error for a range.
#[test]
fn files_whose_sizes_do_not_fit_are_refused() {
    let mut blocks = Blocks::new();
    for (sizes, filesize) in [
        (&[][..], Some(11)),
        (&[6], Some(11)),
        (&[6, 5, 0], Some(11)),
        (&[6, 5], Some(5)),
        (&[6, 0], Some(11)),
    ] {
        let (root, _) = sized(&mut blocks, &[b"hello ", b"world"], sizes, filesize);
        for range in ["0:*", "0:2"] {
            let sent = walk(&blocks, root, Scope::Entity, Some(range), true);
            assert!(matches!(sent, Err(WalkError::File { .. })), "{sizes:?}");
        }
        // Each block is right all the same, and can be had.
        let all = walk(&blocks, root, Scope::All, Some("0:2"), true).unwrap();
        assert_eq!(all.len(), 3, "{sizes:?}");
    }
}

#[test]
fn signed_objects_and_git_objects_are_walked() {
    let mut blocks = Blocks::new();
    let payload = put(&mut blocks, DAG_CBOR, &b"\xa0"[..]);
    let bytes = payload.to_bytes();
    let head = [&[0xa1, 0x67][..], b"payload", &[0x58, bytes.len() as u8]].concat();
    let jws = put(&mut blocks, cid::DAG_JOSE, [head, bytes].concat());
    assert_eq!(
        walk(&blocks, jws, Scope::All, None, false),
        Ok(vec![jws, payload])
    );
    assert_eq!(
        walk(&blocks, jws, Scope::Entity, None, false),
        Ok(vec![jws])
    );

    let mut object = |kind: &str, body: &[u8]| {
        let block = [format!("{kind} {}\0", body.len()).as_bytes(), body].concat();
        let name: [u8; 20] = sha1::Sha1::digest(&block).into();
        let multihash = crate::Multihash::wrap(cid::SHA1, &name).unwrap();
        let cid = Cid::new_v1(GIT_RAW, multihash);
        blocks.insert(cid, block.into());
        (cid, name)
    };
    let blob = object("blob", b"hello");
    let tree = object("tree", &[&b"100644 f\0"[..], &blob.1].concat());
    let hex = |name: [u8; 20]| name.map(|byte| format!("{byte:02x}")).concat();
    let commit = object("commit", format!("tree {}\n\nx", hex(tree.1)).as_bytes());
    let tag = object("tag", format!("object {}\n", hex(commit.1)).as_bytes());
    assert_eq!(
        walk(&blocks, tag.0, Scope::All, None, false),
        Ok(vec![tag.0, commit.0, tree.0, blob.0])
    );
}

/// All that can be told is sent, and the end is an error: what is cut must not look whole.
#[test]
fn a_codec_whose_links_are_unknown_is_no_clean_end() {
    let mut blocks = Blocks::new();
    let [odd, other] = [&b"\xc0"[..], b"\xc1"].map(|block| put(&mut blocks, 0x90, block));
    let plain = put(&mut blocks, cid::CBOR, &b"\xa0"[..]);
    let root = node(&mut blocks, &[odd, plain, other, odd]);
    let mut walker = Walker::new(
        &Resolved::root(root),
        Scope::All,
        None,
        false,
        WalkLimits::default(),
    );
    let mut sent = Vec::new();
    let error = loop {
        match walker.next() {
            Ok(Step::Need { cid, .. }) => {
                sent.push(cid);
                walker.provide(&cid, blocks[&cid].clone()).unwrap();
            }
            Ok(Step::Leaf(cid)) => sent.push(cid),
            Ok(Step::End) => panic!("a clean end"),
            Err(error) => break error,
        }
    };
    assert_eq!(sent, [root, odd, plain, other]);
    let cid = Box::new(odd);
    let (codec, n_blocks) = (0x90, 2);
    assert_eq!(
        error,
        WalkError::LinksUnknown {
            cid,
            codec,
            n_blocks
        }
    );
    assert_eq!(walker.next(), Err(WalkError::Failed));
    for scope in [Scope::Entity, Scope::Block] {
        assert_eq!(walk(&blocks, odd, scope, None, true), Ok(vec![odd]));
    }
    // Inside of an identity CID, too.
    let multihash = crate::Multihash::wrap(cid::IDENTITY, b"\xc0").unwrap();
    let inline = Cid::new_v1(0x90, multihash);
    let sent = walk(&blocks, inline, Scope::All, None, true);
    assert!(matches!(sent, Err(WalkError::LinksUnknown { .. })));
}

proptest! {
    #[test]
    fn ranges_send_the_nodes_that_hold_a_wanted_byte(
        n_leaves in 1_usize..60,
        period in 1_u8..20,
        from in 0_u64..650,
        len in 1_u64..300,
        dups in any::<bool>(),
    ) {
        let (blocks, root) = repeating_file(n_leaves, period);
        let file_len = 10 * n_leaves as u64;
        let range = ByteRange { from: from as i64, to: Some((from + len - 1) as i64) };
        let mut want = match range.resolve(file_len) {
            Some(wanted) => expected(&blocks, root, 0, wanted).1,
            None => vec![root],
        };
        if !dups {
            want = first_of_each(&want);
        }
        let limits = WalkLimits::default();
        let mut walker =
            Walker::new(&Resolved::root(root), Scope::Entity, Some(range), dups, limits);
        let (sent, n_loaded) = run(&mut walker, &blocks).unwrap();
        prop_assert_eq!(&sent, &want);
        prop_assert!(dups || n_loaded <= want.len() + 2 * 6, "{} loads", n_loaded);
    }

    /// Blocks of arbitrary bytes, and of bytes that nearly are dag-pb, in every scope.
    #[test]
    fn arbitrary_blocks_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        flips in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        codec in prop::sample::select(vec![DAG_PB, DAG_CBOR, DAG_JSON, RAW, 0x99]),
        scope in prop::sample::select(vec![Scope::All, Scope::Entity, Scope::Block]),
        from in any::<i64>(),
        to in any::<Option<i64>>(),
        from_template in any::<bool>(),
    ) {
        let (mut blocks, root) = repeating_file(5, 9);
        let mut bytes = if from_template { blocks[&root].to_vec() } else { bytes };
        for (index, byte) in flips {
            if !bytes.is_empty() {
                let at = index.index(bytes.len());
                bytes[at] = byte;
            }
        }
        let root = put(&mut blocks, codec, bytes);
        let range = Some(ByteRange { from, to });
        let limits = WalkLimits::default();
        for dups in [false, true] {
            let mut walker = Walker::new(&Resolved::root(root), scope, range, dups, limits);
            loop {
                match walker.next() {
                    Ok(Step::End) | Err(_) => break,
                    Ok(Step::Leaf(_)) => {}
                    Ok(Step::Need { cid, .. }) => {
                        let block = blocks.get(&cid).cloned().unwrap_or_default();
                        let _ = walker.provide(&cid, block);
                    }
                }
            }
        }
    }
}

/// Reads a file the way `cat` does.
fn read(blocks: &Blocks, root: Cid, range: Option<ByteRange>) -> Vec<u8> {
    let mut walker = Walker::read_file(root, range, WalkLimits::default());
    let (mut at, mut bytes) = (0, Vec::new());
    let file_len = content_of(blocks, &root).1;
    let (from, to) = range
        .map_or(Some((0, file_len)), |r| r.resolve(file_len))
        .unwrap_or((0, 0));
    loop {
        let cid = match walker.next().unwrap() {
            Step::End => return bytes,
            Step::Leaf(cid) => cid,
            Step::Need { cid, .. } => {
                let offset = walker.data_offset();
                walker.provide(&cid, content_of(blocks, &cid).2).unwrap();
                assert_eq!(walker.data_offset(), offset);
                cid
            }
        };
        at = walker.data_offset().unwrap_or(at);
        for byte in content_of(blocks, &cid).0 {
            if at >= from && at < to {
                bytes.push(byte);
            }
            at += 1;
        }
    }
}

/// A block's file bytes, those below it, and the block.
fn content_of(blocks: &Blocks, cid: &Cid) -> (Bytes, u64, Bytes) {
    let block = match cid::identity_data(cid) {
        Some(data) => Bytes::copy_from_slice(data),
        None => blocks[cid].clone(),
    };
    match crate::unixfs::content::content(cid, &block).unwrap() {
        crate::unixfs::content::Content::File { data, file_len } => (data, file_len, block),
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_range_of_a_file_is_read_back() {
    let (mut blocks, part) = repeating_file(11, 5);
    let identity = Cid::new_v1(RAW, crate::Multihash::wrap(0, b"inline").unwrap());
    let inner = file(&mut blocks, &[(identity, 6), (part, 110), (identity, 6)]);
    let root = file(&mut blocks, &[(part, 110), (inner, 122), (identity, 6)]);
    let whole = read(&blocks, root, None);
    let part = read(&blocks, part, None);
    assert_eq!(
        whole,
        [&part[..], b"inline", &part, b"inline", b"inline"].concat()
    );
    for from in (0..whole.len()).step_by(7) {
        for to in (from..whole.len()).step_by(5) {
            let range = ByteRange {
                from: from as i64,
                to: Some(to as i64),
            };
            assert_eq!(
                read(&blocks, root, Some(range)),
                whole[from..=to],
                "{from}:{to}"
            );
        }
    }
}
