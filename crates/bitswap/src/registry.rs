//! Who waits for which multihash.
//!
//! In       waiters, and news that a block is there.
//! Out      each waiter is woken once, or was taken back before.
//! Limits   a number of waiters in all; a waiter costs about 100 bytes under SHA2-256.
//! Not here what a waiter wants and for how long (`server`, sessions); blocks.
//!
//! The key is the multihash: two CIDs that differ in codec or version wait for the same bytes.
//!
//! # No wakeup is lost
//!
//! Whoever waits subscribes first and looks into the store afterwards; who has looked before, to
//! subscribe to what is absent alone, looks again. Whoever brings a block puts
//! it into the store first and publishes (or sweeps) afterwards. Whichever of the two comes second
//! under the lock of the shard sees what the other has done.
//!
//! The second look is needed only if something came meanwhile: [`Registry::n_changes`] is raised
//! before anybody is told, so that it stands after the subscription as it stood before the *first*
//! look only if whoever brings the block comes to the shard later, and finds who waits. Any other
//! order loses wakeups; the models (`model`) find each of them.
//!
//! # Locks
//!
//! A lock of the caller, then a shard, then what a waiter locks to be woken. A waiter does not
//! call the registry from [`Waiter::arrived`].

use std::collections::{BTreeMap, HashMap, hash_map};
use std::fmt;
use std::hash::BuildHasher;
use std::mem;

use carrack_formats::Multihash;

use self::sync::{AtomicUsize, Mutex, Ordering, Seed, hold};
use crate::key::MultihashKey;

#[cfg(test)]
#[cfg(any(feature = "loom", feature = "shuttle"))]
mod model;
mod sync;

/// Parts of a registry, each with a lock of its own.
const N_SHARDS: usize = 64;
/// Most multihashes that are looked up at once by a sweep.
pub const SWEEP_BATCH_MAX: usize = 1024;
/// A map is made smaller when it has room for this many keys a key that is left.
const SLACK_MAX: usize = 8;

/// Whoever waits: a peer, a session of this node.
pub trait Waiter: Send {
    /// The block is in the store. Called once, with a lock held: puts the news into a mailbox of
    /// its own, waits for nothing, and does not call the registry.
    ///
    /// `generation` is that of the ticket. A waiter that has subscribed anew tells by it that the
    /// news are those of an older subscription.
    fn arrived(&self, multihash: &Multihash, generation: Gen);
}

/// Tells subscriptions apart, all there ever are in one registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gen(u64);

/// One subscription: what it waits for, and which one it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Ticket {
    key: MultihashKey,
    generation: Gen,
}

impl Ticket {
    /// What is waited for.
    #[must_use]
    pub fn multihash(&self) -> Multihash {
        self.key.multihash()
    }

    /// Which subscription it is.
    #[must_use]
    pub const fn generation(&self) -> Gen {
        self.generation
    }
}

/// The registry has as many waiters as it may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("registry is full: {waiters_max} wait for blocks")]
pub struct Full {
    /// Its limit.
    pub waiters_max: usize,
}

/// The waiters of a node.
pub struct Registry<W> {
    shards: Box<[Shard<W>]>,
    seed: Seed,
    /// Never over `waiters_max`: raised before a waiter is put in, lowered after it was taken out.
    n_waiters: AtomicUsize,
    waiters_max: usize,
    /// How often something came: raised when it is in the store, before a shard is locked for it.
    n_changes: AtomicUsize,
}

/// Shards do not share a line of the processor's cache.
#[repr(align(64))]
struct Shard<W>(Mutex<Table<W>>);

struct Table<W> {
    /// No entry without a waiter.
    wants: HashMap<MultihashKey, Waiters<W>, Seed>,
    /// How many subscriptions there ever were.
    n_generations: u64,
}

/// Nearly always one. Many are sorted by generation, so that each leaves in a few steps, however
/// many peers wait for the same block.
enum Waiters<W> {
    One(Gen, W),
    Many(BTreeMap<Gen, W>),
}

impl<W: Waiter> Registry<W> {
    /// A registry for at most `waiters_max` at a time.
    #[must_use]
    pub fn new(waiters_max: usize) -> Self {
        Self::with_shards(waiters_max, N_SHARDS)
    }

    fn with_shards(waiters_max: usize, n_shards: usize) -> Self {
        let seed = Seed::default();
        let table = |_| Table {
            wants: HashMap::with_hasher(seed.clone()),
            n_generations: 0,
        };
        let shards = (0..n_shards).map(|index| Shard(Mutex::new(table(index))));
        Self {
            shards: shards.collect(),
            seed: seed.clone(),
            n_waiters: AtomicUsize::new(0),
            waiters_max,
            n_changes: AtomicUsize::new(0),
        }
    }

    /// From now on `waiter` is woken when the block is published.
    ///
    /// The block may have been there before: look into the store now, unless you did and
    /// [`n_changes`](Self::n_changes) is what it was before you did.
    ///
    /// # Errors
    /// [`Full`]: nothing was changed.
    pub fn subscribe(&self, multihash: &Multihash, waiter: W) -> Result<Ticket, Full> {
        let waiters_max = self.waiters_max;
        let more = |n: usize| (n < waiters_max).then(|| n + 1);
        self.n_waiters
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, more)
            .map_err(|_| Full { waiters_max })?;
        let key = MultihashKey::of(multihash);
        let (index, shard) = self.shard(&key);
        let mut table = hold(&shard.0);
        // Generations of different shards differ in their rest.
        let generation = Gen(table.n_generations * self.shards.len() as u64 + index as u64);
        table.n_generations += 1;
        match table.wants.entry(key.clone()) {
            hash_map::Entry::Vacant(entry) => {
                entry.insert(Waiters::One(generation, waiter));
            }
            hash_map::Entry::Occupied(entry) => entry.into_mut().push(generation, waiter),
        }
        Ok(Ticket { key, generation })
    }

    /// Takes a waiter back. `true`: it still waited, and is never woken from now on. `false`: it
    /// was woken, all of it, or taken back before.
    pub fn unsubscribe(&self, ticket: &Ticket) -> bool {
        let mut table = hold(&self.shard(&ticket.key).1.0);
        let hash_map::Entry::Occupied(mut entry) = table.wants.entry(ticket.key.clone()) else {
            return false;
        };
        let (waiter, is_last) = match entry.get_mut() {
            Waiters::One(generation, _) if *generation == ticket.generation => {
                let Waiters::One(_, waiter) = entry.remove() else {
                    return false; // It is one.
                };
                (waiter, true)
            }
            Waiters::One(..) => return false,
            Waiters::Many(waiters) => {
                let Some(waiter) = waiters.remove(&ticket.generation) else {
                    return false;
                };
                let is_last = waiters.is_empty();
                if is_last {
                    entry.remove();
                }
                (waiter, is_last)
            }
        };
        if is_last {
            table.give_room_back();
        }
        drop(table);
        drop(waiter); // What a waiter does when it goes is no business of others.
        self.n_waiters.fetch_sub(1, Ordering::Relaxed);
        true
    }

    /// How often something was published or swept for. It changes before anybody is woken.
    #[must_use]
    pub fn n_changes(&self) -> usize {
        self.n_changes.load(Ordering::Acquire)
    }

    fn raise_changes(&self) {
        self.n_changes.fetch_add(1, Ordering::Release);
    }

    /// Wakes all who wait for a block that is in the store since before this call. How many.
    pub fn publish(&self, multihash: &Multihash) -> usize {
        self.raise_changes();
        self.wake(multihash)
    }

    fn wake(&self, multihash: &Multihash) -> usize {
        let key = MultihashKey::of(multihash);
        // Waiters are woken with the lock held, so that who is taken back afterwards has the news
        // already: there is no moment in which a wakeup is under way and can be seen by nobody.
        let mut table = hold(&self.shard(&key).1.0);
        let Some(waiters) = table.wants.remove(&key) else {
            return 0;
        };
        let n_woken = match &waiters {
            Waiters::One(generation, waiter) => {
                waiter.arrived(multihash, *generation);
                1
            }
            Waiters::Many(waiters) => {
                for (generation, waiter) in waiters {
                    waiter.arrived(multihash, *generation);
                }
                waiters.len()
            }
        };
        table.give_room_back();
        drop(table);
        drop(waiters);
        self.n_waiters.fetch_sub(n_woken, Ordering::Relaxed);
        n_woken
    }

    /// Looks all that is waited for up and publishes what is there, for stores that say that
    /// something came and not what. How many were woken.
    ///
    /// `present` is asked for at most [`SWEEP_BATCH_MAX`] multihashes at a time, without a lock,
    /// and answers for each; what it leaves out is absent.
    pub fn sweep(&self, present: impl FnMut(&[Multihash]) -> Vec<bool>) -> usize {
        self.raise_changes();
        self.look_through(present)
    }

    fn look_through(&self, mut present: impl FnMut(&[Multihash]) -> Vec<bool>) -> usize {
        let mut n_woken = 0;
        for batch in self.waiting() {
            let is_present = present(&batch);
            debug_assert_eq!(is_present.len(), batch.len(), "an answer for each");
            for (multihash, _) in batch.iter().zip(is_present).filter(|(_, is)| *is) {
                n_woken += self.wake(multihash);
            }
        }
        n_woken
    }

    /// All that is waited for, in batches of at most [`SWEEP_BATCH_MAX`].
    ///
    /// What is subscribed to while this goes on may be left out: whoever subscribed looks after
    /// it themselves. A shard is read when its first batch is asked for.
    fn waiting(&self) -> impl Iterator<Item = Vec<Multihash>> + '_ {
        self.shards.iter().flat_map(|shard| {
            // Keys are copied with the lock held, and made longer without.
            let keys: Vec<MultihashKey> = hold(&shard.0).wants.keys().cloned().collect();
            let n_batches = keys.len().div_ceil(SWEEP_BATCH_MAX);
            (0..n_batches).map(move |index| {
                let batch = keys.iter().skip(index * SWEEP_BATCH_MAX);
                batch
                    .take(SWEEP_BATCH_MAX)
                    .map(MultihashKey::multihash)
                    .collect()
            })
        })
    }

    /// How many wait.
    #[must_use]
    pub fn len(&self) -> usize {
        self.n_waiters.load(Ordering::Relaxed)
    }

    /// How many more may wait.
    #[must_use]
    pub fn n_free(&self) -> usize {
        self.waiters_max.saturating_sub(self.len())
    }

    /// Whether nobody waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "a remainder of the number of shards, of which there is at least one"
    )]
    fn shard(&self, key: &MultihashKey) -> (usize, &Shard<W>) {
        // The maps take the lowest and the highest bits of the same hash.
        let hash = self.seed.hash_one(key) >> 32;
        let index = hash as usize % self.shards.len();
        (index, &self.shards[index])
    }
}

impl<W> fmt::Debug for Registry<W> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry")
            .field("n_waiters", &self.n_waiters)
            .field("waiters_max", &self.waiters_max)
            .finish_non_exhaustive()
    }
}

impl<W> Table<W> {
    /// A map keeps its room when keys leave; after many have left, most is given back.
    fn give_room_back(&mut self) {
        let n_wants = self.wants.len();
        if self.wants.capacity() > SLACK_MAX * n_wants.max(SLACK_MAX) {
            self.wants.shrink_to(2 * n_wants);
        }
    }
}

impl<W> Waiters<W> {
    fn push(&mut self, generation: Gen, waiter: W) {
        let before = mem::replace(self, Self::Many(BTreeMap::new()));
        let mut waiters = match before {
            Self::One(generation, waiter) => BTreeMap::from([(generation, waiter)]),
            Self::Many(waiters) => waiters,
        };
        waiters.insert(generation, waiter);
        *self = Self::Many(waiters);
    }
}

#[cfg(test)]
#[cfg(not(any(feature = "loom", feature = "shuttle")))]
mod tests;
