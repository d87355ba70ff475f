//! Directories as nginx, Apache, caddy, lighttpd and Python's server show them to people.
//!
//! In       HTML, and the URL that it was got from.
//! Out      the names that it links to and that lie directly below that URL.
//! Limits   [`ENTRIES_MAX`] links. Links elsewhere are dropped: to parents, other servers, other
//!          directories, with queries (columns to sort by) or fragments.
//! Not here sizes and dates on the page: they are rounded, and no server writes them alike.

use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::{ENTRIES_MAX, Entry};

/// The entries of a page at `url`, sorted by name, each once.
pub(in crate::source) fn entries(page: &[u8], url: &Url) -> Vec<Entry> {
    let mut entries = Vec::new();
    for link in links(page).take(ENTRIES_MAX) {
        entries.extend(below(&link, url));
    }
    entries.sort_unstable();
    entries.dedup();
    // A link to `x` beside one to `x/` is the same directory.
    entries.dedup_by(|b, a| {
        let same = a.name == b.name;
        a.is_dir |= same && b.is_dir;
        same
    });
    entries
}

/// The entry that `link` on the page at `url` leads to, if it lies directly below.
pub(super) fn below(link: &str, url: &Url) -> Option<Entry> {
    // A name with a colon in it, as some servers write it, would be read as a scheme.
    let target = url.join(link).ok()?;
    if target.origin() != url.origin() || target.query().is_some() || target.fragment().is_some() {
        return None;
    }
    if target.path().to_ascii_lowercase().contains("%2f") || !url.path().ends_with('/') {
        return None;
    }
    // Both may be encoded, each in its own way.
    let directory: Vec<u8> = percent_decode_str(url.path()).collect();
    let path: Vec<u8> = percent_decode_str(target.path()).collect();
    Entry::new(path.strip_prefix(directory.as_slice())?)
}

/// What the `href`s of `<a>` elements say, entities resolved.
fn links(page: &[u8]) -> impl Iterator<Item = String> + '_ {
    let mut rest = page;
    std::iter::from_fn(move || {
        loop {
            let at = rest.iter().position(|byte| *byte == b'<')?;
            rest = rest.get(at + 1..)?;
            if let Some(comment) = rest.strip_prefix(b"!--") {
                let end = find(comment, b"-->")?;
                rest = comment.get(end + 3..)?;
                continue;
            }
            let is_link = matches!(rest, [b'a' | b'A', space, ..] if space.is_ascii_whitespace());
            if !is_link {
                continue;
            }
            let (href, after) = href(rest.get(1..)?);
            rest = after;
            if let Some(href) = href {
                return Some(href);
            }
        }
    })
}

/// The value of `href` among the attributes at the beginning of `tag`, and what follows them.
fn href(tag: &[u8]) -> (Option<String>, &[u8]) {
    let mut rest = tag;
    let mut found = None;
    loop {
        rest = rest.trim_ascii_start();
        let name_len = rest
            .iter()
            .position(|b| b.is_ascii_whitespace() || matches!(b, b'=' | b'>' | b'/'))
            .unwrap_or(rest.len());
        let (name, after) = rest.split_at(name_len);
        rest = after.trim_ascii_start();
        match rest.first() {
            Some(b'=') => {}
            Some(b'/') => {
                rest = rest.get(1..).unwrap_or_default();
                continue;
            }
            Some(b'>') | None => return (found, rest),
            Some(_) => continue, // An attribute without a value.
        }
        rest = rest.get(1..).unwrap_or_default().trim_ascii_start();
        let (value, after) = match rest.first() {
            Some(quote @ (b'"' | b'\'')) => {
                let inner = rest.get(1..).unwrap_or_default();
                let end = inner.iter().position(|byte| byte == quote);
                let end = end.unwrap_or(inner.len());
                (inner.get(..end), inner.get(end + 1..))
            }
            _ => {
                let ends = |b: &u8| b.is_ascii_whitespace() || *b == b'>';
                let end = rest.iter().position(ends).unwrap_or(rest.len());
                (rest.get(..end), rest.get(end..))
            }
        };
        if name.eq_ignore_ascii_case(b"href") && found.is_none() {
            let value = String::from_utf8_lossy(value.unwrap_or_default());
            found = Some(unescape(&value));
        }
        rest = after.unwrap_or_default();
    }
}

/// Resolves the entities that servers write into links; leaves others as they are.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('&') {
        out.push_str(before);
        let symbol = after.split_once(';').and_then(|(name, after)| {
            let symbol = match name {
                "amp" => '&',
                "lt" => '<',
                "gt" => '>',
                "quot" => '"',
                "apos" => '\'',
                "nbsp" => '\u{a0}',
                _ => char::from_u32(code(name.strip_prefix('#')?)?)?,
            };
            Some((symbol, after))
        });
        match symbol {
            Some((symbol, after)) => {
                out.push(symbol);
                rest = after;
            }
            None => {
                out.push('&');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

fn code(digits: &str) -> Option<u32> {
    match digits.strip_prefix(['x', 'X']) {
        Some(hex) => u32::from_str_radix(hex, 16).ok(),
        None => digits.parse().ok(),
    }
}

fn find(text: &[u8], word: &[u8]) -> Option<usize> {
    text.windows(word.len()).position(|part| part == word)
}
