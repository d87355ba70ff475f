//! WebSocket on the HTTP port: an upgraded connection leaves HTTP and becomes a stream of bytes.
//!
//! In       requests for [`PATH`], or for `/` with `Upgrade: websocket`, over HTTP/1.1.
//! Out      101 and an [`Arrival`] in a bounded queue; or a refusal that says what is missing.
//! Limits   the queue's length, beyond it 503; [`UPGRADE_TIMEOUT`] from the arrival to the stream.
//! Not here frames (`frame`, `stream`), and what is spoken over them. Every origin may come: peers
//!          prove who they are by a handshake of their own, and no cookie means anything here.
//!
//! No task waits for an upgrade: whoever takes the arrival polls it.
//!
//! Spec: <https://www.rfc-editor.org/rfc/rfc6455#section-4.2>

pub mod frame;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub mod stream;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use carrack_bitswap::driver::arrivals::Arrival;
use carrack_bitswap::stream::ByteStream;
use http::header::{
    CONNECTION, HeaderMap, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{Method, Request, StatusCode, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use hyper_util::server::conn::auto::upgrade::downcast;
use multibase::Base;
use sha1::{Digest, Sha1};
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;

use self::stream::MessageStream;
use super::io::Socket;
use super::refusal::Refusal;
use super::service::{Answer, Service};

/// The resource that is nothing but a WebSocket: for a proxy's rules, and for people who look.
/// Peers do not ask for it: a multiaddr that ends in `/ws` names no path, and they take `/`.
pub const PATH: &str = "/ws";
/// From the arrival's first poll to the stream: the answer has to reach the client.
pub const UPGRADE_TIMEOUT: Duration = Duration::from_secs(10);
/// Arrivals that wait for the driver, which takes them at once unless it is overwhelmed.
pub const QUEUE_LEN: usize = 64;
/// The one version there is.
const VERSION: HeaderValue = HeaderValue::from_static("13");
/// What the answer to a key is made with.
const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
/// Bytes of a key.
const KEY_LEN: usize = 16;

/// Where connections leave HTTP. Clones lead to the same queue.
#[derive(Debug, Clone)]
pub struct Door {
    queue: mpsc::Sender<Arrival>,
}

/// A door, and the queue of those who came through it: at most `capacity` wait.
#[must_use]
pub fn door(capacity: usize) -> (Door, mpsc::Receiver<Arrival>) {
    let (queue, arrivals) = mpsc::channel(capacity);
    (Door { queue }, arrivals)
}

impl Door {
    /// Whether a request is for this door rather than for the gateway.
    pub(crate) fn is_for<T>(request: &Request<T>) -> bool {
        let path = request.uri().path();
        let named =
            path == PATH || (path == "/" && has_token(request.headers(), &UPGRADE, "websocket"));
        named && request.method() == Method::GET
    }

    /// Answers a request that is for this door.
    pub(crate) fn answer(
        &self,
        request: &mut Request<Incoming>,
        remote: SocketAddr,
        service: &impl Service,
    ) -> Answer {
        match self.admit(request, remote) {
            Ok(fields) => Answer::new(StatusCode::SWITCHING_PROTOCOLS, fields, Bytes::new()),
            Err(refused) => refused.answer(service),
        }
    }

    /// Lets `request` of `remote` in: the answer is 101 with these headers. The arrival is in the
    /// queue then, and its stream comes when the connection has sent the answer.
    fn admit(
        &self,
        request: &mut Request<Incoming>,
        remote: SocketAddr,
    ) -> Result<HeaderMap, Refused> {
        if !request.body().is_end_stream() {
            return Err(Refused::new(
                StatusCode::BAD_REQUEST,
                "this request must have no body",
            ));
        }
        let accepted = handshake(request)?;
        let on_upgrade = hyper::upgrade::on(request);
        let arrival = Arrival {
            remote,
            stream: Box::pin(upgraded(on_upgrade, UPGRADE_TIMEOUT)),
        };
        self.queue.try_send(arrival).map_err(|error| {
            let sentence = match error {
                TrySendError::Full(_) => "too many peers come at once",
                TrySendError::Closed(_) => "this node takes no more peers: it stops",
            };
            let mut refused = Refused::new(StatusCode::SERVICE_UNAVAILABLE, sentence);
            refused.refusal.retry = true;
            refused
        })?;
        Ok(accepted)
    }
}

/// A refusal, and what of a handshake goes with it.
#[derive(Debug)]
struct Refused {
    refusal: Refusal,
    told: Told,
}

/// What the client is told to ask with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Nothing,
    Upgrade,
    Version,
}

impl Refused {
    fn new(status: StatusCode, sentence: &'static str) -> Self {
        Self {
            refusal: Refusal::new(status, sentence),
            told: Told::Nothing,
        }
    }

    fn upgrade(told: Told, sentence: &'static str) -> Self {
        Self {
            refusal: Refusal::new(StatusCode::UPGRADE_REQUIRED, sentence),
            told,
        }
    }

    fn answer(&self, service: &impl Service) -> Answer {
        let mut answer = service.refuse(&self.refusal);
        if self.told != Told::Nothing {
            answer.headers.extend(upgrade_fields());
        }
        if self.told == Told::Version {
            answer.headers.insert(SEC_WEBSOCKET_VERSION, VERSION);
        }
        answer
    }
}

/// Looks at the opening handshake of a client, and answers it.
fn handshake<T>(request: &Request<T>) -> Result<HeaderMap, Refused> {
    let fields = request.headers();
    if request.version() != Version::HTTP_11 {
        let sentence = "a WebSocket is opened over HTTP/1.1";
        return Err(Refused::new(StatusCode::BAD_REQUEST, sentence));
    }
    if !has_token(fields, &UPGRADE, "websocket") || !has_token(fields, &CONNECTION, "upgrade") {
        let sentence = "this is a WebSocket: ask with Upgrade: websocket and Connection: upgrade";
        return Err(Refused::upgrade(Told::Upgrade, sentence));
    }
    if only(fields, &SEC_WEBSOCKET_VERSION) != Some(&VERSION) {
        let sentence = "this is a WebSocket of version 13: ask with Sec-WebSocket-Version: 13";
        return Err(Refused::upgrade(Told::Version, sentence));
    }
    let accept = only(fields, &SEC_WEBSOCKET_KEY).and_then(accept_value);
    let Some(accept) = accept else {
        let sentence = "Sec-WebSocket-Key must be 16 bytes in base64";
        return Err(Refused::new(StatusCode::BAD_REQUEST, sentence));
    };
    let mut answer = upgrade_fields();
    answer.insert(SEC_WEBSOCKET_ACCEPT, accept);
    Ok(answer)
}

fn upgrade_fields() -> HeaderMap {
    let mut fields = HeaderMap::with_capacity(4);
    fields.insert(UPGRADE, HeaderValue::from_static("websocket"));
    fields.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    fields
}

/// Whether a list of tokens, over however many fields, holds `token`.
fn has_token(fields: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    fields.get_all(name).iter().any(|value| {
        let tokens = value.as_bytes().split(|byte| *byte == b',');
        tokens
            .map(<[u8]>::trim_ascii)
            .any(|one| one.eq_ignore_ascii_case(token.as_bytes()))
    })
}

/// The value of a field that comes once.
fn only<'a>(fields: &'a HeaderMap, name: &HeaderName) -> Option<&'a HeaderValue> {
    let mut values = fields.get_all(name).iter();
    values.next().filter(|_| values.next().is_none())
}

/// What proves that this end has seen `key`.
fn accept_value(key: &HeaderValue) -> Option<HeaderValue> {
    let key = key.to_str().ok()?.trim_ascii();
    let decoded = Base::Base64Pad.decode(key).ok()?;
    if decoded.len() != KEY_LEN {
        return None;
    }
    let digest = Sha1::new().chain_update(key).chain_update(GUID).finalize();
    HeaderValue::from_maybe_shared(Bytes::from(Base::Base64Pad.encode(digest))).ok()
}

/// The stream, once HTTP has let go of the connection.
async fn upgraded(
    on_upgrade: impl Future<Output = hyper::Result<Upgraded>>,
    limit: Duration,
) -> io::Result<ByteStream> {
    let upgraded = tokio::time::timeout(limit, on_upgrade).await?;
    let upgraded = upgraded.map_err(io::Error::other)?;
    let parts = downcast::<TokioIo<Socket>>(upgraded)
        .map_err(|_| io::Error::other("an upgraded connection is no socket of the listener"))?;
    let socket = parts.io.into_inner().into_stream();
    Ok(Box::new(MessageStream::new(
        socket,
        parts.read_buf.to_vec(),
    )))
}

#[cfg(test)]
mod tests;
