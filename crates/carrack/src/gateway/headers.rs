//! Response headers: what a cache, a browser and a block client need to know, in under 2 KiB.
//!
//! In       a parsed request and where its path led.
//! Out      a [`HeaderMap`], complete but for what hyper adds (date, length, transfer encoding).
//! Limits   [`RESPONSE_HEAD_LEN_MAX`]: informative headers that do not fit are left out.
//! Not here the status and the body (`raw`, `car`), conditions (`conditions`).
//!
//! Spec: trustless gateway, section response headers; RFC 9110 section 8.8; RFC 6266.

use std::fmt::Write as _;

use bytes::{BufMut as _, BytesMut};
use carrack_formats::Cid;
use http::Uri;
use http::header::{
    ACCEPT_RANGES, ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
    ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, CACHE_CONTROL, CONTENT_DISPOSITION,
    CONTENT_LOCATION, CONTENT_TYPE, ETAG, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER, VARY,
    X_CONTENT_TYPE_OPTIONS,
};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

use super::negotiate::{Order, RAW_TYPE};
use super::request::{CarOptions, Format, GatewayRequest};
use super::trailer::{range_text, scope_str};
use crate::http::limits::RESPONSE_HEAD_LEN_MAX;
use crate::http::refusal::Refusal;

/// Content below a CID never changes: 48 weeks, as deployed gateways say it.
const IMMUTABLE: HeaderValue = HeaderValue::from_static("public, max-age=29030400, immutable");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
const NOSNIFF: HeaderValue = HeaderValue::from_static("nosniff");
const TEXT_PLAIN: HeaderValue = HeaderValue::from_static("text/plain; charset=utf-8");
const ANY: HeaderValue = HeaderValue::from_static("*");

const X_IPFS_PATH: HeaderName = HeaderName::from_static("x-ipfs-path");
const X_IPFS_ROOTS: HeaderName = HeaderName::from_static("x-ipfs-roots");

/// The part of [`RESPONSE_HEAD_LEN_MAX`] that is kept for the status line and the headers that are
/// added later: date, content-length, content-range, transfer-encoding, connection.
const LATER_LEN: usize = 256;

/// A Content-Disposition beyond this falls back to the name made of the CID, which is shorter.
const DISPOSITION_LEN_MAX: usize = 640;

/// Part of every entity tag of a CAR: raised when the same request begins to give other bytes.
const CAR_REVISION: u8 = 2;

/// What Go's `url.PathEscape` leaves as it is, for equal file names.
const FILENAME: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b'=')
    .remove(b':')
    .remove(b'@');

/// What `application/x-www-form-urlencoded` leaves as it is, but for the space.
const FORM: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Where a request's path led.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The CID at its end.
    pub terminus: &'a Cid,
    /// The CIDs of the path: the root and one for each segment.
    pub roots: &'a [Cid],
}

/// Headers of 200 and 206. `etag` comes from [`etag`].
#[must_use]
pub fn success(
    request: &GatewayRequest,
    uri: &Uri,
    target: Target<'_>,
    etag: HeaderValue,
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(24);
    cors(&mut headers);
    let mut text = Text::default();
    headers.insert(CONTENT_TYPE, content_type(&request.format));
    match request.format {
        Format::Raw | Format::Car(_) => {
            headers.insert(CONTENT_DISPOSITION, disposition(request, target, &mut text));
        }
        Format::Json => {}
    }
    headers.insert(ETAG, etag);
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(ACCEPT_RANGES, accept_ranges(&request.format));
    headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    headers.insert(VARY, HeaderValue::from_static("accept"));
    informative(&mut headers, request, uri, target, &mut text);
    headers
}

/// Headers of 304: those of the 200 that a cache updates.
#[must_use]
pub fn not_modified(etag: HeaderValue) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    cors(&mut headers);
    headers.insert(ETAG, etag);
    headers.insert(CACHE_CONTROL, IMMUTABLE);
    headers.insert(VARY, HeaderValue::from_static("accept"));
    headers
}

/// Headers of a refusal. Only 400, 405 and 406 may be kept by a cache: they are about the request
/// alone, and the same request will always get them.
#[must_use]
pub fn refusal(refusal: &Refusal, retry_after_s: u32) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    headers.insert(CONTENT_TYPE, TEXT_PLAIN);
    headers.insert(X_CONTENT_TYPE_OPTIONS, NOSNIFF);
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    if !matches!(refusal.status.as_u16(), 400 | 405 | 406) {
        headers.insert(CACHE_CONTROL, NO_STORE);
    }
    if refusal.retry {
        headers.insert(RETRY_AFTER, HeaderValue::from(retry_after_s));
    }
    headers
}

/// Lets scripts of any origin read answers: everything served here is public.
pub fn cors(headers: &mut HeaderMap) {
    headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, ANY);
    headers.insert(
        ACCESS_CONTROL_ALLOW_METHODS,
        HeaderValue::from_static("GET, HEAD, OPTIONS"),
    );
    headers.insert(
        ACCESS_CONTROL_ALLOW_HEADERS,
        HeaderValue::from_static("Content-Type, Range, User-Agent, X-Requested-With"),
    );
    headers.insert(
        ACCESS_CONTROL_EXPOSE_HEADERS,
        HeaderValue::from_static(
            "Content-Length, Content-Range, X-Chunked-Output, X-Ipfs-Path, X-Ipfs-Roots, \
             X-Stream-Output",
        ),
    );
}

/// The entity tag: strong for a block, weak for a CAR, whose bytes may differ for equal content.
/// It differs between any two requests whose answers differ.
#[must_use]
pub fn etag(request: &GatewayRequest, terminus: &Cid) -> HeaderValue {
    let mut text = Text::default();
    match &request.format {
        Format::Raw => text.write(format_args!("\"{terminus}.raw\"")),
        Format::Json => text.write(format_args!("\"{terminus}\"")),
        Format::Car(options) => {
            let digest = car_digest(&request.segments, options);
            text.write(format_args!("W/\"{}.car.{digest:016x}\"", request.root));
        }
    }
    text.take()
}

/// A number for everything but the root that decides what a CAR holds.
fn car_digest(segments: &[Vec<u8>], options: &CarOptions) -> u64 {
    let mut hasher = blake3::Hasher::new();
    let order = options.order == Order::Unknown;
    let flags = [order, options.dups, options.meta].map(u8::from);
    hasher.update(&[CAR_REVISION]).update(&flags);
    hasher.update(scope_str(options.scope).as_bytes());
    if let Some(range) = options.entity_bytes {
        hasher.update(b"\0").update(range_text(range).as_bytes());
    }
    for segment in segments {
        // The length keeps `a`, `b` apart from `a/b` in one segment.
        hasher.update(&(segment.len() as u64).to_le_bytes());
        hasher.update(segment);
    }
    let mut first = [0; 8];
    first.copy_from_slice(
        hasher
            .finalize()
            .as_bytes()
            .first_chunk::<8>()
            .unwrap_or(&[0; 8]),
    );
    u64::from_le_bytes(first)
}

fn content_type(format: &Format) -> HeaderValue {
    let text = match format {
        Format::Raw => RAW_TYPE,
        Format::Json => "application/json",
        Format::Car(options) => match (options.order, options.dups, options.meta) {
            (Order::Dfs, false, false) => "application/vnd.ipld.car; version=1; order=dfs; dups=n",
            (Order::Dfs, true, false) => "application/vnd.ipld.car; version=1; order=dfs; dups=y",
            (Order::Unknown, false, false) => {
                "application/vnd.ipld.car; version=1; order=unk; dups=n"
            }
            (Order::Unknown, true, false) => {
                "application/vnd.ipld.car; version=1; order=unk; dups=y"
            }
            (Order::Dfs, false, true) => {
                "application/vnd.ipld.car; version=1; order=dfs; dups=n; meta=eof+json"
            }
            (Order::Dfs, true, true) => {
                "application/vnd.ipld.car; version=1; order=dfs; dups=y; meta=eof+json"
            }
            (Order::Unknown, false, true) => {
                "application/vnd.ipld.car; version=1; order=unk; dups=n; meta=eof+json"
            }
            (Order::Unknown, true, true) => {
                "application/vnd.ipld.car; version=1; order=unk; dups=y; meta=eof+json"
            }
        },
    };
    HeaderValue::from_static(text)
}

const fn accept_ranges(format: &Format) -> HeaderValue {
    match format {
        Format::Raw | Format::Json => HeaderValue::from_static("bytes"),
        Format::Car(_) => HeaderValue::from_static("none"),
    }
}

/// `attachment` with the name asked for, else one made of the CID.
fn disposition(request: &GatewayRequest, target: Target<'_>, text: &mut Text) -> HeaderValue {
    let raw = !matches!(request.format, Format::Car(_));
    let last_segment = request.segments.last();
    let named = match (&request.filename, last_segment, raw) {
        (Some(name), ..) => Some(attachment(name)),
        (None, Some(segment), false) => {
            let segment = String::from_utf8_lossy(segment); // The field is UTF-8.
            Some(attachment(&format!("{}_{segment}.car", request.root)))
        }
        _ => None,
    };
    if let Some(named) = named.filter(|named| named.len() <= DISPOSITION_LEN_MAX) {
        text.write(format_args!("{named}"));
        return text.take();
    }
    // The text of a CID needs no escapes.
    let (cid, extension) = if raw {
        (target.terminus, "bin")
    } else {
        (&request.root, "car")
    };
    let cid = cid.to_string();
    text.write(format_args!(
        "attachment; filename=\"{cid}.{extension}\"; filename*=UTF-8''{cid}.{extension}"
    ));
    text.take()
}

/// Both forms of RFC 6266: ASCII with `_` for the rest, then UTF-8 in percent escapes.
fn attachment(name: &str) -> String {
    let ascii: String = name
        .chars()
        .map(|character| if character.is_ascii() { character } else { '_' })
        .collect();
    let ascii = utf8_percent_encode(&ascii, FILENAME);
    let utf8 = utf8_percent_encode(name, FILENAME);
    format!("attachment; filename=\"{ascii}\"; filename*=UTF-8''{utf8}")
}

/// Headers that help and are not needed, as far as they fit.
fn informative(
    headers: &mut HeaderMap,
    request: &GatewayRequest,
    uri: &Uri,
    target: Target<'_>,
    text: &mut Text,
) {
    let used: usize = headers
        .iter()
        .map(|(name, value)| line_len(name, value))
        .sum();
    let mut room = RESPONSE_HEAD_LEN_MAX
        .saturating_sub(LATER_LEN)
        .saturating_sub(used);
    let mut add = |name: HeaderName, value: HeaderValue| {
        let len = line_len(&name, &value);
        if len <= room {
            room -= len;
            headers.insert(name, value);
        }
    };
    for byte in percent_decode_str(request.path(uri)) {
        match byte {
            b' '..=b'~' => text.buffer.put_u8(byte),
            // A path may decode to line feeds and escapes of terminals.
            _ => text.write(format_args!("%{byte:02X}")),
        }
    }
    add(X_IPFS_PATH, text.take());
    for (index, root) in target.roots.iter().enumerate() {
        let comma = if index == 0 { "" } else { "," };
        text.write(format_args!("{comma}{root}"));
        if text.buffer.len() > RESPONSE_HEAD_LEN_MAX {
            break;
        }
    }
    add(X_IPFS_ROOTS, text.take());
    if let Some(location) = content_location(request, uri, text) {
        add(CONTENT_LOCATION, location);
    }
}

/// `name: value\r\n`.
fn line_len(name: &HeaderName, value: &HeaderValue) -> usize {
    name.as_str()
        .len()
        .saturating_add(value.len())
        .saturating_add(4)
}

/// The URL that asks for the same without an `Accept` header (IPIP-523): the query with the format
/// and its parameters, sorted by name. None with `meta`, which no URL can ask for.
fn content_location(request: &GatewayRequest, uri: &Uri, text: &mut Text) -> Option<HeaderValue> {
    if !request.content_location {
        return None;
    }
    let mut pairs: Vec<(String, String)> = Vec::new();
    for pair in uri
        .query()
        .unwrap_or_default()
        .split('&')
        .filter(|pair| !pair.is_empty())
    {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((form_text(name), form_text(value)));
    }
    let mut set = |name: &str, value: &str| {
        pairs.retain(|(known, _)| known != name);
        pairs.push((name.to_owned(), value.to_owned()));
    };
    match request.format {
        Format::Car(options) if options.meta => return None,
        Format::Car(options) => {
            set("format", "car");
            let asked = request.accept_params;
            if asked.version.is_some() {
                set("car-version", "1");
            }
            if asked.order.is_some() {
                set("car-order", options.order.as_str());
            }
            if asked.dups.is_some() {
                set("car-dups", if options.dups { "y" } else { "n" });
            }
        }
        Format::Raw => set("format", "raw"),
        Format::Json => return None,
    }
    pairs.sort_by(|(left, _), (right, _)| left.cmp(right));
    text.write(format_args!("{}", request.path(uri)));
    for (index, (name, value)) in pairs.iter().enumerate() {
        let separator = if index == 0 { '?' } else { '&' };
        text.write(format_args!("{separator}{name}={value}"));
    }
    // A path with bytes that no header may hold is left out with the whole header.
    text.try_take()
}

/// Decodes and encodes anew, so that what was sent unescaped is escaped.
fn form_text(text: &str) -> String {
    let decoded: Vec<u8> = percent_decode_str(&text.replace('+', " ")).collect();
    let encoded = percent_encoding::percent_encode(&decoded, FORM).to_string();
    encoded.replace("%20", "+")
}

/// Header values of one response, written into one buffer: one allocation instead of five.
#[derive(Debug)]
struct Text {
    buffer: BytesMut,
}

impl Default for Text {
    fn default() -> Self {
        Self {
            buffer: BytesMut::with_capacity(512),
        }
    }
}

impl Text {
    fn write(&mut self, arguments: std::fmt::Arguments<'_>) {
        // Writing to memory does not fail.
        let _ = self.buffer.write_fmt(arguments);
    }

    /// What was written since the last call; empty if no header can hold it.
    fn take(&mut self) -> HeaderValue {
        self.try_take().unwrap_or(HeaderValue::from_static(""))
    }

    fn try_take(&mut self) -> Option<HeaderValue> {
        HeaderValue::from_maybe_shared(self.buffer.split().freeze()).ok()
    }
}

#[cfg(test)]
mod tests;
