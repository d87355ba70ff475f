//! Commands on a store in this process.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use clap::Parser;

use crate::cli::Env;
use crate::cli::args::Cli;
use crate::cli::output::Output;
use crate::cli::output::tests::Shared;
use crate::cli::screen::Screen;
use crate::error::{ErrorKind, Result};
use crate::ingest::tests::{Fixture, bytes, car, import_options, raw};
use crate::source::config::Environment;

/// The outcome and standard output.
fn run(fixture: &Fixture, args: &[&str], stop: bool) -> (Result<()>, String) {
    let cli = Cli::try_parse_from(["carrack"].iter().chain(args)).unwrap();
    let data = Shared::default();
    let screen = Screen::new(Box::new(std::io::sink()), None);
    let mut out = Output::new(cli.json, Box::new(data.clone()), false, screen);
    let environment = Environment::default();
    let mut env = Env {
        p2p: None,
        blocks: &fixture.blocks,
        environment: &environment,
        directory: Path::new("/"),
        out: &mut out,
        stdin: &mut std::io::empty(),
        stop: &AtomicBool::new(stop),
    };
    let outcome = super::run(&cli.command, &mut env);
    out.flush().unwrap();
    let text = String::from_utf8_lossy(&data.0.lock().unwrap()).into_owned();
    (outcome, text)
}

#[test]
fn verify_goes_on_behind_a_root_that_is_not_here() {
    let fixture = Fixture::new();
    let data = bytes(1, 500);
    let missing = raw(b"elsewhere");
    let roots = [missing, raw(&data)];
    let path = fixture.write("x.car", &car(&roots, &[(roots[1], data.clone())]));
    fixture.import(&path, &import_options()).unwrap();
    let files = [fixture.write("a", b"aaaa"), fixture.write("b", b"bbbb")];
    fixture.add(&[&files[0], &files[1]]);
    std::fs::write(&files[1], b"BBBB").unwrap();
    let (outcome, text) = run(&fixture, &["verify"], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Verification);
    let bad: Vec<&str> = text.lines().collect();
    assert_eq!(bad.len(), 2, "{text}");
    assert!(text.contains(&missing.to_string()));
    assert!(text.contains(&raw(b"bbbb").to_string()));
    let missing = missing.to_string();
    let (outcome, _) = run(&fixture, &["verify", &missing], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
    let good = raw(&data).to_string();
    assert!(run(&fixture, &["verify", &good], false).0.is_ok());
}

#[test]
fn rm_drops_all_or_nothing_and_nothing_for_who_left() {
    let fixture = Fixture::new();
    let path = fixture.write("a", b"aaaa");
    fixture.add(&[&path]);
    let (cid, other) = (raw(b"aaaa").to_string(), raw(b"other").to_string());
    let (outcome, _) = run(&fixture, &["rm", &cid, &other], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
    let (outcome, _) = run(&fixture, &["rm", &cid], true);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fixture.n_roots(), 1);
    let (outcome, text) = run(&fixture, &["rm", &cid, &cid], false);
    outcome.unwrap();
    assert_eq!(text.lines().count(), 1);
    assert_eq!((fixture.n_roots(), fixture.n_containers()), (0, 0));
}

#[test]
fn what_makes_no_sense_is_a_matter_of_usage() {
    let fixture = Fixture::new();
    for args in [
        ["add", "--chunker", "rabin", "/"].as_slice(),
        &["add", "--chunker", "size-0", "/"],
        &["add", "--chunker", "size-99999999999", "/"],
        &["add", "--profile", "none", "/"],
        &["import", "-"],
        &["import", "/no such file"],
        &["add", "/no such file"],
        &["cat", "no cid"],
        &["export", "--dag-scope", "some", "bafkqaaa"],
        &["ls", "bafkqaaa"],
        &["cid", "inspect", "x"],
    ] {
        let (outcome, _) = run(&fixture, args, false);
        let error = outcome.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{args:?}: {error:?}");
    }
    let absent = raw(b"absent").to_string();
    for command in ["cat", "ls", "export", "rm", "verify"] {
        let (outcome, text) = run(&fixture, &[command, &absent], false);
        // A raw block is no directory, here or not.
        let kind = match command {
            "ls" => ErrorKind::Invalid,
            _ => ErrorKind::NotFound,
        };
        assert_eq!(outcome.unwrap_err().kind(), kind, "{command}");
        assert!(text.is_empty(), "{command} wrote before it knew");
    }
    assert!(run(&fixture, &["export", "bafkqaaa"], false).0.is_ok());
}

/// One root that cannot be gone through to its end hides nothing of what is wrong with the others.
#[test]
fn verify_goes_on_behind_a_root_that_is_too_deep() {
    let fixture = Fixture::new();
    // Every order of the roots: some come before the deep one, some behind it.
    for n in 0..8_u8 {
        fixture.add(&[&fixture.write(&format!("file {n}"), &[n; 40])]);
    }
    let top = fixture.path("deep");
    std::fs::create_dir_all(top.join("d/".repeat(1100))).unwrap();
    fixture.add(&[&top]);
    for n in 0..8_u8 {
        std::fs::write(fixture.path(&format!("file {n}")), [n + 1; 40]).unwrap();
    }
    let (outcome, text) = run(&fixture, &["verify"], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Verification);
    assert_eq!(text.lines().count(), 8, "{text}");
}

/// The node's key lies there.
#[test]
fn carracks_own_files_are_not_added() {
    let fixture = Fixture::new();
    let own = fixture.store().dir().to_owned();
    let catalog = own.join("catalog.redb");
    for place in [&own, &catalog] {
        let (outcome, text) = run(&fixture, &["add", place.to_str().unwrap()], false);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid);
        assert!(text.is_empty(), "{text}");
    }
    assert_eq!(fixture.n_roots(), 0);
}

#[test]
fn an_empty_name_is_not_the_directory() {
    let fixture = Fixture::new();
    for args in [["add", ""], ["import", ""]] {
        let (outcome, _) = run(&fixture, &args, false);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid);
    }
}

/// The index forgets a container that was removed only when it is merged: what it says of one until
/// then is no copy.
#[test]
fn verify_does_not_take_what_was_removed_for_a_copy() {
    let fixture = Fixture::new();
    let blocks: Vec<_> = (0..4).map(|n| bytes(n, 300)).collect();
    let known: Vec<_> = blocks
        .iter()
        .map(|data| (raw(data), data.clone()))
        .collect();
    // One CAR names a root that only the other one holds.
    let roots = [known[0].0, known[3].0];
    let lacking = fixture.write("lacking.car", &car(&roots, &known[..3]));
    let whole = fixture.write("whole.car", &car(&[known[1].0], &known));
    for path in [&lacking, &whole] {
        fixture.import(path, &import_options()).unwrap();
    }
    assert!(run(&fixture, &["verify"], false).0.is_ok());
    let dropped = known[1].0.to_string();
    run(&fixture, &["rm", &dropped], false).0.unwrap();
    let (outcome, text) = run(&fixture, &["verify"], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Verification);
    assert!(text.contains(&known[3].0.to_string()), "{text}");
}
