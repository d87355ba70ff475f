//! `carrack peers`.

use serde_json::json;

use crate::cli::Env;
use crate::cli::output::bytes;
use crate::error::{Error, ErrorKind, Result};

/// Lists the peers that are connected, who got most first, and what was done in all.
///
/// # Errors
/// `Unavailable` if no node serves this store, or it serves without peers.
pub fn run(env: &mut Env<'_>) -> Result<()> {
    let Some(p2p) = env.p2p else {
        let what = "no node serves this store to peers: start one with `carrack serve`";
        return Err(Error::new(ErrorKind::Unavailable, what));
    };
    let mut peers = p2p.server.report();
    peers.sort_by(|a, b| b.bytes_sent.cmp(&a.bytes_sent).then(a.peer.cmp(&b.peer)));
    for peer in &peers {
        let addresses: Vec<String> = peer.addresses.iter().map(ToString::to_string).collect();
        if env.out.json {
            env.out.object(&json!({
                "peer": peer.peer,
                "addresses": addresses,
                "connections": peer.connections,
                "connected_s": peer.connected_s,
                "wants": peer.wants,
                "bytes_outstanding": peer.bytes_outstanding,
                "entries": peer.entries,
                "entries_refused": peer.entries_refused,
                "blocks_sent": peer.blocks_sent,
                "bytes_sent": peer.bytes_sent,
                "haves": peer.haves,
                "dont_haves": peer.dont_haves,
            }))?;
            continue;
        }
        env.out.line(&format!(
            "{}  {}  {} s  {} wants  {} blocks, {} sent",
            peer.peer,
            addresses.join(","),
            peer.connected_s,
            peer.wants,
            peer.blocks_sent,
            bytes(peer.bytes_sent)
        ))?;
    }
    let (totals, n_waiting) = p2p.server.totals();
    if env.out.json {
        return env.out.object(&json!({
            "peers": peers.len(),
            "wants_waiting": n_waiting,
            "bytes_in_flight": p2p.server.bytes_in_flight(),
            "messages_in": totals.messages_in.get(),
            "messages_out": totals.messages_out.get(),
            "entries": totals.entries.get(),
            "entries_ignored": totals.entries_ignored.get(),
            "entries_refused": totals.entries_refused.get(),
            "wants_dropped": totals.wants_dropped.get(),
            "blocks_sent": totals.blocks_sent.get(),
            "blocks_in_vain": totals.blocks_in_vain.get(),
            "bytes_sent": totals.bytes_sent.get(),
            "haves": totals.haves.get(),
            "dont_haves": totals.dont_haves.get(),
            "blocks_unwanted": totals.blocks_unwanted.get(),
            "streams_refused": totals.streams_refused.get(),
            "malformed": totals.malformed.get(),
            "stalled": totals.stalled.get(),
            "over_budget": totals.over_budget.get(),
        }));
    }
    env.out.note(&format!(
        "{} peers; in all {} blocks, {} sent; {} wants wait for what is not here",
        peers.len(),
        totals.blocks_sent.get(),
        bytes(totals.bytes_sent.get()),
        n_waiting
    ));
    Ok(())
}
