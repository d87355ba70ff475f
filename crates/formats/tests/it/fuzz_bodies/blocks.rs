//! dag-pb, UnixFS and ranges: one block or one text.

use std::collections::HashSet;

use bytes::Bytes;
use carrack_formats::dag::links;
use carrack_formats::dag::pb::{PbLink, PbNode, encode, next_link};
use carrack_formats::unixfs::content::{Content, content};
use carrack_formats::unixfs::hamt::{Lookup, Shard, hash_name};
use carrack_formats::unixfs::list::{Item, entries};
use carrack_formats::unixfs::node::{Kind, UnixFs};
use carrack_formats::walk::ByteRange;
use carrack_formats::{Cid, Multihash, cid};

/// dag-pb: links lie inside of the block, are counted as they are read, and what is written of
/// them reads the same.
pub(crate) fn dag_pb(bytes: &[u8]) {
    let block = Bytes::copy_from_slice(bytes);
    let listed = links(cid::DAG_PB, &block);
    let Ok(node) = PbNode::parse(bytes) else {
        assert!(listed.is_err());
        return;
    };
    let mut found: Vec<PbLink<'_>> = node.links().collect();
    assert_eq!(found.len(), node.n_links());
    let range = node.links_range();
    assert!(range.end <= bytes.len());
    let (mut pos, mut n_links) = (0, 0);
    while let Some(link) = next_link(&bytes[range.clone()], &mut pos) {
        assert_eq!(link, found[n_links]);
        n_links += 1;
    }
    assert_eq!((pos, n_links), (range.len(), node.n_links()));

    let listed = listed.unwrap();
    assert_eq!(listed.len(), found.len());
    assert!(listed.memory_len() <= bytes.len() + found.len().max(4) * 2 * 8);
    for (link, listed) in found.iter().zip(listed.iter()) {
        assert_eq!(cid::parse_bytes(link.cid).ok(), listed.ok());
    }

    let written = encode(&mut found, node.data);
    let again = PbNode::parse(&written).unwrap();
    assert_eq!(again.data, node.data);
    let with_size = |link: &PbLink<'_>| {
        (
            link.cid.to_vec(),
            link.name.to_vec(),
            link.tsize.unwrap_or(0),
        )
    };
    assert!(
        again
            .links()
            .map(|link| with_size(&link))
            .eq(found.iter().map(with_size))
    );
    assert_eq!(
        encode(&mut again.links().collect::<Vec<_>>(), again.data),
        written
    );
}

/// UnixFS: the bytes are tried as a data field and as a block. Sizes are counted as they are read,
/// a directory lists what can be looked up in it.
pub(crate) fn unixfs(bytes: &[u8]) {
    if let Ok(unixfs) = UnixFs::parse(bytes) {
        data_field(&unixfs);
    }
    let block = Bytes::copy_from_slice(bytes);
    let own = Cid::new_v1(cid::DAG_PB, Multihash::wrap(0x12, &[0; 32]).unwrap());
    match content(&own, &block) {
        Ok(Content::File { data, file_len }) => assert!(file_len >= data.len() as u64),
        Ok(Content::Directory) => assert!(entries(bytes).is_ok()),
        Ok(Content::Shard) | Ok(Content::Symlink { .. }) | Ok(Content::Other) | Err(_) => {}
        Ok(_) => panic!("content of a new kind"),
    }
    let Ok(node) = PbNode::parse(bytes) else {
        return;
    };
    let Ok(unixfs) = UnixFs::parse_node(&node) else {
        return;
    };
    data_field(&unixfs);
    if let Ok(items) = entries(bytes) {
        assert!(matches!(unixfs.kind, Kind::Directory | Kind::HamtShard));
        assert_eq!(items.count(), node.n_links());
    }
    if let Ok(shard) = Shard::parse(&node, &unixfs) {
        look_up(&shard, &node, bytes);
    }
}

fn data_field(unixfs: &UnixFs<'_>) {
    assert_eq!(unixfs.blocksizes().count(), unixfs.n_blocksizes);
    if let Ok(file_len) = unixfs.file_len() {
        let data_len = unixfs.data.map_or(0, <[u8]>::len) as u64;
        assert_eq!(unixfs.blocksizes().sum::<u64>() + data_len, file_len);
    }
}

/// What is found under a name is a link of that name; at any depth the hash ends.
fn look_up(shard: &Shard<'_>, node: &PbNode<'_>, block: &[u8]) {
    let listed: HashSet<Vec<u8>> = entries(block)
        .unwrap()
        .filter_map(Result::ok)
        .filter_map(|item| match item {
            Item::Entry { name, .. } => Some(name.to_vec()),
            Item::Shard(_) => None,
        })
        .collect();
    let prefix_len = shard.prefix_len();
    assert!((1..=3).contains(&prefix_len));
    for link in node.links().take(32) {
        let name = link.name.get(prefix_len..).unwrap_or_default();
        let hash = hash_name(name);
        for bits in (0..=64).step_by(shard.fanout_log2() as usize) {
            match shard.lookup(name, hash, bits) {
                Ok(Lookup::Entry(link)) => {
                    assert_eq!(&link.name[prefix_len..], name);
                    let is_cid = cid::parse_bytes(link.cid).is_ok();
                    assert!(!is_cid || name.is_empty() || listed.contains(name));
                }
                Ok(Lookup::Child(link)) => assert_eq!(link.name.len(), prefix_len),
                Ok(Lookup::Missing) | Err(_) => {}
            }
        }
        assert!(shard.lookup(name, hash, 65 - shard.fanout_log2()).is_err());
        assert!(shard.lookup(name, hash, u32::MAX).is_err());
    }
}

/// `entity-bytes`: a range that is read lies inside of the file, whatever its length, and reads the
/// same when it is written.
pub(crate) fn entity_bytes(bytes: &[u8]) {
    let (file_len, text) = bytes.split_first_chunk().unwrap_or((&[0; 8], bytes));
    let file_len = u64::from_le_bytes(*file_len);
    let Ok(range) = std::str::from_utf8(text)
        .unwrap_or_default()
        .parse::<ByteRange>()
    else {
        return;
    };
    let to = range.to.map_or("*".to_owned(), |to| to.to_string());
    assert_eq!(format!("{}:{to}", range.from).parse(), Ok(range));
    for file_len in [0, 1, file_len, file_len >> 40, u64::MAX] {
        let Some((from, end)) = range.resolve(file_len) else {
            continue;
        };
        assert!(from < end && end <= file_len);
        let whole = i128::from(file_len);
        let absolute = |at: i64| {
            if at < 0 {
                whole + i128::from(at)
            } else {
                at.into()
            }
        };
        assert_eq!(i128::from(from), absolute(range.from).max(0));
        let last = range.to.map_or(whole - 1, absolute).min(whole - 1);
        assert_eq!(i128::from(end) - 1, last);
    }
}
