//! The rows of the table, one function each.
//!
//! In       the programs, and data made once.
//! Out      lines with ratios and targets.
//! Limits   frisbii cannot be installed here: its figures are recorded ones (version 0.10, two
//!          cores, the same work) and are marked so.
//! Not here how a figure is taken (`process`, `load`).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use super::Bench;
use super::load::{self, Bound, Wrk};
use super::process::{Daemon, Run};
use super::table::Line;
use super::table::Target::{AtLeast, AtMost, Shown};
use crate::shell::{Result, cargo, output};

/// CPU seconds a GB of frisbii serving a CAR to one client, recorded.
const FRISBII_CAR_CPU_PER_GB: f64 = 4.4;
/// 99th percentile in ms of frisbii serving 4 KiB blocks on 256 connections, recorded.
const FRISBII_P99_MS: f64 = 89.0;
const MIB: f64 = (1 << 20) as f64;

/// MB/s of a run over so many bytes.
fn rate(run: &Run, len: u64) -> f64 {
    len as f64 / run.seconds / 1e6
}

/// CPU seconds for 10^9 bytes.
fn cpu(run: &Run, len: u64) -> f64 {
    run.cpu_seconds / len as f64 * 1e9
}

fn bound(bench: &Bench) -> Result<Bound> {
    load::sha256_bound(bench.sizes.file_len / 2)
}

pub(super) fn add_file(bench: &Bench) -> Result<Vec<Line>> {
    let (file, len) = (bench.big_file()?, bench.sizes.file_len);
    let bound = bound(bench)?;
    let ours = bench.best(|| {
        bench.forget(&["store"])?;
        Ok(bench.carrack("store", &["add", "-Q"], Some(&file)))
    })?;
    let theirs = bench.best(|| {
        bench.fresh_repo("repo")?;
        Ok(bench.ipfs(
            "repo",
            &["add", "-Q", "--nocopy", "--offline", "--pin=false"],
            Some(&file),
        ))
    })?;
    same(&ours.stdout, &theirs.stdout)?;
    let sha256 = ("sha256", bound.rate / 1e6);
    let nocopy = ("kubo --nocopy", rate(&theirs, len));
    Ok(vec![
        Line::ratio(
            "add one file",
            "MB/s",
            rate(&ours, len),
            sha256,
            AtLeast(0.8),
        ),
        Line::ratio(
            "add one file, CPU",
            "s/GB",
            cpu(&ours, len),
            ("sha256", bound.cpu_per_gb),
            AtMost(1.25),
        ),
        Line::ratio("add one file", "MB/s", rate(&ours, len), nocopy, Shown),
    ])
}

pub(super) fn add_tree(bench: &Bench) -> Result<Vec<Line>> {
    let (tree, len) = bench.tree()?;
    let add = || bench.carrack("store", &["add", "-Q"], Some(&tree));
    let ours = bench.best(|| {
        bench.forget(&["store"])?;
        Ok(add())
    })?;
    let again = bench.best(|| Ok(add()))?;
    let theirs = bench.best(|| {
        bench.fresh_repo("repo")?;
        let args = ["add", "-Q", "-r", "--nocopy", "--offline", "--pin=false"];
        Ok(bench.ipfs("repo", &args, Some(&tree)))
    })?;
    same(&ours.stdout, &theirs.stdout)?;
    let kubo = |figure| ("kubo --nocopy", figure);
    let n = bench.sizes.n_files;
    let work = format!("add {n} files");
    Ok(vec![
        Line::ratio(
            &work,
            "MB/s",
            rate(&ours, len),
            kubo(rate(&theirs, len)),
            AtLeast(6.0),
        ),
        Line::ratio(
            &format!("{work}, CPU"),
            "s/GB",
            cpu(&ours, len),
            kubo(cpu(&theirs, len)),
            AtMost(0.25),
        ),
        Line::ratio(
            &format!("add {n} files again"),
            "s",
            again.seconds,
            ("first", ours.seconds),
            AtMost(0.1),
        ),
        Line::ratio(
            &format!("add {n} files again, CPU"),
            "s",
            again.cpu_seconds,
            ("first", ours.cpu_seconds),
            Shown,
        ),
    ])
}

pub(super) fn import(bench: &Bench) -> Result<Vec<Line>> {
    let car = big_car(bench)?;
    let len = fs::metadata(&car)?.len();
    let bound = bound(bench)?;
    let ours = bench.best(|| {
        bench.forget(&["store"])?;
        Ok(bench.carrack("store", &["import", "-Q"], Some(&car)))
    })?;
    let theirs = bench.best(|| {
        bench.fresh_repo("repo")?;
        Ok(bench.ipfs("repo", IMPORT, Some(&car)))
    })?;
    let kubo = |figure| ("kubo dag import", figure);
    let sha256 = ("sha256", bound.rate / 1e6);
    let ours_rate = rate(&ours, len);
    Ok(vec![
        Line::ratio("import a CAR", "MB/s", ours_rate, sha256, AtLeast(0.8)),
        Line::ratio(
            "import a CAR",
            "MB/s",
            ours_rate,
            kubo(rate(&theirs, len)),
            AtLeast(4.0),
        ),
        Line::ratio(
            "import a CAR, CPU",
            "s/GB",
            cpu(&ours, len),
            kubo(cpu(&theirs, len)),
            AtMost(0.25),
        ),
    ])
}

const IMPORT: &[&str] = &[
    "dag",
    "import",
    "--offline",
    "--pin-roots=false",
    "--stats=false",
];

/// A CAR of the big file, which kubo and carrack both import.
fn big_car(bench: &Bench) -> Result<std::path::PathBuf> {
    let car = bench.path("big-file.car");
    if !car.is_file() {
        let file = bench.big_file()?;
        export(bench, &file, &car)?;
    }
    Ok(car)
}

fn export(bench: &Bench, path: &Path, car: &Path) -> Result<String> {
    let run = bench.measure(bench.carrack("store-car", &["add", "-Q"], Some(path)))?;
    let root = run.stdout.trim().to_owned();
    let args = ["export", &root, "-o"];
    bench.measure(bench.carrack("store-car", &args, Some(car)))?;
    crate::shell::run(&mut Command::new("sync"))?;
    Ok(root)
}

fn same(ours: &str, theirs: &str) -> Result {
    if ours == theirs {
        return Ok(());
    }
    Err(format!("another root: {} and {}", ours.trim(), theirs.trim()).into())
}

/// What clients got and what the server spent on it.
struct Got {
    /// MB/s of all clients together.
    rate: f64,
    /// CPU seconds for 10^9 bytes.
    cpu: f64,
}

/// The best of some runs of `n_clients` that each take the whole CAR.
fn get(bench: &Bench, server: &Daemon, root: &str, n_clients: usize) -> Result<Got> {
    let path = format!("/ipfs/{root}?format=car&dag-scope=all");
    let mut best = Got {
        rate: 0.0,
        cpu: f64::MAX,
    };
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
        best.rate = best.rate.max(total / start.elapsed().as_secs_f64() / 1e6);
        best.cpu = best.cpu.min((server.cpu_seconds() - cpu) / total * 1e9);
    }
    Ok(best)
}

pub(super) fn get_file(bench: &Bench) -> Result<Vec<Line>> {
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
    let frisbii = ("frisbii (recorded)", FRISBII_CAR_CPU_PER_GB);
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

pub(super) fn get_tree(bench: &Bench) -> Result<Vec<Line>> {
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

/// Adds to a store; the root.
fn added(bench: &Bench, store: &str, options: &[&str], path: &Path) -> Result<String> {
    let args = [&["add", "-Q"], options].concat();
    let run = bench.measure(bench.carrack(store, &args, Some(path)))?;
    Ok(run.stdout.trim().to_owned())
}

/// Adds to a fresh repository, copying as kubo does by default.
fn stored_in_kubo(bench: &Bench, options: &[&str], path: &Path) -> Result {
    bench.fresh_repo("repo")?;
    let args = [&["add", "-Q", "--offline", "--pin=false"], options].concat();
    bench.measure(bench.ipfs("repo", &args, Some(path)))?;
    crate::shell::run(&mut Command::new("sync"))
}

/// What a load generator saw, and CPU microseconds of the server a request.
struct Load {
    wrk: Wrk,
    cpu_us: f64,
}

fn load(bench: &Bench, server: &Daemon, paths: &Path, n_connections: u32) -> Result<Load> {
    let wrk = bench.peers.join("wrk");
    load::wrk(&wrk, &server.url, paths, n_connections, 1)?;
    let cpu = server.cpu_seconds();
    let seen = load::wrk(
        &wrk,
        &server.url,
        paths,
        n_connections,
        bench.sizes.load_seconds,
    )?;
    let cpu_us = (server.cpu_seconds() - cpu) / seen.n_requests * 1e6;
    Ok(Load { wrk: seen, cpu_us })
}

/// As [`load`], for requests that must all be answered well.
fn load_ok(bench: &Bench, server: &Daemon, paths: &Path, n_connections: u32) -> Result<Load> {
    let load = load(bench, server, paths, n_connections)?;
    if load.wrk.n_refused > 0.0 {
        return Err(format!("{} of {} refused", load.wrk.n_refused, load.wrk.n_requests).into());
    }
    Ok(load)
}

fn raw_paths(bench: &Bench, name: &str, cids: &[String]) -> Result<std::path::PathBuf> {
    let path = |cid: &String| format!("/ipfs/{cid}?format=raw");
    load::write_paths(&bench.path(name), cids.iter().map(path))
}

pub(super) fn raw_4k(bench: &Bench) -> Result<Vec<Line>> {
    let file = bench.path("blocks-4k");
    load::file(&file, 4, bench.sizes.n_files * 4_096)?;
    let folder = bench.path("nginx-4k");
    fs::create_dir_all(&folder)?;
    let cids = load::leaves(&file, 4_096, |cid, block| {
        Ok(fs::write(folder.join(cid), block)?)
    })?;
    let gateway_paths = raw_paths(bench, "paths-4k", &cids)?;
    let file_paths = cids.iter().map(|cid| format!("/{cid}"));
    let file_paths = load::write_paths(&bench.path("paths-4k-nginx"), file_paths)?;

    added(bench, "store", &["--chunker", "size-4096"], &file)?;
    let server = bench.serve("store")?;
    let ours = load_ok(bench, &server, &gateway_paths, 16)?;
    let ours_256 = load_ok(bench, &server, &gateway_paths, 256)?;
    drop(server);
    stored_in_kubo(bench, &["--chunker=size-4096"], &file)?;
    let server = bench.kubo("repo")?;
    let kubo = load_ok(bench, &server, &gateway_paths, 16)?;
    let kubo_256 = load_ok(bench, &server, &gateway_paths, 256)?;
    drop(server);
    let server = bench.nginx(&folder)?;
    let nginx = load_ok(bench, &server, &file_paths, 16)?;
    let nginx_256 = load_ok(bench, &server, &file_paths, 256)?;

    let mut lines = Vec::new();
    for (n, ours, kubo, nginx) in [
        (16, &ours, &kubo, &nginx),
        (256, &ours_256, &kubo_256, &nginx_256),
    ] {
        let work = format!("raw 4 KiB, {n} connections");
        let cpu_work = format!("{work}, CPU");
        lines.extend([
            Line::ratio(
                &cpu_work,
                "us",
                ours.cpu_us,
                ("kubo", kubo.cpu_us),
                AtMost(0.2),
            ),
            Line::ratio(
                &cpu_work,
                "us",
                ours.cpu_us,
                ("nginx", nginx.cpu_us),
                AtMost(2.5),
            ),
            Line::ratio(
                &work,
                "/s",
                ours.wrk.per_second,
                ("kubo", kubo.wrk.per_second),
                Shown,
            ),
        ]);
    }
    let frisbii = ("frisbii (recorded)", FRISBII_P99_MS);
    let p99 = ours_256.wrk.p99_ms;
    lines.push(Line::ratio(
        "raw 4 KiB, 256 connections, p99",
        "ms",
        p99,
        frisbii,
        AtMost(1.0),
    ));
    Ok(lines)
}

pub(super) fn raw_1m(bench: &Bench) -> Result<Vec<Line>> {
    let file = bench.big_file()?;
    let cids = load::leaves(&file, 1 << 20, |_, _| Ok(()))?;
    let all = raw_paths(bench, "paths-1m", &cids)?;
    let few = raw_paths(bench, "paths-1m-few", cids.split_at(16).0)?;
    added(bench, "store", &[], &file)?;
    let server = bench.serve("store")?;
    let ours = load_ok(bench, &server, &all, 4)?;
    let ours_few = load_ok(bench, &server, &few, 4)?;
    drop(server);
    stored_in_kubo(bench, &[], &file)?;
    let server = bench.kubo("repo")?;
    let kubo = load_ok(bench, &server, &all, 4)?;
    let kubo_few = load_ok(bench, &server, &few, 4)?;
    let rates = (ours.wrk.per_second, kubo.wrk.per_second);
    Ok(vec![
        Line::ratio(
            "raw 1 MiB, CPU",
            "us",
            ours.cpu_us,
            ("kubo", kubo.cpu_us),
            AtMost(1.0),
        ),
        Line::ratio(
            "raw 1 MiB from the cache, CPU",
            "us",
            ours_few.cpu_us,
            ("kubo", kubo_few.cpu_us),
            AtMost(0.5),
        ),
        Line::ratio("raw 1 MiB", "/s", rates.0, ("kubo", rates.1), Shown),
    ])
}

pub(super) fn absent(bench: &Bench) -> Result<Vec<Line>> {
    let cids: Vec<String> = (0..20_000_u32)
        .map(|n| load::raw_cid(&n.to_le_bytes()))
        .collect();
    let gateway_paths = raw_paths(bench, "paths-absent", &cids)?;
    let file_paths = cids.iter().map(|cid| format!("/{cid}"));
    let file_paths = load::write_paths(&bench.path("paths-absent-nginx"), file_paths)?;
    let (tree, _) = bench.tree()?;
    added(bench, "store", &[], &tree)?;
    let server = bench.serve("store")?;
    let before = server.disk_reads();
    let ours = load(bench, &server, &gateway_paths, 16)?;
    let disk_reads = server.disk_reads() - before;
    drop(server);
    stored_in_kubo(bench, &["-r"], &tree)?;
    let server = bench.kubo("repo")?;
    let kubo = load(bench, &server, &gateway_paths, 16)?;
    drop(server);
    let server = bench.nginx(&tree)?;
    let nginx = load(bench, &server, &file_paths, 16)?;
    for load in [&ours, &kubo, &nginx] {
        if load.wrk.n_refused < load.wrk.n_requests {
            return Err("an absent block was answered with success".into());
        }
    }
    let rates = (ours.wrk.per_second, kubo.wrk.per_second);
    Ok(vec![
        Line::ratio(
            "404, CPU",
            "us",
            ours.cpu_us,
            ("kubo", kubo.cpu_us),
            AtMost(1.0 / 7.0),
        ),
        Line::ratio(
            "404, CPU",
            "us",
            ours.cpu_us,
            ("nginx", nginx.cpu_us),
            AtMost(1.5),
        ),
        Line::bound("404, read from disk", "bytes", disk_reads as f64, 0.0),
        Line::ratio("404", "/s", rates.0, ("kubo", rates.1), Shown),
    ])
}

/// The index measures itself: see `crates/carrack/examples/index_bench.rs`.
pub(super) fn index(bench: &Bench) -> Result<Vec<Line>> {
    let n_entries = bench.sizes.n_entries.to_string();
    let example = [
        "run",
        "--release",
        "--package",
        "carrack",
        "--example",
        "index_bench",
        "--",
    ];
    let text = output(
        cargo()
            .args(example)
            .arg(&n_entries)
            .arg(bench.path("store-index")),
    )?;
    let figure = |mark: &str| {
        let rest = text.lines().find_map(|line| line.strip_prefix(mark));
        let number = rest.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next());
        number
            .and_then(|number| number.parse::<f64>().ok())
            .ok_or_else(|| format!("the example printed no figure for {mark:?}:\n{text}"))
    };
    let work = |what: &str| format!("index of {n_entries} entries, {what}");
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

pub(super) fn memory(bench: &Bench) -> Result<Vec<Line>> {
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
