//! How the table speaks to a fetch that is under way.
//!
//! In       a more urgent lane; that nobody wants it any more.
//! Out      the lane, and wake-ups of its task.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use tokio::sync::Notify;

use super::Lane;

/// Shared by the table and the task of one fetch.
#[derive(Debug)]
pub(super) struct Control {
    lane: AtomicU8,
    /// Who wanted it first: a response, or the readers of single blocks of one object.
    pub(super) flow: u64,
    promoted: Notify,
    idle: Notify,
}

impl Control {
    pub(super) fn new(lane: Lane, flow: u64) -> Arc<Self> {
        Arc::new(Self {
            lane: AtomicU8::new(lane as u8),
            flow,
            promoted: Notify::new(),
            idle: Notify::new(),
        })
    }

    /// The most urgent lane of all who want it.
    pub(super) fn lane(&self) -> Lane {
        match self.lane.load(Ordering::Relaxed) {
            0 => Lane::Block,
            1 => Lane::Stream,
            2 => Lane::Ahead,
            _ => Lane::Background,
        }
    }

    /// Somebody wants it who may not wait as long.
    pub(super) fn promote(&self, lane: Lane) {
        let before = self.lane.fetch_min(lane as u8, Ordering::Relaxed);
        if before > lane as u8 {
            self.promoted.notify_one();
        }
    }

    /// Nobody wants what has still to come.
    pub(super) fn set_idle(&self) {
        self.idle.notify_one();
    }

    /// Waits until the lane has changed. Cancel-safe.
    pub(super) async fn promoted(&self) {
        self.promoted.notified().await;
    }

    /// Waits until nobody seems to want it. Cancel-safe.
    pub(super) async fn idle(&self) {
        self.idle.notified().await;
    }
}
