//! When to stop: the signals of an operator.
//!
//! In       SIGINT and SIGTERM. Out: a future that ends at the first of them.
//! Not here what stopping means (`listener`).

use tokio::signal::unix::{SignalKind, signal};

use crate::error::{Context, ErrorKind, Result};

/// Starts to listen for signals; the future that is returned ends at the first one.
///
/// Cancel-safe: dropping the future loses no more than the signal.
///
/// # Errors
/// `Unavailable`: the signals cannot be listened for.
pub fn on_signal() -> Result<impl Future<Output = ()> + Send> {
    let failed = || "cannot listen for signals".to_owned();
    let mut interrupt = signal(SignalKind::interrupt()).context(ErrorKind::Unavailable, failed)?;
    let mut terminate = signal(SignalKind::terminate()).context(ErrorKind::Unavailable, failed)?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}
