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

/// What a tree comes to, and how often each node is in it.
type Outcome = (Built, std::collections::BTreeMap<Vec<u8>, u64>);

fn leaf_of(n: u64, file_len: u64) -> Leaf {
    Leaf {
        cid: from_sha256(Version::V1, RAW, &verify::sha256(&n.to_le_bytes())),
        file_len,
        block_len: file_len,
    }
}

#[test]
fn a_run_comes_to_what_its_leaves_come_to_one_by_one() {
    let run_lens = [1, 2, 3, 7, 8, 9, 26, 27, 28, 81, 82, 243, 700];
    for width in [2, 3, 8] {
        let profile = UNIXFS_V1_2025.with_link_width(width).unwrap();
        for n_before in [0, 1, 2, 3, 8, 9, 25] {
            for n in run_lens {
                for n_after in [0, 1, 5] {
                    let runs = [(1, n_before), (2, n), (2, n / 2), (3, n_after)];
                    let (mut one_by_one, mut nodes) = (FileBuilder::new(&profile), Vec::new());
                    let mut in_runs = FileBuilder::new(&profile);
                    let mut counted = std::collections::BTreeMap::new();
                    for (which, n) in runs {
                        let leaf = leaf_of(which, 10 * which);
                        for _ in 0..n {
                            one_by_one.push_leaf(leaf, &mut |cid, _| nodes.push(cid.to_bytes()));
                        }
                        in_runs.push_run(leaf, n, &mut |cid, _, n| {
                            *counted.entry(cid.to_bytes()).or_insert(0) += n;
                        });
                    }
                    let expected = one_by_one.finish(&mut |cid, _| nodes.push(cid.to_bytes()));
                    let built = in_runs.finish(&mut |cid, _| {
                        *counted.entry(cid.to_bytes()).or_insert(0) += 1;
                    });
                    let mut each = std::collections::BTreeMap::new();
                    for node in nodes {
                        *each.entry(node).or_insert(0) += 1;
                    }
                    let (got, wanted): (Outcome, Outcome) = ((built, counted), (expected, each));
                    assert!(got == wanted, "width {width}: {n_before}, {n}, {n_after}");
                }
            }
        }
    }
}

#[test]
fn a_run_of_half_a_billion_leaves_is_a_few_nodes() {
    let mut builder = FileBuilder::new(&UNIXFS_V1_2025);
    let (mut n_made, mut n_nodes) = (0, 0);
    let n = (1 << 29) - 1;
    builder.push_run(leaf_of(0, 1 << 18), n, &mut |_, _, n| {
        n_made += 1;
        n_nodes += n;
    });
    let built = builder.finish(&mut |_, _| {
        n_made += 1;
        n_nodes += 1;
    });
    assert_eq!(built.file_len, n << 18);
    assert!(n_made < 12, "{n_made} nodes were made");
    let width = u64::from(UNIXFS_V1_2025.link_width);
    let mut expected = 0;
    let mut level = n;
    while level > 1 {
        level = level.div_ceil(width);
        expected += level;
    }
    assert_eq!(n_nodes, expected);
}
