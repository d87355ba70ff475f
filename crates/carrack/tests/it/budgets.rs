//! Peers that ask for more than they may: what they are told, that others do not notice, and that
//! they may come back.
//!
//! In       a configuration file with small budgets, in which loopback is not trusted.
//! Out      a failed test when a budget does not hold, or holds for the wrong peer.
//! Not here each budget by itself (`carrack_bitswap::budget`), attacks (`hostile_peers`).

use std::time::{Duration, Instant};

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::{Answer, Ask, Fetch};
use carrack_testkit::p2p::{BitswapClient, Dialer};

use crate::support::car::raw;
use crate::support::{Carrack, Server, data};

const KIB: usize = 1 << 10;
/// The file's length; its leaves have [`LEAF_LEN`].
const FILE_LEN: usize = 64 * LEAF_LEN;
const LEAF_LEN: usize = 64 * KIB;

struct Target {
    carrack: Carrack,
    _server: Server,
    address: String,
    leaves: Vec<(Cid, Bytes)>,
}

impl Target {
    fn with(config: &str) -> Self {
        let carrack = Carrack::new();
        let file = carrack.path("file");
        data::file(&file, 81, FILE_LEN as u64);
        carrack.add(&["--chunker", "size-65536", file.to_str().unwrap()]);
        std::fs::write(carrack.path("data/carrack.toml"), config).unwrap();
        let bytes = Bytes::from(std::fs::read(&file).unwrap());
        let leaf = |at| bytes.slice(at..at + LEAF_LEN);
        let leaves = (0..FILE_LEN).step_by(LEAF_LEN).map(leaf);
        let server = carrack.serve_peers::<&str>(&[]);
        Self {
            address: carrack.p2p_address(Transport::Tcp),
            leaves: leaves.map(|bytes| (raw(&bytes), bytes)).collect(),
            _server: server,
            carrack,
        }
    }

    async fn connect(&self, from: &str, secret: u8) -> std::io::Result<BitswapClient> {
        let dialer = Dialer::new().with_identity([secret; 32]);
        let dialer = dialer.from_address(from.parse().unwrap());
        BitswapClient::connect(&dialer, &self.address).await
    }

    async fn serves_all(&self, from: &str, secret: u8) {
        let mut client = self.connect(from, secret).await.unwrap();
        let cids = self.leaves.iter().map(|(cid, _)| *cid);
        let counts = client.fetch(cids, Fetch::default(), |_| {}).await.unwrap();
        assert_eq!(counts.block_bytes, FILE_LEN as u64);
    }

    fn total(&self, name: &str) -> u64 {
        let lines = self.carrack.run(&["peers", "--json"]).ok().json();
        lines.last().unwrap()[name].as_u64().unwrap()
    }
}

/// Asks for the same block over and over; how often it came, how often DONT_HAVE, until `until`
/// says that it is enough or the connection ends.
async fn insist(
    client: &mut BitswapClient,
    cid: Cid,
    until: impl Fn(u64, u64) -> bool,
) -> (u64, u64) {
    let (mut n_blocks, mut n_dont_haves) = (0, 0);
    let start = Instant::now();
    while !until(n_blocks, n_dont_haves) && start.elapsed() < Duration::from_secs(20) {
        if client.ask(&[cid], Ask::Block, true, false).await.is_err() {
            break;
        }
        match client.answer_or_silence(Duration::from_millis(100)).await {
            Ok(Some(Answer::Block(..))) => n_blocks += 1,
            Ok(Some(Answer::DontHave(_))) => n_dont_haves += 1,
            Ok(Some(other)) => panic!("{other:?}"),
            Ok(None) => {}
            Err(_) => break,
        }
    }
    (n_blocks, n_dont_haves)
}

#[tokio::test]
async fn a_peer_beyond_its_budget_is_told_so_and_sent_away_and_may_come_back() {
    let target = Target::with(
        "[bitswap.budget]\nburst_s = 2\npatience_s = 3\n\
         [bitswap.budget.peer]\nentries_per_second = 40\n",
    );
    let cid = target.leaves[0].0;
    let mut greedy = target.connect("127.0.0.1", 1).await.unwrap();
    let (n_blocks, n_dont_haves) = insist(&mut greedy, cid, |_, n| n >= 5).await;
    assert!(
        n_blocks >= 80 && n_dont_haves >= 5,
        "{n_blocks}, {n_dont_haves}"
    );
    target.serves_all("127.0.0.1", 2).await;
    insist(&mut greedy, cid, |_, _| false).await;
    let ended = tokio::time::timeout(Duration::from_secs(5), greedy.link().ended()).await;
    assert!(ended.is_ok(), "it may go on for ever");
    assert_eq!(target.total("over_budget"), 1);
    tokio::time::sleep(Duration::from_secs(2)).await;
    target.serves_all("127.0.0.1", 1).await;
}

#[tokio::test]
async fn beyond_the_bytes_of_an_hour_there_is_silence_if_it_is_configured() {
    let target = Target::with(
        "[bitswap.budget]\nbeyond = \"silence\"\ntrusted = []\n\
         [bitswap.budget.address]\nbytes_per_hour = \"1 MiB\"\n",
    );
    let cid = target.leaves[0].0;
    let mut peers = Vec::new();
    for secret in 1..=2 {
        peers.push(target.connect("127.0.0.7", secret).await.unwrap());
    }
    let (first, _) = insist(&mut peers[0], cid, |n, _| n >= 10).await;
    // The other peer of the same address has what is left of it.
    let start = Instant::now();
    let enough = |_, _| start.elapsed() > Duration::from_secs(3);
    let (second, told) = insist(&mut peers[1], cid, enough).await;
    assert_eq!(told, 0);
    assert!((6..=8).contains(&second), "{first} and {second}");
    let mut other = target.connect("127.0.0.8", 3).await.unwrap();
    assert!(insist(&mut other, cid, |n, _| n >= 10).await.0 == 10);
}

#[tokio::test]
async fn connections_of_an_address_and_of_a_subnet_are_limited() {
    let target = Target::with(
        "[bitswap.connections]\nper_address_max = 2\nper_subnet_max = 5\ntrusted = []\n",
    );
    let mut held = Vec::new();
    for number in 0..12 {
        let address = format!("127.0.1.{}", 1 + number / 4);
        held.extend(target.connect(&address, 10 + number).await.ok());
    }
    // What was refused may look open for a moment: whoever is served is in.
    let mut n_served = 0;
    for client in &mut held {
        n_served += u64::from(client.block(&target.leaves[0].0).await.is_ok());
    }
    assert_eq!(n_served, 5, "two of each address, five of the subnet");
    target.serves_all("127.0.2.1", 9).await;
    drop(held);
    tokio::time::sleep(Duration::from_secs(1)).await;
    target.serves_all("127.0.1.1", 9).await;
}
