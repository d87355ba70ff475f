//! A bitswap client: sends wants, takes what comes, checks and counts it.
//!
//! In       CIDs.
//! Out      blocks that hash to what was wanted, HAVE and DONT_HAVE, and counts of all that came.
//! Limits   [`INBOX_MAX`] messages wait to be taken; with that many, nothing is read from the
//!          server, as a slow client does it.
//! Not here sessions, several servers: a test has one server before it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use carrack_bitswap::wire::{
    DecodeLimits, Dialect, Entry, MESSAGE_LEN_MAX, Message, Outgoing, Received, WantKind,
};
use carrack_formats::{Cid, Multihash, cid};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::{Dialer, Link, Stream, craft, within};

/// The newest dialect first.
pub const DIALECTS: [&str; 4] = [
    "/ipfs/bitswap/1.2.0",
    "/ipfs/bitswap/1.1.0",
    "/ipfs/bitswap/1.0.0",
    "/ipfs/bitswap",
];
/// As much as fits into a message.
const LIMITS: DecodeLimits = DecodeLimits {
    entries_max: 1 << 20,
    blocks_max: 1 << 20,
    presences_max: 1 << 20,
    fields_max: 4 << 20,
};
const INBOX_MAX: usize = 16;
/// Most entries of a message that [`BitswapClient::fetch`] sends.
const ENTRIES_PER_MESSAGE: usize = 256;

/// What is asked about a CID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ask {
    /// The block itself.
    Block,
    /// Whether it is there.
    Have,
    /// Nothing any more.
    Cancel,
}

/// What a server said about a CID.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// A block that hashes to the CID.
    Block(Cid, Bytes),
    /// It has the block.
    Have(Cid),
    /// It has it not.
    DontHave(Cid),
    /// A block that was not wanted, or that is not what was wanted.
    Unwanted(Bytes),
}

/// What came so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages.
    pub messages: u64,
    /// Bytes of messages, their lengths included.
    pub bytes: u64,
    /// Blocks, wanted or not.
    pub blocks: u64,
    /// Bytes of their data.
    pub block_bytes: u64,
    /// Blocks that nobody had asked for, or not any more.
    pub unwanted: u64,
    /// HAVEs.
    pub haves: u64,
    /// DONT_HAVEs.
    pub dont_haves: u64,
    /// Messages without a want-list, which kubo before 0.30 cannot read.
    pub without_wantlist: u64,
    /// Streams of bitswap that the server opened.
    pub streams: u64,
    /// Streams that ended inside a message.
    pub broken_streams: u64,
}

/// How [`BitswapClient::fetch`] asks.
#[derive(Debug, Clone, Copy)]
pub struct Fetch {
    /// Most wants that are unanswered at a time.
    pub window: usize,
    /// [`Ask::Block`] or [`Ask::Have`].
    pub ask: Ask,
    /// Whether blocks are hashed. Unhashed, a block counts as the answer to some want.
    pub verify: bool,
}

impl Default for Fetch {
    fn default() -> Self {
        Self {
            window: 256,
            ask: Ask::Block,
            verify: true,
        }
    }
}

/// A connection with one stream of wants, and readers of all streams that the server opens.
#[derive(Debug)]
pub struct BitswapClient {
    link: Arc<Link>,
    dialect: Dialect,
    wants: Stream,
    inbox: mpsc::Receiver<(Bytes, usize)>,
    /// Answers of a message that was taken apart, in reverse.
    answers: Vec<Answer>,
    /// Multihash to what was asked for; left when the block or DONT_HAVE comes.
    wanted: HashMap<Multihash, Cid>,
    counts: Counts,
    shared: Arc<Shared>,
    verify: bool,
    _readers: JoinSet<()>,
}

#[derive(Debug, Default)]
struct Shared {
    streams: AtomicU64,
    broken_streams: AtomicU64,
}

impl BitswapClient {
    /// Connects, and opens a stream of the newest dialect that the server takes.
    ///
    /// # Errors
    /// As [`Dialer::dial`] and [`Link::open`].
    pub async fn connect(dialer: &Dialer, address: &str) -> io::Result<Self> {
        Self::connect_as(dialer, address, &DIALECTS).await
    }

    /// As [`BitswapClient::connect`], with these dialects alone, in both directions.
    ///
    /// # Errors
    /// As [`BitswapClient::connect`].
    pub async fn connect_as(dialer: &Dialer, address: &str, dialects: &[&str]) -> io::Result<Self> {
        let link = dialer.clone().accepting(dialects).dial(address).await?;
        let (wants, name) = link.open(dialects).await?;
        let dialect = Dialect::of(&name).ok_or_else(|| io::Error::other(name))?;
        let link = Arc::new(link);
        let shared = Arc::new(Shared::default());
        let (sender, inbox) = mpsc::channel(INBOX_MAX);
        let mut readers = JoinSet::new();
        readers.spawn(read_streams(Arc::clone(&link), Arc::clone(&shared), sender));
        Ok(Self {
            link,
            dialect,
            wants,
            inbox,
            answers: Vec::new(),
            wanted: HashMap::new(),
            counts: Counts::default(),
            shared,
            verify: true,
            _readers: readers,
        })
    }

    /// The dialect of our stream.
    pub const fn dialect(&self) -> &'static str {
        self.dialect.name()
    }

    /// The connection, for whatever bitswap has no word for.
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// The stream of wants, for bytes of a test's own making.
    pub const fn wants(&mut self) -> &mut Stream {
        &mut self.wants
    }

    /// What came so far.
    pub fn counts(&self) -> Counts {
        Counts {
            streams: self.shared.streams.load(Ordering::Relaxed),
            broken_streams: self.shared.broken_streams.load(Ordering::Relaxed),
            ..self.counts
        }
    }

    /// Sends one message that asks for `cids`. `full`: and for nothing else any more.
    ///
    /// # Errors
    /// The stream or the connection ended, or the server does not read.
    pub async fn ask(
        &mut self,
        cids: &[Cid],
        ask: Ask,
        send_dont_have: bool,
        full: bool,
    ) -> io::Result<()> {
        if full {
            self.wanted.clear();
        }
        let mut message = Outgoing::new(self.dialect);
        message.set_full(full);
        for cid in cids {
            let entry = Entry {
                cid: *cid,
                priority: 1,
                cancel: ask == Ask::Cancel,
                want: match ask {
                    Ask::Have => WantKind::Have,
                    Ask::Block | Ask::Cancel => WantKind::Block,
                },
                send_dont_have,
            };
            if !message.push_entry(&entry) {
                let why = "more than a message holds, or than the dialect can say";
                return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
            }
            if entry.cancel {
                self.wanted.remove(cid.hash());
            } else {
                self.wanted.insert(*cid.hash(), *cid);
            }
        }
        let message = message.finish().concat();
        within(self.link.patience(), self.wants.send(&message)).await
    }

    /// The next message as it came.
    ///
    /// # Errors
    /// The connection ended, or nothing came in time.
    pub async fn message(&mut self) -> io::Result<Message> {
        self.message_within(self.link.patience()).await
    }

    async fn message_within(&mut self, patience: Duration) -> io::Result<Message> {
        let frame = within(patience, async { Ok(self.inbox.recv().await) }).await?;
        let Some((body, prefix_len)) = frame else {
            return Err(io::Error::new(
                io::ErrorKind::ConnectionAborted,
                self.link.ended().await?,
            ));
        };
        let counts = &mut self.counts;
        counts.messages += 1;
        counts.bytes += (body.len() + prefix_len) as u64;
        counts.without_wantlist += u64::from(!craft::has_bytes_field(&body, 1));
        let message = Message::decode(&body, &LIMITS).map_err(io::Error::other)?;
        counts.blocks += message.blocks.len() as u64;
        for block in &message.blocks {
            counts.block_bytes += block.data.len() as u64;
        }
        for presence in &message.presences {
            counts.haves += u64::from(presence.have);
            counts.dont_haves += u64::from(!presence.have);
        }
        Ok(message)
    }

    /// The next answer; blocks are verified.
    ///
    /// # Errors
    /// As [`BitswapClient::message`].
    pub async fn answer(&mut self) -> io::Result<Answer> {
        self.answer_within(self.link.patience()).await
    }

    /// As [`BitswapClient::answer`]; `None` when nothing came in `time`.
    ///
    /// # Errors
    /// As [`BitswapClient::message`].
    pub async fn answer_or_silence(&mut self, time: Duration) -> io::Result<Option<Answer>> {
        match self.answer_within(time).await {
            Ok(answer) => Ok(Some(answer)),
            Err(error) if error.kind() == io::ErrorKind::TimedOut => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn answer_within(&mut self, patience: Duration) -> io::Result<Answer> {
        loop {
            if let Some(answer) = self.answers.pop() {
                return Ok(answer);
            }
            let message = self.message_within(patience).await?;
            self.take_apart(message);
        }
    }

    fn take_apart(&mut self, message: Message) {
        for presence in message.presences.iter().rev() {
            let cid = presence.cid;
            self.answers.push(if presence.have {
                Answer::Have(cid)
            } else {
                self.wanted.remove(cid.hash());
                Answer::DontHave(cid)
            });
        }
        // The first of a message that holds one block twice is the one that was wanted.
        let mut blocks = Vec::with_capacity(message.blocks.len());
        for block in message.blocks {
            blocks.push(match self.claim(&block) {
                Some(cid) => Answer::Block(cid, block.data),
                None => {
                    self.counts.unwanted += 1;
                    Answer::Unwanted(block.data)
                }
            });
        }
        self.answers.extend(blocks.into_iter().rev());
    }

    /// The want that a block answers.
    fn claim(&mut self, block: &Received) -> Option<Cid> {
        let multihash = if !self.verify {
            *self.wanted.keys().next()?
        } else if let Some(digest) = block.sha256() {
            Multihash::wrap(cid::SHA2_256, &digest).ok()?
        } else {
            let mut wanted = self.wanted.values();
            *wanted.find(|cid| block.verify(cid).is_ok())?.hash()
        };
        self.wanted.remove(&multihash)
    }

    /// One block.
    ///
    /// # Errors
    /// `NotFound` on DONT_HAVE, else as [`BitswapClient::message`].
    pub async fn block(&mut self, cid: &Cid) -> io::Result<Bytes> {
        self.ask(&[*cid], Ask::Block, true, false).await?;
        loop {
            match self.answer().await? {
                Answer::Block(of, data) if of == *cid => return Ok(data),
                Answer::DontHave(of) if of == *cid => {
                    return Err(io::Error::new(io::ErrorKind::NotFound, of.to_string()));
                }
                _ => {}
            }
        }
    }

    /// Asks for all of `cids` with many wants in flight, and hands each answer to `each` until all
    /// are answered. Returns what came meanwhile.
    ///
    /// # Errors
    /// As [`BitswapClient::message`].
    pub async fn fetch(
        &mut self,
        cids: impl IntoIterator<Item = Cid>,
        how: Fetch,
        mut each: impl FnMut(Answer),
    ) -> io::Result<Counts> {
        self.verify = how.verify;
        let before = self.counts();
        let mut cids = cids.into_iter().fuse();
        let mut in_flight = 0_usize;
        let mut batch = Vec::with_capacity(ENTRIES_PER_MESSAGE);
        loop {
            // Half a window at a time, so that requests stay few.
            while in_flight <= how.window / 2 {
                let room = (how.window - in_flight).clamp(1, ENTRIES_PER_MESSAGE);
                batch.clear();
                batch.extend(cids.by_ref().take(room));
                if batch.is_empty() {
                    break;
                }
                in_flight += batch.len();
                self.ask(&batch, how.ask, true, false).await?;
            }
            if in_flight == 0 {
                return Ok(self.counts().since(&before));
            }
            let answer = self.answer().await?;
            let is_last = match &answer {
                Answer::Have(_) => how.ask == Ask::Have,
                Answer::Block(..) | Answer::DontHave(_) => true,
                Answer::Unwanted(_) => false,
            };
            in_flight -= usize::from(is_last && in_flight > 0);
            each(answer);
        }
    }

    /// Ends the connection politely.
    ///
    /// # Errors
    /// As [`Link::close`].
    pub async fn close(self) -> io::Result<()> {
        let Self { link, _readers, .. } = self;
        drop(_readers);
        link.say_goodbye().await
    }
}

impl Counts {
    /// What came after `before`.
    pub const fn since(&self, before: &Self) -> Self {
        Self {
            messages: self.messages - before.messages,
            bytes: self.bytes - before.bytes,
            blocks: self.blocks - before.blocks,
            block_bytes: self.block_bytes - before.block_bytes,
            unwanted: self.unwanted - before.unwanted,
            haves: self.haves - before.haves,
            dont_haves: self.dont_haves - before.dont_haves,
            without_wantlist: self.without_wantlist - before.without_wantlist,
            streams: self.streams - before.streams,
            broken_streams: self.broken_streams - before.broken_streams,
        }
    }
}

/// Reads all streams of the server, until the connection ends.
async fn read_streams(link: Arc<Link>, shared: Arc<Shared>, inbox: mpsc::Sender<(Bytes, usize)>) {
    let mut readers = JoinSet::new();
    loop {
        tokio::select! {
            accepted = link.accept_patiently() => {
                let Ok((_, stream)) = accepted else { break };
                shared.streams.fetch_add(1, Ordering::Relaxed);
                readers.spawn(read_stream(stream, Arc::clone(&shared), inbox.clone()));
            }
            Some(_) = readers.join_next() => {}
        }
    }
    while readers.join_next().await.is_some() {} // What was read before the end still counts.
}

async fn read_stream(mut stream: Stream, shared: Arc<Shared>, inbox: mpsc::Sender<(Bytes, usize)>) {
    loop {
        match stream.receive_frame(MESSAGE_LEN_MAX).await {
            Ok(Some(frame)) => {
                if inbox.send(frame).await.is_err() {
                    return;
                }
            }
            Ok(None) => {
                let _ = stream.finish().await;
                return;
            }
            Err(_) => {
                shared.broken_streams.fetch_add(1, Ordering::Relaxed);
                return;
            }
        }
    }
}
