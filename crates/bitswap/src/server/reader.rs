//! Frames out of one stream of a peer.
//!
//! In       a stream that the peer opened.
//! Out      one frame after the other, whole.
//! Limits   [`MESSAGE_LEN_MAX`] a frame, known before anything is kept of it; memory grows as bytes
//!          come, what is beyond [`FREE_LEN`] out of a room that all peers share; a frame that has
//!          begun must come at [`RATE_MIN`]; a stream that brings none for long is closed.
//! Not here what frames say (`wire`).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::ByteStream;
use crate::wire::{self, MESSAGE_LEN_MAX};

/// Bytes of a frame that need no room: want-lists of ordinary size.
const FREE_LEN: usize = 64 << 10;
/// Bytes that are asked of a stream at once.
const CHUNK_LEN: usize = 64 << 10;
/// Bytes that are asked for while no frame has begun.
const IDLE_CHUNK_LEN: usize = 512;
/// Time for the first byte of a frame to be followed by the rest of a small one.
const FRAME_TIME: Duration = Duration::from_secs(30);
/// Slowest rate at which a longer frame may come, in bytes a second.
const RATE_MIN: u64 = 8 << 10;
/// How long a long frame waits for room before its stream is broken off.
const ROOM_TIME: Duration = Duration::from_secs(5);
/// Unit of the room, in bytes.
const ROOM_UNIT: usize = 1024;

/// Room for long frames of all peers.
#[derive(Debug, Clone)]
pub(super) struct FrameRoom(Arc<Semaphore>);

impl FrameRoom {
    /// Room for `len` bytes, and for one frame at least.
    pub(super) fn new(len: usize) -> Self {
        Self(Arc::new(Semaphore::new(
            len.max(MESSAGE_LEN_MAX) / ROOM_UNIT,
        )))
    }

    /// Room for the next bytes of a long frame: what did not come takes none. One who has waited
    /// in vain gives up what it has, so that others can go on.
    async fn reserve(&self, len: usize) -> Result<OwnedSemaphorePermit, End> {
        let units = u32::try_from(len.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.0).acquire_many_owned(units);
        match timeout(ROOM_TIME, permit).await {
            Ok(Ok(permit)) => Ok(permit),
            Ok(Err(_)) | Err(_) => Err(End::Broken),
        }
    }
}

/// Why a stream is not read any more.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The peer closed it between two frames, or it was silent for long.
    Closed,
    /// It broke, or a frame did not come to its end in time.
    Broken,
    /// What came is no frame.
    Malformed,
}

/// A frame, and the room that it takes as long as it is looked at.
#[derive(Debug)]
pub(super) struct Frame {
    pub(super) bytes: Bytes,
    pub(super) _room: Option<OwnedSemaphorePermit>,
}

/// A stream and what was read of it beyond the last frame.
pub(super) struct Reader {
    stream: ByteStream,
    buffer: BytesMut,
    room: FrameRoom,
    idle_time: Duration,
}

impl Reader {
    pub(super) fn new(stream: ByteStream, room: FrameRoom, idle_time: Duration) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            room,
            idle_time,
        }
    }

    /// The next frame, and the reader to go on with.
    pub(super) async fn next(mut self) -> Result<(Self, Frame), End> {
        let mut deadline = Instant::now() + self.idle_time;
        let mut room = None;
        let mut wanted = IDLE_CHUNK_LEN;
        let mut begun = Begun::Not;
        loop {
            if begun == Begun::Not && !self.buffer.is_empty() {
                begun = Begun::Short;
                deadline = Instant::now() + FRAME_TIME;
            }
            match wire::frame_len(&self.buffer).map_err(|_| End::Malformed)? {
                Some((len, prefix_len)) if self.buffer.len() >= prefix_len + len => {
                    let mut bytes = self.buffer.split_to(prefix_len + len);
                    let _ = bytes.split_to(prefix_len);
                    if self.buffer.is_empty() {
                        self.buffer = BytesMut::new(); // A stream that rests holds no memory.
                    }
                    let bytes = bytes.freeze();
                    return Ok((self, Frame { bytes, _room: room }));
                }
                Some((len, prefix_len)) => {
                    wanted = (prefix_len + len - self.buffer.len()).min(CHUNK_LEN);
                    if len > FREE_LEN {
                        let more = self.room.reserve(wanted).await?;
                        merge(&mut room, more);
                        if begun == Begun::Short {
                            begun = Begun::Long;
                            deadline += Duration::from_secs((len as u64).div_ceil(RATE_MIN));
                        }
                    }
                }
                None => {}
            }
            let reading = self.read_some(wanted);
            match timeout_at(deadline, reading).await {
                Ok(Ok(0)) | Err(_) if self.buffer.is_empty() => return Err(End::Closed),
                Ok(Ok(0) | Err(_)) | Err(_) => return Err(End::Broken),
                Ok(Ok(_)) => {}
            }
        }
    }

    async fn read_some(&mut self, wanted: usize) -> std::io::Result<usize> {
        let before = self.buffer.len();
        self.buffer.resize(before + wanted, 0);
        let free = self.buffer.get_mut(before..).unwrap_or_default();
        let outcome = self.stream.read(free).await;
        let n_read = outcome.as_ref().map_or(0, |n| *n);
        self.buffer.truncate(before + n_read);
        outcome
    }
}

/// How much of a frame has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Not,
    Short,
    Long,
}

fn merge(room: &mut Option<OwnedSemaphorePermit>, more: OwnedSemaphorePermit) {
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
}
