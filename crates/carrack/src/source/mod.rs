//! Sources: where bytes lie before carrack knows them.
//!
//! In       a [`Source`] that `open` made from what is configured; a path below it, a validator, a
//!          range.
//! Out      objects as they are listed, and bytes of the very version that was asked for.
//! Limits   each read and list has deadlines (`http`); nothing here holds more than one part of a
//!          body or one page of a listing.
//! Not here names of containers (`store::catalog`), what bytes must hash to (`store::block`), how
//!          many reads are under way (`source::limiter`, `store::extent`).
//!
//! Sources hold nothing but configuration, credentials and idle connections: any number of reads
//! may go on at once, and dropping what a method returned ends that read.

pub mod config;
#[doc(hidden)]
pub mod conformance;
mod date;
pub mod folder;
pub mod health;
mod http;
pub mod limiter;
mod listing;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) use listing::fuzz;
pub mod local;
pub mod look;
pub mod nofollow;
mod object;
pub mod open;
mod reach;
pub mod retry;
mod s3;
#[cfg(test)]
pub(crate) mod testing;
pub mod url;
pub mod validator;
mod web;

use std::ops::Range;
use std::pin::Pin;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;

use self::validator::ObjectStamp;
use crate::error::{Error, ErrorKind};

/// A future that may be sent to another thread.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;
/// Pieces of a body, in order. It ends with the last byte of the range, or with an error.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;
/// Objects, in an order in which everything below one directory comes without interruption.
pub type ObjectStream<'a> = Pin<Box<dyn Stream<Item = Result<Listed, SourceError>> + Send + 'a>>;

/// A place where bytes lie.
pub trait Source: std::fmt::Debug + Send + Sync {
    /// Where it is, for people: without credentials.
    fn url(&self) -> &str;

    /// What the object at `path` is now. `path` is relative to the source, `/` between its names.
    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>>;

    /// Bytes `range` of the version `expected` of the object at `path`, and of no other version:
    /// the read is conditional where the protocol has a condition, and what the answer tells of
    /// itself must agree. The stream gives exactly the range or an error; it is one request,
    /// never repeated here.
    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>>;

    /// All objects below `prefix`, a path of whole names, or the object that has this very path.
    /// What cannot be listed or asked for is told as [`Listed::Odd`]; an error ends the listing.
    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a>;

    /// The same for who does not want what is hidden: a source that would have to ask for more to
    /// list it tells [`Listed::Hidden`] instead.
    fn list_shown<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        self.list(prefix)
    }

    /// What whoever adds from here should know of the place, after it was read.
    fn remark(&self) -> Option<String> {
        None
    }
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listed {
    /// An object.
    Object {
        /// Its path, relative to the source.
        path: Vec<u8>,
        /// What it is. Listings may tell less of it than a read does.
        stamp: ObjectStamp,
    },
    /// A folder, before what lies in it. Not every folder is told: one with something in it need
    /// not be.
    Folder {
        /// Its path, without `/` at its end.
        path: Vec<u8>,
    },
    /// What was asked for is a list of objects, which are told next: it stands for the folder that
    /// it lies in, and they lie below that.
    List,
    /// A file or folder with a name that begins with a dot, of which nothing more was asked.
    Hidden {
        /// Its path.
        path: Vec<u8>,
    },
    /// Something that cannot become part of a directory, and why: a key with an empty name in it,
    /// `.` or `..`, a folder marker with content; a file that the server does not give, a folder
    /// that it does not list.
    Odd {
        /// Its key as the source has it.
        path: Vec<u8>,
        /// Why, in a few words.
        why: String,
    },
}

/// What went wrong at a source.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{what}")]
pub struct SourceError {
    /// What sort of failure.
    pub kind: SourceErrorKind,
    /// For people: what was done and what came back. Without credentials.
    pub what: String,
    /// When the source asked to be left alone until.
    pub retry_after: Option<Duration>,
}

/// Sorts of failure, by what is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SourceErrorKind {
    /// There is no such object.
    Missing,
    /// It is another version than was asked for.
    Changed,
    /// The credentials do not allow it, or there are none.
    Denied,
    /// Too many requests: slow down and try again.
    Throttled,
    /// No answer, an answer that broke off, or a failing server: try again.
    Unreachable,
    /// The answer cannot be used, and asking again will not help: no ranges, an encoding that was
    /// not asked for, not a listing.
    Unusable,
}

impl SourceError {
    /// An error.
    #[must_use]
    pub fn new(kind: SourceErrorKind, what: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            retry_after: None,
        }
    }

    /// Whether trying again may help.
    #[must_use]
    pub const fn is_passing(&self) -> bool {
        matches!(
            self.kind,
            SourceErrorKind::Throttled | SourceErrorKind::Unreachable
        )
    }
}

impl From<SourceError> for Error {
    fn from(error: SourceError) -> Self {
        let kind = match error.kind {
            SourceErrorKind::Missing | SourceErrorKind::Changed => ErrorKind::Changed,
            SourceErrorKind::Denied | SourceErrorKind::Throttled | SourceErrorKind::Unreachable => {
                ErrorKind::Unavailable
            }
            SourceErrorKind::Unusable => ErrorKind::Invalid,
        };
        Self::new(kind, error.what)
    }
}

/// Bytes that came from elsewhere, for an error: what is not printable is escaped, and what is
/// long is cut.
fn printable(bytes: &[u8]) -> String {
    const LEN_MAX: usize = 300;
    let text = String::from_utf8_lossy(bytes.get(..LEN_MAX).unwrap_or(bytes));
    let mut out = String::with_capacity(text.len());
    for symbol in text.chars() {
        if symbol.is_control() {
            out.extend(symbol.escape_default());
        } else {
            out.push(symbol);
        }
    }
    if bytes.len() > LEN_MAX {
        out.push_str("...");
    }
    out
}
