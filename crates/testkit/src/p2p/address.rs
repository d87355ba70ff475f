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

use crate::Transport;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_told_apart() {
        let id = "12D3KooWD3eckifWpRn9wQpMG9R9hX3sD158z7EqHWmweQAJU5SA";
        for (text, transport, has_peer) in [
            ("/ip4/127.0.0.1/tcp/4001".into(), Transport::Tcp, false),
            (format!("/ip4/1.2.3.4/tcp/1/p2p/{id}"), Transport::Tcp, true),
            (
                format!("/ip6/::1/tcp/80/ws/p2p/{id}"),
                Transport::WebSocket,
                true,
            ),
            (
                "/ip4/127.0.0.1/udp/4001/quic-v1".into(),
                Transport::Quic,
                false,
            ),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.transport, transport, "{text}");
            assert_eq!(address.peer.is_some(), has_peer, "{text}");
        }
        for text in [
            "",
            "x",
            "/ip4/127.0.0.1",
            "/dns4/a/tcp/1",
            "/ip4/1.2.3.4/udp/1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
