//! Heads of HTTP/1.1 messages, kept as they came unless something is changed in them.
//!
//! In       a socket.
//! Out      [`Head`]s; what was read beyond one stays for the body.
//! Limits   [`HEAD_LEN_MAX`] bytes.
//! Not here bodies (`body`).

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

const HEAD_LEN_MAX: usize = 64 << 10;
const READ_LEN: usize = 16 << 10;

/// A socket, and what was read of it beyond the last head.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) socket: TcpStream,
    pub(super) ahead: Vec<u8>,
}

impl Stream {
    pub(super) fn new(socket: TcpStream) -> Self {
        let _ = socket.set_nodelay(true);
        Self {
            socket,
            ahead: Vec::new(),
        }
    }

    /// The next head; `None` when the other side closed before its first byte.
    pub(super) async fn head(&mut self) -> io::Result<Option<Head>> {
        loop {
            if let Some(at) = self.ahead.windows(4).position(|four| four == b"\r\n\r\n") {
                let rest = self.ahead.split_off(at + 4);
                let raw = std::mem::replace(&mut self.ahead, rest);
                return Ok(Some(Head { raw }));
            }
            if self.ahead.len() > HEAD_LEN_MAX {
                return Err(io::ErrorKind::InvalidData.into());
            }
            self.ahead.reserve(READ_LEN);
            if self.socket.read_buf(&mut self.ahead).await? == 0 {
                return match self.ahead.is_empty() {
                    true => Ok(None),
                    false => Err(io::ErrorKind::UnexpectedEof.into()),
                };
            }
        }
    }
}

/// The first line and the headers, with the empty line after them.
#[derive(Debug, Clone)]
pub(super) struct Head {
    pub(super) raw: Vec<u8>,
}

/// How the length of a body is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Len(u64),
    Chunked,
    UntilClose,
}

impl Head {
    fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.raw)
    }

    /// The words of the first line.
    fn word(&self, index: usize) -> String {
        let text = self.text();
        let line = text.lines().next().unwrap_or_default();
        line.split(' ').nth(index).unwrap_or_default().to_owned()
    }

    pub(super) fn method(&self) -> String {
        self.word(0)
    }

    /// Path and query as the client wrote them.
    pub(super) fn target(&self) -> String {
        self.word(1)
    }

    pub(super) fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or(0)
    }

    pub(super) fn header(&self, name: &str) -> Option<String> {
        let text = self.text();
        let mut lines = text.lines().skip(1).filter_map(|line| line.split_once(':'));
        let found = lines.find(|(key, _)| key.trim().eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.trim().to_owned())
    }

    /// Replaces a header, or adds it.
    pub(super) fn set(&mut self, name: &str, value: &str) {
        self.remove(name);
        self.raw.truncate(self.raw.len().saturating_sub(2));
        self.raw
            .extend(format!("{name}: {value}\r\n\r\n").into_bytes());
    }

    pub(super) fn remove(&mut self, name: &str) {
        let mut kept = Vec::with_capacity(self.raw.len());
        for (index, line) in self.raw.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let key = line.split(|byte| *byte == b':').next().unwrap_or_default();
            if index == 0 || !key.eq_ignore_ascii_case(name.as_bytes()) {
                kept.extend_from_slice(line);
            }
        }
        self.raw = kept;
    }

    pub(super) fn set_first_line(&mut self, line: &str) {
        let rest = self.raw.iter().position(|byte| *byte == b'\n');
        let rest = self.raw.split_off(rest.map_or(0, |at| at + 1));
        self.raw = format!("{line}\r\n").into_bytes();
        self.raw.extend(rest);
    }

    pub(super) fn wants_close(&self) -> bool {
        let close = self.header("connection");
        close.is_some_and(|value| value.eq_ignore_ascii_case("close"))
    }

    pub(super) fn is_chunked(&self) -> bool {
        let encoding = self.header("transfer-encoding");
        encoding.is_some_and(|value| value.eq_ignore_ascii_case("chunked"))
    }

    fn content_length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// Of the body of this request. `None`: not a form that is passed on.
    pub(super) fn request_body_len(&self) -> Option<u64> {
        if self.header("transfer-encoding").is_some() {
            return None;
        }
        Some(self.content_length().unwrap_or(0))
    }

    /// Of the body of this answer to `method`.
    pub(super) fn answer_framing(&self, method: &str) -> Framing {
        let status = self.status();
        if method == "HEAD" || status == 204 || status == 304 || status < 200 {
            return Framing::Len(0);
        }
        match self.content_length() {
            _ if self.is_chunked() => Framing::Chunked,
            Some(len) => Framing::Len(len),
            None => Framing::UntilClose,
        }
    }

    /// First byte and whole length of `Content-Range: bytes FIRST-LAST/WHOLE`.
    pub(super) fn content_range(&self) -> Option<(u64, u64)> {
        let value = self.header("content-range")?;
        let (range, whole) = value.strip_prefix("bytes ")?.split_once('/')?;
        let first = range.split('-').next()?.parse().ok()?;
        Some((first, whole.parse().ok()?))
    }
}
