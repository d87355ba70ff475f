//! Requests: refused with a sentence, or understood within limits and answered with headers that
//! no client can break.

#![allow(
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a panic is how a fuzz target fails"
)]

use http::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_LOCATION, HeaderMap, HeaderName, HeaderValue, IF_NONE_MATCH,
    IF_RANGE, RANGE,
};
use http::{Method, Uri};

use super::conditions;
use super::headers::{self, Target};
use super::raw::{Selected, select};
use super::request::{Format, GatewayRequest, RangeSpec, parse};
use crate::http::limits::{FILENAME_LEN_MAX, Limits, RANGES_MAX, RESPONSE_HEAD_LEN_MAX};
use carrack_formats::walk::Scope;

/// The first line is the target; each further line is a header, named by its first byte.
pub fn request(bytes: &[u8]) {
    let mut lines = bytes.split(|byte| *byte == b'\n');
    let Ok(uri) = Uri::try_from(lines.next().unwrap_or_default()) else {
        return;
    };
    let mut fields = HeaderMap::new();
    for line in lines.take(16) {
        let Some((name, value)) = line.split_first() else {
            continue;
        };
        if let Ok(value) = HeaderValue::from_bytes(value) {
            fields.append(field_name(*name), value);
        }
    }
    let limits = Limits::default();
    let head = parse(&Method::HEAD, &uri, &fields, &limits);
    match parse(&Method::GET, &uri, &fields, &limits) {
        Err(refusal) => {
            assert!(matches!(refusal.status.as_u16(), 400 | 406));
            assert!(!refusal.sentence.is_empty() && refusal.sentence.len() < 1024);
            assert!(!refusal.sentence.contains(char::is_control), "{refusal:?}");
            assert!(headers::refusal(&refusal, 1).len() < 8);
            assert!(head.is_err());
        }
        Ok(request) => {
            let head = head.unwrap();
            assert!(head.head && head.ranges.is_empty() && head.format == request.format);
            within_limits(&request, &limits);
            answered(&request, &uri, &limits);
        }
    }
}

fn field_name(byte: u8) -> HeaderName {
    match byte {
        b'a' => ACCEPT,
        b'r' => RANGE,
        b'n' => IF_NONE_MATCH,
        b'i' => IF_RANGE,
        b'c' => CACHE_CONTROL,
        _ => HeaderName::from_static("service-worker"),
    }
}

fn within_limits(request: &GatewayRequest, limits: &Limits) {
    assert!(request.segments.len() <= limits.path_segments_max);
    for segment in &request.segments {
        assert!((1..=limits.path_segment_len_max).contains(&segment.len()));
        assert!(segment != b"." && segment != b"..");
    }
    let name = request.filename.as_deref().unwrap_or("x");
    assert!((1..=FILENAME_LEN_MAX).contains(&name.len()));
    if let Format::Car(options) = request.format {
        assert!(options.entity_bytes.is_none() || options.scope == Scope::Entity);
    }
    assert!(request.ranges.len() <= RANGES_MAX);
    for range in &request.ranges {
        assert!(!matches!(range, RangeSpec::From { first, last: Some(last) } if first > last));
    }
    for len in [0, 1, 1000, u64::MAX] {
        if let Selected::Part(first, last) = select(&request.ranges, len) {
            assert!(first <= last && last < len);
        }
    }
}

/// Headers fit, hold one line of printable text each, and name a URL that asks for the same.
fn answered(request: &GatewayRequest, uri: &Uri, limits: &Limits) {
    let roots = vec![request.root; request.segments.len() + 1];
    let target = Target {
        terminus: &request.root,
        roots: &roots,
    };
    let etag = headers::etag(request, &request.root);
    assert!(conditions::none_match_names(
        std::slice::from_ref(&etag),
        &etag
    ));
    let _ = conditions::judge(request, &etag);
    let fields = headers::success(request, uri, target, etag.clone());
    let len = |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 4;
    assert!(fields.iter().map(len).sum::<usize>() < RESPONSE_HEAD_LEN_MAX);
    for value in fields.values() {
        assert!(
            value
                .as_bytes()
                .iter()
                .all(|byte| (b' '..=b'~').contains(byte)),
            "{value:?}"
        );
    }
    if let Some(location) = fields.get(CONTENT_LOCATION) {
        let location = Uri::try_from(location.as_bytes()).unwrap();
        let again = parse(&Method::GET, &location, &HeaderMap::new(), limits).unwrap();
        assert_eq!(again.format, request.format, "{location}");
        assert_eq!(
            (again.root, &again.segments),
            (request.root, &request.segments)
        );
        assert_eq!(again.filename, request.filename, "{location}");
        assert_eq!(headers::etag(&again, &again.root), etag);
    }
}
