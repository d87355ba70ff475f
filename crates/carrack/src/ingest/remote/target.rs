//! Which source a URL belongs to.
//!
//! In       a URL of the command line, and the variables of whoever gave it.
//! Out      a [`Target`]: an open source and a path below it; a new row in the catalog if no
//!          configured source holds the URL.
//! Not here what a source does (`source`), listing and reading (`ingest::remote`).

use std::borrow::Cow;
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::source::{Environment, SourceConfig};
use crate::store::Store;
use crate::store::catalog::{Batch, SourceRecord};
use crate::store::sources::{OpenSource, Sources};

/// The schemes of what can be added from elsewhere.
const SCHEMES: [&str; 5] = ["s3://", "gs://", "az://", "http://", "https://"];

/// Something in a source.
#[derive(Debug, Clone)]
pub struct Target {
    /// The source.
    pub source: Arc<OpenSource>,
    /// The path below it: of an object, or of a folder; empty for all of the source.
    pub path: Vec<u8>,
}

impl Target {
    /// Where it is, as a person writes it.
    #[must_use]
    pub fn url(&self) -> Vec<u8> {
        let mut url = self.source.source.url().as_bytes().to_vec();
        if !self.path.is_empty() {
            if !url.ends_with(b"/") {
                url.push(b'/');
            }
            url.extend_from_slice(&self.path);
        }
        url
    }

    /// The same, as a path that errors can show.
    #[must_use]
    pub fn shown(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.url()))
    }

    /// Its name in a directory.
    pub(super) fn name(&self) -> Result<Vec<u8>> {
        let url = self.url();
        let url = url.strip_suffix(b"/").unwrap_or(&url);
        let name = url.rsplit(|&byte| byte == b'/').next();
        let name = name.filter(|name| !name.is_empty()).ok_or_else(|| {
            Error::new(
                ErrorKind::Invalid,
                "what has no name cannot be wrapped into a directory",
            )
        })?;
        Ok(name.to_vec())
    }
}

/// Whether an argument is a URL of a place elsewhere, not a path of this machine.
#[must_use]
pub fn is_url(argument: &OsStr) -> bool {
    let bytes = argument.as_bytes();
    SCHEMES.iter().any(|scheme| {
        bytes
            .get(..scheme.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()))
    })
}

/// Finds the source that `url` lies in, or configures one. What `environment` tells is kept in
/// memory for it, so that the source stays readable while this process runs.
///
/// # Errors
/// `Invalid` if the URL cannot be a place; those of the catalog.
pub fn target(
    store: &Arc<Store>,
    sources: &Sources,
    url: &OsStr,
    environment: &Environment,
) -> Result<Target> {
    find(store, sources, url, environment, |url| url.to_owned())
}

/// The same for a URL that names one object: a source made for it is the folder it lies in.
///
/// # Errors
/// As [`target`].
pub fn object(
    store: &Arc<Store>,
    sources: &Sources,
    url: &OsStr,
    environment: &Environment,
) -> Result<Target> {
    find(store, sources, url, environment, |url| {
        parent(url).to_owned()
    })
}

/// The URL of the folder that an object lies in.
fn parent(url: &str) -> &str {
    let path_start = url.find("://").map_or(0, |at| at + 3);
    let path = url.get(path_start..).unwrap_or_default();
    match path.trim_end_matches('/').rfind('/') {
        Some(slash) => url.get(..path_start + slash).unwrap_or(url),
        None => url,
    }
}

fn find(
    store: &Arc<Store>,
    sources: &Sources,
    url: &OsStr,
    environment: &Environment,
    new_base: impl Fn(&str) -> String,
) -> Result<Target> {
    let url = url.to_str().ok_or_else(|| {
        let what = "a URL must be UTF-8; percent-encode other bytes";
        Error::new(ErrorKind::Invalid, what)
    })?;
    let _ingest = store.ingest_lock(); // Nobody else configures the same source meanwhile.
    let configured = store.catalog().sources()?;
    let found = configured
        .iter()
        .filter_map(|(id, record)| Some((*id, record, below(url, &record.url)?)))
        .max_by_key(|(_, record, _)| record.url.len());
    if let Some((id, record, path)) = found {
        if record.credentials == "env" {
            sources.lend(id, environment);
        }
        let source = sources.get(id)?;
        return Ok(Target { source, path });
    }
    let base = new_base(url);
    let config = configure(&base, environment);
    let record = SourceRecord {
        name: config.url.clone(),
        url: config.url,
        endpoint: config.endpoint,
        region: config.region,
        credentials: config.credentials,
        created_unix: crate::clock::unix_seconds(),
    };
    let id = store.catalog().next_source();
    sources.lend(id, environment);
    let mut batch = Batch::new();
    batch.put_source(id, &record);
    store.commit(batch)?;
    let source = sources.get(id)?;
    let path = below(url, &record.url).unwrap_or_default();
    Ok(Target { source, path })
}

/// What a new source at `url` needs, where `environment` tells it.
fn configure(url: &str, environment: &Environment) -> SourceConfig {
    let get = |name: &str| environment.get(name).unwrap_or_default().to_owned();
    let or = |first: String, second: &str| match first.is_empty() {
        true => get(second),
        false => first,
    };
    SourceConfig {
        url: url.trim_end_matches('/').to_owned(),
        endpoint: or(get("AWS_ENDPOINT_URL_S3"), "AWS_ENDPOINT_URL"),
        region: or(get("AWS_REGION"), "AWS_DEFAULT_REGION"),
        credentials: "env".to_owned(),
    }
}

/// The path of `url` below a source's URL; `None` if it is not there.
fn below(url: &str, base: &str) -> Option<Vec<u8>> {
    let base = base.trim_end_matches('/');
    let rest = url.strip_prefix(base)?;
    if !rest.is_empty() && !rest.starts_with('/') {
        return None;
    }
    let rest = rest.trim_matches('/');
    let is_http = base.starts_with("http://") || base.starts_with("https://");
    let path: Cow<'_, [u8]> = match is_http {
        true => percent_encoding::percent_decode_str(rest).into(),
        false => rest.as_bytes().into(), // Keys of buckets are written as they are.
    };
    Some(path.into_owned())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{below, is_url};

    #[test]
    fn urls_are_told_from_paths() {
        for url in ["s3://b/k", "S3://b", "https://h/", "az://c", "gs://b"] {
            assert!(is_url(OsStr::new(url)), "{url}");
        }
        for path in ["s3:/b", "dir", "/abs", "./https://x", "ftp://x", "s3"] {
            assert!(!is_url(OsStr::new(path)), "{path}");
        }
    }

    #[test]
    fn a_url_lies_below_another_only_at_a_slash() {
        for (url, base, path) in [
            ("s3://b/p/q r%20", "s3://b/p", Some("q r%20")),
            ("s3://b/p", "s3://b/p/", Some("")),
            ("s3://b/p/", "s3://b/p", Some("")),
            ("s3://b/pq", "s3://b/p", None),
            ("s3://b", "s3://b/p", None),
            ("https://h/a%20b/c", "https://h/", Some("a b/c")),
        ] {
            let expected = path.map(|path| path.as_bytes().to_vec());
            assert_eq!(below(url, base), expected, "{url} below {base}");
        }
    }
}
