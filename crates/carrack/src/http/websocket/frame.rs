//! Frames of the WebSocket protocol, as a server reads and writes them.
//!
//! In       bytes of a client, in pieces of any length; buffers to be filled.
//! Out      the payload of binary messages, as it comes: nothing waits for the end of a frame, so
//!          that nothing is allocated, whatever length a frame claims.
//! Limits   [`FRAME_LEN_MAX`] for frames and for messages, [`IDLE_FRAMES_MAX`] frames in a row that
//!          bring no byte.
//! Not here sockets, and what is answered to pings (`stream`); extensions: none are offered.
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc6455#section-5>

/// Bytes of one frame, and of one message. Peers send what fits a frame of noise, 64 KiB; whoever
/// says more means harm.
pub const FRAME_LEN_MAX: u64 = 1 << 20;
/// Frames in a row without a byte for the reader: empty ones, pings and pongs. One ping each 30 s
/// takes three days to get there.
pub const IDLE_FRAMES_MAX: u32 = 10_000;
/// Payload of a control frame.
const CONTROL_LEN_MAX: usize = 125;
/// Head of the longest kind: 2 bytes, 8 of length, 4 of mask.
const HEAD_LEN_MAX: usize = 14;
/// Most of a payload that is sent in one frame: with its head, 64 KiB.
pub const SENT_LEN_MAX: usize = 64 * 1024 - SENT_HEAD_LEN;
/// Room for the head of a frame that is sent.
pub const SENT_HEAD_LEN: usize = 4;

/// Why a client is not listened to any longer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No extension was agreed upon.
    #[error("a frame has reserved bits set")]
    ReservedBits,
    /// Opcodes that mean nothing yet.
    #[error("a frame has the reserved opcode {0}")]
    ReservedOpcode(u8),
    /// Clients must mask what they send.
    #[error("a frame is not masked")]
    Unmasked,
    /// A length that a shorter form would hold, or with its highest bit set.
    #[error("the length of a frame is not in its shortest form")]
    LongForm,
    /// Before any of it is read.
    #[error("a message claims {0} bytes, limit is {FRAME_LEN_MAX}")]
    TooLong(u64),
    /// Control frames are whole and short.
    #[error("a control frame is longer than {CONTROL_LEN_MAX} bytes, or in fragments")]
    BadControl,
    /// libp2p speaks in bytes.
    #[error("a message is text: only binary ones are taken")]
    Text,
    /// A continuation without a beginning, or a beginning without an end.
    #[error("the fragments of messages do not follow each other")]
    Fragments,
    /// A close frame with half a code.
    #[error("a close frame has a payload of one byte")]
    BadClose,
    /// Frames without content cost this end more than the other.
    #[error("{IDLE_FRAMES_MAX} frames in a row bring no byte")]
    Idle,
}

impl FrameError {
    /// What a close frame says about it.
    #[must_use]
    pub const fn close_code(self) -> u16 {
        match self {
            Self::Text => 1003,
            Self::TooLong(_) => 1009,
            Self::Idle => 1008,
            _ => 1002,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Opcode {
    Continuation,
    Text,
    Binary,
    Close,
    Ping,
    Pong,
}

/// The payload of a control frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Control {
    bytes: [u8; CONTROL_LEN_MAX],
    len: u8,
}

impl Control {
    const EMPTY: Self = Self {
        bytes: [0; CONTROL_LEN_MAX],
        len: 0,
    };

    /// The payload.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        self.bytes.get(..usize::from(self.len)).unwrap_or_default()
    }

    fn push(&mut self, byte: u8) {
        if let Some(place) = self.bytes.get_mut(usize::from(self.len)) {
            *place = byte;
            self.len += 1;
        }
    }
}

/// What a piece of input brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The input is used up.
    NeedInput,
    /// So many bytes, at least one, are in the output.
    Data(usize),
    /// Asks for a pong with the same payload.
    Ping(Control),
    /// The client says no more; with its code, if it gave one.
    Close(Option<[u8; 2]>),
}

/// The head of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    fin: bool,
    opcode: Opcode,
    len: u64,
    mask: [u8; 4],
}

/// Where in a frame the input stands.
#[derive(Debug)]
enum Place {
    /// In a head, of which some bytes are here.
    Head { bytes: [u8; HEAD_LEN_MAX], len: u8 },
    /// In the payload of a frame of a message.
    Data {
        left: u64,
        key: Key,
        /// The message goes on after this frame.
        more: bool,
    },
    /// In the payload of a control frame.
    Control {
        opcode: Opcode,
        left: u8,
        key: Key,
        payload: Control,
    },
}

impl Place {
    const START: Self = Self::Head {
        bytes: [0; HEAD_LEN_MAX],
        len: 0,
    };
}

/// Reads the frames of a client. After an error or a close it is not to be asked again.
#[derive(Debug)]
pub struct Decoder {
    place: Place,
    /// Bytes of the message whose fragments come, with those that the present frame claims.
    message_len: Option<u64>,
    idle_frames: u32,
}

impl Default for Decoder {
    fn default() -> Self {
        Self {
            place: Place::START,
            message_len: None,
            idle_frames: 0,
        }
    }
}

impl Decoder {
    /// Goes on with `input`, which is moved past what was used, until something happens. Stops
    /// before payload for which `output` has no room; that must not be empty.
    ///
    /// # Errors
    /// The client broke the rules, or tries this end's patience.
    pub fn advance(&mut self, input: &mut &[u8], output: &mut [u8]) -> Result<Event, FrameError> {
        debug_assert!(!output.is_empty());
        loop {
            match &mut self.place {
                Place::Head { bytes, len } => {
                    let Some(head) = fill_head(bytes, len, input)? else {
                        return Ok(Event::NeedInput);
                    };
                    self.begin(head)?;
                }
                Place::Data { left: 0, more, .. } => {
                    if !*more {
                        self.message_len = None;
                    }
                    self.place = Place::START;
                }
                Place::Data { left, .. } => {
                    let left = usize::try_from(*left).unwrap_or(usize::MAX);
                    let n = left.min(input.len()).min(output.len());
                    let (Some((from, rest)), Some(to)) =
                        (input.split_at_checked(n), output.get_mut(..n))
                    else {
                        return Ok(Event::NeedInput);
                    };
                    if n == 0 {
                        return Ok(Event::NeedInput);
                    }
                    to.copy_from_slice(from);
                    *input = rest;
                    self.took(to);
                    return Ok(Event::Data(n));
                }
                Place::Control {
                    opcode,
                    left,
                    key,
                    payload,
                } => {
                    while *left > 0 {
                        let Some((byte, rest)) = input.split_first() else {
                            return Ok(Event::NeedInput);
                        };
                        *input = rest;
                        *left -= 1;
                        let mut byte = [*byte];
                        key.apply(&mut byte);
                        payload.push(byte[0]);
                    }
                    let (opcode, payload) = (*opcode, *payload);
                    self.place = Place::START;
                    match opcode {
                        Opcode::Ping => return Ok(Event::Ping(payload)),
                        Opcode::Close => return close(&payload),
                        _ => {}
                    }
                }
            }
        }
    }

    /// Bytes of payload that come next, with no head before them: they may be read straight into
    /// where they belong.
    #[must_use]
    pub const fn straight_len(&self) -> u64 {
        match self.place {
            Place::Data { left, .. } => left,
            _ => 0,
        }
    }

    /// `bytes`, at most [`Self::straight_len`], were read straight to where they belong.
    pub fn took(&mut self, bytes: &mut [u8]) {
        let Place::Data { left, key, .. } = &mut self.place else {
            debug_assert!(bytes.is_empty());
            return;
        };
        debug_assert!(bytes.len() as u64 <= *left);
        key.apply(bytes);
        *left = left.saturating_sub(bytes.len() as u64);
        if !bytes.is_empty() {
            self.idle_frames = 0;
        }
    }

    /// A head is complete.
    fn begin(&mut self, head: Head) -> Result<(), FrameError> {
        self.idle_frames += 1;
        if self.idle_frames > IDLE_FRAMES_MAX {
            return Err(FrameError::Idle);
        }
        let key = Key::new(head.mask);
        if matches!(head.opcode, Opcode::Close | Opcode::Ping | Opcode::Pong) {
            let left = u8::try_from(head.len).ok();
            let left = left.filter(|len| head.fin && usize::from(*len) <= CONTROL_LEN_MAX);
            self.place = Place::Control {
                opcode: head.opcode,
                left: left.ok_or(FrameError::BadControl)?,
                key,
                payload: Control::EMPTY,
            };
            return Ok(());
        }
        let before = match (head.opcode, self.message_len) {
            (Opcode::Continuation, Some(len)) => len,
            (Opcode::Binary, None) => 0,
            (Opcode::Text, None) => return Err(FrameError::Text),
            _ => return Err(FrameError::Fragments),
        };
        let message_len = before.saturating_add(head.len);
        if message_len > FRAME_LEN_MAX {
            return Err(FrameError::TooLong(message_len));
        }
        self.message_len = Some(message_len);
        self.place = Place::Data {
            left: head.len,
            key,
            more: !head.fin,
        };
        Ok(())
    }
}

fn close(payload: &Control) -> Result<Event, FrameError> {
    match payload.bytes() {
        [] => Ok(Event::Close(None)),
        [_] => Err(FrameError::BadClose),
        [high, low, ..] => Ok(Event::Close(Some([*high, *low]))),
    }
}

/// Adds input to a head until it is complete; `None`: the input did not suffice. What is wrong is
/// found at the first byte that shows it.
fn fill_head(
    bytes: &mut [u8; HEAD_LEN_MAX],
    len: &mut u8,
    input: &mut &[u8],
) -> Result<Option<Head>, FrameError> {
    loop {
        let here = bytes.get(..usize::from(*len)).unwrap_or_default();
        if let Some(head) = parse_head(here)? {
            return Ok(Some(head));
        }
        let Some((byte, rest)) = input.split_first() else {
            return Ok(None);
        };
        let Some(place) = bytes.get_mut(usize::from(*len)) else {
            return Ok(None); // A head of 14 bytes is complete.
        };
        *place = *byte;
        *len += 1;
        *input = rest;
    }
}

/// A head, if `bytes` hold all of it.
fn parse_head(bytes: &[u8]) -> Result<Option<Head>, FrameError> {
    let Some((&first, bytes)) = bytes.split_first() else {
        return Ok(None);
    };
    if first & 0x70 != 0 {
        return Err(FrameError::ReservedBits);
    }
    let opcode = match first & 0x0f {
        0 => Opcode::Continuation,
        1 => Opcode::Text,
        2 => Opcode::Binary,
        8 => Opcode::Close,
        9 => Opcode::Ping,
        10 => Opcode::Pong,
        reserved => return Err(FrameError::ReservedOpcode(reserved)),
    };
    let Some((&second, bytes)) = bytes.split_first() else {
        return Ok(None);
    };
    if second & 0x80 == 0 {
        return Err(FrameError::Unmasked);
    }
    let (len, bytes) = match (second & 0x7f, bytes) {
        (126, [a, b, rest @ ..]) => (network_order(&[*a, *b], 126)?, rest),
        (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
            let bytes = [*a, *b, *c, *d, *e, *f, *g, *h];
            (network_order(&bytes, 1 << 16)?, rest)
        }
        (126 | 127, _) => return Ok(None),
        (len, rest) => (u64::from(len), rest),
    };
    if len > FRAME_LEN_MAX {
        return Err(FrameError::TooLong(len));
    }
    let Some(mask) = bytes.first_chunk() else {
        return Ok(None);
    };
    Ok(Some(Head {
        fin: first & 0x80 != 0,
        opcode,
        len,
        mask: *mask,
    }))
}

/// A length of at least `min`, its highest byte first.
fn network_order(bytes: &[u8], min: u64) -> Result<u64, FrameError> {
    let len = bytes
        .iter()
        .fold(0, |len: u64, byte| (len << 8) | u64::from(*byte));
    match len >> 63 == 0 && len >= min {
        true => Ok(len),
        false => Err(FrameError::LongForm),
    }
}

/// The mask of a frame, from where its payload stands.
#[derive(Debug, Clone, Copy)]
struct Key {
    mask: [u8; 4],
}

/// Bytes that are unmasked at once: a vector register of most machines, or two.
const STRIDE: usize = 32;

impl Key {
    const fn new(mask: [u8; 4]) -> Self {
        Self { mask }
    }

    /// Unmasks the next bytes of the payload.
    fn apply(&mut self, bytes: &mut [u8]) {
        let [a, b, c, d] = self.mask;
        let mut wide = [0; STRIDE];
        for place in wide.as_chunks_mut().0 {
            *place = [a, b, c, d];
        }
        let (strides, rest) = bytes.as_chunks_mut::<STRIDE>();
        for stride in strides {
            for (byte, key) in stride.iter_mut().zip(wide) {
                *byte ^= key;
            }
        }
        for (byte, key) in rest.iter_mut().zip(wide) {
            *byte ^= key;
        }
        self.mask.rotate_left(rest.len() % 4);
    }
}

/// Writes the head of a binary frame before its payload, for which `frame` leaves
/// [`SENT_HEAD_LEN`] bytes. The frame begins where the answer says.
#[must_use]
pub fn seal_binary(frame: &mut [u8]) -> usize {
    let len = frame.len().saturating_sub(SENT_HEAD_LEN);
    debug_assert!(len <= SENT_LEN_MAX);
    let Some(head) = frame.first_chunk_mut::<SENT_HEAD_LEN>() else {
        return 0;
    };
    match (u8::try_from(len), u16::try_from(len)) {
        (Ok(short), _) if usize::from(short) <= CONTROL_LEN_MAX => {
            *head = [0, 0, 0x82, short];
            2
        }
        (_, Ok(long)) => {
            let low = u8::try_from(long & 0xff).unwrap_or_default();
            *head = [0x82, 126, u8::try_from(long >> 8).unwrap_or_default(), low];
            0
        }
        _ => 0,
    }
}

/// A control frame of this end.
fn control(opcode: u8, payload: &[u8]) -> Vec<u8> {
    let payload = payload.get(..CONTROL_LEN_MAX).unwrap_or(payload);
    let len = u8::try_from(payload.len()).unwrap_or_default();
    let mut frame = Vec::with_capacity(2 + payload.len());
    frame.extend([0x80 | opcode, len]);
    frame.extend(payload);
    frame
}

/// The answer to a ping.
#[must_use]
pub fn pong(ping: &Control) -> Vec<u8> {
    control(10, ping.bytes())
}

/// A close frame, with a code or without.
#[must_use]
pub fn close_frame(code: Option<[u8; 2]>) -> Vec<u8> {
    control(8, code.as_ref().map_or(&[], |code| code.as_slice()))
}
