//! Rules about the source text that no lint knows.
//!
//! In       every Rust file of the repository, the changelog, the byte tables, the attacks.
//! Out      a failed test that lists each breach as `file:line`.
//! Not here formatting (rustfmt) and what clippy can say.

use std::fs;
use std::path::{Path, PathBuf};

use crate::shell::root;

const LINES_MAX: usize = 700;
const COLUMNS_MAX: usize = 100;
/// Of one function, comments before it among them.
const FUNCTION_LINES_MAX: usize = 70;

/// One Rust file: its path from the root, and its text.
struct Source {
    path: String,
    text: String,
}

impl Source {
    /// Inside some crate's `src`, and no file of tests alone.
    fn is_product(&self) -> bool {
        self.path.contains("/src/") && !self.path.ends_with("/tests.rs")
    }

    /// All lines but those of items under `#[cfg(test)]`, which rustfmt ends where they begin: with
    /// a brace in the same column, or with the first line that ends a statement.
    fn product_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let mut inside: Option<TestItem> = None;
        let lines = self.text.lines().enumerate();
        lines.filter_map(move |(index, line)| {
            let Some(item) = &mut inside else {
                let is_test = line.trim_start() == "#[cfg(test)]";
                inside = is_test.then(|| TestItem {
                    column: column_of(line),
                    is_open: false,
                });
                return (!is_test).then_some((index + 1, line));
            };
            if item.ends_with(line) {
                inside = None;
            }
            None
        })
    }
}

/// An item under `#[cfg(test)]`, while its lines are passed over.
struct TestItem {
    column: usize,
    /// Its first brace was seen.
    is_open: bool,
}

impl TestItem {
    fn ends_with(&mut self, line: &str) -> bool {
        let text = line.trim();
        if column_of(line) != self.column || text.starts_with('#') {
            return false;
        }
        let was_open = self.is_open;
        self.is_open |= text.ends_with('{');
        match was_open {
            true => matches!(text, "}" | "};" | ")" | ");" | "]" | "];"),
            false => !self.is_open && (text.ends_with(';') || text.ends_with('}')),
        }
    }
}

fn column_of(line: &str) -> usize {
    line.len() - line.trim_start().len()
}

fn sources() -> Vec<Source> {
    let root = root();
    let mut open: Vec<PathBuf> = ["crates", "xtask", "fuzz", "examples"]
        .iter()
        .map(|dir| root.join(dir))
        .collect();
    let mut sources = Vec::new();
    while let Some(dir) = open.pop() {
        let Ok(entries) = fs::read_dir(&dir) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && !["target", "node_modules", "corpus", "artifacts"].contains(&&*name)
            {
                open.push(path);
            } else if name.ends_with(".rs") {
                let text = fs::read_to_string(&path).unwrap();
                let path = path
                    .strip_prefix(&root)
                    .unwrap()
                    .to_string_lossy()
                    .into_owned();
                sources.push(Source { path, text });
            }
        }
    }
    assert!(
        sources.len() > 20,
        "the walk found {} files only",
        sources.len()
    );
    sources.sort_by(|a, b| a.path.cmp(&b.path));
    sources
}

/// Fails with every breach that `check` reports for any file.
fn each_source(check: impl Fn(&Source, &mut Vec<String>)) {
    let mut breaches = Vec::new();
    for source in sources() {
        let mut found = Vec::new();
        check(&source, &mut found);
        breaches.extend(
            found
                .into_iter()
                .map(|breach| format!("{}:{breach}", source.path)),
        );
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

#[test]
fn every_source_file_begins_with_a_header() {
    each_source(|source, breaches| {
        if !source.text.starts_with("//!") && !source.path.ends_with("/tests.rs") {
            breaches.push("1: no `//!` header".into());
        }
    });
}

#[test]
fn no_file_is_longer_than_its_limit() {
    each_source(|source, breaches| {
        let n_lines = source.product_lines().count();
        if source.is_product() && n_lines > LINES_MAX {
            breaches.push(format!(
                "{n_lines} lines without tests, at most {LINES_MAX}"
            ));
        }
    });
}

#[test]
fn lines_have_no_tabs_and_fit_the_width() {
    each_source(|source, breaches| {
        for (number, line) in source.text.lines().enumerate() {
            let n_columns = line.chars().count();
            if n_columns > COLUMNS_MAX {
                breaches.push(format!("{}: {n_columns} columns", number + 1));
            }
            if line.contains('\t') {
                breaches.push(format!("{}: a tab", number + 1));
            }
        }
    });
}

#[test]
fn a_todo_names_its_issue() {
    // Split, so that this file does not find itself.
    let word = ["TO", "DO"].concat();
    each_source(|source, breaches| {
        for (number, line) in source.text.lines().enumerate() {
            let names_issue = line.split_once(&word).is_some_and(|(_, rest)| {
                let digits = rest.split_once('#').map(|(_, digits)| digits);
                digits.is_some_and(|digits| digits.starts_with(|c: char| c.is_ascii_digit()))
            });
            if line.contains(&word) && !names_issue {
                breaches.push(format!("{}: {word} without #NUMBER", number + 1));
            }
        }
    });
}

#[test]
fn formats_do_no_io() {
    each_source(|source, breaches| {
        if !source.path.starts_with("crates/formats/src/") || !source.is_product() {
            return;
        }
        for (number, line) in source.product_lines() {
            let code = line.split("//").next().unwrap_or_default();
            for banned in ["tokio", "std::fs", "std::net", "std::env", "std::time"] {
                if code.contains(banned) {
                    breaches.push(format!("{number}: names {banned}"));
                }
            }
        }
    });
}

/// Whoever adds unsafe code says which tests reach it, and `memcheck` runs them.
#[test]
fn unsafe_code_lies_where_memcheck_looks() {
    let mut found = Vec::new();
    for source in sources().iter().filter(|source| source.is_product()) {
        let is_unsafe = |(_, line): (usize, &str)| {
            let code = line.split("//").next().unwrap_or_default();
            ["unsafe {", "unsafe fn", "unsafe impl"]
                .iter()
                .any(|form| code.contains(form))
        };
        let is_own = source.path.starts_with("xtask/");
        if !is_own && source.product_lines().any(is_unsafe) {
            found.push(source.path.as_str().to_owned());
        }
    }
    let mut listed = crate::memcheck::UNSAFE.map(|place| place.file.to_owned());
    listed.sort();
    assert_eq!(found, listed);
}

#[test]
fn only_the_command_line_names_the_environment() {
    each_source(|source, breaches| {
        let inside = source.path.starts_with("crates/carrack/src/") && source.is_product();
        let allowed = source.path.starts_with("crates/carrack/src/cli/")
            || source.path == "crates/carrack/src/main.rs";
        if !inside || allowed {
            return;
        }
        for (number, line) in source.product_lines() {
            if line
                .split("//")
                .next()
                .unwrap_or_default()
                .contains("std::env")
            {
                breaches.push(format!("{number}: names std::env"));
            }
        }
    });
}

#[test]
fn the_changelog_has_an_unreleased_section() {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).unwrap();
    assert!(
        text.lines().any(|line| line.starts_with("## Unreleased")),
        "no `## Unreleased`"
    );
}

/// The last column of the table of attacks names functions, or fuzz targets as fuzz/`name`.
#[test]
fn tests_against_attacks_exist() {
    let text = fs::read_to_string(root().join("docs/design/attacks.md")).unwrap();
    let sources = sources();
    let is_there = |part: &str, name: &str| match part {
        "fuzz/" => sources
            .iter()
            .any(|source| source.path == format!("fuzz/fuzz_targets/{name}.rs")),
        _ => sources
            .iter()
            .any(|source| source.text.contains(&format!("fn {name}("))),
    };
    let mut n_names = 0;
    for (number, line) in text.lines().enumerate() {
        let Some(cell) = line.trim_end_matches(['|', ' ']).rsplit(" | ").next() else {
            continue;
        };
        if !line.starts_with('|') {
            continue;
        }
        let parts: Vec<&str> = cell.split('`').collect();
        for pair in parts.chunks_exact(2) {
            let (before, name) = (pair[0].trim_start_matches(", "), pair[1]);
            assert!(is_there(before, name), "line {}: no {name}", number + 1);
            n_names += 1;
        }
    }
    assert!(n_names > 50, "{n_names} names only");
}

/// A byte table is a Markdown table that begins with the columns offset and bytes. Its rows follow
/// each other without a gap, as far as they are numbers: `8 + 4` is one, `p` is not.
#[test]
fn byte_tables_have_no_gaps() {
    let dir = root().join("docs/formats");
    let mut n_tables = 0;
    for entry in fs::read_dir(&dir).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "md") {
            n_tables += check_byte_tables(&path);
        }
    }
    assert!(n_tables > 0, "no byte table in {}", dir.display());
}

fn check_byte_tables(path: &Path) -> usize {
    let text = fs::read_to_string(path).unwrap();
    let mut n_tables = 0;
    let mut next: Option<u64> = None;
    for (number, line) in text.lines().enumerate() {
        let mut cells = line.trim().trim_matches('|').split('|').map(str::trim);
        let (first, second) = (cells.next().unwrap_or(""), cells.next().unwrap_or(""));
        if !line.starts_with('|') {
            next = None;
        } else if (first, second) == ("offset", "bytes") {
            n_tables += 1;
            next = Some(0);
        } else if let (Some(expected), Ok(offset)) = (next, first.parse::<u64>()) {
            assert_eq!(offset, expected, "{}:{}: a gap", path.display(), number + 1);
            next = sum(second).map(|bytes| offset + bytes);
        } else if !first.starts_with(['-', ':']) {
            next = None;
        }
    }
    n_tables
}

/// `8 + 4` as a number.
fn sum(text: &str) -> Option<u64> {
    text.split('+')
        .map(|part| part.trim().parse::<u64>().ok())
        .sum()
}

#[test]
fn lines_behind_tests_are_seen() {
    let text = [
        "a",
        "#[cfg(test)]",
        "mod tests {",
        "    fn f() {",
        "    }",
        "}",
        "b",
        "#[cfg(test)]",
        "mod c;",
        "d",
        "impl X {",
        "    #[cfg(test)]",
        "    fn f(",
        "        a: u8,",
        "    ) {",
        "        1;",
        "    }",
        "    e",
        "}",
    ];
    let source = Source {
        path: String::new(),
        text: text.join("\n"),
    };
    let seen: Vec<&str> = source
        .product_lines()
        .map(|(_, line)| line.trim())
        .collect();
    assert_eq!(seen, ["a", "b", "d", "impl X {", "e", "}"]);
}

/// Functions that are longer than [`FUNCTION_LINES_MAX`], and why.
const LONG: [(&str, &str, &str); 10] = [
    (
        "cli/commands/peers.rs",
        "run",
        "one JSON value of many fields",
    ),
    (
        "cli/commands/serve.rs",
        "run",
        "what a node is made of, in the order in which it starts",
    ),
    (
        "cli/commands/status.rs",
        "run",
        "one JSON value of many fields",
    ),
    (
        "ingest/assembly.rs",
        "build",
        "the walk of a builder's steps, which share their state",
    ),
    (
        "ingest/import.rs",
        "scan",
        "one loop over the steps of a parser",
    ),
    (
        "ingest/import/remote.rs",
        "import_remote",
        "what is made first and undone last",
    ),
    (
        "ingest/import/remote/stream.rs",
        "stream_sections",
        "one loop over a stream's parts",
    ),
    ("node/config.rs", "apply", "a line for each setting"),
    ("source/s3/mod.rs", "refusal", "a line for each code of S3"),
    (
        "store/rebuild/catalog.rs",
        "rebuild_catalog",
        "the order of the steps is the point",
    ),
];

#[test]
fn functions_fit_a_screen() {
    let program = crate::graph::program().unwrap();
    let mut breaches = Vec::new();
    for file in &program.files {
        for (name, line, n_lines) in &file.functions {
            let is_known = LONG
                .iter()
                .any(|(path, known, _)| *path == file.path && known == name);
            if *n_lines > FUNCTION_LINES_MAX && !is_known {
                breaches.push(format!("{}:{line}: {name}: {n_lines} lines", file.path));
            }
        }
    }
    assert!(breaches.is_empty(), "\n{}", breaches.join("\n"));
}

/// A folder of the program knows those below it alone.
#[test]
fn no_import_runs_up() {
    let up = crate::graph::up(&crate::graph::program().unwrap());
    assert!(up.is_empty(), "{up:#?}");
}
