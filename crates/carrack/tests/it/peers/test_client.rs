//! The client of `testkit` proved on kubo, before carrack is measured with it.
//!
//! In       a file that kubo holds.
//! Out      a failed test when a block that it serves does not reach us, or a word of ours is not
//!          understood.
//! Not here carrack: hostile peers and benches use the same client against it.

use std::collections::HashSet;
use std::time::Duration;

use carrack_formats::{Cid, cid};
use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::{Answer, Ask, DIALECTS, Fetch};
use carrack_testkit::p2p::{BitswapClient, Dialer, Security};
use tempfile::TempDir;

use super::daemon::Daemon;
use super::helia;
use super::kubo::Kubo;
use crate::support::car::absent;
use crate::support::data;

const FILE_LEN: u64 = (9 << 20) + 77;

/// A daemon, and the CIDs of a file of [`FILE_LEN`] bytes: the root first, then its leaves.
fn served() -> (Daemon, Vec<Cid>) {
    let dir = TempDir::new().unwrap();
    let file = dir.path().join("file");
    data::file(&file, 11, FILE_LEN);
    let kubo = Kubo::new("unixfs-v1-2025");
    let root = kubo.add(&file);
    let refs = kubo.run(&["refs", "--offline", &root]);
    let cids = std::iter::once(root.as_str()).chain(refs.lines());
    let cids = cids.map(|text| cid::parse_text(text).unwrap()).collect();
    (Daemon::start(kubo), cids)
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_fetches_from_kubo_by_every_transport() {
    let (daemon, cids) = served();
    let noise = Dialer::new();
    let tls = Dialer::new().with_security(Security::Tls);
    let local = Dialer::new().from_address([127, 0, 0, 9].into());
    for (transport, dialer) in [
        (Transport::Tcp, &noise),
        (Transport::Tcp, &tls),
        (Transport::Tcp, &local),
        (Transport::Quic, &noise),
        (Transport::Quic, &local),
        (Transport::WebSocket, &noise),
        (Transport::WebSocket, &local),
    ] {
        let address = daemon.address(transport);
        let mut client = BitswapClient::connect(dialer, &address).await.unwrap();
        assert_eq!(client.dialect(), DIALECTS[0], "{transport:?}");
        let peers = daemon.kubo.run(&["swarm", "peers", "--identify"]);
        assert!(peers.contains(&dialer.peer_id()), "{peers}");
        let root = client.block(&cids[0]).await.unwrap();
        assert_eq!(root, daemon.block(&cids[0].to_string()), "{transport:?}");
        let mut leaves = HashSet::new();
        let counts = client
            .fetch(cids[1..].iter().copied(), Fetch::default(), |answer| {
                if let Answer::Block(cid, _) = answer {
                    leaves.insert(cid);
                }
            })
            .await
            .unwrap();
        assert_eq!(leaves, cids[1..].iter().copied().collect());
        assert_eq!(counts.block_bytes, FILE_LEN, "{transport:?} {counts:?}");
        client.close().await.unwrap();
    }
    let peers = daemon.kubo.run(&["swarm", "peers"]);
    assert!(peers.is_empty(), "{peers}");
}

/// The other client that carrack is tried with, likewise.
#[test]
fn helia_fetches_from_kubo_by_every_transport() {
    let (daemon, cids) = served();
    let (root, leaf) = (cids[0].to_string(), cids[2].to_string());
    let file = daemon.kubo.run_bytes(&["cat", &root]);
    assert_eq!(file.len() as u64, FILE_LEN);
    for transport in Transport::ALL {
        let fetched = helia::fetch(&daemon.address(transport), &[&leaf], &[&root]);
        assert!(fetched.block(&leaf) == daemon.block(&leaf), "{transport:?}");
        assert!(fetched.file(&root) == file, "{transport:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn our_client_and_kubo_understand_each_other() {
    let (daemon, cids) = served();
    let address = daemon.address(Transport::Tcp);
    let dialer = Dialer::new();
    for dialect in DIALECTS {
        let mut client = BitswapClient::connect_as(&dialer, &address, &[dialect])
            .await
            .unwrap();
        assert_eq!(client.dialect(), dialect);
        let leaf = client.block(&cids[3]).await.unwrap();
        assert_eq!(leaf, daemon.block(&cids[3].to_string()), "{dialect}");
        client.close().await.unwrap();
    }
    let mut client = BitswapClient::connect(&dialer, &address).await.unwrap();
    let have = [cids[1], absent(1)];
    client.ask(&have, Ask::Have, true, false).await.unwrap();
    let mut answers = [
        client.answer().await.unwrap(),
        client.answer().await.unwrap(),
    ];
    answers.sort_by_key(|answer| matches!(answer, Answer::DontHave(_)));
    assert_eq!(answers, [Answer::Have(have[0]), Answer::DontHave(have[1])]);
    let no = client.block(&absent(2)).await.unwrap_err();
    assert_eq!(no.kind(), std::io::ErrorKind::NotFound);
    client
        .ask(&[absent(3)], Ask::Block, false, false)
        .await
        .unwrap();
    let silence = Duration::from_millis(300);
    assert_eq!(client.answer_or_silence(silence).await.unwrap(), None);
    let wants = 20_000;
    let counts = client
        .fetch(
            (10..10 + wants).map(absent),
            Fetch {
                window: 512,
                ..Fetch::default()
            },
            drop,
        )
        .await
        .unwrap();
    assert_eq!((counts.dont_haves, counts.blocks), (wants, 0));
    // A want is answered when the block comes to be.
    let late = data::Seeded::new(99).bytes(1000);
    let dir = TempDir::new().unwrap();
    std::fs::write(dir.path().join("late"), &late).unwrap();
    let path = dir.path().join("late");
    let cid = daemon.kubo.cid_of(&path, &[]);
    let cid = cid::parse_text(&cid).unwrap();
    client.ask(&[cid], Ask::Block, false, false).await.unwrap();
    assert_eq!(client.answer_or_silence(silence).await.unwrap(), None);
    daemon.kubo.run_with(&["add", "--quieter"], &path);
    assert_eq!(
        client.answer().await.unwrap(),
        Answer::Block(cid, late.into())
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_bytes_of_our_streams_are_our_own() {
    let (daemon, cids) = served();
    let address = daemon.address(Transport::Tcp);
    let dialer = Dialer::new().accepting(&[DIALECTS[0]]);
    let link = dialer.dial(&address).await.unwrap();
    assert!(address.ends_with(&link.peer_id()));
    // A protocol that is none.
    let no = link.open(&["/not/a/protocol"]).await.unwrap_err();
    assert!(!link.is_ended(), "{no}");
    // The length of a message is a lie: kubo resets the stream, the connection stays.
    let (mut stream, _) = link.open(&DIALECTS).await.unwrap();
    stream
        .send(&[0xff, 0xff, 0xff, 0xff, 0x7f, 0])
        .await
        .unwrap();
    assert!(stream.receive(1).await.is_err());
    // Half a want, then the other half, by hand.
    use carrack_testkit::p2p::craft;
    let mut list = Vec::new();
    craft::push_entry(&mut list, &cids[0].to_bytes(), 1, false, false, true);
    let message = craft::want_list(&list, false);
    let (mut stream, name) = link.open(&DIALECTS).await.unwrap();
    assert_eq!(name, DIALECTS[0]);
    let (front, back) = message.split_at(message.len() / 2);
    stream.send(front).await.unwrap();
    tokio::time::sleep(Duration::from_millis(50)).await;
    stream.send(back).await.unwrap();
    let (protocol, mut inbound) = link.accept().await.unwrap();
    assert_eq!(protocol, DIALECTS[0]);
    let (frame, _) = inbound.receive_frame(1 << 22).await.unwrap().unwrap();
    let root = daemon.block(&cids[0].to_string());
    assert!(frame.windows(root.len()).any(|window| window == root));
    // A frozen link takes nothing; thawed, it goes on.
    link.freeze().await.unwrap();
    let quick = tokio::time::timeout(Duration::from_millis(200), link.open(&DIALECTS));
    assert!(quick.await.is_err());
    link.thaw().await.unwrap();
    link.open(&DIALECTS).await.unwrap();
    // Under the muxer: a frame of yamux of a version that is none ends the connection.
    let mut under = dialer.dial_unmuxed(&address).await.unwrap();
    under.send(&[9; 12]).await.unwrap();
    let mut end = Vec::new();
    let read = futures_util::AsyncReadExt::read_to_end(&mut under, &mut end);
    let read = tokio::time::timeout(dialer.patience(), read).await;
    assert!(read.is_ok(), "still connected");
}
