//! From wants that can be served to messages on the wire.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use carrack_formats::Cid;
use futures_util::FutureExt;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::super::turns::Turn;
use super::super::writer::{WriteError, Writer};
use super::super::{Command, Store};
use super::Peer;
use crate::budget::{Beyond, Good, Room};
use crate::key::CidKey;
use crate::stream::ByteStream;
use crate::wire::{Dialect, Outgoing};

/// Streams on which messages are written at the same time. Deployed clients read and hash what
/// comes on one stream in one thread.
const STREAMS_MAX: usize = 3;
/// Presences in one message.
const PRESENCES_PER_MESSAGE: usize = 1024;
/// Times that a block is written anew after its stream broke.
const FAILURES_MAX: u8 = 2;
/// Times in a row that a stream cannot be opened before the peer's wants are dropped.
const OPEN_FAILURES_MAX: u32 = 3;
/// Pause after a stream could not be opened.
const OPEN_PAUSE: Duration = Duration::from_millis(200);
/// How soon a peer whose address has enough under way looks again.
const HOLD_PAUSE: Duration = Duration::from_millis(200);
/// How long opening a stream may take.
const OPEN_TIME: Duration = Duration::from_secs(10);
/// What a peer takes in this time, it may have under way.
const WINDOW_TIME: Duration = Duration::from_millis(250);

/// Blocks that were loaded.
pub(super) struct Loaded {
    blocks: Vec<(Cid, Option<Bytes>)>,
    /// What had come to the store before they were.
    n_changes: usize,
    turn: Turn,
    len: usize,
}

/// A block that waits to be written.
pub(super) struct ReadyBlock {
    cid: Cid,
    data: Bytes,
    turn: Turn,
}

/// What became of a message.
pub(super) struct Written {
    outcome: Result<Writer, WriteError>,
    dialect: Dialect,
    blocks: Vec<(Cid, usize)>,
    presences: Vec<(CidKey, bool)>,
    n_block_bytes: usize,
    began: Instant,
    /// What [`Peer::n_bytes_written`] was then.
    n_bytes_before: u64,
    _turns: Vec<Turn>,
}

impl<S: Store> Peer<S> {
    /// Queues for a turn to load what is to be sent, if there may be more under way.
    pub(super) fn ask_for_turn(&mut self) {
        let waits = self.turn.is_some() || self.retry_at.is_some();
        if waits || self.ledger.n_queued() == 0 {
            return;
        }
        let pressed = self.shared.turns.is_pressed();
        let window = match pressed {
            true => self.shared.options.outstanding_min,
            false => self.window,
        };
        // Half a window at a time: many blocks are hashed in little more time than one.
        let (free, batch) = (window.saturating_sub(self.outstanding), window / 2);
        if self.outstanding > 0 && free < batch {
            return;
        }
        let need = self.ledger.len_ahead(free.min(batch));
        if self.is_over_bytes() {
            return;
        }
        let free = self.shared.turns.n_free();
        let shares = self.shared.options.outstanding_shares.within(free);
        let account = self.account.as_ref();
        let held = account.map(|account| account.hold(Room::Blocks, need, shares));
        if let Some(None) = held {
            // Others of its address have as much as they may.
            self.retry_at = Some(Instant::now() + HOLD_PAUSE);
            return;
        }
        self.turn = Some(self.shared.turns.ask(need, held.flatten()));
    }

    /// Whether the hour's bytes are used up: what is to be sent is refused then.
    fn is_over_bytes(&mut self) -> bool {
        let now = Instant::now();
        let Some(account) = &self.account else {
            return false;
        };
        if account.granted(Good::Bytes, 1, now) > 0 {
            return false;
        }
        let says_so = self.shared.budgets.budget().beyond == Beyond::DontHave;
        let dropped = self.ledger.drop_queued();
        self.count(|it| &it.entries_refused, dropped.len() as u64);
        for (cid, send_dont_have) in dropped {
            if send_dont_have && says_so {
                self.say(&cid, false);
            }
        }
        self.over_budget(now);
        true
    }

    /// It is this peer's turn.
    pub(super) fn load(&mut self, turn: Option<Turn>) {
        let Some(turn) = turn else { return };
        let cids = self.ledger.next(turn.len());
        if cids.is_empty() {
            return; // Cancelled meanwhile.
        }
        let len = turn.len();
        self.outstanding += len;
        let n_changes = self.shared.registry.n_changes();
        let store = self.shared.store.clone();
        let loading = async move {
            let blocks = store.load(cids.clone()).await;
            Loaded {
                blocks: cids.into_iter().zip(blocks).collect(),
                n_changes,
                turn,
                len,
            }
        };
        self.loads.push_back(loading.boxed());
    }

    /// Blocks have come from the store.
    pub(super) fn loaded(&mut self, loaded: Loaded) {
        let Loaded {
            blocks,
            n_changes,
            mut turn,
            len,
        } = loaded;
        let mut n_ready = 0;
        for (cid, block) in blocks {
            let Some(data) = block else {
                self.missing(&cid, n_changes);
                continue;
            };
            if self.ledger.get(&cid).is_none() {
                continue; // Cancelled meanwhile.
            }
            n_ready += data.len();
            let turn = turn.split(data.len());
            self.ready.push_back(ReadyBlock { cid, data, turn });
        }
        self.ready_len += n_ready;
        self.outstanding = (self.outstanding + n_ready).saturating_sub(len);
        if let Some(account) = &self.account {
            account.spend(Good::Bytes, n_ready as u64, Instant::now());
        }
    }

    /// A block that the index knows cannot be served: its source is not what it was.
    fn missing(&mut self, cid: &Cid, n_changes: usize) {
        if self.ledger.get(cid).is_some_and(|want| want.send_dont_have) {
            self.say(cid, false);
        }
        self.wait_again(cid, n_changes);
    }

    /// Writes what there is, or opens a stream for it.
    pub(super) fn write_more(&mut self) {
        while self.is_worth_a_message() {
            let Some((mut writer, dialect)) = self.writers.pop() else {
                if self.opening.is_none() && self.writing.len() < STREAMS_MAX {
                    self.open();
                }
                return;
            };
            if !writer.is_spent() {
                self.write(writer, dialect);
            }
        }
    }

    /// Anything is, while nothing is being written; beside another message only a whole one, so
    /// that small blocks and presences go together.
    fn is_worth_a_message(&self) -> bool {
        match self.writing.is_empty() {
            true => !self.ready.is_empty() || !self.presences.is_empty(),
            false => {
                self.ready_len >= self.shared.options.message_len
                    || self.presences.len() >= PRESENCES_PER_MESSAGE
            }
        }
    }

    fn write(&mut self, writer: Writer, dialect: Dialect) {
        let began = Instant::now();
        let mut message = Outgoing::new(dialect);
        let mut written = Written {
            outcome: Err(WriteError::Stalled),
            dialect,
            blocks: Vec::new(),
            presences: Vec::new(),
            n_block_bytes: 0,
            began,
            n_bytes_before: self.n_bytes_written,
            _turns: Vec::new(),
        };
        let n_presences = self.presences.len().min(PRESENCES_PER_MESSAGE);
        for (key, has) in self.presences.drain(..n_presences) {
            // A dialect without presences leaves them out.
            if message.push_presence(&key.cid(), has) {
                written.presences.push((key, has));
            }
        }
        let len_max = self.shared.options.message_len;
        while let Some(next) = self.ready.front()
            && (written.blocks.is_empty() || message.len() + next.data.len() <= len_max)
            && let Some(block) = self.ready.pop_front()
        {
            let len = block.data.len();
            self.ready_len -= len;
            // What is longer than any message was never queued.
            if message.push_block(&block.cid, block.data) {
                written.blocks.push((block.cid, len));
                written.n_block_bytes += len;
                written._turns.push(block.turn);
            }
        }
        if message.is_empty() {
            self.writers.push((writer, dialect)); // Only what the peer would not understand.
            return;
        }
        let pending = self.outstanding.saturating_sub(written.n_block_bytes);
        message.set_pending_bytes(i32::try_from(pending).unwrap_or(i32::MAX));
        let (parts, pace) = (message.finish(), self.shared.options.pace);
        let turns = self.shared.turns.clone();
        let writing = async move {
            written.outcome = writer.write(parts, pace, turns).await;
            written
        };
        self.writing.push(writing.boxed());
    }

    /// A message was written, or was not.
    pub(super) fn written(&mut self, written: Written) {
        self.outstanding = self.outstanding.saturating_sub(written.n_block_bytes);
        match written.outcome {
            Ok(writer) => {
                self.writers.push((writer, written.dialect));
                self.count(|it| &it.messages_out, 1);
                self.count(|it| &it.blocks_sent, written.blocks.len() as u64);
                self.count(|it| &it.bytes_sent, written.n_block_bytes as u64);
                let n_haves = written.presences.iter().filter(|(_, has)| *has).count() as u64;
                self.count(|it| &it.haves, n_haves);
                self.count(
                    |it| &it.dont_haves,
                    written.presences.len() as u64 - n_haves,
                );
                self.n_bytes_written += written.n_block_bytes as u64;
                self.adapt(written.n_bytes_before, written.began);
                let mut n_in_vain = 0;
                for (cid, _) in &written.blocks {
                    n_in_vain += u64::from(!self.ledger.sent(cid));
                }
                self.count(|it| &it.blocks_in_vain, n_in_vain);
            }
            Err(WriteError::Broken(error)) => {
                tracing::debug!(peer = %self.stats.name(), %error, "a message was not written");
                for (cid, len) in &written.blocks {
                    self.ledger.not_sent(cid, *len, FAILURES_MAX);
                }
                for presence in written.presences.into_iter().rev() {
                    self.presences.push_front(presence);
                }
                self.failed_to_open();
            }
            Err(WriteError::Stalled) => {
                self.count(|it| &it.stalled, 1);
                tracing::debug!(peer = %self.stats.name(), "takes nothing");
                let tickets = self.ledger.clear();
                self.unsubscribe(&tickets);
                self.disconnect();
            }
        }
    }

    /// How much may be under way follows how fast the peer takes it.
    fn adapt(&mut self, n_bytes_before: u64, began: Instant) {
        // Of all messages that were written meanwhile.
        let len = self.n_bytes_written - n_bytes_before;
        if len == 0 {
            return;
        }
        self.n_open_failures = 0;
        let elapsed_us = began.elapsed().as_micros().max(1);
        let taken = u128::from(len).saturating_mul(WINDOW_TIME.as_micros()) / elapsed_us;
        let options = &self.shared.options;
        let target = usize::try_from(taken)
            .unwrap_or(usize::MAX)
            .clamp(options.outstanding_min, options.outstanding_max);
        self.window = self.window / 4 * 3 + target / 4;
    }

    /// Opens a stream on the youngest connection.
    fn open(&mut self) {
        self.links.retain(|link| !link.gone.is_cancelled());
        let Some(link) = self.links.last() else {
            return; // The task ends in a moment, or another connection is on its way.
        };
        let (commands, n_failures) = (link.commands.clone(), self.n_open_failures);
        let opening = async move {
            tokio::time::sleep(OPEN_PAUSE * n_failures).await;
            let (opened, stream) = oneshot::channel();
            let gone = || io::Error::from(io::ErrorKind::NotConnected);
            commands
                .send(Command::Open(opened))
                .await
                .map_err(|_| gone())?;
            match tokio::time::timeout(OPEN_TIME, stream).await {
                Ok(Ok(outcome)) => outcome,
                Ok(Err(_)) => Err(gone()),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        };
        self.opening = Some(opening.boxed());
    }

    pub(super) fn opened(&mut self, opened: io::Result<(ByteStream, Dialect)>) {
        match opened {
            Ok((stream, dialect)) => self.writers.push((Writer::new(stream), dialect)),
            Err(error) => {
                tracing::debug!(peer = %self.stats.name(), %error, "no stream was opened");
                self.failed_to_open();
            }
        }
    }

    /// A peer that takes no stream gets nothing: what it wanted is forgotten.
    fn failed_to_open(&mut self) {
        self.n_open_failures += 1;
        if self.n_open_failures < OPEN_FAILURES_MAX {
            return;
        }
        self.n_open_failures = 0;
        self.presences.clear();
        self.ready.clear();
        self.outstanding = self.outstanding.saturating_sub(self.ready_len);
        self.ready_len = 0;
        let tickets = self.ledger.clear();
        self.unsubscribe(&tickets);
    }
}
