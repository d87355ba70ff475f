//! Whose blocks are loaded next: deficit round-robin in bytes over the peers that are ready.
//!
//! In       how many bytes a peer would load.
//! Out      a [`Turn`], which holds that much of the room until its bytes are written.
//! Limits   one room of bytes for all peers; a peer asks for one turn at a time.
//! Not here how much a peer may have under way (`peer`): one that has enough does not ask, so that
//!          it takes part in nothing and holds up nobody.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::oneshot;

use crate::budget::Held;
use crate::hold;

/// What each waiting peer's credit grows by in a round, in bytes.
const QUANTUM: usize = 64 << 10;

/// The ring of peers that wait, and the room. Clones share both.
#[derive(Debug, Clone)]
pub(super) struct Turns {
    shared: Arc<Mutex<Shared>>,
    room: usize,
}

#[derive(Debug)]
struct Shared {
    free: usize,
    ring: VecDeque<Waiting>,
}

#[derive(Debug)]
struct Waiting {
    need: usize,
    credit: usize,
    held: Option<Arc<Held>>,
    granted: oneshot::Sender<Turn>,
}

/// Room for bytes of one peer. Given back when dropped.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    len: usize,
    /// What counts for the peer's address until all of the turn is given back.
    _held: Option<Arc<Held>>,
}

impl Turns {
    /// `room` bytes for all peers together.
    pub(super) fn new(room: usize) -> Self {
        let shared = Shared {
            free: room,
            ring: VecDeque::new(),
        };
        Self {
            shared: Arc::new(Mutex::new(shared)),
            room,
        }
    }

    /// Queues for room for `need` bytes; more than all room counts as all of it. A receiver that is
    /// dropped leaves the ring.
    pub(super) fn ask(&self, need: usize, held: Option<Held>) -> oneshot::Receiver<Turn> {
        let (granted, receiver) = oneshot::channel();
        let waiting = Waiting {
            need: need.clamp(1, self.room.max(1)),
            credit: 0,
            held: held.map(Arc::new),
            granted,
        };
        let turns = {
            let mut shared = self.hold();
            shared.ring.push_back(waiting);
            self.pump(&mut shared)
        };
        give(turns);
        receiver
    }

    /// Whether less than half of the room is free: those who have much under way ask for no more.
    pub(super) fn is_pressed(&self) -> bool {
        self.hold().free < self.room / 2
    }

    /// Bytes that peers hold.
    pub(super) fn in_use(&self) -> usize {
        self.room - self.n_free()
    }

    /// Bytes that nobody holds.
    pub(super) fn n_free(&self) -> usize {
        self.hold().free
    }

    /// Goes round while the one whose turn it is fits.
    fn pump(&self, shared: &mut Shared) -> Vec<(oneshot::Sender<Turn>, Turn)> {
        let mut turns = Vec::new();
        while let Some(mut first) = shared.ring.pop_front() {
            if first.granted.is_closed() {
                continue;
            }
            if first.credit < first.need {
                first.credit += QUANTUM;
            }
            if first.credit < first.need {
                shared.ring.push_back(first);
                continue;
            }
            if shared.free < first.need {
                shared.ring.push_front(first); // Who is large is not passed by for ever.
                break;
            }
            shared.free -= first.need;
            let turn = Turn {
                turns: self.clone(),
                len: first.need,
                _held: first.held,
            };
            turns.push((first.granted, turn));
        }
        turns
    }

    fn give_back(&self, len: usize) {
        if len == 0 {
            return;
        }
        let turns = {
            let mut shared = self.hold();
            shared.free += len;
            self.pump(&mut shared)
        };
        give(turns);
    }

    fn hold(&self) -> MutexGuard<'_, Shared> {
        hold(&self.shared)
    }
}

/// Outside of the lock: a turn that nobody takes gives itself back.
fn give(turns: Vec<(oneshot::Sender<Turn>, Turn)>) {
    for (granted, turn) in turns {
        drop(granted.send(turn)); // Whoever left needs none.
    }
}

impl Turn {
    /// Bytes of room that it holds.
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    /// A part of it, to be given back by itself; at most all of it.
    pub(super) fn split(&mut self, len: usize) -> Self {
        let len = len.min(self.len);
        self.len -= len;
        Self {
            turns: self.turns.clone(),
            len,
            _held: self._held.clone(),
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.give_back(self.len);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot;

    use super::{QUANTUM, Turn, Turns};

    fn ask(turns: &Turns, need: usize) -> oneshot::Receiver<Turn> {
        turns.ask(need, None)
    }

    #[test]
    fn bytes_and_not_turns_are_shared_fairly() {
        let turns = Turns::new(QUANTUM);
        let held = ask(&turns, QUANTUM).try_recv().unwrap();
        // One asks for quanta, the other for a sixteenth of that.
        let mut large = ask(&turns, QUANTUM);
        let mut small: Vec<_> = (0..4).map(|_| ask(&turns, QUANTUM / 16)).collect();
        assert!(large.try_recv().is_err());
        drop(held);
        let turn = large.try_recv().unwrap();
        assert!(small.iter_mut().all(|it| it.try_recv().is_err()));
        drop(turn);
        assert!(small.iter_mut().all(|it| it.try_recv().is_ok()));
        assert_eq!(turns.in_use(), 0);
    }

    #[test]
    fn one_who_needs_much_waits_for_as_many_rounds() {
        let turns = Turns::new(64 * QUANTUM);
        let held = ask(&turns, 64 * QUANTUM).try_recv().unwrap();
        let mut large = ask(&turns, 16 * QUANTUM);
        let mut small = ask(&turns, QUANTUM);
        drop(held);
        assert_eq!(small.try_recv().unwrap().len(), QUANTUM);
        assert_eq!(large.try_recv().unwrap().len(), 16 * QUANTUM);
    }

    #[test]
    fn who_leaves_takes_no_room() {
        let turns = Turns::new(QUANTUM);
        let held = ask(&turns, 1).try_recv().unwrap();
        drop(ask(&turns, QUANTUM));
        let mut later = ask(&turns, QUANTUM);
        drop(held);
        let mut turn = later.try_recv().unwrap();
        drop(turn.split(QUANTUM / 2));
        assert_eq!(turns.in_use(), QUANTUM / 2);
        drop(turn);
        assert_eq!(turns.in_use(), 0);
    }
}
