//! Many peers at once, of which some ask and then take nothing.
//!
//! In       CIDs of blocks of one size; numbers of peers; seconds.
//! Out      bytes that came to those who take them, in all and to the one who got least; how often
//!          a stalled one was given up, and came back.
//! Limits   half of the stalled ones read neither socket nor streams, the others leave the server's
//!          stream unread. All stall before the first byte is counted, and for as long as it
//!          lasts: who is disconnected comes back and stalls again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use carrack_bitswap::wire::WantKind;
use carrack_formats::Cid;
use carrack_testkit::p2p::bitswap::DIALECTS;
use carrack_testkit::p2p::{BitswapClient, Dialer, Link, Stream, craft};
use tokio::task::JoinSet;

use super::fetch::Client;
use super::{Result, dial_many, tell};

/// Wants of one peer in flight.
const WINDOW: usize = 8;
/// What a stalled peer asks for: as much as a server remembers.
const STALLED_WANTS: usize = 1000;
/// Buffers on the way to a stalled peer fill in this time.
const SETTLE_TIME: Duration = Duration::from_secs(2);
/// A stalled peer that was disconnected comes back in this time.
const RETURN_TIME: Duration = Duration::from_millis(100);
/// Peers that fetch reach their pace in this time.
const WARM_TIME: Duration = Duration::from_secs(1);

/// Who is there, and for how long.
#[derive(Debug, Clone)]
pub(super) struct Crowd {
    pub(super) cids: Arc<[Cid]>,
    /// Those who fetch.
    pub(super) n_peers: usize,
    pub(super) n_stalled: usize,
    pub(super) seconds: f64,
}

/// A peer that stays and does nothing.
#[derive(Debug)]
struct Stalled {
    link: Link,
    _streams: [Stream; 2],
}

impl Crowd {
    pub(super) async fn run(self, address: &str) -> Result {
        let stalled = dial_many(self.n_stalled, |number, dialer| {
            let (crowd, address) = (self.clone(), address.to_owned());
            async move { crowd.stall(number, dialer, &address).await }
        })
        .await?;
        let n_returns = Arc::new(AtomicU64::new(0));
        let mut staying = JoinSet::new();
        for (number, peer) in stalled.into_iter().enumerate() {
            let (crowd, address, n) = (self.clone(), address.to_owned(), Arc::clone(&n_returns));
            staying.spawn(async move { crowd.stay(number, peer, &address, &n).await });
        }
        if self.n_stalled > 0 {
            tokio::time::sleep(SETTLE_TIME).await;
        }
        let connections = dial_many(self.n_peers, |_, dialer| {
            let address = address.to_owned();
            async move { Ok(BitswapClient::connect(&dialer, &address).await?) }
        })
        .await?;
        let counts: Vec<Arc<AtomicU64>> = connections.iter().map(|_| Arc::default()).collect();
        let ends = Arc::new(AtomicBool::new(false));
        let mut peers = JoinSet::new();
        for (number, (connection, count)) in connections.into_iter().zip(&counts).enumerate() {
            let (crowd, count, ends) = (self.clone(), Arc::clone(count), Arc::clone(&ends));
            peers.spawn(async move { crowd.fetch(number, connection, &count, &ends).await });
        }
        tokio::time::sleep(WARM_TIME).await;
        let before = read(&counts);
        tokio::time::sleep(Duration::from_secs_f64(self.seconds)).await;
        let after = read(&counts);
        let n_returns = n_returns.load(Ordering::Relaxed);
        ends.store(true, Ordering::Relaxed);
        while let Some(ended) = peers.join_next().await {
            ended??;
        }
        let shares = after
            .iter()
            .zip(&before)
            .map(|(after, before)| after - before);
        tell("bytes", shares.clone().sum::<u64>());
        tell("least", shares.min().unwrap_or(0));
        tell("returns", n_returns);
        Ok(())
    }

    /// Blocks beginning somewhere else for each peer.
    fn from(&self, number: usize) -> Vec<Cid> {
        let at = number * self.cids.len() / (self.n_peers + self.n_stalled).max(1);
        let (head, tail) = self.cids.split_at(at.min(self.cids.len()));
        [tail, head].concat()
    }

    async fn fetch(
        self,
        number: usize,
        connection: BitswapClient,
        count: &AtomicU64,
        ends: &AtomicBool,
    ) -> Result {
        let (mut client, cids) = (Client::new(connection), self.from(number));
        let how = (WINDOW, WINDOW, WantKind::Block);
        while !ends.load(Ordering::Relaxed) {
            for some in cids.chunks(4 * WINDOW) {
                client
                    .fetch(some, how, |got| {
                        count.fetch_add(got.block_bytes, Ordering::Relaxed);
                    })
                    .await?;
                if ends.load(Ordering::Relaxed) {
                    break;
                }
            }
        }
        Ok(())
    }

    /// Stalls for ever. Who does not read its socket never knows that it was disconnected.
    async fn stay(self, number: usize, mut peer: Stalled, address: &str, n_returns: &AtomicU64) {
        loop {
            tokio::time::sleep(RETURN_TIME).await;
            if !peer.link.is_ended() {
                continue;
            }
            if let Ok(again) = self.clone().stall(number, Dialer::new(), address).await {
                peer = again;
                n_returns.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Asks for a lot and reads nothing of it.
    async fn stall(self, number: usize, dialer: Dialer, address: &str) -> Result<Stalled> {
        let link = dialer.accepting(&DIALECTS).dial(address).await?;
        let (mut wants, _) = link.open(&DIALECTS).await?;
        let mut entries = Vec::new();
        for cid in self.from(number).iter().cycle().take(STALLED_WANTS) {
            craft::push_entry(&mut entries, &cid.to_bytes(), 1, false, false, true);
        }
        wants.send(&craft::want_list(&entries, false)).await?;
        let (_, answers) = link.accept().await?;
        if number.is_multiple_of(2) {
            link.freeze().await?;
        }
        Ok(Stalled {
            link,
            _streams: [wants, answers],
        })
    }
}

fn read(counts: &[Arc<AtomicU64>]) -> Vec<u64> {
    let value = |count: &Arc<AtomicU64>| count.load(Ordering::Relaxed);
    counts.iter().map(value).collect()
}
