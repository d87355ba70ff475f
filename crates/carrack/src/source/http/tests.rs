use super::{content_range, strong_etag};

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
