//! Files: leaves in, the balanced tree above them out.
//!
//! In       the leaves of one file, in order, already hashed.
//! Out      interior nodes, given to the caller's sink as soon as they are full; the root.
//! Limits   memory is one node being filled per level: the link width times about 50 bytes.
//! Not here cutting into chunks and hashing leaves, which the caller does in parallel.
//!
//! All leaves are at the same depth, every node but the last of its level is full, and a file of
//! one leaf is that leaf. So a full node is closed only when a further child arrives: whether the
//! root is full or has a parent cannot be known before.

use ::cid::Version;

use crate::Cid;
use crate::cid::{DAG_PB, RAW, from_sha256};
use crate::dag::pb::{put_data, put_link};
use crate::unixfs::leaf::{block_len, frame};
use crate::unixfs::node::{file_head, put_blocksize};
use crate::unixfs::profile::Profile;
use crate::verify;

/// One chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    /// CID of the leaf block.
    pub cid: Cid,
    /// Bytes of the file in it.
    pub file_len: u64,
    /// Bytes of the block: more than `file_len` if the leaf is wrapped.
    pub block_len: u64,
}

/// The root of something built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Built {
    /// CID of the root.
    pub cid: Cid,
    /// Bytes of the file; 0 for directories.
    pub file_len: u64,
    /// Bytes of all blocks, a block that is linked twice counted twice: the Tsize of links to
    /// the root.
    pub dag_len: u64,
}

/// Builds the tree of one file.
#[derive(Debug)]
pub struct FileBuilder {
    cid_version: Version,
    raw_leaves: bool,
    link_width: u32,
    /// The nodes being filled, the lowest first. Every level has at least one child.
    levels: Vec<Level>,
}

/// A node being filled.
#[derive(Debug, Default)]
struct Level {
    n_children: u32,
    /// The first child, which is the result if no second one comes.
    first: Option<Built>,
    links: Vec<u8>,
    blocksizes: Vec<u8>,
    file_len: u64,
    dag_len: u64,
}

impl FileBuilder {
    /// Starts an empty file.
    #[must_use]
    pub fn new(profile: &Profile) -> Self {
        Self {
            cid_version: profile.cid_version,
            raw_leaves: profile.raw_leaves,
            link_width: profile.link_width.max(2),
            levels: Vec::new(),
        }
    }

    /// Appends the next leaf. `sink` gets each node that this closes, children before parents.
    pub fn push_leaf(&mut self, leaf: Leaf, sink: &mut impl FnMut(Cid, Vec<u8>)) {
        let child = Built {
            cid: leaf.cid,
            file_len: leaf.file_len,
            dag_len: leaf.block_len,
        };
        self.push(0, child, sink);
    }

    /// Appends `n` leaves that are all the same, as [`push_leaf`](Self::push_leaf) would one by
    /// one. `sink` gets each node that this closes once, and how often it is in the tree: a hole of
    /// terabytes costs a node or two a level.
    pub fn push_run(&mut self, leaf: Leaf, n: u64, sink: &mut dyn FnMut(Cid, Vec<u8>, u64)) {
        let child = Built {
            cid: leaf.cid,
            file_len: leaf.file_len,
            dag_len: leaf.block_len,
        };
        self.push_many(0, child, n, sink);
    }

    /// Puts `child` on `level` `n` times. Recursion ends with the levels: each takes as many as the
    /// one below it, divided by the link width.
    fn push_many(
        &mut self,
        level: usize,
        child: Built,
        mut n: u64,
        sink: &mut dyn FnMut(Cid, Vec<u8>, u64),
    ) {
        let (width, version) = (self.link_width, self.cid_version);
        while n > 0 {
            if self.levels.len() <= level {
                self.levels.push(Level::default());
            }
            let Some(node) = self.levels.get_mut(level) else {
                return;
            };
            let is_empty = node.n_children == 0;
            // Full nodes of nothing else, behind each of which a child follows.
            let n_full = (n - 1) / u64::from(width);
            if node.n_children == width {
                let full = std::mem::take(node);
                let full = full.close(version, &mut |cid, block| sink(cid, block, 1));
                self.push_many(level + 1, full, 1, sink);
            } else if is_empty && n_full > 0 {
                let mut full = Level::default();
                (0..width).for_each(|_| full.add(child));
                let full = full.close(version, &mut |cid, block| sink(cid, block, n_full));
                self.push_many(level + 1, full, n_full, sink);
                n -= n_full * u64::from(width);
            } else {
                let n_here = n.min(u64::from(width - node.n_children));
                (0..n_here).for_each(|_| node.add(child));
                n -= n_here;
            }
        }
    }

    /// Puts `child` on `level`; a full level is closed first and moves up.
    fn push(&mut self, level: usize, child: Built, sink: &mut impl FnMut(Cid, Vec<u8>)) {
        let mut arriving = Some(child);
        for index in level.. {
            let Some(child) = arriving.take() else { return };
            match self.levels.get_mut(index) {
                None => self.levels.push(Level::default().with(child)),
                Some(node) if node.n_children < self.link_width => node.add(child),
                Some(node) => {
                    let full = std::mem::take(node);
                    node.add(child);
                    arriving = Some(full.close(self.cid_version, sink));
                }
            }
        }
    }

    /// Closes what is open and returns the root. A file without leaves is one empty leaf, which
    /// is then given to `sink`, as nobody else has its block.
    pub fn finish(mut self, sink: &mut impl FnMut(Cid, Vec<u8>)) -> Built {
        let mut index = 0;
        loop {
            let is_top = index + 1 >= self.levels.len();
            let Some(level) = self.levels.get_mut(index) else {
                return self.empty(sink);
            };
            let level = std::mem::take(level);
            if let (true, 1, Some(root)) = (is_top, level.n_children, level.first) {
                return root;
            }
            let built = level.close(self.cid_version, sink);
            if is_top {
                return built;
            }
            index += 1;
            self.push(index, built, sink);
        }
    }

    fn empty(&self, sink: &mut impl FnMut(Cid, Vec<u8>)) -> Built {
        let (cid, block) = if self.raw_leaves {
            (
                from_sha256(Version::V1, RAW, &verify::sha256(&[])),
                Vec::new(),
            )
        } else {
            let (mut block, suffix) = frame(0);
            block.extend_from_slice(&suffix);
            (
                from_sha256(self.cid_version, DAG_PB, &verify::sha256(&block)),
                block,
            )
        };
        let dag_len = if self.raw_leaves {
            0
        } else {
            block_len(0) as u64
        };
        sink(cid, block);
        Built {
            cid,
            file_len: 0,
            dag_len,
        }
    }
}

impl Level {
    fn with(mut self, child: Built) -> Self {
        self.add(child);
        self
    }

    fn add(&mut self, child: Built) {
        if self.n_children == 0 {
            self.first = Some(child);
        }
        self.n_children += 1;
        put_link(&mut self.links, &child.cid.to_bytes(), b"", child.dag_len);
        put_blocksize(&mut self.blocksizes, child.file_len);
        self.file_len = self.file_len.saturating_add(child.file_len);
        self.dag_len = self.dag_len.saturating_add(child.dag_len);
    }

    fn close(self, cid_version: Version, sink: &mut impl FnMut(Cid, Vec<u8>)) -> Built {
        let mut data = file_head(self.file_len);
        data.extend_from_slice(&self.blocksizes);
        let mut block = self.links;
        put_data(&mut block, &data);
        let cid = from_sha256(cid_version, DAG_PB, &verify::sha256(&block));
        let dag_len = self.dag_len.saturating_add(block.len() as u64);
        sink(cid, block);
        Built {
            cid,
            file_len: self.file_len,
            dag_len,
        }
    }
}

#[cfg(test)]
mod tests;
