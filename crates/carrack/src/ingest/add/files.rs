//! Files of an add: small ones in batches, big ones in ranges that come back in any order.
//!
//! In       paths with validators; digests from the workers.
//! Out      a sum for each file, its leaves in the index, its nodes in the pack.
//! Limits   of a big file the ranges under way are held, and the builder's open nodes.
//! Not here directories and roots (`ingest::add`).

use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use ::cid::Version;
use carrack_formats::unixfs::build::{FileBuilder, Leaf};
use carrack_formats::unixfs::leaf;
use carrack_formats::{Cid, cid};

use super::{Adder, Place};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::hash::{self, Digest, Done, Job};
use crate::ingest::journal::{self, Journal, Subject};
use crate::ingest::sink::Sink;
use crate::ingest::tree::Sum;
use crate::source::local::LocalFile;
use crate::store::catalog::{ContainerKind, Validator};
use crate::store::location::{ContainerId, Location};

/// Files up to this length are hashed whole by one worker, longer ones in ranges of it, in bytes.
const RANGE_LEN: u64 = 8 << 20;
/// The same in leaves, for chunks of a few bytes.
const RANGE_LEAVES_MAX: u64 = 1 << 14;
/// Leaves of one file that are handed out before the first missing one has come, at most: their
/// digests wait in memory.
const LEAVES_AHEAD_MAX: u64 = 1 << 20;
/// Small files handed to a worker together: at most so many, and so many bytes.
const BATCH_FILES_MAX: usize = 64;
const BATCH_LEN_MAX: u64 = 4 << 20;
/// How often a big file that changes while it is read is read again.
const ATTEMPTS_MAX: u32 = 3;

pub(super) struct SmallFile {
    place: Place,
    path: PathBuf,
}

pub(super) struct BigFile {
    place: Place,
    path: PathBuf,
    file: Arc<LocalFile>,
    container: ContainerId,
    builder: FileBuilder,
    pub(super) journal: Option<Journal>,
    attempt: u32,
    n_leaves: u64,
    next_leaf: u64,
    waiting: BTreeMap<u64, Vec<Digest>>,
    ranges_out: u32,
    fed: bool,
    nodes: Nodes,
    failure: Option<io::Error>,
}

impl Adder<'_> {
    pub(super) fn file(
        &mut self,
        path: PathBuf,
        validator: &Validator,
        place: Place,
    ) -> Result<()> {
        if let Some(known) = self.sink.known_file(&path, self.profile)?
            && known.validator == *validator
        {
            self.report.files_unchanged += 1;
            self.seen(validator.size());
            self.member(place.root, known.container);
            self.member(place.root, known.pack);
            return self.settle(place.parent, Some(known.sum));
        }
        if validator.size() > RANGE_LEN || self.rule.n_leaves(validator.size()) > RANGE_LEAVES_MAX {
            return self.big_file(&path, place, 1);
        }
        let token = self.token();
        self.batch.push((token, path.clone()));
        self.batch_len += validator.size();
        self.small.insert(token, SmallFile { place, path });
        if self.batch.len() >= BATCH_FILES_MAX || self.batch_len >= BATCH_LEN_MAX {
            self.flush_batch()?;
        }
        Ok(())
    }

    pub(super) fn flush_batch(&mut self) -> Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.make_room()?;
        self.batch_len = 0;
        let files = std::mem::take(&mut self.batch);
        self.pool.submit(Job::Files(files));
        Ok(())
    }

    /// Opens a big file and hands its ranges to the workers, waiting for room as needed.
    pub(super) fn big_file(&mut self, path: &Path, place: Place, attempt: u32) -> Result<()> {
        let file = match LocalFile::open_settled(path) {
            Ok(file) => Arc::new(file),
            Err(error) => return self.left_out(path.to_owned(), &error, place),
        };
        file.advise_sequential();
        let len = file.validator.size();
        let n_leaves = self.rule.n_leaves(len);
        let container = self.sink.new_container();
        let (journal, known) = self.journal(path, &file);
        let token = self.token();
        self.big.insert(
            token,
            BigFile {
                place,
                path: path.to_owned(),
                file: Arc::clone(&file),
                container,
                builder: FileBuilder::new(&self.options.profile),
                journal,
                attempt,
                n_leaves,
                next_leaf: 0,
                waiting: BTreeMap::new(),
                ranges_out: 0,
                fed: false,
                nodes: Nodes::default(),
                failure: None,
            },
        );
        let known_len = (known.len() as u64)
            .saturating_mul(u64::from(self.rule.chunk_size))
            .min(len);
        let mut first = (known.len() as u64).min(n_leaves);
        self.push_leaves(token, known, true)?;
        self.seen(known_len);
        let range_leaves = (RANGE_LEN / u64::from(self.rule.chunk_size)).clamp(1, RANGE_LEAVES_MAX);
        while first < n_leaves {
            self.check_stop()?;
            self.make_room()?;
            let Some(big) = self.big.get_mut(&token).filter(|big| big.failure.is_none()) else {
                break;
            };
            if first - big.next_leaf > LEAVES_AHEAD_MAX {
                self.drain_one()?; // Its first missing range is under way.
                continue;
            }
            let n = range_leaves.min(n_leaves - first);
            big.ranges_out += 1;
            let n_leaves_32 = u32::try_from(n).unwrap_or(u32::MAX);
            let file = Arc::clone(&file);
            self.pool.submit(Job::Range {
                token,
                file,
                first,
                n: n_leaves_32,
            });
            first += n;
        }
        if let Some(big) = self.big.get_mut(&token) {
            big.fed = true;
        }
        self.conclude(token)
    }

    fn journal(&self, path: &Path, file: &LocalFile) -> (Option<Journal>, Vec<Digest>) {
        if file.validator.size() < journal::FILE_LEN_MIN {
            return (None, Vec::new());
        }
        let subject = Subject {
            path: path.as_os_str().as_bytes(),
            validator: &file.validator,
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

    fn make_room(&mut self) -> Result<()> {
        while let Some(done) = self.pool.poll() {
            self.finished(done)?;
        }
        while !self.pool.has_room() {
            self.drain_one()?;
        }
        Ok(())
    }

    pub(super) fn drain_one(&mut self) -> Result<()> {
        self.check_stop()?;
        match self.pool.wait() {
            Some(done) => self.finished(done),
            None if self.pool.is_idle() => Ok(()),
            None => Err(Error::new(
                ErrorKind::Internal,
                "the hashing threads have ended",
            )),
        }
    }

    fn finished(&mut self, done: Vec<Done>) -> Result<()> {
        for done in done {
            if let Some(small) = self.small.remove(&done.token) {
                self.small_done(small, done)?;
            } else {
                self.range_done(done)?;
            }
        }
        self.checkpoint_if_due()
    }

    fn small_done(&mut self, small: SmallFile, done: Done) -> Result<()> {
        let (validator, digests) = match done.result {
            Ok(hashed) => hashed,
            Err(error) => return self.left_out(small.path, &error, small.place),
        };
        let len = validator.size();
        self.report.files_hashed += 1;
        self.report.bytes_hashed += len;
        self.seen(len);
        let mut builder = FileBuilder::new(&self.options.profile);
        let mut nodes = Nodes::default();
        // An empty leaf lies nowhere: it is a node like any other.
        let container = if len > 0 {
            Some(self.sink.new_container())
        } else {
            None
        };
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
        self.file_done(&small.path, small.place, &validator, container, pack, sum)
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

    fn range_done(&mut self, done: Done) -> Result<()> {
        let token = done.token;
        let Some(big) = self.big.get_mut(&token) else {
            return Ok(());
        };
        big.ranges_out -= 1;
        match done.result {
            Err(error) => big.failure = Some(error),
            Ok((_, digests)) => {
                let file_len = big.file.validator.size();
                let start = self.rule.leaf(done.first, file_len).0;
                let end = self
                    .rule
                    .leaf(done.first + digests.len() as u64, file_len)
                    .0;
                let len = end.min(file_len).saturating_sub(start);
                big.waiting.insert(done.first, digests);
                self.report.bytes_hashed += len;
                self.seen(len);
                while let Some(digests) = self
                    .big
                    .get_mut(&token)
                    .and_then(|big| big.waiting.remove(&big.next_leaf))
                {
                    self.push_leaves(token, digests, false)?;
                }
            }
        }
        self.conclude(token)
    }

    /// The next leaves of a big file, in order.
    fn push_leaves(&mut self, token: u64, digests: Vec<Digest>, journalled: bool) -> Result<()> {
        let Some(mut big) = self.big.remove(&token) else {
            return Ok(());
        };
        for digest in &digests {
            if big.next_leaf >= big.n_leaves {
                break;
            }
            let len = big.file.validator.size();
            let leaf = self.leaf(Some(big.container), digest, big.next_leaf, len)?;
            let mut nodes = big.nodes.written_to(&mut self.sink);
            big.builder.push_leaf(leaf, &mut nodes);
            big.next_leaf += 1;
            if !journalled
                && let Some(journal) = &mut big.journal
                && journal.push(*digest).is_err()
            {
                big.journal = None; // A full disk is told by what must be written.
            }
        }
        let written = big.nodes.check();
        self.big.insert(token, big);
        written
    }

    /// Ends a big file once nothing of it is under way.
    fn conclude(&mut self, token: u64) -> Result<()> {
        let is_over = |big: &mut BigFile| big.fed && big.ranges_out == 0;
        if !self.big.get_mut(&token).is_some_and(is_over) {
            return Ok(());
        }
        let Some(mut big) = self.big.remove(&token) else {
            return Ok(());
        };
        let same = big
            .file
            .current_validator()
            .is_ok_and(|now| now == big.file.validator);
        let cut =
            matches!(&big.failure, Some(error) if error.kind() == io::ErrorKind::UnexpectedEof);
        if !same || cut {
            if let Some(journal) = big.journal.take() {
                journal.remove();
            }
            if big.attempt < ATTEMPTS_MAX {
                self.again.push_back((big.place, big.path, big.attempt + 1));
                return Ok(());
            }
            return self.left_out(big.path, &hash::changed_while_read(), big.place);
        }
        if let Some(error) = big.failure {
            return self.left_out(big.path, &error, big.place);
        }
        let built = big
            .builder
            .finish(&mut big.nodes.written_to(&mut self.sink));
        big.nodes.check()?;
        let len = big.file.validator.size();
        let sum = Sum {
            cid: built.cid,
            file_len: len,
            dag_len: built.dag_len,
            n_blocks: big.n_leaves + big.nodes.n,
            n_files: 1,
        };
        self.report.files_hashed += 1;
        self.sink.forget_after_commit(big.journal.take());
        let validator = &big.file.validator;
        self.file_done(
            &big.path,
            big.place,
            validator,
            Some(big.container),
            big.nodes.pack,
            sum,
        )
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

/// The nodes that a builder gives: written at once, and the builder cannot fail.
#[derive(Debug, Default)]
pub(super) struct Nodes {
    pub(super) n: u64,
    pub(super) pack: Option<ContainerId>,
    failure: Option<Error>,
}

impl Nodes {
    /// Where a builder's nodes go.
    pub(super) fn written_to(&mut self, sink: &mut Sink<'_>) -> impl FnMut(Cid, Vec<u8>) {
        |cid, block| {
            if self.failure.is_some() {
                return;
            }
            match sink.node(&cid, &block) {
                Ok(pack) => (self.n, self.pack) = (self.n + 1, Some(pack)),
                Err(error) => self.failure = Some(error),
            }
        }
    }

    /// Whether all so far were written.
    pub(super) fn check(&mut self) -> Result<()> {
        self.failure.take().map_or(Ok(()), Err)
    }
}
