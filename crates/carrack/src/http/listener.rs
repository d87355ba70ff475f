//! The accept loop: HTTP/1.1 and HTTP/2 with prior knowledge on one port.
//!
//! In       a bound listener, a store, futures that say when to stop.
//! Out      nothing until all connections are closed.
//! Limits   connections in all, of an address and of a subnet (`accounts`), all timeouts, the
//!          numbers of HTTP/2.
//! Not here what requests mean (`gateway`); TLS.
//!
//! A node stops in three steps: it says that it is not ready and still answers whoever comes, as
//! the last on that connection; then the port is closed, and what is being answered ends.
//!
//! Each connection is one task in a [`JoinSet`]; the tasks of HTTP/2 streams are counted by a
//! [`TaskTracker`] and end with their connection.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::FutureExt as _;
use http::header::{CONNECTION, HeaderValue};
use http::{Method, Request, StatusCode, Version};
use hyper::body::Incoming;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto::Builder;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::{Id, JoinSet};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, info, warn};

use super::access_log::AccessLog;
use super::accounts::Accounts;
use super::body::Guard;
use super::io::Socket;
use super::limits::Limits;
use super::readiness::Readiness;
use super::service::{Reply, Service};
use super::watch::{Cut, Patience, Seen, Watch, tick_interval};
use super::websocket::Door;
use crate::error::Result;

/// What a node serves with.
#[derive(Debug, Default)]
pub struct ServeOptions {
    /// Bounds in force.
    pub limits: Limits,
    /// Where requests are logged; `None`: nowhere.
    pub access_log: Option<AccessLog>,
    /// Where connections that become WebSockets go; `None`: there are none.
    pub door: Option<Door>,
    /// What `/readyz` says. Set to not ready when the node begins to stop.
    pub readiness: Readiness,
}

/// When a node ends. Both futures are polled until they have ended, in this order.
#[derive(Debug)]
pub struct Shutdown<S, C> {
    /// Ends when the node is not to be asked any more: `/readyz` says so from then on.
    pub stopping: S,
    /// Ends when it is to take no more connections: whoever sends requests has heard of it.
    pub closing: C,
}

/// Lets `service` answer what comes to `listener`, until `shutdown` says when to stop and every
/// connection is closed, or the time for that is up.
///
/// Build the runtime with `max_blocking_threads(limits.blocking_jobs_max)`. Not cancel-safe:
/// dropping the future cuts every response.
///
/// # Errors
/// None today: a failing accept is logged and tried again.
pub async fn serve<V: Service, S, C>(
    service: V,
    options: ServeOptions,
    listener: TcpListener,
    shutdown: Shutdown<S, C>,
) -> Result<()>
where
    S: Future<Output = ()> + Send,
    C: Future<Output = ()> + Send,
{
    let readiness = options.readiness.clone();
    let mut connections = Connections::new(service, options);
    connections.accept(&listener, shutdown.stopping).await;
    readiness.set(false);
    connections.leave();
    connections.accept(&listener, shutdown.closing).await;
    drop(listener);
    connections.close().await;
    Ok(())
}

/// The open connections of one listener.
struct Connections<V> {
    service: V,
    limits: Limits,
    access_log: Option<AccessLog>,
    door: Option<Door>,
    builder: Builder<Tasks>,
    patience: Patience,
    tick: Duration,
    tasks: JoinSet<()>,
    streams: TaskTracker,
    open: HashMap<Id, Open>,
    accounts: Accounts,
    /// The node stops: each answer is the last of its connection.
    leaving: Arc<AtomicBool>,
}

/// One connection, as seen from outside of its task.
struct Open {
    /// Dropped to ask the connection to end after the responses it is writing.
    leave: Option<oneshot::Sender<()>>,
    watch: Arc<Watch>,
}

/// Runs the tasks of HTTP/2 streams where they are counted.
#[derive(Clone)]
struct Tasks(TaskTracker);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, future: F) {
        self.0.spawn(async move {
            if AssertUnwindSafe(future).catch_unwind().await.is_err() {
                error!("the task of a stream panicked");
            }
        });
    }
}

impl<V: Service> Connections<V> {
    fn new(service: V, options: ServeOptions) -> Self {
        let streams = TaskTracker::new();
        let limits = &options.limits;
        Self {
            builder: builder(limits, Tasks(streams.clone())),
            patience: Patience::new(limits),
            tick: tick_interval(limits),
            accounts: Accounts::new(limits),
            service,
            limits: options.limits,
            access_log: options.access_log,
            door: options.door,
            tasks: JoinSet::new(),
            streams,
            open: HashMap::new(),
            leaving: Arc::default(),
        }
    }

    /// Takes connections until `end`. Not cancel-safe.
    async fn accept(&mut self, listener: &TcpListener, end: impl Future<Output = ()> + Send) {
        tokio::pin!(end);
        loop {
            tokio::select! {
                accepted = listener.accept(), if !self.is_full() => self.accepted(accepted).await,
                Some(ended) = self.tasks.join_next_with_id() => self.ended(ended),
                () = &mut end => return,
            }
        }
    }

    fn is_full(&self) -> bool {
        self.open.len() >= self.limits.connections_max
    }

    /// Takes a connection in, or closes it when its address has too many. Cancel-safe only between
    /// connections; the accept loop runs it to its end.
    async fn accepted(&mut self, accepted: std::io::Result<(TcpStream, SocketAddr)>) {
        let (stream, remote) = match accepted {
            Ok((stream, remote)) => (stream, remote),
            Err(error) => {
                // Out of descriptors, mostly. Connections that end give some back.
                warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                return;
            }
        };
        let address = remote.ip().to_canonical();
        let n_free = self.limits.connections_max.saturating_sub(self.open.len());
        let account = match self.accounts.enter(address, n_free) {
            Ok(account) => account,
            Err(error) => {
                debug!(%address, %error, "connection refused");
                return;
            }
        };
        // Answers are written whole: waiting for more bytes would only delay the last ones.
        if let Err(error) = stream.set_nodelay(true) {
            debug!(%error, "no TCP_NODELAY");
        }
        let (leave, asked_to_leave) = oneshot::channel();
        let watch = Arc::new(Watch::new(account, &self.patience));
        let connection = Connection {
            service: self.service.clone(),
            access_log: self.access_log.clone(),
            door: self.door.clone(),
            remote: SocketAddr::new(address, remote.port()),
            watch: Arc::clone(&watch),
            patience: self.patience,
            tick: self.tick,
            leaving: Arc::clone(&self.leaving),
            asked_to_leave,
        };
        let builder = self.builder.clone();
        let task = self.tasks.spawn(connection.run(builder, stream));
        let leave = Some(leave);
        self.open.insert(task.id(), Open { leave, watch });
    }

    /// Lets connections end with their next answer. Those of HTTP/2 are told at once: theirs may
    /// go on for long.
    fn leave(&mut self) {
        self.leaving.store(true, Relaxed);
        for open in self.open.values_mut() {
            if open.watch.is_http2() {
                open.leave = None;
            }
        }
    }

    fn ended(&mut self, ended: Result<(Id, ()), tokio::task::JoinError>) {
        let id = match ended {
            Ok((id, ())) => id,
            Err(error) => {
                if error.is_panic() {
                    error!("the task of a connection panicked");
                }
                error.id()
            }
        };
        self.open.remove(&id);
    }

    /// Asks every connection to end, waits, and cuts those that do not.
    async fn close(mut self) {
        self.open.clear();
        self.streams.close();
        let n_open = self.tasks.len();
        let deadline = Instant::now() + self.limits.shutdown_timeout;
        info!(n_open, "closing connections");
        let done = async {
            while self.tasks.join_next().await.is_some() {}
            self.streams.wait().await;
        };
        if tokio::time::timeout_at(deadline, done).await.is_err() {
            warn!(n_open = self.tasks.len(), "connections cut");
            self.tasks.shutdown().await;
        }
    }
}

/// How long accepting rests after a failure.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// One connection.
struct Connection<V> {
    service: V,
    access_log: Option<AccessLog>,
    door: Option<Door>,
    remote: SocketAddr,
    watch: Arc<Watch>,
    patience: Patience,
    tick: Duration,
    leaving: Arc<AtomicBool>,
    /// Ends when the connection is to.
    asked_to_leave: oneshot::Receiver<()>,
}

impl<V: Service> Connection<V> {
    fn tick(&self, seen: &mut Seen) -> Option<Cut> {
        let pressed = self.service.is_pressed() || self.watch.account().is_pressed();
        self.watch.tick(seen, &self.patience, pressed)
    }

    /// Serves the connection until it ends or the watch cuts it. Dropping it cuts it.
    async fn run(mut self, builder: Builder<Tasks>, stream: TcpStream) {
        let socket = TokioIo::new(Socket::new(stream, Arc::clone(&self.watch)));
        let (answering, door, remote) = (self.service.clone(), self.door.take(), self.remote);
        let access_log = self.access_log.take();
        let address = remote.ip();
        let service = {
            let (watch, leaving) = (Arc::clone(&self.watch), Arc::clone(&self.leaving));
            hyper::service::service_fn(move |mut request: Request<Incoming>| {
                let has_header = request.version() < Version::HTTP_2;
                let guard = guard(&request, &watch, address, access_log.as_ref());
                let reply = match &door {
                    Some(door) if Door::is_for(&request) => {
                        Reply::now(door.answer(&mut request, remote, &answering), guard)
                    }
                    _ => answering.call(&request.into_parts().0, guard),
                };
                let leaving = Arc::clone(&leaving);
                async move {
                    let mut response = reply.await?;
                    let stays = response.status() == StatusCode::SWITCHING_PROTOCOLS;
                    if has_header && leaving.load(Relaxed) && !stays {
                        let close = HeaderValue::from_static("close");
                        response.headers_mut().insert(CONNECTION, close);
                    }
                    Ok::<_, Infallible>(response)
                }
            })
        };
        // Ends when a connection leaves HTTP, which is not counted or watched here from then on.
        let connection = builder.serve_connection_with_upgrades(socket, service);
        tokio::pin!(connection);
        let mut ticks = tokio::time::interval_at(Instant::now() + self.tick, self.tick);
        let mut seen = Seen::default();
        let mut leaving = false;
        loop {
            tokio::select! {
                biased;
                outcome = connection.as_mut() => {
                    if let Err(error) = outcome {
                        debug!(%address, error, "connection failed");
                    }
                    return;
                }
                _ = &mut self.asked_to_leave, if !leaving => {
                    leaving = true;
                    connection.as_mut().graceful_shutdown();
                }
                _ = ticks.tick() => match self.tick(&mut seen) {
                    None => {}
                    // A request may be on its way: the client hears of the end first.
                    Some(Cut::Idle) if !leaving => {
                        leaving = true;
                        connection.as_mut().graceful_shutdown();
                    }
                    Some(cut) => {
                        debug!(%address, ?cut, "connection cut");
                        return;
                    }
                },
            }
        }
    }
}

/// Opens the account of a request.
fn guard<R>(
    request: &Request<R>,
    watch: &Arc<Watch>,
    address: IpAddr,
    access_log: Option<&AccessLog>,
) -> Guard {
    watch.request_started(request.version() == Version::HTTP_2);
    let entry = access_log.map(|log| {
        log.entry(
            address,
            request.method(),
            request.uri(),
            request.version(),
            request.headers(),
        )
    });
    Guard::new(Arc::clone(watch), request.method() == Method::HEAD, entry)
}

/// HTTP as this node speaks it. The timeouts of request heads are kept by the watch: hyper's cost
/// a timer for each request.
fn builder(limits: &Limits, tasks: Tasks) -> Builder<Tasks> {
    let mut builder = Builder::new(tasks);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(None)
        .max_headers(limits.request_headers_max)
        .max_buf_size(limits.request_head_len_max.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(limits.h2_streams_max)
        .max_pending_accept_reset_streams(limits.h2_pending_resets_max)
        .max_local_error_reset_streams(limits.h2_local_resets_max)
        .max_header_list_size(u32::try_from(limits.request_head_len_max).unwrap_or(u32::MAX))
        .max_send_buf_size(limits.h2_piece_len)
        .keep_alive_interval(limits.h2_ping_interval)
        .keep_alive_timeout(limits.h2_ping_interval);
    builder
}

#[cfg(test)]
mod overload_tests;
#[cfg(test)]
mod panic_tests;
#[cfg(test)]
mod tests;
