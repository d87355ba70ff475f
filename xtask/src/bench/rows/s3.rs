//! Rows about data that lie in a bucket: versitygw behind the proxy, 100 MB/s a connection.
//!
//! In       a big object, many small ones, four of which one stalls.
//! Out      rates beside what plain connections give in the same run; bytes read of the bucket for
//!          each byte served; memory beside the budget; CPU.
//! Limits   latencies of 0 and 30 ms; clients, server and proxy run on the same cores.
//! Not here faults and right bytes (`tests/it/peers/s3*`).

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use carrack_testkit::s3::target_of;
use carrack_testkit::{Conduct, Fault, S3Server};

use crate::bench::fetch::{Connection, at_once, percentile_99};
use crate::bench::place::{BIG, FAR, NEAR, Place};
use crate::bench::process::{Daemon, cpu_seconds_here};
use crate::bench::table::Line;
use crate::bench::table::Target::{AtLeast, AtMost, Shown};
use crate::bench::{Bench, load};
use crate::shell::Result;

const MIB: f64 = (1 << 20) as f64;
const BLOCK_LEN: usize = 1 << 20;
const STORE: &str = "far-big";
const N_CLIENTS: usize = 64;
/// What `--block-budget` says, and what memory may be beyond it.
const BUDGET_MIB: &str = "512";
const BESIDE_BUDGET_MIB: f64 = 64.0;
const SMALL_LEN: u64 = 32 << 10;
/// Small objects that are read one after another to know the sequential time.
const N_SEQUENTIAL: u64 = 200;
const N_SOURCES: usize = 4;
const STALLED_CONNECTIONS: usize = 4;

fn named(work: &str, latency: Duration) -> String {
    format!("{work}, {} ms", latency.as_millis())
}

/// Refuses to go on with an answer that is not the whole of what was asked for.
fn whole(got: &crate::bench::fetch::Got, path: &str) -> Result<u64> {
    match got.status {
        200 => Ok(got.len),
        status => Err(format!("{path}: {status}").into()),
    }
}

fn car_of(root: &str) -> String {
    format!("/ipfs/{root}?format=car&dag-scope=all")
}

/// What the place itself gives: the bound of all other rows.
pub(in crate::bench) fn plain(bench: &Bench) -> Result<Vec<Line>> {
    let (place, len) = (bench.place()?, bench.sizes.object_len);
    bench.object(BIG, 1, len)?;
    let mut lines = Vec::new();
    for latency in [FAR, NEAR] {
        place.set_latency(latency);
        let one = place.plain_rate(BIG, 1, (512 << 20).min(len))?;
        let cpu = cpu_seconds_here();
        let many = place.plain_rate(BIG, 32, len)?;
        let cpu = (cpu_seconds_here() - cpu) / len as f64 * 1e9;
        let work = named("bucket: plain GETs, 32 connections", latency);
        let beside = ("one connection", one / 1e6);
        lines.push(Line::ratio(&work, "MB/s", many / 1e6, beside, Shown));
        let work = format!("{work}, CPU of proxy and clients");
        lines.push(Line::ratio(
            &work,
            "s/GB",
            cpu,
            ("sha256", sha256_cpu()?),
            Shown,
        ));
    }
    Ok(lines)
}

/// One client takes the big object as a CAR.
pub(in crate::bench) fn get(bench: &Bench) -> Result<Vec<Line>> {
    let (place, len) = (bench.place()?, bench.sizes.object_len);
    bench.object(BIG, 1, len)?;
    let car = car_of(&bench.added_far(STORE, BIG)?);
    let mut lines = Vec::new();
    for latency in [FAR, NEAR] {
        place.set_latency(latency);
        let one = place.plain_rate(BIG, 1, (512 << 20).min(len))?;
        let server = bench.serve_far(STORE, &["--block-budget", BUDGET_MIB])?;
        place.proxy.reset_counts();
        let (cpu, bytes) = (server.cpu_seconds(), AtomicU64::new(0));
        let got = Connection::open(&server.url)?.get(&car, "", &bytes)?;
        let served = whole(&got, &car)? as f64;
        let cpu = (server.cpu_seconds() - cpu) / served * 1e9;
        let rate = served / got.total.as_secs_f64();
        let target = if latency == FAR { AtLeast(5.0) } else { Shown };
        let work = named("bucket: one client, a CAR", latency);
        let beside = ("one connection", one / 1e6);
        lines.push(Line::ratio(&work, "MB/s", rate / 1e6, beside, target));
        lines.push(read_beside_served(&work, place, served, AtMost(1.05)));
        let bound = load::sha256_bound(256 << 20)?;
        let sha256 = ("sha256 on all cores", bound.rate / 1e6);
        lines.push(Line::ratio(&work, "MB/s", rate / 1e6, sha256, Shown));
        let sha256 = ("sha256", bound.cpu_per_gb);
        let work_cpu = format!("{work}, CPU");
        lines.push(Line::ratio(&work_cpu, "s/GB", cpu, sha256, Shown));
        lines.push(memory(&work, &server));
        if latency == FAR {
            let first = got.first_byte.as_secs_f64() * 1e3;
            let beside = ("latency", latency.as_secs_f64() * 1e3);
            let work = format!("{work}, first byte");
            lines.push(Line::ratio(&work, "ms", first, beside, Shown));
        }
    }
    Ok(lines)
}

fn sha256_cpu() -> Result<f64> {
    Ok(load::sha256_bound(64 << 20)?.cpu_per_gb)
}

fn read_beside_served(
    work: &str,
    place: &Place,
    served: f64,
    target: crate::bench::table::Target,
) -> Line {
    let read = place.proxy.counts().body_bytes as f64;
    let beside = ("served", served / 1e6);
    Line::ratio(
        &format!("{work}, read of the bucket"),
        "MB",
        read / 1e6,
        beside,
        target,
    )
}

fn memory(work: &str, server: &Daemon) -> Line {
    let budget: f64 = BUDGET_MIB.parse().unwrap_or(0.0);
    Line::bound(
        &format!("{work}, resident"),
        "MiB",
        server.peak_memory() as f64 / MIB,
        budget + BESIDE_BUDGET_MIB,
    )
}

/// 64 clients take the same object at once.
pub(in crate::bench) fn clients_64(bench: &Bench) -> Result<Vec<Line>> {
    let (place, len) = (bench.place()?, bench.sizes.object_len);
    bench.object(BIG, 1, len)?;
    let car = car_of(&bench.added_far(STORE, BIG)?);
    let mut lines = Vec::new();
    for latency in [FAR, NEAR] {
        place.set_latency(latency);
        let server = bench.serve_far(STORE, &["--block-budget", BUDGET_MIB])?;
        place.proxy.reset_counts();
        let (cpu, start) = (server.cpu_seconds(), Instant::now());
        let bytes: Vec<AtomicU64> = (0..N_CLIENTS).map(|_| AtomicU64::new(0)).collect();
        let shares = Mutex::new(None);
        at_once(N_CLIENTS, |index| {
            let mine = bytes.get(index).ok_or("more clients than counters")?;
            let got = Connection::open(&server.url)?.get(&car, "", mine)?;
            whole(&got, &car)?;
            // Who is first to end tells how far the others have come.
            let mut first = shares.lock().map_err(|_| "a client panicked")?;
            let now = || bytes.iter().map(|it| it.load(Ordering::Relaxed)).collect();
            first.get_or_insert_with(now);
            Ok(())
        })?;
        let total = bytes
            .iter()
            .map(|it| it.load(Ordering::Relaxed))
            .sum::<u64>() as f64;
        let rate = total / start.elapsed().as_secs_f64();
        let shares: Vec<u64> = shares
            .into_inner()
            .map_err(|_| "a client panicked")?
            .ok_or("no client ended")?;
        let sum: u64 = shares.iter().sum();
        let least = shares.iter().min().copied().unwrap_or(0) as f64 / sum as f64;
        let work = named("bucket: 64 clients, the same CAR", latency);
        let one_copy = total / N_CLIENTS as f64;
        lines.push(read_beside_served(&work, place, one_copy, AtMost(1.1)));
        lines.push(Line::ratio(
            &format!("{work}, least share"),
            "of all",
            least,
            ("1/80", 1.0 / 80.0),
            AtLeast(1.0),
        ));
        lines.push(memory(&work, &server));
        let cpu = (server.cpu_seconds() - cpu) / total * 1e9;
        lines.push(Line::ratio(
            &format!("{work}, all together"),
            "MB/s",
            rate / 1e6,
            ("CPU s/GB", cpu),
            Shown,
        ));
    }
    Ok(lines)
}

/// An order of `n` numbers that a seed decides.
fn shuffled(n: usize, seed: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut random = load::Seeded::new(seed);
    for left in (1..n).rev() {
        let other = usize::try_from(random.next() % (left as u64 + 1)).unwrap_or(0);
        order.swap(left, other);
    }
    order
}

/// What clients of single blocks saw.
struct Blocks {
    served: u64,
    seconds: f64,
    times: Vec<Duration>,
}

/// Takes the blocks in this order, `n_connections` at a time, each connection the next.
fn take(url: &str, cids: &[&String], n_connections: usize) -> Result<Blocks> {
    let (next, bytes, start) = (AtomicU64::new(0), AtomicU64::new(0), Instant::now());
    let times = at_once(n_connections, |_| {
        let mut connection = Connection::open(url)?;
        let mut times = Vec::new();
        loop {
            let index = usize::try_from(next.fetch_add(1, Ordering::Relaxed))?;
            let Some(cid) = cids.get(index) else {
                return Ok(times);
            };
            let path = format!("/ipfs/{cid}?format=raw");
            let got = connection.get(&path, "", &bytes)?;
            whole(&got, &path)?;
            times.push(got.total);
        }
    })?;
    Ok(Blocks {
        served: bytes.into_inner(),
        seconds: start.elapsed().as_secs_f64(),
        times: times.concat(),
    })
}

/// 64 clients ask for single blocks of 1 MiB in random order.
pub(in crate::bench) fn raw_64(bench: &Bench) -> Result<Vec<Line>> {
    let (place, len) = (bench.place()?, bench.sizes.object_len);
    bench.object(BIG, 1, len)?;
    bench.added_far(STORE, BIG)?;
    let cids = load::leaves(&place.server.file_of(BIG), BLOCK_LEN, |_, _| Ok(()))?;
    let order: Vec<&String> = shuffled(cids.len(), 7)
        .into_iter()
        .filter_map(|index| cids.get(index))
        .collect();
    let mut lines = Vec::new();
    for latency in [FAR, NEAR] {
        place.set_latency(latency);
        let server = bench.serve_far(STORE, &["--block-budget", BUDGET_MIB])?;
        place.proxy.reset_counts();
        let cpu = server.cpu_seconds();
        let got = take(&server.url, &order, N_CLIENTS)?;
        let work = named("bucket: 64 clients, random blocks of 1 MiB", latency);
        let served = got.served as f64;
        lines.push(read_beside_served(&work, place, served, AtMost(1.0)));
        lines.push(memory(&work, &server));
        let cpu = (server.cpu_seconds() - cpu) / served * 1e9;
        lines.push(Line::ratio(
            &format!("{work}, all together"),
            "MB/s",
            served / got.seconds / 1e6,
            ("CPU s/GB", cpu),
            Shown,
        ));
    }
    Ok(lines)
}

/// A CAR of many small objects.
pub(in crate::bench) fn tree(bench: &Bench) -> Result<Vec<Line>> {
    let (place, n) = (bench.place()?, bench.sizes.n_objects);
    bench.objects("small", n, SMALL_LEN)?;
    let car = car_of(&bench.added_far("far-small", "small/")?);
    let mut lines = Vec::new();
    for latency in [FAR, NEAR] {
        place.set_latency(latency);
        let sequential = one_after_another(place)? * n as f64;
        let server = bench.serve_far("far-small", &["--block-budget", BUDGET_MIB])?;
        place.proxy.reset_counts();
        let bytes = AtomicU64::new(0);
        let got = Connection::open(&server.url)?.get(&car, "", &bytes)?;
        let served = whole(&got, &car)? as f64;
        let work = named(&format!("bucket: a CAR of {n} objects of 32 KiB"), latency);
        let target = if latency == FAR { AtLeast(30.0) } else { Shown };
        let rate = n as f64 / got.total.as_secs_f64();
        let beside = ("one after another", n as f64 / sequential);
        lines.push(Line::ratio(&work, "objects/s", rate, beside, target));
        lines.push(read_beside_served(&work, place, served, AtMost(1.05)));
    }
    Ok(lines)
}

/// Seconds for a small object when one connection reads them in turn.
fn one_after_another(place: &Place) -> Result<f64> {
    let mut connection = Connection::open(&place.proxy.url())?;
    let (bytes, start) = (AtomicU64::new(0), Instant::now());
    for number in 0..N_SEQUENTIAL {
        let key = format!("small/object-{number:05}");
        let target = S3Server::signed_get(place.proxy.address(), &key);
        whole(&connection.get(&target, "", &bytes)?, &key)?;
    }
    Ok(start.elapsed().as_secs_f64() / N_SEQUENTIAL as f64)
}

/// `carrack add` of the big object, nothing known before.
pub(in crate::bench) fn add(bench: &Bench) -> Result<Vec<Line>> {
    let (place, len) = (bench.place()?, bench.sizes.object_len);
    bench.object(BIG, 1, len)?;
    let mut lines = Vec::new();
    for latency in [FAR, NEAR] {
        place.set_latency(latency);
        let plain = place.plain_rate(BIG, 32, len)?;
        let sha256 = load::sha256_bound(len / 8)?;
        bench.forget(&["far-add"])?;
        place.proxy.reset_counts();
        let run = bench.add_far("far-add", BIG)?;
        let again = place.plain_rate(BIG, 32, len)?;
        let plain = plain.max(again);
        let read = place.proxy.counts().body_bytes.saturating_sub(len) as f64;
        let rate = len as f64 / run.seconds;
        let work = named("bucket: add", latency);
        let target = if latency == FAR { AtLeast(0.9) } else { Shown };
        let bound = ("min(sha256, 32 connections)", plain.min(sha256.rate) / 1e6);
        lines.push(Line::ratio(&work, "MB/s", rate / 1e6, bound, target));
        // The cores that hash also carry server, proxy and sockets: both together take so long.
        let shared = 1.0 / (1.0 / plain + 1.0 / sha256.rate);
        let beside = ("both on the same cores", shared / 1e6);
        lines.push(Line::ratio(&work, "MB/s", rate / 1e6, beside, Shown));
        lines.push(Line::ratio(
            &format!("{work}, read of the bucket"),
            "MB",
            read / 1e6,
            ("its size", len as f64 / 1e6),
            AtMost(1.01),
        ));
        lines.push(Line::ratio(
            &format!("{work}, CPU"),
            "s/GB",
            run.cpu_seconds / len as f64 * 1e9,
            ("sha256", sha256.cpu_per_gb),
            Shown,
        ));
        lines.push(Line::bound(
            &format!("{work}, resident"),
            "MiB",
            run.memory as f64 / MIB,
            BUDGET_MIB.parse::<f64>()? + BESIDE_BUDGET_MIB,
        ));
    }
    Ok(lines)
}

/// Four sources; one stops answering while clients wait for it.
pub(in crate::bench) fn stalled(bench: &Bench) -> Result<Vec<Line>> {
    let place = bench.place()?;
    let mut cids = Vec::new();
    for source in 0..N_SOURCES {
        let key = format!("source-{source}/object");
        bench.object(&key, 100 + source as u64, bench.sizes.stalled_len)?;
        place.set_latency(NEAR);
        bench.add_far("far-stalled", &format!("source-{source}/"))?;
        let file = place.server.file_of(&key);
        cids.push(load::leaves(&file, BLOCK_LEN, |_, _| Ok(()))?);
    }
    place.set_latency(FAR);
    let server = bench.serve_far("far-stalled", &["--block-budget", BUDGET_MIB])?;
    let calm = healthy_three(&server, &cids, 0)?;
    place
        .proxy
        .set_below(&target_of("source-0/"), Conduct::always(Fault::Hang));
    let done = std::sync::atomic::AtomicBool::new(false);
    let stormy = std::thread::scope(|scope| {
        for index in 0..STALLED_CONNECTIONS {
            let (server, cids, done) = (&server, &cids, &done);
            scope.spawn(move || wait_in_vain(&server.url, cids, index, done));
        }
        let measured = healthy_three(&server, &cids, 1).map_err(|error| error.to_string());
        done.store(true, Ordering::Relaxed);
        place.set_latency(FAR); // What still hangs is let go when its connection ends.
        measured
    })?;
    let rate = |blocks: &Blocks| blocks.served as f64 / blocks.seconds / 1e6;
    let p99 = |blocks: Blocks| percentile_99(blocks.times).as_secs_f64() * 1e3;
    let work = "bucket: three sources beside a stalled one";
    let (before, now) = (rate(&calm), rate(&stormy));
    Ok(vec![
        Line::ratio(work, "MB/s", now, ("without it", before), AtLeast(0.95)),
        Line::ratio(
            &format!("{work}, p99"),
            "ms",
            p99(stormy),
            ("without it", p99(calm)),
            AtMost(1.2),
        ),
        memory(work, &server),
    ])
}

/// Clients of sources 1 to 3, all at once, each block once: those of this half.
fn healthy_three(server: &Daemon, cids: &[Vec<String>], half: usize) -> Result<Blocks> {
    let start = Instant::now();
    let all = at_once(N_SOURCES - 1, |index| {
        let cids = cids.get(index + 1).ok_or("a source without blocks")?;
        let order = shuffled(cids.len(), 11);
        let mine = order.into_iter().filter(|number| number % 2 == half);
        let mine: Vec<&String> = mine.filter_map(|number| cids.get(number)).collect();
        take(&server.url, &mine, STALLED_CONNECTIONS)
    })?;
    Ok(Blocks {
        served: all.iter().map(|blocks| blocks.served).sum(),
        seconds: start.elapsed().as_secs_f64(),
        times: all.into_iter().flat_map(|blocks| blocks.times).collect(),
    })
}

/// Asks the stalled source for one block after another; refusals are what is expected.
fn wait_in_vain(
    url: &str,
    cids: &[Vec<String>],
    index: usize,
    done: &std::sync::atomic::AtomicBool,
) {
    let bytes = AtomicU64::new(0);
    let mine = cids.iter().take(1).flatten().skip(index);
    for cid in mine.step_by(STALLED_CONNECTIONS) {
        if done.load(Ordering::Relaxed) {
            return;
        }
        let path = format!("/ipfs/{cid}?format=raw");
        let _ = Connection::open(url).and_then(|mut it| it.get(&path, "", &bytes));
    }
}
