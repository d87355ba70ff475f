//! `cargo xtask fuzz`: the targets of `fuzz/`, each for some seconds.
//!
//! In       seconds a target, and perhaps one target's name.
//! Out      cargo-fuzz's report; an input that crashes is kept in `fuzz/artifacts`.
//! Limits   every target has 2 GiB of memory and 10 s an input, whatever it is given.
//! Not here the targets, and what they assert.

use std::fs;

use crate::peers::{self, CARGO_FUZZ};
use crate::shell::{Result, Steps, cargo, output, root};
use crate::test::with_path;

const SECONDS: u64 = 60;

/// `[--seconds N] [TARGET]`
pub(crate) fn command(args: &[&str]) -> Result<bool> {
    let (seconds, wanted) = match args {
        ["--seconds", seconds, wanted @ ..] => (seconds.parse()?, wanted),
        wanted => (SECONDS, wanted),
    };
    let mut steps = Steps::default();
    for target in targets()? {
        if wanted.is_empty() || wanted.contains(&target.as_str()) {
            steps.step(&format!("fuzz {target}, {seconds} s"), || {
                one(&target, seconds)
            });
        }
    }
    Ok(steps.finish())
}

/// Every target for `seconds`; the first that finds something ends it.
pub(crate) fn run_all(seconds: u64) -> Result {
    targets()?
        .iter()
        .try_for_each(|target| one(target, seconds))
}

/// The names of the targets, sorted.
pub(crate) fn targets() -> Result<Vec<String>> {
    let Ok(dir) = fs::read_dir(root().join("fuzz").join("fuzz_targets")) else {
        return Ok(Vec::new());
    };
    let mut names = Vec::new();
    for entry in dir {
        let name = entry?
            .file_name()
            .into_string()
            .map_err(|_| "a target's name is not text")?;
        names.extend(name.strip_suffix(".rs").map(String::from));
    }
    names.sort();
    Ok(names)
}

/// Sanitizers are flags of nightly compilers; `RUSTC_BOOTSTRAP` lets the stable one take them.
/// libFuzzer tells a lot: it is shown only when something was found.
fn one(target: &str, seconds: u64) -> Result {
    let program = peers::ensure(&CARGO_FUZZ)?;
    output(
        cargo()
            .args(["fuzz", "run", target, "--"])
            .arg(format!("-max_total_time={seconds}"))
            .args(["-timeout=10", "-rss_limit_mb=2048", "-verbosity=0"])
            .env("RUSTC_BOOTSTRAP", "1")
            .env("PATH", with_path(&program)?),
    )?;
    println!("{target}: nothing found in {seconds} s");
    Ok(())
}
