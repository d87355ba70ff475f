//! `import` of a CAR that lies in a source elsewhere: its blocks are served from there.
//!
//! In       an object that is a CAR.
//! Out      as `ingest::import`: ranges of the CAR in the index, its roots in the catalog.
//! Limits   [`PARTS_AHEAD`] parts of [`PART_LEN`] bytes are on their way, [`BATCHES_MAX`] batches
//!          of sections are being verified; of an index [`claims::INDEX_LEN_MAX`] bytes are held.
//! Not here CARs on this disk.
//!
//! Without an index the CAR is read once, in order, with parts fetched ahead, and every block is
//! verified. With one, only the heads of sections are read: the index is a claim, and each block is
//! verified when it is served, as everything is.

pub(crate) mod claims;
mod heads;
mod slices;
mod stream;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use carrack_formats::Cid;
use carrack_formats::car::{CarError, Parser, Section, Step, v2};
use carrack_formats::cid;
use tokio::runtime::Handle;

use super::{CAR_PROFILE, CarFailure, HEAD_LEN, ImportOptions, ImportReport, car_failed, promise};
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;
use crate::ingest::remote::read::{is_same, patient};
use crate::ingest::remote::target::{Target, require};
use crate::ingest::sink::{Origin, Sink};
use crate::source::validator::ObjectStamp;
use crate::source::{SourceError, SourceErrorKind};
use crate::store::Store;
use crate::store::catalog::{ContainerKind, Validator};
use crate::store::location::{ContainerId, Location};
use crate::store::sources::{OpenSource, Sources};

/// Bytes of one part, and parts fetched ahead.
const PART_LEN: u64 = 8 << 20;
const PARTS_AHEAD: usize = 8;
/// Batches of sections being verified at once.
const BATCHES_MAX: usize = 8;

/// Imports the CAR at `target`. With `verify` all of it is read even if an index tells where its
/// sections are.
///
/// # Errors
/// As [`import`](super::import); `Unavailable` if the source does not answer.
pub fn import_remote(
    store: &Arc<Store>,
    sources: &Sources,
    target: &Target,
    options: &ImportOptions,
    verify: bool,
    progress: &mut dyn Progress,
    stop: &AtomicBool,
) -> Result<ImportReport> {
    let shown = target.shown();
    let handle = sources.handle()?;
    let mut object = Object {
        source: Arc::clone(&target.source),
        path: target.path.clone().into(),
        stamp: Arc::default(),
        n_throttled: Arc::default(),
        handle,
    };
    let cannot = |error: SourceError| {
        let kind = match error.kind {
            SourceErrorKind::Missing => ErrorKind::Invalid,
            _ => Error::from(error.clone()).kind(),
        };
        Error::with(kind, format!("cannot import {}", shown.display()), error)
    };
    object.stamp = object.wait_for(object.stat(), stop)?.map_err(cannot)?;
    let _ingest = store.ingest_lock();
    require(store, &target.source)?;
    let origin = Origin {
        source: target.source.id,
        base: std::path::PathBuf::new(),
        shown: target.source.source.url().as_bytes().to_vec(),
    };
    let mut sink = Sink::of(store, origin)?;
    let path = target.relative();
    let validator = Validator::Object(Arc::clone(&object.stamp));
    if let Some(known) = sink.known_file(&path, CAR_PROFILE)?
        && let Some(stamp) = known.validator.object()
        && is_same(stamp, &object.stamp)
        && let Some(container) = known.container
        && !verify
    {
        let front = object
            .front(options, stop)
            .map_err(|error| car_failed(&shown, error))?;
        let mut report = ImportReport {
            n_blocks: known.sum.n_blocks,
            bytes: known.sum.file_len,
            unchanged: true,
            ..ImportReport::default()
        };
        promise(
            &mut sink,
            &path,
            &front.roots,
            Some(container),
            &mut report,
            stop,
        )?;
        sink.finish()?;
        report.find_missing(store, Some(container));
        return Ok(report);
    }
    let mut report = ImportReport::default();
    let mut work = RemoteImport {
        object: &object,
        options,
        container: sink.new_container(),
        sink: &mut sink,
        report: &mut report,
        progress,
        stop,
    };
    let roots = work
        .run(verify)
        .map_err(|error| car_failed(&shown, error))?;
    let container = work.container;
    sink.container(container, ContainerKind::Car, &path, &validator);
    if report.n_bad == 0 {
        let sum = report.sum(cid::empty_identity());
        sink.file(&path, CAR_PROFILE, &validator, Some(container), None, sum);
    }
    promise(&mut sink, &path, &roots, Some(container), &mut report, stop)?;
    sink.finish()?;
    report.find_missing(store, Some(container));
    Ok(report)
}

/// An import under way.
struct RemoteImport<'a, 'b> {
    object: &'a Object,
    options: &'a ImportOptions,
    container: ContainerId,
    sink: &'a mut Sink<'b>,
    report: &'a mut ImportReport,
    progress: &'a mut dyn Progress,
    stop: &'a AtomicBool,
}

/// One version of the CAR, and how it is read.
#[derive(Clone)]
struct Object {
    source: Arc<OpenSource>,
    path: Arc<[u8]>,
    stamp: Arc<ObjectStamp>,
    n_throttled: Arc<AtomicU64>,
    handle: Handle,
}

/// What stands before the first section.
struct Front {
    roots: Vec<Cid>,
    /// Where the CARv1 starts and ends.
    start: u64,
    end: u64,
    /// Where the first section starts.
    sections: u64,
    /// Where the CARv2's index starts, if it has one.
    index: Option<u64>,
}

impl Object {
    async fn stat(&self) -> Result<Arc<ObjectStamp>, SourceError> {
        let source = patient(&self.source, &self.n_throttled);
        source.stat(&self.path).await.map(Arc::new)
    }

    /// Bytes of the CAR, which are held. Cancel-safe.
    async fn bytes(&self, start: u64, end: u64) -> Result<Bytes, SourceError> {
        let len = usize::try_from(end.saturating_sub(start)).unwrap_or_default();
        let mut bytes = BytesMut::with_capacity(len.min(PART_LEN as usize));
        let source = patient(&self.source, &self.n_throttled);
        let reading = source.each_piece(&self.path, &self.stamp, start..end, |piece: Bytes| {
            bytes.extend_from_slice(&piece);
        });
        reading.await?;
        Ok(bytes.freeze())
    }

    /// Waits for `work` on this thread, unless somebody asks to stop.
    fn wait_for<T>(&self, work: impl Future<Output = T>, stop: &AtomicBool) -> Result<T> {
        self.handle.block_on(async {
            let mut work = std::pin::pin!(work);
            loop {
                tokio::select! {
                    done = &mut work => return Ok(done),
                    () = tokio::time::sleep(std::time::Duration::from_millis(200)) => {
                        if stop.load(Ordering::Relaxed) {
                            return Err(interrupted());
                        }
                    }
                }
            }
        })
    }

    /// Reads the CARv2 header, if there is one, and the CARv1 header.
    fn front(&self, options: &ImportOptions, stop: &AtomicBool) -> Result<Front, CarFailure> {
        let len = self.stamp.size;
        let mut head = self.wait_for(self.bytes(0, len.min(4096)), stop)??;
        let (mut start, mut end, mut index) = (0, len, None);
        if v2::is_v2(&head) == Some(true) {
            let header = v2::parse(&head, len)?;
            (start, end) = (header.data_offset, header.data_end());
            index = header.index_offset;
            head =
                self.wait_for(self.bytes(start, end.min(start.saturating_add(4096))), stop)??;
        }
        let mut parser = Parser::new(options.limits, start);
        parser.set_end(end);
        loop {
            let eof = start + head.len() as u64 >= end;
            match parser.next(&head, eof)? {
                Step::Need(want) => {
                    let want = start.saturating_add(want.max(HEAD_LEN) as u64).min(end);
                    head = self.wait_for(self.bytes(start, want), stop)??;
                }
                Step::Header(header) => {
                    return Ok(Front {
                        roots: header.roots,
                        start,
                        end,
                        sections: start.saturating_add(header.len),
                        index,
                    });
                }
                Step::Section(_) | Step::End => {
                    return Err(CarError::Truncated { offset: start }.into());
                }
            }
        }
    }
}

impl RemoteImport<'_, '_> {
    /// Makes the sections known; gives the roots.
    fn run(&mut self, verify: bool) -> Result<Vec<Cid>, CarFailure> {
        let front = self.object.front(self.options, self.stop)?;
        if !verify && !self.options.salvage && self.by_index(&front)? {
            return Ok(front.roots);
        }
        self.stream(&front)?;
        Ok(front.roots)
    }

    /// A block whose place is known.
    fn found(&mut self, cid: &Cid, offset: u64, len: u32) -> Result<()> {
        self.report.n_blocks += 1;
        self.report.bytes += u64::from(len);
        if cid::identity_data(cid).is_some() {
            return Ok(());
        }
        let location = Location {
            container: self.container,
            offset,
            len,
            wrapped: false,
        };
        self.sink.range(cid, location)
    }

    fn found_section(&mut self, section: &Section) -> Result<()> {
        self.found(&section.cid, section.data_offset, section.data_len)
    }

    fn check_stop(&self) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        Ok(())
    }
}

fn interrupted() -> Error {
    let what = "interrupted; nothing of this CAR was kept";
    Error::new(ErrorKind::Unavailable, what)
}

impl From<SourceError> for CarFailure {
    fn from(error: SourceError) -> Self {
        Self::Other(error.into())
    }
}

impl Target {
    fn relative(&self) -> std::path::PathBuf {
        use std::os::unix::ffi::OsStrExt;
        Path::new(std::ffi::OsStr::from_bytes(&self.path)).to_owned()
    }
}
