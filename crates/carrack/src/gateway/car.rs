//! CARs: the path is resolved and the first batch verified before the status is chosen.
//!
//! In       a parsed request for a CAR.
//! Out      200 with a CARv1, 304, or a refusal: 404, 409, 412, 429, 500, 503.
//! Limits   `Limits::batches_ahead_max` batches are read ahead, in the budget of `pool`;
//!          `Limits::car_blocks_max` blocks.
//! Not here order, verification and framing (`store`); the metadata trailer (`trailer`).
//!
//! A CAR that is complete with its first batch has a Content-Length. Any other is sent while it is
//! read; an error then cuts the body, or, if the client asked for the trailer, is named in it.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::walk::Resolved;
use http::StatusCode;
use tokio::task::JoinHandle;
use tracing::warn;

use super::backend::{Backend, Batch, Plan};
use super::body::Body;
use super::headers::{self, Target};
use super::pool::{self, Pool, Reserved};
use super::refusal::Refusal;
use super::request::CarOptions;
use super::service::{Answer, Job};
use super::trailer::Trailer;
use super::walks::Counted;
use crate::error::{Error, ErrorKind, Result};
use crate::node::watch::Share;
use crate::store::car_stream::CarRequest;

/// What the first visit to the disk found.
enum Start<P: Plan> {
    /// The path alone: the answer has no body.
    Resolved,
    /// The whole CAR, in one batch or none.
    Whole { frames: Option<Read> },
    /// The first batch, and the second if the plan was asked for it.
    Begun {
        frames: Read,
        next: Option<P::Batch>,
    },
    /// The first batch is not read yet: there was no room for it.
    NoRoom { first: P::Batch },
}

/// Frames that are read and verified.
struct Read {
    frames: Bytes,
    n_blocks: u64,
    reserved: Reserved,
}

/// The answer to a request for a CAR whose root the index knows.
pub(crate) async fn answer<B: Backend>(
    job: &Job<B>,
    options: CarOptions,
) -> Result<Answer, Refusal> {
    let request = &job.request;
    let root = request.root;
    let etag = headers::etag(request, &root);
    let known = headers::none_match_names(&request.if_none_match, &etag);
    let path_only = request.head || known;
    let (resolved, plan, start) = begin(job, options, path_only)
        .await
        .map_err(|error| Refusal::from_error(&error))?;
    if known {
        return Ok(Answer::not_modified(etag));
    }
    let target = Target {
        terminus: &resolved.terminus,
        roots: &resolved.roots,
    };
    let fields = headers::success(request, &job.uri, target, etag);
    let body = match (plan, start) {
        (Some(plan), start) => {
            let start = first_read(job, start).await?;
            body(job, options, plan, start)
        }
        (None, _) => Body::empty(),
    };
    Ok(Answer {
        status: StatusCode::OK,
        headers: fields,
        body,
    })
}

/// One visit to the blocking pool for all that a small CAR needs.
async fn begin<B: Backend>(
    job: &Job<B>,
    options: CarOptions,
    path_only: bool,
) -> Result<(Resolved, Option<Counted<B::Plan>>, Start<Counted<B::Plan>>)> {
    let (backend, pool) = (job.gateway.backend().clone(), job.gateway.pool().clone());
    let walks = job.gateway.walks().clone();
    let (root, segments) = (job.request.root, job.request.segments.clone());
    pool::run(move || {
        let resolved = if segments.is_empty() {
            Resolved::root(root)
        } else {
            backend.resolve_blocking(root, segments)?
        };
        if path_only {
            require_source(&backend, &resolved.terminus)?;
            return Ok((resolved, None, Start::Resolved));
        }
        let mut plan = walks.count(backend.plan(CarRequest {
            root,
            resolved: resolved.clone(),
            scope: options.scope,
            range: options.entity_bytes,
            dups: options.dups,
        }));
        let Some(first) = plan.next_batch()? else {
            return Ok((resolved, Some(plan), Start::Whole { frames: None }));
        };
        let Some(reserved) = pool.try_reserve(first.len()) else {
            return Ok((resolved, Some(plan), Start::NoRoom { first }));
        };
        let frames = read(first, reserved)?;
        let start = match plan.next_batch()? {
            Some(next) => Start::Begun {
                frames,
                next: Some(next),
            },
            None => Start::Whole {
                frames: Some(frames),
            },
        };
        Ok((resolved, Some(plan), start))
    })
    .await
}

/// Whether the block at the end of the path can be served, for answers that do not read it.
fn require_source<B: Backend>(backend: &B, terminus: &Cid) -> Result<()> {
    if backend.stat(terminus)?.is_some() {
        return Ok(());
    }
    Err(if backend.holds(terminus)? {
        Error::new(ErrorKind::Changed, "the source has changed")
    } else {
        Error::new(ErrorKind::NotFound, format!("block {terminus} is not here"))
    })
}

fn read(batch: impl Batch, reserved: Reserved) -> Result<Read> {
    let n_blocks = batch.n_blocks();
    Ok(Read {
        frames: batch.read()?,
        n_blocks,
        reserved,
    })
}

/// Waits for room if there was none.
async fn first_read<B: Backend>(
    job: &Job<B>,
    start: Start<Counted<B::Plan>>,
) -> Result<Start<Counted<B::Plan>>, Refusal> {
    let Start::NoRoom { first } = start else {
        return Ok(start);
    };
    let reserved = job.reserve(first.len()).await?;
    let frames = pool::run(move || read(first, reserved)).await;
    let frames = frames.map_err(|error| Refusal::from_error(&error))?;
    Ok(Start::Begun { frames, next: None })
}

/// The body, once its first batch is verified.
fn body<B: Backend>(
    job: &Job<B>,
    options: CarOptions,
    plan: Counted<B::Plan>,
    start: Start<Counted<B::Plan>>,
) -> Body {
    let header = Bytes::from(plan.header());
    let pool = job.gateway.pool().clone();
    let limits = job.gateway.limits();
    let share = job.watch.share();
    let trailer = options.meta.then(|| Trailer::new(job.uri.path(), options));
    let mut stream = CarStream {
        pool,
        share: Arc::clone(&share),
        batches_ahead_max: limits.batches_ahead_max.max(1),
        n_blocks_left: limits.car_blocks_max,
        plan: Planning::Done,
        planned: None,
        reads: VecDeque::new(),
        ready: VecDeque::new(),
        failure: None,
        trailer,
    };
    stream.ready.push_back(Part {
        bytes: header.clone(),
        n_blocks: 0,
    });
    let first = match start {
        Start::Whole { frames } if !options.meta => {
            let frames = frames.map_or_else(Bytes::new, |read| read.attach(&share).bytes);
            return job.watched(Body::pair(header, frames), share);
        }
        Start::Resolved | Start::NoRoom { .. } => None,
        Start::Whole { frames } => frames,
        Start::Begun { frames, next } => {
            stream.plan = Planning::Idle(plan);
            if let Some(next) = next {
                stream.take_batch(next);
            }
            Some(frames)
        }
    };
    if let Some(first) = first {
        stream.n_blocks_left = stream.n_blocks_left.saturating_sub(first.n_blocks);
        stream.ready.push_back(first.attach(&share));
    }
    let parts = futures_util::stream::unfold(Some(stream), |stream| async move {
        CarStream::next(stream?).await
    });
    job.watched(Body::parts(Box::pin(parts)), share)
}

fn stopping() -> Error {
    Error::new(ErrorKind::Unavailable, "this node is stopping")
}

/// Frames ready to be sent, which hold their room in the budget.
struct Part {
    bytes: Bytes,
    n_blocks: u64,
}

impl Read {
    fn attach(self, share: &Arc<Share>) -> Part {
        Part {
            bytes: self.reserved.attach(self.frames, Some(Arc::clone(share))),
            n_blocks: self.n_blocks,
        }
    }
}

/// Where the plan is.
enum Planning<P: Plan> {
    Idle(P),
    /// On the blocking pool, with its outcome to come.
    Running(JoinHandle<Result<(P, Option<P::Batch>)>>),
    /// It has ended or failed.
    Done,
}

/// The rest of a CAR: batches are planned one after the other, read side by side, sent in order.
struct CarStream<P: Plan> {
    pool: Pool,
    share: Arc<Share>,
    batches_ahead_max: usize,
    n_blocks_left: u64,
    plan: Planning<P>,
    /// A batch that waits for room.
    planned: Option<P::Batch>,
    /// Reads in the order of the answer. At most `batches_ahead_max`.
    reads: VecDeque<JoinHandle<Result<Read>>>,
    /// What is read and comes before them.
    ready: VecDeque<Part>,
    /// Why the plan ended early. Told after everything that comes before it.
    failure: Option<Error>,
    trailer: Option<Trailer>,
}

impl<P: Plan> CarStream<P> {
    /// The next bytes of the body, and the stream if it goes on. Not cancel-safe: it is dropped
    /// with the body.
    async fn next(mut self) -> Option<(Result<Bytes>, Option<Self>)> {
        let part = match self.next_part().await {
            Some(Ok(part)) => part,
            None => {
                let trailer = self.trailer?;
                return Some((Ok(trailer.finish(None)), None));
            }
            Some(Err(error)) => {
                warn!(error = %error.chain(), "car cut");
                return match self.trailer.take() {
                    Some(trailer) => {
                        let sentence = Refusal::from_error(&error).sentence;
                        Some((Ok(trailer.finish(Some(&sentence))), None))
                    }
                    None => Some((Err(error), None)),
                };
            }
        };
        if let Some(mut trailer) = self.trailer.take() {
            let (bytes, n_blocks) = (part.bytes.clone(), part.n_blocks);
            let hashed = pool::run(move || {
                trailer.update(&bytes, n_blocks);
                Ok(trailer)
            });
            match hashed.await {
                Ok(trailer) => self.trailer = Some(trailer),
                Err(error) => return Some((Err(error), None)),
            }
        }
        Some((Ok(part.bytes), Some(self)))
    }

    async fn next_part(&mut self) -> Option<Result<Part>> {
        self.top_up();
        if let Some(part) = self.ready.pop_front() {
            return Some(Ok(part));
        }
        loop {
            self.top_up();
            if self.reads.is_empty()
                && let Some(batch) = self.planned.take()
            {
                // Nothing of this stream is in the budget that the client could still take, so
                // waiting here holds up nobody else.
                self.share.set_waiting(true);
                let reserved = self.pool.reserve(batch.len()).await;
                self.share.set_waiting(false);
                let Some(reserved) = reserved else {
                    return Some(Err(stopping()));
                };
                self.start_read(batch, reserved);
                continue;
            }
            let planned = match (&mut self.plan, self.reads.front_mut()) {
                (Planning::Running(plan), Some(read)) => {
                    tokio::select! {
                        biased;
                        read = read => return Some(self.finish_read(read)),
                        planned = plan => planned,
                    }
                }
                (_, Some(read)) => {
                    let read = read.await;
                    return Some(self.finish_read(read));
                }
                (Planning::Running(plan), None) => plan.await,
                _ => return self.failure.take().map(Err),
            };
            match pool::finished(planned) {
                Ok((plan, Some(batch))) => {
                    self.plan = Planning::Idle(plan);
                    self.take_batch(batch);
                }
                Ok((_, None)) => self.plan = Planning::Done,
                Err(error) => self.fail(error),
            }
        }
    }

    /// Starts what can be started without waiting.
    fn top_up(&mut self) {
        if self.reads.len() >= self.batches_ahead_max {
            return;
        }
        if let Some(batch) = self.planned.take() {
            match self.pool.try_reserve_ahead(batch.len()) {
                Some(reserved) => self.start_read(batch, reserved),
                None => self.planned = Some(batch),
            }
        }
        if self.planned.is_some() || self.reads.len() >= self.batches_ahead_max {
            return;
        }
        self.plan = match std::mem::replace(&mut self.plan, Planning::Done) {
            Planning::Idle(mut plan) => Planning::Running(pool::start(move || {
                let batch = plan.next_batch()?;
                Ok((plan, batch))
            })),
            other => other,
        };
    }

    fn start_read(&mut self, batch: P::Batch, reserved: Reserved) {
        self.reads
            .push_back(pool::start(move || read(batch, reserved)));
    }

    fn finish_read(
        &mut self,
        outcome: Result<Result<Read>, tokio::task::JoinError>,
    ) -> Result<Part> {
        self.reads.pop_front();
        Ok(pool::finished(outcome)?.attach(&self.share))
    }

    /// A batch that the plan gave.
    fn take_batch(&mut self, batch: P::Batch) {
        match self.n_blocks_left.checked_sub(batch.n_blocks()) {
            Some(left) => {
                self.n_blocks_left = left;
                self.planned = Some(batch);
            }
            None => self.fail(Error::new(ErrorKind::Limit, "the CAR has too many blocks")),
        }
    }

    fn fail(&mut self, error: Error) {
        self.plan = Planning::Done;
        self.failure = Some(error);
    }
}
