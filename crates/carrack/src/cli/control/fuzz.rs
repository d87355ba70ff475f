//! Frames of a client, and the request in one: read as they come, never longer than they may be.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use super::{FRAME_LEN_MAX, REQUEST, Request, read_frame};

/// Frames lie one behind the other; a request that is read is written as it was.
pub fn control(bytes: &[u8]) {
    let mut rest = bytes;
    loop {
        let before = rest.len();
        let Ok((kind, frame)) = read_frame(&mut rest, FRAME_LEN_MAX) else {
            break;
        };
        assert!(frame.len() <= FRAME_LEN_MAX);
        assert_eq!(before - rest.len(), 5 + frame.len());
        if kind == REQUEST {
            request(&frame);
        }
    }
    request(bytes);
}

fn request(bytes: &[u8]) {
    let Ok(request) = serde_json::from_slice::<Request>(bytes) else {
        return;
    };
    let written = serde_json::to_vec(&request).unwrap();
    let again: Request = serde_json::from_slice(&written).unwrap();
    assert_eq!(again.args, request.args);
    assert_eq!(
        (again.directory, again.terminal),
        (request.directory, request.terminal)
    );
}
