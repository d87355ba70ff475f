//! Room in the budget, as guards.
//!
//! In       how many bytes, for which source, how urgently.
//! Out      a [`Reserved`] whose bytes land one piece after another; what is left of it is given
//!          back when it is dropped.
//!
//! Every step that may make room calls [`Inner::pump`], which grants what can be granted and evicts
//! for it. Nothing is locked between two steps of it.

use std::future::poll_fn;
use std::sync::Arc;

use super::Lane;
use super::budget::{Ahead, Step};
use super::control::Control;
use super::inner::Inner;

/// Bytes that may be requested of a source.
#[derive(Debug)]
pub(super) struct Reserved {
    inner: Arc<Inner>,
    source: u32,
    len: u64,
}

impl Reserved {
    /// Reserves at once what nobody waits for yet; `None` if there is no room to spare.
    pub(super) fn ahead(inner: &Arc<Inner>, source: u32, len: u64) -> Option<Self> {
        loop {
            match inner.budget.ahead(source, len) {
                Ahead::Granted => break,
                Ahead::Refused => return None,
                Ahead::Evict(victim, class) => {
                    let freed = inner.table.evict(victim, class);
                    inner.budget.freed(&freed);
                }
                Ahead::Kept(victim) => {
                    if !inner.convoys.has_passed(victim.key.container, victim.start) {
                        return None;
                    }
                    if let Some((victim, class)) = inner.budget.give_up(&victim) {
                        let freed = inner.table.evict(victim, class);
                        inner.budget.freed(&freed);
                    }
                }
            }
        }
        Some(Self {
            inner: Arc::clone(inner),
            source,
            len,
        })
    }

    /// Waits for room in the lane of `control`, which may change meanwhile. Cancel-safe.
    pub(super) async fn wait(inner: &Arc<Inner>, source: u32, len: u64, control: &Control) -> Self {
        let mut want = Want {
            inner,
            source,
            len,
            place: inner.budget.enqueue(control.lane(), source, len),
            is_over: false,
        };
        inner.pump();
        loop {
            let place = want.place;
            tokio::select! {
                biased;
                () = poll_fn(|context| inner.budget.poll(place, context)) => break,
                () = control.promoted() => {
                    want.place = inner.budget.promote(place, control.lane());
                    inner.pump();
                }
            }
        }
        want.is_over = true;
        Self {
            inner: Arc::clone(inner),
            source,
            len,
        }
    }

    /// Splits `len` bytes off, at most what is there.
    pub(super) fn split(&mut self, len: u64) -> Self {
        let len = len.min(self.len);
        self.len -= len;
        Self {
            inner: Arc::clone(&self.inner),
            source: self.source,
            len,
        }
    }

    /// `len` bytes of it have landed: they are the table's now.
    pub(super) fn land(&mut self, len: u64) {
        let len = len.min(self.len);
        self.len -= len;
        self.inner.budget.landed(self.source, len);
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        if self.len > 0 {
            self.inner.budget.release(self.source, self.len);
            self.inner.pump();
        }
    }
}

/// A want that is queued.
struct Want<'a> {
    inner: &'a Inner,
    source: u32,
    len: u64,
    place: (Lane, u64),
    is_over: bool,
}

impl Drop for Want<'_> {
    fn drop(&mut self) {
        if self.is_over {
            return;
        }
        if self.inner.budget.withdraw(self.place) {
            self.inner.budget.release(self.source, self.len);
        }
        self.inner.pump(); // It may have stood before others.
    }
}

impl Inner {
    /// Grants and evicts until nothing more can be done for those who wait.
    pub(super) fn pump(&self) {
        loop {
            match self.budget.step() {
                Step::Rest => return,
                Step::Wake(waker) => {
                    if let Some(waker) = waker {
                        waker.wake();
                    }
                }
                Step::Evict(victim, class) => {
                    let freed = self.table.evict(victim, class);
                    self.budget.freed(&freed);
                }
            }
        }
    }
}
