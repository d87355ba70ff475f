//! One client's connection: requests in turn, each passed on and its answer treated.
//!
//! In       a client's socket; what the handle set.
//! Out      answers, or their lack; counts.
//! Limits   requests are answered one after another, as they came.
//! Not here what becomes of a head or body (`alter`), moving bytes (`body`).

use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep_until};

use super::body::{Pacer, Pipe};
use super::head::{Framing, Head, Stream};
use super::{Fault, Shared, Treatment, alter, body, lock};

/// Whether the connection can take another request.
type Next = io::Result<bool>;

struct Connection {
    client: Stream,
    server: Option<Stream>,
    pacer: Pacer,
    pipe: Pipe,
    shared: Arc<Shared>,
}

/// One request, while it is being answered.
struct Asked<'a> {
    request: &'a Head,
    method: String,
    path: String,
    treatment: Treatment,
    since: Instant,
}

pub(super) async fn run(client: TcpStream, shared: Arc<Shared>) {
    let Ok(pipe) = Pipe::new() else {
        return;
    };
    let mut connection = Connection {
        client: Stream::new(client),
        server: None,
        pacer: Pacer::new(),
        pipe,
        shared,
    };
    // Errors are ends of connections, which the other side sees as such.
    while let Ok(Some(request)) = connection.client.head().await {
        let in_flight = InFlight::new(Arc::clone(&connection.shared));
        let next = connection.answer(&request).await;
        drop(in_flight);
        if !matches!(next, Ok(true)) {
            return;
        }
    }
}

impl Connection {
    async fn answer(&mut self, request: &Head) -> Next {
        let target = request.target();
        let asked = Asked {
            request,
            method: request.method(),
            path: target.split('?').next().unwrap_or_default().to_owned(),
            treatment: self.shared.treatment(&target),
            since: Instant::now(),
        };
        self.pacer.set(asked.treatment.bandwidth);
        if asked.treatment.fault.is_some() {
            self.shared.faults.fetch_add(1, Ordering::SeqCst);
        }
        match asked.treatment.fault {
            Some(Fault::Refuse) => {
                reset(&self.client.socket);
                Ok(false)
            }
            Some(Fault::Hang) => {
                until_closed(&self.client.socket).await;
                Ok(false)
            }
            Some(Fault::Status { code, retry_after }) => {
                self.refuse(&asked, code, retry_after).await
            }
            _ => self.forward(&asked).await,
        }
    }

    async fn refuse(&mut self, asked: &Asked<'_>, code: u16, retry_after: Option<u32>) -> Next {
        let len = asked.request.request_body_len().unwrap_or(0);
        body::collect(&mut self.client, len.min(alter::BODY_LEN_MAX)).await?;
        sleep_until(asked.since + asked.treatment.latency).await;
        let mut answer = alter::refusal(code, retry_after);
        if asked.method == "HEAD" {
            let end = answer.windows(4).position(|four| four == b"\r\n\r\n");
            answer.truncate(end.map_or(0, |at| at + 4));
        }
        self.client.socket.write_all(&answer).await?;
        Ok(!asked.request.wants_close())
    }

    /// Asks the server and passes its answer on.
    async fn forward(&mut self, asked: &Asked<'_>) -> Next {
        let Some(body_len) = asked.request.request_body_len() else {
            return self.refuse(asked, 501, None).await;
        };
        let mut request = asked.request.clone();
        let is_signed = request.header("authorization").is_some();
        if asked.treatment.fault == Some(Fault::IgnoreRange) && !is_signed {
            request.remove("Range");
        }
        let mut head = self.ask(&request, body_len).await?;
        while head.status() == 100 {
            self.client.socket.write_all(&head.raw).await?;
            head = self.server_head().await?;
        }
        sleep_until(asked.since + asked.treatment.latency).await;
        let closes = asked.request.wants_close() || head.wants_close();
        let framing = head.answer_framing(&asked.method);
        let alive = match (&asked.treatment.fault, framing) {
            (Some(fault), Framing::Len(len)) if len > 0 && len <= alter::BODY_LEN_MAX => {
                self.faulty(asked, fault, head, len).await?
            }
            _ => {
                self.client.socket.write_all(&head.raw).await?;
                self.pass(asked, framing).await?;
                framing != Framing::UntilClose
            }
        };
        Ok(alive && !closes)
    }

    /// Sends the request; on a connection that the server has left meanwhile, once more on a new
    /// one.
    async fn ask(&mut self, request: &Head, body_len: u64) -> io::Result<Head> {
        if self.server.is_some() && body_len == 0 {
            if let Ok(head) = self.exchange(request, 0).await {
                return Ok(head);
            }
            self.server = None;
        }
        if self.server.is_none() {
            let upstream = *lock(&self.shared.upstream);
            self.server = Some(Stream::new(TcpStream::connect(upstream).await?));
        }
        self.exchange(request, body_len).await
    }

    async fn exchange(&mut self, request: &Head, body_len: u64) -> io::Result<Head> {
        let server = self.server.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        server.socket.write_all(&request.raw).await?;
        let mut unbound = Pacer::new();
        let through = (&mut unbound, &self.pipe);
        body::pass(
            &mut self.client,
            &mut server.socket,
            body_len,
            through,
            |_| {},
        )
        .await?;
        self.server_head().await
    }

    async fn server_head(&mut self) -> io::Result<Head> {
        let server = self.server.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let head = server.head().await?;
        Ok(head.ok_or(io::ErrorKind::UnexpectedEof)?)
    }

    /// Passes the body on as it is.
    async fn pass(&mut self, asked: &Asked<'_>, framing: Framing) -> io::Result<()> {
        let server = self.server.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        let (to, through) = (&mut self.client.socket, (&mut self.pacer, &self.pipe));
        let (shared, is_get) = (&self.shared, asked.method == "GET");
        let count = |len| {
            if is_get {
                shared.count_body(&asked.path, len);
            }
        };
        match framing {
            Framing::Len(len) => body::pass(server, to, len, through, count).await,
            Framing::Chunked => body::pass_chunks(server, to, through, count).await,
            Framing::UntilClose => body::pass_until_close(server, to, through, count).await,
        }
    }

    /// An answer that breaks off or lies.
    async fn faulty(&mut self, asked: &Asked<'_>, fault: &Fault, mut head: Head, len: u64) -> Next {
        match fault {
            Fault::Reset | Fault::Cut | Fault::HangInBody => {
                self.client.socket.write_all(&head.raw).await?;
                self.pass(asked, Framing::Len(len / 2)).await?;
                if *fault == Fault::Reset {
                    reset(&self.client.socket);
                }
                if *fault == Fault::HangInBody {
                    until_closed(&self.client.socket).await;
                }
                Ok(false)
            }
            _ if alter::needs_body(fault) => {
                let server = self.server.as_mut().ok_or(io::ErrorKind::NotConnected)?;
                let whole = body::collect(server, len).await?;
                if asked.method == "GET" {
                    self.shared.count_body(&asked.path, len);
                }
                let altered = alter::body(fault, &mut head, whole);
                self.client.socket.write_all(&head.raw).await?;
                body::write(&mut self.client.socket, &altered, &mut self.pacer).await?;
                Ok(true)
            }
            _ => {
                alter::head(fault, &mut head, len);
                self.client.socket.write_all(&head.raw).await?;
                self.pass(asked, Framing::Len(len)).await?;
                Ok(true)
            }
        }
    }
}

/// The close that follows sends RST.
fn reset(socket: &TcpStream) {
    let _ = rustix::net::sockopt::set_socket_linger(socket, Some(std::time::Duration::ZERO));
}

/// Until the client gives up.
async fn until_closed(socket: &TcpStream) {
    let mut some = [0; 1024];
    while socket.readable().await.is_ok() {
        match socket.try_read(&mut some) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

/// Counts a request for as long as it is being answered.
struct InFlight(Arc<Shared>);

impl InFlight {
    fn new(shared: Arc<Shared>) -> Self {
        shared.requests.fetch_add(1, Ordering::SeqCst);
        let now = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.in_flight_max.fetch_max(now, Ordering::SeqCst);
        Self(shared)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}
