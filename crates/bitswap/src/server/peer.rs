//! The task of one peer: reads what it wants, and writes what it gets.
//!
//! In       streams that the peer opened; arrivals of what it waits for; turns to load.
//! Out      messages, on a few streams of our own.
//! Limits   one task, whatever the peer does; while [`Peer::is_backed_up`], nothing more is read of
//!          it. Its lists take at most [`lists_len_max`], frames that are read
//!          `reader::peer_len_max`, and blocks on their way what `Options` says. Everything here
//!          is dropped with the task.
//! Not here the wants themselves (`ledger`), frames (`reader`, `writer`), whose turn it is
//!          (`turns`).

mod answer;
mod send;

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use carrack_formats::{Cid, Multihash};
use futures_util::future::BoxFuture;
use futures_util::stream::{FuturesOrdered, FuturesUnordered};
use futures_util::{FutureExt, StreamExt};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::send::{Loaded, ReadyBlock, Written};
use super::ledger::Ledger;
use super::reader::{End, Frame, PeerFrames, Reader};
use super::stats::{Counter, PeerStats, Totals};
use super::turns::Turn;
use super::writer::Writer;
use super::{Command, Shared, Store};
use crate::budget::{Account, Held};
use crate::hold;
use crate::key::CidKey;
use crate::registry::{Gen, Ticket, Waiter};
use crate::stream::ByteStream;
use crate::wire::{DecodeLimits, Dialect};

/// Presences that wait to be written beyond which the peer is not read any more.
const PRESENCES_MAX: usize = 4096;
/// Bytes that a presence takes while it waits.
const PRESENCE_LEN: usize = size_of::<(CidKey, bool)>();
/// Bytes that a want takes: in the ledger, its lists and the registry.
const WANT_LEN: usize = 400;
/// Bytes that the lists of a peer may take when those of all peers are too long: its oldest wants
/// for absent blocks go, and it is read when what is here was sent.
const LISTS_LEN_MIN: usize = 32 << 10;
/// Interval at which wants that are too old are looked for, and streams that were not read.
const TICK: Duration = Duration::from_secs(10);

/// What the connections of a peer tell its task.
pub(super) enum Event {
    /// There is one more.
    Connected(Link),
    /// The peer opened a stream.
    Opened {
        stream: ByteStream,
        account: Arc<Account>,
    },
}

impl std::fmt::Debug for Event {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Connected(_) => "Connected",
            Self::Opened { .. } => "Opened",
        })
    }
}

/// A connection, as its peer's task knows it.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) commands: mpsc::Sender<Command>,
    /// The connection is closed.
    pub(super) gone: CancellationToken,
}

/// Where arrivals are told to a peer's task. As many wait in it as the peer has wants, at most.
#[derive(Debug, Clone)]
struct Mailbox(Arc<Arrivals>);

/// What waits in the registry: a mailbox, and what the want takes of the share of an address.
#[derive(Debug)]
pub(super) struct Subscriber {
    mailbox: Mailbox,
    _place: Held,
}

#[derive(Debug, Default)]
struct Arrivals {
    generations: Mutex<Vec<Gen>>,
    wake: Notify,
}

impl Waiter for Subscriber {
    fn arrived(&self, _multihash: &Multihash, generation: Gen) {
        let arrivals = &self.mailbox.0;
        hold(&arrivals.generations).push(generation);
        arrivals.wake.notify_one();
    }
}

impl Mailbox {
    fn take(&self) -> HashSet<Gen> {
        let generations = std::mem::take(&mut *hold(&self.0.generations));
        generations.into_iter().collect()
    }
}

/// A read of a stream and whose budget what it brings is taken from.
type Reading = BoxFuture<'static, (Result<(Reader, Frame), End>, Arc<Account>)>;
/// A stream that is being opened.
type Opening = BoxFuture<'static, io::Result<(ByteStream, Dialect)>>;
/// WANT_HAVEs whose containers are looked at.
type Checking = BoxFuture<'static, Checked>;

/// What was found out about containers.
struct Checked {
    cids: Vec<Cid>,
    are_served: Vec<bool>,
    /// What had come to the store before they were looked at.
    n_changes: usize,
}

/// One peer.
pub(super) struct Peer<S> {
    shared: Arc<Shared<S>>,
    stats: Arc<PeerStats>,
    events: mpsc::Receiver<Event>,
    mailbox: Mailbox,
    ledger: Ledger,
    links: Vec<Link>,
    readings: FuturesUnordered<Reading>,
    frames: PeerFrames,
    /// Whether one of them brought something since the last tick.
    has_read: bool,
    /// The account of the stream that was heard last.
    account: Option<Arc<Account>>,
    /// Since when it has been over its budget without a break.
    over_since: Option<Instant>,
    /// When something was refused for the budget last.
    over_at: Option<Instant>,
    /// HAVE and DONT_HAVE that are to be written.
    presences: VecDeque<(CidKey, bool)>,
    /// What its lists take of what those of all peers take, in bytes.
    lists_len: usize,
    checking: Option<Checking>,
    turn: Option<oneshot::Receiver<Turn>>,
    /// When to ask for a turn again: its address had enough under way.
    retry_at: Option<Instant>,
    loads: FuturesOrdered<BoxFuture<'static, Loaded>>,
    ready: VecDeque<ReadyBlock>,
    /// Their bytes.
    ready_len: usize,
    /// Bytes of blocks that are loaded, ready or being written.
    outstanding: usize,
    /// How many there may be.
    window: usize,
    /// Streams on which nothing is being written.
    writers: Vec<(Writer, Dialect)>,
    opening: Option<Opening>,
    n_open_failures: u32,
    writing: FuturesUnordered<BoxFuture<'static, Written>>,
    /// Bytes of blocks in all messages that were written.
    n_bytes_written: u64,
}

impl<S: Store> Peer<S> {
    pub(super) fn new(
        shared: Arc<Shared<S>>,
        stats: Arc<PeerStats>,
        events: mpsc::Receiver<Event>,
    ) -> Self {
        Self {
            ledger: Ledger::new(shared.options.wants_per_peer_max),
            window: shared.options.outstanding_min,
            frames: PeerFrames::new(&shared.frames),
            shared,
            stats,
            events,
            mailbox: Mailbox(Arc::default()),
            links: Vec::new(),
            readings: FuturesUnordered::new(),
            has_read: false,
            account: None,
            over_since: None,
            over_at: None,
            presences: VecDeque::new(),
            lists_len: 0,
            checking: None,
            turn: None,
            retry_at: None,
            loads: FuturesOrdered::new(),
            ready: VecDeque::new(),
            ready_len: 0,
            outstanding: 0,
            writers: Vec::new(),
            opening: None,
            n_open_failures: 0,
            writing: FuturesUnordered::new(),
            n_bytes_written: 0,
        }
    }

    /// Serves the peer until its last connection is closed. [`Self::leave`] is to follow, also if
    /// it panics.
    pub(super) async fn run(&mut self, gone: CancellationToken) {
        let mut ticks = tokio::time::interval_at(Instant::now() + TICK, TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mailbox = self.mailbox.clone();
        loop {
            self.go_on();
            tokio::select! {
                biased;
                () = gone.cancelled() => break,
                _ = ticks.tick() => self.tick(),
                Some(event) = self.events.recv() => self.handle(event),
                Some(written) = self.writing.next() => self.written(written),
                opened = wait(&mut self.opening) => self.opened(opened),
                Some(loaded) = self.loads.next() => self.loaded(loaded),
                turn = wait_for_turn(&mut self.turn) => self.load(turn),
                () = wait_until(self.retry_at) => self.retry_at = None,
                checked = wait(&mut self.checking) => self.checked(checked),
                () = mailbox.0.wake.notified() => self.arrived(),
                Some((read, account)) = self.readings.next(), if !self.is_backed_up() => {
                    self.read(read, account);
                }
            }
        }
    }

    /// Begins whatever can be begun now.
    fn go_on(&mut self) {
        self.fit_lists();
        self.check_more();
        self.ask_for_turn();
        self.write_more();
        self.stats.wants.store(self.ledger.len() as u64, Relaxed);
        self.stats
            .bytes_outstanding
            .store(self.outstanding as u64, Relaxed);
    }

    /// Whether the peer is to take what it asked for before it is heard again.
    fn is_backed_up(&self) -> bool {
        self.presences.len() >= PRESENCES_MAX
            || self.has_many_checks()
            || self.is_pressed() && self.lists_len > LISTS_LEN_MIN
    }

    /// Whether the lists of all peers take more than they may.
    fn is_pressed(&self) -> bool {
        self.shared.lists_len.load(Relaxed) > self.shared.options.lists_len_max
    }

    /// Counts what is remembered of the peer and is to be said to it, and shortens it if the lists
    /// of all peers are too long.
    fn fit_lists(&mut self) {
        self.count_lists();
        if !self.is_pressed() {
            return;
        }
        let mut tickets = Vec::new();
        while self.own_lists_len() > LISTS_LEN_MIN
            && let Some(ticket) = self.ledger.drop_oldest()
        {
            tickets.push(ticket);
        }
        self.unsubscribe(&tickets);
        self.count(|it| &it.wants_dropped, tickets.len() as u64);
        self.count_lists();
    }

    fn own_lists_len(&self) -> usize {
        self.ledger.len() * WANT_LEN + self.presences.len() * PRESENCE_LEN
    }

    fn count_lists(&mut self) {
        let len = self.own_lists_len();
        let before = std::mem::replace(&mut self.lists_len, len);
        let all = &self.shared.lists_len;
        if len > before {
            all.fetch_add(len - before, Relaxed);
        } else if before > len {
            all.fetch_sub(before - len, Relaxed);
        }
        self.stats.lists_len.store(len as u64, Relaxed);
    }

    /// The peer is told whether a block is there.
    fn say(&mut self, cid: &Cid, is_here: bool) {
        self.presences.push_back((CidKey::of(cid), is_here));
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Connected(link) => {
                self.links.retain(|link| !link.gone.is_cancelled());
                self.links.push(link);
                self.n_open_failures = 0;
            }
            Event::Opened { stream, account } => {
                if self.readings.len() >= self.shared.options.streams_per_peer_max {
                    self.count(|it| &it.streams_refused, 1);
                    return;
                }
                let idle = self.shared.options.stream_idle_time;
                let frames = self.frames.of(Arc::clone(&account));
                self.read_on(Reader::new(stream, frames, idle), account);
            }
        }
    }

    fn read_on(&mut self, reader: Reader, account: Arc<Account>) {
        self.readings
            .push(async move { (reader.next().await, account) }.boxed());
    }

    /// A stream brought a frame, or its end.
    fn read(&mut self, read: Result<(Reader, Frame), End>, account: Arc<Account>) {
        self.has_read = true;
        match read {
            Ok((reader, frame)) => {
                self.account = Some(Arc::clone(&account));
                if self.message(&frame, &account) {
                    self.read_on(reader, account);
                }
            }
            Err(End::Closed | End::Broken) => {}
            Err(End::Malformed) => self.malformed(),
        }
    }

    /// What came is no message: the stream that brought it is dropped.
    fn malformed(&mut self) {
        self.count(|it| &it.malformed, 1);
        tracing::debug!(peer = %self.stats.name(), "a malformed message");
    }

    fn tick(&mut self) {
        if let Some(limit) = Instant::now().checked_sub(self.shared.options.want_time) {
            let tickets = self.ledger.give_up(limit);
            self.unsubscribe(&tickets);
        }
        self.links.retain(|link| !link.gone.is_cancelled());
        if self.is_backed_up() && !self.has_read {
            // What it has sent on them lies in the windows of its connections.
            self.count(|it| &it.streams_refused, self.readings.len() as u64);
            self.readings.clear();
        }
        self.has_read = false;
    }

    fn unsubscribe(&self, tickets: &[Ticket]) {
        for ticket in tickets {
            self.shared.registry.unsubscribe(ticket);
        }
    }

    /// The peer is gone: nobody waits for anything of it.
    pub(super) fn leave(&mut self) {
        let tickets = self.ledger.clear();
        self.unsubscribe(&tickets);
        self.presences.clear();
        self.count_lists();
        self.stats.wants.store(0, Relaxed);
    }

    /// Closes all connections. The peer may come back.
    fn disconnect(&mut self) {
        for link in &self.links {
            // If the queue is full, the connection is not being driven, and ends by itself.
            drop(link.commands.try_send(Command::Close));
        }
    }

    /// Counts for the peer and for all.
    fn count(&self, which: impl Fn(&Totals) -> &Counter, n: u64) {
        if n > 0 {
            which(&self.stats.counts).add(n);
            which(&self.shared.totals).add(n);
        }
    }
}

/// Bytes that the lists of one peer take at most: its wants, and as many presences as are said when
/// it has as many as it may have, and one more message is worked off.
pub(super) const fn lists_len_max(wants_max: usize) -> usize {
    let n_presences = PRESENCES_MAX + DecodeLimits::ENTRIES_MAX + wants_max;
    wants_max * WANT_LEN + n_presences * PRESENCE_LEN
}

/// The outcome of what is under way, which is over then; for ever, if nothing is.
async fn wait<T>(under_way: &mut Option<BoxFuture<'static, T>>) -> T {
    match under_way {
        Some(future) => {
            let value = future.await;
            *under_way = None;
            value
        }
        None => std::future::pending().await,
    }
}

/// Until then; for ever, if there is no such time.
async fn wait_until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

/// A turn that was asked for; `None` if there will be none.
async fn wait_for_turn(asked: &mut Option<oneshot::Receiver<Turn>>) -> Option<Turn> {
    match asked {
        Some(receiver) => {
            let turn = receiver.await.ok();
            *asked = None;
            turn
        }
        None => std::future::pending().await,
    }
}
