//! The command line: arguments in, two streams and an exit code out.
//!
//! In       arguments, the environment, standard input.
//! Out      data on standard output, everything else on standard error, an exit code of the table
//!          in `error`.
//! Not here the work itself: each command is one file in `commands` over the library.

pub mod args;
pub mod commands;
pub mod control;
pub mod output;
pub mod pipe;
pub mod redact;
pub mod screen;
pub mod spool;
pub mod target;
pub mod written;

use std::ffi::{OsStr, OsString};
use std::io::{IsTerminal, Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use clap::Parser;

use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::remote::target::Target;
use crate::node::shutdown::Signals;
use crate::node::swarm::P2p;
use crate::source::config::Environment;
use crate::store::block::Blocks;
use crate::store::extent::{ExtentLimits, Extents};
use crate::store::sources::Sources;
use crate::store::{OpenMode, Store, merge_once};
use args::{Cli, Command, IndexCommand, SourceCommand};
use output::Output;
use screen::Screen;
use spool::{Kind, Spool};

/// The exit code of a process that was told to stop twice.
const INTERRUPTED: i32 = 130;
/// How long a command waits for another that holds the store and takes no commands.
const STORE_WAIT: Duration = Duration::from_secs(10);
/// Memory for blocks that a command other than `serve` may cache, in bytes.
const COMMAND_CACHE_LEN: u64 = 32 << 20;

/// How long reads of sources elsewhere may take to end when a command is done.
const SOURCES_CLOSE_TIME: Duration = Duration::from_secs(1);
/// Memory for reads of sources elsewhere, in bytes.
const COMMAND_EXTENTS_LEN: u64 = 256 << 20;

/// What a command works with.
pub struct Env<'a> {
    /// The store's blocks.
    pub blocks: &'a Blocks,
    /// The node among peers, if this process serves.
    pub p2p: Option<&'a P2p>,
    /// Variables of the person's: where credentials of what is named are looked up.
    pub environment: &'a Environment,
    /// Where relative paths start.
    pub directory: &'a Path,
    /// Where words go.
    pub out: &'a mut Output,
    /// Standard input.
    pub stdin: &'a mut dyn Read,
    /// Set when the command should end early.
    pub stop: &'a AtomicBool,
}

impl std::fmt::Debug for Env<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Env")
            .field("directory", &self.directory)
            .finish_non_exhaustive()
    }
}

impl Env<'_> {
    /// A path of the command line, from where the person stands.
    #[must_use]
    pub fn path(&self, path: &Path) -> PathBuf {
        if path.as_os_str().is_empty() {
            return PathBuf::new(); // It names nothing, and not the directory.
        }
        self.directory.join(path)
    }

    /// The store's sources.
    #[must_use]
    pub fn sources(&self) -> &Arc<Sources> {
        self.blocks.extents().sources()
    }

    /// The same for a single object: a source that is made for it is the folder that it lies in.
    ///
    /// # Errors
    /// As [`Self::target`].
    pub fn target_in_parent(&self, url: &OsStr) -> Result<Target> {
        let (store, sources) = (self.blocks.store(), self.sources());
        crate::ingest::remote::target::object(store, sources, url, self.environment)
    }

    /// The source of a URL of the command line, and the path below it.
    ///
    /// # Errors
    /// Those of [`target()`](crate::ingest::remote::target::target).
    pub fn target(&self, url: &OsStr) -> Result<Target> {
        let (store, sources) = (self.blocks.store(), self.sources());
        crate::ingest::remote::target::target(store, sources, url, self.environment)
    }

    /// Forgets sources that were configured for `targets` and of which nothing came.
    pub fn settle(&self, targets: &[Target]) {
        let (store, sources) = (self.blocks.store(), self.sources());
        for target in targets {
            if let Err(error) = crate::ingest::remote::target::settle(store, sources, target) {
                tracing::warn!(
                    error = error.chain(),
                    "a source without use stays configured"
                );
            }
        }
    }
}

/// Runs the program.
#[must_use]
pub fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&args) {
        Ok(cli) => cli,
        Err(error) => {
            tell_usage(&error);
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(2));
        }
    };
    let args = args.get(1..).unwrap_or_default();
    let stop = Arc::new(AtomicBool::new(false));
    if let Command::Serve(_) = &cli.command {
        return ExitCode::from(run_node(&cli, args, &stop));
    }
    let screen = Screen::of_process(Box::new(std::io::stderr()));
    start_log(&screen);
    let out_is_terminal = std::io::stdout().is_terminal();
    let mut out = Output::new(cli.json, pipe::stdout(&stop), out_is_terminal, screen);
    let code = run(&cli, args, &mut out, &stop);
    let code = code.and_then(|code| out.flush().map(|()| code));
    ExitCode::from(report(code, &mut out))
}

/// Runs a command that waits for no reader of its words: not while it runs, and not at its end.
fn run_node(cli: &Cli, args: &[OsString], stop: &Arc<AtomicBool>) -> u8 {
    let out_is_terminal = std::io::stdout().is_terminal();
    let streams = || -> std::io::Result<(Spool, Spool)> {
        let words = Spool::start(Kind::Words, Box::new(std::io::stderr()))?;
        let data = Spool::start(Kind::Data, pipe::stdout(stop))?;
        match out_is_terminal {
            true => Ok((words.clone(), data.after(&words))),
            false => Ok((words, data)),
        }
    };
    let (words, data) = match streams() {
        Ok(streams) => streams,
        Err(error) => {
            let text = format!("error: this process may not start threads: {error}\n");
            let _ = std::io::stderr().write_all(text.as_bytes());
            return ErrorKind::Unavailable.codes().1;
        }
    };
    let screen = Screen::of_process(Box::new(words.clone()));
    start_log(&screen);
    tell_panics(words.clone());
    let mut out = Output::of_node(cli.json, data.clone(), out_is_terminal, screen);
    let outcome = run(cli, args, &mut out, stop);
    let code = report(outcome, &mut out);
    out.screen().clear();
    let started = Instant::now();
    data.settle(started);
    words.settle(started);
    code
}

/// Panics are told where all else is: the hook of the library waits for a reader.
fn tell_panics(words: Spool) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("<unnamed>");
        let mut text = format!("thread '{name}' {panic}\n");
        let trace = std::backtrace::Backtrace::capture();
        if trace.status() == std::backtrace::BacktraceStatus::Captured {
            text.push_str(&format!("{trace}\n"));
        }
        let _ = words.clone().write_all(text.as_bytes());
    }));
}

/// Ends the process now, whoever holds what.
fn end_at_once() -> ! {
    // The library flushes standard output first, which may wait for its reader.
    let _ = std::thread::Builder::new().spawn(|| {
        std::thread::sleep(Duration::from_millis(500));
        let own = rustix::process::getpid();
        let _ = rustix::process::kill_process(own, rustix::process::Signal::KILL);
    });
    #[expect(clippy::exit, reason = "asked twice; committed work is safe")]
    std::process::exit(INTERRUPTED)
}

/// Help, or what is wrong with the arguments: that may repeat one with a secret in it.
fn tell_usage(error: &clap::Error) {
    // There is nobody else to tell if it cannot be written.
    if !error.use_stderr() {
        let _ = error.print();
        return;
    }
    let text = match std::io::stderr().is_terminal() {
        true => error.render().ansi().to_string(),
        false => error.render().to_string(),
    };
    let _ = std::io::stderr().write_all(redact::redacted(&text).as_bytes());
}

/// The exit code of a command, after its error was told.
fn report(outcome: Result<u8>, out: &mut Output) -> u8 {
    match outcome {
        Ok(code) => code,
        Err(error) if output::is_broken_pipe(&error) => 0,
        Err(error) => {
            out.note(&format!("error: {}", error.chain()));
            error.kind().codes().1
        }
    }
}

/// Descriptors that any command needs: for its store, its threads and their signals.
const DESCRIPTORS_MIN: u64 = 40;

/// An error if this process may not open or start what every command needs. Libraries that meet the
/// end of it panic.
fn check_means() -> Result<()> {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let is_enough = |limit: Option<u64>| limit.is_none_or(|n| n >= DESCRIPTORS_MIN);
    if !is_enough(limit.current) && is_enough(limit.maximum) {
        limit.current = Some(DESCRIPTORS_MIN);
        let raised = setrlimit(Resource::Nofile, limit);
        raised.context(ErrorKind::Unavailable, || {
            "cannot open enough files".to_owned()
        })?;
    }
    if !is_enough(limit.current) {
        let n = limit.current.unwrap_or_default();
        let what = format!(
            "this process may open {n} files and needs {DESCRIPTORS_MIN}: raise its limit \
             (ulimit -n)"
        );
        return Err(Error::new(ErrorKind::Unavailable, what));
    }
    check_threads()
}

/// As many threads as a runtime has, all at once, and one for signals.
fn check_threads() -> Result<()> {
    let n = 1 + std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let (go_on, wait) = std::sync::mpsc::sync_channel::<()>(0);
    let wait = Arc::new(std::sync::Mutex::new(wait));
    let mut threads = Vec::with_capacity(n);
    for _ in 0..n {
        let wait = Arc::clone(&wait);
        // Ends when nobody is left who could send.
        let thread = std::thread::Builder::new().spawn(move || {
            let _ = wait.lock().map(|wait| wait.recv());
        });
        threads.push(thread.context(ErrorKind::Unavailable, || {
            format!("this process may not start {n} threads: raise its limit (ulimit -u)")
        })?);
    }
    drop(go_on);
    for thread in threads {
        let _ = thread.join(); // It had nothing to do.
    }
    Ok(())
}

fn run(cli: &Cli, args: &[OsString], out: &mut Output, stop: &Arc<AtomicBool>) -> Result<u8> {
    if let Command::Cid(command) = &cli.command {
        return commands::cid::run(command, out).map(|()| 0);
    }
    check_means()?;
    let data_dir = data_dir(cli)?;
    if let Command::Id = &cli.command {
        return commands::id::run(&data_dir, out).map(|()| 0);
    }
    let environment = environment();
    if let Command::Serve(serve) = &cli.command {
        let store = open(&data_dir, OpenMode::Create, Duration::ZERO)?;
        let served = commands::serve::run(store, &data_dir, serve, environment, out, stop);
        return served.map(|()| 0);
    }
    if let Command::Index(IndexCommand::Rebuild { catalog: true, .. }) = &cli.command {
        stop_on_interrupt(stop)?;
        return commands::index::run_rebuild_catalog(&data_dir, out, stop).map(|()| 0);
    }
    let mode = open_mode(&cli.command);
    let store = match open_or_none(&data_dir, mode)? {
        Some(store) => store,
        None => match control::forward(&data_dir, args, &environment, cli.reads_stdin(), out) {
            Err(error) if error.kind() == ErrorKind::Busy => open(&data_dir, mode, STORE_WAIT)?,
            outcome => return outcome,
        },
    };
    stop_on_interrupt(stop)?;
    let (cache_len, bytes_max) = (COMMAND_CACHE_LEN, COMMAND_EXTENTS_LEN);
    let blocks = open_blocks(Arc::clone(&store), &environment, cache_len, bytes_max)?;
    let directory = std::env::current_dir()
        .map_err(|error| Error::with(ErrorKind::Invalid, "there is no current directory", error))?;
    let mut stdin: Box<dyn Read> = match cli.reads_stdin() {
        true => pipe::stdin(stop),
        false => Box::new(std::io::stdin()),
    };
    let (directory, stdin) = (&directory, stdin.as_mut());
    let mut env = Env {
        blocks: &blocks,
        p2p: None,
        environment: &environment,
        directory,
        out,
        stdin,
        stop,
    };
    let outcome = commands::run(&cli.command, &mut env);
    blocks.save_stale();
    if matches!(cli.command, Command::Add(_) | Command::Import(_)) {
        merge_segments(&store, stop);
    }
    blocks.extents().sources().close(SOURCES_CLOSE_TIME);
    outcome.map(|()| 0)
}

/// What a command may do to a store: one that only reads removes nothing, and needs no store that
/// can be written.
const fn open_mode(command: &Command) -> OpenMode {
    match command {
        Command::Index(IndexCommand::Rebuild { .. }) => OpenMode::AnyIndex,
        Command::Index(_) => OpenMode::ReadAnyIndex,
        Command::Ls(_)
        | Command::Cat(_)
        | Command::Export(_)
        | Command::Verify(_)
        | Command::Status
        | Command::Peers
        | Command::Source(SourceCommand::List | SourceCommand::Status(_)) => OpenMode::Read,
        _ => OpenMode::Create,
    }
}

/// The variables of this process that sources may look at.
fn environment() -> Environment {
    let text = |(name, value): (OsString, OsString)| {
        Some((name.into_string().ok()?, value.into_string().ok()?))
    };
    Environment::new(std::env::vars_os().filter_map(text))
}

/// The blocks of a store and of its sources, whose credentials are looked up in `environment`.
fn open_blocks(
    store: Arc<Store>,
    environment: &Environment,
    cache_len: u64,
    bytes_max: u64,
) -> Result<Blocks> {
    let sources = Sources::new(Arc::clone(&store), environment.clone());
    let extents = Extents::new(sources, ExtentLimits { bytes_max });
    Blocks::with_extents(store, cache_len, extents)
}

/// Keeps look-ups fast after many small ingests when no `serve` runs that would do it.
fn merge_segments(store: &Store, stop: &AtomicBool) {
    loop {
        match merge_once(store, stop) {
            Ok(true) => {}
            Ok(false) => return,
            Err(error) => {
                tracing::warn!(error = error.chain(), "index segments were not merged");
                return;
            }
        }
    }
}

/// Carries out a command that came over the control socket.
pub fn run_for_client(mut client: control::Client, blocks: &Blocks, p2p: Option<&P2p>) {
    let (columns, draws) = (client.request.columns, client.request.terminal);
    let columns = draws.then(|| Arc::new(move || columns) as screen::Columns);
    let screen = Screen::new(Box::new(client.stderr()), columns);
    let out_is_terminal = client.request.out_is_terminal;
    let mut out = Output::new(false, Box::new(client.stdout()), out_is_terminal, screen);
    let mut args = vec![OsString::from("carrack")];
    args.extend(client.args());
    let (directory, gone) = (client.directory(), Arc::clone(&client.gone));
    let outcome = match Cli::try_parse_from(args) {
        Err(error) => Err(Error::with(
            ErrorKind::Invalid,
            "another carrack's arguments",
            redact::redacted(&error.to_string()).into_owned(),
        )),
        Ok(cli) => {
            out.json = cli.json;
            let environment = client.environment();
            let mut env = Env {
                blocks,
                p2p,
                environment: &environment,
                directory: &directory,
                out: &mut out,
                stdin: &mut client.stdin,
                stop: &gone,
            };
            let outcome = commands::run(&cli.command, &mut env);
            blocks.save_stale();
            outcome.map(|()| 0)
        }
    };
    let outcome = outcome.and_then(|code| out.flush().map(|()| code));
    let code = report(outcome, &mut out);
    client.finish(code);
}

impl Cli {
    fn reads_stdin(&self) -> bool {
        let Command::Import(import) = &self.command else {
            return false;
        };
        import.files.iter().any(|file| file == "-")
    }
}

fn open_or_none(data_dir: &Path, mode: OpenMode) -> Result<Option<Arc<Store>>> {
    match Store::open(data_dir, mode) {
        Ok(store) => Ok(Some(Arc::new(store))),
        Err(error) if error.kind() == ErrorKind::Busy => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(data_dir: &Path, mode: OpenMode, wait: Duration) -> Result<Arc<Store>> {
    let started = Instant::now();
    loop {
        match Store::open(data_dir, mode) {
            Err(error) if error.kind() == ErrorKind::Busy && started.elapsed() < wait => {
                std::thread::sleep(Duration::from_millis(50));
            }
            outcome => return outcome.map(Arc::new),
        }
    }
}

/// `--data-dir`, `CARRACK_DATA_DIR` (both through clap), or the XDG data directory.
fn data_dir(cli: &Cli) -> Result<PathBuf> {
    if let Some(dir) = &cli.data_dir {
        return Ok(dir.clone());
    }
    let absolute = |name: &str| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_DATA_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/share")))
        .map(|base| base.join("carrack"))
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "no home directory: give --data-dir"))
}

/// Raises the flag at the first interrupt; the second ends the process.
fn stop_on_interrupt(stop: &Arc<AtomicBool>) -> Result<()> {
    let flag = Arc::clone(stop);
    let started = std::thread::Builder::new().spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .build();
        let Ok(runtime) = runtime else { return };
        runtime.block_on(async {
            let Ok(mut signals) = Signals::listen() else {
                return;
            };
            signals.next().await;
            flag.store(true, std::sync::atomic::Ordering::Relaxed);
            signals.next().await;
            end_at_once();
        });
    });
    let cannot = || "cannot listen for signals".to_owned();
    started.context(ErrorKind::Unavailable, cannot)?;
    Ok(())
}

/// What is logged if nobody says. A peer may bring identify to a line for each of its streams.
const LOGGED: &str = "warn,libp2p_identify=error";

/// The log goes where progress is drawn, which steps aside for it.
fn start_log(screen: &Screen) {
    use tracing_subscriber::EnvFilter;
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOGGED));
    let screen = screen.clone();
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(move || screen.clone())
        .init();
}
