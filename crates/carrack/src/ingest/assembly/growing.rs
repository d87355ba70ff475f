//! Files as their leaves become known: small ones at once, big ones in ranges.
//!
//! In       digests of leaves.
//! Out      the leaves in the index, the nodes above them in the pack, the file's row.
//! Limits   of a big file the digests that came too early are held, and the builder's open nodes.
//! Not here reading and hashing (`ingest::add`, `ingest::remote`).

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use ::cid::Version;
use carrack_formats::cid;
use carrack_formats::unixfs::build::{FileBuilder, Leaf};
use carrack_formats::unixfs::leaf;

use super::{Assembly, Nodes, Place};
use crate::error::Result;
use crate::ingest::hash::{Digest, Leaves};
use crate::ingest::journal::{Journal, Subject};
use crate::ingest::tree::Sum;
use crate::store::catalog::{ContainerKind, Validator};
use crate::store::location::{ContainerId, Location};

/// A big file, some leaves of which are known.
pub(in crate::ingest) struct Growing {
    pub(in crate::ingest) place: Place,
    pub(in crate::ingest) path: PathBuf,
    pub(in crate::ingest) validator: Validator,
    pub(in crate::ingest) journal: Option<Journal>,
    pub(in crate::ingest) n_leaves: u64,
    /// The first leaf that is not known.
    pub(in crate::ingest) next_leaf: u64,
    container: ContainerId,
    builder: FileBuilder,
    waiting: BTreeMap<u64, Leaves>,
    nodes: Nodes,
    /// The digest of the last leaf: one that repeats it is found where that lies.
    last: Option<Digest>,
}

impl Assembly<'_> {
    /// A small file's leaves, all of them.
    pub(in crate::ingest) fn whole_file(
        &mut self,
        path: &Path,
        place: Place,
        validator: &Validator,
        digests: &[Digest],
    ) -> Result<()> {
        let len = validator.size();
        self.report.files_hashed += 1;
        self.report.bytes_hashed += len;
        self.seen(len);
        let mut builder = FileBuilder::new(&self.options.profile);
        let mut nodes = Nodes::default();
        let container = (len > 0).then(|| self.sink.new_container());
        for (index, digest) in digests.iter().enumerate() {
            let leaf = self.leaf_of(digest, index as u64, len);
            match container {
                Some(container) => self.list_leaf(&leaf, container, index as u64, len)?,
                None => self.empty_leaf(&leaf)?,
            }
            builder.push_leaf(leaf, &mut nodes.written_to(&mut self.sink));
        }
        let built = builder.finish(&mut nodes.written_to(&mut self.sink));
        nodes.check()?;
        let n_blocks = digests.len() as u64 + nodes.n;
        let empty_leaf = || container.is_none().then(|| self.sink.pack_id()).flatten();
        let pack = nodes.pack.or_else(empty_leaf);
        let sum = Sum {
            cid: built.cid,
            file_len: len,
            dag_len: built.dag_len,
            n_blocks,
            n_files: 1,
        };
        self.file_done(path, place, validator, container, pack, sum)
    }

    /// A big file of which nothing was read yet. What an earlier add's journal tells of it counts.
    pub(in crate::ingest) fn grow(
        &mut self,
        path: &Path,
        validator: &Validator,
        place: Place,
        journal_len_min: u64,
    ) -> Result<Growing> {
        let n_leaves = self.rule.n_leaves(validator.size());
        let mut growing = Growing {
            place,
            path: path.to_owned(),
            validator: validator.clone(),
            journal: None,
            n_leaves,
            next_leaf: 0,
            container: self.sink.new_container(),
            builder: FileBuilder::new(&self.options.profile),
            waiting: BTreeMap::new(),
            nodes: Nodes::default(),
            last: None,
        };
        if validator.size() >= journal_len_min {
            growing.journal = self.journal(path, validator, &mut growing)?;
        }
        let known_len = self.rule.leaf(growing.next_leaf, validator.size()).0;
        self.seen(known_len.min(validator.size()));
        Ok(growing)
    }

    /// The journal of a file; what it tells is pushed.
    fn journal(
        &mut self,
        path: &Path,
        validator: &Validator,
        growing: &mut Growing,
    ) -> Result<Option<Journal>> {
        let path = self.sink.shown(path);
        let subject = Subject {
            path: path.as_os_str().as_bytes(),
            validator,
            profile: self.profile,
        };
        let mut pushed = Ok(());
        let dir = self.sink.journal_dir().to_owned();
        let opened = Journal::open(&dir, subject, &mut |leaves| {
            if pushed.is_ok() {
                pushed = self.push_leaves(growing, &leaves, true);
            }
        });
        pushed?;
        Ok(opened
            .inspect_err(|error| {
                tracing::warn!(%error, "no journal: an interrupted add of this file starts over");
            })
            .ok())
    }

    /// Leaves from `first` on. They are used as soon as all before them are there.
    pub(in crate::ingest) fn leaves_came(
        &mut self,
        growing: &mut Growing,
        first: u64,
        leaves: Leaves,
    ) -> Result<()> {
        let file_len = growing.validator.size();
        let start = self.rule.leaf(first, file_len).0;
        let end = self.rule.leaf(first + leaves.n(), file_len).0;
        let len = end.min(file_len).saturating_sub(start);
        self.report.bytes_hashed += len;
        self.seen(len);
        growing.waiting.insert(first, leaves);
        while let Some(leaves) = growing.waiting.remove(&growing.next_leaf) {
            self.push_leaves(growing, &leaves, false)?;
        }
        Ok(())
    }

    /// The next leaves of a big file, in order.
    fn push_leaves(
        &mut self,
        growing: &mut Growing,
        leaves: &Leaves,
        journalled: bool,
    ) -> Result<()> {
        match leaves {
            Leaves::Each(digests) => {
                for digest in digests {
                    self.push_leaf(growing, digest)?;
                }
            }
            Leaves::Repeated(digest, n) => self.push_repeated(growing, digest, *n)?,
        }
        if !journalled && let Some(journal) = &mut growing.journal {
            let written = match leaves {
                Leaves::Each(digests) => digests.iter().try_for_each(|one| journal.push(*one)),
                Leaves::Repeated(digest, n) => journal.push_repeated(*digest, *n),
            };
            if written.is_err() {
                growing.journal = None; // A full disk is told by what must be written.
            }
        }
        growing.nodes.check()
    }

    /// Leaves of a hole: one look at them is enough, however many they are.
    fn push_repeated(&mut self, growing: &mut Growing, digest: &Digest, n: u64) -> Result<()> {
        let before_last = growing.n_leaves.saturating_sub(1);
        let n_full = n.min(before_last.saturating_sub(growing.next_leaf));
        if n_full > 0 {
            let (index, len) = (growing.next_leaf, growing.validator.size());
            let leaf = self.leaf_of(digest, index, len);
            if growing.last.replace(*digest) != Some(*digest) {
                self.list_leaf(&leaf, growing.container, index, len)?;
            }
            let mut nodes = growing.nodes.each_written_to(&mut self.sink);
            growing.builder.push_run(leaf, n_full, &mut nodes);
            growing.next_leaf += n_full;
        }
        match n > n_full {
            true => self.push_leaf(growing, digest), // The last one may be shorter.
            false => Ok(()),
        }
    }

    fn push_leaf(&mut self, growing: &mut Growing, digest: &Digest) -> Result<()> {
        if growing.next_leaf >= growing.n_leaves {
            return Ok(()); // A journal that claims more than there are.
        }
        let (index, len) = (growing.next_leaf, growing.validator.size());
        let leaf = self.leaf_of(digest, index, len);
        if growing.last.replace(*digest) != Some(*digest) {
            self.list_leaf(&leaf, growing.container, index, len)?;
        }
        let mut nodes = growing.nodes.written_to(&mut self.sink);
        growing.builder.push_leaf(leaf, &mut nodes);
        growing.next_leaf += 1;
        Ok(())
    }

    /// A big file, all of whose leaves are known.
    pub(in crate::ingest) fn grown(&mut self, mut growing: Growing) -> Result<()> {
        let built = growing
            .builder
            .finish(&mut growing.nodes.written_to(&mut self.sink));
        growing.nodes.check()?;
        let sum = Sum {
            cid: built.cid,
            file_len: growing.validator.size(),
            dag_len: built.dag_len,
            n_blocks: growing.n_leaves + growing.nodes.n,
            n_files: 1,
        };
        self.report.files_hashed += 1;
        self.sink.forget_after_commit(growing.journal.take());
        self.file_done(
            &growing.path,
            growing.place,
            &growing.validator,
            Some(growing.container),
            growing.nodes.pack,
            sum,
        )
    }

    fn leaf_of(&self, digest: &Digest, index: u64, file_len: u64) -> Leaf {
        let len = self.rule.leaf(index, file_len).1;
        let (version, codec) = match self.rule.raw {
            true => (Version::V1, cid::RAW),
            false => (self.options.profile.cid_version, cid::DAG_PB),
        };
        let block_len = match self.rule.raw {
            true => u64::from(len),
            false => leaf::block_len(len as usize) as u64,
        };
        Leaf {
            cid: cid::from_sha256(version, codec, digest),
            file_len: u64::from(len),
            block_len,
        }
    }

    /// Records where a leaf lies.
    fn list_leaf(
        &mut self,
        leaf: &Leaf,
        container: ContainerId,
        index: u64,
        file_len: u64,
    ) -> Result<()> {
        let (offset, len) = self.rule.leaf(index, file_len);
        let location = Location {
            container,
            offset,
            len,
            wrapped: !self.rule.raw,
        };
        self.sink.range(&leaf.cid, location)
    }

    /// An empty leaf lies nowhere: it is a node like any other.
    fn empty_leaf(&mut self, leaf: &Leaf) -> Result<()> {
        let (mut block, suffix) = match self.rule.raw {
            true => (Vec::new(), Vec::new()),
            false => leaf::frame(0),
        };
        block.extend_from_slice(&suffix);
        self.sink.node(&leaf.cid, &block).map(|_| ())
    }

    fn file_done(
        &mut self,
        path: &Path,
        place: Place,
        validator: &Validator,
        container: Option<ContainerId>,
        pack: Option<ContainerId>,
        sum: Sum,
    ) -> Result<()> {
        self.is_there(path);
        self.count_new(path)?;
        if let Some(container) = container {
            self.sink
                .container(container, ContainerKind::File, path, validator);
        }
        self.sink
            .file(path, self.profile, validator, container, pack, sum);
        self.member(place.root, container);
        self.member(place.root, pack);
        self.settle(place.parent, Some(sum))
    }
}
