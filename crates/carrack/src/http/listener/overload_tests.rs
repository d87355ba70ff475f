//! Clients that ask for much and take nothing, and those who are to be answered meanwhile.

use std::time::Duration;

use bytes::Bytes;
use carrack_formats::cid::RAW;
use http::{Method, Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

use super::super::limits::Limits;
use crate::gateway::testing::{Fault, Memory, Node, Reply};

/// Far more than any timeout of these tests: reached only if the node hangs.
const PATIENCE: Duration = Duration::from_secs(20);
/// A block that lies in its CID.
const IDENTITY: &str = "/ipfs/bafkqabtimvwgy3yk?format=raw";

/// Timeouts short enough for tests.
fn quick() -> Limits {
    Limits {
        idle_timeout: Duration::from_millis(400),
        progress_timeout: Duration::from_millis(400),
        ..Limits::default()
    }
}

/// A connection of HTTP/2 whose streams have a window of `window` bytes, and its end.
async fn h2_with_window(
    stream: TcpStream,
    window: u32,
) -> (
    h2::client::SendRequest<Bytes>,
    tokio::task::JoinHandle<Result<(), h2::Error>>,
) {
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .handshake(stream)
        .await
        .unwrap();
    (client, tokio::spawn(connection))
}

fn request(method: Method, path: &str) -> Request<()> {
    let request = Request::builder().method(method);
    request.uri(format!("http://x{path}")).body(()).unwrap()
}

/// Whatever is small goes without a share in the watch of bodies, and must get away all the same:
/// a client that never opens its window is cut, however busy it keeps the connection.
#[tokio::test]
async fn small_answers_that_do_not_get_away_are_cut_whatever_they_are() {
    let memory = Memory::default();
    let small = memory.put(RAW, vec![7; 10_000]);
    let (block, head) = (
        format!("/ipfs/{small}?format=raw"),
        format!("/ipfs/{small}?format=raw"),
    );
    let car = format!("/ipfs/{small}?format=car");
    let node = Node::start(memory, quick()).await;
    for window in [0, 1] {
        for path in [
            IDENTITY,
            &block,
            &car,
            "/ipfs/bad",
            "/nope",
            "/healthz",
            "/readyz",
        ] {
            let stream = TcpStream::connect(node.address).await.unwrap();
            let (client, connection) = h2_with_window(stream, window).await;
            let mut client = client.ready().await.unwrap();
            let (answer, _) = client
                .send_request(request(Method::GET, path), true)
                .unwrap();
            let answer = answer.await.unwrap();
            // Requests without bodies, so that the connection is never idle.
            let busy = async {
                while let Ok(mut ready) = client.clone().ready().await {
                    let head = request(Method::HEAD, &head);
                    let Ok((answer, _)) = ready.send_request(head, true) else {
                        break;
                    };
                    if answer.await.is_err() {
                        break;
                    }
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            };
            let busy = timeout(PATIENCE, busy).await;
            assert!(busy.is_ok(), "{path}, window {window}: never cut");
            let _ = connection.await.unwrap();
            drop(answer);
        }
    }
}

/// Every place that answers wait in comes back.
#[tokio::test]
async fn windows_of_zero_do_not_take_the_places_of_others_for_long() {
    let limits = Limits {
        requests_max: 256,
        progress_timeout: Duration::from_secs(3),
        ..Limits::default()
    };
    let node = Node::start(Memory::default(), limits).await;
    let mut held = Vec::new();
    for _ in 0..2 {
        let stream = TcpStream::connect(node.address).await.unwrap();
        let (client, connection) = h2_with_window(stream, 0).await;
        for _ in 0..128 {
            let mut ready = client.clone().ready().await.unwrap();
            let asked = ready.send_request(request(Method::GET, IDENTITY), true);
            held.push(asked.unwrap().0.await.unwrap());
        }
        drop(connection);
    }
    assert_eq!(node.get(IDENTITY).await.status, 429);
    let answered = async {
        while node.get(IDENTITY).await.status == 429 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let answered = timeout(PATIENCE, answered).await;
    answered.expect("places come back");
}

/// A connection from an address of this machine.
async fn connect_from(node: &Node, address: &str) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket
        .bind(format!("{address}:0").parse().unwrap())
        .unwrap();
    socket.connect(node.address).await.unwrap()
}

/// One request on a connection of its own; nothing, if the connection is refused.
async fn ask_from(node: &Node, address: &str, path: &str) -> Option<Reply> {
    let mut stream = connect_from(node, address).await;
    let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let _ = stream.write_all(head.as_bytes()).await;
    let mut bytes = Vec::new();
    let reading = stream.read_to_end(&mut bytes);
    let _ = timeout(PATIENCE, reading).await.expect("an answer");
    (!bytes.is_empty()).then(|| Reply::parse(&bytes, false))
}

#[tokio::test]
async fn an_address_at_its_limit_of_requests_leaves_others_their_places() {
    let limits = Limits {
        requests_max: 64,
        requests_per_address_max: 8,
        requests_per_subnet_max: 12,
        trusted: Vec::new(),
        ..Limits::default()
    };
    let node = Node::start(Memory::default(), limits).await;
    let mut held = Vec::new();
    for (address, n_taken) in [("127.0.0.1", 8), ("127.0.0.2", 4)] {
        let (client, _end) = h2_with_window(connect_from(&node, address).await, 0).await;
        let mut n_answered = 0;
        for _ in 0..20 {
            let mut ready = client.clone().ready().await.unwrap();
            let asked = ready.send_request(request(Method::GET, IDENTITY), true);
            let answer = asked.unwrap().0.await.unwrap();
            match answer.status() {
                StatusCode::OK => n_answered += 1,
                status => assert_eq!(status, StatusCode::TOO_MANY_REQUESTS),
            }
            held.push(answer);
        }
        assert_eq!(n_answered, n_taken, "{address}");
        for _ in 0..50 {
            let reply = ask_from(&node, "127.0.1.1", IDENTITY).await.unwrap();
            assert_eq!((reply.status, reply.text()), (200, "hello\n"));
        }
    }
    let refused = ask_from(&node, "127.0.0.2", IDENTITY).await.unwrap();
    assert_eq!(
        (refused.status, refused.field("retry-after")),
        (429, Some("60"))
    );
    assert!(refused.text().starts_with("your address"));
}

#[tokio::test]
async fn an_address_at_its_limit_of_connections_is_refused_and_others_are_not() {
    let limits = Limits {
        connections_per_address_max: 1,
        connections_per_subnet_max: 2,
        trusted: Vec::new(),
        ..Limits::default()
    };
    let node = Node::start(Memory::default(), limits).await;
    let first = connect_from(&node, "127.0.0.1").await;
    assert!(ask_from(&node, "127.0.0.1", IDENTITY).await.is_none());
    let second = connect_from(&node, "127.0.0.2").await;
    assert!(ask_from(&node, "127.0.0.3", IDENTITY).await.is_none());
    assert_eq!(
        ask_from(&node, "127.0.1.1", IDENTITY).await.unwrap().status,
        200
    );
    drop((first, second));
    let comes_back = async {
        while ask_from(&node, "127.0.0.1", IDENTITY).await.is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(PATIENCE, comes_back)
        .await
        .expect("places come back");
}

/// Who asks for much and takes nothing has its part of the memory for blocks on their way, and no
/// more: others are answered at once.
#[tokio::test]
async fn answers_that_nobody_takes_leave_room_for_those_of_other_addresses() {
    let memory = Memory::default();
    let leaves: Vec<_> = (0..200)
        .map(|index: u8| memory.put(RAW, vec![index; 256 * 1024]))
        .collect();
    let (list, leaf) = (memory.put_list(&leaves), leaves[0]);
    let limits = Limits {
        bytes_in_flight_max: 16 * 1024 * 1024,
        in_flight_per_address_percent: 25,
        in_flight_per_subnet_percent: 50,
        trusted: Vec::new(),
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let mut stalled = Vec::new();
    for index in 0..40 {
        let address = format!("127.0.0.{}", 1 + index % 4);
        let mut stream = connect_from(&node, &address).await;
        let head = format!("GET /ipfs/{list}?format=car HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    // Their answers stand still: the sockets are full, and so is their part of the budget.
    tokio::time::sleep(Duration::from_millis(300)).await;
    for query in ["format=raw", "format=car"] {
        for cid in [leaf, list].iter().cycle().take(10) {
            let path = format!("/ipfs/{cid}?{query}");
            let reply = ask_from(&node, "127.0.1.1", &path).await.unwrap();
            assert!(
                reply.status == 200 && reply.whole,
                "{path}: {}",
                reply.status
            );
        }
    }
    drop(stalled);
}

/// Two subnets with half of the memory each would be all of it.
#[tokio::test]
async fn however_many_subnets_take_nothing_of_their_answers_others_are_answered_at_once() {
    let memory = Memory::default();
    let leaves: Vec<_> = (0..100)
        .map(|index: u8| memory.put(RAW, vec![index; 256 * 1024]))
        .collect();
    let list = memory.put_list(&leaves);
    // More than what two subnets leave because no batch fits it any more.
    let large = memory.put(RAW, vec![200; 2 * 1024 * 1024]);
    let limits = Limits {
        bytes_in_flight_max: 32 * 1024 * 1024,
        in_flight_per_address_percent: 25,
        in_flight_per_subnet_percent: 50,
        room_timeout: Duration::from_millis(500),
        trusted: Vec::new(),
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let mut stalled = Vec::new();
    for index in 0..96 {
        let address = format!("127.0.{}.{}", index % 2, 1 + index / 2 % 4);
        let mut stream = connect_from(&node, &address).await;
        let head = format!("GET /ipfs/{list}?format=car HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stalled.push(stream);
    }
    // Their answers stand still: the sockets are full, and so is their part of the budget.
    tokio::time::sleep(Duration::from_millis(1500)).await;
    for (cid, query) in [
        (large, "raw"),
        (large, "car"),
        (list, "car"),
        (large, "raw"),
    ] {
        let path = format!("/ipfs/{cid}?format={query}");
        let reply = ask_from(&node, "127.0.2.1", &path).await.unwrap();
        assert!(
            reply.status == 200 && reply.whole,
            "{path}: {}",
            reply.status
        );
    }
    drop(stalled);
}

#[tokio::test]
async fn an_answer_that_does_not_begin_is_504() {
    let memory = Memory::default();
    let silent = memory.put(RAW, vec![1; 1000]);
    memory.fault(&silent, Fault::Silent);
    let limits = Limits {
        answer_timeout: Duration::from_millis(100),
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let path = format!("/ipfs/{silent}?format=raw");
    let reply = timeout(PATIENCE, node.get(&path)).await.expect("an answer");
    assert_eq!(
        (reply.status, reply.field("retry-after")),
        (504, Some("60"))
    );
}

/// HTTP/2 would send the body of a refusal even to HEAD.
#[tokio::test]
async fn a_head_has_no_body_in_any_version() {
    let node = Node::start(Memory::default(), Limits::default()).await;
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (client, _end) = h2_with_window(stream, 65_535).await;
    for path in ["/healthz", "/nope", "/ipfs/bad", IDENTITY] {
        let mut ready = client.clone().ready().await.unwrap();
        let asked = ready.send_request(request(Method::HEAD, path), true);
        let mut answer = asked.unwrap().0.await.unwrap();
        let get = node.get(path).await;
        let head = node.ask("HEAD", path, &[]).await;
        let len = Some(answer.headers()["content-length"].to_str().unwrap());
        assert_eq!(
            (len, len),
            (get.field("content-length"), head.field("content-length"))
        );
        assert_eq!(
            (get.status, get.status),
            (answer.status().as_u16(), head.status)
        );
        assert!(answer.body_mut().data().await.is_none(), "{path}");
    }
}

/// What was answered last is read to its end although the node has closed the connection, and a
/// cut answer ends with a reset.
#[tokio::test]
async fn whole_answers_end_in_order_and_cut_ones_with_a_reset() {
    let memory = Memory::default();
    let leaves: Vec<_> = (0..40)
        .map(|index: u8| memory.put(RAW, vec![index; 256 * 1024]))
        .collect();
    let absent = memory.put(RAW, vec![77; 256 * 1024]);
    memory.fault(&absent, Fault::Unreadable);
    let whole = memory.put_list(&leaves);
    let cut = memory.put_list(&[&leaves[..], &[absent]].concat());
    let many = memory.put_list(&leaves.repeat(6));
    let small = memory.put(RAW, vec![3; 100]);
    let limits = Limits {
        progress_timeout: Duration::from_millis(400),
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let ask = async |path: &str, version: &str| {
        let mut stream = TcpStream::connect(node.address).await.unwrap();
        let head = format!("GET {path} {version}\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream
    };
    for path in [
        format!("/ipfs/{small}?format=raw"),
        format!("/ipfs/{whole}?format=car"),
    ] {
        let mut stream = ask(&path, "HTTP/1.0").await;
        stream.readable().await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.expect(&path);
    }
    let reset = async |mut stream: TcpStream| {
        let mut bytes = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut bytes))
            .await
            .unwrap();
        end.expect_err("a reset").kind() == std::io::ErrorKind::ConnectionReset
    };
    let path = format!("/ipfs/{cut}?format=car");
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        assert!(reset(ask(&path, version).await).await, "{version}");
    }
    // A reader that stalls is cut by the watch. It is more than the kernel takes.
    let path = format!("/ipfs/{many}?format=car&car-dups=y");
    let stalled = ask(&path, "HTTP/1.0").await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    assert!(reset(stalled).await);
}
