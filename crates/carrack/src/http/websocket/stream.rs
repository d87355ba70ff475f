//! A stream of bytes over the messages of a WebSocket.
//!
//! In       a socket whose next byte is that of a frame; bytes of the owner.
//! Out      the bytes of binary messages, whatever their boundaries; binary frames, one for what
//!          was written up to a flush. Pings are answered, a close is an end.
//! Limits   those of [`frame`]; [`INPUT_LEN`] bytes of input and two frames of 64 KiB
//!          of output, held only while there is something in them; one pong.
//! Not here handshakes (`websocket`), timeouts: its owner has them.

use std::io::{Error, ErrorKind, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::ReadBuf;

use super::frame::{self, Control, Decoder, Event, FrameError};

/// Bytes that are asked of the socket at once: heads come with what follows them. A longer payload
/// is read straight to where it belongs.
const INPUT_LEN: usize = 8 * 1024;

/// The code of a close that says nothing special.
const CLOSE_NORMAL: u16 = 1000;

/// Bytes over a WebSocket, on the server's side. The socket is closed when it is dropped.
///
/// Reading answers pings, too, so that one who only reads keeps the connection alive.
#[derive(Debug)]
pub struct MessageStream<S> {
    socket: S,
    decoder: Decoder,
    /// What came and was not looked at yet starts at `input_start`.
    input: Vec<u8>,
    input_start: usize,
    reading: Reading,
    output: Output,
}

/// How reading stands.
#[derive(Debug, Clone, Copy)]
enum Reading {
    Open,
    /// The client said that it ends.
    Ended,
    /// The client broke the rules.
    Failed(FrameError),
    /// The socket ended inside of a frame, or without a close.
    Cut,
}

/// What is to be sent.
#[derive(Debug, Default)]
struct Output {
    /// Whole frames on their way; the first `sent` bytes of them have left.
    wire: Vec<u8>,
    sent: usize,
    /// Room for a head, and the payload that the owner adds to.
    open: Vec<u8>,
    /// The latest ping, to be answered. An earlier one need not be.
    ping: Option<Control>,
    /// A close frame, to be sent after everything else.
    close: Option<Vec<u8>>,
    /// No more data: a close was sent, or will be.
    closed: bool,
    /// The owner waits for the socket to take bytes. Reading must then leave the socket's other
    /// half alone, which remembers one waker only.
    owner_waits: bool,
}

/// How far sending is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Everything but the open frame has left.
    Controls,
    /// The open frame is on its way, or empty.
    Room,
    /// Everything has left.
    Sent,
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> MessageStream<S> {
    /// A stream over `socket`, of which `input` was read already.
    pub fn new(socket: S, input: Vec<u8>) -> Self {
        Self {
            socket,
            decoder: Decoder::default(),
            input,
            input_start: 0,
            reading: Reading::Open,
            output: Output::default(),
        }
    }

    /// Payload of messages, and what else comes before it.
    fn poll_payload(&mut self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<Result<usize>> {
        loop {
            match self.reading {
                Reading::Open => {}
                Reading::Ended => return Poll::Ready(Ok(0)),
                Reading::Failed(error) => {
                    return Poll::Ready(Err(Error::new(ErrorKind::InvalidData, error)));
                }
                Reading::Cut => return Poll::Ready(Err(cut())),
            }
            let mut input = self.input.get(self.input_start..).unwrap_or_default();
            if input.is_empty() {
                let straight = usize::try_from(self.decoder.straight_len()).unwrap_or(usize::MAX);
                if straight >= buffer.len().min(INPUT_LEN) && straight > 0 {
                    return self.poll_straight(cx, buffer, straight);
                }
                ready!(self.poll_input(cx))?;
                continue;
            }
            let event = self.decoder.advance(&mut input, buffer);
            self.input_start = self.input.len() - input.len();
            match event {
                Ok(Event::NeedInput) => {}
                Ok(Event::Data(n)) => return Poll::Ready(Ok(n)),
                Ok(Event::Ping(payload)) => self.output.ping = Some(payload),
                Ok(Event::Close(code)) => {
                    self.reading = Reading::Ended;
                    self.output.end(frame::close_frame(code));
                }
                Err(error) => {
                    self.reading = Reading::Failed(error);
                    let code = network_order(error.close_code());
                    self.output.end(frame::close_frame(Some(code)));
                }
            }
        }
    }

    /// Payload straight from the socket.
    fn poll_straight(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        len: usize,
    ) -> Poll<Result<usize>> {
        // It is empty, and may not be needed for long.
        self.input = Vec::new();
        self.input_start = 0;
        let len = len.min(buffer.len());
        let mut read = ReadBuf::new(buffer.get_mut(..len).unwrap_or_default());
        ready!(Pin::new(&mut self.socket).poll_read(cx, &mut read))?;
        let bytes = read.filled_mut();
        if bytes.is_empty() {
            self.reading = Reading::Cut;
            return Poll::Ready(Err(cut()));
        }
        self.decoder.took(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    /// The next bytes of the socket. While it has none, no memory is held for them.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.input.clear();
        self.input_start = 0;
        self.input.resize(INPUT_LEN, 0);
        let mut read = ReadBuf::new(&mut self.input);
        let outcome = Pin::new(&mut self.socket).poll_read(cx, &mut read);
        let n = read.filled().len();
        self.input.truncate(n);
        if n == 0 {
            self.input = Vec::new();
        }
        ready!(outcome)?;
        if n == 0 {
            self.reading = Reading::Cut;
        }
        Poll::Ready(Ok(()))
    }

    /// Sends what waits, as far as `until` says.
    fn poll_send(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<Result<()>> {
        let output = &mut self.output;
        loop {
            let wire = output.wire.get(output.sent..).unwrap_or_default();
            if until == Until::Room && output.open.is_empty() {
                return Poll::Ready(Ok(()));
            }
            if !wire.is_empty() {
                let n = ready!(Pin::new(&mut self.socket).poll_write(cx, wire))?;
                if n == 0 {
                    return Poll::Ready(Err(ErrorKind::WriteZero.into()));
                }
                output.sent += n;
            } else if !output.next_frame(until) {
                return Poll::Ready(Ok(()));
            }
        }
    }

    /// The same for the owner of the stream.
    fn poll_send_for_owner(&mut self, cx: &mut Context<'_>, until: Until) -> Poll<Result<()>> {
        let outcome = self.poll_send(cx, until);
        self.output.owner_waits = outcome.is_pending();
        outcome
    }
}

impl Output {
    /// Puts the next frame on its way; `false`: there is none. What was on its way must have left.
    fn next_frame(&mut self, until: Until) -> bool {
        self.sent = 0;
        self.wire = if let Some(ping) = self.ping.take() {
            frame::pong(&ping)
        } else if until != Until::Controls && !self.open.is_empty() {
            let mut frame = std::mem::take(&mut self.open);
            self.sent = frame::seal_binary(&mut frame);
            frame
        } else if self.open.is_empty() {
            self.close.take().unwrap_or_default()
        } else {
            Vec::new()
        };
        !self.wire.is_empty()
    }

    /// Nothing but `frame` is sent after what is on its way.
    fn end(&mut self, frame: Vec<u8>) {
        self.open = Vec::new();
        if !self.closed {
            self.close = Some(frame);
        }
        self.closed = true;
    }

    /// Takes what fits the open frame.
    fn take(&mut self, bytes: &[u8]) -> usize {
        let payload_len = self.open.len().saturating_sub(frame::SENT_HEAD_LEN);
        let n = bytes.len().min(frame::SENT_LEN_MAX - payload_len);
        if n > 0 {
            if self.open.is_empty() {
                self.open.reserve(frame::SENT_HEAD_LEN + n);
                self.open.extend([0; frame::SENT_HEAD_LEN]);
            }
            self.open.extend(bytes.iter().take(n));
        }
        n
    }
}

fn network_order(code: u16) -> [u8; 2] {
    let [low, high] = code.to_le_bytes();
    [high, low]
}

fn cut() -> Error {
    let message = "the connection ended without a close frame";
    Error::new(ErrorKind::UnexpectedEof, message)
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> futures_util::io::AsyncRead
    for MessageStream<S>
{
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<Result<usize>> {
        let this = self.get_mut();
        if buffer.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let outcome = this.poll_payload(cx, buffer);
        let output = &this.output;
        let waiting = output.ping.is_some() || output.close.is_some() || !output.wire.is_empty();
        if waiting && !output.owner_waits {
            let sent = this.poll_send(cx, Until::Controls);
            // Where there is something to read, whoever writes next will hear of it.
            if let (Poll::Pending, Poll::Ready(Err(error))) = (&outcome, sent) {
                return Poll::Ready(Err(error));
            }
        }
        outcome
    }
}

impl<S: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin> futures_util::io::AsyncWrite
    for MessageStream<S>
{
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        loop {
            if this.output.closed {
                return Poll::Ready(Err(ErrorKind::BrokenPipe.into()));
            }
            let n = this.output.take(bytes);
            if n > 0 || bytes.is_empty() {
                return Poll::Ready(Ok(n));
            }
            ready!(this.poll_send_for_owner(cx, Until::Room))?;
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        ready!(this.poll_send_for_owner(cx, Until::Sent))?;
        Pin::new(&mut this.socket).poll_flush(cx)
    }

    fn poll_close(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if !this.output.closed {
            this.output.closed = true;
            let code = network_order(CLOSE_NORMAL);
            this.output.close = Some(frame::close_frame(Some(code)));
        }
        ready!(this.poll_send_for_owner(cx, Until::Sent))?;
        Pin::new(&mut this.socket).poll_shutdown(cx)
    }
}

#[cfg(test)]
impl<S> MessageStream<S> {
    /// Bytes that its buffers take.
    pub(super) fn buffered(&self) -> usize {
        let Output { wire, open, .. } = &self.output;
        self.input.capacity() + wire.capacity() + open.capacity()
    }
}
