//! Bodies on their way through, at a bandwidth.
//!
//! In       two sockets and a number of bytes.
//! Out      the bytes, moved by splice(2) or, where they are framed in chunks, copied.
//! Limits   one pipe a connection; a slice is what four milliseconds carry.
//! Not here changed bodies (`alter`).

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use tokio::io::{AsyncReadExt, AsyncWriteExt, Interest};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::head::Stream;

const PIPE_LEN: usize = 256 << 10;
const SLICE_LEN_MIN: u64 = 8 << 10;
/// How far sending may catch up after it was late.
const LATE_MAX: Duration = Duration::from_millis(40);

/// Keeps one connection to its bandwidth.
#[derive(Debug)]
pub(super) struct Pacer {
    bandwidth: Option<u64>,
    /// When the next byte may go.
    next: Instant,
}

impl Pacer {
    pub(super) fn new() -> Self {
        Self {
            bandwidth: None,
            next: Instant::now(),
        }
    }

    pub(super) const fn set(&mut self, bandwidth: Option<u64>) {
        self.bandwidth = bandwidth;
    }

    fn slice(&self, left: u64) -> usize {
        let slice = self.bandwidth.map_or(PIPE_LEN as u64, |rate| {
            (rate / 250).clamp(SLICE_LEN_MIN, PIPE_LEN as u64)
        });
        usize::try_from(slice.min(left)).unwrap_or(PIPE_LEN)
    }

    /// Waits until so many more bytes may have gone.
    async fn spent(&mut self, len: usize) {
        let Some(rate) = self.bandwidth else {
            return;
        };
        let now = Instant::now();
        let earliest = now.checked_sub(LATE_MAX).unwrap_or(now);
        let seconds = len as f64 / rate.max(1) as f64;
        self.next = self.next.max(earliest) + Duration::from_secs_f64(seconds);
        // The clock ticks in milliseconds: what is less is made up for by the next slice.
        if self.next > now + Duration::from_millis(1) {
            sleep_until(self.next).await;
        }
    }
}

/// Where bytes are between two splices.
#[derive(Debug)]
pub(super) struct Pipe {
    out: OwnedFd,
    into: OwnedFd,
}

impl Pipe {
    pub(super) fn new() -> io::Result<Self> {
        let (out, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // Refused to a user who has many; the default of 64 KiB works, too.
        let _ = rustix::pipe::fcntl_setpipe_size(&into, PIPE_LEN);
        Ok(Self { out, into })
    }
}

/// Passes on exactly `len` bytes; `count` hears of each part before it goes out, so that a client
/// that has all of a body finds all of it counted.
pub(super) async fn pass(
    from: &mut Stream,
    to: &mut TcpStream,
    len: u64,
    (pacer, pipe): (&mut Pacer, &Pipe),
    mut count: impl FnMut(u64),
) -> io::Result<()> {
    let mut left = len;
    while left > 0 && !from.ahead.is_empty() {
        let part = pacer.slice(left).min(from.ahead.len());
        let rest = from.ahead.split_off(part);
        count(part as u64);
        to.write_all(&std::mem::replace(&mut from.ahead, rest))
            .await?;
        left -= part as u64;
        pacer.spent(part).await;
    }
    while left > 0 {
        let moved = fill(&from.socket, pipe, pacer.slice(left)).await?;
        count(moved as u64);
        empty(pipe, to, moved).await?;
        left -= moved as u64;
        pacer.spent(moved).await;
    }
    Ok(())
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// Takes at least a byte and at most `len` into the pipe.
async fn fill(from: &TcpStream, pipe: &Pipe, len: usize) -> io::Result<usize> {
    let fill = || Ok(splice(from, None, &pipe.into, None, len, FLAGS)?);
    match from.async_io(Interest::READABLE, fill).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        moved => Ok(moved),
    }
}

/// Sends the `held` bytes that are in the pipe.
async fn empty(pipe: &Pipe, to: &TcpStream, mut held: usize) -> io::Result<()> {
    while held > 0 {
        let empty = || Ok(splice(&pipe.out, None, to, None, held, FLAGS)?);
        held -= to.async_io(Interest::WRITABLE, empty).await?;
    }
    Ok(())
}

/// Passes on what comes until the other side closes.
pub(super) async fn pass_until_close(
    from: &mut Stream,
    to: &mut TcpStream,
    (pacer, pipe): (&mut Pacer, &Pipe),
    mut count: impl FnMut(u64),
) -> io::Result<()> {
    match pass(from, to, u64::MAX, (pacer, pipe), &mut count).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(()),
        other => other,
    }
}

/// Passes on a chunked body with its framing; the framing is not counted.
pub(super) async fn pass_chunks(
    from: &mut Stream,
    to: &mut TcpStream,
    (pacer, pipe): (&mut Pacer, &Pipe),
    mut count: impl FnMut(u64),
) -> io::Result<()> {
    loop {
        let line = chunk_line(from).await?;
        to.write_all(&line).await?;
        let text = String::from_utf8_lossy(&line);
        let size = text.split(';').next().unwrap_or_default().trim();
        let size = u64::from_str_radix(size, 16)
            .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
        if size == 0 {
            break;
        }
        pass(from, to, size, (&mut *pacer, pipe), &mut count).await?;
        to.write_all(&chunk_line(from).await?).await?;
    }
    loop {
        let trailer = chunk_line(from).await?;
        to.write_all(&trailer).await?;
        if trailer == b"\r\n" {
            return Ok(());
        }
    }
}

/// A line with its end.
async fn chunk_line(from: &mut Stream) -> io::Result<Vec<u8>> {
    loop {
        if let Some(at) = from.ahead.iter().position(|byte| *byte == b'\n') {
            let rest = from.ahead.split_off(at + 1);
            return Ok(std::mem::replace(&mut from.ahead, rest));
        }
        if from.ahead.len() > PIPE_LEN {
            return Err(io::ErrorKind::InvalidData.into());
        }
        // Not more than a line needs: what follows is moved, not copied.
        let mut some = [0; 256];
        let n = from.socket.read(&mut some).await?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        from.ahead.extend(some.iter().take(n));
    }
}

/// Reads exactly `len` bytes.
pub(super) async fn collect(from: &mut Stream, len: u64) -> io::Result<Vec<u8>> {
    let len = usize::try_from(len).map_err(|_| io::ErrorKind::InvalidData)?;
    let have = len.min(from.ahead.len());
    let rest = from.ahead.split_off(have);
    let mut body = std::mem::replace(&mut from.ahead, rest);
    body.resize(len, 0);
    let (_, missing) = body.split_at_mut(have);
    from.socket.read_exact(missing).await?;
    Ok(body)
}

/// Writes bytes that were made here, at the bandwidth.
pub(super) async fn write(to: &mut TcpStream, bytes: &[u8], pacer: &mut Pacer) -> io::Result<()> {
    for part in bytes.chunks(pacer.slice(PIPE_LEN as u64)) {
        to.write_all(part).await?;
        pacer.spent(part.len()).await;
    }
    Ok(())
}
