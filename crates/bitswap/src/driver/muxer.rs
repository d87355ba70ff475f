//! Yamux with bounds of our own: libp2p's own upgrade has none for a connection's windows.
//!
//! In       an encrypted connection.
//! Out      its streams.
//! Limits   [`STREAMS_MAX`] streams, and [`RECEIVE_WINDOW`] bytes that a peer may send and nobody
//!          has read yet, for one connection.
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/yamux/README.md>

use std::collections::VecDeque;
use std::future::{Ready, ready};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_util::{AsyncRead, AsyncWrite};
use libp2p::core::muxing::{StreamMuxer, StreamMuxerEvent};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};

/// Streams of one connection, of all protocols.
const STREAMS_MAX: usize = 64;
/// What a peer may send that was not read, in bytes: each stream's least window, 256 KiB.
const RECEIVE_WINDOW: usize = STREAMS_MAX * (256 << 10);
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
    connection: yamux::Connection<C>,
    /// Streams that came while nobody asked for one: the connection moves only while it is asked.
    inbound: VecDeque<yamux::Stream>,
    inbound_waker: Option<Waker>,
}

impl<C: AsyncRead + AsyncWrite + Unpin> Muxer<C> {
    fn new(socket: C, config: yamux::Config, mode: yamux::Mode) -> Self {
        Self {
            connection: yamux::Connection::new(socket, config, mode),
            inbound: VecDeque::new(),
            inbound_waker: None,
        }
    }

    fn poll_connection(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<yamux::Stream, yamux::ConnectionError>> {
        self.connection
            .poll_next_inbound(cx)
            .map(|next| next.unwrap_or(Err(yamux::ConnectionError::Closed)))
    }
}

impl<C: AsyncRead + AsyncWrite + Unpin + 'static> StreamMuxer for Muxer<C> {
    type Substream = yamux::Stream;
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
        self.get_mut().connection.poll_new_outbound(cx)
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
            Poll::Pending => return Poll::Pending,
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
