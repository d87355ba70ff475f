use super::*;
use crate::cid::DAG_PB;
use crate::unixfs::profile::{UNIXFS_V0_2015, UNIXFS_V1_2025};

/// Directories with entries `f0`, `f1`, … that are all the wrapped leaf `x`.
#[test]
fn directories_equal_those_of_the_go_implementation() {
    let vectors = include_str!("../../../tests/vectors/unixfs.txt");
    let leaf = [&[0x0a, 7, 8, 2, 0x12, 1][..], b"x", &[0x18, 1]].concat();
    let mut n_cases = 0;
    for line in vectors.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let ["dir", version, n_entries, cid, dag_len, kind] = words[..] else {
            continue;
        };
        let profile = if version == "0" {
            UNIXFS_V0_2015
        } else {
            UNIXFS_V1_2025
        };
        let leaf_cid = from_sha256(profile.cid_version, DAG_PB, &verify::sha256(&leaf));
        let entries: Vec<Entry> = (0..n_entries.parse::<u32>().unwrap())
            .map(|n| Entry {
                name: format!("f{n}").into_bytes(),
                cid: leaf_cid,
                tsize: leaf.len() as u64,
            })
            .collect();
        assert_eq!(
            needs_shards(&entries, profile.shard_rule),
            kind == "HAMTShard",
            "{line}"
        );
        let mut last = None;
        let built = build(entries, &profile, &mut |cid, _| last = Some(cid)).unwrap();
        assert_eq!(built.cid.to_string(), cid, "{line}");
        assert_eq!(built.dag_len.to_string(), dag_len, "{line}");
        assert_eq!(last, Some(built.cid), "the root comes last");
        n_cases += 1;
    }
    assert_eq!(n_cases, 22);
}

#[test]
fn symbolic_links_equal_those_of_the_go_implementation() {
    for (profile, cid) in [
        (
            UNIXFS_V1_2025,
            "bafybeid2dyfo3dy5xjihqwfpf4m4x3ht53evimfbxdcmv57yr4z3xlplcm",
        ),
        (
            UNIXFS_V0_2015,
            "QmWZM22ipUyfQSTndPa3T2X5oD7nBR55aZ4FMCJsFtQagJ",
        ),
    ] {
        assert_eq!(symlink(b"../target", &profile).0.cid.to_string(), cid);
    }
}

fn entry(name: &[u8]) -> Entry {
    let cid = from_sha256(::cid::Version::V1, DAG_PB, &[1; 32]);
    Entry {
        name: name.to_vec(),
        cid,
        tsize: 1,
    }
}

#[test]
fn names_that_no_path_reaches_are_refused() {
    let build = |entries| build(entries, &UNIXFS_V1_2025, &mut |_, _| {});
    for name in [&b""[..], b".", b"..", b"a/b"] {
        assert_eq!(
            build(vec![entry(name)]),
            Err(DirError::NameInvalid(name.to_vec()))
        );
    }
    let twice = build(vec![entry(b"b"), entry(b"a"), entry(b"b")]);
    assert_eq!(twice, Err(DirError::NameTwice(b"b".to_vec())));
    assert!(build(vec![entry(b"...")]).is_ok());
    assert!(build(vec![entry(&[0xff, 0])]).is_ok(), "names are bytes");
}

#[test]
fn a_block_that_no_peer_takes_is_not_written() {
    let no_shards = Profile {
        shard_rule: ShardRule::LinkBytes(u64::MAX),
        ..UNIXFS_V1_2025
    };
    let entries = (0..9000)
        .map(|n| entry(format!("{n:0200}").as_bytes()))
        .collect();
    let built = build(entries, &no_shards, &mut |_, _| {});
    assert!(matches!(built, Err(DirError::BlockTooLong(_))));
}
