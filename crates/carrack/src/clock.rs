//! The time of day and the calendar, named in one place.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Seconds since 1970; 0 on a clock set before.
#[must_use]
pub fn unix_seconds() -> u64 {
    since_epoch().as_secs()
}

/// Nanoseconds since 1970; 0 on a clock set before.
#[must_use]
pub fn unix_nanoseconds() -> i128 {
    i128::try_from(since_epoch().as_nanos()).unwrap_or(i128::MAX)
}

fn since_epoch() -> Duration {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
}

/// The names of the months in logs and headers.
pub const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// Year, month from 1 and day from 1, so many days after 1970-01-01 in the Gregorian calendar.
/// Counts in years that begin in March, so that the leap day comes last.
#[must_use]
pub const fn civil(days: i64) -> (i64, i64, i64) {
    let days = days.saturating_add(719_468);
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 {
        month_from_march + 3
    } else {
        month_from_march - 9
    };
    let year = year_of_era + era * 400 + (month <= 2) as i64;
    (year, month, day)
}
