//! Directories as nginx, Apache, caddy, lighttpd and Python's server show them to people.
//!
//! In       HTML, and the URL that it was got from.
//! Out      the names that it links to and that lie directly below that URL; those of them that no
//!          directory can have, with the reason.
//! Limits   [`ENTRIES_MAX`] links. Links elsewhere are dropped: to parents, other servers, other
//!          directories, and to the page itself with queries (columns to sort by) or fragments.
//! Not here sizes and dates on the page: they are rounded, and no server writes them alike.
//!
//! Servers that do not encode names write `Note: x`, `what?`, `a#b` and bytes of any character set
//! into their links. What a browser would read as something else is taken as a name then: the
//! server itself says whether it has it.

use percent_encoding::percent_decode_str;
use reqwest::Url;

use super::{ENTRIES_MAX, Entry, Names, TOO_MANY};
use crate::source::url::is_secret;

/// Bytes at the end of a page among which it says that it ends.
const END_LEN: usize = 1 << 10;

/// Whether a page says itself that it ends.
pub(in crate::source) fn has_end(page: &[u8]) -> bool {
    let end = page.get(page.len().saturating_sub(END_LEN)..);
    let mut words = end.unwrap_or_default().windows(b"</html>".len());
    words.any(|word| word.eq_ignore_ascii_case(b"</html>"))
}

/// Schemes of links that lead to programs and people.
const NO_FILES: [&str; 18] = [
    "javascript",
    "mailto",
    "tel",
    "sms",
    "data",
    "about",
    "blob",
    "magnet",
    "news",
    "irc",
    "xmpp",
    "sip",
    "geo",
    "callto",
    "urn",
    "file",
    "view-source",
    "bitcoin",
];

/// What a link leads to.
#[derive(Debug, PartialEq, Eq)]
enum Link {
    /// Something directly below the page.
    Entry(Entry),
    /// Something there that cannot be asked for.
    Odd(Vec<u8>, &'static str),
    Elsewhere,
}

/// The names on a page at `url`.
///
/// # Errors
/// There are more than [`ENTRIES_MAX`].
pub(in crate::source) fn entries(page: &[u8], url: &Url) -> Result<Names, String> {
    let mut names = Names::default();
    for (index, link) in links(page).enumerate() {
        if index >= ENTRIES_MAX {
            return Err(TOO_MANY.to_owned());
        }
        match below(&link, url) {
            Link::Entry(entry) => names.entries.push(entry),
            Link::Odd(name, why) => names.odd.push((name, why)),
            Link::Elsewhere => {}
        }
    }
    let entries = &mut names.entries;
    entries.sort_unstable();
    entries.dedup();
    // A link to `x` beside one to `x/` is the same directory.
    entries.dedup_by(|b, a| {
        let same = a.name == b.name;
        a.is_dir |= same && b.is_dir;
        same
    });
    names.odd.sort_unstable();
    names.odd.dedup();
    Ok(names)
}

/// What `link` on the page at `url` leads to.
fn below(link: &str, url: &Url) -> Link {
    if link.starts_with(['?', '#']) {
        return Link::Elsewhere;
    }
    let as_name = || {
        let name = link.replace('?', "%3F").replace('#', "%23");
        url.join(&format!("./{name}"))
    };
    if has_unknown_scheme(link) {
        return as_name().map_or(Link::Elsewhere, |target| directly_below(&target, url));
    }
    let Ok(mut target) = url.join(link) else {
        return Link::Elsewhere;
    };
    if target.query().is_none() && target.fragment().is_none() {
        return directly_below(&target, url);
    }
    let is_signed = target.query().is_some_and(is_secret);
    target.set_query(None);
    target.set_fragment(None);
    match directly_below(&target, url) {
        Link::Entry(entry) if is_signed => {
            Link::Odd(entry.name, "is linked by a signed URL, which expires")
        }
        Link::Entry(entry) if !entry.is_dir => {
            let named = link.replace('?', "%3F").replace('#', "%23");
            let target = url.join(&named);
            target.map_or(Link::Elsewhere, |target| directly_below(&target, url))
        }
        _ => Link::Elsewhere,
    }
}

/// Whether a browser would read a scheme in a name with a colon.
fn has_unknown_scheme(link: &str) -> bool {
    let Some((scheme, rest)) = link.split_once(':') else {
        return false;
    };
    let letters = |c: char| c.is_ascii_alphanumeric() || ['+', '-', '.'].contains(&c);
    let is_scheme = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
        && scheme.chars().all(letters)
        && !["http", "https"]
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known));
    is_scheme
        && !rest.starts_with("//")
        && !NO_FILES
            .iter()
            .any(|known| scheme.eq_ignore_ascii_case(known))
}

fn directly_below(target: &Url, url: &Url) -> Link {
    if target.origin() != url.origin() || !url.path().ends_with('/') {
        return Link::Elsewhere;
    }
    // Both may be encoded, each in its own way.
    let directory: Vec<u8> = percent_decode_str(url.path()).collect();
    let path: Vec<u8> = percent_decode_str(target.path()).collect();
    let Some(name) = path.strip_prefix(directory.as_slice()) else {
        return Link::Elsewhere;
    };
    if target.path().to_ascii_lowercase().contains("%2f") {
        return Link::Odd(
            name.to_vec(),
            "a / inside a name cannot be told from one between names",
        );
    }
    match Entry::new(name) {
        Some(entry) => Link::Entry(entry),
        None if name.contains(&0) => Link::Odd(name.to_vec(), "has a zero byte in its name"),
        None => Link::Elsewhere,
    }
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
            found = Some(unescape(&text(value.unwrap_or_default())));
        }
        rest = after.unwrap_or_default();
    }
}

/// Bytes that are no UTF-8 are those of the name, as they are; so is a backslash, which a browser
/// would take for a slash.
fn text(value: &[u8]) -> String {
    let mut out = String::with_capacity(value.len());
    for chunk in value.utf8_chunks() {
        out.push_str(chunk.valid());
        for byte in chunk.invalid() {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    match value.contains(&b'\\') {
        true => out.replace('\\', "%5C"),
        false => out,
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
