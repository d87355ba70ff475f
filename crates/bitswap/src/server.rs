//! The server: what peers want, out of a store, fairly and within budgets.
//!
//! In       connections of peers and the streams that they open; a [`Store`].
//! Out      messages on streams of our own; [`PeerReport`]s for people.
//! Limits   [`Options`] holds every bound with its reason.
//! Not here libp2p (`driver`); the format (`wire`); where blocks lie.
//!
//! Each peer is one task (`server/peer.rs`), whatever the number of its connections, and all of
//! its state is that task's own. What peers share is the registry of who waits for what, the ring
//! of those whose blocks are loaded next, and the budgets.

mod ledger;
mod peer;
mod reader;
mod stats;
mod turns;
mod writer;

use std::collections::HashMap;
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use carrack_formats::{Cid, Multihash};
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::peer::{Event, Peer, Subscriber};
use self::reader::FrameRoom;
use self::stats::PeerStats;
pub use self::stats::{PeerReport, Totals};
use self::turns::Turns;
pub use self::writer::Pace;
use crate::budget::{Account, Budget, Budgets, Good, Shares};
use crate::hold;
use crate::registry::Registry;
use crate::stream::ByteStream;
use crate::wire::Dialect;

/// Where the blocks are. Clones share it.
pub trait Store: Clone + Send + Sync + 'static {
    /// Length in bytes of each block that the index knows, in the order of the question. Reads
    /// nothing but the index; called on the threads that drive futures.
    fn find(&self, multihashes: &[Multihash]) -> Vec<Option<u64>>;

    /// Whether each block can be served now, as far as is known without reading it: its container
    /// is what it was. Cancel-safe.
    fn check(&self, cids: Vec<Cid>) -> impl Future<Output = Vec<bool>> + Send;

    /// The verified blocks; `None` for one that cannot be served. Cancel-safe.
    fn load(&self, cids: Vec<Cid>) -> impl Future<Output = Vec<Option<Bytes>>> + Send;
}

/// Every bound of the server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Wants that are remembered for one peer; what deployed servers remember.
    pub wants_per_peer_max: usize,
    /// Wants for absent blocks of all peers together. Each takes about 400 bytes.
    pub wants_max: usize,
    /// The same of an address and of an IPv4 /24 or IPv6 /48: as many connections as a subnet may
    /// have could fill the registry.
    pub wants_shares: Shares,
    /// Bytes that the wants of all peers, and what is to be said to them, take together. Beyond it
    /// each peer is remembered less of.
    pub lists_len_max: usize,
    /// How long a want for an absent block is remembered. Clients repeat theirs each half minute.
    pub want_time: Duration,
    /// Bytes of blocks that are loaded or being written for one peer, to begin with and while
    /// room is scarce.
    pub outstanding_min: usize,
    /// The same for a peer that takes them fast enough, while there is room: half of it is loaded
    /// at a time, and sixteen blocks of 1 MiB are hashed in little more time than one.
    pub outstanding_max: usize,
    /// The same for all peers together.
    pub outstanding_all_max: usize,
    /// The same for all peers of one address, and of an IPv4 /24 or IPv6 /48: whoever takes nothing
    /// holds up others of its own.
    pub outstanding_shares: Shares,
    /// Bytes of long frames of all peers that are being read.
    pub frames_len_max: usize,
    /// The same of an address and of a subnet: one peer's streams could take all of it.
    pub frames_shares: Shares,
    /// Bytes of blocks after which a message is complete. A larger block goes alone.
    pub message_len: usize,
    /// Longest block that is sent instead of HAVE, in bytes; what deployed servers have.
    pub small_block_len: u64,
    /// Longest block that is sent, in bytes; what peers must accept.
    pub block_len_max: u64,
    /// Connections of one peer.
    pub connections_per_peer_max: usize,
    /// Streams that one peer may have open. Deployed servers open one for each message.
    pub streams_per_peer_max: usize,
    /// How long a stream without a frame stays open. Deployed clients keep one open.
    pub stream_idle_time: Duration,
    /// How fast a peer must take what it asked for.
    pub pace: Pace,
    /// What peers, addresses and subnets may ask for in a while.
    pub budget: Budget,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            wants_per_peer_max: 1024,
            wants_max: 512 << 10,
            wants_shares: Shares {
                address_max: 32 << 10,
                subnet_max: 64 << 10,
            },
            lists_len_max: 256 << 20,
            want_time: Duration::from_secs(600),
            outstanding_min: 1 << 20,
            outstanding_max: 32 << 20,
            outstanding_all_max: 128 << 20,
            outstanding_shares: Shares {
                address_max: 32 << 20,
                subnet_max: 64 << 20,
            },
            frames_len_max: 64 << 20,
            frames_shares: Shares {
                address_max: 16 << 20,
                subnet_max: 32 << 20,
            },
            message_len: 512 << 10,
            small_block_len: 1024,
            block_len_max: crate::wire::BLOCK_LEN_MAX as u64,
            connections_per_peer_max: 8,
            streams_per_peer_max: 32,
            stream_idle_time: Duration::from_secs(600),
            pace: Pace {
                rate_min: 8 << 10,
                grace: Duration::from_secs(10),
            },
            budget: Budget::default(),
        }
    }
}

impl Options {
    /// Bytes that one peer makes this crate hold at most: what it wants and is to be told, frames
    /// that it sends, and blocks on their way to it. Windows of its connections come on top.
    #[must_use]
    pub const fn peer_len_max(&self) -> usize {
        peer::lists_len_max(self.wants_per_peer_max)
            + reader::peer_len_max(self.streams_per_peer_max)
            + self.outstanding_max
    }
}

/// Events of one peer's connections that its task has not taken yet.
const EVENTS_MAX: usize = 64;

/// A server. Clones share it.
#[derive(Debug)]
pub struct Server<S> {
    shared: Arc<Shared<S>>,
}

impl<S> Clone for Server<S> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

#[derive(Debug)]
struct Shared<S> {
    store: S,
    options: Options,
    registry: Registry<Subscriber>,
    /// Bytes of the lists of all peers.
    lists_len: AtomicUsize,
    turns: Turns,
    budgets: Budgets,
    frames: FrameRoom,
    peers: Mutex<HashMap<Arc<str>, Present>>,
    totals: Totals,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A peer that is connected.
#[derive(Debug)]
struct Present {
    events: mpsc::Sender<Event>,
    /// Ends its task.
    gone: CancellationToken,
    stats: Arc<PeerStats>,
    n_connections: usize,
}

/// What the server asks of a connection.
pub enum Command {
    /// Open a stream and say which dialect was agreed on.
    Open(oneshot::Sender<std::io::Result<(ByteStream, Dialect)>>),
    /// Close the connection. The peer may come back.
    Close,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Open(_) => "Open",
            Self::Close => "Close",
        })
    }
}

/// One connection of a peer. Dropping it says that the connection is closed.
#[derive(Debug)]
pub struct Connection<S: Store> {
    server: Server<S>,
    peer: Arc<str>,
    events: mpsc::Sender<Event>,
    stats: Arc<PeerStats>,
    account: Arc<Account>,
    gone: CancellationToken,
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the peer has as many connections as it may, or the node is stopping")]
pub struct Refused;

impl<S: Store> Server<S> {
    /// A server of what is in `store`.
    #[must_use]
    pub fn new(store: S, options: Options) -> Self {
        Self {
            shared: Arc::new(Shared {
                registry: Registry::new(options.wants_max),
                turns: Turns::new(options.outstanding_all_max),
                budgets: Budgets::new(options.budget.clone()),
                lists_len: AtomicUsize::new(0),
                frames: FrameRoom::new(options.frames_len_max, options.frames_shares),
                peers: Mutex::default(),
                totals: Totals::default(),
                tasks: TaskTracker::new(),
                stop: CancellationToken::new(),
                store,
                options,
            }),
        }
    }

    /// A connection with a peer was made. `commands` are carried out by whoever owns it.
    ///
    /// # Errors
    /// It is to be closed.
    pub fn connected(
        &self,
        peer: &Arc<str>,
        address: IpAddr,
        commands: mpsc::Sender<Command>,
    ) -> Result<Connection<S>, Refused> {
        let shared = &self.shared;
        if shared.stop.is_cancelled() {
            return Err(Refused);
        }
        let gone = CancellationToken::new();
        let mut peers = self.hold_peers();
        let present = peers
            .entry(Arc::clone(peer))
            .or_insert_with(|| self.welcome(peer));
        let link = Event::Connected(peer::Link {
            commands,
            gone: gone.clone(),
        });
        let is_taken = present.n_connections < shared.options.connections_per_peer_max
            && present.events.try_send(link).is_ok();
        if !is_taken {
            return Err(Refused);
        }
        present.n_connections += 1;
        present.stats.connected(address);
        Ok(Connection {
            server: self.clone(),
            peer: Arc::clone(peer),
            events: present.events.clone(),
            stats: Arc::clone(&present.stats),
            account: shared.budgets.account(peer, address),
            gone,
        })
    }

    /// Whose shares what a peer does at an address is counted for.
    #[cfg(feature = "driver")]
    pub(crate) fn account(&self, peer: &Arc<str>, address: IpAddr) -> Arc<Account> {
        self.shared.budgets.account(peer, address)
    }

    /// Starts the task of a peer.
    fn welcome(&self, name: &Arc<str>) -> Present {
        let shared = &self.shared;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let gone = shared.stop.child_token();
        let stats = Arc::new(PeerStats::new(name));
        let mut peer = Peer::new(Arc::clone(shared), Arc::clone(&stats), events);
        let (until, name) = (gone.clone(), Arc::clone(name));
        shared.tasks.spawn(async move {
            if AssertUnwindSafe(peer.run(until))
                .catch_unwind()
                .await
                .is_err()
            {
                tracing::error!(peer = %name, "the task of a peer panicked; it may come back");
            }
            peer.leave();
            // Its connections hear nothing more of it, and close.
        });
        Present {
            events: sender,
            gone,
            stats,
            n_connections: 0,
        }
    }

    /// Blocks have come to the store: whoever waits for one of them is told. Reads the index for
    /// all that is waited for; call it after a commit, where blocking is allowed.
    pub fn store_has_changed(&self) {
        let store = &self.shared.store;
        self.shared.registry.sweep(|multihashes| {
            store
                .find(multihashes)
                .iter()
                .map(Option::is_some)
                .collect()
        });
    }

    /// The peers that are connected.
    #[must_use]
    pub fn report(&self) -> Vec<PeerReport> {
        let peers = self.hold_peers();
        peers
            .values()
            .map(|it| it.stats.report(it.n_connections))
            .collect()
    }

    /// What was done since the start, and wants of all peers that are waiting.
    #[must_use]
    pub fn totals(&self) -> (&Totals, usize) {
        (&self.shared.totals, self.shared.registry.len())
    }

    /// Bytes of blocks that are loaded or being written.
    #[must_use]
    pub fn bytes_in_flight(&self) -> usize {
        self.shared.turns.in_use()
    }

    /// Ends all peers' tasks. Cancel-safe.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    fn hold_peers(&self) -> MutexGuard<'_, HashMap<Arc<str>, Present>> {
        hold(&self.shared.peers)
    }
}

impl<S: Store> Connection<S> {
    /// The peer has opened a stream. One too many is dropped, which resets it.
    pub fn opened(&self, stream: ByteStream) {
        let totals = &self.server.shared.totals;
        if self.account.take(Good::Streams, 1, Instant::now()) == 0 {
            totals.streams_refused.add(1);
            return;
        }
        let account = self.account.clone();
        let opened = Event::Opened { stream, account };
        if self.events.try_send(opened).is_err() {
            totals.streams_refused.add(1);
        }
    }

    /// Whether the peer waits for something.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        self.stats.is_busy()
    }
}

impl<S: Store> Drop for Connection<S> {
    fn drop(&mut self) {
        self.gone.cancel();
        let mut peers = self.server.hold_peers();
        // The entry may be another's by now: a peer that left and came back.
        let Some(present) = peers.get_mut(&self.peer) else {
            return;
        };
        if !Arc::ptr_eq(&present.stats, &self.stats) {
            return;
        }
        present.n_connections = present.n_connections.saturating_sub(1);
        if present.n_connections == 0 {
            present.gone.cancel();
            peers.remove(&self.peer);
        }
    }
}

#[cfg(test)]
mod tests;
