//! Buckets of Google Cloud Storage and containers of Azure, through `object_store`.
//!
//! In       a bucket, a prefix in it, where credentials are.
//! Out      a [`Source`] of the objects below the prefix.
//! Limits   one request a read, never repeated here; [`IDLE_TIMEOUT`] between two pieces,
//!          [`PAGE_TIME_MAX`] for a page of a listing. The library follows redirects by itself,
//!          without logins to other hosts.
//! Not here Amazon S3 (`source::s3`), whose listings tell keys that this library refuses: here a
//!          key with an empty name in it ends the listing with an error.
//!
//! The same checks as in `source::http` are made on what the library passes on.

use std::ops::Range;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, StreamExt};
use object_store::azure::{AzureConfigKey, MicrosoftAzureBuilder};
use object_store::gcp::{GoogleCloudStorageBuilder, GoogleConfigKey};
use object_store::path::Path;
use object_store::{ClientOptions, GetOptions, GetRange, ObjectMeta, ObjectStore, RetryConfig};

use crate::source::config::{Environment, SourceConfig};
use crate::source::http::{check_bounds, strong_etag};
use crate::source::url::{Scheme, SourceUrl, odd_key};
use crate::source::validator::{FileTime, ObjectStamp};
use crate::source::{
    BoxFuture, ByteStream, Listed, ObjectStream, Source, SourceError, SourceErrorKind, printable,
};

/// As in `source::http`.
const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
const FIRST_BYTE_TIMEOUT: Duration = Duration::from_secs(15);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A page has at most 5,000 keys.
const PAGE_TIME_MAX: Duration = Duration::from_secs(120);

/// A bucket or container, or the part of it below a prefix.
#[derive(Debug)]
pub(super) struct ObjectSource {
    url: String,
    prefix: String,
    store: Arc<dyn ObjectStore>,
}

impl ObjectSource {
    pub(super) fn new(
        config: &SourceConfig,
        url: &SourceUrl,
        environment: &Environment,
    ) -> Result<Self, SourceError> {
        let store = match url.scheme() {
            Scheme::Azure => azure(config, url, environment)?,
            _ => google(config, url, environment)?,
        };
        Ok(Self::over(store, url))
    }

    fn over(store: Arc<dyn ObjectStore>, url: &SourceUrl) -> Self {
        Self {
            url: url.to_string(),
            prefix: url.path().to_owned(),
            store,
        }
    }

    fn key(&self, path: &[u8]) -> Result<Path, SourceError> {
        let mut key = self.prefix.clone().into_bytes();
        if !key.is_empty() && !path.is_empty() {
            key.push(b'/');
        }
        key.extend_from_slice(path);
        let refused = |why: &str| {
            let key = printable(&key);
            unusable(&format!("{}: the key {key} {why}", self.url))
        };
        if let Some(why) = odd_key(&key) {
            return Err(refused(why));
        }
        let key = std::str::from_utf8(&key).map_err(|_| refused("is no Unicode text"))?;
        Path::parse(key).map_err(|_| refused("cannot be asked for"))
    }

    async fn get(&self, path: &[u8], options: GetOptions) -> Result<Got, SourceError> {
        let key = self.key(path)?;
        let what = format!("{}: {}", self.url, printable(key.as_ref().as_bytes()));
        let asked = self.store.get_opts(&key, options);
        let Ok(result) = tokio::time::timeout(FIRST_BYTE_TIMEOUT, asked).await else {
            return Err(SourceError::new(
                SourceErrorKind::Unreachable,
                format!("{what}: no answer"),
            ));
        };
        let result = result.map_err(|error| failure(&error, &what))?;
        Ok(Got {
            stamp: stamp_of(&result.meta),
            range: result.range.clone(),
            body: result.into_stream(),
            what,
        })
    }

    async fn read_key(
        &self,
        path: &[u8],
        expected: &ObjectStamp,
        range: Range<u64>,
    ) -> Result<ByteStream, SourceError> {
        check_bounds(&self.url, expected, &range)?;
        if range.is_empty() {
            return Ok(Box::pin(stream::empty()));
        }
        let options = GetOptions {
            if_match: expected.etag.as_ref().map(ToString::to_string),
            version: expected.version.as_ref().map(ToString::to_string),
            range: Some(GetRange::Bounded(range.clone())),
            ..GetOptions::default()
        };
        let got = self.get(path, options).await?;
        if !expected.agrees_with(&got.stamp) {
            return Err(SourceError::new(
                SourceErrorKind::Changed,
                format!("{}: it was changed since it was read first", got.what),
            ));
        }
        if got.range != range {
            return Err(unusable(&format!(
                "{}: the answer is another range",
                got.what
            )));
        }
        let left = range.end - range.start;
        Ok(Box::pin(stream::try_unfold(
            (got, left),
            |(mut got, left)| async move {
                let piece = got.next(left).await?;
                Ok(piece.map(|piece| {
                    let left = left - piece.len() as u64;
                    (piece, (got, left))
                }))
            },
        )))
    }

    fn listed(&self, meta: &ObjectMeta) -> Option<Listed> {
        let key = meta.location.as_ref();
        let path = match self.prefix.as_str() {
            "" => key,
            prefix => match key.strip_prefix(prefix)? {
                "" => "",
                rest => rest.strip_prefix('/')?,
            },
        };
        Some(Listed::Object {
            path: path.as_bytes().to_vec(),
            stamp: stamp_of(meta),
        })
    }
}

/// An answer on its way.
struct Got {
    stamp: ObjectStamp,
    range: Range<u64>,
    body: BoxStream<'static, object_store::Result<Bytes>>,
    what: String,
}

impl Got {
    async fn next(&mut self, left: u64) -> Result<Option<Bytes>, SourceError> {
        if left == 0 {
            return Ok(None);
        }
        let broken = |why: &str| {
            let why = format!("{}: {why}", self.what);
            Err(SourceError::new(SourceErrorKind::Unreachable, why))
        };
        match tokio::time::timeout(IDLE_TIMEOUT, self.body.next()).await {
            Ok(Some(Ok(piece))) if piece.len() as u64 > left => Err(unusable(&format!(
                "{}: the answer is longer than its range",
                self.what
            ))),
            Ok(Some(Ok(piece))) => Ok(Some(piece)),
            Ok(Some(Err(error))) => Err(failure(&error, &self.what)),
            Ok(None) => broken("the answer broke off"),
            Err(_) => broken("nothing came for 30 s"),
        }
    }
}

impl Source for ObjectSource {
    fn url(&self) -> &str {
        &self.url
    }

    fn stat<'a>(&'a self, path: &'a [u8]) -> BoxFuture<'a, Result<ObjectStamp, SourceError>> {
        Box::pin(async move {
            let options = GetOptions {
                head: true,
                ..GetOptions::default()
            };
            Ok(self.get(path, options).await?.stamp)
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
        let key = match self.key(prefix) {
            Ok(key) => key,
            Err(error) => return Box::pin(stream::iter([Err(error)])),
        };
        let what = format!("the listing of {}", self.url);
        // The library lists what is below a whole name, and not the object of that name.
        let is_all = key.as_ref().is_empty();
        let itself = stream::once(async move {
            if is_all {
                return None;
            }
            match self.stat(prefix).await {
                Ok(stamp) => Some(Ok(Listed::Object {
                    path: prefix.to_vec(),
                    stamp,
                })),
                Err(error) if error.kind == SourceErrorKind::Missing => None,
                Err(error) => Some(Err(error)),
            }
        });
        let below = self.store.list((!is_all).then_some(&key));
        let below = stream::unfold(Some((below, what)), move |listing| async move {
            let (mut below, what) = listing?;
            match tokio::time::timeout(PAGE_TIME_MAX, below.next()).await {
                Ok(None) => None,
                Ok(Some(Ok(meta))) => Some((self.listed(&meta).map(Ok), Some((below, what)))),
                Ok(Some(Err(error))) => Some((Some(Err(failure(&error, &what))), None)),
                Err(_) => {
                    let why = format!("{what}: no page within {} s", PAGE_TIME_MAX.as_secs());
                    let error = SourceError::new(SourceErrorKind::Unreachable, why);
                    Some((Some(Err(error)), None))
                }
            }
        });
        Box::pin(itself.chain(below).filter_map(std::future::ready))
    }
}

fn google(
    config: &SourceConfig,
    url: &SourceUrl,
    environment: &Environment,
) -> Result<Arc<dyn ObjectStore>, SourceError> {
    let mut builder = GoogleCloudStorageBuilder::new();
    match credentials(config)? {
        Credentials::None => builder = builder.with_skip_signature(true),
        Credentials::File(path) => builder = builder.with_application_credentials(path),
        Credentials::Environment => {
            for (name, value) in environment.iter() {
                if let Ok(key) = GoogleConfigKey::from_str(&name.to_ascii_lowercase()) {
                    builder = builder.with_config(key, value);
                }
            }
            if let Some(path) = environment.get("GOOGLE_APPLICATION_CREDENTIALS") {
                builder = builder.with_application_credentials(path);
            }
        }
    }
    if !config.endpoint.is_empty() {
        builder = builder.with_base_url(&config.endpoint);
    }
    let store = builder
        .with_bucket_name(url.host())
        .with_retry(never())
        .with_client_options(client())
        .build();
    match store {
        Ok(store) => Ok(Arc::new(store)),
        // What the library says may repeat a part of a key.
        Err(_) => Err(unusable(
            "the credentials of Google cannot be used: set GOOGLE_APPLICATION_CREDENTIALS to the \
             file of a service account, or --credentials file:PATH, or none for a public bucket",
        )),
    }
}

fn azure(
    config: &SourceConfig,
    url: &SourceUrl,
    environment: &Environment,
) -> Result<Arc<dyn ObjectStore>, SourceError> {
    let mut builder = MicrosoftAzureBuilder::new();
    let credentials = credentials(config)?;
    for (name, value) in environment.iter() {
        let is_account = name == "AZURE_STORAGE_ACCOUNT_NAME";
        let wanted = is_account || matches!(credentials, Credentials::Environment);
        if let (true, Ok(key)) = (wanted, AzureConfigKey::from_str(&name.to_ascii_lowercase())) {
            builder = builder.with_config(key, value);
        }
    }
    match credentials {
        Credentials::None => builder = builder.with_skip_signature(true),
        Credentials::Environment => {}
        Credentials::File(_) => {
            return Err(unusable("--credentials of az:// is env or none"));
        }
    }
    if !config.endpoint.is_empty() {
        builder = builder.with_endpoint(config.endpoint.clone());
    }
    let store = builder
        .with_container_name(url.host())
        .with_retry(never())
        .with_client_options(client())
        .build();
    match store {
        Ok(store) => Ok(Arc::new(store)),
        Err(_) => Err(unusable(
            "set AZURE_STORAGE_ACCOUNT_NAME and one of AZURE_STORAGE_ACCOUNT_KEY, \
             AZURE_STORAGE_SAS_KEY or AZURE_CLIENT_ID with its secret; --credentials none for a \
             public container",
        )),
    }
}

enum Credentials<'a> {
    None,
    Environment,
    File(&'a str),
}

fn credentials(config: &SourceConfig) -> Result<Credentials<'_>, SourceError> {
    match config.credentials.as_str() {
        "none" => Ok(Credentials::None),
        "" | "env" | "web-identity" => Ok(Credentials::Environment),
        reference => match reference.strip_prefix("file:") {
            Some(path) => Ok(Credentials::File(path)),
            None => Err(unusable("--credentials is env, file:PATH or none")),
        },
    }
}

/// Trying again is the caller's: it knows who waits.
fn never() -> RetryConfig {
    RetryConfig {
        max_retries: 0,
        ..RetryConfig::default()
    }
}

fn client() -> ClientOptions {
    ClientOptions::new()
        .with_http1_only()
        .with_connect_timeout(CONNECT_TIMEOUT)
        // A body may take as long as it needs; pieces have their own deadline.
        .with_timeout_disabled()
}

fn stamp_of(meta: &ObjectMeta) -> ObjectStamp {
    ObjectStamp {
        size: meta.size,
        etag: meta.e_tag.as_deref().and_then(strong_etag),
        version: meta.version.as_deref().map(Into::into),
        modified: Some(FileTime {
            secs: meta.last_modified.timestamp(),
            nanos: meta.last_modified.timestamp_subsec_nanos(),
        }),
    }
}

fn failure(error: &object_store::Error, what: &str) -> SourceError {
    use object_store::Error;
    // The library's own text holds URLs, which may be signed: it is not passed on.
    let (kind, why) = match error {
        Error::NotFound { .. } => (SourceErrorKind::Missing, "there is no such object"),
        Error::Precondition { .. } | Error::NotModified { .. } => (
            SourceErrorKind::Changed,
            "it was changed since it was read first",
        ),
        Error::PermissionDenied { .. } | Error::Unauthenticated { .. } => (
            SourceErrorKind::Denied,
            "the server does not allow it with these credentials",
        ),
        Error::InvalidPath { .. } => (
            SourceErrorKind::Unusable,
            "a key in it cannot be asked for: rename the object or add another prefix",
        ),
        _ => (
            SourceErrorKind::Unreachable,
            "the server did not answer as it should",
        ),
    };
    SourceError::new(kind, format!("{what}: {why}"))
}

fn unusable(why: &str) -> SourceError {
    SourceError::new(SourceErrorKind::Unusable, why)
}

#[cfg(test)]
mod tests;
