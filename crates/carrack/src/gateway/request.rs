//! One request, parsed: URL and headers in, a typed value or one sentence out.
//!
//! In       an `http` request head for `/ipfs/{cid}[/path]`.
//! Out      [`GatewayRequest`], or a [`Refusal`] with a status and a sentence.
//! Limits   CID text, path segments, their length, file names, ranges: checked before decoding.
//! Not here whether anything asked for exists (`service`); other routes (`service`).
//!
//! The path is decoded once, segment by segment: `%2F` is a byte of a name, `%2541` the name `%41`,
//! `%00` and bytes that are no UTF-8 are names as any other. Then dots are resolved, `%2e` being a
//! dot, too; nothing leads above the CID.
//!
//! Spec: <https://specs.ipfs.tech/http-gateways/trustless-gateway/>, IPIP-402, IPIP-412, IPIP-523.

use std::borrow::Cow;

use carrack_formats::Cid;
use carrack_formats::cid;
use carrack_formats::walk::{ByteRange, Scope, push_segment};
use http::header::{
    ACCEPT, CACHE_CONTROL, HeaderMap, HeaderName, HeaderValue, IF_MATCH, IF_NONE_MATCH, IF_RANGE,
    RANGE,
};
use http::{Method, StatusCode, Uri};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, percent_encode};

use super::negotiate::{Accepted, CarParams, Negotiated, Order, negotiate};
use crate::http::limits::{FILENAME_LEN_MAX, Limits, RANGES_MAX};
use crate::http::refusal::Refusal;

/// What a CAR request asks for, with every default filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CarOptions {
    /// How much of the DAG below the end of the path.
    pub scope: Scope,
    /// Which bytes of the file at the end of the path; with [`Scope::Entity`] alone.
    pub entity_bytes: Option<ByteRange>,
    /// The label of the order; what is sent is always depth first.
    pub order: Order,
    /// A block that occurs twice is sent twice.
    pub dups: bool,
    /// The body ends with the metadata trailer of IPIP-431.
    pub meta: bool,
}

/// The representation asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// One block.
    Raw,
    /// A CAR.
    Car(CarOptions),
    /// One block that is JSON already, labelled so.
    Json,
}

/// One entry of a `Range` header, before the length of the block is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeSpec {
    /// `first-` or `first-last`, both inclusive.
    From {
        /// First byte.
        first: u64,
        /// Last byte; `None`: to the end.
        last: Option<u64>,
    },
    /// `-len`: the last bytes.
    Suffix {
        /// How many.
        len: u64,
    },
}

/// A request for something below `/ipfs/`.
#[derive(Debug, Clone)]
pub struct GatewayRequest {
    /// `HEAD`: the same answer without its body.
    pub head: bool,
    /// The CID in the path.
    pub root: Cid,
    /// Decoded path segments after the CID, of any bytes; empty ones and dots are resolved.
    pub segments: Vec<Vec<u8>>,
    /// The path that says the same without dots and without escapes in the CID, if the URL's has
    /// some.
    pub plain_path: Option<String>,
    /// The representation.
    pub format: Format,
    /// The format, or a parameter of it, came from `Accept` alone: the answer names the URL that
    /// needs no header.
    pub content_location: bool,
    /// CAR parameters that were in `Accept`, for that URL.
    pub accept_params: CarParams,
    /// The `filename` parameter.
    pub filename: Option<String>,
    /// `Range` in order; empty: none, or one that is ignored.
    pub ranges: Vec<RangeSpec>,
    /// `If-Range`: the range holds for this entity tag only.
    pub if_range: Option<HeaderValue>,
    /// `If-Match` fields.
    pub if_match: Vec<HeaderValue>,
    /// `If-None-Match` fields.
    pub if_none_match: Vec<HeaderValue>,
    /// `Cache-Control: only-if-cached`.
    pub only_if_cached: bool,
}

/// The parameters of the query string that mean something here. The first of each name counts.
#[derive(Debug, Default)]
struct Query<'a> {
    format: Option<Cow<'a, str>>,
    dag_scope: Option<Cow<'a, str>>,
    entity_bytes: Option<Cow<'a, str>>,
    car_version: Option<Cow<'a, str>>,
    car_order: Option<Cow<'a, str>>,
    car_dups: Option<Cow<'a, str>>,
    filename: Option<Cow<'a, str>>,
}

/// Parses a request whose path begins with `/ipfs/`.
///
/// # Errors
/// 400 for anything malformed, 406 for representations that exist but are not offered here.
pub fn parse(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
    limits: &Limits,
) -> Result<GatewayRequest, Refusal> {
    if headers
        .get(&SERVICE_WORKER)
        .is_some_and(|value| value == "script")
    {
        return Err(Refusal::invalid(
            "service workers cannot be registered here",
        ));
    }
    let rest = uri.path().strip_prefix("/ipfs/").unwrap_or_default();
    let (cid_text, path) = rest.split_once('/').unwrap_or((rest, ""));
    let cid_text = decode_cid(cid_text)?;
    let root = parse_cid(&cid_text)?;
    let (segments, has_dots) = parse_segments(path, limits)?;
    let is_plain = !has_dots && matches!(cid_text, Cow::Borrowed(_));
    let plain_path = (!is_plain).then(|| plain_path(&cid_text, &segments));
    let query = parse_query(uri.query().unwrap_or_default())?;
    let negotiated = parse_accept(headers)?;
    let (format, content_location) = choose_format(&query, &negotiated)?;
    let head = method == Method::HEAD;
    Ok(GatewayRequest {
        head,
        root,
        segments,
        plain_path,
        format,
        content_location,
        accept_params: negotiated.car,
        filename: parse_filename(query.filename)?,
        // Range is defined for GET alone (RFC 9110 section 14.2).
        ranges: if head {
            Vec::new()
        } else {
            parse_ranges(headers)
        },
        if_range: headers.get(IF_RANGE).cloned(),
        if_match: headers.get_all(IF_MATCH).iter().cloned().collect(),
        if_none_match: headers.get_all(IF_NONE_MATCH).iter().cloned().collect(),
        only_if_cached: only_if_cached(headers),
    })
}

const SERVICE_WORKER: HeaderName = HeaderName::from_static("service-worker");

/// No base of CIDs needs escapes, and some clients write them.
fn decode_cid(text: &str) -> Result<Cow<'_, str>, Refusal> {
    if text.len() > cid::TEXT_LEN_MAX.saturating_mul(3) {
        return Err(Refusal::invalid("the CID is too long"));
    }
    decode(text, "the CID")
}

fn parse_cid(text: &str) -> Result<Cid, Refusal> {
    if text.is_empty() {
        return Err(Refusal::invalid("the path names no CID"));
    }
    // A long text is refused before its base is decoded.
    if text.len() > cid::TEXT_LEN_MAX {
        return Err(Refusal::invalid("the CID is too long"));
    }
    cid::parse_text(text).map_err(|error| Refusal::invalid(format!("the CID is invalid: {error}")))
}

/// The segments, and whether dots were among them.
fn parse_segments(path: &str, limits: &Limits) -> Result<(Vec<Vec<u8>>, bool), Refusal> {
    let mut segments = Vec::new();
    let mut has_dots = false;
    for raw in path.split('/').filter(|raw| !raw.is_empty()) {
        if segments.len() >= limits.path_segments_max {
            let sentence = format!(
                "the path has more than {} segments",
                limits.path_segments_max
            );
            return Err(Refusal::invalid(sentence));
        }
        // Three characters may stand for one byte.
        if raw.len() > limits.path_segment_len_max.saturating_mul(3) {
            return Err(Refusal::invalid("a path segment is too long"));
        }
        let segment = decode_bytes(raw, "a path segment")?;
        if segment.len() > limits.path_segment_len_max {
            return Err(Refusal::invalid("a path segment is too long"));
        }
        has_dots |= matches!(segment.as_ref(), b"." | b"..");
        push_segment(&mut segments, &segment)
            .map_err(|error| Refusal::invalid(format!("the path cannot be resolved: {error}")))?;
    }
    Ok((segments, has_dots))
}

/// What stays as it is in a path that is written anew.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

fn plain_path(cid_text: &str, segments: &[Vec<u8>]) -> String {
    let mut path = format!("/ipfs/{cid_text}");
    for segment in segments {
        path.push('/');
        path.extend(percent_encode(segment, SEGMENT));
    }
    path
}

/// Percent-decodes, strictly: a `%` without two hexadecimal digits is an error, as is what is not
/// UTF-8.
fn decode<'a>(text: &'a str, what: &str) -> Result<Cow<'a, str>, Refusal> {
    match decode_bytes(text, what)? {
        Cow::Borrowed(_) => Ok(Cow::Borrowed(text)),
        Cow::Owned(bytes) => match String::from_utf8(bytes) {
            Ok(decoded) => Ok(Cow::Owned(decoded)),
            Err(_) => Err(Refusal::invalid(format!("{what} is not UTF-8"))),
        },
    }
}

/// The same for what may be any bytes. What has no escapes is borrowed.
fn decode_bytes<'a>(text: &'a str, what: &str) -> Result<Cow<'a, [u8]>, Refusal> {
    if !text.contains('%') {
        return if text.bytes().all(|byte| byte >= 0x20) {
            Ok(Cow::Borrowed(text.as_bytes()))
        } else {
            Err(Refusal::invalid(format!("{what} holds control characters")))
        };
    }
    for after in text.split('%').skip(1) {
        let mut digits = after.bytes();
        let is_hex = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_hexdigit());
        if !is_hex(digits.next()) || !is_hex(digits.next()) {
            return Err(Refusal::invalid(format!("{what} has a malformed % escape")));
        }
    }
    Ok(Cow::Owned(percent_decode_str(text).collect()))
}

fn parse_query(query: &str) -> Result<Query<'_>, Refusal> {
    let mut parsed = Query::default();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        // Escapes in a name count, as Content-Location spells names without them. A name that
        // cannot be decoded is none of ours.
        let Ok(name) = decode_form(name, "a name") else {
            continue;
        };
        let slot = match name.as_ref() {
            "format" => &mut parsed.format,
            "dag-scope" => &mut parsed.dag_scope,
            "entity-bytes" => &mut parsed.entity_bytes,
            "car-version" => &mut parsed.car_version,
            "car-order" => &mut parsed.car_order,
            "car-dups" => &mut parsed.car_dups,
            "filename" => &mut parsed.filename,
            _ => continue,
        };
        if slot.is_none() {
            *slot = Some(decode_form(value, &name)?);
        }
    }
    Ok(parsed)
}

/// Decodes one value of a query string, where `+` is a space.
fn decode_form<'a>(value: &'a str, name: &str) -> Result<Cow<'a, str>, Refusal> {
    if !value.contains('+') {
        return decode(value, name);
    }
    Ok(Cow::Owned(
        decode(&value.replace('+', " "), name)?.into_owned(),
    ))
}

fn parse_accept(headers: &HeaderMap) -> Result<Negotiated, Refusal> {
    let mut fields = Vec::new();
    for value in headers.get_all(ACCEPT) {
        let field = value.to_str();
        fields.push(field.map_err(|_| Refusal::invalid("the Accept header is not ASCII"))?);
    }
    Ok(negotiate(fields.into_iter()))
}

/// The format and whether the URL alone would not have asked for it.
fn choose_format(query: &Query<'_>, accept: &Negotiated) -> Result<(Format, bool), Refusal> {
    let Some(format) = query.format.as_deref().filter(|format| !format.is_empty()) else {
        return match accept.accepted {
            Accepted::Raw => Ok((Format::Raw, true)),
            Accepted::Car => Ok((Format::Car(car_options(query, accept)?), true)),
            Accepted::UnsupportedCar => Err(unsupported_car()),
            Accepted::OtherFormat => Err(Refusal::not_acceptable(OFFERED)),
            Accepted::Nothing => Err(Refusal::invalid(
                "the request names no format: add ?format=raw or ?format=car, or an Accept header \
                 with application/vnd.ipld.raw or application/vnd.ipld.car",
            )),
        };
    };
    match format {
        "raw" => Ok((Format::Raw, false)),
        "car" => Ok((Format::Car(car_options(query, accept)?), false)),
        "json" => Ok((Format::Json, false)),
        "dag-json" | "dag-cbor" | "cbor" | "tar" | "ipns-record" => {
            Err(Refusal::not_acceptable(OFFERED))
        }
        _ => Err(Refusal::invalid(
            "the format is unknown: raw and car are offered",
        )),
    }
}

const OFFERED: &str = "only raw blocks and CARs are offered: application/vnd.ipld.raw and \
                       application/vnd.ipld.car";

fn unsupported_car() -> Refusal {
    Refusal::invalid("this form of CAR is not offered: version=1; order=dfs|unk; dups=y|n are")
}

/// Each parameter from the URL, else from `Accept`, else its default.
fn car_options(query: &Query<'_>, accept: &Negotiated) -> Result<CarOptions, Refusal> {
    if query
        .car_version
        .as_deref()
        .is_some_and(|version| version != "1")
    {
        return Err(Refusal::invalid("only car-version=1 is offered"));
    }
    let order = match query.car_order.as_deref() {
        Some(text) => Order::parse(text)
            .ok_or_else(|| Refusal::invalid("car-order is neither dfs nor unk"))?,
        None => accept.car.order.unwrap_or_default(),
    };
    let dups = match query.car_dups.as_deref() {
        Some("y") => true,
        Some("n") => false,
        Some(_) => return Err(Refusal::invalid("car-dups is neither y nor n")),
        None => accept.car.dups.unwrap_or(false),
    };
    let asked_scope = match query.dag_scope.as_deref() {
        None => None,
        Some("all") => Some(Scope::All),
        Some("entity") => Some(Scope::Entity),
        Some("block") => Some(Scope::Block),
        Some(_) => {
            return Err(Refusal::invalid(
                "dag-scope is none of all, entity and block",
            ));
        }
    };
    let entity_bytes = match query.entity_bytes.as_deref() {
        Some(text) => Some(parse_entity_bytes(text)?),
        None => None,
    };
    // "entity-bytes implies dag-scope=entity" (IPIP-402), and a scope that is written out wins.
    let implied_scope = match entity_bytes {
        Some(_) => Scope::Entity,
        None => Scope::All,
    };
    let scope = asked_scope.unwrap_or(implied_scope);
    Ok(CarOptions {
        scope,
        entity_bytes: entity_bytes.filter(|_| scope == Scope::Entity),
        order,
        dups,
        meta: accept.car.meta,
    })
}

/// `from:to`, where `to` may be `*`. A range that is empty whatever the file's size is refused
/// here; one that is empty for this file alone is answered as the specification says.
fn parse_entity_bytes(text: &str) -> Result<ByteRange, Refusal> {
    let range: ByteRange = text
        .parse()
        .map_err(|error| Refusal::invalid(format!("entity-bytes is malformed: {error}")))?;
    if let Some(to) = range.to
        && (range.from < 0) == (to < 0)
        && to < range.from
    {
        return Err(Refusal::invalid("entity-bytes ends before it starts"));
    }
    Ok(range)
}

fn parse_filename(filename: Option<Cow<'_, str>>) -> Result<Option<String>, Refusal> {
    match filename {
        Some(name) if name.len() > FILENAME_LEN_MAX => {
            let sentence = format!("filename is longer than {FILENAME_LEN_MAX} bytes");
            Err(Refusal::invalid(sentence))
        }
        Some(name) if !name.is_empty() => Ok(Some(name.into_owned())),
        _ => Ok(None),
    }
}

/// The ranges of a well-formed `Range` header. Any other is ignored (RFC 9110 section 14.2).
fn parse_ranges(headers: &HeaderMap) -> Vec<RangeSpec> {
    let Some(value) = headers.get(RANGE) else {
        return Vec::new();
    };
    let ranges = value.to_str().ok().and_then(|text| {
        let (unit, set) = text.split_once('=')?;
        if !unit.trim().eq_ignore_ascii_case("bytes") {
            return None;
        }
        if set.split(',').count() > RANGES_MAX {
            return None;
        }
        set.split(',').map(parse_range).collect::<Option<Vec<_>>>()
    });
    ranges.unwrap_or_default()
}

fn parse_range(text: &str) -> Option<RangeSpec> {
    let (first, last) = text.trim().split_once('-')?;
    // `parse` would take a sign.
    if !first
        .bytes()
        .chain(last.bytes())
        .all(|byte| byte.is_ascii_digit())
    {
        return None;
    }
    if first.is_empty() {
        return Some(RangeSpec::Suffix {
            len: last.parse().ok()?,
        });
    }
    let first = first.parse().ok()?;
    let last = match last {
        "" => None,
        digits => Some(digits.parse().ok()?),
    };
    if last.is_some_and(|last| last < first) {
        return None;
    }
    Some(RangeSpec::From { first, last })
}

fn only_if_cached(headers: &HeaderMap) -> bool {
    headers.get_all(CACHE_CONTROL).iter().any(|value| {
        value.to_str().is_ok_and(|text| {
            text.split(',')
                .any(|directive| directive.trim().eq_ignore_ascii_case("only-if-cached"))
        })
    })
}

impl GatewayRequest {
    /// Whether it is answered only under a condition.
    #[must_use]
    pub fn is_conditional(&self) -> bool {
        !self.if_match.is_empty() || !self.if_none_match.is_empty()
    }

    /// The path of the answer: that of `uri`, or the plain one that says the same.
    #[must_use]
    pub fn path<'a>(&'a self, uri: &'a Uri) -> &'a str {
        self.plain_path.as_deref().unwrap_or(uri.path())
    }
}

impl Refusal {
    fn invalid(sentence: impl Into<Cow<'static, str>>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, sentence)
    }

    fn not_acceptable(sentence: &'static str) -> Self {
        Self::new(StatusCode::NOT_ACCEPTABLE, sentence)
    }
}

#[cfg(test)]
mod tests;
