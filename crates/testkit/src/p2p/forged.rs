//! Handshakes that no libp2p would make.
//!
//! In       a server's socket; what is said where a peer proves who it is.
//! Out      the connection, when all is said.
//! Not here what the server makes of it.
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/noise/README.md>

use std::io;
use std::net::SocketAddr;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::craft;

const PATTERN: &str = "Noise_XX_25519_ChaChaPoly_SHA256";
/// Both lines, each with its length before it and its end.
const GREETING: &[u8] = b"\x13/multistream/1.0.0\n\x07/noise\n";
/// A message of noise, in bytes.
const MESSAGE_LEN_MAX: usize = 65_535;

/// The payload by which a peer proves who it is: a key of a type, and a signature.
#[must_use]
pub fn identity(key_type: u64, key: &[u8], signature: &[u8]) -> Vec<u8> {
    let key = [craft::number_field(1, key_type), craft::bytes_field(2, key)];
    let payload = [
        craft::bytes_field(1, &key.concat()),
        craft::bytes_field(2, signature),
    ];
    payload.concat()
}

/// Goes through a handshake of noise over TCP, with `payload` in its last message.
///
/// # Errors
/// The server ends it before; the payload does not fit a message.
pub async fn noise(server: SocketAddr, payload: &[u8]) -> io::Result<TcpStream> {
    let pattern = PATTERN.parse().map_err(io::Error::other)?;
    let builder = snow::Builder::new(pattern);
    let key = builder.generate_keypair().map_err(io::Error::other)?;
    let builder = builder.local_private_key(&key.private);
    let builder = builder.map_err(io::Error::other)?;
    let mut state = builder.build_initiator().map_err(io::Error::other)?;
    let mut stream = TcpStream::connect(server).await?;
    stream.write_all(GREETING).await?;
    let mut answer = vec![0; GREETING.len()];
    stream.read_exact(&mut answer).await?;
    send(&mut stream, &mut state, &[]).await?;
    let len = stream.read_u16().await?;
    let mut message = vec![0; len.into()];
    stream.read_exact(&mut message).await?;
    let mut read = vec![0; MESSAGE_LEN_MAX];
    let read = state.read_message(&message, &mut read);
    read.map_err(io::Error::other)?;
    send(&mut stream, &mut state, payload).await?;
    Ok(stream)
}

async fn send(
    stream: &mut TcpStream,
    state: &mut snow::HandshakeState,
    payload: &[u8],
) -> io::Result<()> {
    let mut message = vec![0; MESSAGE_LEN_MAX];
    let len = state.write_message(payload, &mut message);
    message.truncate(len.map_err(io::Error::other)?);
    let len = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_u16(len).await?;
    stream.write_all(&message).await
}
