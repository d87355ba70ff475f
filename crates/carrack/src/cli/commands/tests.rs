//! Commands on a store in this process.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use carrack_formats::unixfs::dir;
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
fn rm_names_what_is_no_root_and_drops_the_rest_and_nothing_for_who_left() {
    let fixture = Fixture::new();
    let path = fixture.write("a", b"aaaa");
    fixture.add(&[&path]);
    let (cid, other) = (raw(b"aaaa").to_string(), raw(b"other").to_string());
    let (outcome, _) = run(&fixture, &["rm", &cid], true);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Unavailable);
    assert_eq!(fixture.n_roots(), 1);
    let (outcome, text) = run(&fixture, &["rm", &cid, &cid], false);
    outcome.unwrap();
    assert_eq!(text.lines().count(), 1);
    assert_eq!((fixture.n_roots(), fixture.n_containers()), (0, 0));
    fixture.add(&[&path]);
    let (outcome, text) = run(&fixture, &["rm", &other, &cid, "no cid"], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Partial);
    assert_eq!((text.lines().count(), fixture.n_roots()), (1, 0));
    let (outcome, _) = run(&fixture, &["rm", &other, &cid], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::NotFound);
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
    run(&fixture, &["rm", "--force", &dropped], false)
        .0
        .unwrap();
    let (outcome, text) = run(&fixture, &["verify"], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Verification);
    assert!(text.contains(&known[3].0.to_string()), "{text}");
}

/// A node that reads: its links are those of a directory.
fn node(links: &[carrack_formats::Cid]) -> (carrack_formats::Cid, Vec<u8>) {
    let links = links.iter().enumerate().map(|(n, cid)| dir::Entry {
        name: format!("{n}").into_bytes(),
        cid: *cid,
        tsize: 1,
    });
    let mut made = None;
    let profile = crate::ingest::tests::options().profile;
    dir::build(links.collect(), &profile, &mut |cid, block| {
        made = Some((cid, block));
    })
    .unwrap();
    made.unwrap()
}

/// Two CARs: one of a node that lacks the second block it links to, one that has that block.
fn partial_and_last(fixture: &Fixture) -> (String, String) {
    let (first, last) = (bytes(1, 300), bytes(2, 300));
    let top = node(&[raw(&first), raw(&last)]);
    let partial = car(&[top.0], &[top.clone(), (raw(&first), first)]);
    let lender = car(&[raw(&last)], &[(raw(&last), last.clone())]);
    for (name, car) in [("partial.car", &partial), ("last.car", &lender)] {
        let path = fixture.write(name, car);
        fixture.import(&path, &import_options()).unwrap();
    }
    (top.0.to_string(), raw(&last).to_string())
}

#[test]
fn rm_refuses_to_drop_what_a_root_that_stays_uses() {
    let fixture = Fixture::new();
    let (partial, last) = partial_and_last(&fixture);
    let (outcome, text) = run(&fixture, &["rm", &last], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!((text.as_str(), fixture.n_roots()), ("", 2));
    // The other way round nobody lacks anything, and together nobody is left.
    run(&fixture, &["rm", &partial], false).0.unwrap();
    run(&fixture, &["rm", &last], false).0.unwrap();
    partial_and_last(&fixture);
    run(&fixture, &["rm", &partial, &last], false).0.unwrap();
    partial_and_last(&fixture);
    run(&fixture, &["rm", "--force", &last], false).0.unwrap();
    assert_eq!(fixture.n_roots(), 1);
    assert!(run(&fixture, &["verify"], false).0.is_err());
}

/// A root that was found to be whole is not gone through again, also not by another process.
#[test]
fn rm_goes_through_a_whole_root_once() {
    let fixture = Fixture::new();
    let blocks: Vec<_> = (0..3).map(|n| bytes(n, 300)).collect();
    let leaves: Vec<_> = blocks
        .iter()
        .map(|data| (raw(data), data.clone()))
        .collect();
    let top = node(&[leaves[0].0, leaves[1].0]);
    let whole = car(
        &[top.0],
        &[vec![top.clone()], leaves[..2].to_vec()].concat(),
    );
    let path = fixture.write("whole.car", &whole);
    fixture.import(&path, &import_options()).unwrap();
    let other = fixture.write("other.car", &car(&[leaves[2].0], &leaves[2..]));
    let is_whole = |fixture: &Fixture| {
        let roots = fixture.store().catalog().roots_of_cid(&top.0).unwrap();
        roots[0].is_whole
    };
    fixture.import(&other, &import_options()).unwrap();
    assert!(!is_whole(&fixture));
    let other_cid = leaves[2].0.to_string();
    run(&fixture, &["rm", &other_cid], false).0.unwrap();
    assert!(is_whole(&fixture));
    let fixture = fixture.reopened();
    assert!(is_whole(&fixture));
    // Nothing of it can be read now, and nothing of it has to be.
    std::fs::remove_file(&path).unwrap();
    fixture
        .import_copy(&std::fs::read(&other).unwrap(), &import_options())
        .unwrap();
    run(&fixture, &["rm", &other_cid], false).0.unwrap();
    assert!(is_whole(&fixture));
}

/// Copied bytes are gone for good: they stay while nobody can tell who uses them.
#[test]
fn rm_keeps_copies_while_a_root_that_may_use_them_cannot_be_read() {
    let fixture = Fixture::new();
    let (partial, _) = partial_and_last(&fixture);
    std::fs::remove_file(fixture.path("partial.car")).unwrap();
    let data = bytes(3, 300);
    let copied = car(&[raw(&data)], &[(raw(&data), data.clone())]);
    fixture.import_copy(&copied, &import_options()).unwrap();
    let copied = raw(&data).to_string();
    let (outcome, _) = run(&fixture, &["rm", &copied], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid);
    run(&fixture, &["rm", &copied, &partial], false).0.unwrap();
}

#[test]
fn the_good_ones_of_several_are_taken_and_the_others_named() {
    let fixture = Fixture::new();
    let cars: Vec<String> = (0..2)
        .map(|n| {
            let data = bytes(n, 300);
            let car = car(&[raw(&data)], &[(raw(&data), data.clone())]);
            let path = fixture.write(&format!("{n}.car"), &car);
            path.to_str().unwrap().to_owned()
        })
        .collect();
    let damaged = fixture.write("damaged.car", b"no CAR at all");
    let (damaged, absent) = (damaged.to_str().unwrap(), "/no such file");
    for command in ["import", "add"] {
        let bad = match command {
            "import" => damaged,
            _ => absent,
        };
        let (outcome, text) = run(&fixture, &[command, &cars[0], bad, &cars[1]], false);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Partial, "{command}");
        assert_eq!(text.lines().count(), 2, "{command}: {text}");
        let (outcome, text) = run(&fixture, &[command, absent, "/nor this one"], false);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid, "{command}");
        assert_eq!(text, "");
    }
    assert_eq!(fixture.n_roots(), 4);
    for switch in ["--wrap", "--strict"] {
        let (outcome, text) = run(&fixture, &["add", switch, damaged, absent], false);
        assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Invalid, "{switch}");
        assert_eq!((text.as_str(), fixture.n_roots()), ("", 4), "{switch}");
    }
}

/// What no root leads to is served, too.
#[test]
fn verify_looks_at_every_block_once_whatever_leads_to_it() {
    let fixture = Fixture::new();
    let blocks: Vec<_> = (0..4).map(|n| bytes(n, 300)).collect();
    let mut known: Vec<_> = blocks
        .iter()
        .map(|data| (raw(data), data.clone()))
        .collect();
    known.push(node(&[known[0].0, known[1].0]));
    let path = fixture.write("one.car", &car(&[known[0].0], &known));
    fixture.write("two.car", &car(&[known[0].0, known[4].0], &known));
    for name in ["one.car", "two.car"] {
        fixture
            .import(&fixture.path(name), &import_options())
            .unwrap();
    }
    let summary = |text: &str| -> serde_json::Value {
        serde_json::from_str(text.lines().last().unwrap()).unwrap()
    };
    let (outcome, text) = run(&fixture, &["--json", "verify"], false);
    outcome.unwrap();
    assert_eq!(
        (&summary(&text)["blocks"], &summary(&text)["bad"]),
        (&5.into(), &0.into())
    );
    // Both copies of all five, one of them of a node that no root leads to in its CAR.
    for path in [&path, &fixture.path("two.car")] {
        let mut bytes = std::fs::read(path).unwrap();
        for (_, data) in &known {
            let at = bytes.windows(data.len()).position(|window| window == data);
            bytes[at.unwrap() + data.len() - 1] ^= 1;
        }
        std::fs::write(path, bytes).unwrap();
    }
    let (outcome, text) = run(&fixture, &["--json", "verify"], false);
    assert_eq!(outcome.unwrap_err().kind(), ErrorKind::Verification);
    assert_eq!(
        (&summary(&text)["blocks"], &summary(&text)["bad"]),
        (&5.into(), &5.into())
    );
    assert_eq!(text.lines().count(), 2 * 5 + 1, "{text}");
    for (cid, _) in &known {
        assert_eq!(text.matches(&cid.to_string()).count(), 2, "{cid}: {text}");
    }
}

#[test]
fn rm_of_many_roots_waits_for_the_disk_a_few_times() {
    let fixture = Fixture::new();
    let (first, second) = (bytes(1, 500), bytes(2, 500));
    let cids = [raw(&first), raw(&second)];
    let both = [(cids[0], first), (cids[1], second)];
    let shared = fixture.write("x.car", &car(&cids, &both));
    fixture.import(&shared, &import_options()).unwrap();
    let names: Vec<_> = (0..20).map(|index| format!("file {index}")).collect();
    let files: Vec<_> = names
        .iter()
        .map(|name| fixture.write(name, name.as_bytes()))
        .collect();
    let paths: Vec<&Path> = files.iter().map(AsRef::as_ref).collect();
    fixture.add(&paths);
    let roots = cids
        .into_iter()
        .chain(names.iter().map(|name| raw(name.as_bytes())));
    let roots: Vec<_> = roots.map(|cid| cid.to_string()).collect();
    let mut args = vec!["--json", "rm"];
    args.extend(roots.iter().map(String::as_str));
    let n_before = *fixture.store().commits().borrow();
    let (outcome, text) = run(&fixture, &args, false);
    outcome.unwrap();
    let n_commits = *fixture.store().commits().borrow() - n_before;
    assert!(n_commits <= 2, "{n_commits}");
    let said: Vec<serde_json::Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(said.len(), roots.len());
    // The CAR goes with the second of its roots, however many go together.
    let n_dropped = |cid: &carrack_formats::Cid| {
        let it = said.iter().find(|it| it["cid"] == cid.to_string());
        it.unwrap()["containers_dropped"].as_u64().unwrap()
    };
    assert_eq!(n_dropped(&cids[0]) + n_dropped(&cids[1]), 1);
    assert!(
        names
            .iter()
            .all(|name| n_dropped(&raw(name.as_bytes())) == 1)
    );
    assert!(fixture.store().catalog().roots().unwrap().is_empty());
}
