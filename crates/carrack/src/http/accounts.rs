//! What an address and its subnet have of this node at once.
//!
//! In       addresses of connections that were accepted.
//! Out      an [`Account`] a connection: its place among connections, and what its requests take.
//! Limits   connections, requests, bytes on their way and memory of walks, of an address and of a
//!          subnet; who is trusted has none. An address is remembered while it has a connection.
//! Not here what all clients together may have (`listener`, `gateway`); what counts as one address
//!          (`carrack_bitswap::budget`).
//!
//! A request costs two counters, and no look-up: the connection knows its accounts.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Weak};

use carrack_bitswap::budget::{Network, host, subnet};
use tokio::sync::Semaphore;

use super::limits::Limits;
use super::queue::{Queue, Waiting};

/// Unit of the budget, in bytes: a semaphore counts to 2^29 at least, bytes would be too many.
pub(crate) const UNIT: usize = 1024;

/// Nobody has more places, or bytes on their way, than one of so many of the free ones, so that
/// however many subnets take all they can, a newcomer finds one.
const ADDRESS_PART: usize = 4;
const SUBNET_PART: usize = 2;

/// The same of the memory of walks: an address may have one answer of the largest, which takes more
/// than a quarter of it.
const WALK_ADDRESS_PART: usize = 2;
const WALK_SUBNET_PART: usize = 1;

/// Addresses that are remembered without looking whether they have connections.
const TIDY_LEN_MIN: usize = 64;

/// The accounts of all who have a connection.
#[derive(Debug)]
pub struct Accounts {
    trusted: Vec<Network>,
    addresses: Table,
    subnets: Table,
}

/// Those of addresses, or of subnets.
#[derive(Debug)]
struct Table {
    bounds: Bounds,
    spenders: HashMap<IpAddr, Weak<Spender>>,
    /// With so many, those without a connection are forgotten.
    tidy_at: usize,
}

/// What one spender may have at once.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    connections_max: usize,
    requests_max: usize,
    /// Units of the budget of bytes in flight.
    room_max: usize,
}

/// An address or a subnet, and what it has.
#[derive(Debug)]
struct Spender {
    bounds: Bounds,
    n_connections: AtomicUsize,
    n_requests: AtomicUsize,
    /// Bytes of the memory of walks.
    walk_len: AtomicUsize,
    /// Units of the budget of bytes in flight.
    room: AtomicUsize,
    /// Its requests that wait for room.
    queue: Queue,
}

/// One connection's part in the accounts of its address and subnet; given back when dropped. The
/// default is that of who is trusted.
#[derive(Debug, Default)]
pub struct Account {
    spenders: Option<[Arc<Spender>; 2]>,
}

/// Bytes that an address and its subnet have on their way; given back when dropped.
#[derive(Debug, Default)]
pub struct Room {
    _parts: Option<[Part; 2]>,
}

/// What one of them has.
#[derive(Debug)]
struct Part {
    spender: Arc<Spender>,
    n_units: usize,
}

/// The budget of bytes that all share, as far as accounts need it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Common<'a> {
    pub(crate) units: &'a Semaphore,
    /// How many wait for what others have.
    pub(crate) n_waiting: &'a AtomicUsize,
}

/// Why a connection is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// Of its address.
    #[error("as many connections from this address as there may be")]
    Address,
    /// Of its subnet.
    #[error("as many connections from this subnet as there may be")]
    Subnet,
}

impl Accounts {
    /// Accounts within `limits`.
    #[must_use]
    pub fn new(limits: &Limits) -> Self {
        let part = |percent: usize| limits.bytes_in_flight_max / 100 * percent.min(100);
        let address = Bounds {
            connections_max: limits.connections_per_address_max,
            requests_max: limits.requests_per_address_max,
            room_max: units(part(limits.in_flight_per_address_percent)),
        };
        let subnet = Bounds {
            connections_max: limits.connections_per_subnet_max,
            requests_max: limits.requests_per_subnet_max,
            room_max: units(part(limits.in_flight_per_subnet_percent)),
        };
        Self {
            trusted: limits.trusted.clone(),
            addresses: Table::new(address),
            subnets: Table::new(subnet),
        }
    }

    /// Counts one more connection; `n_free` more may be open.
    ///
    /// # Errors
    /// Its address or its subnet has as many as it may.
    pub fn enter(&mut self, address: IpAddr, n_free: usize) -> Result<Account, TooMany> {
        let address = address.to_canonical();
        if self.trusted.iter().any(|network| network.contains(address)) {
            return Ok(Account::default());
        }
        let of_address = self.addresses.spender(host(address));
        let of_subnet = self.subnets.spender(subnet(address));
        let enter = |spender: &Spender, part| {
            let max = spender.bounds.connections_max;
            count_up(&spender.n_connections, within(max, n_free, part))
        };
        if !enter(&of_address, ADDRESS_PART) {
            return Err(TooMany::Address);
        }
        if !enter(&of_subnet, SUBNET_PART) {
            of_address.n_connections.fetch_sub(1, Relaxed);
            return Err(TooMany::Subnet);
        }
        Ok(Account {
            spenders: Some([of_address, of_subnet]),
        })
    }
}

impl Table {
    fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            spenders: HashMap::new(),
            tidy_at: TIDY_LEN_MIN,
        }
    }

    /// The spender at `key`, who lives as long as its connections and their requests do.
    fn spender(&mut self, key: IpAddr) -> Arc<Spender> {
        if let Some(known) = self.spenders.get(&key).and_then(Weak::upgrade) {
            return known;
        }
        if self.spenders.len() >= self.tidy_at {
            self.spenders
                .retain(|_, spender| spender.strong_count() > 0);
            self.tidy_at = (2 * self.spenders.len()).max(TIDY_LEN_MIN);
            self.spenders.shrink_to(self.tidy_at);
        }
        let spender = Arc::new(Spender {
            bounds: self.bounds,
            n_connections: AtomicUsize::new(0),
            n_requests: AtomicUsize::new(0),
            walk_len: AtomicUsize::new(0),
            room: AtomicUsize::new(0),
            queue: Queue::default(),
        });
        self.spenders.insert(key, Arc::downgrade(&spender));
        spender
    }
}

impl Account {
    /// Counts one more request while `n_free` more may be answered; `false`: the address or the
    /// subnet has as many as it may.
    #[must_use]
    pub fn begin_request(&self, n_free: usize) -> bool {
        let Some([address, subnet]) = &self.spenders else {
            return true;
        };
        let enter = |spender: &Spender, part| {
            let max = spender.bounds.requests_max;
            count_up(&spender.n_requests, within(max, n_free, part))
        };
        if !enter(address, ADDRESS_PART) {
            return false;
        }
        if !enter(subnet, SUBNET_PART) {
            address.n_requests.fetch_sub(1, Relaxed);
            return false;
        }
        true
    }

    /// A request that was counted is over.
    pub fn end_request(&self) {
        for spender in self.spenders.iter().flatten() {
            spender.n_requests.fetch_sub(1, Relaxed);
        }
    }

    /// Takes `n_units` of the budget of bytes if address and subnet may have them now. Who has
    /// nothing may have this much, however much it is.
    pub(crate) fn try_room(&self, n_units: usize, common: Common<'_>) -> Option<Room> {
        let Some([address, subnet]) = &self.spenders else {
            return Some(Room::default());
        };
        let n_free = common.n_free();
        let parts = [
            address.try_room(n_units, n_free, ADDRESS_PART)?,
            subnet.try_room(n_units, n_free, SUBNET_PART)?,
        ];
        Some(Room {
            _parts: Some(parts),
        })
    }

    /// The same for bytes that nobody waits for yet: half of what an address may have is left to
    /// others of it.
    pub(crate) fn try_room_ahead(&self, n_units: usize, common: Common<'_>) -> Option<Room> {
        if let Some([address, subnet]) = &self.spenders {
            let n_free = common.n_free();
            let has_half = |spender: &Spender, part| {
                spender.room.load(Relaxed) <= spender.room_max(n_free, part) / 2
            };
            if !has_half(address, ADDRESS_PART) || !has_half(subnet, SUBNET_PART) {
                return None;
            }
        }
        self.try_room(n_units, common)
    }

    /// Waits until address and subnet may have them. Cancel-safe.
    pub(crate) async fn room(&self, n_units: usize, common: Common<'_>) -> Room {
        let Some([address, subnet]) = &self.spenders else {
            return Room::default();
        };
        let parts = [
            address.room(n_units, common, ADDRESS_PART).await,
            subnet.room(n_units, common, SUBNET_PART).await,
        ];
        Room {
            _parts: Some(parts),
        }
    }

    /// Counts `more` bytes of the memory of walks while `n_free` are free; `false`: address or
    /// subnet would have more than its part of them.
    #[must_use]
    pub(crate) fn grow_walk(&self, more: usize, n_free: usize) -> bool {
        let Some([address, subnet]) = &self.spenders else {
            return true;
        };
        let grow = |spender: &Spender, part: usize| {
            let max = n_free / part;
            let grown = |len: usize| len.checked_add(more).filter(|len| *len <= max);
            let grown = spender.walk_len.fetch_update(Relaxed, Relaxed, grown);
            grown.is_ok()
        };
        if !grow(address, WALK_ADDRESS_PART) {
            return false;
        }
        if !grow(subnet, WALK_SUBNET_PART) {
            address.walk_len.fetch_sub(more, Relaxed);
            return false;
        }
        true
    }

    /// Gives back what was counted.
    pub(crate) fn shrink_walk(&self, less: usize) {
        for spender in self.spenders.iter().flatten() {
            spender.walk_len.fetch_sub(less, Relaxed);
        }
    }

    /// Whether others of the same address or subnet wait for room: those who hold it without
    /// moving are to go sooner.
    #[must_use]
    pub fn is_pressed(&self) -> bool {
        let mut spenders = self.spenders.iter().flatten();
        spenders.any(|spender| !spender.queue.is_empty())
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        for spender in self.spenders.iter().flatten() {
            spender.n_connections.fetch_sub(1, Relaxed);
        }
    }
}

impl Spender {
    /// Units that it may have while `n_free` are free.
    fn room_max(&self, n_free: usize, part: usize) -> usize {
        self.bounds.room_max.min(n_free / part)
    }

    /// Those who wait come first.
    fn try_room(self: &Arc<Self>, n_units: usize, n_free: usize, part: usize) -> Option<Part> {
        if !self.queue.is_empty() {
            return None;
        }
        self.take_room(n_units, self.room_max(n_free, part))
    }

    fn take_room(self: &Arc<Self>, n_units: usize, max: usize) -> Option<Part> {
        let more = |held: usize| {
            let more = held.saturating_add(n_units);
            (held == 0 || more <= max).then_some(more)
        };
        let taken = self.room.fetch_update(Relaxed, Relaxed, more);
        taken.ok().map(|_| Part {
            spender: Arc::clone(self),
            n_units,
        })
    }

    async fn room(self: &Arc<Self>, n_units: usize, common: Common<'_>, part: usize) -> Part {
        if let Some(taken) = self.try_room(n_units, common.n_free(), part) {
            return taken;
        }
        let take = || self.take_room(n_units, self.room_max(common.n_free(), part));
        let between = || {
            // Within its own bound it is others who hold what it waits for.
            let is_own = self.room.load(Relaxed).saturating_add(n_units) > self.bounds.room_max;
            (!is_own).then(|| Waiting::new(common.n_waiting))
        };
        self.queue.wait(take, between).await
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.spender.room.fetch_sub(self.n_units, Relaxed);
        self.spender.queue.tell();
    }
}

impl Common<'_> {
    fn n_free(self) -> usize {
        self.units.available_permits()
    }
}

/// Units of the budget that `len` bytes take.
pub(crate) fn units(len: usize) -> usize {
    len.div_ceil(UNIT).clamp(1, Semaphore::MAX_PERMITS)
}

/// `max`, and no more than a part of what is free; one in any case.
fn within(max: usize, n_free: usize, part: usize) -> usize {
    max.min(n_free / part).max(1)
}

/// Counts one more of at most `max`; `false`: there are as many.
pub(crate) fn count_up(count: &AtomicUsize, max: usize) -> bool {
    if count.fetch_add(1, Relaxed) >= max {
        count.fetch_sub(1, Relaxed);
        return false;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accounts() -> Accounts {
        Accounts::new(&Limits {
            connections_per_address_max: 2,
            connections_per_subnet_max: 4,
            requests_per_address_max: 3,
            requests_per_subnet_max: 4,
            bytes_in_flight_max: 100 * 1024,
            in_flight_per_address_percent: 10,
            in_flight_per_subnet_percent: 15,
            ..Limits::default()
        })
    }

    fn at(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn one_address_cannot_take_all_connections() {
        let mut accounts = accounts();
        let one = [
            accounts.enter(at("192.0.2.1"), usize::MAX),
            accounts.enter(at("::ffff:192.0.2.1"), usize::MAX),
        ];
        assert!(one.iter().all(Result::is_ok));
        assert_eq!(
            accounts.enter(at("192.0.2.1"), usize::MAX).unwrap_err(),
            TooMany::Address
        );
        let other = [
            accounts.enter(at("192.0.2.2"), usize::MAX),
            accounts.enter(at("192.0.2.3"), usize::MAX),
        ];
        assert!(other.iter().all(Result::is_ok));
        assert_eq!(
            accounts.enter(at("192.0.2.4"), usize::MAX).unwrap_err(),
            TooMany::Subnet
        );
        let elsewhere = accounts.enter(at("192.0.3.1"), usize::MAX);
        assert!(elsewhere.is_ok());
        drop(one);
        assert!(accounts.enter(at("192.0.2.1"), usize::MAX).is_ok());
        let trusted: Vec<_> = (0..100)
            .map(|_| accounts.enter(at("127.0.0.1"), usize::MAX))
            .collect();
        assert!(trusted.iter().all(Result::is_ok));
    }

    #[test]
    fn a_64_of_ipv6_cannot_take_all_connections() {
        let mut accounts = accounts();
        let mut open = Vec::new();
        for text in [
            "2001:db8::1",
            "2001:db8::2:3:4:5",
            "2001:db8:0:1::1",
            "2001:db8:0:1::2",
        ] {
            open.push(accounts.enter(at(text), usize::MAX).unwrap());
        }
        assert_eq!(
            accounts
                .enter(at("2001:db8::ffff"), usize::MAX)
                .unwrap_err(),
            TooMany::Address
        );
        assert_eq!(
            accounts
                .enter(at("2001:db8:0:7::1"), usize::MAX)
                .unwrap_err(),
            TooMany::Subnet
        );
        assert!(accounts.enter(at("2001:db8:1::1"), usize::MAX).is_ok());
    }

    #[test]
    fn requests_of_an_address_and_of_a_subnet_are_bounded_and_given_back() {
        let mut accounts = accounts();
        let mut account = |text: &str| accounts.enter(at(text), usize::MAX).unwrap();
        let (one, again) = (account("192.0.2.1"), account("192.0.2.1"));
        let (other, elsewhere) = (account("192.0.2.2"), account("192.0.3.1"));
        assert!(
            one.begin_request(usize::MAX)
                && again.begin_request(usize::MAX)
                && one.begin_request(usize::MAX)
        );
        assert!(!again.begin_request(usize::MAX), "of its address");
        assert!(other.begin_request(usize::MAX));
        assert!(!other.begin_request(usize::MAX), "of its subnet");
        assert!(elsewhere.begin_request(usize::MAX));
        one.end_request();
        assert!(other.begin_request(usize::MAX));
        assert!(!again.begin_request(usize::MAX));
    }

    #[tokio::test]
    async fn bytes_of_an_address_and_of_a_subnet_are_bounded_and_given_back() {
        let mut accounts = accounts();
        let mut account = |text: &str| accounts.enter(at(text), usize::MAX).unwrap();
        let (one, other) = (account("192.0.2.1"), account("192.0.2.2"));
        let elsewhere = account("192.0.3.1");
        let (units, n_waiting) = (Semaphore::new(100), AtomicUsize::new(0));
        let common = Common {
            units: &units,
            n_waiting: &n_waiting,
        };
        let all = one.try_room(1000, common); // Who has nothing may have this much.
        assert!(all.is_some() && other.try_room(1, common).is_none());
        drop(all);
        let held = one.try_room(10, common).unwrap();
        assert!(one.try_room(1, common).is_none() && other.try_room(6, common).is_none());
        assert!(other.try_room(5, common).is_some() && elsewhere.try_room(10, common).is_some());
        assert!(
            other.try_room_ahead(1, common).is_none(),
            "half of the subnet's is taken"
        );
        assert!(elsewhere.try_room_ahead(1, common).is_some());
        let waits = one.room(1, common);
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(one.is_pressed() && !elsewhere.is_pressed());
        assert_eq!(n_waiting.load(Relaxed), 0, "for its own");
        drop(held);
        let held = waits.await;
        assert!(!one.is_pressed());
        drop(held);

        // Beyond a part of what is free it is others that it waits for.
        let held = elsewhere.try_room(6, common).unwrap();
        let all_but_20 = units.acquire_many(80).await.unwrap();
        let waits = elsewhere.room(1, common);
        tokio::pin!(waits);
        assert!(futures_util::poll!(&mut waits).is_pending());
        assert!(elsewhere.is_pressed() && n_waiting.load(Relaxed) == 1);
        drop(all_but_20);
        drop((waits.await, held));
        assert_eq!(n_waiting.load(Relaxed), 0);
    }

    #[test]
    fn who_has_no_connection_is_forgotten() {
        let mut accounts = accounts();
        for number in 0..10_000_u32 {
            let address = IpAddr::V4((0x0b00_0000 + number * 256).into());
            let _ = accounts.enter(address, usize::MAX).unwrap();
        }
        assert!(accounts.addresses.spenders.len() <= TIDY_LEN_MIN);
        assert!(accounts.subnets.spenders.len() <= TIDY_LEN_MIN);
    }

    #[test]
    fn however_many_subnets_take_all_they_can_some_place_is_free() {
        let n_all = 1000;
        let mut accounts = Accounts::new(&Limits {
            connections_per_address_max: n_all,
            connections_per_subnet_max: n_all,
            requests_per_address_max: n_all,
            requests_per_subnet_max: n_all,
            ..Limits::default()
        });
        let mut open: Vec<Account> = Vec::new();
        let mut n_requests = 0;
        for subnet in 0..8 {
            for host in 0..20 {
                let address = at(&format!("198.51.{subnet}.{host}"));
                while let Ok(account) = accounts.enter(address, n_all - open.len()) {
                    while account.begin_request(n_all - n_requests) {
                        n_requests += 1;
                    }
                    open.push(account);
                }
            }
        }
        let (n_free, n_unasked) = (n_all - open.len(), n_all - n_requests);
        assert!(n_free > 20 && n_unasked > 20, "{n_free}, {n_unasked}");
        let newcomer = accounts.enter(at("203.0.113.1"), n_free).unwrap();
        assert!(newcomer.begin_request(n_unasked));
    }
    #[tokio::test]
    async fn however_many_subnets_take_all_the_bytes_they_can_some_are_free() {
        let n_all = 100_000;
        let mut accounts = Accounts::new(&Limits {
            bytes_in_flight_max: n_all * UNIT,
            in_flight_per_address_percent: 100,
            in_flight_per_subnet_percent: 100,
            ..Limits::default()
        });
        let (units, n_waiting) = (Semaphore::new(n_all), AtomicUsize::new(0));
        let common = Common {
            units: &units,
            n_waiting: &n_waiting,
        };
        let mut held = Vec::new();
        for subnet in 0..8 {
            for host in 0..20 {
                let address = at(&format!("198.51.{subnet}.{host}"));
                let account = accounts.enter(address, usize::MAX).unwrap();
                while let Some(room) = account.try_room(10, common) {
                    held.push((room, units.acquire_many(10).await.unwrap()));
                }
            }
        }
        let n_free = units.available_permits();
        assert!(n_free > 2000, "{n_free}");
        let newcomer = accounts.enter(at("203.0.113.1"), usize::MAX).unwrap();
        let first = newcomer.try_room(1, common);
        assert!(first.is_some() && newcomer.try_room(n_free / 5, common).is_some());
    }

    #[test]
    fn however_many_subnets_walk_what_they_can_some_memory_is_free() {
        let n_all = 512 << 20;
        let mut accounts = Accounts::new(&Limits::default());
        let mut n_held = 0;
        let (mut open, mut first) = (Vec::new(), 0);
        for subnet in 0..6 {
            for host in 0..20 {
                let address = at(&format!("198.51.{subnet}.{host}"));
                let account = accounts.enter(address, usize::MAX).unwrap();
                while account.grow_walk(64 << 10, n_all - n_held) {
                    n_held += 64 << 10;
                }
                open.push(account);
                first = if first == 0 { n_held } else { first };
            }
        }
        assert!(first > 140 << 20, "the largest answer takes so much");
        assert!(n_all - n_held > 4 << 20, "{n_held}");
        let newcomer = accounts.enter(at("203.0.113.1"), usize::MAX).unwrap();
        assert!(newcomer.grow_walk(1 << 20, n_all - n_held));
        newcomer.shrink_walk(1 << 20);
        assert!(newcomer.grow_walk(1 << 20, n_all - n_held));
    }
}
