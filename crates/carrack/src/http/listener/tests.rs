use std::time::Duration;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::cid::RAW;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::limits::Limits;
use super::{Readiness, ServeOptions};
use crate::gateway::testing::{Fault, Memory, Node, Reply};

/// Far more than any timeout of these tests: reached only if the node hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Timeouts short enough for tests.
fn quick() -> Limits {
    Limits {
        first_byte_timeout: Duration::from_millis(200),
        header_timeout: Duration::from_millis(200),
        idle_timeout: Duration::from_millis(200),
        progress_timeout: Duration::from_millis(400),
        shutdown_timeout: Duration::from_secs(10),
        ..Limits::default()
    }
}

/// A list of `n` leaves of 256 KiB, and the last leaf.
fn large(memory: &Memory, n: u8) -> (Cid, Cid) {
    let leaves: Vec<Cid> = (0..n)
        .map(|index| memory.put(RAW, vec![index; 256 * 1024]))
        .collect();
    (memory.put_list(&leaves), *leaves.last().unwrap())
}

async fn send(node: &Node, text: &str) -> TcpStream {
    let mut stream = TcpStream::connect(node.address).await.unwrap();
    stream.write_all(text.as_bytes()).await.unwrap();
    stream
}

/// Everything until the node closes the connection.
async fn until_closed(mut stream: TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    let _ = timeout(PATIENCE, reading)
        .await
        .expect("the node closes the connection");
    bytes
}

#[tokio::test]
async fn connections_without_a_first_byte_are_closed() {
    let node = Node::start(Memory::default(), quick()).await;
    assert!(until_closed(send(&node, "").await).await.is_empty());
}

#[tokio::test]
async fn heads_that_dribble_are_cut_while_others_are_answered() {
    let node = Node::start(Memory::default(), quick()).await;
    let mut stream = send(&node, "GET /healthz HTTP/1.1\r\n").await;
    let dribble = async {
        while stream.write_all(b"x").await.is_ok() {
            assert_eq!(node.get("/healthz").await.status, 200);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(PATIENCE, dribble)
        .await
        .expect("the node cuts the connection");
}

#[tokio::test]
async fn a_head_that_dribbles_after_an_answer_is_cut() {
    let node = Node::start(Memory::default(), quick()).await;
    let request = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    let bytes = until_closed(send(&node, &format!("{request}GET /")).await).await;
    assert!(bytes.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let node = Node::start(Memory::default(), quick()).await;
    let bytes = until_closed(send(&node, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await).await;
    assert!(bytes.ends_with(b"ok\n"));
}

/// Many slow connections cost a place each and nothing else: an honest client is answered at once.
#[tokio::test]
async fn hundreds_of_slow_connections_do_not_slow_others() {
    let node = Node::start(Memory::default(), Limits::default()).await;
    let mut slow = Vec::new();
    for index in 0..600 {
        let texts = ["", "GET /heal", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"];
        slow.push(send(&node, texts[index % 3]).await);
    }
    for _ in 0..50 {
        let reply = timeout(Duration::from_secs(2), node.get("/healthz")).await;
        assert_eq!(reply.expect("answered at once").status, 200);
    }
    drop(slow);
}

#[tokio::test]
async fn half_a_preface_of_http2_is_cut() {
    let node = Node::start(Memory::default(), quick()).await;
    until_closed(send(&node, "PRI * HTTP/2.0\r\n").await).await;
}

#[tokio::test]
async fn heads_that_are_too_long_are_refused() {
    let node = Node::start(Memory::default(), Limits::default()).await;
    let long = format!(
        "GET /healthz HTTP/1.1\r\nhost: x\r\nx: {}\r\n\r\n",
        "a".repeat(17_000)
    );
    let many = format!(
        "GET /healthz HTTP/1.1\r\nhost: x\r\n{}\r\n",
        "x: y\r\n".repeat(101)
    );
    for head in [long, many] {
        let bytes = until_closed(send(&node, &head).await).await;
        assert!(
            bytes.starts_with(b"HTTP/1.1 431"),
            "{:?}",
            String::from_utf8_lossy(&bytes)
        );
    }
}

#[tokio::test]
async fn bodies_of_requests_cannot_smuggle_requests() {
    let node = Node::start(Memory::default(), quick()).await;
    let hidden = "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n";
    let heads = [
        format!(
            "content-length: {}\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
            5
        ),
        format!(
            "transfer-encoding: chunked\r\ncontent-length: {}\r\n\r\n0\r\n\r\n",
            hidden.len()
        ),
        "content-length: 1\r\ncontent-length: 2\r\n\r\n".to_owned(),
        "transfer-encoding: identity, chunked, x\r\n\r\n".to_owned(),
        "content-length: +5\r\n\r\n".to_owned(),
    ];
    for head in heads {
        let text = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{head}{hidden}");
        let bytes = until_closed(send(&node, &text).await).await;
        let text = String::from_utf8_lossy(&bytes);
        // Of a length and chunks the chunks count, and the connection ends (RFC 9112 section 6.3).
        let closed = head.contains("length") && head.contains("chunked");
        assert!(
            text.starts_with(if closed {
                "HTTP/1.1 200"
            } else {
                "HTTP/1.1 400"
            }),
            "{text}"
        );
        assert!(text.contains("connection: close") && text.matches("HTTP/1.1").count() == 1);
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let node = Node::start(Memory::default(), quick()).await;
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
    let text = [request("/healthz"), request("/nope"), request("/healthz")].concat();
    let bytes = until_closed(send(&node, &text).await).await;
    let text = String::from_utf8(bytes).unwrap();
    let statuses: Vec<&str> = text
        .split("HTTP/1.1 ")
        .skip(1)
        .map(|part| &part[..3])
        .collect();
    assert_eq!(statuses, ["200", "404", "200"]);
}

#[tokio::test]
async fn a_reader_that_stalls_is_cut_and_its_room_comes_back() {
    let memory = Memory::default();
    let (list, _) = large(&memory, 200);
    let limits = Limits {
        bytes_in_flight_max: 4 * 1024 * 1024,
        room_timeout: PATIENCE,
        ..quick()
    };
    let node = Node::start(memory, limits).await;
    let path = format!("/ipfs/{list}?format=car");
    let mut stalled = Vec::new();
    for _ in 0..8 {
        stalled.push(send(&node, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await);
    }
    // Their share of the budget is more than all of it: this one is answered when they are cut.
    let reply = timeout(PATIENCE, node.get(&path))
        .await
        .expect("room comes back");
    assert!(reply.whole && reply.body.len() > 200 * 256 * 1024);
    // Those that had room when the others were cut are answered now that they read.
    let mut n_cut = 0;
    for stream in stalled {
        let bytes = until_closed(stream).await;
        n_cut += usize::from(bytes.is_empty() || !Reply::parse(&bytes, false).whole);
    }
    assert!(n_cut > 0);
}

#[tokio::test]
async fn no_room_for_long_is_503() {
    let memory = Memory::default();
    let (list, leaf) = large(&memory, 200);
    memory.fault(&leaf, Fault::Cold);
    let limits = Limits {
        bytes_in_flight_max: 1024 * 1024,
        room_timeout: Duration::from_millis(50),
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let path = format!("/ipfs/{list}?format=car");
    let mut stalled = send(&node, &format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n")).await;
    stalled.read_u8().await.unwrap();
    let path = format!("/ipfs/{list}?format=car&dag-scope=block");
    for path in [path, format!("/ipfs/{leaf}?format=raw")] {
        // The kernel takes a few megabytes before the answer stands still.
        let refused = async {
            loop {
                let reply = node.get(&path).await;
                if reply.status == 503 {
                    return reply;
                }
            }
        };
        let reply = timeout(PATIENCE, refused).await.expect("no room is left");
        assert_eq!(reply.field("retry-after"), Some("60"));
    }
    assert_eq!(node.get("/ipfs/bafkqaaa?format=car").await.status, 200);
}

#[tokio::test]
async fn a_reader_that_is_slow_but_moves_is_not_cut() {
    let memory = Memory::default();
    let (list, _) = large(&memory, 40);
    let node = Node::start(memory, quick()).await;
    let head =
        format!("GET /ipfs/{list}?format=car HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let mut stream = send(&node, &head).await;
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 512 * 1024]);
    loop {
        tokio::time::sleep(Duration::from_millis(40)).await;
        match stream.read(&mut buffer).await.unwrap() {
            0 => break,
            len => bytes.extend_from_slice(&buffer[..len]),
        }
    }
    assert!(Reply::parse(&bytes, false).whole);
}

#[tokio::test]
async fn beyond_the_limit_of_requests_is_429() {
    let memory = Memory::default();
    let (list, _) = large(&memory, 200);
    let limits = Limits {
        requests_max: 2,
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let path = format!("/ipfs/{list}?format=car");
    let mut running = Vec::new();
    for _ in 0..2 {
        let text = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        let mut stream = send(&node, &text).await;
        stream.read_u8().await.unwrap();
        running.push(stream);
    }
    let reply = node.get("/ipfs/bafkqaaa?format=raw").await;
    assert_eq!(
        (reply.status, reply.field("retry-after")),
        (429, Some("60"))
    );
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    assert_eq!(node.get("/healthz").await.status, 200);
    drop(running);
    let freed = async {
        while node.get("/ipfs/bafkqaaa?format=raw").await.status == 429 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, freed).await.expect("places come back");
}

#[tokio::test]
async fn beyond_the_limit_of_connections_they_wait() {
    let limits = Limits {
        connections_max: 1,
        ..Limits::default()
    };
    let node = Node::start(Memory::default(), limits).await;
    let first = send(&node, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let second = node.get("/healthz");
    tokio::pin!(second);
    assert!(
        timeout(Duration::from_millis(100), &mut second)
            .await
            .is_err()
    );
    drop(first);
    assert_eq!(timeout(PATIENCE, second).await.unwrap().status, 200);
}

#[tokio::test]
async fn stopping_ends_idle_connections_and_finishes_running_answers() {
    let memory = Memory::default();
    let (list, _) = large(&memory, 200);
    let mut node = Node::start(memory, Limits::default()).await;
    let idle = send(&node, "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let text = format!("GET /ipfs/{list}?format=car HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut running = send(&node, &text).await;
    let first = running.read_u8().await.unwrap();
    node.begin_stop();
    assert!(until_closed(idle).await.ends_with(b"ok\n"));
    let mut bytes = vec![first];
    bytes.extend(until_closed(running).await);
    assert!(Reply::parse(&bytes, false).whole);
    timeout(PATIENCE, node.stop()).await.unwrap();
}

/// Whoever sends requests here has to see that none are wanted, which a closed port does not say.
#[tokio::test]
async fn a_node_that_stops_says_so_before_it_closes_its_port() {
    let readiness = Readiness::default();
    readiness.set(true);
    let options = ServeOptions {
        readiness,
        ..ServeOptions::default()
    };
    let mut node = Node::start_with(Memory::default(), options).await;
    let mut idle = send(&node, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let mut head = [0; 12];
    idle.read_exact(&mut head).await.unwrap();
    assert_eq!(&head, b"HTTP/1.1 200");
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let (response, _) = client.send_request(h2_request("/readyz"), true).unwrap();
    assert_eq!(response.await.unwrap().status(), StatusCode::OK);

    node.drain();
    // GOAWAY: its end, without any request of its own.
    let ended = timeout(PATIENCE, connection).await.expect("an end");
    ended.unwrap().unwrap();
    // New connections are taken, and told the same.
    let reply = node.get("/readyz").await;
    assert_eq!((reply.status, reply.text()), (503, "not ready\n"));
    let content = node.get("/ipfs/bafkqaaa?format=raw").await;
    assert_eq!(content.status, 200);
    let second = send(&node, "GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n").await;
    let text = String::from_utf8(until_closed(second).await).unwrap();
    assert!(text.contains("\r\nconnection: close\r\n"), "{text}");
    // An answer on one that was idle is its last.
    let request = b"GET /readyz HTTP/1.1\r\nhost: x\r\n\r\n";
    idle.write_all(request).await.unwrap();
    let text = String::from_utf8(until_closed(idle).await).unwrap();
    let (_, last) = text.split_once("HTTP/1.1 ").unwrap();
    assert!(
        last.starts_with("503") && last.contains("connection: close"),
        "{text}"
    );

    let address = node.address;
    timeout(PATIENCE, node.stop()).await.unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn stopping_cuts_what_does_not_end_in_time() {
    let memory = Memory::default();
    let (list, _) = large(&memory, 200);
    let limits = Limits {
        shutdown_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let text = format!("GET /ipfs/{list}?format=car HTTP/1.1\r\nhost: x\r\n\r\n");
    let mut running = send(&node, &text).await;
    let first = running.read_u8().await.unwrap();
    timeout(PATIENCE, node.stop()).await.unwrap();
    let mut bytes = vec![first];
    bytes.extend(until_closed(running).await);
    assert!(!Reply::parse(&bytes, false).whole);
}

/// A connection of HTTP/2 with prior knowledge.
async fn h2_connect(node: &Node) -> h2::client::SendRequest<Bytes> {
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    client
}

fn h2_request(path: &str) -> Request<()> {
    Request::get(format!("http://x{path}")).body(()).unwrap()
}

/// Reads a body to its end; the bytes and whether it ended cleanly.
async fn h2_read(mut body: h2::RecvStream) -> (Vec<u8>, Result<(), h2::Error>) {
    let mut bytes = Vec::new();
    while let Some(chunk) = body.data().await {
        match chunk {
            Ok(chunk) => {
                body.flow_control().release_capacity(chunk.len()).unwrap();
                bytes.extend_from_slice(&chunk);
            }
            Err(error) => return (bytes, Err(error)),
        }
    }
    (bytes, Ok(()))
}

#[tokio::test]
async fn http2_with_prior_knowledge_shares_the_port() {
    let memory = Memory::default();
    let (list, leaf) = large(&memory, 20);
    let node = Node::start(memory, Limits::default()).await;
    let client = h2_connect(&node).await;
    for (path, len) in [
        (
            format!("/ipfs/{leaf}?format=raw"),
            256 * 1024..256 * 1024 + 1,
        ),
        (
            format!("/ipfs/{list}?format=car"),
            20 * 256 * 1024..20 * 257 * 1024,
        ),
    ] {
        let mut client = client.clone().ready().await.unwrap();
        let (response, _) = client.send_request(h2_request(&path), true).unwrap();
        let response = response.await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let (bytes, end) = h2_read(response.into_body()).await;
        assert!(end.is_ok() && len.contains(&bytes.len()));
    }
    let mut client = client.ready().await.unwrap();
    let head = Request::head(format!("http://x/ipfs/{leaf}?format=raw"))
        .body(())
        .unwrap();
    let response = client.send_request(head, true).unwrap().0.await.unwrap();
    assert_eq!(response.headers()["content-length"], "262144");
    assert_eq!(node.get("/healthz").await.status, 200);
}

#[tokio::test]
async fn an_error_after_the_first_byte_resets_the_stream_and_no_other() {
    let memory = Memory::default();
    let (list, last) = large(&memory, 40);
    memory.fault(&last, Fault::Unreadable);
    let node = Node::start(memory, Limits::default()).await;
    let client = h2_connect(&node).await;
    let mut ready = client.clone().ready().await.unwrap();
    let path = format!("/ipfs/{list}?format=car");
    let response = ready
        .send_request(h2_request(&path), true)
        .unwrap()
        .0
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (_, end) = h2_read(response.into_body()).await;
    assert_eq!(end.unwrap_err().reason(), Some(h2::Reason::INTERNAL_ERROR));
    let mut ready = client.ready().await.unwrap();
    let response = ready
        .send_request(h2_request("/healthz"), true)
        .unwrap()
        .0
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_cut() {
    let memory = Memory::default();
    let (list, _) = large(&memory, 40);
    let node = Node::start(memory, quick()).await;
    let client = h2_connect(&node).await;
    let mut ready = client.ready().await.unwrap();
    let path = format!("/ipfs/{list}?format=car");
    let response = ready
        .send_request(h2_request(&path), true)
        .unwrap()
        .0
        .await
        .unwrap();
    let mut body = response.into_body();
    // Reads what comes and never gives the window back.
    let end = async {
        loop {
            match body.data().await {
                Some(Ok(_)) => {}
                other => return other,
            }
        }
    };
    let end = timeout(PATIENCE, end)
        .await
        .expect("the node cuts the connection");
    assert!(end.is_none_or(|chunk| chunk.is_err()) && !body.is_end_stream());
}

/// One frame of HTTP/2.
#[expect(clippy::big_endian_bytes, reason = "HTTP/2 is in network order")]
fn h2_frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let len = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&len[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

#[tokio::test]
async fn floods_of_http2_frames_end_the_connection() {
    const DATA: u8 = 0;
    const HEADERS: u8 = 1;
    const RST_STREAM: u8 = 3;
    const SETTINGS: u8 = 4;
    const PING: u8 = 6;
    const CONTINUATION: u8 = 9;
    let node = Node::start(Memory::default(), quick()).await;
    // GET http://x/ with indexed fields and one literal.
    let fields = [0x82, 0x84, 0x86, 0x41, 1, b'x'];
    let resets = (0..5000_u32).flat_map(|index| {
        let stream = 2 * index + 1;
        let open = h2_frame(HEADERS, 0x05, stream, &fields);
        [open, h2_frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat()
    });
    let continuations = h2_frame(HEADERS, 0x01, 1, &fields).into_iter().chain(
        (0..5000).flat_map(|_| h2_frame(CONTINUATION, 0, 1, &[0x40, 1, b'a', 1, b'b'].repeat(100))),
    );
    let pings = (0..100_000).flat_map(|_| h2_frame(PING, 0, 0, &[0; 8]));
    let settings = (0..100_000).flat_map(|_| h2_frame(SETTINGS, 0, 0, &[]));
    // A request whose body never ends and never brings anything.
    let empty = h2_frame(HEADERS, 0x04, 1, &fields)
        .into_iter()
        .chain((0..100_000).flat_map(|_| h2_frame(DATA, 0, 1, &[])));
    for flood in [
        resets.collect::<Vec<u8>>(),
        continuations.collect(),
        pings.collect(),
        settings.collect(),
        empty.collect(),
    ] {
        let mut stream = send(&node, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await;
        stream
            .write_all(&h2_frame(SETTINGS, 0, 0, &[]))
            .await
            .unwrap();
        // The node may be done with it before all is written.
        let _ = timeout(PATIENCE, stream.write_all(&flood))
            .await
            .expect("read or cut");
        until_closed(stream).await;
        assert_eq!(node.get("/healthz").await.status, 200);
    }
}
