//! What answers that wait for sources elsewhere have of this node at once.
//!
//! In       which source a read waits for, and how many bytes it is to bring.
//! Out      a [`Share`] of the budget of bytes while they are waited for; a [`Place`] among the
//!          requests while an answer is made of what a source has.
//! Limits   half of the bytes and of the requests for all sources together; one has at most what
//!          it leaves of that, so a quarter of all. Who has nothing may have one read, while that
//!          leaves half of what is free, and one request.
//! Not here who waits for what lies on this machine: it has no share and takes no lock; bytes
//!          that have come (`pool`); how many requests a source bears (`source::limiter`).

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;

use crate::error::{Error, ErrorKind, Result};
use crate::http::queue::Queue;

/// Part of the bytes and of the requests that all sources together may have: one in that many.
const PART: usize = 2;

/// The shares of all sources. Clones share them.
#[derive(Debug, Clone)]
pub struct Shares {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    /// Units of the budget of bytes, and requests, that all sources may have.
    max: Taken,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    all: Taken,
    /// Those that have something, or are waited for.
    sources: HashMap<u32, Source>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Taken {
    n_units: usize,
    n_requests: usize,
}

#[derive(Debug, Default)]
struct Source {
    taken: Taken,
    queue: Arc<Queue>,
}

/// Units of the budget that wait for a source. Given back when dropped.
#[derive(Debug)]
pub struct Share {
    inner: Arc<Inner>,
    source: u32,
    n_units: usize,
}

/// One request that is answered with what a source has. Given back when dropped.
#[derive(Debug)]
pub struct Place {
    inner: Arc<Inner>,
    source: u32,
}

impl Shares {
    /// Shares of `n_units` of bytes and `n_requests` requests.
    #[must_use]
    pub fn new(n_units: usize, n_requests: usize) -> Self {
        let max = Taken {
            n_units: n_units / PART,
            n_requests: n_requests / PART,
        };
        Self {
            inner: Arc::new(Inner {
                max,
                state: Mutex::default(),
            }),
        }
    }

    /// Counts one more request that needs what `source` has.
    ///
    /// # Errors
    /// `Limit`: as many as may be wait for it.
    pub fn enter(&self, source: u32) -> Result<Place> {
        let mut state = self.inner.hold();
        let has = state.taken(source).n_requests;
        let all_after = state.all.n_requests + 1;
        if has > 0 && has + 1 > self.inner.max.n_requests.saturating_sub(all_after) {
            let what = "as many requests as may be wait for the source of this content";
            return Err(Error::new(ErrorKind::Limit, what));
        }
        Ok(self.count(&mut state, source))
    }

    /// The same for an answer that has begun: it is counted in any case.
    #[must_use]
    pub fn enter_begun(&self, source: u32) -> Place {
        let mut state = self.inner.hold();
        self.count(&mut state, source)
    }

    fn count(&self, state: &mut State, source: u32) -> Place {
        state.all.n_requests += 1;
        state.sources.entry(source).or_default().taken.n_requests += 1;
        Place {
            inner: Arc::clone(&self.inner),
            source,
        }
    }

    /// A share of `n_units` if the source may have it now, while `n_free` units of the budget are
    /// free. Those who wait come first.
    #[must_use]
    pub fn try_share(&self, source: u32, n_units: usize, n_free: usize) -> Option<Share> {
        let mut state = self.inner.hold();
        let known = state.sources.get(&source);
        if known.is_some_and(|it| !it.queue.is_empty()) {
            return None;
        }
        self.take(&mut state, source, n_units, n_free)
    }

    /// The same for bytes that nobody waits for yet: half of what a source may have is left to
    /// those who do.
    #[must_use]
    pub fn try_share_ahead(&self, source: u32, n_units: usize, n_free: usize) -> Option<Share> {
        let mut state = self.inner.hold();
        let known = state.sources.get(&source);
        if known.is_some_and(|it| !it.queue.is_empty()) {
            return None;
        }
        let left = self.inner.max.n_units.saturating_sub(state.all.n_units);
        if state.taken(source).n_units + n_units > left / 2 {
            return None;
        }
        self.take(&mut state, source, n_units, n_free)
    }

    fn take(&self, state: &mut State, source: u32, n_units: usize, n_free: usize) -> Option<Share> {
        let has = state.taken(source).n_units;
        let all = state.all.n_units;
        let left = self.inner.max.n_units.saturating_sub(all + n_units);
        let is_within = has == 0 || has + n_units <= left;
        let leaves_half = n_units <= n_free / 2;
        if all > 0 && !(is_within && leaves_half) {
            return None;
        }
        state.all.n_units += n_units;
        state.sources.entry(source).or_default().taken.n_units += n_units;
        Some(Share {
            inner: Arc::clone(&self.inner),
            source,
            n_units,
        })
    }

    /// Waits until the source may have it. Cancel-safe.
    pub async fn share(&self, source: u32, n_units: usize, budget: &Semaphore) -> Share {
        if let Some(share) = self.try_share(source, n_units, budget.available_permits()) {
            return share;
        }
        let queue = {
            let mut state = self.inner.hold();
            Arc::clone(&state.sources.entry(source).or_default().queue)
        };
        let take = || {
            let n_free = budget.available_permits();
            self.take(&mut self.inner.hold(), source, n_units, n_free)
        };
        queue.wait(take, || ()).await
    }
}

impl Inner {
    fn hold(&self) -> MutexGuard<'_, State> {
        // Counters that are whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn give_back(&self, source: u32, less: Taken) {
        let mut state = self.hold();
        state.all.less(less);
        let Entry::Occupied(mut entry) = state.sources.entry(source) else {
            return;
        };
        let known = entry.get_mut();
        known.taken.less(less);
        // One who waits holds the queue, and others find it here.
        if !known.queue.is_empty() {
            known.queue.tell();
        } else if known.taken.is_nothing() && Arc::strong_count(&known.queue) == 1 {
            entry.remove();
        }
    }
}

impl State {
    fn taken(&self, source: u32) -> Taken {
        let known = self.sources.get(&source);
        known.map_or_else(Taken::default, |known| known.taken)
    }
}

impl Taken {
    fn less(&mut self, less: Self) {
        self.n_units = self.n_units.saturating_sub(less.n_units);
        self.n_requests = self.n_requests.saturating_sub(less.n_requests);
    }

    const fn is_nothing(self) -> bool {
        self.n_units == 0 && self.n_requests == 0
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let less = Taken {
            n_units: self.n_units,
            n_requests: 0,
        };
        self.inner.give_back(self.source, less);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let less = Taken {
            n_units: 0,
            n_requests: 1,
        };
        self.inner.give_back(self.source, less);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_source_has_a_quarter_and_all_together_half() {
        let shares = Shares::new(64, 64);
        let take = |source, n_held: &mut Vec<Share>| {
            let free = 64 - n_held.len();
            let share = shares.try_share(source, 1, free);
            share.map(|share| n_held.push(share)).is_some()
        };
        let mut held = Vec::new();
        while take(1, &mut held) {}
        assert_eq!(held.len(), 16);
        while take(2, &mut held) {}
        assert_eq!(held.len(), 24);
        for source in 3..8 {
            assert!(take(source, &mut held), "{source} has its first");
            while take(source, &mut held) {}
        }
        assert!(held.len() <= 36, "{}", held.len());
        drop(held);
        assert!(shares.inner.hold().sources.is_empty());
        assert_eq!(shares.inner.hold().all.n_units, 0);
    }

    #[test]
    fn requests_of_one_source_leave_places_to_others() {
        let shares = Shares::new(64, 64);
        let held: Vec<_> = std::iter::from_fn(|| shares.enter(1).ok()).collect();
        assert_eq!(held.len(), 16);
        assert_eq!(shares.enter(1).unwrap_err().kind(), ErrorKind::Limit);
        let _other = shares.enter(2).unwrap();
        drop(held);
        assert!(shares.enter(1).is_ok());
    }

    #[test]
    fn however_little_there_is_one_read_goes_on() {
        let shares = Shares::new(1, 1);
        let only = shares.try_share(1, 100, 0).unwrap();
        assert!(shares.try_share(2, 1, 0).is_none());
        assert!(shares.enter(1).is_ok());
        drop(only);
        assert!(shares.try_share(2, 1, 0).is_some());
    }

    #[test]
    fn what_is_free_is_never_taken_whole() {
        let shares = Shares::new(1000, 1);
        let mut n_free = 100; // The rest is on its way to clients.
        let mut held = Vec::new();
        for source in [1, 2, 3, 1, 2, 3, 1, 2, 3] {
            while let Some(share) = shares.try_share(source, 10, n_free) {
                n_free -= 10;
                held.push(share);
            }
        }
        assert_eq!(n_free, 10);
    }

    #[tokio::test]
    async fn who_waits_first_comes_first() {
        let (shares, budget) = (Shares::new(8, 1), Semaphore::new(8));
        let held = [(); 2].map(|()| shares.try_share(1, 1, 8).unwrap());
        let (first, second) = (shares.share(1, 1, &budget), shares.share(1, 1, &budget));
        tokio::pin!(first, second);
        assert!(futures_util::poll!(&mut first).is_pending());
        assert!(futures_util::poll!(&mut second).is_pending());
        let [one, other] = held;
        drop(one);
        assert!(shares.try_share(1, 1, 8).is_none(), "others wait");
        assert!(futures_util::poll!(&mut second).is_pending());
        let _first = first.await;
        drop(other);
        let _second = second.await;
    }
}
