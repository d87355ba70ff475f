//! What a peer's messages ask for, looked up.

use carrack_formats::{Cid, Multihash};
use futures_util::FutureExt;
use tokio::time::Instant;

use super::super::Store;
use super::super::ledger::Taken;
use super::super::reader::Frame;
use super::Peer;
use crate::budget::{Account, Beyond, Good};
use crate::wire::{DecodeLimits, Entry, Message, WantKind};

/// WANT_HAVEs whose containers are looked at in one go.
const CHECKS_MAX: usize = 256;

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

    /// Takes entries within the budget: registers what is new, then looks everything up at once.
    fn take(&mut self, entries: &[Entry], now: Instant) {
        let mut to_find: Vec<&Entry> = Vec::with_capacity(entries.len());
        for entry in entries {
            if entry.cancel {
                self.cancel(&entry.cid);
                continue;
            }
            match self.ledger.take(entry) {
                Taken::New => {
                    if self.register(entry, now) {
                        to_find.push(entry);
                    }
                }
                Taken::Again => to_find.push(entry),
                Taken::OnItsWay => {}
                Taken::Refused => self.refuse(entry),
            }
        }
        let multihashes: Vec<Multihash> = to_find.iter().map(|entry| *entry.cid.hash()).collect();
        let found = self.shared.store.find(&multihashes);
        for (entry, len) in to_find.into_iter().zip(found) {
            match len {
                Some(len) => self.found(&entry.cid, entry.send_dont_have, len),
                None if entry.send_dont_have => self.presences.push_back((entry.cid, false)),
                None => {}
            }
        }
    }

    /// Enters a new want, before it is looked up: what arrives meanwhile is told.
    fn register(&mut self, entry: &Entry, now: Instant) -> bool {
        let subscribed = self
            .shared
            .registry
            .subscribe(entry.cid.hash(), self.mailbox.clone());
        let Ok(ticket) = subscribed else {
            self.refuse(entry);
            return false;
        };
        if let Some(gone) = self.ledger.enter(entry, ticket, now) {
            self.unsubscribe(&[gone]);
        }
        true
    }

    /// There is no room to remember a want.
    fn refuse(&mut self, entry: &Entry) {
        self.count(|it| &it.entries_refused, 1);
        let says_so = self.shared.budgets.budget().beyond == Beyond::DontHave;
        if entry.send_dont_have && says_so {
            self.presences.push_back((entry.cid, false));
        }
    }

    fn cancel(&mut self, cid: &Cid) {
        if let Some(ticket) = self.ledger.remove(cid) {
            self.unsubscribe(&[ticket]);
        }
    }

    /// The index knows a block of a want that waits.
    fn found(&mut self, cid: &Cid, send_dont_have: bool, len: u64) {
        let Some(want) = self.ledger.get(cid) else {
            return; // It was dropped for younger ones of the same message.
        };
        let options = &self.shared.options;
        if len > options.block_len_max {
            self.cancel(cid);
            if send_dont_have {
                self.presences.push_back((*cid, false));
            }
            return;
        }
        if want.kind == WantKind::Have && len > options.small_block_len {
            self.to_check.push(*cid);
            return;
        }
        if let Some(ticket) = self.ledger.found(cid, len) {
            self.unsubscribe(&[ticket]);
        }
    }

    /// Begins to look at the containers of what is only to be told of.
    pub(super) fn check_more(&mut self) {
        if self.checking.is_some() || self.to_check.is_empty() {
            return;
        }
        let at = self.to_check.len().saturating_sub(CHECKS_MAX);
        let cids = self.to_check.split_off(at);
        let store = self.shared.store.clone();
        self.checking = Some(
            async move {
                let known = store.check(cids.clone()).await;
                (cids, known)
            }
            .boxed(),
        );
    }

    /// Says HAVE of what can be served; the rest goes on waiting.
    pub(super) fn checked(&mut self, (cids, known): (Vec<Cid>, Vec<bool>)) {
        for (cid, is_served) in cids.into_iter().zip(known) {
            let Some(want) = self.ledger.get(&cid) else {
                continue; // Cancelled.
            };
            if want.kind == WantKind::Block {
                // It was asked for in earnest meanwhile.
                self.look_up_again(&[cid]);
            } else if is_served {
                self.cancel(&cid);
                self.presences.push_back((cid, true));
            } else if want.send_dont_have {
                self.presences.push_back((cid, false));
            }
        }
    }

    /// Something that is waited for has come.
    pub(super) fn arrived(&mut self) {
        let generations = self.mailbox.take();
        if generations.is_empty() {
            return;
        }
        // Registered again before it is looked up: it may not be there after all.
        let mut cids = self.ledger.of(&generations);
        cids.retain(|cid| {
            match self
                .shared
                .registry
                .subscribe(cid.hash(), self.mailbox.clone())
            {
                Ok(ticket) => self.ledger.renew(cid, ticket),
                Err(_) => {
                    self.ledger.remove(cid); // The client asks again.
                    false
                }
            }
        });
        self.look_up_again(&cids);
    }

    fn look_up_again(&mut self, cids: &[Cid]) {
        let multihashes: Vec<Multihash> = cids.iter().map(|cid| *cid.hash()).collect();
        let found = self.shared.store.find(&multihashes);
        for (cid, len) in cids.iter().zip(found) {
            if let Some(len) = len {
                self.found(cid, false, len);
            }
        }
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
