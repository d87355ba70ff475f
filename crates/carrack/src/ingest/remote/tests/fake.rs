//! A source in memory: objects in the order of their keys, faults as a test scripts them.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt, stream};

use crate::source::validator::{FileTime, ObjectStamp};
use crate::source::{
    BoxFuture, ByteStream, Listed, ObjectStream, Source, SourceError, SourceErrorKind,
};

/// What goes wrong with a read.
#[derive(Debug, Clone)]
pub(crate) enum Fault {
    /// The read fails before the first byte.
    Fails(SourceErrorKind),
    /// So many bytes come, then the connection breaks.
    BreaksAfter(usize),
    /// Bytes come, and then the object is another.
    ReplacedBy(Vec<u8>),
    /// The object is deleted before it is read.
    Deleted,
}

#[derive(Debug)]
pub(crate) struct FakeSource {
    objects: Mutex<BTreeMap<Vec<u8>, (Bytes, ObjectStamp)>>,
    odd: Mutex<Vec<Listed>>,
    faults: Mutex<HashMap<Vec<u8>, VecDeque<Fault>>>,
    listing_fails: Mutex<Option<SourceErrorKind>>,
    /// Listings tell the length alone, as a table for people does.
    pub(crate) lists_sizes_only: bool,
    /// Reads that start here or behind never give a byte.
    pub(crate) hangs_from: AtomicU64,
    pub(crate) n_stats: AtomicU64,
    pub(crate) n_reads: AtomicU64,
    pub(crate) bytes_read: AtomicU64,
    n_reading: AtomicU64,
    pub(crate) n_reading_max: AtomicU64,
    n_versions: AtomicU64,
}

impl Default for FakeSource {
    fn default() -> Self {
        Self {
            objects: Mutex::default(),
            odd: Mutex::default(),
            faults: Mutex::default(),
            listing_fails: Mutex::default(),
            lists_sizes_only: false,
            hangs_from: AtomicU64::new(u64::MAX),
            n_stats: AtomicU64::default(),
            n_reads: AtomicU64::default(),
            bytes_read: AtomicU64::default(),
            n_reading: AtomicU64::default(),
            n_reading_max: AtomicU64::default(),
            n_versions: AtomicU64::default(),
        }
    }
}

impl FakeSource {
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        let version = self.n_versions.fetch_add(1, Ordering::Relaxed);
        let stamp = ObjectStamp {
            size: bytes.len() as u64,
            etag: Some(format!("\"{version:032x}\"").into()),
            version: None,
            modified: Some(FileTime {
                secs: i64::try_from(version).unwrap(),
                nanos: 0,
            }),
        };
        let mut objects = self.objects.lock().unwrap();
        let bytes = Bytes::copy_from_slice(bytes);
        objects.insert(path.as_bytes().to_vec(), (bytes, stamp));
    }

    pub(crate) fn remove(&self, path: &str) {
        self.objects.lock().unwrap().remove(path.as_bytes());
    }

    pub(crate) fn copy(&self, from: &str, to: &str) {
        let mut objects = self.objects.lock().unwrap();
        let object = objects[from.as_bytes()].clone();
        objects.insert(to.as_bytes().to_vec(), object);
    }

    pub(crate) fn rename(&self, from: &str, to: &str) {
        self.copy(from, to);
        self.remove(from);
    }

    pub(crate) fn put_odd(&self, path: &str, why: &str) {
        self.odd.lock().unwrap().push(Listed::Odd {
            path: path.as_bytes().to_vec(),
            why: why.to_owned(),
        });
    }

    /// The next read of `path` goes wrong.
    pub(crate) fn fault(&self, path: &str, fault: Fault) {
        let mut faults = self.faults.lock().unwrap();
        faults
            .entry(path.as_bytes().to_vec())
            .or_default()
            .push_back(fault);
    }

    pub(crate) fn listing_fails(&self, kind: Option<SourceErrorKind>) {
        *self.listing_fails.lock().unwrap() = kind;
    }

    pub(crate) fn stamp(&self, path: &str) -> ObjectStamp {
        self.objects.lock().unwrap()[path.as_bytes()].1.clone()
    }

    /// Reads so far and their bytes, counted anew.
    pub(crate) fn take_counts(&self) -> (u64, u64) {
        (
            self.n_reads.swap(0, Ordering::Relaxed),
            self.bytes_read.swap(0, Ordering::Relaxed),
        )
    }

    fn find(&self, path: &[u8]) -> Result<(Bytes, ObjectStamp), SourceError> {
        let objects = self.objects.lock().unwrap();
        objects
            .get(path)
            .cloned()
            .ok_or_else(|| error(SourceErrorKind::Missing))
    }
}

fn error(kind: SourceErrorKind) -> SourceError {
    SourceError::new(kind, format!("scripted: {kind:?}"))
}

impl Source for FakeSource {
    fn url(&self) -> &str {
        "s3://fake"
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        self.n_stats.fetch_add(1, Ordering::Relaxed);
        Box::pin(async move { self.find(path).map(|found| found.1) })
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            self.n_reads.fetch_add(1, Ordering::Relaxed);
            let n = self.n_reading.fetch_add(1, Ordering::Relaxed) + 1;
            self.n_reading_max.fetch_max(n, Ordering::Relaxed);
            tokio::task::yield_now().await;
            self.n_reading.fetch_sub(1, Ordering::Relaxed);
            let fault = {
                let mut faults = self.faults.lock().unwrap();
                faults.get_mut(path).and_then(VecDeque::pop_front)
            };
            let name = String::from_utf8_lossy(path).into_owned();
            match &fault {
                Some(Fault::Fails(kind)) => return Err(error(*kind)),
                Some(Fault::Deleted) => self.remove(&name),
                _ => {}
            }
            if range.start >= self.hangs_from.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            let (bytes, stamp) = self.find(path)?;
            if !expected.agrees_with(&stamp) {
                return Err(error(SourceErrorKind::Changed));
            }
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let bytes = bytes.slice(range);
            let mut pieces: Vec<Result<Bytes, SourceError>> = Vec::new();
            for chunk in bytes.chunks(60_000) {
                pieces.push(Ok(bytes.slice_ref(chunk)));
            }
            match fault {
                Some(Fault::BreaksAfter(n)) => {
                    pieces = vec![
                        Ok(bytes.slice(..n.min(bytes.len()))),
                        Err(error(SourceErrorKind::Unreachable)),
                    ];
                }
                Some(Fault::ReplacedBy(other)) => {
                    self.put(&name, &other);
                    pieces = vec![
                        Ok(bytes.slice(..bytes.len() / 2)),
                        Err(error(SourceErrorKind::Changed)),
                    ];
                }
                _ => {}
            }
            let n: usize = pieces.iter().flatten().map(Bytes::len).sum();
            self.bytes_read.fetch_add(n as u64, Ordering::Relaxed);
            Ok(stream::iter(pieces).boxed() as ByteStream)
        })
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        if let Some(kind) = *self.listing_fails.lock().unwrap() {
            return stream::iter([Err(error(kind))]).boxed();
        }
        let below = [prefix, b"/"].concat();
        let is_below =
            |path: &[u8]| prefix.is_empty() || path == prefix || path.starts_with(&below);
        let objects = self.objects.lock().unwrap();
        let listed = objects.iter().filter(|(path, _)| is_below(path));
        let listed = listed.map(|(path, (_, stamp))| {
            let stamp = match self.lists_sizes_only {
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
