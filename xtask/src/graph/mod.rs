//! `cargo xtask graph`: who imports whom in `crates/carrack/src`.
//!
//! In       the source text, without tests.
//! Out      arrows between folders with their number, arrows that run up, circles of files.
//! Limits   a circle of up to [`CIRCLE_MAX`] files is a family: a noun and its parts.
//! Not here rules about the text of single files (`tidy`).

mod parse;

use std::collections::{BTreeMap, BTreeSet};

pub(crate) use self::parse::Crate;
use crate::shell::{Result, root};

/// Folders of the program from the ground up: each knows those before it alone.
pub(crate) const ORDER: [&str; 12] = [
    "error", "clock", "durable", "key_file", "source", "store", "ingest", "http", "gateway",
    "node", "cli", "lib",
];

/// Files of a circle.
pub(crate) const CIRCLE_MAX: usize = 3;

/// An import of a file in a folder that lies higher.
#[derive(Debug)]
pub(crate) struct Up {
    pub(crate) from: String,
    pub(crate) line: usize,
    pub(crate) to: String,
}

/// Reads the program.
pub(crate) fn program() -> Result<Crate> {
    parse::read(&root().join("crates/carrack/src"))
}

/// Prints the graph. `Ok(false)`: an arrow runs up, or a circle is too large.
pub(crate) fn command() -> Result<bool> {
    let program = program()?;
    println!("imports between folders, by number of files:");
    for ((from, to), n) in arrows(&program) {
        println!("  {from:<9} -> {to:<9} {n:>4}");
    }
    let up = up(&program);
    println!("\narrows up: {}", up.len());
    for Up { from, line, to } in &up {
        println!("  {from}:{line} -> {to}");
    }
    let circles = circles(&program);
    let large = circles.iter().filter(|it| it.len() > CIRCLE_MAX).count();
    println!(
        "\ncircles of files: {}, of more than {CIRCLE_MAX}: {large}",
        circles.len()
    );
    for circle in circles {
        println!("  {}: {}", circle.len(), circle.join(" "));
    }
    Ok(up.is_empty() && large == 0)
}

/// The first part of a path: a folder, or a file that stands alone.
fn folder(path: &str) -> &str {
    let first = path.split('/').next().unwrap_or(path);
    first.strip_suffix(".rs").unwrap_or(first)
}

fn edges(program: &Crate) -> impl Iterator<Item = (&str, usize, &str)> {
    program.files.iter().flat_map(|file| {
        file.imports.iter().filter_map(|(to, line)| {
            let to = program.files.get(*to)?;
            Some((file.path.as_str(), *line, to.path.as_str()))
        })
    })
}

fn arrows(program: &Crate) -> BTreeMap<(&str, &str), usize> {
    let mut arrows = BTreeMap::new();
    for (from, _, to) in edges(program) {
        if folder(from) != folder(to) {
            *arrows.entry((folder(from), folder(to))).or_insert(0) += 1;
        }
    }
    arrows
}

/// Imports that run against [`ORDER`]. A name that `lib` hands on is none.
pub(crate) fn up(program: &Crate) -> Vec<Up> {
    let floor = |path| ORDER.iter().position(|name| *name == folder(path));
    edges(program)
        .filter(|(from, _, to)| folder(to) != "lib" && floor(to) > floor(from))
        .map(|(from, line, to)| Up {
            from: from.to_owned(),
            line,
            to: to.to_owned(),
        })
        .collect()
}

/// Files that reach each other, largest circle first.
pub(crate) fn circles(program: &Crate) -> Vec<Vec<&str>> {
    let n_files = program.files.len();
    let reach: Vec<BTreeSet<usize>> = (0..n_files).map(|from| reached(program, from)).collect();
    let reaches = |from: usize, to: usize| reach.get(from).is_some_and(|set| set.contains(&to));
    let mut circles = Vec::new();
    let mut seen = BTreeSet::new();
    for start in 0..n_files {
        if !reaches(start, start) || !seen.insert(start) {
            continue;
        }
        let members: Vec<usize> = (start..n_files)
            .filter(|file| *file == start || reaches(start, *file) && reaches(*file, start))
            .collect();
        seen.extend(&members);
        let path = |number: usize| program.files.get(number).map(|file| file.path.as_str());
        circles.push(members.into_iter().filter_map(path).collect::<Vec<_>>());
    }
    circles.sort_by_key(|circle| std::cmp::Reverse(circle.len()));
    circles
}

/// All files on the way of imports from one.
fn reached(program: &Crate, from: usize) -> BTreeSet<usize> {
    let mut reached = BTreeSet::new();
    let mut open = vec![from];
    while let Some(number) = open.pop() {
        let Some(file) = program.files.get(number) else {
            continue;
        };
        open.extend(file.imports.keys().filter(|to| reached.insert(**to)));
    }
    reached
}
