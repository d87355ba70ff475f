//! For tests: a source in memory that does as it is told.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use super::validator::{FileTime, ObjectStamp};
use super::{BoxFuture, ByteStream, Listed, ObjectStream, Source, SourceError, SourceErrorKind};
use crate::store::catalog::SourceRecord;

/// Bytes of one piece: a length that no block has.
const PIECE_LEN: usize = 60_000;

/// How a read goes wrong.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// It never answers.
    Hangs,
    /// It takes so many milliseconds to the first byte.
    Slow(u64),
    /// It fails before the first byte.
    Fails(SourceErrorKind),
    /// A bit of its first byte is another.
    Lies,
    /// So many bytes come, then the connection breaks.
    BreaksAfter(usize),
    /// Half of the bytes come, and then the object is another.
    ReplacedBy(Vec<u8>),
    /// The object is deleted before it is read.
    Deleted,
}

impl Fault {
    /// The source does not answer.
    pub(crate) const DOWN: Self = Self::Fails(SourceErrorKind::Unreachable);
}

/// Objects in memory, in the order of their keys.
#[derive(Debug)]
pub(crate) struct MemorySource {
    url: &'static str,
    objects: Mutex<BTreeMap<Vec<u8>, (Bytes, ObjectStamp)>>,
    odd: Mutex<Vec<Listed>>,
    lasting: Mutex<HashMap<Vec<u8>, Fault>>,
    once: Mutex<HashMap<Vec<u8>, VecDeque<Fault>>>,
    listing_fails: Mutex<Option<SourceErrorKind>>,
    n_versions: AtomicU64,
    /// Listings tell the length alone, as a table for people does.
    pub(crate) lists_sizes_only: AtomicBool,
    /// Nothing at all is answered.
    pub(crate) is_down: AtomicBool,
    /// Before the first byte of every read, in milliseconds.
    pub(crate) latency_ms: AtomicU64,
    /// Reads that start here or behind never give a byte.
    pub(crate) hangs_from: AtomicU64,
    pub(crate) n_reads: AtomicU64,
    /// Questions what an object is.
    pub(crate) n_stats: AtomicU64,
    /// They take so many milliseconds.
    pub(crate) stat_latency_ms: AtomicU64,
    pub(crate) n_bytes: Arc<AtomicU64>,
    pub(crate) n_under_way: Arc<AtomicUsize>,
    pub(crate) n_under_way_max: AtomicUsize,
    pub(crate) is_dropped: Arc<AtomicBool>,
}

/// Counts a read as long as it goes on.
struct UnderWay(Arc<AtomicUsize>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::SeqCst);
    }
}

impl Default for MemorySource {
    fn default() -> Self {
        Self::at("memory://")
    }
}

impl MemorySource {
    pub(crate) fn at(url: &'static str) -> Self {
        Self {
            url,
            objects: Mutex::default(),
            odd: Mutex::default(),
            lasting: Mutex::default(),
            once: Mutex::default(),
            listing_fails: Mutex::default(),
            n_versions: AtomicU64::default(),
            lists_sizes_only: AtomicBool::default(),
            is_down: AtomicBool::default(),
            latency_ms: AtomicU64::default(),
            hangs_from: AtomicU64::new(u64::MAX),
            n_reads: AtomicU64::default(),
            n_stats: AtomicU64::default(),
            stat_latency_ms: AtomicU64::default(),
            n_bytes: Arc::default(),
            n_under_way: Arc::default(),
            n_under_way_max: AtomicUsize::default(),
            is_dropped: Arc::default(),
        }
    }

    /// Puts an object of a new version.
    pub(crate) fn put(&self, path: &str, data: impl AsRef<[u8]>) -> ObjectStamp {
        let version = self.n_versions.fetch_add(1, Ordering::SeqCst);
        let data = Bytes::copy_from_slice(data.as_ref());
        let stamp = ObjectStamp {
            size: data.len() as u64,
            etag: Some(format!("\"{version:032x}\"").into()),
            version: None,
            modified: Some(FileTime {
                secs: 1_700_000_000 + i64::try_from(version).unwrap(),
                nanos: 0,
            }),
        };
        let object = (data, stamp.clone());
        let path = path.as_bytes().to_vec();
        self.objects.lock().unwrap().insert(path, object);
        stamp
    }

    /// Puts an object that says of itself to be so long.
    pub(crate) fn claim(&self, path: &str, size: u64) {
        let mut stamp = self.put(path, b"not so long");
        stamp.size = size;
        let mut objects = self.objects.lock().unwrap();
        if let Some(object) = objects.get_mut(path.as_bytes()) {
            object.1 = stamp;
        }
    }

    /// The object as it was: these bytes under that version.
    pub(crate) fn put_back(&self, path: &str, data: impl AsRef<[u8]>, stamp: &ObjectStamp) {
        let object = (Bytes::copy_from_slice(data.as_ref()), stamp.clone());
        let path = path.as_bytes().to_vec();
        self.objects.lock().unwrap().insert(path, object);
    }

    /// Other bytes under the same version.
    pub(crate) fn corrupt(&self, path: &str, data: impl AsRef<[u8]>) {
        let mut objects = self.objects.lock().unwrap();
        let object = objects.get_mut(path.as_bytes()).unwrap();
        object.0 = Bytes::copy_from_slice(data.as_ref());
        object.1.size = object.0.len() as u64;
    }

    /// The same bytes, written again: the store's tag of them stays, the time does not.
    pub(crate) fn put_again(&self, path: &str, data: impl AsRef<[u8]>) {
        self.corrupt(path, data);
        let mut objects = self.objects.lock().unwrap();
        let stamp = &mut objects.get_mut(path.as_bytes()).unwrap().1;
        stamp.modified.as_mut().unwrap().secs += 1;
    }

    pub(crate) fn delete(&self, path: &str) {
        self.objects.lock().unwrap().remove(path.as_bytes());
    }

    pub(crate) fn copy(&self, from: &str, to: &str) {
        let mut objects = self.objects.lock().unwrap();
        let object = objects[from.as_bytes()].clone();
        objects.insert(to.as_bytes().to_vec(), object);
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        self.copy(from, to);
        self.delete(from);
    }

    /// A key that is listed as one that no directory can have.
    pub(crate) fn put_odd(&self, path: &str, why: &str) {
        self.odd.lock().unwrap().push(Listed::Odd {
            path: path.as_bytes().to_vec(),
            why: why.to_owned(),
        });
    }

    /// Every read of `path` goes wrong from now on, or none.
    pub(crate) fn fault(&self, path: &str, fault: Option<Fault>) {
        let mut faults = self.lasting.lock().unwrap();
        match fault {
            Some(fault) => faults.insert(path.as_bytes().to_vec(), fault),
            None => faults.remove(path.as_bytes()),
        };
    }

    /// The next read of `path` goes wrong, behind those that were told before.
    pub(crate) fn fault_once(&self, path: &str, fault: Fault) {
        let mut faults = self.once.lock().unwrap();
        let queue = faults.entry(path.as_bytes().to_vec()).or_default();
        queue.push_back(fault);
    }

    pub(crate) fn listing_fails(&self, kind: Option<SourceErrorKind>) {
        *self.listing_fails.lock().unwrap() = kind;
    }

    pub(crate) fn stamp(&self, path: &str) -> ObjectStamp {
        self.objects.lock().unwrap()[path.as_bytes()].1.clone()
    }

    pub(crate) fn reads(&self) -> u64 {
        self.n_reads.load(Ordering::SeqCst)
    }

    /// Requests of either kind so far, counted anew.
    pub(crate) fn take_requests(&self) -> u64 {
        self.n_reads.swap(0, Ordering::SeqCst) + self.n_stats.swap(0, Ordering::SeqCst)
    }

    /// Reads so far and their bytes, counted anew.
    pub(crate) fn take_counts(&self) -> (u64, u64) {
        let n_reads = self.n_reads.swap(0, Ordering::SeqCst);
        (n_reads, self.n_bytes.swap(0, Ordering::SeqCst))
    }

    fn find(&self, path: &[u8]) -> Result<(Bytes, ObjectStamp), SourceError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(scripted(SourceErrorKind::Unreachable));
        }
        let objects = self.objects.lock().unwrap();
        let found = objects.get(path).cloned();
        found.ok_or_else(|| scripted(SourceErrorKind::Missing))
    }

    fn next_fault(&self, path: &[u8]) -> Option<Fault> {
        let mut once = self.once.lock().unwrap();
        let next = once.get_mut(path).and_then(VecDeque::pop_front);
        next.or_else(|| self.lasting.lock().unwrap().get(path).cloned())
    }

    fn begin(&self) -> UnderWay {
        self.n_reads.fetch_add(1, Ordering::SeqCst);
        let n = self.n_under_way.fetch_add(1, Ordering::SeqCst) + 1;
        self.n_under_way_max.fetch_max(n, Ordering::SeqCst);
        UnderWay(Arc::clone(&self.n_under_way))
    }
}

/// The row of a source without credentials.
pub(crate) fn source_record(name: &str, url: &str) -> SourceRecord {
    SourceRecord {
        name: name.to_owned(),
        url: url.to_owned(),
        endpoint: String::new(),
        region: String::new(),
        credentials: "none".to_owned(),
        created_unix: 0,
        redirects: Vec::new(),
        private: false,
    }
}

fn scripted(kind: SourceErrorKind) -> SourceError {
    SourceError::new(kind, format!("scripted: {kind:?}"))
}

impl Source for MemorySource {
    fn url(&self) -> &str {
        self.url
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async move {
            self.n_stats.fetch_add(1, Ordering::SeqCst);
            let latency = self.stat_latency_ms.load(Ordering::SeqCst);
            if latency > 0 {
                tokio::time::sleep(Duration::from_millis(latency)).await;
            }
            self.find(path).map(|found| found.1)
        })
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let under_way = self.begin();
            let fault = self.next_fault(path);
            let name = String::from_utf8_lossy(path).into_owned();
            let mut latency = Duration::from_millis(self.latency_ms.load(Ordering::SeqCst));
            match &fault {
                Some(Fault::Fails(kind)) => return Err(scripted(*kind)),
                Some(Fault::Deleted) => self.delete(&name),
                Some(Fault::Slow(ms)) => latency += Duration::from_millis(*ms),
                _ => {}
            }
            let (bytes, now) = self.find(path)?;
            if !now.agrees_with(expected) {
                return Err(scripted(SourceErrorKind::Changed));
            }
            let hangs = range.start >= self.hangs_from.load(Ordering::SeqCst);
            if hangs || matches!(fault, Some(Fault::Hangs)) {
                std::future::pending::<()>().await;
            }
            match latency.is_zero() {
                true => tokio::task::yield_now().await,
                false => tokio::time::sleep(latency).await,
            }
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let mut bytes = bytes.slice(range);
            let failure = match fault {
                Some(Fault::BreaksAfter(n)) => {
                    bytes.truncate(n);
                    Some(SourceErrorKind::Unreachable)
                }
                Some(Fault::ReplacedBy(other)) => {
                    self.put(&name, other);
                    bytes.truncate(bytes.len() / 2);
                    Some(SourceErrorKind::Changed)
                }
                Some(Fault::Lies) => {
                    let mut lie = bytes.to_vec();
                    lie[0] ^= 1;
                    bytes = lie.into();
                    None
                }
                _ => None,
            };
            let pieces = bytes.chunks(PIECE_LEN).map(|piece| bytes.slice_ref(piece));
            let pieces: Vec<_> = pieces
                .map(Ok)
                .chain(failure.map(|kind| Err(scripted(kind))))
                .collect();
            let n_bytes = Arc::clone(&self.n_bytes);
            let pieces = stream::iter(pieces).inspect(move |piece| {
                let _ = &under_way; // It is until the last piece was taken.
                let len = piece.as_ref().map_or(0, Bytes::len) as u64;
                n_bytes.fetch_add(len, Ordering::SeqCst);
            });
            Ok(pieces.boxed() as ByteStream)
        })
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        let is_down = self.is_down.load(Ordering::SeqCst);
        let down = is_down.then_some(SourceErrorKind::Unreachable);
        if let Some(kind) = down.or(*self.listing_fails.lock().unwrap()) {
            return stream::iter([Err(scripted(kind))]).boxed();
        }
        let below = [prefix, b"/"].concat();
        let is_below =
            |path: &[u8]| prefix.is_empty() || path == prefix || path.starts_with(&below);
        let sizes_only = self.lists_sizes_only.load(Ordering::SeqCst);
        let objects = self.objects.lock().unwrap();
        let listed = objects.iter().filter(|(path, _)| is_below(path));
        let listed = listed.map(|(path, (_, stamp))| {
            let stamp = match sizes_only {
                true => ObjectStamp {
                    size: stamp.size,
                    ..ObjectStamp::default()
                },
                false => stamp.clone(),
            };
            let path = path.clone();
            Ok(Listed::Object { path, stamp })
        });
        let odd = self.odd.lock().unwrap().clone();
        let all: Vec<_> = listed.chain(odd.into_iter().map(Ok)).collect();
        stream::iter(all).boxed()
    }
}
