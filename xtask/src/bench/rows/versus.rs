//! Two binaries of carrack side by side: what a change costs.
//!
//! In       the binary under test, another one; the same files in a store of each.
//! Out      CPU of both for the same work, and the median of the ratios of pairs of runs.
//! Limits   both run all the time and work in turns, so that other work on the machine falls on
//!          both; a ratio of more than [`RATIO_MAX`] is short.
//! Not here kubo and nginx (`blocks`, `cars`, `bitswap`).

use std::cell::OnceCell;
use std::path::{Path, PathBuf};

use super::bitswap::servers::Server;
use super::bitswap::{ABSENT_PEERS, WINDOW_1M, WINDOW_4K, leaves};
use super::{added, bitswap, blocks, cars, raw_paths};
use crate::bench::systems::median;
use crate::bench::table::Line;
use crate::bench::table::Target::AtMost;
use crate::bench::{Bench, Sizes, load};
use crate::shell::Result;

/// What a change may cost.
const RATIO_MAX: f64 = 1.03;

/// Pairs of runs of each kind of work.
const N_PAIRS: usize = 15;

/// Bytes of the file that is cut into blocks of 4 KiB.
const SMALL_BLOCKS_LEN: u64 = 128 << 20;

/// About a second of CPU for each run: the kernel counts in hundredths.
const fn sizes(of: Sizes) -> Sizes {
    Sizes {
        file_len: 768 << 20,
        n_files: 10_000,
        load_seconds: 1,
        n_runs: 1,
        n_absent: 600_000,
        ..of
    }
}

/// The binary under test and the other one, each serving a store of its own.
struct Pair {
    now: Server,
    before: Server,
}

impl Pair {
    /// Adds `path` to a store of each; both, and the root.
    fn serve(now: &Bench, before: &Bench, options: &[&str], path: &Path) -> Result<(Self, String)> {
        let root = added(now, "store-now", options, path)?;
        let other = added(before, "store-before", options, path)?;
        if root != other {
            return Err(format!("the roots differ: {root} and {other}").into());
        }
        let pair = Self {
            now: Server::carrack(now, "store-now")?,
            before: Server::carrack(before, "store-before")?,
        };
        Ok((pair, root))
    }

    /// Lets both do the same in turns; `cost` is the CPU of one run.
    fn compare(
        &self,
        work: &str,
        unit: &str,
        cost: impl Fn(&Server) -> Result<f64>,
    ) -> Result<Line> {
        cost(&self.before)?; // Brings everything into memory.
        cost(&self.now)?;
        let mut pairs = Vec::new();
        for number in 0..N_PAIRS {
            // Who comes first changes, for the caches of the processor.
            pairs.push(if number % 2 == 0 {
                let now = cost(&self.now)?;
                (now, cost(&self.before)?)
            } else {
                let before = cost(&self.before)?;
                (cost(&self.now)?, before)
            });
        }
        let mut ratios: Vec<f64> = pairs.iter().map(|(now, before)| now / before).collect();
        ratios.sort_by(f64::total_cmp);
        let quarter = |n: usize| ratios.get(n * (N_PAIRS - 1) / 4).copied().unwrap_or(0.0);
        eprintln!(
            "{work}: {:.3}, half of the pairs between {:.3} and {:.3}",
            quarter(2),
            quarter(1),
            quarter(3)
        );
        let before = median(pairs.iter().map(|(_, before)| *before).collect());
        Ok(Line::ratio(
            work,
            unit,
            before * quarter(2),
            ("before", before),
            AtMost(RATIO_MAX),
        ))
    }
}

/// The binary `before` beside the one of `bench`.
pub(in crate::bench) fn versus(bench: &Bench, before: &Path) -> Result<Vec<Line>> {
    let with = |carrack: &Path| Bench {
        dir: bench.dir.clone(),
        carrack: carrack.to_path_buf(),
        peers: bench.peers.clone(),
        place: OnceCell::new(),
        sizes: sizes(bench.sizes),
    };
    let (now, before) = (with(&bench.carrack), with(before));
    let mut lines = Vec::new();
    for kind in [small_blocks, large_blocks, tree] {
        lines.extend(kind(&now, &before)?);
        bench.forget(&["store"])?;
    }
    Ok(lines)
}

fn small_blocks(now: &Bench, before: &Bench) -> Result<Vec<Line>> {
    let file = now.path("blocks-4k-versus");
    load::file(&file, 4, SMALL_BLOCKS_LEN)?;
    let cids = load::leaves(&file, 4_096, |_, _| Ok(()))?;
    let paths = raw_paths(now, "paths-4k", &cids)?;
    let cids = leaves(now, &file, 4_096)?;
    let (pair, _) = Pair::serve(now, before, &["--chunker", "size-4096"], &file)?;
    let raw = |server: &Server, n| blocks::cpu_us(now, &server.daemon, &paths, n);
    Ok(vec![
        pair.compare("raw 4 KiB, 16 connections, CPU", "us", |it| raw(it, 16))?,
        pair.compare("raw 4 KiB, 256 connections, CPU", "us", |it| raw(it, 256))?,
        pair.compare("bitswap, 4 KiB blocks over TCP, CPU", "us", |it| {
            Ok(bitswap::run(it, &cids, WINDOW_4K)?.cpu_us)
        })?,
    ])
}

fn large_blocks(now: &Bench, before: &Bench) -> Result<Vec<Line>> {
    let file = now.big_file()?;
    let cids = load::leaves(&file, 1 << 20, |_, _| Ok(()))?;
    let all: PathBuf = raw_paths(now, "paths-1m", &cids)?;
    let few = raw_paths(now, "paths-1m-few", cids.split_at(16).0)?;
    let cids = leaves(now, &file, 1 << 20)?;
    let (pair, root) = Pair::serve(now, before, &[], &file)?;
    let raw = |server: &Server, paths| blocks::cpu_us(now, &server.daemon, paths, 4);
    Ok(vec![
        pair.compare("raw 1 MiB, CPU", "us", |it| raw(it, &all))?,
        pair.compare("raw 1 MiB from the cache, CPU", "us", |it| raw(it, &few))?,
        pair.compare("GET a CAR, CPU", "s/GB", |it| {
            cars::cpu_per_gb(now, &it.daemon, &root, 1)
        })?,
        pair.compare("GET a CAR, 2 clients, CPU", "s/GB", |it| {
            cars::cpu_per_gb(now, &it.daemon, &root, 2)
        })?,
        pair.compare("bitswap, 1 MiB blocks over TCP, CPU", "us", |it| {
            Ok(bitswap::run(it, &cids, WINDOW_1M)?.cpu_us)
        })?,
    ])
}

fn tree(now: &Bench, before: &Bench) -> Result<Vec<Line>> {
    let (tree, _) = now.tree()?;
    let (pair, root) = Pair::serve(now, before, &[], &tree)?;
    let n_absent = now.sizes.n_absent;
    Ok(vec![
        pair.compare("GET a CAR of small files, CPU", "s/GB", |it| {
            cars::cpu_per_gb(now, &it.daemon, &root, 1)
        })?,
        pair.compare("bitswap, wants for absent blocks, CPU", "us", |it| {
            let cpu = it.daemon.cpu_seconds();
            it.absent(n_absent, ABSENT_PEERS)?;
            Ok((it.daemon.cpu_seconds() - cpu) / n_absent as f64 * 1e6)
        })?,
    ])
}
