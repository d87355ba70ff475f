//! A web server that answers as a test says, right or wrong.
//!
//! In       a function from a request to the bytes of its answer.
//! Out      [`Web`]: its URL, and what it was asked.
//! Limits   one request a connection, a thread a connection; heads of up to 64 KiB.
//! Not here servers as they are met in the world (`carrack_testkit::Nginx`).

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

/// A request.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) method: String,
    /// Path and query, as they were sent.
    pub(crate) target: String,
    /// All of the head.
    pub(crate) head: String,
}

impl Asked {
    /// The value of a header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (key, value) = line.split_once(':')?;
            key.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }

    /// First and last byte of the range that is asked for, in a body of `len` bytes.
    pub(crate) fn range(&self, len: usize) -> Option<(usize, usize)> {
        let range = self.header("range")?.strip_prefix("bytes=")?;
        let (first, last) = range.split_once('-')?;
        let last = last.parse().unwrap_or(usize::MAX).min(len.max(1) - 1);
        Some((first.parse().ok()?, last))
    }

    /// An answer with a body, which HEAD does not get.
    pub(crate) fn answer(&self, status: u16, headers: &str, body: &[u8]) -> Vec<u8> {
        let len = body.len();
        let mut out = format!(
            "HTTP/1.1 {status} X\r\nConnection: close\r\nContent-Length: {len}\r\n{headers}\r\n"
        )
        .into_bytes();
        if self.method != "HEAD" {
            out.extend_from_slice(body);
        }
        out
    }

    /// A page of links.
    pub(crate) fn page(&self, links: &[&[u8]]) -> Vec<u8> {
        let mut body = b"<html><body>".to_vec();
        for link in links {
            body.extend_from_slice(b"<a href=\"");
            body.extend_from_slice(link);
            body.extend_from_slice(b"\">name</a>\n");
        }
        self.answer(200, "Content-Type: text/html\r\n", &body)
    }

    /// A file, whole or a range of it, as a good server gives it.
    pub(crate) fn file(&self, content: &[u8]) -> Vec<u8> {
        self.file_with("", content)
    }

    /// The same with more headers.
    pub(crate) fn file_with(&self, headers: &str, content: &[u8]) -> Vec<u8> {
        let len = content.len();
        let headers = format!("{headers}ETag: \"tag-{len}\"\r\nAccept-Ranges: bytes\r\n");
        match self.range(len) {
            Some((first, _)) if first >= len => {
                let headers = format!("{headers}Content-Range: bytes */{len}\r\n");
                self.answer(416, &headers, b"")
            }
            Some((first, last)) => {
                let headers = format!("{headers}Content-Range: bytes {first}-{last}/{len}\r\n");
                self.answer(206, &headers, &content[first..=last])
            }
            None => self.answer(200, &headers, content),
        }
    }

    /// Sends on to another URL.
    pub(crate) fn sends_on(&self, to: &str) -> Vec<u8> {
        self.answer(302, &format!("Location: {to}\r\n"), b"")
    }
}

/// A running server. It ends when it is dropped.
#[derive(Debug)]
pub(crate) struct Web {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Asked>>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Web {
    pub(crate) fn start(answer: impl Fn(&Asked) -> Vec<u8> + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, stop) = (Arc::<Mutex<Vec<Asked>>>::default(), Arc::default());
        let (answer, log, stopped) = (Arc::new(answer), Arc::clone(&asked), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if AtomicBool::load(&stopped, Ordering::SeqCst) {
                    return;
                }
                let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                std::thread::spawn(move || {
                    let _ = converse(stream, &*answer, &log);
                });
            }
        });
        Self {
            address,
            asked,
            stop,
            thread: Some(thread),
        }
    }

    /// `http://127.0.0.1:PORT`
    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(crate) const fn port(&self) -> u16 {
        self.address.port()
    }

    /// All requests so far.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }

    /// How many of them began so.
    pub(crate) fn n_asked(&self, target: &str) -> usize {
        let asked = self.asked();
        asked
            .iter()
            .filter(|one| one.target.starts_with(target))
            .count()
    }
}

fn converse(
    mut stream: TcpStream,
    answer: &dyn Fn(&Asked) -> Vec<u8>,
    log: &Mutex<Vec<Asked>>,
) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    let (mut head, mut buffer) = (Vec::new(), [0; 4096]);
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        let n = stream.read(&mut buffer)?;
        if n == 0 || head.len() > 64 << 10 {
            return Ok(());
        }
        head.extend_from_slice(&buffer[..n]);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let mut words = head.split(' ');
    let asked = Asked {
        method: words.next().unwrap_or_default().to_owned(),
        target: words.next().unwrap_or_default().to_owned(),
        head: head.clone(),
    };
    log.lock().unwrap().push(asked.clone());
    stream.write_all(&answer(&asked))
}

impl Drop for Web {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
