//! `carrack serve`: a node in the foreground.
//!
//! In       paths to add or import first, an address, a store.
//! Out      a gateway until a signal comes, and commands of other processes carried out meanwhile.
//! Limits   `http::limits`; the block budget is shared by blocks on their way and the cache.
//! Not here HTTP (`gateway`), sockets (`node`).

mod places;
mod watch;

use std::ffi::OsString;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::os::unix::fs::FileTypeExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use carrack_bitswap::driver::arrivals::Arrival;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch as flag};

use self::places::{add_all, is_car, not_served, print_root};
use self::watch::{How, Name, Spot, Watched};
use crate::cli::args::{P2pAddress, ServeArgs};
use crate::cli::commands::{add, import};
use crate::cli::control::{self, CLIENTS_MAX, Client, SOCKET_NAME};
use crate::cli::output::{Output, shown};
use crate::cli::written;
use crate::cli::{end_at_once, open_blocks, run_for_client};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::gateway::service::serve;
use crate::http::access_log::{AccessLog, LogFormat, LogWriter};
use crate::http::limits::Limits;
use crate::http::readiness::Readiness;
use crate::http::{ServeOptions, Shutdown, websocket};
use crate::ingest::remote::target::{is_url, target};
use crate::ingest::rescan::Rescanned;
use crate::node::config::Config;
use crate::node::identity::Identity;
use crate::node::shutdown::{Signal, Signals};
use crate::node::supervisor::{Part, fail_point, fail_points, run_again};
use crate::node::swarm::{self, P2p, P2pOptions};
use crate::source::config::Environment;
use crate::store::block::Blocks;
use crate::store::{Merger, Step, Store};

/// Time between two rounds of merging and of saving what was found out of service.
const MAINTENANCE_INTERVAL: Duration = Duration::from_millis(500);
/// Time that reads, jobs and connections have to end, each, once no client is served any more.
const CLOSE_TIME_MAX: Duration = Duration::from_secs(1);

/// Serves until a signal comes.
///
/// # Errors
/// `Unavailable` if the address is taken; those of adding what is named.
pub fn run(
    store: Arc<Store>,
    data_dir: &Path,
    args: &ServeArgs,
    environment: Environment,
    out: &mut Output,
    stopped: &Arc<AtomicBool>,
) -> Result<()> {
    #[cfg(debug_assertions)]
    if let Some(dir) = std::env::var_os("CARRACK_PANIC_DIR") {
        crate::node::supervisor::let_fail(dir.into());
    }
    let config = Config::load(args.config.as_deref(), data_dir)?;
    let n_descriptors = raise_file_limit();
    store.begin_writing()?;
    let budget = usize::try_from(args.block_budget)
        .unwrap_or(usize::MAX)
        .saturating_mul(1 << 20);
    // Half for what comes from sources elsewhere, a quarter for blocks on their way to clients,
    // three sixteenths for the cache; the rest is for idle buffers and for what blocks take beyond
    // their lengths.
    let limits = Limits {
        bytes_in_flight_max: budget / 4,
        ..config.http.clone()
    }
    .within_descriptors(n_descriptors);
    let (cache_len, extents_len) = (budget as u64 / 16 * 3, budget as u64 / 2);
    let blocks = open_blocks(store, &environment, cache_len, extents_len)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .max_blocking_threads(limits.blocking_jobs_max)
        .build()
        .context(ErrorKind::Unavailable, || "cannot start threads".to_owned())?;
    let (stop_sender, stop) = flag::channel(false);
    let readiness = Readiness::default();
    let (access_log, log_writer) = access_log(args, out, &limits, &blocks)?;
    let listen = args.listen;
    let listener = runtime
        .block_on(TcpListener::bind(listen))
        .context(ErrorKind::Unavailable, || {
            format!("cannot listen on {listen}")
        })?;
    let address = listener.local_addr().unwrap_or(listen);
    announce(out, address)?;
    let (door, websockets) = websocket::door(websocket::QUEUE_LEN);
    let p2p = P2pStart {
        config,
        data_dir,
        blocks: &blocks,
        http: address,
        websockets,
    };
    let (p2p, p2p_running) = start_p2p(args, p2p, &runtime, &readiness, stop.clone())?.unzip();
    if let Some(p2p) = &p2p {
        out.note(&format!("known to peers as {}", p2p.peer_id));
    }

    let (drain_time, drains) = (limits.drain_time, Arc::default());
    let (flag, terminated) = (Arc::clone(stopped), Arc::clone(&drains));
    start_signals(flag, terminated, stop_sender)?;
    let options = ServeOptions {
        limits,
        access_log,
        door: p2p.is_some().then_some(door),
        readiness: readiness.clone(),
    };
    let serving = runtime.spawn(serve(
        blocks.clone(),
        options,
        listener,
        shutdown(stop.clone(), drains, drain_time),
    ));
    let commands = listen_for_commands(&runtime, data_dir, &blocks, p2p, &readiness, stop)?;
    let maintenance = std::thread::Builder::new().spawn({
        let (blocks, stopped) = (blocks.clone(), Arc::clone(stopped));
        let readiness = readiness.clone();
        move || {
            run_again("maintenance", &readiness, &stopped, || {
                maintain(&blocks, &stopped);
            });
        }
    });
    let maintenance =
        maintenance.context(ErrorKind::Unavailable, || "cannot start threads".to_owned())?;

    // Before anything of them is read: what is a symlink later was none when it was named.
    let names = args.watch.then(|| names(&args.paths));
    let added = add_all(args, &blocks, address, out, stopped);
    if added.is_ok() {
        readiness.set(true);
        out.note("ready");
    } else {
        stopped.store(true, Ordering::Relaxed);
        serving.abort();
    }
    let watching = match (&added, names) {
        (Ok(_), Some(names)) => Some(start_watching(
            args, names, &blocks, address, out, &readiness, stopped,
        )),
        _ => None,
    };
    let watching = watching.transpose().unwrap_or_else(|error| {
        out.note(&format!("warning: nothing is watched: {}", error.chain()));
        None
    });
    let served = match runtime.block_on(serving) {
        Ok(served) => served,
        Err(error) if error.is_cancelled() => Ok(()),
        Err(error) => Err(error).context(ErrorKind::Internal, || "the listener failed".to_owned()),
    };
    if let Some(running) = p2p_running {
        if added.is_err() {
            running.abort();
        }
        // Whether it was aborted or panicked: it is over.
        if runtime
            .block_on(running)
            .is_err_and(|error| error.is_panic())
        {
            tracing::error!("libp2p panicked");
        }
    }
    commands.abort();
    stopped.store(true, Ordering::Relaxed);
    control::remove_socket(&data_dir.join(SOCKET_NAME)); // Or the next start does.
    if watching.is_some_and(|watching| watching.join().is_err()) {
        tracing::error!("the watching thread panicked");
    }
    if maintenance.join().is_err() {
        tracing::error!("the maintenance thread panicked");
    }
    blocks.save_stale();
    close(&blocks, runtime);
    if let Some(writer) = log_writer {
        writer.finish()?;
    }
    match added {
        Err(error) => Err(error),
        Ok(0) => served,
        Ok(n_failed) => served.and(Err(not_served(n_failed, args.paths.len()))),
    }
}

/// Listens for signals on a thread that nothing else runs on: whatever stands still, they are seen.
fn start_signals(
    stopped: Arc<AtomicBool>,
    drains: Arc<AtomicBool>,
    stop: flag::Sender<bool>,
) -> Result<()> {
    let cannot = || "cannot listen for signals".to_owned();
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().build();
    let runtime = runtime.context(ErrorKind::Unavailable, cannot)?;
    let signals = runtime.block_on(async { Signals::listen() })?;
    let thread = std::thread::Builder::new().name("signals".to_owned());
    let started =
        thread.spawn(move || runtime.block_on(stop_on_signals(signals, stopped, drains, stop)));
    started.context(ErrorKind::Unavailable, cannot).map(drop)
}

/// Lets the node stop at the first signal, and ends the process at the second.
async fn stop_on_signals(
    mut signals: Signals,
    stopped: Arc<AtomicBool>,
    drains: Arc<AtomicBool>,
    stop: flag::Sender<bool>,
) {
    let is_managed = signals.next().await == Signal::Terminate;
    drains.store(is_managed, Ordering::Relaxed);
    stopped.store(true, Ordering::Relaxed);
    let _ = stop.send(true); // Everybody who waits may have gone.
    signals.next().await;
    end_at_once()
}

/// When the HTTP port closes: some time after a node that is managed was told to stop.
fn shutdown(
    stop: flag::Receiver<bool>,
    drains: Arc<AtomicBool>,
    drain_time: Duration,
) -> Shutdown<impl Future<Output = ()> + Send, impl Future<Output = ()> + Send> {
    Shutdown {
        stopping: told_to_stop(stop),
        closing: async move {
            if drains.load(Ordering::Relaxed) {
                tokio::time::sleep(drain_time).await;
            }
        },
    }
}

/// Ends what is under way, in the order in which it waits for each other: reads, the jobs that wait
/// for them, the connections to sources. Each has [`CLOSE_TIME_MAX`].
fn close(blocks: &Blocks, runtime: Runtime) {
    let extents = blocks.extents();
    if !runtime.block_on(extents.close(CLOSE_TIME_MAX)) {
        tracing::warn!("reads of sources were cut");
    }
    runtime.shutdown_timeout(CLOSE_TIME_MAX);
    extents.sources().close(CLOSE_TIME_MAX);
}

/// What the paths among `places` lead to; `None` for a URL.
fn names(places: &[OsString]) -> Vec<Option<std::io::Result<Name>>> {
    let name = |place: &OsString| (!is_url(place)).then(|| Name::new(Path::new(place)));
    places.iter().map(name).collect()
}

/// Watches what was added, on a thread that ends with the flag.
fn start_watching(
    args: &ServeArgs,
    names: Vec<Option<std::io::Result<Name>>>,
    blocks: &Blocks,
    address: SocketAddr,
    out: &mut Output,
    readiness: &Readiness,
    stopped: &Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>> {
    let interval = Duration::from_secs(args.watch_interval);
    let own_dir = std::fs::canonicalize(blocks.store().dir()).unwrap_or_default();
    let environment = blocks.extents().sources().environment();
    let mut watched = Vec::new();
    for (place, name) in args.paths.iter().zip(names) {
        let is_car = is_car(place);
        let (store, sources) = (blocks.store(), blocks.extents().sources());
        let where_it_is = match name {
            Some(Ok(name)) => Spot::Here(name),
            Some(Err(error)) => {
                let place = shown(place.as_encoded_bytes());
                out.note(&format!("warning: {place} is not watched: {error}"));
                continue;
            }
            None => Spot::Elsewhere(target(store, sources, place, &environment)?),
        };
        let how = match is_car {
            true => How::Import(import::options(&args.car)),
            false => How::Add(add::options(&args.dag)?),
        };
        watched.push(Watched::new(where_it_is, how, &own_dir, interval));
    }
    let (blocks, stopped) = (blocks.clone(), Arc::clone(stopped));
    let readiness = readiness.clone();
    let another = out.another();
    let nowhere = || Error::new(ErrorKind::Internal, "a node that has no words");
    let mut out = another.ok_or_else(nowhere)?;
    let mut tell = move |done: Result<Rescanned>| match done {
        Ok(done) => {
            let mut roots = done.report.roots.iter();
            let printed = roots.try_for_each(|root| print_root(&mut out, root, address));
            let changes = done.changes;
            out.note(&format!(
                "{} new, {} changed, {} moved, {} gone",
                changes.added, changes.changed, changes.moved, changes.vanished
            ));
            if printed.and_then(|()| out.flush()).is_err() {
                tracing::warn!("a new root could not be printed");
            }
        }
        Err(error) => out.note(&format!("warning: {}", shown(error.chain().as_bytes()))),
    };
    let watching = std::thread::Builder::new().spawn(move || {
        run_again("watching", &readiness, &stopped, || {
            watch::watch(&mut watched, &blocks, interval, &stopped, &mut tell);
        });
    });
    watching.context(ErrorKind::Unavailable, || "cannot start threads".to_owned())
}

/// As many descriptors as the operator allows: each connection and each open source needs one.
/// How many that is.
fn raise_file_limit() -> u64 {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

fn announce(out: &mut Output, address: SocketAddr) -> Result<()> {
    out.note(&format!("listening on http://{address}"));
    if out.json {
        out.object(&json!({ "listening": format!("http://{address}") }))?;
        out.flush()?;
    }
    Ok(())
}

/// What serving peers takes.
struct P2pStart<'a> {
    config: Config,
    data_dir: &'a Path,
    blocks: &'a Blocks,
    /// Where HTTP is listened on, and WebSockets come in.
    http: SocketAddr,
    websockets: mpsc::Receiver<Arrival>,
}

/// Begins to serve libp2p peers, unless it is off.
fn start_p2p(
    args: &ServeArgs,
    start: P2pStart<'_>,
    runtime: &Runtime,
    readiness: &Readiness,
    stop: flag::Receiver<bool>,
) -> Result<Option<(P2p, tokio::task::JoinHandle<()>)>> {
    if args.p2p.contains(&P2pAddress::Off) {
        return match args.p2p.len() {
            1 => Ok(None),
            _ => Err(Error::new(ErrorKind::Invalid, "--p2p off stands alone")),
        };
    }
    let named = args.p2p.iter().filter_map(|value| match value {
        P2pAddress::At(address) => Some(address.clone()),
        P2pAddress::Off => None,
    });
    let named: Vec<_> = named.collect();
    let may_be_taken = named.is_empty();
    let options = P2pOptions {
        listen: match may_be_taken {
            true => swarm::default_addresses(),
            false => named,
        },
        may_be_taken,
        websockets: Some((swarm::websocket_address(start.http), start.websockets)),
        server: start.config.server,
        connections: start.config.connections,
    };
    let identity = Identity::open_or_create(start.data_dir)?;
    let _guard = runtime.enter();
    let stop = told_to_stop(stop);
    let (p2p, running) = swarm::start(&identity, start.blocks, options, readiness, stop)?;
    Ok(Some((p2p, runtime.spawn(running))))
}

async fn told_to_stop(mut stop: flag::Receiver<bool>) {
    // An error means that nobody can say stop any more, which is the same.
    let _ = stop.wait_for(|stop| *stop).await;
}

fn access_log(
    args: &ServeArgs,
    out: &Output,
    limits: &Limits,
    blocks: &Blocks,
) -> Result<(Option<AccessLog>, Option<LogWriter>)> {
    let Some(path) = &args.access_log else {
        return Ok((None, None));
    };
    let output: Box<dyn Write + Send> = if path == Path::new("-") {
        Box::new(out.screen().clone())
    } else {
        let cannot = || format!("cannot write the access log {}", path.display());
        written::check(&std::path::absolute(path).unwrap_or_default(), blocks)?;
        let is_fifo = |found: &std::fs::Metadata| found.file_type().is_fifo();
        // Read as well, a FIFO is open whether it has a reader or not, now and later.
        let is_fifo = std::fs::metadata(path).is_ok_and(|found| is_fifo(&found));
        let mut options = File::options();
        let options = options.create(true).append(true).read(is_fifo);
        let file = options.open(path);
        Box::new(file.context(ErrorKind::Unavailable, cannot)?)
    };
    let format = if out.json {
        LogFormat::Json
    } else {
        LogFormat::Combined
    };
    let (log, writer) = AccessLog::start(output, format, limits.access_log_lines_max)?;
    Ok((Some(log), Some(writer)))
}

/// Takes commands of other processes, a thread each while one runs.
fn listen_for_commands(
    runtime: &Runtime,
    data_dir: &Path,
    blocks: &Blocks,
    p2p: Option<P2p>,
    readiness: &Readiness,
    stop: flag::Receiver<bool>,
) -> Result<tokio::task::JoinHandle<()>> {
    let cannot = || "cannot listen for commands".to_owned();
    let (path, directory) =
        control::socket_path(data_dir).context(ErrorKind::Unavailable, cannot)?;
    // Left from a process that was killed: the store's lock is ours, so nobody listens there.
    control::remove_socket(&path);
    let _guard = runtime.enter();
    let listener = control::bind(&path)
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            UnixListener::from_std(listener)
        })
        .context(ErrorKind::Unavailable, cannot)?;
    let blocks = blocks.clone();
    let clients = Arc::new(());
    let mut part = Part::new("commands", readiness);
    Ok(runtime.spawn(async move {
        let _directory = directory; // The socket's path leads through it.
        loop {
            let accepting = async {
                tokio::select! {
                    () = accept_commands(&listener, &blocks, p2p.as_ref(), &clients, &stop) => {}
                    () = fail_points("commands") => {}
                }
            };
            if part.run(accepting).await {
                return;
            }
        }
    }))
}

async fn accept_commands(
    listener: &UnixListener,
    blocks: &Blocks,
    p2p: Option<&P2p>,
    clients: &Arc<()>,
    stop: &flag::Receiver<bool>,
) {
    while !*stop.borrow() {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let Ok(stream) = stream.into_std() else {
            continue;
        };
        if Arc::strong_count(clients) > CLIENTS_MAX || stream.set_nonblocking(false).is_err() {
            continue; // The client sees a connection that ends.
        }
        let (blocks, counted, p2p) = (blocks.clone(), Arc::clone(clients), p2p.cloned());
        // Ends with its command; a client that goes away stops its command, and so does a panic.
        let command = move || {
            let _counted = counted;
            match Client::accept(stream) {
                Ok(client) => {
                    fail_point("command");
                    run_for_client(client, &blocks, p2p.as_ref());
                }
                Err(error) => tracing::warn!(error = error.chain(), "no command"),
            }
        };
        let started = std::thread::Builder::new().spawn(move || {
            if catch_unwind(AssertUnwindSafe(command)).is_err() {
                tracing::error!("a command panicked");
            }
        });
        if let Err(error) = started {
            tracing::warn!(%error, "no thread for a command");
        }
    }
}

fn maintain(blocks: &Blocks, stopped: &AtomicBool) {
    // Of this thread alone: requests come first.
    let _ = rustix::process::nice(5);
    let mut merger = Merger::default();
    while !stopped.load(Ordering::Relaxed) {
        fail_point("maintenance");
        blocks.save_stale();
        if merger.step(blocks.store(), stopped) == Step::Idle {
            std::thread::sleep(MAINTENANCE_INTERVAL);
        }
    }
}

#[cfg(test)]
mod tests;
