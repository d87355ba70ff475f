//! Models of the registry between a store and remote peers, and mutants that they must find.
//!
//! In       the very registry that runs, on a checker's locks; a store and links made of locks.
//! Out      a failed test that names the schedule.
//! Limits   loom goes through all orders of steps with at most [`PREEMPTIONS_MAX`] interruptions;
//!          shuttle tries [`N_SCHEDULES`] by chance, of longer models, too.
//! Not here streams, timers and the real server: what it does with the registry is a link here.
//!
//! What holds when all threads have ended and the mail is read ([`World::is_at_rest`]):
//! nobody waits for a block that is in the store (no wakeup was lost); each want was answered at
//! most once, with a block that was in the store, and to a peer that was still there; the registry
//! holds the wants of the ledgers and no others; and nothing, once all have left.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use carrack_formats::cid::SHA2_256;

use super::sync::thread;
use super::*;

#[cfg(feature = "loom")]
const PREEMPTIONS_MAX: usize = 3;
#[cfg(not(feature = "loom"))]
const N_SCHEDULES: usize = 1000;

/// What a mutant does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// Looks into the store, waits if the block is not there, and does not look again.
    LookOnceBeforeSubscribe,
    /// Reads how often something came after it has looked, and does not look again.
    CountAfterLook,
    /// Wakes who waits, and counts what came.
    WakeBeforeCount,
    /// Tells who waits for a block, and puts it into the store.
    PublishBeforePut,
    /// A cancel takes somebody's waiter of the same block.
    CancelWithoutGeneration,
    /// News of an older subscription count for a newer one.
    NewsWithoutGeneration,
    /// A message that was read before a disconnect is worked off after it.
    DisconnectWithoutEpoch,
}

/// Runs a model on many schedules.
#[cfg(feature = "loom")]
fn check(model: impl Fn() + Copy + Send + Sync + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(PREEMPTIONS_MAX);
    builder.check(model);
}

#[cfg(not(feature = "loom"))]
fn check(model: impl Fn() + Copy + Send + Sync + 'static) {
    use shuttle::scheduler::{PctScheduler, RandomScheduler};
    use shuttle::{Config, FailurePersistence, Runner};

    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    Runner::new(RandomScheduler::new(N_SCHEDULES), config.clone()).run(model);
    Runner::new(PctScheduler::new(3, N_SCHEDULES), config).run(model);
}

/// Whether the checker finds the fault.
fn is_found(model: impl Fn() + Copy + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(model))).is_err()
}

fn multihash(n: u8) -> Multihash {
    Multihash::wrap(SHA2_256, &[n; 32]).unwrap()
}

/// News for one peer.
#[derive(Default)]
struct Mailbox(Mutex<Vec<(u8, Gen)>>);

impl Waiter for Arc<Mailbox> {
    fn arrived(&self, multihash: &Multihash, generation: Gen) {
        hold(&self.0).push((multihash.digest()[0], generation));
    }
}

/// A remote peer, as a server has it.
#[derive(Default)]
struct Link {
    mailbox: Arc<Mailbox>,
    ledger: Mutex<Ledger>,
}

#[derive(Default)]
struct Ledger {
    /// Rises with each disconnect. What was read in an older one is not worked off any more.
    epoch: u64,
    /// Those of what was absent.
    wants: BTreeMap<u8, Want>,
    /// The wants that were answered with a block, and whether who wanted it was still there.
    answered: Vec<(u64, bool)>,
    /// How many wants there ever were.
    n_wants: u64,
}

#[derive(Clone)]
struct Want {
    ticket: Ticket,
    /// The epoch that it was read in.
    epoch: u64,
    number: u64,
}

impl Ledger {
    fn next_number(&mut self) -> u64 {
        self.n_wants += 1;
        self.n_wants
    }
}

/// What all share.
struct World {
    registry: Registry<Arc<Mailbox>>,
    store: Mutex<BTreeSet<u8>>,
    links: [Link; 2],
    fault: Fault,
}

impl World {
    fn new(fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            registry: Registry::with_shards(16, 2),
            store: Mutex::default(),
            links: Default::default(),
            fault,
        })
    }

    fn has(&self, n: u8) -> bool {
        hold(&self.store).contains(&n)
    }

    /// A block comes, by somebody who knows which.
    fn put(&self, n: u8) {
        if self.fault == Fault::PublishBeforePut {
            self.registry.publish(&multihash(n));
        }
        hold(&self.store).insert(n);
        match self.fault {
            Fault::PublishBeforePut => {}
            Fault::WakeBeforeCount => {
                self.registry.wake(&multihash(n));
                self.registry.raise_changes();
            }
            _ => {
                self.registry.publish(&multihash(n));
            }
        }
    }

    /// Blocks come, by somebody who only knows that some did.
    fn put_and_sweep(&self, n: u8) {
        let present = |batch: &[Multihash]| {
            let store = hold(&self.store);
            let keys = batch.iter().map(|multihash| multihash.digest()[0]);
            keys.map(|n| store.contains(&n)).collect()
        };
        if self.fault == Fault::PublishBeforePut {
            self.registry.sweep(present);
        }
        hold(&self.store).insert(n);
        match self.fault {
            Fault::PublishBeforePut => {}
            Fault::WakeBeforeCount => {
                self.registry.look_through(present);
                self.registry.raise_changes();
            }
            _ => {
                self.registry.sweep(present);
            }
        }
    }

    fn remove(&self, n: u8) {
        hold(&self.store).remove(&n);
    }

    /// A want that was read from a stream of the connection `epoch`.
    fn want(&self, link: &Link, epoch: u64, n: u8) {
        let is_late = self.fault == Fault::DisconnectWithoutEpoch;
        if is_late && hold(&link.ledger).epoch != epoch {
            return;
        }
        let before = self.registry.n_changes();
        let is_here = self.has(n);
        let before = match self.fault {
            Fault::CountAfterLook => self.registry.n_changes(),
            _ => before,
        };
        let want = {
            let mut ledger = hold(&link.ledger);
            if ledger.epoch != epoch && !is_late || ledger.wants.contains_key(&n) {
                return;
            }
            let number = ledger.next_number();
            if is_here {
                drop(ledger);
                return self.send(link, epoch, n, number); // The registry never hears of it.
            }
            let mailbox = Arc::clone(&link.mailbox);
            let ticket = self.registry.subscribe(&multihash(n), mailbox).unwrap();
            let want = Want {
                ticket,
                epoch,
                number,
            };
            ledger.wants.insert(n, want.clone());
            want
        };
        let looks_again =
            self.fault != Fault::LookOnceBeforeSubscribe && self.registry.n_changes() != before;
        if !looks_again || !self.has(n) {
            return;
        }
        let mut ledger = hold(&link.ledger);
        let waits = |known: &Want| known.number == want.number;
        if ledger.wants.get(&n).is_some_and(waits) {
            ledger.wants.remove(&n);
            // If it was woken in the meantime, those are news of nothing that is wanted.
            self.registry.unsubscribe(&want.ticket);
            drop(ledger);
            self.send(link, epoch, n, want.number);
        }
    }

    fn cancel(&self, link: &Link, epoch: u64, n: u8) {
        let mut ledger = hold(&link.ledger);
        if ledger.epoch != epoch {
            return;
        }
        let want = ledger.wants.remove(&n);
        drop(ledger);
        if self.fault == Fault::CancelWithoutGeneration {
            self.unsubscribe_first(n);
        } else if let Some(want) = want {
            self.registry.unsubscribe(&want.ticket);
        }
    }

    /// Works the mail off.
    fn drain(&self, link: &Link) {
        let news = mem::take(&mut *hold(&link.mailbox.0));
        for (n, generation) in news {
            let mut ledger = hold(&link.ledger);
            let is_its = |want: &Want| {
                want.ticket.generation() == generation || self.fault == Fault::NewsWithoutGeneration
            };
            let Some(number) = ledger
                .wants
                .get(&n)
                .filter(|want| is_its(want))
                .map(|want| want.number)
            else {
                continue;
            };
            ledger.wants.remove(&n); // The registry has let go of it.
            let epoch = ledger.epoch;
            drop(ledger);
            self.send(link, epoch, n, number);
        }
    }

    /// Reads the block and sends it, if the peer is still there. If the block is gone again, it is
    /// waited for again.
    fn send(&self, link: &Link, epoch: u64, n: u8, number: u64) {
        if !self.has(n) {
            return self.want(link, epoch, n);
        }
        let mut ledger = hold(&link.ledger);
        let is_there = ledger.epoch == epoch;
        if is_there || self.fault == Fault::DisconnectWithoutEpoch {
            ledger.answered.push((number, is_there));
        }
    }

    fn disconnect(&self, link: &Link) {
        let mut ledger = hold(&link.ledger);
        ledger.epoch += 1;
        let wants = mem::take(&mut ledger.wants);
        drop(ledger);
        for want in wants.values() {
            self.registry.unsubscribe(&want.ticket);
        }
    }

    /// What a registry without generations would do.
    fn unsubscribe_first(&self, n: u8) {
        let key = MultihashKey::of(&multihash(n));
        let mut table = hold(&self.registry.shard(&key).1.0);
        let (n_taken, is_last) = match table.wants.get_mut(&key) {
            None => (0, false),
            Some(Waiters::One(..)) => (1, true),
            Some(Waiters::Many(waiters)) => {
                waiters.pop_first();
                (1, waiters.is_empty())
            }
        };
        if is_last {
            table.wants.remove(&key);
        }
        drop(table);
        self.registry
            .n_waiters
            .fetch_sub(n_taken, Ordering::Relaxed);
    }

    fn n_in_shards(&self) -> usize {
        let shards = self.registry.shards.iter();
        let n_waiters = |shard: &Shard<_>| -> usize {
            let table = hold(&shard.0);
            let waiters = table.wants.values().map(|waiters| match waiters {
                Waiters::One(..) => 1,
                Waiters::Many(waiters) => waiters.len(),
            });
            waiters.sum()
        };
        shards.map(n_waiters).sum()
    }

    /// What must hold after everything; see the header.
    fn is_at_rest(&self) {
        for link in &self.links {
            while !hold(&link.mailbox.0).is_empty() {
                self.drain(link);
            }
        }
        let mut n_wants = 0;
        for link in &self.links {
            let ledger = hold(&link.ledger);
            let mut epochs = ledger.wants.values().map(|want| want.epoch);
            assert!(
                epochs.all(|epoch| epoch == ledger.epoch),
                "a gone peer's want"
            );
            let forgotten: Vec<u8> = ledger.wants.keys().copied().collect();
            let mut answered = ledger.answered.clone();
            drop(ledger);
            n_wants += forgotten.len();
            let forgotten: Vec<u8> = forgotten.into_iter().filter(|n| self.has(*n)).collect();
            assert_eq!(forgotten, [0_u8; 0], "blocks in the store are waited for");
            assert!(
                answered.iter().all(|(_, is_there)| *is_there),
                "a gone peer is answered"
            );
            let n_answered = answered.len();
            answered.sort();
            answered.dedup();
            assert_eq!(answered.len(), n_answered, "a want was answered twice");
        }
        assert_eq!(self.n_in_shards(), n_wants, "waiters nobody knows of");
        assert_eq!(self.registry.len(), n_wants, "the count is wrong");
        for link in &self.links {
            self.disconnect(link);
        }
        assert_eq!(self.n_in_shards(), 0, "waiters are left");
        assert_eq!(self.registry.len(), 0, "a count is left");
    }

    fn n_answered(&self, link: usize) -> usize {
        hold(&self.links[link].ledger).answered.len()
    }
}

/// Runs each in a thread, the last in this one.
fn run<const N: usize>(world: &Arc<World>, scripts: [fn(&World); N]) {
    let threads: Vec<_> = scripts
        .into_iter()
        .map(|script| {
            let world = Arc::clone(world);
            thread::spawn(move || script(&world))
        })
        .collect();
    for thread in threads {
        thread.join().unwrap();
    }
}

/// A want and the arrival of its block: it is answered, in whatever order.
fn want_and_put(fault: Fault) {
    let world = World::new(fault);
    run(
        &world,
        [
            |world| world.want(&world.links[0], 0, 1),
            |world| world.put(1),
        ],
    );
    world.is_at_rest();
    assert_eq!(world.n_answered(0), 1);
}

/// As before, for those who bring blocks without saying which.
fn want_and_sweep(fault: Fault) {
    let world = World::new(fault);
    run(
        &world,
        [
            |world| world.want(&world.links[0], 0, 1),
            |world| world.put_and_sweep(1),
        ],
    );
    world.is_at_rest();
    assert_eq!(world.n_answered(0), 1);
}

/// One peer wants and cancels, another wants: the other is answered.
fn cancel_beside_another(fault: Fault) {
    let world = World::new(fault);
    run(
        &world,
        [
            |world| {
                world.want(&world.links[0], 0, 1);
                world.cancel(&world.links[0], 0, 1);
            },
            |world| world.want(&world.links[1], 0, 1),
            |world| world.put(1),
        ],
    );
    world.is_at_rest();
    assert_eq!(world.n_answered(1), 1);
}

/// A peer wants, cancels and wants again while its mail is read and the block comes and goes.
fn want_again(fault: Fault) {
    let world = World::new(fault);
    run(
        &world,
        [
            |world| {
                let link = &world.links[0];
                world.want(link, 0, 1);
                world.cancel(link, 0, 1);
                world.want(link, 0, 1);
            },
            |world| {
                world.put(1);
                world.remove(1);
            },
            |world| world.drain(&world.links[0]),
        ],
    );
    world.is_at_rest();
}

/// A peer leaves in the middle of its message: nothing of it is left.
fn leave_within_a_message(fault: Fault) {
    let world = World::new(fault);
    run(
        &world,
        [
            |world| {
                world.want(&world.links[0], 0, 1);
                world.want(&world.links[0], 0, 2);
            },
            |world| world.disconnect(&world.links[0]),
        ],
    );
    assert_eq!(
        hold(&world.links[0].ledger).wants.len(),
        0,
        "a gone peer's want"
    );
    assert_eq!(world.registry.len(), 0, "a gone peer waits");
    world.is_at_rest();
}

/// Whoever is taken back is not woken afterwards; whoever was woken is told so.
fn take_back_or_wake() {
    let registry = Arc::new(Registry::with_shards(16, 1));
    let mailboxes = [Arc::<Mailbox>::default(), Arc::default()];
    let threads: Vec<_> = mailboxes
        .iter()
        .map(|mailbox| {
            let (registry, mailbox) = (Arc::clone(&registry), Arc::clone(mailbox));
            thread::spawn(move || {
                let ticket = registry
                    .subscribe(&multihash(1), Arc::clone(&mailbox))
                    .unwrap();
                let is_taken_back = registry.unsubscribe(&ticket);
                // Whatever comes later: it is decided by now.
                let news = hold(&mailbox.0).clone();
                let expected = [(1, ticket.generation())];
                assert_eq!(news, if is_taken_back { &[][..] } else { &expected });
                is_taken_back
            })
        })
        .collect();
    let n_woken = registry.publish(&multihash(1));
    let n_taken_back = threads
        .into_iter()
        .map(|thread| usize::from(thread.join().unwrap()))
        .sum::<usize>();
    assert_eq!(n_woken + n_taken_back, 2);
    let n_news: usize = mailboxes.iter().map(|mailbox| hold(&mailbox.0).len()).sum();
    assert_eq!(n_news, n_woken);
    assert_eq!(registry.len(), 0);
}

/// There is room for one: two come, at least one is let in, and room comes back.
fn two_for_one_place() {
    let registry = Arc::new(Registry::with_shards(1, 1));
    let come = |registry: &Registry<_>, n| {
        let ticket = registry
            .subscribe(&multihash(n), Arc::<Mailbox>::default())
            .ok()?;
        assert_eq!(registry.len(), 1);
        Some(registry.unsubscribe(&ticket))
    };
    let other = Arc::clone(&registry);
    let first = thread::spawn(move || come(&other, 1));
    let second = come(&registry, 2);
    let first = first.join().unwrap();
    assert!(first == Some(true) || second == Some(true));
    assert_eq!(come(&registry, 3), Some(true));
    assert_eq!(registry.len(), 0);
}

/// Two peers with readers and writers, one of which leaves and comes back, and blocks that come in
/// both ways and go.
#[cfg(not(feature = "loom"))]
fn two_links(fault: Fault) {
    let world = World::new(fault);
    run(
        &world,
        [
            |world| {
                let link = &world.links[0];
                for n in [1, 2, 3] {
                    world.want(link, 0, n);
                }
                world.cancel(link, 0, 1);
                world.want(link, 0, 1);
                world.disconnect(link);
                world.want(link, 1, 2);
                world.want(link, 1, 1);
            },
            // A second stream of the same peer, whose message is late.
            |world| {
                world.want(&world.links[0], 0, 3);
                world.cancel(&world.links[0], 0, 2);
            },
            |world| {
                let link = &world.links[1];
                for n in [3, 2, 1] {
                    world.want(link, 0, n);
                }
                world.cancel(link, 0, 3);
                world.want(link, 0, 3);
            },
            |world| {
                for _ in 0..3 {
                    world.drain(&world.links[0]);
                    world.drain(&world.links[1]);
                }
            },
            |world| {
                world.put(1);
                world.put_and_sweep(2);
                world.remove(1);
                world.put(3);
            },
        ],
    );
    world.is_at_rest();
    assert!(world.n_answered(1) >= 2, "blocks that stay");
}

#[test]
fn a_want_is_answered_whenever_its_block_comes() {
    check(|| want_and_put(Fault::None));
    check(|| want_and_sweep(Fault::None));
}

#[test]
fn a_cancel_takes_back_its_own_want_only() {
    check(|| cancel_beside_another(Fault::None));
}

#[test]
fn a_want_after_a_cancel_is_a_want_of_its_own() {
    check(|| want_again(Fault::None));
}

#[test]
fn nothing_is_left_of_a_peer_that_leaves_within_its_message() {
    check(|| leave_within_a_message(Fault::None));
}

#[test]
fn a_waiter_is_taken_back_or_woken_and_knows_which() {
    check(take_back_or_wake);
}

#[test]
fn the_limit_holds_among_threads() {
    check(two_for_one_place);
}

#[cfg(not(feature = "loom"))]
#[test]
fn two_peers_that_come_and_go_are_answered_once_and_forgotten() {
    check(|| two_links(Fault::None));
}

#[test]
fn the_mutant_that_looks_before_it_subscribes_and_not_again_is_found() {
    assert!(is_found(|| want_and_put(Fault::LookOnceBeforeSubscribe)));
    assert!(is_found(|| want_and_sweep(Fault::LookOnceBeforeSubscribe)));
    #[cfg(not(feature = "loom"))]
    assert!(is_found(|| two_links(Fault::LookOnceBeforeSubscribe)));
}

#[test]
fn the_mutant_that_counts_what_came_after_it_has_looked_is_found() {
    assert!(is_found(|| want_and_put(Fault::CountAfterLook)));
    assert!(is_found(|| want_and_sweep(Fault::CountAfterLook)));
}

#[test]
fn the_mutant_that_wakes_before_it_counts_is_found() {
    assert!(is_found(|| want_and_put(Fault::WakeBeforeCount)));
    assert!(is_found(|| want_and_sweep(Fault::WakeBeforeCount)));
}

#[test]
fn the_mutant_that_publishes_before_it_puts_is_found() {
    assert!(is_found(|| want_and_put(Fault::PublishBeforePut)));
    assert!(is_found(|| want_and_sweep(Fault::PublishBeforePut)));
    #[cfg(not(feature = "loom"))]
    assert!(is_found(|| two_links(Fault::PublishBeforePut)));
}

#[test]
fn the_mutant_that_cancels_without_a_generation_is_found() {
    assert!(is_found(|| cancel_beside_another(
        Fault::CancelWithoutGeneration
    )));
    #[cfg(not(feature = "loom"))]
    assert!(is_found(|| two_links(Fault::CancelWithoutGeneration)));
}

#[test]
fn the_mutant_that_takes_old_news_for_new_is_found() {
    assert!(is_found(|| want_again(Fault::NewsWithoutGeneration)));
    #[cfg(not(feature = "loom"))]
    assert!(is_found(|| two_links(Fault::NewsWithoutGeneration)));
}

#[test]
fn the_mutant_that_disconnects_without_an_epoch_is_found() {
    assert!(is_found(|| leave_within_a_message(
        Fault::DisconnectWithoutEpoch
    )));
    #[cfg(not(feature = "loom"))]
    assert!(is_found(|| two_links(Fault::DisconnectWithoutEpoch)));
}
