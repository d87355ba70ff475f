//! The bodies of the fuzz targets under a property test: random bytes and damaged good ones.
//! Finds less than a fuzzer, on every run of the tests.

use carrack_formats::car::index::{IndexKind, Record, write as write_index};
use carrack_formats::car::{v2, write};
use carrack_formats::dag::pb;
use carrack_formats::unixfs::dir::{self, Entry};
use carrack_formats::unixfs::node;
use carrack_formats::unixfs::profile::{ShardRule, UNIXFS_V1_2025};
use carrack_formats::{Cid, cid, verify};
use carrack_testkit::damage::{damaged, damages};
use proptest::prelude::*;

use crate::fuzz_bodies::{self, blocks, graph};

fn raw(data: &[u8]) -> Cid {
    cid::from_sha256(::cid::Version::V1, cid::RAW, &verify::sha256(data))
}

fn good_cid() -> Vec<u8> {
    [&raw(b"data").to_bytes()[..], b"data"].concat()
}

fn good_car() -> Vec<u8> {
    let mut bytes = write::header(&[raw(b"one"), raw(b"two")]);
    for data in [&b"one"[..], b"", b"three and more"] {
        write::frame_head(&mut bytes, &raw(data), data.len());
        bytes.extend_from_slice(data);
    }
    bytes
}

fn good_index() -> Vec<u8> {
    let digests = [[3; 32], [1; 32], [2; 32]];
    let record = |digest| Record {
        hash_code: Some(0x12),
        digest,
        offset: 9,
    };
    let mut records: Vec<_> = digests.iter().map(|digest| record(&digest[..])).collect();
    write_index(IndexKind::MultihashSorted, &mut records)
}

fn good_cbor() -> Vec<u8> {
    // The body of a CAR header is dag-cbor with links.
    write::header(&[raw(b"one"), raw(b"two")])[2..].to_vec()
}

fn good_json() -> Vec<u8> {
    format!(
        r#"{{"a":[1,{{"b":{{"/":"{}"}}}}],"c":{{"/":{{"bytes":"AQ"}}}}}}"#,
        raw(b"x")
    )
    .into()
}

fn good_directory(n_entries: u16) -> Vec<u8> {
    let entries = (0..n_entries)
        .map(|number| Entry {
            name: format!("name {number}").into_bytes(),
            cid: raw(b"x"),
            tsize: 1,
        })
        .collect();
    let mut profile = UNIXFS_V1_2025;
    if n_entries > 4 {
        profile.shard_rule = ShardRule::BlockBytes(0);
    }
    let mut last = Vec::new();
    dir::build(entries, &profile, &mut |_, block| last = block).unwrap();
    last
}

fn good_file() -> Vec<u8> {
    let mut data = node::file_head(24);
    let mut block = Vec::new();
    for _ in 0..3 {
        pb::put_link(&mut block, &raw(b"part").to_bytes(), b"", 8);
        node::put_blocksize(&mut data, 8);
    }
    pb::put_data(&mut block, &data);
    block
}

/// A payload, and a link with a tag behind it.
fn good_jose() -> Vec<u8> {
    let payload = raw(b"payload").to_bytes();
    let mut block = [&[0xa2, 0x67][..], b"payload", &[0x58, payload.len() as u8]].concat();
    block.extend(payload);
    block.extend([&[0x6a][..], b"signatures"].concat());
    block.extend(good_cbor());
    block
}

fn good_git() -> [Vec<u8>; 4] {
    let name = "5a".repeat(20);
    let object =
        |kind: &str, body: &[u8]| [format!("{kind} {}\0", body.len()).as_bytes(), body].concat();
    let commit = format!("tree {name}\nparent {name}\nauthor A\nmergetag object {name}\n x\n\ny");
    [
        object("blob", b"hello"),
        object(
            "tree",
            &[&b"100644 a\0"[..], &[1; 20], b"40000 b\0", &[2; 20]].concat(),
        ),
        object("commit", commit.as_bytes()),
        object("tag", format!("object {name}\ntype commit\n").as_bytes()),
    ]
}

fn good_blocks() -> [Vec<u8>; 5] {
    let symlink = dir::symlink(b"../x", &UNIXFS_V1_2025).1;
    [
        good_directory(3),
        good_directory(40),
        good_file(),
        symlink,
        good_file()[..90].to_vec(),
    ]
}

#[test]
fn good_bytes_pass() {
    fuzz_bodies::varint_cid(&good_cid());
    fuzz_bodies::varint_cid(raw(b"x").to_string().as_bytes());
    fuzz_bodies::car_v1(&good_car());
    fuzz_bodies::car_v2_index(&good_index());
    fuzz_bodies::car_v2_index(&[&v2::write(1, false)[..], &[0; 60]].concat());
    fuzz_bodies::dag_cbor(&good_cbor());
    fuzz_bodies::dag_json(&good_json());
    fuzz_bodies::dag_jose(&good_jose());
    good_git()
        .iter()
        .for_each(|object| fuzz_bodies::git_raw(object));
    for block in good_blocks() {
        blocks::dag_pb(&block);
        blocks::unixfs(&block);
    }
    for text in [
        "0:*",
        "-5:-1",
        "9:0",
        "-9223372036854775808:9223372036854775807",
    ] {
        blocks::entity_bytes(&[&700_u64.to_le_bytes(), text.as_bytes()].concat());
    }
}

proptest! {
    #[test]
    fn random_bytes_pass(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        fuzz_bodies::varint_cid(&bytes);
        fuzz_bodies::car_v1(&bytes);
        fuzz_bodies::car_v2_index(&bytes);
        fuzz_bodies::dag_cbor(&bytes);
        fuzz_bodies::dag_json(&bytes);
        fuzz_bodies::dag_jose(&bytes);
        fuzz_bodies::git_raw(&bytes);
        blocks::dag_pb(&bytes);
        blocks::unixfs(&bytes);
        blocks::entity_bytes(&bytes);
    }

    #[test]
    fn random_graphs_pass(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        graph::walk(&bytes);
    }

    #[test]
    fn random_ranges_pass(len in any::<u64>(), text in "-?[0-9]{1,20}:(-?[0-9]{1,20}|\\*)") {
        blocks::entity_bytes(&[&len.to_le_bytes(), text.as_bytes()].concat());
    }

    #[test]
    fn damaged_bytes_pass(damages in damages()) {
        fuzz_bodies::varint_cid(&damaged(good_cid(), &damages));
        fuzz_bodies::varint_cid(&damaged(raw(b"x").to_string().into(), &damages));
        fuzz_bodies::car_v1(&damaged(good_car(), &damages));
        fuzz_bodies::car_v2_index(&damaged(good_index(), &damages));
        fuzz_bodies::dag_cbor(&damaged(good_cbor(), &damages));
        fuzz_bodies::dag_json(&damaged(good_json(), &damages));
        fuzz_bodies::dag_jose(&damaged(good_jose(), &damages));
        for object in good_git() {
            fuzz_bodies::git_raw(&damaged(object, &damages));
        }
        for block in good_blocks() {
            let block = damaged(block, &damages);
            blocks::dag_pb(&block);
            blocks::unixfs(&block);
        }
    }
}
