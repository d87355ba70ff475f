//! Rows that compare carrack with a bound of its own: the index and memory.
//!
//! In       the index example; a serving and an adding process.
//! Out      figures beside the limits that carrack sets itself.
//! Not here speed beside others.

use std::fs;

use super::{added, raw_paths};
use crate::bench::table::Line;
use crate::bench::{Bench, load};
use crate::shell::{Result, cargo, output};

const MIB: f64 = (1 << 20) as f64;

/// The index as most stores have it.
pub(in crate::bench) fn index(bench: &Bench) -> Result<Vec<Line>> {
    let n_entries = bench.sizes.n_entries;
    let figures = Figures::of(bench, n_entries)?;
    let work = |what: &str| format!("index of {n_entries} entries, {what}");
    let figure = |mark: &str| figures.get(mark);
    Ok(vec![
        Line::bound(&work("size"), "B/entry", figure("bytes")?, 52.0),
        Line::bound(&work("warm hit"), "ns", figure("hit        first")?, 300.0),
        Line::bound(
            &work("warm hit, chained"),
            "ns",
            figure("hit        chained")?,
            300.0,
        ),
        Line::bound(&work("miss"), "ns", figure("miss       contains")?, 100.0),
        Line::bound(&work("open"), "ms CPU", figure("open")?, 50.0),
    ])
}

/// An index that the machine's memory holds, but that no process would copy on each start.
pub(in crate::bench) fn index_large(bench: &Bench) -> Result<Vec<Line>> {
    let n_entries = bench.sizes.n_entries_large;
    let figures = Figures::of(bench, n_entries)?;
    let work = |what: &str| format!("index of {n_entries} entries, {what}");
    let figure = |mark: &str| figures.get(mark);
    let cold_reads = figure("cold hit")? / 4096.0;
    let bound = |what: &str, unit: &str, mark: &str, at_most: f64| -> Result<Line> {
        Ok(Line::bound(&work(what), unit, figure(mark)?, at_most))
    };
    Ok(vec![
        bound("size", "B/entry", "bytes", 52.0)?,
        bound("warm hit", "ns", "hit        first", 400.0)?,
        bound("miss", "ns", "miss       contains", 100.0)?,
        Line::bound(&work("cold hit"), "reads of 4 KiB", cold_reads, 1.05),
        bound("restart to the first hit, cold", "ms", "restart", 1000.0)?,
        bound("filters and fences in memory", "MiB", "resident", 192.0)?,
        bound("p99 of hits beside a merge", "times p99 alone", "p99", 2.0)?,
        bound("a merge stops within", "ms", "stop", 100.0)?,
        bound(
            "drop of a container of 10^7 blocks at most",
            "ms",
            "drop",
            100.0,
        )?,
    ])
}

/// What the index says of itself: see `crates/carrack/examples/index_bench`.
struct Figures(String);

impl Figures {
    fn of(bench: &Bench, n_entries: u64) -> Result<Self> {
        let example = [
            "run",
            "--release",
            "--package",
            "carrack",
            "--example",
            "index_bench",
            "--",
        ];
        let dir = bench.path("store-index");
        let _ = fs::remove_dir_all(&dir); // Of another row.
        fs::create_dir_all(&dir)?;
        let text = output(cargo().args(example).arg(n_entries.to_string()).arg(&dir))?;
        fs::remove_dir_all(&dir)?;
        eprintln!("{text}");
        Ok(Self(text))
    }

    /// The first number behind the mark that a line begins with.
    fn get(&self, mark: &str) -> Result<f64> {
        let text = &self.0;
        let rest = text.lines().find_map(|line| line.strip_prefix(mark));
        let number = rest.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        number
            .and_then(|number| number.parse::<f64>().ok())
            .ok_or_else(|| format!("the example printed no figure for {mark:?}:\n{text}").into())
    }
}

pub(in crate::bench) fn memory(bench: &Bench) -> Result<Vec<Line>> {
    const BUDGET_MIB: &str = "256";
    let file = bench.big_file()?;
    let cids = load::leaves(&file, 1 << 20, |_, _| Ok(()))?;
    let blocks = raw_paths(bench, "paths-memory", &cids)?;
    let root = added(bench, "store", &[], &file)?;
    let car = format!("/ipfs/{root}?format=car");
    let cars = load::write_paths(&bench.path("paths-memory-car"), std::iter::once(car))?;
    let server = bench.serve_with("store", &["--block-budget", BUDGET_MIB])?;
    let wrk = bench.peers.join("wrk");
    for paths in [&blocks, &cars] {
        // With whole CARs of this length hardly one is done in time: only memory is looked at.
        let seconds = bench.sizes.load_seconds;
        let _ = load::wrk(&wrk, &server.url, paths, 256, seconds);
    }
    let serving = server.peak_memory() as f64 / MIB;
    drop(server);
    let sparse = bench.path("sparse");
    fs::File::create(&sparse)?.set_len(bench.sizes.sparse_len)?;
    let adding = bench.measure(bench.carrack("store-sparse", &["add", "-Q"], Some(&sparse)))?;
    let adding_gib = bench.sizes.sparse_len >> 30;
    Ok(vec![
        Line::bound(
            "serve, 256 clients, resident",
            "MiB",
            serving,
            64.0 + BUDGET_MIB.parse::<f64>()?,
        ),
        Line::bound(
            &format!("add a sparse file of {adding_gib} GiB, resident"),
            "MiB",
            adding.memory as f64 / MIB,
            200.0,
        ),
    ])
}
