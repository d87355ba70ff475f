//! Values of the configuration: numbers within bounds, sizes, rates, networks.
//!
//! In       TOML values.
//! Out      numbers; or an error that says what is allowed, which TOML's reader gives a line.
//! Not here which key means what (`config`).

use std::fmt;
use std::net::IpAddr;
use std::time::Duration;

use carrack_bitswap::budget::{Beyond, Network};
use serde::de::{Deserialize, Deserializer, Error, Unexpected, Visitor};

/// Units of sizes; what they multiply by.
const UNITS: [(&str, u64); 5] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
];

/// A whole number within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Count<const MIN: u64, const MAX: u64>(u64);

/// Bytes within bounds: a number, or text such as `"64 KiB"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size<const MIN: u64, const MAX: u64>(u64);

/// Whole seconds within bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Seconds<const MIN: u64, const MAX: u64>(u64);

/// So many in a while, or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Rate(pub(super) Option<u64>);

/// So many bytes in a while, or `"unlimited"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SizeRate(pub(super) Option<u64>);

/// `"dont-have"` or `"silence"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Answer(pub(super) Beyond);

/// `"10.0.0.0/8"`, or an address alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Net(pub(super) Network);

/// Most that a rate may say: more is no limit, and products with it fit 64 bits.
const RATE_MAX: u64 = 1 << 48;

impl<const MIN: u64, const MAX: u64> Count<MIN, MAX> {
    pub(super) fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl<const MIN: u64, const MAX: u64> Size<MIN, MAX> {
    pub(super) fn get(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    pub(super) const fn bytes(self) -> u64 {
        self.0
    }
}

impl<const MIN: u64, const MAX: u64> Seconds<MIN, MAX> {
    pub(super) const fn get(self) -> Duration {
        Duration::from_secs(self.0)
    }
}

/// Which numbers are taken, in which forms.
#[derive(Debug, Clone, Copy)]
struct Form {
    min: u64,
    max: u64,
    /// Text with a unit.
    with_unit: bool,
    /// The word `unlimited`, which is `None`.
    or_unlimited: bool,
}

impl Visitor<'_> for Form {
    type Value = Option<u64>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { min, max, .. } = self;
        match self.with_unit {
            true => write!(
                f,
                "a number of bytes from {min} to {max}, or text such as \"64 KiB\" (B, KiB, MiB, \
                 GiB, TiB)"
            )?,
            false => write!(f, "a whole number from {min} to {max}")?,
        }
        match self.or_unlimited {
            true => f.write_str(", or \"unlimited\""),
            false => Ok(()),
        }
    }

    fn visit_u64<E: Error>(self, value: u64) -> Result<Self::Value, E> {
        match (self.min..=self.max).contains(&value) {
            true => Ok(Some(value)),
            false => Err(E::invalid_value(Unexpected::Unsigned(value), &self)),
        }
    }

    fn visit_i64<E: Error>(self, value: i64) -> Result<Self::Value, E> {
        match u64::try_from(value) {
            Ok(value) => self.visit_u64(value),
            Err(_) => Err(E::invalid_value(Unexpected::Signed(value), &self)),
        }
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        if self.or_unlimited && text == "unlimited" {
            return Ok(None);
        }
        match size(text) {
            Some(value) if self.with_unit => self.visit_u64(value),
            _ => Err(E::invalid_value(Unexpected::Str(text), &self)),
        }
    }
}

/// Bytes of `"64 KiB"`: digits, then a unit, which is not left out: a number needs no quotes.
pub(super) fn size(text: &str) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at_checked(digits)?;
    let unit = unit.trim_start_matches(' ');
    let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit)?;
    number.parse::<u64>().ok()?.checked_mul(*factor)
}

/// A number that is there, of a form without `unlimited`.
fn bounded<'de, D: Deserializer<'de>>(input: D, form: Form) -> Result<u64, D::Error> {
    let value = input.deserialize_any(form)?;
    value.ok_or_else(|| D::Error::custom("a number is needed"))
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Count<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let form = Form {
            min: MIN,
            max: MAX,
            with_unit: false,
            or_unlimited: false,
        };
        bounded(input, form).map(Self)
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Seconds<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        Count::<MIN, MAX>::deserialize(input).map(|count| Self(count.0))
    }
}

impl<'de, const MIN: u64, const MAX: u64> Deserialize<'de> for Size<MIN, MAX> {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let form = Form {
            min: MIN,
            max: MAX,
            with_unit: true,
            or_unlimited: false,
        };
        bounded(input, form).map(Self)
    }
}

impl<'de> Deserialize<'de> for Rate {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let form = Form {
            min: 1,
            max: RATE_MAX,
            with_unit: false,
            or_unlimited: true,
        };
        input.deserialize_any(form).map(Self)
    }
}

impl<'de> Deserialize<'de> for SizeRate {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let form = Form {
            min: 1,
            max: RATE_MAX,
            with_unit: true,
            or_unlimited: true,
        };
        input.deserialize_any(form).map(Self)
    }
}

/// Text of which `parse` makes something.
struct Words<T> {
    allowed: &'static str,
    parse: fn(&str) -> Option<T>,
}

impl<T> Visitor<'_> for Words<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.allowed)
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        (self.parse)(text).ok_or_else(|| E::invalid_value(Unexpected::Str(text), &self))
    }
}

impl<'de> Deserialize<'de> for Answer {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let words = Words {
            allowed: "\"dont-have\" or \"silence\"",
            parse: |text| match text {
                "dont-have" => Some(Beyond::DontHave),
                "silence" => Some(Beyond::Silence),
                _ => None,
            },
        };
        input.deserialize_str(words).map(Self)
    }
}

impl<'de> Deserialize<'de> for Net {
    fn deserialize<D: Deserializer<'de>>(input: D) -> Result<Self, D::Error> {
        let words = Words {
            allowed: "an address such as \"::1\", or a network such as \"10.0.0.0/8\"",
            parse: network,
        };
        input.deserialize_str(words).map(Self)
    }
}

fn network(text: &str) -> Option<Network> {
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let address: IpAddr = address.parse().ok()?;
    let bits = if address.is_ipv4() { 32 } else { 128 };
    let prefix_len = match prefix {
        Some(prefix) => prefix.parse().ok().filter(|len| *len <= bits)?,
        None => bits,
    };
    Some(Network {
        address,
        prefix_len,
    })
}
