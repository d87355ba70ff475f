//! Requests to servers, and the checks that an answer has the very bytes that were asked for.
//!
//! In       a request; for reads a range and the version it must be of.
//! Out      the answer's head, a small body, or a stream of exactly the range.
//! Limits   HTTP/1.1 only: one connection a read, so that reads do not wait for each other's
//!          windows. The deadlines below, for each wait and for the whole; [`BODY_LEN_MAX`] for
//!          what is read whole. Redirects are not followed here, and no body is decompressed.
//! Not here signing (`source::s3`), redirects (`source::web`), trying again (`source::retry`).
//!
//! Spec: RFC 9110, sections 8.8 (validators), 13 (conditions), 14 (ranges).

mod pace;
mod ranges;

use std::error::Error as _;
use std::ops::Range;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::stream;
use http::header::{
    ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_MATCH,
    IF_UNMODIFIED_SINCE, LAST_MODIFIED, RANGE, RETRY_AFTER,
};
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use reqwest::{Client, ClientBuilder, Request, Response};

use self::pace::Pace;
pub(super) use self::ranges::{Ranges, second_byte};
use crate::source::reach::{self, Reach};
use crate::source::validator::{FileTime, ObjectStamp};
use crate::source::{ByteStream, SourceError, SourceErrorKind, date};

/// A server in another continent answers a connection in 0.3 s; a lost packet costs 1 to 3 s.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// From the request, connection included, to the answer's head. Stores that are asked for a cold
/// object take seconds.
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of a body. A connection that brings nothing for so long is gone.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// What went wrong is known by the status; its explanation is worth no more.
const EXPLANATION_TIME_MAX: Duration = Duration::from_secs(5);
/// Servers close idle connections after 5 s (Node), 20 s (Amazon S3) or 75 s (nginx): a request
/// on a connection that is being closed fails, and has to be repeated.
const POOL_IDLE_TIMEOUT: Duration = Duration::from_secs(15);
/// Idle connections that are kept for the next reads: as many as reads go on at once.
const POOL_IDLE_MAX: usize = 64;
/// What is not read as a stream: an error's explanation, a page of a listing.
pub(super) const BODY_LEN_MAX: usize = 64 << 20;
/// Of an error's explanation only the beginning is looked at.
const EXPLANATION_LEN_MAX: usize = 64 << 10;
/// A server that does not know ranges sends a file from its beginning: so many bytes are read and
/// thrown away before those that were asked for, once. Beyond, reading in place makes no sense.
pub(super) const SKIP_MAX: u64 = 1 << 20;
/// Name of the version of an object in a bucket that keeps versions.
pub(super) const VERSION: HeaderName = HeaderName::from_static("x-amz-version-id");

/// Connections to one source's servers.
#[derive(Debug, Clone)]
pub(super) struct Engine {
    client: Client,
}

impl Engine {
    /// Connects to nothing yet, and then to what `reach` allows; `None`: to what is configured. A
    /// machine without certificates has no use for `encrypted` connections; others work there all
    /// the same.
    pub(super) fn new(encrypted: bool, reach: Option<Reach>) -> Result<Self, SourceError> {
        let builder = || match &reach {
            Some(reach) => builder().dns_resolver(reach.clone()),
            None => builder(),
        };
        let mut client = builder().build();
        if client.is_err() && !encrypted {
            client = builder().tls_certs_only([]).build();
        }
        let client = client.map_err(|error| {
            SourceError::new(
                SourceErrorKind::Unusable,
                format!(
                    "cannot prepare encrypted connections ({}): install the certificates of the \
                     usual authorities (package ca-certificates), or let SSL_CERT_FILE name a \
                     file with some in PEM",
                    chain(&error)
                ),
            )
        })?;
        Ok(Self { client })
    }

    /// Sends a request; the answer's head has come. `what` is named in errors.
    pub(super) async fn send(&self, request: Request, what: &str) -> Result<Response, SourceError> {
        let sending = self.client.execute(request);
        match tokio::time::timeout(FIRST_BYTE_TIMEOUT, sending).await {
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => Err(unreachable(&error, what)),
            Err(_) => Err(SourceError::new(
                SourceErrorKind::Unreachable,
                format!("{what}: no answer for {} s", FIRST_BYTE_TIMEOUT.as_secs()),
            )),
        }
    }
}

fn builder() -> ClientBuilder {
    Client::builder()
        .http1_only()
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_TIMEOUT)
        .pool_idle_timeout(POOL_IDLE_TIMEOUT)
        .pool_max_idle_per_host(POOL_IDLE_MAX)
        .user_agent(concat!("carrack/", env!("CARGO_PKG_VERSION")))
}

/// The provider of rustls, for the whole process; before the first client is made. Whoever comes
/// first installs it.
pub(super) fn install_crypto() {
    let _ = rustls::crypto::ring::default_provider().install_default();
}

/// What a read asks for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    /// For errors.
    pub(super) what: &'a str,
    /// The version.
    pub(super) expected: &'a ObjectStamp,
    /// The bytes: not empty, within the version's length.
    pub(super) range: Range<u64>,
    /// `Content-Encoding` is a property of the object, not of its transfer: the bytes are stored
    /// that way. So it is in buckets. Of a web server it has to be shown.
    pub(super) stored_encoding: bool,
}

impl Wanted<'_> {
    /// The headers of a request for it.
    pub(super) fn headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::with_capacity(8);
        let Range { start, end } = self.range;
        set(&mut headers, RANGE, &format!("bytes={start}-{}", end - 1));
        set(&mut headers, ACCEPT_ENCODING, "identity");
        if let Some(etag) = &self.expected.etag {
            set(&mut headers, IF_MATCH, etag);
        } else if let (None, Some(time)) = (&self.expected.version, self.expected.modified) {
            // Headers tell whole seconds, but servers on file systems compare all of their digits:
            // a second later is the first time that cannot refuse the version itself.
            let after = FileTime {
                secs: time.secs.saturating_add(1),
                nanos: 0,
            };
            set(&mut headers, IF_UNMODIFIED_SINCE, &date::to_http(after));
        }
        headers
    }

    /// The body of the answer, if it is the range of the version. An answer that is no success is
    /// the caller's.
    pub(super) fn body(&self, response: Response) -> Result<ByteStream, SourceError> {
        let headers = response.headers();
        let len = self.range.end - self.range.start;
        let content_len = content_len(headers);
        let (skip, body_len) = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                self.check_range(headers)?;
                (0, len)
            }
            StatusCode::OK => {
                self.check_version(headers, content_len.unwrap_or(self.expected.size))?;
                (self.range.start, self.expected.size)
            }
            status => return Err(self.error(SourceErrorKind::Unusable, &unexpected(status))),
        };
        if skip > SKIP_MAX {
            return Err(self.without_ranges());
        }
        self.check_encoding(headers, body_len)?;
        match content_len {
            // As if it broke off: what comes next may be whole.
            Some(content_len) if content_len < body_len => {
                let why = "the answer is shorter than its range";
                return Err(self.error(SourceErrorKind::Unreachable, why));
            }
            Some(content_len) if content_len > body_len => {
                let why = "the answer is longer than its range";
                return Err(self.error(SourceErrorKind::Unusable, why));
            }
            _ => {}
        }
        Ok(pieces(Body {
            what: self.what.to_owned(),
            response,
            skip,
            left: len,
            // Beyond the range lies the rest of the file, and the connection is given up.
            open_end: skip + len < body_len,
            known_end: content_len.is_some(),
            pace: Pace::of_data(),
        }))
    }

    /// Whether the answer leaves open if the server knows ranges, and that matters: of a large
    /// file only the beginning could be read.
    pub(super) fn leaves_ranges_open(&self, response: &Response) -> bool {
        response.status() == StatusCode::OK && self.expected.size > 1
    }

    /// Whether so much of the file can be read without ranges.
    pub(super) const fn needs_ranges(&self) -> bool {
        self.expected.size > SKIP_MAX
    }

    /// The error for a server that has none.
    pub(super) fn without_ranges(&self) -> SourceError {
        self.error(
            SourceErrorKind::Unusable,
            "the server does not answer ranges of a file, and this one is too large to be read \
             whole each time: serve it from one that does, such as nginx or a bucket",
        )
    }

    fn check_range(&self, headers: &HeaderMap) -> Result<(), SourceError> {
        let range = text(headers, &CONTENT_RANGE).and_then(content_range);
        let Some((range, total)) = range else {
            return Err(self.error(
                SourceErrorKind::Unusable,
                "the answer does not tell which range of what it is",
            ));
        };
        self.check_version(headers, total)?;
        if range != self.range {
            let Range { start, end } = range;
            return Err(self.error(
                SourceErrorKind::Unusable,
                &format!("the answer is another range, {start}..{end}"),
            ));
        }
        Ok(())
    }

    fn check_version(&self, headers: &HeaderMap, total: u64) -> Result<(), SourceError> {
        let found = stamp_of(headers, total);
        if self.expected.agrees_with(&found) {
            return Ok(());
        }
        let same_tag = found.etag.is_some() && found.etag == self.expected.etag;
        if same_tag && found.version == self.expected.version {
            let why = "the answer is of this version, but of another length";
            return Err(self.error(SourceErrorKind::Unusable, why));
        }
        let why = if found.size == self.expected.size {
            "it was changed since it was read first".to_owned()
        } else {
            format!("it has {} bytes now", found.size)
        };
        Err(self.error(SourceErrorKind::Changed, &why))
    }

    fn check_encoding(&self, headers: &HeaderMap, body_len: u64) -> Result<(), SourceError> {
        let encoding = match text(headers, &CONTENT_ENCODING) {
            None | Some("" | "identity") => return Ok(()),
            Some(encoding) => encoding,
        };
        // What is encoded on the way has another length, another tag or no ranges.
        let tag = text(headers, &ETAG).and_then(strong_etag);
        let is_same = tag.is_some() && tag == self.expected.etag;
        let is_shown = is_same && headers.contains_key(&CONTENT_RANGE);
        if (self.stored_encoding || is_shown) && content_len(headers) == Some(body_len) {
            return Ok(());
        }
        Err(self.error(
            SourceErrorKind::Unusable,
            &format!(
                "the server encodes what it sends ({}) although it was asked not to",
                crate::source::printable(encoding.as_bytes())
            ),
        ))
    }

    fn error(&self, kind: SourceErrorKind, why: &str) -> SourceError {
        let Range { start, end } = self.range;
        SourceError::new(
            kind,
            format!(
                "{}: bytes {start}..{end} of {}: {why}",
                self.what, self.expected.size
            ),
        )
    }
}

/// A read can only be of bytes that the version has.
pub(super) fn check_bounds(
    what: &str,
    expected: &ObjectStamp,
    range: &Range<u64>,
) -> Result<(), SourceError> {
    if range.start <= range.end && range.end <= expected.size {
        return Ok(());
    }
    let (Range { start, end }, size) = (range, expected.size);
    Err(SourceError::new(
        SourceErrorKind::Unusable,
        format!("{what}: bytes {start}..{end} were asked for, and it has {size}"),
    ))
}

/// A body on its way.
struct Body {
    what: String,
    response: Response,
    /// Bytes before the range that are still to come.
    skip: u64,
    /// Bytes of the range that are still to come.
    left: u64,
    /// What follows the range is of no interest.
    open_end: bool,
    /// The protocol itself tells where the body ends.
    known_end: bool,
    pace: Pace,
}

fn pieces(body: Body) -> ByteStream {
    Box::pin(stream::try_unfold(body, |mut body| async move {
        let piece = body.next().await?;
        Ok(piece.map(|piece| (piece, body)))
    }))
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, SourceError> {
        loop {
            if self.left == 0 && (self.open_end || self.known_end) {
                return Ok(None);
            }
            let piece = self.pace.next(self.response.chunk(), &self.what).await?;
            let Some(mut piece) = piece else {
                if self.left == 0 {
                    return Ok(None);
                }
                let why = format!("{}: the answer broke off", self.what);
                return Err(SourceError::new(SourceErrorKind::Unreachable, why));
            };
            let skipped = piece
                .len()
                .min(usize::try_from(self.skip).unwrap_or(usize::MAX));
            let _ = piece.split_to(skipped);
            self.skip -= skipped as u64;
            if piece.is_empty() {
                continue;
            }
            if piece.len() as u64 > self.left {
                if !self.open_end {
                    let why = format!("{}: the answer is longer than its range", self.what);
                    return Err(SourceError::new(SourceErrorKind::Unusable, why));
                }
                piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
            }
            self.left -= piece.len() as u64;
            return Ok(Some(piece));
        }
    }
}

/// The whole body of an answer that has no known length.
pub(super) async fn whole(
    response: Response,
    len_max: usize,
    what: &str,
) -> Result<Bytes, SourceError> {
    whole_at(Pace::of_page(), response, len_max, what).await
}

async fn whole_at(
    mut pace: Pace,
    mut response: Response,
    len_max: usize,
    what: &str,
) -> Result<Bytes, SourceError> {
    let mut body = BytesMut::new();
    while let Some(piece) = pace.next(response.chunk(), what).await? {
        if body.len() + piece.len() > len_max {
            return Err(SourceError::new(
                SourceErrorKind::Unusable,
                format!("{what}: the answer is longer than {} MiB", len_max >> 20),
            ));
        }
        body.extend_from_slice(&piece);
    }
    Ok(body.freeze())
}

/// Whether the protocol tells where the body of an answer ends: else the end of the connection
/// does, wherever it breaks.
pub(super) fn tells_its_end(response: &Response) -> bool {
    let headers = response.headers();
    response.version() >= ::http::Version::HTTP_2
        || headers.contains_key(::http::header::CONTENT_LENGTH)
        || headers.contains_key(::http::header::TRANSFER_ENCODING)
}

/// The beginning of an error's body, or what came of it in time.
pub(super) async fn explanation(response: Response) -> Bytes {
    beginning(response, EXPLANATION_TIME_MAX).await
}

async fn beginning(mut response: Response, time_max: Duration) -> Bytes {
    let mut body = BytesMut::new();
    let reading = async {
        while let Ok(Some(piece)) = response.chunk().await {
            body.extend_from_slice(&piece);
            if body.len() > EXPLANATION_LEN_MAX {
                body.truncate(EXPLANATION_LEN_MAX);
                break;
            }
        }
    };
    let _ = tokio::time::timeout(time_max, reading).await;
    body.freeze()
}

/// What the head of an answer tells of the version that it is of.
pub(super) fn stamp_of(headers: &HeaderMap, size: u64) -> ObjectStamp {
    let version =
        text(headers, &VERSION).filter(|version| *version != "null" && !version.is_empty());
    ObjectStamp {
        size,
        etag: text(headers, &ETAG).and_then(strong_etag),
        version: version.map(Into::into),
        modified: text(headers, &LAST_MODIFIED).and_then(date::from_http),
    }
}

/// The tag if it is a strong one: byte for byte the same content. Some servers leave the quotes
/// out.
pub(super) fn strong_etag(etag: &str) -> Option<Box<str>> {
    let inner = match etag.strip_prefix('"') {
        Some(rest) => rest.strip_suffix('"')?,
        None => etag,
    };
    let plain = |byte: u8| byte.is_ascii_graphic() && byte != b'"';
    let strong = !inner.is_empty() && inner.len() <= 1024 && inner.bytes().all(plain);
    (strong && !etag.starts_with("W/")).then(|| format!("\"{inner}\"").into())
}

/// The length that a head tells.
pub(super) fn content_len(headers: &HeaderMap) -> Option<u64> {
    text(headers, &CONTENT_LENGTH)?.parse().ok()
}

/// The range and the whole length of `bytes 5-9/20`.
pub(super) fn content_range(text: &str) -> Option<(Range<u64>, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (decimal(first)?, decimal(last)?);
    let total = decimal(total)?;
    (first <= last && last < total).then(|| (first..last + 1, total))
}

fn decimal(text: &str) -> Option<u64> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// What an answer that is no success means, when nothing more is known of the server.
pub(super) fn status_error(status: StatusCode, headers: &HeaderMap, what: &str) -> SourceError {
    let now_unix = crate::clock::unix_seconds();
    let asked = text(headers, &RETRY_AFTER);
    let retry_after = asked.and_then(|text| retry_after(text, now_unix));
    let kind = match status.as_u16() {
        404 | 410 => SourceErrorKind::Missing,
        412 | 416 => SourceErrorKind::Changed,
        401 | 403 | 407 => SourceErrorKind::Denied,
        429 => SourceErrorKind::Throttled,
        503 if retry_after.is_some() => SourceErrorKind::Throttled,
        501 => SourceErrorKind::Unusable,
        408 | 425 | 500..=599 => SourceErrorKind::Unreachable,
        _ => SourceErrorKind::Unusable,
    };
    let why = match kind {
        SourceErrorKind::Missing => "there is no such object".to_owned(),
        SourceErrorKind::Changed => "it was changed since it was read first".to_owned(),
        SourceErrorKind::Throttled => "the server asks for fewer requests".to_owned(),
        _ => unexpected(status),
    };
    SourceError {
        kind,
        what: format!("{what}: {why}"),
        retry_after,
    }
}

fn unexpected(status: StatusCode) -> String {
    let reason = status.canonical_reason().unwrap_or("");
    format!("the server answers {} {reason}", status.as_u16())
}

/// Seconds, or a date. Whoever waits bounds it: the clock may be wrong by years.
fn retry_after(text: &str, now_unix: u64) -> Option<Duration> {
    if let Some(seconds) = decimal(text) {
        return Some(Duration::from_secs(seconds));
    }
    let until = u64::try_from(date::from_http(text)?.secs).ok()?;
    Some(Duration::from_secs(until.saturating_sub(now_unix)))
}

/// A header's value, if it is plain text.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    Some(headers.get(name)?.to_str().ok()?.trim())
}

/// Sets a header from text of ours, or from a validator that was checked when it came.
fn set(headers: &mut HeaderMap, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

fn unreachable(error: &reqwest::Error, what: &str) -> SourceError {
    if let Some(refused) = reach::refusal(error, what) {
        return refused;
    }
    let causes = chain(error);
    let advice = if causes.contains("certificate") {
        ": check the server's certificate, or let SSL_CERT_FILE name a file with that of its \
         authority (where `carrack serve` is started, if it runs)"
    } else if causes.contains("dns error") || causes.contains("lookup") {
        ": check the host's name"
    } else {
        ""
    };
    SourceError::new(
        SourceErrorKind::Unreachable,
        format!("{what}: {causes}{advice}"),
    )
}

/// The causes of an error, from the outermost that says something, without the URL.
fn chain(error: &reqwest::Error) -> String {
    let mut causes: Vec<String> = Vec::new();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        if !causes.iter().any(|before| before.contains(&text)) && causes.len() < 8 {
            causes.push(text);
        }
        cause = error.source();
    }
    if causes.is_empty() {
        return "the request failed".to_owned();
    }
    causes.join(": ")
}

#[cfg(test)]
mod tests;
