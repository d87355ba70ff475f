//! CARs: the path is resolved and the first batch verified before the status is chosen.
//!
//! In       a parsed request for a CAR.
//! Out      200 with a CARv1, 304, or a refusal: 404, 409, 412, 429, 500, 501, 503.
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
use carrack_formats::dag::{Linking, linking};
use carrack_formats::walk::{Resolved, Scope, WalkError};
use http::StatusCode;
use tokio_util::task::AbortOnDropHandle;
use tracing::warn;

use super::backend::{Backend, Batch, Next, Plan, require_block};
use super::conditions::{self, Verdict};
use super::headers::{self, Target};
use super::pool::{self, Awaited, Pool, Reserved};
use super::request::CarOptions;
use super::service::Job;
use super::shares::Place;
use super::trailer::Trailer;
use super::walks::Counted;
use crate::error::{Error, ErrorKind, Result};
use crate::http::accounts::Account;
use crate::http::body::Body;
use crate::http::refusal::Refusal;
use crate::http::service::Answer;
use crate::http::watch::{Share, Watch};
use crate::store::car_stream::{CarRequest, walk_error};

/// Bytes announced ahead to sources elsewhere at the start of an answer, and at most. A window of
/// 64 MiB keeps eight reads of 8 MiB under way: at 30 ms and 100 MB/s a connection, 600 MB/s.
const WINDOW_LEN_FIRST: usize = 4 << 20;
const WINDOW_LEN_MAX: usize = 64 << 20;

/// Batches of what comes from elsewhere that are planned in one go: those of one long read.
const BATCHES_AT_ONCE: usize = 8;

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
    /// The first batch is not read yet: there was no room for it, or it lies elsewhere.
    Unread { first: P::Batch },
    /// The walk needs this block first, which lies elsewhere.
    Needs { cid: Cid, source: Option<u32> },
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
    let verdict = conditions::judge(request, &etag);
    let (resolved, plan, start, place) = begin(job, options, verdict)
        .await
        .map_err(|error| Refusal::from_error(&error))?;
    match verdict {
        Verdict::Holds => {}
        Verdict::Known => return Ok(super::service::not_modified(etag)),
        Verdict::Fails => return Err(Refusal::unmatched()),
    }
    let target = Target {
        terminus: &resolved.terminus,
        roots: &resolved.roots,
    };
    let fields = headers::success(request, &job.uri, target, etag);
    let body = match (plan, start) {
        (Some(plan), start) => {
            let (start, place) = first_read(job, start, place).await?;
            body(job, options, plan, start, place)
        }
        (None, _) => Body::empty(),
    };
    Ok(Answer {
        status: StatusCode::OK,
        headers: fields,
        body,
    })
}

/// What a path leads to, the plan of its CAR if it is sent, how that starts, and the answer's place
/// among those that need what a source elsewhere has.
type Begun<B> = (
    Resolved,
    Option<Counted<<B as Backend>::Plan>>,
    Start<<B as Backend>::Plan>,
    Option<Place>,
);

/// One visit to the blocking pool for all that a small CAR needs, if all of it lies here and it is
/// sent at all.
async fn begin<B: Backend>(
    job: &Job<B>,
    options: CarOptions,
    verdict: Verdict,
) -> Result<Begun<B>> {
    let backend = job.gateway.backend().clone();
    let resolved = job.resolve().await?;
    let request = CarRequest {
        root: job.request.root,
        resolved: resolved.clone(),
        scope: options.scope,
        range: options.entity_bytes,
        dups: options.dups,
    };
    let is_sent = verdict == Verdict::Holds;
    if !is_sent || job.request.head {
        let terminus = resolved.terminus;
        require_links(&terminus, options.scope)?;
        pool::run(move || match is_sent {
            true => backend.require_first_blocking(request),
            false => require_block(&backend, &terminus),
        })
        .await?;
        return Ok((resolved, None, Start::Resolved, None));
    }
    let walks = job.gateway.walks();
    let mut plan = walks.count(backend.plan(request), &job.watch);
    let mut place = None;
    loop {
        let (pool, watch) = (job.gateway.pool().clone(), Arc::clone(&job.watch));
        let here = backend.clone();
        let (visited, start) = pool::run(move || {
            let start = first_visit(&here, &mut plan, &pool, watch.account())?;
            Ok((plan, start))
        })
        .await?;
        plan = visited;
        let Start::Needs { cid, source } = start else {
            return Ok((resolved, Some(plan), start, place));
        };
        if place.is_none() {
            place = job.enter(source)?;
        }
        let block = backend.get(&cid).await?;
        plan.provide(&cid, block)?;
    }
}

fn first_visit<B: Backend>(
    backend: &B,
    plan: &mut Counted<B::Plan>,
    pool: &Pool,
    account: &Account,
) -> Result<Start<B::Plan>> {
    let first = match plan.next_batch()? {
        Next::Batch(first) => first,
        Next::Needs(cid) => {
            let source = backend.source_of(&cid);
            return Ok(Start::Needs { cid, source });
        }
        Next::End => return Ok(Start::Whole { frames: None }),
    };
    if first.is_elsewhere() {
        plan.issue();
        return Ok(Start::Unread { first });
    }
    let Some(reserved) = pool.try_reserve(first.len(), account) else {
        return Ok(Start::Unread { first });
    };
    let frames = read(first, reserved)?;
    Ok(match plan.next_batch()? {
        Next::Batch(next) => Start::Begun {
            frames,
            next: Some(next),
        },
        // Asked again, the plan names the block again.
        Next::Needs(_) => Start::Begun { frames, next: None },
        Next::End => Start::Whole {
            frames: Some(frames),
        },
    })
}

/// Whether what is below the block can be told, as far as its codec says it: see [`WalkError`].
fn require_links(terminus: &Cid, scope: Scope) -> Result<()> {
    let codec = terminus.codec();
    if scope != Scope::All || linking(codec) != Linking::Unknown {
        return Ok(());
    }
    Err(walk_error(WalkError::LinksUnknown {
        cid: Box::new(*terminus),
        codec,
        n_blocks: 1,
    }))
}

fn read(batch: impl Batch, reserved: Reserved) -> Result<Read> {
    let n_blocks = batch.n_blocks();
    Ok(Read {
        frames: batch.read()?,
        n_blocks,
        reserved,
    })
}

/// Waits for what lies elsewhere, then reads, verifies and frames.
async fn fetch_and_read(batch: impl Batch, awaited: Awaited) -> Result<Read> {
    let n_blocks = batch.n_blocks();
    let (frames, awaited) = batch.read_together(awaited).await?;
    Ok(Read {
        frames,
        n_blocks,
        reserved: awaited.came(),
    })
}

/// Waits for room if there was none, and for bytes from elsewhere.
async fn first_read<B: Backend>(
    job: &Job<B>,
    start: Start<B::Plan>,
    mut place: Option<Place>,
) -> Result<(Start<B::Plan>, Option<Place>), Refusal> {
    let Start::Unread { first } = start else {
        return Ok((start, place));
    };
    let source = first.source();
    if place.is_none() {
        let entered = job.enter(source);
        place = entered.map_err(|error| Refusal::from_error(&error))?;
    }
    let awaited = job.reserve(source, first.len()).await?;
    let frames = fetch_and_read(first, awaited).await;
    let frames = frames.map_err(|error| Refusal::from_error(&error))?;
    Ok((Start::Begun { frames, next: None }, place))
}

/// The body, once its first batch is verified.
fn body<B: Backend>(
    job: &Job<B>,
    options: CarOptions,
    plan: Counted<B::Plan>,
    start: Start<B::Plan>,
    place: Option<Place>,
) -> Body {
    let header = Bytes::from(plan.header());
    let pool = job.gateway.pool().clone();
    let limits = job.gateway.limits();
    let share = job.watch.share();
    let trailer = options
        .meta
        .then(|| Trailer::new(job.request.path(&job.uri), options));
    let mut stream = CarStream {
        backend: job.gateway.backend().clone(),
        pool,
        watch: Arc::clone(&job.watch),
        share: Arc::clone(&share),
        place,
        batches_ahead_max: limits.batches_ahead_max.max(1),
        n_blocks_left: limits.car_blocks_max,
        plan: Planning::Done,
        planned: VecDeque::new(),
        planned_len: 0,
        window_len: WINDOW_LEN_FIRST,
        is_elsewhere: false,
        fills: true,
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
            let frames = frames.map_or_else(Bytes::new, |read| read.attach().bytes);
            return job.watched(Body::pair(header, frames), share);
        }
        Start::Resolved | Start::Unread { .. } | Start::Needs { .. } => None,
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
        stream.ready.push_back(first.attach());
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
    fn attach(self) -> Part {
        Part {
            bytes: self.reserved.attach(self.frames),
            n_blocks: self.n_blocks,
        }
    }
}

/// Where the plan is.
enum Planning<P: Plan> {
    Idle(Counted<P>),
    /// On the blocking pool, or waiting for a block, with its outcome to come.
    Running(AbortOnDropHandle<Result<Planned<P>>>),
    /// It has ended or failed.
    Done,
}

/// Batches that were planned in one go, and why no more.
struct Planned<P: Plan> {
    plan: Counted<P>,
    batches: Vec<P::Batch>,
    then: Then,
}

enum Then {
    /// There is more to plan.
    More,
    /// The walk waits for this block, which lies elsewhere.
    Needs(Cid),
    End,
    Failed(Error),
}

/// Plans a batch of what is read here, or several of what comes from elsewhere. Blocks.
fn plan_some<P: Plan>(mut plan: Counted<P>) -> Planned<P> {
    let mut batches = Vec::new();
    let then = loop {
        match plan.next_batch() {
            Ok(Next::Batch(batch)) => {
                let is_elsewhere = batch.is_elsewhere();
                batches.push(batch);
                if !is_elsewhere || batches.len() >= BATCHES_AT_ONCE {
                    break Then::More;
                }
            }
            Ok(Next::Needs(cid)) => break Then::Needs(cid),
            Ok(Next::End) => break Then::End,
            Err(error) => break Then::Failed(error),
        }
    };
    Planned {
        plan,
        batches,
        then,
    }
}

/// The rest of a CAR: batches are planned one after the other, read side by side, sent in order.
struct CarStream<B: Backend, P: Plan> {
    backend: B,
    pool: Pool,
    watch: Arc<Watch>,
    share: Arc<Share>,
    /// Among the answers that need what a source elsewhere has.
    place: Option<Place>,
    batches_ahead_max: usize,
    n_blocks_left: u64,
    plan: Planning<P>,
    /// Batches that wait for room: one, or a window of those that come from elsewhere.
    planned: VecDeque<P::Batch>,
    /// Bytes of their frames.
    planned_len: usize,
    /// Bytes that are announced ahead to sources elsewhere: more with each batch that is sent.
    window_len: usize,
    /// The last batch that was planned comes from elsewhere.
    is_elsewhere: bool,
    /// The window is being filled: it is refilled when half of it is used, so that neighbours can
    /// be read at once.
    fills: bool,
    /// Reads in the order of the answer. At most `batches_ahead_max`.
    reads: VecDeque<AbortOnDropHandle<Result<Read>>>,
    /// What is read and comes before them.
    ready: VecDeque<Part>,
    /// Why the plan ended early. Told after everything that comes before it.
    failure: Option<Error>,
    trailer: Option<Trailer>,
}

impl<B: Backend, P: Plan> CarStream<B, P> {
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
                && let Some(batch) = self.next_planned()
            {
                // Nothing of this stream is in the budget that the client could still take, so
                // waiting here holds up nobody else.
                self.share.set_waiting(true);
                let (source, len) = (batch.source(), batch.len());
                let account = self.watch.account();
                let awaited = self.pool.reserve_from(source, len, account).await;
                self.share.set_waiting(false);
                let Some(awaited) = awaited else {
                    return Some(Err(stopping()));
                };
                self.start_read(batch, awaited);
                continue;
            }
            let planned = match (&mut self.plan, self.reads.front_mut()) {
                (Planning::Running(plan), _) if plan.is_finished() => plan.await,
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
                Ok(planned) => self.take_planned(planned),
                Err(error) => self.fail(error),
            }
        }
    }

    fn take_planned(&mut self, planned: Planned<P>) {
        let Planned {
            mut plan,
            batches,
            then,
        } = planned;
        self.plan = Planning::Done;
        for batch in batches {
            self.take_batch(batch);
        }
        if self.failure.is_some() {
            return;
        }
        let is_full = self.planned_len >= self.window_len;
        if is_full {
            self.fills = false;
        }
        if is_full || matches!(then, Then::Needs(_) | Then::End) {
            plan.issue(); // What was announced waits for nothing more.
        }
        match then {
            Then::More => self.plan = Planning::Idle(plan),
            Then::Needs(cid) => self.provide(plan, cid),
            Then::End => {}
            Then::Failed(error) => self.fail(error),
        }
    }

    /// Gets a block that the walk waits for, then goes on planning.
    fn provide(&mut self, mut plan: Counted<P>, cid: Cid) {
        let backend = self.backend.clone();
        let task = tokio::spawn(async move {
            let block = backend.get(&cid).await?;
            pool::run(move || {
                plan.provide(&cid, block)?;
                Ok(plan_some(plan))
            })
            .await
        });
        self.plan = Planning::Running(AbortOnDropHandle::new(task));
    }

    /// Starts what can be started without waiting.
    fn top_up(&mut self) {
        while self.reads.len() < self.batches_ahead_max
            && let Some(batch) = self.planned.front()
            && let Some(awaited) = self.reserve_ahead(batch)
            && let Some(batch) = self.next_planned()
        {
            self.start_read(batch, awaited);
        }
        if !self.plans_on() {
            return;
        }
        self.plan = match std::mem::replace(&mut self.plan, Planning::Done) {
            Planning::Idle(plan) => {
                let job = pool::start(move || Ok(plan_some(plan)));
                Planning::Running(AbortOnDropHandle::new(job))
            }
            other => other,
        };
    }

    fn reserve_ahead(&self, batch: &P::Batch) -> Option<Awaited> {
        let (account, n_ahead) = (self.watch.account(), self.reads.len());
        self.pool
            .try_reserve_ahead(batch.source(), batch.len(), n_ahead, account)
    }

    /// Whether another batch is to be planned now: one ahead of what is read here, a window of what
    /// comes from elsewhere.
    fn plans_on(&self) -> bool {
        if self.is_elsewhere {
            return self.fills;
        }
        self.planned.is_empty() && self.reads.len() < self.batches_ahead_max
    }

    fn next_planned(&mut self) -> Option<P::Batch> {
        let batch = self.planned.pop_front()?;
        self.planned_len -= batch.len().min(self.planned_len);
        if batch.is_elsewhere() {
            self.window_len = (self.window_len + batch.len()).min(WINDOW_LEN_MAX);
        }
        self.fills |= self.planned_len <= self.window_len / 2;
        Some(batch)
    }

    fn start_read(&mut self, batch: P::Batch, awaited: Awaited) {
        if self.place.is_none()
            && let Some(source) = batch.source()
        {
            self.place = Some(self.pool.shares().enter_begun(source));
        }
        let read = tokio::spawn(fetch_and_read(batch, awaited));
        self.reads.push_back(AbortOnDropHandle::new(read));
    }

    fn finish_read(
        &mut self,
        outcome: Result<Result<Read>, tokio::task::JoinError>,
    ) -> Result<Part> {
        self.reads.pop_front();
        Ok(pool::finished(outcome)?.attach())
    }

    /// A batch that the plan gave.
    fn take_batch(&mut self, batch: P::Batch) {
        match self.n_blocks_left.checked_sub(batch.n_blocks()) {
            Some(left) => {
                self.n_blocks_left = left;
                self.planned_len += batch.len();
                self.is_elsewhere = batch.is_elsewhere();
                self.planned.push_back(batch);
            }
            None => {
                let what = "the CAR has too many blocks";
                self.fail(Error::new(ErrorKind::TooLarge, what));
            }
        }
    }

    fn fail(&mut self, error: Error) {
        self.plan = Planning::Done;
        self.failure = Some(error);
    }
}
