//! HTTP and bitswap at once, of the same blocks: the bucket behind them is read once.
//!
//! In       an object of 24 MiB in a bucket whose every answer takes a moment.
//! Out      a failed test when a byte is wrong, or is read twice.
//! Not here one protocol alone (`s3_fetch`, `bitswap`).

use std::thread;

use carrack_formats::Cid;
use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::{Answer, Fetch};
use carrack_testkit::p2p::{BitswapClient, Dialer};
use carrack_testkit::proxy::Conduct;

use crate::support::car::raw;
use crate::support::s3::Bucket;
use crate::support::{Carrack, data};

const LEAF_LEN: usize = 1 << 20;
const LEN: usize = 24 * LEAF_LEN + 1234;
/// Clients of each protocol.
const CLIENTS: usize = 4;

#[test]
fn a_block_that_both_protocols_want_is_read_once() {
    let bucket = Bucket::new();
    let bytes = data::Seeded::new(71).bytes(LEN);
    bucket.put("set/file", &bytes);
    let carrack = Carrack::reaching(&bucket);
    let url = Bucket::url("set");
    carrack.run(&["add", "-Q", url.as_str()]).ok();
    let blocks: Vec<Cid> = bytes.chunks(LEAF_LEN).map(raw).collect();
    let server = carrack.serve_peers::<&str>(&[]);
    let tcp = &carrack.p2p_address(Transport::Tcp);
    let before = bucket.bytes_read("set/file");
    bucket.proxy.set(Conduct::far());
    thread::scope(|scope| {
        for number in 0..CLIENTS {
            let (order, server, bytes) = (shuffled(&blocks, number), &server, &bytes);
            scope.spawn(move || {
                for (index, cid) in order {
                    let path = format!("/ipfs/{}?format=raw", cid);
                    assert!(server.get(&path).ok().body == leaf(bytes, index), "{index}");
                }
            });
            let order = shuffled(&blocks, CLIENTS + number);
            scope.spawn(move || {
                let runtime = tokio::runtime::Runtime::new().unwrap();
                runtime.block_on(fetch(tcp, order));
            });
        }
    });
    assert_eq!(bucket.bytes_read("set/file") - before, LEN as u64);
}

async fn fetch(address: &str, order: Vec<(usize, Cid)>) {
    let mut client = BitswapClient::connect(&Dialer::new(), address)
        .await
        .unwrap();
    let how = Fetch {
        window: 8,
        ..Fetch::default()
    };
    let mut n_blocks = 0;
    let each = |answer| match answer {
        // The client has hashed it.
        Answer::Block(..) => n_blocks += 1,
        other => panic!("{other:?}"),
    };
    let n_wanted = order.len();
    client
        .fetch(order.into_iter().map(|(_, cid)| cid), how, each)
        .await
        .unwrap();
    assert_eq!(n_blocks, n_wanted);
}

fn leaf(bytes: &[u8], index: usize) -> &[u8] {
    bytes.chunks(LEAF_LEN).nth(index).unwrap()
}

/// The blocks in an order of each client's own.
fn shuffled(blocks: &[Cid], seed: usize) -> Vec<(usize, Cid)> {
    let mut order: Vec<_> = blocks.iter().copied().enumerate().collect();
    let mut random = data::Seeded::new(seed as u64 + 100);
    for index in (1..order.len()).rev() {
        order.swap(index, random.next() as usize % (index + 1));
    }
    order
}
