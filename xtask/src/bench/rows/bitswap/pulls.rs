//! Rows of real clients: kubo, and Helia, pull from carrack and from kubo.
//!
//! In       the big file and the tree, on both servers.
//! Out      rates over each transport, of a client whose repository is empty each time.
//! Limits   a pull is kubo's `pin add`, which walks the DAG and hashes and stores every block; the
//!          best of [`N_PULLS`] counts.
//! Not here our own client (`bitswap`).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use carrack_testkit::Transport;

use super::super::{added, stored_in_kubo};
use super::servers::Server;
use crate::bench::table::Line;
use crate::bench::table::Target::{AtLeast, Shown};
use crate::bench::{Bench, load};
use crate::shell::{Result, output};

/// Pulls over each transport; each server's come in turns with the other's.
const N_PULLS: u32 = 3;
/// Bytes that Helia pulls.
const HELIA_LEN: u64 = 64 << 20;
/// Seconds that it may take.
const HELIA_TIME_MAX: &str = "300";

/// What is pulled.
struct Content<'a> {
    name: String,
    root: String,
    len: u64,
    ours: &'a Server,
    kubo: &'a Server,
}

pub(in crate::bench) fn file(bench: &Bench) -> Result<Vec<Line>> {
    let (path, len) = (bench.big_file()?, bench.sizes.file_len);
    let name = format!("a file of {} MiB", len >> 20);
    with_both(bench, &path, &name, len, pull_over_all)
}

pub(in crate::bench) fn tree(bench: &Bench) -> Result<Vec<Line>> {
    let (path, len) = bench.tree()?;
    let name = format!("{} files", bench.sizes.n_files);
    with_both(bench, &path, &name, len, pull_over_all)
}

pub(in crate::bench) fn helia(bench: &Bench) -> Result<Vec<Line>> {
    let path = bench.path("helia-file");
    load::file(&path, 6, HELIA_LEN)?;
    let name = format!("a file of {} MiB", HELIA_LEN >> 20);
    with_both(bench, &path, &name, HELIA_LEN, |bench, content| {
        let [ours, kubo] =
            [content.ours, content.kubo].map(|server| helia_get(bench, server, content));
        let work = format!("Helia gets {name} over TCP");
        Ok(vec![Line::ratio(
            &work,
            "MB/s",
            len_rate(HELIA_LEN, ours?),
            ("from kubo", len_rate(HELIA_LEN, kubo?)),
            Shown,
        )])
    })
}

fn with_both(
    bench: &Bench,
    path: &Path,
    name: &str,
    len: u64,
    measure: impl Fn(&Bench, &Content<'_>) -> Result<Vec<Line>>,
) -> Result<Vec<Line>> {
    let root = added(bench, "store", &[], path)?;
    let ours = Server::carrack(bench, "store")?;
    let stored = stored_in_kubo(bench, &["-r"], path)?;
    if stored != root {
        return Err(format!("{name} is {root} to carrack and {stored} to kubo").into());
    }
    let kubo = Server::kubo(bench, "repo")?;
    let content = Content {
        name: name.to_owned(),
        root,
        len,
        ours: &ours,
        kubo: &kubo,
    };
    measure(bench, &content)
}

fn pull_over_all(bench: &Bench, content: &Content<'_>) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for transport in Transport::ALL {
        let mut best = [f64::MAX; 2];
        for _ in 0..bench.sizes.n_runs.min(N_PULLS) {
            for (best, server) in best.iter_mut().zip([content.ours, content.kubo]) {
                *best = best.min(pull(bench, server, transport, &content.root)?);
            }
        }
        let [ours, kubo] = best.map(|seconds| len_rate(content.len, seconds));
        let work = format!("kubo pulls {} over {}", content.name, transport.name());
        lines.push(Line::ratio(
            &work,
            "MB/s",
            ours,
            ("from kubo", kubo),
            AtLeast(1.0),
        ));
    }
    Ok(lines)
}

/// Seconds that kubo with an empty repository takes for all of a DAG.
fn pull(bench: &Bench, server: &Server, transport: Transport, root: &str) -> Result<f64> {
    const REPO: &str = "client-repo";
    let address = server.address(transport);
    let address = address.ok_or_else(|| format!("not reached over {}", transport.name()))?;
    bench.fresh_repo(REPO)?;
    let client = bench.kubo_peer(REPO)?;
    output(&mut bench.ipfs(REPO, &["swarm", "connect", address], None))?;
    let start = Instant::now();
    output(&mut bench.ipfs(REPO, &["pin", "add", "--progress=false", root], None))?;
    let seconds = start.elapsed().as_secs_f64();
    drop(client);
    bench.forget(&[REPO])?;
    Ok(seconds)
}

fn helia_get(bench: &Bench, server: &Server, content: &Content<'_>) -> Result<f64> {
    let address = server
        .address(Transport::Tcp)
        .ok_or("not reached over TCP")?;
    let dir = bench.path("helia-out");
    fs::create_dir_all(&dir)?;
    let start = Instant::now();
    let mut helia = Command::new(bench.peers.join("helia"));
    helia.args(["get", address]).arg(&dir);
    helia.arg(format!("file:{}", content.root));
    output(helia.env("HELIA_TIMEOUT", HELIA_TIME_MAX))?;
    let seconds = start.elapsed().as_secs_f64();
    bench.forget(&["helia-out"])?;
    Ok(seconds)
}

fn len_rate(len: u64, seconds: f64) -> f64 {
    len as f64 / seconds / 1e6
}
