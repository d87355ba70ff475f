//! A plain HTTP/1.1 client that tells a cut answer from a whole one.
//!
//! In       one request, on a connection of its own.
//! Out      status, headers, body, and whether the body came to its proper end.
//! Limits   [`SILENCE_MAX`] without a byte fails the test.
//! Not here HTTP/2, TLS, redirects.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

/// Beyond every deadline of a server: a read that waits for a source takes up to a minute.
const SILENCE_MAX: Duration = Duration::from_secs(90);

/// What a server answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// False: the connection ended before the length or the last chunk said so.
    pub(crate) whole: bool,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let is_it = |(key, _): &&(String, String)| key.eq_ignore_ascii_case(name);
        self.headers
            .iter()
            .find(is_it)
            .map(|(_, value)| value.as_str())
    }

    /// Fails the test unless this is a whole answer of status 200.
    pub(crate) fn ok(self) -> Self {
        assert_eq!(self.status, 200, "{}", String::from_utf8_lossy(&self.body));
        assert!(self.whole, "cut after {} bytes", self.body.len());
        self
    }
}

/// One GET; `None` when nobody answers.
pub(crate) fn try_get(url: &str, path: &str) -> Option<Answer> {
    exchange(url, "GET", path, &[]).ok()
}

/// One request; fails the test when nobody answers.
pub(crate) fn request(url: &str, method: &str, path: &str, headers: &[(&str, &str)]) -> Answer {
    exchange(url, method, path, headers).unwrap_or_else(|error| panic!("{method} {path}: {error}"))
}

fn exchange(
    url: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> std::io::Result<Answer> {
    let address = url.strip_prefix("http://").unwrap();
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(SILENCE_MAX))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    stream.write_all(format!("{head}\r\n").as_bytes())?;
    let mut reader = BufReader::new(stream);
    let mut answer = read_head(&mut reader)?;
    let without_body = method == "HEAD" || matches!(answer.status, 204 | 304);
    answer.whole = without_body || read_body(&mut reader, &mut answer).is_ok();
    Ok(answer)
}

fn read_head(reader: &mut impl BufRead) -> std::io::Result<Answer> {
    let status_line = read_line(reader)?;
    let status = status_line
        .split(' ')
        .nth(1)
        .and_then(|word| word.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("status {status_line:?}")))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(reader)?;
        if line.is_empty() {
            return Ok(Answer {
                status,
                headers,
                body: Vec::new(),
                whole: false,
            });
        }
        let (name, value) = line
            .split_once(':')
            .ok_or_else(|| std::io::Error::other("header"))?;
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
}

fn read_body(reader: &mut impl BufRead, answer: &mut Answer) -> std::io::Result<()> {
    if let Some(len) = answer.header("content-length") {
        let len: u64 = len.parse().map_err(std::io::Error::other)?;
        return read_some(reader, len, &mut answer.body);
    }
    if answer.header("transfer-encoding") != Some("chunked") {
        reader.read_to_end(&mut answer.body)?;
        return Ok(());
    }
    loop {
        let line = read_line(reader)?;
        let len = u64::from_str_radix(line.split(';').next().unwrap_or_default().trim(), 16);
        match len.map_err(std::io::Error::other)? {
            0 => break,
            len => read_some(reader, len, &mut answer.body)?,
        }
        read_line(reader)?;
    }
    loop {
        let line = read_line(reader)?;
        match line.split_once(':') {
            Some((name, value)) => answer
                .headers
                .push((name.to_owned(), value.trim().to_owned())),
            None => return Ok(()),
        }
    }
}

fn read_some(reader: &mut impl Read, len: u64, body: &mut Vec<u8>) -> std::io::Result<()> {
    if reader.take(len).read_to_end(body)? as u64 == len {
        return Ok(());
    }
    Err(std::io::ErrorKind::UnexpectedEof.into())
}

/// A line without its end; an end of input before it is an error.
fn read_line(reader: &mut impl BufRead) -> std::io::Result<String> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.strip_suffix('\n') {
        Some(line) => Ok(line.trim_end_matches('\r').to_owned()),
        None => Err(std::io::ErrorKind::UnexpectedEof.into()),
    }
}
