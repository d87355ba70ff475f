//! What the name of a watched place leads to.
//!
//! In       a path as a person wrote it.
//! Out      where it leads now, without symlinks, and what is there.
//! Not here what is done when that is something else (`watch`).
//!
//! Symlinks that a person named are followed, also when they are made to point elsewhere. What they
//! led to had no symlink in its path; one that is in it now was put there by somebody who may write
//! to a folder, and is not followed. It is an error until it is gone.

use std::io;
use std::path::{Path, PathBuf};

use crate::source::nofollow::{self, Kind};
use crate::store::catalog::Validator;

/// A path that a person named.
#[derive(Debug)]
pub(in crate::cli::commands::serve) struct Name {
    path: PathBuf,
    real: PathBuf,
}

/// What a name led to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    /// Where it is, without symlinks.
    pub(super) real: PathBuf,
    /// A folder; otherwise a file.
    pub(super) is_folder: bool,
    validator: Validator,
}

impl Seen {
    /// Whether it is the same folder, or file, in whatever version.
    pub(super) fn is_same(&self, other: &Self) -> bool {
        let id = |seen: &Self| match &seen.validator {
            Validator::File(stamp) => (stamp.dev, stamp.ino),
            Validator::Object(_) => (0, 0),
        };
        self.real == other.real && self.is_folder == other.is_folder && id(self) == id(other)
    }
}

impl Name {
    /// A name, which leads to something.
    ///
    /// # Errors
    /// Those of resolving it.
    pub(in crate::cli::commands::serve) fn new(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: std::path::absolute(path)?,
            real: std::fs::canonicalize(path)?,
        })
    }

    /// As it was written, made absolute.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where it led when it was last looked at, without symlinks.
    pub(super) fn real(&self) -> &Path {
        &self.real
    }

    /// Looks where it leads now.
    ///
    /// # Errors
    /// `NotFound` if that is nothing; `InvalidInput` if a symlink has come into the path that it
    /// led to, or if it is neither a folder nor a file.
    pub(super) fn look(&mut self) -> io::Result<Seen> {
        // First, so that a symlink there is told even if it leads to nothing.
        let here = match nofollow::look(&self.real) {
            Ok(looked) if looked.kind == Kind::Symlink => return Err(looked.kind.refused()),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => return Err(error),
            here => here,
        };
        let now = std::fs::canonicalize(&self.path)?;
        let looked = match now == self.real {
            true => here?,
            false => nofollow::look(&now)?,
        };
        let is_folder = match looked.kind {
            Kind::Directory => true,
            Kind::File => false,
            kind => return Err(kind.refused()),
        };
        self.real.clone_from(&now);
        Ok(Seen {
            real: now,
            is_folder,
            validator: looked.validator,
        })
    }
}
