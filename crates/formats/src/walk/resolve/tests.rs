use ::cid::Version;
use proptest::prelude::*;

use super::*;
use crate::cid::{RAW, from_sha256};
use crate::dag::pb::encode;
use crate::unixfs::node;

fn cid(codec: u64, n: u8) -> Cid {
    from_sha256(Version::V1, codec, &[n; 32])
}

fn directory(entries: &[(&[u8], Cid)]) -> Bytes {
    let cids: Vec<Vec<u8>> = entries.iter().map(|(_, cid)| cid.to_bytes()).collect();
    let mut links: Vec<PbLink<'_>> = entries
        .iter()
        .zip(&cids)
        .map(|((name, _), cid)| PbLink {
            cid,
            name,
            tsize: None,
        })
        .collect();
    encode(&mut links, Some(&node::DIRECTORY)).into()
}

fn resolver(root: Cid, path: &str) -> Resolver {
    let segments = path
        .split('/')
        .filter(|s| !s.is_empty())
        .map(str::to_owned)
        .collect::<Vec<_>>();
    Resolver::new(root, segments, ResolveLimits::default()).unwrap()
}

#[test]
fn a_root_without_a_path_needs_no_block() {
    let root = cid(DAG_PB, 1);
    assert_eq!(
        resolver(root, "").next(),
        Ok(ResolveStep::Done(Resolved::root(root)))
    );
}

#[test]
fn the_first_of_two_entries_with_one_name_counts() {
    let root = cid(DAG_PB, 1);
    let block = directory(&[(b"a", cid(RAW, 2)), (b"a", cid(RAW, 3))]);
    let mut resolver = resolver(root, "a");
    resolver.provide(&root, &block).unwrap();
    let Ok(ResolveStep::Done(resolved)) = resolver.next() else {
        panic!()
    };
    assert_eq!(resolved.terminus, cid(RAW, 2));
}

#[test]
fn only_the_block_asked_for_is_taken() {
    let root = cid(DAG_PB, 1);
    let mut walk = resolver(root, "a");
    assert!(matches!(
        walk.provide(&cid(RAW, 9), &Bytes::new()),
        Err(WalkError::Unexpected { .. })
    ));
    let mut done = resolver(root, "");
    assert!(matches!(
        done.provide(&root, &Bytes::new()),
        Err(WalkError::Unexpected { .. })
    ));
}

#[test]
fn no_path_leads_through_files_links_and_raw_blocks() {
    let file = encode(&mut [], Some(&[8, 2, 0x18, 0]));
    let symlink = encode(&mut [], Some(&node::symlink(b"target")));
    for (codec, block) in [
        (DAG_PB, file),
        (DAG_PB, symlink),
        (RAW, vec![]),
        (0x99, vec![]),
    ] {
        let root = cid(codec, 1);
        let mut resolver = resolver(root, "target");
        let error = resolver.provide(&root, &block.into()).unwrap_err();
        assert!(matches!(error, WalkError::NotFound { index: 0, .. }));
        assert_eq!(resolver.next(), Err(WalkError::Failed));
        assert_eq!(resolver.blocks_read(), [root]);
    }
}

#[test]
fn the_error_names_what_is_missing_and_where() {
    let (root, below) = (cid(DAG_PB, 1), cid(DAG_PB, 2));
    let mut resolver = resolver(root, "a/b/c");
    resolver
        .provide(&root, &directory(&[(b"a", below)]))
        .unwrap();
    let error = resolver
        .provide(&below, &directory(&[(b"B", root)]))
        .unwrap_err();
    assert_eq!(error.to_string(), format!("no \"b\" below {below}"));
    assert_eq!(resolver.blocks_read(), [root, below]);
}

#[test]
fn plain_dag_pb_is_followed_by_link_names() {
    let root = cid(DAG_PB, 1);
    let below = cid(RAW, 2).to_bytes();
    let block = encode(
        &mut [PbLink {
            cid: &below,
            name: b"x",
            tsize: None,
        }],
        Some(b"\xff\xff"),
    );
    let mut resolver = resolver(root, "x");
    resolver.provide(&root, &block.into()).unwrap();
    assert!(matches!(resolver.next(), Ok(ResolveStep::Done(_))));
}

#[test]
fn long_paths_are_refused_before_anything_is_loaded() {
    let root = cid(DAG_PB, 1);
    let new = |segments: Vec<String>| Resolver::new(root, segments, ResolveLimits::default());
    assert!(new(vec!["a".to_owned(); 256]).is_ok());
    assert_eq!(
        new(vec!["a".to_owned(); 257]).unwrap_err(),
        WalkError::PathTooLong
    );
    assert!(new(vec!["a".repeat(4096)]).is_ok());
    assert_eq!(
        new(vec!["a".repeat(4097)]).unwrap_err(),
        WalkError::PathTooLong
    );
}

proptest! {
    #[test]
    fn arbitrary_blocks_never_panic(
        bytes in proptest::collection::vec(any::<u8>(), 0..120),
        flip in (0..60_usize, any::<u8>()),
        codec in prop::sample::select(vec![DAG_PB, DAG_CBOR, DAG_JSON, RAW]),
        template in any::<bool>(),
    ) {
        let mut bytes = if template {
            directory(&[(b"a", cid(RAW, 2)), (b"b", cid(RAW, 3))]).to_vec()
        } else {
            bytes
        };
        if let Some(byte) = bytes.get_mut(flip.0) {
            *byte = flip.1;
        }
        let root = cid(codec, 1);
        let mut resolver = resolver(root, "a/0/b");
        for _ in 0..10 {
            let Ok(ResolveStep::Need(cid)) = resolver.next() else { break };
            let _ = resolver.provide(&cid, &Bytes::from(bytes.clone()));
        }
    }
}

/// Names are bytes: of a directory, of a sharded one, of a document.
#[test]
fn names_that_are_not_utf_8_lead_somewhere() {
    let root = cid(DAG_PB, 1);
    let block = directory(&[(b"caf", cid(RAW, 3)), (b"caf\xe9", cid(RAW, 2))]);
    let open = |name: &[u8]| {
        let segments = vec![name.to_vec()];
        let mut resolver = Resolver::new(root, segments, ResolveLimits::default()).unwrap();
        resolver.provide(&root, &block)?;
        resolver.next()
    };
    let Ok(ResolveStep::Done(resolved)) = open(b"caf\xe9") else {
        panic!()
    };
    assert_eq!(resolved.terminus, cid(RAW, 2));
    let Err(WalkError::NotFound { segment, .. }) = open(b"caf\xe8") else {
        panic!()
    };
    assert_eq!(segment, "caf\u{fffd}");
    let shards = {
        let mut blocks = std::collections::HashMap::new();
        let entries = (0..10_000_u32).map(|n| crate::unixfs::dir::Entry {
            name: [&[0xe9, 0xff][..], n.to_string().as_bytes()].concat(),
            cid: cid(RAW, 7),
            tsize: 1,
        });
        let profile = &crate::unixfs::profile::UNIXFS_V1_2025;
        let root = crate::unixfs::dir::build(entries.collect(), profile, &mut |cid, block| {
            blocks.insert(cid, Bytes::from(block));
        });
        (root.unwrap().cid, blocks)
    };
    let name = b"\xe9\xff1999".to_vec();
    let mut resolver = Resolver::new(shards.0, vec![name], ResolveLimits::default()).unwrap();
    loop {
        match resolver.next().unwrap() {
            ResolveStep::Need(cid) => resolver.provide(&cid, &shards.1[&cid]).unwrap(),
            ResolveStep::Done(resolved) => {
                assert_eq!(resolved.terminus, cid(RAW, 7));
                break;
            }
        }
    }
}

#[test]
fn dots_are_resolved_and_never_lead_above_the_root() {
    let path = |text: &str| {
        let mut segments = Vec::new();
        for segment in text.split('/') {
            push_segment(&mut segments, segment.as_bytes())?;
        }
        Ok(String::from_utf8(segments.join(&b'/')).unwrap())
    };
    for (text, want) in [
        ("a/./b//c/", "a/b/c"),
        ("a/b/../c", "a/c"),
        ("a/..", ""),
        ("a//../b", "b"),
        ("a/../b/../.", ""),
        ("...", "..."),
        ("a/..b/.c", "a/..b/.c"),
    ] {
        assert_eq!(path(text), Ok(want.to_owned()), "{text}");
    }
    for text in ["..", "../a", "a/../../b", "./..", "a/b/../../.."] {
        assert_eq!(path(text), Err(WalkError::AboveRoot), "{text}");
    }
}
