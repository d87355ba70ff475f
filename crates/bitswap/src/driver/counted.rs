//! What comes over a connection of yamux, counted until it is read.
//!
//! In       the connection below yamux; its streams above.
//! Out      the same. While more may not come, the connection is not read.
//! Limits   those of `windows`. A frame is no longer than the window of a stream.
//! Not here what frames say to yamux.
//!
//! yamux reads the head of a frame and then its body, never both at once, so that what comes next
//! is known before it comes.
//!
//! Spec: <https://github.com/hashicorp/yamux/blob/master/spec.md>

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_util::{AsyncRead, AsyncWrite, FutureExt};
use tokio::time::Sleep;

use super::windows::{Entry, ROOM_PAUSE, Unread, YAMUX_STREAM_WINDOW};

const HEAD_LEN: usize = 12;
/// Types of frames that have a stream.
const DATA: u8 = 0;
const WINDOW_UPDATE: u8 = 1;
/// The flag of a frame that opens a stream.
const SYN: u16 = 1;

/// Where in a frame the next byte lies.
#[derive(Debug)]
enum Next {
    Head {
        head: [u8; HEAD_LEN],
        len: usize,
    },
    /// A body that may not come yet.
    Claimed {
        stream: u32,
        len: usize,
    },
    Body {
        missing: usize,
    },
}

const HEAD: Next = Next::Head {
    head: [0; HEAD_LEN],
    len: 0,
};

/// The connection below yamux.
pub(super) struct Counted<C> {
    socket: C,
    unread: Arc<Unread>,
    next: Next,
    /// Until it is asked for room again.
    pause: Option<Pin<Box<Sleep>>>,
}

impl<C> Counted<C> {
    pub(super) const fn new(socket: C, unread: Arc<Unread>) -> Self {
        Self {
            socket,
            unread,
            next: HEAD,
            pause: None,
        }
    }

    /// What follows a head.
    #[expect(
        clippy::big_endian_bytes,
        reason = "the order of bytes in a head of yamux"
    )]
    fn after(&self, head: [u8; HEAD_LEN]) -> io::Result<Next> {
        let [_, kind, f0, f1, s0, s1, s2, s3, l0, l1, l2, l3] = head;
        let stream = u32::from_be_bytes([s0, s1, s2, s3]);
        let len = u32::from_be_bytes([l0, l1, l2, l3]) as usize;
        let opens = u16::from_be_bytes([f0, f1]) & SYN != 0;
        if opens && matches!(kind, DATA | WINDOW_UPDATE) {
            self.unread.open(stream);
        }
        if kind != DATA || len == 0 {
            return Ok(HEAD);
        }
        if len > YAMUX_STREAM_WINDOW {
            let why = "a frame of yamux is longer than a window";
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        Ok(Next::Claimed { stream, len })
    }

    /// Waits until a body may come.
    fn poll_room(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while let Next::Claimed { stream, len } = self.next {
            if let Some(pause) = &mut self.pause {
                ready!(pause.poll_unpin(cx));
                self.pause = None;
            }
            match self.unread.enter(stream, len, cx.waker()) {
                Entry::Free => self.next = Next::Body { missing: len },
                Entry::Full => return Poll::Pending,
                Entry::NoRoom => self.pause = Some(Box::pin(tokio::time::sleep(ROOM_PAUSE))),
            }
        }
        Poll::Ready(())
    }
}

impl<C: AsyncRead + Unpin> AsyncRead for Counted<C> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.poll_room(cx));
        let wanted = match &this.next {
            Next::Head { len, .. } => HEAD_LEN - len,
            Next::Body { missing } => *missing,
            Next::Claimed { .. } => 0, // There is room by now.
        };
        let wanted = wanted.min(into.len());
        let into = into.get_mut(..wanted).unwrap_or_default();
        let n = ready!(Pin::new(&mut this.socket).poll_read(cx, into))?;
        match &mut this.next {
            Next::Head { head, len } => {
                let read = into.get(..n).unwrap_or_default();
                if let Some(part) = head.get_mut(*len..*len + read.len()) {
                    part.copy_from_slice(read);
                }
                *len += n;
                if *len == HEAD_LEN {
                    let head = *head;
                    this.next = this.after(head)?;
                }
            }
            Next::Body { missing } => {
                *missing -= n;
                if *missing == 0 {
                    this.next = HEAD;
                }
            }
            Next::Claimed { .. } => {}
        }
        Poll::Ready(Ok(n))
    }
}

impl<C: AsyncWrite + Unpin> AsyncWrite for Counted<C> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_close(cx)
    }
}

/// A stream.
pub(crate) struct Stream {
    stream: yamux::Stream,
    unread: Arc<Unread>,
}

impl Stream {
    pub(super) fn new(stream: yamux::Stream, unread: Arc<Unread>) -> Self {
        unread.open(stream.id().val());
        Self { stream, unread }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        let n = ready!(Pin::new(&mut self.stream).poll_read(cx, into))?;
        self.unread.read(self.stream.id().val(), n);
        Poll::Ready(Ok(n))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_close(cx)
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.unread.close(self.stream.id().val());
    }
}
