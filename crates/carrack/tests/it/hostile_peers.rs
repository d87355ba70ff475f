//! Hostile libp2p peers against a running node: others are served meanwhile, memory stays flat, and
//! whoever leaves leaves nothing behind. The whole table is `docs/design/attacks.md`.
//!
//! In       one file that is served; peers that are driven by hand.
//! Out      a failed test when somebody else notices.
//! Limits   loopback, whose addresses have no budget of their own.
//! Not here budgets (`node::config`), what well-meant peers hear (`dialects`).

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use bytes::Bytes;
use carrack_bitswap::wire::{Dialect, Outgoing};
use carrack_formats::Cid;
use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::{Answer, Ask, DIALECTS, Fetch};
use carrack_testkit::p2p::{BitswapClient, Dialer, Link, Stream, craft, forged};
use serde_json::Value;
use tokio::io::AsyncReadExt;

use crate::support::car::{absent, raw};
use crate::support::floods::socket_of;
use crate::support::{Carrack, Server, data};

const MIB: usize = 1 << 20;
const FILE_LEN: usize = 24 * MIB;
/// What a node may grow by for hostile peers: frames that it reads, blocks that it sends.
const GROWTH_MAX: u64 = 160 << 20;
/// Longer than handshakes and peers that read nothing are waited for, on a busy machine.
const CUT_TIME_MAX: Duration = Duration::from_secs(60);

struct Target {
    carrack: Carrack,
    server: Server,
    address: String,
    /// The leaves of the one file.
    leaves: Vec<(Cid, Bytes)>,
}

impl Target {
    fn new() -> Self {
        let carrack = Carrack::new();
        let file = carrack.path("file");
        data::file(&file, 71, FILE_LEN as u64);
        carrack.add_one(&file);
        let bytes = Bytes::from(std::fs::read(&file).unwrap());
        let leaf = |at| bytes.slice(at..at + MIB);
        let leaves = (0..FILE_LEN).step_by(MIB).map(leaf);
        let server = carrack.serve_peers::<&str>(&[]);
        Self {
            address: carrack.p2p_address(Transport::Tcp),
            leaves: leaves.map(|bytes| (raw(&bytes), bytes)).collect(),
            server,
            carrack,
        }
    }

    fn cids(&self) -> Vec<Cid> {
        self.leaves.iter().map(|(cid, _)| *cid).collect()
    }

    async fn link(&self) -> Link {
        let dialer = Dialer::new().accepting(&DIALECTS);
        dialer.dial(&self.address).await.unwrap()
    }

    async fn client(&self) -> BitswapClient {
        BitswapClient::connect(&Dialer::new(), &self.address)
            .await
            .unwrap()
    }

    /// What `carrack peers` tells in all.
    fn totals(&self) -> Value {
        let lines = self.carrack.run(&["peers", "--json"]).ok().json();
        lines.last().unwrap().clone()
    }

    fn total(&self, name: &str) -> u64 {
        let totals = self.totals();
        let total = totals[name].as_u64();
        total.unwrap_or_else(|| panic!("no {name} in {totals}"))
    }

    /// A peer that means well gets a block, and soon.
    async fn serves_others(&self) {
        let start = Instant::now();
        let mut client = self.client().await;
        let (cid, bytes) = &self.leaves[3];
        assert!(client.block(cid).await.unwrap() == bytes);
        assert!(
            start.elapsed() < Duration::from_secs(15),
            "{:?}",
            start.elapsed()
        );
        client.close().await.unwrap();
    }

    /// Nobody is connected, nothing is wanted and nothing under way, after a moment.
    async fn is_at_rest(&self) {
        let deadline = Instant::now() + CUT_TIME_MAX;
        loop {
            let totals = self.totals();
            let left = ["peers", "wants_waiting", "bytes_in_flight"].map(|name| &totals[name]);
            if left.iter().all(|&value| value == 0) {
                return;
            }
            assert!(Instant::now() < deadline, "{totals}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

/// A message of `Outgoing`'s own making, whole.
fn message(fill: impl FnOnce(&mut Outgoing)) -> Vec<u8> {
    let mut message = Outgoing::new(Dialect::V1_2);
    fill(&mut message);
    message.finish().concat()
}

/// Frames that lie about their length, or never say it, end their stream; the connection and its
/// other streams go on.
#[tokio::test]
async fn lying_lengths_end_a_stream_and_nothing_else() {
    let target = Target::new();
    let link = target.link().await;
    let lies: [&[u8]; 6] = [
        &[0xff; 16],
        &[0x80; 16],
        &[0x81, 0x80, 0x80, 0x02],       // 4 MiB and a byte.
        &[0xff, 0xff, 0xff, 0xff, 0x7f], // 32 GiB.
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f],
        &[0x80, 0x00], // Zero in two bytes.
    ];
    let peak = target.server.peak_memory();
    for lie in lies {
        let (mut stream, _) = link.open(&DIALECTS).await.unwrap();
        let _ = stream.send(lie).await; // It may be reset while we write.
        let ended = tokio::time::timeout(CUT_TIME_MAX, stream.receive(1)).await;
        assert!(ended.unwrap().is_err(), "{lie:x?}");
    }
    assert_eq!(target.total("malformed"), lies.len() as u64);
    assert!(!link.is_ended());
    // A length of 4 MiB may be true: it takes no room before its bytes come.
    let mut promises = Vec::new();
    for _ in 0..16 {
        let (mut stream, _) = link.open(&DIALECTS).await.unwrap();
        stream.send(&[0x80, 0x80, 0x80, 0x02]).await.unwrap();
        promises.push(stream);
    }
    target.serves_others().await;
    let grown = target.server.peak_memory() - peak;
    assert!(grown < 32 << 20, "grown by {grown}");
    drop(promises);
    let (mut stream, _) = link.open(&DIALECTS).await.unwrap();
    let mut list = Vec::new();
    craft::push_entry(
        &mut list,
        &target.leaves[0].0.to_bytes(),
        1,
        false,
        true,
        true,
    );
    stream.send(&craft::want_list(&list, false)).await.unwrap();
    let (_, mut answer) = link.accept().await.unwrap();
    assert!(answer.receive_frame(MIB).await.unwrap().is_some());
}

/// Fields that nobody knows, values out of range, messages that end early: read past, or the end of
/// their stream.
#[tokio::test]
async fn junk_in_messages_hurts_nobody() {
    let target = Target::new();
    let link = target.link().await;
    let name = target.leaves[0].0.to_bytes();
    let entry = |priority: u64, kind: u64| {
        let fields = [
            craft::bytes_field(1, &name),
            craft::number_field(2, priority),
            craft::number_field(4, kind),
        ];
        craft::frame(&craft::bytes_field(
            1,
            &craft::bytes_field(1, &fields.concat()),
        ))
    };
    let junk: [Vec<u8>; 9] = [
        craft::frame(&[]),
        craft::frame(&craft::number_field(77, u64::MAX).repeat(10_000)),
        craft::frame(&craft::bytes_field(1, &craft::bytes_field(1, &[]))),
        craft::frame(&craft::bytes_field(
            1,
            &craft::bytes_field(1, &[0x0a, 0x7f, 1]),
        )),
        craft::frame(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]),
        craft::frame(&[0x0b; 64]),
        craft::frame(&craft::number_field(5, u64::MAX)),
        entry(u64::MAX, 99),
        craft::frame(&[0x28, 0].repeat(MIB)), // Two million fields.
    ];
    for bytes in &junk {
        let (mut stream, _) = link.open(&DIALECTS).await.unwrap();
        let _ = stream.send(bytes).await;
        let _ = stream.finish().await;
    }
    // A message that ends inside.
    let (mut stream, _) = link.open(&DIALECTS).await.unwrap();
    stream.send(&craft::frame(&[7; 1000])[..500]).await.unwrap();
    stream.finish().await.unwrap();
    assert!(!link.is_ended());
    target.serves_others().await;
}

/// Want-lists of twenty times what is remembered, with and without `full`, over and over, by
/// peers that go and come back.
#[tokio::test]
async fn floods_of_wants_are_bounded_and_forgotten() {
    let target = Target::new();
    let peak = target.server.peak_memory();
    let waiting_max = 3 * 1024;
    for round in 0..3 {
        let mut clients = Vec::new();
        for number in 0..3 {
            let mut client = target.client().await;
            let cids: Vec<Cid> = (0..20_000).map(|n| absent(n * 4 + number)).collect();
            for full in [round % 2 == 1, false] {
                client.ask(&cids, Ask::Block, false, full).await.unwrap();
            }
            // What came before has been read when this is answered.
            client.block(&target.leaves[0].0).await.unwrap();
            clients.push(client);
        }
        assert!(target.total("wants_waiting") <= waiting_max);
        target.serves_others().await;
        drop(clients);
        target.is_at_rest().await;
    }
    let grown = target.server.peak_memory() - peak;
    assert!(grown < GROWTH_MAX, "grown by {grown}");
}

/// All blocks wanted at once, by peers that take none: as much as one peer may have outstanding is
/// read for each, others do not wait, and those who take nothing are cut.
#[tokio::test(flavor = "multi_thread")]
async fn peers_that_read_nothing_are_cut_and_hold_up_nobody() {
    let target = Target::new();
    let peak = target.server.peak_memory();
    let mut stalled = Vec::new();
    for _ in 0..12 {
        let mut client = target.client().await;
        client
            .ask(&target.cids(), Ask::Block, true, false)
            .await
            .unwrap();
        client.message().await.unwrap(); // The wants have arrived.
        client.link().freeze().await.unwrap();
        stalled.push(client);
    }
    let mut client = target.client().await;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(3) {
        let counts = client
            .fetch(target.cids(), Fetch::default(), drop)
            .await
            .unwrap();
        assert_eq!(counts.block_bytes, FILE_LEN as u64);
    }
    let grown = target.server.peak_memory() - peak;
    assert!(grown < 2 * GROWTH_MAX, "grown by {grown}");
    // Those that read nothing at all are cut; the other one is not.
    let deadline = Instant::now() + CUT_TIME_MAX;
    while target.total("peers") > 1 {
        assert!(Instant::now() < deadline, "{}", target.totals());
        client.block(&target.leaves[0].0).await.unwrap();
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
    assert!(target.total("stalled") >= 1);
    client.close().await.unwrap();
    drop(stalled);
    target.is_at_rest().await;
}

/// Streams that say nothing, half a name or a name without end, as many as the muxer opens.
#[tokio::test]
async fn floods_of_streams_stop_nobody() {
    let target = Target::new();
    let link = target.link().await;
    let mut streams = Vec::new();
    for number in 0..400_u32 {
        let quick = Duration::from_millis(500);
        let Ok(Ok(mut stream)) = tokio::time::timeout(quick, link.open_raw()).await else {
            break; // Refused, or the connection is cut: either will do.
        };
        let said: &[u8] = match number % 4 {
            0 => b"",
            1 => b"\x13/multistream/1",
            2 => &[0xff; 64],
            _ => b"\x13/multistream/1.0.0\n\x14/ipfs/bitswap/1.2.0\n",
        };
        if stream.send(said).await.is_err() {
            break;
        }
        streams.push(stream);
    }
    target.serves_others().await;
    drop(streams);
    drop(link);
    target.is_at_rest().await;
}

/// Reads frames of yamux until one says that the connection is over, or it is.
async fn is_told_to_go(under: &mut Stream) {
    const GO_AWAY: u8 = 3;
    while let Ok(head) = under.receive(12).await {
        let (kind, len) = craft::yamux_kind_and_len(head.try_into().unwrap());
        match kind {
            GO_AWAY => return,
            0 => drop(under.receive(len as usize).await),
            _ => {}
        }
    }
}

/// Frames of yamux that lie, under the muxer: the connection ends, nothing else.
#[tokio::test]
async fn frames_of_the_muxer_that_lie_end_their_connection() {
    const SYN: u16 = 1;
    let frame = |kind, flags, stream, len| craft::yamux_head(kind, flags, stream, len).to_vec();
    let target = Target::new();
    let opens = |n: u32| {
        (0..n)
            .flat_map(|n| frame(0, SYN, 2 * n + 1, 0))
            .collect::<Vec<_>>()
    };
    let lies = [
        vec![9; 12],                                            // Another version.
        frame(7, 0, 0, 0),                                      // A type that is none.
        frame(0, SYN, 1, u32::MAX),                             // Four gigabytes of data.
        [frame(0, SYN, 1, 1 << 20), vec![7; 1 << 20]].concat(), // More than the window.
        [
            frame(0, SYN, 1, 0),
            frame(1, 0, 1, u32::MAX),
            frame(1, 0, 1, u32::MAX),
        ]
        .concat(),
        [frame(0, SYN, 1, 0), frame(0, SYN, 1, 0)].concat(), // One stream twice.
        frame(0, SYN, 2, 0),                                 // A number that is the server's.
        opens(10_000),
    ];
    for (number, lie) in lies.iter().enumerate() {
        let mut under = Dialer::new().dial_unmuxed(&target.address).await.unwrap();
        let _ = under.send(lie).await;
        let end = tokio::time::timeout(Duration::from_secs(5), is_told_to_go(&mut under)).await;
        // Windows that overflow do harm to nobody but who sent them.
        assert!(end.is_ok() || number == 4, "lie {number} is put up with");
        target.serves_others().await;
    }
    target.is_at_rest().await;
}

/// Connections that never finish their handshake are closed, and stop nobody.
#[tokio::test]
async fn handshakes_without_end_are_cut() {
    let target = Target::new();
    let socket = socket_of(&target.address);
    let mut silent = Vec::new();
    for said in [
        &b""[..],
        b"\x13/multistream/1.0.0\n",
        b"\x13/multistream/1.0.0\n\x07/noise\n",
    ] {
        for _ in 0..20 {
            let mut stream = std::net::TcpStream::connect(socket).unwrap();
            stream.write_all(said).unwrap();
            stream.set_read_timeout(Some(CUT_TIME_MAX)).unwrap();
            silent.push(stream);
        }
    }
    target.serves_others().await;
    let cut = tokio::task::spawn_blocking(move || {
        silent.into_iter().all(|mut stream| {
            let mut rest = Vec::new();
            match stream.read_to_end(&mut rest) {
                Ok(_) => true,
                Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
            }
        })
    });
    assert!(cut.await.unwrap(), "still open after {CUT_TIME_MAX:?}");
    target.serves_others().await;
}

/// Keys as large as a message of the handshake, of kinds that are not known, or that are none.
#[tokio::test]
async fn huge_keys_end_their_handshake_and_nothing_else() {
    let target = Target::new();
    let socket = socket_of(&target.address);
    let peak = target.server.peak_memory();
    let huge = vec![0x30; 60_000];
    let (rsa, ed25519, secp256k1, unknown) = (0, 1, 2, 77);
    let payloads = [
        forged::identity(rsa, &huge, &[7; 256]),
        forged::identity(rsa, &huge[..2048], &huge[..50_000]),
        forged::identity(ed25519, &huge, &[7; 64]),
        forged::identity(ed25519, &[7; 32], &huge),
        forged::identity(secp256k1, &huge, &[7; 64]),
        forged::identity(unknown, &huge, &[]),
        craft::bytes_field(1, &[0xff; 60_000]),
        vec![0xff; 60_000],
        craft::bytes_field(4, &craft::bytes_field(1, &[7]).repeat(20_000)), // Extensions.
    ];
    for (number, payload) in payloads.iter().enumerate() {
        for _ in 0..10 {
            let mut stream = forged::noise(socket, payload).await.unwrap();
            let mut rest = Vec::new();
            let end = stream.read_to_end(&mut rest);
            let end = tokio::time::timeout(Duration::from_secs(8), end).await;
            assert!(end.is_ok(), "payload {number} is put up with");
        }
    }
    target.serves_others().await;
    let grown = target.server.peak_memory() - peak;
    assert!(grown < 32 << 20, "grown by {grown}");
    target.is_at_rest().await;
}

/// Certificates as long as they may be and longer, whose keys, signatures and structure are none.
#[tokio::test]
async fn certificates_that_are_none_end_their_handshake_and_nothing_else() {
    const TIME_MAX: Duration = Duration::from_secs(8);
    let target = Target::new();
    let tcp = socket_of(&target.address);
    let quic = socket_of(&target.carrack.p2p_address(Transport::Quic));
    let peak = target.server.peak_memory();
    let huge = vec![0x30; 10_000]; // As much as a handshake of QUIC keeps, and of TLS below.
    let (rsa, ed25519, secp256k1, unknown) = (0, 1, 2, 77);
    let identities = [
        (forged::signed_key(rsa, &huge, &[7; 256]), 1),
        (forged::signed_key(ed25519, &[7; 32], &huge), 1),
        (forged::signed_key(secp256k1, &huge, &[7; 64]), 1),
        (forged::signed_key(unknown, &huge, &[]), 1),
        (vec![0x30, 0x84, 0x7f, 0xff, 0xff, 0xff], 1), // Two gigabytes follow.
        ([0x30, 0x80].repeat(5_000), 1),               // Nested, without lengths.
        (forged::signed_key(ed25519, &[7; 32], &[7; 64]), 25),
        (forged::signed_key(rsa, &vec![7; 50_000], &[7; 256]), 1),
        (vec![0xff; 1 << 20], 1),
    ];
    for (number, (identity, n)) in identities.into_iter().enumerate() {
        for _ in 0..4 {
            let tls = forged::tls(identity.clone(), n).unwrap();
            let end = forged::end_over_quic(quic, tls.clone());
            let end = tokio::time::timeout(TIME_MAX, end).await;
            let end = end.unwrap_or_else(|_| panic!("certificate {number} is put up with"));
            end.unwrap();
            let end = move || forged::end_over_tcp(tcp, tls, TIME_MAX);
            tokio::task::spawn_blocking(end).await.unwrap().unwrap();
        }
    }
    target.serves_others().await;
    let address = target.carrack.p2p_address(Transport::Quic);
    let over_quic = Dialer::new().dial(&address).await.unwrap();
    over_quic.close().await.unwrap();
    let grown = target.server.peak_memory() - peak;
    assert!(grown < 32 << 20, "grown by {grown}");
    target.is_at_rest().await;
}

/// What a peer says of itself, far longer than anybody listens, asked for and pushed.
#[tokio::test]
async fn huge_records_of_identify_are_not_kept() {
    const IDENTIFY: [&str; 1] = ["/ipfs/id/1.0.0"];
    let target = Target::new();
    let peak = target.server.peak_memory();
    let protocol = |n: usize| craft::bytes_field(3, format!("/none/{n}").as_bytes());
    let records = [
        craft::bytes_field(1, &vec![7; 4 * MIB]), // A key.
        (0..200_000).flat_map(protocol).collect::<Vec<u8>>(),
        craft::bytes_field(2, &[4, 127, 0, 0, 1, 6, 0, 1]).repeat(100_000), // Addresses.
        craft::bytes_field(8, &vec![7; 4 * MIB]),                           // A signed record.
    ];
    for record in &records {
        let dialer = Dialer::new().without_basics().accepting(&IDENTIFY);
        let link = dialer.dial(&target.address).await.unwrap();
        let (_, mut asked) = link.accept().await.unwrap();
        let frame = craft::frame(record);
        let quick = Duration::from_secs(2); // It may be reset, or never be read.
        let _ = tokio::time::timeout(quick, asked.send(&frame)).await;
        for _ in 0..20 {
            let push = link.open(&["/ipfs/id/push/1.0.0"]).await;
            let Ok((mut pushed, _)) = push else { break };
            let quick = Duration::from_millis(100);
            let _ = tokio::time::timeout(quick, pushed.send(&frame)).await;
        }
        target.serves_others().await;
    }
    let grown = target.server.peak_memory() - peak;
    assert!(grown < 48 << 20, "grown by {grown}");
    target.is_at_rest().await;
}

/// What a peer does over and over is no line of the log each time.
#[tokio::test]
async fn streams_beyond_what_is_listened_to_do_not_fill_the_log() {
    let target = Target::new();
    let link = target.link().await;
    let mut pushed = Vec::new();
    for _ in 0..40 {
        let quick = Duration::from_secs(2);
        let push = tokio::time::timeout(quick, link.open(&["/ipfs/id/push/1.0.0"])).await;
        let Ok(Ok((stream, _))) = push else { break };
        pushed.push(stream);
    }
    assert!(pushed.len() > 10, "{}", pushed.len());
    target.serves_others().await;
    drop((pushed, link));
    let (_, log) = target.server.terminate();
    assert!(log.lines().count() < 10, "{log}");
}

/// Blocks and presences that nobody asked for are counted and dropped.
#[tokio::test]
async fn blocks_that_nobody_wants_are_dropped() {
    let target = Target::new();
    let peak = target.server.peak_memory();
    let mut client = target.client().await;
    let block = Bytes::from(data::Seeded::new(5).bytes(2 * MIB - 100));
    let cid = raw(&block);
    let junk = message(|message| {
        assert!(message.push_block(&cid, block.clone()));
        assert!(message.push_presence(&cid, true) && message.push_presence(&cid, false));
    });
    for _ in 0..50 {
        client.wants().send(&junk).await.unwrap();
    }
    let (wanted, bytes) = &target.leaves[1];
    assert!(client.block(wanted).await.unwrap() == bytes);
    assert_eq!(target.total("blocks_unwanted"), 50);
    let absent = client.block(&cid).await.unwrap_err();
    assert_eq!(absent.kind(), std::io::ErrorKind::NotFound);
    let grown = target.server.peak_memory() - peak;
    assert!(grown < GROWTH_MAX, "grown by {grown}");
}

/// The same peer on many connections is remembered once, and has so many and no more.
#[tokio::test]
async fn a_peer_is_one_peer_however_often_it_connects() {
    let target = Target::new();
    let dialer = Dialer::new().with_identity([7; 32]);
    let mut clients = Vec::new();
    for number in 0..12 {
        let Ok(mut client) = BitswapClient::connect(&dialer, &target.address).await else {
            continue;
        };
        let cids: Vec<Cid> = (0..1000).map(|n| absent(n * 12 + number)).collect();
        if client.ask(&cids, Ask::Block, false, false).await.is_ok() {
            clients.push(client);
        }
    }
    target.serves_others().await;
    let totals = target.totals();
    assert_eq!(totals["peers"], 1, "{totals}");
    assert!(
        totals["wants_waiting"].as_u64().unwrap() <= 1024,
        "{totals}"
    );
    clients.retain(|client| !client.link().is_ended());
    assert!(
        (1..=8).contains(&clients.len()),
        "{} connections",
        clients.len()
    );
    // What is left of it is served still, on whichever connection.
    let (cid, bytes) = &target.leaves[2];
    clients[0]
        .ask(&[*cid], Ask::Block, true, false)
        .await
        .unwrap();
    let answers = clients.iter_mut();
    let answers = answers.map(|client| client.answer_or_silence(Duration::from_secs(3)));
    let came = futures_util::future::join_all(answers).await;
    let came: Vec<Option<Answer>> = came.into_iter().map(Result::unwrap).collect();
    let is_it = |answer: &Option<Answer>| match answer {
        Some(Answer::Block(_, data) | Answer::Unwanted(data)) => data == bytes,
        _ => false,
    };
    assert_eq!(
        came.iter().filter(|&answer| is_it(answer)).count(),
        1,
        "{}",
        came.len()
    );
    drop(clients);
    target.is_at_rest().await;
}

/// How many peers come and go: `cargo xtask soak` lets 10,000.
fn n_peers() -> u64 {
    let peers = std::env::var("CARRACK_SOAK_PEERS").ok();
    peers.map_or(100, |peers| peers.parse().unwrap())
}

/// Connects, wants and vanishes, one peer after the other.
async fn come_and_go(target: &Target, numbers: std::ops::Range<u64>) {
    for number in numbers {
        let mut client = target.client().await;
        let wants = [absent(number), target.leaves[number as usize % 8].0];
        client.ask(&wants, Ask::Block, false, false).await.unwrap();
        if number % 3 == 0 {
            client.answer().await.unwrap();
        }
        if number % 2 == 0 {
            client.close().await.unwrap();
        }
    }
}

/// Peers that connect, want and vanish leave no descriptor, want, peer or memory behind.
#[tokio::test]
async fn peers_that_leave_leave_nothing() {
    let (target, n_peers) = (Target::new(), n_peers());
    target.serves_others().await;
    target.is_at_rest().await;
    let n_descriptors = target.server.n_descriptors();
    // What allocators and caches keep is there after the first of them.
    come_and_go(&target, 0..n_peers.min(1000)).await;
    target.is_at_rest().await;
    let memory = target.server.memory();
    if n_peers > 1000 {
        come_and_go(&target, 1000..n_peers).await;
        target.is_at_rest().await;
    }
    let deadline = Instant::now() + CUT_TIME_MAX;
    while target.server.n_descriptors() > n_descriptors {
        let n_open = target.server.n_descriptors();
        assert!(Instant::now() < deadline, "{n_open} open");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    let now = target.server.memory();
    eprintln!(
        "{n_peers} peers: {} KiB, then {} KiB",
        memory >> 10,
        now >> 10
    );
    assert!(now < memory + (8 << 20), "{memory} bytes, then {now}");
}

/// A node speaks bitswap, identify and ping, and nothing that could be made to work for others.
#[tokio::test]
async fn only_what_is_needed_is_spoken() {
    let target = Target::new();
    let link = target.link().await;
    let (mut stream, _) = link.open(&["/ipfs/id/1.0.0"]).await.unwrap();
    let (identify, _) = stream.receive_frame(64 << 10).await.unwrap().unwrap();
    let identify = String::from_utf8_lossy(&identify).into_owned();
    let spoken = [&DIALECTS[..], &["/ipfs/id/1.0.0", "/ipfs/ping/1.0.0"]].concat();
    for protocol in &spoken {
        assert!(identify.contains(protocol), "no {protocol}");
    }
    let known = identify.matches("/ipfs/").count();
    // The version of the protocol of identify is a name of this kind, too.
    assert!(known <= spoken.len() + 2, "{known} in {identify:?}");
    for protocol in [
        "/ipfs/kad/1.0.0",
        "/libp2p/circuit/relay/0.2.0/hop",
        "/meshsub/1.1.0",
        "/libp2p/autonat/1.0.0",
        "/libp2p/dcutr",
        "/ipfs/lan/kad/1.0.0",
    ] {
        assert!(
            link.open(&[protocol]).await.is_err(),
            "{protocol} is spoken"
        );
    }
}
