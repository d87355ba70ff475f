//! The time of day, named in one place.

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
