use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::stream;
use reqwest::Response;

use super::pace::Pace;
use super::{Wanted, beginning, content_range, retry_after, strong_etag, whole_at};
use crate::source::validator::ObjectStamp;
use crate::source::{SourceError, SourceErrorKind};

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

/// An answer whose body comes a byte at a time, for ever.
fn dribbling(status: u16) -> Response {
    let bytes = stream::unfold((), |()| async {
        tokio::time::sleep(Duration::from_millis(5)).await;
        Some((Ok::<_, std::io::Error>(Bytes::from_static(b"x")), ()))
    });
    let body = reqwest::Body::wrap_stream(bytes);
    let answer = ::http::Response::builder().status(status).body(body);
    Response::from(answer.unwrap())
}

const SHORT: Duration = Duration::from_millis(100);

/// Within ten times as long, on a machine that does other things as well.
async fn in_time<T>(work: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let done = tokio::time::timeout(SHORT * 50, work).await;
    let done = done.expect("it goes on for ever");
    assert!(begun.elapsed() >= SHORT);
    done
}

#[tokio::test]
async fn a_page_that_comes_a_byte_at_a_time_ends_by_a_deadline() {
    let pace = Pace::new(SHORT, 1 << 20);
    let reading = whole_at(pace, dribbling(200), 1 << 20, "the listing");
    let error = in_time(reading).await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unreachable);
    assert!(error.what.contains("only"), "{error}");
}

#[tokio::test]
async fn the_explanation_of_an_error_is_not_waited_for() {
    let explained = in_time(beginning(dribbling(403), SHORT)).await;
    assert!(!explained.is_empty() && explained.len() < 1000);
}

#[tokio::test]
async fn a_body_may_take_as_long_as_its_length_takes_and_its_reader_wants() {
    let mut pace = Pace::new(SHORT, 10);
    let piece = |ms: u64| async move {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        Ok(Some(Bytes::from_static(b"xx")))
    };
    // Two bytes allow for 0.2 s more; what the reader does with them does not count.
    for _ in 0..5 {
        assert!(pace.next(piece(60), "it").await.unwrap().is_some());
        tokio::time::sleep(SHORT).await;
    }
    let error = pace.next(piece(60_000), "it").await.unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unreachable);
}

/// A body of which the whole is wanted, and which says that it is encoded.
fn encoded(headers: &[(&str, &str)], expected: Option<&str>) -> Result<(), SourceError> {
    let expected = ObjectStamp {
        size: 10,
        etag: expected.map(Into::into),
        ..ObjectStamp::default()
    };
    let wanted = Wanted {
        what: "it",
        expected: &expected,
        range: 0..10,
        stored_encoding: false,
    };
    let mut answer = ::http::Response::builder().status(206);
    for (name, value) in headers {
        answer = answer.header(*name, *value);
    }
    let answer = answer.body(reqwest::Body::from("0123456789")).unwrap();
    wanted.body(Response::from(answer)).map(|_| ())
}

#[test]
fn an_encoding_is_of_the_stored_bytes_if_length_range_and_tag_agree() {
    let good = [
        ("content-encoding", "x-gzip"),
        ("content-length", "10"),
        ("content-range", "bytes 0-9/10"),
        ("etag", "\"a\""),
    ];
    assert!(encoded(&good, Some("\"a\"")).is_ok());
    for (name, value) in [
        ("content-length", "9"),
        ("content-range", "bytes 0-9/11"),
        ("etag", "\"b\""),
        ("etag", "W/\"a\""),
    ] {
        let bad = good.map(|one| if one.0 == name { (name, value) } else { one });
        assert!(encoded(&bad, Some("\"a\"")).is_err(), "{name}: {value}");
    }
    assert!(encoded(&good[..3], None).is_err(), "nothing speaks for it");
}
