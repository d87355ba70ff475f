//! Points in time as web servers and buckets write them.
//!
//! In       text of a header or a listing.
//! Out      a [`FileTime`], or `None` if it is no such text; and the text of a header.
//! Not here time zones other than Greenwich: HTTP and S3 know no others.
//!
//! Specs: RFC 9110, 5.6.7; ISO 8601 as Amazon S3 writes it.

use crate::clock::{MONTHS, civil};
use crate::source::validator::FileTime;

const WEEKDAYS: [&str; 7] = ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"];
const DAY: i64 = 86_400;

/// `Sun, 06 Nov 1994 08:49:37 GMT`, and the two older forms that recipients must take.
#[must_use]
pub(super) fn from_http(text: &str) -> Option<FileTime> {
    let words: Vec<&str> = text.split_ascii_whitespace().take(7).collect();
    let (day, month, year, time) = match words.as_slice() {
        [_, day, month, year, time, "GMT" | "UTC"] => (*day, *month, number(year)?, *time),
        // asctime: `Sun Nov  6 08:49:37 1994`
        [_, month, day, time, year] => (*day, *month, number(year)?, *time),
        // RFC 850: `Sunday, 06-Nov-94 08:49:37 GMT`
        [_, date, time, "GMT"] => {
            let mut parts = date.split('-');
            let (day, month) = (parts.next()?, parts.next()?);
            let year = number(parts.next()?)?;
            let century = if year < 70 { 2000 } else { 1900 };
            (day, month, century + year, *time)
        }
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)?;
    let secs = seconds(year, i64::try_from(month).ok()? + 1, number(day)?, time)?;
    Some(FileTime { secs, nanos: 0 })
}

/// `1994-11-06T08:49:37.123Z`, with or without a fraction.
#[must_use]
pub(super) fn from_iso(text: &str) -> Option<FileTime> {
    let (date, time) = text.trim().strip_suffix('Z')?.split_once('T')?;
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut parts = date.split('-');
    let (year, month) = (number(parts.next()?)?, number(parts.next()?)?);
    let secs = seconds(year, month, number(parts.next()?)?, time)?;
    if parts.next().is_some() || fraction.len() > 9 {
        return None;
    }
    let nanos = match fraction {
        "" => 0,
        digits => {
            let scale = 10_i64.pow(9 - u32::try_from(digits.len()).ok()?);
            u32::try_from(number(digits)? * scale).ok()?
        }
    };
    Some(FileTime { secs, nanos })
}

/// As an `If-Unmodified-Since` header has it: to the second.
#[must_use]
pub(super) fn to_http(time: FileTime) -> String {
    let (days, rest) = (time.secs.div_euclid(DAY), time.secs.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    let name = |names: &[&'static str], index: i64| {
        let index = usize::try_from(index).unwrap_or(0);
        names.get(index).copied().unwrap_or("")
    };
    format!(
        "{}, {day:02} {} {year:04} {:02}:{:02}:{:02} GMT",
        name(&WEEKDAYS, days.rem_euclid(7)),
        name(&MONTHS, month - 1),
        rest / 3600,
        rest / 60 % 60,
        rest % 60,
    )
}

fn seconds(year: i64, month: i64, day: i64, time: &str) -> Option<i64> {
    let mut parts = time.split(':');
    let (hour, minute) = (number(parts.next()?)?, number(parts.next()?)?);
    let second = number(parts.next()?)?;
    let valid = (1..=12).contains(&month)
        && (1..=31).contains(&day)
        && (0..=9999).contains(&year)
        && hour < 24
        && minute < 60
        && second <= 60
        && parts.next().is_none();
    valid.then(|| days(year, month, day) * DAY + hour * 3600 + minute * 60 + second)
}

/// Up to nine digits.
fn number(text: &str) -> Option<i64> {
    let digits = !text.is_empty() && text.len() <= 9 && text.bytes().all(|b| b.is_ascii_digit());
    digits.then(|| text.parse().ok())?
}

/// Days since 1970 of a date of the Gregorian calendar: [`civil`] the other way. A year begins in
/// March here, so that the odd day comes last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    era * 146_097 + day_of_era - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{from_http, from_iso, to_http};
    use crate::source::validator::FileTime;

    #[test]
    fn the_forms_of_the_specifications_are_read() {
        let time = Some(FileTime {
            secs: 784_111_777,
            nanos: 0,
        });
        for text in [
            "Sun, 06 Nov 1994 08:49:37 GMT",
            "Sunday, 06-Nov-94 08:49:37 GMT",
            "Sun Nov  6 08:49:37 1994",
        ] {
            assert_eq!(from_http(text), time, "{text}");
        }
        assert_eq!(from_iso("1994-11-06T08:49:37Z"), time);
        let fine = from_iso("1994-11-06T08:49:37.025Z");
        assert_eq!(fine.map(|time| time.nanos), Some(25_000_000));
        for text in [
            "",
            "Sun",
            "Sun, 06 Nov 1994 08:49 GMT",
            "1994-11-06",
            "1994-13-06T00:00:00Z",
        ] {
            assert_eq!((from_http(text), from_iso(text)), (None, None), "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_survives_its_header(secs in -62_135_596_800_i64..253_402_300_800) {
            let time = FileTime { secs, nanos: 0 };
            assert_eq!(from_http(&to_http(time)), Some(time), "{}", to_http(time));
        }

        #[test]
        fn no_text_is_too_odd(text in any::<String>()) {
            let _ = (from_http(&text), from_iso(&text));
        }
    }
}
