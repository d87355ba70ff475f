//! A proxy for HTTP/1.1 on loopback: a far, slow or broken server made of a near and sound one.
//!
//! In       the address of a real server; what to do to its answers, for all paths or those below
//!          a prefix, changeable while it runs.
//! Out      the same answers later, slower, or wrong; [`Counts`] of what passed.
//! Limits   one connection to the server for each of the client's, so that a bandwidth holds for
//!          a connection; heads of up to 64 KiB, altered bodies of up to 256 MiB. Heads pass
//!          unchanged, `Host` too, so that signed requests stay valid. What is not altered is
//!          moved by splice(2): the proxy costs little beside what is measured through it.
//! Not here TLS, HTTP/2, chunked requests.

mod alter;
mod body;
mod connection;
mod head;

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// What goes wrong with an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Fault {
    /// This status with S3's error body instead of the answer; the server is not asked.
    Status {
        /// Such as 429, 500 or 503.
        code: u16,
        /// The value of `Retry-After`, in seconds.
        retry_after: Option<u32>,
    },
    /// The connection is reset before the answer.
    Refuse,
    /// The connection is reset after half of the body.
    Reset,
    /// The connection is closed in an orderly way after half of the body: `Content-Length` tells
    /// of more.
    Cut,
    /// Half of the body, and a `Content-Length` that says that this is all.
    Short,
    /// The request is read and never answered.
    Hang,
    /// Head and half of the body come, then nothing more.
    HangInBody,
    /// One bit in the middle of the body is another.
    FlipBit,
    /// `ETag` and `Last-Modified` are others.
    OtherVersion,
    /// 200 and a body from byte 0, whatever `Range` asked for. Outside of the range the bytes of
    /// a signed request are zeros: without the key the proxy cannot ask for them.
    IgnoreRange,
    /// 200 without `Content-Range`, the body is the range alone.
    RangeAs200,
    /// `Content-Range` claims the bytes after those that were asked for.
    WrongContentRange,
    /// The body comes as gzip and says so, though nobody asked for it.
    Gzip,
}

/// How the proxy treats answers. The default passes them on as they are.
#[derive(Debug, Clone, Default)]
pub struct Conduct {
    /// From the request to the first byte of its answer, at least.
    pub latency: Duration,
    /// Bytes of bodies a second, on one connection.
    pub bandwidth: Option<u64>,
    /// Faults with the share of answers that they strike, from 0 to 1; exact, not by chance:
    /// 0.25 strikes each fourth. The first that strikes is the one.
    pub faults: Vec<(Fault, f64)>,
}

impl Conduct {
    /// A server that is 30 ms away and gives 100 MB/s a connection.
    pub fn far() -> Self {
        Self {
            latency: Duration::from_millis(30),
            bandwidth: Some(100_000_000),
            faults: Vec::new(),
        }
    }

    /// Only this fault, in each answer.
    pub fn always(fault: Fault) -> Self {
        Self::default().with(fault, 1.0)
    }

    /// One more fault.
    #[must_use]
    pub fn with(mut self, fault: Fault, share: f64) -> Self {
        self.faults.push((fault, share));
        self
    }
}

/// What passed since the start, or since [`Proxy::reset_counts`].
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Requests that were read, those answered with a fault too.
    pub requests: u64,
    /// Bytes of bodies of GETs that the server sent and the proxy passed on.
    pub body_bytes: u64,
    /// Requests that are being answered now.
    pub in_flight: u64,
    /// The most that there were at once.
    pub in_flight_max: u64,
    /// Faults that struck.
    pub faults: u64,
    /// Connections that were accepted.
    pub connections: u64,
}

/// A running proxy. It ends, with all its connections, when it is dropped.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts on a free port of 127.0.0.1, on a thread of its own.
    ///
    /// # Errors
    /// There is no port, or no thread.
    pub fn start(upstream: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::new(upstream));
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let of_thread = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("proxy".into())
            .spawn(move || runtime.block_on(accept(listener, of_thread, stopped)))?;
        Ok(Self {
            address,
            shared,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// From the next request on, for all paths that no [`Proxy::set_below`] names.
    pub fn set(&self, conduct: Conduct) {
        self.set_below("/", conduct);
    }

    /// From the next request on, for request targets that begin so; the longest prefix decides.
    pub fn set_below(&self, prefix: &str, conduct: Conduct) {
        let mut rules = lock(&self.shared.rules);
        rules.retain(|rule| rule.prefix != prefix);
        let strikes = vec![0.0; conduct.faults.len()];
        rules.push(Rule {
            prefix: prefix.to_owned(),
            conduct,
            strikes,
        });
        rules.sort_by_key(|rule| std::cmp::Reverse(rule.prefix.len()));
    }

    /// Forgets all of [`Proxy::set`] and [`Proxy::set_below`].
    pub fn clear(&self) {
        lock(&self.shared.rules).clear();
    }

    /// Another server from the next connection on.
    pub fn set_upstream(&self, upstream: SocketAddr) {
        *lock(&self.shared.upstream) = upstream;
    }

    /// What passed so far.
    pub fn counts(&self) -> Counts {
        self.shared.counts()
    }

    /// [`Counts::body_bytes`] of the targets that begin so; their queries are not kept.
    pub fn body_bytes_below(&self, prefix: &str) -> u64 {
        let by_path = lock(&self.shared.by_path);
        let below = by_path.iter().filter(|(path, _)| path.starts_with(prefix));
        below.map(|(_, bytes)| bytes).sum()
    }

    /// Sets all counts but those of what is going on to 0.
    pub fn reset_counts(&self) {
        let shared = &self.shared;
        let now = shared.in_flight.load(Ordering::SeqCst);
        shared.in_flight_max.store(now, Ordering::SeqCst);
        for count in [
            &shared.requests,
            &shared.body_bytes,
            &shared.faults,
            &shared.connections,
        ] {
            count.store(0, Ordering::SeqCst);
        }
        lock(&shared.by_path).clear();
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the connections share with the handle.
#[derive(Debug)]
struct Shared {
    upstream: Mutex<SocketAddr>,
    /// The longest prefix first.
    rules: Mutex<Vec<Rule>>,
    requests: AtomicU64,
    body_bytes: AtomicU64,
    in_flight: AtomicU64,
    in_flight_max: AtomicU64,
    faults: AtomicU64,
    connections: AtomicU64,
    by_path: Mutex<HashMap<String, u64>>,
}

#[derive(Debug)]
struct Rule {
    prefix: String,
    conduct: Conduct,
    /// For each fault, how much of the next strike has come together.
    strikes: Vec<f64>,
}

/// What to do with one answer.
#[derive(Debug, Clone, Default)]
struct Treatment {
    latency: Duration,
    bandwidth: Option<u64>,
    fault: Option<Fault>,
}

impl Shared {
    fn new(upstream: SocketAddr) -> Self {
        Self {
            upstream: Mutex::new(upstream),
            rules: Mutex::default(),
            requests: AtomicU64::new(0),
            body_bytes: AtomicU64::new(0),
            in_flight: AtomicU64::new(0),
            in_flight_max: AtomicU64::new(0),
            faults: AtomicU64::new(0),
            connections: AtomicU64::new(0),
            by_path: Mutex::default(),
        }
    }

    fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        Counts {
            requests: read(&self.requests),
            body_bytes: read(&self.body_bytes),
            in_flight: read(&self.in_flight),
            in_flight_max: read(&self.in_flight_max),
            faults: read(&self.faults),
            connections: read(&self.connections),
        }
    }

    fn treatment(&self, target: &str) -> Treatment {
        let mut rules = lock(&self.rules);
        let Some(rule) = rules
            .iter_mut()
            .find(|rule| target.starts_with(&rule.prefix))
        else {
            return Treatment::default();
        };
        let mut fault = None;
        for ((kind, share), strike) in rule.conduct.faults.iter().zip(&mut rule.strikes) {
            *strike += share;
            // Shares like 0.1 add up to a little less than 1.
            if *strike > 1.0 - 1e-9 && fault.is_none() {
                *strike -= 1.0;
                fault = Some(kind.clone());
            }
        }
        Treatment {
            latency: rule.conduct.latency,
            bandwidth: rule.conduct.bandwidth,
            fault,
        }
    }

    fn count_body(&self, path: &str, len: u64) {
        self.body_bytes.fetch_add(len, Ordering::SeqCst);
        let mut by_path = lock(&self.by_path);
        match by_path.get_mut(path) {
            Some(bytes) => *bytes += len,
            None => {
                by_path.insert(path.to_owned(), len);
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Until told to stop; what still runs then is dropped.
async fn accept(listener: TcpListener, shared: Arc<Shared>, mut stopped: oneshot::Receiver<()>) {
    let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
        return;
    };
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            _ = &mut stopped => return,
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    shared.connections.fetch_add(1, Ordering::SeqCst);
                    connections.spawn(connection::run(client, Arc::clone(&shared)));
                }
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

#[cfg(test)]
mod tests;
