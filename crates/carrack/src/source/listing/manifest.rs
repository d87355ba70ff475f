//! Lists of URLs in a text file, for servers that show no directories.
//!
//! In       lines of text: the first is `#carrack-manifest`, each further one a URL, relative to
//!          the manifest's own or of the same server, and optionally a tab and a length in bytes.
//!          Empty lines and lines that begin with `#` say nothing.
//! Out      the URLs and lengths.
//! Limits   [`ENTRIES_MAX`] lines.
//! Not here whether a URL lies below the source (`source::web`).

use super::ENTRIES_MAX;

/// The first line.
pub(in crate::source) const FIRST_LINE: &str = "#carrack-manifest";

/// One line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::source) struct Line<'a> {
    /// As it is written.
    pub(in crate::source) url: &'a str,
    /// The length, if it is told.
    pub(in crate::source) size: Option<u64>,
}

/// Whether `page` begins like a manifest.
pub(in crate::source) fn is_manifest(page: &[u8]) -> bool {
    let rest = page.strip_prefix(FIRST_LINE.as_bytes());
    rest.is_some_and(|rest| rest.first().is_none_or(u8::is_ascii_whitespace))
}

/// The lines of a manifest.
pub(in crate::source) fn lines(page: &[u8]) -> Result<Vec<Line<'_>>, String> {
    let page = page.strip_prefix(b"\xef\xbb\xbf").unwrap_or(page);
    if !is_manifest(page) {
        return Err(format!("the first line is not {FIRST_LINE}"));
    }
    let text = std::str::from_utf8(page).map_err(|error| error.to_string())?;
    let mut lines = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim_end_matches('\r');
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        if lines.len() >= ENTRIES_MAX {
            return Err(format!("more than {ENTRIES_MAX} lines"));
        }
        let (url, size) = match line.split_once('\t') {
            None => (line, None),
            Some((url, size)) => {
                let size = size.trim().parse();
                let size = size.map_err(|_| format!("line {}: no length after the tab", index + 1));
                (url, Some(size?))
            }
        };
        lines.push(Line {
            url: url.trim(),
            size,
        });
    }
    Ok(lines)
}
