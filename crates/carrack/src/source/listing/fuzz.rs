//! Pages of listings, and names of places: whatever a server or a person writes, names stay names.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use reqwest::Url;

use super::{Entry, Format, html, json, manifest, s3};
use crate::source::url::SourceUrl;
use crate::source::{date, http};

/// The bytes are read as a page of each kind, and as what headers say.
pub fn listing(bytes: &[u8]) {
    let url = Url::parse("http://host/a%20b/").unwrap();
    for names in [html::entries(bytes, &url), json::entries(bytes)] {
        names
            .iter()
            .flat_map(|names| &names.entries)
            .for_each(check);
    }
    let lines = manifest::lines(bytes);
    assert!(lines.is_err() || Format::of(bytes) == Some(Format::Manifest));
    let page = s3::page(bytes);
    assert!(page.is_err() || page.is_ok_and(|page| page.objects.len() <= bytes.len()));
    let _ = s3::fault(bytes);
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some((range, total)) = http::content_range(text) {
        assert!(range.start < range.end && range.end <= total);
    }
    if let Some(tag) = http::strong_etag(text) {
        assert!(::http::HeaderValue::from_str(&tag).is_ok());
        assert_eq!(http::strong_etag(&tag), Some(tag));
    }
    if let Some(time) = date::from_http(text) {
        assert_eq!(date::from_http(&date::to_http(time)), Some(time));
    }
    let _ = date::from_iso(text);
    if let Ok(Some(place)) = SourceUrl::parse(text) {
        let again = SourceUrl::parse(&place.to_string());
        assert_eq!(again.unwrap(), Some(place.clone()));
        assert_eq!(place.below(&place), Some(Vec::new()));
    }
}

fn check(entry: &Entry) {
    let name = &entry.name;
    assert!(!name.is_empty() && name != b"." && name != b"..");
    assert!(!name.contains(&b'/') && !name.contains(&0));
}
