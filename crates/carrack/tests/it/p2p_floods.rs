//! Floods on the libp2p port from addresses that are not trusted: whoever means well notices next
//! to nothing, and the node's memory stays flat.
//!
//! In       the attacks of `support/floods.rs`, each alone and all together.
//! Out      a failed test when others are refused, told what is not so, or slowed down.
//! Limits   loopback; attackers and others have addresses of 127.0.0.0/8, which nobody trusts here.
//! Not here single lies and malformed bytes (`hostile_peers`), the HTTP port (`attacks`).

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::{Answer, Ask, Fetch};
use carrack_testkit::p2p::{BitswapClient, Dialer};
use serde_json::Value;
use tokio::task::JoinSet;

use crate::support::car::raw;
use crate::support::floods::{self, Attack, FarAway, addresses, socket_of};
use crate::support::{Carrack, Server, data, h2};

const MIB: u64 = 1 << 20;
const LEAF_LEN: usize = 64 << 10;
const FILE_LEN: usize = 64 * LEAF_LEN;
/// Nobody is trusted.
const UNTRUSTED: &str = "[bitswap.budget]\ntrusted = []\n[bitswap.connections]\ntrusted = []\n";
/// Where those who mean well come from.
const HONEST: &str = "127.0.9.1";

struct Target {
    carrack: Carrack,
    server: Server,
    leaves: Vec<(Cid, Bytes)>,
}

impl Target {
    fn new(config: &str) -> Self {
        let carrack = Carrack::new();
        let file = carrack.path("file");
        data::file(&file, 91, FILE_LEN as u64);
        carrack.add(&["--chunker", "size-65536", file.to_str().unwrap()]);
        std::fs::write(carrack.path("data/carrack.toml"), config).unwrap();
        let bytes = Bytes::from(std::fs::read(&file).unwrap());
        let leaf = |at| bytes.slice(at..at + LEAF_LEN);
        let leaves = (0..FILE_LEN).step_by(LEAF_LEN).map(leaf);
        Self {
            leaves: leaves.map(|bytes| (raw(&bytes), bytes)).collect(),
            server: carrack.serve_peers::<&str>(&[]),
            carrack,
        }
    }

    fn address(&self, transport: Transport) -> String {
        self.carrack.p2p_address(transport)
    }

    async fn connect(&self, from: &str, over: Transport) -> std::io::Result<BitswapClient> {
        let dialer = Dialer::new().from_address(from.parse().unwrap());
        let dialer = dialer.with_patience(Duration::from_secs(8));
        BitswapClient::connect(&dialer, &self.address(over)).await
    }

    fn total(&self, name: &str) -> u64 {
        let lines = self.carrack.run(&["peers", "--json"]).ok().json();
        let total = lines.last().map(|totals: &Value| totals[name].as_u64());
        total.flatten().unwrap()
    }
}

#[tokio::test]
async fn what_is_here_is_served_though_no_more_wants_are_remembered() {
    let target = Target::new(&format!("[bitswap]\nwants_max = 4096\n{UNTRUSTED}"));
    let address = target.address(Transport::Tcp);
    let (_attack, asked) = floods::absent_wants(address, addresses(1, 2), 6);
    asked.await.unwrap();
    let mut client = target.connect(HONEST, Transport::Tcp).await.unwrap();
    for (cid, bytes) in &target.leaves[..8] {
        client.ask(&[*cid], Ask::Have, true, false).await.unwrap();
        assert_eq!(client.answer().await.unwrap(), Answer::Have(*cid));
        assert!(client.block(cid).await.unwrap() == bytes);
    }
    // What is absent is remembered of others, too.
    let late = target.carrack.path("late");
    std::fs::write(&late, "late").unwrap();
    let cid = raw(b"late");
    client.ask(&[cid], Ask::Block, true, false).await.unwrap();
    assert_eq!(client.answer().await.unwrap(), Answer::DontHave(cid));
    client.ask(&[cid], Ask::Block, false, false).await.unwrap();
    target.carrack.add_one(&late);
    let told = client.answer().await.unwrap();
    assert_eq!(told, Answer::Block(cid, Bytes::from_static(b"late")));
}

#[tokio::test]
async fn a_want_that_is_repeated_without_end_takes_no_memory() {
    let target = Target::new(UNTRUSTED);
    let (cid, bytes) = &target.leaves[0];
    let before = target.server.peak_memory();
    let mut client = target.connect("127.0.1.1", Transport::Tcp).await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let wants = vec![*cid; 2000];
    for _ in 0..500 {
        // It reads nothing meanwhile, and is not read when that is enough.
        let asked = client.ask(&wants, Ask::Have, false, false);
        if tokio::time::timeout_at(deadline.into(), asked)
            .await
            .is_err()
        {
            break;
        }
    }
    let mut other = target.connect(HONEST, Transport::Tcp).await.unwrap();
    assert!(other.block(cid).await.unwrap() == bytes);
    let grown = target.server.peak_memory() - before;
    assert!(grown < 48 * MIB, "grown by {grown}");
}

/// Wants for blocks that are here, of peers that take nothing: more than one peer is remembered of,
/// over and over, as blocks and as HAVE.
#[tokio::test]
async fn floods_of_wants_for_what_is_here_are_bounded_and_others_are_served() {
    let target = Target::new(UNTRUSTED);
    let before = target.server.peak_memory();
    let cids: Vec<Cid> = target.leaves.iter().map(|(cid, _)| *cid).collect();
    let mut greedy = Vec::new();
    for from in addresses(1, 4) {
        for _ in 0..4 {
            let over = Transport::Tcp;
            let mut client = target.connect(&from.to_string(), over).await.unwrap();
            client.ask(&cids, Ask::Block, true, false).await.unwrap();
            client.message().await.unwrap(); // The wants have arrived.
            client.link().freeze().await.unwrap();
            greedy.push(client);
        }
    }
    for _ in 0..40 {
        for client in &mut greedy {
            for ask in [Ask::Block, Ask::Have, Ask::Cancel] {
                let asked = client.ask(&cids, ask, true, false);
                let _ = tokio::time::timeout(Duration::from_millis(5), asked).await;
            }
        }
    }
    let mut client = target.connect(HONEST, Transport::Tcp).await.unwrap();
    let fetched = client.fetch(cids, Fetch::default(), drop).await.unwrap();
    assert_eq!(fetched.block_bytes, FILE_LEN as u64);
    let grown = target.server.peak_memory() - before;
    assert!(grown < 160 * MIB, "grown by {grown}");
}

/// A peer that means well gets in over each transport, again and again.
async fn gets_in_over_each(target: &Target) {
    for round in 0..3 {
        for over in Transport::ALL {
            let start = Instant::now();
            let client = target.connect(HONEST, over).await;
            let mut client = client.unwrap_or_else(|error| panic!("{round} {over:?}: {error}"));
            let (cid, bytes) = &target.leaves[round];
            assert!(client.block(cid).await.unwrap() == bytes);
            let took = start.elapsed();
            assert!(took < Duration::from_secs(8), "{round} {over:?}: {took:?}");
            client.close().await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn silent_connections_over_each_transport_stop_no_handshake() {
    let target = Target::new(UNTRUSTED);
    let tcp = socket_of(&target.address(Transport::Tcp));
    let ws = socket_of(&target.address(Transport::WebSocket));
    let quic = socket_of(&target.address(Transport::Quic));
    let from = || addresses(1, 4);
    let _attacks: [Attack; 3] = [
        floods::silent(tcp, from(), b"", 300, 25),
        floods::silent(ws, from(), floods::WEBSOCKET, 300, 25),
        floods::deaf_quic(quic, from(), 25),
    ];
    // So many are there by then.
    tokio::time::sleep(Duration::from_secs(3)).await;
    gets_in_over_each(&target).await;
}

/// First packets of QUIC from more addresses than there is room for handshakes, in less time than a
/// client far away needs for its own: whoever sends them may have written any address on them.
#[tokio::test(flavor = "multi_thread")]
async fn forged_addresses_leave_a_client_far_away_its_handshake() {
    let target = Target::new(&format!("{UNTRUSTED}pending_max = 8\n"));
    let quic = socket_of(&target.address(Transport::Quic));
    let subnets = (20..100).map(|net| [127, 0, net, 1].into()).collect();
    let _attack = floods::deaf_quic(quic, subnets, 60);
    let latency = Duration::from_millis(200);
    let far = FarAway::new(quic, HONEST.parse().unwrap(), latency).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", far.port);
    for (cid, bytes) in &target.leaves[..3] {
        let dialer = Dialer::new().with_patience(Duration::from_secs(8));
        let mut client = BitswapClient::connect(&dialer, &address).await.unwrap();
        assert!(client.block(cid).await.unwrap() == bytes);
        client.close().await.unwrap();
    }
    assert!(far.n_retries() > 0, "nobody was asked to prove its address");
}

/// Streams that are opened and not agreed upon, each with as much as a window holds.
#[tokio::test(flavor = "multi_thread")]
async fn what_an_address_sends_and_nobody_reads_is_little() {
    const SILENT: usize = 16;
    const FULL: usize = 44;
    let target = Target::new(UNTRUSTED);
    let before = target.server.peak_memory();
    let mut held = Vec::new();
    let mut writing = JoinSet::new();
    for number in 0..16 {
        let from = format!("127.0.1.{}", number % 2 + 1);
        let dialer = Dialer::new().from_address(from.parse().unwrap());
        let link = dialer.dial(&target.address(Transport::Tcp)).await.unwrap();
        for stream in 0..SILENT + FULL {
            let Ok(mut opened) = link.open_raw().await else {
                break;
            };
            let len = if stream < SILENT { 1 } else { 256 << 10 };
            writing.spawn(async move {
                let _ = opened.send(&vec![0x13; len]).await;
                std::future::pending::<()>().await;
            });
        }
        held.push(link);
    }
    tokio::time::sleep(Duration::from_secs(4)).await;
    let mut client = target.connect(HONEST, Transport::Tcp).await.unwrap();
    let (cid, bytes) = &target.leaves[0];
    assert!(client.block(cid).await.unwrap() == bytes);
    let grown = target.server.peak_memory() - before;
    assert!(grown < 64 * MIB, "grown by {grown}");
}

#[tokio::test]
async fn at_the_limit_of_connections_one_more_is_refused_and_one_that_leaves_makes_room() {
    let target = Target::new("[bitswap.connections]\nestablished_max = 3\n");
    let cid = target.leaves[0].0;
    let mut inside = Vec::new();
    for _ in 0..3 {
        let mut client = target.connect("127.0.0.1", Transport::Tcp).await.unwrap();
        client.block(&cid).await.unwrap();
        inside.push(client);
    }
    for over in Transport::ALL {
        // What is refused may look open for a moment.
        if let Ok(mut client) = target.connect("127.0.0.1", over).await {
            let refused = client.block(&cid).await.unwrap_err();
            assert_ne!(refused.kind(), ErrorKind::NotFound, "{over:?}");
        }
    }
    for client in &mut inside {
        client.block(&cid).await.unwrap();
    }
    assert_eq!(
        target.server.get(&format!("/ipfs/{cid}?format=raw")).status,
        200
    );
    inside.pop().unwrap().close().await.unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let client = target.connect("127.0.0.1", Transport::Tcp).await;
        if let Ok(mut client) = client
            && client.block(&cid).await.is_ok()
        {
            break;
        }
        assert!(Instant::now() < deadline, "nobody gets in");
    }
}

/// What a client saw that asks for a block every [`PACE`], by bitswap, as a raw block and as a CAR,
/// and connects anew now and then.
struct Seen {
    n_asked: usize,
    n_served: usize,
    /// In order.
    times: Vec<Duration>,
}

const PACE: Duration = Duration::from_millis(20);
const BLOCKS_PER_CONNECTION: usize = 25;
const CONNECTIONS: usize = 8;

/// Asks at its pace, whatever the answers do: what is late is as good as not served.
async fn mean_well(target: &Target) -> Seen {
    let mut seen = Seen {
        n_asked: CONNECTIONS * BLOCKS_PER_CONNECTION * 3,
        n_served: 0,
        times: Vec::new(),
    };
    for number in 0..CONNECTIONS {
        let over = Transport::ALL[number % Transport::ALL.len()];
        let Ok(mut client) = target.connect(HONEST, over).await else {
            continue;
        };
        let to = h2::socket_of_url(&target.server.url);
        let Some(http) = h2::client(to, HONEST.parse().unwrap(), 1 << 24).await else {
            continue;
        };
        let mut pace = tokio::time::interval(PACE);
        for (cid, bytes) in &target.leaves[..BLOCKS_PER_CONNECTION] {
            pace.tick().await;
            seen.one(async { client.block(cid).await.is_ok_and(|block| block == *bytes) })
                .await;
            for format in ["raw", "car"] {
                let path = format!("/ipfs/{cid}?format={format}");
                // A CAR of one block ends with it.
                let is_whole = |body: Bytes| body.ends_with(bytes);
                let asked = async {
                    let answer = h2::fetch(&http, &path).await;
                    answer.is_ok_and(|(status, body)| status == 200 && is_whole(body))
                };
                seen.one(asked).await;
            }
        }
    }
    seen.times.sort_unstable();
    seen
}

impl Seen {
    async fn one(&mut self, is_served: impl Future<Output = bool>) {
        let start = Instant::now();
        let asked = tokio::time::timeout(Duration::from_secs(2), is_served);
        self.n_served += usize::from(asked.await.unwrap_or(false));
        self.times.push(start.elapsed());
    }

    fn p99(&self) -> Duration {
        let index = self.times.len() * 99 / 100;
        self.times.get(index).copied().unwrap_or(Duration::MAX)
    }
}

/// Below this nothing is told from what else the machine does.
const TIME_MIN: Duration = Duration::from_millis(60);

#[tokio::test(flavor = "multi_thread")]
async fn all_floods_together_leave_others_their_goodput_and_their_times() {
    let trusted = "http.trusted = []\n[bitswap]\nwants_max = 8192\n";
    let target = Target::new(&format!("{trusted}{UNTRUSTED}"));
    let without = mean_well(&target).await;
    assert_eq!(without.n_served, without.n_asked);
    let address = || target.address(Transport::Tcp);
    let from = || addresses(1, 4);
    let (absent_wants, asked) = floods::absent_wants(address(), from(), 12);
    asked.await.unwrap();
    let tcp = socket_of(&address());
    let http = h2::socket_of_url(&target.server.url);
    let (windows_of_zero, asked) = floods::windows_of_zero(http, from());
    asked.await.unwrap();
    let _attacks: [Attack; 4] = [
        windows_of_zero,
        absent_wants,
        floods::repeated_haves(address(), from(), target.leaves[0].0, 5),
        floods::silent(tcp, from(), b"", 300, 25),
    ];
    tokio::time::sleep(Duration::from_secs(2)).await;
    let with = mean_well(&target).await;
    eprintln!(
        "{} of {}, p99 {:?}; without {:?}",
        with.n_served,
        with.n_asked,
        with.p99(),
        without.p99()
    );
    assert!(with.n_served * 5 >= with.n_asked * 4, "{}", with.n_served);
    assert!(
        with.p99() <= without.p99().max(TIME_MIN) * 3,
        "{:?}",
        with.p99()
    );
    assert!(target.total("wants_waiting") < 8192);
}
