//! The multiaddrs that a test peer can dial.
//!
//! In       text.
//! Out      a transport, a socket address and perhaps the PeerID that must answer.
//! Limits   literal addresses only: no names.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use libp2p::PeerId;
use libp2p::multiaddr::{Multiaddr, Protocol};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    WebSocket,
    Quic,
}

#[derive(Debug, Clone)]
pub(super) struct Address {
    pub(super) transport: Transport,
    pub(super) socket: SocketAddr,
    pub(super) peer: Option<PeerId>,
    /// The whole, without the PeerID.
    pub(super) multiaddr: Multiaddr,
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(text: &str) -> io::Result<Self> {
        let invalid = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let mut multiaddr: Multiaddr = text
            .parse()
            .map_err(|error| invalid(format!("{text}: {error}")))?;
        let mut peer = None;
        if let Some(Protocol::P2p(id)) = multiaddr.iter().last() {
            peer = Some(id);
            multiaddr.pop();
        }
        let parts: Vec<Protocol<'_>> = multiaddr.iter().collect();
        let (transport, ip, port) = match parts.as_slice() {
            [ip, Protocol::Tcp(port)] => (Transport::Tcp, ip, port),
            [ip, Protocol::Tcp(port), Protocol::Ws(_)] => (Transport::WebSocket, ip, port),
            [ip, Protocol::Udp(port), Protocol::QuicV1] => (Transport::Quic, ip, port),
            _ => return Err(invalid(format!("{text}: no transport of ours"))),
        };
        let ip = match ip {
            Protocol::Ip4(ip) => IpAddr::V4(*ip),
            Protocol::Ip6(ip) => IpAddr::V6(*ip),
            _ => return Err(invalid(format!("{text}: not a literal address"))),
        };
        let socket = SocketAddr::new(ip, *port);
        Ok(Self {
            transport,
            socket,
            peer,
            multiaddr,
        })
    }
}
