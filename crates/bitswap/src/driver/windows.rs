//! What a peer may send before anybody reads it.
//!
//! In       what comes in for each stream of a yamux connection, and what is read of it.
//! Out      whether more may come. If not, the connection is not read: TCP holds the peer back.
//! Limits   [`FREE_LEN`] bytes a connection; beyond it [`UNREAD_MAX`], out of a room of
//!          [`ROOM_LEN`] for all, of which an address and a subnet have their [`SHARES`]. Whoever
//!          has more than [`FREE_LEN`] unread for [`UNREAD_TIME`] is disconnected. Over QUIC the
//!          windows themselves are as small: [`QUIC_CONNECTION_WINDOW`].
//! Not here frames of yamux (`muxer`), QUIC's windows at work (`quic`).
//!
//! Peers send want-lists: what they send is little, and is read at once. A window of yamux is 256
//! KiB at least, for each stream, so that windows alone bound nothing that could be called little.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::task::Waker;
use std::time::Duration;

use tokio::time::Instant;

use crate::budget::{Account, Held, Room, Shares};
use crate::hold;

/// Streams of one connection, of all protocols.
pub(super) const STREAMS_MAX: usize = 64;
/// What a peer may send on a stream of yamux, in bytes: as its specification has it.
pub(super) const YAMUX_STREAM_WINDOW: usize = 256 << 10;
/// What a peer may send on one QUIC stream, and on all of a connection, before it is read.
pub(super) const QUIC_STREAM_WINDOW: u32 = 64 << 10;
pub(super) const QUIC_CONNECTION_WINDOW: u32 = 256 << 10;
/// What is written to a QUIC connection and not known to have arrived, in bytes: at first, and at
/// most, for who takes so much.
pub(super) const QUIC_SEND_WINDOW: (u64, u64) = (256 << 10, 4 << 20);
/// Unread bytes of a connection that nobody minds.
pub(super) const FREE_LEN: usize = 64 << 10;
/// Unread bytes of a connection at most: two windows of streams.
pub(super) const UNREAD_MAX: usize = 2 * YAMUX_STREAM_WINDOW;
/// How long there may be more than [`FREE_LEN`].
pub(super) const UNREAD_TIME: Duration = Duration::from_secs(30);
/// How soon a connection that has no room looks again whether there is some.
pub(super) const ROOM_PAUSE: Duration = Duration::from_millis(100);
/// Unread bytes of all connections beyond [`FREE_LEN`] of each.
const ROOM_LEN: usize = 64 << 20;
/// What an address and a subnet may have of it.
const SHARES: Shares = Shares {
    address_max: 8 << 20,
    subnet_max: 16 << 20,
};
/// And never more than this part of what is free.
const FREE_PART: usize = 4;
/// Room is taken in pieces of so many bytes.
const UNIT: usize = 64 << 10;

/// The room that all connections share.
#[derive(Debug, Default)]
pub(super) struct UnreadRoom {
    used: AtomicUsize,
}

impl UnreadRoom {
    /// One unit more; `None`: there is none for this account.
    fn take(self: &Arc<Self>, account: &Arc<Account>) -> Option<Taken> {
        let free = ROOM_LEN.saturating_sub(self.used.load(Ordering::Relaxed));
        let held = account.hold(Room::Unread, UNIT, SHARES.within(free / FREE_PART))?;
        let more = |used: usize| Some(used + UNIT).filter(|used| *used <= ROOM_LEN);
        self.used
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .ok()?;
        Some(Taken {
            room: Arc::clone(self),
            _held: held,
        })
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// A unit of room that a connection has until this is dropped.
#[derive(Debug)]
struct Taken {
    room: Arc<UnreadRoom>,
    _held: Held,
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.used.fetch_sub(UNIT, Ordering::Relaxed);
    }
}

/// Whether bytes may come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// They are counted; or nobody has their stream, and they are not kept.
    Free,
    /// The connection has as much as it may. The waker is woken when some of it was read.
    Full,
    /// There is no room that connections share.
    NoRoom,
}

/// What came in over one connection and was not read.
#[derive(Debug, Default)]
pub(super) struct Unread {
    count: Mutex<Count>,
    /// Set when it is known who the peer is, before its streams are looked at.
    room: OnceLock<(Arc<UnreadRoom>, Arc<Account>)>,
}

#[derive(Debug, Default)]
struct Count {
    /// Of each stream that somebody has, or may take.
    streams: HashMap<u32, usize>,
    /// Of all of them.
    len: usize,
    taken: Vec<Taken>,
    /// Since when there is more than [`FREE_LEN`].
    much_since: Option<Instant>,
    waker: Option<Waker>,
}

impl Unread {
    /// From now on what is beyond [`FREE_LEN`] is taken out of a room. Only the first counts.
    pub(super) fn share(&self, room: Arc<UnreadRoom>, account: Arc<Account>) {
        let _ = self.room.set((room, account));
    }

    /// A stream that somebody has, or will be offered.
    pub(super) fn open(&self, stream: u32) {
        hold(&self.count).streams.entry(stream).or_default();
    }

    /// Counts `len` bytes of a stream that are about to come, if they may.
    pub(super) fn enter(&self, stream: u32, len: usize, waker: &Waker) -> Entry {
        let mut count = hold(&self.count);
        let count = &mut *count;
        let Some(of_stream) = count.streams.get_mut(&stream) else {
            return Entry::Free;
        };
        let all = count.len + len;
        if all > UNREAD_MAX {
            count.waker = Some(waker.clone());
            return Entry::Full;
        }
        let n_before = count.taken.len();
        if let Some((room, account)) = self.room.get() {
            while count.taken.len() < units(all) {
                let Some(taken) = room.take(account) else {
                    count.taken.truncate(n_before);
                    return Entry::NoRoom;
                };
                count.taken.push(taken);
            }
        }
        *of_stream += len;
        count.len = all;
        if all > FREE_LEN && count.much_since.is_none() {
            count.much_since = Some(Instant::now());
        }
        Entry::Free
    }

    /// `len` bytes of a stream were read.
    pub(super) fn read(&self, stream: u32, len: usize) {
        let mut count = hold(&self.count);
        let Some(of_stream) = count.streams.get_mut(&stream) else {
            return;
        };
        let len = len.min(*of_stream);
        *of_stream -= len;
        count.leave(len);
    }

    /// Nobody reads a stream any more: what it has is dropped, and so is what comes for it.
    pub(super) fn close(&self, stream: u32) {
        let mut count = hold(&self.count);
        if let Some(len) = count.streams.remove(&stream) {
            count.leave(len);
        }
    }

    /// Since when there is more of it than nobody minds.
    pub(super) fn much_since(&self) -> Option<Instant> {
        hold(&self.count).much_since
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        hold(&self.count).len
    }
}

impl Count {
    fn leave(&mut self, len: usize) {
        self.len -= len;
        self.taken.truncate(units(self.len));
        if self.len <= FREE_LEN {
            self.much_since = None;
        }
        if len > 0
            && let Some(waker) = self.waker.take()
        {
            waker.wake();
        }
    }
}

/// Units of room that so many unread bytes take.
const fn units(len: usize) -> usize {
    len.saturating_sub(FREE_LEN).div_ceil(UNIT)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Budgets};

    fn account(budgets: &Budgets, address: &str) -> Arc<Account> {
        budgets.account(&Arc::from("p"), address.parse().unwrap())
    }

    /// Connections of `address` that send as much as they may, and what is kept of it.
    fn greedy(
        budgets: &Budgets,
        room: &Arc<UnreadRoom>,
        address: &str,
        n: usize,
    ) -> (Vec<Unread>, usize) {
        let one = |_| {
            let unread = Unread::default();
            unread.share(Arc::clone(room), account(budgets, address));
            for stream in 0..8 {
                unread.open(stream);
                while unread.enter(stream, 32 << 10, Waker::noop()) == Entry::Free {}
            }
            unread
        };
        let all: Vec<Unread> = (0..n).map(one).collect();
        let len = all.iter().map(Unread::len).sum();
        (all, len)
    }

    #[test]
    fn what_nobody_reads_is_bounded_for_a_connection_an_address_and_a_subnet() {
        let (budgets, room) = (Budgets::new(Budget::default()), Arc::default());
        let (one, len) = greedy(&budgets, &room, "192.0.2.1", 1);
        assert_eq!(len, UNREAD_MAX);
        let (of_address, len) = greedy(&budgets, &room, "192.0.2.1", 63);
        assert!(len <= 63 * FREE_LEN + SHARES.address_max, "{len}");
        let mut rest = Vec::new();
        for host in 2..10 {
            rest.push(greedy(&budgets, &room, &format!("192.0.2.{host}"), 56));
        }
        assert!(room.used() <= SHARES.subnet_max, "{}", room.used());
        // Others have room, and a little they have in any case.
        let (other, len) = greedy(&budgets, &room, "198.51.100.1", 1);
        assert_eq!(len, UNREAD_MAX);
        drop((one, of_address, rest, other));
        assert_eq!(room.used(), 0);
    }

    #[test]
    fn however_many_subnets_take_all_they_can_others_have_enough_to_be_heard() {
        let (budgets, room) = (Budgets::new(Budget::default()), Arc::default());
        let mut all = Vec::new();
        for (n_subnets, least) in [(10, FREE_LEN + UNIT), (100, FREE_LEN)] {
            for subnet in 0..n_subnets {
                let address = format!("198.51.{subnet}.1");
                all.push(greedy(&budgets, &room, &address, 64));
            }
            let (_other, len) = greedy(&budgets, &room, "203.0.113.1", 1);
            assert!(len >= least, "{len} beside {n_subnets}");
            assert!(room.used() <= ROOM_LEN);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_or_dropped_makes_room_and_what_stays_is_known() {
        let unread = Unread::default();
        unread.open(1);
        assert_eq!(unread.enter(1, FREE_LEN, Waker::noop()), Entry::Free);
        assert_eq!(unread.much_since(), None);
        unread.open(2);
        let rest = UNREAD_MAX - FREE_LEN;
        assert_eq!(unread.enter(2, rest, Waker::noop()), Entry::Free);
        let since = unread.much_since();
        assert!(since.is_some());
        assert_eq!(unread.enter(1, 1, Waker::noop()), Entry::Full);
        tokio::time::advance(Duration::from_secs(1)).await;
        unread.read(1, 100);
        assert_eq!(unread.much_since(), since);
        assert_eq!(unread.enter(2, 100, Waker::noop()), Entry::Free);
        unread.close(2);
        assert_eq!((unread.len(), unread.much_since()), (FREE_LEN - 100, None));
        assert_eq!(
            unread.enter(2, 1 << 20, Waker::noop()),
            Entry::Free,
            "not kept"
        );
        assert_eq!(unread.len(), FREE_LEN - 100);
    }
}
