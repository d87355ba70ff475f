//! A libp2p peer that is driven by hand: no swarm, no behaviour, no good manners.
//!
//! In       the multiaddr of a server (`/ip4/…/tcp/…`, `…/tcp/…/ws`, `…/udp/…/quic-v1`, each with
//!          or without `/p2p/PEERID`).
//! Out      a [`Link`]: streams of any protocol in both directions, down to the raw bytes; a
//!          [`BitswapClient`] on top of one. What lies under the muxer is had by
//!          [`Dialer::dial_unmuxed`].
//! Limits   each wait ends after [`Dialer::patience`] with `TimedOut`; all tasks are owned by the
//!          link and end when it is dropped.
//! Not here listening: a peer of tests dials.

mod address;
mod basics;
pub mod bitswap;
pub mod craft;
mod dial;
pub mod forged;
mod link;
mod stream;

use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::time::Duration;

use libp2p::identity::Keypair;

pub use bitswap::BitswapClient;
pub use link::Link;
pub use stream::Stream;

const PATIENCE: Duration = Duration::from_secs(30);

/// How a TCP or WebSocket connection is made secret. QUIC has TLS of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Security {
    /// `/noise`
    Noise,
    /// `/tls/1.0.0`
    Tls,
}

/// What becomes of the streams that the server opens.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Inbound {
    /// Those of these protocols are handed out; the others are refused.
    Offer(Vec<String>),
    /// All are handed out before a word was said on them.
    Raw,
    /// None is ever taken from the muxer.
    Ignore,
}

/// Who dials, and how. Cheap to clone; a clone is the same peer.
#[derive(Debug, Clone)]
pub struct Dialer {
    identity: Keypair,
    security: Security,
    local: Option<IpAddr>,
    inbound: Inbound,
    basics: bool,
    streams_max: usize,
    patience: Duration,
}

impl Default for Dialer {
    fn default() -> Self {
        Self::new()
    }
}

impl Dialer {
    /// A peer that nobody has met, over noise, which answers identify and ping and refuses all
    /// other streams.
    pub fn new() -> Self {
        Self {
            identity: Keypair::generate_ed25519(),
            security: Security::Noise,
            local: None,
            inbound: Inbound::Offer(Vec::new()),
            basics: true,
            streams_max: 512,
            patience: PATIENCE,
        }
    }

    /// The peer whose ed25519 secret these bytes are.
    pub fn with_identity(mut self, mut secret: [u8; 32]) -> Self {
        if let Ok(identity) = Keypair::ed25519_from_bytes(&mut secret) {
            self.identity = identity; // Any 32 bytes are a secret.
        }
        self
    }

    /// Over TLS or noise.
    pub fn with_security(mut self, security: Security) -> Self {
        self.security = security;
        self
    }

    /// From this address of the machine, such as `127.0.0.7`.
    pub fn from_address(mut self, local: IpAddr) -> Self {
        self.local = Some(local);
        self
    }

    /// Hands out inbound streams of these protocols, see [`Link::accept`].
    pub fn accepting(mut self, protocols: &[&str]) -> Self {
        self.inbound = Inbound::Offer(protocols.iter().map(|&name| name.into()).collect());
        self
    }

    /// Hands out every inbound stream, and negotiates nothing: identify and ping stay unanswered.
    pub fn accepting_raw(mut self) -> Self {
        self.inbound = Inbound::Raw;
        self
    }

    /// Leaves inbound streams where they are, unanswered.
    pub fn ignoring_streams(mut self) -> Self {
        self.inbound = Inbound::Ignore;
        self
    }

    /// Refuses identify and ping, too.
    pub fn without_basics(mut self) -> Self {
        self.basics = false;
        self
    }

    /// The most streams our muxer opens or takes, 512 unless told; yamux can do 4096. What the
    /// server allows is another matter.
    pub fn with_streams_max(mut self, streams_max: usize) -> Self {
        self.streams_max = streams_max;
        self
    }

    /// How long each wait may take.
    pub fn with_patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// How long each wait may take.
    pub const fn patience(&self) -> Duration {
        self.patience
    }

    /// Our PeerID.
    pub fn peer_id(&self) -> String {
        self.identity.public().to_peer_id().to_string()
    }

    /// Connects, and checks that the server is who the address says.
    ///
    /// # Errors
    /// The address is none we can dial; nobody answers; a handshake fails; another peer answers.
    pub async fn dial(&self, address: &str) -> io::Result<Link> {
        let address = address.parse()?;
        let dialed = within(self.patience, dial::dial(self, &address)).await?;
        Ok(Link::start(self, dialed))
    }

    /// Connects over TCP or WebSocket and stops before the muxer: what is written to the stream
    /// are frames of yamux, which was agreed upon.
    ///
    /// # Errors
    /// As [`Dialer::dial`]; QUIC has no such layer.
    pub async fn dial_unmuxed(&self, address: &str) -> io::Result<Stream> {
        let address = address.parse()?;
        within(self.patience, dial::unmuxed(self, &address)).await
    }
}

/// Runs `work`, and fails with `TimedOut` when it takes longer than `patience`.
async fn within<T>(patience: Duration, work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    match tokio::time::timeout(patience, work).await {
        Ok(result) => result,
        Err(_) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!("nothing came in {patience:?}"),
        )),
    }
}
