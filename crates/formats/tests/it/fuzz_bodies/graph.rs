//! Paths and walks over small graphs that the bytes describe.
//!
//! The first byte is the number of segments, each a byte; then one description a block, whose links
//! lead to blocks before it: as with real hashes there are no circles. Digests are made up, as
//! neither a path nor a walk looks at the data of what it verified elsewhere.

use std::collections::{HashMap, HashSet};

use bytes::Bytes;
use carrack_formats::dag::pb::{put_data, put_link};
use carrack_formats::unixfs::node::{self, UnixFs};
use carrack_formats::walk::{
    ByteRange, ResolveLimits, ResolveStep, Resolved, Resolver, Scope, Step, WalkError, WalkLimits,
    Walker,
};
use carrack_formats::{Cid, Multihash, cid, dag};

const BLOCKS_MAX: usize = 24;
const LINKS_MAX: usize = 6;
/// Steps after which a walk with duplicates has shown enough: it may take 2^20 of them.
const STEPS_MAX: usize = 3000;
const LIMITS: WalkLimits = WalkLimits {
    depth_max: 12,
    stack_bytes_max: 4096,
    visited_max: 20,
};

#[derive(Default)]
struct Graph {
    blocks: HashMap<Cid, Bytes>,
    cids: Vec<Cid>,
}

/// Resolves a path and walks from its end with every scope: only known CIDs come out, no limit is
/// passed, nothing comes twice without duplicates, and leaving duplicates out leaves nothing else
/// out.
pub(crate) fn walk(bytes: &[u8]) {
    let mut bytes = bytes.iter().copied();
    let n_segments = bytes.next().unwrap_or(0) % 4;
    let segments: Vec<String> = (0..n_segments)
        .map(|_| name(bytes.next().unwrap_or(0)))
        .collect();
    let options = bytes.next().unwrap_or(0);
    let range = ByteRange {
        from: i64::from(bytes.next().unwrap_or(0) as i8),
        to: (options & 1 == 0).then(|| i64::from(bytes.next().unwrap_or(0) as i8)),
    };
    let graph = Graph::read(&mut bytes);
    let Some(root) = graph.cids.last() else {
        return;
    };
    let Some(resolved) = resolve(&graph, *root, segments) else {
        return;
    };
    for (scope, range) in [
        (Scope::All, None),
        (Scope::Entity, None),
        (Scope::Entity, Some(range)),
        (Scope::Block, None),
    ] {
        let all = run(
            &graph,
            &resolved,
            Walker::new(&resolved, scope, range, true, LIMITS),
            false,
        );
        let once = run(
            &graph,
            &resolved,
            Walker::new(&resolved, scope, range, false, LIMITS),
            false,
        );
        let unique: HashSet<&Cid> = once.cids.iter().collect();
        assert_eq!(unique.len(), once.cids.len(), "a CID twice");
        if all.is_whole && once.is_whole {
            let mut seen = HashSet::new();
            let firsts: Vec<&Cid> = all.cids.iter().filter(|cid| seen.insert(**cid)).collect();
            assert!(
                firsts.into_iter().eq(once.cids.iter()),
                "{scope:?} {range:?}"
            );
        }
    }
    run(
        &graph,
        &resolved,
        Walker::read_file(resolved.terminus, Some(range), LIMITS),
        true,
    );
}

struct Walked {
    cids: Vec<Cid>,
    is_whole: bool,
}

fn run(graph: &Graph, resolved: &Resolved, mut walker: Walker, reads: bool) -> Walked {
    // What the walk may know of: its start, and links out of blocks it was given.
    let mut known: HashSet<Cid> = resolved.path_blocks.iter().copied().collect();
    known.insert(resolved.terminus);
    graph.learn_inline(&mut known);
    let mut walked = Walked {
        cids: Vec::new(),
        is_whole: false,
    };
    for _ in 0..STEPS_MAX {
        match walker.next() {
            Ok(Step::End) => {
                assert_eq!(walker.next(), Ok(Step::End));
                walked.is_whole = true;
                break;
            }
            Ok(Step::Leaf(cid)) => {
                assert!(known.contains(&cid), "{cid} from nowhere");
                assert!(reads || cid::identity_data(&cid).is_none());
                walked.cids.push(cid);
            }
            Ok(Step::Need { cid, emit }) => {
                assert!(known.contains(&cid), "{cid} from nowhere");
                assert!(reads || cid::identity_data(&cid).is_none());
                assert_eq!(walker.next(), Ok(Step::Need { cid, emit }));
                if emit {
                    walked.cids.push(cid);
                }
                let Some(block) = graph.blocks.get(&cid) else {
                    break;
                };
                known.extend(links_of(&cid, block));
                if walker.provide(&cid, block.clone()).is_err() {
                    assert_eq!(walker.next(), Err(WalkError::Failed));
                    break;
                }
            }
            Err(error) => {
                assert_ne!(error, WalkError::Failed);
                assert_eq!(walker.next(), Err(WalkError::Failed));
                break;
            }
        }
    }
    walked
}

fn resolve(graph: &Graph, root: Cid, segments: Vec<String>) -> Option<Resolved> {
    let n_segments = segments.len();
    let mut resolver = Resolver::new(root, segments, ResolveLimits::default()).unwrap();
    let mut n_read = 0;
    loop {
        let step = match resolver.next() {
            Ok(step) => step,
            Err(error) => return is_refusal(&error, n_segments),
        };
        match step {
            ResolveStep::Done(resolved) => {
                assert_eq!(resolved.roots.len(), n_segments + 1);
                assert_eq!(resolved.roots.first(), Some(&root));
                assert_eq!(resolved.roots.last(), Some(&resolved.terminus));
                assert_eq!(resolved.path_blocks, resolver.blocks_read());
                return Some(resolved);
            }
            ResolveStep::Need(cid) => {
                // A segment goes through at most 22 shards; there are fewer blocks than that.
                n_read += 1;
                assert!(n_read <= n_segments.max(1) * (BLOCKS_MAX + 1));
                let block = graph.blocks.get(&cid)?;
                if let Err(error) = resolver.provide(&cid, block) {
                    assert_eq!(resolver.next(), Err(WalkError::Failed));
                    return is_refusal(&error, n_segments);
                }
            }
        }
    }
}

fn is_refusal(error: &WalkError, n_segments: usize) -> Option<Resolved> {
    if let WalkError::NotFound { index, .. } = error {
        assert!(*index < n_segments);
    }
    None
}

/// Every link of a block, in whatever form.
fn links_of(cid: &Cid, block: &Bytes) -> Vec<Cid> {
    let links = dag::links(cid.codec(), block).unwrap_or_default();
    links.iter().filter_map(Result::ok).collect()
}

/// Few names, so that paths lead somewhere.
fn name(byte: u8) -> String {
    ["a", "b", "0", "1", ""][usize::from(byte % 5)].to_owned()
}

impl Graph {
    fn read(bytes: &mut impl Iterator<Item = u8>) -> Self {
        let mut graph = Self::default();
        while let (Some(kind), true) = (bytes.next(), graph.cids.len() < BLOCKS_MAX) {
            let n_links = usize::from(bytes.next().unwrap_or(0)) % LINKS_MAX;
            let links: Vec<(Cid, u8)> = (0..n_links)
                .filter_map(|_| {
                    let target = usize::from(bytes.next()?) % graph.cids.len().max(1);
                    Some((*graph.cids.get(target)?, bytes.next()?))
                })
                .collect();
            let len = usize::from(bytes.next().unwrap_or(0)) % 48;
            let data: Vec<u8> = bytes.by_ref().take(len).collect();
            graph.put(kind, &links, data);
        }
        graph
    }

    fn put(&mut self, kind: u8, links: &[(Cid, u8)], data: Vec<u8>) {
        let (codec, block) = match kind % 8 {
            0 => (cid::RAW, data),
            1 => (cid::DAG_PB, pb(links, &data)),
            2 => (cid::DAG_PB, pb(links, &node::DIRECTORY)),
            3 => {
                let mut file = node::file_head(u64::from(kind >> 3) * 8);
                for byte in data.iter().take(links.len()) {
                    node::put_blocksize(&mut file, u64::from(*byte));
                }
                (cid::DAG_PB, pb(links, &file))
            }
            4 => (cid::DAG_PB, shard(links)),
            5 => (cid::DAG_CBOR, cbor(links)),
            6 => (cid::DAG_JSON, json(links)),
            _ => {
                let codecs = [
                    cid::DAG_PB,
                    cid::DAG_CBOR,
                    cid::DAG_JSON,
                    cid::RAW,
                    cid::DAG_JOSE,
                    cid::GIT_RAW,
                    0x90, // Unknown.
                    cid::DAG_PB,
                ];
                (codecs[usize::from(kind >> 3) % 8], data)
            }
        };
        let index = u8::try_from(self.cids.len()).unwrap();
        let inline = kind & 0x80 != 0 && block.len() <= 128;
        let multihash = if inline {
            Multihash::wrap(cid::IDENTITY, &block)
        } else {
            Multihash::wrap(cid::SHA2_256, &[index; 32])
        };
        let cid = Cid::new_v1(codec, multihash.unwrap());
        self.cids.push(cid);
        self.blocks.insert(cid, block.into());
    }

    /// Blocks that lie inside of CIDs are never asked for, and their links are known at once.
    fn learn_inline(&self, known: &mut HashSet<Cid>) {
        for (cid, block) in &self.blocks {
            if cid::identity_data(cid).is_some() {
                known.extend(links_of(cid, block));
            }
        }
    }
}

fn pb(links: &[(Cid, u8)], data: &[u8]) -> Vec<u8> {
    let mut block = Vec::new();
    for (cid, byte) in links {
        put_link(&mut block, &cid.to_bytes(), name(*byte).as_bytes(), 1);
    }
    put_data(&mut block, data);
    block
}

/// A shard of eight slots, one for each link; bit 7 of a link's byte makes it an entry.
fn shard(links: &[(Cid, u8)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (slot, (cid, byte)) in links.iter().enumerate() {
        let entry = if byte & 0x80 == 0 {
            String::new()
        } else {
            name(*byte)
        };
        let name = format!("{slot}{entry}");
        put_link(&mut block, &cid.to_bytes(), name.as_bytes(), 1);
    }
    let used = (1_u8 << links.len()) - 1;
    put_data(&mut block, &node::shard(&[used], 0x22, 8));
    assert!(UnixFs::parse(&node::shard(&[used], 0x22, 8)).is_ok());
    block
}

fn cbor(links: &[(Cid, u8)]) -> Vec<u8> {
    let mut block = vec![0x80 | links.len() as u8];
    for (cid, byte) in links {
        if byte & 1 == 1 {
            block.extend([0xa1, 0x61, b'a']);
        }
        let cid = cid.to_bytes();
        block.extend([0xd8, 42, 0x58, cid.len() as u8 + 1, 0]);
        block.extend(cid);
    }
    block
}

fn json(links: &[(Cid, u8)]) -> Vec<u8> {
    let link = |(cid, byte): &(Cid, u8)| format!("\"{}\":{{\"/\":\"{cid}\"}}", byte % 3);
    let links: Vec<String> = links.iter().map(link).collect();
    format!("{{{}}}", links.join(",")).into_bytes()
}
