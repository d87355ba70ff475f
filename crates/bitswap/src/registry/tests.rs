use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use carrack_formats::cid::SHA2_256;
use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

type News = Arc<Mutex<Vec<(Multihash, Gen)>>>;

#[derive(Clone, Default)]
struct Mailbox(News);

impl Waiter for Mailbox {
    fn arrived(&self, multihash: &Multihash, generation: Gen) {
        self.0.lock().unwrap().push((*multihash, generation));
    }
}

impl Mailbox {
    fn take(&self) -> Vec<(Multihash, Gen)> {
        mem::take(&mut self.0.lock().unwrap())
    }
}

fn sha256(n: u64) -> Multihash {
    Multihash::wrap(SHA2_256, &[n.to_le_bytes(); 4].concat()).unwrap()
}

#[test]
fn a_waiter_is_small_and_its_digest_in_place() {
    assert_eq!(size_of::<MultihashKey>(), 40);
    assert!(size_of::<(MultihashKey, Waiters<Arc<()>>)>() <= 72);
    assert!(size_of::<Ticket>() <= 48);
}

#[test]
fn all_who_wait_are_woken_once_and_in_the_order_in_which_they_came() {
    let registry = Registry::new(10);
    let mailbox = Mailbox::default();
    let tickets: Vec<_> = (0..5)
        .map(|_| registry.subscribe(&sha256(1), mailbox.clone()).unwrap())
        .collect();
    let other = registry.subscribe(&sha256(2), mailbox.clone()).unwrap();
    assert_eq!(registry.publish(&sha256(1)), 5);
    let expected: Vec<_> = tickets
        .iter()
        .map(|ticket| (sha256(1), ticket.generation()))
        .collect();
    assert_eq!(mailbox.take(), expected);
    assert_eq!(registry.publish(&sha256(1)), 0);
    assert_eq!(registry.len(), 1);
    assert!(tickets.iter().all(|ticket| !registry.unsubscribe(ticket)));
    assert!(registry.unsubscribe(&other));
    assert!(!registry.unsubscribe(&other));
    assert_eq!(mailbox.take(), []);
    assert!(registry.is_empty());
}

/// An old ticket takes back nothing but its own subscription.
#[test]
fn a_ticket_of_an_older_generation_does_nothing() {
    let registry = Registry::new(10);
    let mailbox = Mailbox::default();
    let old = registry.subscribe(&sha256(1), mailbox.clone()).unwrap();
    registry.publish(&sha256(1));
    let new = registry.subscribe(&sha256(1), mailbox.clone()).unwrap();
    assert_ne!(old.generation(), new.generation());
    assert!(!registry.unsubscribe(&old));
    assert_eq!(registry.publish(&sha256(1)), 1);
}

#[test]
fn the_limit_holds_and_room_comes_back() {
    let registry = Registry::new(2);
    let mailbox = Mailbox::default();
    let subscribe = |n| registry.subscribe(&sha256(n), mailbox.clone());
    let first = subscribe(1).unwrap();
    subscribe(2).unwrap();
    assert_eq!(subscribe(3), Err(Full { waiters_max: 2 }));
    assert!(registry.unsubscribe(&first));
    subscribe(2).unwrap();
    assert_eq!(subscribe(1), Err(Full { waiters_max: 2 }));
    assert_eq!(registry.publish(&sha256(2)), 2);
    subscribe(3).unwrap();
    assert_eq!(
        Registry::new(0).subscribe(&sha256(1), mailbox),
        Err(Full { waiters_max: 0 })
    );
}

/// The functions' codes are part of the key, and digests of any length are kept.
#[test]
fn multihashes_of_other_functions_are_keys_of_their_own() {
    let registry = Registry::new(10);
    let mailbox = Mailbox::default();
    let digest = [7; 128];
    let keys = [
        (SHA2_256, 32),
        (SHA2_256, 20),
        (0x1e, 32),
        (0x1e, 128),
        (0, 0),
    ];
    let keys = keys.map(|(code, len)| Multihash::wrap(code, &digest[..len]).unwrap());
    for key in &keys {
        let ticket = registry.subscribe(key, mailbox.clone()).unwrap();
        assert_eq!(ticket.multihash(), *key);
    }
    for key in &keys {
        assert_eq!(registry.publish(key), 1);
        assert_eq!(mailbox.take()[0].0, *key);
    }
}

#[test]
fn a_sweep_asks_for_all_in_batches_and_wakes_who_waits_for_what_is_there() {
    const N: u64 = 200_000; // So that shards have more than a batch.
    let registry = Registry::new(N as usize);
    let mailbox = Mailbox::default();
    for n in 0..N {
        registry.subscribe(&sha256(n), mailbox.clone()).unwrap();
    }
    let is_there = |multihash: &Multihash| multihash.digest()[0].is_multiple_of(16);
    let mut n_asked = 0;
    let n_woken = registry.sweep(|batch| {
        assert!(batch.len() <= SWEEP_BATCH_MAX);
        n_asked += batch.len() as u64;
        // No lock is held: whoever is asked may use the registry.
        registry.publish(&sha256(N));
        batch.iter().map(is_there).collect()
    });
    assert_eq!(n_asked, N);
    let news = mailbox.take();
    assert_eq!(news.len(), n_woken);
    assert!(news.iter().all(|(multihash, _)| is_there(multihash)));
    assert_eq!(registry.len() + n_woken, N as usize);
    assert_eq!(
        registry.sweep(|batch| batch.iter().map(is_there).collect()),
        0
    );
}

/// A peer asks for 100,000 codecs of one block: they leave in no more steps than others.
#[test]
fn many_waiters_of_one_block_leave_as_fast_as_they_came() {
    let registry = Registry::new(100_000);
    let mailbox = Mailbox::default();
    let tickets: Vec<_> = (0..100_000)
        .map(|_| registry.subscribe(&sha256(1), mailbox.clone()).unwrap())
        .collect();
    for ticket in &tickets {
        assert!(registry.unsubscribe(ticket));
    }
    assert!(registry.is_empty());
}

#[test]
fn room_is_given_back_when_a_crowd_has_left() {
    let registry = Registry::new(1_000_000);
    let mailbox = Mailbox::default();
    let tickets: Vec<_> = (0..200_000)
        .map(|n| registry.subscribe(&sha256(n), mailbox.clone()).unwrap())
        .collect();
    let room = || -> usize {
        let shards = registry.shards.iter();
        shards.map(|shard| hold(&shard.0).wants.capacity()).sum()
    };
    assert!(room() >= 200_000);
    for ticket in &tickets {
        assert!(registry.unsubscribe(ticket));
    }
    assert!(room() <= N_SHARDS * SLACK_MAX * SLACK_MAX, "{}", room());
}

#[derive(Debug, Clone)]
enum Operation {
    Subscribe(u64),
    Unsubscribe(prop::sample::Index),
    Publish(u64),
    Sweep(Vec<u64>),
}

fn any_operation() -> impl Strategy<Value = Operation> {
    prop_oneof![
        4 => (0..6_u64).prop_map(Operation::Subscribe),
        3 => any::<prop::sample::Index>().prop_map(Operation::Unsubscribe),
        2 => (0..6_u64).prop_map(Operation::Publish),
        1 => vec(0..6_u64, 0..4).prop_map(Operation::Sweep),
    ]
}

proptest! {
    /// Against a list of who waits.
    #[test]
    fn it_does_what_a_list_would_do(
        operations in vec(any_operation(), 0..100),
        waiters_max in 0..12_usize,
    ) {
        let registry = Registry::new(waiters_max);
        let mailbox = Mailbox::default();
        let mut tickets = Vec::new();
        let mut waiting: BTreeMap<Gen, u64> = BTreeMap::new();
        for operation in operations {
            let mut published = Vec::new();
            match operation {
                Operation::Subscribe(n) => match registry.subscribe(&sha256(n), mailbox.clone()) {
                    Ok(ticket) => {
                        prop_assert!(waiting.insert(ticket.generation(), n).is_none());
                        tickets.push(ticket);
                    }
                    Err(Full { .. }) => prop_assert_eq!(waiting.len(), waiters_max),
                },
                Operation::Unsubscribe(index) if !tickets.is_empty() => {
                    let ticket = index.get(&tickets);
                    let waited = waiting.remove(&ticket.generation()).is_some();
                    prop_assert_eq!(registry.unsubscribe(ticket), waited);
                }
                Operation::Unsubscribe(_) => {}
                Operation::Publish(n) => {
                    let n_waiting = waiting.values().filter(|key| **key == n).count();
                    prop_assert_eq!(registry.publish(&sha256(n)), n_waiting);
                    published.push(n);
                }
                Operation::Sweep(present) => {
                    registry.sweep(|batch| {
                        let is = |key: &Multihash| present.iter().any(|n| sha256(*n) == *key);
                        batch.iter().map(is).collect()
                    });
                    published = present;
                }
            }
            let mut expected: Vec<_> = waiting
                .iter()
                .filter(|(_, key)| published.contains(key))
                .map(|(generation, key)| (*generation, sha256(*key)))
                .collect();
            waiting.retain(|_, key| !published.contains(key));
            let news = mailbox.take().into_iter();
            let mut news: Vec<_> = news.map(|(key, generation)| (generation, key)).collect();
            news.sort();
            expected.sort();
            prop_assert_eq!(news, expected);
            prop_assert_eq!(registry.len(), waiting.len());
        }
    }
}
