//! Clients that ask for much, and take it as fast as it comes.
//!
//! In       CIDs, a number of clients, how many wants each has in flight.
//! Out      what came, and in how many seconds.
//! Limits   a want that is answered by nothing ends the run after the client's patience.

use std::time::{Duration, Instant};

use carrack_bitswap::wire::{Dialect, Entry, Outgoing, WantKind};
use carrack_formats::cid::{RAW, SHA2_256};
use carrack_formats::{Cid, Multihash};
use carrack_testkit::p2p::BitswapClient;
use tokio::task::JoinSet;

use super::{Result, dial_many, tell};

/// Entries of one message, as deployed clients send them.
const ENTRIES_MAX: usize = 256;
/// Wants for absent blocks of one message, and how many are unanswered at a time.
const ABSENT_ENTRIES: usize = 1000;
const ABSENT_WINDOW: usize = 4000;
/// Half of the digest of what is absent: no block has it.
const NOWHERE: [u8; 24] = [0xa5; 24];

/// What one client got.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Got {
    pub(super) blocks: u64,
    pub(super) block_bytes: u64,
    pub(super) dont_haves: u64,
    pub(super) messages: u64,
}

/// A connection and what is unanswered on it.
pub(super) struct Client {
    connection: BitswapClient,
    in_flight: usize,
}

impl Client {
    pub(super) const fn new(connection: BitswapClient) -> Self {
        Self {
            connection,
            in_flight: 0,
        }
    }

    /// Sends one message of wants.
    pub(super) async fn ask(&mut self, cids: &[Cid], want: WantKind) -> Result {
        let mut message = Outgoing::new(Dialect::V1_2);
        for cid in cids {
            let entry = Entry {
                cid: *cid,
                priority: 1,
                cancel: false,
                want,
                send_dont_have: true,
            };
            if !message.push_entry(&entry) {
                return Err("more than a message holds".into());
            }
        }
        let message = message.finish().concat();
        self.connection.wants().send(&message).await?;
        self.in_flight += cids.len();
        Ok(())
    }

    /// Takes one message.
    pub(super) async fn take(&mut self) -> Result<Got> {
        let message = self.connection.message().await?;
        let block_bytes = message.blocks.iter().map(|block| block.data.len() as u64);
        let got = Got {
            blocks: message.blocks.len() as u64,
            block_bytes: block_bytes.sum(),
            dont_haves: message.presences.iter().filter(|it| !it.have).count() as u64,
            messages: 1,
        };
        let answers = message.blocks.len() + message.presences.len();
        self.in_flight = self.in_flight.saturating_sub(answers);
        Ok(got)
    }

    /// Asks for all of `cids` with `window` wants in flight; `each` sees each message's content.
    pub(super) async fn fetch(
        &mut self,
        cids: &[Cid],
        (window, entries_max, want): (usize, usize, WantKind),
        mut each: impl FnMut(Got),
    ) -> Result {
        let mut rest = cids;
        loop {
            // A quarter of the window at a time: requests stay few, and the server has work.
            while self.in_flight <= window - window / 4 && !rest.is_empty() {
                let room = (window - self.in_flight).clamp(1, entries_max);
                let (now, later) = rest.split_at(room.min(rest.len()));
                self.ask(now, want).await?;
                rest = later;
            }
            if self.in_flight == 0 {
                return Ok(());
            }
            each(self.take().await?);
        }
    }
}

/// Fetches each of `cids` once, with some clients that share them.
pub(super) async fn blocks(
    address: &str,
    cids: Vec<Cid>,
    n_clients: usize,
    window: usize,
) -> Result {
    let share = cids.len().div_ceil(n_clients.max(1)).max(1);
    let shares = cids.chunks(share).map(<[Cid]>::to_vec).collect();
    at_once(address, shares, (window, ENTRIES_MAX, WantKind::Block)).await
}

/// Asks `n_wants` times for something that nobody has, each time another thing.
pub(super) async fn absent(address: &str, n_wants: usize, n_peers: usize) -> Result {
    let share = n_wants.div_ceil(n_peers.max(1)).max(1);
    let all: Vec<usize> = (0..n_wants).collect();
    let shares = all
        .chunks(share)
        .map(|numbers| numbers.iter().map(|number| nowhere(*number)).collect())
        .collect::<Result<_>>()?;
    at_once(
        address,
        shares,
        (ABSENT_WINDOW, ABSENT_ENTRIES, WantKind::Have),
    )
    .await
}

/// The CID of a block that does not exist.
pub(super) fn nowhere(number: usize) -> Result<Cid> {
    // Spread, as digests are.
    let spread = (number as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let digest = [spread.to_le_bytes().as_slice(), &NOWHERE].concat();
    Ok(Cid::new_v1(RAW, Multihash::wrap(SHA2_256, &digest)?))
}

async fn at_once(address: &str, shares: Vec<Vec<Cid>>, how: (usize, usize, WantKind)) -> Result {
    let connect = |_, dialer| {
        let address = address.to_owned();
        async move { Ok(BitswapClient::connect(&dialer, &address).await?) }
    };
    let connections = dial_many(shares.len(), connect).await?;
    let (start, mut clients) = (Instant::now(), JoinSet::new());
    for (connection, cids) in connections.into_iter().zip(shares) {
        clients.spawn(async move {
            let (mut client, mut sum) = (Client::new(connection), Got::default());
            client.fetch(&cids, how, |got| sum = sum.plus(got)).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>((sum, client))
        });
    }
    let (mut sum, mut done) = (Got::default(), Vec::new());
    while let Some(ended) = clients.join_next().await {
        let (got, client) = ended??;
        sum = sum.plus(got);
        done.push(client); // Goodbyes are not what is measured.
    }
    say(start.elapsed(), sum);
    Ok(())
}

impl Got {
    pub(super) const fn plus(self, more: Self) -> Self {
        Self {
            blocks: self.blocks + more.blocks,
            block_bytes: self.block_bytes + more.block_bytes,
            dont_haves: self.dont_haves + more.dont_haves,
            messages: self.messages + more.messages,
        }
    }
}

fn say(elapsed: Duration, got: Got) {
    tell("seconds", elapsed.as_secs_f64());
    tell("blocks", got.blocks);
    tell("bytes", got.block_bytes);
    tell("dont_haves", got.dont_haves);
    tell("messages", got.messages);
}
