//! A socket that tells the watch of its connection what moves, and whose end tells how it ended.
//!
//! In       a TCP stream. Out: the same stream. Not here any timeout (`watch`).
//!
//! A connection that is not shut down in order is reset when it is closed, whatever closes it: an
//! error, a cut, a panic, the end of the process. An answer without a length and without chunks
//! (HTTP/1.0) ends with the connection, and a cut one must not look whole.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tracing::debug;

use super::watch::Watch;

/// A TCP stream under watch.
#[derive(Debug)]
pub struct Socket {
    stream: TcpStream,
    watch: Arc<Watch>,
}

impl Socket {
    /// `stream`, of which `watch` hears.
    #[must_use]
    pub fn new(stream: TcpStream, watch: Arc<Watch>) -> Self {
        if let Err(error) = stream.set_zero_linger() {
            debug!(%error, "no SO_LINGER");
        }
        Self { stream, watch }
    }

    /// The stream, watched no longer, and closed in order: whoever has it has end marks of its own.
    #[must_use]
    pub fn into_stream(self) -> TcpStream {
        self.close_in_order();
        self.stream
    }

    /// What has been written is to arrive although the socket is closed.
    fn close_in_order(&self) {
        #[expect(
            deprecated,
            reason = "a time to linger would block; none is what is asked for"
        )]
        let set = self.stream.set_linger(None);
        if let Err(error) = set {
            debug!(%error, "no SO_LINGER");
        }
    }

    fn note(&self, outcome: &Poll<io::Result<usize>>) {
        match outcome {
            Poll::Ready(Ok(len)) => self.watch.wrote(*len),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => self.watch.write_blocked(),
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let outcome = Pin::new(&mut this.stream).poll_read(cx, buffer);
        if outcome.is_ready() {
            this.watch
                .read(buffer.filled().len().saturating_sub(before));
        }
        outcome
    }
}

impl AsyncWrite for Socket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write(cx, bytes);
        this.note(&outcome);
        outcome
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let outcome = Pin::new(&mut this.stream).poll_write_vectored(cx, slices);
        this.note(&outcome);
        outcome
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.close_in_order();
        Pin::new(&mut this.stream).poll_shutdown(cx)
    }
}
