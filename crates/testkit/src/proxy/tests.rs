//! A small origin with known bytes behind the proxy, and a client that sees cuts.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use super::{Conduct, Fault, Proxy};

const LEN: usize = 300_000;

fn content() -> Vec<u8> {
    let byte = |index: usize| u8::try_from((index * 7 + index / 256) % 251).unwrap();
    (0..LEN).map(byte).collect()
}

/// Answers on kept connections: `/chunked` in chunks, all else as one object with ranges.
fn origin() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let stream = stream.unwrap();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                while let Some(head) = read_head(&mut reader) {
                    if answer(&stream, &head).is_err() {
                        return;
                    }
                }
            });
        }
    });
    address
}

fn read_head(reader: &mut impl BufRead) -> Option<String> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    Some(head)
}

fn answer(mut stream: &TcpStream, head: &str) -> std::io::Result<()> {
    let body = content();
    if head.contains(" /chunked ") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        for part in body.chunks(70_001) {
            write!(stream, "{:x}\r\n", part.len())?;
            stream.write_all(part)?;
            stream.write_all(b"\r\n")?;
        }
        return stream.write_all(b"0\r\n\r\n");
    }
    let range = head.lines().find_map(|line| {
        let (first, last) = line.strip_prefix("Range: bytes=")?.split_once('-')?;
        Some((first.parse::<usize>().ok()?, last.parse::<usize>().ok()?))
    });
    let (status, first, last) = match range {
        Some((first, last)) => ("206 Partial Content", first, last),
        None => ("200 OK", 0, LEN - 1),
    };
    let part = &body[first..=last];
    write!(
        stream,
        "HTTP/1.1 {status}\r\nETag: \"sound\"\r\nContent-Length: {}\r\n\
         Content-Range: bytes {first}-{last}/{LEN}\r\n\r\n",
        part.len()
    )?;
    if head.starts_with("HEAD") {
        return Ok(());
    }
    stream.write_all(part)
}

#[derive(Debug)]
struct Answer {
    head: String,
    body: Vec<u8>,
    /// How reading the body ended early.
    broken: Option<ErrorKind>,
}

struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn new(proxy: &Proxy) -> Self {
        let stream = TcpStream::connect(proxy.address()).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        Self {
            stream: BufReader::new(stream),
        }
    }

    fn send(&mut self, method: &str, path: &str, headers: &str) {
        let head = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n");
        self.stream.get_mut().write_all(head.as_bytes()).unwrap();
    }

    fn get(&mut self, path: &str, headers: &str) -> Option<Answer> {
        self.send("GET", path, headers);
        let head = read_head(&mut self.stream)?;
        let len = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Length: "));
        let len: u64 = len.unwrap().parse().unwrap();
        let mut body = Vec::new();
        let read = (&mut self.stream).take(len).read_to_end(&mut body);
        let broken = match read {
            Err(error) => Some(error.kind()),
            Ok(n) if (n as u64) < len => Some(ErrorKind::UnexpectedEof),
            Ok(_) => None,
        };
        Some(Answer { head, body, broken })
    }
}

fn status(answer: &Answer) -> u16 {
    answer.head.split(' ').nth(1).unwrap().parse().unwrap()
}

const RANGE: &str = "Range: bytes=1000-200999\r\n";

fn part() -> Vec<u8> {
    content()[1000..201_000].to_vec()
}

fn with(fault: Fault) -> (Proxy, Client) {
    let proxy = Proxy::start(origin()).unwrap();
    proxy.set(Conduct::always(fault));
    let client = Client::new(&proxy);
    (proxy, client)
}

#[test]
fn answers_pass_unchanged_and_every_byte_is_counted() {
    let proxy = Proxy::start(origin()).unwrap();
    let mut client = Client::new(&proxy);
    for _ in 0..3 {
        let got = client.get("/a/b?x=1", RANGE).unwrap();
        assert_eq!((status(&got), got.broken), (206, None));
        assert!(got.body == part());
    }
    assert!(client.get("/c", "").unwrap().body == content());
    let counts = proxy.counts();
    assert_eq!(counts.body_bytes, 600_000 + LEN as u64);
    assert_eq!((counts.requests, counts.connections), (4, 1));
    assert_eq!(proxy.body_bytes_below("/a/"), 600_000);
    proxy.reset_counts();
    assert_eq!(proxy.counts().body_bytes, 0);
}

#[test]
fn a_head_request_has_no_body_and_the_connection_stays_usable() {
    let proxy = Proxy::start(origin()).unwrap();
    let mut client = Client::new(&proxy);
    client.send("HEAD", "/a", "");
    assert!(read_head(&mut client.stream).unwrap().contains("200 OK"));
    assert!(client.get("/a", "").unwrap().body == content());
}

#[test]
fn a_chunked_body_passes_with_its_framing() {
    let proxy = Proxy::start(origin()).unwrap();
    let mut client = Client::new(&proxy);
    client.send("GET", "/chunked", "Connection: close\r\n");
    let mut all = Vec::new();
    client.stream.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(b"0\r\n\r\n"));
    assert!(all.len() > LEN);
    assert_eq!(proxy.counts().body_bytes, LEN as u64);
}

#[test]
fn latency_and_bandwidth_hold_for_each_connection() {
    let proxy = Proxy::start(origin()).unwrap();
    proxy.set(Conduct {
        latency: Duration::from_millis(60),
        bandwidth: Some(1_500_000),
        faults: Vec::new(),
    });
    let start = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| assert!(Client::new(&proxy).get("/a", "").unwrap().body == content()));
        }
    });
    let took = start.elapsed().as_millis();
    assert!((200..600).contains(&took), "{took} ms for 60 + 200");
    assert_eq!(proxy.counts().in_flight_max, 4);
}

#[test]
fn an_error_strikes_exactly_its_share_of_requests() {
    let proxy = Proxy::start(origin()).unwrap();
    let fault = Fault::Status {
        code: 503,
        retry_after: Some(2),
    };
    proxy.set(Conduct::default().with(fault, 0.1));
    let mut client = Client::new(&proxy);
    let answers: Vec<Answer> = (0..50).map(|_| client.get("/a", RANGE).unwrap()).collect();
    let refused: Vec<_> = answers.iter().filter(|it| status(it) == 503).collect();
    assert_eq!(refused.len(), 5);
    assert!(refused[0].head.contains("Retry-After: 2"));
    assert!(String::from_utf8_lossy(&refused[0].body).contains("<Code>SlowDown</Code>"));
    assert_eq!(proxy.counts().body_bytes, 45 * 200_000);
}

#[test]
fn a_cut_body_is_shorter_than_it_claimed() {
    let (_proxy, mut client) = with(Fault::Cut);
    let got = client.get("/a", RANGE).unwrap();
    assert_eq!(got.broken, Some(ErrorKind::UnexpectedEof));
    assert!(got.body == part()[..100_000]);
}

#[test]
fn a_reset_connection_is_an_error_and_no_end() {
    let (_proxy, mut client) = with(Fault::Reset);
    let got = client.get("/a", RANGE).unwrap();
    assert_eq!(got.broken, Some(ErrorKind::ConnectionReset));
    let (_proxy, mut client) = with(Fault::Refuse);
    assert!(client.get("/a", RANGE).is_none());
}

#[test]
fn a_short_body_claims_to_be_whole() {
    let (_proxy, mut client) = with(Fault::Short);
    let got = client.get("/a", RANGE).unwrap();
    assert_eq!(got.broken, None);
    assert!(got.body == part()[..100_000]);
    assert!(got.head.contains("bytes 1000-200999/"));
}

#[test]
fn one_bit_is_another() {
    let (_proxy, mut client) = with(Fault::FlipBit);
    let got = client.get("/a", RANGE).unwrap().body;
    let differs = got.iter().zip(part()).filter(|(a, b)| *a != b).count();
    assert_eq!((got.len(), differs), (200_000, 1));
}

#[test]
fn a_lost_range_gives_the_whole_body() {
    let (_proxy, mut client) = with(Fault::IgnoreRange);
    let got = client.get("/a", RANGE).unwrap();
    assert_eq!(status(&got), 200);
    assert!(got.body == content());
    let signed = format!("{RANGE}Authorization: x\r\n");
    let got = client.get("/a", &signed).unwrap();
    assert_eq!((status(&got), got.body.len()), (200, LEN));
    assert!(got.body[1000..201_000] == part());
}

#[test]
fn heads_lie_about_version_range_and_status() {
    let (_proxy, mut client) = with(Fault::OtherVersion);
    let got = client.get("/a", RANGE).unwrap();
    assert!(!got.head.contains("\"sound\"") && got.head.contains("ETag: "));
    assert!(got.body == part());
    let (_proxy, mut client) = with(Fault::WrongContentRange);
    let got = client.get("/a", RANGE).unwrap();
    assert!(got.head.contains("Content-Range: bytes 201000-400999/"));
    let (_proxy, mut client) = with(Fault::RangeAs200);
    let got = client.get("/a", RANGE).unwrap();
    assert_eq!(status(&got), 200);
    assert!(!got.head.contains("Content-Range") && got.body == part());
}

#[test]
fn a_gzipped_body_says_so_and_can_be_unpacked() {
    let (_proxy, mut client) = with(Fault::Gzip);
    let got = client.get("/a", RANGE).unwrap();
    assert!(got.head.contains("Content-Encoding: gzip"));
    // Stored blocks: after the ten bytes of the header, five before each.
    let unpacked: Vec<u8> = got.body[10..got.body.len() - 8]
        .chunks(65_540)
        .flat_map(|block| block[5..].to_vec())
        .collect();
    assert!(unpacked == part());
}

#[test]
fn a_hanging_request_is_open_until_the_client_leaves() {
    for fault in [Fault::Hang, Fault::HangInBody] {
        let (proxy, mut client) = with(fault);
        client.send("GET", "/a", "");
        wait_for(&proxy, 1);
        drop(client);
        wait_for(&proxy, 0);
    }
}

#[test]
fn the_longest_prefix_decides_and_changes_while_it_runs() {
    let proxy = Proxy::start(origin()).unwrap();
    proxy.set_below("/stalled/", Conduct::always(Fault::Refuse));
    let mut client = Client::new(&proxy);
    assert_eq!(status(&client.get("/a", "").unwrap()), 200);
    assert!(client.get("/stalled/a", "").is_none());
    proxy.clear();
    assert!(Client::new(&proxy).get("/stalled/a", "").is_some());
}

fn wait_for(proxy: &Proxy, in_flight: u64) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while proxy.counts().in_flight != in_flight {
        assert!(Instant::now() < deadline, "{:?}", proxy.counts());
        std::thread::park_timeout(Duration::from_millis(1));
    }
}
