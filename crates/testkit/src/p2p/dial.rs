//! From an address to a muxed connection.
//!
//! In       a [`Dialer`] and an address.
//! Out      the PeerID that answered, and its muxer.
//! Limits   the caller's patience.
//! Not here who drives the muxer (`link`).

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Pending};
use libp2p::core::muxing::StreamMuxerBox;
use libp2p::core::transport::{
    Boxed, DialOpts, ListenerId, PortUse, TransportError, TransportEvent,
};
use libp2p::core::upgrade::{OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::core::{Endpoint, Multiaddr, Transport as TransportTrait};
use libp2p::{PeerId, noise, quic, tls, yamux};
use multistream_select::{Version, dialer_select_proto};
use tokio::net::{TcpSocket, TcpStream};
use tokio_util::compat::{Compat, TokioAsyncReadCompatExt};

use super::address::Address;
use super::stream::Duplex;
use super::{Dialer, Security, Stream};
use crate::Transport;

const OPTIONS: DialOpts = DialOpts {
    role: Endpoint::Dialer,
    port_use: PortUse::Reuse,
};

/// A connection that nobody drives yet.
pub(super) struct Dialed {
    pub(super) peer: PeerId,
    pub(super) muxer: StreamMuxerBox,
    /// The UDP socket of QUIC lives as long as its transport.
    pub(super) transport: Option<Boxed<(PeerId, StreamMuxerBox)>>,
}

pub(super) async fn dial(dialer: &Dialer, address: &Address) -> io::Result<Dialed> {
    let dialed = match address.transport {
        Transport::Quic => over_quic(dialer, address).await?,
        Transport::Tcp | Transport::WebSocket => {
            let (peer, secret) = secured(dialer, address).await?;
            let mut config = yamux::Config::default();
            config.set_max_num_streams(dialer.streams_max);
            let (name, secret) = agreed(secret, &config).await?;
            let muxer = config.upgrade_outbound(secret, name).await;
            Dialed {
                peer,
                muxer: StreamMuxerBox::new(muxer.map_err(io::Error::other)?),
                transport: None,
            }
        }
    };
    Ok(dialed)
}

pub(super) async fn unmuxed(dialer: &Dialer, address: &Address) -> io::Result<Stream> {
    if address.transport == Transport::Quic {
        let why = "QUIC is its own muxer";
        return Err(io::Error::new(io::ErrorKind::Unsupported, why));
    }
    let (_, secret) = secured(dialer, address).await?;
    let (_, secret) = agreed(secret, &yamux::Config::default()).await?;
    Ok(Stream::unmuxed(secret))
}

async fn over_quic(dialer: &Dialer, address: &Address) -> io::Result<Dialed> {
    let mut config = quic::Config::new(&dialer.identity);
    config.handshake_timeout = dialer.patience;
    config.max_concurrent_stream_limit = u32::try_from(dialer.streams_max).unwrap_or(u32::MAX);
    let mut transport = quic::tokio::Transport::new(config)
        .map(|(peer, muxer), _| (peer, StreamMuxerBox::new(muxer)))
        .boxed();
    if let Some(local) = dialer.local {
        // A dial goes out by a listener's socket, if there is one.
        let from = Multiaddr::from(local)
            .with(libp2p::multiaddr::Protocol::Udp(0))
            .with(libp2p::multiaddr::Protocol::QuicV1);
        transport
            .listen_on(ListenerId::next(), from)
            .map_err(io::Error::other)?;
    }
    let dial = transport
        .dial(address.multiaddr.clone(), OPTIONS)
        .map_err(io::Error::other)?;
    let (peer, muxer) = dial.await?;
    expect(address, peer)?;
    Ok(Dialed {
        peer,
        muxer,
        transport: Some(transport),
    })
}

/// TCP or WebSocket, then noise or TLS.
async fn secured(
    dialer: &Dialer,
    address: &Address,
) -> io::Result<(PeerId, Box<dyn Duplex + 'static>)> {
    let socket: Box<dyn Duplex> = if address.transport == Transport::Tcp {
        Box::new(connect(dialer.local, address.socket).await?)
    } else {
        let mut transport = libp2p_websocket::Config::new(Bound(dialer.local));
        let dial = transport
            .dial(address.multiaddr.clone(), OPTIONS)
            .map_err(io::Error::other)?;
        Box::new(dial.await.map_err(io::Error::other)?)
    };
    let (peer, secret): (PeerId, Box<dyn Duplex>) = match dialer.security {
        Security::Noise => {
            let config = noise::Config::new(&dialer.identity).map_err(io::Error::other)?;
            let (name, socket) = agreed(socket, &config).await?;
            let secret = config.upgrade_outbound(socket, name).await;
            let (peer, secret) = secret.map_err(io::Error::other)?;
            (peer, Box::new(secret))
        }
        Security::Tls => {
            let config = tls::Config::new(&dialer.identity).map_err(io::Error::other)?;
            let (name, socket) = agreed(socket, &config).await?;
            let secret = config.upgrade_outbound(socket, name).await;
            let (peer, secret) = secret.map_err(io::Error::other)?;
            (peer, Box::new(secret))
        }
    };
    expect(address, peer)?;
    Ok((peer, secret))
}

/// Agrees on the protocol of one layer.
async fn agreed<S: Duplex, U: UpgradeInfo>(
    socket: S,
    upgrade: &U,
) -> io::Result<(U::Info, multistream_select::Negotiated<S>)> {
    dialer_select_proto(socket, upgrade.protocol_info(), Version::V1)
        .await
        .map_err(io::Error::other)
}

fn expect(address: &Address, peer: PeerId) -> io::Result<()> {
    match address.peer {
        Some(expected) if expected != peer => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{peer} answers for {expected}"),
        )),
        _ => Ok(()),
    }
}

async fn connect(
    local: Option<std::net::IpAddr>,
    remote: SocketAddr,
) -> io::Result<Compat<TcpStream>> {
    let socket = match remote {
        SocketAddr::V4(_) => TcpSocket::new_v4()?,
        SocketAddr::V6(_) => TcpSocket::new_v6()?,
    };
    if let Some(local) = local {
        socket.bind(SocketAddr::new(local, 0))?;
    }
    let stream = socket.connect(remote).await?;
    stream.set_nodelay(true)?;
    Ok(stream.compat())
}

/// TCP from a chosen address, for libp2p's WebSocket to dial by.
struct Bound(Option<std::net::IpAddr>);

impl TransportTrait for Bound {
    type Output = Compat<TcpStream>;
    type Error = io::Error;
    type ListenerUpgrade = Pending<io::Result<Self::Output>>;
    type Dial = BoxFuture<'static, io::Result<Self::Output>>;

    fn listen_on(
        &mut self,
        _: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<io::Error>> {
        Err(TransportError::MultiaddrNotSupported(address))
    }

    fn remove_listener(&mut self, _: ListenerId) -> bool {
        false
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        _: DialOpts,
    ) -> Result<Self::Dial, TransportError<io::Error>> {
        let place: Address = address.to_string().parse().map_err(TransportError::Other)?;
        Ok(connect(self.0, place.socket).boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, io::Error>> {
        Poll::Pending
    }
}
