//! What a person sees: progress on a terminal, and lines that it steps aside for.

use std::num::NonZero;
use std::path::Path;

use carrack_testkit::terminal::{self, COLUMNS, LINES};

use crate::support::{Carrack, data};

/// Every byte that a command wrote, and the lines that stay on the screen.
fn on_terminal(carrack: &Carrack, args: &[&str]) -> (String, Vec<String>) {
    let (status, written) = terminal::run(&mut carrack.command(args)).unwrap();
    let written_text = String::from_utf8_lossy(&written).into_owned();
    assert!(status.success(), "{args:?}: {written_text:?}");
    let mut screen = vt100::Parser::new(size(LINES), size(COLUMNS), 0);
    screen.process(&written);
    let lines = screen.screen().contents();
    (written_text, lines.lines().map(String::from).collect())
}

fn size(n: u16) -> NonZero<u16> {
    NonZero::new(n).unwrap()
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The first line of output came behind the progress line.
#[test]
fn lines_are_not_written_behind_a_bar() {
    let carrack = Carrack::new();
    let path = carrack.path("file");
    data::file(&path, 1, 64 << 20);
    let (written, lines) = on_terminal(&carrack, &["add", text(&path)]);
    assert!(
        written.contains("hashing"),
        "nothing was drawn: {written:?}"
    );
    let root = &lines[0];
    assert!(
        root.starts_with("bafy") && root.ends_with("/file"),
        "{lines:?}"
    );
    assert!(
        lines.iter().all(|line| !line.contains("hashing")),
        "{lines:?}"
    );
}

/// What is known is told: how much there is, and so how long it will take.
#[test]
fn verify_export_and_import_tell_how_much_there_is() {
    let carrack = Carrack::new();
    let path = carrack.path("file");
    data::file(&path, 2, 64 << 20);
    let root = carrack.add_one(&path);
    let car = carrack.path("file.car");
    let elsewhere = Carrack::new();
    let car_text = text(&car).to_owned();
    for (carrack, args) in [
        (&carrack, vec!["export", &root, "-o", &car_text]),
        (&carrack, vec!["verify", &root]),
        (&carrack, vec!["verify"]),
        (&elsewhere, vec!["import", &car_text]),
        (&elsewhere, vec!["import", "--copy", &car_text]),
    ] {
        let (written, lines) = on_terminal(carrack, &args);
        assert!(written.contains(" of 64."), "{args:?}: {written:?}");
        assert!(written.contains(" left"), "{args:?}: {written:?}");
        assert!(
            lines.iter().all(|line| !line.contains(" left")),
            "{lines:?}"
        );
    }
}

/// The same over the control socket of a running node.
#[test]
fn a_running_node_draws_for_its_clients() {
    let carrack = Carrack::new();
    let server = carrack.serve::<&str>(&[]);
    let path = carrack.path("file");
    data::file(&path, 3, 64 << 20);
    let (written, lines) = on_terminal(&carrack, &["add", text(&path)]);
    assert!(
        written.contains("hashing"),
        "nothing was drawn: {written:?}"
    );
    assert!(lines[0].starts_with("bafy"), "{lines:?}");
    assert!(
        lines.iter().all(|line| !line.contains("hashing")),
        "{lines:?}"
    );
    drop(server);
}

/// A name can say anything; only its escaped form reaches the terminal.
#[test]
fn names_of_files_reach_no_terminal_as_they_are() {
    let carrack = Carrack::new();
    let dir = carrack.path("dir\u{1b}[31m");
    std::fs::create_dir(&dir).unwrap();
    let path = dir.join("file\u{1b}[2J\r\n\u{9b}31m");
    data::file(&path, 4, 3 << 20);
    let root = carrack.add_one(&dir);
    // Damaged, and then gone: each is told in words of its own.
    data::file(&path, 5, 3 << 20);
    let mut told = String::new();
    for args in [
        vec!["verify"],
        vec!["verify", "--json"],
        vec!["status"],
        vec!["ls", &root],
    ] {
        let outcome = carrack.run(&args);
        told.push_str(&String::from_utf8_lossy(&outcome.stdout));
        told.push_str(&outcome.stderr);
    }
    std::fs::remove_file(&path).unwrap();
    for args in [
        vec!["verify"],
        vec!["status"],
        vec!["cat", text(&path)],
        vec!["import", text(&path)],
    ] {
        let outcome = carrack.run(&args);
        told.push_str(&String::from_utf8_lossy(&outcome.stdout));
        told.push_str(&outcome.stderr);
    }
    let obeyed: Vec<char> = told
        .chars()
        .filter(|c| c.is_control() && *c != '\n')
        .collect();
    assert!(obeyed.is_empty(), "{obeyed:?} in {told:?}");
}
