//! Running other programs, and timing what a run consists of.
//!
//! In       a command line.
//! Out      its exit as a [`Result`]; [`Steps`] prints each step's time and the summary.
//! Not here measuring what a program used (`bench/process.rs`).

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Errors are for the person at the terminal; nothing here acts on their kind.
pub(crate) type Result<T = ()> = std::result::Result<T, Box<dyn std::error::Error>>;

/// The root of the repository.
pub(crate) fn root() -> PathBuf {
    let xtask = Path::new(env!("CARGO_MANIFEST_DIR"));
    xtask.parent().unwrap_or(xtask).to_path_buf()
}

/// Where cargo builds to: `CARGO_TARGET_DIR`, else `target`.
pub(crate) fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => root().join(dir),
        None => root().join("target"),
    }
}

/// The cargo that runs this program.
pub(crate) fn cargo() -> Command {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command.current_dir(root());
    // Set because cargo runs this program; build scripts that look at them would run again after
    // each cargo of the person's own.
    let of_xtask = |key: &OsStr| {
        let key = key.to_string_lossy();
        key.starts_with("CARGO_PKG_") || key.starts_with("CARGO_MANIFEST_")
    };
    for (key, _) in std::env::vars_os().filter(|(key, _)| of_xtask(key)) {
        command.env_remove(key);
    }
    command
}

/// Runs to the end; any exit but 0 is an error that shows the command line.
pub(crate) fn run(command: &mut Command) -> Result {
    let status = command
        .stdin(Stdio::null())
        .status()
        .map_err(|error| format!("{}: {error}", show(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{}: {status}", show(command)).into())
    }
}

/// Runs to the end and returns standard output as text.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{}: {error}", show(command)))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        return Err(format!("{}: {}\n{stderr}", show(command), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// Where `program` lies on the `PATH` or among the system programs.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
}

fn show(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    words.join(" ")
}

/// The steps of one run. A failed step does not keep the next from running.
#[derive(Debug, Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration, std::result::Result<(), String>)>,
    left_out: Vec<String>,
}

impl Steps {
    /// Runs one step and remembers how it went; returns whether it passed.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result) -> bool {
        println!("\n=== {name}");
        let start = Instant::now();
        let outcome = work().map_err(|error| error.to_string());
        let took = start.elapsed();
        match &outcome {
            Ok(()) => println!("=== {name}: passed in {:.1} s", took.as_secs_f64()),
            Err(error) => println!("=== {name}: FAILED in {:.1} s: {error}", took.as_secs_f64()),
        }
        let passed = outcome.is_ok();
        self.done.push((name.to_owned(), took, outcome));
        passed
    }

    /// Says what this run does not cover.
    pub(crate) fn leave_out(&mut self, what: &str) {
        self.left_out.push(what.to_owned());
    }

    /// Prints the summary and the closing line; true when all passed.
    pub(crate) fn finish(self) -> bool {
        println!("\n=== summary");
        for (name, took, outcome) in &self.done {
            let word = if outcome.is_ok() { "passed" } else { "FAILED" };
            println!("{:>8.1} s  {word}  {name}", took.as_secs_f64());
            if let Err(error) = outcome {
                println!("            {}", error.lines().next().unwrap_or_default());
            }
        }
        for what in &self.left_out {
            println!("            left out: {what}");
        }
        let total: Duration = self.done.iter().map(|(_, took, _)| *took).sum();
        println!("{:>8.1} s  in all", total.as_secs_f64());
        let n_failed = self
            .done
            .iter()
            .filter(|(_, _, outcome)| outcome.is_err())
            .count();
        println!("{} passed, {n_failed} failed", self.done.len() - n_failed);
        n_failed == 0
    }
}
