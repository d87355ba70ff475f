//! What matters once an index is larger than memory, or changes while it is used.
//!
//! In       segments in a directory. Out one line a figure: cold hits and what they read, restart,
//!          look-ups beside a merge, the drop of a container.
//! Not here warm look-ups (`main`).

use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use carrack::store::catalog::{
    Batch, ContainerKind, ContainerRecord, RootKind, RootRecord, SOURCE_LOCAL, Validator,
};
use carrack::store::gate::WriteGate;
use carrack::store::index::{
    ENTRIES_MAX, Index, Merged, RESIDENT_LEN_MAX_SERVING, Segment, SegmentId, SegmentMeta, merge,
    segment_name,
};
use carrack::store::location::{ContainerId, Location};
use carrack::store::{Merger, OpenMode, Step, Store};
use carrack_formats::Cid;

use super::key;

const N_COLD: u64 = 4_000;
/// Blocks of the container that is dropped, at most.
const N_DROPPED_MAX: u64 = 10_000_000;
/// Entries ingested while segments are merged, at most.
const N_INGESTED_MAX: u64 = 10_000_000;

/// A key that is there, by a random number.
fn hit(i: u64, n_entries: u64) -> carrack_formats::Multihash {
    key(i.wrapping_mul(0x9e37_79b9_7f4a_7c15) % n_entries)
}

/// Takes the files out of the page cache.
fn forget(paths: &[std::path::PathBuf]) -> Result<(), Box<dyn Error>> {
    for path in paths {
        let file = File::open(path)?;
        file.sync_all()?;
        rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed)?;
    }
    Ok(())
}

/// Bytes that this process had read from disks, and its major page faults.
fn disk_reads() -> Result<(u64, u64), Box<dyn Error>> {
    let io = std::fs::read_to_string("/proc/self/io")?;
    let bytes = io
        .lines()
        .find_map(|line| line.strip_prefix("read_bytes: "));
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let faults = fields.split_whitespace().nth(9);
    Ok((
        bytes.unwrap_or("0").parse()?,
        faults.unwrap_or("0").parse()?,
    ))
}

/// Hits and misses on an index of which only filters and fences are in memory.
pub(crate) fn cold(
    dir: &Path,
    segments: &[SegmentMeta],
    n_entries: u64,
) -> Result<(), Box<dyn Error>> {
    let paths: Vec<_> = segments
        .iter()
        .map(|meta| dir.join(segment_name(meta.id)))
        .collect();
    forget(&paths)?;
    let start = Instant::now();
    let index = Index::open_with(dir, segments, RESIDENT_LEN_MAX_SERVING)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    println!("cold open  {open_ms:.0} ms wall, filters and fences read");
    let resident = index.resident_len() as f64 / f64::from(1 << 20);
    println!("resident   {resident:.1} MiB of filters and fences");
    forget(&paths)?;
    for (what, first) in [("cold hit ", 0), ("cold miss", n_entries)] {
        let before = disk_reads()?;
        let mut micros = Vec::new();
        let mut n_found = 0;
        for i in 0..N_COLD {
            let key = if first == 0 {
                hit(i, n_entries)
            } else {
                key(first + i)
            };
            let start = Instant::now();
            n_found += usize::from(black_box(index.first(&key)).is_some());
            micros.push(start.elapsed().as_secs_f64() * 1e6);
        }
        let after = disk_reads()?;
        micros.sort_by(f64::total_cmp);
        let at = |part: f64| {
            let index = (micros.len() as f64 * part) as usize;
            micros.get(index).copied().unwrap_or(0.0)
        };
        let n = N_COLD as f64;
        println!(
            "{what}  {:.0} B read each, {:.3} major faults, p50 {:.1} us, p99 {:.0} us; {n_found} \
             found",
            (after.0 - before.0) as f64 / n,
            (after.1 - before.1) as f64 / n,
            at(0.5),
            at(0.99)
        );
    }
    Ok(())
}

/// A store with these segments, closed, forgotten by the page cache, and opened again.
pub(crate) fn restart(
    dir: &Path,
    segments: &[SegmentMeta],
    n_entries: u64,
) -> Result<(), Box<dyn Error>> {
    let store_dir = dir.join("restart");
    let store = Store::open(&store_dir, OpenMode::Create)?;
    let mut batch = Batch::new();
    let mut paths = vec![store_dir.join("catalog.redb")];
    for meta in segments {
        let name = segment_name(meta.id);
        let path = store_dir.join("segments").join(&name);
        std::fs::hard_link(dir.join(&name), &path)?;
        paths.push(path);
        batch.add_segment(*meta);
    }
    store.commit(batch)?;
    drop(store);
    forget(&paths)?;
    let start = Instant::now();
    let store = Store::open(&store_dir, OpenMode::Existing)?;
    let open_ms = start.elapsed().as_secs_f64() * 1e3;
    let found = store.index().first(&hit(1, n_entries)).is_some();
    let first_ms = start.elapsed().as_secs_f64() * 1e3;
    store.load_index_heads(RESIDENT_LEN_MAX_SERVING)?;
    let loaded_ms = start.elapsed().as_secs_f64() * 1e3;
    let first_found = u8::from(found);
    println!(
        "restart    {first_ms:.0} ms to the first hit ({first_found} found), {open_ms:.0} ms open, \
         {loaded_ms:.0} ms until filters and fences are in memory"
    );
    drop(store);
    std::fs::remove_dir_all(&store_dir)?;
    Ok(())
}

/// Times of single look-ups, for as long as `go_on` says.
fn latencies(index: &Index, n_entries: u64, go_on: &mut dyn FnMut() -> bool) -> Vec<u64> {
    let mut nanos = Vec::new();
    let mut i = 0;
    while nanos.len() < 20_000_000 && (i % 1024 != 0 || go_on()) {
        let key = hit(i, n_entries);
        i += 1;
        let start = Instant::now();
        black_box(index.first(&key));
        nanos.push(start.elapsed().as_nanos() as u64);
    }
    nanos.sort_unstable();
    nanos
}

/// Look-ups in several segments while a thread merges them, as a serving node's does.
pub(crate) fn beside_merge(
    dir: &Path,
    segments: &[SegmentMeta],
    n_entries: u64,
) -> Result<(), Box<dyn Error>> {
    let index = Index::open_with(dir, segments, RESIDENT_LEN_MAX_SERVING)?;
    index.check()?;
    let print = |what: &str, nanos: &[u64]| {
        let at = |part: f64| {
            let index = (nanos.len() as f64 * part) as usize;
            nanos.get(index).copied().unwrap_or(0)
        };
        let (p50, p99, p999) = (at(0.5), at(0.99), at(0.999));
        println!("{what}  p50 {p50} ns, p99 {p99} ns, p99.9 {p999} ns");
        p99 as f64
    };
    let start = Instant::now();
    let alone = latencies(&index, n_entries, &mut || {
        start.elapsed() < Duration::from_secs(3)
    });
    let p99_alone = print("hit alone       ", &alone);
    let (done, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let started = Instant::now();
    let (beside, merged) = std::thread::scope(|scope| {
        let merging = scope.spawn(|| {
            let _ = rustix::process::nice(5);
            let merged = merge_all(dir, segments, &stop);
            done.store(true, Ordering::Relaxed);
            merged
        });
        let mut go_on = || !done.load(Ordering::Relaxed);
        let beside = latencies(&index, n_entries, &mut go_on);
        (beside, merging.join())
    });
    let secs = started.elapsed().as_secs_f64();
    let merged = merged.map_err(|_| "the merging thread panicked")??;
    let times = print("hit beside merge", &beside) / p99_alone;
    println!("p99        {times:.2} times as long beside a merge as without");
    let rate = n_entries as f64 / secs / 1e6;
    println!("merge of 8 {secs:.1} s beside look-ups, {rate:.2} M/s");
    std::fs::remove_file(dir.join(segment_name(merged)))?;
    stopping(dir, segments)
}

fn merge_all(
    dir: &Path,
    segments: &[SegmentMeta],
    stop: &AtomicBool,
) -> carrack::Result<SegmentId> {
    let gate = Arc::new(WriteGate::default());
    let inputs: carrack::Result<Vec<_>> = segments
        .iter()
        .map(|meta| Segment::open(dir.join(segment_name(meta.id)), meta, false).map(Arc::new))
        .collect();
    let id = SegmentId(1 << 40);
    let merged = merge(dir, id, &gate, &inputs?, &mut |_| Ok(false), stop)?;
    debug_assert!(matches!(merged, Merged::Segment(_) | Merged::Stopped));
    Ok(id)
}

/// How long a merge goes on after it was asked to stop.
fn stopping(dir: &Path, segments: &[SegmentMeta]) -> Result<(), Box<dyn Error>> {
    let stop = AtomicBool::new(false);
    let mut worst = 0.0f64;
    for round in 1..=5 {
        stop.store(false, Ordering::Relaxed);
        let asked = std::thread::scope(|scope| {
            let merging = scope.spawn(|| merge_all(dir, segments, &stop).map(|_| ()));
            std::thread::sleep(Duration::from_millis(100 * round));
            let asked = Instant::now();
            stop.store(true, Ordering::Relaxed);
            let _ = merging.join();
            asked.elapsed()
        });
        worst = worst.max(asked.as_secs_f64() * 1e3);
    }
    println!("stop       {worst:.0} ms until a merge has stopped, at most");
    let left = dir.join(segment_name(SegmentId(1 << 40)));
    let _ = std::fs::remove_file(left); // A small one may have been done before.
    Ok(())
}

/// Runs come as fast as they can be written while a thread merges, as a serving node's does.
pub(crate) fn beside_ingest(dir: &Path, n_entries: u64) -> Result<(), Box<dyn Error>> {
    let n_entries = n_entries.min(N_INGESTED_MAX);
    let store = Store::open(dir, OpenMode::Create)?;
    let container = store.new_container_id();
    let (done, stop) = (AtomicBool::new(false), AtomicBool::new(false));
    let start = Instant::now();
    let most = std::thread::scope(|scope| -> Result<usize, Box<dyn Error>> {
        let merging = scope.spawn(|| {
            let _ = rustix::process::nice(5);
            let mut merger = Merger::default();
            loop {
                let is_last = done.load(Ordering::Relaxed);
                if merger.step(&store, &stop) == Step::Idle {
                    if is_last {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(20));
                }
            }
        });
        let ingested = ingest(&store, container, n_entries);
        let secs = start.elapsed().as_secs_f64();
        done.store(true, Ordering::Relaxed);
        let _ = merging.join();
        let rate = n_entries as f64 / secs / 1e6;
        println!("\ningest     {rate:.2} M entries/s beside merging");
        ingested
    })?;
    let secs = start.elapsed().as_secs_f64();
    let left = store.index().segments().len();
    println!("keeps up   {most} segments at most, {left} after {secs:.1} s in all");
    Ok(())
}

/// Gives the most segments that were live at once.
fn ingest(store: &Store, container: ContainerId, n_entries: u64) -> Result<usize, Box<dyn Error>> {
    let (mut run, mut most) = (store.run_writer()?, 0);
    for i in 0..n_entries {
        let location = Location {
            container,
            offset: i << 12,
            len: 1 << 12,
            wrapped: false,
        };
        run.push(&key(i), location)?;
        if run.len() >= ENTRIES_MAX / 16 || i + 1 == n_entries {
            let full = std::mem::replace(&mut run, store.run_writer()?);
            let mut batch = Batch::new();
            if let Some(meta) = full.finish()? {
                batch.add_segment(meta);
            }
            store.commit(batch)?;
            most = most.max(store.index().segments().len());
        }
    }
    Ok(most)
}

/// A container of many blocks goes: one transaction, and what it costs until they are merged away.
pub(crate) fn drop_container(dir: &Path, n_entries: u64) -> Result<(), Box<dyn Error>> {
    let n_blocks = n_entries.min(N_DROPPED_MAX);
    let store = Store::open(dir, OpenMode::Create)?;
    let container = store.new_container_id();
    let mut run = store.run_writer()?;
    let mut segments = Vec::new();
    for i in 0..n_blocks {
        let location = Location {
            container,
            offset: i << 12,
            len: 1 << 12,
            wrapped: false,
        };
        run.push(&key(i), location)?;
        if run.is_full() {
            segments.extend(std::mem::replace(&mut run, store.run_writer()?).finish()?);
        }
    }
    segments.extend(run.finish()?);
    let record = ContainerRecord {
        kind: ContainerKind::Car,
        source: SOURCE_LOCAL,
        path: b"/data/large.car".to_vec(),
        size: n_blocks << 12,
        validator: Validator::default(),
    };
    let root = RootRecord {
        id: store.new_root_id(),
        cid: Cid::new_v1(0x55, key(0)),
        path: record.path.clone(),
        name: b"large.car".to_vec(),
        profile: 1,
        kind: RootKind::Import,
        created_unix: 1,
        bytes: record.size,
        n_blocks,
        n_files: 0,
        source: SOURCE_LOCAL,
        is_whole: false,
    };
    let id = root.id;
    let mut batch = Batch::new();
    batch.put_container(container, &record);
    batch.put_root(root, vec![container]);
    for meta in segments {
        batch.add_segment(meta);
    }
    store.commit(batch)?;
    let start = Instant::now();
    store.remove_root(id)?;
    let drop_ms = start.elapsed().as_secs_f64() * 1e3;
    println!("\ndrop       {drop_ms:.1} ms for a container of {n_blocks} blocks");
    let (start, stop) = (Instant::now(), AtomicBool::new(false));
    let mut merger = Merger::default();
    while merger.step(&store, &stop) == Step::Merged {}
    let secs = start.elapsed().as_secs_f64();
    let left = store.index().n_records();
    println!("swept      {secs:.2} s in the background, {left} records left");
    Ok(())
}
