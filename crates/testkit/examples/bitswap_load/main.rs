//! Load for a bitswap server: `bitswap_load COMMAND MULTIADDR …`, over whatever the address names.
//!
//! In       `fetch ADDRESS CIDS CLIENTS WINDOW`: the blocks whose CIDs are the lines of a file;
//!          `absent ADDRESS WANTS PEERS`: wants for blocks that nobody has;
//!          `crowd ADDRESS CIDS PEERS STALLED SECONDS`: peers that fetch, beside some that take
//!          nothing of what they asked for; `idle ADDRESS PEERS`: peers that want nothing any more.
//! Out      lines `NAME NUMBER`.
//! Limits   blocks are counted, not hashed: the server's work is measured; cores are shared.
//! Not here what the server used meanwhile, and what that is compared to (`xtask/src/bench`).

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod crowd;
mod fetch;
mod idle;

use std::error::Error;
use std::fs;

use carrack_formats::Cid;
use carrack_testkit::p2p::Dialer;
use rustix::process::{Resource, getrlimit, setrlimit};
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

/// What a server is asked for must not wait for pages that the kernel clears.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

type Result<T = ()> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Connections that are made at a time: a server has a limit of handshakes.
const DIALS_AT_ONCE: usize = 32;

fn main() -> Result {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit)?;
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let runtime = Runtime::new()?;
    match args.as_slice() {
        ["fetch", address, file, clients, window] => {
            let work = fetch::blocks(address, cids(file)?, clients.parse()?, window.parse()?);
            runtime.block_on(work)
        }
        ["absent", address, wants, peers] => {
            runtime.block_on(fetch::absent(address, wants.parse()?, peers.parse()?))
        }
        ["crowd", address, file, peers, stalled, seconds] => {
            let crowd = crowd::Crowd {
                cids: cids(file)?.into(),
                n_peers: peers.parse()?,
                n_stalled: stalled.parse()?,
                seconds: seconds.parse()?,
            };
            runtime.block_on(crowd.run(address))
        }
        ["idle", address, peers] => runtime.block_on(idle::peers(address, peers.parse()?)),
        _ => Err("bitswap_load fetch|absent|crowd|idle ADDRESS …: see the head of main.rs".into()),
    }
}

fn cids(file: &str) -> Result<Vec<Cid>> {
    let text = fs::read_to_string(file)?;
    Ok(text
        .lines()
        .map(str::parse)
        .collect::<std::result::Result<_, _>>()?)
}

/// One line of what came out.
fn tell(name: &str, number: impl std::fmt::Display) {
    println!("{name} {number}");
}

/// Makes `n` connections, some at a time.
async fn dial_many<T: Send + 'static, F>(
    n: usize,
    connect: impl Fn(usize, Dialer) -> F,
) -> Result<Vec<T>>
where
    F: Future<Output = Result<T>> + Send + 'static,
{
    let (mut dials, mut connected) = (JoinSet::new(), Vec::with_capacity(n));
    for number in 0..n {
        if dials.len() >= DIALS_AT_ONCE
            && let Some(dialed) = dials.join_next().await
        {
            connected.push(dialed??);
        }
        dials.spawn(connect(number, Dialer::new()));
    }
    while let Some(dialed) = dials.join_next().await {
        connected.push(dialed??);
    }
    Ok(connected)
}
