//! Ingest: from bytes to CIDs. Files are hashed where they lie; only what lies nowhere is written.
//!
//! In       paths of files, folders and CARs.
//! Out      roots in the catalog, ranges in the index, interior nodes in a pack.
//! Limits   bounded queues and runs (`hash`, `sink`): memory does not grow with a file's length.
//! Not here the formats (`carrack-formats`), what is printed (`cli`).

pub mod add;
mod assembly;
pub mod dependents;
pub mod hash;
pub mod import;
pub mod journal;
pub mod own;
pub mod remote;
pub mod rescan;
pub mod scan;
pub mod sink;
#[cfg(test)]
pub(crate) mod tests;
pub mod tree;

use std::path::PathBuf;

use carrack_formats::Cid;

use crate::error::Error;

/// Somebody who watches a long work.
pub trait Progress {
    /// `done` bytes of `total` (`None`: not known yet) have gone through `what`.
    fn update(&mut self, what: &str, done: u64, total: Option<u64>);

    /// Words about what goes through `what` now.
    fn detail(&mut self, _what: &str, _text: &str) {}

    /// Nothing more goes through `what`.
    fn end(&mut self, _what: &str) {}

    /// Something that the person who waits should know.
    fn note(&mut self, _text: &str) {}

    /// Whether it is worth finding out the total beforehand.
    fn wants_total(&self) -> bool {
        false
    }
}

/// Nobody watches.
#[derive(Debug)]
pub struct Quiet;

impl Progress for Quiet {
    fn update(&mut self, _what: &str, _done: u64, _total: Option<u64>) {}
}

/// A root that was added or imported.
#[derive(Debug, Clone)]
pub struct AddedRoot {
    /// Its CID.
    pub cid: Cid,
    /// What it was made from.
    pub path: PathBuf,
    /// Bytes of the files below it, or of a CAR's blocks.
    pub bytes: u64,
    /// Blocks of its DAG, each counted where it occurs; of an import, the CAR's sections.
    pub n_blocks: u64,
    /// Files below it.
    pub n_files: u64,
}

/// An input that is not part of the result, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftOut {
    /// Where it lies.
    pub path: PathBuf,
    /// Why, in a few words.
    pub why: String,
}

/// What an add did.
#[derive(Debug, Default)]
pub struct AddReport {
    /// The roots, in the order of the arguments.
    pub roots: Vec<AddedRoot>,
    /// Files whose bytes were read.
    pub files_hashed: u64,
    /// Bytes read and hashed.
    pub bytes_hashed: u64,
    /// Files that had not changed since an earlier add.
    pub files_unchanged: u64,
    /// Symlinks, kept as symlinks.
    pub symlinks: u64,
    /// Hidden files and folders that were not asked for.
    pub hidden: u64,
    /// Sockets, FIFOs and devices, which have no bytes.
    pub special: u64,
    /// Files and folders of carrack's, which are for nobody; the first [`LEFT_OUT_SHOWN_MAX`].
    pub own: Vec<LeftOut>,
    /// Number of files that should be part of the result and are not: unreadable, or changed
    /// each time they were read.
    pub n_left_out: u64,
    /// The first of them, at most [`LEFT_OUT_SHOWN_MAX`].
    pub left_out: Vec<LeftOut>,
    /// Of several places those that could not be gone through, as they were named, and why.
    pub failed: Vec<(PathBuf, Error)>,
}

/// Files that are not what they were at an earlier add.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes {
    /// New ones.
    pub added: u64,
    /// Other versions.
    pub changed: u64,
    /// The same at another path.
    pub moved: u64,
    /// Gone; of a CAR, its blocks.
    pub vanished: u64,
}

impl Changes {
    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

impl AddReport {
    /// Adds what another add did, behind this one.
    pub fn append(&mut self, other: Self) {
        self.roots.extend(other.roots);
        self.files_hashed += other.files_hashed;
        self.bytes_hashed += other.bytes_hashed;
        self.files_unchanged += other.files_unchanged;
        self.symlinks += other.symlinks;
        self.hidden += other.hidden;
        self.special += other.special;
        let room = LEFT_OUT_SHOWN_MAX.saturating_sub(self.own.len());
        self.own.extend(other.own.into_iter().take(room));
        self.n_left_out += other.n_left_out;
        let room = LEFT_OUT_SHOWN_MAX.saturating_sub(self.left_out.len());
        self.left_out.extend(other.left_out.into_iter().take(room));
        self.failed.extend(other.failed);
    }
}

/// Files left out that are named one by one; the rest is counted.
pub const LEFT_OUT_SHOWN_MAX: usize = 1000;
