//! What one reader gets of one piece, once.
//!
//! In       the piece or an error, from whoever reads it.
//! Out      a future that one reader waits on. Cancel-safe: what was delivered stays.
//!
//! The bytes are handed over at the moment they land, so that no eviction can come between a piece
//! and those who waited for it.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use super::pieces::Landed;
use super::sync::{Mutex, hold};
use crate::source::SourceError;

/// A place for one piece.
#[derive(Debug, Default)]
pub(super) struct Delivery {
    slot: Mutex<Slot>,
}

#[derive(Debug, Default)]
struct Slot {
    what: Option<Result<Landed, SourceError>>,
    waker: Option<Waker>,
}

impl Delivery {
    /// Puts it there and wakes the reader. Only the first counts.
    pub(super) fn put(&self, what: Result<Landed, SourceError>) {
        let waker = {
            let mut slot = hold(&self.slot);
            slot.what.get_or_insert(what);
            slot.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

impl Future for &Delivery {
    type Output = Result<Landed, SourceError>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut slot = hold(&self.slot);
        if let Some(what) = &slot.what {
            return Poll::Ready(what.clone());
        }
        slot.waker = Some(context.waker().clone());
        Poll::Pending
    }
}
