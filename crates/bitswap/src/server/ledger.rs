//! What one peer wants and has not got.
//!
//! In       entries of its want-lists, what was found of them, what was sent.
//! Out      what is to be loaded next, by priority and age.
//! Limits   [`Ledger::new`]'s wants; beyond them the oldest want for something absent goes, and if
//!          there is none the new one is refused. All lists here are as long as there are wants,
//!          or twice as long.
//! Not here who else waits for the same (`registry`); messages, rooms and streams (`peer`).
//!
//! A want is here until a message with its block was written, so that a failed write does not lose
//! it. One for what the index knows is registered with nobody; see `peer/answer.rs`.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};

use carrack_formats::Cid;
use foldhash::quality::RandomState;
use tokio::time::Instant;

use crate::key::CidKey;
use crate::registry::{Gen, Ticket};
use crate::wire::{Entry, WantKind};

/// Blocks that are loaded in one go, however short they are.
const BLOCKS_AT_ONCE_MAX: usize = 512;

/// The wants of one peer.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Under a random seed, by a hash that is fast and no more: who finds keys that collide slows
    /// down nobody's look-ups but its own.
    wants: HashMap<CidKey, Want, RandomState>,
    /// What is to be sent, the highest priority first, then the oldest.
    queue: BTreeMap<(Reverse<i32>, u64), Queued>,
    /// Wants for what is absent, the oldest first. Those that are over are passed by.
    waiting: VecDeque<Waiting>,
    n_waiting: usize,
    /// Wants whose containers are to be looked at, by number: each is here once at most.
    to_check: BTreeMap<u64, CidKey>,
    wants_max: usize,
    next_number: u64,
}

#[derive(Debug)]
struct Waiting {
    number: u64,
    since: Instant,
    key: CidKey,
}

/// A block that is to be sent.
#[derive(Debug)]
struct Queued {
    key: CidKey,
    /// In bytes.
    len: usize,
}

/// One want.
#[derive(Debug)]
pub(super) struct Want {
    pub(super) kind: WantKind,
    pub(super) send_dont_have: bool,
    priority: i32,
    number: u64,
    n_failures: u8,
    state: State,
}

#[derive(Debug)]
enum State {
    /// It was entered a moment ago.
    New,
    /// It is absent: an arrival is told.
    Waiting(Ticket),
    /// It is only to be told of, and its container is to be looked at first, or just is.
    Checking,
    /// It is to be sent.
    Queued,
    /// It is being loaded or written.
    InFlight,
}

/// What became of an entry.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// Nothing is known of it.
    New,
    /// It was absent, or was only to be told of: what was found now counts.
    Again,
    /// It is on its way already.
    OnItsWay,
    /// There is no room.
    Refused,
}

impl Ledger {
    /// A ledger of at most `wants_max` wants.
    pub(super) fn new(wants_max: usize) -> Self {
        Self {
            wants: HashMap::default(),
            queue: BTreeMap::new(),
            waiting: VecDeque::new(),
            n_waiting: 0,
            to_check: BTreeMap::new(),
            wants_max,
            next_number: 0,
        }
    }

    /// Number of wants.
    pub(super) fn len(&self) -> usize {
        self.wants.len()
    }

    /// Wants whose blocks are to be sent and are not being loaded.
    pub(super) fn n_queued(&self) -> usize {
        self.queue.len()
    }

    /// Takes an entry that is no cancel. `Again` and `OnItsWay` have changed the want's terms.
    pub(super) fn take(&mut self, entry: &Entry) -> Taken {
        let full = self.wants.len() >= self.wants_max;
        let Some(want) = self.wants.get_mut(&CidKey::of(&entry.cid)) else {
            return match full && self.n_waiting == 0 {
                true => Taken::Refused,
                false => Taken::New,
            };
        };
        want.send_dont_have = entry.send_dont_have;
        if entry.want == WantKind::Block {
            want.kind = WantKind::Block;
        }
        match want.state {
            State::Waiting(_) => Taken::Again,
            State::Checking if want.kind == WantKind::Block => Taken::Again,
            State::New | State::Checking | State::InFlight => Taken::OnItsWay,
            State::Queued => {
                let before = want.place();
                want.priority = entry.priority;
                if let Some(queued) = self.queue.remove(&before) {
                    self.queue.insert(want.place(), queued);
                }
                Taken::OnItsWay
            }
        }
    }

    /// Enters a new want for what is absent, registered under `ticket`. The ticket of the want that
    /// had to go for it is given back.
    pub(super) fn enter(&mut self, entry: &Entry, ticket: Ticket, now: Instant) -> Option<Ticket> {
        let key = CidKey::of(&entry.cid);
        let (number, gone) = self.insert(&key, entry, State::Waiting(ticket));
        self.note_waiting(number, key, now);
        gone
    }

    /// Enters a new want for a block of `len` bytes that the index knows, as [`found`](Self::found)
    /// would find it. The ticket of the want that had to go for it.
    pub(super) fn enter_found(&mut self, entry: &Entry, len: u64, small: u64) -> Option<Ticket> {
        let key = CidKey::of(&entry.cid);
        let (_, gone) = self.insert(&key, entry, State::New);
        self.is_here(key, len, small);
        gone
    }

    fn insert(&mut self, key: &CidKey, entry: &Entry, state: State) -> (u64, Option<Ticket>) {
        let gone = match self.wants.len() >= self.wants_max {
            true => self.drop_oldest(),
            false => None,
        };
        let number = self.next_number;
        self.next_number += 1;
        let want = Want {
            kind: entry.want,
            send_dont_have: entry.send_dont_have,
            priority: entry.priority,
            number,
            n_failures: 0,
            state,
        };
        let before = self.wants.insert(key.clone(), want);
        debug_assert!(before.is_none(), "a want is entered once");
        (number, gone)
    }

    fn note_waiting(&mut self, number: u64, key: CidKey, now: Instant) {
        self.n_waiting += 1;
        self.waiting.push_back(Waiting {
            number,
            since: now,
            key,
        });
        self.forget_what_is_over();
    }

    /// The oldest want for something absent, which is dropped.
    pub(super) fn drop_oldest(&mut self) -> Option<Ticket> {
        while let Some(oldest) = self.waiting.pop_front() {
            if let Some(ticket) = self.drop_waiting(&oldest) {
                return Some(ticket);
            }
        }
        None
    }

    /// Drops wants that have waited since before `limit`; their tickets.
    pub(super) fn give_up(&mut self, limit: Instant) -> Vec<Ticket> {
        let mut tickets = Vec::new();
        while let Some(oldest) = self.waiting.pop_front_if(|oldest| oldest.since < limit) {
            tickets.extend(self.drop_waiting(&oldest));
        }
        tickets
    }

    fn drop_waiting(&mut self, waiting: &Waiting) -> Option<Ticket> {
        if !self.is_waiting(waiting) {
            return None;
        }
        self.remove_key(&waiting.key)
    }

    fn is_waiting(&self, waiting: &Waiting) -> bool {
        self.wants.get(&waiting.key).is_some_and(|want| {
            want.number == waiting.number && matches!(want.state, State::Waiting(_))
        })
    }

    /// Keeps the list of what waits as short as what waits.
    fn forget_what_is_over(&mut self) {
        if self.waiting.len() <= 2 * self.wants_max.max(16) {
            return;
        }
        let mut waiting = std::mem::take(&mut self.waiting);
        waiting.retain(|waiting| self.is_waiting(waiting));
        self.waiting = waiting;
    }

    /// A want, if there is one for `cid`.
    pub(super) fn get(&self, cid: &Cid) -> Option<&Want> {
        self.wants.get(&CidKey::of(cid))
    }

    /// A want's block is here, and has `len` bytes: it is to be sent or, if it is longer than
    /// `small` and only to be told of, to be checked. Its ticket, if it waited.
    pub(super) fn found(&mut self, cid: &Cid, len: u64, small: u64) -> Option<Ticket> {
        self.is_here(CidKey::of(cid), len, small)
    }

    fn is_here(&mut self, key: CidKey, len: u64, small: u64) -> Option<Ticket> {
        let want = self.wants.get_mut(&key)?;
        let is_told_of = want.kind == WantKind::Have && len > small;
        let next = match (&want.state, is_told_of) {
            (State::Queued | State::InFlight, _) | (State::Checking, true) => return None,
            (_, true) => State::Checking,
            (_, false) => State::Queued,
        };
        let before = std::mem::replace(&mut want.state, next);
        if is_told_of {
            self.to_check.insert(want.number, key);
        } else {
            self.to_check.remove(&want.number);
            let len = usize::try_from(len).unwrap_or(usize::MAX);
            self.queue.insert(want.place(), Queued { key, len });
        }
        match before {
            State::Waiting(ticket) => {
                self.n_waiting -= 1;
                Some(ticket)
            }
            _ => None,
        }
    }

    /// Wants that are to be checked.
    pub(super) fn n_checks(&self) -> usize {
        self.to_check.len()
    }

    /// The wants that are to be checked next, at most `n` of them.
    pub(super) fn next_checks(&mut self, n: usize) -> Vec<Cid> {
        let n = n.min(self.to_check.len());
        let oldest = std::iter::from_fn(|| self.to_check.pop_first());
        oldest.take(n).map(|(_, key)| key.cid()).collect()
    }

    /// A want that is being checked, if it still is.
    pub(super) fn checking(&self, cid: &Cid) -> Option<&Want> {
        let want = self.get(cid)?;
        matches!(want.state, State::Checking).then_some(want)
    }

    /// The CIDs of wants that were registered under `gens`.
    pub(super) fn of(&self, gens: &HashSet<Gen>) -> Vec<Cid> {
        let waits = |want: &Want| match &want.state {
            State::Waiting(ticket) => gens.contains(&ticket.generation()),
            _ => false,
        };
        let all = self.wants.iter().filter(|(_, want)| waits(want));
        all.map(|(key, _)| key.cid()).collect()
    }

    /// Removes a want, whatever its state; its ticket, if it waited.
    pub(super) fn remove(&mut self, cid: &Cid) -> Option<Ticket> {
        self.remove_key(&CidKey::of(cid))
    }

    fn remove_key(&mut self, key: &CidKey) -> Option<Ticket> {
        let want = self.wants.remove(key)?;
        match want.state {
            State::Waiting(ticket) => {
                self.n_waiting -= 1;
                Some(ticket)
            }
            State::Queued => {
                self.queue.remove(&want.place());
                None
            }
            State::Checking => {
                self.to_check.remove(&want.number);
                None
            }
            State::New | State::InFlight => None,
        }
    }

    /// Removes all wants but those for `cids`; the tickets of those that waited.
    pub(super) fn retain<'a>(&mut self, cids: impl Iterator<Item = &'a Cid>) -> Vec<Ticket> {
        let keys: HashSet<CidKey> = cids.map(CidKey::of).collect();
        let gone = self.wants.keys().filter(|key| !keys.contains(key));
        let gone: Vec<CidKey> = gone.cloned().collect();
        gone.iter().filter_map(|key| self.remove_key(key)).collect()
    }

    /// All tickets: the peer is gone.
    pub(super) fn clear(&mut self) -> Vec<Ticket> {
        self.retain(std::iter::empty())
    }

    /// How many blocks come next, of at most `len_max` bytes together, but of one at least; and
    /// their bytes.
    fn ahead(&self, len_max: usize) -> (usize, usize) {
        let (mut n, mut total) = (0, 0);
        for queued in self.queue.values().take(BLOCKS_AT_ONCE_MAX) {
            if n > 0 && total + queued.len > len_max {
                break;
            }
            n += 1;
            total += queued.len;
        }
        (n, total)
    }

    /// Bytes of the blocks that [`next`](Self::next) would give.
    pub(super) fn len_ahead(&self, len_max: usize) -> usize {
        self.ahead(len_max).1
    }

    /// The wants that come next, of blocks of at most `len_max` bytes together, but of one at
    /// least. They are in flight from now on.
    pub(super) fn next(&mut self, len_max: usize) -> Vec<Cid> {
        let (n, _) = self.ahead(len_max);
        let mut cids = Vec::with_capacity(n);
        while cids.len() < n
            && let Some((_, queued)) = self.queue.pop_first()
        {
            if let Some(want) = self.wants.get_mut(&queued.key) {
                want.state = State::InFlight;
            }
            cids.push(queued.key.cid());
        }
        cids
    }

    /// Drops everything that is to be sent; what was asked to be told of its absence.
    pub(super) fn drop_queued(&mut self) -> Vec<(Cid, bool)> {
        let queue = std::mem::take(&mut self.queue);
        let dropped = queue.into_values().filter_map(|queued| {
            let want = self.wants.remove(&queued.key)?;
            Some((queued.key.cid(), want.send_dont_have))
        });
        dropped.collect()
    }

    /// A want whose arrival was told waits under a new ticket; `false`: nobody wants it any more.
    pub(super) fn renew(&mut self, cid: &Cid, new: Ticket) -> bool {
        let want = self.wants.get_mut(&CidKey::of(cid));
        match want.map(|want| &mut want.state) {
            Some(State::Waiting(ticket)) => {
                *ticket = new;
                true
            }
            _ => false,
        }
    }

    /// Its block turned out not to be there: it waits from now on, registered under `ticket`. Gives
    /// the ticket back if nobody wants it any more.
    pub(super) fn wait_again(&mut self, cid: &Cid, ticket: Ticket, now: Instant) -> Option<Ticket> {
        let key = CidKey::of(cid);
        let Some(want) = self.wants.get_mut(&key) else {
            return Some(ticket);
        };
        let (State::InFlight | State::Checking) = want.state else {
            return Some(ticket);
        };
        want.state = State::Waiting(ticket);
        want.send_dont_have = false; // It was told, or is about to be.
        let number = want.number;
        self.to_check.remove(&number);
        self.note_waiting(number, key, now);
        None
    }

    /// Its message was written; `false`: it had been cancelled meanwhile.
    pub(super) fn sent(&mut self, cid: &Cid) -> bool {
        let in_flight = |want: &Want| matches!(want.state, State::InFlight);
        let key = CidKey::of(cid);
        let was_wanted = self.wants.get(&key).is_some_and(in_flight);
        if was_wanted {
            self.wants.remove(&key);
        }
        was_wanted
    }

    /// Its message was not written: it is queued once more, up to `failures_max` times.
    pub(super) fn not_sent(&mut self, cid: &Cid, len: usize, failures_max: u8) {
        let key = CidKey::of(cid);
        let Some(want) = self.wants.get_mut(&key) else {
            return;
        };
        let State::InFlight = want.state else {
            return;
        };
        want.n_failures += 1;
        if want.n_failures > failures_max {
            self.wants.remove(&key);
            return;
        }
        want.state = State::Queued;
        self.queue.insert(want.place(), Queued { key, len });
    }
}

impl Want {
    /// Its place in the queue.
    fn place(&self) -> (Reverse<i32>, u64) {
        (Reverse(self.priority), self.number)
    }
}
