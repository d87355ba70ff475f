use proptest::prelude::{any, proptest};

use super::{Scheme, SourceUrl, encode_path};
use crate::source::config::{Environment, SourceConfig};

fn url(text: &str) -> SourceUrl {
    SourceUrl::parse(text).unwrap().unwrap()
}

#[test]
fn one_place_has_one_spelling() {
    for (text, spelled) in [
        ("s3://bucket", "s3://bucket"),
        ("s3://bucket/", "s3://bucket"),
        ("S3://bucket/a b/c/", "s3://bucket/a b/c"),
        ("gs://b/x", "gs://b/x"),
        ("az://container/x/", "az://container/x"),
        ("https://Host.Example", "https://host.example/"),
        ("https://host:443/a/", "https://host/a/"),
        ("http://host:8080/a%62c", "http://host:8080/abc"),
        ("http://[::1]:80/a b", "http://[::1]/a%20b"),
        ("https://host/a/../b/./c#part", "https://host/b/c"),
        ("https://host/%E2%82%AC", "https://host/%E2%82%AC"),
        ("https://host/€+", "https://host/%E2%82%AC%2B"),
    ] {
        assert_eq!(url(text).to_string(), spelled, "{text}");
        assert_eq!(url(spelled), url(text));
    }
}

#[test]
fn paths_of_this_machine_are_left_alone() {
    for text in [
        "",
        "a",
        "./s3:/x",
        "/data/s3",
        "C:/x",
        "a:b",
        "dir with/x://y",
    ] {
        assert_eq!(SourceUrl::parse(text).unwrap(), None, "{text}");
    }
}

#[test]
fn what_cannot_be_a_place_is_refused_without_repeating_its_secrets() {
    for text in [
        "s3://",
        "s3:///key",
        "s3://host:9000/bucket",
        "s3://AKIA:hunter2@bucket/key",
        "s3://bucket/a//b",
        "s3://bucket/../b",
        "s3://bucket/key?X-Amz-Signature=hunter2",
        "https://user:hunter2@host/",
        "https://hunter2@host/",
        "https://host/x?sig=hunter2&x=1",
        "https://host/x?list=1",
        "https://host/a%2fb",
        "https://",
        "gcs://bucket/x",
        "ftp://host/x",
    ] {
        let error = SourceUrl::parse(text).unwrap_err();
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn a_path_below_a_source_is_what_follows_it_at_a_slash() {
    for (source, place, path) in [
        ("s3://b", "s3://b/x/y", Some("x/y")),
        ("s3://b/x", "s3://b/x/y", Some("y")),
        ("s3://b/x", "s3://b/x", Some("")),
        ("s3://b/x", "s3://b/xy", None),
        ("s3://b/x", "s3://c/x", None),
        ("s3://b/x", "gs://b/x/y", None),
        ("https://h/d/", "https://h/d/a%20b/", Some("a b/")),
        ("https://h/d/", "https://h/d/", Some("")),
        ("https://h/d/", "https://h/d", None),
        ("https://h/f", "https://h/f", Some("")),
        ("https://h/f", "https://h/f/g", None),
        ("https://h/", "http://h/f", None),
    ] {
        let below = url(place).below(&url(source));
        assert_eq!(
            below.as_deref(),
            path.map(str::as_bytes),
            "{place} below {source}"
        );
    }
}

#[test]
fn names_come_from_the_last_part() {
    for (text, name) in [
        ("s3://bucket", "bucket"),
        ("s3://bucket/a/b c/", "b c"),
        ("https://host/", "host"),
        ("https://host/x%20y/", "x y"),
        ("https://host/x.car", "x.car"),
    ] {
        assert_eq!(url(text).last_name(), name.as_bytes());
    }
    assert_eq!(url("az://c/x").scheme(), Scheme::Azure);
}

#[test]
fn the_environment_fills_what_nobody_configured() {
    let environment = Environment::new(
        [
            ("AWS_ENDPOINT_URL", "http://127.0.0.1:9000"),
            ("AWS_DEFAULT_REGION", "eu-west-1"),
            ("AWS_SECRET_ACCESS_KEY", "hunter2"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned())),
    );
    let config = SourceConfig::from_environment(&url("s3://b/p/"), &environment);
    assert_eq!(config.url, "s3://b/p");
    assert_eq!(config.endpoint, "http://127.0.0.1:9000");
    assert_eq!(config.region, "eu-west-1");
    assert_eq!(config.credentials, "env");
    assert!(!format!("{config:?} {environment:?}").contains("hunter2"));
    let config = SourceConfig::from_environment(&url("https://h/"), &environment);
    assert_eq!(
        (config.endpoint.as_str(), config.credentials.as_str()),
        ("", "none")
    );
}

proptest! {
    #[test]
    fn what_is_printed_is_read_as_the_same(text in any::<String>(), scheme in 0..5_usize) {
        let scheme = ["s3", "gs", "az", "http", "https"][scheme];
        if let Ok(Some(place)) = SourceUrl::parse(&format!("{scheme}://h/{text}")) {
            assert_eq!(url(&place.to_string()), place);
        }
    }

    #[test]
    fn any_name_can_be_in_a_path(name in proptest::collection::vec(any::<u8>(), 1..20)) {
        let encoded = encode_path(&name);
        assert!(encoded.bytes().all(|byte| byte.is_ascii_graphic()));
        assert_eq!(percent_encoding::percent_decode_str(&encoded).collect::<Vec<_>>(), name);
    }
}
