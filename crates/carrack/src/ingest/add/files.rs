//! Files of an add: small ones in batches, big ones in ranges that come back in any order.
//!
//! In       paths with validators; digests from the workers.
//! Out      each file's digests, handed on (`ingest::assembly`); files left out.
//! Limits   of a big file the ranges under way are held.
//! Not here directories and roots (`ingest::add`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Adder;
use super::stretch::{Stretch, Stretches};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::assembly::Place;
use crate::ingest::assembly::growing::Growing;
use crate::ingest::hash::{self, Done, Job, Leaves};
use crate::ingest::journal;
use crate::source::local::LocalFile;
use crate::store::catalog::Validator;

/// Files up to this length are hashed whole by one worker, longer ones in ranges of it, in bytes.
pub(in crate::ingest) const RANGE_LEN: u64 = 8 << 20;
/// The same in leaves, for chunks of a few bytes.
pub(in crate::ingest) const RANGE_LEAVES_MAX: u64 = 1 << 14;
/// Leaves of one file that are handed out before the first missing one has come, at most: their
/// digests wait in memory.
pub(in crate::ingest) const LEAVES_AHEAD_MAX: u64 = 1 << 20;
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
    pub(super) growing: Growing,
    file: Arc<LocalFile>,
    attempt: u32,
    ranges_out: u32,
    fed: bool,
    failure: Option<io::Error>,
}

impl Adder<'_> {
    pub(super) fn file(
        &mut self,
        path: PathBuf,
        validator: &Validator,
        place: Place,
    ) -> Result<()> {
        if self.assembly.too_long(&path, validator.size(), place)? {
            return Ok(());
        }
        let (rule, sink) = (self.assembly.rule, &self.assembly.sink);
        if let Some(known) = sink.known_file(&path, self.assembly.profile)?
            && known.validator == *validator
        {
            return self.assembly.unchanged(&path, &known, place);
        }
        if let Some(known) = self.assembly.moved(&self.top, &path, validator)? {
            return self.assembly.unchanged(&path, &known, place);
        }
        if validator.size() > RANGE_LEN || rule.n_leaves(validator.size()) > RANGE_LEAVES_MAX {
            return self.big_file(&path, place, 1);
        }
        let token = self.assembly.token();
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
            Err(error) => return self.assembly.unread(path, error, place),
        };
        if self.assembly.too_long(path, file.validator.size(), place)? {
            return Ok(());
        }
        file.advise_sequential();
        let growing = self
            .assembly
            .grow(path, &file.validator, place, journal::FILE_LEN_MIN)?;
        let (mut first, n_leaves) = (growing.next_leaf, growing.n_leaves);
        let token = self.assembly.token();
        self.big.insert(
            token,
            BigFile {
                growing,
                file: Arc::clone(&file),
                attempt,
                ranges_out: 0,
                fed: false,
                failure: None,
            },
        );
        let mut stretches = Stretches::new(self.assembly.rule, &file);
        while first < n_leaves {
            self.assembly.check_stop()?;
            self.make_room()?;
            let Some(big) = self.big.get_mut(&token).filter(|big| big.failure.is_none()) else {
                break;
            };
            if first - big.growing.next_leaf > LEAVES_AHEAD_MAX {
                self.drain_one()?; // Its first missing range is under way.
                continue;
            }
            match stretches.next(first) {
                Stretch::Zeros(digest, n) => {
                    let leaves = Leaves::Repeated(digest, n);
                    self.assembly.leaves_came(&mut big.growing, first, leaves)?;
                    self.assembly.checkpoint_if_due()?;
                    first += n;
                }
                Stretch::Data(n) => {
                    big.ranges_out += 1;
                    let file = Arc::clone(&file);
                    let job = Job::Range {
                        token,
                        file,
                        first,
                        n,
                    };
                    self.pool.submit(job);
                    first += u64::from(n);
                }
            }
        }
        if let Some(big) = self.big.get_mut(&token) {
            big.fed = true;
        }
        self.conclude(token)
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
        self.assembly.check_stop()?;
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
            match self.small.remove(&done.token) {
                Some(SmallFile { place, path }) => match done.result {
                    Ok((validator, digests)) => {
                        self.assembly
                            .whole_file(&path, place, &validator, &digests)?;
                    }
                    Err(error) if error.kind() == io::ErrorKind::FileTooLarge => {
                        self.again.push_back((place, path, 1)); // It grew since it was listed.
                    }
                    Err(error) => self.assembly.unread(&path, error, place)?,
                },
                None => self.range_done(done)?,
            }
        }
        self.assembly.checkpoint_if_due()
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
                let leaves = Leaves::Each(digests);
                self.assembly
                    .leaves_came(&mut big.growing, done.first, leaves)?;
            }
        }
        self.conclude(token)
    }

    /// Ends a big file once nothing of it is under way.
    fn conclude(&mut self, token: u64) -> Result<()> {
        let is_over = |big: &mut BigFile| big.fed && big.ranges_out == 0;
        if !self.big.get_mut(&token).is_some_and(is_over) {
            return Ok(());
        }
        let Some(big) = self.big.remove(&token) else {
            return Ok(());
        };
        let mut growing = big.growing;
        let same = big
            .file
            .current_validator()
            .is_ok_and(|now| now == big.file.validator);
        let cut =
            matches!(&big.failure, Some(error) if error.kind() == io::ErrorKind::UnexpectedEof);
        if !same || cut {
            if let Some(journal) = growing.journal.take() {
                journal.remove();
            }
            let (place, path) = (growing.place, growing.path);
            if big.attempt < ATTEMPTS_MAX {
                self.again.push_back((place, path, big.attempt + 1));
                return Ok(());
            }
            let why = hash::changed_while_read().to_string();
            return self.assembly.left_out(&path, why, place);
        }
        if let Some(error) = big.failure {
            let (path, place) = (&growing.path, growing.place);
            return self.assembly.unread(path, error, place);
        }
        self.assembly.grown(growing)
    }
}
