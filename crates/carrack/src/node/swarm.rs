//! This node among libp2p peers: bitswap over what the store has.
//!
//! In       a key, addresses, connections that the HTTP port took; the store's blocks.
//! Out      the addresses in use, reports of peers; a future that drives it all.
//! Limits   those of `carrack_bitswap::server::Options` and `driver::ConnectionLimits`. A driver
//!          that panics is started again (`supervisor`), with the same server and addresses.
//! Not here the protocol (`carrack_bitswap`), reading blocks (`store`).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use carrack_bitswap::driver::arrivals::Arrival;
use carrack_bitswap::driver::{
    Config, ConnectionLimits, Driver, Keypair, Multiaddr, Protocol, StartError, address_of,
};
use carrack_bitswap::server::{Options, Server, Store};
use carrack_formats::{Cid, Multihash};
use futures_util::FutureExt as _;
use tokio::sync::{mpsc, watch};

use super::identity::Identity;
use super::supervisor::{Part, fail_points};
use crate::error::{Error, ErrorKind, Result};
use crate::http::readiness::Readiness;
use crate::store::block::{Blocks, block_len};

/// A connection on which nothing is wanted for so long is closed. As long as a want for something
/// absent is remembered: a person who connected, and looks for what to fetch, finds it open.
const IDLE_TIME: Duration = Duration::from_secs(600);

/// What a node does among peers.
#[derive(Debug)]
pub struct P2pOptions {
    /// Where to listen.
    pub listen: Vec<Multiaddr>,
    /// Whether to go on without an address that another program has.
    pub may_be_taken: bool,
    /// WebSockets that come over the HTTP port, and the address at which they do.
    pub websockets: Option<(Multiaddr, mpsc::Receiver<Arrival>)>,
    /// Bounds of the protocol.
    pub server: Options,
    /// Numbers of connections.
    pub connections: ConnectionLimits,
}

/// Where a node listens if nobody says: the port that libp2p peers try.
#[must_use]
pub fn default_addresses() -> Vec<Multiaddr> {
    let all = [
        "/ip4/0.0.0.0/tcp/4001",
        "/ip4/0.0.0.0/udp/4001/quic-v1",
        "/ip6/::/tcp/4001",
        "/ip6/::/udp/4001/quic-v1",
    ];
    all.iter()
        .filter_map(|address| address.parse().ok())
        .collect()
}

/// The blocks, as bitswap sees them.
#[derive(Debug, Clone)]
pub struct WantedBlocks(Blocks);

/// A running node, for reports. Clones share it.
#[derive(Debug, Clone)]
pub struct P2p {
    /// The name that peers know it by.
    pub peer_id: String,
    /// What peers want and get.
    pub server: Server<WantedBlocks>,
    addresses: watch::Receiver<Vec<Multiaddr>>,
}

impl P2p {
    /// Where peers reach this node, each address with its PeerID.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let all = self.addresses.borrow().clone();
        let known: Vec<IpAddr> = all.iter().filter_map(address_of).collect();
        let each = all.iter().flat_map(|address| on_each(address, &known));
        each.map(|address| address.to_string()).collect()
    }
}

/// The address of the WebSockets that come in where HTTP is listened on.
#[must_use]
pub fn websocket_address(http: SocketAddr) -> Multiaddr {
    Multiaddr::empty()
        .with(http.ip().into())
        .with(Protocol::Tcp(http.port()))
        .with(Protocol::Ws("/".into()))
}

/// An address as peers can dial it: one that stands for all addresses of this machine becomes one
/// for each of those that are known, or that of loopback.
fn on_each(address: &Multiaddr, known: &[IpAddr]) -> Vec<Multiaddr> {
    let Some(own) = address_of(address).filter(IpAddr::is_unspecified) else {
        return vec![address.clone()];
    };
    let mut addresses: Vec<IpAddr> = known.to_vec();
    addresses.retain(|known| known.is_ipv4() == own.is_ipv4() && !known.is_unspecified());
    addresses.sort_unstable();
    addresses.dedup();
    if addresses.is_empty() {
        addresses.push(match own {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    let at = |ip: IpAddr| address.replace(0, |_| Some(ip.into()));
    addresses.into_iter().filter_map(at).collect()
}

impl WantedBlocks {
    /// What peers see of `blocks`.
    #[must_use]
    pub(crate) fn new(blocks: Blocks) -> Self {
        Self(blocks)
    }
}

impl Store for WantedBlocks {
    fn find(&self, multihashes: &[Multihash]) -> Vec<Option<u64>> {
        let found = self.0.store().index().get_many(multihashes);
        let len = |location| block_len(location) as u64;
        found
            .into_iter()
            .map(|location| location.map(len))
            .collect()
    }

    async fn check(&self, cids: Vec<Cid>) -> Vec<bool> {
        let (blocks, n_cids) = (self.0.clone(), cids.len());
        blocks.look_again(&cids).await;
        // An error is about one container, and says that it cannot be served now.
        let check = move || {
            let is_served = |cid| matches!(blocks.stat(cid), Ok(Some(_)));
            cids.iter().map(is_served).collect()
        };
        let checked = tokio::task::spawn_blocking(check).await;
        checked.unwrap_or_else(|_| vec![false; n_cids])
    }

    async fn load(&self, cids: Vec<Cid>) -> Vec<Option<Bytes>> {
        self.0.get_many(cids).await
    }
}

/// Begins to listen; the future that is returned drives the node until `stop` ends. `readiness` is
/// told when it fails.
///
/// # Errors
/// `Unavailable`: an address cannot be listened on. `Corrupt`: the key cannot be used.
pub fn start<F: Future<Output = ()> + Send + 'static>(
    identity: &Identity,
    blocks: &Blocks,
    options: P2pOptions,
    readiness: &Readiness,
    stop: F,
) -> Result<(P2p, impl Future<Output = ()> + Send + use<F>)> {
    let server = Server::new(WantedBlocks::new(blocks.clone()), options.server);
    let (websocket, mut arrivals) = options.websockets.unzip();
    let mut swarm = Swarm {
        key: identity.keypair().clone(),
        listen: options.listen,
        may_be_taken: options.may_be_taken,
        websocket,
        connections: options.connections,
        server: server.clone(),
        addresses: watch::Sender::new(Vec::new()),
    };
    let mut begun = Some(swarm.begin()?);
    let p2p = P2p {
        peer_id: identity.peer_id().to_string(),
        addresses: swarm.addresses.subscribe(),
        server: server.clone(),
    };
    let (commits, stop) = (blocks.store().commits(), stop.shared());
    let mut part = Part::new("libp2p", readiness);
    let driving = async move {
        loop {
            let driver = match begun.take() {
                Some(driver) => Ok(driver),
                None => swarm.begin(),
            };
            match driver {
                Ok((driver, queue)) => {
                    let run = swarm.drive(driver, queue, arrivals.as_mut(), stop.clone());
                    if part.run(Box::pin(run)).await {
                        return;
                    }
                }
                Err(error) => part.cannot_start(&error).await,
            }
        }
    };
    let running = async move {
        tokio::select! {
            () = driving => {}
            () = tell_of_arrivals(server, commits) => {}
        }
    };
    Ok((p2p, running))
}

/// What a driver is made of, as often as one is needed.
struct Swarm {
    key: Keypair,
    listen: Vec<Multiaddr>,
    may_be_taken: bool,
    websocket: Option<Multiaddr>,
    connections: ConnectionLimits,
    server: Server<WantedBlocks>,
    /// Those of the driver that runs.
    addresses: watch::Sender<Vec<Multiaddr>>,
}

type Begun = (Driver<WantedBlocks>, mpsc::Sender<Arrival>);

impl Swarm {
    /// Begins to listen. WebSockets go into the queue that is returned.
    fn begin(&mut self) -> Result<Begun> {
        let (queue, arrivals) = mpsc::channel(1);
        let config = Config {
            key: self.key.clone(),
            listen: self.listen.clone(),
            websockets: self.websocket.clone().map(|address| (address, arrivals)),
            connections: self.connections.clone(),
            idle_time: IDLE_TIME,
            agent: concat!("carrack/", env!("CARGO_PKG_VERSION")).to_owned(),
        };
        let failed = |error: StartError| {
            let kind = match error {
                StartError::Key(_) => ErrorKind::Corrupt,
                _ => ErrorKind::Unavailable,
            };
            Error::with(kind, "libp2p cannot be started", error)
        };
        let (driver, mut not_listening) =
            Driver::new(config, self.server.clone()).map_err(failed)?;
        if !self.may_be_taken && !not_listening.is_empty() {
            return Err(failed(not_listening.swap_remove(0)));
        }
        for error in not_listening {
            tracing::warn!(%error, "choose others with --p2p, or none with --p2p off");
        }
        Ok((driver, queue))
    }

    /// Runs a driver until `stop` ends. A panic leaves what is borrowed as it is.
    async fn drive(
        &self,
        driver: Driver<WantedBlocks>,
        queue: mpsc::Sender<Arrival>,
        arrivals: Option<&mut mpsc::Receiver<Arrival>>,
        stop: impl Future<Output = ()> + Send,
    ) {
        let mut known = driver.addresses();
        let pass_on = async {
            if let Some(arrivals) = arrivals {
                while let Some(arrival) = arrivals.recv().await {
                    let _ = queue.send(arrival).await; // It runs beside the driver that takes them.
                }
            }
            std::future::pending::<()>().await;
        };
        let tell = async {
            loop {
                self.addresses
                    .send_replace(known.borrow_and_update().clone());
                if known.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            () = driver.run(stop) => {}
            () = pass_on => {}
            () = tell => {}
            () = fail_points("libp2p") => {}
        }
    }
}

/// Tells the server of each commit: something that a peer waits for may have come. Never ends.
async fn tell_of_arrivals(server: Server<WantedBlocks>, mut commits: watch::Receiver<u64>) {
    while commits.changed().await.is_ok() {
        let server = server.clone();
        let told = tokio::task::spawn_blocking(move || server.store_has_changed());
        if told.await.is_err() {
            tracing::error!("looking for what peers wait for panicked");
        }
    }
    std::future::pending().await // The store is gone: the node is stopping.
}
