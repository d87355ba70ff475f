//! One connection, and the task that drives its muxer.
//!
//! In       a muxer.
//! Out      streams that we open, streams that the server opens, and the reason of the end.
//! Limits   [`NEGOTIATING_MAX`] inbound streams may wait to be agreed upon or taken; with that many
//!          the muxer is not asked for more.
//! Not here what is said on the streams.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use libp2p::PeerId;
use libp2p::core::muxing::{StreamMuxerBox, StreamMuxerExt, SubstreamBox};
use libp2p::core::transport::Boxed;
use multistream_select::{Version, dialer_select_proto, listener_select_proto};
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::{JoinHandle, JoinSet};

use super::basics::{self, IDENTIFY, PING};
use super::dial::Dialed;
use super::{Dialer, Inbound, Stream, within};

const NEGOTIATING_MAX: usize = 1024;
const COMMANDS_MAX: usize = 256;

type Opened = oneshot::Sender<io::Result<SubstreamBox>>;
type Accepted = mpsc::Sender<(String, Stream)>;

enum Command {
    Open(Opened),
    Freeze(bool),
    Close,
}

/// A connection. Dropped, it breaks off without a goodbye; [`Link::close`] says one.
#[derive(Debug)]
pub struct Link {
    peer: PeerId,
    patience: Duration,
    commands: mpsc::Sender<Command>,
    accepted: Mutex<mpsc::Receiver<(String, Stream)>>,
    ended: watch::Receiver<Option<Arc<str>>>,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Link {
    pub(super) fn start(dialer: &Dialer, dialed: Dialed) -> Self {
        let (commands, received) = mpsc::channel(COMMANDS_MAX);
        let (accepted, inbound) = mpsc::channel(NEGOTIATING_MAX);
        let (end, ended) = watch::channel(None);
        let driver = Driver {
            muxer: dialed.muxer,
            commands: received,
            opening: VecDeque::new(),
            frozen: false,
            closing: false,
            negotiating: JoinSet::new(),
            inbound: Arc::new(Reception::new(dialer, accepted)),
            _transport: dialed.transport,
        };
        Self {
            peer: dialed.peer,
            patience: dialer.patience,
            commands,
            accepted: Mutex::new(inbound),
            ended,
            driver: tokio::spawn(driver.run(end)),
        }
    }

    /// The server's PeerID, which its handshake proved.
    pub fn peer_id(&self) -> String {
        self.peer.to_string()
    }

    /// How long each wait may take.
    pub const fn patience(&self) -> Duration {
        self.patience
    }

    /// Opens a stream of the first of `protocols` that the server takes, and says which.
    ///
    /// # Errors
    /// It takes none of them, or no stream; the connection ended.
    pub async fn open(&self, protocols: &[&str]) -> io::Result<(Stream, String)> {
        let work = async {
            let stream = self.open_substream().await?;
            let (name, stream) = dialer_select_proto(stream, protocols, Version::V1)
                .await
                .map_err(io::Error::other)?;
            Ok((Stream::agreed(stream), String::from(*name)))
        };
        within(self.patience, work).await
    }

    /// Opens a stream on which nothing was said.
    ///
    /// # Errors
    /// The muxer opens no more; the connection ended.
    pub async fn open_raw(&self) -> io::Result<Stream> {
        let work = self.open_substream();
        Ok(Stream::raw(within(self.patience, work).await?))
    }

    async fn open_substream(&self) -> io::Result<SubstreamBox> {
        let (opened, stream) = oneshot::channel();
        let sent = self.commands.send(Command::Open(opened)).await;
        sent.map_err(|_| self.gone())?;
        stream.await.map_err(|_| self.gone())?
    }

    /// The next stream that the server opened, and its protocol, which is empty on a raw one.
    ///
    /// # Errors
    /// The connection ended, or nothing came in time.
    pub async fn accept(&self) -> io::Result<(String, Stream)> {
        within(self.patience, async {
            let mut accepted = self.accepted.lock().await;
            accepted.recv().await.ok_or_else(|| self.gone())
        })
        .await
    }

    /// As [`Link::accept`], however long it takes.
    pub(super) async fn accept_patiently(&self) -> io::Result<(String, Stream)> {
        let mut accepted = self.accepted.lock().await;
        accepted.recv().await.ok_or_else(|| self.gone())
    }

    /// Stops reading and writing the connection itself, until [`Link::thaw`]. What was written to
    /// a stream just before may not have left: wait for an answer to know.
    ///
    /// # Errors
    /// The connection ended.
    pub async fn freeze(&self) -> io::Result<()> {
        let sent = self.commands.send(Command::Freeze(true)).await;
        sent.map_err(|_| self.gone())
    }

    /// Goes on after [`Link::freeze`].
    ///
    /// # Errors
    /// The connection ended.
    pub async fn thaw(&self) -> io::Result<()> {
        let sent = self.commands.send(Command::Freeze(false)).await;
        sent.map_err(|_| self.gone())
    }

    /// Whether the connection ended.
    pub fn is_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.driver.is_finished()
    }

    /// Waits for the end of the connection and tells why it ended.
    ///
    /// # Errors
    /// `TimedOut`: it is still there.
    pub async fn ended(&self) -> io::Result<String> {
        let mut ended = self.ended.clone();
        within(self.patience, async {
            let end = ended.wait_for(Option::is_some).await;
            end.map_err(io::Error::other)?;
            Ok(())
        })
        .await?;
        Ok(self.gone().to_string())
    }

    /// Ends the connection as a polite peer does.
    ///
    /// # Errors
    /// `TimedOut`: the server does not take the goodbye.
    pub async fn close(self) -> io::Result<()> {
        self.say_goodbye().await
    }

    pub(super) async fn say_goodbye(&self) -> io::Result<()> {
        let _ = self.commands.send(Command::Close).await;
        self.ended().await.map(drop)
    }

    fn gone(&self) -> io::Error {
        let why = self.ended.borrow().clone();
        let why = why
            .as_deref()
            .unwrap_or("the connection is gone")
            .to_owned();
        io::Error::new(io::ErrorKind::ConnectionAborted, why)
    }
}

/// What drives the muxer: it moves only while it is polled.
struct Driver {
    muxer: StreamMuxerBox,
    commands: mpsc::Receiver<Command>,
    opening: VecDeque<Opened>,
    frozen: bool,
    closing: bool,
    negotiating: JoinSet<()>,
    inbound: Arc<Reception>,
    _transport: Option<Boxed<(PeerId, StreamMuxerBox)>>,
}

impl Driver {
    async fn run(mut self, end: watch::Sender<Option<Arc<str>>>) {
        let why = poll_fn(|context| self.poll(context)).await;
        end.send_replace(Some(why.into()));
    }

    /// Ready when the connection ended: with the reason.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<String> {
        while let Poll::Ready(command) = self.commands.poll_recv(context) {
            match command {
                Some(Command::Open(opened)) => self.opening.push_back(opened),
                Some(Command::Freeze(frozen)) => self.frozen = frozen,
                Some(Command::Close) => self.closing = true,
                None => return Poll::Ready("the link was dropped".into()),
            }
        }
        if self.frozen {
            return Poll::Pending;
        }
        match self.poll_muxer(context) {
            Poll::Ready(Ok(())) => Poll::Ready("we closed the connection".into()),
            Poll::Ready(Err(error)) => Poll::Ready(with_causes(&error)),
            Poll::Pending => Poll::Pending,
        }
    }

    fn poll_muxer(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.closing {
            return self.muxer.poll_close_unpin(context);
        }
        while self.muxer.poll_unpin(context)?.is_ready() {}
        while !self.opening.is_empty() {
            let Poll::Ready(stream) = self.muxer.poll_outbound_unpin(context)? else {
                break;
            };
            if let Some(opened) = self.opening.pop_front() {
                let _ = opened.send(Ok(stream)); // Who asked may have lost patience.
            }
        }
        while self.negotiating.poll_join_next(context).is_ready_some() {}
        while self.inbound.takes_streams() && self.negotiating.len() < NEGOTIATING_MAX {
            let Poll::Ready(stream) = self.muxer.poll_inbound_unpin(context)? else {
                break;
            };
            let inbound = Arc::clone(&self.inbound);
            self.negotiating.spawn(inbound.receive(stream));
            while self.negotiating.poll_join_next(context).is_ready_some() {}
        }
        Poll::Pending
    }
}

/// What is done with inbound streams.
struct Reception {
    inbound: Inbound,
    /// All that is agreed to, the basics included.
    offered: Vec<String>,
    identify: Vec<u8>,
    accepted: Accepted,
}

impl Reception {
    fn new(dialer: &Dialer, accepted: Accepted) -> Self {
        let mut offered = Vec::new();
        if let Inbound::Offer(protocols) = &dialer.inbound {
            offered.clone_from(protocols);
            if dialer.basics {
                offered.extend([IDENTIFY.into(), PING.into()]);
            }
        }
        Self {
            identify: basics::identify_frame(&dialer.identity, &offered),
            inbound: dialer.inbound.clone(),
            offered,
            accepted,
        }
    }

    fn takes_streams(&self) -> bool {
        self.inbound != Inbound::Ignore
    }

    async fn receive(self: Arc<Self>, stream: SubstreamBox) {
        let (name, stream) = if self.inbound == Inbound::Raw {
            (String::new(), Stream::raw(stream))
        } else {
            let Ok((name, stream)) = listener_select_proto(stream, &self.offered).await else {
                return; // The server wanted what we do not offer, or gave up.
            };
            (name.clone(), Stream::agreed(stream))
        };
        let is_offered = |name: &str| match &self.inbound {
            Inbound::Offer(protocols) => protocols.iter().any(|offered| offered == name),
            Inbound::Raw | Inbound::Ignore => true,
        };
        let _ = match name.as_str() {
            IDENTIFY if !is_offered(IDENTIFY) => {
                basics::answer_identify(stream, &self.identify).await
            }
            PING if !is_offered(PING) => basics::answer_pings(stream).await,
            _ => {
                let _ = self.accepted.send((name, stream)).await;
                Ok(())
            }
        };
    }
}

fn with_causes(error: &io::Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// Whether a poll gave something that was not an end.
trait IsReadySome {
    fn is_ready_some(&self) -> bool;
}

impl<T> IsReadySome for Poll<Option<T>> {
    fn is_ready_some(&self) -> bool {
        matches!(self, Self::Ready(Some(_)))
    }
}
