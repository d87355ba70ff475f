//! One budget of memory for all walks over DAGs.
//!
//! In       plans of CARs, each with the bytes that it holds between two batches.
//! Out      the same plans, which fail when all of them together hold too much.
//! Limits   `Limits::walk_bytes_max`, beyond [`FREE_LEN`] bytes for each walk: a request for a
//!          small DAG is answered however large the others are. An address and a subnet have a part
//!          of what is free (`http::accounts`).
//! Not here bytes of blocks on their way to a socket (`pool`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use carrack_formats::Cid;

use super::backend::{Next, Plan};
use crate::error::{Error, ErrorKind, Result};
use crate::http::watch::Watch;

/// Bytes that each walk may hold without being counted: 256 MiB for as many as there may be
/// requests.
const FREE_LEN: usize = 64 * 1024;

/// The budget. Clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Walks {
    held: Arc<AtomicUsize>,
    len_max: usize,
}

impl Walks {
    pub(crate) fn new(len_max: usize) -> Self {
        Self {
            held: Arc::default(),
            len_max,
        }
    }

    /// `plan` under this budget, for the client of a connection.
    pub(crate) fn count<P: Plan>(&self, plan: P, watch: &Arc<Watch>) -> Counted<P> {
        Counted {
            plan,
            share: WalkShare {
                walks: self.clone(),
                watch: Arc::clone(watch),
                held: 0,
            },
        }
    }
}

/// A plan whose memory counts.
#[derive(Debug)]
pub(crate) struct Counted<P> {
    plan: P,
    share: WalkShare,
}

/// What of the budget one walk has. Gives it back when dropped.
#[derive(Debug)]
struct WalkShare {
    walks: Walks,
    watch: Arc<Watch>,
    held: usize,
}

impl WalkShare {
    /// The walk holds `len` bytes now.
    fn set(&mut self, len: usize) -> Result<()> {
        let len = len.saturating_sub(FREE_LEN);
        let (all, account) = (&self.walks.held, self.watch.account());
        if len <= self.held {
            let less = self.held - len;
            all.fetch_sub(less, Relaxed);
            account.shrink_walk(less);
        } else {
            let more = len - self.held;
            let before = all.fetch_add(more, Relaxed);
            let n_free = self.walks.len_max.saturating_sub(before);
            if more > n_free || !account.grow_walk(more, n_free) {
                all.fetch_sub(more, Relaxed);
                let what = match more > n_free {
                    true => "walks over DAGs take as much memory as they may",
                    false => "walks over DAGs of your address take as much memory as they may",
                };
                return Err(Error::new(ErrorKind::Limit, what));
            }
        }
        self.held = len;
        Ok(())
    }
}

impl Drop for WalkShare {
    fn drop(&mut self) {
        self.walks.held.fetch_sub(self.held, Relaxed);
        self.watch.account().shrink_walk(self.held);
    }
}

impl<P: Plan> Counted<P> {
    /// The next batch of the plan, each step of which counts.
    pub(crate) fn next_batch(&mut self) -> Result<Next<P::Batch>> {
        let share = &mut self.share;
        let batch = self.plan.next_batch(&mut |len| share.set(len))?;
        self.share.set(self.plan.memory_len())?;
        Ok(batch)
    }

    pub(crate) fn header(&self) -> Vec<u8> {
        self.plan.header()
    }

    pub(crate) fn provide(&mut self, cid: &Cid, block: Bytes) -> Result<()> {
        self.plan.provide(cid, block)
    }

    pub(crate) fn issue(&mut self) {
        self.plan.issue();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::backend::{Batch, MayHold};
    use crate::http::accounts::Accounts;
    use crate::http::limits::Limits;
    use crate::http::watch::Patience;

    /// Holds so much after each batch, and within it.
    #[derive(Default)]
    struct Growing {
        after: usize,
        peak: usize,
        n_steps: usize,
    }

    struct Nothing;

    fn growing(after: usize) -> Growing {
        Growing {
            after,
            ..Growing::default()
        }
    }

    /// Of a client at `address`.
    fn watch(accounts: &mut Accounts, address: &str) -> Arc<Watch> {
        let account = accounts.enter(address.parse().unwrap(), 1000).unwrap();
        Arc::new(Watch::new(account, &Patience::new(&Limits::default())))
    }

    impl Plan for Growing {
        type Batch = Nothing;

        fn header(&self) -> Vec<u8> {
            Vec::new()
        }

        fn next_batch(&mut self, may_hold: MayHold<'_>) -> Result<Next<Nothing>> {
            let mut len = 0;
            while len < self.peak {
                len += 100;
                may_hold(len)?;
                self.n_steps += 1;
            }
            Ok(Next::Batch(Nothing))
        }

        fn provide(&mut self, _cid: &Cid, _block: Bytes) -> Result<()> {
            Ok(())
        }

        fn issue(&mut self) {}

        fn memory_len(&self) -> usize {
            self.after
        }
    }

    impl Batch for Nothing {
        fn len(&self) -> usize {
            0
        }

        fn n_blocks(&self) -> u64 {
            1
        }

        fn source(&self) -> Option<u32> {
            None
        }

        fn read(self) -> Result<Bytes> {
            Ok(Bytes::new())
        }
    }

    #[test]
    fn those_that_grow_beyond_the_budget_fail_and_the_rest_goes_on() {
        let walks = Walks::new(1000);
        let mut accounts = Accounts::new(&Limits::default());
        let watch = watch(&mut accounts, "127.0.0.1");
        let mut first = walks.count(growing(FREE_LEN + 600), &watch);
        let mut second = walks.count(growing(FREE_LEN + 600), &watch);
        let mut small = walks.count(growing(FREE_LEN), &watch);
        assert!(first.next_batch().is_ok());
        assert_eq!(second.next_batch().err().unwrap().kind(), ErrorKind::Limit);
        assert!(first.next_batch().is_ok() && small.next_batch().is_ok());
        first.plan.after = 0;
        assert!(first.next_batch().is_ok());
        assert!(second.next_batch().is_ok());
        drop((first, second, small));
        assert_eq!(walks.held.load(Relaxed), 0);
    }

    #[test]
    fn who_walks_all_it_can_leaves_memory_to_other_addresses_and_subnets() {
        let walks = Walks::new(100_000);
        let mut accounts = Accounts::new(&Limits::default());
        let mut held = Vec::new();
        for subnet in 0..4 {
            for host in 0..4 {
                let watch = watch(&mut accounts, &format!("192.0.{subnet}.{host}"));
                loop {
                    let mut walk = walks.count(growing(FREE_LEN + 500), &watch);
                    let Err(error) = walk.next_batch() else {
                        held.push(walk);
                        continue;
                    };
                    assert_eq!(error.kind(), ErrorKind::Limit);
                    break;
                }
            }
        }
        let watch = watch(&mut accounts, "198.51.100.1");
        let mut newcomer = walks.count(growing(FREE_LEN + 1000), &watch);
        assert!(newcomer.next_batch().is_ok(), "{}", held.len());
        drop((held, newcomer));
        assert_eq!(walks.held.load(Relaxed), 0);
    }

    #[test]
    fn what_a_walk_holds_within_a_batch_counts() {
        let walks = Walks::new(1000);
        let mut accounts = Accounts::new(&Limits::default());
        let watch = watch(&mut accounts, "127.0.0.1");
        let peak = FREE_LEN + 5000;
        let mut walk = walks.count(Growing { peak, ..growing(0) }, &watch);
        assert_eq!(walk.next_batch().err().unwrap().kind(), ErrorKind::Limit);
        let n_steps = walk.plan.n_steps;
        assert_eq!(
            n_steps,
            (FREE_LEN + 1000) / 100,
            "it ends where it grew too large"
        );
        walk.plan.peak = FREE_LEN + 900;
        assert!(walk.next_batch().is_ok());
        assert_eq!(walks.held.load(Relaxed), 0);
    }
}
