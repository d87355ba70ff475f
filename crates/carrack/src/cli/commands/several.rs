//! Several things that one command does one by one: what fails is named, the rest is done.
//!
//! In       the outcome of each.
//! Out      a note for each that failed; the command's outcome.
//! Not here what ends a command at once: see [`ends_all`].

use std::sync::atomic::Ordering;

use crate::cli::Env;
use crate::cli::output::{is_broken_pipe, shown};
use crate::error::{Error, ErrorKind, Result};

/// What became of the things so far.
#[derive(Debug)]
pub(super) struct Several {
    /// What is not done with those that fail, such as `imported`.
    done: &'static str,
    /// The only one fails as the command does, without a word before.
    is_one: bool,
    n: usize,
    n_failed: usize,
    first: Option<Error>,
}

impl Several {
    /// `n` things are to be done.
    pub(super) const fn new(done: &'static str, n: usize) -> Self {
        Self {
            done,
            is_one: n == 1,
            n,
            n_failed: 0,
            first: None,
        }
    }

    /// Takes one's outcome; names it if it failed.
    ///
    /// # Errors
    /// What ends the command at once.
    pub(super) fn take<T>(
        &mut self,
        env: &mut Env<'_>,
        name: &[u8],
        outcome: Result<T>,
    ) -> Result<Option<T>> {
        match outcome {
            Ok(value) => Ok(Some(value)),
            Err(error) if ends_all(&error, env) => Err(error),
            Err(error) => {
                self.failed(env, name, error);
                Ok(None)
            }
        }
    }

    /// One failed.
    pub(super) fn failed(&mut self, env: &mut Env<'_>, name: &[u8], error: Error) {
        self.n_failed += 1;
        if !self.is_one {
            let (name, why) = (shown(name), error.chain());
            let (done, why) = (self.done, shown(why.as_bytes()));
            env.out.note(&format!("not {done}: {name}: {why}"));
        }
        self.first.get_or_insert(error);
    }

    /// What came of all: `Partial` if some failed, the kind of the first if all did.
    ///
    /// # Errors
    /// If any failed.
    pub(super) fn conclude(self) -> Result<()> {
        let Some(first) = self.first else {
            return Ok(());
        };
        if self.is_one {
            return Err(first);
        }
        let (n_failed, n, done) = (self.n_failed, self.n, self.done);
        let what = format!("{n_failed} of {n} were not {done}");
        match n_failed < n {
            true => Err(Error::new(ErrorKind::Partial, what)),
            false => Err(Error::new(first.kind(), what)),
        }
    }
}

/// Whether a command ends by an error about one thing: the trouble is not that thing's.
pub(super) fn ends_all(error: &Error, env: &Env<'_>) -> bool {
    let kind = error.kind();
    env.stop.load(Ordering::Relaxed)
        || is_broken_pipe(error)
        || matches!(
            kind,
            ErrorKind::Corrupt | ErrorKind::Busy | ErrorKind::Internal
        )
}
