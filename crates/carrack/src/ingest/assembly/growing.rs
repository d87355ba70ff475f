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
use crate::ingest::hash::Digest;
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
    waiting: BTreeMap<u64, Vec<Digest>>,
    nodes: Nodes,
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
        // An empty leaf lies nowhere: it is a node like any other.
        let container = (len > 0).then(|| self.sink.new_container());
        for (index, digest) in digests.iter().enumerate() {
            let leaf = self.leaf(container, digest, index as u64, len)?;
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
        let (journal, known) = self.journal(path, validator, journal_len_min);
        let mut growing = Growing {
            place,
            path: path.to_owned(),
            validator: validator.clone(),
            journal,
            n_leaves,
            next_leaf: 0,
            container: self.sink.new_container(),
            builder: FileBuilder::new(&self.options.profile),
            waiting: BTreeMap::new(),
            nodes: Nodes::default(),
        };
        self.push_leaves(&mut growing, &known, true)?;
        let known_len = self.rule.leaf(growing.next_leaf, validator.size()).0;
        self.seen(known_len.min(validator.size()));
        Ok(growing)
    }

    fn journal(
        &self,
        path: &Path,
        validator: &Validator,
        len_min: u64,
    ) -> (Option<Journal>, Vec<Digest>) {
        if validator.size() < len_min {
            return (None, Vec::new());
        }
        let path = self.sink.shown(path);
        let subject = Subject {
            path: path.as_os_str().as_bytes(),
            validator,
            profile: self.profile,
        };
        match Journal::open(self.sink.journal_dir(), subject) {
            Ok((journal, known)) => (Some(journal), known),
            Err(error) => {
                tracing::warn!(%error, "no journal: an interrupted add of this file starts over");
                (None, Vec::new())
            }
        }
    }

    /// Leaves from `first` on. They are used as soon as all before them are there.
    pub(in crate::ingest) fn leaves_came(
        &mut self,
        growing: &mut Growing,
        first: u64,
        digests: Vec<Digest>,
    ) -> Result<()> {
        let file_len = growing.validator.size();
        let start = self.rule.leaf(first, file_len).0;
        let end = self.rule.leaf(first + digests.len() as u64, file_len).0;
        let len = end.min(file_len).saturating_sub(start);
        self.report.bytes_hashed += len;
        self.seen(len);
        growing.waiting.insert(first, digests);
        while let Some(digests) = growing.waiting.remove(&growing.next_leaf) {
            self.push_leaves(growing, &digests, false)?;
        }
        Ok(())
    }

    /// The next leaves of a big file, in order.
    fn push_leaves(
        &mut self,
        growing: &mut Growing,
        digests: &[Digest],
        journalled: bool,
    ) -> Result<()> {
        for digest in digests {
            if growing.next_leaf >= growing.n_leaves {
                break;
            }
            let (container, len) = (growing.container, growing.validator.size());
            let leaf = self.leaf(Some(container), digest, growing.next_leaf, len)?;
            let mut nodes = growing.nodes.written_to(&mut self.sink);
            growing.builder.push_leaf(leaf, &mut nodes);
            growing.next_leaf += 1;
            if !journalled
                && let Some(journal) = &mut growing.journal
                && journal.push(*digest).is_err()
            {
                growing.journal = None; // A full disk is told by what must be written.
            }
        }
        growing.nodes.check()
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

    /// Records where a leaf lies and gives it to the builder.
    fn leaf(
        &mut self,
        container: Option<ContainerId>,
        digest: &Digest,
        index: u64,
        file_len: u64,
    ) -> Result<Leaf> {
        let (offset, len) = self.rule.leaf(index, file_len);
        let (version, codec) = match self.rule.raw {
            true => (Version::V1, cid::RAW),
            false => (self.options.profile.cid_version, cid::DAG_PB),
        };
        let cid = cid::from_sha256(version, codec, digest);
        let block_len = if self.rule.raw {
            u64::from(len)
        } else {
            leaf::block_len(len as usize) as u64
        };
        match container {
            Some(container) => {
                let location = Location {
                    container,
                    offset,
                    len,
                    wrapped: !self.rule.raw,
                };
                self.sink.range(&cid, location)?;
            }
            None => {
                let (mut block, suffix) = if self.rule.raw {
                    (Vec::new(), Vec::new())
                } else {
                    leaf::frame(0)
                };
                block.extend_from_slice(&suffix);
                self.sink.node(&cid, &block)?;
            }
        }
        Ok(Leaf {
            cid,
            file_len: u64::from(len),
            block_len,
        })
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
