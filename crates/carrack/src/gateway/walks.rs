//! One budget of memory for all walks over DAGs.
//!
//! In       plans of CARs, each with the bytes that it holds between two batches.
//! Out      the same plans, which fail when all of them together hold too much.
//! Limits   `Limits::walk_bytes_max`, beyond [`FREE_LEN`] bytes for each walk: a request for a
//!          small DAG is answered however large the others are. Within a batch a walk grows
//!          unseen, up to its own limits (`formats::walk`).
//! Not here bytes of blocks on their way to a socket (`pool`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use bytes::Bytes;
use carrack_formats::Cid;

use super::backend::{Next, Plan};
use crate::error::{Error, ErrorKind, Result};

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

    /// `plan` under this budget.
    pub(crate) fn count<P: Plan>(&self, plan: P) -> Counted<P> {
        Counted {
            plan,
            walks: self.clone(),
            held: 0,
        }
    }
}

/// A plan whose memory counts. Gives it back when dropped.
#[derive(Debug)]
pub(crate) struct Counted<P> {
    plan: P,
    walks: Walks,
    /// What of the budget is this plan's.
    held: usize,
}

impl<P: Plan> Plan for Counted<P> {
    type Batch = P::Batch;

    fn header(&self) -> Vec<u8> {
        self.plan.header()
    }

    fn next_batch(&mut self) -> Result<Next<P::Batch>> {
        let batch = self.plan.next_batch()?;
        let len = self.memory_len().saturating_sub(FREE_LEN);
        let all = &self.walks.held;
        if len <= self.held {
            all.fetch_sub(self.held - len, Relaxed);
        } else {
            let more = len - self.held;
            let before = all.fetch_add(more, Relaxed);
            if before.saturating_add(more) > self.walks.len_max {
                all.fetch_sub(more, Relaxed);
                let what = "walks over DAGs take as much memory as they may";
                return Err(Error::new(ErrorKind::Limit, what));
            }
        }
        self.held = len;
        Ok(batch)
    }

    fn provide(&mut self, cid: &Cid, block: Bytes) -> Result<()> {
        self.plan.provide(cid, block)
    }

    fn issue(&mut self) {
        self.plan.issue();
    }

    fn memory_len(&self) -> usize {
        self.plan.memory_len()
    }
}

impl<P> Drop for Counted<P> {
    fn drop(&mut self) {
        self.walks.held.fetch_sub(self.held, Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::backend::Batch;

    struct Growing(usize);
    struct Nothing;

    impl Plan for Growing {
        type Batch = Nothing;

        fn header(&self) -> Vec<u8> {
            Vec::new()
        }

        fn next_batch(&mut self) -> Result<Next<Nothing>> {
            Ok(Next::Batch(Nothing))
        }

        fn provide(&mut self, _cid: &Cid, _block: Bytes) -> Result<()> {
            Ok(())
        }

        fn issue(&mut self) {}

        fn memory_len(&self) -> usize {
            self.0
        }
    }

    impl Batch for Nothing {
        fn len(&self) -> usize {
            0
        }

        fn n_blocks(&self) -> u64 {
            1
        }

        fn is_elsewhere(&self) -> bool {
            false
        }

        fn read(self) -> Result<Bytes> {
            Ok(Bytes::new())
        }
    }

    #[test]
    fn those_that_grow_beyond_the_budget_fail_and_the_rest_goes_on() {
        let walks = Walks::new(1000);
        let mut first = walks.count(Growing(FREE_LEN + 600));
        let mut second = walks.count(Growing(FREE_LEN + 600));
        let mut small = walks.count(Growing(FREE_LEN));
        assert!(first.next_batch().is_ok());
        assert_eq!(second.next_batch().err().unwrap().kind(), ErrorKind::Limit);
        assert!(first.next_batch().is_ok() && small.next_batch().is_ok());
        first.plan.0 = 0;
        assert!(first.next_batch().is_ok());
        assert!(second.next_batch().is_ok());
        drop((first, second, small));
        assert_eq!(walks.held.load(Relaxed), 0);
    }
}
