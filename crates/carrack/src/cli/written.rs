//! Files that a person names to be written: never one of the store's, nor one that is served.
//!
//! In       a path of the command line, the store.
//! Out      an error that says what the file is, before anything is written.
//! Limits   one walk over the catalog's containers, if there is such a file.
//! Not here how it is written (`durable`); any other file is the person's to replace.
//!
//! What counts is the file and not what it is called: links, mounts and `..` are other names of it.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::error::{Error, ErrorKind, Result};
use crate::ingest::own::{FileId, Own, id_of};
use crate::source::local::validator_of;
use crate::store::block::Blocks;
use crate::store::catalog::Validator;

/// Links that lead to nothing yet and are followed, as many as the kernel does.
const LINKS_MAX: usize = 40;

/// An error if `path` must not be written.
///
/// # Errors
/// `Invalid` if it is in the data directory, or a file that blocks are served from; those of the
/// catalog.
pub fn check(path: &Path, blocks: &Blocks) -> Result<()> {
    let refused = |why: &str| {
        let what = format!("cannot write {}: {why}", path.display());
        Err(Error::new(ErrorKind::Invalid, what))
    };
    let dir = blocks.store().dir();
    let own = Own::of(dir);
    let real = leads_to(path);
    // A new file takes the place of a link.
    if own.holds(&real) || own.holds(&in_real_folder(path)) || is_link_of_own(&real, dir) {
        return refused(&format!("it is in the data directory {}", dir.display()));
    }
    match served_from(&real, blocks)? {
        Some(at) => refused(&format!(
            "blocks are served from {}, and would be lost; choose another name, or drop its \
             roots first (carrack rm)",
            at.display()
        )),
        None => Ok(()),
    }
}

/// Where a path leads to, also if there is nothing yet.
fn leads_to(path: &Path) -> PathBuf {
    let mut path = path.to_owned();
    for _ in 0..LINKS_MAX {
        if let Ok(real) = std::fs::canonicalize(&path) {
            return real;
        }
        let Ok(link) = std::fs::read_link(&path) else {
            break;
        };
        path = path.parent().unwrap_or(Path::new("/")).join(link);
    }
    in_real_folder(&path)
}

/// The path without links in its folder; its last name is not followed.
fn in_real_folder(path: &Path) -> PathBuf {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return path.to_owned();
    };
    let parent = std::fs::canonicalize(parent);
    parent.map_or_else(|_| path.to_owned(), |parent| parent.join(name))
}

/// The file that a path leads to.
fn id_at(path: &Path) -> Option<FileId> {
    std::fs::metadata(path).ok().map(|meta| id_of(&meta))
}

/// Whether it is another name of a file in one of the store's directories.
fn is_link_of_own(path: &Path, dir: &Path) -> bool {
    let Ok(meta) = std::fs::metadata(path) else {
        return false;
    };
    if !meta.is_file() || meta.nlink() < 2 {
        return false;
    }
    let paths = |dir: &Path| {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
        entries.map(|entry| entry.path())
    };
    let mut files = paths(dir).flat_map(|below| paths(&below));
    files.any(|file| id_at(&file) == Some(id_of(&meta)))
}

/// The container that an existing file is, by its path or as the very same file.
fn served_from(real: &Path, blocks: &Blocks) -> Result<Option<PathBuf>> {
    let meta = match std::fs::metadata(real) {
        Ok(meta) if meta.is_file() => meta,
        _ => return Ok(None),
    };
    let (validator, id) = (validator_of(&meta), id_of(&meta));
    let name = real.file_name().unwrap_or_default().as_bytes();
    for row in blocks.store().catalog().containers()? {
        let (container, record) = row?;
        let has_id = matches!(&record.validator, Validator::File(stamp)
            if (stamp.dev, stamp.ino) == id);
        if !has_id && !record.path.ends_with(name) {
            continue;
        }
        let Some(at) = blocks.container_path(container)? else {
            continue;
        };
        // A number alone may be that of a file that is gone.
        if at == real || (has_id && (record.validator == validator || id_at(&at) == Some(id))) {
            return Ok(Some(at));
        }
    }
    Ok(None)
}
