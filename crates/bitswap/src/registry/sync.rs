//! The locks of the registry: of the standard library, or of one of the checkers of models.
//!
//! Not here anything that waits for a network.

#[cfg(feature = "loom")]
pub(super) use loom::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(all(feature = "shuttle", not(feature = "loom")))]
pub(super) use shuttle::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub(super) use std::sync::{
    Mutex, MutexGuard,
    atomic::{AtomicUsize, Ordering},
};

#[cfg(test)]
#[cfg(feature = "loom")]
pub(super) use loom::thread;

#[cfg(test)]
#[cfg(all(feature = "shuttle", not(feature = "loom")))]
pub(super) use shuttle::thread;

/// Peers choose the keys: nobody else may know where in a map they lie.
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
pub(super) type Seed = std::hash::RandomState;

/// A schedule can be told only where everything else is the same in each run.
#[cfg(any(feature = "loom", feature = "shuttle"))]
pub(super) type Seed = std::hash::BuildHasherDefault<std::hash::DefaultHasher>;

/// The lock, whoever panicked with it: what it guards is changed in single steps.
pub(super) fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
