//! Attacks on the ports of a node, each of which goes on until it is dropped.
//!
//! In       a server's addresses; the addresses of this machine that the attack comes from.
//! Out      an [`Attack`]; what it may do before it has done as much as it can is waited for.
//! Limits   a thread each; the paces are those of the scenario, far below every budget.
//! Not here what others notice: the tests measure that, several attacks at once if they like.

use std::collections::VecDeque;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use carrack_formats::Cid;
use carrack_testkit::p2p::bitswap::Ask;
use carrack_testkit::p2p::{BitswapClient, Dialer};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, oneshot};
use tokio::task::JoinSet;

use super::car::absent;
use super::h2;

/// Silent connections that an attacker keeps at most; the oldest are as good as cut.
const SILENT_MAX: usize = 600;

/// An attack that goes on until this is dropped.
#[derive(Debug)]
pub(crate) struct Attack {
    _until: oneshot::Sender<()>,
}

impl Attack {
    /// Runs `attack` in a thread of its own, so that it takes no turns of the test.
    fn start<F: Future<Output = ()> + 'static>(
        attack: impl FnOnce() -> F + Send + 'static,
    ) -> Self {
        let (until, dropped) = oneshot::channel::<()>();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread();
            let runtime = { runtime }.enable_all().build().unwrap();
            runtime.block_on(async {
                tokio::select! {
                    _ = dropped => {}
                    () = attack() => {}
                }
            });
        });
        Self { _until: until }
    }
}

/// Addresses of loopback: `127.0.NET.1` and so on.
pub(crate) fn addresses(net: u8, n: u8) -> Vec<IpAddr> {
    (1..=n).map(|host| [127, 0, net, host].into()).collect()
}

/// The socket of a multiaddr over IPv4.
pub(crate) fn socket_of(multiaddr: &str) -> SocketAddr {
    let words: Vec<&str> = multiaddr.split('/').collect();
    format!("{}:{}", words[2], words[4]).parse().unwrap()
}

/// TCP connections that say `first` and nothing more: `at_once` of them, and then `per_second`.
pub(crate) fn silent(
    to: SocketAddr,
    from: Vec<IpAddr>,
    first: &'static [u8],
    at_once: usize,
    per_second: u32,
) -> Attack {
    Attack::start(move || async move {
        let mut held = VecDeque::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        for number in 0.. {
            if number >= at_once {
                pace.tick().await;
            }
            held.extend(say(to, from[number % from.len()], first).await);
            if held.len() > SILENT_MAX {
                held.pop_front();
            }
        }
    })
}

async fn say(to: SocketAddr, from: IpAddr, first: &[u8]) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind(SocketAddr::new(from, 0))?;
    let mut stream = socket.connect(to).await?;
    stream.write_all(first).await?;
    Ok(stream)
}

/// The head of a request that makes a connection of the HTTP port a WebSocket.
pub(crate) const WEBSOCKET: &[u8] = b"GET / HTTP/1.1\r\nHost: carrack\r\nConnection: Upgrade\r\n\
    Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
    Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n";

/// Handshakes of QUIC whose answers nobody hears, `per_second` of them.
pub(crate) fn deaf_quic(to: SocketAddr, from: Vec<IpAddr>, per_second: u32) -> Attack {
    Attack::start(move || async move {
        let mut ways = Vec::new();
        for from in from {
            ways.push(one_way(to, from).await);
        }
        let mut dials = JoinSet::new();
        let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
        for number in 0.. {
            pace.tick().await;
            let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", ways[number % ways.len()]);
            let dialer = Dialer::new().with_patience(Duration::from_secs(9));
            dials.spawn(async move { dialer.dial(&address).await.map(drop) });
            while dials.try_join_next().is_some() {}
        }
    })
}

/// A port whose datagrams go on to `to` from the address `from`, and none come back.
async fn one_way(to: SocketAddr, from: IpAddr) -> u16 {
    let near = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let far = UdpSocket::bind(SocketAddr::new(from, 0)).await.unwrap();
    let port = near.local_addr().unwrap().port();
    tokio::spawn(async move {
        let mut datagram = vec![0; 2048];
        while let Ok(len) = near.recv(&mut datagram).await {
            let _ = far.send_to(&datagram[..len], to).await;
        }
    });
    port
}

/// A way to `to` from an address that is far away, and back.
pub(crate) struct FarAway {
    /// Where to dial.
    pub(crate) port: u16,
    n_retries: Arc<AtomicUsize>,
}

impl FarAway {
    /// Each datagram takes `time`, in either direction.
    pub(crate) async fn new(to: SocketAddr, from: IpAddr, time: Duration) -> Self {
        let near = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
        let far = Arc::new(UdpSocket::bind(SocketAddr::new(from, 0)).await.unwrap());
        let way = Self {
            port: near.local_addr().unwrap().port(),
            n_retries: Arc::default(),
        };
        let n_retries = Arc::clone(&way.n_retries);
        tokio::spawn(async move {
            let (mut there, mut back) = (vec![0; 65536], vec![0; 65536]);
            let mut client = None;
            loop {
                let (datagram, socket, to) = tokio::select! {
                    Ok((len, from)) = near.recv_from(&mut there) => {
                        client = Some(from);
                        (there[..len].to_vec(), Arc::clone(&far), Some(to))
                    }
                    Ok(len) = far.recv(&mut back) => {
                        let is_retry = back[0] & 0xf0 == 0xf0;
                        n_retries.fetch_add(usize::from(is_retry), Ordering::Relaxed);
                        (back[..len].to_vec(), Arc::clone(&near), client)
                    }
                };
                let Some(to) = to else { continue };
                tokio::spawn(async move {
                    tokio::time::sleep(time).await;
                    let _ = socket.send_to(&datagram, to).await;
                });
            }
        });
        way
    }

    /// Packets by which the server asked for a proof of the address.
    pub(crate) fn n_retries(&self) -> usize {
        self.n_retries.load(Ordering::Relaxed)
    }
}

/// A block that lies in its CID: the attacker pays 40 bytes for it.
pub(crate) const IDENTITY: &str = "/ipfs/bafkqabtimvwgy3yk?format=raw";
/// Connections of [`windows_of_zero`], and their streams.
const ZERO_CONNECTIONS: usize = 32;
const ZERO_STREAMS: usize = 128;

/// HTTP/2 connections whose streams ask for a small block and never take it, as often as they are
/// cut. Whoever waits for it gets the word when all have asked.
pub(crate) fn windows_of_zero(
    to: SocketAddr,
    from: Vec<IpAddr>,
) -> (Attack, oneshot::Receiver<()>) {
    let (all, asked) = oneshot::channel();
    let attack = Attack::start(move || async move {
        let count = Arc::new(Semaphore::new(0));
        let mut connections = JoinSet::new();
        for number in 0..ZERO_CONNECTIONS {
            let count = Arc::clone(&count);
            connections.spawn(window_of_zero(to, from[number % from.len()], count));
        }
        let n_all = u32::try_from(ZERO_CONNECTIONS * ZERO_STREAMS).unwrap();
        count.acquire_many(n_all).await.unwrap().forget();
        let _ = all.send(());
        while connections.join_next().await.is_some() {}
    });
    (attack, asked)
}

async fn window_of_zero(to: SocketAddr, from: IpAddr, count: Arc<Semaphore>) {
    loop {
        if let Some(client) = h2::client(to, from, 0).await {
            let mut held = Vec::new();
            for _ in 0..ZERO_STREAMS {
                let Ok(mut ready) = client.clone().ready().await else {
                    break;
                };
                let Ok((answer, _)) = ready.send_request(h2::get(IDENTITY), true) else {
                    break;
                };
                held.push(answer.await);
                count.add_permits(1);
            }
            // Ends when the node ends it.
            while client.clone().ready().await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn peer(address: &str, from: IpAddr) -> Option<BitswapClient> {
    let dialer = Dialer::new().from_address(from);
    BitswapClient::connect(&dialer, address).await.ok()
}

/// `n_peers` peers that want as much of what is absent as is remembered of them, and come again if
/// they are sent away. Whoever waits for it gets the word when all have asked.
pub(crate) fn absent_wants(
    address: String,
    from: Vec<IpAddr>,
    n_peers: usize,
) -> (Attack, oneshot::Receiver<()>) {
    let (all, asked) = oneshot::channel();
    let attack = Attack::start(move || async move {
        let mut peers = Vec::new();
        for number in 0..n_peers {
            let Some(mut client) = peer(&address, from[number % from.len()]).await else {
                continue;
            };
            let wants = move |round: u64| {
                let of_its_own = ((number as u64) << 32) + (round << 16);
                let each = (0..1024).map(|n| absent(of_its_own + n));
                each.collect::<Vec<Cid>>()
            };
            let _ = client.ask(&wants(0), Ask::Block, false, false).await;
            peers.push((client, wants));
        }
        let _ = all.send(());
        let mut pace = tokio::time::interval(Duration::from_millis(250));
        for round in 1.. {
            for (client, wants) in &mut peers {
                pace.tick().await;
                let _ = client.ask(&wants(round), Ask::Block, false, false).await;
            }
        }
    });
    (attack, asked)
}

/// Peers that ask whether one block is there, over and over, `per_second` times a thousand.
pub(crate) fn repeated_haves(
    address: String,
    from: Vec<IpAddr>,
    cid: Cid,
    per_second: u32,
) -> Attack {
    Attack::start(move || async move {
        let address = Arc::new(address);
        let mut peers = JoinSet::new();
        for from in from {
            let address = Arc::clone(&address);
            peers.spawn(async move {
                let mut pace = tokio::time::interval(Duration::from_secs(1) / per_second);
                let wants = vec![cid; 1000];
                while let Some(mut client) = peer(&address, from).await {
                    loop {
                        pace.tick().await;
                        // Nothing is taken of what comes back.
                        let asked = client.ask(&wants, Ask::Have, false, false);
                        if asked.await.is_err() {
                            break;
                        }
                    }
                }
            });
        }
        while peers.join_next().await.is_some() {}
    })
}
