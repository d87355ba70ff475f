//! Servers of bitswap, and our client before them.
//!
//! In       a store or a repository with content.
//! Out      a running [`Server`] that is reached on loopback; [`Figures`] of what a client got.
//! Limits   servers know nobody: no routing, no discovery.
//! Not here what is measured (`bitswap`), kubo as a client (`pulls`).

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use carrack_testkit::Transport;

use crate::bench::Bench;
use crate::bench::process::Daemon;
use crate::shell::{Result, cargo, output, run, target_dir};

/// Memory is at rest when it has not changed by so much for so long.
const REST_BYTES: u64 = 256 << 10;
const REST_TIME: Duration = Duration::from_secs(1);
const REST_TIME_MAX: Duration = Duration::from_secs(20);

/// A server listens on all transports by then.
const READY_TIME_MAX: Duration = Duration::from_secs(10);

/// A server under test.
#[derive(Debug)]
pub(in crate::bench::rows) struct Server {
    pub(in crate::bench::rows) daemon: Daemon,
    addresses: Vec<String>,
    client: PathBuf,
}

/// What is asked of [`Server::crowd`].
#[derive(Debug, Clone, Copy)]
pub(in crate::bench::rows) struct Crowd<'a> {
    pub(in crate::bench::rows) cids: &'a Path,
    /// Those who fetch.
    pub(in crate::bench::rows) n_peers: usize,
    pub(in crate::bench::rows) n_stalled: usize,
    pub(in crate::bench::rows) seconds: u64,
}

impl Server {
    /// `carrack serve` on a store.
    pub(in crate::bench::rows) fn carrack(bench: &Bench, store: &str) -> Result<Self> {
        let client = client()?;
        let daemon = bench.serve_with(
            store,
            &[
                "--p2p",
                "/ip4/127.0.0.1/tcp/0",
                "--p2p",
                "/ip4/127.0.0.1/udp/0/quic-v1",
            ],
        )?;
        let mut server = Self {
            daemon,
            addresses: Vec::new(),
            client,
        };
        let deadline = Instant::now() + READY_TIME_MAX;
        // WebSockets come over the HTTP port, which listens already.
        let needed = [Transport::Tcp, Transport::Quic];
        while needed.iter().any(|it| server.address(*it).is_none()) {
            if Instant::now() > deadline {
                return Err(format!("listens only on {:?}", server.addresses).into());
            }
            park_timeout(Duration::from_millis(50));
            server.addresses = p2p_addrs(bench, store)?;
        }
        Ok(server)
    }

    /// kubo's daemon on a repository.
    pub(in crate::bench::rows) fn kubo(bench: &Bench, repo: &str) -> Result<Self> {
        let client = client()?;
        let daemon = bench.kubo_peer(repo)?;
        let addresses = output(&mut bench.ipfs(repo, &["id", "--format=<addrs>"], None))?;
        Ok(Self {
            daemon,
            addresses: addresses.lines().map(str::to_owned).collect(),
            client,
        })
    }

    /// Where it is reached; `None`: not over this transport.
    pub(in crate::bench::rows) fn address(&self, transport: Transport) -> Option<&str> {
        transport.find(&self.addresses)
    }

    /// Some clients that share a list of CIDs.
    pub(in crate::bench::rows) fn fetch(
        &self,
        transport: Transport,
        cids: &Path,
        n_clients: usize,
        window: usize,
    ) -> Result<Figures> {
        let mut command = self.load("fetch", transport)?;
        command.arg(cids);
        command.args([n_clients.to_string(), window.to_string()]);
        Ok(Figures(output(&mut command)?))
    }

    /// Wants for what nobody has.
    pub(in crate::bench::rows) fn absent(&self, n_wants: u64, n_peers: usize) -> Result<Figures> {
        let mut command = self.load("absent", Transport::Tcp)?;
        command.args([n_wants.to_string(), n_peers.to_string()]);
        Ok(Figures(output(&mut command)?))
    }

    /// Many peers, some of which take nothing, and come back when they are given up.
    pub(in crate::bench::rows) fn crowd(&self, crowd: &Crowd<'_>) -> Result<Figures> {
        let mut command = self.load("crowd", Transport::Tcp)?;
        command.arg(crowd.cids);
        command.args([crowd.n_peers, crowd.n_stalled].map(|n| n.to_string()));
        command.arg(crowd.seconds.to_string());
        let figures = Figures(output(&mut command)?);
        let n_returns = figures.figure("returns")?;
        if n_returns > 0.0 {
            eprintln!("stalled peers were given up, and came back, {n_returns} times");
        }
        Ok(figures)
    }

    /// Peers that are connected, and want nothing, until what is returned is dropped.
    pub(in crate::bench::rows) fn idle(&self, n_peers: usize) -> Result<Idle> {
        let mut command = self.load("idle", Transport::Tcp)?;
        let child = command
            .arg(n_peers.to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let mut idle = Idle(child);
        let mut line = String::new();
        let out = idle.0.stdout.take().ok_or("no pipe")?;
        BufReader::new(out).read_line(&mut line)?;
        if line.trim() != "ready 1" {
            return Err("idle peers were not taken".into());
        }
        Ok(idle)
    }

    /// Resident memory in bytes, once it does not change any more.
    pub(in crate::bench::rows) fn memory_at_rest(&self) -> u64 {
        let (start, mut last) = (Instant::now(), self.daemon.memory());
        loop {
            park_timeout(REST_TIME);
            let now = self.daemon.memory();
            if now.abs_diff(last) < REST_BYTES || start.elapsed() > REST_TIME_MAX {
                return now;
            }
            last = now;
        }
    }

    fn load(&self, what: &str, transport: Transport) -> Result<Command> {
        let address = self.address(transport);
        let address = address.ok_or_else(|| format!("not reached over {}", transport.name()))?;
        let mut command = Command::new(&self.client);
        command.args([what, address]);
        Ok(command)
    }
}

/// Where `carrack serve` is reached by peers.
fn p2p_addrs(bench: &Bench, store: &str) -> Result<Vec<String>> {
    let status = output(&mut bench.carrack(store, &["status", "--json"], None))?;
    let status: serde_json::Value = serde_json::from_str(&status)?;
    let addresses = status.pointer("/p2p_addrs").and_then(|it| it.as_array());
    let texts = addresses.ok_or("no p2p_addrs in the status")?.iter();
    Ok(texts
        .filter_map(|address| address.as_str().map(str::to_owned))
        .collect())
}

/// Idle peers, who leave when this is dropped.
#[derive(Debug)]
pub(in crate::bench::rows) struct Idle(Child);

impl Drop for Idle {
    fn drop(&mut self) {
        drop(self.0.stdin.take()); // Its end is the sign to leave.
        let _ = self.0.wait();
    }
}

/// Lines `NAME NUMBER` of a client.
#[derive(Debug)]
pub(in crate::bench::rows) struct Figures(String);

impl Figures {
    pub(in crate::bench::rows) fn figure(&self, name: &str) -> Result<f64> {
        let mut lines = self.0.lines().filter_map(|line| line.split_once(' '));
        let found = lines.find(|(key, _)| *key == name);
        let (_, number) = found.ok_or_else(|| format!("no {name} in {:?}", self.0))?;
        Ok(number.parse()?)
    }

    pub(in crate::bench::rows) fn figures<const N: usize>(
        &self,
        names: [&str; N],
    ) -> Result<[f64; N]> {
        let mut all = [0.0; N];
        for (figure, name) in all.iter_mut().zip(names) {
            *figure = self.figure(name)?;
        }
        Ok(all)
    }
}

/// Builds our client, as fast as it can be.
fn client() -> Result<PathBuf> {
    let args = [
        "build",
        "--release",
        "--locked",
        "--package=carrack-testkit",
        "--features=p2p",
        "--example=bitswap_load",
    ];
    run(cargo().args(args))?;
    Ok(target_dir().join("release/examples/bitswap_load"))
}
