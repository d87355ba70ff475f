//! What a person writes where a CID is asked for.
//!
//! In       `CID`, `CID/path`, `/ipfs/CID/path`, `ipfs://CID/path`, `https://host/ipfs/CID/path?…`,
//!          `https://CID.ipfs.host/path`.
//! Out      the CID and the path's segments, percent-decoded where the form was a URL.
//! Not here looking anything up; names that need a network (`/ipns/…`).

use carrack_formats::{Cid, cid};
use percent_encoding::percent_decode_str;

use crate::cli::redact::redacted;
use crate::error::{Error, ErrorKind, Result};

/// A CID and a path below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where the path starts.
    pub root: Cid,
    /// The path's segments; empty ones are left out.
    pub segments: Vec<String>,
}

/// Reads any of the forms above.
///
/// # Errors
/// `Invalid`, with what is wrong.
pub fn parse(text: &str) -> Result<Target> {
    let text = text.trim();
    if let Some(rest) = text.strip_prefix("ipfs://") {
        return from_path(rest.strip_prefix("ipfs/").unwrap_or(rest), true);
    }
    let mut schemes = ["http://", "https://"].into_iter();
    if let Some(scheme) = schemes.find(|scheme| text.starts_with(scheme)) {
        return from_url(text, text.get(scheme.len()..).unwrap_or_default());
    }
    if text.starts_with("/ipns/") || text.starts_with("ipns://") {
        return Err(invalid(text, "names (IPNS) are not resolved: give a CID"));
    }
    from_path(text.strip_prefix("/ipfs/").unwrap_or(text), false)
}

fn from_url(text: &str, rest: &str) -> Result<Target> {
    let rest = rest.split(['?', '#']).next().unwrap_or(rest);
    let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
    if let Some(path) = path.strip_prefix("ipfs/") {
        return from_path(path, true);
    }
    match host.split_once(".ipfs.") {
        Some((label, _)) => from_path(&format!("{label}/{path}"), true),
        None => Err(invalid(
            text,
            "a gateway URL has /ipfs/CID in its path or CID.ipfs. in front",
        )),
    }
}

fn from_path(text: &str, encoded: bool) -> Result<Target> {
    let text = if encoded {
        text.split(['?', '#']).next().unwrap_or(text)
    } else {
        text
    };
    let mut parts = text.split('/');
    let first = parts.next().unwrap_or_default();
    let root = cid::parse_text(first).map_err(|error| {
        Error::with(
            ErrorKind::Invalid,
            format!("{:?} is not a CID", shorten(first)),
            error,
        )
    })?;
    let mut segments = Vec::new();
    for part in parts.filter(|part| !part.is_empty()) {
        segments.push(if encoded {
            let decoded = percent_decode_str(part).decode_utf8();
            decoded
                .map_err(|_| invalid(part, "the path is not UTF-8"))?
                .into_owned()
        } else {
            part.to_owned()
        });
    }
    Ok(Target { root, segments })
}

fn invalid(text: &str, why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{:?}: {why}", shorten(text)))
}

fn shorten(text: &str) -> String {
    redacted(text).chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::parse;

    const CID: &str = "bafkreifzjut3te2nhyekklss27nh3k72ysco7y32koao5eei66wof36n5e";

    #[test]
    fn every_spelling_names_the_same() {
        for text in [
            format!("{CID}/a/b c"),
            format!("/ipfs/{CID}/a//b c/"),
            format!("ipfs://{CID}/a/b%20c"),
            format!("ipfs://ipfs/{CID}/a/b%20c"),
            format!("https://gw.example/ipfs/{CID}/a/b%20c?format=car"),
            format!("http://{CID}.ipfs.localhost:8080/a/b%20c#top"),
        ] {
            let target = parse(&text).unwrap();
            assert_eq!(target.root.to_string(), CID, "{text}");
            assert_eq!(target.segments, ["a", "b c"], "{text}");
        }
    }

    #[test]
    fn what_is_no_cid_is_refused() {
        for text in [
            "",
            "x",
            "/ipfs/",
            "https://example.com/",
            "/ipns/example.com",
            "ipfs://%00",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
