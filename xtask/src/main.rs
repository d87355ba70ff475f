//! `cargo xtask`: everything that CI does, in Rust.
//!
//! In       a command: test, interop, crash, soak, memcheck, fuzz, bench, s3, web, peers.
//! Out      each step with its time, and a closing line `N passed, N failed`.
//! Not here the tests themselves (`crates/*`), and the fuzz targets (`fuzz/`).
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a command for a terminal: its output is what it is for"
)]

mod bench;
mod fuzz;
mod graph;
mod memcheck;
mod peers;
mod serve;
mod shell;
mod test;
#[cfg(test)]
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "\
cargo xtask COMMAND

  test [--no-peers]            everything that CI does
  interop                      the tests against kubo, lassie, go-car, @ipld/car and curl alone
  soak [--peers N]             libp2p peers come, want and go; nothing may stay (default 10000)
  crash [--rounds N]           kill -9 at random moments of add and import (default 50 rounds)
  crash --power [--rounds N] [--seed S]
                               power cuts at each sync and at random (default 500 cuts a flow,
                               seeds from 1 on)
  memcheck                     the tests that touch unsafe code, under valgrind
  fuzz [--seconds N] [TARGET]  the fuzz targets (default 60 seconds each)
  graph                        who imports whom, arrows up, circles of files
  bench [--quick] [ROW...]     speed and memory beside the peers, as a markdown table
  bench --against=BINARY       CPU beside an earlier carrack, in turns
  bench --list                 the rows of the table
  s3 DIR                       a bucket to try things with: versitygw on the folder DIR/data
  web DIR                      an https server to try things with: nginx on the folder DIR
  peers                        installs the peers and prints where they are
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// `Ok(false)`: all ran, and something failed.
fn run(args: &[&str]) -> shell::Result<bool> {
    match args {
        ["test"] => test::all(true),
        ["test", "--no-peers"] => test::all(false),
        ["interop"] => test::interop(),
        ["soak"] => test::soak(10_000),
        ["soak", "--peers", peers] => test::soak(peers.parse()?),
        ["crash"] => test::crash(50),
        ["crash", "--rounds", rounds] => test::crash(rounds.parse()?),
        ["crash", "--power", rest @ ..] => test::power(rest),
        ["memcheck"] => memcheck::command(),
        ["fuzz", rest @ ..] => fuzz::command(rest),
        ["graph"] => graph::command(),
        ["bench", rest @ ..] => bench::command(rest),
        ["s3", dir] => serve::bucket(dir),
        ["web", dir] => serve::web(dir),
        ["peers"] => {
            let peers = peers::install(peers::ALL)?;
            println!("{}", peers.display());
            Ok(true)
        }
        ["help" | "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(true)
        }
        _ => {
            eprint!("{USAGE}");
            Ok(false)
        }
    }
}
