//! carrack beside other implementations.
//!
//! In       `CARRACK_PEERS`, a directory of programs that `cargo xtask test` fills.
//! Out      tests that fail, and say why, when the programs are not there.
//! Not here installing them (`xtask/src/peers.rs`).

mod bitswap;
mod cars;
mod cids;
mod clients;
mod clocks;
mod cut_answers;
pub(crate) mod daemon;
mod helia;
pub(crate) mod kubo;
mod s3;
mod s3_crash;
mod s3_faults;
mod s3_fetch;
mod s3_places;
mod shared_reads;
mod source_commands;
mod sources;
mod test_client;
mod web;

use std::path::PathBuf;
use std::process::Command;

use crate::support::finish;

/// A peer's program.
pub(crate) fn program(name: &str) -> PathBuf {
    let Some(dir) = std::env::var_os("CARRACK_PEERS") else {
        panic!("CARRACK_PEERS is not set: run `cargo xtask test`, which installs the peers");
    };
    let program = PathBuf::from(dir).join(name);
    assert!(
        program.is_file(),
        "{} is missing: run `cargo xtask peers`",
        program.display()
    );
    program
}

/// Runs a peer to its end; its standard output.
pub(crate) fn run(command: Command) -> String {
    let outcome = finish(command).ok();
    outcome.text().to_owned()
}

/// What an oracle says of a CAR: its roots, then its blocks with their lengths, in order.
pub(crate) fn read_car(oracle: &str, car: &std::path::Path) -> String {
    let mut command = Command::new(program(oracle));
    command.arg("read").arg(car);
    run(command)
}
