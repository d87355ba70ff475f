//! Conditional requests: whether what the client has, or asks for, is what there is.
//!
//! In       the conditions of a request and the entity tag of its answer.
//! Out      a [`Verdict`], in the order of RFC 9110 section 13.2.2.
//! Limits   [`ENTITY_TAGS_MAX`] entity tags of a field are looked at; those behind them match
//!          nothing.
//! Not here `If-Range`, which says how much of a block is sent (`raw`); what is not here, which is
//!          told whatever the condition.
//!
//! Content below a CID has no date: `If-Modified-Since` and `If-Unmodified-Since` are ignored, as
//! sections 13.1.3 and 13.1.4 ask for.

use http::header::HeaderValue;

use super::request::GatewayRequest;
use crate::http::limits::ENTITY_TAGS_MAX;

/// What a condition comes to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The request is answered.
    Holds,
    /// 412: it names other content than there is.
    Fails,
    /// 304: the client has it.
    Known,
}

/// Whether `request` is to be answered with what has `etag`.
#[must_use]
pub fn judge(request: &GatewayRequest, etag: &HeaderValue) -> Verdict {
    if !request.if_match.is_empty() && !match_names(&request.if_match, etag) {
        return Verdict::Fails;
    }
    match none_match_names(&request.if_none_match, etag) {
        true => Verdict::Known,
        false => Verdict::Holds,
    }
}

/// Whether `If-Match` names `etag`, by the strong comparison of RFC 9110 section 8.8.3.2: a weak
/// one, as CARs have, is named by `*` alone.
fn match_names(fields: &[HeaderValue], etag: &HeaderValue) -> bool {
    let is_weak = etag.as_bytes().starts_with(b"W/");
    tags(fields).any(|tag| tag == b"*" || (!is_weak && tag == etag.as_bytes()))
}

/// Whether `If-None-Match` names `etag`, by the weak comparison of RFC 9110 section 8.8.3.2.
#[must_use]
pub fn none_match_names(fields: &[HeaderValue], etag: &HeaderValue) -> bool {
    let own = opaque(etag.as_bytes());
    tags(fields).any(|tag| tag == b"*" || opaque(tag) == own)
}

fn tags(fields: &[HeaderValue]) -> impl Iterator<Item = &[u8]> {
    fields
        .iter()
        .flat_map(|field| field.as_bytes().split(|&byte| byte == b','))
        .take(ENTITY_TAGS_MAX)
        .map(<[u8]>::trim_ascii)
}

fn opaque(tag: &[u8]) -> &[u8] {
    tag.strip_prefix(b"W/").unwrap_or(tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(field: &'static str) -> [HeaderValue; 2] {
        [
            HeaderValue::from_static("\"other\""),
            HeaderValue::from_static(field),
        ]
    }

    #[test]
    fn if_none_match_compares_weakly_in_lists() {
        let tag = HeaderValue::from_static("W/\"abc.car.1\"");
        let table = [
            ("\"abc.car.1\"", true),
            ("W/\"abc.car.1\"", true),
            ("\"x\", W/\"abc.car.1\"", true),
            ("*", true),
            ("abc.car.1", false),
            ("\"abc.car.2\"", false),
            ("", false),
        ];
        for (field, expected) in table {
            assert_eq!(none_match_names(&named(field), &tag), expected, "{field}");
        }
    }

    #[test]
    fn if_match_compares_strongly_in_lists() {
        let strong = HeaderValue::from_static("\"abc.raw\"");
        let weak = HeaderValue::from_static("W/\"abc.raw\"");
        let table = [
            ("\"abc.raw\"", true),
            ("\"x\", \"abc.raw\"", true),
            ("*", true),
            ("W/\"abc.raw\"", false),
            ("abc.raw", false),
            ("\"abc\"", false),
            ("", false),
        ];
        for (field, expected) in table {
            assert_eq!(match_names(&named(field), &strong), expected, "{field}");
            assert_eq!(match_names(&named(field), &weak), field == "*", "{field}");
        }
    }
}
