//! Those who wait for room that others have: they come first who waited first.
//!
//! In       who takes room, and who gives some back.
//! Out      one at a time who looks for room, told at once when his queue's own give some back.
//! Limits   what others give back is looked for each [`LOOK`].
//! Not here how much room there is, and for whom (`accounts`, `gateway::shares`).

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::timeout;

/// Who waits looks so often whether others have given some back.
const LOOK: Duration = Duration::from_millis(20);

/// A queue of those who wait.
#[derive(Debug)]
pub(crate) struct Queue {
    n_waiting: AtomicUsize,
    /// One of them at a time looks for room.
    turn: Semaphore,
    /// Told to that one.
    left: Notify,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            n_waiting: AtomicUsize::new(0),
            turn: Semaphore::new(1),
            left: Notify::new(),
        }
    }
}

impl Queue {
    /// Whether nobody waits.
    pub(crate) fn is_empty(&self) -> bool {
        self.n_waiting.load(Relaxed) == 0
    }

    /// Some was given back: whoever looks for it is told.
    pub(crate) fn tell(&self) {
        if !self.is_empty() {
            self.left.notify_one();
        }
    }

    /// Waits until `take` gives something; what `between` gives is held between two looks.
    /// Cancel-safe.
    pub(crate) async fn wait<T, H>(
        &self,
        mut take: impl FnMut() -> Option<T>,
        between: impl Fn() -> H,
    ) -> T {
        let _waiting = Waiting::new(&self.n_waiting);
        let _turn = self.turn.acquire().await; // Nobody closes it.
        loop {
            if let Some(taken) = take() {
                return taken;
            }
            let _between = between();
            let _ = timeout(LOOK, self.left.notified()).await;
        }
    }
}

/// Counts one who waits, until it is dropped.
pub(crate) struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    pub(crate) fn new(count: &'a AtomicUsize) -> Self {
        count.fetch_add(1, Relaxed);
        Self(count)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
