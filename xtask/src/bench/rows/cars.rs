//! Rows about CARs on their way out.
//!
//! In       the big file and the tree, added to carrack and stored in kubo.
//! Out      rates and CPU a GB, every block verified by carrack, none by kubo.
//! Limits   frisbii's figure is a recorded one (version 0.10, two cores, the same work).
//! Not here single blocks (`blocks`).

use std::time::Instant;

use super::{added, stored_in_kubo};
use crate::bench::process::Daemon;
use crate::bench::systems::median;
use crate::bench::table::Line;
use crate::bench::table::Target::{AtLeast, AtMost, Shown};
use crate::bench::{Bench, load};
use crate::shell::Result;

/// CPU seconds a GB of frisbii serving a CAR to one client, recorded.
const FRISBII_CPU_PER_GB: f64 = 4.4;

/// What clients got and what the server spent on it.
struct Got {
    /// MB/s of all clients together.
    rate: f64,
    /// CPU seconds for 10^9 bytes.
    cpu: f64,
}

/// The best rate and the median of CPU of some runs of `n_clients` that each take the whole CAR.
fn get(bench: &Bench, server: &Daemon, root: &str, n_clients: usize) -> Result<Got> {
    let path = format!("/ipfs/{root}?format=car&dag-scope=all");
    let (mut rate, mut cpu_per_gb) = (0.0_f64, Vec::new());
    for _ in 0..bench.sizes.n_runs {
        let (start, cpu) = (Instant::now(), server.cpu_seconds());
        let total = std::thread::scope(|scope| {
            let client = || load::drain(&server.url, &path).map_err(|error| error.to_string());
            let clients: Vec<_> = (0..n_clients).map(|_| scope.spawn(client)).collect();
            let join = |client: std::thread::ScopedJoinHandle<_>| client.join().unwrap_or(Ok(0));
            clients
                .into_iter()
                .map(join)
                .sum::<std::result::Result<u64, String>>()
        })? as f64;
        rate = rate.max(total / start.elapsed().as_secs_f64() / 1e6);
        cpu_per_gb.push((server.cpu_seconds() - cpu) / total * 1e9);
    }
    let cpu = median(cpu_per_gb);
    Ok(Got { rate, cpu })
}

/// CPU seconds a GB of clients that each take the whole CAR.
pub(super) fn cpu_per_gb(
    bench: &Bench,
    server: &Daemon,
    root: &str,
    n_clients: usize,
) -> Result<f64> {
    Ok(get(bench, server, root, n_clients)?.cpu)
}

pub(in crate::bench) fn get_file(bench: &Bench) -> Result<Vec<Line>> {
    let file = bench.big_file()?;
    let root = added(bench, "store", &[], &file)?;
    let server = bench.serve("store")?;
    let [ours, ours_two] = [
        get(bench, &server, &root, 1)?,
        get(bench, &server, &root, 2)?,
    ];
    drop(server);
    stored_in_kubo(bench, &[], &file)?;
    let server = bench.kubo("repo")?;
    let [theirs, theirs_two] = [
        get(bench, &server, &root, 1)?,
        get(bench, &server, &root, 2)?,
    ];
    let frisbii = ("frisbii (recorded)", FRISBII_CPU_PER_GB);
    let kubo = |figure| ("kubo", figure);
    Ok(vec![
        Line::ratio(
            "GET a CAR, CPU",
            "s/GB",
            ours.cpu,
            kubo(theirs.cpu),
            AtMost(0.5),
        ),
        Line::ratio("GET a CAR, CPU", "s/GB", ours.cpu, frisbii, AtMost(0.25)),
        Line::ratio(
            "GET a CAR, 1 client",
            "MB/s",
            ours.rate,
            kubo(theirs.rate),
            AtLeast(2.5),
        ),
        Line::ratio(
            "GET a CAR, 2 clients, CPU",
            "s/GB",
            ours_two.cpu,
            kubo(theirs_two.cpu),
            Shown,
        ),
        Line::ratio(
            "GET a CAR, 2 clients",
            "MB/s",
            ours_two.rate,
            kubo(theirs_two.rate),
            Shown,
        ),
    ])
}

pub(in crate::bench) fn get_tree(bench: &Bench) -> Result<Vec<Line>> {
    let (tree, _) = bench.tree()?;
    let root = added(bench, "store", &[], &tree)?;
    let server = bench.serve("store")?;
    let ours = get(bench, &server, &root, 1)?;
    drop(server);
    stored_in_kubo(bench, &["-r"], &tree)?;
    let server = bench.kubo("repo")?;
    let theirs = get(bench, &server, &root, 1)?;
    let work = format!("GET a CAR of {} files", bench.sizes.n_files);
    let cpu_work = format!("{work}, CPU");
    Ok(vec![
        Line::ratio(
            &work,
            "MB/s",
            ours.rate,
            ("kubo", theirs.rate),
            AtLeast(6.0),
        ),
        Line::ratio(
            &cpu_work,
            "s/GB",
            ours.cpu,
            ("kubo", theirs.cpu),
            AtMost(0.2),
        ),
    ])
}
