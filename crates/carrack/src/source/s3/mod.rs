//! Buckets of Amazon S3 and of servers that speak its protocol.
//!
//! In       a bucket, a prefix in it, a server or a region, where credentials are.
//! Out      a [`Source`] of the objects below the prefix.
//! Limits   one page of a listing in memory ([`PAGE_KEYS`] keys); one request a read.
//! Not here keys that no directory can have: they are listed as odd and cannot be read. Archived
//!          objects (Glacier) have to be restored before.
//!
//! Spec: Amazon S3 API reference; Signature Version 4 by `object_store`.

mod credentials;
mod ini;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use ::http::header::{ACCEPT_ENCODING, HOST};
use ::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use bytes::Bytes;
use futures_util::stream;
use object_store::aws::AwsAuthorizer;
use object_store::client::{HttpRequest, HttpRequestBody};
use reqwest::{Response, Url};

use self::credentials::Credentials;
use crate::source::config::{Environment, SourceConfig};
use crate::source::http::{
    Engine, Ranges, Wanted, content_len, second_byte, stamp_of, status_error, text,
};
use crate::source::listing::s3::{Course, Fault, Item, Page, fault, page};
use crate::source::retry::patiently;
use crate::source::url::{Scheme, SourceUrl, encode_path, odd_key};
use crate::source::validator::ObjectStamp;
use crate::source::{
    BoxFuture, ByteStream, Listed, ObjectStream, Source, SourceError, SourceErrorKind, http,
    printable,
};

/// The region of a bucket that nobody told.
const DEFAULT_REGION: &str = "us-east-1";
/// The most keys that a server gives at once.
const PAGE_KEYS: usize = 1000;
/// A page of 1,000 keys of 1,024 encoded bytes each has less than 4 MiB.
const PAGE_LEN_MAX: usize = 16 << 20;
const REGION: HeaderName = HeaderName::from_static("x-amz-bucket-region");

/// A bucket, or the part of it below a prefix.
#[derive(Debug)]
pub(super) struct S3 {
    url: String,
    bucket: String,
    /// Without `/` at either end.
    prefix: String,
    /// The server that was configured; empty for Amazon's.
    endpoint: String,
    /// Where requests are sent and how they are signed; changes when the server tells another.
    region: Mutex<String>,
    credentials: Credentials,
    ranges: Ranges,
    engine: Engine,
}

impl S3 {
    pub(super) fn new(
        config: &SourceConfig,
        url: &SourceUrl,
        environment: &Environment,
    ) -> Result<Self, SourceError> {
        debug_assert_eq!(url.scheme(), Scheme::S3);
        let endpoint = config.endpoint.trim_end_matches('/').to_owned();
        if !endpoint.is_empty() {
            check_endpoint(&endpoint)?;
        }
        let region = match config.region.as_str() {
            "" => DEFAULT_REGION,
            region => region,
        };
        let names = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if !region.chars().all(names) {
            return Err(unusable("a region is a name such as eu-west-1"));
        }
        Ok(Self {
            url: url.to_string(),
            bucket: url.host().to_owned(),
            prefix: url.path().to_owned(),
            credentials: Credentials::new(&config.credentials, environment, region)?,
            region: Mutex::new(region.to_owned()),
            ranges: Ranges::default(),
            // The endpoint is what somebody configured, and may well be a private one.
            engine: Engine::new(!endpoint.starts_with("http:"), None)?,
            endpoint,
        })
    }

    /// The key of the object at `path`.
    fn key(&self, path: &[u8]) -> Result<Vec<u8>, SourceError> {
        let mut key = self.prefix.as_bytes().to_vec();
        if !key.is_empty() && !path.is_empty() {
            key.push(b'/');
        }
        key.extend_from_slice(path);
        if key.is_empty() {
            return Err(SourceError::new(
                SourceErrorKind::Missing,
                format!("{}: a bucket is no object", self.url),
            ));
        }
        match odd_key(&key) {
            None => Ok(key),
            Some(why) => Err(unusable(&format!(
                "{}: the key {} {why}",
                self.url,
                printable(&key)
            ))),
        }
    }

    /// How an object is called in errors.
    fn name(&self, key: &[u8]) -> String {
        format!("s3://{}/{}", self.bucket, printable(key))
    }

    /// The URL of a key, or of the bucket.
    fn target(&self, key: &[u8], query: &str, region: &str) -> Result<Url, SourceError> {
        let bucket = &self.bucket;
        let path = encode_path(key);
        let query = if query.is_empty() {
            String::new()
        } else {
            format!("?{query}")
        };
        let url = if !self.endpoint.is_empty() {
            format!("{}/{bucket}/{path}{query}", self.endpoint)
        } else if bucket.contains('.') {
            // Amazon's certificate covers one name below its own, not two.
            format!("https://s3.{}/{bucket}/{path}{query}", domain(region))
        } else {
            format!("https://{bucket}.s3.{}/{path}{query}", domain(region))
        };
        Url::parse(&url).map_err(|error| unusable(&format!("{}: {error}", self.url)))
    }

    /// Sends a request, signed; once more if the server tells another region.
    async fn send(
        &self,
        method: Method,
        key: &[u8],
        query: &str,
        headers: &HeaderMap,
        what: &str,
    ) -> Result<Response, SourceError> {
        let mut moved = false;
        loop {
            let region = self.region();
            let url = self.target(key, query, &region)?;
            let mut request = reqwest::Request::new(method.clone(), url);
            *request.headers_mut() = headers.clone();
            self.sign(&mut request, &region).await?;
            let signed: Vec<HeaderValue> = (request.headers().values())
                .filter(|value| value.is_sensitive())
                .cloned()
                .collect();
            let sent = self.engine.send(request, what).await;
            let response = sent.map_err(|error| self.explain_unreachable(error))?;
            let status = response.status();
            if status.is_success() {
                return Ok(response);
            }
            let headers = response.headers().clone();
            let body = match method {
                Method::HEAD => Bytes::new(),
                _ => http::explanation(response).await,
            };
            let mut fault = fault(&body);
            if repeats(&fault.message, &signed) {
                fault.message.clear();
            }
            if !moved && self.follow(status, &headers, &fault, &region) {
                moved = true;
                continue;
            }
            return Err(self.refusal(status, &headers, &fault, what));
        }
    }

    async fn sign(&self, request: &mut reqwest::Request, region: &str) -> Result<(), SourceError> {
        let Some(keys) = self.credentials.get().await? else {
            return Ok(());
        };
        let mut signed = HttpRequest::new(HttpRequestBody::empty());
        *signed.method_mut() = request.method().clone();
        *signed.uri_mut() = (request.url().as_str().parse())
            .map_err(|error| unusable(&format!("{}: {error}", self.url)))?;
        // The range and the conditions need no signature, and proxies may rewrite them.
        let authorizer = AwsAuthorizer::new(&keys, "s3", region);
        authorizer
            .try_authorize(&mut signed, None)
            .map_err(|_| SourceError::new(SourceErrorKind::Denied, "a request cannot be signed"))?;
        for (name, value) in signed.headers() {
            if name != HOST {
                let mut value: HeaderValue = value.clone();
                value.set_sensitive(true);
                request.headers_mut().insert(name.clone(), value);
            }
        }
        Ok(())
    }

    fn region(&self) -> String {
        let region = self.region.lock();
        region.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the server named another region, which is used from now on.
    fn follow(&self, status: StatusCode, headers: &HeaderMap, fault: &Fault, used: &str) -> bool {
        if !matches!(status.as_u16(), 301 | 307 | 400 | 403) {
            return false;
        }
        let told = text(headers, &REGION).unwrap_or(fault.region.as_str());
        if told == used || !is_region(told) {
            return false;
        }
        let region = self.region.lock();
        told.clone_into(&mut region.unwrap_or_else(PoisonError::into_inner));
        true
    }

    fn explain_unreachable(&self, mut error: SourceError) -> SourceError {
        let advice = if self.endpoint.is_empty() {
            let region = self.region();
            format!(
                "; it was looked for at Amazon, region {region}: AWS_ENDPOINT_URL (or --endpoint) \
                 names another server"
            )
        } else {
            format!("; AWS_ENDPOINT_URL (--endpoint) is {}", self.endpoint)
        };
        error.what.push_str(&advice);
        error
    }

    /// What an answer that is no success means.
    fn refusal(
        &self,
        status: StatusCode,
        headers: &HeaderMap,
        fault: &Fault,
        what: &str,
    ) -> SourceError {
        let mut error = status_error(status, headers, what);
        let why = |error: &mut SourceError, kind, why: &str| {
            error.kind = kind;
            error.what = format!("{what}: {why}");
        };
        let message = printable(fault.message.as_bytes());
        match fault.code.as_str() {
            "SlowDown"
            | "ServiceUnavailable"
            | "RequestLimitExceeded"
            | "TooManyRequests"
            | "BandwidthLimitExceeded"
            | "Throttling"
            | "ThrottlingException" => {
                why(
                    &mut error,
                    SourceErrorKind::Throttled,
                    "the server asks for fewer requests",
                );
            }
            "RequestTimeout" | "InternalError" | "OperationAborted" if !message.is_empty() => {
                why(&mut error, SourceErrorKind::Unreachable, &message);
            }
            "NoSuchBucket" => why(
                &mut error,
                SourceErrorKind::Missing,
                &format!("there is no bucket {}", self.bucket),
            ),
            "InvalidObjectState" => why(
                &mut error,
                SourceErrorKind::Unusable,
                "it is archived: restore it before it is read",
            ),
            "RequestTimeTooSkewed" => why(
                &mut error,
                SourceErrorKind::Denied,
                "the clocks of this machine and of the server differ: set this one",
            ),
            "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" => why(
                &mut error,
                SourceErrorKind::Denied,
                "the credentials have expired: renew them",
            ),
            "InvalidAccessKeyId" | "SignatureDoesNotMatch" => why(
                &mut error,
                SourceErrorKind::Denied,
                &format!("the server does not take the credentials ({})", fault.code),
            ),
            "PermanentRedirect"
            | "AuthorizationHeaderMalformed"
            | "IllegalLocationConstraintException" => {
                let region = text(headers, &REGION).unwrap_or(fault.region.as_str());
                let region = match is_region(region) {
                    true => format!(", {region}"),
                    false => String::new(),
                };
                let told = format!(
                    "the bucket lies in another region{region}: set AWS_REGION or --region"
                );
                why(&mut error, SourceErrorKind::Unusable, &told);
            }
            _ if status.as_u16() == 503 && fault.code.is_empty() => {
                why(
                    &mut error,
                    SourceErrorKind::Throttled,
                    "the server asks for fewer requests",
                );
            }
            _ if error.kind == SourceErrorKind::Denied => {
                let (with, advice) = match self.credentials {
                    Credentials::None => (
                        "without credentials",
                        ": it is not public; configure the source with credentials",
                    ),
                    _ => ("with these credentials", ""),
                };
                let told = format!("the server does not allow it {with}{advice}");
                why(&mut error, SourceErrorKind::Denied, &told);
            }
            _ if status.as_u16() == 400 && fault.code.is_empty() => why(
                &mut error,
                SourceErrorKind::Denied,
                "the server refuses the request: the credentials may have expired",
            ),
            _ if !message.is_empty() && error.kind == SourceErrorKind::Unusable => {
                let kind = error.kind;
                why(
                    &mut error,
                    kind,
                    &format!("{message} ({})", status.as_u16()),
                );
            }
            _ => {}
        }
        if error.kind == SourceErrorKind::Denied {
            self.credentials.refused();
        }
        error
    }

    async fn stat_key(&self, key: &[u8]) -> Result<ObjectStamp, SourceError> {
        let what = self.name(key);
        let mut headers = HeaderMap::new();
        headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let response = self.send(Method::HEAD, key, "", &headers, &what).await?;
        let Some(size) = content_len(response.headers()) else {
            return Err(unusable(&format!(
                "{what}: the server does not tell its length"
            )));
        };
        Ok(stamp_of(response.headers(), size))
    }

    async fn read_key(
        &self,
        path: &[u8],
        expected: &ObjectStamp,
        range: Range<u64>,
    ) -> Result<ByteStream, SourceError> {
        let key = self.key(path)?;
        let what = self.name(&key);
        http::check_bounds(&what, expected, &range)?;
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        let wanted = Wanted {
            what: &what,
            expected,
            range,
            stored_encoding: true,
        };
        let query = match &expected.version {
            Some(version) => format!("versionId={}", encode_path(version.as_bytes())),
            None => String::new(),
        };
        let headers = wanted.headers();
        let response = self
            .send(Method::GET, &key, &query, &headers, &what)
            .await?;
        if wanted.needs_ranges() && wanted.leaves_ranges_open(&response) {
            let probe = second_byte();
            let probe = self.send(Method::GET, &key, &query, &probe, &what);
            if !self.ranges.are_answered("", probe).await? {
                return Err(wanted.without_ranges());
            }
        }
        wanted.body(response)
    }

    async fn page(&self, prefix: &[u8], n_keys: usize, after: &str) -> Result<Page, SourceError> {
        let mut query = format!("encoding-type=url&list-type=2&max-keys={n_keys}");
        for (name, value) in [("continuation-token", after.as_bytes()), ("prefix", prefix)] {
            if !value.is_empty() {
                query.push_str(&format!(
                    "&{name}={}",
                    encode_path(value).replace('/', "%2F")
                ));
            }
        }
        let what = format!("the listing of {}", self.name(prefix));
        let headers = HeaderMap::new();
        let response = self.send(Method::GET, b"", &query, &headers, &what).await?;
        let body = http::whole(response, PAGE_LEN_MAX, &what).await?;
        page(&body).map_err(|error| unusable(&format!("{what}: {error}")))
    }
}

impl Source for S3 {
    fn url(&self) -> &str {
        &self.url
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async move {
            let key = self.key(path)?;
            self.stat_key(&key).await
        })
    }

    fn read<'a>(
        &'a self,
        path: &'a [u8],
        expected: &'a ObjectStamp,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<ByteStream, SourceError>> {
        Box::pin(self.read_key(path, expected, range))
    }

    fn list<'a>(&'a self, prefix: &'a [u8]) -> ObjectStream<'a> {
        let walk = Walk {
            source: self,
            key: Vec::new(),
            step: Step::Itself,
            course: Course::default(),
            waiting: VecDeque::new(),
            path: prefix,
        };
        Box::pin(stream::try_unfold(walk, |mut walk| async move {
            let listed = walk.next().await?;
            Ok(listed.map(|listed| (listed, walk)))
        }))
    }
}

/// A listing on its way.
struct Walk<'a> {
    source: &'a S3,
    path: &'a [u8],
    /// The key of `path`, or of the whole source.
    key: Vec<u8>,
    step: Step,
    course: Course,
    waiting: VecDeque<Item>,
}

enum Step {
    /// The object that has this very key, if there is one, comes first in the order of keys.
    Itself,
    /// The page that begins with this token.
    Below(String),
    End,
}

impl Walk<'_> {
    async fn next(&mut self) -> Result<Option<Listed>, SourceError> {
        loop {
            while let Some(item) = self.waiting.pop_front() {
                if let Some(listed) = self.listed(item) {
                    return Ok(Some(listed));
                }
            }
            match std::mem::replace(&mut self.step, Step::End) {
                Step::Itself => self.itself().await?,
                Step::Below(token) => {
                    let page = patiently(|| self.source.page(&self.key, PAGE_KEYS, &token)).await?;
                    if !self.course.is_sound(&page, &token) {
                        let url = &self.source.url;
                        return Err(unusable(&format!("{url}: its listing goes in circles")));
                    }
                    self.waiting = page.objects.into();
                    if let Some(next) = page.next {
                        self.step = Step::Below(next);
                    }
                }
                Step::End => return Ok(None),
            }
        }
    }

    async fn itself(&mut self) -> Result<(), SourceError> {
        self.step = Step::Below(String::new());
        if self.path.is_empty() && self.source.prefix.is_empty() {
            return Ok(());
        }
        self.key = self.source.key(self.path)?;
        let page = patiently(|| self.source.page(&self.key, 1, "")).await?;
        let same = |item: &Item| item.key == self.key;
        self.waiting = page.objects.into_iter().filter(same).collect();
        self.key.push(b'/');
        Ok(())
    }

    /// An object as the trait names it; `None` for the marker of the whole source.
    fn listed(&self, item: Item) -> Option<Listed> {
        let prefix = self.source.prefix.as_bytes();
        let rest = item.key.strip_prefix(prefix)?;
        let path = match (prefix.is_empty(), rest) {
            (true, rest) => rest,
            (false, b"") => b"",
            (false, rest) => rest.strip_prefix(b"/")?,
        };
        let why = if item.key.ends_with(b"/") {
            let marked = path.strip_suffix(b"/").unwrap_or(path);
            if item.stamp.size == 0 && marked.is_empty() {
                return None;
            }
            match odd_key(marked) {
                None if item.stamp.size == 0 => {
                    return Some(Listed::Folder {
                        path: marked.to_vec(),
                    });
                }
                None => "is the marker of a folder, and has content",
                Some(why) => why,
            }
        } else {
            match odd_key(&item.key) {
                None => {
                    return Some(Listed::Object {
                        path: path.to_vec(),
                        stamp: item.stamp,
                    });
                }
                Some(why) => why,
            }
        };
        Some(Listed::Odd {
            path: path.to_vec(),
            why: why.to_owned(),
        })
    }
}

/// Whether a server may tell so of a region.
fn is_region(text: &str) -> bool {
    let names = |c: char| c.is_ascii_alphanumeric() || c == '-';
    !text.is_empty() && text.len() <= 64 && text.chars().all(names)
}

/// Whether a server's words repeat a part of what a request was signed with: keys and tokens are
/// longer than any word.
fn repeats(message: &str, signed: &[HeaderValue]) -> bool {
    const PART_LEN_MIN: usize = 17; // One more than that of AWS4-HMAC-SHA256.
    let parts = signed.iter().filter_map(|value| value.to_str().ok());
    let parts = parts.flat_map(|value| {
        let whole = std::iter::once(value);
        whole.chain(value.split([' ', ',', '=', '/']))
    });
    parts
        .filter(|part| part.len() >= PART_LEN_MIN)
        .any(|part| message.contains(part))
}

fn domain(region: &str) -> String {
    let suffix = if region.starts_with("cn-") { ".cn" } else { "" };
    format!("{region}.amazonaws.com{suffix}")
}

fn check_endpoint(endpoint: &str) -> Result<(), SourceError> {
    let bad = |why: &str| Err(unusable(&format!("AWS_ENDPOINT_URL (--endpoint) {why}")));
    let Ok(url) = Url::parse(endpoint) else {
        return bad("is no URL: it is http(s)://HOST[:PORT]");
    };
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() {
        return bad("is no URL of a web server: it is http(s)://HOST[:PORT]");
    }
    if !url.username().is_empty() || url.password().is_some() || url.query().is_some() {
        return bad("must not have credentials or a query in it");
    }
    Ok(())
}

fn unusable(why: &str) -> SourceError {
    SourceError::new(SourceErrorKind::Unusable, why)
}
