//! One connection, between libp2p and the server.
//!
//! In       streams that the peer opened; commands of the server.
//! Out      streams to the server, of both kinds.
//! Limits   one stream is opened at a time; [`COMMANDS_MAX`] commands wait.
//! Not here anything that is said on a stream.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::future::{Ready, ready};
use std::io;
use std::task::{Context, Poll};

use libp2p::Stream;
use libp2p::core::upgrade::{InboundUpgrade, OutboundUpgrade, UpgradeInfo};
use libp2p::swarm::handler::{
    ConnectionEvent, DialUpgradeError, FullyNegotiatedInbound, FullyNegotiatedOutbound,
};
use libp2p::swarm::{ConnectionHandler, ConnectionHandlerEvent, SubstreamProtocol};
use tokio::sync::{mpsc, oneshot};

use crate::server::{Command, Connection, Store};
use crate::stream::ByteStream;
use crate::wire::Dialect;

/// Commands of the server that wait.
pub(super) const COMMANDS_MAX: usize = 4;

/// Where a stream that was asked for goes.
type Opened = oneshot::Sender<io::Result<(ByteStream, Dialect)>>;

/// What a connection asks of the swarm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ask {
    /// To close it.
    Close,
}

/// One connection.
pub(crate) struct Handler<S: Store> {
    connection: Connection<S>,
    commands: mpsc::Receiver<Command>,
    /// Streams that are being opened, the oldest first.
    opening: VecDeque<Opened>,
    /// It has asked to be closed.
    is_closing: bool,
}

impl<S: Store> Handler<S> {
    pub(super) const fn new(connection: Connection<S>, commands: mpsc::Receiver<Command>) -> Self {
        Self {
            connection,
            commands,
            opening: VecDeque::new(),
            is_closing: false,
        }
    }
}

/// The dialects of bitswap.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Dialects;

/// A dialect by its name.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Named(Dialect);

impl AsRef<str> for Named {
    fn as_ref(&self) -> &str {
        self.0.name()
    }
}

impl UpgradeInfo for Dialects {
    type Info = Named;
    type InfoIter = std::iter::Map<std::array::IntoIter<Dialect, 4>, fn(Dialect) -> Named>;

    fn protocol_info(&self) -> Self::InfoIter {
        Dialect::OFFERED.into_iter().map(Named)
    }
}

impl InboundUpgrade<Stream> for Dialects {
    type Output = (Stream, Dialect);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_inbound(self, stream: Stream, Named(dialect): Named) -> Self::Future {
        ready(Ok((stream, dialect)))
    }
}

impl OutboundUpgrade<Stream> for Dialects {
    type Output = (Stream, Dialect);
    type Error = Infallible;
    type Future = Ready<Result<Self::Output, Self::Error>>;

    fn upgrade_outbound(self, stream: Stream, Named(dialect): Named) -> Self::Future {
        ready(Ok((stream, dialect)))
    }
}

/// The connection lives as long as the peer wants something, not as long as it has streams open.
fn boxed(mut stream: Stream) -> ByteStream {
    stream.ignore_for_keep_alive();
    Box::new(stream)
}

impl<S: Store> ConnectionHandler for Handler<S> {
    type FromBehaviour = Infallible;
    type ToBehaviour = Ask;
    type InboundProtocol = Dialects;
    type OutboundProtocol = Dialects;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = ();

    fn listen_protocol(&self) -> SubstreamProtocol<Dialects, ()> {
        SubstreamProtocol::new(Dialects, ())
    }

    fn connection_keep_alive(&self) -> bool {
        self.connection.is_busy()
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Dialects, (), Self::ToBehaviour>> {
        match self.commands.poll_recv(cx) {
            Poll::Ready(Some(Command::Open(opened))) => {
                self.opening.push_back(opened);
                Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                    protocol: SubstreamProtocol::new(Dialects, ()),
                })
            }
            Poll::Ready(Some(Command::Close)) => {
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Ask::Close))
            }
            // The peer's task has ended: the node is stopping, or it panicked.
            Poll::Ready(None) if !self.is_closing => {
                self.is_closing = true;
                Poll::Ready(ConnectionHandlerEvent::NotifyBehaviour(Ask::Close))
            }
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    fn on_behaviour_event(&mut self, event: Self::FromBehaviour) {
        match event {}
    }

    fn on_connection_event(&mut self, event: ConnectionEvent<'_, Dialects, Dialects, (), ()>) {
        match event {
            ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound {
                protocol: (stream, _dialect),
                ..
            }) => self.connection.opened(boxed(stream)),
            ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound {
                protocol: (stream, dialect),
                ..
            }) => {
                if let Some(opened) = self.opening.pop_front() {
                    // Whoever asked may have left.
                    drop(opened.send(Ok((boxed(stream), dialect))));
                }
            }
            ConnectionEvent::DialUpgradeError(DialUpgradeError { error, .. }) => {
                if let Some(opened) = self.opening.pop_front() {
                    let error = io::Error::other(error.to_string());
                    drop(opened.send(Err(error)));
                }
            }
            _ => {}
        }
    }
}
