//! What a peer, an address and a subnet may ask for in a while.
//!
//! In       entries, messages, streams and bytes, as they are asked for or sent.
//! Out      how much of it is within the budget.
//! Limits   [`SPENDERS_MAX`] spenders are remembered; who has nothing to answer for is forgotten.
//! Not here what follows for who is over it (`server`), numbers of connections (`driver`).
//!
//! Each budget is a bucket that fills at its rate and holds what comes in [`Budget::burst`]; bytes
//! are counted over an hour. A spender's buckets outlive its connections: who comes back finds them
//! as they were.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use crate::hold;

/// Spenders that are remembered at once. Each takes about 200 bytes; beyond it those who were seen
/// least lately are forgotten.
const SPENDERS_MAX: usize = 1 << 17;
/// Spenders that are kept without looking whether they have anything to answer for.
const TIDY_LEN_MIN: usize = 1024;
/// An hour, over which bytes are counted.
const HOUR: Duration = Duration::from_secs(3600);

/// What one spender may do. `None`: as much as it likes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rates {
    /// Entries of want-lists a second.
    pub entries_per_second: Option<u64>,
    /// Messages a second.
    pub messages_per_second: Option<u64>,
    /// Streams that it opens, a second.
    pub streams_per_second: Option<u64>,
    /// Bytes of blocks that it is sent, an hour.
    pub bytes_per_hour: Option<u64>,
}

/// What follows for wants beyond the budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Beyond {
    /// DONT_HAVE, where it was asked for.
    #[default]
    DontHave,
    /// Nothing.
    Silence,
}

/// All budgets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Budget {
    /// Of one peer, however many connections it has.
    pub peer: Rates,
    /// Of one IPv4 address or IPv6 /64, whoever comes from there. Trusted addresses have none.
    pub address: Rates,
    /// Of an IPv4 /24 or IPv6 /48.
    pub subnet: Rates,
    /// What a bucket holds, as time of its rate: who was silent may catch up for so long.
    pub burst: Duration,
    /// What is answered beyond the budget.
    pub beyond: Beyond,
    /// Who has been over the budget for so long is disconnected, and may come back.
    pub patience: Duration,
    /// Networks without a budget for addresses and subnets: proxies bring everyone.
    pub trusted: Vec<Network>,
}

/// An address and the number of its leading bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    /// Any address of it.
    pub address: IpAddr,
    /// Leading bits that all its addresses share.
    pub prefix_len: u8,
}

impl Network {
    /// Whether an address is of it.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        masked(self.address, self.prefix_len) == masked(address, self.prefix_len)
    }
}

impl Default for Budget {
    fn default() -> Self {
        let rates = |factor: u64| Rates {
            // The fastest client that was measured asks for a fifth of it.
            entries_per_second: Some(200_000 * factor),
            messages_per_second: Some(2_000 * factor),
            // A server of deployed peers opens a stream for each of its messages.
            streams_per_second: Some(200 * factor),
            bytes_per_hour: None,
        };
        let loopback = |address: &str, prefix_len| {
            let address = address.parse().ok()?;
            Some(Network {
                address,
                prefix_len,
            })
        };
        Self {
            peer: rates(1),
            address: rates(4),
            subnet: rates(16),
            burst: Duration::from_secs(5),
            beyond: Beyond::DontHave,
            patience: Duration::from_secs(10),
            trusted: [loopback("127.0.0.0", 8), loopback("::1", 128)]
                .into_iter()
                .flatten()
                .collect(),
        }
    }
}

/// Who spends.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Spender {
    Peer(Arc<str>),
    Address(IpAddr),
    Subnet(IpAddr),
}

/// What is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Good {
    /// Entries of want-lists.
    Entries,
    /// Messages.
    Messages,
    /// Streams that the peer opened.
    Streams,
    /// Bytes of blocks.
    Bytes,
}

/// The buckets of all spenders. Clones share them.
#[derive(Debug, Clone)]
pub struct Budgets {
    budget: Arc<Budget>,
    table: Arc<Mutex<Table>>,
    spenders_max: usize,
}

#[derive(Debug)]
struct Table {
    spenders: HashMap<Spender, Buckets>,
    /// Bytes of blocks that are loaded or being written for addresses and subnets.
    held: HashMap<Spender, usize>,
    /// With so many spenders, those that have nothing to answer for are looked for.
    tidy_at: usize,
}

impl Default for Table {
    fn default() -> Self {
        Self {
            spenders: HashMap::new(),
            held: HashMap::new(),
            tidy_at: TIDY_LEN_MIN,
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Buckets {
    /// What was spent and has not come back, by good.
    spent: [f64; 4],
    /// When it was filled up last.
    at: Instant,
    /// When its spender was there last.
    seen: Instant,
}

/// One peer on one connection, as far as budgets know it. Made by [`Budgets::account`].
#[derive(Debug)]
pub struct Account {
    budgets: Budgets,
    spenders: Vec<Spender>,
}

impl Budgets {
    /// Buckets that are full.
    #[must_use]
    pub fn new(budget: Budget) -> Self {
        Self {
            budget: Arc::new(budget),
            table: Arc::default(),
            spenders_max: SPENDERS_MAX,
        }
    }

    /// The budgets in force.
    #[must_use]
    pub fn budget(&self) -> &Budget {
        &self.budget
    }

    /// Whose buckets what a peer does at an address is taken from.
    #[must_use]
    pub fn account(&self, peer: &Arc<str>, address: IpAddr) -> Arc<Account> {
        let address = address.to_canonical();
        let mut spenders = vec![Spender::Peer(Arc::clone(peer))];
        if !self.budget.trusted.iter().any(|it| it.contains(address)) {
            spenders.push(Spender::Address(host(address)));
            spenders.push(Spender::Subnet(subnet(address)));
        }
        Arc::new(Account {
            budgets: self.clone(),
            spenders,
        })
    }

    /// Forgets those who have nothing to answer for and, if that is not enough, those who were seen
    /// least lately.
    fn make_room(&self, table: &mut Table, now: Instant) {
        if table.spenders.len() < table.tidy_at.min(self.spenders_max) {
            return;
        }
        table.spenders.retain(|spender, buckets| {
            buckets.refill(self.rates_of(spender), now);
            buckets.spent.iter().any(|spent| *spent > 0.0)
        });
        if table.spenders.len() >= self.spenders_max {
            let mut times: Vec<Instant> = table.spenders.values().map(|it| it.seen).collect();
            let middle = times.len() / 2;
            let (_, middle, _) = times.select_nth_unstable(middle);
            let middle = *middle;
            table.spenders.retain(|_, buckets| buckets.seen > middle);
        }
        table.tidy_at = (2 * table.spenders.len()).max(TIDY_LEN_MIN);
        table.spenders.shrink_to(table.tidy_at);
    }

    fn rates_of(&self, spender: &Spender) -> &Rates {
        match spender {
            Spender::Peer(_) => &self.budget.peer,
            Spender::Address(_) => &self.budget.address,
            Spender::Subnet(_) => &self.budget.subnet,
        }
    }

    /// What a bucket holds when it is full. `None`: there is no end of it.
    fn capacity(&self, spender: &Spender, good: Good) -> Option<u64> {
        let of_burst = |rate: u64| {
            let held = u128::from(rate) * self.budget.burst.as_millis() / 1000;
            u64::try_from(held).unwrap_or(u64::MAX).max(1)
        };
        let rates = self.rates_of(spender);
        match good {
            Good::Entries => rates.entries_per_second.map(of_burst),
            Good::Messages => rates.messages_per_second.map(of_burst),
            Good::Streams => rates.streams_per_second.map(of_burst),
            Good::Bytes => rates.bytes_per_hour,
        }
    }
}

/// Bytes that count for an address and its subnet until this is dropped.
#[derive(Debug)]
pub struct Held {
    budgets: Budgets,
    spenders: Vec<Spender>,
    len: usize,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut table = hold(&self.budgets.table);
        for spender in &self.spenders {
            if let Some(held) = table.held.get_mut(spender) {
                *held = held.saturating_sub(self.len);
                if *held == 0 {
                    table.held.remove(spender);
                }
            }
        }
    }
}

impl Account {
    /// Counts `len` bytes for the address and the subnet; `None` if one of them would have more
    /// than it may. Whoever has nothing may have this much, however much it is.
    #[must_use]
    pub fn hold(&self, len: usize, address_max: usize, subnet_max: usize) -> Option<Held> {
        let limits = self.spenders.iter().filter_map(|spender| match spender {
            Spender::Peer(_) => None,
            Spender::Address(_) => Some((spender, address_max)),
            Spender::Subnet(_) => Some((spender, subnet_max)),
        });
        let limits: Vec<(&Spender, usize)> = limits.collect();
        let mut table = hold(&self.budgets.table);
        let is_full = |(spender, max): &(&Spender, usize)| {
            let held = table.held.get(*spender).copied().unwrap_or(0);
            held > 0 && held + len > *max
        };
        if limits.iter().any(is_full) {
            return None;
        }
        for (spender, _) in &limits {
            *table.held.entry((*spender).clone()).or_default() += len;
        }
        Some(Held {
            budgets: self.budgets.clone(),
            spenders: limits
                .into_iter()
                .map(|(spender, _)| spender.clone())
                .collect(),
            len,
        })
    }

    /// Takes as many of `n` as are within all budgets; how many that is. What is beyond is not
    /// counted.
    #[must_use]
    pub fn take(&self, good: Good, n: u64, now: Instant) -> u64 {
        let mut table = self.fresh_table(now);
        let granted = self.granted_of(&table, good, n);
        self.spend_of(&mut table, good, granted);
        granted
    }

    /// Counts `n` of a good whether or not it is within the budgets: it was given.
    pub fn spend(&self, good: Good, n: u64, now: Instant) {
        self.spend_of(&mut self.fresh_table(now), good, n);
    }

    /// How many of `n` are within all budgets.
    #[must_use]
    pub fn granted(&self, good: Good, n: u64, now: Instant) -> u64 {
        self.granted_of(&self.fresh_table(now), good, n)
    }

    fn granted_of(&self, table: &Table, good: Good, n: u64) -> u64 {
        let left = self.spenders.iter().filter_map(|spender| {
            let capacity = self.budgets.capacity(spender, good)?;
            let spent = table.spenders.get(spender)?.spent.get(good as usize)?;
            Some((capacity as f64 - spent) as u64) // None, if negative.
        });
        left.fold(n, u64::min)
    }

    fn spend_of(&self, table: &mut Table, good: Good, n: u64) {
        for spender in &self.spenders {
            if self.budgets.capacity(spender, good).is_some()
                && let Some(buckets) = table.spenders.get_mut(spender)
                && let Some(spent) = buckets.spent.get_mut(good as usize)
            {
                *spent += n as f64;
            }
        }
    }

    /// The table, with the buckets of all spenders as they are now.
    fn fresh_table(&self, now: Instant) -> MutexGuard<'_, Table> {
        let mut table = hold(&self.budgets.table);
        for spender in &self.spenders {
            if !table.spenders.contains_key(spender) {
                self.budgets.make_room(&mut table, now);
            }
            let full = Buckets {
                spent: [0.0; 4],
                at: now,
                seen: now,
            };
            let buckets = table.spenders.entry(spender.clone()).or_insert(full);
            buckets.refill(self.budgets.rates_of(spender), now);
            buckets.seen = now;
        }
        table
    }
}

impl Buckets {
    /// Gives back what has come in since it was looked at last.
    fn refill(&mut self, rates: &Rates, now: Instant) {
        let elapsed_s = now.saturating_duration_since(self.at).as_secs_f64();
        let per_second = [
            rates.entries_per_second.map(|rate| rate as f64),
            rates.messages_per_second.map(|rate| rate as f64),
            rates.streams_per_second.map(|rate| rate as f64),
            rates
                .bytes_per_hour
                .map(|rate| rate as f64 / HOUR.as_secs_f64()),
        ];
        for (spent, rate) in self.spent.iter_mut().zip(per_second) {
            *spent = rate.map_or(0.0, |rate| (*spent - rate * elapsed_s).max(0.0));
        }
        self.at = now;
    }
}

/// An address as it counts: of IPv6 the /64, all of whose addresses one machine may have.
#[must_use]
pub fn host(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address @ IpAddr::V4(_) => address,
        address @ IpAddr::V6(_) => masked(address, 64),
    }
}

/// The network of an address that counts as one: what one customer mostly has.
#[must_use]
pub fn subnet(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        address @ IpAddr::V4(_) => masked(address, 24),
        address @ IpAddr::V6(_) => masked(address, 48),
    }
}

fn masked(address: IpAddr, prefix_len: u8) -> IpAddr {
    match address {
        IpAddr::V4(it) => {
            let bits = u32::MAX
                .checked_shl(32u32.saturating_sub(prefix_len.into()))
                .unwrap_or(0);
            IpAddr::V4((it.to_bits() & bits).into())
        }
        IpAddr::V6(it) => {
            let bits = u128::MAX
                .checked_shl(128u32.saturating_sub(prefix_len.into()))
                .unwrap_or(0);
            IpAddr::V6((it.to_bits() & bits).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn budgets(peer: Rates) -> Budgets {
        Budgets::new(Budget {
            peer,
            burst: Duration::from_secs(2),
            ..Budget::default()
        })
    }

    const NONE: Rates = Rates {
        entries_per_second: None,
        messages_per_second: None,
        streams_per_second: None,
        bytes_per_hour: None,
    };

    #[test]
    fn a_bucket_holds_a_burst_and_fills_at_its_rate() {
        let budgets = budgets(Rates {
            entries_per_second: Some(100),
            ..NONE
        });
        let (peer, now) = (Arc::from("p"), Instant::now());
        let account = budgets.account(&peer, "192.0.2.1".parse().unwrap());
        assert_eq!(account.take(Good::Entries, 150, now), 150);
        assert_eq!(account.take(Good::Entries, 150, now), 50);
        assert_eq!(account.take(Good::Entries, 1, now), 0);
        let later = now + Duration::from_millis(500);
        assert_eq!(account.take(Good::Entries, 1000, later), 50);
        assert_eq!(account.take(Good::Messages, 1000, later), 1000);
        // Another connection of the same peer has the same bucket.
        let again = budgets.account(&peer, "198.51.100.1".parse().unwrap());
        assert_eq!(again.take(Good::Entries, 1, later), 0);
    }

    #[test]
    fn an_hour_of_bytes_comes_back_over_an_hour() {
        let budgets = budgets(Rates {
            bytes_per_hour: Some(7),
            ..NONE
        });
        let account = budgets.account(&Arc::from("p"), "::1".parse().unwrap());
        let mut now = Instant::now();
        account.spend(Good::Bytes, 7, now);
        assert_eq!(account.granted(Good::Bytes, 1, now), 0);
        for _ in 0..3600 {
            now += Duration::from_secs(1);
            let _ = account.granted(Good::Bytes, 1, now);
        }
        now += Duration::from_millis(1);
        assert_eq!(account.granted(Good::Bytes, 8, now), 7);
    }

    #[test]
    fn addresses_and_subnets_are_shared_by_peers_unless_they_are_trusted() {
        let address = Rates {
            messages_per_second: Some(1),
            ..NONE
        };
        let subnet = Rates {
            messages_per_second: Some(2),
            ..NONE
        };
        let burst = Duration::from_secs(1);
        let budgets = Budgets::new(Budget {
            peer: NONE,
            address,
            subnet,
            burst,
            ..Budget::default()
        });
        let now = Instant::now();
        let take = |peer: &str, address: &str| {
            let account = budgets.account(&Arc::from(peer), address.parse().unwrap());
            account.take(Good::Messages, 1, now)
        };
        assert_eq!(take("a", "192.0.2.1"), 1);
        assert_eq!(take("b", "::ffff:192.0.2.1"), 0);
        assert_eq!(take("b", "192.0.2.2"), 1);
        assert_eq!(take("c", "192.0.2.3"), 0);
        assert_eq!(take("c", "192.0.3.3"), 1);
        for _ in 0..10 {
            assert_eq!(take("d", "127.0.0.9"), 1);
        }
        assert_eq!(take("e", "2001:db8:1::1"), 1);
        assert_eq!(take("e", "2001:db8:1:0:f::2"), 0, "the /64 is one address");
        assert_eq!(take("e", "2001:db8:1:2::1"), 1);
        assert_eq!(take("e", "2001:db8:1:3::1"), 0);
    }

    #[test]
    fn what_an_address_and_a_subnet_have_under_way_is_bounded_and_given_back() {
        let budgets = budgets(NONE);
        let account =
            |peer: &str, address: &str| budgets.account(&Arc::from(peer), address.parse().unwrap());
        let hold = |account: &Account, len| account.hold(len, 100, 150);
        let (one, two) = (account("a", "192.0.2.1"), account("b", "192.0.2.2"));
        let first = hold(&one, 90).unwrap();
        assert!(
            hold(&account("c", "192.0.2.1"), 20).is_none(),
            "of its address"
        );
        let second = hold(&two, 60).unwrap();
        assert!(
            hold(&account("c", "192.0.2.3"), 1).is_none(),
            "of its subnet"
        );
        assert!(
            hold(&account("c", "192.0.3.3"), 1000).is_some(),
            "it has nothing else"
        );
        assert!(
            hold(&account("c", "127.0.0.1"), 1000).is_some(),
            "it is trusted"
        );
        drop((first, second));
        assert!(budgets.table.lock().unwrap().held.is_empty());
    }

    #[test]
    fn the_number_of_spenders_is_bounded() {
        let mut budgets = budgets(Rates {
            entries_per_second: Some(1),
            ..NONE
        });
        budgets.spenders_max = 64;
        let mut now = Instant::now();
        for number in 0..1000 {
            now += Duration::from_millis(1);
            let account = budgets.account(&format!("p{number}").into(), "::1".parse().unwrap());
            let _ = account.take(Good::Entries, 1, now);
            assert!(budgets.table.lock().unwrap().spenders.len() <= 64);
        }
    }
}
