//! Bitswap: blocks for every libp2p peer.
//!
//! In       messages of peers, over streams that somebody opened; a store of verified blocks.
//! Out      blocks, HAVE and DONT_HAVE, fairly and within budgets.
//! Limits   each module names its own; nothing is allocated from a length that a peer claims.
//! Not here where blocks lie (the store's business), HTTP.
//!
//! Spec: <https://specs.ipfs.tech/bitswap-protocol/>

pub mod budget;
#[cfg(feature = "driver")]
pub mod driver;
mod key;
pub mod registry;
pub mod server;
pub mod stream;
pub mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// The lock, whoever panicked with it: what locks of this crate guard is changed in single steps.
fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
