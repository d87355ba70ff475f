//! Fail-stop for writes: after one failed fsync nothing may be called durable any more.
//!
//! In       every fsync of the store's own files, those of the catalog among them.
//! Out      an error for each later write, which names the first failure.
//! Not here reads: they go on. Ordinary write errors (a full disk, no descriptors) do not close the
//!          gate: what was being written is thrown away and may be tried again.
//!
//! The kernel may mark pages clean after a failed fsync, so that a second fsync succeeds without
//! the bytes being on the disk. Only a restart, which reads what is really there, may try again.

use std::fs::File;
use std::path::Path;
use std::sync::OnceLock;

use crate::durable::{self, DurableError};
use crate::error::{Error, ErrorKind, Result};

/// Open until the first failure of durability, closed until the process ends.
#[derive(Debug, Default)]
pub struct WriteGate {
    failure: OnceLock<String>,
}

impl WriteGate {
    /// An error if the store has turned read-only.
    ///
    /// # Errors
    /// `Unavailable`, naming the first failure.
    pub fn check(&self) -> Result<()> {
        match self.failure.get() {
            None => Ok(()),
            Some(failure) => Err(Error::new(
                ErrorKind::Unavailable,
                format!("the store is read-only until it is opened again, because {failure}"),
            )),
        }
    }

    /// Turns the store read-only. The first reason stays.
    pub fn close(&self, failure: impl Into<String>) {
        // A second failure adds nothing: the first is the one that an operator must look at.
        if self.failure.set(failure.into()).is_ok()
            && let Err(error) = self.check()
        {
            tracing::error!(%error, "nothing more is written");
        }
    }

    /// The gate of a store that cannot be written.
    pub fn closed(why: String) -> Self {
        Self {
            failure: OnceLock::from(why),
        }
    }

    /// Makes a file's bytes and length durable.
    ///
    /// # Errors
    /// `Unavailable` if the gate is closed, or closes now because the fsync failed.
    pub fn sync_file(&self, file: &File, path: &Path) -> Result<()> {
        self.check()?;
        self.told(durable::sync_file(file, path))
    }

    /// Makes the names in a directory durable: after a rename or a creation.
    ///
    /// # Errors
    /// As [`Self::sync_file`]; a directory that cannot be opened does not close the gate.
    pub fn sync_dir(&self, dir: &Path) -> Result<()> {
        self.check()?;
        self.told(durable::sync_dir(dir))
    }

    /// What was tried with a file of the store: a sync that failed closes the gate.
    ///
    /// # Errors
    /// `Unavailable` if it failed.
    pub fn told<T>(&self, done: Result<T, DurableError>) -> Result<T> {
        done.map_err(|error| self.refused(&error))
    }

    /// The error of what the disk refused; a failed sync closes the gate.
    pub fn refused(&self, error: &DurableError) -> Error {
        if let DurableError::Sync { .. } = error {
            self.close(error.to_string());
        }
        let cause = std::error::Error::source(error).map(ToString::to_string);
        Error::with(
            ErrorKind::Unavailable,
            error.to_string(),
            cause.unwrap_or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::WriteGate;
    use crate::error::ErrorKind;

    #[test]
    fn the_first_failure_stays_and_is_named() {
        let gate = WriteGate::default();
        gate.check().unwrap();
        gate.close("fsync of a failed");
        gate.close("fsync of b failed");
        let error = gate.check().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.to_string().contains("fsync of a failed"));
        assert!(gate.sync_dir(std::path::Path::new("/")).is_err());
    }
}
