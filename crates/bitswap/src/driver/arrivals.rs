//! Connections that somebody else accepted, as a transport: WebSockets on the HTTP port.
//!
//! In       streams, and where they came from.
//! Out      a transport that listens and never dials.
//! Limits   the channel's capacity, chosen by whoever accepts.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::future::{BoxFuture, Pending};
use libp2p::Multiaddr;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::multiaddr::Protocol;
use tokio::sync::mpsc;

use crate::stream::ByteStream;

/// A connection that was accepted.
pub struct Arrival {
    /// Where it came from.
    pub remote: SocketAddr,
    /// The stream, once it can be used.
    pub stream: BoxFuture<'static, io::Result<ByteStream>>,
}

impl std::fmt::Debug for Arrival {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Arrival")
            .field("remote", &self.remote)
            .finish_non_exhaustive()
    }
}

/// The transport.
pub(super) struct Arrivals {
    receiver: Option<mpsc::Receiver<Arrival>>,
    listener: Option<(ListenerId, Multiaddr)>,
    is_announced: bool,
}

impl Arrivals {
    pub(super) const fn new(receiver: Option<mpsc::Receiver<Arrival>>) -> Self {
        Self {
            receiver,
            listener: None,
            is_announced: false,
        }
    }
}

/// Where a WebSocket came from.
fn websocket_address(address: SocketAddr) -> Multiaddr {
    Multiaddr::empty()
        .with(address.ip().to_canonical().into())
        .with(Protocol::Tcp(address.port()))
        .with(Protocol::Ws("/".into()))
}

impl libp2p::Transport for Arrivals {
    type Output = ByteStream;
    type Error = io::Error;
    type ListenerUpgrade = BoxFuture<'static, io::Result<ByteStream>>;
    type Dial = Pending<io::Result<ByteStream>>;

    /// Takes the one address that ends in `/ws`: somebody listens there already.
    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        let is_ws = address.iter().any(|it| matches!(it, Protocol::Ws(_)));
        if !is_ws || self.listener.is_some() || self.receiver.is_none() {
            return Err(TransportError::MultiaddrNotSupported(address));
        }
        self.listener = Some((id, address));
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.listener.take_if(|(own, _)| *own == id).is_some()
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = self.get_mut();
        let Some((listener_id, address)) = &this.listener else {
            return Poll::Pending;
        };
        if !this.is_announced {
            this.is_announced = true;
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id: *listener_id,
                listen_addr: address.clone(),
            });
        }
        let Some(receiver) = &mut this.receiver else {
            return Poll::Pending;
        };
        match receiver.poll_recv(cx) {
            Poll::Ready(Some(arrival)) => Poll::Ready(TransportEvent::Incoming {
                listener_id: *listener_id,
                upgrade: arrival.stream,
                local_addr: address.clone(),
                send_back_addr: websocket_address(arrival.remote),
            }),
            Poll::Ready(None) => {
                this.receiver = None; // Nobody accepts any more.
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
