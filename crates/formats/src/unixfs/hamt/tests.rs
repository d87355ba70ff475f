use super::*;
use crate::unixfs::profile::UNIXFS_V1_2025;
use proptest::prelude::*;
use std::collections::HashMap;

#[test]
fn the_hash_is_murmur3_x64_64() {
    let long = "ж".repeat(100);
    for (name, hash) in [
        ("", 0),
        ("a", 0x8555_5565_f659_7889),
        ("hello", 0xcbd8_a7b3_41bd_9b02),
        ("0123456789abcde", 0xa62d_d5f6_c0bf_2351),
        ("0123456789abcdef", 0x4be0_6d94_cf4a_d1a7),
        ("0123456789abcdef0", 0xeb24_ae87_85a5_c075),
        (&long, 0x2700_4c47_278e_aac5),
    ] {
        assert_eq!(hash_name(name.as_bytes()), hash, "{name}");
    }
}

#[test]
fn bits_are_taken_from_the_most_significant() {
    let hash = 0x8555_5565_f659_7889;
    assert_eq!(slot(hash, 0, 8), Some(0x85));
    assert_eq!(slot(hash, 8, 8), Some(0x55));
    assert_eq!(slot(hash, 56, 8), Some(0x89));
    assert_eq!(slot(hash, 64, 8), None);
    assert_eq!(slot(hash, 0, 3), Some(0b100));
    assert_eq!(slot(hash, 3, 3), Some(0b001));
    assert_eq!(slot(hash, 60, 10), None);
    assert_eq!(slot(hash, u32::MAX, 8), None);
}

/// Blocks of a directory by CID, and its root.
fn built(names: &[Vec<u8>]) -> (HashMap<Cid, Vec<u8>>, Cid) {
    let cid = crate::cid::from_sha256(::cid::Version::V1, crate::cid::RAW, &[3; 32]);
    let entries: Vec<Entry> = names
        .iter()
        .map(|name| Entry {
            name: name.clone(),
            cid,
            tsize: 5,
        })
        .collect();
    let mut blocks = HashMap::new();
    let root = build(&entries, &UNIXFS_V1_2025, &mut |cid, block| {
        blocks.insert(cid, block);
    });
    (blocks, root.unwrap().cid)
}

fn find(blocks: &HashMap<Cid, Vec<u8>>, root: Cid, name: &[u8]) -> bool {
    let mut cid = root;
    let mut bits = 0;
    loop {
        let node = PbNode::parse(&blocks[&cid]).unwrap();
        let shard = Shard::parse(&node, &UnixFs::parse(node.data.unwrap()).unwrap()).unwrap();
        match shard.lookup(name, hash_name(name), bits).unwrap() {
            Lookup::Entry(link) => return link.name.ends_with(name),
            Lookup::Missing => return false,
            Lookup::Child(link) => cid = crate::cid::parse_bytes(link.cid).unwrap(),
        }
        bits += shard.fanout_log2();
    }
}

#[test]
fn every_entry_is_found_and_nothing_else() {
    let names: Vec<Vec<u8>> = (0..3000)
        .map(|n| format!("name {n}").into_bytes())
        .collect();
    let (blocks, root) = built(&names);
    assert!(names.iter().all(|name| find(&blocks, root, name)));
    assert!((3000..6000).all(|n| !find(&blocks, root, format!("name {n}").as_bytes())));
}

fn shard_block(data: &[u8], hash_type: u64, fanout: u64, links: &[&[u8]]) -> Vec<u8> {
    let mut block = Vec::new();
    for name in links {
        put_link(&mut block, &[1, 0x55, 0, 0], name, 1);
    }
    put_data(&mut block, &shard(data, hash_type, fanout));
    block
}

fn parse(block: &[u8]) -> Result<Lookup<'_>, HamtError> {
    let node = PbNode::parse(block).unwrap();
    let shard = Shard::parse(&node, &UnixFs::parse(node.data.unwrap()).unwrap())?;
    shard.lookup(b"x", 0, 0)
}

#[test]
fn unsound_shards_are_refused() {
    let murmur = MURMUR3_X64_64;
    for fanout in [0, 1, 2, 4, 7, 9, 255, 257, 2048, 1 << 32, u64::MAX] {
        let block = shard_block(&[], murmur, fanout, &[]);
        assert_eq!(parse(&block), Err(HamtError::FanoutInvalid(Some(fanout))));
    }
    let block = shard_block(&[], 0x12, 256, &[]);
    assert_eq!(parse(&block), Err(HamtError::HashUnknown(Some(0x12))));
    for (bitfield, n_links) in [(&[1][..], 0), (&[1], 2), (&[0; 33], 0), (&[], 1)] {
        let block = shard_block(bitfield, murmur, 256, &[&b"00x"[..], b"01x"][..n_links]);
        assert_eq!(parse(&block), Err(HamtError::BitfieldInvalid { n_links }));
    }
    for name in [&b""[..], b"0", b"01x", b"x"] {
        let block = shard_block(&[1], murmur, 256, &[name]);
        assert_eq!(parse(&block), Err(HamtError::PrefixInvalid { index: 0 }));
    }
    let directory = UnixFs::parse(&[8, 1]).unwrap();
    let error = Shard::parse(&PbNode::parse(&[]).unwrap(), &directory).unwrap_err();
    assert_eq!(error, HamtError::NotShard(Kind::Directory));
}

#[test]
fn slots_are_as_wide_as_the_fanout_needs() {
    for (fanout, prefix) in [
        (8, "0"),
        (16, "0"),
        (32, "00"),
        (256, "00"),
        (512, "000"),
        (1024, "000"),
    ] {
        let name = format!("{prefix}x");
        let block = shard_block(&[1], MURMUR3_X64_64, fanout, &[name.as_bytes()]);
        assert!(matches!(parse(&block), Ok(Lookup::Entry(_))), "{fanout}");
        let block = shard_block(&[1], MURMUR3_X64_64, fanout, &[prefix.as_bytes()]);
        assert!(matches!(parse(&block), Ok(Lookup::Child(_))), "{fanout}");
    }
}

#[test]
fn names_with_one_hash_end_in_an_error() {
    let cid = crate::cid::from_sha256(::cid::Version::V1, crate::cid::RAW, &[3; 32]);
    let entries: Vec<Entry> = (0..100_u8)
        .map(|n| Entry {
            name: vec![n],
            cid,
            tsize: 5,
        })
        .collect();
    let keyed: Vec<(u64, &Entry)> = entries.iter().map(|entry| (42, entry)).collect();
    let result = build_shard(&keyed, 0, &UNIXFS_V1_2025, &mut |_, _| {});
    assert!(matches!(result, Err(DirError::Collision(_))));
}

proptest! {
    #[test]
    fn all_names_of_any_directory_are_found(
        names in proptest::collection::hash_set(
            proptest::collection::vec(any::<u8>(), 1..20), 1..200),
    ) {
        let names: Vec<_> = names.into_iter().collect();
        let (blocks, root) = built(&names);
        for name in &names {
            prop_assert!(find(&blocks, root, name));
        }
    }

    #[test]
    fn arbitrary_bitfields_never_panic(
        data in proptest::collection::vec(any::<u8>(), 0..140),
        fanout_log2 in 0_u32..12,
        hash in any::<u64>(),
        bits in 0_u32..80,
        n_links in 0_usize..40,
    ) {
        let names = vec![&b"00a"[..]; n_links];
        let block = shard_block(&data, MURMUR3_X64_64, 1 << fanout_log2, &names);
        let node = PbNode::parse(&block).unwrap();
        if let Ok(shard) = Shard::parse(&node, &UnixFs::parse(node.data.unwrap()).unwrap()) {
            let _ = shard.lookup(b"a", hash, bits);
        }
    }
}
