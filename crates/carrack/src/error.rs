//! The product's one error: a coarse kind that decides what a caller does, and a sentence.
//!
//! In       errors of the leaf modules, each with where it happened.
//! Out      an HTTP status and an exit code, from one table.
//! Not here wording for one command or one endpoint: they add their own sentence on top.

use std::fmt;

/// Kinds differ only if a caller would act differently.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// This node does not hold the block, root or path. Ask another source.
    NotFound,
    /// The request or the command line is wrong. Do not repeat it.
    Invalid,
    /// Bytes do not hash to their CID, or a CAR is malformed.
    Verification,
    /// The source behind a block changed after it was added. Add it again, or put it back.
    Changed,
    /// A configured limit was reached. Ask for less, or later.
    Limit,
    /// A DAG is more than is walked here, whoever asks and when. Ask for a part of it.
    TooLarge,
    /// Something was left out, or what is not known to carrack may be missing; everything else was
    /// done.
    Partial,
    /// A disk, store or peer did not do what it was asked. Retry may help.
    Unavailable,
    /// A source elsewhere does not answer, or does not let us in. Retry may help.
    Unreachable,
    /// Stored state is not what carrack wrote. An operator must look.
    Corrupt,
    /// Another process uses the store.
    Busy,
    /// A bug in this program.
    Internal,
}

impl ErrorKind {
    /// `(HTTP status, process exit code)`: the only place where kinds get numbers.
    #[must_use]
    pub const fn codes(self) -> (u16, u8) {
        match self {
            Self::Invalid => (400, 2),
            Self::NotFound => (404, 3),
            Self::Verification => (500, 4),
            Self::Limit => (429, 5),
            Self::TooLarge => (501, 5),
            Self::Partial => (501, 6),
            Self::Changed => (409, 7),
            Self::Unavailable | Self::Unreachable => (503, 8),
            Self::Corrupt => (500, 9),
            Self::Busy => (503, 10),
            Self::Internal => (500, 70),
        }
    }
}

/// What went wrong, for a person, and its kind, for a program.
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync + 'static>>,
}

/// `std::result::Result` with the product's error.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a cause. `message` is lowercase, one sentence, no full stop.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            source: None,
        }
    }

    /// An error with its cause, which `Display` does not repeat.
    pub fn with(
        kind: ErrorKind,
        message: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync + 'static>>,
    ) -> Self {
        Self {
            kind,
            message: message.into(),
            source: Some(source.into()),
        }
    }

    /// What a caller acts on.
    #[must_use]
    pub const fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The cause, for an error that says the same with other words.
    #[must_use]
    pub fn into_source(self) -> Option<Box<dyn std::error::Error + Send + Sync + 'static>> {
        self.source
    }

    /// This level and every cause below it, joined by `: `.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause: Option<&dyn std::error::Error> = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.kind, self.chain())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as _)
    }
}

/// Adds a kind and a sentence to an error of another crate.
pub trait Context<T> {
    /// Wraps the error with `kind` and the sentence that `message` makes.
    ///
    /// # Errors
    /// Exactly when `self` is one.
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync + 'static>>> Context<T>
    for std::result::Result<T, E>
{
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| Error::with(kind, message(), error))
    }
}
