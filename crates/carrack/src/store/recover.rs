//! The data directory: its lock, its version, its layout, and what a crash left in it.
//!
//! In       a directory that may be new, in use, somebody's own, read-only, or a newer version's.
//! Out      the held lock; a store that is whole.
//! Not here the catalog's own recovery, which is redb's; a lost catalog (`rebuild::catalog`); what
//!          a crash left (`unlisted`).
//!
//! ```text
//! lock          held while the store is open; the text is the holder's process id
//! format        `carrack store 1`; made last: where it is, there was a catalog
//! catalog.redb  segments/  packs/  journal/
//! ```

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, OFlags, flock};
use rustix::io::Errno;

use super::OpenMode;
use super::catalog::Catalog;
use super::gate::WriteGate;
use super::index::segment_id_of;
use super::pack::pack_id_of;
use super::unlisted::names;
use crate::durable::{self, Temporary};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::key_file::FILE_NAME as IDENTITY;
use crate::source::nofollow;

pub(super) const CATALOG: &str = "catalog.redb";
pub(super) const SEGMENTS: &str = "segments";
pub(super) const PACKS: &str = "packs";
pub(super) const JOURNAL: &str = "journal";
const LOCK: &str = "lock";
const FORMAT: &str = "format";
const FORMAT_PREFIX: &str = "carrack store ";
const FORMAT_VERSION: u32 = 1;
/// Bytes of `lock` and `format` that are read: both are one short line.
const TEXT_LEN_MAX: u64 = 64;
/// What lost its catalog is not guessed at by whoever opens it.
pub(super) const CATALOG_ADVICE: &str =
    "carrack index rebuild --catalog makes it anew of what the packs tell";
const FORMAT_ADVICE: &str = "carrack index rebuild --catalog writes it again";
/// The node's configuration.
const CONFIG: &str = "carrack.toml";
/// What may lie in a directory before it is a store: what a person puts there, what a file system
/// has, and what a first start makes that was cut short. Directories must be empty.
const FIRST_FILES: [&str; 5] = [LOCK, CATALOG, IDENTITY, CONFIG, "lost+found"];
/// What is made under a temporary name, which a kill leaves.
const MADE_WHOLE: [&str; 3] = [FORMAT, CATALOG, IDENTITY];

/// A directory that nobody else writes to.
#[derive(Debug)]
pub(super) struct Held {
    /// Kept for as long as the store is open; none where there is no such file to lock.
    pub(super) lock: Option<File>,
    /// There is no store yet.
    pub(super) is_new: bool,
    /// Why nothing can be written.
    pub(super) read_only: Option<String>,
}

/// Takes the lock, checks the version, and only then writes the process id. Nothing is made in a
/// directory that is neither a store nor empty.
pub(super) fn hold(dir: &Path, mode: OpenMode) -> Result<Held> {
    let is_new = !has_format(dir)?;
    if is_new {
        make_room(dir, mode)?;
    }
    let (mut lock, read_only) = lock(dir, mode, is_new)?;
    // As it is now that nobody else changes it.
    let is_new = !has_format(dir)?;
    if is_new {
        refuse_others(dir)?;
    }
    if let (Some(file), None) = (&mut lock, &read_only) {
        let writing = || format!("writing {}", dir.join(LOCK).display());
        write_holder(file).context(ErrorKind::Unavailable, writing)?;
    }
    Ok(Held {
        lock,
        is_new,
        read_only,
    })
}

/// As [`hold`] with `AnyIndex`, also where `format` is lost: the store `is_new` then.
pub(super) fn hold_lost(dir: &Path) -> Result<Held> {
    match has_format(dir) {
        Ok(false) => {}
        Err(error) if error.kind() == ErrorKind::Corrupt => {}
        _ => return hold(dir, OpenMode::AnyIndex),
    }
    if !is_ours(dir) {
        return hold(dir, OpenMode::AnyIndex);
    }
    let (mut lock, read_only) = lock(dir, OpenMode::AnyIndex, false)?;
    if let Some(file) = &mut lock {
        let writing = || format!("writing {}", dir.join(LOCK).display());
        write_holder(file).context(ErrorKind::Unavailable, writing)?;
    }
    Ok(Held {
        lock,
        is_new: true,
        read_only,
    })
}

/// Whether a directory without `format` has what only a store has: segments, packs, or a catalog.
fn is_ours(dir: &Path) -> bool {
    let has = |folder, is_one: &dyn Fn(&[u8]) -> bool| {
        names(&dir.join(folder)).is_ok_and(|found| found.iter().any(|(_, name)| is_one(name)))
    };
    has(SEGMENTS, &|name| segment_id_of(name).is_some())
        || has(PACKS, &|name| pack_id_of(name).is_some())
        || Catalog::open(&dir.join(CATALOG), &Arc::default(), true).is_ok()
}

/// A directory for a new store.
fn make_room(dir: &Path, mode: OpenMode) -> Result<()> {
    refuse_others(dir)?;
    if !mode.may_create() {
        return Err(no_store(dir));
    }
    match durable::create_dir_all(dir) {
        Err(_) if mode.is_reading() => Err(no_store(dir)),
        made => made.context(ErrorKind::Unavailable, || {
            format!("creating {}", dir.display())
        }),
    }
}

fn no_store(dir: &Path) -> Error {
    let what = format!("there is no store in {}", dir.display());
    Error::new(ErrorKind::NotFound, what)
}

/// An error if a directory is no store and none can be made of it: nothing is put into it then.
///
/// # Errors
/// `Invalid` if it holds something else, `Corrupt` if it is a store that lost its `format`.
pub(super) fn check_place(dir: &Path) -> Result<()> {
    match has_format(dir)? {
        true => Ok(()),
        false => refuse_others(dir),
    }
}

/// An error if something in `dir` is not of carrack's making. It has no `format`.
fn refuse_others(dir: &Path) -> Result<()> {
    let reading = || format!("reading {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        entries => entries.context(ErrorKind::Unavailable, reading)?,
    };
    for entry in entries {
        let entry = entry.context(ErrorKind::Unavailable, reading)?;
        let name = entry.file_name();
        if !may_be_first(&name, &entry.path()) {
            if is_ours(dir) {
                let what = format!(
                    "{} is a carrack store whose file {FORMAT} is missing; {FORMAT_ADVICE}",
                    dir.display()
                );
                return Err(Error::new(ErrorKind::Corrupt, what));
            }
            let what = format!(
                "{} holds {} and no carrack store: give --data-dir a folder that is empty or does \
                 not exist",
                dir.display(),
                Path::new(&name).display()
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
    }
    Ok(())
}

fn may_be_first(name: &OsStr, path: &Path) -> bool {
    let is_left = |target: &&str| {
        let target = Path::new(target);
        // The second is the name that older versions gave.
        durable::is_temporary_of(name, target) || durable::temporary(target) == Path::new(name)
    };
    if MADE_WHOLE.iter().any(is_left) {
        return true;
    }
    let Some(name) = name.to_str() else {
        return false;
    };
    if FIRST_FILES.contains(&name) {
        return true;
    }
    let is_empty = || std::fs::read_dir(path).is_ok_and(|mut entries| entries.next().is_none());
    [SEGMENTS, PACKS, JOURNAL].contains(&name) && is_empty()
}

/// The lock, and why nothing can be written: a store that cannot be written can be read.
fn lock(dir: &Path, mode: OpenMode, is_new: bool) -> Result<(Option<File>, Option<String>)> {
    let path = dir.join(LOCK);
    let opening = || format!("opening {}", path.display());
    let mut options = OpenOptions::new();
    options.read(true).write(true).truncate(false);
    // What a symlink leads to is somebody else's.
    options.custom_flags(OFlags::NOFOLLOW.bits().cast_signed());
    // A store that was copied may lack it.
    match options.create(true).mode(durable::MODE_PRIVATE).open(&path) {
        Ok(file) => {
            take(&file, FlockOperation::NonBlockingLockExclusive, dir)?;
            check_own(&file, &path)?;
            Ok((Some(file), None))
        }
        Err(error) if mode.is_reading() && is_read_only(&error) => {
            if is_new {
                return Err(no_store(dir));
            }
            let why = format!("{} cannot be written: {error}", path.display());
            let file = match File::open(&path) {
                // Nobody has it open.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                    return Ok((None, Some(why)));
                }
                file => file.context(ErrorKind::Unavailable, opening)?,
            };
            take(&file, FlockOperation::NonBlockingLockShared, dir)?;
            Ok((Some(file), Some(why)))
        }
        Err(error) => Err(Error::with(ErrorKind::Unavailable, opening(), error)),
    }
}

fn is_read_only(error: &std::io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(errno, Some(Errno::ROFS | Errno::ACCESS | Errno::PERM))
}

fn take(file: &File, how: FlockOperation, dir: &Path) -> Result<()> {
    match flock(file, how) {
        Ok(()) => Ok(()),
        Err(Errno::WOULDBLOCK) => {
            let mut holder = String::new();
            // Who holds it is a courtesy: without it the message is shorter.
            let _ = file.take(TEXT_LEN_MAX).read_to_string(&mut holder);
            let holder: String = holder.chars().filter(char::is_ascii_digit).collect();
            let by = if holder.is_empty() {
                String::new()
            } else {
                format!(" {holder}")
            };
            let message = format!("the store in {} is in use by process{by}", dir.display());
            Err(Error::new(ErrorKind::Busy, message))
        }
        Err(error) => {
            let message = format!("locking {}", dir.join(LOCK).display());
            Err(Error::with(ErrorKind::Unavailable, message, error))
        }
    }
}

/// Refuses a file that only bears the name: its own holds the number of a process, or what a power
/// cut left of it.
fn check_own(mut file: &File, path: &Path) -> Result<()> {
    let mut held = Vec::new();
    let reading = || format!("reading {}", path.display());
    file.take(TEXT_LEN_MAX)
        .read_to_end(&mut held)
        .context(ErrorKind::Unavailable, reading)?;
    file.rewind().context(ErrorKind::Unavailable, reading)?;
    let is_own = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'\n' | 0);
    if held.iter().all(is_own) {
        return Ok(());
    }
    let what = format!(
        "{} is no file of carrack's: give --data-dir a folder of its own",
        path.display()
    );
    Err(Error::new(ErrorKind::Invalid, what))
}

fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Whether a directory has the file of a store's format, whatever its version.
pub(super) fn is_marked(dir: &Path) -> bool {
    let mut text = Vec::new();
    let file = nofollow::open(&dir.join(FORMAT)).map(File::from);
    let read = file.and_then(|file| file.take(TEXT_LEN_MAX).read_to_end(&mut text));
    read.is_ok() && text.starts_with(FORMAT_PREFIX.as_bytes())
}

/// Whether this is a store. One that a newer version wrote is refused before anything is changed.
fn has_format(dir: &Path) -> Result<bool> {
    let path = dir.join(FORMAT);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        other => other.context(ErrorKind::Unavailable, || {
            format!("opening {}", path.display())
        })?,
    };
    let mut text = String::new();
    file.take(TEXT_LEN_MAX)
        .read_to_string(&mut text)
        .context(ErrorKind::Corrupt, || format!("reading {}", path.display()))?;
    let version = text
        .trim_end()
        .strip_prefix(FORMAT_PREFIX)
        .and_then(|text| text.parse().ok());
    match version {
        Some(FORMAT_VERSION) => Ok(true),
        Some::<u32>(newer) => Err(Error::new(
            ErrorKind::Invalid,
            format!(
                "the store in {} has format {newer}, this program knows {FORMAT_VERSION}: use a \
                 newer carrack",
                dir.display()
            ),
        )),
        None => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "{} does not say which format the store has; {FORMAT_ADVICE}",
                path.display()
            ),
        )),
    }
}

/// Makes an empty store, each part durable before the next: the catalog under its name, and last
/// the file that says that all of it is there.
pub(super) fn make(dir: &Path, gate: &WriteGate) -> Result<()> {
    gate.told(durable::sync_name(dir))?;
    make_folders(dir, gate)?;
    let path = dir.join(CATALOG);
    let making = || format!("making the store in {}", dir.display());
    if !path.try_exists().context(ErrorKind::Unavailable, making)? {
        let made = Temporary::of_owner(&path, durable::MODE_PRIVATE);
        let made = made.context(ErrorKind::Unavailable, making)?;
        Catalog::make(&made.file, made.path(), gate)?;
        gate.told(made.publish())?;
    }
    write_format(dir, gate)
}

/// Says that all of the store is there.
pub(super) fn write_format(dir: &Path, gate: &WriteGate) -> Result<()> {
    let making = || format!("writing {}", dir.join(FORMAT).display());
    let made = Temporary::of_owner(&dir.join(FORMAT), durable::MODE_PRIVATE);
    let mut made = made.context(ErrorKind::Unavailable, making)?;
    writeln!(made.file, "{FORMAT_PREFIX}{FORMAT_VERSION}")
        .context(ErrorKind::Unavailable, making)?;
    gate.told(made.publish())
}

/// Gets a store ready for writing: whoever made it may have been killed before the names in it were
/// durable, and what is built on them must not outlast them.
pub(super) fn settle(dir: &Path, gate: &WriteGate) -> Result<()> {
    make_folders(dir, gate)?;
    gate.told(durable::sync_dir(dir))
}

/// Makes what is missing of the folders.
pub(super) fn make_folders(dir: &Path, gate: &WriteGate) -> Result<()> {
    for name in [SEGMENTS, PACKS, JOURNAL] {
        gate.told(durable::create_dir_all(&dir.join(name)))?;
    }
    Ok(())
}

/// Why a store cannot be opened: what is wrong with its catalog, and what helps.
pub(super) fn lost_catalog(dir: &Path, error: Error) -> Error {
    if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) {
        return error;
    }
    let state = match error.kind() {
        ErrorKind::NotFound => "is missing",
        _ => "is damaged",
    };
    let path = dir.join(CATALOG);
    let what = format!("{} {state}; {CATALOG_ADVICE}", path.display());
    Error::with(ErrorKind::Corrupt, what, error.chain())
}

/// Why a file of the store cannot be opened: somebody else made it.
pub(super) fn not_let_in(path: &Path, error: std::io::Error) -> Error {
    let own = rustix::process::geteuid().as_raw();
    let owner = std::fs::metadata(path).map(|meta| meta.uid());
    let whose = match owner {
        Ok(owner) if owner != own => format!(
            "it belongs to user {owner} and this is user {own}: as user {owner}, give the store's \
             files back (chown -R)"
        ),
        _ => format!("user {own} is not let in: mend its mode and that of its folders"),
    };
    let what = format!("opening {}: {whose}", path.display());
    Error::with(ErrorKind::Unavailable, what, error)
}

#[cfg(test)]
mod tests {
    use super::CONFIG;
    use crate::node::config;

    #[test]
    fn what_a_node_keeps_beside_its_store_is_known_by_name() {
        assert_eq!(CONFIG, config::FILE_NAME);
    }
}
