//! Pipes that nobody reads, or fills: a command ends at the first signal all the same.
//!
//! In       FIFOs, full pipes and silent ones.
//! Out      the end of the command, its exit code, and what a reader gets who comes late.
//! Not here files and terminals.

use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Carrack, Server, data};

/// Far more than an end takes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);
/// More than a pipe takes.
const FILE_LEN: u64 = 4 << 20;
/// The exit code of what was interrupted.
const UNAVAILABLE: i32 = 8;

fn fifo(carrack: &Carrack, name: &str) -> PathBuf {
    let path = carrack.path(name);
    assert!(
        Command::new("mkfifo")
            .arg(&path)
            .status()
            .unwrap()
            .success()
    );
    path
}

fn with_a_file() -> (Carrack, String) {
    let carrack = Carrack::new();
    let file = carrack.path("file");
    data::file(&file, 5, FILE_LEN);
    let root = carrack.add_one(&file);
    (carrack, root)
}

/// Waits until the process has said what is to be done at a SIGTERM.
fn until_it_listens(child: &Child) {
    let path = format!("/proc/{}/status", child.id());
    let started = Instant::now();
    loop {
        let text = std::fs::read_to_string(&path).unwrap();
        let caught = text.lines().find_map(|line| line.strip_prefix("SigCgt:"));
        let caught = u64::from_str_radix(caught.unwrap().trim(), 16).unwrap();
        if caught & (1 << (Signal::TERM.as_raw() - 1)) != 0 {
            return;
        }
        assert!(started.elapsed() < PATIENCE);
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn ended(mut child: Child) -> ExitStatus {
    let started = Instant::now();
    loop {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        if started.elapsed() > PATIENCE {
            child.kill().unwrap();
            panic!("still there {PATIENCE:?} after the first signal");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

#[test]
fn a_command_that_waits_for_a_pipe_ends_at_the_first_signal() {
    let (carrack, root) = with_a_file();
    let out = fifo(&carrack, "out");
    let out = out.to_str().unwrap();
    let commands: [&[&str]; 4] = [
        &["export", &root, "-o", out],
        &["export", &root, "-o", "-"],
        &["cat", &root],
        &["import", "--copy", "-"],
    ];
    for args in commands {
        let mut command = carrack.command(args);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        // Both pipes stay open, nobody writes and nobody reads.
        let mut child = command.stderr(Stdio::null()).spawn().unwrap();
        let pipes = (child.stdin.take(), child.stdout.take());
        until_it_listens(&child);
        // It has begun to wait, or is about to.
        std::thread::park_timeout(Duration::from_millis(300));
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        assert_eq!(ended(child).code(), Some(UNAVAILABLE), "{args:?}");
        drop(pipes);
    }
}

#[test]
fn clients_that_leave_while_a_pipe_has_no_reader_leave_no_command_behind() {
    let (carrack, root) = with_a_file();
    let out = fifo(&carrack, "out");
    let server = carrack.serve::<&str>(&[]);
    // Twice as many as there may be at once.
    for _ in 0..2 {
        let export = || {
            let args = ["export", &root, "-o", out.to_str().unwrap()];
            let mut command = carrack.command(&args);
            command.stdout(Stdio::null()).stderr(Stdio::null());
            command.spawn().unwrap()
        };
        let clients: Vec<Child> = (0..16).map(|_| export()).collect();
        std::thread::park_timeout(Duration::from_millis(500));
        for mut client in clients {
            client.kill().unwrap();
            client.wait().unwrap();
        }
    }
    let started = Instant::now();
    while carrack.run(&["status"]).code() != 0 {
        assert!(started.elapsed() < PATIENCE, "no command is taken any more");
        std::thread::park_timeout(Duration::from_millis(50));
    }
    drop(server);
}

#[test]
fn a_reader_who_comes_late_gets_all_of_it() {
    let (carrack, root) = with_a_file();
    let whole = std::fs::read(carrack.export(&root, "whole.car")).unwrap();
    let out = fifo(&carrack, "out");
    let args = ["export", &root, "-o", out.to_str().unwrap()];
    let child = carrack.command(&args).spawn().unwrap();
    std::thread::park_timeout(Duration::from_millis(200));
    assert!(std::fs::read(&out).unwrap() == whole);
    assert_eq!(ended(child).code(), Some(0));
    for target in [root.clone(), format!("/ipfs/{root}")] {
        assert!(carrack.run(&["export", &target, "-o", "-"]).ok().stdout == whole);
    }
    let mut import = carrack.command(&["import", "--copy", "-"]);
    import.stdin(std::fs::File::open(carrack.path("whole.car")).unwrap());
    crate::support::finish(import).ok();
    let mut piped = Command::new("sh");
    let script = "cat whole.car | \"$0\" import --copy - | cat";
    let binary = crate::support::binary();
    piped
        .args(["-c", script])
        .arg(binary)
        .current_dir(carrack.dir());
    piped.env("CARRACK_DATA_DIR", carrack.path("other"));
    let outcome = crate::support::finish(piped).ok();
    assert!(outcome.text().contains(&root), "{}", outcome.stderr);
}

/// Asks until the node has answered far more than anybody takes of what it says about it.
fn ask_much(server: &Server) {
    let address = server.url.strip_prefix("http://").unwrap();
    // A pipe takes 64 KiB, and each of these requests has a line of 2 KiB.
    let request = format!(
        "GET /healthz?{} HTTP/1.1\r\nhost: x\r\nuser-agent: {}\r\n\r\n",
        "q".repeat(1000),
        "a".repeat(1000)
    );
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    for _ in 0..1500 {
        stream.write_all(request.as_bytes()).unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let (_, length) = head.split_once("content-length: ").unwrap();
        let length = length.lines().next().unwrap().parse().unwrap();
        stream.read_exact(&mut vec![0; length]).unwrap();
    }
}

#[test]
fn a_node_answers_and_ends_whoever_reads_nothing_of_its_access_log() {
    for to_stderr in [true, false] {
        for twice in [false, true] {
            let carrack = Carrack::new();
            let log = fifo(&carrack, "log");
            // It has a reader, who reads nothing.
            let mut options = std::fs::File::options();
            let held = options.read(true).write(true).open(&log).unwrap();
            let path = match to_stderr {
                true => "-",
                false => log.to_str().unwrap(),
            };
            let args = ["serve", "--p2p", "off", "--listen", "127.0.0.1:0"];
            let mut command = carrack.command(&args);
            command.args(["--access-log", path]).stdout(Stdio::null());
            let server = match to_stderr {
                true => Server::unread(&mut command),
                false => Server::start(command.stderr(Stdio::piped())),
            };
            ask_much(&server);
            server.signal(Signal::TERM);
            let started = Instant::now();
            if twice {
                std::thread::park_timeout(Duration::from_millis(300));
                server.signal(Signal::TERM);
            }
            let (status, said) = server.ended_within(PATIENCE);
            assert!(started.elapsed() < Duration::from_secs(10));
            let expected = match (twice, to_stderr) {
                (true, _) => 130,
                (false, true) => 0,
                (false, false) => UNAVAILABLE, // The log that was asked for is not whole.
            };
            assert_eq!(status.code(), Some(expected), "{to_stderr} {twice} {said}");
            if !to_stderr && !twice {
                assert!(said.contains("its reader takes nothing"), "{said}");
            }
            drop(held);
        }
    }
}

#[test]
fn roots_that_nobody_reads_keep_no_node_from_watching_nor_from_its_end() {
    let carrack = Carrack::new();
    let dir = carrack.path("d");
    std::fs::create_dir(&dir).unwrap();
    std::fs::write(dir.join("a"), b"first").unwrap();
    let args = [
        "serve",
        "--p2p",
        "off",
        "--listen",
        "127.0.0.1:0",
        "--watch",
    ];
    let mut command = carrack.command(&args);
    // Full before the node says a word: as much as a pipe takes.
    let (unread, mut full) = std::io::pipe().unwrap();
    full.write_all(&vec![b'\n'; 64 << 10]).unwrap();
    command.arg(&dir).stdout(full).stderr(Stdio::piped());
    let server = Server::start(&mut command);
    drop(command);
    for n in 1..4 {
        std::fs::write(dir.join("a"), format!("version {n}")).unwrap();
        let started = Instant::now();
        while carrack.run(&["ls"]).ok().text().matches("/d").count() <= n {
            assert!(started.elapsed() < PATIENCE, "version {n} is not taken up");
            std::thread::park_timeout(Duration::from_millis(100));
        }
    }
    server.signal(Signal::TERM);
    let (status, log) = server.ended_within(PATIENCE);
    assert_eq!(status.code(), Some(0), "{log}");
    drop(unread);
}
