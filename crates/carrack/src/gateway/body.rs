//! The body of a response: bytes at hand, or parts as they are read.
//!
//! In       [`Bytes`], or a stream of them whose error cuts the response.
//! Out      frames for hyper. A known length becomes Content-Length, else the body is chunked.
//! Limits   on HTTP/2 a frame is at most `Limits::h2_piece_len`; the bytes themselves are in the
//!          budget of `pool`.
//! Not here what the bytes are (`raw`, `car`).
//!
//! An error that the body yields makes hyper end HTTP/1 without the final chunk and reset a stream
//! of HTTP/2: a cut answer never looks whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::Stream;
use http::StatusCode;
use http_body::{Frame, SizeHint};

use crate::error::Error;
use crate::node::access_log::Entry;
use crate::node::watch::{Share, Watch};

/// Parts of a body that are read while it is sent.
pub(crate) type Parts = Pin<Box<dyn Stream<Item = Result<Bytes, Error>> + Send>>;

/// The body of a response, and the end of the request's account.
pub struct Body {
    source: Source,
    /// Largest frame, in bytes.
    piece_len: usize,
    watch: Option<(Arc<Watch>, Arc<Share>)>,
    guard: Option<Guard>,
}

enum Source {
    /// Two parts, so that the header of a CAR need not be copied in front of its frames.
    Whole { current: Bytes, next: Bytes },
    /// `current` comes from `parts`, of which the rest follows.
    Parts { current: Bytes, parts: Parts },
}

/// One request's part in the node's accounts: dropped when its answer is handed over or given up.
#[derive(Debug)]
pub struct Guard {
    /// The number of requests being answered, if this one counts.
    active: Option<Arc<AtomicUsize>>,
    watch: Option<Arc<Watch>>,
    entry: Option<Box<Entry>>,
    bytes_sent: u64,
}

impl Body {
    /// No bytes.
    #[must_use]
    pub const fn empty() -> Self {
        Self::whole(Bytes::new())
    }

    /// Bytes at hand.
    #[must_use]
    pub const fn whole(bytes: Bytes) -> Self {
        Self::pair(bytes, Bytes::new())
    }

    /// `first`, then `second`.
    #[must_use]
    pub const fn pair(first: Bytes, second: Bytes) -> Self {
        Self::new(Source::Whole {
            current: first,
            next: second,
        })
    }

    /// Parts that are read while the body is sent.
    #[must_use]
    pub(crate) const fn parts(parts: Parts) -> Self {
        Self::new(Source::Parts {
            current: Bytes::new(),
            parts,
        })
    }

    const fn new(source: Source) -> Self {
        Self {
            source,
            piece_len: usize::MAX,
            watch: None,
            guard: None,
        }
    }

    /// Puts the body under watch and cuts it into pieces of at most `piece_len` bytes.
    #[must_use]
    pub fn watched(mut self, watch: Arc<Watch>, share: Arc<Share>, piece_len: usize) -> Self {
        self.watch = Some((watch, share));
        self.piece_len = piece_len.max(1);
        self
    }

    /// Makes the body the end of a request's account.
    pub(crate) fn guard(&mut self, guard: Guard) {
        self.guard = Some(guard);
    }

    fn next_piece(&mut self) -> Option<Bytes> {
        let current = match &mut self.source {
            Source::Whole { current, next } => {
                if current.is_empty() {
                    std::mem::swap(current, next);
                }
                current
            }
            Source::Parts { current, .. } => current,
        };
        if current.is_empty() {
            return None;
        }
        let piece = current.split_to(current.len().min(self.piece_len));
        if let Some((watch, share)) = &self.watch {
            watch.moved(share);
        }
        if let Some(guard) = &mut self.guard {
            guard.bytes_sent = guard.bytes_sent.saturating_add(piece.len() as u64);
        }
        Some(piece)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = self.get_mut();
        loop {
            if let Some(piece) = this.next_piece() {
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            let Source::Parts { current, parts } = &mut this.source else {
                return Poll::Ready(None);
            };
            match std::task::ready!(parts.as_mut().poll_next(cx)) {
                Some(Ok(bytes)) => *current = bytes,
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Whole { current, next } => current.is_empty() && next.is_empty(),
            Source::Parts { .. } => false,
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Whole { current, next } => {
                SizeHint::with_exact((current.len() as u64).saturating_add(next.len() as u64))
            }
            Source::Parts { .. } => SizeHint::default(),
        }
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let hint = http_body::Body::size_hint(self);
        f.debug_struct("Body")
            .field("len", &hint.exact())
            .finish_non_exhaustive()
    }
}

impl Guard {
    /// An account that counts nothing yet.
    #[must_use]
    pub const fn new(watch: Option<Arc<Watch>>, entry: Option<Box<Entry>>) -> Self {
        Self {
            active: None,
            watch,
            entry,
            bytes_sent: 0,
        }
    }

    /// Takes one of `max` places among the requests being answered; `false`: all are taken.
    pub fn enter(&mut self, active: &Arc<AtomicUsize>, max: usize) -> bool {
        if active.fetch_add(1, Relaxed) >= max {
            active.fetch_sub(1, Relaxed);
            return false;
        }
        self.active = Some(Arc::clone(active));
        true
    }

    /// The answer's status, for the access log.
    pub fn answered(&mut self, status: StatusCode) {
        if let Some(entry) = &mut self.entry {
            entry.status = status.as_u16();
        }
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(active) = &self.active {
            active.fetch_sub(1, Relaxed);
        }
        if let Some(watch) = &self.watch {
            watch.request_ended();
        }
        if let Some(entry) = self.entry.take() {
            entry.finish(self.bytes_sent);
        }
    }
}
