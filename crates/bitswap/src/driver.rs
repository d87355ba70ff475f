//! The server on libp2p: the one place that knows it.
//!
//! In       a key, addresses to listen on, connections that others accepted; a server.
//! Out      the addresses in use; streams for the server, and streams that it asks for.
//! Limits   [`ConnectionLimits`]; streams and windows of a connection (`driver/windows.rs`); all
//!          handshakes within [`HANDSHAKE_TIME`].
//! Not here what is said on streams (`server`, `wire`).
//!
//! The swarm is one task, and each connection another; what is heavy runs in the tasks of the
//! server. Besides bitswap a node speaks identify and ping, and nothing else.

pub mod arrivals;
mod boxed;
mod counted;
mod handler;
mod handshakes;
mod limits;
mod muxer;
mod quic;
mod security;
mod windows;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{Boxed, PortUse};
use libp2p::core::upgrade::Version;
use libp2p::core::{ConnectedPoint, Endpoint, Transport};
pub use libp2p::identity::Keypair;
pub use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    CloseConnection, ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, Swarm,
    SwarmEvent, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
pub use libp2p::{Multiaddr, PeerId};
use libp2p::{identify, ping, tcp};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::task::TaskTracker;

use self::arrivals::{Arrival, Arrivals};
use self::boxed::BoxedHandlers;
use self::handler::{Ask, Handler};
use self::handshakes::{Bounded, Handshakes};
use self::limits::address_or_none;
pub use self::limits::{ConnectionLimits, TooMany, address_of};
use self::muxer::{Muxer, Yamux};
use self::quic::Quic;
use self::security::Security;
use self::windows::UnreadRoom;
use crate::server::{Server, Store};
use crate::stream::Duplex;

/// From a connection's first byte to a proved peer.
const HANDSHAKE_TIME: Duration = Duration::from_secs(10);
/// Inbound streams of one connection whose protocol is not known yet.
const NEGOTIATING_MAX: usize = 16;
/// Events of one connection that the swarm has not taken yet.
const EVENTS_MAX: usize = 16;
/// How often it is logged that connections cannot be accepted.
const TELL_INTERVAL: Duration = Duration::from_secs(10);
/// How long connections may take to end when the node stops.
const CLOSE_TIME: Duration = Duration::from_secs(2);

/// What a node listens with.
#[derive(Debug)]
pub struct Config {
    /// The node's key.
    pub key: Keypair,
    /// Where to listen: `/ip4/…/tcp/…` and `/ip4/…/udp/…/quic-v1`.
    pub listen: Vec<Multiaddr>,
    /// WebSockets that come over another port, and the address at which they do.
    pub websockets: Option<(Multiaddr, mpsc::Receiver<Arrival>)>,
    /// Numbers of connections.
    pub connections: ConnectionLimits,
    /// A connection on which nothing is wanted is closed after this time.
    pub idle_time: Duration,
    /// What identify says of the program.
    pub agent: String,
}

/// Why a node cannot be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// The key cannot be used.
    #[error("the identity cannot be used: {0}")]
    Key(String),
    /// An address cannot be listened on.
    #[error("cannot listen on {address}: {reason}")]
    Listen {
        /// The address.
        address: Multiaddr,
        /// Why.
        reason: String,
    },
}

/// A node that listens and is not run yet.
pub struct Driver<S: Store> {
    swarm: Swarm<Behaviour<S>>,
    tasks: TaskTracker,
    addresses: watch::Sender<Vec<Multiaddr>>,
    /// When it was logged last that a connection could not be accepted.
    told_at: Option<Instant>,
}

impl<S: Store> std::fmt::Debug for Driver<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").finish_non_exhaustive()
    }
}

impl<S: Store> Driver<S> {
    /// Begins to listen. Call it on the runtime that is to drive the node. Beside it, why it cannot
    /// listen on some of the addresses.
    ///
    /// # Errors
    /// `Key`: it cannot be used.
    pub fn new(config: Config, server: Server<S>) -> Result<(Self, Vec<StartError>), StartError> {
        let key = config.key;
        let tasks = TaskTracker::new();
        let (ws_address, arrivals) = config.websockets.unzip();
        let transport = transport(&key, arrivals, &config.connections, &server)?;
        let swarm_config = libp2p::swarm::Config::with_executor(Tasks(tasks.clone()))
            .with_idle_connection_timeout(config.idle_time)
            .with_max_negotiating_inbound_streams(NEGOTIATING_MAX)
            .with_per_connection_event_buffer_size(EVENTS_MAX);
        let identify = identify::Config::new("/ipfs/0.1.0".to_owned(), key.public())
            .with_agent_version(config.agent)
            .with_cache_size(0);
        let behaviour = Behaviour {
            limits: limits::Limits::new(config.connections),
            bitswap: Bitswap {
                server,
                closing: Vec::new(),
            },
            identify: BoxedHandlers(identify::Behaviour::new(identify)),
            ping: ping::Behaviour::default(),
        };
        let peer = key.public().to_peer_id();
        let mut swarm = Swarm::new(transport, behaviour, peer, swarm_config);
        let mut not_listening = Vec::new();
        for address in config.listen.into_iter().chain(ws_address) {
            if let Err(error) = swarm.listen_on(address.clone()) {
                let reason = match error {
                    libp2p::TransportError::MultiaddrNotSupported(_) => {
                        "write it like /ip4/0.0.0.0/tcp/4001 or /ip4/0.0.0.0/udp/4001/quic-v1"
                            .to_owned()
                    }
                    libp2p::TransportError::Other(error) => error.to_string(),
                };
                not_listening.push(StartError::Listen { address, reason });
            }
        }
        let driver = Self {
            swarm,
            tasks,
            addresses: watch::Sender::new(Vec::new()),
            told_at: None,
        };
        Ok((driver, not_listening))
    }

    /// The addresses in use, each with the PeerID, as they become known.
    #[must_use]
    pub fn addresses(&self) -> watch::Receiver<Vec<Multiaddr>> {
        self.addresses.subscribe()
    }

    /// Drives the node until `stop` ends; then closes all connections and the server. Not
    /// cancel-safe: dropping the future cuts every connection.
    pub async fn run(mut self, stop: impl Future<Output = ()> + Send) {
        tokio::pin!(stop);
        loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.happened(event),
                () = &mut stop => break,
            }
        }
        let server = self.swarm.behaviour().bitswap.server.clone();
        server.close().await;
        drop(self.swarm);
        self.tasks.close();
        if tokio::time::timeout(CLOSE_TIME, self.tasks.wait())
            .await
            .is_err()
        {
            tracing::warn!("connections of peers were cut");
        }
    }

    fn happened<E>(&mut self, event: SwarmEvent<E>) {
        match event {
            SwarmEvent::NewListenAddr { address, .. } => {
                let address = address.with_p2p(*self.swarm.local_peer_id());
                let Ok(address) = address else { return };
                tracing::info!(%address, "listening");
                self.addresses.send_modify(|all| {
                    if !all.contains(&address) {
                        all.push(address);
                    }
                });
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                let Ok(address) = address.with_p2p(*self.swarm.local_peer_id()) else {
                    return;
                };
                self.addresses
                    .send_modify(|all| all.retain(|known| *known != address));
            }
            SwarmEvent::IncomingConnectionError {
                send_back_addr,
                error,
                ..
            } => {
                tracing::debug!(from = %send_back_addr, %error, "no connection");
            }
            SwarmEvent::ListenerError { error, .. } => {
                // Any datagram that is none may bring one.
                let now = Instant::now();
                let is_news = |at: Instant| now.duration_since(at) >= TELL_INTERVAL;
                if self.told_at.is_none_or(is_news) {
                    self.told_at = Some(now);
                    tracing::warn!(%error, "accepting a connection failed");
                }
            }
            SwarmEvent::ListenerClosed {
                addresses, reason, ..
            } => {
                tracing::error!(?addresses, ?reason, "a listener is closed");
            }
            _ => {}
        }
    }
}

/// Bounds of a connection over QUIC, as near to those of others as they can be.
const QUIC: quic::Bounds = quic::Bounds {
    handshake_time: HANDSHAKE_TIME,
    streams_max: windows::STREAMS_MAX as u32,
    stream_window: windows::QUIC_STREAM_WINDOW,
    connection_window: windows::QUIC_CONNECTION_WINDOW,
    send_window: windows::QUIC_SEND_WINDOW,
};

/// TCP, QUIC and what others accepted, up to proved peers and their streams.
fn transport<S: Store>(
    key: &Keypair,
    arrivals: Option<mpsc::Receiver<Arrival>>,
    limits: &ConnectionLimits,
    server: &Server<S>,
) -> Result<Boxed<(PeerId, StreamMuxerBox)>, StartError> {
    let security = Security::new(key)?;
    let room = Arc::default();
    let tcp = tcp::tokio::Transport::new(tcp::Config::default().nodelay(true))
        .upgrade(Version::V1Lazy)
        .authenticate(security.clone())
        .multiplex(Yamux::default())
        .timeout(HANDSHAKE_TIME)
        .map(counted(server, &room));
    let websockets = Arrivals::new(arrivals)
        .upgrade(Version::V1Lazy)
        .authenticate(security)
        .multiplex(Yamux::default())
        .timeout(HANDSHAKE_TIME)
        .map(counted(server, &room));
    // Each has room of its own: who is silent over one stops nobody over another.
    let handshakes = || Handshakes::new(limits.pending());
    let tcp = Bounded::new(tcp.boxed(), handshakes(), |_| true);
    let websockets = Bounded::new(websockets.boxed(), handshakes(), |_| true);
    let of_quic = handshakes();
    let quic = Quic::new(key, QUIC, Arc::new(of_quic.clone()))
        .map_err(|error| StartError::Key(error.to_string()))?;
    let quic = Bounded::new(quic, of_quic, quic::Handshake::is_proved)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)));
    Ok(tcp
        .or_transport(websockets)
        .map(|either, _| either.into_inner())
        .or_transport(quic)
        .map(|either, _| either.into_inner())
        .boxed())
}

/// What peers send over yamux and nobody has read counts for their addresses.
fn counted<S: Store, C: Duplex + 'static>(
    server: &Server<S>,
    room: &Arc<UnreadRoom>,
) -> impl FnOnce((PeerId, Muxer<C>), ConnectedPoint) -> (PeerId, StreamMuxerBox) + Clone + use<S, C>
{
    let (server, room) = (server.clone(), Arc::clone(room));
    move |(peer, muxer), at| {
        let address = address_or_none(at.get_remote_address());
        let account = server.account(&peer.to_base58().into(), address);
        (peer, StreamMuxerBox::new(muxer.within(room, account)))
    }
}

/// Runs connections where they are counted.
struct Tasks(TaskTracker);

impl libp2p::swarm::Executor for Tasks {
    fn exec(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        self.0.spawn(future);
    }
}

/// What the node speaks.
#[derive(NetworkBehaviour)]
#[behaviour(prelude = "libp2p::swarm::derive_prelude")]
struct Behaviour<S: Store> {
    /// First, so that one too many comes no further.
    limits: limits::Limits,
    identify: BoxedHandlers<identify::Behaviour>,
    ping: ping::Behaviour,
    bitswap: Bitswap<S>,
}

/// Connections and the server.
struct Bitswap<S: Store> {
    server: Server<S>,
    /// Connections that the server wants closed.
    closing: Vec<(PeerId, ConnectionId)>,
}

impl<S: Store> Bitswap<S> {
    fn take(&self, peer: PeerId, remote: &Multiaddr) -> Result<Handler<S>, ConnectionDenied> {
        let address = address_or_none(remote);
        let (commands, receiver) = mpsc::channel(handler::COMMANDS_MAX);
        let name: Arc<str> = peer.to_base58().into();
        let connection = self.server.connected(&name, address, commands);
        Ok(Handler::new(
            connection.map_err(ConnectionDenied::new)?,
            receiver,
        ))
    }
}

impl<S: Store> NetworkBehaviour for Bitswap<S> {
    type ConnectionHandler = Handler<S>;
    type ToSwarm = std::convert::Infallible;

    fn handle_established_inbound_connection(
        &mut self,
        _id: ConnectionId,
        peer: PeerId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.take(peer, remote)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        peer: PeerId,
        address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.take(peer, address)
    }

    fn on_swarm_event(&mut self, _event: FromSwarm) {}

    fn on_connection_handler_event(
        &mut self,
        peer: PeerId,
        id: ConnectionId,
        Ask::Close: THandlerOutEvent<Self>,
    ) {
        self.closing.push((peer, id));
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        match self.closing.pop() {
            Some((peer_id, id)) => Poll::Ready(ToSwarm::CloseConnection {
                peer_id,
                connection: CloseConnection::One(id),
            }),
            None => Poll::Pending,
        }
    }
}
