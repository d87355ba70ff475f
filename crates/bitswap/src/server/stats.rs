//! What a person may know of a peer.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};

use tokio::time::Instant;

use crate::hold;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub(super) fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The number.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Counts of everything, or of one peer.
#[derive(Debug, Default)]
pub struct Totals {
    /// Messages that came.
    pub messages_in: Counter,
    /// Messages that were written.
    pub messages_out: Counter,
    /// Entries of want-lists that came.
    pub entries: Counter,
    /// Entries that were malformed, named what is not served, or were too many in one message.
    pub entries_ignored: Counter,
    /// Entries beyond a budget or the bound of wants.
    pub entries_refused: Counter,
    /// Wants for absent blocks that were forgotten early, for the wants of all took too much.
    pub wants_dropped: Counter,
    /// Blocks that were sent.
    pub blocks_sent: Counter,
    /// Their bytes.
    pub bytes_sent: Counter,
    /// Blocks that were sent although they had been cancelled meanwhile.
    pub blocks_in_vain: Counter,
    /// HAVE that was said.
    pub haves: Counter,
    /// DONT_HAVE that was said.
    pub dont_haves: Counter,
    /// Blocks that came though nobody here wants any.
    pub blocks_unwanted: Counter,
    /// Streams that were not taken.
    pub streams_refused: Counter,
    /// Messages that could not be read.
    pub malformed: Counter,
    /// Times that a peer was given up for taking nothing.
    pub stalled: Counter,
    /// Times that a peer was disconnected for being over its budget.
    pub over_budget: Counter,
}

/// One peer's counts.
#[derive(Debug)]
pub(super) struct PeerStats {
    name: Arc<str>,
    since: Instant,
    addresses: Mutex<Vec<IpAddr>>,
    pub(super) counts: Totals,
    pub(super) wants: AtomicU64,
    pub(super) bytes_outstanding: AtomicU64,
    /// Bytes of what is remembered of it and is to be said to it.
    pub(super) lists_len: AtomicU64,
}

/// A peer as it is told to a person.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerReport {
    /// The PeerID.
    pub peer: String,
    /// Where it came from.
    pub addresses: Vec<IpAddr>,
    /// Open connections.
    pub connections: usize,
    /// Seconds since the first of them.
    pub connected_s: u64,
    /// Wants that are remembered.
    pub wants: u64,
    /// Bytes of blocks that are loaded or being written.
    pub bytes_outstanding: u64,
    /// Entries of want-lists that came.
    pub entries: u64,
    /// Entries beyond a budget or the bound of wants.
    pub entries_refused: u64,
    /// Blocks that were sent.
    pub blocks_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// HAVE that was said.
    pub haves: u64,
    /// DONT_HAVE that was said.
    pub dont_haves: u64,
}

/// Addresses that are remembered of a peer.
const ADDRESSES_MAX: usize = 8;

impl PeerStats {
    pub(super) fn new(name: &Arc<str>) -> Self {
        Self {
            name: Arc::clone(name),
            since: Instant::now(),
            addresses: Mutex::default(),
            counts: Totals::default(),
            wants: AtomicU64::new(0),
            bytes_outstanding: AtomicU64::new(0),
            lists_len: AtomicU64::new(0),
        }
    }

    pub(super) fn connected(&self, address: IpAddr) {
        let mut addresses = hold(&self.addresses);
        if !addresses.contains(&address) {
            addresses.truncate(ADDRESSES_MAX - 1);
            addresses.insert(0, address);
        }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn is_busy(&self) -> bool {
        self.wants.load(Relaxed) > 0
    }

    pub(super) fn report(&self, connections: usize) -> PeerReport {
        let counts = &self.counts;
        PeerReport {
            peer: self.name.to_string(),
            addresses: hold(&self.addresses).clone(),
            connections,
            connected_s: self.since.elapsed().as_secs(),
            wants: self.wants.load(Relaxed),
            bytes_outstanding: self.bytes_outstanding.load(Relaxed),
            entries: counts.entries.get(),
            entries_refused: counts.entries_refused.get(),
            blocks_sent: counts.blocks_sent.get(),
            bytes_sent: counts.bytes_sent.get(),
            haves: counts.haves.get(),
            dont_haves: counts.dont_haves.get(),
        }
    }
}
