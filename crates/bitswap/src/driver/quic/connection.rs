//! A connection over QUIC, as a muxer of its streams.
//!
//! In       a connection whose peer has proved who it is.
//! Out      its streams. One that is dropped before either side has closed it is reset.
//! Limits   what was written and did not arrive yet, within the bounds that are given: twice as
//!          much whenever as much has arrived. Who acknowledges nothing makes this node keep
//!          the least.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::future::BoxFuture;
use futures_util::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};

type Opening = BoxFuture<'static, Result<(quinn::SendStream, quinn::RecvStream), Ended>>;
type Ended = quinn::ConnectionError;

/// A connection.
pub(crate) struct Connection {
    connection: quinn::Connection,
    send_window: Arc<SendWindow>,
    inbound: Option<Opening>,
    outbound: Option<Opening>,
    closing: Option<BoxFuture<'static, Ended>>,
}

impl Connection {
    pub(super) fn new(connection: quinn::Connection, send_window: (u64, u64)) -> Self {
        Self {
            send_window: Arc::new(SendWindow {
                connection: connection.clone(),
                now: AtomicU64::new(send_window.0),
                max: send_window.1,
                n_written: AtomicU64::new(0),
                grows_at: AtomicU64::new(2 * send_window.0),
            }),
            connection,
            inbound: None,
            outbound: None,
            closing: None,
        }
    }

    fn stream(&self, (send, receive): (quinn::SendStream, quinn::RecvStream)) -> Stream {
        Stream {
            send,
            receive,
            send_window: Arc::clone(&self.send_window),
            is_finished: false,
            is_at_end: false,
        }
    }
}

impl StreamMuxer for Connection {
    type Substream = Stream;
    type Error = Ended;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        let accept = || {
            let connection = this.connection.clone();
            async move { connection.accept_bi().await }.boxed()
        };
        let opened = ready!(this.inbound.get_or_insert_with(accept).poll_unpin(cx));
        this.inbound = None;
        Poll::Ready(opened.map(|both| this.stream(both)))
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        let open = || {
            let connection = this.connection.clone();
            async move { connection.open_bi().await }.boxed()
        };
        let opened = ready!(this.outbound.get_or_insert_with(open).poll_unpin(cx));
        this.outbound = None;
        Poll::Ready(opened.map(|both| this.stream(both)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        let this = self.get_mut();
        let close = || {
            this.connection.close(0_u32.into(), &[]);
            let connection = this.connection.clone();
            async move { connection.closed().await }.boxed()
        };
        match ready!(this.closing.get_or_insert_with(close).poll_unpin(cx)) {
            Ended::LocallyClosed => Poll::Ready(Ok(())),
            ended => Poll::Ready(Err(ended)),
        }
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        Poll::Pending // An address never changes: there is no migration.
    }
}

/// How much of a connection may be written and not have arrived.
#[derive(Debug)]
struct SendWindow {
    connection: quinn::Connection,
    now: AtomicU64,
    max: u64,
    /// Bytes that were written, ever, and when it grows: as much must have arrived by then.
    n_written: AtomicU64,
    grows_at: AtomicU64,
}

impl SendWindow {
    fn wrote(&self, len: usize) {
        self.n_written.fetch_add(len as u64, Ordering::Relaxed);
    }

    /// Nothing more can be written: makes it larger, if enough has arrived. Whether it grew.
    fn has_grown(&self) -> bool {
        let now = self.now.load(Ordering::Relaxed);
        let n_written = self.n_written.load(Ordering::Relaxed);
        if now >= self.max || n_written < self.grows_at.load(Ordering::Relaxed) {
            return false;
        }
        let wanted = (2 * now).min(self.max);
        self.now.store(wanted, Ordering::Relaxed);
        // All but a window of it has arrived.
        self.grows_at
            .store(n_written + 2 * wanted, Ordering::Relaxed);
        self.connection.set_send_window(wanted);
        true
    }
}

/// A stream.
pub(crate) struct Stream {
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    send_window: Arc<SendWindow>,
    /// All was written.
    is_finished: bool,
    /// All was read: the peer has closed its side, or broken it off.
    is_at_end: bool,
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let is_asked = !into.is_empty();
        let read = ready!(AsyncRead::poll_read(Pin::new(&mut self.receive), cx, into));
        self.is_at_end |= is_asked && matches!(read, Ok(0) | Err(_));
        Poll::Ready(read)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let mut written = AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes);
        if written.is_pending() && self.send_window.has_grown() {
            written = AsyncWrite::poll_write(Pin::new(&mut self.send), cx, bytes);
        }
        if let Poll::Ready(Ok(len)) = &written {
            self.send_window.wrote(*len);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        AsyncWrite::poll_flush(Pin::new(&mut self.send), cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_finished {
            return Poll::Ready(Ok(()));
        }
        let closed = ready!(AsyncWrite::poll_close(Pin::new(&mut self.send), cx));
        self.is_finished = closed.is_ok();
        Poll::Ready(closed)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // By itself quinn would say that all was written. As yamux has it, that is true where the
        // peer has closed its side: what was written is still on its way.
        if !self.is_finished && !self.is_at_end {
            let _ = self.send.reset(0_u32.into());
        }
    }
}
