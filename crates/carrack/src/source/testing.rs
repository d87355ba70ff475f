//! For tests: a source in memory that does as it is told.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;

use super::validator::{FileTime, ObjectStamp};
use super::{BoxFuture, ByteStream, Listed, ObjectStream, Source, SourceError, SourceErrorKind};
use crate::store::catalog::SourceRecord;

/// How reads of an object go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// They never answer.
    Hangs,
    /// The source does not answer.
    Down,
    /// Bytes come wrong, this often.
    Lies(u32),
    /// They take so many milliseconds to the first byte.
    Slow(u64),
}

/// Objects in memory.
#[derive(Debug, Default)]
pub(crate) struct MemorySource {
    objects: Mutex<BTreeMap<Vec<u8>, (Bytes, u64)>>,
    faults: Mutex<HashMap<Vec<u8>, Fault>>,
    version: AtomicU64,
    pub(crate) n_reads: AtomicU64,
    pub(crate) n_bytes: AtomicU64,
    pub(crate) n_under_way: AtomicUsize,
    pub(crate) is_dropped: Arc<AtomicBool>,
    /// Nothing at all is answered.
    pub(crate) is_down: AtomicBool,
}

/// Counts a read as long as it goes on.
struct UnderWay(Arc<MemorySource>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.n_under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Drop for MemorySource {
    fn drop(&mut self) {
        self.is_dropped.store(true, Ordering::SeqCst);
    }
}

/// The trait is for what can be shared with a stream.
#[derive(Debug, Clone)]
pub(crate) struct Memory(pub(crate) Arc<MemorySource>);

impl MemorySource {
    /// Puts an object of a new version.
    pub(crate) fn put(&self, path: &str, data: impl Into<Bytes>) -> ObjectStamp {
        let version = self.version.fetch_add(1, Ordering::SeqCst);
        let data = data.into();
        let stamp = stamp(&data, version);
        let path = path.as_bytes().to_vec();
        self.objects.lock().unwrap().insert(path, (data, version));
        stamp
    }

    /// Other bytes under the same version.
    pub(crate) fn corrupt(&self, path: &str, data: impl Into<Bytes>) {
        let mut objects = self.objects.lock().unwrap();
        objects.get_mut(path.as_bytes()).unwrap().0 = data.into();
    }

    pub(crate) fn delete(&self, path: &str) {
        self.objects.lock().unwrap().remove(path.as_bytes());
    }

    pub(crate) fn fault(&self, path: &str, fault: Option<Fault>) {
        let mut faults = self.faults.lock().unwrap();
        match fault {
            Some(fault) => faults.insert(path.as_bytes().to_vec(), fault),
            None => faults.remove(path.as_bytes()),
        };
    }

    pub(crate) fn reads(&self) -> u64 {
        self.n_reads.load(Ordering::SeqCst)
    }

    fn find(&self, path: &[u8]) -> Result<(Bytes, ObjectStamp), SourceError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(down());
        }
        let objects = self.objects.lock().unwrap();
        let missing = || SourceError::new(SourceErrorKind::Missing, "no such object");
        let (data, version) = objects.get(path).ok_or_else(missing)?;
        Ok((data.clone(), stamp(data, *version)))
    }
}

fn stamp(data: &Bytes, version: u64) -> ObjectStamp {
    ObjectStamp {
        size: data.len() as u64,
        etag: Some(format!("\"{version}\"").into()),
        version: None,
        modified: Some(FileTime {
            secs: 1_700_000_000 + i64::try_from(version).unwrap(),
            nanos: 0,
        }),
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
    }
}

fn down() -> SourceError {
    SourceError::new(SourceErrorKind::Unreachable, "it does not answer")
}

impl Source for Memory {
    fn url(&self) -> &str {
        "memory://"
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async move { Ok(self.0.find(path)?.1) })
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(async move {
            let source = Arc::clone(&self.0);
            source.n_reads.fetch_add(1, Ordering::SeqCst);
            source.n_under_way.fetch_add(1, Ordering::SeqCst);
            let under_way = UnderWay(Arc::clone(&source));
            let (data, now) = source.find(path)?;
            if !now.agrees_with(expected) {
                return Err(SourceError::new(
                    SourceErrorKind::Changed,
                    "another version",
                ));
            }
            let fault = source.faults.lock().unwrap().get(path).copied();
            match fault {
                Some(Fault::Hangs) => std::future::pending().await,
                Some(Fault::Slow(ms)) => tokio::time::sleep(Duration::from_millis(ms)).await,
                Some(Fault::Down) => return Err(down()),
                _ => {}
            }
            let (start, end) = (range.start as usize, range.end as usize);
            let mut body = data.slice(start..end);
            let mut parts = Vec::new();
            if let Some(Fault::Lies(n)) = fault {
                let left = n.checked_sub(1).filter(|n| *n > 0).map(Fault::Lies);
                source.fault(std::str::from_utf8(path).unwrap(), left);
                let mut lie = body.to_vec();
                lie[0] ^= 1;
                body = lie.into();
            }
            while !body.is_empty() {
                parts.push(Ok(body.split_to(body.len().min(64 << 10))));
            }
            let stream = futures_util::stream::iter(parts).inspect(move |part| {
                let len = part.as_ref().map_or(0, Bytes::len) as u64;
                under_way.0.n_bytes.fetch_add(len, Ordering::SeqCst);
            });
            Ok(Box::pin(stream) as ByteStream)
        })
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        if self.0.is_down.load(Ordering::SeqCst) {
            return Box::pin(futures_util::stream::iter([Err(down())]));
        }
        let objects = self.0.objects.lock().unwrap();
        let below = |path: &Vec<u8>| {
            prefix.is_empty()
                || path == prefix
                || path
                    .strip_prefix(prefix)
                    .is_some_and(|rest| rest.starts_with(b"/"))
        };
        let listed: Vec<_> = objects
            .iter()
            .filter(|(path, _)| below(path))
            .map(|(path, (data, version))| {
                Ok(Listed::Object {
                    path: path.clone(),
                    stamp: stamp(data, *version),
                })
            })
            .collect();
        Box::pin(futures_util::stream::iter(listed))
    }
}
