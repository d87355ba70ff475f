//! Attackers at their limits, and an honest client that is served as if they were not there.
//!
//! In       attackers of HTTP on some addresses of this machine, none of them trusted; a client on
//!          another one.
//! Out      how many answers the client gets in a time, and how long the slowest takes.
//! Not here single limits (`http::listener`, `http::accounts`); all attacks at once (`p2p_floods`).

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use ::h2::client::SendRequest;
use bytes::Bytes;
use http::StatusCode;
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::support::{Carrack, Server, data, floods, h2};

/// How long the client is measured, each time.
const SPAN: Duration = Duration::from_millis(1500);
/// Other programs run on this machine too: so many tries to find it at rest.
const TRIES: usize = 8;
const HONEST: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 9));

/// A client that asks for much and takes nothing, as often as it is cut.
async fn stalled(to: SocketAddr, from: IpAddr, path: String) {
    loop {
        if let Ok(mut stream) = h2::connect(to, from).await {
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
        let (status, _) = h2::fetch(client, path).await.unwrap();
        assert_eq!(status, StatusCode::OK, "{path}");
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
    let to = h2::socket_of_url(&server.url);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2::client(to, HONEST, 1 << 24).await.unwrap();
        let mut seen = Vec::new();
        for _ in 0..TRIES {
            let alone = measured(&client, &honest).await;
            let (attack, asked) = floods::windows_of_zero(to, attackers());
            asked.await.unwrap();
            let is_full = !is_answered(to, attackers()[0]).await;
            assert!(is_full, "they are at their limit");
            let besides = measured(&client, &honest).await;
            drop(attack);
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
    let to = h2::socket_of_url(&server.url);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = h2::client(to, HONEST, 1 << 24).await.unwrap();
        let mut stalling = JoinSet::new();
        for index in 0..128 {
            let from = attackers()[index % 4];
            stalling.spawn(stalled(to, from, large.clone()));
        }
        for _ in 0..6 {
            measured(&client, &honest).await;
        }
    });
}

/// Whether an address still gets answers.
async fn is_answered(to: SocketAddr, from: IpAddr) -> bool {
    let Some(client) = h2::client(to, from, 1 << 16).await else {
        return false;
    };
    let answer = h2::fetch(&client, floods::IDENTITY).await;
    answer.is_ok_and(|(status, _)| status == StatusCode::OK)
}

/// Where the attackers come from.
fn attackers() -> Vec<IpAddr> {
    floods::addresses(0, 4)
}
