//! A source for tests: it counts what is asked of it, and does as its script says.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use tempfile::TempDir;
use tokio::sync::Notify;

use super::{ExtentLimits, Extents, Place};
use crate::source::config::Environment;
use crate::source::validator::ObjectStamp;
use crate::source::{BoxFuture, ByteStream, ObjectStream, Source, SourceError, SourceErrorKind};
use crate::store::location::ContainerId;
use crate::store::sources::{OpenSource, Sources};
use crate::store::{OpenMode, Store};

/// What comes of one request.
#[derive(Debug, Clone)]
pub(super) enum Deed {
    /// No answer, for ever.
    Hang,
    /// So many bytes, then nothing for ever.
    HangAfter(u64),
    /// This error at once.
    Fail(SourceError),
    /// So many bytes, then this error.
    FailAfter(u64, SourceError),
}

/// The source. A range of an object is [`content`] of it.
#[derive(Debug, Default)]
pub(super) struct Scripted {
    /// Before the first byte of each answer.
    pub(super) latency: Duration,
    /// Bytes a second of one answer; 0 for no bound.
    pub(super) bandwidth: u64,
    /// For the next requests; those after it are answered well.
    pub(super) script: Mutex<VecDeque<Deed>>,
    /// For all requests for which the script has nothing.
    pub(super) always: Mutex<Option<Deed>>,
    pub(super) n_requests: AtomicU64,
    /// Bytes that were given out.
    pub(super) n_bytes: AtomicU64,
    pub(super) n_open: AtomicU64,
    pub(super) n_open_max: AtomicU64,
    pub(super) requests: Mutex<Vec<Range<u64>>>,
    /// Told of each request.
    pub(super) asked: Notify,
}

/// Counts an answer that is under way.
struct Open(Arc<Scripted>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.n_open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Bytes repeat after so many, which divides no length that is read by.
const PERIOD: u64 = 1_048_583;

/// What the range of any object must be.
pub(super) fn content(range: Range<u64>) -> Vec<u8> {
    static PATTERN: OnceLock<Vec<u8>> = OnceLock::new();
    let pattern = PATTERN.get_or_init(|| {
        let byte = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15).to_le_bytes()[7];
        (0..PERIOD).map(byte).collect()
    });
    let mut bytes = Vec::with_capacity(usize::try_from(range.end - range.start).unwrap());
    let mut at = range.start;
    while at < range.end {
        let start = usize::try_from(at % PERIOD).unwrap();
        let rest = &pattern[start..];
        let n = rest.len().min(usize::try_from(range.end - at).unwrap());
        bytes.extend_from_slice(&rest[..n]);
        at += n as u64;
    }
    bytes
}

/// The size of the parts that answers come in.
const PART: u64 = 64 << 10;

/// As [`Source`], shared with the test.
#[derive(Debug)]
pub(super) struct Shared(pub(super) Arc<Scripted>);

impl Source for Shared {
    fn url(&self) -> &'static str {
        "test:"
    }

    fn stat<'a>(&'a self, _path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async { Ok(ObjectStamp::default()) })
    }

    fn read<'a>(
        &'a self,
        _path: &'a [u8],
        _expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        let scripted = Arc::clone(&self.0);
        Box::pin(async move {
            scripted.n_requests.fetch_add(1, Ordering::SeqCst);
            let n = scripted.n_open.fetch_add(1, Ordering::SeqCst) + 1;
            scripted.n_open_max.fetch_max(n, Ordering::SeqCst);
            let open = Open(Arc::clone(&scripted));
            scripted.requests.lock().unwrap().push(range.clone());
            scripted.asked.notify_one();
            let deed = scripted.script.lock().unwrap().pop_front();
            let deed = deed.or_else(|| scripted.always.lock().unwrap().clone());
            match &deed {
                Some(Deed::Hang) => std::future::pending().await,
                Some(Deed::Fail(error)) => return Err(error.clone()),
                _ => tokio::time::sleep(scripted.latency).await,
            }
            let start = range.start;
            let parts = stream::unfold((range, open), move |(range, open)| {
                let deed = deed.clone();
                async move {
                    if range.is_empty() {
                        return None;
                    }
                    let left = match &deed {
                        Some(Deed::HangAfter(n) | Deed::FailAfter(n, _)) => {
                            (start + n).saturating_sub(range.start)
                        }
                        _ => u64::MAX,
                    };
                    match deed {
                        Some(Deed::HangAfter(_)) if left == 0 => std::future::pending().await,
                        Some(Deed::FailAfter(_, error)) if left == 0 => {
                            return Some((Err(error), (range, open)));
                        }
                        _ => {}
                    }
                    let end = range.end.min(range.start + PART.min(left));
                    let len = end - range.start;
                    if let Some(nanos) = (len * 1_000_000_000).checked_div(open.0.bandwidth) {
                        tokio::time::sleep(Duration::from_nanos(nanos)).await;
                    }
                    open.0.n_bytes.fetch_add(len, Ordering::SeqCst);
                    let bytes = Bytes::from(content(range.start..end));
                    Some((Ok(bytes), (end..range.end, open)))
                }
            });
            Ok(Box::pin(parts) as ByteStream)
        })
    }

    fn list<'a>(&'a self, _prefix: &'a [u8]) -> ObjectStream<'a> {
        Box::pin(stream::empty())
    }
}

/// Reads of one source.
pub(super) struct Bench {
    pub(super) extents: Extents,
    pub(super) source: Arc<Scripted>,
    pub(super) open: Arc<OpenSource>,
    _dir: TempDir,
}

impl Bench {
    pub(super) fn new(bytes_max: u64, source: Scripted) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path(), OpenMode::Create).unwrap();
        let sources = Sources::new(Arc::new(store), Environment::default());
        let source = Arc::new(source);
        Self {
            extents: Extents::new(sources, ExtentLimits { bytes_max }),
            open: open_source(2, &source),
            source,
            _dir: dir,
        }
    }

    /// An object of the source.
    pub(super) fn object(&self, container: u64, size: u64) -> Arc<Place> {
        object(&self.open, container, size)
    }

    pub(super) fn n_requests(&self) -> u64 {
        self.source.n_requests.load(Ordering::SeqCst)
    }

    pub(super) fn n_bytes(&self) -> u64 {
        self.source.n_bytes.load(Ordering::SeqCst)
    }

    /// Waits until a condition holds, at most five seconds.
    pub(super) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        for _ in 0..5000 {
            if condition(self) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        panic!("never: {what}; {:?}", self.extents.stats());
    }

    /// Nothing is under way, held or waited for.
    pub(super) async fn at_rest(&self) {
        self.until("at rest", |bench| {
            let inner = &bench.extents.inner;
            inner.tasks.is_empty()
                && inner.budget.is_idle()
                && bench.source.n_open.load(Ordering::SeqCst) == 0
        })
        .await;
    }
}

pub(super) fn open_source(id: u32, source: &Arc<Scripted>) -> Arc<OpenSource> {
    let shared = Arc::new(Shared(Arc::clone(source)));
    Arc::new(OpenSource::new(id, format!("test{id}"), shared))
}

pub(super) fn object(source: &Arc<OpenSource>, container: u64, size: u64) -> Arc<Place> {
    Arc::new(Place {
        container: ContainerId(container),
        source: Arc::clone(source),
        path: Box::from(&b"o"[..]),
        stamp: Arc::new(ObjectStamp {
            size,
            ..ObjectStamp::default()
        }),
    })
}

pub(super) fn error(kind: SourceErrorKind) -> SourceError {
    SourceError::new(kind, "as scripted")
}
