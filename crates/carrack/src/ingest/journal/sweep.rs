//! Journals that nobody continues.
//!
//! In       the journals of a store, whose ingest lock the caller holds.
//! Out      those of files that are gone, are another version now, or are known to the catalog are
//!          removed; so is whatever was not written for [`AGE_MAX`].
//! Limits   one header in memory. Only what bears a journal's name and begins as one is removed.
//! Not here journals whose add ends as it should: it removes them itself.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::time::Duration;

use super::{CHECKSUM_LEN, EXTENSION, MAGIC, NAME_DIGITS, checksum, file_name};
use crate::source::nofollow::{self, Kind};
use crate::store::Store;
use crate::store::catalog::{PathKey, SOURCE_LOCAL, validator_bytes};

/// A journal that was not written for so long is not continued: its source may be gone for good.
const AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);
/// Bytes of a file's validator.
const VALIDATOR_LEN: usize = 48;
/// Bytes of a header in front of the path.
const HEAD_LEN: usize = MAGIC.len() + VALIDATOR_LEN + 8;
/// Longest path of this machine that is looked for.
const PATH_LEN_MAX: usize = 1 << 16;

/// What the header of a journal of this machine says.
struct About {
    validator: Vec<u8>,
    profile: u32,
    path: Vec<u8>,
}

/// Removes what nobody continues. What cannot be told stays.
pub fn sweep(store: &Store) {
    let Ok(journals) = std::fs::read_dir(store.journal_dir()) else {
        return; // There were none yet.
    };
    for journal in journals.flatten() {
        let path = journal.path();
        if is_name(&path) && is_over(store, &path).unwrap_or(false) {
            // One that stays is met by the next sweep.
            let _ = std::fs::remove_file(&path);
        }
    }
}

/// Whether only carrack gives such names.
fn is_name(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str());
    let digits = name.and_then(|name| name.strip_suffix(EXTENSION));
    let is_digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    digits.is_some_and(|digits| digits.len() == NAME_DIGITS && digits.bytes().all(is_digit))
}

fn is_over(store: &Store, path: &Path) -> io::Result<bool> {
    let mut file = File::from(nofollow::open(&std::fs::canonicalize(path)?)?);
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Ok(false);
    }
    if meta.len() == 0 {
        return Ok(true); // Its process was killed before it wrote anything.
    }
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic)?;
    if magic != *MAGIC {
        return Ok(false);
    }
    let about = about(&mut file).ok();
    let about = about
        .filter(|about| path.file_name() == Some(file_name(about.profile, &about.path).as_ref()));
    if about.is_some_and(|about| !is_continued(store, &about)) {
        return Ok(true);
    }
    let age = crate::clock::unix_nanoseconds().saturating_sub(modified_ns(&meta));
    Ok(age > i128::try_from(AGE_MAX.as_nanos()).unwrap_or(i128::MAX))
}

fn modified_ns(meta: &std::fs::Metadata) -> i128 {
    use std::os::unix::fs::MetadataExt;
    i128::from(meta.mtime()) * 1_000_000_000 + i128::from(meta.mtime_nsec())
}

/// The rest of a header behind the magic, if it is that of a file of this machine.
fn about(file: &mut File) -> io::Result<About> {
    let mut header = vec![0; HEAD_LEN];
    let (magic, rest) = header.split_at_mut(MAGIC.len());
    magic.copy_from_slice(MAGIC);
    file.read_exact(rest)?;
    let number = |at: usize| {
        let bytes = header.get(at..).and_then(<[u8]>::first_chunk);
        bytes.copied().map_or(u32::MAX, u32::from_le_bytes)
    };
    let (profile, path_len) = (number(HEAD_LEN - 8), number(HEAD_LEN - 4) as usize);
    if path_len > PATH_LEN_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut path = vec![0; path_len];
    file.read_exact(&mut path)?;
    let mut sum = [0; CHECKSUM_LEN];
    file.read_exact(&mut sum)?;
    let validator = header.get(MAGIC.len()..MAGIC.len() + VALIDATOR_LEN);
    let validator = validator.unwrap_or_default().to_vec();
    header.extend_from_slice(&path);
    if checksum(&header) != sum || path.first() != Some(&b'/') {
        return Err(io::ErrorKind::InvalidData.into()); // Of something elsewhere, or damaged.
    }
    Ok(About {
        validator,
        profile,
        path,
    })
}

/// Whether an add of this very file would go on with its journal.
fn is_continued(store: &Store, about: &About) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(&about.path));
    let looked = match nofollow::look(path) {
        Ok(looked) => looked,
        Err(error) => {
            // A disk that does not answer may do so later.
            let gone = [
                io::ErrorKind::NotFound,
                io::ErrorKind::NotADirectory,
                io::ErrorKind::InvalidInput,
            ];
            return !gone.contains(&error.kind());
        }
    };
    if looked.kind != Kind::File || validator_bytes(&looked.validator) != about.validator {
        return false;
    }
    let key = PathKey {
        source: SOURCE_LOCAL,
        profile: about.profile,
        path: about.path.clone(),
    };
    let row = store.catalog().path(&key).ok().flatten();
    !row.is_some_and(|row| row.validator == looked.validator)
}
