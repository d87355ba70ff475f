//! The lock of the state machines here: of the standard library, or of the checker of models.
//!
//! Not here anything that waits for a network: tokio's, in `fetch`.

#[cfg(not(feature = "model"))]
pub(super) use std::sync::{Mutex, MutexGuard};

#[cfg(feature = "model")]
pub(super) use shuttle::sync::{Mutex, MutexGuard};

/// The lock, whoever panicked with it: what it guards is changed in single steps.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
