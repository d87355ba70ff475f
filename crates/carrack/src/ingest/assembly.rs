//! From what files came to, to directories and roots: the part of every add, wherever files lie.
//!
//! In       leaf digests of files, symlinks, what was left out, each with its place in the tree.
//! Out      interior nodes, rows and roots in the sink; the report.
//! Limits   those of `ingest::tree` and `ingest::sink`; of a big file those of
//!          `assembly::growing`.
//! Not here finding files and reading them (`ingest::add`, `ingest::remote`).

mod audit;
pub(super) mod growing;

use std::collections::VecDeque;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use carrack_formats::unixfs::dir;
use carrack_formats::{Cid, cid};
use rustix::io::Errno;

use crate::error::{Error, ErrorKind, Result};
use crate::ingest::add::AddOptions;
use crate::ingest::hash::LeafRule;
use crate::ingest::journal;
use crate::ingest::sink::{KnownFile, Origin, Sink};
use crate::ingest::tree::{Directory, Parent, Sum, Tree};
use crate::ingest::{AddReport, AddedRoot, LEFT_OUT_SHOWN_MAX, LeftOut, Progress};
use crate::store::Store;
use crate::store::catalog::{RootKind, Validator};
use crate::store::location::ContainerId;

/// Where a file's sum goes, and which root it counts for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) parent: Parent,
    pub(super) root: usize,
}

/// What is said to be under way.
pub(super) const HASHING: &str = "hashing";

/// Who watches an add, and who may end it.
pub(super) struct Watcher<'a> {
    pub(super) progress: &'a mut dyn Progress,
    pub(super) stop: &'a AtomicBool,
    /// Bytes of all files, as far as they were counted.
    pub(super) total: &'a AtomicU64,
    /// All were counted.
    pub(super) measured: &'a AtomicBool,
}

/// One add's results on their way into the store.
pub(super) struct Assembly<'a> {
    pub(super) options: &'a AddOptions,
    pub(super) rule: LeafRule,
    pub(super) profile: u32,
    pub(super) sink: Sink<'a>,
    pub(super) tree: Tree,
    pub(super) report: AddReport,
    pub(super) watcher: Watcher<'a>,
    members: Vec<Vec<ContainerId>>,
    sums: Vec<Option<Sum>>,
    next_token: u64,
    bytes_seen: u64,
    audit: Option<audit::Audit>,
}

impl<'a> Assembly<'a> {
    pub(super) fn new(
        store: &'a Arc<Store>,
        origin: Origin,
        options: &'a AddOptions,
        watcher: Watcher<'a>,
    ) -> Result<Self> {
        let rule = LeafRule {
            chunk_size: options.profile.chunk_size,
            raw: options.profile.raw_leaves,
        };
        journal::sweep(store);
        Ok(Self {
            options,
            rule,
            profile: options.profile.fingerprint(),
            sink: Sink::of(store, origin)?,
            tree: Tree::default(),
            report: AddReport::default(),
            watcher,
            members: Vec::new(),
            sums: Vec::new(),
            next_token: 0,
            bytes_seen: 0,
            audit: None,
        })
    }

    /// Leaves a file out that is too long to be served; whether it was.
    pub(super) fn too_long(&mut self, path: &Path, len: u64, place: Place) -> Result<bool> {
        match self.rule.too_long(len) {
            Some(why) => self.left_out(path, why, place).map(|()| true),
            None => Ok(false),
        }
    }

    /// One more root that results may count for.
    pub(super) fn begin_root(&mut self) -> usize {
        self.members.push(Vec::new());
        self.sums.push(None);
        self.sums.len() - 1
    }

    /// Whether nothing may become a root: something was left out, and all is wanted. What was read
    /// stays, for the next add.
    pub(super) const fn is_refused(&self) -> bool {
        self.options.strict && self.report.n_left_out > 0
    }

    /// Promises what one target came to; `None` if that was left out.
    pub(super) fn root(&mut self, index: usize, path: &Path) -> Result<Option<AddedRoot>> {
        let Some(sum) = self.sums.get(index).copied().flatten() else {
            return Ok(None);
        };
        let members = self.members.get_mut(index).map(std::mem::take);
        let path = match self.options.wrap {
            true => path.parent().unwrap_or(path),
            false => path,
        };
        let members = members.unwrap_or_default();
        self.sink
            .root(&sum.cid, path, RootKind::Add, self.profile, sum, members)?;
        Ok(Some(AddedRoot {
            cid: sum.cid,
            path: self.sink.shown(path),
            bytes: sum.file_len,
            n_blocks: sum.n_blocks,
            n_files: sum.n_files,
        }))
    }

    /// A file that an earlier add read and that is still the same.
    pub(super) fn unchanged(&mut self, path: &Path, known: &KnownFile, place: Place) -> Result<()> {
        self.is_there(path);
        self.report.files_unchanged += 1;
        self.seen(known.validator.size());
        if let Some(container) = known.container {
            self.sink.still_there(container);
        }
        self.member(place.root, known.container);
        self.member(place.root, known.pack);
        self.settle(place.parent, Some(known.sum))
    }

    pub(super) fn symlink(&mut self, path: &Path, target: &[u8], place: Place) -> Result<()> {
        self.report.symlinks += 1;
        self.is_there(path);
        let (built, block) = dir::symlink(target, &self.options.profile);
        let dag_len = block.len() as u64;
        let sum = Sum {
            cid: built.cid,
            file_len: 0,
            dag_len,
            n_blocks: 1,
            n_files: 0,
        };
        let known = self.sink.known_file(path, self.profile)?;
        let pack = match known.filter(|known| known.sum.cid == built.cid) {
            Some(known) => known.pack,
            None => {
                self.count_new(path)?;
                let pack = Some(self.sink.node(&built.cid, &block)?);
                let validator = Validator::default(); // What it points to tells whether it changed.
                self.sink
                    .file(path, self.profile, &validator, None, pack, sum);
                pack
            }
        };
        self.member(place.root, pack);
        self.checkpoint_if_due()?;
        self.settle(place.parent, Some(sum))
    }

    /// Something that cannot be read is left out; where it is this process that can read nothing
    /// more, the add ends: its root would lack what is there.
    pub(super) fn unread(&mut self, path: &Path, error: io::Error, place: Place) -> Result<()> {
        if is_exhausted(&error) {
            let what = format!("{} cannot be read now", self.sink.shown(path).display());
            return Err(Error::with(ErrorKind::Unavailable, what, error));
        }
        self.left_out(path, error.to_string(), place)
    }

    /// Something of which nothing is in the root.
    pub(super) fn left_out(&mut self, path: &Path, why: String, place: Place) -> Result<()> {
        self.name_left_out(path, why);
        self.settle(place.parent, None)
    }

    /// Counts something that has no place in the tree.
    pub(super) fn name_left_out(&mut self, path: &Path, why: String) {
        self.report.n_left_out += 1;
        self.is_there(path);
        self.is_unclear(path);
        if self.report.left_out.len() < LEFT_OUT_SHOWN_MAX {
            let path = self.sink.shown(path);
            self.report.left_out.push(LeftOut { path, why });
        }
    }

    /// A result finds its place; directories that become complete are built on the way up.
    pub(super) fn settle(&mut self, parent: Parent, sum: Option<Sum>) -> Result<()> {
        let (mut parent, mut sum) = (parent, sum);
        loop {
            match parent {
                Parent::Root(index) => {
                    if let Some(place) = self.sums.get_mut(index) {
                        *place = sum;
                    }
                    return Ok(());
                }
                Parent::Entry { directory, entry } => {
                    let Some(complete) = self.tree.settle(directory, entry, sum) else {
                        return Ok(());
                    };
                    parent = complete.parent;
                    sum = Some(self.build(complete)?);
                }
            }
        }
    }

    pub(super) fn directory_done(&mut self, directory: Directory) -> Result<()> {
        let parent = directory.parent;
        let sum = self.build(directory)?;
        self.settle(parent, Some(sum))
    }

    /// The node, or the shards, of a directory; known ones are not built again.
    fn build(&mut self, directory: Directory) -> Result<Sum> {
        let Directory {
            path,
            root,
            mut entries,
            ..
        } = directory;
        entries.retain(|entry| !entry.0.is_empty());
        if !entries.is_sorted_by(|a, b| a.0 <= b.0) {
            entries.sort_unstable_by(|a, b| a.0.cmp(&b.0)); // Listed in another order than by name.
        }
        let n_entries = entries.len() as u64;
        let mut fingerprint = blake3::Hasher::new();
        let mut sum = Sum {
            cid: cid::empty_identity(),
            file_len: 0,
            dag_len: 0,
            n_blocks: 0,
            n_files: 0,
        };
        for (name, entry) in entries.iter() {
            let Some(entry) = entry else { continue };
            fingerprint
                .update(&(name.len() as u64).to_le_bytes())
                .update(name);
            fingerprint
                .update(&entry.dag_len.to_le_bytes())
                .update(&entry.cid.to_bytes());
            sum.file_len = sum.file_len.saturating_add(entry.file_len); // Files may be sparse.
            sum.n_blocks = sum.n_blocks.saturating_add(entry.n_blocks);
            sum.n_files += entry.n_files;
        }
        let fingerprint = *fingerprint.finalize().as_bytes();
        if let Some(known) = self
            .sink
            .known_directory(&path, self.profile, &fingerprint)?
        {
            self.member(root, known.pack);
            sum.cid = known.cid;
            sum.dag_len = known.dag_len;
            sum.n_blocks += known.n_nodes;
            return Ok(sum);
        }
        let links = entries.into_iter().filter_map(|(name, entry)| {
            entry.map(|entry| dir::Entry {
                name,
                cid: entry.cid,
                tsize: entry.dag_len,
            })
        });
        let mut nodes = Nodes::default();
        let profile = &self.options.profile;
        let built = dir::build(
            links.collect(),
            profile,
            &mut nodes.written_to(&mut self.sink),
        );
        nodes.check()?;
        let built = built.map_err(|error| {
            Error::with(
                ErrorKind::Limit,
                format!("{} cannot be a directory", path.display()),
                error,
            )
        })?;
        let (n_nodes, pack) = (nodes.n, nodes.pack);
        self.member(root, pack);
        sum.cid = built.cid;
        sum.dag_len = built.dag_len;
        sum.n_blocks += n_nodes;
        if let Some(pack) = pack {
            self.sink.directory(
                &path,
                self.profile,
                fingerprint,
                pack,
                &sum,
                n_nodes,
                n_entries,
            );
        }
        self.checkpoint_if_due()?;
        Ok(sum)
    }

    pub(super) fn checkpoint_if_due(&mut self) -> Result<()> {
        if self.sink.is_due() {
            self.sink.checkpoint()?;
        }
        Ok(())
    }

    pub(super) fn member(&mut self, root: usize, container: Option<ContainerId>) {
        let (Some(members), Some(container)) = (self.members.get_mut(root), container) else {
            return;
        };
        if members.last() != Some(&container) {
            members.push(container);
        }
    }

    pub(super) fn token(&mut self) -> u64 {
        self.next_token += 1;
        self.next_token
    }

    pub(super) fn seen(&mut self, len: u64) {
        self.bytes_seen = self.bytes_seen.saturating_add(len);
        let watcher = &mut self.watcher;
        let measured = watcher.measured.load(Ordering::Acquire);
        let total = measured.then(|| watcher.total.load(Ordering::Relaxed));
        watcher.progress.update(HASHING, self.bytes_seen, total);
    }

    pub(super) fn check_stop(&self) -> Result<()> {
        if self.watcher.stop.load(Ordering::Relaxed) {
            let what = "interrupted; run it again to go on where it was";
            return Err(Error::new(ErrorKind::Unavailable, what));
        }
        Ok(())
    }
}

/// Too many open files, or no memory: it says nothing of the file.
fn is_exhausted(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

/// The nodes that a builder gives: written at once, and the builder cannot fail.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) n: u64,
    pub(super) pack: Option<ContainerId>,
    failure: Option<Error>,
    /// The last that were written, one for each level that a file may have: above a hole all nodes
    /// of a level are the same.
    recent: VecDeque<Cid>,
}

/// Nodes that are known to be written already.
const RECENT_MAX: usize = 8;

impl Nodes {
    /// Where a builder's nodes go.
    pub(super) fn written_to(&mut self, sink: &mut Sink<'_>) -> impl FnMut(Cid, Vec<u8>) {
        let mut write = self.each_written_to(sink);
        move |cid, block| write(cid, block, 1)
    }

    /// The same for nodes that may be there several times.
    pub(super) fn each_written_to(&mut self, sink: &mut Sink<'_>) -> impl FnMut(Cid, Vec<u8>, u64) {
        |cid, block, n| {
            if self.failure.is_some() {
                return;
            }
            if self.recent.contains(&cid) {
                self.n += n;
                return;
            }
            match sink.node(&cid, &block) {
                Ok(pack) => (self.n, self.pack) = (self.n + n, Some(pack)),
                Err(error) => self.failure = Some(error),
            }
            self.recent.truncate(RECENT_MAX - 1);
            self.recent.push_front(cid);
        }
    }

    /// Whether all so far were written.
    pub(super) fn check(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}
