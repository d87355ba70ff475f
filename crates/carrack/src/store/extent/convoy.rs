//! Readers of one object who go together, so that it is read once for all of them.
//!
//! In       where each planned reader of a large object is.
//! Out      which pieces somebody behind is on his way to; who is to wait a moment for the others.
//! Limits   a reader waits for those who are between one and two windows behind, move, and have not
//!          used up their patience: [`PATIENCE`] at once, and half of the time after that. Each
//!          wait is at most [`WAIT_MAX`]. Who reads slowly on purpose thus holds nobody for long.
//! Not here what is kept or read (`table`, `budget`).

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use crate::store::location::ContainerId;

/// The window, as a part of the budget: two of them are kept behind the first reader.
const WINDOW_PART: u64 = 8;
/// A reader that has not moved for this long is not waited for.
const STALLED: Duration = Duration::from_millis(500);
const WAIT_MAX: Duration = Duration::from_secs(2);
/// How long the others wait for one reader before he must have earned more.
const PATIENCE: Duration = Duration::from_secs(2);
/// Readers that begin at the same time have all joined after this.
const ALONE: Duration = Duration::from_secs(1);
/// How often a reader who waits looks.
const LOOK: Duration = Duration::from_millis(20);

/// All convoys.
#[derive(Debug)]
pub(super) struct Convoys {
    window: u64,
    convoys: Mutex<HashMap<ContainerId, Convoy>>,
}

#[derive(Debug, Default)]
struct Convoy {
    readers: Vec<Reader>,
    next: u64,
    moved: Arc<Notify>,
}

#[derive(Debug)]
struct Reader {
    id: u64,
    at: u64,
    joined: Instant,
    moved: Instant,
    /// How long others will still wait for it.
    patience: Duration,
    /// When that was last reckoned, and when somebody last waited.
    reckoned: Instant,
    waited: Option<Instant>,
}

/// The place of one reader in a convoy. Dropping it leaves.
#[derive(Debug)]
pub(super) struct Seat {
    convoys: Arc<Convoys>,
    container: ContainerId,
    id: u64,
}

/// Where a reader wants to go on.
#[derive(Debug)]
pub(super) struct Pace {
    convoys: Arc<Convoys>,
    container: ContainerId,
    at: u64,
}

impl Convoys {
    pub(super) fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self {
            window: bytes_max / WINDOW_PART,
            convoys: Mutex::default(),
        })
    }

    /// Takes a reader in that is at `at`.
    pub(super) fn join(self: &Arc<Self>, container: ContainerId, at: u64) -> Seat {
        let mut convoys = self.hold();
        let convoy = convoys.entry(container).or_default();
        convoy.next += 1;
        let (id, now) = (convoy.next, Instant::now());
        convoy.readers.push(Reader {
            id,
            at,
            joined: now,
            moved: now,
            patience: PATIENCE,
            reckoned: now,
            waited: None,
        });
        Seat {
            convoys: Arc::clone(self),
            container,
            id,
        }
    }

    /// Whether a reader who moves comes to `start` soon.
    pub(super) fn wants(&self, container: ContainerId, start: u64) -> bool {
        let convoys = self.hold();
        let Some(convoy) = convoys.get(&container) else {
            return false;
        };
        let now = Instant::now();
        let mut readers = convoy.readers.iter();
        readers.any(|reader| {
            reader.at <= start
                && start - reader.at <= 2 * self.window
                && now.duration_since(reader.moved) < STALLED
        })
    }

    /// Whether nobody but one reader is left, and that one is past `start` and has been there for
    /// [`ALONE`]. Where there are more, others like them are likely to join: what all have passed
    /// is kept for those.
    pub(super) fn has_passed(&self, container: ContainerId, start: u64) -> bool {
        let convoys = self.hold();
        let readers = convoys.get(&container).map(|convoy| &convoy.readers[..]);
        match readers {
            None | Some([]) => true,
            Some([reader]) => reader.at > start && reader.joined.elapsed() >= ALONE,
            Some(_) => false,
        }
    }

    /// Readers, and convoys that they make.
    pub(super) fn count(&self) -> (u64, u64) {
        let convoys = self.hold();
        let readers = convoys.values().map(|convoy| convoy.readers.len() as u64);
        (readers.sum(), convoys.len() as u64)
    }

    /// What to wait for before `at` is read; `None` to go on.
    fn hold_back(&self, container: ContainerId, at: u64) -> Option<Arc<Notify>> {
        let mut convoys = self.hold();
        let convoy = convoys.get_mut(&container)?;
        let (window, now) = (self.window, Instant::now());
        let mut is_held = false;
        for reader in &mut convoy.readers {
            let behind = at.saturating_sub(reader.at);
            let counts = behind > window
                && behind <= 2 * window
                && now.duration_since(reader.moved) < STALLED;
            is_held |= counts && reader.is_worth_waiting(now);
        }
        is_held.then(|| Arc::clone(&convoy.moved))
    }

    fn hold(&self) -> MutexGuard<'_, HashMap<ContainerId, Convoy>> {
        self.convoys.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reader {
    /// Reckons the time that others waited for it, however many they are, and what it earned.
    fn is_worth_waiting(&mut self, now: Instant) -> bool {
        let earned = now.duration_since(self.reckoned) / 2;
        let waited = self.waited.map(|waited| now.duration_since(waited));
        let waited = waited
            .filter(|waited| *waited < LOOK * 3)
            .unwrap_or_default();
        self.patience = (self.patience + earned)
            .min(PATIENCE)
            .saturating_sub(waited);
        (self.reckoned, self.waited) = (now, Some(now));
        !self.patience.is_zero()
    }
}

impl Seat {
    pub(super) const fn container(&self) -> ContainerId {
        self.container
    }

    /// The reader goes on at `at`.
    pub(super) fn go(&self, at: u64) -> Pace {
        let mut convoys = self.convoys.hold();
        if let Some(convoy) = convoys.get_mut(&self.container) {
            let reader = convoy
                .readers
                .iter_mut()
                .find(|reader| reader.id == self.id);
            if let Some(reader) = reader {
                (reader.at, reader.moved) = (at, Instant::now());
            }
            convoy.moved.notify_waiters();
        }
        Pace {
            convoys: Arc::clone(&self.convoys),
            container: self.container,
            at,
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut convoys = self.convoys.hold();
        if let Some(convoy) = convoys.get_mut(&self.container) {
            convoy.readers.retain(|reader| reader.id != self.id);
            convoy.moved.notify_waiters();
            if convoy.readers.is_empty() {
                convoys.remove(&self.container);
            }
        }
    }
}

impl Pace {
    /// Waits for those who are too far behind. Cancel-safe.
    pub(super) async fn wait(&mut self) {
        let started = Instant::now();
        while let Some(moved) = self.convoys.hold_back(self.container, self.at) {
            if started.elapsed() >= WAIT_MAX {
                return;
            }
            let _ = timeout(LOOK, moved.notified()).await; // A move that was missed shows then.
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const OBJECT: ContainerId = ContainerId(1);

    #[tokio::test]
    async fn the_first_waits_for_those_a_window_behind_and_for_nobody_further() {
        let convoys = Convoys::new(64 * MIB);
        let (first, second) = (convoys.join(OBJECT, 0), convoys.join(OBJECT, 0));
        assert!(convoys.hold_back(OBJECT, 8 * MIB).is_none());
        assert!(convoys.hold_back(OBJECT, 9 * MIB).is_some());
        assert!(
            convoys.hold_back(OBJECT, 17 * MIB).is_none(),
            "out of sight"
        );
        let mut pace = first.go(9 * MIB);
        let follow = async {
            tokio::time::sleep(Duration::from_millis(30)).await;
            second.go(2 * MIB);
        };
        let started = Instant::now();
        tokio::join!(pace.wait(), follow);
        let took = started.elapsed();
        assert!(
            took >= Duration::from_millis(30) && took < STALLED,
            "{took:?}"
        );
        drop(second);
        assert!(convoys.hold_back(OBJECT, 12 * MIB).is_none());
        drop(first);
        assert_eq!(convoys.count(), (0, 0));
    }

    #[tokio::test]
    async fn a_reader_that_stands_still_holds_nobody() {
        let convoys = Convoys::new(64 * MIB);
        let (first, _second) = (convoys.join(OBJECT, 0), convoys.join(OBJECT, 0));
        let started = Instant::now();
        first.go(9 * MIB).wait().await;
        assert!(started.elapsed() < STALLED + LOOK * 5);
    }

    #[tokio::test]
    async fn a_reader_that_crawls_costs_the_others_at_most_half_of_their_time() {
        let convoys = Convoys::new(64 * MIB);
        let (first, second) = (convoys.join(OBJECT, 0), convoys.join(OBJECT, 0));
        let lead = async {
            let started = Instant::now();
            for n in 0..200 {
                first.go(9 * MIB + n * 1024).wait().await;
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
            started.elapsed()
        };
        let crawl = async {
            for n in 1.. {
                tokio::time::sleep(Duration::from_millis(100)).await;
                second.go(n);
            }
        };
        let took = tokio::select! {
            took = lead => took,
            () = crawl => unreachable!(),
        };
        assert!(took < Duration::from_secs(8), "{took:?}");
        assert!(convoys.wants(OBJECT, 10 * MIB) && !convoys.wants(OBJECT, 40 * MIB));
    }
}
