//! The service: routes, admission, and what all answers have in common.
//!
//! In       request heads; bodies of requests are never read.
//! Out      responses. What is in memory is answered at once, without a task or an await.
//! Limits   `Limits::requests_max` requests for content at once, and those of a client's address
//!          (`http::accounts`), then 429; `Limits::answer_timeout` until an answer begins, then
//!          504.
//! Not here sockets (`http::listener`); what is served below `/ipfs/` (`raw`, `car`).

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::walk::Resolved;
use http::header::{ALLOW, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Method, StatusCode, Uri, Version};
use tokio::net::TcpListener;

use super::backend::Backend;
use super::headers;
use super::pool::{self, Awaited, Pool, Reserved};
use super::request::{self, Format, GatewayRequest};
use super::shares::Place;
use super::walks::Walks;
use super::{car, raw};
use crate::error;
use crate::http::body::{Body, Guard};
use crate::http::limits::Limits;
use crate::http::readiness::Readiness;
use crate::http::refusal::Refusal;
use crate::http::service::{Answer, Reply, Service, respond};
use crate::http::watch::{Share, Watch};
use crate::http::{ServeOptions, Shutdown};

/// Answers requests from a store. Clones share everything.
#[derive(Debug)]
pub struct Gateway<B> {
    inner: Arc<Inner<B>>,
}

#[derive(Debug)]
struct Inner<B> {
    backend: B,
    limits: Limits,
    pool: Pool,
    walks: Walks,
    requests_active: Arc<AtomicUsize>,
    readiness: Readiness,
}

impl<B> Clone for Gateway<B> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

/// One request for content and all that answering it takes.
pub(crate) struct Job<B> {
    pub(crate) gateway: Gateway<B>,
    pub(crate) request: GatewayRequest,
    pub(crate) uri: Uri,
    pub(crate) watch: Arc<Watch>,
    http2: bool,
}

impl<B: Backend> Gateway<B> {
    /// A gateway to `backend`.
    #[must_use]
    pub fn new(backend: B, limits: Limits, readiness: Readiness) -> Self {
        let pool = Pool::new(limits.bytes_in_flight_max, limits.requests_max);
        let walks = Walks::new(limits.walk_bytes_max);
        Self {
            inner: Arc::new(Inner {
                backend,
                limits,
                pool,
                walks,
                requests_active: Arc::default(),
                readiness,
            }),
        }
    }

    /// Bounds in force.
    #[must_use]
    pub fn limits(&self) -> &Limits {
        &self.inner.limits
    }

    pub(crate) fn backend(&self) -> &B {
        &self.inner.backend
    }

    pub(crate) fn pool(&self) -> &Pool {
        &self.inner.pool
    }

    pub(crate) fn walks(&self) -> &Walks {
        &self.inner.walks
    }

    /// Requests for content: admitted, parsed, answered at once if that takes no disk.
    fn content(&self, parts: &Parts, mut guard: Guard) -> Reply {
        let limits = self.limits();
        if let Err(full) = guard.enter(&self.inner.requests_active, limits.requests_max) {
            return Reply::now(self.refuse(&Refusal::too_many(full)), guard);
        }
        let parsed = request::parse(&parts.method, &parts.uri, &parts.headers, limits);
        let request = match parsed {
            Ok(request) => request,
            Err(refusal) => return Reply::now(self.refuse(&refusal), guard),
        };
        let job = Job {
            gateway: self.clone(),
            request,
            uri: parts.uri.clone(),
            watch: Arc::clone(guard.watch()),
            http2: parts.version == Version::HTTP_2,
        };
        let format = job.request.format;
        match format {
            Format::Raw | Format::Json => match raw::try_answer(&job) {
                Some(outcome) => Reply::now(self.settle(outcome), guard),
                None => Reply::Later(Box::pin(async move {
                    let outcome = job.in_time(raw::answer(&job)).await;
                    respond(job.gateway.settle(outcome), guard)
                })),
            },
            Format::Car(options) => match job.require_root() {
                Err(refusal) => Reply::now(self.refuse(&refusal), guard),
                Ok(()) => Reply::Later(Box::pin(async move {
                    let outcome = job.in_time(car::answer(&job, options)).await;
                    respond(job.gateway.settle(outcome), guard)
                })),
            },
        }
    }

    /// Everything but content.
    fn other(&self, parts: &Parts, is_content: bool) -> Answer {
        let path = parts.uri.path();
        let known = ["/healthz", "/readyz", "/.well-known/libp2p/protocols"];
        if !is_content && !known.contains(&path) {
            return self.refuse(&Refusal::new(
                StatusCode::NOT_FOUND,
                "there is nothing here: content lies below /ipfs/",
            ));
        }
        match parts.method {
            Method::OPTIONS => {
                let mut fields = HeaderMap::with_capacity(8);
                headers::cors(&mut fields);
                fields.insert(ALLOW, METHODS);
                Answer::new(StatusCode::OK, fields, Bytes::new())
            }
            Method::GET | Method::HEAD => self.node_route(path),
            _ => {
                let sentence = "only GET, HEAD and OPTIONS are answered here";
                let refusal = Refusal::new(StatusCode::METHOD_NOT_ALLOWED, sentence);
                let mut answer = self.refuse(&refusal);
                answer.headers.insert(ALLOW, METHODS);
                answer
            }
        }
    }

    fn node_route(&self, path: &str) -> Answer {
        let text = HeaderValue::from_static("text/plain; charset=utf-8");
        let (status, media_type, body) = match path {
            "/readyz" if !self.inner.readiness.get() => {
                let sentence = Bytes::from_static(b"not ready\n");
                (StatusCode::SERVICE_UNAVAILABLE, text, sentence)
            }
            "/readyz" => {
                // One source or part that is down leaves the others: the node is of use.
                let mut lines = "ready\n".to_owned();
                let parts = self.inner.readiness.troubles();
                for trouble in parts.into_iter().chain(self.inner.backend.troubles()) {
                    lines.push_str("degraded: ");
                    lines.push_str(&trouble);
                    lines.push('\n');
                }
                (StatusCode::OK, text, Bytes::from(lines))
            }
            "/healthz" => (StatusCode::OK, text, Bytes::from_static(b"ok\n")),
            _ => (
                StatusCode::OK,
                HeaderValue::from_static("application/json"),
                Bytes::from_static(b"{\"protocols\":{\"/ipfs/gateway\":{\"path\":\"/\"}}}\n"),
            ),
        };
        let mut fields = HeaderMap::with_capacity(4);
        fields.insert(CONTENT_TYPE, media_type);
        fields.insert(
            http::header::CACHE_CONTROL,
            HeaderValue::from_static("no-store"),
        );
        Answer::new(status, fields, body)
    }

    fn settle(&self, outcome: Result<Answer, Refusal>) -> Answer {
        outcome.unwrap_or_else(|refusal| self.refuse(&refusal))
    }
}

impl<B: Backend> Service for Gateway<B> {
    fn call(&self, request: &Parts, guard: Guard) -> Reply {
        let is_content = request.uri.path().starts_with("/ipfs/");
        if is_content && matches!(request.method, Method::GET | Method::HEAD) {
            return self.content(request, guard);
        }
        Reply::now(self.other(request, is_content), guard)
    }

    fn refuse(&self, refusal: &Refusal) -> Answer {
        let fields = headers::refusal(refusal, self.limits().retry_after_s);
        let body = Bytes::from(format!("{}\n", refusal.sentence));
        Answer::new(refusal.status, fields, body)
    }

    fn is_pressed(&self) -> bool {
        self.pool().is_pressed()
    }
}

/// Serves `backend` on `listener` until `shutdown` says when to stop; as [`http::serve`].
///
/// # Errors
/// Those of [`http::serve`].
///
/// [`http::serve`]: crate::http::serve
pub async fn serve<B: Backend, S, C>(
    backend: B,
    options: ServeOptions,
    listener: TcpListener,
    shutdown: Shutdown<S, C>,
) -> error::Result<()>
where
    S: Future<Output = ()> + Send,
    C: Future<Output = ()> + Send,
{
    let gateway = Gateway::new(backend, options.limits.clone(), options.readiness.clone());
    crate::http::serve(gateway, options, listener, shutdown).await
}

const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, OPTIONS");

/// The client has what it asks for.
pub(crate) fn not_modified(etag: HeaderValue) -> Answer {
    let fields = headers::not_modified(etag);
    Answer::new(StatusCode::NOT_MODIFIED, fields, Bytes::new())
}

/// Bodies up to this length are watched together with others of their time, and not by a share of
/// their own.
const SMALL_LEN_MAX: usize = 16 * 1024;

impl<B: Backend> Job<B> {
    /// Whether the root is here, by one look-up in the index.
    pub(crate) fn require_root(&self) -> Result<(), Refusal> {
        match self.gateway.backend().holds(&self.request.root) {
            Ok(true) => Ok(()),
            Ok(false) => Err(self.absent(&self.request.root)),
            Err(error) => Err(Refusal::from_error(&error)),
        }
    }

    /// 404, or 412 if the client asked for what is at hand only. This node never looks elsewhere,
    /// so that the two differ in the status alone.
    pub(crate) fn absent(&self, cid: &Cid) -> Refusal {
        let status = if self.request.only_if_cached {
            StatusCode::PRECONDITION_FAILED
        } else {
            StatusCode::NOT_FOUND
        };
        Refusal::new(status, format!("block {cid} is not here"))
    }

    /// `refusal`, unless the block turned out not to be here.
    pub(crate) fn absent_or(&self, refusal: Refusal) -> Refusal {
        if refusal.status == StatusCode::NOT_FOUND && self.request.only_if_cached {
            return Refusal::new(StatusCode::PRECONDITION_FAILED, refusal.sentence);
        }
        refusal
    }

    /// What `answer` comes to, or 504 if that takes too long: a request always ends.
    async fn in_time(
        &self,
        answer: impl Future<Output = Result<Answer, Refusal>>,
    ) -> Result<Answer, Refusal> {
        let limit = self.gateway.limits().answer_timeout;
        let outcome = tokio::time::timeout(limit, answer).await;
        outcome.unwrap_or_else(|_| Err(Refusal::late()))
    }

    /// Room for `len` bytes if there is some now.
    pub(crate) fn try_reserve(&self, len: usize) -> Option<Reserved> {
        self.gateway.pool().try_reserve(len, self.watch.account())
    }

    /// Counts this request among those that need what `source` has.
    pub(crate) fn enter(&self, source: Option<u32>) -> error::Result<Option<Place>> {
        let shares = self.gateway.pool().shares();
        source.map(|source| shares.enter(source)).transpose()
    }

    /// Follows the path, among those that need what the root's source has.
    pub(crate) async fn resolve(&self) -> error::Result<Resolved> {
        let (root, segments) = (self.request.root, self.request.segments.clone());
        if segments.is_empty() {
            return Ok(Resolved::root(root));
        }
        let backend = self.gateway.backend().clone();
        let _place = if backend.has_sources() {
            let looked_up = backend.clone();
            let source = pool::run(move || Ok(looked_up.source_of(&root))).await?;
            self.enter(source)?
        } else {
            None
        };
        backend.resolve(root, segments).await
    }

    /// Room for `len` bytes that lie here or in `source`, or 503.
    pub(crate) async fn reserve(
        &self,
        source: Option<u32>,
        len: usize,
    ) -> Result<Awaited, Refusal> {
        let room_timeout = self.gateway.limits().room_timeout;
        let (pool, account) = (self.gateway.pool(), self.watch.account());
        let reserved = pool
            .reserve_within(source, len, account, room_timeout)
            .await;
        reserved.ok_or_else(Refusal::no_room)
    }

    /// An answer with `bytes`, which give their room back when the client has taken them.
    pub(crate) fn with_bytes(
        &self,
        status: StatusCode,
        headers: HeaderMap,
        bytes: Bytes,
        reserved: Reserved,
    ) -> Answer {
        let is_small = bytes.len() <= SMALL_LEN_MAX;
        let body = Body::whole(reserved.attach(bytes));
        let body = match is_small {
            true => body,
            false => self.watched(body, self.watch.share()),
        };
        Answer {
            status,
            headers,
            body,
        }
    }

    /// Puts a body under watch, in pieces if a stream of HTTP/2 takes it.
    pub(crate) fn watched(&self, body: Body, share: Arc<Share>) -> Body {
        let piece_len = if self.http2 {
            self.gateway.limits().h2_piece_len
        } else {
            usize::MAX
        };
        body.watched(Arc::clone(&self.watch), share, piece_len)
    }
}
