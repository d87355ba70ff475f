use super::*;
use crate::unixfs::profile::{UNIXFS_V0_2015, UNIXFS_V1_2025};
use std::collections::HashMap;

/// Builds a file in memory, leaves and all.
pub(crate) fn build_file(
    content: &[u8],
    profile: &Profile,
    sink: &mut impl FnMut(Cid, Vec<u8>),
) -> Built {
    let mut builder = FileBuilder::new(profile);
    for chunk in content.chunks(profile.chunk_size as usize) {
        let (cid, block) = if profile.raw_leaves {
            (
                from_sha256(Version::V1, RAW, &verify::sha256(chunk)),
                chunk.to_vec(),
            )
        } else {
            let (mut block, suffix) = frame(chunk.len());
            block.extend_from_slice(chunk);
            block.extend_from_slice(&suffix);
            (
                from_sha256(profile.cid_version, DAG_PB, &verify::sha256(&block)),
                block,
            )
        };
        let block_len = block.len() as u64;
        sink(cid, block);
        builder.push_leaf(
            Leaf {
                cid,
                file_len: chunk.len() as u64,
                block_len,
            },
            sink,
        );
    }
    builder.finish(sink)
}

/// Bytes that the program which wrote `vectors/unixfs.txt` makes in the same way.
fn content(len: u32) -> Vec<u8> {
    let mut x = len.wrapping_mul(2_654_435_761).wrapping_add(1);
    let mut byte = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    (0..len).map(|_| byte()).collect()
}

#[test]
fn trees_equal_those_of_the_go_implementation() {
    let vectors = include_str!("../../../tests/vectors/unixfs.txt");
    let mut n_cases = 0;
    for line in vectors.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let [
            "file",
            version,
            raw_leaves,
            chunk,
            width,
            size,
            cid,
            dag_len,
        ] = words[..]
        else {
            continue;
        };
        let profile = if version == "0" {
            UNIXFS_V0_2015
        } else {
            UNIXFS_V1_2025
        }
        .with_raw_leaves(raw_leaves == "true")
        .with_chunk_size(chunk.parse().unwrap())
        .unwrap()
        .with_link_width(width.parse().unwrap())
        .unwrap();
        let content = content(size.parse().unwrap());
        let mut blocks = HashMap::new();
        let built = build_file(&content, &profile, &mut |cid, block| {
            blocks.insert(cid, block);
        });
        assert_eq!(built.cid.to_string(), cid, "{line}");
        assert_eq!(built.dag_len.to_string(), dag_len, "{line}");
        assert_eq!(built.file_len, content.len() as u64, "{line}");
        assert!(
            blocks.contains_key(&built.cid),
            "{line}: the sink got no root"
        );
        n_cases += 1;
    }
    assert_eq!(n_cases, 88);
}

#[test]
fn a_file_is_built_in_memory_that_does_not_grow_with_it() {
    let profile = UNIXFS_V1_2025.with_link_width(16).unwrap();
    let cid = from_sha256(Version::V1, RAW, &[7; 32]);
    let mut builder = FileBuilder::new(&profile);
    let mut n_nodes = 0_u64;
    for _ in 0..100_000 {
        let leaf = Leaf {
            cid,
            file_len: 1 << 20,
            block_len: 1 << 20,
        };
        builder.push_leaf(leaf, &mut |_, _| n_nodes += 1);
    }
    assert!(builder.levels.len() <= 5, "16^4 < 100,000 <= 16^5");
    let held: usize = builder
        .levels
        .iter()
        .map(|l| l.links.len() + l.blocksizes.len())
        .sum();
    assert!(held < 5 * 16 * 60);
    let built = builder.finish(&mut |_, _| n_nodes += 1);
    assert_eq!(built.file_len, 100_000 << 20);
    assert_eq!(n_nodes, 6250 + 391 + 25 + 2 + 1);
}

/// The vectors of IPIP-499 that can be made without fetching them.
#[test]
fn well_known_files_have_their_cids() {
    for (profile, content, cid) in [
        (
            UNIXFS_V1_2025,
            &b"hello world"[..],
            "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e",
        ),
        (
            UNIXFS_V0_2015,
            b"hello world",
            "Qmf412jQZiuVUtdgnB36FXFX7xg5V6KEbSJ4dpQuhkLyfD",
        ),
        (
            UNIXFS_V0_2015,
            b"",
            "QmbFMke1KXqnYyBBWxB74N4c5SBnJMVAiMNRcGu6x1AwQH",
        ),
        (
            UNIXFS_V1_2025,
            b"",
            "bafkreihdwdcefgh4dqkjv67uzcmw7ojee6xedzdetojuzjevtenxquvyku",
        ),
    ] {
        let mut blocks = HashMap::new();
        let built = build_file(content, &profile, &mut |cid, block| {
            blocks.insert(cid, block);
        });
        assert_eq!(built.cid.to_string(), cid);
        assert_eq!(blocks.len(), 1);
    }
}
