//! What a process used: CPU seconds, peak memory, disk reads, from `/proc`.
//!
//! In       a command to run to its end, or a running daemon.
//! Out      [`Run`] or differences of [`Daemon::cpu_seconds`].
//! Limits   CPU is counted in ticks of 10 ms; peak memory of a command is looked at every 2 ms.
//! Not here rates and ratios (`table`).

use std::fs::{self, File};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Pid, WaitId, WaitIdOptions, waitid};

use crate::shell::Result;

const TICKS_PER_SECOND: f64 = 100.0;
const LOOK_INTERVAL: Duration = Duration::from_millis(2);
const READY_TIME_MAX: Duration = Duration::from_secs(60);

/// A command that ran to its end.
#[derive(Debug, Clone)]
pub(crate) struct Run {
    pub(crate) seconds: f64,
    pub(crate) cpu_seconds: f64,
    /// Largest resident set, in bytes.
    pub(crate) memory: u64,
    pub(crate) stdout: String,
}

/// Runs `command` to its end; standard output goes through the file `out`.
pub(crate) fn run(command: &mut Command, out: &Path) -> Result<Run> {
    let start = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(File::create(out)?)
        .stderr(File::create(out.with_extension("stderr"))?)
        .spawn()?;
    let mut memory = 0;
    // Until it is reaped, `/proc` still tells what the process used.
    let ended = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(Pid::from_child(&child)), ended)?.is_none() {
        memory = memory.max(peak_memory(child.id()));
        park_timeout(LOOK_INTERVAL);
    }
    let seconds = start.elapsed().as_secs_f64();
    let cpu_seconds = own_cpu_seconds(child.id());
    let status = child.wait()?;
    if !status.success() {
        let stderr = fs::read_to_string(out.with_extension("stderr"))?;
        let program = command.get_program().to_string_lossy();
        return Err(format!("{program}: {status}\n{stderr}").into());
    }
    Ok(Run {
        seconds,
        cpu_seconds,
        memory,
        stdout: fs::read_to_string(out)?,
    })
}

/// A server under test, killed when dropped.
#[derive(Debug)]
pub(crate) struct Daemon {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
}

impl Daemon {
    /// Starts `command`; `url` is asked again and again until it returns one that accepts.
    pub(crate) fn start(
        command: &mut Command,
        log: &Path,
        url: impl Fn(&str) -> Option<String>,
    ) -> Result<Self> {
        let both = File::create(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(both.try_clone()?)
            .stderr(both)
            .spawn()?;
        let mut daemon = Self {
            child,
            url: String::new(),
        };
        let deadline = Instant::now() + READY_TIME_MAX;
        while Instant::now() < deadline {
            let text = fs::read_to_string(log)?;
            if let Some(url) = url(&text) {
                let address = url.trim_start_matches("http://").to_owned();
                if std::net::TcpStream::connect(address).is_ok() {
                    daemon.url = url;
                    return Ok(daemon);
                }
            }
            if let Some(status) = daemon.child.try_wait()? {
                return Err(format!("ended at once: {status}\n{text}").into());
            }
            park_timeout(Duration::from_millis(10));
        }
        Err(format!(
            "not ready in {READY_TIME_MAX:?}\n{}",
            fs::read_to_string(log)?
        )
        .into())
    }

    /// CPU seconds of the server and its workers since they started.
    pub(crate) fn cpu_seconds(&self) -> f64 {
        let pid = self.child.id();
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let children = children.unwrap_or_default();
        let workers = children
            .split_whitespace()
            .filter_map(|word| word.parse().ok());
        own_cpu_seconds(pid) + workers.map(own_cpu_seconds).sum::<f64>()
    }

    /// Largest resident set so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        peak_memory(self.child.id())
    }

    /// Resident set now, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        field(&format!("/proc/{}/status", self.child.id()), "VmRSS:") * 1024
    }

    /// Bytes that came from a disk, not from the page cache.
    pub(crate) fn disk_reads(&self) -> u64 {
        field(&format!("/proc/{}/io", self.child.id()), "read_bytes:")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // nginx's workers end with their master only if it is asked.
        let _ = rustix::process::kill_process(
            Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let deadline = Instant::now() + Duration::from_secs(10);
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            park_timeout(Duration::from_millis(10));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// CPU seconds of this program.
pub(crate) fn cpu_seconds_here() -> f64 {
    own_cpu_seconds(std::process::id())
}

fn own_cpu_seconds(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name, in parentheses, may hold spaces; user and system time are fields 14 and 15.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = after_name
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|word| word.parse::<f64>().ok())
        .sum();
    ticks / TICKS_PER_SECOND
}

fn peak_memory(pid: u32) -> u64 {
    field(&format!("/proc/{pid}/status"), "VmHWM:") * 1024
}

fn field(path: &str, name: &str) -> u64 {
    let text = fs::read_to_string(path).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix(name));
    line.and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0)
}
