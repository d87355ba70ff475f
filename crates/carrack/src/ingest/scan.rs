//! What a directory holds, in the order of a UnixFS directory.
//!
//! In       a directory's path.
//! Out      its entries, sorted by name as bytes: files with validators, directories, symlinks;
//!          how many were hidden or had no bytes.
//! Limits   one directory's entries are held at a time for each level of the tree.
//! Not here reading files (`ingest::hash`), whether one is known already (`ingest::add`).

mod ahead;

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use self::ahead::Ahead;
use crate::source::local::validator_of;
use crate::store::catalog::Validator;

/// One entry that takes part.
#[derive(Debug)]
pub struct Entry {
    /// Its name in the directory: any bytes but `/` and NUL.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
}

/// What an entry is.
#[derive(Debug)]
pub enum EntryKind {
    /// A regular file, as `lstat` saw it.
    File(Validator),
    /// A directory.
    Directory,
    /// A symlink and where it points; it is not followed.
    Symlink(Vec<u8>),
    /// It should take part, and cannot.
    Unreadable(io::Error),
}

/// One directory.
#[derive(Debug, Default)]
pub struct Listing {
    /// Entries that take part, sorted.
    pub entries: Vec<Entry>,
    /// Entries left out because their names start with a dot.
    pub hidden: u64,
    /// Sockets, FIFOs and devices.
    pub special: u64,
}

/// Lists `directory`.
///
/// # Errors
/// Those of opening and reading it.
pub fn list(directory: &Path, with_hidden: bool) -> io::Result<Listing> {
    let mut listing = Listing::default();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if !with_hidden && name.as_bytes().starts_with(b".") {
            listing.hidden += 1;
            continue;
        }
        let kind = match entry.file_type() {
            Ok(kind) if kind.is_dir() => EntryKind::Directory,
            // One lstat a file, relative to the open directory.
            Ok(kind) if kind.is_file() => match entry.metadata() {
                Ok(meta) => EntryKind::File(validator_of(&meta)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => EntryKind::Unreadable(error),
            },
            Ok(kind) if kind.is_symlink() => match std::fs::read_link(entry.path()) {
                Ok(target) => EntryKind::Symlink(target.into_os_string().into_vec()),
                Err(error) => EntryKind::Unreadable(error),
            },
            Ok(_) => {
                listing.special += 1;
                continue;
            }
            Err(error) => EntryKind::Unreadable(error),
        };
        listing.entries.push(Entry { name, kind });
    }
    listing
        .entries
        .sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    Ok(listing)
}

/// Adds up the lengths of all files, for an estimate of the time left.
pub fn measure(roots: Vec<PathBuf>, with_hidden: bool, total: &AtomicU64, stop: &AtomicBool) {
    let mut left = roots;
    while let Some(path) = left.pop() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(meta) = std::fs::symlink_metadata(&path) else {
            continue;
        };
        if meta.is_file() {
            total.fetch_add(meta.len(), Ordering::Relaxed);
        } else if meta.is_dir() {
            let Ok(listing) = list(&path, with_hidden) else {
                continue;
            };
            for entry in listing.entries {
                match entry.kind {
                    EntryKind::File(validator) => {
                        total.fetch_add(validator.size(), Ordering::Relaxed);
                    }
                    EntryKind::Directory => left.push(path.join(entry.name)),
                    EntryKind::Symlink(_) | EntryKind::Unreadable(_) => {}
                }
            }
        }
    }
}
