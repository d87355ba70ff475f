//! What the fuzz target does with the bytes of a client that has a WebSocket.

use super::frame::{Decoder, Event, FRAME_LEN_MAX, FrameError};

/// Everything that a decoder makes of an input.
#[derive(Debug, Default, PartialEq, Eq)]
struct Told {
    data: Vec<u8>,
    pings: Vec<Vec<u8>>,
    close: Option<Option<[u8; 2]>>,
    error: Option<FrameError>,
}

/// Whatever a client sends, and however it comes in pieces, means the same; and no more comes out
/// than went in.
pub fn websocket(bytes: &[u8]) {
    let (sizes, frames) = bytes.split_at(bytes.len().min(4));
    let whole = told(frames, &[usize::MAX], &[1 << 16]);
    assert!(whole.data.len() <= frames.len());
    assert!(whole.data.len() as u64 <= FRAME_LEN_MAX * frames.len() as u64);
    let pieces: Vec<usize> = sizes.iter().map(|size| usize::from(*size) + 1).collect();
    if !pieces.is_empty() {
        assert_eq!(told(frames, &pieces, &[7, 1, 300]), whole);
    }
    assert_eq!(told(frames, &[1], &[1]), whole);
}

/// Decodes with input in pieces of `sizes`, and output in pieces of `rooms`, in turns.
fn told(mut frames: &[u8], sizes: &[usize], rooms: &[usize]) -> Told {
    let mut decoder = Decoder::default();
    let mut told = Told::default();
    let mut rooms = rooms.iter().cycle();
    for size in sizes.iter().cycle() {
        let (mut piece, rest) = frames.split_at(frames.len().min(*size));
        frames = rest;
        loop {
            let mut room = vec![0; rooms.next().copied().unwrap_or(1)];
            match decoder.advance(&mut piece, &mut room) {
                Ok(Event::NeedInput) => break,
                Ok(Event::Data(n)) => told.data.extend(room.iter().take(n)),
                Ok(Event::Ping(payload)) => told.pings.push(payload.bytes().to_vec()),
                Ok(Event::Close(code)) => {
                    told.close = Some(code);
                    return told;
                }
                Err(error) => {
                    told.error = Some(error);
                    return told;
                }
            }
        }
        assert!(piece.is_empty(), "input was left without a reason");
        if frames.is_empty() {
            break;
        }
    }
    told
}
