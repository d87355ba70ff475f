//! Rooms that all peers share, and what addresses and subnets have of them.
//!
//! In       how much a peer at an address would have of a room, and how much is free in it.
//! Out      a [`Held`], which counts until it is dropped.
//! Limits   [`Shares`] for each room. Nobody has more than a part of what is free, so that however
//!          many subnets take all they can, a newcomer finds some room.
//! Not here how large a room is and what is free in it: whoever owns it knows.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};

use super::{Account, Spender};
use crate::hold;

/// What a room is full of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    /// Bytes of blocks that are loaded or being written.
    Blocks,
    /// Bytes of frames that are being read.
    Frames,
    /// Wants for absent blocks.
    Wants,
    /// Bytes that came and nobody has read.
    Unread,
}

/// How many kinds there are.
const N_ROOMS: usize = 4;

/// The most that those of one address, and of one subnet, may have of a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shares {
    /// Of an address.
    pub address_max: usize,
    /// Of a subnet.
    pub subnet_max: usize,
}

impl Shares {
    /// These, and never more than `len`: a part of what is free.
    #[must_use]
    pub fn within(self, len: usize) -> Self {
        Self {
            address_max: self.address_max.min(len),
            subnet_max: self.subnet_max.min(len),
        }
    }
}

/// What is held of each room, by address and by subnet.
#[derive(Debug, Default)]
pub(super) struct Rooms(Mutex<HashMap<Spender, [usize; N_ROOMS]>>);

impl Rooms {
    fn hold(&self) -> MutexGuard<'_, HashMap<Spender, [usize; N_ROOMS]>> {
        hold(&self.0)
    }

    /// Counts `len` for all of `spenders`, or for none of them.
    fn enter(&self, spenders: &[Spender], room: Room, len: usize, shares: Shares) -> bool {
        let mut rooms = self.hold();
        let is_full = |spender: &Spender| {
            let max = match spender {
                Spender::Peer(_) => return false,
                Spender::Address(_) => shares.address_max,
                Spender::Subnet(_) => shares.subnet_max,
            };
            let held = rooms.get(spender).and_then(|held| held.get(room as usize));
            let held = held.copied().unwrap_or(0);
            held > 0 && held + len > max
        };
        if spenders.iter().any(is_full) {
            return false;
        }
        for spender in spenders {
            let held = rooms.entry(spender.clone()).or_default();
            if let Some(held) = held.get_mut(room as usize) {
                *held += len;
            }
        }
        true
    }

    fn leave(&self, spenders: &[Spender], room: Room, len: usize) {
        let mut rooms = self.hold();
        for spender in spenders {
            let Some(held) = rooms.get_mut(spender) else {
                continue;
            };
            if let Some(held) = held.get_mut(room as usize) {
                *held = held.saturating_sub(len);
            }
            if held.iter().all(|held| *held == 0) {
                rooms.remove(spender);
            }
        }
    }

    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.hold().is_empty()
    }
}

/// A part of a room that counts for an address and its subnet until this is dropped.
#[derive(Debug)]
pub struct Held {
    account: Arc<Account>,
    room: Room,
    len: usize,
}

impl Held {
    /// One more part of the same room, of the same account.
    pub fn merge(&mut self, mut more: Self) {
        debug_assert!(Arc::ptr_eq(&self.account, &more.account) && self.room == more.room);
        self.len += std::mem::take(&mut more.len);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let spenders = self.account.shared();
        if self.len > 0 && !spenders.is_empty() {
            let rooms = &self.account.budgets.rooms;
            rooms.leave(spenders, self.room, self.len);
        }
    }
}

impl Account {
    /// Counts `len` of a room for the address and the subnet; `None` if one of them would have more
    /// than its share. Whoever has nothing may have this much, however much it is.
    #[must_use]
    pub fn hold(self: &Arc<Self>, room: Room, len: usize, shares: Shares) -> Option<Held> {
        // Trusted ones are not counted.
        if !self.shared().is_empty() && !self.budgets.rooms.enter(self.shared(), room, len, shares)
        {
            return None;
        }
        Some(Held {
            account: Arc::clone(self),
            room,
            len,
        })
    }

    /// The address and the subnet, unless they are trusted.
    fn shared(&self) -> &[Spender] {
        self.spenders.get(1..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Budget, Budgets};
    use super::{Account, Arc, Room, Shares};

    fn account(budgets: &Budgets, address: &str) -> Arc<Account> {
        budgets.account(&Arc::from("p"), address.parse().unwrap())
    }

    #[test]
    fn what_an_address_and_a_subnet_have_under_way_is_bounded_and_given_back() {
        let budgets = Budgets::new(Budget::default());
        let hold = |address: &str, len| {
            let shares = Shares {
                address_max: 100,
                subnet_max: 150,
            };
            account(&budgets, address).hold(Room::Blocks, len, shares)
        };
        let first = hold("192.0.2.1", 90).unwrap();
        assert!(hold("192.0.2.1", 20).is_none(), "of its address");
        let second = hold("192.0.2.2", 60).unwrap();
        assert!(hold("192.0.2.3", 1).is_none(), "of its subnet");
        assert!(hold("192.0.3.3", 1000).is_some(), "it has nothing else");
        assert!(hold("127.0.0.1", 1000).is_some(), "it is trusted");
        let other = account(&budgets, "192.0.2.1");
        let shares = Shares {
            address_max: 1,
            subnet_max: 1,
        };
        assert!(other.hold(Room::Wants, 1, shares).is_some(), "another room");
        drop((first, second));
        assert!(budgets.rooms.is_empty());
    }

    #[test]
    fn an_ipv6_64_is_one_address_and_a_48_one_subnet() {
        let budgets = Budgets::new(Budget::default());
        let shares = Shares {
            address_max: 2,
            subnet_max: 3,
        };
        let hold = |address: &str| account(&budgets, address).hold(Room::Wants, 1, shares);
        let held = [hold("2001:db8:1:1::1"), hold("2001:db8:1:1:ffff::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(hold("2001:db8:1:1::3").is_none(), "of its /64");
        let third = hold("2001:db8:1:2::1");
        assert!(third.is_some() && hold("2001:db8:1:3::1").is_none());
        assert!(hold("2001:db8:2::1").is_some());
    }

    #[test]
    fn however_many_subnets_take_all_they_can_some_room_is_free() {
        let budgets = Budgets::new(Budget::default());
        let all = Shares {
            address_max: 1000,
            subnet_max: 1000,
        };
        let (mut free, mut held) = (1000, Vec::new());
        for number in 0..30 {
            let greedy = account(&budgets, &format!("198.51.{number}.1"));
            while let Some(one) = greedy.hold(Room::Wants, 1, all.within(free / 8)) {
                held.push(one);
                free -= 1;
            }
            assert!(free > 20, "{free} left by {number}");
        }
    }
}
