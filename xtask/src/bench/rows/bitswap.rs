//! Rows about bitswap: carrack and kubo as servers of the same client.
//!
//! In       the big file, one cut into blocks of 4 KiB, the tree; servers on loopback.
//! Out      rates, CPU of the servers, fairness beside stalled peers, memory of idle ones.
//! Limits   the client counts blocks and hashes none, so that the cores are the server's.
//! Not here kubo and Helia as clients (`pulls`), the client itself (`carrack-testkit`, the example
//!          `bitswap_load`).

pub(in crate::bench) mod pulls;
pub(super) mod servers;

use std::path::{Path, PathBuf};
use std::time::Instant;

use carrack_testkit::Transport;

use self::servers::{Crowd, Server};
use super::{added, stored_in_kubo};
use crate::bench::process::Daemon;
use crate::bench::systems::median;
use crate::bench::table::Line;
use crate::bench::table::Target::{AtLeast, AtMost, Shown};
use crate::bench::{Bench, load};
use crate::shell::Result;

/// Wants that a client has in flight.
pub(super) const WINDOW_1M: usize = 64;
pub(super) const WINDOW_4K: usize = 1000;
/// Peers that share the wants for absent blocks: one alone has a budget.
pub(super) const ABSENT_PEERS: usize = 4;
/// Wants for absent blocks that a core must answer in a second.
const ABSENT_PER_SECOND: f64 = 500_000.0;
/// What an idle peer may take.
const IDLE_KIB_MAX: f64 = 64.0;
/// How long peers fetch beside stalled ones, who are disconnected ten seconds after they stall.
const CROWD_SECONDS: u64 = 4;
/// Peers that come and go before the memory of idle ones is measured.
const WARM_PEERS: usize = 64;

/// What a client got of a server.
#[derive(Debug, Clone, Copy)]
pub(super) struct Served {
    blocks_per_second: f64,
    /// MB/s.
    rate: f64,
    /// CPU seconds of the server for 10^9 bytes.
    cpu_per_gb: f64,
    /// CPU microseconds of the server for a block.
    pub(super) cpu_us: f64,
}

/// The best rate and the median of CPU of some runs of one client over TCP. The servers come in
/// turns, so that other work on the machine falls on each.
fn served<const N: usize>(
    bench: &Bench,
    servers: [&Server; N],
    cids: &Path,
    window: usize,
) -> Result<[Served; N]> {
    let mut runs = [const { Vec::new() }; N];
    for _ in 0..bench.sizes.n_runs {
        for (runs, server) in runs.iter_mut().zip(servers) {
            runs.push(run(server, cids, window)?);
        }
    }
    Ok(runs.map(|runs| {
        let of = |figure: fn(&Served) -> f64| runs.iter().map(figure).collect::<Vec<f64>>();
        let most = |figures: Vec<f64>| figures.into_iter().fold(0.0, f64::max);
        Served {
            blocks_per_second: most(of(|run| run.blocks_per_second)),
            rate: most(of(|run| run.rate)),
            cpu_per_gb: median(of(|run| run.cpu_per_gb)),
            cpu_us: median(of(|run| run.cpu_us)),
        }
    }))
}

/// One client that fetches all of a list over TCP.
pub(super) fn run(server: &Server, cids: &Path, window: usize) -> Result<Served> {
    let cpu = server.daemon.cpu_seconds();
    let got = server.fetch(Transport::Tcp, cids, 1, window)?;
    let cpu = server.daemon.cpu_seconds() - cpu;
    let [seconds, blocks, bytes] = got.figures(["seconds", "blocks", "bytes"])?;
    Ok(Served {
        blocks_per_second: blocks / seconds,
        rate: bytes / seconds / 1e6,
        cpu_per_gb: cpu / bytes * 1e9,
        cpu_us: cpu / blocks * 1e6,
    })
}

/// A list of the leaves of a file.
pub(super) fn leaves(bench: &Bench, file: &Path, block_len: usize) -> Result<PathBuf> {
    let cids = load::leaves(file, block_len, |_, _| Ok(()))?;
    load::write_paths(&bench.path(&format!("cids-{block_len}")), cids.into_iter())
}

pub(in crate::bench) fn blocks_1m(bench: &Bench) -> Result<Vec<Line>> {
    let file = bench.big_file()?;
    let cids = leaves(bench, &file, 1 << 20)?;
    let root = added(bench, "store", &[], &file)?;
    stored_in_kubo(bench, &[], &file)?;
    let (carrack, kubo) = (
        Server::carrack(bench, "store")?,
        Server::kubo(bench, "repo")?,
    );
    let car = car_rate(bench, &carrack.daemon, &root)?;
    let [ours, kubo] = served(bench, [&carrack, &kubo], &cids, WINDOW_1M)?;
    let work = "bitswap, 1 MiB blocks over TCP";
    Ok(vec![
        Line::ratio(
            work,
            "MB/s",
            ours.rate,
            ("a CAR over HTTP", car),
            AtLeast(0.4),
        ),
        Line::ratio(
            &format!("{work}, CPU"),
            "s/GB",
            ours.cpu_per_gb,
            ("kubo", kubo.cpu_per_gb),
            AtMost(0.8),
        ),
        Line::ratio(work, "MB/s", ours.rate, ("kubo", kubo.rate), Shown),
    ])
}

/// The best rate of some runs of one client, in MB/s.
fn car_rate(bench: &Bench, server: &Daemon, root: &str) -> Result<f64> {
    let path = format!("/ipfs/{root}?format=car&dag-scope=all");
    let mut rate = 0.0_f64;
    for _ in 0..bench.sizes.n_runs {
        let start = Instant::now();
        let len = load::drain(&server.url, &path)? as f64;
        rate = rate.max(len / start.elapsed().as_secs_f64() / 1e6);
    }
    Ok(rate)
}

pub(in crate::bench) fn blocks_4k(bench: &Bench) -> Result<Vec<Line>> {
    let file = bench.path("blocks-4k-bitswap");
    load::file(&file, 5, bench.sizes.small_blocks_len)?;
    let cids = leaves(bench, &file, 4096)?;
    let chunker = ["--chunker", "size-4096"];
    added(bench, "store", &chunker, &file)?;
    stored_in_kubo(bench, &chunker, &file)?;
    let (carrack, kubo) = (
        Server::carrack(bench, "store")?,
        Server::kubo(bench, "repo")?,
    );
    let [ours, kubo] = served(bench, [&carrack, &kubo], &cids, WINDOW_4K)?;
    let work = "bitswap, 4 KiB blocks over TCP";
    Ok(vec![
        Line::ratio(
            work,
            "/s",
            ours.blocks_per_second,
            ("kubo", kubo.blocks_per_second),
            AtLeast(4.0),
        ),
        Line::ratio(
            &format!("{work}, CPU"),
            "us",
            ours.cpu_us,
            ("kubo", kubo.cpu_us),
            AtMost(0.25),
        ),
    ])
}

pub(in crate::bench) fn stalled(bench: &Bench) -> Result<Vec<Line>> {
    const BLOCK_LEN: usize = 256 << 10;
    let file = bench.big_file()?;
    let cids = leaves(bench, &file, BLOCK_LEN)?;
    added(bench, "store", &["--chunker", "size-262144"], &file)?;
    let server = Server::carrack(bench, "store")?;
    let n_peers = bench.sizes.n_peers;
    let n_stalled = n_peers / 4;
    let crowd = |n_stalled| {
        server.crowd(&Crowd {
            cids: &cids,
            n_peers: n_peers - n_peers / 4,
            n_stalled,
            seconds: CROWD_SECONDS,
        })
    };
    // In turns, so that other work on the machine falls on both.
    let (mut alone, mut beside, mut least) = (0.0_f64, 0.0_f64, f64::MAX);
    for _ in 0..bench.sizes.n_runs {
        alone = alone.max(crowd(0)?.figure("bytes")?);
        let [bytes, least_bytes] = crowd(n_stalled)?.figures(["bytes", "least"])?;
        beside = beside.max(bytes);
        least = least.min(least_bytes / (bytes / (n_peers - n_stalled) as f64));
    }
    let per_second = CROWD_SECONDS as f64 * 1e6;
    let work = format!("bitswap, {n_peers} peers, {n_stalled} of them stalled");
    Ok(vec![
        Line::ratio(
            &format!("{work}, goodput"),
            "MB/s",
            beside / per_second,
            ("none stalled", alone / per_second),
            AtLeast(0.95),
        ),
        Line::ratio(
            &format!("{work}, least of a peer"),
            "of its share",
            least,
            ("fair share", 1.0),
            AtLeast(1.0 / 3.0),
        ),
    ])
}

pub(in crate::bench) fn absent(bench: &Bench) -> Result<Vec<Line>> {
    let (tree, _) = bench.tree()?;
    added(bench, "store", &[], &tree)?;
    let server = Server::carrack(bench, "store")?;
    server.absent(bench.sizes.n_absent / 10, ABSENT_PEERS)?; // Brings everything into memory.
    let (mut cpus, mut rate) = (Vec::new(), 0.0_f64);
    let disk_reads = server.daemon.disk_reads();
    for _ in 0..bench.sizes.n_runs {
        let cpu = server.daemon.cpu_seconds();
        let got = server.absent(bench.sizes.n_absent, ABSENT_PEERS)?;
        cpus.push((server.daemon.cpu_seconds() - cpu).max(f64::EPSILON));
        let [seconds, answers] = got.figures(["seconds", "dont_haves"])?;
        if answers < bench.sizes.n_absent as f64 {
            return Err(format!("{answers} answers only").into());
        }
        rate = rate.max(answers / seconds);
    }
    let disk_reads = server.daemon.disk_reads() - disk_reads;
    let per_core = bench.sizes.n_absent as f64 / median(cpus);
    let work = "bitswap, wants for absent blocks";
    Ok(vec![
        Line::ratio(
            work,
            "/s a core",
            per_core,
            ("target", ABSENT_PER_SECOND),
            AtLeast(1.0),
        ),
        Line::bound(
            &format!("{work}, read from disk"),
            "bytes",
            disk_reads as f64,
            0.0,
        ),
        Line::ratio(work, "/s", rate, ("target", ABSENT_PER_SECOND), Shown),
    ])
}

pub(in crate::bench) fn idle(bench: &Bench) -> Result<Vec<Line>> {
    let (tree, _) = bench.tree()?;
    added(bench, "store", &[], &tree)?;
    let server = Server::carrack(bench, "store")?;
    drop(server.idle(WARM_PEERS)?);
    let before = server.memory_at_rest();
    let peers = server.idle(bench.sizes.n_idle)?;
    let during = server.memory_at_rest();
    drop(peers);
    let each = during.saturating_sub(before) as f64 / bench.sizes.n_idle as f64 / 1024.0;
    let work = format!("bitswap, memory of an idle peer of {}", bench.sizes.n_idle);
    Ok(vec![Line::bound(&work, "KiB", each, IDLE_KIB_MAX)])
}
