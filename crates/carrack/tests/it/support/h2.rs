//! HTTP/2 from any address of this machine, with any window.
//!
//! In       where to, where from, a path.
//! Out      answers as they come.
//! Not here HTTP/1 (`http`), attacks (`floods`).

use std::net::{IpAddr, SocketAddr};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use http::{Method, Request, StatusCode};
use tokio::net::{TcpSocket, TcpStream};

/// Where a server listens.
pub(crate) fn socket_of_url(url: &str) -> SocketAddr {
    url.strip_prefix("http://").unwrap().parse().unwrap()
}

pub(crate) async fn connect(to: SocketAddr, from: IpAddr) -> std::io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.bind(SocketAddr::new(from, 0))?;
    socket.connect(to).await
}

/// A connection whose streams take `window` bytes before they are read.
pub(crate) async fn client(
    to: SocketAddr,
    from: IpAddr,
    window: u32,
) -> Option<SendRequest<Bytes>> {
    let stream = connect(to, from).await.ok()?;
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(window)
        .initial_connection_window_size(window.max(1 << 24))
        .handshake(stream)
        .await
        .ok()?;
    tokio::spawn(connection);
    Some(client)
}

pub(crate) fn get(path: &str) -> Request<()> {
    let request = Request::builder().method(Method::GET);
    request.uri(format!("http://x{path}")).body(()).unwrap()
}

/// The whole of an answer.
pub(crate) async fn fetch(
    client: &SendRequest<Bytes>,
    path: &str,
) -> Result<(StatusCode, Bytes), h2::Error> {
    let mut ready = client.clone().ready().await?;
    let (answer, _) = ready.send_request(get(path), true)?;
    let answer = answer.await?;
    let status = answer.status();
    let (mut body, mut bytes) = (answer.into_body(), BytesMut::new());
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        bytes.extend_from_slice(&part);
    }
    Ok((status, bytes.freeze()))
}
