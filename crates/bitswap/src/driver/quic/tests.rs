//! Transports that dial each other, and a wire between them that can be looked at and cut.

use std::future::poll_fn;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use futures_util::{AsyncReadExt, AsyncWriteExt};
use libp2p::Transport;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::PortUse;
use tokio::net::UdpSocket as Socket;

use super::*;

const BOUNDS: Bounds = Bounds {
    handshake_time: Duration::from_secs(10),
    streams_max: 4,
    stream_window: 16 << 10,
    connection_window: 32 << 10,
    send_window: (64 << 10, 1 << 20),
};
const DIAL: DialOpts = DialOpts {
    role: Endpoint::Dialer,
    port_use: PortUse::Reuse,
};

/// Has everybody prove its address, or nobody; knows who was told to.
#[derive(Default)]
struct Door {
    is_strict: AtomicBool,
    asked: Mutex<Vec<IpAddr>>,
}

impl Gate for Door {
    fn must_prove(&self, remote: IpAddr) -> bool {
        let is_strict = self.is_strict.load(Ordering::Relaxed);
        if is_strict {
            self.asked.lock().unwrap().push(remote);
        }
        is_strict
    }
}

fn quic(door: &Arc<Door>) -> (PeerId, Quic) {
    let key = Keypair::generate_ed25519();
    let gate = Arc::clone(door) as Arc<dyn Gate>;
    let peer = key.public().to_peer_id();
    (peer, Quic::new(&key, BOUNDS, gate).unwrap())
}

async fn event(quic: &mut Quic) -> TransportEvent<Handshake, io::Error> {
    poll_fn(|cx| Pin::new(&mut *quic).poll(cx)).await
}

async fn listen(quic: &mut Quic, address: &str) -> Multiaddr {
    let id = ListenerId::next();
    quic.listen_on(id, address.parse().unwrap()).unwrap();
    event(quic).await.into_new_address().unwrap()
}

const LOOPBACK: &str = "/ip4/127.0.0.1/udp/0/quic-v1";

/// A connection's two ends, the dialler's first. `through` is dialled instead of the listener.
async fn connect(
    dialler: &mut Quic,
    listener: &mut Quic,
    through: &Multiaddr,
) -> ([StreamMuxerBox; 2], [PeerId; 2], bool) {
    let dial = dialler.dial(through.clone(), DIAL).unwrap();
    let accept = async {
        let (upgrade, _) = event(listener).await.into_incoming().unwrap();
        let is_proved = upgrade.is_proved();
        (upgrade.await.unwrap(), is_proved)
    };
    let (dialled, ((of_dialler, accepted), is_proved)) = tokio::join!(dial, accept);
    let (of_listener, dialled) = dialled.unwrap();
    let muxers = [dialled, accepted].map(StreamMuxerBox::new);
    (muxers, [of_dialler, of_listener], is_proved)
}

async fn open(from: &mut StreamMuxerBox, to: &mut StreamMuxerBox) -> [SubstreamBox; 2] {
    let mut near = poll_fn(|cx| from.poll_outbound_unpin(cx)).await.unwrap();
    near.write_all(b"?").await.unwrap(); // It is told of with its first byte.
    near.flush().await.unwrap();
    let mut far = poll_fn(|cx| to.poll_inbound_unpin(cx)).await.unwrap();
    far.read_exact(&mut [0]).await.unwrap();
    [near, far]
}

/// Datagrams to `to` and back, until they are cut.
struct Wire {
    port: u16,
    /// Retries that went by: packets of version 1 whose type is 3.
    n_retries: Arc<AtomicUsize>,
    /// Whether nothing goes on to `to` any more.
    is_cut: Arc<AtomicBool>,
}

async fn wire(to: SocketAddr) -> Wire {
    let near = Arc::new(Socket::bind("127.0.0.1:0").await.unwrap());
    let far = Arc::new(Socket::bind("127.0.0.1:0").await.unwrap());
    let wire = Wire {
        port: near.local_addr().unwrap().port(),
        n_retries: Arc::default(),
        is_cut: Arc::default(),
    };
    let (n_retries, is_cut) = (Arc::clone(&wire.n_retries), Arc::clone(&wire.is_cut));
    tokio::spawn(async move {
        let (mut there, mut back) = (vec![0; 65536], vec![0; 65536]);
        let mut client = None;
        loop {
            tokio::select! {
                Ok((len, from)) = near.recv_from(&mut there) => {
                    client = Some(from);
                    if !is_cut.load(Ordering::Relaxed) {
                        let _ = far.send_to(&there[..len], to).await;
                    }
                }
                Ok(len) = far.recv(&mut back) => {
                    let is_retry = back[0] & 0xf0 == 0xf0;
                    n_retries.fetch_add(usize::from(is_retry), Ordering::Relaxed);
                    if let Some(client) = client {
                        let _ = near.send_to(&back[..len], client).await;
                    }
                }
            }
        }
    });
    wire
}

fn at(port: u16) -> Multiaddr {
    format!("/ip4/127.0.0.1/udp/{port}/quic-v1")
        .parse()
        .unwrap()
}

#[tokio::test]
async fn peers_know_each_other_and_streams_end_in_order() {
    for loopback in [LOOPBACK, "/ip6/::1/udp/0/quic-v1"] {
        let door = Arc::default();
        let ((one, mut dialler), (other, mut listener)) = (quic(&door), quic(&door));
        let address = listen(&mut listener, loopback).await;
        let (mut ends, peers, is_proved) = connect(&mut dialler, &mut listener, &address).await;
        assert_eq!((peers, is_proved), ([one, other], false));
        let [dialled, accepted] = &mut ends;
        for (from, to) in [(dialled, accepted)] {
            let [mut near, mut far] = open(from, to).await;
            near.write_all(b"there").await.unwrap();
            near.close().await.unwrap();
            let mut read = Vec::new();
            far.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, b"there");
            far.write_all(b"and back").await.unwrap();
            far.close().await.unwrap();
            near.read_to_end(&mut read).await.unwrap();
            assert_eq!(read, b"thereand back");
        }
        let [mut dialled, mut accepted] = ends;
        let ((), ended) = tokio::join!(
            async { poll_fn(|cx| dialled.poll_close_unpin(cx)).await.unwrap() },
            poll_fn(|cx| accepted.poll_inbound_unpin(cx)),
        );
        ended.unwrap_err();
    }
}

/// Whoever reads must not take what was cut for whole.
#[tokio::test]
async fn a_stream_that_is_dropped_before_it_was_closed_is_reset() {
    let door = Arc::default();
    let ((_, mut dialler), (_, mut listener)) = (quic(&door), quic(&door));
    let address = listen(&mut listener, LOOPBACK).await;
    let (mut ends, ..) = connect(&mut dialler, &mut listener, &address).await;
    let [dialled, accepted] = &mut ends;
    let [mut near, mut far] = open(dialled, accepted).await;
    near.write_all(b"half").await.unwrap();
    drop(near);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap_err();

    // Whose peer has closed it has nothing more to say: what was written arrives.
    let [mut near, mut far] = open(dialled, accepted).await;
    far.close().await.unwrap();
    near.write_all(b"whole").await.unwrap();
    near.read_to_end(&mut read).await.unwrap();
    drop(near);
    let mut read = Vec::new();
    far.read_to_end(&mut read).await.unwrap();
    assert_eq!(read, b"whole");
}

#[tokio::test]
async fn who_has_to_prove_its_address_gets_in_by_a_retry() {
    let door = Arc::<Door>::default();
    let ((one, mut dialler), (other, mut listener)) = (quic(&door), quic(&door));
    let server = socket_of(&listen(&mut listener, LOOPBACK).await).unwrap();
    for is_strict in [false, true, false] {
        door.is_strict.store(is_strict, Ordering::Relaxed);
        let wire = wire(server).await;
        let to = at(wire.port);
        let (_ends, peers, is_proved) = connect(&mut dialler, &mut listener, &to).await;
        assert_eq!((peers, is_proved), ([one, other], is_strict));
        let n_retries = wire.n_retries.load(Ordering::Relaxed);
        assert_eq!(n_retries > 0, is_strict, "{n_retries} Retries");
    }
    let asked = door.asked.lock().unwrap();
    assert!(!asked.is_empty() && asked.iter().all(IpAddr::is_loopback));
}

/// What a peer wrote and the node cannot send is the node's to keep: not more than a little of it
/// for one that says nothing.
#[tokio::test]
async fn little_is_kept_for_a_peer_that_acknowledges_nothing() {
    let door = Arc::default();
    let ((_, mut dialler), (_, mut listener)) = (quic(&door), quic(&door));
    let server = socket_of(&listen(&mut listener, LOOPBACK).await).unwrap();
    let wire = wire(server).await;
    let (mut ends, ..) = connect(&mut dialler, &mut listener, &at(wire.port)).await;
    let [dialled, accepted] = &mut ends;
    let [near, mut far] = open(dialled, accepted).await;
    // So far it takes a lot.
    let mut near = near;
    let took = tokio::spawn(async move {
        let mut read = vec![0; 64 << 10];
        let mut n_read = 0;
        while n_read < 100_000 {
            n_read += near.read(&mut read).await.unwrap();
        }
        near
    });
    far.write_all(&vec![0; 100_000]).await.unwrap();
    let _near = took.await.unwrap();
    wire.is_cut.store(true, Ordering::Relaxed);
    let mut n_written = 0;
    let writing = async {
        loop {
            n_written += far.write(&[0; 16 << 10]).await.unwrap();
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(1), writing).await;
    ended.unwrap_err();
    assert!(n_written <= 256 << 10, "{n_written}");
}

#[tokio::test]
async fn a_listener_tells_its_addresses_and_its_end() {
    let (_, mut listener) = quic(&Arc::default());
    let id = ListenerId::next();
    let any = "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap();
    listener.listen_on(id, any).unwrap();
    let address = event(&mut listener).await.into_new_address().unwrap();
    let socket = socket_of(&address).unwrap();
    assert!(!socket.ip().is_unspecified() && socket.port() != 0);
    assert!(listener.remove_listener(id));
    loop {
        match event(&mut listener).await {
            TransportEvent::NewAddress { .. } => {}
            TransportEvent::ListenerClosed { listener_id, .. } => {
                break assert_eq!(listener_id, id);
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(!listener.remove_listener(id));
}

#[test]
fn addresses_of_other_kinds_are_not_ours() {
    let (id, ip4) = (PeerId::random(), "127.0.0.1:4001".parse().unwrap());
    for (text, socket) in [
        ("/ip4/127.0.0.1/udp/4001/quic-v1".to_owned(), Some(ip4)),
        (
            format!("/ip4/127.0.0.1/udp/4001/quic-v1/p2p/{id}"),
            Some(ip4),
        ),
        ("/ip6/::1/udp/1/quic-v1".to_owned(), "[::1]:1".parse().ok()),
        ("/ip4/127.0.0.1/udp/4001".to_owned(), None),
        ("/ip4/127.0.0.1/udp/4001/quic".to_owned(), None),
        ("/ip4/127.0.0.1/tcp/4001".to_owned(), None),
        (
            "/ip4/127.0.0.1/udp/4001/quic-v1/webtransport".to_owned(),
            None,
        ),
        (
            format!("/ip4/127.0.0.1/udp/1/quic-v1/p2p/{id}/p2p-circuit"),
            None,
        ),
    ] {
        assert_eq!(socket_of(&text.parse().unwrap()), socket, "{text}");
    }
}
