//! What each dialect of bitswap hears from `serve`, over real libp2p.
//!
//! In       files that are served in place; `testkit`'s client, driven by hand.
//! Out      a failed test when a word is missing, or one that the dialect does not have is said.
//! Limits   loopback; no other program.
//! Not here kubo and Helia (`peers::bitswap`), hostile peers.

use std::time::Duration;

use bytes::Bytes;
use carrack_bitswap::wire::Message;
use carrack_formats::{Cid, cid};
use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::{Answer, Ask, DIALECTS, Fetch};
use carrack_testkit::p2p::{BitswapClient, Dialer, Security};

use crate::support::car::{absent, raw};
use crate::support::{Carrack, Server, data};

const MIB: usize = 1 << 20;
const SILENCE: Duration = Duration::from_millis(300);

struct Served {
    carrack: Carrack,
    _server: Server,
    root: Cid,
    leaf: (Cid, Bytes),
    small: (Cid, Bytes),
}

/// A file of three leaves, and one that is a single small block.
fn served() -> Served {
    let carrack = Carrack::new();
    let (large, small) = (carrack.path("large"), carrack.path("small"));
    data::file(&large, 51, 2 * MIB as u64 + 77);
    data::file(&small, 52, 900);
    let root = cid::parse_text(&carrack.add_one(&large)).unwrap();
    let small_cid = cid::parse_text(&carrack.add_one(&small)).unwrap();
    let large = Bytes::from(std::fs::read(&large).unwrap());
    let leaf = large.slice(MIB..2 * MIB);
    let server = carrack.serve_peers::<&str>(&[]);
    Served {
        _server: server,
        root,
        leaf: (raw(&leaf), leaf),
        small: (small_cid, std::fs::read(&small).unwrap().into()),
        carrack,
    }
}

impl Served {
    async fn connect(&self, dialects: &[&str]) -> BitswapClient {
        BitswapClient::connect_as(
            &Dialer::new(),
            &self.carrack.p2p_address(Transport::Tcp),
            dialects,
        )
        .await
        .unwrap()
    }
}

async fn said(client: &mut BitswapClient) -> Message {
    let message = client.message().await.unwrap();
    assert_eq!(client.counts().without_wantlist, 0);
    message
}

/// Blocks come with the front of their CIDs, and no word of presence.
#[tokio::test]
async fn a_1_1_0_client_gets_blocks_with_prefixes() {
    let served = served();
    let mut client = served.connect(&["/ipfs/bitswap/1.1.0"]).await;
    let wants = [served.leaf.0, absent(1)];
    client.ask(&wants, Ask::Block, true, false).await.unwrap();
    let message = said(&mut client).await;
    assert!(message.presences.is_empty() && message.pending_bytes == 0);
    let [block] = message.blocks.as_slice() else {
        panic!("{} blocks", message.blocks.len());
    };
    assert!(block.prefix.is_some() && block.data == served.leaf.1);
    block.verify(&served.leaf.0).unwrap();
    assert_eq!(client.answer_or_silence(SILENCE).await.unwrap(), None);
}

/// Blocks come bare, also those of other codecs.
#[tokio::test]
async fn a_client_of_1_0_0_or_before_gets_bare_blocks() {
    let served = served();
    for dialect in ["/ipfs/bitswap/1.0.0", "/ipfs/bitswap"] {
        let mut client = served.connect(&[dialect]).await;
        for cid in [served.leaf.0, served.root] {
            client.ask(&[cid], Ask::Block, true, false).await.unwrap();
            let message = said(&mut client).await;
            assert!(message.presences.is_empty(), "{dialect}");
            let [block] = message.blocks.as_slice() else {
                panic!("{dialect}: {} blocks", message.blocks.len());
            };
            assert!(block.prefix.is_none(), "{dialect}");
            block.verify(&cid).unwrap();
        }
        client
            .ask(&[absent(2)], Ask::Block, true, false)
            .await
            .unwrap();
        assert_eq!(client.answer_or_silence(SILENCE).await.unwrap(), None);
    }
}

/// Of several dialects on one connection, each is answered in a stream that it can read.
#[tokio::test]
async fn the_newest_dialect_that_both_speak_is_spoken() {
    let served = served();
    for n_first in 0..DIALECTS.len() {
        let mut client = served.connect(&DIALECTS[n_first..]).await;
        assert_eq!(client.dialect(), DIALECTS[n_first]);
        assert_eq!(client.block(&served.small.0).await.unwrap(), served.small.1);
    }
}

#[tokio::test]
async fn a_1_2_0_client_hears_have_dont_have_and_small_blocks() {
    let served = served();
    let mut client = served.connect(&DIALECTS).await;
    let asked = [served.leaf.0, absent(3), served.small.0];
    client.ask(&asked, Ask::Have, true, false).await.unwrap();
    let mut answers = Vec::new();
    for _ in asked {
        answers.push(client.answer().await.unwrap());
    }
    for answer in [
        Answer::Have(served.leaf.0),
        Answer::DontHave(absent(3)),
        Answer::Block(served.small.0, served.small.1.clone()),
    ] {
        assert!(answers.contains(&answer), "no {answer:?}");
    }
    // Without being asked to, nothing is said of what is absent; identity is nobody's business.
    let silent = [absent(4), cid::empty_identity()];
    client.ask(&silent, Ask::Block, false, false).await.unwrap();
    assert_eq!(client.answer_or_silence(SILENCE).await.unwrap(), None);
    assert_eq!(client.block(&served.leaf.0).await.unwrap(), served.leaf.1);
    assert_eq!(client.counts().unwanted, 0);
}

/// HAVE is a promise: not of a file that is gone, nor of one that is not what it was.
#[tokio::test]
async fn have_is_said_of_what_can_be_sent_and_nothing_else() {
    let served = served();
    let (gone, changed) = (served.carrack.path("gone"), served.carrack.path("changed"));
    let mut cids = Vec::new();
    for (file, seed) in [(&gone, 61), (&changed, 62)] {
        data::file(file, seed, 70_000);
        cids.push(cid::parse_text(&served.carrack.add_one(file)).unwrap());
    }
    let mut client = served.connect(&DIALECTS).await;
    client.ask(&cids, Ask::Have, true, false).await.unwrap();
    for _ in &cids {
        assert!(matches!(client.answer().await.unwrap(), Answer::Have(_)));
    }
    std::fs::remove_file(gone).unwrap();
    data::file(&changed, 63, 69_000);
    for ask in [Ask::Have, Ask::Block, Ask::Have] {
        client.ask(&cids, ask, true, false).await.unwrap();
        for _ in &cids {
            let answer = client.answer().await.unwrap();
            assert!(matches!(answer, Answer::DontHave(_)), "{ask:?}: {answer:?}");
        }
    }
}

/// A want outlives its message; a cancel and a full want-list end it.
#[tokio::test]
async fn wants_are_answered_later_unless_they_were_taken_back() {
    let served = served();
    let contents: Vec<Vec<u8>> = (0..3)
        .map(|n| data::Seeded::new(60 + n).bytes(5000))
        .collect();
    let cids: Vec<Cid> = contents.iter().map(|bytes| raw(bytes)).collect();
    let mut kept = served.connect(&DIALECTS).await;
    let mut cancelled = served.connect(&DIALECTS).await;
    let mut replaced = served.connect(&DIALECTS).await;
    for client in [&mut kept, &mut cancelled, &mut replaced] {
        client.ask(&cids, Ask::Block, false, false).await.unwrap();
    }
    cancelled
        .ask(&cids[1..], Ask::Cancel, false, false)
        .await
        .unwrap();
    replaced
        .ask(&cids[2..], Ask::Block, false, true)
        .await
        .unwrap();
    // The server read what came before a want that it answers.
    for client in [&mut kept, &mut cancelled, &mut replaced] {
        client.block(&served.small.0).await.unwrap();
    }
    for (number, bytes) in contents.iter().enumerate() {
        let file = served.carrack.path(&format!("late-{number}"));
        std::fs::write(&file, bytes).unwrap();
        served.carrack.add_one(&file);
    }
    let mut blocks = Vec::new();
    for _ in &cids {
        let Answer::Block(cid, data) = kept.answer().await.unwrap() else {
            panic!("no block");
        };
        assert!(contents.iter().any(|bytes| data == bytes));
        blocks.push(cid);
    }
    blocks.sort_by_key(|cid| cids.iter().position(|wanted| wanted == cid));
    assert_eq!(blocks, cids);
    let first = cancelled.answer().await.unwrap();
    assert_eq!(first, Answer::Block(cids[0], contents[0].clone().into()));
    let last = replaced.answer().await.unwrap();
    assert_eq!(last, Answer::Block(cids[2], contents[2].clone().into()));
    for client in [&mut cancelled, &mut replaced] {
        assert_eq!(client.answer_or_silence(SILENCE).await.unwrap(), None);
        assert_eq!(client.counts().unwanted, 0);
    }
}

#[tokio::test]
async fn every_transport_and_its_security_carry_the_same() {
    let served = served();
    let tls = Dialer::new().with_security(Security::Tls);
    for (dialer, transport) in [
        (&Dialer::new(), Transport::Tcp),
        (&tls, Transport::Tcp),
        (&tls, Transport::Quic),
        (&Dialer::new(), Transport::WebSocket),
        (&tls, Transport::WebSocket),
    ] {
        let address = served.carrack.p2p_address(transport);
        let mut client = BitswapClient::connect(dialer, &address).await.unwrap();
        assert_eq!(client.link().peer_id(), address.rsplit('/').next().unwrap());
        let cids = [served.root, served.leaf.0, served.small.0];
        let counts = client.fetch(cids, Fetch::default(), drop).await.unwrap();
        assert_eq!((counts.blocks, counts.unwanted), (3, 0), "{transport:?}");
        let absent = (100..5100).map(absent);
        let counts = client.fetch(absent, Fetch::default(), drop).await.unwrap();
        assert_eq!(
            (counts.dont_haves, counts.blocks),
            (5000, 0),
            "{transport:?}"
        );
        client.close().await.unwrap();
    }
    // Whoever expects somebody else does not get through.
    let address = served.carrack.p2p_address(Transport::Tcp);
    let (front, _) = address.rsplit_once('/').unwrap();
    let stranger = format!("{front}/{}", Dialer::new().peer_id());
    assert!(Dialer::new().dial(&stranger).await.is_err());
}
