//! Which source a URL belongs to.
//!
//! In       a URL of the command line, and the variables of whoever gave it.
//! Out      a [`Target`]: an open source and a path below it; a new row in the catalog if no
//!          configured source holds the URL, which goes again if nothing comes of it.
//! Not here what a source does (`source`), listing and reading (`ingest::remote`).

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::source::config::{Environment, SourceConfig};
use crate::source::url::SourceUrl;
use crate::store::Store;
use crate::store::catalog::{Batch, SourceRecord};
use crate::store::sources::{OpenSource, Sources};

/// Something in a source.
#[derive(Debug, Clone)]
pub struct Target {
    /// The source.
    pub source: Arc<OpenSource>,
    /// The path below it: of an object, or of a folder; empty for all of the source.
    pub path: Vec<u8>,
    /// The source was configured for this: nobody asked for it by itself.
    pub is_new: bool,
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

/// Whether an argument is a URL of a place elsewhere, not a path of this machine. One of an unknown
/// scheme is: it is refused by name later.
#[must_use]
pub fn is_url(argument: &OsStr) -> bool {
    let text = argument.to_str();
    text.is_some_and(|text| !matches!(SourceUrl::parse(text), Ok(None)))
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
    find(store, sources, url, environment, |url| url.to_string())
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
    find(store, sources, url, environment, parent)
}

/// The URL of the folder that an object lies in.
fn parent(url: &SourceUrl) -> String {
    let name_len = url.path().rsplit('/').next().map_or(0, str::len);
    let mut text = url.to_string();
    text.truncate(text.len() - name_len);
    text
}

fn find(
    store: &Arc<Store>,
    sources: &Sources,
    url: &OsStr,
    environment: &Environment,
    new_base: impl Fn(&SourceUrl) -> String,
) -> Result<Target> {
    let place = parse(url)?;
    let _ingest = store.ingest_lock(); // Nobody else configures the same source meanwhile.
    let configured = store.catalog().sources()?;
    let found = configured
        .iter()
        .filter_map(|(id, record)| {
            let path = place.below(&SourceUrl::parse(&record.url).ok()??)?;
            Some((*id, record, path))
        })
        .max_by_key(|(_, record, _)| record.url.len());
    if let Some((id, record, path)) = found {
        if record.credentials == "env" {
            sources.lend(id, environment);
        }
        let (source, is_new) = (sources.get(id)?, false);
        return Ok(Target {
            source,
            path,
            is_new,
        });
    }
    let base = parse(OsStr::new(&new_base(&place)))?;
    let config = SourceConfig::from_environment(&base, environment);
    let record = SourceRecord {
        name: config.url.clone(),
        url: config.url,
        endpoint: config.endpoint,
        region: config.region,
        credentials: config.credentials,
        created_unix: crate::clock::unix_seconds(),
        redirects: config.redirects,
        private: config.private,
    };
    sources.open(&record)?; // What cannot be one is not configured.
    let id = store.catalog().next_source();
    sources.lend(id, environment);
    let mut batch = Batch::new();
    batch.put_source(id, &record);
    store.commit(batch)?;
    let (source, is_new) = (sources.get(id)?, true);
    let path = place.below(&base).unwrap_or_default();
    Ok(Target {
        source,
        path,
        is_new,
    })
}

/// Forgets the source that was configured for `target` if nothing came of it: no root, and no
/// object that the next try need not read again.
///
/// # Errors
/// Those of the catalog.
pub fn settle(store: &Arc<Store>, sources: &Sources, target: &Target) -> Result<()> {
    if !target.is_new {
        return Ok(());
    }
    let id = target.source.id;
    let _ingest = store.ingest_lock(); // Somebody else may be about to bring something from there.
    let catalog = store.catalog();
    if catalog.source(id)?.is_none() || catalog.has_any_of(id)? || has_journals(store) {
        return Ok(());
    }
    let mut batch = Batch::new();
    batch.remove_source(id);
    store.commit(batch)?;
    sources.forget(id);
    Ok(())
}

/// Whether an add remembers how far it came in a big file. Journals do not tell whose: any one
/// keeps a source.
fn has_journals(store: &Store) -> bool {
    let journals = std::fs::read_dir(store.journal_dir());
    journals.is_ok_and(|mut journals| journals.next().is_some())
}

/// That a source is still configured. What is brought from one that is not could never be read.
/// Holds as long as the caller holds the ingest lock.
///
/// # Errors
/// `Unavailable` if it was forgotten since its [`Target`] was made; those of the catalog.
pub(in crate::ingest) fn require(store: &Store, source: &OpenSource) -> Result<()> {
    if store.catalog().source(source.id)?.is_some() {
        return Ok(());
    }
    let what = format!(
        "source {} was forgotten meanwhile: run it again",
        source.name
    );
    Err(Error::new(ErrorKind::Unavailable, what))
}

fn parse(url: &OsStr) -> Result<SourceUrl> {
    let bad = |what: &str| Error::new(ErrorKind::Invalid, what);
    let text = url.to_str();
    let text = text.ok_or_else(|| bad("a URL must be UTF-8; percent-encode other bytes"))?;
    SourceUrl::parse(text)?.ok_or_else(|| bad("this is no URL"))
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use super::{SourceUrl, is_url, parent};

    #[test]
    fn urls_are_told_from_paths() {
        for url in [
            "s3://b/k",
            "S3://b",
            "https://h/",
            "az://c",
            "gs://b",
            "ftp://x",
        ] {
            assert!(is_url(OsStr::new(url)), "{url}");
        }
        for path in ["s3:/b", "dir", "/abs", "./https://x", "s3"] {
            assert!(!is_url(OsStr::new(path)), "{path}");
        }
    }

    #[test]
    fn an_object_lies_in_the_folder_before_its_name() {
        for (url, folder, path) in [
            ("s3://b/p/x.car", "s3://b/p", "x.car"),
            ("s3://b/x y%20.car", "s3://b", "x y%20.car"),
            ("https://h/a/x%20y.car", "https://h/a/", "x y.car"),
            ("https://h:81/x.car", "https://h:81/", "x.car"),
        ] {
            let url = SourceUrl::parse(url).unwrap().unwrap();
            let base = SourceUrl::parse(&parent(&url)).unwrap().unwrap();
            assert_eq!(base.to_string(), folder);
            assert_eq!(url.below(&base).unwrap(), path.as_bytes());
        }
    }
}
