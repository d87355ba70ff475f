//! Web servers: a file, a directory that shows what it has, or a list of files.
//!
//! In       a URL; one that ends in `/` is a directory, any other a file.
//! Out      a [`Source`] of the file, or of the files below the directory.
//! Limits   [`REDIRECTS_MAX`] redirects a request, to origins that the configuration names and
//!          never from https to http; addresses that `source::reach` allows; [`DEPTH_MAX`]
//!          directories deep; [`STATS_MAX`] files are asked at once what they are. Errors name the
//!          URL that was asked for: those that it was sent on to may hold signatures.
//! Not here user names and passwords in URLs; they are refused (`source::url`).

mod login;
mod walk;

use std::ops::Range;

use ::http::header::{ACCEPT, ACCEPT_ENCODING, CONTENT_TYPE, LOCATION, RANGE};
use ::http::{HeaderMap, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use percent_encoding::percent_decode_str;
use reqwest::{Response, Url};

use crate::source::config::SourceConfig;
use crate::source::http::{
    Engine, Ranges, Wanted, check_bounds, content_len, content_range, second_byte, stamp_of,
    status_error, text, whole,
};
use crate::source::reach::Reach;
use crate::source::url::{Scheme, SourceUrl, encode_path, odd_key};
use crate::source::validator::ObjectStamp;
use crate::source::{
    BoxFuture, ByteStream, ObjectStream, Source, SourceError, SourceErrorKind, http, printable,
};

const REDIRECTS_MAX: usize = 5;
/// Deeper than any data set; a server that links in circles ends here.
const DEPTH_MAX: usize = 64;
/// Servers limit the connections of one client to some tens.
const STATS_MAX: usize = 16;
/// Servers that can tell programs what they have are asked to.
const LISTINGS: &str = "application/json, application/xml;q=0.9, text/html;q=0.8, */*;q=0.1";

/// A place on a web server.
#[derive(Debug)]
pub(super) struct Web {
    url: String,
    /// What paths are relative to: the URL up to its last `/`.
    directory: Url,
    /// The file that the URL names; empty if it names a directory.
    file: String,
    /// What the server wants to know before it answers. Sent to this server only.
    login: HeaderMap,
    /// Where requests may be sent on to, besides.
    redirects: Vec<Url>,
    reach: Reach,
    ranges: Ranges,
    engine: Engine,
}

/// What lies at a URL that names a file.
enum Look {
    File(Head),
    /// A directory: it is sent on to the same with a `/`.
    Directory,
}

/// A page of a listing.
struct Page {
    body: Bytes,
    /// Where it came from.
    url: Url,
    /// What its answer told of a version. Pages that are made for each request have none.
    stamp: ObjectStamp,
    /// The protocol itself told where it ends.
    known_end: bool,
}

/// What an answer's head told of a file.
struct Head {
    stamp: ObjectStamp,
    /// May be a list of files.
    is_text: bool,
}

impl Web {
    pub(super) fn new(config: &SourceConfig, url: &SourceUrl) -> Result<Self, SourceError> {
        let spelled = url.to_string();
        let slash = spelled.rfind('/').map_or(0, |at| at + 1);
        let (directory, file) = spelled.split_at(slash);
        let directory =
            Url::parse(directory).map_err(|error| unusable(&format!("{spelled}: {error}")))?;
        let redirects: Vec<Url> = (config.redirects.iter())
            .map(|origin| Url::parse(origin))
            .collect::<Result<_, _>>()
            .map_err(|error| {
                unusable(&format!("{spelled}: where it may be sent on to: {error}"))
            })?;
        let named: Vec<Url> = redirects.iter().chain([&directory]).cloned().collect();
        let reach = Reach::new(&named, config.private);
        let encrypted = named.iter().any(|url| url.scheme() == Scheme::Https.name());
        Ok(Self {
            directory,
            file: file.to_owned(),
            login: login::headers(&config.credentials)?,
            redirects,
            engine: Engine::new(encrypted, Some(reach.clone()))?,
            reach,
            ranges: Ranges::default(),
            url: spelled,
        })
    }

    /// The URL of the file or directory at `path`.
    fn target(&self, path: &[u8]) -> Result<Url, SourceError> {
        let rest = if path.is_empty() {
            self.file.clone()
        } else {
            encode_path(path)
        };
        let names = path.strip_suffix(b"/").unwrap_or(path);
        if let Some(why) = odd_key(names) {
            let path = printable(path);
            return Err(unusable(&format!("{}: the path {path} {why}", self.url)));
        }
        Url::parse(&format!("{}{rest}", self.directory))
            .map_err(|error| unusable(&format!("{}: {error}", self.url)))
    }

    /// Sends a request and follows where it is sent on to; the answer is a success. Also the URL
    /// that it came from.
    async fn send(
        &self,
        method: Method,
        mut url: Url,
        headers: &HeaderMap,
    ) -> Result<(Response, Url), SourceError> {
        let what = url.to_string();
        for _ in 0..=REDIRECTS_MAX {
            self.reach.check(&url, &what)?;
            let mut request = reqwest::Request::new(method.clone(), url.clone());
            *request.headers_mut() = headers.clone();
            if url.origin() == self.directory.origin() {
                request.headers_mut().extend(self.login.clone());
            }
            let response = self.engine.send(request, &what).await?;
            let status = response.status();
            if status.is_success() {
                return Ok((response, url));
            }
            if !matches!(status.as_u16(), 301 | 302 | 303 | 307 | 308) {
                return Err(self.refusal(&response, &url, &what));
            }
            url = self.redirect(&response, &url, &what)?;
        }
        Err(unusable(&format!(
            "{what}: more than {REDIRECTS_MAX} redirects"
        )))
    }

    /// Where an answer sends on to, if requests may be.
    fn redirect(&self, response: &Response, from: &Url, what: &str) -> Result<Url, SourceError> {
        let location = response.headers().get(LOCATION);
        let location = location.and_then(|location| location.to_str().ok());
        let to = location.and_then(|location| from.join(location).ok());
        let Some(mut to) = to.filter(|to| matches!(to.scheme(), "http" | "https")) else {
            return Err(unusable(&format!("{what}: a redirect to nowhere")));
        };
        if from.origin() == self.directory.origin() && has_slash_more(from, &to) {
            // A server behind another one does not know by which name and port it is reached.
            let mut to = from.clone();
            to.set_path(&format!("{}/", from.path()));
            return Ok(to);
        }
        if from.scheme() == "https" && to.scheme() == "http" {
            return Err(unusable(&format!(
                "{what}: it is sent on to a connection that is not encrypted"
            )));
        }
        let is_named = |url: &Url| url.origin() == to.origin();
        if !is_named(&self.directory) && !self.redirects.iter().any(is_named) {
            let origin = to.origin().ascii_serialization();
            return Err(unusable(&format!(
                "{what}: it is sent on to {origin}, which the source does not name: name that \
                 place if it is the one to ask, or allow it: carrack source add URL \
                 --allow-redirect {origin} (carrack source relocate NAME URL --allow-redirect \
                 {origin} for a source that is there)"
            )));
        }
        // A login that a server hands out is none of ours.
        let _ = (to.set_username(""), to.set_password(None));
        Ok(to)
    }

    /// What the answer of `url` means, where the request ended up.
    fn refusal(&self, response: &Response, url: &Url, what: &str) -> SourceError {
        let mut error = status_error(response.status(), response.headers(), what);
        if error.kind != SourceErrorKind::Denied {
            return error;
        }
        let elsewhere = url.origin() != self.directory.origin();
        error
            .what
            .push_str(&match (self.login.is_empty(), elsewhere) {
                (true, _) => ": if it wants a login, put the header line into a file and name it: \
                          carrack source add URL --credentials file:PATH"
                    .to_owned(),
                (false, false) => ": it does not take the login of --credentials".to_owned(),
                (false, true) => format!(
                    ": it was sent on to {}, which does not get the login of --credentials: name \
                 that place if it is the one to ask",
                    url.origin().ascii_serialization()
                ),
            });
        error
    }

    /// What the file at `url` is.
    async fn head(&self, url: &Url) -> Result<Head, SourceError> {
        match self.look(url).await? {
            Look::File(head) => Ok(head),
            Look::Directory => Err(SourceError::new(
                SourceErrorKind::Missing,
                format!("{url} is a directory: its URL is {url}/"),
            )),
        }
    }

    /// What lies at `url`: by its head, or by its first byte where servers do not answer that, or
    /// say that there is none: some programs send no length with HEAD, and servers make 0 of that.
    async fn look(&self, url: &Url) -> Result<Look, SourceError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        match self.send(Method::HEAD, url.clone(), &headers).await {
            Ok((response, end)) => {
                if is_directory(url, &end)? {
                    return Ok(Look::Directory);
                }
                if let Some(size @ 1..) = content_len(response.headers()) {
                    return Ok(Look::File(head_of(response.headers(), size)));
                }
            }
            Err(error) if error.is_passing() || error.kind == SourceErrorKind::Missing => {
                return Err(error);
            }
            // A server that has no HEAD says so in many ways: 405, 400, 403.
            Err(_) => {}
        }
        headers.insert(RANGE, HeaderValue::from_static("bytes=0-0"));
        let what = url.to_string();
        let sent = self.send(Method::GET, url.clone(), &headers).await;
        let (response, end) = match sent {
            // No first byte: an empty file.
            Err(error) if error.kind == SourceErrorKind::Changed => {
                headers.remove(RANGE);
                self.send(Method::GET, url.clone(), &headers).await?
            }
            sent => sent?,
        };
        if is_directory(url, &end)? {
            return Ok(Look::Directory);
        }
        let size = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(response.headers(), &::http::header::CONTENT_RANGE);
                range.and_then(content_range).map(|(_, total)| total)
            }
            _ => content_len(response.headers()),
        };
        let Some(size) = size else {
            return Err(unusable(&format!(
                "{what}: the server does not tell its length: it is no file, or is made anew for \
                 each request"
            )));
        };
        Ok(Look::File(head_of(response.headers(), size)))
    }

    async fn read_file(
        &self,
        path: &[u8],
        expected: &ObjectStamp,
        range: Range<u64>,
    ) -> Result<ByteStream, SourceError> {
        let url = self.target(path)?;
        let what = url.to_string();
        check_bounds(&what, expected, &range)?;
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        let wanted = Wanted {
            what: &what,
            expected,
            range,
            stored_encoding: false,
        };
        let (response, end) = self.send(Method::GET, url, &wanted.headers()).await?;
        if wanted.leaves_ranges_open(&response) {
            let probe = second_byte();
            let probe = async { Ok(self.send(Method::GET, self.target(path)?, &probe).await?.0) };
            let server = end.origin().ascii_serialization();
            let answered = self.ranges.are_answered(&server, probe).await?;
            if !answered && wanted.needs_ranges() {
                return Err(wanted.without_ranges());
            }
        }
        wanted.body(response)
    }

    /// A page of a listing or a manifest.
    async fn page(&self, url: Url) -> Result<Page, SourceError> {
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT, HeaderValue::from_static(LISTINGS));
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let what = url.to_string();
        let (response, url) = self.send(Method::GET, url, &headers).await?;
        let mut stamp = stamp_of(response.headers(), 0);
        let known_end = http::tells_its_end(&response);
        let body = whole(response, http::BODY_LEN_MAX, &what).await?;
        stamp.size = body.len() as u64;
        Ok(Page {
            body,
            url,
            stamp,
            known_end,
        })
    }
}

impl Source for Web {
    fn url(&self) -> &str {
        &self.url
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async move {
            let url = self.target(path)?;
            Ok(self.head(&url).await?.stamp)
        })
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(self.read_file(path, expected, range))
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        walk::list(self, prefix, true)
    }

    fn list_shown<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        walk::list(self, prefix, false)
    }

    fn remark(&self) -> Option<String> {
        self.ranges.are_missing().then(|| {
            format!(
                "{} does not answer ranges: of it files up to {} MiB can be served, each read from \
                 its beginning; others are left out",
                self.url,
                http::SKIP_MAX >> 20
            )
        })
    }
}

fn head_of(headers: &HeaderMap, size: u64) -> Head {
    let kind = text(headers, &CONTENT_TYPE).unwrap_or("");
    Head {
        stamp: stamp_of(headers, size),
        is_text: kind.is_empty() || kind.starts_with("text/") || kind.starts_with("binary/"),
    }
}

/// Whether a file's URL was sent on to the same with a `/`, as servers do for directories.
fn is_directory(asked: &Url, found: &Url) -> Result<bool, SourceError> {
    if asked.path().ends_with('/') || !found.path().ends_with('/') {
        return Ok(false);
    }
    if has_slash_more(asked, found) {
        return Ok(true);
    }
    Err(SourceError::new(
        SourceErrorKind::Missing,
        format!("{asked} is no file: it is sent on to another directory"),
    ))
}

/// Whether the path of a directory is that of a file's URL and a `/`.
fn has_slash_more(file: &Url, directory: &Url) -> bool {
    let path = |url: &Url| percent_decode_str(url.path()).collect::<Vec<u8>>();
    directory.query().is_none() && path(directory).strip_suffix(b"/") == Some(&path(file))
}

fn unusable(why: &str) -> SourceError {
    SourceError::new(SourceErrorKind::Unusable, why)
}
