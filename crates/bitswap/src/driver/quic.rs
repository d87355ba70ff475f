//! QUIC for libp2p, over quinn: listens and dials.
//!
//! In       a key, [`Bounds`], and a [`Gate`] that says whose address is to be proved.
//! Out      a transport; its connections are muxers of their streams.
//! Limits   [`Bounds`], for each connection. Of what nobody has looked at yet, [`INCOMING_MAX`]
//!          first packets are kept, and [`INCOMING_LEN_MAX`] bytes that follow them.
//! Not here how many handshakes there may be ([`Gate`], and whoever polls them). Hole punching:
//!          who dials has a socket of its own, and nobody is dialled in the role of a listener.
//!
//! A first packet may come from any address that its sender likes to write on it. Where the gate
//! says so, it is answered by a Retry, which costs nothing but a few microseconds; only who hears
//! it can come back with the token that is in it.
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/quic/README.md>, RFC 9000, section 8.1

mod connection;
mod listener;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use libp2p::core::Endpoint;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use libp2p::{Multiaddr, PeerId, tls};
use quinn::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn::rustls::pki_types::CertificateDer;
use socket2::{Domain, Socket, Type};

pub(super) use self::connection::Connection;
use self::listener::Listener;

/// The version of QUIC that `/quic-v1` means.
const VERSION: u32 = 1;
/// First packets that wait for the transport to look at them.
const INCOMING_MAX: usize = 512;
/// Bytes that come behind such a packet, of one connection and of all.
const INCOMING_LEN_MAX: (u64, u64) = (16 << 10, 4 << 20);
/// What is said of the server's name, which nobody has: TLS asks for one.
const SERVER_NAME: &str = "l";
/// The secret by which a node that has started again ends the connections of the one before.
const RESET_DOMAIN: &[u8] = b"libp2p quic stateless reset key";
/// How often a connection on which nothing happens says that it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(5);
/// A connection of whose peer nothing was heard for so long has ended, in milliseconds.
const SILENCE_MAX_MS: u32 = 10_000;

/// Who decides about handshakes, before anything is spent on them.
pub(super) trait Gate: Send + Sync + 'static {
    /// Whether a handshake with `remote`, which may be anybody's address, is to begin with a proof
    /// that its sender hears what is sent there.
    fn must_prove(&self, remote: IpAddr) -> bool;
}

/// Bounds of each connection.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    /// From the first packet to a proved peer.
    pub(super) handshake_time: Duration,
    /// Streams that the peer may have open.
    pub(super) streams_max: u32,
    /// Bytes that the peer may send on a stream, and on all of them, before they are read.
    pub(super) stream_window: u32,
    pub(super) connection_window: u32,
    /// Bytes that were written and whose arrival is not known, at least and at most.
    pub(super) send_window: (u64, u64),
}

/// The key does not do.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct KeyError(String);

/// The transport.
pub(super) struct Quic {
    endpoint: quinn::EndpointConfig,
    server: quinn::ServerConfig,
    client: quinn::ClientConfig,
    bounds: Bounds,
    gate: Arc<dyn Gate>,
    listeners: Vec<Listener>,
    /// From which is dialled over IPv4 and IPv6.
    dialers: [Option<quinn::Endpoint>; 2],
    waker: Option<Waker>,
}

impl Quic {
    pub(super) fn new(
        key: &Keypair,
        bounds: Bounds,
        gate: Arc<dyn Gate>,
    ) -> Result<Self, KeyError> {
        let failed = |error: &dyn std::error::Error| KeyError(error.to_string());
        let server = tls::make_server_config(key).map_err(|error| failed(&error))?;
        let server = QuicServerConfig::try_from(server).map_err(|error| failed(&error))?;
        let client = tls::make_client_config(key, None).map_err(|error| failed(&error))?;
        let client = QuicClientConfig::try_from(client).map_err(|error| failed(&error))?;
        let transport = Arc::new(transport(&bounds));
        let mut server = quinn::ServerConfig::with_crypto(Arc::new(server));
        server.transport_config(Arc::clone(&transport));
        // The address of a connection is what its shares are counted by.
        server.migration(false);
        server.max_incoming(INCOMING_MAX);
        server.incoming_buffer_size(INCOMING_LEN_MAX.0);
        server.incoming_buffer_size_total(INCOMING_LEN_MAX.1);
        // None but a Retry proves an address: tokens for later would have to be remembered.
        let mut tokens = quinn::ValidationTokenConfig::default();
        tokens.log(Arc::new(quinn::NoneTokenLog)).sent(0);
        server.validation_token_config(tokens);
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        client.transport_config(transport);
        Ok(Self {
            endpoint: endpoint(key),
            server,
            client,
            bounds,
            gate,
            listeners: Vec::new(),
            dialers: [None, None],
            waker: None,
        })
    }

    fn begin(
        &self,
        address: SocketAddr,
        server: Option<quinn::ServerConfig>,
    ) -> io::Result<quinn::Endpoint> {
        let socket = bound(address)?;
        let runtime = Arc::new(quinn::TokioRuntime);
        quinn::Endpoint::new(self.endpoint.clone(), server, socket, runtime)
    }

    /// The endpoint from which `remote` is dialled.
    fn dialer(&mut self, remote: IpAddr) -> io::Result<quinn::Endpoint> {
        let (index, any): (usize, IpAddr) = match remote {
            IpAddr::V4(_) => (0, Ipv4Addr::UNSPECIFIED.into()),
            IpAddr::V6(_) => (1, Ipv6Addr::UNSPECIFIED.into()),
        };
        if let Some(Some(dialer)) = self.dialers.get(index) {
            return Ok(dialer.clone());
        }
        let dialer = self.begin(SocketAddr::new(any, 0), None)?;
        if let Some(place) = self.dialers.get_mut(index) {
            *place = Some(dialer.clone());
        }
        Ok(dialer)
    }

    fn wake(&mut self) {
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }
}

fn endpoint(key: &Keypair) -> quinn::EndpointConfig {
    let mut config = match key.derive_secret(RESET_DOMAIN) {
        Some(secret) => {
            let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &secret);
            quinn::EndpointConfig::new(Arc::new(key))
        }
        None => quinn::EndpointConfig::default(),
    };
    config.supported_versions(vec![VERSION]);
    config
}

fn transport(bounds: &Bounds) -> quinn::TransportConfig {
    let mut config = quinn::TransportConfig::default();
    config.max_concurrent_uni_streams(0_u32.into());
    config.max_concurrent_bidi_streams(bounds.streams_max.into());
    config.datagram_receive_buffer_size(None);
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.max_idle_timeout(Some(quinn::VarInt::from_u32(SILENCE_MAX_MS).into()));
    config.allow_spin(false);
    config.stream_receive_window(bounds.stream_window.into());
    config.receive_window(bounds.connection_window.into());
    config.send_window(bounds.send_window.0);
    config
}

fn bound(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::DGRAM,
        Some(socket2::Protocol::UDP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The socket that an address names, with or without a PeerID behind it.
fn socket_of(address: &Multiaddr) -> Option<SocketAddr> {
    let mut parts = address.iter();
    let ip: IpAddr = match parts.next()? {
        Protocol::Ip4(ip) => ip.into(),
        Protocol::Ip6(ip) => ip.into(),
        _ => return None,
    };
    let Some(Protocol::Udp(port)) = parts.next() else {
        return None;
    };
    let is_v1 = matches!(parts.next(), Some(Protocol::QuicV1));
    let is_all = matches!(
        (parts.next(), parts.next()),
        (None | Some(Protocol::P2p(_)), None)
    );
    (is_v1 && is_all).then(|| SocketAddr::new(ip, port))
}

fn address_of_socket(socket: SocketAddr) -> Multiaddr {
    Multiaddr::empty()
        .with(socket.ip().into())
        .with(Protocol::Udp(socket.port()))
        .with(Protocol::QuicV1)
}

/// A handshake that was begun.
pub(super) struct Handshake {
    future: BoxFuture<'static, io::Result<(PeerId, Connection)>>,
    is_proved: bool,
}

impl Handshake {
    /// Whether its peer is known to hear what is sent to its address.
    pub(super) const fn is_proved(&self) -> bool {
        self.is_proved
    }
}

impl Future for Handshake {
    type Output = io::Result<(PeerId, Connection)>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.future.poll_unpin(cx)
    }
}

/// Goes through a handshake. Cancel-safe: dropped, it ends the connection.
async fn established(
    connecting: quinn::Connecting,
    bounds: Bounds,
) -> io::Result<(PeerId, Connection)> {
    let connection = tokio::time::timeout(bounds.handshake_time, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no handshake in time"))??;
    let peer = peer_of(&connection)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no peer proved its key"))?;
    Ok((peer, Connection::new(connection, bounds.send_window)))
}

/// The peer whose key TLS has verified.
fn peer_of(connection: &quinn::Connection) -> Option<PeerId> {
    let identity = connection.peer_identity()?;
    let certificates = identity.downcast::<Vec<CertificateDer<'_>>>().ok()?;
    let certificate = tls::certificate::parse(certificates.first()?).ok()?;
    Some(certificate.peer_id())
}

impl libp2p::Transport for Quic {
    type Output = (PeerId, Connection);
    type Error = io::Error;
    type ListenerUpgrade = Handshake;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        let Some(socket) = socket_of(&address) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let endpoint = self.begin(socket, Some(self.server.clone()));
        let endpoint = endpoint.map_err(TransportError::Other)?;
        let listener = Listener::new(id, endpoint, self.bounds, Arc::clone(&self.gate));
        self.listeners
            .push(listener.map_err(TransportError::Other)?);
        self.wake();
        Ok(())
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        let listener = self.listeners.iter_mut().find(|it| it.id() == id);
        let is_there = listener.is_some();
        if let Some(listener) = listener {
            listener.close();
        }
        self.wake();
        is_there
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let socket = socket_of(&address)
            .filter(|it| it.port() != 0 && !it.ip().is_unspecified())
            .filter(|_| options.role == Endpoint::Dialer);
        let Some(socket) = socket else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        let dialer = self.dialer(socket.ip()).map_err(TransportError::Other)?;
        let (client, bounds) = (self.client.clone(), self.bounds);
        Ok(async move {
            let connecting = dialer.connect_with(client, socket, SERVER_NAME);
            established(connecting.map_err(io::Error::other)?, bounds).await
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Handshake, io::Error>> {
        let this = self.get_mut();
        for index in 0..this.listeners.len() {
            let Some(listener) = this.listeners.get_mut(index) else {
                break;
            };
            let Poll::Ready(event) = listener.poll(cx) else {
                continue;
            };
            if matches!(event, TransportEvent::ListenerClosed { .. }) {
                this.listeners.remove(index);
            } else {
                this.listeners.rotate_left(index + 1); // The others' turn.
            }
            return Poll::Ready(event);
        }
        this.waker = Some(cx.waker().clone());
        Poll::Pending
    }
}
