//! Handshakes that no libp2p would make.
//!
//! In       a server's socket; what is said where a peer proves who it is.
//! Out      the connection, when all is said; over TLS, its end.
//! Not here what the server makes of it.
//!
//! Spec: <https://github.com/libp2p/specs/blob/master/noise/README.md>,
//! <https://github.com/libp2p/specs/blob/master/tls/tls.md>

use std::io;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use libp2p::identity::Keypair;
use libp2p::tls;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::rustls::client::ResolvesClientCert;
use quinn::rustls::crypto::aws_lc_rs::sign::any_ecdsa_type;
use quinn::rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use quinn::rustls::sign::CertifiedKey;
use quinn::rustls::{ClientConfig, ClientConnection, SignatureScheme};
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

/// Where a certificate has the identity of its peer.
const IDENTITY_OID: &[u64] = &[1, 3, 6, 1, 4, 1, 53594, 1, 1];
/// As [`GREETING`], for TLS.
const TLS_GREETING: &[u8] = b"\x13/multistream/1.0.0\n\x0b/tls/1.0.0\n";

/// What a certificate says of its peer: a key as it is in a payload of noise, and a signature.
#[must_use]
pub fn signed_key(key_type: u64, key: &[u8], signature: &[u8]) -> Vec<u8> {
    let key = [craft::number_field(1, key_type), craft::bytes_field(2, key)].concat();
    der(0x30, &[der(4, &key), der(4, signature)].concat())
}

/// A value of DER: a tag, a length of four bytes and what is that long.
#[expect(clippy::big_endian_bytes, reason = "the order of bytes in DER")]
fn der(tag: u8, value: &[u8]) -> Vec<u8> {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    [&[tag, 0x84], &len.to_be_bytes()[..], value].concat()
}

/// TLS of a peer whose certificate, `n` times over, says `identity`.
///
/// # Errors
/// There is no such certificate.
pub fn tls(identity: Vec<u8>, n: usize) -> io::Result<ClientConfig> {
    let key = rcgen::KeyPair::generate().map_err(io::Error::other)?;
    let mut params = rcgen::CertificateParams::default();
    let identity = rcgen::CustomExtension::from_oid_content(IDENTITY_OID, identity);
    params.custom_extensions.push(identity);
    let certificate = params.self_signed(&key).map_err(io::Error::other)?;
    let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let key = any_ecdsa_type(&key).map_err(io::Error::other)?;
    let chain = vec![certificate.der().clone(); n];
    let own = Keypair::generate_ed25519();
    let mut config = tls::make_client_config(&own, None).map_err(io::Error::other)?;
    config.client_auth_cert_resolver = Arc::new(Chain(Arc::new(CertifiedKey::new(chain, key))));
    Ok(config)
}

#[derive(Debug)]
struct Chain(Arc<CertifiedKey>);

impl ResolvesClientCert for Chain {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Waits for the end of a handshake over QUIC, or of the connection that it looked like.
///
/// # Errors
/// The connection cannot be begun.
pub async fn end_over_quic(server: SocketAddr, tls: ClientConfig) -> io::Result<()> {
    let tls = QuicClientConfig::try_from(tls).map_err(io::Error::other)?;
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let endpoint = quinn::Endpoint::client((Ipv4Addr::LOCALHOST, 0).into())?;
    let connecting = endpoint.connect_with(config, server, "l");
    if let Ok(connection) = connecting.map_err(io::Error::other)?.await {
        connection.closed().await;
    }
    Ok(())
}

/// The same over TCP. Blocks.
///
/// # Errors
/// The connection cannot be begun; it does not end within `patience`.
pub fn end_over_tcp(server: SocketAddr, tls: ClientConfig, patience: Duration) -> io::Result<()> {
    let mut stream = std::net::TcpStream::connect(server)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(TLS_GREETING)?;
    stream.read_exact(&mut vec![0; TLS_GREETING.len()])?;
    let name = "l".try_into().map_err(io::Error::other)?;
    let tls = ClientConnection::new(Arc::new(tls), name).map_err(io::Error::other)?;
    let mut stream = quinn::rustls::StreamOwned::new(tls, stream);
    match stream.read_to_end(&mut Vec::new()) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(()),
    }
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
