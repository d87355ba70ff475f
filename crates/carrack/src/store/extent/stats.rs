//! What reads of sources cost.

use std::sync::atomic::{AtomicU64, Ordering};

/// Counted since the start, and held now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ExtentStats {
    /// Requests made of sources.
    pub n_requests: u64,
    /// Bytes that came from sources, those that were thrown away included.
    pub source_bytes: u64,
    /// Bytes that readers were given.
    pub served_bytes: u64,
    /// Attempts that were made again.
    pub n_retries: u64,
    /// Reads given up because nobody wanted them any more.
    pub n_cancelled: u64,
    /// Reads that failed for those who waited.
    pub n_failed: u64,
    /// Reads under way.
    pub n_fetches: u64,
    /// Bytes reserved for requests and not landed.
    pub in_flight_bytes: u64,
    /// Bytes in memory.
    pub landed_bytes: u64,
    /// Most bytes that may be in flight and in memory.
    pub bytes_max: u64,
}

/// The counters behind [`ExtentStats`].
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) n_requests: AtomicU64,
    pub(super) source_bytes: AtomicU64,
    pub(super) served_bytes: AtomicU64,
    pub(super) n_retries: AtomicU64,
    pub(super) n_cancelled: AtomicU64,
    pub(super) n_failed: AtomicU64,
}

/// Counts `n` more.
pub(super) fn count(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

impl Counters {
    /// What was counted; what is held now is for the caller to add.
    pub(super) fn stats(&self) -> ExtentStats {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        ExtentStats {
            n_requests: of(&self.n_requests),
            source_bytes: of(&self.source_bytes),
            served_bytes: of(&self.served_bytes),
            n_retries: of(&self.n_retries),
            n_cancelled: of(&self.n_cancelled),
            n_failed: of(&self.n_failed),
            ..ExtentStats::default()
        }
    }
}
