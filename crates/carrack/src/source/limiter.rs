//! How many requests one source is asked at a time, and whose turn it is.
//!
//! In       wants of a request by [`Lane`] and flow; how each request went.
//! Out      [`Permit`]s: Block before Stream before Ahead before Background, in turn between the
//!          flows of a lane, first come first served within a flow.
//! Limits   [`LIMIT_START`] at first; more by one a success until the source shows that it is at
//!          its bound, then by one a round; never more than [`LIMIT_MAX`]. Half, once a round trip,
//!          when the source says it is too much; none while it asked to be left alone.
//! Not here bytes in memory (`store::extent`), whether the source answers at all
//!          (`source::health`).
//!
//! An answer that takes more than twice the least time of late says that the source queues: more
//! requests would only wait there instead of here, where their order can still change.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;
use tokio::time::sleep;

use crate::source::{SourceError, SourceErrorKind};

/// What a source surely bears: browsers open six connections, SDKs of buckets ten and more.
const LIMIT_START: u32 = 16;
/// 57 of them for streams: 30 ms to an object of a few KiB are then 1900 of them a second.
/// More connections help nobody at 1 Gbit/s, and servers with a bound commonly have it at 100.
const LIMIT_MAX: u32 = 64;
/// One request, and one for those who may not wait.
const LIMIT_MIN: u32 = 2;
/// One place in that many is for blocks that somebody waits for.
const SPARED_PART: u32 = 10;
/// One grant in that many goes to the background though others wait, so that it moves at all.
const BACKGROUND_TURN: u64 = 16;
/// Differences below this are the network's and the scheduler's.
const LATENCY_SLACK: Duration = Duration::from_millis(10);
/// The least time is that of so long ago at most twice.
const LATENCY_WINDOW: Duration = Duration::from_secs(10);
/// Answers that were under way when the limit was halved say nothing new for at least this long.
const CUT_PAUSE_MIN: Duration = Duration::from_millis(100);
/// A source that asks for more is asked again after this.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// How urgent a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A block that somebody waits for.
    Block,
    /// The next bytes of a response.
    Stream,
    /// What will be needed later.
    Ahead,
    /// Adding, verifying, rescanning.
    Background,
}

/// The requests of one source.
#[derive(Debug, Default)]
pub struct Limiter {
    state: Mutex<State>,
}

/// A place among the requests of a source. Dropping it gives it back.
#[derive(Debug)]
pub struct Permit {
    limiter: Option<Arc<Limiter>>,
    started: Instant,
}

/// How a request went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was answered.
    Good,
    /// It was too much; the source may have said for how long.
    Throttled(Option<Duration>),
    /// It was not answered, or given up: that says nothing of how much the source bears.
    Failed,
}

impl From<&SourceError> for Outcome {
    /// What a failure says of how much the source bears.
    fn from(error: &SourceError) -> Self {
        match error.kind {
            SourceErrorKind::Throttled => Self::Throttled(error.retry_after),
            SourceErrorKind::Unreachable => Self::Failed,
            _ => Self::Good,
        }
    }
}

/// What a limiter does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LimiterStats {
    /// Requests that may be under way.
    pub limit: u32,
    /// Requests under way.
    pub in_use: u32,
    /// Requests that wait for their turn.
    pub n_waiting: usize,
}

#[derive(Debug)]
struct State {
    limit: u32,
    in_use: u32,
    lanes: [Queue; 4],
    next: u64,
    n_grants: u64,
    /// Successes since the limit last grew.
    n_good: u32,
    /// The source has shown its bound.
    is_steady: bool,
    cut_at: Option<Instant>,
    paused_until: Option<Instant>,
    latency: Latency,
}

/// Times to the first byte.
#[derive(Debug, Default)]
struct Latency {
    since: Option<Instant>,
    least: Option<Duration>,
    least_before: Option<Duration>,
    last: Duration,
}

/// Those who wait in one lane: flows in turn.
#[derive(Debug, Default)]
struct Queue {
    flows: VecDeque<(u64, VecDeque<Waiting>)>,
}

#[derive(Debug)]
struct Waiting {
    id: u64,
    granted: oneshot::Sender<Permit>,
}

impl Default for State {
    fn default() -> Self {
        Self {
            limit: LIMIT_START,
            in_use: 0,
            lanes: Default::default(),
            next: 0,
            n_grants: 0,
            n_good: 0,
            is_steady: false,
            cut_at: None,
            paused_until: None,
            latency: Latency::default(),
        }
    }
}

impl Limiter {
    /// Waits for a place in `lane`. Flows (clients, objects) of one lane take turns. Cancel-safe.
    pub async fn acquire(self: &Arc<Self>, lane: Lane, flow: u64) -> Permit {
        let mut permit = self.place(lane, flow).await;
        loop {
            let Some(pause) = self.pause() else {
                permit.started = Instant::now();
                return permit;
            };
            sleep(pause).await;
        }
    }

    /// What it does now.
    #[must_use]
    pub fn stats(&self) -> LimiterStats {
        let state = self.hold();
        let queues = state.lanes.iter().flat_map(|queue| &queue.flows);
        LimiterStats {
            limit: state.limit,
            in_use: state.in_use,
            n_waiting: queues.map(|(_, flow)| flow.len()).sum(),
        }
    }

    async fn place(self: &Arc<Self>, lane: Lane, flow: u64) -> Permit {
        let (waiting, id) = {
            let mut state = self.hold();
            if state.has_place(lane) && state.is_first(lane) {
                state.in_use += 1;
                return self.permit();
            }
            let (granted, waiting) = oneshot::channel();
            state.next += 1;
            let id = state.next;
            state.queue(lane).push(flow, Waiting { id, granted });
            (waiting, id)
        };
        let mut leaver = Leaver {
            limiter: self,
            lane,
            id,
            is_over: false,
        };
        let permit = waiting.await;
        leaver.is_over = true;
        // The sender is dropped by nobody who has not sent.
        permit.unwrap_or_else(|_| Permit {
            limiter: None,
            started: Instant::now(),
        })
    }

    fn permit(self: &Arc<Self>) -> Permit {
        Permit {
            limiter: Some(Arc::clone(self)),
            started: Instant::now(),
        }
    }

    /// How long the source still wants to be left alone.
    fn pause(&self) -> Option<Duration> {
        let mut state = self.hold();
        let left = state.paused_until?.checked_duration_since(Instant::now());
        let left = left.filter(|left| !left.is_zero());
        if left.is_none() {
            state.paused_until = None;
        }
        left
    }

    /// One request less, and whose turn it is now.
    fn end(self: &Arc<Self>) {
        let mut state = self.hold();
        state.in_use = state.in_use.saturating_sub(1);
        while let Some(waiting) = state.next() {
            state.in_use += 1;
            if let Err(mut permit) = waiting.granted.send(self.permit()) {
                permit.limiter = None; // Whoever it was for has left.
                state.in_use -= 1;
            }
        }
    }

    fn hold(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes one that is not waited for any more out of the queue.
struct Leaver<'a> {
    limiter: &'a Limiter,
    lane: Lane,
    id: u64,
    is_over: bool,
}

impl Drop for Leaver<'_> {
    fn drop(&mut self) {
        if !self.is_over {
            self.limiter.hold().queue(self.lane).remove(self.id);
        }
    }
}

impl Permit {
    /// The first byte has come: how long that took tells how busy the source is.
    pub fn first_byte(&self) {
        if let Some(limiter) = &self.limiter {
            let took = self.started.elapsed();
            limiter.hold().latency.note(took, Instant::now());
        }
    }

    /// The request is over.
    pub fn done(self, outcome: Outcome) {
        if let Some(limiter) = &self.limiter {
            limiter.hold().learn(outcome, Instant::now());
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(limiter) = self.limiter.take() {
            limiter.end();
        }
    }
}

impl State {
    /// Whether one more of `lane` may be asked.
    const fn has_place(&self, lane: Lane) -> bool {
        let spared = match lane {
            Lane::Block => 0,
            _ => self.limit.div_ceil(SPARED_PART),
        };
        self.in_use + spared < self.limit
    }

    /// Whether nobody waits who goes before one of `lane`.
    fn is_first(&self, lane: Lane) -> bool {
        let before = self.lanes.iter().take(lane as usize + 1);
        before.into_iter().all(|queue| queue.flows.is_empty())
    }

    /// Takes the next one who has a place out of its queue.
    fn next(&mut self) -> Option<Waiting> {
        let mut order = [Lane::Block, Lane::Stream, Lane::Ahead, Lane::Background];
        if self.n_grants % BACKGROUND_TURN == BACKGROUND_TURN - 1 {
            order.rotate_right(1);
        }
        for lane in order {
            if self.has_place(lane)
                && let Some(waiting) = self.queue(lane).pop()
            {
                self.n_grants += 1;
                return Some(waiting);
            }
        }
        None
    }

    fn learn(&mut self, outcome: Outcome, now: Instant) {
        match outcome {
            Outcome::Good => self.grow(),
            Outcome::Throttled(pause) => {
                if let Some(pause) = pause {
                    let until = now + pause.min(PAUSE_MAX);
                    self.paused_until = self.paused_until.max(Some(until));
                }
                self.cut(now);
            }
            Outcome::Failed => {}
        }
    }

    fn grow(&mut self) {
        if self.latency.is_high() {
            self.is_steady = true;
            return;
        }
        let is_used = self.in_use + self.limit.div_ceil(SPARED_PART) >= self.limit;
        self.n_good += u32::from(is_used);
        let round = if self.is_steady { self.limit } else { 1 };
        if self.n_good >= round && self.limit < LIMIT_MAX {
            self.limit += 1;
            self.n_good = 0;
        }
    }

    fn cut(&mut self, now: Instant) {
        let pause = self.latency.last.max(CUT_PAUSE_MIN);
        let is_known = self.cut_at.is_some_and(|at| now < at + pause);
        if is_known {
            return;
        }
        self.limit = (self.limit / 2).max(LIMIT_MIN);
        (self.cut_at, self.is_steady, self.n_good) = (Some(now), true, 0);
    }

    #[expect(clippy::indexing_slicing, reason = "one queue a lane")]
    const fn queue(&mut self, lane: Lane) -> &mut Queue {
        &mut self.lanes[lane as usize]
    }
}

impl Latency {
    fn note(&mut self, took: Duration, now: Instant) {
        let since = *self.since.get_or_insert(now);
        if now.duration_since(since) >= LATENCY_WINDOW {
            self.least_before = self.least.take();
            self.since = Some(now);
        }
        self.least = Some(self.least.map_or(took, |least| least.min(took)));
        self.last = took;
    }

    /// Whether the last answer took much longer than the quickest of late.
    fn is_high(&self) -> bool {
        let least = [self.least, self.least_before].into_iter().flatten().min();
        least.is_some_and(|least| self.last > least * 2 + LATENCY_SLACK)
    }
}

impl Queue {
    fn push(&mut self, flow: u64, waiting: Waiting) {
        match self.flows.iter_mut().find(|(other, _)| *other == flow) {
            Some((_, queue)) => queue.push_back(waiting),
            None => self.flows.push_back((flow, VecDeque::from([waiting]))),
        }
    }

    /// The first of the flow whose turn it is; the flow goes to the end.
    fn pop(&mut self) -> Option<Waiting> {
        let (flow, mut queue) = self.flows.pop_front()?;
        let first = queue.pop_front();
        if !queue.is_empty() {
            self.flows.push_back((flow, queue));
        }
        first
    }

    fn remove(&mut self, id: u64) {
        self.flows.retain_mut(|(_, queue)| {
            queue.retain(|waiting| waiting.id != id);
            !queue.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limiter() -> Arc<Limiter> {
        Arc::new(Limiter::default())
    }

    async fn take(limiter: &Arc<Limiter>, lane: Lane, n: u32) -> Vec<Permit> {
        let mut permits = Vec::new();
        for _ in 0..n {
            permits.push(limiter.acquire(lane, 0).await);
        }
        permits
    }

    fn set(limiter: &Limiter, limit: u32) {
        limiter.hold().limit = limit;
    }

    async fn waits<F: Future>(future: &mut std::pin::Pin<Box<F>>) -> bool {
        let moment = Duration::from_millis(5);
        tokio::time::timeout(moment, future).await.is_err()
    }

    #[tokio::test]
    async fn streams_leave_places_to_blocks() {
        let limiter = limiter();
        let streams = take(&limiter, Lane::Stream, 14).await;
        let mut one_more = Box::pin(limiter.acquire(Lane::Stream, 0));
        assert!(waits(&mut one_more).await);
        let blocks = take(&limiter, Lane::Block, 2).await;
        let mut block = Box::pin(limiter.acquire(Lane::Block, 0));
        assert!(waits(&mut block).await);
        drop(streams);
        drop((one_more.await, block.await, blocks));
        assert_eq!(limiter.stats().in_use, 0);
    }

    #[tokio::test]
    async fn urgent_lanes_go_first_and_flows_take_turns() {
        let limiter = limiter();
        set(&limiter, 2);
        let held = take(&limiter, Lane::Stream, 1).await;
        let order = Arc::new(Mutex::new(Vec::new()));
        let wants = [
            (Lane::Background, 1, "background"),
            (Lane::Ahead, 1, "ahead"),
            (Lane::Stream, 1, "first 1"),
            (Lane::Stream, 1, "first 2"),
            (Lane::Stream, 1, "first 3"),
            (Lane::Stream, 2, "second 1"),
            (Lane::Block, 9, "block"),
        ];
        let tasks: Vec<_> = wants
            .into_iter()
            .map(|(lane, flow, name)| {
                let (limiter, order) = (Arc::clone(&limiter), Arc::clone(&order));
                tokio::spawn(async move {
                    let _permit = limiter.acquire(lane, flow).await;
                    order.lock().unwrap().push(name);
                    tokio::task::yield_now().await;
                })
            })
            .collect();
        tokio::task::yield_now().await;
        drop(held);
        for task in tasks {
            task.await.unwrap();
        }
        let order = order.lock().unwrap().clone();
        assert_eq!(
            order,
            [
                "block",
                "first 1",
                "second 1",
                "first 2",
                "first 3",
                "ahead",
                "background"
            ]
        );
    }

    #[tokio::test]
    async fn one_who_leaves_the_queue_takes_no_place() {
        let limiter = limiter();
        set(&limiter, 2);
        let held = take(&limiter, Lane::Stream, 1).await;
        let mut left = Box::pin(limiter.acquire(Lane::Stream, 0));
        let mut stays = Box::pin(limiter.acquire(Lane::Stream, 0));
        assert!(waits(&mut left).await && waits(&mut stays).await);
        drop(left);
        assert_eq!(limiter.stats().n_waiting, 1);
        drop(held);
        drop(stays.await);
        let granted = limiter.place(Lane::Stream, 0).await;
        let mut unseen = Box::pin(limiter.acquire(Lane::Stream, 0));
        assert!(waits(&mut unseen).await);
        drop(granted); // Granted, and dropped before that was seen.
        drop(unseen);
        assert_eq!(limiter.stats().in_use, 0);
    }

    #[tokio::test]
    async fn the_limit_grows_while_answers_come_quickly_and_stops_when_they_slow_down() {
        let limiter = limiter();
        let good = |ms: u64| {
            let limiter = Arc::clone(&limiter);
            async move {
                let permits = take(&limiter, Lane::Block, limiter.stats().limit).await;
                for permit in permits {
                    let mut state = limiter.hold();
                    state
                        .latency
                        .note(Duration::from_millis(ms), Instant::now());
                    drop(state);
                    permit.done(Outcome::Good);
                }
            }
        };
        good(30).await;
        let after_one = limiter.stats().limit;
        assert!(after_one > LIMIT_START, "quick at first");
        for _ in 0..100 {
            good(30).await;
        }
        assert_eq!(limiter.stats().limit, LIMIT_MAX);
        set(&limiter, 20);
        good(100).await;
        assert_eq!(limiter.stats().limit, 20, "the source queues");
        for _ in 0..4 {
            good(40).await;
        }
        let steady = limiter.stats().limit;
        assert!((21..=24).contains(&steady), "one a round: {steady}");
    }

    #[tokio::test]
    async fn throttling_halves_once_a_round_trip_and_pauses_as_long_as_was_asked() {
        let limiter = limiter();
        let permits = take(&limiter, Lane::Block, 8).await;
        let asked = Duration::from_millis(80);
        let started = Instant::now();
        for permit in permits {
            permit.done(Outcome::Throttled(Some(asked)));
        }
        assert_eq!(limiter.stats().limit, LIMIT_START / 2);
        drop(limiter.acquire(Lane::Block, 0).await);
        assert!(started.elapsed() >= asked);
        for _ in 0..10 {
            limiter.hold().cut_at = None;
            let permit = limiter.acquire(Lane::Block, 0).await;
            permit.done(Outcome::Throttled(None));
        }
        assert_eq!(limiter.stats().limit, LIMIT_MIN);
    }
}
