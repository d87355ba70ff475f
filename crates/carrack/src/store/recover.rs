//! The data directory: its lock, its version, its layout, and what a crash left in it.
//!
//! In       a directory that may be new, in use, or written by a newer version.
//! Out      the held lock; a directory in which every segment and pack is listed.
//! Not here the catalog's own recovery, which is redb's.
//!
//! ```text
//! lock          held while the store is open; the text is the holder's process id
//! format        `carrack store 1`
//! catalog.redb  segments/  packs/  journal/
//! ```

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

use super::OpenMode;
use super::gate::WriteGate;
use super::index::{SegmentMeta, segment_name};
use super::location::ContainerId;
use crate::error::{Context, Error, ErrorKind, Result};

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

/// Takes the exclusive lock, checks the version, and only then writes the process id.
pub(super) fn lock(dir: &Path, mode: OpenMode) -> Result<File> {
    let shown = dir.display();
    if mode == OpenMode::Create {
        std::fs::create_dir_all(dir)
            .context(ErrorKind::Unavailable, || format!("creating {shown}"))?;
    }
    let path = dir.join(LOCK);
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(mode == OpenMode::Create)
        .truncate(false)
        .open(&path);
    let mut file = match opened {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let message = format!("there is no store in {shown}");
            return Err(Error::with(ErrorKind::NotFound, message, error));
        }
        other => other.context(ErrorKind::Unavailable, || {
            format!("opening {}", path.display())
        })?,
    };
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
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
            let message = format!("the store in {shown} is in use by process{by}");
            return Err(Error::new(ErrorKind::Busy, message));
        }
        Err(error) => {
            let message = format!("locking {}", path.display());
            return Err(Error::with(ErrorKind::Unavailable, message, error));
        }
    }
    check_format(dir)?;
    write_holder(&mut file).context(ErrorKind::Unavailable, || {
        format!("writing {}", path.display())
    })?;
    Ok(file)
}

fn write_holder(file: &mut File) -> std::io::Result<()> {
    file.set_len(0)?;
    file.rewind()?;
    writeln!(file, "{}", std::process::id())
}

/// Refuses a store that a newer version wrote, before anything is changed.
fn check_format(dir: &Path) -> Result<()> {
    let path = dir.join(FORMAT);
    let file = match File::open(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
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
        Some(FORMAT_VERSION) => Ok(()),
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
            format!("{} does not say which format the store has", path.display()),
        )),
    }
}

/// Makes what is missing of the layout, durably.
pub(super) fn make_layout(dir: &Path) -> Result<()> {
    let making = || format!("making the store in {}", dir.display());
    for name in [SEGMENTS, PACKS, JOURNAL] {
        std::fs::create_dir_all(dir.join(name)).context(ErrorKind::Unavailable, making)?;
    }
    let path = dir.join(FORMAT);
    if path.try_exists().context(ErrorKind::Unavailable, making)? {
        return Ok(());
    }
    let gate = WriteGate::default();
    let tmp_path = dir.join("format.tmp");
    let mut file = File::create(&tmp_path).context(ErrorKind::Unavailable, making)?;
    writeln!(file, "{FORMAT_PREFIX}{FORMAT_VERSION}").context(ErrorKind::Unavailable, making)?;
    gate.sync_file(&file, &tmp_path)?;
    std::fs::rename(&tmp_path, &path).context(ErrorKind::Unavailable, making)?;
    gate.sync_dir(dir)
}

/// Removes segments and packs that no commit has listed.
pub(super) fn remove_unlisted(
    dir: &Path,
    segments: &[SegmentMeta],
    packs: &[(Vec<u8>, ContainerId)],
) -> Result<()> {
    let mut segment_names: Vec<Vec<u8>> = segments
        .iter()
        .map(|segment| segment_name(segment.id).into_bytes())
        .collect();
    segment_names.sort_unstable();
    remove_others(&dir.join(SEGMENTS), |name| {
        segment_names
            .binary_search_by(|listed| listed.as_slice().cmp(name))
            .is_ok()
    })?;
    // They come from the catalog in key order.
    remove_others(&dir.join(PACKS), |name| {
        packs
            .binary_search_by(|(listed, _)| listed.as_slice().cmp(name))
            .is_ok()
    })
}

fn remove_others(dir: &Path, is_listed: impl Fn(&[u8]) -> bool) -> Result<()> {
    let reading = || format!("reading {}", dir.display());
    for entry in std::fs::read_dir(dir).context(ErrorKind::Unavailable, reading)? {
        let entry = entry.context(ErrorKind::Unavailable, reading)?;
        let name = entry.file_name().into_vec();
        if !is_listed(&name) {
            let path = entry.path();
            std::fs::remove_file(&path).context(ErrorKind::Unavailable, || {
                format!("removing {}", path.display())
            })?;
        }
    }
    Ok(())
}

/// The file of a pack by its name in the catalog.
pub(super) fn pack_path(dir: &Path, name: &[u8]) -> PathBuf {
    dir.join(PACKS).join(std::ffi::OsStr::from_bytes(name))
}
