//! `cargo xtask test`: the list of everything that has to hold, in the order that fails soonest.
//!
//! In       whether foreign toolchains may be asked for.
//! Out      steps on the terminal; true when all passed.
//! Limits   made for two cores: about 20 minutes from a clean clone, half of it building.
//! Not here the tests; what they need of this program is in environment variables:
//!          `CARRACK_PEERS` (directory of programs), `CARRACK_BIN` (binary to test instead of the
//!          one cargo just built), `CARRACK_CRASH_ROUNDS`, `CARRACK_POWER_ROUNDS` and
//!          `CARRACK_POWER_SEED`, `CARRACK_DATA_SET_MIB` (the size of the data set that lies in a
//!          bucket).

use std::path::Path;

use crate::fuzz;
use crate::peers::{self, CARGO_DENY};
use crate::shell::{Result, Steps, cargo, output, run, target_dir};

/// Tests whose path holds this need a peer.
const PEER_TESTS: &str = "peers::";
const FUZZ_SECONDS: u64 = 5;
/// Cuts a flow when nothing else is asked for.
const POWER_ROUNDS: u64 = 500;
/// The data set in a bucket when only peers are tested; `test` takes a small one.
const INTEROP_SET_MIB: &str = "1024";

/// Everything. Without `with_peers`, what needs a foreign toolchain is listed as left out.
pub(crate) fn all(with_peers: bool) -> Result<bool> {
    let mut steps = Steps::default();
    steps.step("format", || run(cargo().args(["fmt", "--all", "--check"])));
    steps.step("dependency rules", dependency_rules);
    let mut peers = None;
    if with_peers {
        steps.step("install peers", || {
            peers = Some(peers::install(peers::ALL)?);
            Ok(())
        });
    }
    steps.step("clippy", || {
        let all = [
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ];
        run(cargo().args(all))
    });
    steps.step("documentation", || {
        let doc = [
            "doc",
            "--workspace",
            "--no-deps",
            "--locked",
            "--document-private-items",
        ];
        run(cargo().args(doc).env(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        ))
    });
    steps.step("tests and examples", || {
        workspace_tests(with_peers, peers.as_deref())
    });
    steps.step("models of concurrency", models);
    steps.step("release binary", build_release);
    steps.step("licences, sources, banned crates", deny);
    if fuzz::targets()?.is_empty() {
        steps.leave_out("fuzzing: there are no targets");
    } else {
        steps.step("fuzz", || fuzz::run_all(FUZZ_SECONDS));
    }
    if !with_peers {
        for test in peer_tests()? {
            steps.leave_out(&test);
        }
    }
    Ok(steps.finish())
}

/// The tests with peers alone.
pub(crate) fn interop() -> Result<bool> {
    let mut steps = Steps::default();
    steps.step("interop", || {
        let peers = peers::install(peers::ALL)?;
        let test = [
            "test",
            "--package",
            "carrack",
            "--test",
            "it",
            "--locked",
            "--",
            PEER_TESTS,
        ];
        run(cargo()
            .args(test)
            .env("CARRACK_PEERS", peers)
            .env("CARRACK_DATA_SET_MIB", INTEROP_SET_MIB))
    });
    Ok(steps.finish())
}

/// The kill -9 loops alone, on the release binary: its moments are the ones users meet.
pub(crate) fn crash(rounds: u32) -> Result<bool> {
    let mut steps = Steps::default();
    steps.step(&format!("kill -9, {rounds} rounds"), || {
        build_release()?;
        let test = ["test", "--package", "carrack", "--test", "it", "--locked"];
        run(cargo()
            .args(test)
            .args(["--", "--nocapture", "crash::"])
            .env("CARRACK_PEERS", peers::install(&[peers::VERSITYGW])?)
            .env("CARRACK_BIN", release_binary())
            .env("CARRACK_CRASH_ROUNDS", rounds.to_string()))
    });
    Ok(steps.finish())
}

/// Power cuts of every flow, on the release binary: `[--rounds N] [--seed S]`.
pub(crate) fn power(args: &[&str]) -> Result<bool> {
    let (mut rounds, mut seed) = (POWER_ROUNDS, 1);
    for option in args.chunks(2) {
        match option {
            ["--rounds", value] => rounds = value.parse::<u64>()?,
            ["--seed", value] => seed = value.parse::<u64>()?,
            _ => return Err("crash --power takes --rounds N and --seed S".into()),
        }
    }
    let mut steps = Steps::default();
    let last = seed.saturating_add(rounds).saturating_sub(1);
    steps.step(&format!("power cuts, seeds {seed} to {last}"), || {
        build_release()?;
        let test = ["test", "--package", "carrack", "--test", "it", "--locked"];
        run(cargo()
            .args(test)
            .args(["--", "--nocapture", "power::"])
            .env("CARRACK_BIN", release_binary())
            .env("CARRACK_POWER_ROUNDS", rounds.to_string())
            .env("CARRACK_POWER_SEED", seed.to_string()))
    });
    Ok(steps.finish())
}

/// Peers that come, want and go, on the release binary, until so many have.
pub(crate) fn soak(peers: u32) -> Result<bool> {
    let mut steps = Steps::default();
    steps.step(&format!("{peers} peers come and go"), || {
        build_release()?;
        let test = ["test", "--package", "carrack", "--test", "it", "--locked"];
        run(cargo()
            .args(test)
            .args(["--", "--nocapture", "peers_that_leave_leave_nothing"])
            .env("CARRACK_BIN", release_binary())
            .env("CARRACK_SOAK_PEERS", peers.to_string()))
    });
    Ok(steps.finish())
}

/// Builds the binary that benches and crash loops run.
pub(crate) fn build_release() -> Result {
    run(cargo().args(["build", "--release", "--package", "carrack", "--locked"]))
}

/// Where [`build_release`] puts it.
pub(crate) fn release_binary() -> std::path::PathBuf {
    target_dir().join("release").join("carrack")
}

fn workspace_tests(with_peers: bool, peers: Option<&Path>) -> Result {
    let mut test = cargo();
    test.args(["test", "--workspace", "--locked", "--no-fail-fast"]);
    match (with_peers, peers) {
        (true, Some(peers)) => {
            test.env("CARRACK_PEERS", peers);
        }
        (true, None) => {} // Their installation failed: the tests that need them say so.
        (false, _) => {
            test.args(["--", "--skip", PEER_TESTS]);
        }
    }
    run(&mut test)
}

/// The table of reads, its budget and the registry of wants on every interleaving that the checkers
/// try; their mutants fail.
fn models() -> Result {
    let test = |package: &str, features: &str, models: &str| {
        let test = ["test", "--lib", "--locked", "--no-default-features"];
        let which = ["--package", package, "--features", features, models];
        run(cargo().args(test).args(which))
    };
    test("carrack", "model", "extent::model")?;
    test("carrack-bitswap", "shuttle", "registry::model")?;
    test("carrack-bitswap", "loom", "registry::model")
}

fn peer_tests() -> Result<Vec<String>> {
    let list = [
        "test",
        "--quiet",
        "--package",
        "carrack",
        "--test",
        "it",
        "--locked",
    ];
    let names = output(cargo().args(list).args(["--", "--list", PEER_TESTS]))?;
    Ok(names
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(String::from)
        .collect())
}

fn deny() -> Result {
    let program = peers::ensure(&CARGO_DENY)?;
    run(cargo()
        .arg("deny")
        .args([
            "--locked",
            "check",
            "--hide-inclusion-graph",
            "bans",
            "licenses",
            "sources",
        ])
        .env("PATH", with_path(&program)?))
}

/// The `PATH` with the directory of `program` before it, so that cargo finds its subcommand.
pub(crate) fn with_path(program: &Path) -> Result<std::ffi::OsString> {
    let dir = program
        .parent()
        .ok_or("a program without a directory")?
        .to_path_buf();
    let path = std::env::var_os("PATH").unwrap_or_default();
    Ok(std::env::join_paths(
        std::iter::once(dir).chain(std::env::split_paths(&path)),
    )?)
}

/// The formats stay free of I/O; nothing brings a second TLS library.
fn dependency_rules() -> Result {
    let tree = |package: &[&str]| {
        let args = [
            "tree",
            "--locked",
            "--prefix",
            "none",
            "--edges",
            "normal,build",
        ];
        output(cargo().args(args).args(package))
    };
    let holds = |tree: &str, name: &str| {
        tree.lines()
            .any(|line| line.split(' ').next() == Some(name))
    };
    let formats = tree(&["--package", "carrack-formats"])?;
    for banned in ["tokio", "mio", "hyper", "rustix"] {
        if holds(&formats, banned) {
            return Err(format!("carrack-formats depends on {banned}").into());
        }
    }
    let all = tree(&["--workspace"])?;
    // libp2p's TLS and QUIC bring aws-lc, which is built with the compiler that ring needs, too.
    for banned in ["openssl", "openssl-sys", "native-tls"] {
        if holds(&all, banned) {
            return Err(format!("{banned} is in the dependency tree").into());
        }
    }
    Ok(())
}
