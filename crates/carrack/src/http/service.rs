//! What answers the requests of a listener.
//!
//! In       the head of a request, and the [`Guard`] that is its account; no body is ever read.
//! Out      a [`Reply`]: an [`Answer`] now, or after a wait.
//! Not here sockets (`listener`); what requests mean (services above).

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HeaderMap};
use http::request::Parts;
use http::{Response, StatusCode};

use super::body::{Body, Guard};
use super::refusal::Refusal;

/// What answers requests. Clones share everything.
pub trait Service: Clone + Send + Sync + 'static {
    /// Answers one request.
    fn call(&self, request: &Parts, guard: Guard) -> Reply;

    /// The answer that says `refusal`, with the headers that all answers have here.
    fn refuse(&self, refusal: &Refusal) -> Answer;

    /// Whether others wait for memory: clients that take nothing are given up sooner then.
    fn is_pressed(&self) -> bool;
}

/// What is said about one request before its headers are final.
#[derive(Debug)]
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// Its headers, but for what hyper adds.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Body,
}

/// A response now, or after a visit to the disk.
pub enum Reply {
    /// At hand; taken when polled.
    Now(Option<Box<Response<Body>>>),
    /// To come.
    Later(Pin<Box<dyn Future<Output = Response<Body>> + Send>>),
}

impl Reply {
    /// An answer that is at hand.
    #[must_use]
    pub fn now(answer: Answer, guard: Guard) -> Self {
        Self::Now(Some(Box::new(respond(answer, guard))))
    }
}

impl fmt::Debug for Reply {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Now(_) => "Now",
            Self::Later(_) => "Later",
        })
    }
}

impl Future for Reply {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Now(response) => match response.take() {
                Some(response) => Poll::Ready(Ok(*response)),
                None => Poll::Pending,
            },
            Self::Later(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}

impl Answer {
    /// An answer with bytes at hand.
    #[must_use]
    pub const fn new(status: StatusCode, headers: HeaderMap, body: Bytes) -> Self {
        Self {
            status,
            headers,
            body: Body::whole(body),
        }
    }

    /// Leaves the head as it is: HTTP/2 would send the body even to HEAD.
    fn without_body(&mut self) {
        let body = std::mem::take(&mut self.body);
        if let Some(len) = http_body::Body::size_hint(&body)
            .exact()
            .filter(|len| *len > 0)
        {
            self.headers.entry(CONTENT_LENGTH).or_insert(len.into());
        }
    }
}

/// The response, which ends the account of its request when its body is gone.
pub fn respond(mut answer: Answer, mut guard: Guard) -> Response<Body> {
    guard.answered(answer.status);
    if guard.is_head() {
        answer.without_body();
    }
    answer.body.guard(guard);
    let mut response = Response::new(answer.body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    response
}
