use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::time::Duration;

use carrack_bitswap::budget::Beyond;
use tempfile::TempDir;

use super::value::size;
use super::*;

const DOCUMENT: &str = include_str!("../../../../../docs/operations/configuration.md");

/// The tables of the document: section, key, default.
fn documented() -> Vec<(String, String, String)> {
    let mut rows = Vec::new();
    let mut section = String::new();
    for line in DOCUMENT.lines() {
        if let Some(name) = line.strip_prefix("## `[") {
            section = name.trim_end_matches("]`").to_owned();
        }
        let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
        let key = cells[0]
            .strip_prefix('`')
            .and_then(|cell| cell.strip_suffix('`'));
        let Some(key) = key.filter(|_| line.starts_with('|')) else {
            continue;
        };
        let key = key.to_owned();
        if cells.len() == 6 {
            for (spender, cell) in ["peer", "address", "subnet"].iter().zip(2..) {
                let section = format!("{section}.{spender}");
                rows.push((section, key.clone(), cells[cell].to_owned()));
            }
        } else {
            rows.push((section.clone(), key, cells[2].to_owned()));
        }
    }
    rows
}

fn file(rows: &[(String, String, String)]) -> String {
    let mut text = String::new();
    for (section, key, value) in rows {
        writeln!(text, "{section}.{key} = {value}").unwrap();
    }
    text
}

fn fails(text: &str) -> ConfigError {
    Config::parse(text).expect_err(text)
}

#[test]
fn the_document_tells_every_key_and_its_default() {
    let rows = documented();
    assert_eq!(Config::parse(&file(&rows)).unwrap(), Config::default());
    for section in [
        "http",
        "bitswap",
        "bitswap.budget",
        "bitswap.budget.peer",
        "bitswap.budget.address",
        "bitswap.budget.subnet",
        "bitswap.connections",
    ] {
        let message = fails(&format!("{section}.unknown = 1")).message;
        let (_, allowed) = message.split_once("expected one of ").unwrap();
        let allowed: BTreeSet<&str> = allowed
            .split(", ")
            .map(|name| name.trim_matches('`'))
            .filter(|name| !["budget", "connections", "peer", "address", "subnet"].contains(name))
            .collect();
        let told: BTreeSet<&str> = rows
            .iter()
            .filter(|row| row.0 == section)
            .map(|row| row.1.as_str())
            .collect();
        assert_eq!(allowed, told, "[{section}]");
    }
}

/// No key is forgotten on its way, and no two change the same thing.
#[test]
fn every_key_changes_something_of_its_own() {
    let mut seen = vec![Config::default()];
    for (section, key, value) in documented() {
        let other = match (key.as_str(), value.trim_matches('"')) {
            ("trusted", _) => "[\"10.0.0.0/8\"]".to_owned(),
            ("beyond", _) => "\"silence\"".to_owned(),
            ("block_bytes_max", _) => "\"1 MiB\"".to_owned(),
            (_, "unlimited") => "\"3 GiB\"".to_owned(),
            (_, text) => match size(text).or_else(|| text.parse().ok()) {
                Some(number) => (number + 1).to_string(),
                None => panic!("{key}: {text}"),
            },
        };
        let config = Config::parse(&format!("{section}.{key} = {other}")).unwrap();
        assert!(!seen.contains(&config), "{section}.{key} = {other}");
        seen.push(config);
    }
}

#[test]
fn an_example_means_what_it_says() {
    let (_, example) = DOCUMENT.split_once("```toml").unwrap();
    let (example, _) = example.split_once("```").unwrap();
    let config = Config::parse(example).unwrap();
    assert_eq!(config.server.budget.beyond, Beyond::Silence);
    assert_eq!(config.server.budget.address.bytes_per_hour, Some(20 << 30));
    assert_eq!(config.server.budget.peer.bytes_per_hour, None);
    assert_eq!(config.connections.per_address_max, 256);
    let usual = Config::default().server;
    assert_eq!(config.server.wants_max, usual.wants_max);
}

#[test]
fn values_have_the_forms_that_the_document_tells() {
    let text = "[bitswap]\n\
        wants_max = 7\nwant_time_s = 30\nmessage_bytes = \"64KiB\"\nframes_bytes_max = \"8  MiB\"\n\
        [bitswap.budget]\ntrusted = [\"::1\", \"10.1.0.0/16\"]\n\
        [bitswap.budget.peer]\nentries_per_second = \"unlimited\"\nbytes_per_hour = \"5 B\"\n\
        [bitswap.budget.subnet]\nbytes_per_hour = 1\n";
    let server = Config::parse(text).unwrap().server;
    assert_eq!(server.wants_max, 7);
    assert_eq!(server.want_time, Duration::from_secs(30));
    assert_eq!(server.message_len, 64 << 10);
    assert_eq!(server.frames_len_max, 8 << 20);
    assert_eq!(server.budget.peer.entries_per_second, None);
    assert_eq!(server.budget.peer.bytes_per_hour, Some(5));
    assert_eq!(server.budget.subnet.bytes_per_hour, Some(1));
    let trusted: Vec<_> = server
        .budget
        .trusted
        .iter()
        .map(|network| (network.address.to_string(), network.prefix_len))
        .collect();
    assert_eq!(trusted, [("::1".into(), 128), ("10.1.0.0".into(), 16)]);
}

#[test]
fn what_means_nothing_is_refused_with_its_line_and_what_is_allowed() {
    let cases = [
        (
            "[bitswop]",
            "unknown field `bitswop`, expected `http` or `bitswap`",
        ),
        (
            "[bitswap]\nwants = 1",
            "unknown field `wants`, expected one of `wants_per_peer_max`",
        ),
        ("bitswap = 1", "expected a table"),
        (
            "[bitswap]\nwants_max = 0",
            "expected a whole number from 1 to 1073741824",
        ),
        (
            "[bitswap]\nwants_max = -1",
            "expected a whole number from 1 to",
        ),
        (
            "[bitswap]\nwants_max = 1.5",
            "expected a whole number from 1 to",
        ),
        (
            "[bitswap]\nwants_max = \"1 KiB\"",
            "expected a whole number from 1 to",
        ),
        (
            "[bitswap]\nblock_bytes_max = \"3 MiB\"",
            "a number of bytes from 1024 to 2097152",
        ),
        (
            "[bitswap]\nblock_bytes_max = \"1 MB\"",
            "text such as \"64 KiB\"",
        ),
        (
            "[bitswap]\nblock_bytes_max = \"99999999999999 TiB\"",
            "text such as \"64 KiB\"",
        ),
        (
            "[bitswap]\nblock_bytes_max = \"unlimited\"",
            "text such as \"64 KiB\"",
        ),
        (
            "[bitswap.budget]\nbeyond = \"no\"",
            "expected \"dont-have\" or \"silence\"",
        ),
        (
            "[bitswap.budget]\ntrusted = [\"10.0.0.0/33\"]",
            "a network such as \"10.0.0.0/8\"",
        ),
        ("[bitswap.budget]\ntrusted = \"::1\"", "expected a sequence"),
        (
            "[bitswap.budget.peer]\nbytes_per_hour = 0",
            "or \"unlimited\"",
        ),
        ("[bitswap]\nwants_max = 1\nwants_max = 2", "duplicate key"),
        ("[bitswap", ""),
        ("[bitswap]\nwants_max = ", ""),
    ];
    for (text, allowed) in cases {
        let error = fails(text);
        let last = text.lines().count();
        assert_eq!(error.line, Some(last), "{text}: {}", error.message);
        assert!(error.message.contains(allowed), "{text}: {}", error.message);
    }
    let error = fails("[bitswap]\noutstanding_bytes_max = \"512 KiB\"");
    assert!(
        error.message.contains("outstanding_bytes_min is 1048576"),
        "{}",
        error.message
    );
}

#[test]
fn a_named_file_must_be_there_and_the_usual_one_need_not() {
    let dir = TempDir::new().unwrap();
    assert_eq!(Config::load(None, dir.path()).unwrap(), Config::default());
    let named = dir.path().join("other.toml");
    let error = Config::load(Some(&named), dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    assert!(error.chain().contains("other.toml"), "{}", error.chain());
    fs::write(dir.path().join(FILE_NAME), "[bitswap]\nwants_max = 5\n").unwrap();
    fs::write(&named, "[bitswap]\nwants_max = 6\n").unwrap();
    let usual = Config::load(None, dir.path()).unwrap();
    let other = Config::load(Some(&named), dir.path()).unwrap();
    assert_eq!((usual.server.wants_max, other.server.wants_max), (5, 6));
}

#[test]
fn errors_name_the_file_and_the_line() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    fs::write(&path, "# comment\n\n[bitswap]\nwant_time = 5\n").unwrap();
    let error = Config::load(None, dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
    let expected = format!(
        "{}:4: unknown field `want_time`, expected one of",
        path.display()
    );
    assert!(error.chain().starts_with(&expected), "{}", error.chain());
    assert!(!error.chain().contains('\n'));
    fs::write(&path, vec![b'#'; (1 << 20) + 1]).unwrap();
    let error = Config::load(None, dir.path()).unwrap_err();
    assert!(
        error.chain().contains("longer than 1048576 bytes"),
        "{}",
        error.chain()
    );
    fs::write(&path, b"\xff").unwrap();
    assert!(Config::load(None, dir.path()).is_err());
}

/// A bound that another one makes meaningless was meant otherwise.
#[test]
fn bounds_that_contradict_each_other_are_refused_by_both_their_names() {
    let cases = [
        (
            "http",
            "connections_per_address_max = 5000",
            "connections_max = 10",
        ),
        (
            "http",
            "connections_per_subnet_max = 20",
            "connections_max = 10",
        ),
        (
            "http",
            "connections_per_address_max = 6",
            "connections_per_subnet_max = 5",
        ),
        (
            "http",
            "requests_per_address_max = 6",
            "requests_per_subnet_max = 5",
        ),
        ("http", "requests_per_subnet_max = 6", "requests_max = 5"),
        (
            "http",
            "in_flight_per_address_percent = 60",
            "in_flight_per_subnet_percent = 50",
        ),
        ("http", "progress_time_s = 61", "request_time_s = 60"),
        ("http", "answer_time_s = 61", "request_time_s = 60"),
        ("bitswap", "wants_address_max = 6", "wants_subnet_max = 5"),
        ("bitswap", "wants_subnet_max = 6", "wants_max = 5"),
        (
            "bitswap",
            "outstanding_bytes_address_max = \"2 MiB\"",
            "outstanding_bytes_subnet_max = \"1 MiB\"",
        ),
        (
            "bitswap",
            "outstanding_bytes_subnet_max = \"200 MiB\"",
            "outstanding_bytes_all_max = \"100 MiB\"",
        ),
        (
            "bitswap",
            "frames_bytes_address_max = \"2 MiB\"",
            "frames_bytes_subnet_max = \"1 MiB\"",
        ),
        (
            "bitswap",
            "frames_bytes_subnet_max = \"20 MiB\"",
            "frames_bytes_max = \"10 MiB\"",
        ),
        (
            "bitswap",
            "small_block_bytes_max = 2048",
            "block_bytes_max = 1024",
        ),
        (
            "bitswap.connections",
            "pending_per_address_max = 6",
            "pending_per_subnet_max = 5",
        ),
        (
            "bitswap.connections",
            "pending_per_subnet_max = 6",
            "pending_max = 5",
        ),
        (
            "bitswap.connections",
            "per_address_max = 6",
            "per_subnet_max = 5",
        ),
        (
            "bitswap.connections",
            "per_subnet_max = 6",
            "established_max = 5",
        ),
    ];
    let key = |line: &'static str| line.split(' ').next().unwrap();
    for (section, less, more) in cases {
        let message = fails(&format!("[{section}]\n{less}\n{more}\n")).message;
        let named = message.contains(key(less)) && message.contains(key(more));
        assert!(named && message.contains(section), "{message}");
        // What was not said follows what was.
        assert!(
            Config::parse(&format!("[{section}]\n{more}\n")).is_ok(),
            "{more}"
        );
    }
    let text = "[bitswap.budget]\naddress.bytes_per_hour = 6\nsubnet.bytes_per_hour = 5\n";
    let message = fails(text).message;
    assert!(
        message.contains("bytes_per_hour") && message.contains("subnet"),
        "{message}"
    );
    // A default that is less is named as well.
    let message = fails("[http]\nconnections_per_address_max = 3000\n").message;
    assert!(
        message.contains("connections_per_subnet_max, 2048"),
        "{message}"
    );
}

#[test]
fn what_was_not_said_follows_the_bound_of_all() {
    let config = Config::parse("[http]\nconnections_max = 10\nrequests_per_subnet_max = 9\n");
    let http = config.unwrap().http;
    let connections = (
        http.connections_per_address_max,
        http.connections_per_subnet_max,
    );
    assert_eq!((connections, http.connections_max), ((10, 10), 10));
    assert_eq!(http.requests_per_address_max, 9);
    assert_eq!(http.requests_max, Limits::default().requests_max);
}
