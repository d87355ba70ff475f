//! kubo's daemon: a bitswap server and client that knows nobody but whom a test names.
//!
//! In       a repository.
//! Out      addresses to dial; what `ipfs` fetches from who was dialled.
//! Limits   loopback, ports chosen by the system, no routing, no discovery; what does not come in
//!          [`FETCH_TIME_MAX`] fails the test, with the daemon's log.
//! Not here what is compared with it.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use carrack_testkit::Transport;
use carrack_testkit::kubo::PEER_CONFIG;
use rustix::process::{Pid, Signal, kill_process};

use super::kubo::Kubo;

const READY_TIME_MAX: Duration = Duration::from_secs(30);
const END_TIME_MAX: Duration = Duration::from_secs(10);
const FETCH_TIME_MAX: &str = "--timeout=60s";

/// A running daemon, ended when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    pub(crate) kubo: Kubo,
    child: Child,
    log: Option<JoinHandle<String>>,
}

impl Daemon {
    /// Makes a daemon of `kubo`, with TCP, WebSocket and QUIC.
    pub(crate) fn start(kubo: Kubo) -> Self {
        for (key, value) in PEER_CONFIG {
            kubo.run(&["config", "--json", key, value]);
        }
        let mut child = kubo
            .command(&["daemon"])
            .env("IPFS_TELEMETRY", "off")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let (told, ready) = sync_channel(1);
        let (out, errors) = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
        let errors = std::thread::spawn(move || text_of(errors));
        let log = std::thread::spawn(move || {
            let mut log = String::new();
            for line in BufReader::new(out).lines().map_while(Result::ok) {
                log.push_str(&format!("{line}\n"));
                if line.contains("Daemon is ready") {
                    let _ = told.try_send(());
                }
            }
            log + &errors.join().unwrap()
        });
        let daemon = Self {
            kubo,
            child,
            log: Some(log),
        };
        assert!(
            ready.recv_timeout(READY_TIME_MAX).is_ok(),
            "the daemon is not ready in {READY_TIME_MAX:?}"
        );
        daemon
    }

    /// The multiaddr with `/ws`, `/quic-v1` or, for plain TCP, neither.
    pub(crate) fn address(&self, transport: Transport) -> String {
        let listening = self.kubo.run(&["id", "--format=<addrs>"]);
        let addresses: Vec<String> = listening.lines().map(str::to_owned).collect();
        transport.find(&addresses).unwrap().to_owned()
    }

    /// Knows the peer at `address` from here on.
    pub(crate) fn connect(&self, address: &str) {
        self.kubo
            .run(&["--timeout=30s", "swarm", "connect", address]);
    }

    /// Fetches the whole DAG; fails the test when it does not come.
    pub(crate) fn pin(&self, cid: &str) {
        self.kubo.run(&[FETCH_TIME_MAX, "pin", "add", cid]);
    }

    /// Fetches files into `path`.
    pub(crate) fn get(&self, cid: &str, path: &Path) {
        let path = path.to_str().unwrap();
        self.kubo
            .run(&[FETCH_TIME_MAX, "get", "--progress=false", "-o", path, cid]);
    }

    /// Fetches one block.
    pub(crate) fn block(&self, cid: &str) -> Vec<u8> {
        self.kubo.run_bytes(&[FETCH_TIME_MAX, "block", "get", cid])
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + END_TIME_MAX;
        while matches!(self.child.try_wait(), Ok(None)) {
            if Instant::now() > deadline {
                let _ = self.child.kill();
                break;
            }
            std::thread::park_timeout(Duration::from_millis(5));
        }
        let _ = self.child.wait();
        if let (true, Some(log)) = (std::thread::panicking(), self.log.take()) {
            eprintln!("--- log of the daemon\n{}", log.join().unwrap_or_default());
        }
    }
}

fn text_of(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    pipe.read_to_end(&mut bytes).unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}
