//! `cargo xtask bench`: speed and memory beside kubo and nginx, in one run on one machine.
//!
//! In       `--quick` for small sizes; names of rows, or what some begin with (`bitswap`, `s3`);
//!          `--against=BINARY`, to compare with an earlier carrack instead of with the peers;
//!          `CARRACK_BIN`, a binary to measure instead of the one that is built now.
//! Out      a Markdown table with ratios, on standard output; progress on standard error.
//! Limits   CPU is the first figure, because other work on the machine does not change it much;
//!          commands run three times, rates are the best, CPU is the median.
//! Not here criterion-like benches of single functions (`crates/carrack/examples`).

mod fetch;
mod load;
mod place;
mod process;
mod rows;
mod systems;
mod table;

use std::cell::OnceCell;
use std::path::{Path, PathBuf};
use std::time::Instant;

use crate::peers;
use crate::shell::{Result, target_dir};
use crate::test::{build_release, release_binary};

use table::Line;

/// What all rows share.
#[derive(Debug)]
pub(crate) struct Bench {
    /// Gone after the run; on the disk of the target directory.
    dir: PathBuf,
    carrack: PathBuf,
    peers: PathBuf,
    /// The bucket, once a row has asked for it.
    place: OnceCell<place::Place>,
    sizes: Sizes,
}

/// How much work a row does.
#[derive(Debug, Clone, Copy)]
struct Sizes {
    /// Bytes of the big file.
    file_len: u64,
    n_files: u64,
    /// Bytes of the sparse file whose add must stay small.
    sparse_len: u64,
    /// Seconds of each run of the load generator.
    load_seconds: u64,
    /// Runs of each command.
    n_runs: u32,
    n_entries: u64,
    /// Entries of the index that is larger than what opening copies into memory.
    n_entries_large: u64,
    /// Bytes of the big object of the bucket.
    object_len: u64,
    /// Small objects of the bucket.
    n_objects: u64,
    /// Bytes of each of the four objects of which one stalls.
    stalled_len: u64,
    /// Bytes of the file that is cut into blocks of 4 KiB for peers of bitswap.
    small_blocks_len: u64,
    /// Peers of bitswap at once, a quarter of which stalls.
    n_peers: usize,
    /// Wants for blocks that nobody has.
    n_absent: u64,
    /// Peers of bitswap that want nothing.
    n_idle: usize,
}

const FULL: Sizes = Sizes {
    file_len: 2 << 30,
    n_files: 20_000,
    sparse_len: 100 << 30,
    load_seconds: 8,
    n_runs: 3,
    n_entries: 10_000_000,
    n_entries_large: 100_000_000,
    object_len: 4 << 30,
    n_objects: 10_000,
    stalled_len: 1 << 30,
    small_blocks_len: 256 << 20,
    n_peers: 256,
    n_absent: 1_000_000,
    n_idle: 1_000,
};

const QUICK: Sizes = Sizes {
    file_len: 256 << 20,
    n_files: 2_000,
    sparse_len: 4 << 30,
    load_seconds: 2,
    n_runs: 1,
    n_entries: 1_000_000,
    n_entries_large: 2_000_000,
    object_len: 512 << 20,
    n_objects: 1_000,
    stalled_len: 128 << 20,
    small_blocks_len: 32 << 20,
    n_peers: 64,
    n_absent: 100_000,
    n_idle: 200,
};

type Row = (&'static str, fn(&Bench) -> Result<Vec<Line>>);

const ROWS: &[Row] = &[
    ("add-file", rows::ingest::add_file),
    ("add-tree", rows::ingest::add_tree),
    ("import", rows::ingest::import),
    ("get-file", rows::cars::get_file),
    ("get-tree", rows::cars::get_tree),
    ("raw-4k", rows::blocks::raw_4k),
    ("raw-1m", rows::blocks::raw_1m),
    ("absent", rows::blocks::absent),
    ("index", rows::own::index),
    ("index-100m", rows::own::index_large),
    ("memory", rows::own::memory),
    ("s3-plain", rows::s3::plain),
    ("s3-get", rows::s3::get),
    ("s3-clients-64", rows::s3::clients_64),
    ("s3-raw-64", rows::s3::raw_64),
    ("s3-tree", rows::s3::tree),
    ("s3-add", rows::s3::add),
    ("s3-stalled", rows::s3::stalled),
    ("bitswap-1m", rows::bitswap::blocks_1m),
    ("bitswap-4k", rows::bitswap::blocks_4k),
    ("bitswap-file", rows::bitswap::pulls::file),
    ("bitswap-tree", rows::bitswap::pulls::tree),
    ("bitswap-helia", rows::bitswap::pulls::helia),
    ("bitswap-stalled", rows::bitswap::stalled),
    ("bitswap-absent", rows::bitswap::absent),
    ("bitswap-idle", rows::bitswap::idle),
];

/// `[--quick] [--list] [--against=BINARY] [ROW...]`
pub(crate) fn command(args: &[&str]) -> Result<bool> {
    let (flags, names): (Vec<&str>, Vec<&str>) = args.iter().partition(|arg| arg.starts_with('-'));
    let quick = flags.contains(&"--quick");
    if flags.contains(&"--list") {
        for (name, _) in ROWS {
            println!("{name}");
        }
        return Ok(true);
    }
    let before = flags
        .iter()
        .find_map(|flag| flag.strip_prefix("--against="));
    let known = |flag: &str| flag == "--quick" || flag.starts_with("--against=");
    if let Some(flag) = flags.iter().find(|flag| !known(flag)) {
        return Err(format!("no flag {flag}").into());
    }
    if let Some(name) = names
        .iter()
        .find(|name| !ROWS.iter().any(|(row, _)| is_meant(row, name)))
    {
        return Err(format!("no row {name}: see cargo xtask bench --list").into());
    }
    let carrack = match std::env::var_os("CARRACK_BIN") {
        Some(binary) => binary.into(),
        None => {
            build_release()?;
            release_binary()
        }
    };
    let bench = Bench {
        dir: target_dir().join(format!("bench-{}", std::process::id())),
        carrack,
        peers: peers::install(peers::ALL)?,
        place: OnceCell::new(),
        sizes: if quick { QUICK } else { FULL },
    };
    std::fs::create_dir_all(&bench.dir)?;
    let passed = match before {
        Some(before) => against(&bench, before.as_ref()),
        None => run(&bench, &names),
    };
    let dir = bench.dir.clone();
    drop(bench); // Ends the S3 server before its folder goes.
    std::fs::remove_dir_all(dir)?;
    passed
}

/// By its name, or by the words that it begins with.
fn is_meant(row: &str, asked: &str) -> bool {
    let rest = row.strip_prefix(asked);
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
}

/// Shows what this carrack costs beside another one.
fn against(bench: &Bench, before: &Path) -> Result<bool> {
    let lines = rows::versus::versus(bench, before)?;
    println!("{}", table::markdown(&lines));
    Ok(true)
}

/// A row that cannot be measured does not keep the others from it.
fn run(bench: &Bench, names: &[&str]) -> Result<bool> {
    let (mut lines, mut broken) = (Vec::new(), Vec::new());
    for (name, row) in ROWS {
        if !names.is_empty() && !names.iter().any(|asked| is_meant(name, asked)) {
            continue;
        }
        let start = Instant::now();
        match row(bench) {
            Ok(found) => lines.extend(found),
            Err(error) => broken.push(format!("{name}: {error}")),
        }
        eprintln!("{name}: {:.0} s", start.elapsed().as_secs_f64());
        bench.forget(&["store", "repo", "nginx"])?;
    }
    println!("{}", table::markdown(&lines));
    for row in &broken {
        println!("not measured: {row}");
    }
    Ok(broken.is_empty())
}
