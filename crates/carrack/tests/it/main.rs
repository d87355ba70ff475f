//! carrack from outside: its command line and its HTTP port, alone and beside its peers.
//!
//! In       the binary that cargo built, or the one named by `CARRACK_BIN`.
//! Out      one test binary; what needs a peer lies under `peers::` and runs by `cargo xtask test`.
//! Limits   loopback only, ports chosen by the system, every directory temporary.
//! Not here unit tests (beside the code) and the conformance vectors' own format.
#![expect(
    clippy::disallowed_methods,
    clippy::indexing_slicing,
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a panic here is a failed test; helpers are no `#[test]` functions"
)]

mod attacks;
mod bad_cars;
mod budgets;
mod commands;
mod crash;
mod cut_answers;
mod dags;
mod dialects;
mod disk_full;
mod exhausted;
mod faulty_source;
mod hostile_peers;
mod hostile_web;
mod index;
mod lost_store;
mod overload;
mod own_files;
mod p2p_floods;
mod panics;
mod peers;
mod pipes;
mod power;
mod privacy;
mod read_only;
mod secrets;
mod slow_sources;
mod sources;
mod staleness;
mod stopping;
mod support;
mod terminal;
