//! A folder of this machine as a source among others: for relocating, rescanning and comparing.
//!
//! In       an absolute path; paths below it.
//! Out      a [`Source`] of its regular files.
//! Limits   pieces of [`PIECE_LEN`]; one directory's names at a time on each level.
//! Not here serving: files of this machine are read by `source::local` and `store::block`.

use std::collections::VecDeque;
use std::ffi::OsStr;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream;

use crate::source::http::check_bounds;
use crate::source::local::LocalFile;
use crate::source::nofollow::{self, Directory, Kind, Looked};
use crate::source::url::odd_key;
use crate::source::validator::{ObjectStamp, Validator};
use crate::source::{
    BoxFuture, ByteStream, Listed, ObjectStream, Source, SourceError, SourceErrorKind, printable,
};

/// What one trip to the blocking pool brings.
const PIECE_LEN: u64 = 1 << 20;

/// A folder, or one file.
#[derive(Debug)]
pub struct LocalSource {
    url: String,
    root: PathBuf,
}

impl LocalSource {
    /// The folder or file at an absolute path.
    ///
    /// # Errors
    /// `Unusable` if the path is relative.
    pub fn new(root: &Path) -> Result<Self, SourceError> {
        if !root.is_absolute() {
            return Err(SourceError::new(
                SourceErrorKind::Unusable,
                format!("{} is no absolute path", root.display()),
            ));
        }
        Ok(Self {
            url: printable(root.as_os_str().as_bytes()),
            root: root.to_path_buf(),
        })
    }

    fn path(&self, path: &[u8]) -> Result<PathBuf, SourceError> {
        if let Some(why) = odd_key(path) {
            return Err(SourceError::new(
                SourceErrorKind::Unusable,
                format!("{}: the path {} {why}", self.url, printable(path)),
            ));
        }
        if path.is_empty() {
            return Ok(self.root.clone());
        }
        Ok(self.root.join(OsStr::from_bytes(path)))
    }
}

impl Source for LocalSource {
    fn url(&self) -> &str {
        &self.url
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async move {
            let path = self.path(path)?;
            blocking(move || {
                let file = LocalFile::open(&path).map_err(|error| refused(&path, &error))?;
                Ok(stamp_of(&file.validator))
            })
            .await
        })
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let path = self.path(path)?;
            check_bounds(&printable(path.as_os_str().as_bytes()), expected, &range)?;
            let expected = expected.clone();
            let reading = blocking(move || {
                let file = LocalFile::open(&path).map_err(|error| refused(&path, &error))?;
                let reading = Reading {
                    file,
                    path,
                    expected,
                    range,
                };
                reading.check()?;
                Ok(Arc::new(reading))
            })
            .await?;
            Ok(pieces(reading))
        })
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        let walk = Walk {
            source: self,
            waiting: VecDeque::new(),
            directories: vec![VecDeque::from([prefix.to_vec()])],
        };
        Box::pin(stream::try_unfold(walk, |mut walk| async move {
            let listed = walk.next().await?;
            Ok(listed.map(|listed| (listed, walk)))
        }))
    }
}

/// An open file of the version that was asked for.
struct Reading {
    file: LocalFile,
    path: PathBuf,
    expected: ObjectStamp,
    range: Range<u64>,
}

impl Reading {
    fn check(&self) -> Result<(), SourceError> {
        let now = self.file.current_validator();
        let now = now.map_err(|error| refused(&self.path, &error))?;
        let found = stamp_of(&now);
        // Both may tell nanoseconds, which `agrees_with` leaves out for the sake of others.
        let exact = |stamp: &ObjectStamp| stamp.modified.filter(|time| time.nanos != 0);
        let same_time = match (exact(&self.expected), exact(&found)) {
            (Some(a), Some(b)) => a == b,
            _ => true,
        };
        if self.expected.agrees_with(&found) && same_time {
            return Ok(());
        }
        Err(SourceError::new(
            SourceErrorKind::Changed,
            format!("{}: it was changed", self.path.display()),
        ))
    }

    fn piece(&self, offset: u64) -> Result<Bytes, SourceError> {
        let len = PIECE_LEN.min(self.range.end - offset);
        let mut piece = vec![0; usize::try_from(len).unwrap_or(0)];
        let read = self.file.read_exact_at(&mut piece, offset);
        self.check()?;
        read.map_err(|error| refused(&self.path, &error))?;
        Ok(Bytes::from(piece))
    }
}

fn pieces(reading: Arc<Reading>) -> ByteStream {
    let start = reading.range.start;
    Box::pin(stream::try_unfold(start, move |offset| {
        let reading = Arc::clone(&reading);
        async move {
            if offset >= reading.range.end {
                return Ok(None);
            }
            let piece = blocking(move || reading.piece(offset)).await?;
            let next = offset + piece.len() as u64;
            Ok(Some((piece, next)))
        }
    }))
}

/// A walk through directories, sorted by name on each level.
struct Walk<'a> {
    source: &'a LocalSource,
    waiting: VecDeque<Listed>,
    directories: Vec<VecDeque<Vec<u8>>>,
}

impl Walk<'_> {
    async fn next(&mut self) -> Result<Option<Listed>, SourceError> {
        loop {
            if let Some(listed) = self.waiting.pop_front() {
                return Ok(Some(listed));
            }
            let Some(level) = self.directories.last_mut() else {
                return Ok(None);
            };
            let Some(path) = level.pop_front() else {
                self.directories.pop();
                continue;
            };
            let full = self.source.path(&path)?;
            let (listed, directories) = blocking(move || look(&full, &path)).await?;
            self.waiting.extend(listed);
            self.directories.push(directories);
        }
    }
}

/// What lies at a path: files that are told at once, and directories to go into.
fn look(full: &Path, path: &[u8]) -> Result<(Vec<Listed>, VecDeque<Vec<u8>>), SourceError> {
    let mut listed = Vec::new();
    let mut directories = VecDeque::new();
    let looked = nofollow::look(full).map_err(|error| refused(full, &error))?;
    if looked.kind != Kind::Directory {
        listed.push(entry(path.to_vec(), &looked));
        return Ok((listed, directories));
    }
    let mut directory = Directory::open(full).map_err(|error| refused(full, &error))?;
    let mut names = Vec::new();
    while let Some(entry) = directory.next_entry() {
        names.push(entry.map_err(|error| refused(full, &error))?.0);
    }
    names.sort_unstable();
    for name in names {
        let mut below = path.to_vec();
        if !below.is_empty() {
            below.push(b'/');
        }
        below.extend_from_slice(name.as_bytes());
        match directory.look(&name) {
            Ok(looked) if looked.kind == Kind::Directory => directories.push_back(below),
            Ok(looked) => listed.push(entry(below, &looked)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(refused(&full.join(name), &error)),
        }
    }
    Ok((listed, directories))
}

fn entry(path: Vec<u8>, looked: &Looked) -> Listed {
    let what = match looked.kind {
        Kind::File => {
            let stamp = stamp_of(&looked.validator);
            return Listed::Object { path, stamp };
        }
        Kind::Symlink => "a symlink",
        Kind::Directory | Kind::Special => "no regular file",
    };
    Listed::Odd {
        path,
        why: format!("is {what}"),
    }
}

fn stamp_of(validator: &Validator) -> ObjectStamp {
    match validator {
        Validator::File(stamp) => ObjectStamp {
            size: stamp.size,
            modified: Some(stamp.mtime),
            ..ObjectStamp::default()
        },
        Validator::Object(stamp) => stamp.as_ref().clone(),
    }
}

fn refused(path: &Path, error: &io::Error) -> SourceError {
    let kind = match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => SourceErrorKind::Missing,
        io::ErrorKind::PermissionDenied => SourceErrorKind::Denied,
        io::ErrorKind::UnexpectedEof => SourceErrorKind::Changed,
        io::ErrorKind::InvalidInput | io::ErrorKind::IsADirectory => SourceErrorKind::Missing,
        _ => SourceErrorKind::Unreachable,
    };
    SourceError::new(kind, format!("{}: {error}", path.display()))
}

/// On the threads that may wait for a disk. What runs there ends by itself: one piece, one
/// directory.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, SourceError> + Send + 'static,
) -> Result<T, SourceError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(_) => Err(SourceError::new(
            SourceErrorKind::Unreachable,
            "this node is stopping",
        )),
    }
}

#[cfg(test)]
mod tests;
