//! Sources: where bytes lie before carrack knows them.
//!
//! In       a [`Source`] made from what is configured; a path below it, a validator, a range.
//! Out      objects as they are listed, and bytes of the very version that was asked for.
//! Limits   each read and list has deadlines (`http`); nothing here holds more than one part of a
//!          body or one page of a listing.
//! Not here names of containers (`store::catalog`), what bytes must hash to (`store::block`), how
//!          many reads are under way (`source::limiter`, `store::extent`).
//!
//! Sources hold nothing but configuration, credentials and idle connections: any number of reads
//! may go on at once, and dropping what a method returned ends that read.

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
mod reach;
pub mod retry;
mod s3;
#[cfg(test)]
pub(crate) mod testing;
pub mod url;
pub mod validator;
mod web;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;

use self::url::{Scheme, SourceUrl};
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

/// The variables that sources may look at, taken by the command line from the process or from the
/// client that sent a command. Secrets among them stay in memory.
#[derive(Clone, Default)]
pub struct Environment {
    variables: HashMap<String, String>,
}

impl Environment {
    /// Those of `variables` that sources know: of AWS, Google, Azure, and the home directory.
    #[must_use]
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let known = |name: &str| {
            ["AWS_", "GOOGLE_", "AZURE_"]
                .iter()
                .any(|prefix| name.starts_with(prefix))
                || name == "HOME"
        };
        let variables = variables.into_iter().filter(|(name, _)| known(name));
        Self {
            variables: variables.collect(),
        }
    }

    /// The value of a variable, if it is set and not empty.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        let value = self.variables.get(name)?;
        (!value.is_empty()).then_some(value)
    }

    /// Whether `other` has the same variables and values.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        self.variables == other.variables
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }
}

impl std::fmt::Debug for Environment {
    /// Names only: values may be secrets.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.variables.keys()).finish()
    }
}

/// What is configured of a source. The catalog's row of it has the same fields.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SourceConfig {
    /// `s3://`, `gs://`, `az://`, `http://`, `https://`, or the absolute path of a folder.
    pub url: String,
    /// The server that answers for a bucket; empty for the provider's own.
    pub endpoint: String,
    /// The region of a bucket; empty for the provider's default.
    pub region: String,
    /// `env`, `profile:NAME`, `file:PATH`, `web-identity` or `none`.
    pub credentials: String,
    /// Of a web server: origins that its requests may be sent on to, besides its own.
    pub redirects: Vec<String>,
    /// Of a web server: its name, and those of `redirects`, may lead to private addresses.
    pub private: bool,
}

/// Opens a source. Called within the runtime that its reads will run on. Asks nothing of it yet.
///
/// # Errors
/// `Unusable` if what is configured cannot be a source.
pub fn open(
    config: &SourceConfig,
    environment: &Environment,
) -> Result<Arc<dyn Source>, SourceError> {
    let url = SourceUrl::parse(&config.url)
        .map_err(|error| SourceError::new(SourceErrorKind::Unusable, error.to_string()))?;
    let Some(url) = url else {
        let folder = folder::LocalSource::new(Path::new(&config.url))?;
        return Ok(Arc::new(folder));
    };
    http::install_crypto();
    match url.scheme() {
        Scheme::S3 => Ok(Arc::new(s3::S3::new(config, &url, environment)?)),
        Scheme::Http | Scheme::Https => Ok(Arc::new(web::Web::new(config, &url)?)),
        Scheme::Gcs | Scheme::Azure => {
            let source = object::ObjectSource::new(config, &url, environment)?;
            Ok(Arc::new(source))
        }
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
