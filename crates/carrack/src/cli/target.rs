//! What a person writes where a CID is asked for.
//!
//! In       `CID`, `CID/path`, `/ipfs/CID/path`, `ipfs://CID/path`, `https://host/ipfs/CID/path?…`,
//!          `https://CID.ipfs.host/path`; names in a path may be of any bytes.
//! Out      the CID and the path's segments, without dots; percent-decoded where it was a URL.
//! Not here looking anything up; names that need a network (`/ipns/…`).

use std::borrow::Cow;
use std::ffi::OsStr;

use carrack_formats::walk::push_segment;
use carrack_formats::{Cid, cid};
use percent_encoding::percent_decode;

use crate::cli::redact::redacted;
use crate::error::{Context, Error, ErrorKind, Result};

/// A CID and a path below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Where the path starts.
    pub root: Cid,
    /// The path's segments; empty ones and dots are resolved.
    pub segments: Vec<Vec<u8>>,
}

/// Reads any of the forms above.
///
/// # Errors
/// `Invalid`, with what is wrong.
pub fn parse(text: impl AsRef<OsStr>) -> Result<Target> {
    let text = text.as_ref().as_encoded_bytes().trim_ascii();
    if let Some(rest) = text.strip_prefix(b"ipfs://") {
        return from_path(rest.strip_prefix(b"ipfs/").unwrap_or(rest), true);
    }
    let mut schemes = [&b"http://"[..], b"https://"].into_iter();
    if let Some(rest) = schemes.find_map(|scheme| text.strip_prefix(scheme)) {
        return from_url(text, rest);
    }
    if text.starts_with(b"/ipns/") || text.starts_with(b"ipns://") {
        return Err(invalid(text, "names (IPNS) are not resolved: give a CID"));
    }
    from_path(text.strip_prefix(b"/ipfs/").unwrap_or(text), false)
}

fn from_url(text: &[u8], rest: &[u8]) -> Result<Target> {
    let rest = before_query(rest);
    let slash = rest.iter().position(|&byte| byte == b'/');
    let (host, path) = rest.split_at(slash.unwrap_or(rest.len()));
    if let Some(path) = path.strip_prefix(b"/ipfs/") {
        return from_path(path, true);
    }
    let host = String::from_utf8_lossy(host);
    match host.split_once(".ipfs.") {
        Some((label, _)) => from_path(&[label.as_bytes(), path].concat(), true),
        None => Err(invalid(
            text,
            "a gateway URL has /ipfs/CID in its path or CID.ipfs. in front",
        )),
    }
}

fn from_path(text: &[u8], encoded: bool) -> Result<Target> {
    let text = if encoded { before_query(text) } else { text };
    let mut parts = text.split(|&byte| byte == b'/').map(|part| match encoded {
        true => Cow::from(percent_decode(part)),
        false => Cow::Borrowed(part),
    });
    let first = parts.next().unwrap_or_default();
    let no_cid = || format!("{:?} is not a CID", shorten(&first));
    let first = std::str::from_utf8(&first).context(ErrorKind::Invalid, no_cid)?;
    let root = cid::parse_text(first).context(ErrorKind::Invalid, no_cid)?;
    let mut segments = Vec::new();
    for part in parts {
        push_segment(&mut segments, &part)
            .context(ErrorKind::Invalid, || format!("{:?}", shorten(text)))?;
    }
    Ok(Target { root, segments })
}

fn before_query(text: &[u8]) -> &[u8] {
    let end = text.iter().position(|byte| matches!(byte, b'?' | b'#'));
    text.get(..end.unwrap_or(text.len())).unwrap_or_default()
}

fn invalid(text: &[u8], why: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{:?}: {why}", shorten(text)))
}

fn shorten(text: &[u8]) -> String {
    redacted(&String::from_utf8_lossy(text))
        .chars()
        .take(100)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

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
            assert_eq!(target.segments, [&b"a"[..], b"b c"], "{text}");
        }
    }

    #[test]
    fn names_of_any_bytes_can_be_written() {
        let plain = [CID.as_bytes(), b"/caf\xe9/%41"].concat();
        let target = parse(OsStr::from_bytes(&plain)).unwrap();
        assert_eq!(target.segments, [&b"caf\xe9"[..], b"%41"]);
        let target = parse(format!("ipfs://{CID}/caf%E9/%2541/%2F/%00")).unwrap();
        assert_eq!(target.segments, [&b"caf\xe9"[..], b"%41", b"/", b"\0"]);
        // Escapes where none are needed, in the CID as well.
        let escaped = format!("https://gw.example/ipfs/%62{}/x", &CID[1..]);
        assert_eq!(parse(escaped).unwrap().root.to_string(), CID);
        assert!(parse(format!("%62{}", &CID[1..])).is_err(), "no URL");
    }

    #[test]
    fn dots_stay_below_the_root() {
        for text in [
            format!("{CID}/a/../b/./c"),
            format!("ipfs://{CID}/a/%2e%2E/b/%2e/c"),
        ] {
            assert_eq!(parse(&text).unwrap().segments, [b"b", b"c"], "{text}");
        }
        for text in [
            format!("{CID}/.."),
            format!("/ipfs/{CID}/a/../../b"),
            format!("http://gw.example/ipfs/{CID}/%2e%2e/b"),
        ] {
            assert!(parse(&text).is_err(), "{text}");
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
