//! For tests: a store in memory that can be made to fail, a running node, a client that can tell a
//! cut answer from a whole one.

use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use carrack_formats::car::write;
use carrack_formats::walk::{
    ResolveLimits, ResolveStep, Resolved, Resolver, Step, WalkError, WalkLimits, Walker,
};
use carrack_formats::{Cid, Multihash, cid, verify};
use futures_util::FutureExt as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::backend::{Backend, Batch, MayHold, Next, Plan};
use super::service::serve;
use crate::error::{Error, ErrorKind, Result};
use crate::http::limits::Limits;
use crate::http::{ServeOptions, Shutdown};
use crate::store::car_stream::{CarRequest, walk_error};

/// How a block of [`Memory`] fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Fault {
    /// Its source has changed.
    Changed,
    /// The disk fails when it is read.
    Unreadable,
    /// It is not in memory: [`Backend::try_get`] gives nothing.
    Cold,
    /// It is not in memory, and its source never answers.
    Silent,
    /// Whoever reads it panics.
    Panics,
}

/// Blocks in memory.
#[derive(Debug, Clone, Default)]
pub(crate) struct Memory {
    blocks: Arc<Mutex<HashMap<Multihash, Bytes>>>,
    faults: Arc<Mutex<HashSet<(Multihash, Fault)>>>,
}

impl Memory {
    pub(crate) fn put(&self, codec: u64, data: impl Into<Bytes>) -> Cid {
        let data = data.into();
        let digest = verify::sha256(&data);
        let cid = cid::from_sha256(::cid::Version::V1, codec, &digest);
        self.blocks.lock().unwrap().insert(*cid.hash(), data);
        cid
    }

    /// A dag-cbor list of links to `children`.
    #[expect(clippy::big_endian_bytes, reason = "CBOR is in network order")]
    pub(crate) fn put_list(&self, children: &[Cid]) -> Cid {
        let mut data = vec![0x9a];
        data.extend_from_slice(&u32::try_from(children.len()).unwrap().to_be_bytes());
        for child in children {
            let bytes = child.to_bytes();
            data.extend_from_slice(&[0xd8, 42, 0x58, u8::try_from(bytes.len() + 1).unwrap(), 0]);
            data.extend_from_slice(&bytes);
        }
        self.put(cid::DAG_CBOR, data)
    }

    pub(crate) fn fault(&self, cid: &Cid, fault: Fault) {
        self.faults.lock().unwrap().insert((*cid.hash(), fault));
    }

    fn has(&self, cid: &Cid, fault: Fault) -> bool {
        self.faults.lock().unwrap().contains(&(*cid.hash(), fault))
    }

    fn find(&self, cid: &Cid) -> Option<Bytes> {
        if let Some(data) = cid::identity_data(cid) {
            return Some(Bytes::copy_from_slice(data));
        }
        self.blocks.lock().unwrap().get(cid.hash()).cloned()
    }

    fn find_good(&self, cid: &Cid) -> Result<Bytes> {
        let found = self.find(cid);
        let block = found
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("block {cid} is not here")))?;
        if self.has(cid, Fault::Changed) {
            return Err(Error::new(ErrorKind::Changed, "/secret/path has changed"));
        }
        assert!(!self.has(cid, Fault::Panics), "a fault of the test");
        if self.has(cid, Fault::Unreadable) {
            return Err(Error::new(
                ErrorKind::Unavailable,
                "/secret/path: I/O error",
            ));
        }
        Ok(block)
    }
}

impl Backend for Memory {
    type Plan = MemoryPlan;

    fn holds(&self, cid: &Cid) -> Result<bool> {
        Ok(self.find(cid).is_some())
    }

    fn stat(&self, cid: &Cid) -> Result<Option<u64>> {
        let changed = self.has(cid, Fault::Changed);
        Ok(self
            .find(cid)
            .filter(|_| !changed)
            .map(|block| block.len() as u64))
    }

    fn try_get(&self, cid: &Cid) -> Result<Option<Bytes>> {
        let is_cold = self.has(cid, Fault::Cold) || self.has(cid, Fault::Silent);
        if self.find(cid).is_some() && is_cold {
            return Ok(None);
        }
        self.find_good(cid).map(Some)
    }

    fn get_here_blocking(&self, cid: &Cid) -> Result<Option<Bytes>> {
        if self.has(cid, Fault::Silent) {
            return Ok(None);
        }
        self.find_good(cid).map(Some)
    }

    async fn get(&self, cid: &Cid) -> Result<Bytes> {
        if self.has(cid, Fault::Silent) && !self.has(cid, Fault::Panics) {
            std::future::pending::<()>().await;
        }
        self.find_good(cid)
    }

    async fn resolve(&self, root: Cid, segments: Vec<Vec<u8>>) -> Result<Resolved> {
        let failed = |error: WalkError| Error::new(ErrorKind::NotFound, error.to_string());
        let limits = ResolveLimits::default();
        let mut resolver = Resolver::new(root, segments, limits).map_err(failed)?;
        loop {
            match resolver.next().map_err(failed)? {
                ResolveStep::Done(resolved) => return Ok(resolved),
                ResolveStep::Need(cid) => {
                    let block = self.find_good(&cid)?;
                    resolver.provide(&cid, &block).map_err(failed)?;
                }
            }
        }
    }

    fn plan(&self, request: CarRequest) -> MemoryPlan {
        MemoryPlan {
            memory: self.clone(),
            root: request.root,
            walker: Walker::new(
                &request.resolved,
                request.scope,
                request.range,
                request.dups,
                WalkLimits::default(),
            ),
            failure: None,
        }
    }
}

/// Blocks in a batch of [`MemoryPlan`]: few, so that small CARs have many batches.
const BATCH_BLOCKS: usize = 4;

pub(crate) struct MemoryPlan {
    memory: Memory,
    root: Cid,
    walker: Walker,
    failure: Option<Error>,
}

impl Plan for MemoryPlan {
    type Batch = MemoryBatch;

    fn header(&self) -> Vec<u8> {
        write::header(&[self.root])
    }

    fn next_batch(&mut self, may_hold: MayHold<'_>) -> Result<Next<MemoryBatch>> {
        if let Some(error) = self.failure.take() {
            return Err(error);
        }
        let mut cids = Vec::new();
        let mut len = 0;
        while cids.len() < BATCH_BLOCKS {
            let (cid, emit) = match self.walker.next().map_err(walk_error) {
                Ok(Step::End) => break,
                Ok(Step::Leaf(cid)) => (cid, true),
                Ok(Step::Need { cid, emit }) => {
                    self.walker
                        .provide(&cid, self.memory.find_good(&cid)?)
                        .map_err(walk_error)?;
                    may_hold(self.walker.memory_len())?;
                    (cid, emit)
                }
                Err(error) if cids.is_empty() => return Err(error),
                Err(error) => {
                    self.failure = Some(error);
                    break;
                }
            };
            if emit {
                let block = self.memory.find(&cid);
                let block = block.ok_or_else(|| Error::new(ErrorKind::NotFound, "a leaf"))?;
                len += write::frame_len(&cid, block.len());
                cids.push(cid);
            }
        }
        let memory = self.memory.clone();
        Ok(match cids.is_empty() {
            true => Next::End,
            false => Next::Batch(MemoryBatch { memory, cids, len }),
        })
    }

    fn provide(&mut self, _cid: &Cid, _block: Bytes) -> Result<()> {
        unreachable!("nothing lies elsewhere")
    }

    fn issue(&mut self) {}

    fn memory_len(&self) -> usize {
        self.walker.memory_len()
    }
}

pub(crate) struct MemoryBatch {
    memory: Memory,
    cids: Vec<Cid>,
    len: usize,
}

impl Batch for MemoryBatch {
    fn len(&self) -> usize {
        self.len
    }

    fn n_blocks(&self) -> u64 {
        self.cids.len() as u64
    }

    fn source(&self) -> Option<u32> {
        None
    }

    fn read(self) -> Result<Bytes> {
        let mut frames = Vec::with_capacity(self.len);
        for cid in &self.cids {
            let block = self.memory.find_good(cid)?;
            write::frame_head(&mut frames, cid, block.len());
            frames.extend_from_slice(&block);
        }
        assert_eq!(frames.len(), self.len);
        Ok(frames.into())
    }
}

/// A running node.
pub(crate) struct Node {
    pub(crate) address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    close: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<()>>,
}

impl Node {
    pub(crate) async fn start<B: Backend>(backend: B, limits: Limits) -> Self {
        let options = ServeOptions {
            limits,
            ..ServeOptions::default()
        };
        Self::start_with(backend, options).await
    }

    pub(crate) async fn start_with<B: Backend>(backend: B, options: ServeOptions) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopping) = oneshot::channel::<()>();
        let (close, closing) = oneshot::channel::<()>();
        let shutdown = Shutdown {
            stopping: stopping.map(drop),
            closing: closing.map(drop),
        };
        let task = tokio::spawn(serve(backend, options, listener, shutdown));
        Self {
            address,
            stop: Some(stop),
            close: Some(close),
            task,
        }
    }

    /// As a signal does; connections are taken until [`Self::begin_stop`].
    pub(crate) fn drain(&mut self) {
        drop(self.stop.take());
    }

    pub(crate) fn begin_stop(&mut self) {
        self.drain();
        drop(self.close.take());
    }

    pub(crate) async fn stop(mut self) {
        self.begin_stop();
        self.task.await.unwrap().unwrap();
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.ask("GET", path, &[]).await
    }

    /// One request on a connection of its own.
    pub(crate) async fn ask(&self, method: &str, path: &str, fields: &[(&str, &str)]) -> Reply {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        let mut head = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n");
        for (name, value) in fields {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        // A reset is one way of cutting an answer.
        let _ = stream.read_to_end(&mut bytes).await;
        Reply::parse(&bytes, method == "HEAD")
    }
}

/// What came back.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) head_len: usize,
    fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The body came to the end that its framing announces.
    pub(crate) whole: bool,
}

impl Reply {
    pub(crate) fn parse(bytes: &[u8], head_only: bool) -> Self {
        let end = bytes
            .windows(4)
            .position(|window| window == b"\r\n\r\n")
            .expect("a whole head");
        let head: String = bytes[..end].iter().map(|&byte| char::from(byte)).collect();
        let mut lines = head.split("\r\n");
        let status = lines.next().unwrap()[9..12].parse().unwrap();
        let split = |line: &str| {
            let (name, value) = line.split_once(": ").unwrap();
            (name.to_owned(), value.to_owned())
        };
        let mut reply = Self {
            status,
            head_len: end + 4,
            fields: lines.map(split).collect(),
            body: Vec::new(),
            whole: true,
        };
        let rest = &bytes[end + 4..];
        if head_only || status == 304 {
            assert!(rest.is_empty());
        } else if reply.field("transfer-encoding") == Some("chunked") {
            reply.read_chunks(rest);
        } else {
            let len: usize = reply.field("content-length").unwrap().parse().unwrap();
            reply.whole = rest.len() == len;
            reply.body = rest.to_vec();
        }
        reply
    }

    fn read_chunks(&mut self, mut rest: &[u8]) {
        self.whole = false;
        while let Some(end) = rest.windows(2).position(|window| window == b"\r\n") {
            let len = usize::from_str_radix(std::str::from_utf8(&rest[..end]).unwrap(), 16);
            let (len, data) = (len.unwrap(), &rest[end + 2..]);
            if len == 0 {
                self.whole = data == b"\r\n";
                return;
            }
            self.body.extend_from_slice(&data[..len.min(data.len())]);
            match data.get(len + 2..) {
                Some(after) => rest = after,
                None => return,
            }
        }
    }

    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        let found = self
            .fields
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> &str {
        std::str::from_utf8(&self.body).unwrap()
    }

    /// The CIDs of a CAR's sections in order, each block verified; the roots; what follows a zero
    /// byte at the end of a section.
    pub(crate) fn car(&self) -> (Vec<Cid>, Vec<Cid>, Vec<u8>) {
        use carrack_formats::car::v1::{CarLimits, Parser, Step as CarStep};
        let (mut roots, mut cids) = (Vec::new(), Vec::new());
        let mut parser = Parser::new(CarLimits::default(), 0);
        loop {
            let offset = usize::try_from(parser.offset()).unwrap();
            let rest = &self.body[offset..];
            if rest.first() == Some(&0) {
                return (cids, roots, rest[1..].to_vec());
            }
            match parser.next(rest, true).unwrap() {
                CarStep::Header(header) => roots = header.roots,
                CarStep::Section(section) => {
                    let start = usize::try_from(section.data_offset).unwrap();
                    let data = &self.body[start..start + section.data_len as usize];
                    verify::verify(&section.cid, data).unwrap();
                    cids.push(section.cid);
                }
                CarStep::End => return (cids, roots, Vec::new()),
                CarStep::Need(_) => panic!("cut"),
            }
        }
    }
}
