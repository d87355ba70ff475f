//! Attackers at their limits, and an honest client that is served as if they were not there.
//!
//! In       attackers of HTTP on some addresses of this machine, none of them trusted; a client on
//!          another one.
//! Out      how many answers the client gets in a time, and how long the slowest takes.
//! Not here single limits (`node::listener`, `node::accounts`); bitswap (`hostile_peers`).

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::JoinSet;

use crate::support::{Carrack, Server, data};

/// Connections of attackers, and their streams.
const N_ATTACKERS: usize = 32;
const N_STREAMS: usize = 128;
/// How long the client is measured, each time.
const SPAN: Duration = Duration::from_millis(1500);
/// Other programs run on this machine too: so many tries to find it at rest.
const TRIES: usize = 8;
/// A block that lies in its CID: the attacker pays 40 bytes for it.
const IDENTITY: &str = "/ipfs/bafkqabtimvwgy3yk?format=raw";
const HONEST: &str = "127.0.9.9";

async fn connect(to: SocketAddr, from: &str) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(format!("{from}:0").parse().unwrap())?;
    socket.connect(to).await
}

async fn h2(to: SocketAddr, from: &str, window: u32) -> Option<SendRequest<Bytes>> {
    let stream = connect(to, from).await.ok()?;
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(window.max(1 << 24))
        .handshake(stream)
        .await
        .ok()?;
    tokio::spawn(connection);
    Some(client)
}

fn get(path: &str) -> Request<()> {
    let request = Request::builder().method(Method::GET);
    request.uri(format!("http://x{path}")).body(()).unwrap()
}

/// Streams that ask and never take, as often as they are cut.
async fn window_of_zero(to: SocketAddr, from: String, n_asked: Arc<AtomicUsize>) {
    loop {
        let Some(client) = h2(to, &from, 0).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let mut held = Vec::new();
        for _ in 0..N_STREAMS {
            let Ok(mut ready) = client.clone().ready().await else {
                break;
            };
            let Ok((answer, _)) = ready.send_request(get(IDENTITY), true) else {
                break;
            };
            held.push(answer.await);
            n_asked.fetch_add(1, Relaxed);
        }
        // Ends when the node ends it.
        while client.clone().ready().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// A client that asks for much and takes nothing, as often as it is cut.
async fn stalled(to: SocketAddr, from: String, path: String) {
    loop {
        if let Ok(mut stream) = connect(to, &from).await {
            let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
            let _ = stream.write_all(head.as_bytes()).await;
            while stream.try_write(b"").is_ok() && !is_gone(&stream) {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

fn is_gone(stream: &TcpStream) -> bool {
    stream.take_error().is_ok_and(|error| error.is_some())
}

/// A client that fetches these paths in turn for [`SPAN`]: how many answers it got, and the time
/// below which 99 in 100 of them came.
async fn measured(client: &SendRequest<Bytes>, paths: &[String]) -> (usize, Duration) {
    let (begun, mut times) = (Instant::now(), Vec::new());
    for path in paths.iter().cycle() {
        if begun.elapsed() >= SPAN {
            break;
        }
        let asked = Instant::now();
        let mut ready = client.clone().ready().await.unwrap();
        let (answer, _) = ready.send_request(get(path), true).unwrap();
        let answer = answer.await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let mut body = answer.into_body();
        while let Some(part) = body.data().await {
            let len = part.unwrap().len();
            body.flow_control().release_capacity(len).unwrap();
        }
        times.push(asked.elapsed());
    }
    times.sort_unstable();
    (
        times.len(),
        times[(times.len() * 99 / 100).min(times.len() - 1)],
    )
}

/// A node that trusts nobody, and what to ask it for: blocks and CARs, and a large CAR.
fn node(carrack: &Carrack) -> (Server, Vec<String>, String) {
    fs::create_dir_all(carrack.path("data")).unwrap();
    let (block, file, large) = (
        carrack.path("block"),
        carrack.path("file"),
        carrack.path("large"),
    );
    data::file(&block, 1, 200_000);
    data::file(&file, 2, 3 << 20);
    data::file(&large, 3, 64 << 20);
    let [block, file, large] = [block, file, large].map(|path| carrack.add_one(&path));
    fs::write(carrack.path("data/carrack.toml"), "http.trusted = []\n").unwrap();
    let honest = vec![
        format!("/ipfs/{block}?format=raw"),
        format!("/ipfs/{file}?format=car"),
        format!("/ipfs/{block}?format=car"),
    ];
    let large = format!("/ipfs/{large}?format=car");
    (carrack.serve::<&str>(&[]), honest, large)
}

#[test]
fn windows_of_zero_leave_an_honest_client_its_goodput() {
    let carrack = Carrack::new();
    let (server, honest, _) = node(&carrack);
    let to: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2(to, HONEST, 1 << 24).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            let alone = measured(&client, &honest).await;
            let (mut attackers, n_asked) = (JoinSet::new(), Arc::new(AtomicUsize::new(0)));
            for index in 0..N_ATTACKERS {
                let from = format!("127.0.0.{}", 1 + index % 4);
                attackers.spawn(window_of_zero(to, from, Arc::clone(&n_asked)));
            }
            while n_asked.load(Relaxed) < N_ATTACKERS * N_STREAMS {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert!(
                !is_answered(to, "127.0.0.1").await,
                "they are at their limit"
            );
            let besides = measured(&client, &honest).await;
            attackers.shutdown().await;
            seen.push((alone, besides));
            if besides.0 * 10 >= alone.0 * 8 && besides.1 <= alone.1 * 3 {
                return;
            }
        }
        panic!("answers and their 99th percentile, alone and besides attackers: {seen:?}");
    });
}

/// Who asks for much and takes nothing has its part of the memory and of the places; the rest is
/// answered, however often it comes back.
#[test]
fn readers_that_stall_leave_an_honest_client_its_answers() {
    let carrack = Carrack::new();
    let (server, honest, large) = node(&carrack);
    let to: SocketAddr = server.url.strip_prefix("http://").unwrap().parse().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2(to, HONEST, 1 << 24).await.unwrap();
        let mut attackers = JoinSet::new();
        for index in 0..128 {
            let from = format!("127.0.0.{}", 1 + index % 4);
            attackers.spawn(stalled(to, from, large.clone()));
        }
        for _ in 0..6 {
            measured(&client, &honest).await;
        }
    });
}

/// Whether an address still gets answers.
async fn is_answered(to: SocketAddr, from: &str) -> bool {
    let Some(client) = h2(to, from, 1 << 16).await else {
        return false;
    };
    let mut ready = client.ready().await.unwrap();
    let (answer, _) = ready.send_request(get(IDENTITY), true).unwrap();
    answer
        .await
        .is_ok_and(|answer| answer.status() == StatusCode::OK)
}
