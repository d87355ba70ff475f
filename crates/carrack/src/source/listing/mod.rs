//! What servers answer when they are asked what they have.
//!
//! In       the bytes of one page of a listing.
//! Out      the names on it, and where the next page begins.
//! Limits   a page was read whole before (`http::BODY_LEN_MAX`); [`ENTRIES_MAX`] names on it.
//! Not here asking for pages and walking directories (`source::s3`, `source::web`).

pub(super) mod html;
pub(super) mod json;
pub(super) mod manifest;
pub(super) mod s3;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;

/// Names on one page. A page of 64 MiB cannot have many more.
pub(super) const ENTRIES_MAX: usize = 2_000_000;

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Entry {
    /// Decoded: one name, not empty, not `.` or `..`, without `/` and zero bytes.
    pub(super) name: Vec<u8>,
    /// Whether it is a directory.
    pub(super) is_dir: bool,
}

/// What is in a directory, as its page tells it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Names {
    /// Sorted by name, each once.
    pub(super) entries: Vec<Entry>,
    /// Names that no entry can have, and why.
    pub(super) odd: Vec<(Vec<u8>, &'static str)>,
}

/// A page is longer than any directory.
pub(super) const TOO_MANY: &str = "more than 2,000,000 names on one page";

impl Entry {
    /// An entry, if `name` can be one in a directory. A `/` at its end makes it a directory.
    fn new(name: &[u8]) -> Option<Self> {
        let (name, is_dir) = match name.strip_suffix(b"/") {
            Some(name) => (name, true),
            None => (name, false),
        };
        let plain = !name.is_empty()
            && name != b"."
            && name != b".."
            && !name.contains(&b'/')
            && !name.contains(&0);
        plain.then(|| Self {
            name: name.to_vec(),
            is_dir,
        })
    }
}

/// What sort of listing a page is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    /// `ListBucketResult`.
    S3,
    /// An array of objects: nginx with `autoindex_format json`, caddy.
    Json,
    /// Links on a page for people.
    Html,
    /// Lines of text (`manifest`).
    Manifest,
}

impl Format {
    /// What `page` looks like, by its beginning; `None`: no listing.
    pub(super) fn of(page: &[u8]) -> Option<Self> {
        let page = page.strip_prefix(b"\xef\xbb\xbf").unwrap_or(page);
        let page = page.trim_ascii_start();
        let head = page.get(..1024).unwrap_or(page).to_ascii_lowercase();
        let has = |word: &[u8]| head.windows(word.len()).any(|part| part == word);
        if manifest::is_manifest(page) {
            Some(Self::Manifest)
        } else if head.starts_with(b"[") {
            Some(Self::Json)
        } else if has(b"<listbucketresult") {
            Some(Self::S3)
        } else if head.starts_with(b"<") && (has(b"<html") || has(b"<!doctype html")) {
            Some(Self::Html)
        } else {
            None
        }
    }
}

#[cfg(test)]
mod tests;
