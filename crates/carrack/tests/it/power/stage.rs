//! A disk that loses power, a store on it, and commands on the store.
//!
//! In       a flow, seeds.
//! Out      how its command ended; what it does when nobody cuts.
//! Limits   a command that goes on for [`GRACE`] after the cut is killed.
//! Not here what must hold (`flows`).

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::Receiver;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use carrack_testkit::power::mount::PowerMount;
use carrack_testkit::power::{Chance, Counts, Disk};
use tempfile::TempDir;

use super::flows::Flow;
use crate::support::{COMMAND_TIME_MAX, Carrack};

/// How long a process may go on without its disk.
const GRACE: Duration = Duration::from_secs(10);
/// Bytes that a store may have beyond what it has without cuts: the catalog's free pages.
const SLACK_LEN: u64 = 2 << 20;
/// Files beside segments that it may have beyond.
const SLACK_FILES: usize = 2;

/// How a command ended.
#[derive(Debug, Default)]
pub(super) struct Ended {
    /// It said that it was done.
    pub(super) is_reported: bool,
    pub(super) words: Vec<String>,
    pub(super) stderr: String,
}

/// What became of a process that was watched.
struct Outcome {
    status: Option<ExitStatus>,
    is_ready: bool,
}

/// A running carrack, killed when dropped.
#[derive(Debug)]
struct Process {
    child: Child,
    /// Tells that standard error said `ready`.
    ready: Receiver<()>,
    stdout: Option<JoinHandle<String>>,
    stderr: Option<JoinHandle<String>>,
}

impl Process {
    fn start(mut command: Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdout = child.stdout.take().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let stdout = std::thread::spawn(move || {
            let mut text = String::new();
            stdout.read_to_string(&mut text).map(|_| text).unwrap()
        });
        let (tell, ready) = std::sync::mpsc::sync_channel(1);
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                text.push_str(&line);
                text.push('\n');
                if line == "ready" {
                    let _ = tell.try_send(());
                }
            }
            text
        });
        Self {
            child,
            ready,
            stdout: Some(stdout),
            stderr: Some(stderr),
        }
    }

    /// Kills it if it still runs; what it wrote to standard output and standard error.
    fn said(mut self) -> (String, String) {
        let _ = self.child.kill();
        self.child.wait().unwrap();
        let [stdout, stderr] = [self.stdout.take(), self.stderr.take()];
        (
            stdout.unwrap().join().unwrap(),
            stderr.unwrap().join().unwrap(),
        )
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What the flow does when nobody cuts.
#[derive(Debug, Default)]
pub(super) struct Calm {
    pub(super) counts: Counts,
    pub(super) words: Vec<String>,
    files: BTreeMap<String, u64>,
}

pub(super) struct Stage {
    pub(super) mount: PowerMount,
    pub(super) carrack: Carrack,
    pub(super) calm: Calm,
    /// What lay on the disk before the flow, synced or not.
    before: Disk,
    temp: TempDir,
}

impl Stage {
    pub(super) fn new() -> Self {
        let temp = TempDir::new().unwrap();
        let disk = temp.path().join("disk");
        std::fs::create_dir(&disk).unwrap();
        Self {
            mount: PowerMount::new(&disk).unwrap_or_else(|error| panic!("{error}")),
            carrack: Carrack::at(&disk.join("data")),
            calm: Calm::default(),
            before: Disk::default(),
            temp,
        }
    }

    /// A place for what is added, on a disk that keeps it.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    /// Does the flow once without a cut, and remembers what lay there before.
    pub(super) fn rehearse(&mut self, flow: &Flow) {
        self.before = self.mount.machine().inspect().clone();
        self.begin(0);
        let ended = self.run_until_cut(flow, &mut Chance::new(0));
        assert!(ended.is_reported, "{}: {}", flow.name, ended.stderr);
        let counts = self.mount.machine().counts();
        flow.holds(self, &ended.words);
        flow.old_holds(self);
        self.calm = Calm {
            counts,
            words: ended.words,
            files: self.mount.machine().inspect().files(),
        };
    }

    /// Puts the disk back to what it was before the flow.
    pub(super) fn begin(&self, seed: u64) {
        self.mount.machine().load(&self.before, seed);
    }

    /// Runs the flow's command until it ends, or for a while after the cut.
    pub(super) fn run_until_cut(&self, flow: &Flow, chance: &mut Chance) -> Ended {
        // Some machines die at once, some go on for a while without their disk.
        let grace = if chance.one_in(4) {
            Duration::ZERO
        } else {
            GRACE
        };
        let mut node = None;
        if flow.is_beside_a_node {
            let args = ["serve", "--listen", "127.0.0.1:0", "--p2p", "off"];
            let mut started = Process::start(self.carrack.command(&args));
            if !self.watch(&mut started, true, grace).is_ready {
                let (_, stderr) = started.said();
                return Ended {
                    stderr, // The command has no node.
                    ..Ended::default()
                };
            }
            node = Some(started);
        }
        let mut process = Process::start(self.carrack.command(&flow.command));
        let is_service = flow.is_service();
        let outcome = self.watch(&mut process, is_service, grace);
        let (words, stderr) = process.said();
        drop(node);
        let known = stderr
            .lines()
            .find_map(|line| line.strip_prefix("known to peers as "));
        let words = match (is_service, known) {
            (true, Some(peer)) => vec![peer.to_owned()],
            (true, None) => Vec::new(),
            (false, _) => words.split_whitespace().map(String::from).collect(),
        };
        let is_done = outcome.status.is_some_and(|status| status.success());
        let said_so = !is_service && flow.is_report(&words);
        Ended {
            is_reported: is_done || outcome.is_ready || said_so,
            words,
            stderr,
        }
    }

    /// Waits until a process ends, or is ready if that is waited for, or had its time without a
    /// disk, and kills it unless it is to go on.
    fn watch(&self, process: &mut Process, for_ready: bool, grace: Duration) -> Outcome {
        let deadline = Instant::now() + COMMAND_TIME_MAX;
        let mut off_since = None;
        loop {
            let status = process.child.try_wait().unwrap();
            let is_ready = for_ready && process.ready.try_recv().is_ok();
            if self.mount.machine().is_off() {
                off_since.get_or_insert_with(Instant::now);
            }
            let is_over = off_since.is_some_and(|since: Instant| since.elapsed() >= grace);
            if status.is_some() || is_ready || is_over {
                return Outcome { status, is_ready };
            }
            assert!(Instant::now() < deadline, "{process:?} hangs");
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// The store takes about as much as without a cut, and nothing lies there that would not.
    pub(super) fn nothing_piled_up(&self, flow: &Flow) {
        let now = self.mount.machine().inspect().files();
        let is_segment = |path: &&String| path.contains("/segments/");
        let others =
            |files: &BTreeMap<String, u64>| files.keys().filter(|path| !is_segment(path)).count();
        let len = |files: &BTreeMap<String, u64>| files.values().sum::<u64>();
        let calm = &self.calm.files;
        assert!(
            others(&now) <= others(calm) + SLACK_FILES && len(&now) <= len(calm) + SLACK_LEN,
            "{}: left over: {now:#?}\nwithout a cut: {calm:#?}",
            flow.name
        );
        let temporary = now.keys().find(|path| path.ends_with(".tmp"));
        assert_eq!(temporary, None, "{now:#?}");
    }
}
