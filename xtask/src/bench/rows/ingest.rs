//! Rows about getting bytes in: add and import.
//!
//! In       files made once.
//! Out      rates beside sha256 and kubo, CPU beside both.
//! Not here how a figure is taken (`process`, `load`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::bench::Bench;
use crate::bench::load::{self, Bound};
use crate::bench::process::Run;
use crate::bench::table::Line;
use crate::bench::table::Target::{AtLeast, AtMost, Shown};
use crate::shell::Result;

/// MB/s of a run over so many bytes.
fn rate(run: &Run, len: u64) -> f64 {
    len as f64 / run.seconds / 1e6
}

/// CPU seconds for 10^9 bytes.
fn cpu(run: &Run, len: u64) -> f64 {
    run.cpu_seconds / len as f64 * 1e9
}

/// The best of sha256 before and after `work`: other programs on the machine make it slower only.
fn with_bound<T>(bench: &Bench, work: impl FnOnce() -> Result<T>) -> Result<(Bound, T)> {
    let before = load::sha256_bound(bench.sizes.file_len / 2)?;
    let done = work()?;
    let after = load::sha256_bound(bench.sizes.file_len / 2)?;
    let bound = Bound {
        rate: before.rate.max(after.rate),
        cpu_per_gb: before.cpu_per_gb.min(after.cpu_per_gb),
    };
    Ok((bound, done))
}

pub(in crate::bench) fn add_file(bench: &Bench) -> Result<Vec<Line>> {
    let (file, len) = (bench.big_file()?, bench.sizes.file_len);
    let (bound, ours) = with_bound(bench, || {
        bench.best(|| {
            bench.forget(&["store"])?;
            Ok(bench.carrack("store", &["add", "-Q"], Some(&file)))
        })
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

pub(in crate::bench) fn add_tree(bench: &Bench) -> Result<Vec<Line>> {
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
            AtMost(0.1),
        ),
    ])
}

pub(in crate::bench) fn import(bench: &Bench) -> Result<Vec<Line>> {
    let car = big_car(bench)?;
    let len = fs::metadata(&car)?.len();
    let (bound, ours) = with_bound(bench, || {
        bench.best(|| {
            bench.forget(&["store"])?;
            Ok(bench.carrack("store", &["import", "-Q"], Some(&car)))
        })
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

/// With its default of pinning the roots: carrack's import is a promise to serve them, too.
const IMPORT: &[&str] = &["dag", "import", "--offline", "--stats=false"];

/// A CAR of the big file, which kubo and carrack both import.
fn big_car(bench: &Bench) -> Result<PathBuf> {
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
