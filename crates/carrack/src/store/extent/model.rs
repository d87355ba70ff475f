//! Models of the table and the budget: every order of steps of a few threads, as far as a random and
//! a probabilistic scheduler find them in seconds; and mutants that they must find.
//!
//! In       the very code that runs, on the checker's lock.
//! Out      a failed test that names the schedule.
//! Not here the tasks and timers around it: their tests run on a real runtime.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use bytes::Bytes;
use shuttle::future::block_on;
use shuttle::scheduler::{PctScheduler, RandomScheduler};
use shuttle::{Config, FailurePersistence, Runner, thread};

use super::Lane;
use super::budget::{Ahead, Budget, Step};
use super::table::{Cancelled, Freed, Key, Opened, Part, Table, Want};
use crate::source::{SourceError, SourceErrorKind};
use crate::store::location::ContainerId;

/// Schedules tried of each model by each scheduler.
const N_SCHEDULES: usize = 1000;
/// Length of a piece of the models.
const LEN: u64 = 256 << 10;

const KEY: Key = Key {
    container: ContainerId(1),
    cell: 0,
    alone: 0,
};

/// What a mutant does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A fetch is cancelled when the first who wanted it leaves.
    CancelWithTheFirst,
    /// A fetch that is cancelled stays in the table until its task has ended, and fails who joined.
    InheritCancellation,
    /// A fetch gives its room back when it lands, and again when it ends.
    ReleaseTwice,
    /// A fetch that is cancelled keeps its room.
    NeverRelease,
}

fn config() -> Config {
    let mut config = Config::new();
    config.failure_persistence = FailurePersistence::None;
    config
}

/// Runs a model under both schedulers.
fn check(model: impl Fn() + Copy + Send + Sync + 'static) {
    Runner::new(RandomScheduler::new(N_SCHEDULES), config()).run(model);
    Runner::new(PctScheduler::new(3, N_SCHEDULES), config()).run(model);
}

/// Whether the checker finds the fault.
fn is_found(model: impl Fn() + Copy + Send + Sync + 'static) -> bool {
    catch_unwind(AssertUnwindSafe(|| check(model))).is_err()
}

fn error(kind: SourceErrorKind, what: &str) -> SourceError {
    SourceError::new(kind, what)
}

const fn want() -> Want<'static> {
    Want {
        lane: Lane::Block,
        flow: 0,
        cuts: &[],
        deliver: true,
        fetch_max: u64::MAX,
    }
}

/// Table and budget as the glue joins them, without its tasks.
struct World {
    table: Table,
    budget: Budget,
    fault: Fault,
}

impl World {
    fn new(bytes_max: u64, fault: Fault) -> Arc<Self> {
        Arc::new(Self {
            table: Table::new(LEN),
            budget: Budget::new(bytes_max),
            fault,
        })
    }

    fn settle(&self, freed: &Freed) {
        self.budget.freed(freed);
        self.pump();
    }

    fn pump(&self) {
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
            self.is_sound();
        }
    }

    /// What must hold at any moment.
    fn is_sound(&self) {
        let held = self.budget.held();
        let sum = held.in_flight + held.landed;
        assert!(sum <= self.budget.bytes_max(), "over the budget: {held:?}");
    }

    /// Waits for room.
    fn reserve(&self, source: u32, len: u64) {
        let place = self.budget.enqueue(Lane::Block, source, len);
        self.pump();
        block_on(std::future::poll_fn(|context| {
            self.budget.poll(place, context)
        }));
        self.is_sound();
    }

    /// A fetch as its task does it: room, then the bytes; given up if nobody wants it.
    fn fetch(&self, opened: &Opened, source: u32, outcome: &Result<(), SourceError>) {
        let mut left = opened.len();
        self.reserve(source, left);
        for piece in &opened.pieces {
            thread::yield_now(); // The network.
            if self.fault == Fault::InheritCancellation {
                if self.table.is_unwanted(opened.key, opened.id) {
                    thread::yield_now(); // The task has yet to end.
                    let stopped = error(SourceErrorKind::Unreachable, "cancelled");
                    self.table.end(opened.key, opened.id, &stopped);
                    break;
                }
            } else if self.table.cancel(opened.key, opened.id, false) == Cancelled::Yes {
                break;
            }
            if let Err(error) = outcome {
                self.table.end(opened.key, opened.id, error);
                break;
            }
            let len = piece.end - piece.start;
            left -= len;
            self.budget.landed(source, len);
            let bytes = Bytes::from(vec![7; 1]);
            let landed = self.table.land(opened.key, opened.id, piece.start, bytes);
            self.settle(&landed.unwrap_or(Freed {
                len,
                ..Freed::default()
            }));
            if self.fault == Fault::ReleaseTwice {
                self.budget.release(source, len);
            }
        }
        self.table.end(
            opened.key,
            opened.id,
            &error(SourceErrorKind::Unreachable, "ended"),
        );
        if self.fault != Fault::NeverRelease {
            self.budget.release(source, left);
        }
        self.pump();
    }

    /// A reader, and the fetches that it begins, each in a thread. `stays`: else it leaves at once.
    fn read(
        self: &Arc<Self>,
        key: Key,
        stays: bool,
        outcome: Result<(), SourceError>,
    ) -> Option<Result<(), SourceError>> {
        let wanted = self.table.want(key, &(0..2 * LEN), want()).unwrap();
        let fetches: Vec<_> = wanted
            .fetches
            .into_iter()
            .map(|opened| {
                let (world, outcome) = (Arc::clone(self), outcome.clone());
                thread::spawn(move || world.fetch(&opened, 1, &outcome))
            })
            .collect();
        let mut result = stays.then_some(Ok(()));
        for part in wanted.parts.iter().filter(|_| stays) {
            if let Part::Coming(delivery) = part
                && let Err(error) = block_on(&**delivery)
            {
                result = Some(Err(error));
            }
        }
        if !stays && self.fault == Fault::CancelWithTheFirst {
            for hold in &wanted.holds {
                let stopped = error(SourceErrorKind::Unreachable, "cancelled");
                self.table.cancel_for_one(hold, &stopped);
            }
        }
        self.settle(&self.table.release(&wanted.holds, |_, _| false));
        for fetch in fetches {
            fetch.join().unwrap();
        }
        result
    }

    fn is_at_rest(&self) {
        assert!(
            self.budget.is_idle(),
            "room was lost: {:?}",
            self.budget.held()
        );
    }
}

/// One reader leaves, one joins and stays: who stays gets the bytes.
fn join_and_cancel(fault: Fault) {
    let world = World::new(16 * LEN, fault);
    let other = Arc::clone(&world);
    let leaves = thread::spawn(move || other.read(KEY, false, Ok(())));
    let stays = world.read(KEY, true, Ok(()));
    assert_eq!(
        stays.map(|result| result.is_ok()),
        Some(true),
        "failed by another's leaving"
    );
    leaves.join().unwrap();
    world.is_at_rest();
}

/// A reader leaves and another comes while the read is given up: who comes gets the bytes.
fn leave_and_come_back(fault: Fault) {
    let world = World::new(16 * LEN, fault);
    let wanted = world.table.want(KEY, &(0..2 * LEN), want()).unwrap();
    let fetches: Vec<_> = wanted
        .fetches
        .into_iter()
        .map(|opened| {
            let world = Arc::clone(&world);
            thread::spawn(move || world.fetch(&opened, 1, &Ok(())))
        })
        .collect();
    world.settle(&world.table.release(&wanted.holds, |_, _| false));
    thread::yield_now();
    let stays = world.read(KEY, true, Ok(()));
    assert_eq!(
        stays.map(|result| result.is_ok()),
        Some(true),
        "it inherited a cancellation"
    );
    for fetch in fetches {
        fetch.join().unwrap();
    }
    world.is_at_rest();
}

/// A fetch fails for those who waited; who asks after it was told gets the bytes.
fn fail_and_try_anew(fault: Fault) {
    let world = World::new(16 * LEN, fault);
    let fails = Err(error(SourceErrorKind::Changed, "changed"));
    let other = Arc::clone(&world);
    let second = thread::spawn(move || other.read(KEY, true, Ok(())));
    let first = world.read(KEY, true, fails);
    let _ = (first, second.join().unwrap());
    let last = world.read(KEY, true, Ok(()));
    assert_eq!(
        last.map(|result| result.is_ok()),
        Some(true),
        "an old failure"
    );
    world.is_at_rest();
}

/// Three readers of different places, room for one fetch and a half: all get their bytes.
fn land_and_evict(fault: Fault) {
    let world = World::new(3 * LEN, fault);
    let threads: Vec<_> = (1..=3)
        .map(|container| {
            let world = Arc::clone(&world);
            let key = Key {
                container: ContainerId(container),
                ..KEY
            };
            let stays = container != 2;
            thread::spawn(move || world.read(key, stays, Ok(())))
        })
        .collect();
    for thread in threads {
        assert_ne!(
            thread.join().unwrap().map(|result| result.is_ok()),
            Some(false)
        );
    }
    world.is_at_rest();
}

/// Wants of room are granted, withdrawn and promoted while others land and release: nobody is
/// forgotten, and read-ahead takes nothing from those who wait.
fn grant_and_withdraw(fault: Fault) {
    let world = World::new(4 * LEN, fault);
    let mut threads = Vec::new();
    for source in 1..=3 {
        let world = Arc::clone(&world);
        threads.push(thread::spawn(move || {
            world.reserve(source, 2 * LEN);
            thread::yield_now();
            world.budget.release(source, 2 * LEN);
            if world.fault == Fault::ReleaseTwice {
                world.budget.release(source, 2 * LEN);
            }
            world.pump();
        }));
    }
    let leaver = Arc::clone(&world);
    threads.push(thread::spawn(move || {
        let place = leaver.budget.enqueue(Lane::Stream, 4, 2 * LEN);
        leaver.pump();
        let place = leaver.budget.promote(place, Lane::Block);
        leaver.pump();
        if leaver.budget.withdraw(place) && leaver.fault != Fault::NeverRelease {
            leaver.budget.release(4, 2 * LEN);
        }
        leaver.pump();
    }));
    if let Ahead::Granted = world.budget.ahead(5, LEN) {
        world.is_sound();
        world.budget.release(5, LEN);
        world.pump();
    }
    for thread in threads {
        thread.join().unwrap();
    }
    world.is_at_rest();
}

#[test]
fn who_stays_gets_the_bytes_though_others_leave() {
    check(|| join_and_cancel(Fault::None));
}

#[test]
fn who_comes_back_inherits_no_cancellation() {
    check(|| leave_and_come_back(Fault::None));
}

#[test]
fn a_failure_ends_with_those_who_waited() {
    check(|| fail_and_try_anew(Fault::None));
}

#[test]
fn all_are_served_within_the_budget_though_it_holds_one_fetch() {
    check(|| land_and_evict(Fault::None));
}

#[test]
fn every_want_of_room_is_granted_or_withdrawn() {
    check(|| grant_and_withdraw(Fault::None));
}

#[test]
fn the_mutant_that_cancels_with_the_first_waiter_is_found() {
    assert!(is_found(|| join_and_cancel(Fault::CancelWithTheFirst)));
}

#[test]
fn the_mutant_that_inherits_a_cancellation_is_found() {
    assert!(is_found(|| leave_and_come_back(Fault::InheritCancellation)));
}

#[test]
fn the_mutant_that_releases_room_twice_is_found() {
    assert!(is_found(|| land_and_evict(Fault::ReleaseTwice)));
    assert!(is_found(|| grant_and_withdraw(Fault::ReleaseTwice)));
}

#[test]
fn the_mutant_that_never_releases_room_is_found() {
    assert!(is_found(|| land_and_evict(Fault::NeverRelease)));
    assert!(is_found(|| grant_and_withdraw(Fault::NeverRelease)));
}
