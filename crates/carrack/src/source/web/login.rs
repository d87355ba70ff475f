//! What a web server wants to know before it answers, in a file.
//!
//! In       `file:PATH`: lines `Name: value`, as they are sent.
//! Out      headers that are never shown.
//! Limits   [`FILE_LEN_MAX`] bytes.
//! Not here names and passwords in URLs or in the environment.

use std::io::Read;
use std::path::Path;

use ::http::{HeaderMap, HeaderName, HeaderValue};

use crate::source::{SourceError, SourceErrorKind};

const FILE_LEN_MAX: u64 = 64 << 10;

/// The headers that `reference` names.
pub(super) fn headers(reference: &str) -> Result<HeaderMap, SourceError> {
    let path = match reference {
        "" | "none" | "env" => return Ok(HeaderMap::new()),
        reference => reference.strip_prefix("file:"),
    };
    let Some(path) = path else {
        return Err(SourceError::new(
            SourceErrorKind::Unusable,
            "--credentials of a web server is none, or file:PATH with the lines to send, such as \
             `Authorization: Bearer ...`",
        ));
    };
    let denied = |why: &str| {
        SourceError::new(
            SourceErrorKind::Denied,
            format!("--credentials file:{path}: {why}"),
        )
    };
    let text = read(Path::new(path)).map_err(|error| denied(&error.to_string()))?;
    let mut headers = HeaderMap::new();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        // The line itself is not repeated: it is a secret.
        let bad = || denied("a line is not `Name: value`");
        let (name, value) = line.split_once(':').ok_or_else(bad)?;
        let name = HeaderName::from_bytes(name.trim().as_bytes()).map_err(|_| bad())?;
        let mut value = HeaderValue::from_str(value.trim()).map_err(|_| bad())?;
        value.set_sensitive(true);
        headers.append(name, value);
    }
    Ok(headers)
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path)?;
    file.take(FILE_LEN_MAX).read_to_string(&mut text)?;
    Ok(text)
}
