//! HTTP/1.1 clients that cost little: bodies are counted and thrown away inside the kernel.
//!
//! In       an address, a path.
//! Out      [`Got`]: how much came, when the first byte did, when the last.
//! Limits   what a server answers is `Content-Length` or chunked; a cut body is an error.
//! Not here comparing content (`tests/it`), thousands of small requests (`load::wrk`).

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, recv};

use crate::shell::Result;

const HEAD_LEN_MAX: usize = 64 << 10;
/// A line that tells the size of a chunk.
const LINE_LEN_MAX: usize = 64;
const DISCARD_LEN: usize = 1 << 20;
/// A server that says nothing for so long is broken.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// One answer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Got {
    pub(crate) status: u16,
    pub(crate) len: u64,
    /// From the request to the first byte of the body.
    pub(crate) first_byte: Duration,
    pub(crate) total: Duration,
}

/// A connection that is kept.
#[derive(Debug)]
pub(crate) struct Connection {
    address: String,
    stream: TcpStream,
    scratch: Vec<u8>,
}

impl Connection {
    /// To `http://HOST:PORT`.
    pub(crate) fn open(url: &str) -> Result<Self> {
        let address = url.trim_start_matches("http://").to_owned();
        let stream = TcpStream::connect(&address)?;
        stream.set_read_timeout(Some(SILENCE_MAX))?;
        stream.set_nodelay(true)?;
        Ok(Self {
            address,
            stream,
            scratch: vec![0; DISCARD_LEN],
        })
    }

    /// Asks and waits for the whole body; `bytes` grows while it comes.
    pub(crate) fn get(&mut self, path: &str, headers: &str, bytes: &AtomicU64) -> Result<Got> {
        let start = Instant::now();
        let address = &self.address;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n");
        self.stream.write_all(request.as_bytes())?;
        let head = self.line_until(b"\r\n\r\n", HEAD_LEN_MAX)?;
        let first_byte = start.elapsed();
        let status = head.split(' ').nth(1).and_then(|word| word.parse().ok());
        let header = |name: &str| {
            let mut lines = head.lines().filter_map(|line| line.split_once(':'));
            lines
                .find(|(key, _)| key.eq_ignore_ascii_case(name))
                .map(|(_, value)| value.trim().to_owned())
        };
        let len = match header("content-length") {
            Some(len) => self.discard(len.parse()?, bytes)?,
            None if header("transfer-encoding").as_deref() == Some("chunked") => {
                self.discard_chunks(bytes)?
            }
            None => return Err(format!("{path}: neither a length nor chunks: {head}").into()),
        };
        Ok(Got {
            status: status.ok_or("an answer without a status")?,
            len,
            first_byte,
            total: start.elapsed(),
        })
    }

    /// Reads up to `end` and not beyond: what follows is looked at before it is taken.
    fn line_until(&mut self, end: &[u8], len_max: usize) -> Result<String> {
        let mut line = Vec::new();
        let mut part = [0; 1024];
        while !line.ends_with(end) {
            if line.len() > len_max {
                return Err("a line that does not end".into());
            }
            let peeked = self.stream.peek(&mut part)?;
            if peeked == 0 {
                return Err("a cut answer".into());
            }
            let have = line.len();
            line.extend(part.iter().take(peeked));
            let found = line.windows(end.len()).position(|window| window == end);
            line.truncate(found.map_or(line.len(), |at| at + end.len()));
            let taken = part.split_at_mut(line.len() - have).0;
            self.stream.read_exact(taken)?;
        }
        Ok(String::from_utf8(line)?)
    }

    fn discard_chunks(&mut self, bytes: &AtomicU64) -> Result<u64> {
        let mut total = 0;
        loop {
            let line = self.line_until(b"\r\n", LINE_LEN_MAX)?;
            let size = u64::from_str_radix(line.trim(), 16).map_err(|_| "a cut body")?;
            if size == 0 {
                // Trailers, or only the empty line.
                while self.line_until(b"\r\n", HEAD_LEN_MAX)? != "\r\n" {}
                return Ok(total);
            }
            total += self.discard(size, bytes)?;
            self.stream.read_exact(&mut [0; 2])?;
        }
    }

    fn discard(&mut self, len: u64, bytes: &AtomicU64) -> Result<u64> {
        let mut left = len;
        while left > 0 {
            let part = usize::try_from(left.min(DISCARD_LEN as u64))?;
            let into = self.scratch.split_at_mut(part).0;
            // With this flag TCP drops the bytes instead of copying them.
            let (_, dropped) = recv(&self.stream, into, RecvFlags::TRUNC)?;
            if dropped == 0 {
                return Err("a cut body".into());
            }
            left -= dropped as u64;
            bytes.fetch_add(dropped as u64, Ordering::Relaxed);
        }
        Ok(len)
    }
}

/// Runs `work` on so many threads at once and gathers what they return.
pub(crate) fn at_once<T: Send>(
    n_threads: usize,
    work: impl Fn(usize) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let text = |error: Box<dyn std::error::Error>| error.to_string();
    let done: Vec<std::result::Result<T, String>> = std::thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = (0..n_threads)
            .map(|index| scope.spawn(move || work(index).map_err(text)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, _>| {
            thread.join().unwrap_or_else(|_| Err("a panic".to_owned()))
        };
        threads.into_iter().map(join).collect()
    });
    Ok(done
        .into_iter()
        .collect::<std::result::Result<Vec<T>, String>>()?)
}

/// The value below which 99 of 100 lie.
pub(crate) fn percentile_99(mut values: Vec<Duration>) -> Duration {
    values.sort();
    let index = values.len().saturating_mul(99).div_ceil(100);
    values
        .get(index.saturating_sub(1))
        .copied()
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::Connection;

    #[test]
    fn answers_of_both_framings_are_counted_to_the_byte() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let answers: [&[u8]; 3] = [
                b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n\
                  3\r\nabc\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc",
            ];
            for answer in answers {
                let mut request = Vec::new();
                while !request.ends_with(b"\r\n\r\n") {
                    let mut byte = [0];
                    stream.read_exact(&mut byte).unwrap();
                    request.extend(byte);
                }
                stream.write_all(answer).unwrap();
            }
        });
        let (mut client, bytes) = (Connection::open(&url).unwrap(), AtomicU64::new(0));
        let got = client.get("/", "", &bytes).unwrap();
        assert_eq!((got.status, got.len), (200, 5));
        assert_eq!(client.get("/", "", &bytes).unwrap().len, 19);
        assert_eq!(bytes.load(Ordering::Relaxed), 24);
        assert!(client.get("/", "", &bytes).is_err());
        server.join().unwrap();
    }
}
