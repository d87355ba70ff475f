//! Where a source is, as a person writes it, made into a row.
//!
//! In       a URL or a folder, and where its credentials are.
//! Out      a [`SourceRecord`] without secrets.
//! Not here opening it (`store::sources`).

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::RESERVED;
use crate::cli::Env;
use crate::cli::args::SourceAccess;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::ingest::remote::target::is_url;
use crate::store::catalog::SourceRecord;

/// Longest name of a source, in bytes.
const NAME_LEN_MAX: usize = 64;

/// The row of a source at `place`, named after it.
pub(super) fn record(place: &OsStr, access: &SourceAccess, env: &Env<'_>) -> Result<SourceRecord> {
    let is_elsewhere = is_url(place);
    let url = if is_elsewhere {
        url(place)?
    } else {
        folder(place, env)?
    };
    let is_bucket = is_elsewhere && !url.starts_with("http");
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let mut endpoint = given(&access.endpoint);
    let mut region = given(&access.region);
    let is_given = access.endpoint.is_some() || access.region.is_some();
    if is_given && !is_bucket {
        return Err(invalid("--endpoint and --region are for buckets"));
    }
    if url.starts_with("s3://") {
        let names = ["AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"];
        let first = |names: &[&str]| names.iter().find_map(|name| env.environment.get(name));
        if endpoint.is_empty() {
            endpoint = first(&names).unwrap_or_default().to_owned();
        }
        if region.is_empty() {
            let names = ["AWS_REGION", "AWS_DEFAULT_REGION"];
            region = first(&names).unwrap_or_default().to_owned();
        }
    }
    if !endpoint.is_empty() {
        is_harmless(&endpoint)?;
        if !endpoint.starts_with("http://") && !endpoint.starts_with("https://") {
            return Err(invalid(
                "an endpoint is a URL: http://HOST:PORT or https://HOST",
            ));
        }
    }
    let credentials = match &access.credentials {
        Some(given) if is_elsewhere => credentials(given, env)?,
        Some(_) => return Err(invalid("a folder needs no credentials")),
        None if is_elsewhere => "env".to_owned(),
        None => "none".to_owned(),
    };
    Ok(SourceRecord {
        name: url.clone(),
        url,
        endpoint,
        region,
        credentials,
        created_unix: crate::clock::unix_seconds(),
    })
}

/// What may be the name of a source.
pub(super) fn check_name(name: &str) -> Result<()> {
    let is_plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c);
    if name.is_empty() || name.len() > NAME_LEN_MAX || !name.chars().all(is_plain) {
        return Err(invalid(
            "a name has 1 to 64 characters of a-z, 0-9, `.`, `_` and `-`",
        ));
    }
    if RESERVED.contains(&name) {
        let what = format!("{name} stands for what lies on this machine: take another name");
        return Err(invalid(&what));
    }
    Ok(())
}

/// A URL in the spelling that the catalog has.
fn url(place: &OsStr) -> Result<String> {
    let url = place
        .to_str()
        .ok_or_else(|| invalid("a URL must be UTF-8; percent-encode other bytes"))?;
    is_harmless(url)?;
    Ok(url.trim_end_matches('/').to_owned())
}

/// A URL must not carry a secret: it is written to the catalog, to logs and to screens. The error
/// does not repeat it.
fn is_harmless(url: &str) -> Result<()> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    let host = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if host.contains('@') {
        return Err(invalid(
            "a URL must not have a user or password in it: say where credentials are, by \
             --credentials env, profile:NAME or file:PATH",
        ));
    }
    // In a bucket `?` may be part of a key.
    if scheme.starts_with("http") && rest.contains(['?', '#']) {
        return Err(invalid(
            "a source's URL has no query: signed URLs expire, say where credentials are instead",
        ));
    }
    Ok(())
}

fn folder(place: &OsStr, env: &Env<'_>) -> Result<String> {
    let path = env.path(Path::new(place));
    let cannot = || format!("cannot use {}", path.display());
    let real = std::fs::canonicalize(&path).context(ErrorKind::Invalid, cannot)?;
    if !real.is_dir() {
        return Err(invalid("a source on this machine is a folder"));
    }
    let text = real.to_str().map(str::to_owned);
    text.ok_or_else(|| invalid("the path of a source must be UTF-8"))
}

fn credentials(given: &str, env: &Env<'_>) -> Result<String> {
    if let Some(path) = given.strip_prefix("file:").filter(|path| !path.is_empty()) {
        let path = env.path(Path::new(OsStr::from_bytes(path.as_bytes())));
        return Ok(format!("file:{}", path.display()));
    }
    let is_profile = given
        .strip_prefix("profile:")
        .is_some_and(|name| !name.is_empty());
    if is_profile || ["env", "web-identity", "none"].contains(&given) {
        return Ok(given.to_owned());
    }
    // Not repeated: somebody may have written the secret itself.
    Err(invalid(
        "--credentials says where they are: env, profile:NAME, file:PATH, web-identity or none",
    ))
}

fn invalid(what: &str) -> Error {
    Error::new(ErrorKind::Invalid, what)
}
