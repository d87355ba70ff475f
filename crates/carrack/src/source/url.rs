//! Names of places, as people type them and as the catalog keeps them.
//!
//! In       an argument of the command line.
//! Out      a [`SourceUrl`] in one spelling, so that the same place has the same name; or nothing,
//!          if the argument is a path of this machine.
//! Limits   [`URL_LEN_MAX`] bytes. Never a user, a password or a signature: those are refused.
//! Not here whether anything is there (`source`), names that people give to sources.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};
use reqwest::Url;

use crate::error::{Error, ErrorKind, Result};

/// Longest URL of a place, in bytes.
pub const URL_LEN_MAX: usize = 8 * 1024;

/// What stands for itself in a path: unreserved characters (RFC 3986, 2.3) and `/`.
const PATH: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'.')
    .remove(b'_')
    .remove(b'~')
    .remove(b'/');

/// Parts of a query that are a secret.
const SECRETS: [&str; 15] = [
    "x-amz-signature",
    "x-amz-credential",
    "x-amz-security-token",
    "x-goog-signature",
    "x-goog-credential",
    "awsaccesskeyid",
    "googleaccessid",
    "signature",
    "sig",
    "token",
    "access_token",
    "api_key",
    "apikey",
    "password",
    "secret",
];

/// Kinds of places.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// A bucket of Amazon S3 or of a server that speaks its protocol.
    S3,
    /// A bucket of Google Cloud Storage.
    Gcs,
    /// A container of Azure Blob Storage.
    Azure,
    /// A web server.
    Http,
    /// A web server, encrypted.
    Https,
}

impl Scheme {
    /// As a URL begins with it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::S3 => "s3",
            Self::Gcs => "gs",
            Self::Azure => "az",
            Self::Http => "http",
            Self::Https => "https",
        }
    }

    /// Whether it names a bucket and keys in it.
    #[must_use]
    pub const fn is_bucket(self) -> bool {
        matches!(self, Self::S3 | Self::Gcs | Self::Azure)
    }
}

/// The name of a place. Without credentials.
///
/// In `s3://`, `gs://` and `az://` URLs the text after the bucket is a key as it is, not
/// percent-encoded: what `aws s3 ls` prints can be pasted. Of a web server the path is
/// percent-encoded; one that ends in `/` names a directory, any other a file.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SourceUrl {
    scheme: Scheme,
    /// The bucket, or the host with a port that is not the usual one.
    host: String,
    /// Keys: without `/` at either end. Web: percent-encoded, from its first `/`.
    path: String,
}

impl SourceUrl {
    /// The place that `text` names; `None`: it is a path of this machine.
    ///
    /// # Errors
    /// `Invalid` if it is a URL that cannot be a place, or has credentials in it.
    pub fn parse(text: &str) -> Result<Option<Self>> {
        let Some((scheme, rest)) = text.split_once("://") else {
            return Ok(None);
        };
        let scheme = match scheme.to_ascii_lowercase().as_str() {
            "s3" => Scheme::S3,
            "gs" => Scheme::Gcs,
            "az" => Scheme::Azure,
            "http" => Scheme::Http,
            "https" => Scheme::Https,
            // A folder may have such a name; one that looks like a scheme is a slip.
            other if is_scheme(other) => return Err(refused(&unknown_scheme(other))),
            _ => return Ok(None),
        };
        if text.len() > URL_LEN_MAX {
            return Err(refused("a URL is longer than 8 KiB"));
        }
        if scheme.is_bucket() {
            Self::bucket_of(scheme, rest).map(Some)
        } else {
            Self::web_of(scheme, text).map(Some)
        }
    }

    fn bucket_of(scheme: Scheme, rest: &str) -> Result<Self> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let scheme_name = scheme.name();
        if bucket.contains('@') || bucket.contains(':') {
            return Err(refused(&format!(
                "a {scheme_name}:// URL is {scheme_name}://BUCKET/PREFIX: a server goes to \
                 --endpoint, credentials to --credentials or the environment"
            )));
        }
        let names = |c: char| c.is_ascii_alphanumeric() || ['.', '-', '_', '$'].contains(&c);
        if bucket.is_empty() || bucket.starts_with('.') || !bucket.chars().all(names) {
            return Err(refused(&format!(
                "{scheme_name}:// is followed by the name of a bucket"
            )));
        }
        if let Some((_, query)) = key.split_once('?') {
            refuse_secrets(query)?;
        }
        let path = key.trim_end_matches('/');
        if let Some(why) = odd_key(path.as_bytes()) {
            return Err(refused(&format!("{scheme_name}://{bucket}/{path}: {why}")));
        }
        Ok(Self {
            scheme,
            host: bucket.to_owned(),
            path: path.to_owned(),
        })
    }

    fn web_of(scheme: Scheme, text: &str) -> Result<Self> {
        let url = Url::parse(text).map_err(|error| {
            // The text itself may hold a password.
            refused(&format!(
                "a {}:// URL cannot be read: {error}",
                scheme.name()
            ))
        })?;
        if !url.username().is_empty() || url.password().is_some() {
            return Err(refused(
                "a URL must not have a user or a password in it: put the line \
                 `Authorization: Basic ...` into a file and name it by --credentials file:PATH",
            ));
        }
        if let Some(query) = url.query() {
            refuse_secrets(query)?;
            return Err(refused(
                "a place has no query string: name a path that can be read without it",
            ));
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return Err(refused("a URL of a web server needs a host"));
        };
        let host = match url.port() {
            Some(port) => format!("{host}:{port}"),
            None => host.to_owned(),
        };
        // One spelling: what need not be encoded is not, what must be is.
        let path = encode_path(&percent_decode_str(url.path()).collect::<Vec<u8>>());
        if url.path().to_ascii_lowercase().contains("%2f") {
            return Err(refused(
                "a / inside a name cannot be told from one between names",
            ));
        }
        Ok(Self { scheme, host, path })
    }

    /// What kind of place it is.
    #[must_use]
    pub const fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The bucket, or the host and port of a web server.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The key or prefix in a bucket; the percent-encoded path of a web server.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The path that this place has below `source`, the URL of a configured one; `None` if it does
    /// not lie there. Of a web server the path is decoded; it keeps a `/` at its end.
    #[must_use]
    pub fn below(&self, source: &Self) -> Option<Vec<u8>> {
        if (self.scheme, &self.host) != (source.scheme, &source.host) {
            return None;
        }
        if self.path == source.path {
            return Some(Vec::new());
        }
        if self.scheme.is_bucket() {
            let rest = match source.path.as_str() {
                "" => self.path.as_str(),
                prefix => self.path.strip_prefix(prefix)?.strip_prefix('/')?,
            };
            return Some(rest.as_bytes().to_vec());
        }
        // What a file's URL is followed by is no part of it.
        let rest = self.path.strip_prefix(source.path.as_str())?;
        let directory = source.path.ends_with('/');
        directory.then(|| percent_decode_str(rest).collect())
    }

    /// The last name in it, for naming what is made of it.
    #[must_use]
    pub fn last_name(&self) -> Vec<u8> {
        let path = self.path.trim_end_matches('/');
        let name = path.rsplit('/').next().unwrap_or_default();
        match name {
            "" => self.host.as_bytes().to_vec(),
            name if self.scheme.is_bucket() => name.as_bytes().to_vec(),
            name => percent_decode_str(name).collect(),
        }
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let slash = if self.scheme.is_bucket() && !self.path.is_empty() {
            "/"
        } else {
            ""
        };
        write!(
            f,
            "{}://{}{slash}{}",
            self.scheme.name(),
            self.host,
            self.path
        )
    }
}

/// The origin of a web server, `https://HOST[:PORT]`, in one spelling. What was written is not
/// repeated in the error: it may hold a secret.
///
/// # Errors
/// `Invalid` if it is none, or more than that.
pub fn origin_of(text: &str) -> Result<String> {
    let bad = || refused("an origin is http(s)://HOST[:PORT], without a path or a login");
    let url = Url::parse(text).map_err(|_| bad())?;
    let is_plain = url.username().is_empty()
        && url.password().is_none()
        && url.query().is_none()
        && url.fragment().is_none()
        && url.path() == "/";
    if !is_plain || !matches!(url.scheme(), "http" | "https") {
        return Err(bad());
    }
    Ok(url.origin().ascii_serialization())
}

/// Whether two URLs of web servers are of one origin; false for what is none.
#[must_use]
pub fn is_same_origin(a: &str, b: &str) -> bool {
    let origin = |text: &str| Url::parse(text).ok().map(|url| url.origin());
    origin(a).is_some_and(|a| a.is_tuple() && Some(a) == origin(b))
}

/// Percent-encodes the names of a path.
#[must_use]
pub(super) fn encode_path(path: &[u8]) -> String {
    percent_encode(path, PATH).to_string()
}

/// Why a key cannot be a path of names, if it cannot.
#[must_use]
pub(super) fn odd_key(key: &[u8]) -> Option<&'static str> {
    if key.is_empty() {
        return None;
    }
    for name in key.split(|byte| *byte == b'/') {
        match name {
            b"" => return Some("has an empty name between its slashes"),
            b"." | b".." => return Some("has . or .. as a name, which no URL can carry"),
            name if name.contains(&0) => return Some("has a zero byte in a name"),
            _ => {}
        }
    }
    None
}

fn refuse_secrets(query: &str) -> Result<()> {
    if !is_secret(query) {
        return Ok(());
    }
    Err(refused(
        "a signed URL is a secret that expires: use s3://BUCKET/KEY with credentials of the \
         environment, or --credentials profile:NAME or file:PATH",
    ))
}

/// Whether part of a query is a signature or the like.
#[must_use]
pub fn is_secret(query: &str) -> bool {
    query.split('&').any(|part| {
        let name = part.split('=').next().unwrap_or(part);
        SECRETS.contains(&name.to_ascii_lowercase().as_str())
    })
}

fn is_scheme(text: &str) -> bool {
    let letters = |c: char| c.is_ascii_alphanumeric() || ['+', '-', '.'].contains(&c);
    text.len() >= 2 && text.chars().all(letters)
}

fn unknown_scheme(scheme: &str) -> String {
    let hint = match scheme {
        "gcs" => ": Google's buckets are gs://BUCKET/PREFIX",
        "azure" | "abfs" | "abfss" | "adl" | "wasb" | "wasbs" => {
            ": Azure's containers are az://CONTAINER/PREFIX with AZURE_STORAGE_ACCOUNT_NAME"
        }
        "s3a" | "s3n" => ": Amazon's buckets are s3://BUCKET/PREFIX",
        "file" => ": folders are given as a path",
        _ => ": places are s3://, gs://, az://, http://, https:// or a path of this machine",
    };
    format!("{scheme}:// is not known here{hint}")
}

fn refused(why: &str) -> Error {
    Error::new(ErrorKind::Invalid, why)
}

#[cfg(test)]
mod tests;
