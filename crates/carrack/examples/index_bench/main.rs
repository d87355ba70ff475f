//! Measures the segment index: `cargo run --release --example index_bench -- 10000000`.
//!
//! In       the number of entries (default 1,000,000) and a directory (default: a temporary one).
//! Out      one line a figure: build, bytes an entry, open, hit and miss, with one segment and
//!          with eight; cold hits, restart, look-ups beside a merge, the drop of a container; and
//!          one catalog commit of 20,000 files.
//! Not here a judgement: the targets are in the documentation of the index.

#![expect(clippy::print_stdout, reason = "its output is its purpose")]

mod large;

use std::error::Error;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use carrack::store::catalog::{
    Batch, ContainerKind, ContainerRecord, PathKey, PathRecord, SOURCE_LOCAL, Validator,
};
use carrack::store::gate::WriteGate;
use carrack::store::index::{
    ENTRIES_MAX, Index, Merged, RESIDENT_LEN_MAX_SERVING, RunWriter, Segment, SegmentId,
    SegmentMeta, merge, segment_name,
};
use carrack::store::location::{ContainerId, Location};
use carrack::store::{OpenMode, Store};
use carrack_formats::{Cid, Multihash};

const N_LOOKUPS: u64 = 1_000_000;
const N_PASSES: usize = 7;
/// Memory that is read at random for comparison, in bytes.
const MEMORY_LEN_MAX: u64 = 1 << 30;

fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let n_entries = args.next().map_or(Ok(1_000_000), |arg| arg.parse())?;
    let temporary = tempfile::tempdir()?;
    let dir = args
        .next()
        .map_or_else(|| temporary.path().to_owned(), Into::into);

    let runs = build(&dir, n_entries)?;
    let one = merge_to(&dir, &runs, 1)?;
    let eight = merge_to(&dir, &runs, 8)?;
    for meta in &runs {
        std::fs::remove_file(dir.join(segment_name(meta.id)))?;
    }
    for segments in [&one, &eight] {
        look_up(&dir, segments, n_entries)?;
        large::cold(&dir, segments, n_entries)?;
    }
    large::restart(&dir, &one, n_entries)?;
    large::beside_merge(&dir, &eight, n_entries)?;
    for meta in one.iter().chain(&eight) {
        std::fs::remove_file(dir.join(segment_name(meta.id)))?;
    }
    large::beside_ingest(&dir.join("ingested"), n_entries)?;
    large::drop_container(&dir.join("dropped"), n_entries)?;
    commit_files(&dir.join("store"))
}

/// A uniform digest without the cost of a hash.
fn key(seed: u64) -> Multihash {
    let mut digest = [0; 32];
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in digest.as_chunks_mut::<8>().0 {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        *word = (mixed ^ (mixed >> 31)).to_le_bytes();
    }
    Multihash::wrap(0x12, &digest).unwrap_or_default()
}

fn build(dir: &Path, n_entries: u64) -> Result<Vec<SegmentMeta>, Box<dyn Error>> {
    let gate = Arc::new(WriteGate::default());
    let mut runs = Vec::new();
    let start = Instant::now();
    let mut next = 0;
    while next < n_entries {
        let mut run = RunWriter::new(dir, SegmentId(runs.len() as u64 + 1000), Arc::clone(&gate));
        while next < n_entries && run.len() < ENTRIES_MAX {
            let container = ContainerId(next / 1000 + 1);
            let offset = (next % 1000) << 20;
            let location = Location {
                container,
                offset,
                len: 1 << 20,
                wrapped: false,
            };
            run.push(&key(next), location)?;
            next += 1;
        }
        runs.extend(run.finish()?);
    }
    let secs = start.elapsed().as_secs_f64();
    let rate = n_entries as f64 / secs / 1e6;
    println!(
        "build      {n_entries} entries, {} runs: {secs:.2} s, {rate:.2} M/s",
        runs.len()
    );
    Ok(runs)
}

/// Merges the runs into `n` segments of equal numbers of runs.
fn merge_to(
    dir: &Path,
    runs: &[SegmentMeta],
    n: usize,
) -> Result<Vec<SegmentMeta>, Box<dyn Error>> {
    let gate = Arc::new(WriteGate::default());
    let start = Instant::now();
    let mut merged = Vec::new();
    for (index, group) in runs.chunks(runs.len().div_ceil(n)).enumerate() {
        let inputs: Result<Vec<_>, _> = group
            .iter()
            .map(|meta| Segment::open(dir.join(segment_name(meta.id)), meta, false).map(Arc::new))
            .collect();
        let id = SegmentId((n * 10 + index) as u64);
        let mut is_dead = |_| Ok(false);
        let stop = AtomicBool::new(false);
        if let Merged::Segment(meta) = merge(dir, id, &gate, &inputs?, &mut is_dead, &stop)? {
            merged.push(meta);
        }
    }
    println!(
        "merge      to {} segments: {:.2} s",
        merged.len(),
        start.elapsed().as_secs_f64()
    );
    Ok(merged)
}

fn look_up(dir: &Path, segments: &[SegmentMeta], n_entries: u64) -> Result<(), Box<dyn Error>> {
    let start = on_cpu_ns();
    let wall = Instant::now();
    let index = Index::open(dir, segments)?;
    let open_ms = (on_cpu_ns() - start) / 1e6;
    let open_wall_ms = wall.elapsed().as_secs_f64() * 1e3;
    drop(index);
    let start = on_cpu_ns();
    let index = Index::open_with(dir, segments, RESIDENT_LEN_MAX_SERVING)?;
    let load_ms = (on_cpu_ns() - start) / 1e6;
    let len: u64 = segments.iter().map(|segment| segment.len).sum();
    let n_segments = segments.len();
    println!("\n{n_segments} segment(s)");
    println!("bytes      {:.2} an entry", len as f64 / n_entries as f64);
    println!("open       {open_ms:.3} ms CPU, {open_wall_ms:.3} ms wall");
    let resident = index.resident_len() as f64 / f64::from(1 << 20);
    println!("load       {load_ms:.3} ms CPU, {resident:.1} MiB of filters and fences");

    let start = Instant::now();
    index.check()?; // Also brings every page into memory.
    println!("check      {:.0} ms", start.elapsed().as_secs_f64() * 1e3);

    // Key generation costs a few nanoseconds; the keys are made beforehand all the same.
    let hits: Vec<_> = (0..N_LOOKUPS)
        .map(|i| key(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n_entries))
        .collect();
    let misses: Vec<_> = (0..N_LOOKUPS).map(|i| key(n_entries + i)).collect();
    // What the machine takes for the one wait that no index can avoid.
    let len = len.min(MEMORY_LEN_MAX);
    let memory = vec![1u8; len as usize];
    best("memory     one random byte, chained", || {
        let mut state = 1u64;
        let mut n_read = 0;
        for _ in 0..N_LOOKUPS {
            state = state
                .wrapping_mul(0x5851_f42d_4c95_7f2d)
                .wrapping_add(0x1405_7b7e_f767_814f);
            let at = ((u128::from(state) * u128::from(len)) >> 64) as usize;
            let byte = memory.get(at).copied().unwrap_or(0);
            state = state.wrapping_add(u64::from(byte));
            n_read += usize::from(byte);
        }
        n_read
    });
    drop(memory);
    let mut out = Vec::new();
    best("hit        get", || {
        let mut n_found = 0;
        for key in &hits {
            out.clear();
            index.get(black_box(key), &mut out);
            n_found += out.len();
        }
        n_found
    });
    best("hit        first", || {
        hits.iter()
            .filter(|key| index.first(black_box(key)).is_some())
            .count()
    });
    best("hit        get_many of 64", || {
        hits.chunks(64)
            .map(|keys| index.get_many(black_box(keys)).iter().flatten().count())
            .sum()
    });
    // Each look-up waits for the one before, so that nothing overlaps.
    best("hit        chained", || {
        let mut last = 0;
        let mut n_found = 0;
        for i in 0..hits.len() {
            let found = hits
                .get(i + black_box(last & 1 << 40) as usize)
                .and_then(|k| index.first(k));
            last = found.map_or(0, |location| location.offset);
            n_found += usize::from(found.is_some());
        }
        n_found
    });
    best("miss       contains", || {
        misses
            .iter()
            .filter(|key| index.contains(black_box(key)))
            .count()
    });
    best("miss       chained", || {
        let mut last = false;
        let mut n_found = 0;
        for i in 0..misses.len() {
            let key = misses.get(i + usize::from(black_box(last)));
            last = key.is_some_and(|key| index.contains(key));
            n_found += usize::from(last);
        }
        n_found
    });
    Ok(())
}

/// Prints the best and the worst of some passes: other work on the machine makes passes slower,
/// never quicker.
fn best(what: &str, mut pass: impl FnMut() -> usize) {
    let mut nanos = Vec::new();
    let mut n_found = 0;
    for _ in 0..N_PASSES {
        let start = on_cpu_ns();
        n_found = black_box(pass());
        nanos.push((on_cpu_ns() - start) / N_LOOKUPS as f64);
    }
    let least = nanos.iter().copied().fold(f64::INFINITY, f64::min);
    let most = nanos.iter().copied().fold(0.0, f64::max);
    println!("{what}: {least:.0} ns (to {most:.0}; {n_found} found)");
}

fn commit_files(dir: &Path) -> Result<(), Box<dyn Error>> {
    const N_FILES: u64 = 20_000;
    let store = Store::open(dir, OpenMode::Create)?;
    println!("\ncatalog, {N_FILES} containers and as many paths");
    for round in 0..3 {
        let start = Instant::now();
        let mut batch = Batch::new();
        let mut members = Vec::new();
        for index in 0..N_FILES {
            let path = format!("/data/{round}/dir{}/some file {index}.txt", index % 100);
            let id = store.new_container_id();
            members.push(id);
            let record = ContainerRecord {
                kind: ContainerKind::File,
                source: SOURCE_LOCAL,
                path: path.into_bytes(),
                size: index,
                validator: Validator::default(),
            };
            batch.put_container(id, &record);
            let path = PathRecord {
                container: Some(id),
                pack: None,
                validator: Validator::default(),
                cid: Cid::new_v1(0x55, key(index)),
                file_len: index,
                dag_len: index,
                n_blocks: 1,
            };
            let key = PathKey {
                source: SOURCE_LOCAL,
                profile: 7,
                path: record.path,
            };
            batch.put_path(&key, &path);
        }
        let made = start.elapsed().as_secs_f64() * 1e3;
        let cpu = cpu_ms()?;
        store.commit(batch)?;
        let wall = start.elapsed().as_secs_f64() * 1e3 - made;
        let cpu = cpu_ms()? - cpu;
        println!("batch      {made:.0} ms to fill, commit {wall:.0} ms wall, {cpu:.0} ms CPU");
        let snapshot = store.catalog();
        let start = Instant::now();
        for id in &members {
            black_box(snapshot.container(*id)?);
        }
        let each = start.elapsed().as_secs_f64() * 1e9 / N_FILES as f64;
        println!("container  {each:.0} ns a point read");
        let top = PathKey {
            source: SOURCE_LOCAL,
            profile: 7,
            path: format!("/data/{round}").into_bytes(),
        };
        let start = Instant::now();
        let n_rows = snapshot.paths_below(&top)?.flatten().count();
        println!(
            "scan       {n_rows} paths in {:.1} ms",
            start.elapsed().as_secs_f64() * 1e3
        );
    }
    Ok(())
}

/// Nanoseconds that this thread has run: on a busy machine waiting for a core is no cost of ours.
fn on_cpu_ns() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap_or_default();
    stat.split_whitespace()
        .next()
        .and_then(|field| field.parse().ok())
        .unwrap_or(0.0)
}

/// User and system time of this process so far.
fn cpu_ms() -> Result<f64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<f64>().unwrap_or(0.0))
        .sum();
    Ok(ticks * 10.0) // 100 ticks a second on Linux.
}
