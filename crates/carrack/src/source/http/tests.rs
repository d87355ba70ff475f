use std::time::Duration;

use super::{content_range, retry_after, strong_etag};

#[test]
fn a_range_is_taken_only_as_the_specification_writes_it() {
    assert_eq!(content_range("bytes 5-9/20"), Some((5..10, 20)));
    assert_eq!(content_range("bytes 0-0/1"), Some((0..1, 1)));
    for text in [
        "",
        "bytes 5-9/*",
        "bytes */20",
        "bytes 9-5/20",
        "bytes 5-20/20",
        "bytes +5-9/20",
        "items 5-9/20",
        "bytes 0-18446744073709551615/18446744073709551615",
    ] {
        assert_eq!(content_range(text), None, "{text}");
    }
}

#[test]
fn weak_tags_are_no_validators() {
    assert_eq!(strong_etag("\"a-1\"").as_deref(), Some("\"a-1\""));
    assert_eq!(strong_etag("abc").as_deref(), Some("\"abc\""));
    for tag in ["", "\"\"", "W/\"a\"", "\"a", "\"a\"b\"", "\"a\r\nb\""] {
        assert_eq!(strong_etag(tag), None, "{tag}");
    }
}

/// A date that a server asks to wait for, by clocks that are wrong by ten years, and nonsense.
#[test]
fn waits_that_are_asked_for_by_a_date_know_no_bounds_and_no_panic() {
    let date = "Sun, 06 Nov 1994 08:49:37 GMT"; // 784,111,777
    let ten_years = 315_360_000;
    let wait = |text: &str, now| retry_after(text, now).map(|wait| wait.as_secs());
    assert_eq!(wait(date, 784_111_770), Some(7));
    assert_eq!(wait(date, 784_111_777 + ten_years), Some(0));
    assert_eq!(wait(date, 784_111_777 - ten_years), Some(ten_years));
    assert_eq!(wait(date, u64::MAX), Some(0));
    assert_eq!(wait("18446744073709551615", 0), Some(u64::MAX));
    assert_eq!(
        wait("Fri, 31 Dec 9999 23:59:60 GMT", 0),
        Some(253_402_300_800)
    );
    assert_eq!(wait("Sun, 06 Nov 1904 08:49:37 GMT", 0), None);
    // Nobody waits so long.
    let asked = retry_after("18446744073709551615", 0);
    assert!(crate::source::retry::back_off(1, asked) <= Duration::from_secs(45));
}
