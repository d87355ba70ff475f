//! What the tests share: running carrack, speaking HTTP to it, making data from a seed.
//!
//! In       a temporary directory a test.
//! Out      [`Carrack`] (a store and its commands), [`Server`] (a running `serve`).
//! Limits   a command that takes over two minutes, or a server not ready in 30 s, fails the test.
//! Not here the peers (`peers/`).

pub(crate) mod car;
pub(crate) mod data;
pub(crate) mod floods;
pub(crate) mod h2;
pub(crate) mod http;
pub(crate) mod made;
pub(crate) mod mount;
pub(crate) mod s3;
pub(crate) mod web;

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use carrack_testkit::Transport;
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

pub(crate) const COMMAND_TIME_MAX: Duration = Duration::from_secs(120);
const READY_TIME_MAX: Duration = Duration::from_secs(30);

/// The binary under test.
pub(crate) fn binary() -> PathBuf {
    std::env::var_os("CARRACK_BIN")
        .map_or_else(|| env!("CARGO_BIN_EXE_carrack").into(), PathBuf::from)
}

/// A store of its own, and the commands on it.
#[derive(Debug)]
pub(crate) struct Carrack {
    data_dir: PathBuf,
    /// What its commands find in their environment besides.
    environment: Vec<(&'static str, String)>,
    temp: Option<TempDir>,
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: String,
    /// Bytes that the process asked the kernel to read, from any file.
    pub(crate) read_bytes: u64,
}

impl Outcome {
    pub(crate) fn code(&self) -> i32 {
        self.status.code().unwrap_or(-1)
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    /// The words of standard output: for `-Q`, the roots in order.
    pub(crate) fn words(&self) -> Vec<String> {
        self.text().split_whitespace().map(String::from).collect()
    }

    /// The objects of `--json`, one a line.
    pub(crate) fn json(&self) -> Vec<Value> {
        let parse =
            |line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        self.text().lines().map(parse).collect()
    }

    /// Fails the test unless the exit code is 0.
    pub(crate) fn ok(self) -> Self {
        self.exits(0)
    }

    pub(crate) fn exits(self, code: i32) -> Self {
        let Self { status, stderr, .. } = &self;
        assert_eq!(
            self.code(),
            code,
            "{status}\nstdout: {}\nstderr: {stderr}",
            self.lossy()
        );
        self
    }

    fn lossy(&self) -> String {
        let end = self.stdout.len().min(2_000);
        String::from_utf8_lossy(&self.stdout[..end]).into_owned()
    }
}

impl Carrack {
    pub(crate) fn new() -> Self {
        let temp = TempDir::new().unwrap();
        Self {
            data_dir: temp.path().join("data"),
            environment: Vec::new(),
            temp: Some(temp),
        }
    }

    /// On a directory that the test owns.
    pub(crate) fn at(data_dir: &Path) -> Self {
        Self {
            data_dir: data_dir.to_path_buf(),
            environment: Vec::new(),
            temp: None,
        }
    }

    /// A store whose commands reach `bucket` by what their environment says.
    #[allow(dead_code, reason = "taken by tests of sources")]
    pub(crate) fn reaching(bucket: &s3::Bucket) -> Self {
        let mut carrack = Self::new();
        carrack.environment = bucket.environment();
        carrack
    }

    /// Puts a variable into the environment of its commands.
    pub(crate) fn set_env(&mut self, name: &'static str, value: &str) {
        self.environment.push((name, value.to_owned()));
    }

    /// Lets its commands trust the certificates of an authority, a file in PEM.
    pub(crate) fn trust(&mut self, authority: &Path) {
        let file = authority.to_str().unwrap().to_owned();
        self.environment.push(("SSL_CERT_FILE", file));
    }

    /// Sets a variable of the environment of its commands.
    pub(crate) fn set(&mut self, name: &'static str, value: &Path) {
        let value = value.to_str().unwrap().to_owned();
        self.environment.push((name, value));
    }

    /// A place for the test's own files, gone with the store.
    pub(crate) fn dir(&self) -> &Path {
        self.temp.as_ref().unwrap().path()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir().join(name)
    }

    pub(crate) fn command<S: AsRef<OsStr>>(&self, args: &[S]) -> Command {
        let mut command = Command::new(binary());
        command
            .args(args)
            .env("CARRACK_DATA_DIR", &self.data_dir)
            .env("RUST_BACKTRACE", "1")
            .envs(self.environment.iter().map(|(key, value)| (key, value)))
            .stdin(Stdio::null());
        command
    }

    /// Runs a command to its end.
    pub(crate) fn run<S: AsRef<OsStr>>(&self, args: &[S]) -> Outcome {
        finish(self.command(args))
    }

    /// `add -Q` with options before the paths; the roots.
    pub(crate) fn add<S: AsRef<OsStr>>(&self, args: &[S]) -> Vec<String> {
        let mut words: Vec<&OsStr> = vec!["add".as_ref(), "-Q".as_ref()];
        words.extend(args.iter().map(AsRef::as_ref));
        self.run(&words).ok().words()
    }

    /// `add -Q` of one path; its root.
    pub(crate) fn add_one(&self, path: &Path) -> String {
        let roots = self.add(&[path]);
        assert_eq!(roots.len(), 1, "{roots:?}");
        roots.into_iter().next().unwrap()
    }

    /// `export CID -o FILE`; the file.
    pub(crate) fn export(&self, cid: &str, name: &str) -> PathBuf {
        let file = self.path(name);
        let args: [&OsStr; 4] = [
            "export".as_ref(),
            cid.as_ref(),
            "-o".as_ref(),
            file.as_ref(),
        ];
        self.run(&args).ok();
        file
    }

    /// Starts `serve` on a free port, without libp2p, and waits until it is ready.
    pub(crate) fn serve<S: AsRef<OsStr>>(&self, paths: &[S]) -> Server {
        self.serve_on(&["--p2p", "off"], paths)
    }

    /// The same, with so many descriptors.
    pub(crate) fn serve_with_descriptors(&self, n: usize) -> Server {
        let serve = self.command(&["serve", "--listen", "127.0.0.1:0", "--p2p", "off"]);
        let script = format!("ulimit -n {n}; exec \"$0\" \"$@\"");
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &script])
            .arg(serve.get_program())
            .args(serve.get_args());
        for (name, value) in serve.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        shell
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Server::start(&mut shell)
    }

    /// The same with libp2p: TCP, QUIC, and WebSocket on the HTTP port.
    pub(crate) fn serve_peers<S: AsRef<OsStr>>(&self, paths: &[S]) -> Server {
        let (tcp, quic) = ("/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1");
        self.serve_on(&["--p2p", tcp, "--p2p", quic], paths)
    }

    fn serve_on<S: AsRef<OsStr>>(&self, p2p: &[&str], paths: &[S]) -> Server {
        let mut command = self.command(&["serve", "--listen", "127.0.0.1:0"]);
        command
            .args(p2p)
            .args(paths)
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        Server::start(&mut command)
    }
}

impl Carrack {
    /// Where the running `serve` is reached by libp2p: multiaddrs that end in its PeerID.
    pub(crate) fn p2p_addresses(&self) -> Vec<String> {
        let status = self.run(&["status", "--json"]).ok().json();
        let addresses = status[0]["p2p_addrs"].as_array();
        let addresses = addresses.unwrap_or_else(|| panic!("no p2p_addrs in {}", status[0]));
        let text = |address: &Value| address.as_str().unwrap().to_owned();
        addresses.iter().map(text).collect()
    }

    /// The one of a transport, once that is listened on: a node that is ready may not be so far.
    pub(crate) fn p2p_address(&self, transport: Transport) -> String {
        let deadline = Instant::now() + READY_TIME_MAX;
        loop {
            let addresses = self.p2p_addresses();
            if let Some(address) = transport.find(&addresses) {
                return address.to_owned();
            }
            let is_late = Instant::now() > deadline;
            assert!(!is_late, "no {transport:?} in {addresses:?}");
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }
}

/// Runs `command` to its end and keeps what it printed.
pub(crate) fn finish(mut command: Command) -> Outcome {
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stdout = read_all(child.stdout.take().unwrap());
    let stderr = read_all(child.stderr.take().unwrap());
    let deadline = Instant::now() + COMMAND_TIME_MAX;
    let options = rustix::process::WaitIdOptions::EXITED | rustix::process::WaitIdOptions::NOWAIT;
    let pid = rustix::process::Pid::from_child(&child);
    let watchdog = std::thread::spawn(move || {
        // What the process read is known until it is reaped.
        let _ = rustix::process::waitid(rustix::process::WaitId::Pid(pid), options);
    });
    while !watchdog.is_finished() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("{command:?} took over {COMMAND_TIME_MAX:?}");
        }
        std::thread::park_timeout(Duration::from_millis(2));
    }
    watchdog.join().unwrap();
    let read_bytes = read_bytes(child.id());
    Outcome {
        status: child.wait().unwrap(),
        stdout: stdout.join().unwrap(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap()).into_owned(),
        read_bytes,
    }
}

fn read_all(mut pipe: impl Read + Send + 'static) -> JoinHandle<Vec<u8>> {
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipe.read_to_end(&mut bytes).unwrap();
        bytes
    })
}

/// `rchar` of the process: what its read calls returned, page cache or not.
fn read_bytes(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let rchar = text
        .lines()
        .find_map(|line| line.strip_prefix("rchar: "))
        .unwrap();
    rchar.parse().unwrap()
}

/// A running `carrack serve`, killed when dropped.
#[derive(Debug)]
pub(crate) struct Server {
    child: Child,
    /// `http://127.0.0.1:PORT`
    pub(crate) url: String,
    stderr: Option<JoinHandle<String>>,
    /// Standard error, held open and not read.
    unread: Option<BufReader<std::process::ChildStderr>>,
}

impl Server {
    /// A `serve` that the test has put together.
    pub(crate) fn of(mut command: Command) -> Self {
        command.stdout(Stdio::null()).stderr(Stdio::piped());
        Self::start(&mut command)
    }

    pub(crate) fn start(command: &mut Command) -> Self {
        let mut child = command.spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (found, listening) = std::sync::mpsc::sync_channel(1);
        let stderr = std::thread::spawn(move || {
            let mut text = String::new();
            for line in stderr.lines().map_while(Result::ok) {
                if let Some((_, url)) = line.split_once("listening on ") {
                    let _ = found.try_send(url.trim_end_matches('/').trim().to_owned());
                }
                text.push_str(&line);
                text.push('\n');
            }
            text
        });
        let Ok(url) = listening.recv_timeout(READY_TIME_MAX) else {
            let _ = child.kill();
            panic!(
                "no `listening on` line: {:?}\n{}",
                child.wait(),
                stderr.join().unwrap()
            );
        };
        let server = Self {
            child,
            url,
            stderr: Some(stderr),
            unread: None,
        };
        server.until_ready()
    }

    /// A `serve` of whose words nothing is read once it has said where it listens.
    pub(crate) fn unread(command: &mut Command) -> Self {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut unread = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        unread.read_line(&mut line).unwrap();
        let (_, url) = line.split_once("listening on ").unwrap();
        let url = url.trim().trim_end_matches('/').to_owned();
        let server = Self {
            child,
            url,
            stderr: None,
            unread: Some(unread),
        };
        server.until_ready()
    }

    fn until_ready(self) -> Self {
        let mut server = self;
        let deadline = Instant::now() + READY_TIME_MAX;
        while http::try_get(&server.url, "/readyz").is_none_or(|answer| answer.status != 200) {
            let ended = server.child.try_wait().unwrap();
            assert!(ended.is_none(), "ended before it was ready: {ended:?}");
            assert!(Instant::now() < deadline, "not ready in {READY_TIME_MAX:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
        server
    }

    pub(crate) fn get(&self, path: &str) -> http::Answer {
        http::request(&self.url, "GET", path, &[])
    }

    /// The most memory that was resident so far, in bytes.
    pub(crate) fn peak_memory(&self) -> u64 {
        self.status_of("VmHWM:")
    }

    /// Memory that is resident, in bytes.
    pub(crate) fn memory(&self) -> u64 {
        self.status_of("VmRSS:")
    }

    fn status_of(&self, name: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let text = std::fs::read_to_string(path).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        kib.unwrap().parse::<u64>().unwrap() * 1024
    }

    /// Sets how many descriptors the process may have from now on; those that it has stay.
    pub(crate) fn limit_descriptors(&self, n: usize) {
        let mut command = Command::new("prlimit");
        command.arg(format!("--pid={}", self.child.id()));
        let status = command.arg(format!("--nofile={n}:")).status().unwrap();
        assert!(status.success(), "prlimit is a part of util-linux");
    }

    /// Files and sockets that are open.
    pub(crate) fn n_descriptors(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        std::fs::read_dir(path).unwrap().count()
    }

    /// Kills the process as a power cut would and reaps it.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Asks for a clean end; how it ended, and what it had logged.
    pub(crate) fn terminate(self) -> (ExitStatus, String) {
        self.terminate_within(READY_TIME_MAX)
    }

    /// The same, with requests under way that are waited for.
    pub(crate) fn terminate_within(self, time_max: Duration) -> (ExitStatus, String) {
        self.signal(Signal::TERM);
        self.ended_within(time_max)
    }

    /// Sends a signal to the process.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).unwrap();
    }

    /// How it ended, after a signal, and what it had logged.
    pub(crate) fn ended_within(mut self, time_max: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + time_max;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                drop(self.unread.take());
                let said = self.stderr.take().map(|said| said.join().unwrap());
                return (status, said.unwrap_or_default());
            }
            assert!(
                Instant::now() < deadline,
                "still running {time_max:?} after a signal"
            );
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let log = self.stderr.take().map(|log| log.join());
        if let (true, Some(Ok(log))) = (std::thread::panicking(), log) {
            eprintln!("--- log of serve\n{log}");
        }
    }
}
