//! One address on which QUIC is listened.
//!
//! In       an endpoint; the addresses of this machine, as they come and go.
//! Out      handshakes of those who need not prove their addresses, or have.
//! Limits   a poll looks at as many first packets as tokio lets a task do without a pause.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use if_watch::IfEvent;
use if_watch::tokio::IfWatcher;
use libp2p::core::transport::{ListenerId, TransportEvent};

use super::{Bounds, Gate, Handshake, address_of_socket, established};

type Event = TransportEvent<Handshake, io::Error>;
/// The next first packet to go on with, and the connection that it begins.
type Next = BoxFuture<'static, Option<Begun>>;

/// A handshake that begins.
struct Begun {
    connecting: quinn::Connecting,
    remote: SocketAddr,
    is_proved: bool,
}

pub(super) struct Listener {
    id: ListenerId,
    endpoint: quinn::Endpoint,
    local: SocketAddr,
    bounds: Bounds,
    gate: Arc<dyn Gate>,
    next: Next,
    /// Of all addresses of this machine, if it listens on all.
    watcher: Option<IfWatcher>,
    /// The one address that it listens on, until that was told.
    untold: Option<SocketAddr>,
    is_closed: bool,
}

impl Listener {
    pub(super) fn new(
        id: ListenerId,
        endpoint: quinn::Endpoint,
        bounds: Bounds,
        gate: Arc<dyn Gate>,
    ) -> io::Result<Self> {
        let local = endpoint.local_addr()?;
        let is_any = local.ip().is_unspecified();
        Ok(Self {
            id,
            next: next(endpoint.clone(), Arc::clone(&gate)).boxed(),
            endpoint,
            local,
            bounds,
            gate,
            watcher: is_any.then(IfWatcher::new).transpose()?,
            untold: (!is_any).then_some(local),
            is_closed: false,
        })
    }

    pub(super) const fn id(&self) -> ListenerId {
        self.id
    }

    /// Ends it, and its connections.
    pub(super) fn close(&mut self) {
        self.endpoint.close(0_u32.into(), &[]);
        self.is_closed = true;
    }

    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        if self.is_closed {
            return Poll::Ready(TransportEvent::ListenerClosed {
                listener_id: self.id,
                reason: Ok(()),
            });
        }
        if let Some(local) = self.untold.take() {
            return Poll::Ready(TransportEvent::NewAddress {
                listener_id: self.id,
                listen_addr: address_of_socket(local),
            });
        }
        if let Poll::Ready(event) = self.poll_addresses(cx) {
            return Poll::Ready(event);
        }
        let Poll::Ready(begun) = self.next.poll_unpin(cx) else {
            return Poll::Pending;
        };
        let Some(begun) = begun else {
            self.is_closed = true;
            return Poll::Ready(TransportEvent::ListenerClosed {
                listener_id: self.id,
                reason: Err(io::Error::other("the endpoint is gone")),
            });
        };
        self.next = next(self.endpoint.clone(), Arc::clone(&self.gate)).boxed();
        Poll::Ready(TransportEvent::Incoming {
            listener_id: self.id,
            local_addr: address_of_socket(self.local),
            send_back_addr: address_of_socket(begun.remote),
            upgrade: Handshake {
                future: established(begun.connecting, self.bounds).boxed(),
                is_proved: begun.is_proved,
            },
        })
    }

    fn poll_addresses(&mut self, cx: &mut Context<'_>) -> Poll<Event> {
        let listener_id = self.id;
        let local = self.local;
        let Some(watcher) = &mut self.watcher else {
            return Poll::Pending;
        };
        let own = |ip: IpAddr| {
            let is_ours = ip.is_ipv4() == local.is_ipv4();
            is_ours.then(|| address_of_socket(SocketAddr::new(ip, local.port())))
        };
        while let Poll::Ready(event) = Pin::new(&mut *watcher).poll_if_event(cx) {
            let event = match event {
                Ok(IfEvent::Up(net)) => {
                    own(net.addr()).map(|listen_addr| TransportEvent::NewAddress {
                        listener_id,
                        listen_addr,
                    })
                }
                Ok(IfEvent::Down(net)) => {
                    own(net.addr()).map(|listen_addr| TransportEvent::AddressExpired {
                        listener_id,
                        listen_addr,
                    })
                }
                Err(error) => Some(TransportEvent::ListenerError { listener_id, error }),
            };
            if let Some(event) = event {
                return Poll::Ready(event);
            }
        }
        Poll::Pending
    }
}

/// The next handshake; `None` when the endpoint is gone. Cancel-safe: what is dropped is refused.
async fn next(endpoint: quinn::Endpoint, gate: Arc<dyn Gate>) -> Option<Begun> {
    loop {
        let incoming = endpoint.accept().await?;
        tokio::task::consume_budget().await; // However many come, others have their turns.
        let remote = incoming.remote_address();
        let is_proved = incoming.remote_address_validated();
        if !is_proved && gate.must_prove(remote.ip().to_canonical()) {
            // It may retry: it has not proved anything yet.
            let _ = incoming.retry();
            continue;
        }
        match incoming.accept() {
            Ok(connecting) => {
                return Some(Begun {
                    connecting,
                    remote,
                    is_proved,
                });
            }
            Err(error) => tracing::debug!(%remote, %error, "no handshake"),
        }
    }
}
