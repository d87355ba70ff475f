//! Content negotiation: which representation the `Accept` header asks for.
//!
//! In       the bytes of the `Accept` header fields.
//! Out      the best entry this gateway can answer, with its CAR parameters.
//! Limits   [`ACCEPT_ENTRIES_MAX`] entries are looked at; the rest count as absent.
//! Not here the `format` parameter of the URL, which wins over all of this (`request`).
//!
//! Spec: RFC 9110 section 12.5.1; IPIP-412 (order, dups), IPIP-431 (meta), IPIP-523 (precedence).

use crate::http::limits::ACCEPT_ENTRIES_MAX;

/// Media type of one raw block.
pub const RAW_TYPE: &str = "application/vnd.ipld.raw";
/// Media type of a CAR.
pub const CAR_TYPE: &str = "application/vnd.ipld.car";

/// Order of the blocks in a CAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Order {
    /// Depth first, pre-order. What is always sent.
    #[default]
    Dfs,
    /// The client does not care; the answer is labelled so and is depth first all the same.
    Unknown,
}

impl Order {
    /// The value of `order` in media types.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Dfs => "dfs",
            Self::Unknown => "unk",
        }
    }

    /// Reads the value of `order` or `car-order`; `None`: not one that can be sent.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "dfs" => Some(Self::Dfs),
            "unk" => Some(Self::Unknown),
            _ => None,
        }
    }
}

/// CAR parameters as asked for; `None`: not said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CarParams {
    /// `version=1` was written. Other versions never get here.
    pub version: Option<u8>,
    /// `order`.
    pub order: Option<Order>,
    /// `dups`.
    pub dups: Option<bool>,
    /// `meta=eof+json`: end with the metadata trailer of IPIP-431.
    pub meta: bool,
}

/// What the `Accept` header asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accepted {
    /// No entry names a representation of this gateway: absent, `*/*`, `text/html`.
    Nothing,
    /// Only representations of the same data that this gateway does not offer.
    OtherFormat,
    /// A CAR, but in a version, order or form of duplicates that cannot be sent.
    UnsupportedCar,
    /// One raw block.
    Raw,
    /// A CAR.
    Car,
}

/// The outcome of looking at `Accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Negotiated {
    /// The representation asked for.
    pub accepted: Accepted,
    /// Parameters of the best CAR entry, wherever it ranks: they count, too, when the URL says
    /// `format=car`.
    pub car: CarParams,
}

/// One entry: media type, parameters, weight in thousandths.
struct Entry<'a> {
    media_type: &'a str,
    params: &'a str,
    weight: u16,
}

/// Looks at all `Accept` fields in order. The highest weight wins, then the earlier entry.
pub fn negotiate<'a>(fields: impl Iterator<Item = &'a str>) -> Negotiated {
    let mut best = (Accepted::Nothing, 0_u16);
    let mut best_car: Option<(CarParams, u16)> = None;
    for entry in fields
        .flat_map(|field| Split::new(field, b','))
        .take(ACCEPT_ENTRIES_MAX)
        .filter_map(parse_entry)
    {
        if entry.weight == 0 {
            continue;
        }
        let candidate = if entry.media_type.eq_ignore_ascii_case(RAW_TYPE) {
            Accepted::Raw
        } else if entry.media_type.eq_ignore_ascii_case(CAR_TYPE) {
            match car_params(entry.params) {
                Some(params) => {
                    if best_car.is_none_or(|(_, weight)| entry.weight > weight) {
                        best_car = Some((params, entry.weight));
                    }
                    Accepted::Car
                }
                None => Accepted::UnsupportedCar,
            }
        } else if is_other_format(entry.media_type) {
            Accepted::OtherFormat
        } else {
            continue;
        };
        let rank = |accepted| matches!(accepted, Accepted::Raw | Accepted::Car);
        let better = match (rank(candidate), rank(best.0)) {
            (true, false) => true,
            (false, true) => false,
            _ => entry.weight > best.1,
        };
        if better {
            best = (candidate, entry.weight);
        }
    }
    Negotiated {
        accepted: best.0,
        car: best_car.map_or_else(CarParams::default, |(params, _)| params),
    }
}

/// Formats of IPFS gateways that are known and not offered here: 406 rather than 400.
fn is_other_format(media_type: &str) -> bool {
    [
        "application/vnd.ipld.dag-json",
        "application/vnd.ipld.dag-cbor",
        "application/vnd.ipfs.ipns-record",
        "application/x-tar",
        "application/cbor",
    ]
    .iter()
    .any(|known| media_type.eq_ignore_ascii_case(known))
}

/// Parameters of a CAR entry; `None`: a variant that cannot be sent.
fn car_params(params: &str) -> Option<CarParams> {
    let mut car = CarParams::default();
    for (name, value) in Split::new(params, b';').filter_map(parse_param) {
        if name.eq_ignore_ascii_case("version") {
            if value != "1" {
                return None;
            }
            car.version = Some(1);
        } else if name.eq_ignore_ascii_case("order") {
            car.order = Some(Order::parse(value)?);
        } else if name.eq_ignore_ascii_case("dups") {
            car.dups = Some(match value {
                "y" => true,
                "n" => false,
                _ => return None,
            });
        } else if name.eq_ignore_ascii_case("meta") {
            // Other values are ignored, as IPIP-431 asks.
            car.meta = value == "eof+json";
        }
    }
    Some(car)
}

fn parse_entry(text: &str) -> Option<Entry<'_>> {
    let mut parts = Split::new(text, b';');
    let media_type = parts.next()?.trim();
    let params = text.get(parts.position()..).unwrap_or("");
    if media_type.is_empty() {
        return None;
    }
    let mut weight = 1000;
    for (name, value) in Split::new(params, b';').filter_map(parse_param) {
        if name.eq_ignore_ascii_case("q") {
            // An entry with an unreadable weight is as if it was not there.
            weight = parse_weight(value)?;
        }
    }
    Some(Entry {
        media_type,
        params,
        weight,
    })
}

/// `name=value` or `name="value"`. Backslashes inside quotes are left as they are: no parameter
/// of ours has one, so such a value matches none.
fn parse_param(text: &str) -> Option<(&str, &str)> {
    let (name, value) = text.split_once('=')?;
    let value = value.trim();
    let unquoted = value
        .strip_prefix('"')
        .and_then(|rest| rest.strip_suffix('"'));
    Some((name.trim(), unquoted.unwrap_or(value)))
}

/// `0`, `1`, `0.5`, `1.000` as thousandths (RFC 9110 section 12.4.2).
fn parse_weight(text: &str) -> Option<u16> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if fraction.len() > 3 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let thousandths = format!("{fraction:0<3}").parse::<u16>().ok()?;
    match whole {
        "0" => Some(thousandths),
        "1" if thousandths == 0 => Some(1000),
        _ => None,
    }
}

/// Splits at a separator that is not inside a quoted string.
struct Split<'a> {
    text: &'a str,
    separator: u8,
    /// Where the next part starts; past the end: none is left.
    position: usize,
    done: bool,
}

impl<'a> Split<'a> {
    const fn new(text: &'a str, separator: u8) -> Self {
        Self {
            text,
            separator,
            position: 0,
            done: false,
        }
    }

    /// Byte index of the part that comes next.
    const fn position(&self) -> usize {
        self.position
    }
}

impl<'a> Iterator for Split<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        if self.done {
            return None;
        }
        let start = self.position;
        let rest = self.text.get(start..)?;
        let mut quoted = false;
        let mut escaped = false;
        for (index, byte) in rest.bytes().enumerate() {
            if escaped {
                escaped = false;
            } else if quoted && byte == b'\\' {
                escaped = true;
            } else if byte == b'"' {
                quoted = !quoted;
            } else if byte == self.separator && !quoted {
                self.position = start.saturating_add(index).saturating_add(1);
                return rest.get(..index);
            }
        }
        self.done = true;
        self.position = self.text.len();
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepted(field: &str) -> Accepted {
        negotiate([field].into_iter()).accepted
    }

    #[test]
    fn the_highest_weight_wins_then_the_earlier_entry() {
        let table = [
            ("", Accepted::Nothing),
            ("*/*", Accepted::Nothing),
            (
                "text/html,application/xhtml+xml;q=0.9,*/*;q=0.8",
                Accepted::Nothing,
            ),
            ("application/vnd.ipld.raw", Accepted::Raw),
            ("APPLICATION/vnd.IPLD.raw ; q=1", Accepted::Raw),
            (
                "application/vnd.ipld.raw;q=0.5, application/vnd.ipld.car",
                Accepted::Car,
            ),
            (
                "application/vnd.ipld.raw, application/vnd.ipld.car",
                Accepted::Raw,
            ),
            (
                "application/vnd.ipld.raw;q=0, application/vnd.ipld.car;q=0.1",
                Accepted::Car,
            ),
            ("application/vnd.ipld.raw;q=2", Accepted::Nothing),
            ("application/vnd.ipld.raw;q=0", Accepted::Nothing),
            (
                "application/vnd.ipld.car;version=2",
                Accepted::UnsupportedCar,
            ),
            (
                "application/vnd.ipld.car;version=2, application/vnd.ipld.raw;q=0.1",
                Accepted::Raw,
            ),
            (
                "application/vnd.ipld.car;order=bfs",
                Accepted::UnsupportedCar,
            ),
            (
                "application/vnd.ipld.car;dups=maybe",
                Accepted::UnsupportedCar,
            ),
            ("application/vnd.ipld.dag-json", Accepted::OtherFormat),
            (
                "application/x-tar, application/vnd.ipld.raw;q=0.2",
                Accepted::Raw,
            ),
            (
                "text/html;x=\"application/vnd.ipld.raw, ,\"",
                Accepted::Nothing,
            ),
        ];
        for (field, expected) in table {
            assert_eq!(accepted(field), expected, "{field}");
        }
    }

    #[test]
    fn parameters_come_from_the_best_car_entry() {
        let field = "application/vnd.ipld.car;dups=n;q=0.1, \
                     application/vnd.ipld.car; version=1; order=\"unk\"; dups=y; meta=eof+json";
        let car = negotiate([field].into_iter()).car;
        assert_eq!(
            car,
            CarParams {
                version: Some(1),
                order: Some(Order::Unknown),
                dups: Some(true),
                meta: true
            }
        );
    }

    #[test]
    fn unknown_meta_values_are_ignored() {
        let asked = negotiate(["application/vnd.ipld.car;meta=eof"].into_iter());
        assert_eq!(asked.accepted, Accepted::Car);
        assert!(!asked.car.meta);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "\\PC*") {
            negotiate([text.as_str()].into_iter());
        }
    }
}
