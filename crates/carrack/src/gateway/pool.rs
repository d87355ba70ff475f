//! Where blocking work runs, and the one budget of bytes in flight.
//!
//! In       closures that may wait for a disk; lengths of what they are about to read.
//! Out      their results; [`Reserved`] bytes that give themselves back when they are written.
//! Limits   bytes: `Limits::bytes_in_flight_max`, taken before a read is issued, and of it what the
//!          account of a client's address may have, and the `shares` of the sources elsewhere that
//!          bytes are waited for from. Threads: those of the runtime, built with
//!          `max_blocking_threads(Limits::blocking_jobs_max)`. Queue: at most
//!          `Limits::batches_ahead_max` + 2 jobs for each of `Limits::requests_max` requests.
//! Not here which request comes first: first come, first served.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use super::shares::{Share, Shares};
use crate::error::{Context, ErrorKind, Result};
use crate::http::accounts::{Account, Common, Room, UNIT, units};
use crate::http::queue::Waiting;

/// Reads that each client may have ahead before the others' come first.
const AHEAD_MIN: usize = 3;

/// The budget of bytes between a disk and the sockets. Clones share it.
#[derive(Debug, Clone)]
pub struct Pool {
    units: Arc<Semaphore>,
    units_max: usize,
    /// How many wait for room.
    n_waiting: Arc<AtomicUsize>,
    shares: Shares,
}

/// Room for bytes that are to come, from a source elsewhere or from here.
#[derive(Debug)]
pub struct Awaited {
    reserved: Reserved,
    _share: Option<Share>,
}

/// Room for bytes that are being read or written. Given back when dropped.
#[derive(Debug)]
pub struct Reserved {
    _permit: OwnedSemaphorePermit,
    _room: Room,
}

impl Pool {
    /// A budget of `bytes_max` bytes, for at most `requests_max` requests.
    #[must_use]
    pub fn new(bytes_max: usize, requests_max: usize) -> Self {
        let units_max = units(bytes_max);
        Self {
            units: Arc::new(Semaphore::new(units_max)),
            units_max,
            n_waiting: Arc::default(),
            shares: Shares::new(units_max, requests_max),
        }
    }

    /// What sources elsewhere have of this node.
    #[must_use]
    pub fn shares(&self) -> &Shares {
        &self.shares
    }

    /// Waits until there is room for `len` bytes, in the client's account and in the budget. More
    /// than the whole budget counts as all of it.
    ///
    /// Cancel-safe. Must be polled until it ends or be dropped: room that was granted to a future
    /// which nobody polls is room for nobody.
    pub async fn reserve(&self, len: usize, account: &Account) -> Option<Reserved> {
        if let Some(reserved) = self.try_reserve(len, account) {
            return Some(reserved);
        }
        let n_units = self.units_of(len);
        let _room = account.room(n_units as usize, self.common()).await;
        let _waiting = Waiting::new(&self.n_waiting);
        let permit = Arc::clone(&self.units).acquire_many_owned(n_units).await;
        // Only a closed semaphore fails, and nobody closes this one.
        permit.ok().map(|_permit| Reserved { _permit, _room })
    }

    /// As [`Self::reserve`], for bytes that `source` is to give: who waits for it holds room of
    /// nobody else meanwhile. `None`: they lie on this machine.
    pub async fn reserve_from(
        &self,
        source: Option<u32>,
        len: usize,
        account: &Account,
    ) -> Option<Awaited> {
        let Some(source) = source else {
            return self.reserve(len, account).await.map(Awaited::here);
        };
        let n_units = self.units_of(len) as usize;
        loop {
            let share = self.shares.share(source, n_units, &self.units).await;
            if let Some(reserved) = self.try_reserve(len, account) {
                return Some(Awaited::new(reserved, share));
            }
            // Others want the source, who do not wait for what this client has.
            drop(share);
            let reserved = self.reserve(len, account).await?;
            // The room is taken already, and free but for this.
            let n_free = self.units.available_permits() + n_units;
            if let Some(share) = self.shares.try_share(source, n_units, n_free) {
                return Some(Awaited::new(reserved, share));
            }
        }
    }

    /// As [`Self::reserve_from`], but no longer than `timeout`. For requests that have no answer
    /// yet.
    pub async fn reserve_within(
        &self,
        source: Option<u32>,
        len: usize,
        account: &Account,
        timeout: Duration,
    ) -> Option<Awaited> {
        tokio::time::timeout(timeout, self.reserve_from(source, len, account))
            .await
            .ok()
            .flatten()
    }

    /// Room for `len` bytes if there is some now.
    #[must_use]
    pub fn try_reserve(&self, len: usize, account: &Account) -> Option<Reserved> {
        let room = account.try_room(self.units_of(len) as usize, self.common())?;
        self.try_reserve_in(len, room)
    }

    fn try_reserve_in(&self, len: usize, room: Room) -> Option<Reserved> {
        let permit = Arc::clone(&self.units).try_acquire_many_owned(self.units_of(len));
        permit.ok().map(|_permit| Reserved {
            _permit,
            _room: room,
        })
    }

    /// Room for bytes that nobody waits for yet, behind `n_ahead` reads of the same client: only
    /// while half of the budget is free, so that reading ahead for one client never makes another
    /// wait for its first byte; from [`AHEAD_MIN`] reads on only while seven eighths are, so
    /// that a few who are read far ahead for leave the others room to be read ahead for at all.
    #[must_use]
    pub fn try_reserve_ahead(
        &self,
        source: Option<u32>,
        len: usize,
        n_ahead: usize,
        account: &Account,
    ) -> Option<Awaited> {
        let least = match n_ahead < AHEAD_MIN {
            true => self.units_max / 2,
            false => self.units_max / 8 * 7,
        };
        let n_free = self.units.available_permits();
        if n_free < least {
            return None;
        }
        let n_units = self.units_of(len) as usize;
        let share = |source| self.shares.try_share_ahead(source, n_units, n_free);
        let share = match source {
            Some(source) => Some(share(source)?),
            None => None,
        };
        let room = account.try_room_ahead(n_units, self.common())?;
        let reserved = self.try_reserve_in(len, room)?;
        Some(Awaited {
            reserved,
            _share: share,
        })
    }

    /// Whether somebody waits for room: those who hold it without moving are to go sooner.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        self.n_waiting.load(Relaxed) > 0
    }

    /// Bytes of the budget that are in use.
    #[must_use]
    pub fn bytes_in_use(&self) -> usize {
        let free = self.units.available_permits();
        self.units_max.saturating_sub(free).saturating_mul(UNIT)
    }

    fn common(&self) -> Common<'_> {
        Common {
            units: &self.units,
            n_waiting: &self.n_waiting,
        }
    }

    fn units_of(&self, len: usize) -> u32 {
        let units = units(len).min(self.units_max);
        u32::try_from(units).unwrap_or(u32::MAX)
    }
}

impl Awaited {
    fn new(reserved: Reserved, share: Share) -> Self {
        Self {
            reserved,
            _share: Some(share),
        }
    }

    const fn here(reserved: Reserved) -> Self {
        Self {
            reserved,
            _share: None,
        }
    }

    /// The bytes have come: nobody waits for their source any more.
    #[must_use]
    pub fn came(self) -> Reserved {
        self.reserved
    }
}

impl Reserved {
    /// `bytes`, which give the room back when the last part of them is dropped, that is when the
    /// socket has taken them.
    #[must_use]
    pub fn attach(self, bytes: Bytes) -> Bytes {
        struct Owner {
            bytes: Bytes,
            _reserved: Reserved,
        }
        impl AsRef<[u8]> for Owner {
            fn as_ref(&self) -> &[u8] {
                &self.bytes
            }
        }
        Bytes::from_owner(Owner {
            bytes,
            _reserved: self,
        })
    }
}

/// Starts `job` on a blocking thread. A handle that is dropped leaves the job to end by itself:
/// it is one short read, and its result gives back whatever it holds.
pub fn start<T: Send + 'static>(job: impl FnOnce() -> T + Send + 'static) -> JoinHandle<T> {
    tokio::task::spawn_blocking(job)
}

/// Runs `job` on a blocking thread. A caller that goes away while it is queued takes it back: who
/// asks and resets leaves no work behind. One that has begun ends by itself.
///
/// # Errors
/// `Internal` when the job panicked, else those of the job.
pub async fn run<T: Send + 'static>(job: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    finished(AbortOnDropHandle::new(start(job)).await)
}

/// The result of a job that was started.
///
/// # Errors
/// `Internal` when the job panicked, else those of the job.
pub fn finished<T>(outcome: Result<Result<T>, tokio::task::JoinError>) -> Result<T> {
    outcome.context(ErrorKind::Internal, || "a blocking job failed".to_owned())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_comes_back_when_the_last_slice_is_dropped() {
        let pool = Pool::new(4096, 4);
        let bytes = pool
            .reserve(3000, &Account::default())
            .await
            .unwrap()
            .attach(Bytes::from(vec![7; 3000]));
        let tail = bytes.slice(2999..);
        drop(bytes);
        assert_eq!(pool.bytes_in_use(), 3072);
        assert!(pool.try_reserve(2000, &Account::default()).is_none());
        drop(tail);
        assert_eq!(pool.bytes_in_use(), 0);
    }

    #[test]
    fn who_asks_and_goes_away_leaves_no_work_behind() {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.max_blocking_threads(1).build().unwrap();
        let (go_on, waits) = std::sync::mpsc::sync_channel::<()>(1);
        let (did, done) = std::sync::mpsc::sync_channel(8);
        runtime.block_on(async {
            let first = start(move || waits.recv());
            for number in 0..4 {
                let did = did.clone();
                let job = run(move || {
                    did.send(number).unwrap();
                    Ok(())
                });
                tokio::pin!(job);
                assert!(futures_util::poll!(&mut job).is_pending());
                // Dropped while it is queued.
            }
            go_on.send(()).unwrap();
            first.await.unwrap().unwrap();
            run(move || {
                did.send(9).unwrap();
                Ok(())
            })
            .await
            .unwrap();
        });
        assert_eq!(done.iter().collect::<Vec<_>>(), [9]);
    }

    #[tokio::test]
    async fn more_than_the_budget_is_all_of_it() {
        let pool = Pool::new(4096, 4);
        let all = pool.reserve(1 << 30, &Account::default()).await.unwrap();
        assert!(pool.try_reserve(1, &Account::default()).is_none());
        drop(all);
        assert!(pool.try_reserve(1, &Account::default()).is_some());
    }

    #[tokio::test]
    async fn reading_ahead_leaves_half_of_the_budget() {
        let pool = Pool::new(8192, 4);
        let held = pool
            .try_reserve_ahead(None, 5000, 0, &Account::default())
            .unwrap();
        assert!(
            pool.try_reserve_ahead(None, 1, 0, &Account::default())
                .is_none()
        );
        assert!(pool.try_reserve(1, &Account::default()).is_some());
        drop(held);
        let _held = pool
            .try_reserve_ahead(None, 1000, AHEAD_MIN, &Account::default())
            .unwrap();
        let _more = pool
            .try_reserve_ahead(None, 1000, AHEAD_MIN, &Account::default())
            .unwrap();
        assert!(
            pool.try_reserve_ahead(None, 1, AHEAD_MIN, &Account::default())
                .is_none()
        );
        assert!(
            pool.try_reserve_ahead(None, 1, AHEAD_MIN - 1, &Account::default())
                .is_some()
        );
    }
}
