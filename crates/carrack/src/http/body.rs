//! The body of a response: bytes at hand, or parts as they are read.
//!
//! In       [`Bytes`], or a stream of them whose error cuts the response.
//! Out      [`Piece`]s for hyper, which tell the watch when they have left. A known length becomes
//!          Content-Length, else the body is chunked.
//! Limits   on HTTP/2 a frame is at most `Limits::h2_piece_len`; the bytes themselves are in the
//!          budget of whoever gives them.
//! Not here what the bytes are.
//!
//! An error that the body yields makes hyper end HTTP/1 without the final chunk and reset a stream
//! of HTTP/2; where there are no chunks, the socket is reset (`http::io`): a cut answer never looks
//! whole.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::task::{Context, Poll};

use bytes::{Buf, Bytes};
use futures_util::Stream;
use http::StatusCode;
use http_body::{Frame, SizeHint};

use crate::error::Error;
use crate::http::access_log::Entry;
use crate::http::accounts::count_up;
use crate::http::watch::{Generation, Share, Watch};

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

/// A part of a body on its way out. It is dropped when it is written, or given up.
#[derive(Debug)]
pub struct Piece {
    bytes: Bytes,
    /// Its body is under watch until then.
    _share: Option<Arc<Share>>,
    /// It is the last one: its request is over then.
    _guard: Option<Guard>,
}

/// One request's part in the node's accounts: dropped when its answer is written or given up.
#[derive(Debug)]
pub struct Guard {
    /// The number of requests being answered, if this one counts.
    active: Option<Arc<AtomicUsize>>,
    watch: Arc<Watch>,
    /// When its answer was given, if that is small.
    generation: Option<Generation>,
    is_head: bool,
    entry: Option<Box<Entry>>,
    bytes_sent: u64,
}

/// Whose places among the requests being answered are all taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    /// The node's.
    Node,
    /// Those of the client's address, or of its subnet.
    Client,
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

    /// Makes the body the end of a request's account. What has no watch of its own yet is small,
    /// and is watched as such.
    pub fn guard(&mut self, mut guard: Guard) {
        if self.watch.is_none() && !http_body::Body::is_end_stream(self) {
            guard.generation = Some(guard.watch.small_answered());
        }
        self.guard = Some(guard);
    }

    fn next_piece(&mut self) -> Option<Piece> {
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
        let bytes = current.split_to(current.len().min(self.piece_len));
        let share = self.watch.as_ref().map(|(watch, share)| {
            watch.moved(share);
            Arc::clone(share)
        });
        if let Some(guard) = &mut self.guard {
            guard.bytes_sent = guard.bytes_sent.saturating_add(bytes.len() as u64);
        }
        let is_last = http_body::Body::is_end_stream(self);
        Some(Piece {
            bytes,
            _share: share,
            _guard: if is_last { self.guard.take() } else { None },
        })
    }
}

impl Buf for Piece {
    fn remaining(&self) -> usize {
        self.bytes.len()
    }

    fn chunk(&self) -> &[u8] {
        &self.bytes
    }

    fn advance(&mut self, len: usize) {
        self.bytes.advance(len);
    }
}

impl http_body::Body for Body {
    type Data = Piece;
    type Error = Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Piece>, Error>>> {
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

impl Default for Body {
    fn default() -> Self {
        Self::empty()
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
    pub const fn new(watch: Arc<Watch>, is_head: bool, entry: Option<Box<Entry>>) -> Self {
        Self {
            active: None,
            watch,
            generation: None,
            is_head,
            entry,
            bytes_sent: 0,
        }
    }

    /// Takes one of `max` places among the requests being answered, and one of the client's.
    ///
    /// # Errors
    /// All are taken.
    pub fn enter(&mut self, active: &Arc<AtomicUsize>, max: usize) -> Result<(), Full> {
        let account = self.watch.account();
        let n_free = max.saturating_sub(active.load(Relaxed));
        if !account.begin_request(n_free) {
            return Err(Full::Client);
        }
        if !count_up(active, max) {
            account.end_request();
            return Err(Full::Node);
        }
        self.active = Some(Arc::clone(active));
        Ok(())
    }

    /// The connection's watch.
    #[must_use]
    pub const fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }

    /// Whether the request asks for a head alone.
    #[must_use]
    pub const fn is_head(&self) -> bool {
        self.is_head
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
            self.watch.account().end_request();
        }
        if let Some(generation) = self.generation {
            self.watch.small_left(generation);
        }
        self.watch.request_ended();
        if let Some(entry) = self.entry.take() {
            entry.finish(self.bytes_sent);
        }
    }
}
