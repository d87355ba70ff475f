//! Pages of a bucket's listing, and the errors of its server.
//!
//! In       XML: `ListBucketResult`, `Error`.
//! Out      keys with what is told of their objects, and where the next page begins.
//! Limits   [`ENTRIES_MAX`] keys a page, [`TEXT_LEN_MAX`] bytes a value; values that are not known
//!          here are skipped, entities other than XML's five are refused.
//! Not here what a key may be called (`source::s3`).
//!
//! Spec: Amazon S3 API reference, `ListObjectsV2`.

use percent_encoding::percent_decode;
use quick_xml::Reader;
use quick_xml::events::Event;

use super::ENTRIES_MAX;
use crate::source::validator::ObjectStamp;
use crate::source::{date, http};

/// Longest value: a key of 1,024 bytes, each percent-encoded, is the longest there can be; what a
/// person is told in an error may be longer.
const TEXT_LEN_MAX: usize = 16 * 1024;

/// One page.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Page {
    /// In the order of the page.
    pub(in crate::source) objects: Vec<Item>,
    /// Where the next page begins; `None`: this is the last.
    pub(in crate::source) next: Option<String>,
}

/// One object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::source) struct Item {
    /// Its key, decoded.
    pub(in crate::source) key: Vec<u8>,
    /// What the listing tells of it.
    pub(in crate::source) stamp: ObjectStamp,
}

/// An error that a server explains.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::source) struct Fault {
    /// `NoSuchKey`, `SlowDown`, ...
    pub(in crate::source) code: String,
    /// For people.
    pub(in crate::source) message: String,
    /// Where the bucket really is.
    pub(in crate::source) region: String,
}

/// Why a page cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("byte {offset} of the listing: {why}")]
pub(in crate::source) struct BadPage {
    offset: u64,
    why: String,
}

/// Pages in a row that may be empty and not the last.
const EMPTY_PAGES_MAX: u32 = 1000;

/// How a listing goes on from page to page.
#[derive(Debug, Default)]
pub(in crate::source) struct Course {
    n_empty: u32,
}

impl Course {
    /// Whether the listing comes to an end, as far as can be told after `page`, which `token` gave.
    pub(in crate::source) fn is_sound(&mut self, page: &Page, token: &str) -> bool {
        self.n_empty = match page.objects.is_empty() {
            true => self.n_empty.saturating_add(1),
            false => 0,
        };
        let next = page.next.as_deref();
        next.is_none_or(|next| next != token && self.n_empty <= EMPTY_PAGES_MAX)
    }
}

/// Reads a page that was asked for with `encoding-type=url`.
pub(in crate::source) fn page(xml: &[u8]) -> Result<Page, BadPage> {
    let mut raw_keys: Vec<(Vec<u8>, ObjectStamp)> = Vec::new();
    let (mut key, mut stamp) = (None, ObjectStamp::default());
    let (mut encoded, mut truncated, mut is_listing, mut size) = (false, None, false, None);
    let mut next = None;
    walk(xml, |path, text| {
        match path {
            ["ListBucketResult"] => is_listing = true,
            ["ListBucketResult", "EncodingType"] => encoded = text == "url",
            ["ListBucketResult", "IsTruncated"] => truncated = truth(text)?,
            ["ListBucketResult", "NextContinuationToken"] => next = Some(text.to_owned()),
            ["ListBucketResult", "Contents", "Key"] => key = Some(text.as_bytes().to_vec()),
            ["ListBucketResult", "Contents", "Size"] => size = text.trim().parse().ok(),
            ["ListBucketResult", "Contents", "ETag"] => stamp.etag = http::strong_etag(text.trim()),
            ["ListBucketResult", "Contents", "LastModified"] => {
                stamp.modified = date::from_iso(text)
            }
            ["ListBucketResult", "Contents"] => {
                let (Some(key), Some(size)) = (key.take(), size.take()) else {
                    return Err("an object without a key or a size".to_owned());
                };
                if raw_keys.len() >= ENTRIES_MAX {
                    return Err(format!("more than {ENTRIES_MAX} objects"));
                }
                let stamp = std::mem::take(&mut stamp);
                raw_keys.push((key, ObjectStamp { size, ..stamp }));
            }
            _ => {}
        }
        Ok(())
    })?;
    let bad = |why: &str| BadPage {
        offset: 0,
        why: why.to_owned(),
    };
    if !is_listing {
        return Err(bad("no listing of a bucket"));
    }
    // A page that does not say whether it is the last has a token if it is not.
    let truncated = truncated.unwrap_or(next.as_ref().is_some_and(|next| !next.is_empty()));
    if truncated && next.as_ref().is_none_or(String::is_empty) {
        return Err(bad("there is a next page, but not where it begins"));
    }
    let objects = raw_keys.into_iter().map(|(key, stamp)| Item {
        key: if encoded { decode(&key) } else { key },
        stamp,
    });
    Ok(Page {
        objects: objects.collect(),
        next: next.filter(|_| truncated),
    })
}

/// A truth value as XML writes it, and as careless servers do; `None` if there is none.
fn truth(text: &str) -> Result<Option<bool>, String> {
    match text.trim().to_ascii_lowercase().as_str() {
        "true" | "1" => Ok(Some(true)),
        "false" | "0" => Ok(Some(false)),
        "" => Ok(None),
        _ => Err("it does not say whether there is a next page".to_owned()),
    }
}

/// What a server says went wrong; empty if it does not say it in XML.
pub(in crate::source) fn fault(xml: &[u8]) -> Fault {
    let mut fault = Fault::default();
    let read = walk(xml, |path, text| {
        match path {
            ["Error", "Code"] => text.clone_into(&mut fault.code),
            ["Error", "Message"] => text.clone_into(&mut fault.message),
            ["Error", "Region"] => text.clone_into(&mut fault.region),
            _ => {}
        }
        Ok(())
    });
    // What was read before it became unreadable is as good as it was.
    let _ = read;
    fault
}

/// `application/x-www-form-urlencoded`: servers write a space as `+` or as `%20`, and `+` as `%2B`.
fn decode(key: &[u8]) -> Vec<u8> {
    let spaced: Vec<u8> = key
        .iter()
        .map(|b| if *b == b'+' { b' ' } else { *b })
        .collect();
    percent_decode(&spaced).collect()
}

/// Calls `visit` at the end of each element with the names down to it and the text in it.
fn walk(
    xml: &[u8],
    mut visit: impl FnMut(&[&str], &str) -> Result<(), String>,
) -> Result<(), BadPage> {
    let mut reader = Reader::from_reader(xml);
    let mut path: Vec<String> = Vec::new();
    let mut text = String::new();
    loop {
        let bad = |offset, why| BadPage { offset, why };
        let offset = reader.buffer_position();
        let event = reader.read_event();
        match event.map_err(|_| bad(offset, unsound()))? {
            Event::Start(start) => {
                if path.len() >= 8 {
                    return Err(bad(offset, "nested too deeply".to_owned()));
                }
                let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                path.push(name);
                text.clear();
            }
            Event::Empty(start) => {
                let name = String::from_utf8_lossy(start.local_name().as_ref()).into_owned();
                path.push(name);
                see(&path, "", &mut visit).map_err(|why| bad(offset, why))?;
                path.pop();
                text.clear();
            }
            Event::End(_) => {
                see(&path, &text, &mut visit).map_err(|why| bad(offset, why))?;
                path.pop();
                text.clear();
            }
            Event::Text(part) => {
                let part = part.decode().map_err(|_| bad(offset, unsound()))?;
                text.push_str(&part);
            }
            Event::CData(part) => {
                let part = part.decode().map_err(|_| bad(offset, unsound()))?;
                text.push_str(&part);
            }
            Event::GeneralRef(name) => {
                let Some(symbol) = entity(&name) else {
                    return Err(bad(offset, "an entity that XML does not define".to_owned()));
                };
                text.push(symbol);
            }
            Event::Eof if path.is_empty() => return Ok(()),
            Event::Eof => return Err(bad(offset, "it ends inside an element".to_owned())),
            _ => {}
        }
        if text.len() > TEXT_LEN_MAX {
            return Err(bad(offset, "a value is too long".to_owned()));
        }
    }
}

/// Said without the words of the parser, which repeat what a server wrote.
fn unsound() -> String {
    "it is no sound XML".to_owned()
}

fn see(
    path: &[String],
    text: &str,
    visit: &mut impl FnMut(&[&str], &str) -> Result<(), String>,
) -> Result<(), String> {
    let names: Vec<&str> = path.iter().map(String::as_str).collect();
    visit(&names, text)
}

fn entity(name: &quick_xml::events::BytesRef<'_>) -> Option<char> {
    if let Ok(Some(symbol)) = name.resolve_char_ref() {
        return Some(symbol);
    }
    match name.decode().ok()?.as_ref() {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => None,
    }
}
