//! When to stop: the signals of an operator.
//!
//! In       SIGINT and SIGTERM. Out: which of them comes next.
//! Not here what stopping means (`listener`).

use tokio::signal::unix::{Signal as Stream, SignalKind, signal};

use crate::error::{Context, ErrorKind, Result};

/// Which signal came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Somebody at a terminal.
    Interrupt,
    /// Whatever manages the process.
    Terminate,
}

/// The signals from now on.
#[derive(Debug)]
pub struct Signals {
    interrupt: Stream,
    terminate: Stream,
}

impl Signals {
    /// Starts to listen for signals. To be called where a runtime runs.
    ///
    /// # Errors
    /// `Unavailable`: the signals cannot be listened for.
    pub fn listen() -> Result<Self> {
        let failed = || "cannot listen for signals".to_owned();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).context(ErrorKind::Unavailable, failed)?,
            terminate: signal(SignalKind::terminate()).context(ErrorKind::Unavailable, failed)?,
        })
    }

    /// The next one. Cancel-safe.
    pub async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.interrupt.recv() => Signal::Interrupt,
            _ = self.terminate.recv() => Signal::Terminate,
        }
    }
}
