//! Frames out of one stream of a peer.
//!
//! In       a stream that the peer opened.
//! Out      one frame after the other, whole.
//! Limits   [`MESSAGE_LEN_MAX`] a frame, known before anything is kept of it; memory grows as bytes
//!          come, what is beyond [`FREE_LEN`] out of a room of the peer, and that of long frames
//!          out of one that all peers share, too; a frame that has begun must come at
//!          [`RATE_MIN`]; a stream that brings none for long is closed.
//! Not here what frames say (`wire`).

use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::AsyncReadExt;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout, timeout_at};

use super::ByteStream;
use crate::budget::{Account, Held, Room, Shares};
use crate::wire::{self, MESSAGE_LEN_MAX};

/// Bytes of a frame that need no room at all.
const FREE_LEN: usize = 4 << 10;
/// Bytes of a frame that takes room of its own peer alone: want-lists of ordinary size.
const SHORT_LEN: usize = 64 << 10;
/// Bytes of short frames that a peer may have begun, on whatever streams.
const SHORT_OF_PEER: usize = 2 * SHORT_LEN;
/// The same of long ones.
const LONG_OF_PEER: usize = 2 * MESSAGE_LEN_MAX;
/// Bytes that frames of a peer take at most while they come, with so many streams.
pub(super) const fn peer_len_max(streams_max: usize) -> usize {
    streams_max * FREE_LEN + SHORT_OF_PEER + LONG_OF_PEER
}
/// Addresses and subnets may have this part of what is free.
const FREE_PART: usize = 4;
/// Bytes that are asked of a stream at once.
const CHUNK_LEN: usize = 64 << 10;
/// Bytes that are asked for while no frame has begun.
const IDLE_CHUNK_LEN: usize = 512;
/// Time for the first byte of a frame to be followed by the rest of a small one.
const FRAME_TIME: Duration = Duration::from_secs(30);
/// Slowest rate at which a longer frame may come, in bytes a second.
const RATE_MIN: u64 = 8 << 10;
/// How long a frame waits for room before its stream is broken off.
const ROOM_TIME: Duration = Duration::from_secs(5);
/// How soon it looks again whether its address has less.
const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// Unit of the room, in bytes.
const ROOM_UNIT: usize = 1024;

/// Room for long frames of all peers.
#[derive(Debug, Clone)]
pub(super) struct FrameRoom {
    all: Arc<Semaphore>,
    shares: Shares,
}

impl FrameRoom {
    /// Room for `len` bytes, and for one frame at least.
    pub(super) fn new(len: usize, shares: Shares) -> Self {
        let len = len.max(MESSAGE_LEN_MAX);
        Self {
            all: Arc::new(Semaphore::new(len / ROOM_UNIT)),
            shares,
        }
    }
}

/// Room for the frames of one peer.
#[derive(Debug, Clone)]
pub(super) struct PeerFrames {
    room: FrameRoom,
    short: Arc<Semaphore>,
    long: Arc<Semaphore>,
}

impl PeerFrames {
    pub(super) fn new(room: &FrameRoom) -> Self {
        Self {
            room: room.clone(),
            short: Arc::new(Semaphore::new(SHORT_OF_PEER / ROOM_UNIT)),
            long: Arc::new(Semaphore::new(LONG_OF_PEER / ROOM_UNIT)),
        }
    }

    /// Room for those that come by way of `account`.
    pub(super) fn of(&self, account: Arc<Account>) -> Frames {
        Frames {
            peer: self.clone(),
            account,
        }
    }
}

/// Room for the frames of one stream.
#[derive(Debug)]
pub(super) struct Frames {
    peer: PeerFrames,
    account: Arc<Account>,
}

impl Frames {
    /// Room for the next bytes of a frame of `frame_len`: what did not come takes none. One who has
    /// waited in vain gives up what it has, so that others can go on.
    async fn reserve(&self, frame_len: usize, len: usize) -> Result<Reserved, End> {
        let reserved = timeout(ROOM_TIME, async {
            if frame_len <= SHORT_LEN {
                return Some(Reserved {
                    _own: acquire(&self.peer.short, len).await?,
                    _all: None,
                });
            }
            let own = acquire(&self.peer.long, len).await?;
            let held = self.share(len).await;
            let all = acquire(&self.peer.room.all, len).await?;
            Some(Reserved {
                _own: own,
                _all: Some((all, held)),
            })
        });
        reserved.await.ok().flatten().ok_or(End::Broken)
    }

    /// A part of what its address and subnet may have.
    async fn share(&self, len: usize) -> Held {
        let room = &self.peer.room;
        loop {
            let free = room.all.available_permits() * ROOM_UNIT;
            let shares = room.shares.within(free / FREE_PART);
            if let Some(held) = self.account.hold(Room::Frames, len, shares) {
                return held;
            }
            tokio::time::sleep(ROOM_PAUSE).await;
        }
    }
}

async fn acquire(room: &Arc<Semaphore>, len: usize) -> Option<OwnedSemaphorePermit> {
    let units = u32::try_from(len.div_ceil(ROOM_UNIT)).unwrap_or(u32::MAX);
    Arc::clone(room).acquire_many_owned(units).await.ok()
}

/// Room that the bytes of a frame take.
#[derive(Debug)]
struct Reserved {
    _own: OwnedSemaphorePermit,
    _all: Option<(OwnedSemaphorePermit, Held)>,
}

impl Reserved {
    fn merge(&mut self, more: Self) {
        self._own.merge(more._own);
        match (&mut self._all, more._all) {
            (Some((all, held)), Some((more, more_held))) => {
                all.merge(more);
                held.merge(more_held);
            }
            (all, more) => *all = all.take().or(more),
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
    _room: Option<Reserved>,
}

/// A stream and what was read of it beyond the last frame.
pub(super) struct Reader {
    stream: ByteStream,
    buffer: BytesMut,
    frames: Frames,
    idle_time: Duration,
}

impl Reader {
    pub(super) fn new(stream: ByteStream, frames: Frames, idle_time: Duration) -> Self {
        Self {
            stream,
            buffer: BytesMut::new(),
            frames,
            idle_time,
        }
    }

    /// The next frame, and the reader to go on with.
    pub(super) async fn next(mut self) -> Result<(Self, Frame), End> {
        let mut deadline = Instant::now() + self.idle_time;
        let mut room = None;
        let mut wanted = IDLE_CHUNK_LEN;
        // Where in the buffer the bytes end that there is room for.
        let mut reserved = 0_usize;
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
                    let missing = (prefix_len + len - self.buffer.len()).min(CHUNK_LEN);
                    wanted = match reserved.checked_sub(self.buffer.len()) {
                        _ if len <= FREE_LEN => missing,
                        Some(wanted @ 1..) => wanted,
                        _ => {
                            let more = self.frames.reserve(len, missing).await?;
                            merge(&mut room, more);
                            reserved = self.buffer.len() + missing;
                            missing
                        }
                    };
                    if begun == Begun::Short && len > SHORT_LEN {
                        begun = Begun::Long;
                        deadline += Duration::from_secs((len as u64).div_ceil(RATE_MIN));
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

fn merge(room: &mut Option<Reserved>, more: Reserved) {
    match room {
        Some(room) => room.merge(more),
        None => *room = Some(more),
    }
}
