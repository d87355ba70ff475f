//! `entity-bytes`: a range of a file's bytes.
//!
//! In       the parameter's text, and later the file's size.
//! Out      [`ByteRange`], and the bytes it means.
//! Limits   numbers of 64 bits with sign; all arithmetic saturates.
//! Not here which blocks hold the bytes (`walk::walker`).
//!
//! Spec: <https://specs.ipfs.tech/http-gateways/trustless-gateway/>

use std::str::FromStr;

/// `from:to`, both inclusive; negative numbers count from the end; without `to` up to the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ByteRange {
    /// The first byte.
    pub from: i64,
    /// The last byte.
    pub to: Option<i64>,
}

/// Why a text is no range.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RangeError {
    /// Not `from:to` or `from:*` with decimal numbers of 64 bits.
    #[error("byte range is not of the form from:to or from:*")]
    Malformed,
    /// It ends before it starts, whatever the file.
    #[error("byte range ends before it starts")]
    Reversed,
}

impl FromStr for ByteRange {
    type Err = RangeError;

    fn from_str(text: &str) -> Result<Self, RangeError> {
        let (from, to) = text.split_once(':').ok_or(RangeError::Malformed)?;
        let from = number(from)?;
        let to = if to == "*" { None } else { Some(number(to)?) };
        match to {
            Some(to) if (from < 0) == (to < 0) && from > to => Err(RangeError::Reversed),
            _ => Ok(Self { from, to }),
        }
    }
}

fn number(text: &str) -> Result<i64, RangeError> {
    // `parse` takes a plus sign, which in a query is a space.
    if text.starts_with('+') {
        return Err(RangeError::Malformed);
    }
    text.parse().map_err(|_| RangeError::Malformed)
}

impl ByteRange {
    /// The bytes meant in a file of `file_len` bytes, as (first, one past the last), cut to the
    /// file. `None`: there are none, and the answer is that of `dag-scope=block`.
    #[must_use]
    pub fn resolve(&self, file_len: u64) -> Option<(u64, u64)> {
        let from = match u64::try_from(self.from) {
            Ok(from) => from,
            Err(_) => file_len.saturating_sub(self.from.unsigned_abs()),
        };
        let end = match self.to {
            None => file_len,
            Some(to) => {
                let last = match u64::try_from(to) {
                    Ok(last) => last,
                    Err(_) => file_len.checked_sub(to.unsigned_abs())?,
                };
                last.saturating_add(1).min(file_len)
            }
        };
        (from < end).then_some((from, end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolve(text: &str, len: u64) -> Option<(u64, u64)> {
        text.parse::<ByteRange>().unwrap().resolve(len)
    }

    #[test]
    fn every_form_means_what_the_specification_says() {
        for (text, want) in [
            ("0:*", Some((0, 1026))),
            ("0:0", Some((0, 1))),
            ("512:*", Some((512, 1026))),
            ("512:1023", Some((512, 1024))),
            ("512:-256", Some((512, 771))),
            ("-5:*", Some((1021, 1026))),
            ("-9999:*", Some((0, 1026))),
            ("-9999:-3", Some((0, 1024))),
            ("-1:-1", Some((1025, 1026))),
            ("0:-1", Some((0, 1026))),
            ("-1026:0", Some((0, 1))),
            ("1025:9999", Some((1025, 1026))),
            ("1026:*", None),
            ("1026:2000", None),
            ("5:-1025", None),
            ("-3:5", None),
            ("0:-1027", None),
            ("-9999:-9998", None),
            ("0:9223372036854775807", Some((0, 1026))),
            ("-9223372036854775808:*", Some((0, 1026))),
            ("-9223372036854775808:-9223372036854775808", None),
            ("9223372036854775807:9223372036854775807", None),
        ] {
            assert_eq!(resolve(text, 1026), want, "{text}");
        }
    }

    #[test]
    fn extremes_do_not_overflow() {
        assert_eq!(
            resolve("0:9223372036854775807", u64::MAX),
            Some((0, 1 << 63))
        );
        assert_eq!(resolve("-1:*", u64::MAX), Some((u64::MAX - 1, u64::MAX)));
        assert_eq!(resolve("0:-1", u64::MAX), Some((0, u64::MAX)));
        for text in ["0:*", "-1:*", "0:0", "0:-1", "-5:-1"] {
            assert_eq!(resolve(text, 0), None, "{text} of nothing");
        }
    }

    #[test]
    fn malformed_and_reversed_ranges_are_refused() {
        for text in [
            "", ":", "0", "*:0", "*:*", "0:", ":0", "a:b", "0:1:2", "0 :1", "+0:1", "0:+1",
        ] {
            assert_eq!(
                text.parse::<ByteRange>(),
                Err(RangeError::Malformed),
                "{text:?}"
            );
        }
        let huge = "0:9223372036854775808";
        assert_eq!(huge.parse::<ByteRange>(), Err(RangeError::Malformed));
        for text in ["5:4", "-4:-5"] {
            assert_eq!(
                text.parse::<ByteRange>(),
                Err(RangeError::Reversed),
                "{text}"
            );
        }
    }
}
