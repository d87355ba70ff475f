//! Watches one connection: who is waited for, and for how long.
//!
//! In       counts of bytes read and written, requests, pieces of bodies handed out.
//! Out      a verdict at each tick: go on, ask the client to leave, or cut the connection.
//! Limits   five timeouts of [`Limits`], each kept to within a tick after it; for small answers to
//!          within a quarter after it.
//! Not here the clock: the listener calls [`Watch::tick`] at the interval of [`tick_interval`], so
//!          that no request and no read asks for the time. How long an answer may take to begin
//!          (`gateway::service`).
//!
//! A request is watched from its answer's head on: a large body or a streamed one by a [`Share`] of
//! its own, and a small one by being counted among those of its [`Generation`], which costs no
//! allocation and no lock. Both last until the last byte has left for the socket.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use super::accounts::Account;
use super::limits::Limits;

/// Ticks in the shortest timeout: the shortest is kept to within a quarter of it.
const TICKS_PER_TIMEOUT: u32 = 4;

/// A client that takes nothing is cut this many times sooner while others wait for the room that
/// its bytes take.
const PRESSED_PART: u32 = 4;

/// Generations of small answers that are told apart: one is cut when it is four old, or five, and
/// its place is taken again when it is eight old.
const GENERATIONS: u32 = 8;

/// Shared by the socket, the requests and the task of one connection.
#[derive(Debug)]
pub struct Watch {
    /// What the client's address has of the node.
    account: Account,
    /// Ticks of a generation of small answers.
    generation_ticks: u32,
    /// Ticks since the connection was accepted.
    now: AtomicU32,
    bytes_read: AtomicU64,
    bytes_written: AtomicU64,
    /// The last write was refused by the socket: the client's window is full.
    write_blocked: AtomicBool,
    requests_started: AtomicU64,
    requests_active: AtomicU32,
    http2: AtomicBool,
    /// Bodies that are not wholly written. Pruned at each tick.
    bodies: Mutex<Vec<Weak<Share>>>,
    /// Small answers that are not wholly written, by generation.
    small: [AtomicU32; GENERATIONS as usize],
}

/// When a small answer was given.
#[derive(Debug, Clone, Copy)]
pub struct Generation(usize);

/// One body's part in the watch. Held by the body and by each piece of it on its way out.
#[derive(Debug)]
pub struct Share {
    started: u32,
    moved: AtomicU32,
    /// The body waits for room in the node's budget: that is nobody's fault on this connection.
    waiting: AtomicBool,
}

/// Why a connection is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// Nothing was ever sent by the client.
    NoFirstByte,
    /// A request head was begun and not ended.
    SlowHeader,
    /// No request for a long time.
    Idle,
    /// The client takes no bytes, or the store gives none.
    NoProgress,
    /// One request took longer than any may.
    TooLong,
}

/// The timeouts in ticks.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    first_byte: u32,
    header: u32,
    idle: u32,
    progress: u32,
    pressed: u32,
    request: u32,
}

/// What the watch saw at earlier ticks. Kept by the one who calls [`Watch::tick`].
#[derive(Debug, Default)]
pub struct Seen {
    bytes_read: u64,
    bytes_written: u64,
    requests_started: u64,
    /// Tick at which the last request was seen to run.
    requested: u32,
    /// Tick at which a request head was seen to begin.
    head_begun: Option<u32>,
    /// Tick at which bytes were last seen to have left.
    wrote: u32,
    /// Tick at which the socket last took all it was given.
    flowed: u32,
}

impl Share {
    /// Says whether the body waits for room in the node's budget.
    pub fn set_waiting(&self, waiting: bool) {
        self.waiting.store(waiting, Relaxed);
    }
}

/// How often [`Watch::tick`] is to be called.
#[must_use]
pub fn tick_interval(limits: &Limits) -> Duration {
    let shortest = [
        limits.first_byte_timeout,
        limits.header_timeout,
        limits.idle_timeout,
        limits.progress_timeout,
        limits.request_timeout,
    ];
    let shortest = shortest.into_iter().min().unwrap_or_default();
    (shortest / TICKS_PER_TIMEOUT).max(Duration::from_millis(1))
}

impl Patience {
    /// The timeouts of `limits`, in ticks of [`tick_interval`].
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let tick_us = tick_interval(limits).as_micros().max(1);
        let ticks = |timeout: Duration| {
            u32::try_from(timeout.as_micros().div_ceil(tick_us)).unwrap_or(u32::MAX)
        };
        Self {
            first_byte: ticks(limits.first_byte_timeout),
            header: ticks(limits.header_timeout),
            idle: ticks(limits.idle_timeout),
            progress: ticks(limits.progress_timeout),
            pressed: ticks(limits.progress_timeout / PRESSED_PART),
            request: ticks(limits.request_timeout),
        }
    }
}

impl Watch {
    /// A watch over a connection that has just been accepted.
    #[must_use]
    pub fn new(account: Account, patience: &Patience) -> Self {
        Self {
            account,
            generation_ticks: patience.pressed.max(1),
            now: AtomicU32::new(0),
            bytes_read: AtomicU64::new(0),
            bytes_written: AtomicU64::new(0),
            write_blocked: AtomicBool::new(false),
            requests_started: AtomicU64::new(0),
            requests_active: AtomicU32::new(0),
            http2: AtomicBool::new(false),
            bodies: Mutex::default(),
            small: Default::default(),
        }
    }

    /// What the client's address has of the node.
    #[must_use]
    pub const fn account(&self) -> &Account {
        &self.account
    }

    /// Whether a request of HTTP/2 has come.
    #[must_use]
    pub fn is_http2(&self) -> bool {
        self.http2.load(Relaxed)
    }

    /// The client sent `len` bytes.
    pub fn read(&self, len: usize) {
        self.bytes_read.fetch_add(len as u64, Relaxed);
    }

    /// The socket took `len` bytes.
    pub fn wrote(&self, len: usize) {
        self.bytes_written.fetch_add(len as u64, Relaxed);
        self.write_blocked.store(false, Relaxed);
    }

    /// The socket takes no bytes now.
    pub fn write_blocked(&self) {
        self.write_blocked.store(true, Relaxed);
    }

    /// A request's head is complete.
    pub fn request_started(&self, http2: bool) {
        self.requests_started.fetch_add(1, Relaxed);
        self.requests_active.fetch_add(1, Relaxed);
        if http2 {
            self.http2.store(true, Relaxed);
        }
    }

    /// Its answer has been handed to the connection.
    pub fn request_ended(&self) {
        self.requests_active.fetch_sub(1, Relaxed);
    }

    /// Puts a small answer under watch, until [`Self::small_left`].
    #[must_use]
    pub fn small_answered(&self) -> Generation {
        let generation = self.now.load(Relaxed) / self.generation_ticks % GENERATIONS;
        let generation = Generation(generation as usize);
        if let Some(count) = self.small.get(generation.0) {
            count.fetch_add(1, Relaxed);
        }
        generation
    }

    /// A small answer is written, or given up.
    pub fn small_left(&self, generation: Generation) {
        if let Some(count) = self.small.get(generation.0) {
            count.fetch_sub(1, Relaxed);
        }
    }

    /// Whether a small answer was given at least `ticks` ago and is not written.
    fn has_small_of(&self, ticks: u32, now: u32) -> bool {
        let generation = now / self.generation_ticks;
        (1..GENERATIONS.min(generation + 1)).any(|n_ago| {
            let first_of_next = (generation - n_ago + 1) * self.generation_ticks;
            let slot = (generation - n_ago) % GENERATIONS;
            let count = self.small.get(slot as usize);
            now + 1 - first_of_next >= ticks && count.is_some_and(|count| count.load(Relaxed) > 0)
        })
    }

    /// Puts a body under watch.
    #[must_use]
    pub fn share(&self) -> Arc<Share> {
        let now = self.now.load(Relaxed);
        let share = Arc::new(Share {
            started: now,
            moved: AtomicU32::new(now),
            waiting: AtomicBool::new(false),
        });
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        bodies.push(Arc::downgrade(&share));
        share
    }

    /// A piece of the body was handed out.
    pub fn moved(&self, share: &Share) {
        share.moved.store(self.now.load(Relaxed), Relaxed);
    }

    /// One tick later: must the connection go? `pressed`: others wait for room.
    pub fn tick(&self, seen: &mut Seen, patience: &Patience, pressed: bool) -> Option<Cut> {
        let now = self.now.fetch_add(1, Relaxed).saturating_add(1);
        let cut = self
            .cut_for_progress(now, seen, patience, pressed)
            .or_else(|| self.cut_for_requests(now, seen, patience));
        seen.bytes_read = self.bytes_read.load(Relaxed);
        cut
    }

    /// Answers that do not get away.
    fn cut_for_progress(
        &self,
        now: u32,
        seen: &mut Seen,
        patience: &Patience,
        pressed: bool,
    ) -> Option<Cut> {
        let progress = if pressed {
            patience.pressed
        } else {
            patience.progress
        };
        let written = self.bytes_written.load(Relaxed);
        if written != seen.bytes_written {
            seen.bytes_written = written;
            seen.wrote = now;
        }
        if !self.write_blocked.load(Relaxed) {
            seen.flowed = now;
        }
        let since_written = now.saturating_sub(seen.wrote);
        if now.saturating_sub(seen.flowed).min(since_written) >= progress {
            return Some(Cut::NoProgress);
        }
        if self.has_small_of(progress, now) {
            return Some(Cut::NoProgress);
        }
        let http2 = self.http2.load(Relaxed);
        let mut bodies = self.bodies.lock().unwrap_or_else(PoisonError::into_inner);
        let mut cut = None;
        bodies.retain(|body| {
            let Some(share) = body.upgrade() else {
                return false;
            };
            if share.waiting.load(Relaxed) {
                self.moved(&share);
            }
            if now.saturating_sub(share.started) >= patience.request {
                cut = Some(Cut::TooLong);
            } else if now.saturating_sub(share.moved.load(Relaxed)) >= progress
                && (http2 || since_written >= progress)
            {
                // A stream of HTTP/2 may stand still on a connection that moves; on HTTP/1 bytes
                // that leave are this body's.
                cut = Some(Cut::NoProgress);
            }
            true
        });
        cut
    }

    /// Requests that do not come.
    fn cut_for_requests(&self, now: u32, seen: &mut Seen, patience: &Patience) -> Option<Cut> {
        let started = self.requests_started.load(Relaxed);
        if self.requests_active.load(Relaxed) > 0 || started != seen.requests_started {
            seen.requests_started = started;
            seen.requested = now;
            seen.head_begun = None;
            return None;
        }
        let bytes_read = self.bytes_read.load(Relaxed);
        if bytes_read == 0 {
            return (now >= patience.first_byte).then_some(Cut::NoFirstByte);
        }
        // HTTP/2 clients send frames that are no request: only their silence about requests counts.
        let head_may_be_begun = started == 0 || !self.http2.load(Relaxed);
        if head_may_be_begun && bytes_read != seen.bytes_read && seen.head_begun.is_none() {
            seen.head_begun = Some(now);
        }
        if let Some(begun) = seen.head_begun
            && now.saturating_sub(begun) >= patience.header
        {
            return Some(Cut::SlowHeader);
        }
        (now.saturating_sub(seen.requested) >= patience.idle).then_some(Cut::Idle)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Timeouts of 4, 8, 12, 16 and 40 ticks.
    fn patience() -> Patience {
        let limits = Limits {
            first_byte_timeout: Duration::from_millis(4),
            header_timeout: Duration::from_millis(8),
            idle_timeout: Duration::from_millis(12),
            progress_timeout: Duration::from_millis(16),
            request_timeout: Duration::from_millis(40),
            ..Limits::default()
        };
        assert_eq!(tick_interval(&limits), Duration::from_millis(1));
        Patience::new(&limits)
    }

    fn fresh() -> Watch {
        Watch::new(Account::default(), &patience())
    }

    /// Ticks until the connection is cut, with `act` before each.
    fn ticks_to_cut(watch: &Watch, act: impl Fn(u32)) -> (u32, Cut) {
        let (mut seen, patience) = (Seen::default(), patience());
        for tick in 1..1000 {
            act(tick);
            if let Some(cut) = watch.tick(&mut seen, &patience, false) {
                return (tick, cut);
            }
        }
        panic!("never cut");
    }

    #[test]
    fn silence_after_accept_is_cut() {
        assert_eq!(ticks_to_cut(&fresh(), |_| ()), (4, Cut::NoFirstByte));
    }

    #[test]
    fn a_head_that_dribbles_is_cut() {
        let watch = fresh();
        assert_eq!(
            ticks_to_cut(&watch, |_| watch.read(1)),
            (9, Cut::SlowHeader)
        );
    }

    #[test]
    fn a_second_head_that_dribbles_is_cut() {
        let watch = fresh();
        let cut = ticks_to_cut(&watch, |tick| {
            if tick == 1 {
                watch.read(100);
                watch.request_started(false);
                watch.request_ended();
            } else if tick > 2 {
                watch.read(1);
            }
        });
        assert_eq!(cut, (11, Cut::SlowHeader));
    }

    #[test]
    fn an_idle_connection_is_cut_whatever_frames_come() {
        let watch = fresh();
        let cut = ticks_to_cut(&watch, |tick| {
            watch.read(17);
            if tick == 1 {
                watch.request_started(true);
                watch.request_ended();
            }
        });
        assert_eq!(cut, (13, Cut::Idle));
    }

    #[test]
    fn a_client_that_takes_nothing_is_cut_and_one_that_takes_little_is_not() {
        let watch = fresh();
        watch.read(1);
        watch.request_started(false);
        let (mut seen, patience) = (Seen::default(), patience());
        for _ in 0..1000 {
            watch.write_blocked();
            watch.wrote(1);
            watch.write_blocked();
            assert_eq!(watch.tick(&mut seen, &patience, false), None);
        }
        assert_eq!(ticks_to_cut(&watch, |_| ()).1, Cut::NoProgress);
    }

    #[test]
    fn a_stream_that_stands_still_on_a_moving_connection_is_cut() {
        let watch = fresh();
        watch.read(1);
        watch.request_started(true);
        let share = watch.share();
        let cut = ticks_to_cut(&watch, |tick| {
            watch.wrote(1);
            if tick < 10 {
                watch.moved(&share);
            }
        });
        assert_eq!(cut, (24, Cut::NoProgress));
        drop(share);
        assert_eq!(watch.bodies.lock().unwrap().len(), 1);
        watch.tick(&mut Seen::default(), &patience(), false);
        assert_eq!(watch.bodies.lock().unwrap().len(), 0);
    }

    #[test]
    fn a_request_that_moves_for_ever_is_cut() {
        let watch = fresh();
        watch.read(1);
        watch.request_started(true);
        let share = watch.share();
        assert_eq!(
            ticks_to_cut(&watch, |_| watch.moved(&share)),
            (40, Cut::TooLong)
        );
    }

    #[test]
    fn a_small_answer_that_stands_still_is_cut_whatever_else_moves() {
        // Timeouts of 16 ticks, and generations of 4: within 16 to 20 ticks, whenever it began.
        for begun in 1..70 {
            let watch = fresh();
            watch.read(1);
            let (cut, why) = ticks_to_cut(&watch, |tick| {
                watch.wrote(1);
                watch.request_started(true);
                if tick == begun {
                    let _ = watch.small_answered();
                } else {
                    let generation = watch.small_answered();
                    watch.small_left(generation);
                    watch.request_ended();
                }
            });
            assert_eq!(why, Cut::NoProgress);
            assert!((16..=20).contains(&(cut + 1 - begun)), "{begun}: {cut}");
        }
    }

    #[test]
    fn while_others_wait_for_room_small_answers_go_sooner_too() {
        let (watch, mut seen) = (fresh(), Seen::default());
        watch.read(1);
        watch.request_started(true);
        let _ = watch.small_answered();
        let cut = (1..).find(|_| watch.tick(&mut seen, &patience(), true).is_some());
        assert!(cut.is_some_and(|cut| (4..=8).contains(&cut)), "{cut:?}");
    }

    #[test]
    fn while_others_wait_for_room_the_stalled_go_sooner_and_the_waiting_stay() {
        let watch = fresh();
        watch.read(1);
        watch.request_started(true);
        let share = watch.share();
        let (mut seen, patience) = (Seen::default(), patience());
        share.set_waiting(true);
        for _ in 0..39 {
            assert_eq!(watch.tick(&mut seen, &patience, true), None);
        }
        let watch = fresh();
        watch.read(1);
        watch.request_started(true);
        let share = watch.share();
        let mut seen = Seen::default();
        let cut = (1..).find(|_| watch.tick(&mut seen, &patience, true).is_some());
        assert_eq!(cut, Some(4));
        drop(share);
    }
}
