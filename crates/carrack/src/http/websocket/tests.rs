use std::io::ErrorKind;

use futures_util::io::{AsyncReadExt as _, AsyncWriteExt as _};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message};
use tokio_tungstenite::{WebSocketStream, client_async};

use super::frame::{FRAME_LEN_MAX, FrameError, IDLE_FRAMES_MAX};
use super::*;
use crate::cli::output::tests::Shared;
use crate::gateway::testing::{Memory, Node, Reply};
use crate::http::ServeOptions;
use crate::http::access_log::{AccessLog, LogFormat};
use crate::http::limits::Limits;

/// Reached only if something hangs.
const PATIENCE: Duration = Duration::from_secs(20);

const ASKED: &str = "connection: keep-alive, Upgrade\r\nupgrade: websocket\r\n\
    sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

async fn node(limits: Limits) -> (Node, mpsc::Receiver<Arrival>) {
    let (door, arrivals) = door(QUEUE_LEN);
    let options = ServeOptions {
        limits,
        door: Some(door),
        ..ServeOptions::default()
    };
    (Node::start_with(Memory::default(), options).await, arrivals)
}

/// Gives back what comes, until the client ends.
async fn echo(mut stream: ByteStream) -> io::Result<()> {
    let mut bytes = vec![0; 40_000];
    loop {
        let n = stream.read(&mut bytes).await?;
        if n == 0 {
            return stream.close().await;
        }
        stream.write_all(&bytes[..n]).await?;
        stream.flush().await?;
    }
}

/// An echo for the next who comes.
fn echo_next(mut arrivals: mpsc::Receiver<Arrival>) -> JoinHandle<io::Result<()>> {
    tokio::spawn(async move { echo(arrivals.recv().await.unwrap().stream.await?).await })
}

async fn client(node: &Node, path: &str) -> WebSocketStream<TcpStream> {
    let socket = TcpStream::connect(node.address).await.unwrap();
    let url = format!("ws://{}{path}", node.address);
    let (client, answer) = client_async(url, socket).await.unwrap();
    assert_eq!(answer.status(), 101);
    client
}

/// Bytes of binary messages, until there are `len` of them.
async fn receive(client: &mut WebSocketStream<TcpStream>, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    while bytes.len() < len {
        match timeout(PATIENCE, client.next()).await.unwrap().unwrap() {
            Ok(Message::Binary(part)) => {
                assert!(part.len() <= 64 << 10);
                bytes.extend(part);
            }
            other => panic!("{other:?}"),
        }
    }
    bytes
}

/// Sends a request and reads the head of the answer.
async fn ask(node: &Node, request: &str) -> (TcpStream, Reply) {
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
    }
    (socket, Reply::parse(&head, true))
}

fn bytes(len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from(n % 251).unwrap()).collect()
}

#[tokio::test]
async fn bytes_of_a_client_of_another_library_come_back() {
    for path in ["/", "/ws"] {
        let (node, arrivals) = node(Limits::default()).await;
        let echo = echo_next(arrivals);
        let mut client = client(&node, path).await;
        for len in [0, 1, 125, 126, 65_531, 65_535, 65_536, 300_000, 1 << 20] {
            let sent = bytes(len);
            let (mut to, mut from) = client.split();
            let sending = to.send(Message::Binary(sent.clone().into()));
            let receiving = async {
                let mut all = Vec::new();
                while all.len() < len {
                    all.extend(from.next().await.unwrap().unwrap().into_data());
                }
                all
            };
            let (sent_all, received) =
                timeout(PATIENCE, async { tokio::join!(sending, receiving) })
                    .await
                    .unwrap();
            sent_all.unwrap();
            assert!(received == sent, "{len} bytes");
            client = to.reunite(from).unwrap();
        }
        client
            .send(Message::Ping(Bytes::from_static(b"here?")))
            .await
            .unwrap();
        let answer = timeout(PATIENCE, client.next()).await.unwrap();
        let pong = Message::Pong(Bytes::from_static(b"here?"));
        assert_eq!(answer.unwrap().unwrap(), pong);
        client.close(None).await.unwrap();
        while let Some(Ok(message)) = client.next().await {
            assert!(message.is_close(), "{message:?}");
        }
        timeout(PATIENCE, echo).await.unwrap().unwrap().unwrap();
        node.stop().await;
    }
}

#[tokio::test]
async fn what_comes_with_the_handshake_is_not_lost() {
    let (node, arrivals) = node(Limits::default()).await;
    let _echo = echo_next(arrivals);
    let head = format!("GET / HTTP/1.1\r\nhost: x\r\n{ASKED}\r\n");
    let request = [head.as_bytes(), &frame(0x82, b"early")].concat();
    let mut socket = TcpStream::connect(node.address).await.unwrap();
    socket.write_all(&request).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"early") {
        answer.push(timeout(PATIENCE, socket.read_u8()).await.unwrap().unwrap());
    }
    let text = String::from_utf8_lossy(&answer).to_lowercase();
    assert!(text.starts_with("http/1.1 101"), "{text}");
    // The example of RFC 6455, section 1.3.
    let accept = "sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=";
    assert!(text.contains(accept), "{text}");
    assert!(!text.contains("sec-websocket-extensions"), "{text}");
}

#[tokio::test]
async fn handshakes_that_are_none_are_refused_with_what_is_missing() {
    let (node, mut arrivals) = node(Limits::default()).await;
    let without = |name: &str| -> String {
        let lines = ASKED.split_inclusive("\r\n");
        lines.filter(|line| !line.starts_with(name)).collect()
    };
    let other_key = |key: &str| {
        let other = format!(
            "{}sec-websocket-key: {key}\r\n",
            without("sec-websocket-key")
        );
        other
    };
    let cases = [
        (without("upgrade"), 426),
        (without("connection"), 426),
        (without("sec-websocket-version"), 426),
        (ASKED.replace("version: 13", "version: 8"), 426),
        (format!("{ASKED}sec-websocket-version: 13\r\n"), 426),
        (without("sec-websocket-key"), 400),
        (other_key("c2hvcnQ="), 400),
        (other_key("dGhlIHNhbXBsZSBub25jZQ"), 400),
        (other_key("not base64 at all!"), 400),
        (
            format!("{ASKED}sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n"),
            400,
        ),
        (format!("{ASKED}content-length: 1\r\n"), 400),
    ];
    for (fields, status) in cases {
        let request = format!("GET /ws HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
        let (_socket, reply) = ask(&node, &request).await;
        assert_eq!(reply.status, status, "{fields}");
        assert_eq!(reply.field("upgrade").is_some(), status == 426, "{fields}");
        assert!(arrivals.try_recv().is_err(), "{fields}");
    }
    let request = format!("GET /ws HTTP/1.0\r\nhost: x\r\n{ASKED}\r\n");
    assert_eq!(ask(&node, &request).await.1.status, 400);
    // Names and tokens are the same in any case, and over several fields.
    let fields = ASKED
        .replace("keep-alive, Upgrade", "keep-alive\r\nCONNECTION:  uPGRADE")
        .replace("websocket\r\n", "h2c , WebSocket\r\n");
    let request = format!("GET /ws HTTP/1.1\r\nhost: x\r\n{fields}\r\n");
    assert_eq!(ask(&node, &request).await.1.status, 101);
}

#[tokio::test]
async fn other_requests_do_not_notice_the_door() {
    let (open, mut arrivals) = node(Limits::default()).await;
    let closed = Node::start(Memory::default(), Limits::default()).await;
    for (method, path) in [
        ("HEAD", "/ws"),
        ("POST", "/ws"),
        ("OPTIONS", "/ws"),
        ("GET", "/"),
        ("GET", "/ws/"),
        ("GET", "/healthz"),
    ] {
        let [left, right] = [&open, &closed].map(|node| node.ask(method, path, &[]));
        let (left, right) = (left.await, right.await);
        assert_eq!((left.status, left.body), (right.status, right.body));
    }
    // An upgrade of anything else is no upgrade, and the connection goes on.
    for (node, path, status) in [
        (&open, "/healthz", 200),
        (&closed, "/ws", 404),
        (&closed, "/", 404),
    ] {
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n{ASKED}\r\n");
        assert_eq!(ask(node, &request).await.1.status, status, "{path}");
    }
    assert!(arrivals.try_recv().is_err());
}

#[tokio::test]
async fn a_full_queue_and_a_closed_one_are_503_with_a_time_to_come_back() {
    let (door, mut arrivals) = door(2);
    let options = ServeOptions {
        door: Some(door),
        ..ServeOptions::default()
    };
    let node = Node::start_with(Memory::default(), options).await;
    let request = format!("GET /ws HTTP/1.1\r\nhost: x\r\n{ASKED}\r\n");
    let _first = ask(&node, &request).await;
    let _second = ask(&node, &request).await;
    let (_third, reply) = ask(&node, &request).await;
    assert_eq!(reply.status, 503);
    assert!(reply.field("retry-after").is_some());
    drop(arrivals.recv().await);
    assert_eq!(ask(&node, &request).await.1.status, 101);
    drop(arrivals);
    assert_eq!(ask(&node, &request).await.1.status, 503);
}

/// HTTP's timeouts, its places and its end are no business of a connection that left it.
#[tokio::test]
async fn an_upgraded_connection_is_nobody_elses_but_the_drivers() {
    let limits = Limits {
        connections_max: 1,
        first_byte_timeout: Duration::from_millis(50),
        header_timeout: Duration::from_millis(50),
        idle_timeout: Duration::from_millis(50),
        progress_timeout: Duration::from_millis(50),
        request_timeout: Duration::from_millis(50),
        shutdown_timeout: Duration::from_secs(10),
        ..Limits::default()
    };
    let (node, mut arrivals) = node(limits).await;
    let mut client = client(&node, "/ws").await;
    let local = client.get_ref().local_addr().unwrap();
    let arrival = arrivals.recv().await.unwrap();
    assert_eq!(arrival.remote, local);
    let mut stream = arrival.stream.await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(node.get("/healthz").await.status, 200);
    timeout(PATIENCE, node.stop()).await.unwrap();
    client
        .send(Message::Binary(Bytes::from_static(b"still")))
        .await
        .unwrap();
    let mut bytes = [0; 5];
    stream.read_exact(&mut bytes).await.unwrap();
    assert_eq!(&bytes, b"still");
    drop(stream);
    let end = timeout(PATIENCE, client.next()).await.unwrap();
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
}

#[tokio::test]
async fn the_access_log_tells_who_left_http() {
    let output = Shared::default();
    let (log, writer) = AccessLog::start(Box::new(output.clone()), LogFormat::Json, 100).unwrap();
    let (door, mut arrivals) = door(1);
    let options = ServeOptions {
        access_log: Some(log),
        door: Some(door),
        ..ServeOptions::default()
    };
    let node = Node::start_with(Memory::default(), options).await;
    let _client = client(&node, "/ws").await;
    let _stream = arrivals.recv().await.unwrap().stream.await.unwrap();
    assert_eq!(node.get("/ws").await.status, 426);
    node.stop().await;
    writer.finish().unwrap();
    let text = output.text();
    let told: Vec<(serde_json::Value, serde_json::Value)> = text
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
        .map(|line| (line["uri"].clone(), line["status"].clone()))
        .collect();
    assert_eq!(
        told,
        [("/ws".into(), 101.into()), ("/ws".into(), 426.into())]
    );
}

#[tokio::test]
async fn an_upgrade_that_does_not_come_is_given_up() {
    let never = std::future::pending();
    let error = upgraded(never, Duration::from_millis(10)).await.err();
    assert_eq!(error.unwrap().kind(), ErrorKind::TimedOut);
}

/// A frame of a client.
fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
    let mut frame = claim(first, payload.len() as u64);
    let mask = [0x11, 0x22, 0x44, 0x88];
    frame.extend(mask);
    frame.extend(
        payload
            .iter()
            .zip(mask.iter().cycle())
            .map(|(byte, key)| byte ^ key),
    );
    frame
}

/// The head of a masked frame, up to its mask.
fn claim(first: u8, len: u64) -> Vec<u8> {
    let bytes: [u8; 8] = std::array::from_fn(|n| u8::try_from(len >> (56 - 8 * n) & 0xff).unwrap());
    match len {
        0..126 => vec![first, 0x80 | bytes[7]],
        126..65_536 => vec![first, 0xfe, bytes[6], bytes[7]],
        _ => [&[first, 0xff][..], &bytes].concat(),
    }
}

/// A stream and its client's end, with `room` bytes on the way.
fn pair(room: usize) -> (MessageStream<DuplexStream>, DuplexStream) {
    let (near, far) = tokio::io::duplex(room);
    (MessageStream::new(near, Vec::new()), far)
}

/// Everything that reading `sent` brings, the error at its end, and what the client got back.
async fn read_all(sent: &[u8]) -> (Vec<u8>, Option<io::Error>, Vec<u8>) {
    let (mut stream, mut far) = pair(1 << 20);
    far.write_all(sent).await.unwrap();
    far.shutdown().await.unwrap();
    let mut bytes = Vec::new();
    let outcome = timeout(PATIENCE, stream.read_to_end(&mut bytes))
        .await
        .unwrap();
    let _ = stream.close().await;
    drop(stream);
    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.unwrap();
    (bytes, outcome.err(), answer)
}

fn frame_error(error: io::Error) -> FrameError {
    *error.get_ref().unwrap().downcast_ref().unwrap()
}

/// Each is refused at the byte that shows it, with the code that RFC 6455 has for it.
#[tokio::test]
async fn hostile_frames_end_the_connection_with_their_reason() {
    let too_long = |len: u64| FrameError::TooLong(len);
    let long = FRAME_LEN_MAX + 1;
    let first = frame(0x02, b"first");
    let cases = [
        (claim(0x82, 256 << 20), too_long(256 << 20), 1009),
        (claim(0x82, long), too_long(long), 1009),
        (claim(0x02, (1 << 63) - 1), too_long((1 << 63) - 1), 1009),
        (claim(0x82, 1 << 63), FrameError::LongForm, 1002),
        (vec![0x82, 0xfe, 0, 125], FrameError::LongForm, 1002),
        (
            [&[0x82, 0xff][..], &[0, 0, 0, 0, 0, 0, 0xff, 0xff]].concat(),
            FrameError::LongForm,
            1002,
        ),
        (vec![0x82, 0x05], FrameError::Unmasked, 1002),
        (vec![0xc2], FrameError::ReservedBits, 1002),
        (vec![0xa2], FrameError::ReservedBits, 1002),
        (vec![0x92], FrameError::ReservedBits, 1002),
        (vec![0x83], FrameError::ReservedOpcode(3), 1002),
        (vec![0x8f], FrameError::ReservedOpcode(15), 1002),
        (frame(0x81, b"text"), FrameError::Text, 1003),
        (frame(0x01, b"text"), FrameError::Text, 1003),
        (frame(0x80, b"no beginning"), FrameError::Fragments, 1002),
        (
            [&first[..], &frame(0x82, b"second")].concat(),
            FrameError::Fragments,
            1002,
        ),
        (
            [&first[..], &frame(0x81, b"second")].concat(),
            FrameError::Fragments,
            1002,
        ),
        (
            [&first[..], &claim(0x80, 1 << 20), &[0; 4]].concat(),
            too_long((1 << 20) + 5),
            1009,
        ),
        (frame(0x89, &[0; 126]), FrameError::BadControl, 1002),
        (frame(0x09, b"half a ping"), FrameError::BadControl, 1002),
        (frame(0x08, b""), FrameError::BadControl, 1002),
        (frame(0x88, &[3]), FrameError::BadClose, 1002),
    ];
    for (sent, expected, code) in cases {
        let (bytes, error, answer) = read_all(&sent).await;
        assert_eq!(frame_error(error.unwrap()), expected, "{sent:x?}");
        assert!(bytes.is_empty() || bytes == b"first", "{sent:x?}");
        let code = u16::to_le_bytes(code);
        assert_eq!(answer, [0x88, 2, code[1], code[0]], "{sent:x?}");
    }
}

#[tokio::test]
async fn after_an_error_nothing_is_read_or_written() {
    let (mut stream, mut far) = pair(1 << 10);
    far.write_all(&frame(0x81, b"text")).await.unwrap();
    far.write_all(&frame(0x82, b"binary")).await.unwrap();
    let mut buffer = [0; 100];
    for _ in 0..3 {
        let error = stream.read(&mut buffer).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::InvalidData);
    }
    let error = stream.write(b"x").await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::BrokenPipe);
}

#[tokio::test]
async fn fragments_and_controls_between_them_read_as_one_stream() {
    let sent = [
        frame(0x02, b"al"),
        frame(0x89, b"ping"),
        frame(0x00, b""),
        frame(0x00, b"ph"),
        frame(0x8a, b"a pong that nobody asked for"),
        frame(0x80, b"a"),
        frame(0x82, b""),
        frame(0x82, b" beta"),
        frame(0x88, &[0x03, 0xe9, b'b', b'y', b'e']),
        frame(0x82, b" behind the end"),
    ];
    let (bytes, error, answer) = read_all(&sent.concat()).await;
    assert!(error.is_none(), "{error:?}");
    assert_eq!(bytes, b"alpha beta");
    assert_eq!(answer, b"\x8a\x04ping\x88\x02\x03\xe9");
}

/// A cut is no end: only a close frame is.
#[tokio::test]
async fn every_cut_is_reported() {
    let whole = [frame(0x02, b"one"), frame(0x80, b"two"), frame(0x88, b"")].concat();
    for cut in 0..whole.len() {
        let (_, error, _) = read_all(&whole[..cut]).await;
        assert_eq!(
            error.unwrap().kind(),
            ErrorKind::UnexpectedEof,
            "cut at {cut}"
        );
    }
    assert!(read_all(&whole).await.1.is_none());
}

/// Who claims the most that is allowed, and brings it byte by byte, costs a buffer at most.
#[tokio::test]
async fn nothing_is_allocated_for_what_is_only_claimed() {
    let mut open = Vec::new();
    for _ in 0..100 {
        let (mut stream, mut far) = pair(1 << 10);
        far.write_all(&claim(0x82, FRAME_LEN_MAX)).await.unwrap();
        far.write_all(&[1, 2, 3, 4]).await.unwrap();
        let mut buffer = [0; 100];
        for byte in 0..20 {
            far.write_all(&[byte]).await.unwrap();
            assert_eq!(stream.read(&mut buffer).await.unwrap(), 1);
            assert_eq!(buffer[0], byte ^ [1, 2, 3, 4][usize::from(byte % 4)]);
        }
        let reading = timeout(Duration::from_millis(1), stream.read(&mut buffer));
        assert!(reading.await.is_err());
        open.push((stream, far));
    }
    let buffered: usize = open.iter().map(|(stream, _)| stream.buffered()).sum();
    assert_eq!(buffered, 0);
    assert!(size_of::<MessageStream<TcpStream>>() < 1024);
}

#[tokio::test]
async fn a_flood_of_pings_is_answered_by_a_few_pongs_and_then_cut() {
    let (mut stream, mut far) = pair(64);
    let reading = tokio::spawn(async move {
        let mut buffer = [0; 100];
        let outcome = stream.read(&mut buffer).await;
        (outcome, stream)
    });
    // Pongs are not taken: there is room for one, and reading goes on.
    let ping = frame(0x89, &[7; 100]);
    for _ in 0..IDLE_FRAMES_MAX {
        far.write_all(&ping).await.unwrap();
    }
    assert!(!reading.is_finished());
    far.write_all(&ping[..6]).await.unwrap();
    let (outcome, stream) = timeout(PATIENCE, reading).await.unwrap().unwrap();
    assert_eq!(frame_error(outcome.unwrap_err()), FrameError::Idle);
    assert!(stream.buffered() < 10_000, "{}", stream.buffered());
}

#[tokio::test]
async fn pings_between_data_go_on_for_ever() {
    let (mut stream, mut far) = pair(1 << 16);
    let sending = async {
        for _ in 0..3 {
            for _ in 0..IDLE_FRAMES_MAX - 2 {
                far.write_all(&frame(0x89, b"")).await.unwrap();
            }
            far.write_all(&frame(0x82, b"x")).await.unwrap();
        }
        let mut pongs = Vec::new();
        far.write_all(&frame(0x88, b"")).await.unwrap();
        far.read_to_end(&mut pongs).await.unwrap();
    };
    let reading = async {
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).await.unwrap();
        drop(stream);
        assert_eq!(bytes, b"xxx");
    };
    timeout(PATIENCE, async { tokio::join!(sending, reading) })
        .await
        .unwrap();
}

/// What is written up to a flush is one frame, up to 64 KiB; nothing leaves before.
#[tokio::test]
async fn writes_become_frames_at_flushes() {
    let (mut stream, mut far) = pair(1 << 20);
    stream.write_all(b"one ").await.unwrap();
    stream.write_all(b"two").await.unwrap();
    let mut byte = [0];
    let early = timeout(Duration::from_millis(5), far.read(&mut byte));
    assert!(early.await.is_err());
    stream.flush().await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(&bytes(126)).await.unwrap();
    stream.flush().await.unwrap();
    stream.write_all(&bytes(100_000)).await.unwrap();
    stream.close().await.unwrap();
    assert_eq!(stream.buffered(), 0);
    drop(stream);
    let mut sent = Vec::new();
    far.read_to_end(&mut sent).await.unwrap();
    let second_len = 100_000 - 65_532;
    let expected = [
        b"\x82\x07one two",
        &[0x82, 126, 0, 126][..],
        &bytes(126),
        &[0x82, 126, 0xff, 0xfc],
        &bytes(100_000)[..65_532],
        &[
            0x82,
            126,
            u8::try_from(second_len / 256).unwrap(),
            u8::try_from(second_len % 256).unwrap(),
        ],
        &bytes(100_000)[65_532..],
        b"\x88\x02\x03\xe8",
    ];
    assert!(sent == expected.concat());
}

/// Two tasks share the stream, and the socket remembers one waker for writing: the reader that
/// answers pings must not take it from the writer.
#[tokio::test]
async fn a_reader_that_answers_pings_does_not_stop_a_writer() {
    let (stream, far) = pair(256);
    let (mut reader, mut writer) = stream.split();
    let (mut from, mut to) = tokio::io::split(far);
    let writing = tokio::spawn(async move {
        for _ in 0..200 {
            writer.write_all(&bytes(5_000)).await.unwrap();
            writer.flush().await.unwrap();
        }
    });
    let reading = tokio::spawn(async move {
        let mut buffer = [0; 10];
        while reader.read(&mut buffer).await.is_ok_and(|n| n > 0) {}
    });
    let pinging = tokio::spawn(async move {
        while to.write_all(&frame(0x89, b"!")).await.is_ok()
            && to.write_all(&frame(0x82, b"data")).await.is_ok()
        {
            tokio::task::yield_now().await;
        }
    });
    let taking = tokio::spawn(async move {
        let mut buffer = [0; 100];
        while from.read(&mut buffer).await.is_ok_and(|n| n > 0) {
            tokio::task::yield_now().await;
        }
    });
    timeout(PATIENCE, writing)
        .await
        .expect("the writer goes on")
        .unwrap();
    for task in [reading, pinging, taking] {
        task.abort();
    }
}

/// A client that closes its half and still takes bytes gets what was on its way.
#[tokio::test]
async fn a_half_closed_connection_is_written_to_until_it_fails() {
    let (node, mut arrivals) = node(Limits::default()).await;
    let mut client = client(&node, "/ws").await;
    let mut stream = arrivals.recv().await.unwrap().stream.await.unwrap();
    client.get_mut().shutdown().await.unwrap();
    let error = stream.read(&mut [0; 10]).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UnexpectedEof);
    stream.write_all(b"last words").await.unwrap();
    stream.close().await.unwrap();
    assert_eq!(receive(&mut client, 10).await, b"last words");
    let close = timeout(PATIENCE, client.next()).await.unwrap();
    let Some(Ok(Message::Close(Some(CloseFrame { code, .. })))) = close else {
        panic!("{close:?}");
    };
    assert_eq!(u16::from(code), 1000);
}
