//! What a peer's messages ask for, looked up.
//!
//! What the index knows is entered and served, and the registry never hears of it: however full it
//! is, what is here is answered. What is absent is subscribed to, if there is room, and looked up
//! once more if anything came meanwhile: a block that came in between was told to nobody.

use carrack_formats::{Cid, Multihash};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::super::Store;
use super::super::ledger::Taken;
use super::super::reader::Frame;
use super::{Checked, Peer, Subscriber};
use crate::budget::{Account, Beyond, Good, Room};
use crate::registry::Ticket;
use crate::wire::{DecodeLimits, Entry, Message, WantKind};

/// WANT_HAVEs whose containers are looked at in one go.
const CHECKS_MAX: usize = 256;
/// With so many waiting to be looked at, the peer is not read any more.
const CHECKS_WAITING_MAX: usize = 2 * CHECKS_MAX;
/// Addresses and subnets may have this part of what is free in the registry.
const FREE_PART: usize = 8;

impl<S: Store> Peer<S> {
    /// Takes a message; `false`: the stream that brought it is not read any more.
    pub(super) fn message(&mut self, frame: &Frame, account: &Account) -> bool {
        // Nothing is asked of peers: what they send or have is counted, and not looked at.
        let limits = DecodeLimits {
            blocks_max: 0,
            presences_max: 0,
            ..DecodeLimits::default()
        };
        let message = match Message::decode(&frame.bytes, &limits) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(peer = %self.stats.name(), %error, "a malformed message");
                self.malformed();
                return false;
            }
        };
        let now = Instant::now();
        let n_entries = message.entries.len() as u64;
        self.count(|it| &it.messages_in, 1);
        self.count(|it| &it.entries, n_entries);
        self.count(|it| &it.entries_ignored, message.n_entries_ignored as u64);
        self.count(
            |it| &it.blocks_unwanted,
            (message.blocks.len() + message.n_blocks_ignored) as u64,
        );
        let mut n_granted = account.take(Good::Entries, n_entries, now);
        if account.take(Good::Messages, 1, now) == 0 {
            n_granted = 0;
        }
        if message.full {
            let wanted = message.entries.iter().filter(|entry| !entry.cancel);
            let tickets = self.ledger.retain(wanted.map(|entry| &entry.cid));
            self.unsubscribe(&tickets);
        }
        let n_granted = usize::try_from(n_granted)
            .unwrap_or(usize::MAX)
            .min(message.entries.len());
        let (granted, beyond) = message.entries.split_at(n_granted);
        self.take(granted, now);
        self.beyond_budget(beyond, now);
        true
    }

    /// Takes entries within the budget: looks everything up at once, serves what is here, and
    /// subscribes to the rest.
    fn take(&mut self, entries: &[Entry], now: Instant) {
        let wanted = entries.iter().filter(|entry| !entry.cancel);
        let multihashes: Vec<Multihash> = wanted.map(|entry| *entry.cid.hash()).collect();
        let n_changes = self.shared.registry.n_changes();
        let mut found = self.shared.store.find(&multihashes).into_iter();
        let mut absent: Vec<&Entry> = Vec::new();
        for entry in entries {
            if entry.cancel {
                self.cancel(&entry.cid);
                continue;
            }
            let len = found.next().flatten();
            match (self.ledger.take(entry), len) {
                (Taken::OnItsWay, _) => {}
                (Taken::Refused, _) => self.refuse(entry),
                (Taken::New, Some(len)) => self.enter_found(entry, len),
                (Taken::Again, Some(len)) => self.found(&entry.cid, entry.send_dont_have, len),
                // It is subscribed to since before it was looked up, or being checked.
                (Taken::Again, None) => self.say_absent(entry),
                (Taken::New, None) => match self.subscribe(&entry.cid) {
                    Some(ticket) => {
                        let gone = self.ledger.enter(entry, ticket, now);
                        self.unsubscribe(gone.as_slice());
                        absent.push(entry);
                    }
                    None => {
                        self.count(|it| &it.entries_refused, 1);
                        self.say_absent(entry); // It is. Nobody is told when it comes.
                    }
                },
            }
        }
        let found = match self.shared.registry.n_changes() == n_changes {
            true => vec![None; absent.len()],
            false => {
                let multihashes = absent.iter().map(|entry| *entry.cid.hash());
                self.shared.store.find(&multihashes.collect::<Vec<_>>())
            }
        };
        for (entry, len) in absent.into_iter().zip(found) {
            match len {
                Some(len) => self.found(&entry.cid, entry.send_dont_have, len),
                None => self.say_absent(entry),
            }
        }
    }

    /// From now on the peer's task is told when the block comes. `None`: the registry is full, or
    /// those of its address or subnet have their share.
    pub(super) fn subscribe(&self, cid: &Cid) -> Option<Ticket> {
        let (registry, options) = (&self.shared.registry, &self.shared.options);
        let shares = options.wants_shares.within(registry.n_free() / FREE_PART);
        let place = self.account.as_ref()?.hold(Room::Wants, 1, shares)?;
        let subscriber = Subscriber {
            mailbox: self.mailbox.clone(),
            _place: place,
        };
        registry.subscribe(cid.hash(), subscriber).ok()
    }

    fn say_absent(&mut self, entry: &Entry) {
        if entry.send_dont_have {
            self.say(&entry.cid, false);
        }
    }

    /// There is no room to remember a want.
    fn refuse(&mut self, entry: &Entry) {
        self.count(|it| &it.entries_refused, 1);
        if self.shared.budgets.budget().beyond == Beyond::DontHave {
            self.say_absent(entry);
        }
    }

    fn cancel(&mut self, cid: &Cid) {
        if let Some(ticket) = self.ledger.remove(cid) {
            self.unsubscribe(&[ticket]);
        }
    }

    /// The index knows the block of a want that is new.
    fn enter_found(&mut self, entry: &Entry, len: u64) {
        let options = &self.shared.options;
        if len > options.block_len_max {
            self.say_absent(entry);
            return;
        }
        let gone = self.ledger.enter_found(entry, len, options.small_block_len);
        self.unsubscribe(gone.as_slice());
    }

    /// The index knows the block of a want that is known.
    fn found(&mut self, cid: &Cid, send_dont_have: bool, len: u64) {
        let options = &self.shared.options;
        if len > options.block_len_max {
            self.cancel(cid);
            if send_dont_have {
                self.say(cid, false);
            }
            return;
        }
        // It may have been dropped for younger ones of the same message.
        let ticket = self.ledger.found(cid, len, options.small_block_len);
        self.unsubscribe(ticket.as_slice());
    }

    /// Whether enough is to be checked for the peer not to be heard.
    pub(super) fn has_many_checks(&self) -> bool {
        self.ledger.n_checks() >= CHECKS_WAITING_MAX
    }

    /// Begins to look at the containers of what is only to be told of.
    pub(super) fn check_more(&mut self) {
        if self.checking.is_some() || self.ledger.n_checks() == 0 {
            return;
        }
        let cids = self.ledger.next_checks(CHECKS_MAX);
        let n_changes = self.shared.registry.n_changes();
        let store = self.shared.store.clone();
        self.checking = Some(
            async move {
                let are_served = store.check(cids.clone()).await;
                Checked {
                    cids,
                    are_served,
                    n_changes,
                }
            }
            .boxed(),
        );
    }

    /// Says HAVE of what can be served; the rest waits.
    pub(super) fn checked(&mut self, checked: Checked) {
        let Checked {
            cids,
            are_served,
            n_changes,
        } = checked;
        for (cid, is_served) in cids.into_iter().zip(are_served) {
            let Some(want) = self.ledger.checking(&cid) else {
                continue; // Cancelled, or asked for in earnest meanwhile.
            };
            if want.kind == WantKind::Block {
                // It was, while the index did not know it.
                if !self.look_up_again(&[cid]).is_empty() {
                    self.wait_again(&cid, n_changes);
                }
                continue;
            }
            if is_served {
                self.ledger.remove(&cid);
                self.say(&cid, true);
                continue;
            }
            if want.send_dont_have {
                self.say(&cid, false);
            }
            self.wait_again(&cid, n_changes);
        }
    }

    /// A want whose block the index knows, and which cannot be served, waits for something to come.
    /// `n_changes`: what had come before that was found out.
    pub(super) fn wait_again(&mut self, cid: &Cid, n_changes: usize) {
        let Some(ticket) = self.subscribe(cid) else {
            self.ledger.remove(cid); // The client asks again.
            return;
        };
        let unused = self.ledger.wait_again(cid, ticket, Instant::now());
        self.unsubscribe(unused.as_slice());
        if self.shared.registry.n_changes() != n_changes {
            // Something came before it waited, and perhaps this.
            self.look_up_again(&[*cid]);
        }
    }

    /// Something that is waited for has come.
    pub(super) fn arrived(&mut self) {
        let generations = self.mailbox.take();
        if generations.is_empty() {
            return;
        }
        let cids = self.ledger.of(&generations);
        let n_changes = self.shared.registry.n_changes();
        let mut gone = self.look_up_again(&cids);
        // What is not there after all is waited for again, and looked up again if more has come.
        gone.retain(|cid| match self.subscribe(cid) {
            Some(ticket) => self.ledger.renew(cid, ticket),
            None => {
                self.ledger.remove(cid); // The client asks again.
                false
            }
        });
        if self.shared.registry.n_changes() != n_changes {
            self.look_up_again(&gone);
        }
    }

    /// Those of `cids` that are not there.
    fn look_up_again(&mut self, cids: &[Cid]) -> Vec<Cid> {
        if cids.is_empty() {
            return Vec::new();
        }
        let multihashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        let found = self.shared.store.find(&multihashes);
        let mut absent = Vec::new();
        for (cid, len) in cids.iter().zip(found) {
            match len {
                Some(len) => self.found(cid, false, len),
                None => absent.push(*cid),
            }
        }
        absent
    }

    /// Entries beyond the budget are answered as is configured, and not remembered. Who does not
    /// stop is disconnected.
    fn beyond_budget(&mut self, entries: &[Entry], now: Instant) {
        if entries.is_empty() {
            return;
        }
        for entry in entries {
            match entry.cancel {
                true => self.cancel(&entry.cid),
                false => self.refuse(entry),
            }
        }
        self.over_budget(now);
    }

    /// Notes that something was refused for the budget.
    pub(super) fn over_budget(&mut self, now: Instant) {
        let patience = self.shared.budgets.budget().patience;
        // Whoever kept within it for as long begins anew.
        let goes_on = self
            .over_at
            .is_some_and(|at| now.saturating_duration_since(at) < patience);
        let since = match (self.over_since, goes_on) {
            (Some(since), true) => since,
            _ => now,
        };
        (self.over_since, self.over_at) = (Some(since), Some(now));
        if now.saturating_duration_since(since) >= patience {
            // What it sends before the connections are closed does not count again.
            (self.over_since, self.over_at) = (None, None);
            self.count(|it| &it.over_budget, 1);
            tracing::debug!(peer = %self.stats.name(), "over its budget");
            self.disconnect();
        }
    }
}
