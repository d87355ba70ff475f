//! Yamux with bounds of our own: libp2p's own upgrade has none for a connection's windows.
//!
//! In       an encrypted connection; whose shares it counts for.
//! Out      its streams.
//! Limits   [`STREAMS_MAX`] streams; what a peer sends and nobody reads (`windows`).
//! Not here how it is counted (`counted`).
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/yamux/README.md>

use std::collections::VecDeque;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use futures_util::{AsyncRead, AsyncWrite, FutureExt};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use tokio::time::Sleep;

use super::counted::{Counted, Stream};
use super::windows::{STREAMS_MAX, UNREAD_TIME, Unread, UnreadRoom, YAMUX_STREAM_WINDOW};
use crate::budget::Account;

/// What windows allow at most; `windows` allows less.
const RECEIVE_WINDOW: usize = STREAMS_MAX * YAMUX_STREAM_WINDOW;
/// Bytes in one data frame, which is encrypted and written by itself. Twice as much saves half of
/// the writes and no CPU time that could be measured; less lets other streams in sooner.
const FRAME_LEN: usize = 32 << 10;
/// Streams that the peer opened and that nobody has taken yet.
const INBOUND_MAX: usize = STREAMS_MAX;

/// The upgrade.
#[derive(Debug, Clone)]
pub(super) struct Yamux(yamux::Config);

impl Default for Yamux {
    fn default() -> Self {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS_MAX);
        config.set_max_connection_receive_window(Some(RECEIVE_WINDOW));
        config.set_split_send_size(FRAME_LEN);
        Self(config)
    }
}

impl UpgradeInfo for Yamux {
    type Info = &'static str;
    type InfoIter = std::iter::Once<Self::Info>;

    fn protocol_info(&self) -> Self::InfoIter {
        std::iter::once("/yamux/1.0.0")
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + 'static> InboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(socket, self.0, yamux::Mode::Server)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + 'static> OutboundConnectionUpgrade<C> for Yamux {
    type Output = Muxer<C>;
    type Error = io::Error;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, socket: C, _: Self::Info) -> Self::Future {
        ready(Ok(Muxer::new(socket, self.0, yamux::Mode::Client)))
    }
}

/// A connection's streams.
pub(super) struct Muxer<C> {
    connection: yamux::Connection<Counted<C>>,
    unread: Arc<Unread>,
    /// Looks again whether there has been too much of it for too long.
    looks_again: Option<Pin<Box<Sleep>>>,
    /// Streams that came while nobody asked for one: the connection moves only while it is asked.
    inbound: VecDeque<Stream>,
    inbound_waker: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(socket: C, config: yamux::Config, mode: yamux::Mode) -> Self {
        let unread = Arc::<Unread>::default();
        let socket = Counted::new(socket, Arc::clone(&unread));
        Self {
            connection: yamux::Connection::new(socket, config, mode),
            unread,
            looks_again: None,
            inbound: VecDeque::new(),
            inbound_waker: None,
        }
    }

    /// What nobody reads of it counts for `account`.
    pub(super) fn within(self, room: Arc<UnreadRoom>, account: Arc<Account>) -> Self {
        self.unread.share(room, account);
        self
    }

    fn poll_connection(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Stream, yamux::ConnectionError>> {
        let next = self.connection.poll_next_inbound(cx);
        next.map(|next| match next {
            Some(Ok(stream)) => Ok(Stream::new(stream, Arc::clone(&self.unread))),
            Some(Err(error)) => Err(error),
            None => Err(yamux::ConnectionError::Closed),
        })
    }

    /// Ready, if nobody has read what came for too long.
    fn poll_unread(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        while let Some(since) = self.unread.much_since() {
            let end = since + UNREAD_TIME;
            if tokio::time::Instant::now() >= end {
                let why = "nobody reads what the peer sends";
                return Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, why));
            }
            let sleep = || Box::pin(tokio::time::sleep_until(end));
            if self
                .looks_again
                .get_or_insert_with(sleep)
                .poll_unpin(cx)
                .is_pending()
            {
                return Poll::Pending;
            }
            self.looks_again = None;
        }
        self.looks_again = None;
        Poll::Pending
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + 'static> StreamMuxer for Muxer<C> {
    type Substream = Stream;
    type Error = yamux::ConnectionError;

    fn poll_inbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        if let Some(stream) = this.inbound.pop_front() {
            return Poll::Ready(Ok(stream));
        }
        if let Poll::Ready(stream) = this.poll_connection(cx) {
            return Poll::Ready(stream);
        }
        this.inbound_waker = Some(cx.waker().clone());
        Poll::Pending
    }

    fn poll_outbound(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::Substream, Self::Error>> {
        let this = self.get_mut();
        let opened = this.connection.poll_new_outbound(cx);
        opened.map_ok(|stream| Stream::new(stream, Arc::clone(&this.unread)))
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.get_mut().connection.poll_close(cx)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Result<StreamMuxerEvent, Self::Error>> {
        let this = self.get_mut();
        let stream = match this.poll_connection(cx) {
            Poll::Ready(stream) => stream?,
            Poll::Pending => {
                let unread = this.poll_unread(cx);
                return unread.map(|error| Err(yamux::ConnectionError::Io(error)));
            }
        };
        // One too many is dropped, which resets it.
        if this.inbound.len() < INBOUND_MAX {
            this.inbound.push_back(stream);
            if let Some(waker) = this.inbound_waker.take() {
                waker.wake();
            }
        }
        cx.waker().wake_by_ref(); // There may be more.
        Poll::Pending
    }
}

#[cfg(test)]
mod tests;
