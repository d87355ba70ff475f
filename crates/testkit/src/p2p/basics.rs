//! What a server asks each peer: who are you, and are you there.
//!
//! In       a stream of identify or ping.
//! Out      our key, our agent and the protocols we take; the bytes of a ping, given back.
//! Limits   a ping stream is served until its end.
//!
//! Spec: <https://github.com/libp2p/specs/tree/master/identify>, `…/ping`

use std::io;

use futures_util::io::{AsyncReadExt, AsyncWriteExt};
use libp2p::identity::Keypair;

use super::{Stream, craft};

pub(super) const IDENTIFY: &str = "/ipfs/id/1.0.0";
pub(super) const PING: &str = "/ipfs/ping/1.0.0";
/// Bytes of one ping.
const PING_LEN: usize = 32;

/// The message of identify, with its length.
pub(super) fn identify_frame(identity: &Keypair, protocols: &[String]) -> Vec<u8> {
    let mut message = craft::bytes_field(1, &identity.public().encode_protobuf());
    for protocol in protocols {
        message.extend(craft::bytes_field(3, protocol.as_bytes()));
    }
    message.extend(craft::bytes_field(5, b"ipfs/0.1.0"));
    message.extend(craft::bytes_field(6, b"carrack-testkit"));
    craft::frame(&message)
}

pub(super) async fn answer_identify(mut stream: Stream, frame: &[u8]) -> io::Result<()> {
    stream.send(frame).await?;
    stream.finish().await
}

pub(super) async fn answer_pings(mut stream: Stream) -> io::Result<()> {
    let mut ping = [0; PING_LEN];
    while stream.read_exact(&mut ping).await.is_ok() {
        stream.write_all(&ping).await?;
        stream.flush().await?;
    }
    stream.finish().await
}
