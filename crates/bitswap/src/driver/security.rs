//! Noise or TLS, whichever the peer asks for.
//!
//! In       a connection that nobody has proved anything about.
//! Out      the peer's identity, and a stream that nobody else can read.
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/noise/README.md>,
//! <https://github.com/libp2p/specs/blob/master/tls/tls.md>

use std::io;

use futures_util::future::BoxFuture;
use futures_util::{AsyncRead, AsyncWrite};
use libp2p::core::upgrade::{InboundConnectionUpgrade, OutboundConnectionUpgrade, UpgradeInfo};
use libp2p::identity::Keypair;
use libp2p::{PeerId, noise, tls};

use super::StartError;
use crate::stream::{ByteStream, Duplex};

/// Both upgrades.
#[derive(Clone)]
pub(super) struct Security {
    noise: noise::Config,
    tls: tls::Config,
}

impl Security {
    pub(super) fn new(key: &Keypair) -> Result<Self, StartError> {
        let cannot = |error: &dyn std::error::Error| StartError::Key(error.to_string());
        Ok(Self {
            noise: noise::Config::new(key).map_err(|error| cannot(&error))?,
            tls: tls::Config::new(key).map_err(|error| cannot(&error))?,
        })
    }
}

/// The protocol that was agreed on.
#[derive(Debug, Clone, Copy)]
pub(super) enum Protocol {
    Noise,
    Tls,
}

impl Protocol {
    const fn name(self) -> &'static str {
        match self {
            Self::Noise => "/noise",
            Self::Tls => "/tls/1.0.0",
        }
    }
}

impl AsRef<str> for Protocol {
    fn as_ref(&self) -> &str {
        self.name()
    }
}

impl UpgradeInfo for Security {
    type Info = Protocol;
    type InfoIter = std::array::IntoIter<Protocol, 2>;

    fn protocol_info(&self) -> Self::InfoIter {
        [Protocol::Noise, Protocol::Tls].into_iter()
    }
}

fn boxed<S, E>(outcome: Result<(PeerId, S), E>) -> io::Result<(PeerId, ByteStream)>
where
    S: Duplex + 'static,
    E: std::error::Error + Send + Sync + 'static,
{
    let (peer, stream) = outcome.map_err(io::Error::other)?;
    Ok((peer, Box::new(stream)))
}

type Secured = BoxFuture<'static, io::Result<(PeerId, ByteStream)>>;

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> InboundConnectionUpgrade<C> for Security {
    type Output = (PeerId, ByteStream);
    type Error = io::Error;
    type Future = Secured;

    fn upgrade_inbound(self, socket: C, protocol: Protocol) -> Secured {
        Box::pin(async move {
            let name = protocol.name();
            match protocol {
                Protocol::Noise => boxed(self.noise.upgrade_inbound(socket, name).await),
                Protocol::Tls => boxed(self.tls.upgrade_inbound(socket, name).await),
            }
        })
    }
}

impl<C: AsyncRead + AsyncWrite + Send + Unpin + 'static> OutboundConnectionUpgrade<C> for Security {
    type Output = (PeerId, ByteStream);
    type Error = io::Error;
    type Future = Secured;

    fn upgrade_outbound(self, socket: C, protocol: Protocol) -> Secured {
        Box::pin(async move {
            let name = protocol.name();
            match protocol {
                Protocol::Noise => boxed(self.noise.upgrade_outbound(socket, name).await),
                Protocol::Tls => boxed(self.tls.upgrade_outbound(socket, name).await),
            }
        })
    }
}
