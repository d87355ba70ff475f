//! Messages onto one stream to a peer.
//!
//! In       a stream that we opened, a message in parts.
//! Out      the stream again, once the message is written and flushed.
//! Limits   a peer that takes less than [`Pace::rate_min`] for [`Pace::grace`] is given up.
//! Not here which message (`peer`).

use std::io;
use std::pin::Pin;
use std::task::Context;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::Instant;

use super::ByteStream;
use super::turns::Turns;

/// How fast a peer must take what it asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Bytes a second.
    pub rate_min: u64,
    /// Time over which it is measured; a quarter of it while others wait for room.
    pub grace: Duration,
}

/// Why a message was not written.
#[derive(Debug)]
pub(super) enum WriteError {
    /// The stream broke. Another may do.
    Broken(io::Error),
    /// The peer takes nothing.
    Stalled,
}

/// A stream to write messages to.
pub(super) struct Writer {
    stream: ByteStream,
    /// Messages that were written to it.
    n_messages: u64,
}

impl Writer {
    pub(super) const fn new(stream: ByteStream) -> Self {
        Self {
            stream,
            n_messages: 0,
        }
    }

    /// Whether the peer has closed its side: it reads one message a stream, perhaps, and would
    /// lose the next.
    pub(super) fn is_spent(&mut self) -> bool {
        let mut cx = Context::from_waker(futures_util::task::noop_waker_ref());
        let mut byte = [0];
        // A peer has nothing to say here: any answer is an end.
        self.n_messages > 0
            && Pin::new(&mut self.stream)
                .poll_read(&mut cx, &mut byte)
                .is_ready()
    }

    /// Writes one message. Not cancel-safe: a part of a message may have been written.
    pub(super) async fn write(
        mut self,
        parts: Vec<Bytes>,
        pace: Pace,
        turns: Turns,
    ) -> Result<Self, WriteError> {
        let mut paced = Paced::new(pace, turns);
        for part in parts {
            let mut rest = part.as_ref();
            while !rest.is_empty() {
                let writing =
                    std::future::poll_fn(|cx| Pin::new(&mut self.stream).poll_write(cx, rest));
                let n_written = paced.within(writing).await?;
                if n_written == 0 {
                    return Err(WriteError::Broken(io::ErrorKind::WriteZero.into()));
                }
                paced.wrote(n_written);
                rest = rest.get(n_written..).unwrap_or_default();
            }
        }
        paced.within(self.stream.flush()).await?;
        self.n_messages += 1;
        Ok(self)
    }
}

/// Measures how fast a message leaves.
struct Paced {
    pace: Pace,
    turns: Turns,
    since: Instant,
    n_bytes: u64,
}

impl Paced {
    fn new(pace: Pace, turns: Turns) -> Self {
        Self {
            pace,
            turns,
            since: Instant::now(),
            n_bytes: 0,
        }
    }

    /// Counts bytes; who keeps the pace begins anew.
    fn wrote(&mut self, n_bytes: usize) {
        self.n_bytes += n_bytes as u64;
        if self.n_bytes
            >= self
                .pace
                .rate_min
                .saturating_mul(self.pace.grace.as_secs().max(1))
        {
            self.n_bytes = 0;
            self.since = Instant::now();
        }
    }

    async fn within<T>(&self, step: impl Future<Output = io::Result<T>>) -> Result<T, WriteError> {
        tokio::pin!(step);
        let (soon, late) = (
            self.since + self.pace.grace / 4,
            self.since + self.pace.grace,
        );
        let outcome = match tokio::time::timeout_at(soon, step.as_mut()).await {
            Ok(outcome) => Ok(outcome),
            Err(_) if self.turns.is_pressed() => return Err(WriteError::Stalled),
            Err(_) => tokio::time::timeout_at(late, step).await,
        };
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(WriteError::Broken(error)),
            Err(_) => Err(WriteError::Stalled),
        }
    }
}
