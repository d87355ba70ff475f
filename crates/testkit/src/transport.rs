//! What carries a connection of libp2p, told by its multiaddr.
//!
//! In       multiaddrs in text, of a server that listens on loopback.
//! Out      the one of a transport.
//! Not here dialling (`p2p`).

/// What carries a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// With noise or TLS, and yamux.
    Tcp,
    /// Version 1.
    Quic,
    /// Not encrypted itself; what it carries is, as over TCP.
    WebSocket,
}

impl Transport {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Quic, Self::WebSocket];

    /// As a person calls it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Quic => "QUIC",
            Self::WebSocket => "WebSocket",
        }
    }

    /// The first of `addresses` that is of this transport and of 127.0.0.1.
    #[must_use]
    pub fn find(self, addresses: &[String]) -> Option<&str> {
        addresses
            .iter()
            .map(String::as_str)
            .find(|address| self.is_of(address))
    }

    fn is_of(self, address: &str) -> bool {
        let has = |part| address.split('/').any(|word| word == part);
        let of = match self {
            Self::Tcp => has("tcp") && !has("ws"),
            Self::Quic => has("quic-v1") && !has("webtransport"),
            Self::WebSocket => has("ws"),
        };
        of && has("127.0.0.1")
    }
}
