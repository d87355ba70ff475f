//! What a directory holds, in the order of a UnixFS directory.
//!
//! In       a directory's path, without symlinks.
//! Out      its entries, sorted by name as bytes: files with validators, directories, symlinks;
//!          how many were hidden or had no bytes.
//! Limits   one directory's entries are held at a time for each level of the tree.
//! Not here reading files (`ingest::hash`), whether one is known already (`ingest::add`).

mod ahead;

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub use self::ahead::Ahead;
use crate::ingest::hash::FILE_LEN_MAX;
use crate::ingest::own::Own;
use crate::source::nofollow::{self, Directory, Kind};
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
    /// It is carrack's own: nothing in it takes part.
    pub is_own: bool,
}

/// Lists `directory`.
///
/// # Errors
/// Those of opening and reading it; `InvalidInput` if there is a symlink in its path.
pub fn list(directory: &Path, own: &Own, with_hidden: bool) -> io::Result<Listing> {
    let mut listing = Listing::default();
    let mut directory = Directory::open(directory)?;
    if own.has(directory.id()?) {
        listing.is_own = true;
        return Ok(listing);
    }
    while let Some(entry) = directory.next_entry() {
        let (name, kind) = entry?;
        if !with_hidden && name.as_bytes().starts_with(b".") {
            listing.hidden += 1;
            continue;
        }
        let kind = match kind_of(&directory, &name, kind) {
            Ok(Some(kind)) => kind,
            Ok(None) => {
                listing.special += 1;
                continue;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => EntryKind::Unreadable(error),
        };
        listing.entries.push(Entry { name, kind });
    }
    listing
        .entries
        .sort_unstable_by(|a, b| a.name.as_bytes().cmp(b.name.as_bytes()));
    Ok(listing)
}

/// What an entry is, by at most one look relative to the open directory; `None`: it has no bytes.
fn kind_of(
    directory: &Directory,
    name: &OsStr,
    kind: Option<Kind>,
) -> io::Result<Option<EntryKind>> {
    let looked = match kind {
        // Files are looked at for their validators.
        Some(Kind::File) | None => directory.look(name)?,
        Some(Kind::Directory) => return Ok(Some(EntryKind::Directory)),
        Some(Kind::Symlink) => {
            return Ok(Some(EntryKind::Symlink(directory.read_link(name)?)));
        }
        Some(Kind::Special) => return Ok(None),
    };
    match looked.kind {
        Kind::File => Ok(Some(EntryKind::File(looked.validator))),
        kind => kind_of(directory, name, Some(kind)), // It was swapped, or nothing was told of it.
    }
}

/// Adds up the lengths of all files, for an estimate of the time left.
pub fn measure(
    roots: Vec<PathBuf>,
    own: &Own,
    with_hidden: bool,
    total: &AtomicU64,
    stop: &AtomicBool,
) {
    let mut left = roots;
    while let Some(path) = left.pop() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let Ok(looked) = nofollow::look(&path) else {
            continue;
        };
        if looked.kind == Kind::File {
            count(&looked.validator, total);
        } else if looked.kind == Kind::Directory {
            let Ok(listing) = list(&path, own, with_hidden) else {
                continue;
            };
            for entry in listing.entries {
                match entry.kind {
                    EntryKind::File(validator) => count(&validator, total),
                    EntryKind::Directory => left.push(path.join(entry.name)),
                    EntryKind::Symlink(_) | EntryKind::Unreadable(_) => {}
                }
            }
        }
    }
}

fn count(file: &Validator, total: &AtomicU64) {
    let len = file.size();
    if len <= FILE_LEN_MAX {
        total.fetch_add(len, Ordering::Relaxed); // Longer ones are left out.
    }
}
