//! Rows about single blocks: there, and not there.
//!
//! In       lists of paths, asked for by wrk.
//! Out      CPU a request beside kubo and nginx, rates, the 99th percentile.
//! Limits   frisbii's figure is a recorded one (version 0.10, two cores, the same work).
//! Not here CARs (`cars`).

use std::fs;
use std::path::Path;

use super::{added, raw_paths, stored_in_kubo};
use crate::bench::load::Wrk;
use crate::bench::process::Daemon;
use crate::bench::table::Line;
use crate::bench::table::Target::{AtMost, Shown};
use crate::bench::{Bench, load};
use crate::shell::Result;

/// 99th percentile in ms of frisbii serving 4 KiB blocks on 256 connections, recorded.
const FRISBII_P99_MS: f64 = 89.0;

/// What a load generator saw, and CPU microseconds of the server a request.
struct Load {
    wrk: Wrk,
    cpu_us: f64,
}

fn load(bench: &Bench, server: &Daemon, paths: &Path, n_connections: u32) -> Result<Load> {
    let wrk = bench.peers.join("wrk");
    load::wrk(&wrk, &server.url, paths, n_connections, 1)?; // Brings everything into memory.
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

/// As [`load()`], for requests that must all be answered with 404.
fn load_absent(bench: &Bench, server: &Daemon, paths: &Path) -> Result<Load> {
    let list = fs::read_to_string(paths)?;
    match load::drain(&server.url, list.lines().next().unwrap_or_default()) {
        Err(error) if error.to_string().contains(" 404 ") => {}
        other => return Err(format!("an absent block was answered with {other:?}").into()),
    }
    let load = load(bench, server, paths, 16)?;
    if load.wrk.n_refused < load.wrk.n_requests {
        return Err("an absent block was answered with success".into());
    }
    Ok(load)
}

/// As [`load()`], for requests that must all be answered well.
fn load_ok(bench: &Bench, server: &Daemon, paths: &Path, n_connections: u32) -> Result<Load> {
    let load = load(bench, server, paths, n_connections)?;
    if load.wrk.n_refused > 0.0 {
        return Err(format!("{} of {} refused", load.wrk.n_refused, load.wrk.n_requests).into());
    }
    Ok(load)
}

/// CPU microseconds a request for the paths of a list, for one run of the load generator.
pub(super) fn cpu_us(
    bench: &Bench,
    server: &Daemon,
    paths: &Path,
    n_connections: u32,
) -> Result<f64> {
    Ok(load_ok(bench, server, paths, n_connections)?.cpu_us)
}

pub(in crate::bench) fn raw_4k(bench: &Bench) -> Result<Vec<Line>> {
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

pub(in crate::bench) fn raw_1m(bench: &Bench) -> Result<Vec<Line>> {
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

pub(in crate::bench) fn absent(bench: &Bench) -> Result<Vec<Line>> {
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
    let ours = load_absent(bench, &server, &gateway_paths)?;
    let disk_reads = server.disk_reads() - before;
    drop(server);
    stored_in_kubo(bench, &["-r"], &tree)?;
    let server = bench.kubo("repo")?;
    let kubo = load_absent(bench, &server, &gateway_paths)?;
    drop(server);
    let server = bench.nginx(&tree)?;
    let nginx = load_absent(bench, &server, &file_paths)?;
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
