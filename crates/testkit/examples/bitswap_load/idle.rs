//! Peers that have said who they are, have asked for one thing and want nothing any more.
//!
//! In       a number of peers.
//! Out      the line `ready 1`; then they stay until standard input ends.
//! Not here what the server keeps for them.

use std::io::Read;

use carrack_testkit::p2p::BitswapClient;
use carrack_testkit::p2p::bitswap::{Answer, Ask};

use super::fetch::nowhere;
use super::{Result, dial_many, tell};

const IDENTIFY: &str = "/ipfs/id/1.0.0";
/// Longest message of identify.
const IDENTIFY_LEN_MAX: usize = 64 << 10;

pub(super) async fn peers(address: &str, n_peers: usize) -> Result {
    let peers = dial_many(n_peers, |number, dialer| {
        let address = address.to_owned();
        async move {
            let mut client = BitswapClient::connect(&dialer, &address).await?;
            let (mut stream, _) = client.link().open(&[IDENTIFY]).await?;
            stream.receive_frame(IDENTIFY_LEN_MAX).await?;
            let cid = nowhere(number)?;
            client.ask(&[cid], Ask::Have, true, false).await?;
            match client.answer().await? {
                Answer::DontHave(of) if of == cid => {}
                other => return Err(format!("an absent block: {other:?}").into()),
            }
            client.ask(&[cid], Ask::Cancel, false, false).await?;
            Ok(client)
        }
    })
    .await?;
    tell("ready", 1);
    let until_end = || std::io::stdin().read_to_end(&mut Vec::new());
    tokio::task::spawn_blocking(until_end).await??;
    drop(peers);
    Ok(())
}
