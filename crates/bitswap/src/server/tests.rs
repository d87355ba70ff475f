//! The server with a store in memory and peers on pipes.

mod panics;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use carrack_formats::cid::{SHA2_256, from_sha256};
use carrack_formats::verify::sha256;
use cid::Version;
use futures_util::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio_util::compat::TokioAsyncReadCompatExt;

use super::*;
use crate::budget::{Beyond, Rates};
use crate::wire::{DecodeLimits, Entry, Message, Outgoing, WantKind, frame_len};

mod full;

const RAW: u64 = 0x55;

/// Lengths and bytes of blocks; those without bytes are known to the index and cannot be read.
type Known = HashMap<Multihash, (u64, Option<Bytes>)>;

#[derive(Clone, Default)]
struct Memory {
    blocks: Arc<Mutex<Known>>,
    n_loads: Arc<AtomicUsize>,
    /// Multihashes that were looked up.
    n_finds: Arc<AtomicUsize>,
    /// CIDs that were checked.
    n_checks: Arc<AtomicUsize>,
    /// Each check takes one.
    checks: Arc<Mutex<Option<Arc<Semaphore>>>>,
    /// What is done when the next look-up has its answer.
    after_find: Arc<Mutex<Option<AfterFind>>>,
    /// Whoever looks for it panics.
    fatal: Arc<Mutex<Option<Multihash>>>,
}

type AfterFind = Box<dyn FnOnce() + Send>;

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Memory").finish_non_exhaustive()
    }
}

impl Memory {
    fn after_find(&self, what: impl FnOnce() + Send + 'static) {
        *self.after_find.lock().unwrap() = Some(Box::new(what));
    }

    /// Checks wait for permits from now on.
    fn hold_checks(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        *self.checks.lock().unwrap() = Some(Arc::clone(&gate));
        gate
    }

    fn put(&self, data: impl Into<Bytes>) -> Cid {
        let data = data.into();
        let cid = cid_of(&data);
        let block = (data.len() as u64, Some(data));
        self.blocks.lock().unwrap().insert(*cid.hash(), block);
        cid
    }

    fn lose(&self, cid: &Cid) {
        self.blocks.lock().unwrap().get_mut(cid.hash()).unwrap().1 = None;
    }
}

impl Store for Memory {
    fn find(&self, multihashes: &[Multihash]) -> Vec<Option<u64>> {
        self.n_finds.fetch_add(multihashes.len(), Ordering::Relaxed);
        let fatal = *self.fatal.lock().unwrap();
        let is_fatal = fatal.is_some_and(|it| multihashes.contains(&it));
        assert!(!is_fatal, "a fault of the test");
        let blocks = self.blocks.lock().unwrap();
        let found = multihashes
            .iter()
            .map(|it| blocks.get(it).map(|it| it.0))
            .collect();
        drop(blocks);
        let then = self.after_find.lock().unwrap().take();
        if let Some(then) = then {
            then();
        }
        found
    }

    async fn check(&self, cids: Vec<Cid>) -> Vec<bool> {
        self.n_checks.fetch_add(cids.len(), Ordering::Relaxed);
        let gate = self.checks.lock().unwrap().clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let blocks = self.blocks.lock().unwrap();
        let is_served = |cid: &Cid| blocks.get(cid.hash()).is_some_and(|it| it.1.is_some());
        cids.iter().map(is_served).collect()
    }

    async fn load(&self, cids: Vec<Cid>) -> Vec<Option<Bytes>> {
        self.n_loads.fetch_add(cids.len(), Ordering::Relaxed);
        let blocks = self.blocks.lock().unwrap();
        cids.iter()
            .map(|cid| blocks.get(cid.hash()).and_then(|it| it.1.clone()))
            .collect()
    }
}

fn cid_of(data: &[u8]) -> Cid {
    from_sha256(Version::V1, RAW, &sha256(data))
}

/// What a peer is told, in a form to compare.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Told {
    Block(Bytes),
    Have(Cid),
    DontHave(Cid),
}

/// A peer of tests on one connection.
struct TestPeer {
    connection: Connection<Memory>,
    commands: mpsc::Receiver<Command>,
    dialect: Dialect,
    wants: ByteStream,
    answers: Option<ByteStream>,
    told: Vec<Told>,
    n_streams: usize,
}

fn pipe(len: usize) -> (ByteStream, ByteStream) {
    let (ours, theirs) = tokio::io::duplex(len);
    (Box::new(ours.compat()), Box::new(theirs.compat()))
}

impl TestPeer {
    fn connect(server: &Server<Memory>, name: &str) -> Self {
        Self::connect_from(server, name, "192.0.2.1")
    }

    fn connect_from(server: &Server<Memory>, name: &str, address: &str) -> Self {
        let (sender, commands) = mpsc::channel(8);
        let address = address.parse().unwrap();
        let connection = server.connected(&name.into(), address, sender).unwrap();
        let (wants, theirs) = pipe(1 << 16);
        connection.opened(theirs);
        Self {
            connection,
            commands,
            dialect: Dialect::V1_2,
            wants,
            answers: None,
            told: Vec::new(),
            n_streams: 0,
        }
    }

    async fn send(&mut self, full: bool, entries: &[Entry]) {
        let mut message = Outgoing::new(Dialect::V1_2);
        message.set_full(full);
        for entry in entries {
            assert!(message.push_entry(entry));
        }
        for part in message.finish() {
            self.wants.write_all(&part).await.unwrap();
        }
    }

    async fn want(&mut self, entries: &[Entry]) {
        self.send(false, entries).await;
    }

    /// Takes a stream that the server opens.
    async fn take_stream(&mut self, len: usize) {
        let Some(Command::Open(opened)) = self.commands.recv().await else {
            panic!("the connection is to be closed");
        };
        let (ours, theirs) = pipe(len);
        assert!(opened.send(Ok((theirs, self.dialect))).is_ok());
        self.answers = Some(ours);
        self.n_streams += 1;
    }

    async fn next_message(&mut self) -> Message {
        if self.answers.is_none() {
            self.take_stream(1 << 20).await;
        }
        message_of(self.answers.as_mut().unwrap()).await
    }

    /// The next thing that the peer is told.
    async fn next(&mut self) -> Told {
        while self.told.is_empty() {
            let message = self.next_message().await;
            let presence = |it: crate::wire::Presence| match it.have {
                true => Told::Have(it.cid),
                false => Told::DontHave(it.cid),
            };
            self.told
                .extend(message.presences.into_iter().map(presence));
            self.told
                .extend(message.blocks.into_iter().map(|it| Told::Block(it.data)));
        }
        self.told.remove(0)
    }

    /// Fails if the peer is told anything within a while.
    async fn silence(&mut self) {
        let told = tokio::time::timeout(Duration::from_secs(5), self.next()).await;
        assert!(told.is_err(), "{told:?}");
    }
}

async fn message_of(stream: &mut ByteStream) -> Message {
    let mut head = Vec::new();
    let len = loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).await.unwrap();
        head.extend(byte);
        if let Some((len, _)) = frame_len(&head).unwrap() {
            break len;
        }
    };
    let mut body = vec![0; len];
    stream.read_exact(&mut body).await.unwrap();
    Message::decode(&body.into(), &DecodeLimits::default()).unwrap()
}

fn entry(cid: &Cid, want: WantKind) -> Entry {
    Entry {
        cid: *cid,
        priority: 1,
        cancel: false,
        want,
        send_dont_have: true,
    }
}

fn block(cid: &Cid) -> Entry {
    entry(cid, WantKind::Block)
}

fn have(cid: &Cid) -> Entry {
    entry(cid, WantKind::Have)
}

fn quiet(entry: Entry) -> Entry {
    Entry {
        send_dont_have: false,
        ..entry
    }
}

fn cancel(cid: &Cid) -> Entry {
    Entry {
        cancel: true,
        ..block(cid)
    }
}

fn server(options: Options) -> (Server<Memory>, Memory) {
    let memory = Memory::default();
    (Server::new(memory.clone(), options), memory)
}

#[tokio::test(start_paused = true)]
async fn wants_are_answered_by_what_is_there() {
    let (server, memory) = server(Options::default());
    let small = memory.put(vec![1; 1024]);
    let large = memory.put(vec![2; 1025]);
    let huge = memory.put(vec![3; (2 << 20) + 1]);
    let empty = memory.put(vec![]);
    let absent = cid_of(b"absent");
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[block(&large)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![2; 1025].into()));
    peer.want(&[have(&small)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![1; 1024].into()));
    peer.want(&[have(&large)]).await;
    assert_eq!(peer.next().await, Told::Have(large));
    peer.want(&[block(&empty)]).await;
    assert_eq!(peer.next().await, Told::Block(Bytes::new()));
    for entry in [have(&absent), block(&absent), block(&huge), have(&huge)] {
        peer.want(&[entry]).await;
        assert_eq!(peer.next().await, Told::DontHave(entry.cid));
    }
    let other = cid_of(b"other");
    peer.want(&[quiet(have(&other)), quiet(block(&other))])
        .await;
    peer.silence().await;
    assert_eq!(peer.n_streams, 1);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_read_is_not_had() {
    let (server, memory) = server(Options::default());
    let (stale, good) = (memory.put(vec![1; 2000]), memory.put(vec![2; 2000]));
    memory.lose(&stale);
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[have(&stale)]).await;
    assert_eq!(peer.next().await, Told::DontHave(stale));
    peer.want(&[block(&stale), block(&good)]).await;
    let told = [peer.next().await, peer.next().await];
    assert!(told.contains(&Told::DontHave(stale)), "{told:?}");
    assert!(
        told.contains(&Told::Block(vec![2; 2000].into())),
        "{told:?}"
    );
    // It is read again once something came.
    memory.put(vec![1; 2000]);
    server.store_has_changed();
    assert_eq!(peer.next().await, Told::Block(vec![1; 2000].into()));
}

#[tokio::test(start_paused = true)]
async fn what_arrives_later_is_sent_then_and_only_to_those_who_still_want_it() {
    let (server, memory) = server(Options::default());
    let mut peers: Vec<_> = (0..3)
        .map(|it| TestPeer::connect(&server, &it.to_string()))
        .collect();
    let data = Bytes::from(vec![7; 5000]);
    let cid = cid_of(&data);
    for peer in &mut peers {
        peer.want(&[block(&cid)]).await;
        assert_eq!(peer.next().await, Told::DontHave(cid));
    }
    peers[1].want(&[cancel(&cid)]).await;
    peers[1].silence().await;
    assert_eq!(server.totals().1, 2);
    server.store_has_changed(); // Something else.
    memory.put(data.clone());
    server.store_has_changed();
    assert_eq!(peers[0].next().await, Told::Block(data.clone()));
    peers[1].silence().await;
    assert_eq!(peers[2].next().await, Told::Block(data));
    assert_eq!(server.totals().1, 0);
    peers[2].silence().await; // Once.
}

#[tokio::test(start_paused = true)]
async fn a_want_is_given_up_after_its_limit() {
    let (server, memory) = server(Options::default());
    let cid = cid_of(b"late");
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[quiet(block(&cid))]).await;
    peer.silence().await;
    assert!(peer.connection.is_busy());
    tokio::time::sleep(Options::default().want_time + Duration::from_secs(20)).await;
    assert!(!peer.connection.is_busy());
    assert_eq!(server.totals().1, 0);
    memory.put(&b"late"[..]);
    server.store_has_changed();
    peer.silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_full_list_replaces_what_was_wanted() {
    let (server, memory) = server(Options::default());
    let (old, both) = (cid_of(b"old"), cid_of(b"both"));
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[quiet(block(&old)), quiet(block(&both))]).await;
    peer.send(true, &[quiet(block(&both))]).await;
    peer.silence().await;
    memory.put(&b"old"[..]);
    memory.put(&b"both"[..]);
    server.store_has_changed();
    assert_eq!(peer.next().await, Told::Block(Bytes::from_static(b"both")));
    peer.silence().await;
    peer.send(true, &[]).await;
    peer.silence().await;
    assert_eq!(server.report()[0].wants, 0);
}

#[tokio::test(start_paused = true)]
async fn wants_of_one_peer_and_of_all_are_bounded() {
    let options = Options {
        wants_per_peer_max: 10,
        wants_max: 15,
        ..Options::default()
    };
    let (server, memory) = server(options);
    let mut peers: Vec<_> = (0..2)
        .map(|it| TestPeer::connect_from(&server, &it.to_string(), "127.0.0.1"))
        .collect();
    for peer in &mut peers {
        for number in 0..5u8 {
            let cids: Vec<_> = (0..9).map(|it| cid_of(&[number, it])).collect();
            let entries: Vec<_> = cids.iter().map(|cid| quiet(block(cid))).collect();
            for full in [false, true] {
                peer.send(full, &entries).await;
            }
        }
        peer.silence().await;
        assert!(server.totals().1 <= 15);
    }
    // The youngest wants of the first are remembered, the oldest are not.
    memory.put(vec![4, 8]);
    memory.put(vec![0, 0]);
    server.store_has_changed();
    assert_eq!(peers[0].next().await, Told::Block(vec![4, 8].into()));
    peers[0].silence().await;
    drop(peers);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((server.totals().1, server.report().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_closes_each_stream_after_a_message_loses_nothing() {
    let (server, memory) = server(Options::default());
    let cids: Vec<_> = (0..6u8).map(|it| memory.put(vec![it; 600 << 10])).collect();
    let mut peer = TestPeer::connect(&server, "p");
    for (number, cid) in cids.iter().enumerate() {
        peer.want(&[block(cid)]).await;
        let block = peer.next().await;
        assert_eq!(block, Told::Block(vec![number as u8; 600 << 10].into()));
        peer.answers = None; // Closed and dropped.
    }
    assert_eq!(peer.n_streams, 6);
}

#[tokio::test(start_paused = true)]
async fn whole_messages_go_on_streams_of_their_own_and_small_ones_wait_to_be_one() {
    let (server, memory) = server(Options {
        outstanding_min: 16 << 20,
        ..Options::default()
    });
    let mut peer = TestPeer::connect(&server, "p");
    let large = |first: u8| (first..first + 6).map(|n| vec![n; 1 << 20]);
    let larges: Vec<Cid> = large(0).map(|data| memory.put(data)).collect();
    let smalls: Vec<Cid> = (0..9).map(|n| memory.put(vec![n; 3000])).collect();
    let mut streams = Vec::new();
    for (wants, n_streams) in [(&larges[..1], 1), (&smalls, 1), (&larges[1..], 3)] {
        let entries: Vec<Entry> = wants.iter().map(block).collect();
        peer.want(&entries).await;
        let second = Duration::from_secs(1);
        while let Ok(opened) = tokio::time::timeout(second, peer.commands.recv()).await {
            let Some(Command::Open(opened)) = opened else {
                panic!("{opened:?}");
            };
            let (ours, theirs) = pipe(1000);
            assert!(opened.send(Ok((theirs, Dialect::V1_2))).is_ok());
            streams.push(ours);
        }
        assert_eq!(streams.len(), n_streams);
    }
    let (sender, mut messages) = mpsc::channel(1);
    for mut stream in streams {
        let sender = sender.clone();
        tokio::spawn(
            async move { while sender.send(message_of(&mut stream).await).await.is_ok() {} },
        );
    }
    let (mut n_messages, mut came) = (0, Vec::new());
    while came.len() < larges.len() + smalls.len() {
        let message = messages.recv().await.unwrap();
        came.extend(message.blocks.into_iter().map(|block| block.data));
        n_messages += 1;
    }
    let small = (0..9).map(|n| vec![n; 3000]);
    let mut wanted: Vec<Vec<u8>> = large(0).chain(small).collect();
    came.sort();
    wanted.sort();
    assert_eq!(came, wanted);
    assert!(n_messages <= larges.len() + 1, "{n_messages} messages");
}

#[tokio::test(start_paused = true)]
async fn a_block_whose_stream_breaks_is_sent_again() {
    let (server, memory) = server(Options::default());
    let cid = memory.put(vec![9; 1 << 20]);
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[block(&cid)]).await;
    peer.take_stream(100).await;
    let mut some = [0; 1000];
    peer.answers
        .as_mut()
        .unwrap()
        .read_exact(&mut some)
        .await
        .unwrap();
    peer.answers = None;
    assert_eq!(peer.next().await, Told::Block(vec![9; 1 << 20].into()));
    peer.silence().await;
    assert_eq!(server.bytes_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_takes_nothing_is_disconnected_and_its_room_given_back() {
    let (server, memory) = server(Options::default());
    let cids: Vec<_> = (0..40u8).map(|it| memory.put(vec![it; 1 << 20])).collect();
    let mut peer = TestPeer::connect(&server, "p");
    let entries: Vec<_> = cids.iter().map(block).collect();
    peer.want(&entries).await;
    peer.take_stream(1 << 16).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let held = server.bytes_in_flight();
    assert!(
        held > 0 && held <= Options::default().outstanding_min + (1 << 20),
        "{held}"
    );
    assert!(matches!(peer.commands.recv().await, Some(Command::Close)));
    assert_eq!(server.totals().0.stalled.get(), 1);
    drop(peer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.bytes_in_flight(), 0);
}

#[tokio::test(start_paused = true)]
async fn however_many_peers_of_a_subnet_take_nothing_others_are_served_at_once() {
    let options = Options {
        outstanding_all_max: 16 << 20,
        outstanding_shares: Shares {
            address_max: 4 << 20,
            subnet_max: 8 << 20,
        },
        ..Options::default()
    };
    let (server, memory) = server(options);
    let cids: Vec<_> = (0..10u8).map(|it| memory.put(vec![it; 1 << 20])).collect();
    let entries: Vec<_> = cids.iter().map(block).collect();
    let mut stalled = Vec::new();
    for number in 0..40 {
        let address = format!("192.0.2.{}", number / 4);
        let mut peer = TestPeer::connect_from(&server, &number.to_string(), &address);
        peer.want(&entries).await;
        stalled.push(peer);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(server.bytes_in_flight(), 8 << 20);
    let mut other = TestPeer::connect_from(&server, "other", "198.51.100.1");
    let asked = Instant::now();
    for (number, cid) in cids.iter().enumerate() {
        other.want(&[block(cid)]).await;
        let expected = vec![number as u8; 1 << 20];
        assert_eq!(other.next().await, Told::Block(expected.into()));
    }
    assert!(
        asked.elapsed() < Duration::from_secs(1),
        "{:?}",
        asked.elapsed()
    );
}

/// Two subnets with half of the memory each would be all of it.
#[tokio::test(start_paused = true)]
async fn however_many_subnets_take_nothing_others_are_served_at_once() {
    let options = Options {
        outstanding_all_max: 16 << 20,
        outstanding_shares: Shares {
            address_max: 4 << 20,
            subnet_max: 8 << 20,
        },
        ..Options::default()
    };
    let (server, memory) = server(options);
    let cids: Vec<_> = (0..10u8).map(|it| memory.put(vec![it; 1 << 20])).collect();
    let entries: Vec<_> = cids.iter().map(block).collect();
    let mut stalled = Vec::new();
    for number in 0..60 {
        let address = format!("192.0.{}.{}", number % 3, number / 12);
        let mut peer = TestPeer::connect_from(&server, &number.to_string(), &address);
        peer.want(&entries).await;
        stalled.push(peer);
    }
    tokio::time::sleep(Duration::from_millis(500)).await;
    let held = server.bytes_in_flight();
    assert!(held > 8 << 20 && held <= 15 << 20, "{held}");
    let mut other = TestPeer::connect_from(&server, "other", "198.51.100.1");
    let asked = Instant::now();
    for (number, cid) in cids.iter().enumerate() {
        other.want(&[block(cid)]).await;
        let expected = vec![number as u8; 1 << 20];
        assert_eq!(other.next().await, Told::Block(expected.into()));
    }
    assert!(asked.elapsed() < Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn beyond_the_budget_wants_are_refused_and_after_a_while_served_again() {
    for beyond in [Beyond::DontHave, Beyond::Silence] {
        let mut options = Options::default();
        options.budget.peer = Rates {
            entries_per_second: Some(1),
            messages_per_second: None,
            streams_per_second: None,
            bytes_per_hour: None,
        };
        options.budget.burst = Duration::from_secs(3);
        options.budget.patience = Duration::from_secs(10);
        options.budget.beyond = beyond;
        let (server, memory) = server(options);
        let cid = memory.put(vec![1; 3000]);
        let mut peer = TestPeer::connect(&server, "p");
        let mut other = TestPeer::connect(&server, "q");
        for _ in 0..3 {
            peer.want(&[block(&cid)]).await;
            assert_eq!(peer.next().await, Told::Block(vec![1; 3000].into()));
        }
        peer.want(&[block(&cid)]).await;
        match beyond {
            Beyond::DontHave => assert_eq!(peer.next().await, Told::DontHave(cid)),
            Beyond::Silence => {
                let told = tokio::time::timeout(Duration::from_millis(500), peer.next()).await;
                assert!(told.is_err(), "{told:?}");
            }
        }
        other.want(&[block(&cid)]).await;
        assert_eq!(other.next().await, Told::Block(vec![1; 3000].into()));
        // Who goes on is disconnected …
        let mut n_sent = 0;
        while peer.commands.try_recv().is_err() {
            peer.want(&vec![block(&cid); 20]).await;
            tokio::time::sleep(Duration::from_millis(500)).await;
            n_sent += 1;
            assert!(n_sent < 100, "never disconnected");
        }
        // … which is counted once, though it takes a while, …
        for _ in 0..3 {
            peer.want(&vec![block(&cid); 20]).await;
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(server.totals().0.over_budget.get(), 1);
        // … and may come back.
        drop(peer);
        tokio::time::sleep(Duration::from_secs(5)).await;
        let mut peer = TestPeer::connect(&server, "p");
        peer.want(&[block(&cid)]).await;
        assert_eq!(peer.next().await, Told::Block(vec![1; 3000].into()));
    }
}

#[tokio::test(start_paused = true)]
async fn bytes_of_an_hour_are_a_budget() {
    let mut options = Options::default();
    options.budget.peer.bytes_per_hour = Some(36_000);
    let (server, memory) = server(options);
    let (a, b) = (memory.put(vec![1; 36_000]), memory.put(vec![2; 100]));
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[block(&a)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![1; 36_000].into()));
    peer.want(&[block(&b)]).await;
    assert_eq!(peer.next().await, Told::DontHave(b));
    tokio::time::sleep(Duration::from_secs(60)).await;
    peer.want(&[block(&b)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![2; 100].into()));
}

#[tokio::test(start_paused = true)]
async fn a_dialect_without_presences_gets_blocks_alone() {
    let (server, memory) = server(Options::default());
    let cid = memory.put(vec![1; 3000]);
    let mut peer = TestPeer::connect(&server, "p");
    peer.dialect = Dialect::V1_0;
    peer.want(&[block(&cid_of(b"absent"))]).await;
    peer.want(&[block(&cid)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![1; 3000].into()));
    peer.silence().await;
}

#[tokio::test(start_paused = true)]
async fn hashes_that_are_not_served_are_ignored() {
    let (server, _memory) = server(Options::default());
    let identity = carrack_formats::cid::empty_identity();
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[block(&identity)]).await;
    peer.silence().await;
    assert_eq!(server.totals().0.entries_ignored.get(), 1);
    assert_eq!(cid_of(b"").hash().code(), SHA2_256);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_left_of_peers_that_are_gone() {
    let (server, memory) = server(Options::default());
    let here = memory.put(vec![1; 100_000]);
    for number in 0..500u32 {
        let mut peer = TestPeer::connect(&server, &(number % 7).to_string());
        let absent = cid_of(&number.to_le_bytes());
        peer.want(&[block(&here), block(&absent), have(&absent)])
            .await;
        if number % 2 == 0 {
            peer.next().await;
        }
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((server.totals().1, server.report().len()), (0, 0));
    assert_eq!(
        (server.bytes_in_flight(), server.shared.tasks.len()),
        (0, 0)
    );
    server.close().await;
}
