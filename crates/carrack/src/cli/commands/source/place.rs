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
use crate::source::config::SourceConfig;
use crate::source::url::{SourceUrl, origin_of};
use crate::store::catalog::SourceRecord;

/// Longest name of a source, in bytes.
const NAME_LEN_MAX: usize = 64;

/// The row of a source at `place`, named after it.
pub(super) fn record(place: &OsStr, access: &SourceAccess, env: &Env<'_>) -> Result<SourceRecord> {
    let place_url = match place.to_str() {
        Some(text) => SourceUrl::parse(text)?,
        None if is_url(place) => {
            return Err(invalid("a URL must be UTF-8; percent-encode other bytes"));
        }
        None => None,
    };
    let is_elsewhere = place_url.is_some();
    let is_bucket = place_url
        .as_ref()
        .is_some_and(|url| url.scheme().is_bucket());
    let config = match &place_url {
        Some(url) => SourceConfig::from_environment(url, env.environment),
        None => SourceConfig {
            url: folder(place, env)?,
            credentials: "none".to_owned(),
            ..SourceConfig::default()
        },
    };
    let is_given = access.endpoint.is_some() || access.region.is_some();
    if is_given && !is_bucket {
        return Err(invalid("--endpoint and --region are for buckets"));
    }
    let endpoint = access.endpoint.clone().unwrap_or(config.endpoint);
    let region = access.region.clone().unwrap_or(config.region);
    if !endpoint.is_empty() {
        check_endpoint(&endpoint)?;
    }
    if (access.allow_private || !access.allow_redirect.is_empty()) && (is_bucket || !is_elsewhere) {
        return Err(invalid(
            "--allow-redirect and --allow-private are for web servers",
        ));
    }
    let redirects = access.allow_redirect.iter().map(|text| origin_of(text));
    let credentials = match &access.credentials {
        Some(given) if is_elsewhere => credentials(given, env)?,
        Some(_) => return Err(invalid("a folder needs no credentials")),
        None => config.credentials,
    };
    Ok(SourceRecord {
        name: config.url.clone(),
        url: config.url,
        endpoint,
        region,
        credentials,
        created_unix: crate::clock::unix_seconds(),
        redirects: redirects.collect::<Result<_>>()?,
        private: access.allow_private,
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

/// An endpoint must not carry a secret: it is written to the catalog, to logs and to screens. The
/// error does not repeat it.
fn check_endpoint(url: &str) -> Result<()> {
    let rest = url
        .strip_prefix("http://")
        .or_else(|| url.strip_prefix("https://"))
        .ok_or_else(|| invalid("an endpoint is a URL: http://HOST:PORT or https://HOST"))?;
    if rest.contains(['@', '?', '#']) {
        return Err(invalid(
            "an endpoint must not have a user, password or query in it: say where credentials \
             are, by --credentials env, profile:NAME or file:PATH",
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
