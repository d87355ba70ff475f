use http::Method;
use proptest::prelude::*;

use super::*;
use crate::gateway::request::parse;
use crate::http::limits::Limits;

const ROOT: &str = "bafkreihhpc5y2pqvl5rbe5uuyhqjouybfs3rvlmisccgzue2kkt5zq6upq";

fn ask(uri: &str, accept: Option<&'static str>) -> (GatewayRequest, Uri) {
    let uri: Uri = uri.parse().unwrap();
    let mut headers = HeaderMap::new();
    if let Some(accept) = accept {
        headers.insert(http::header::ACCEPT, HeaderValue::from_static(accept));
    }
    (
        parse(&Method::GET, &uri, &headers, &Limits::default()).unwrap(),
        uri,
    )
}

fn answer(uri: &str, accept: Option<&'static str>) -> HeaderMap {
    let (request, uri) = ask(uri, accept);
    let roots = vec![request.root; request.segments.len() + 1];
    let target = Target {
        terminus: &request.root,
        roots: &roots,
    };
    let etag = etag(&request, target.terminus);
    success(&request, &uri, target, etag)
}

fn len(headers: &HeaderMap) -> usize {
    headers
        .iter()
        .map(|(name, value)| line_len(name, value))
        .sum::<usize>()
        + LATER_LEN
}

#[test]
fn file_names_have_both_forms() {
    let table = [
        (
            "foobar.bin",
            "attachment; filename=\"foobar.bin\"; filename*=UTF-8''foobar.bin",
        ),
        (
            "test%D1%82%D0%B5%D1%81%D1%82.ipns-record",
            "attachment; filename=\"test____.ipns-record\"; \
             filename*=UTF-8''test%D1%82%D0%B5%D1%81%D1%82.ipns-record",
        ),
    ];
    for (name, expected) in table {
        let headers = answer(&format!("/ipfs/{ROOT}?format=raw&filename={name}"), None);
        assert_eq!(headers[CONTENT_DISPOSITION], expected);
    }
    assert_eq!(
        attachment("a\";b\r\nc"),
        "attachment; filename=\"a%22%3Bb%0D%0Ac\"; filename*=UTF-8''a%22%3Bb%0D%0Ac"
    );
}

#[test]
fn content_location_is_sorted_and_escaped() {
    let headers = answer(
        &format!("/ipfs/{ROOT}?entity-bytes=0:*&dag-scope=entity&x=a%20b+c"),
        Some("application/vnd.ipld.car; version=1; order=dfs; dups=y"),
    );
    let expected = format!(
        "/ipfs/{ROOT}?car-dups=y&car-order=dfs&car-version=1&dag-scope=entity&\
         entity-bytes=0%3A%2A&format=car&x=a+b+c"
    );
    assert_eq!(headers[CONTENT_LOCATION], expected);
    let plain = answer(&format!("/ipfs/{ROOT}?format=car"), None);
    assert!(!plain.contains_key(CONTENT_LOCATION));
    let meta = Some("application/vnd.ipld.car; meta=eof+json");
    assert!(!answer(&format!("/ipfs/{ROOT}"), meta).contains_key(CONTENT_LOCATION));
}

#[test]
fn entity_tags_differ_wherever_the_answers_do() {
    let uris = [
        "?format=raw",
        "?format=json",
        "?format=car",
        "?format=car&dag-scope=entity",
        "?format=car&dag-scope=block",
        "?format=car&entity-bytes=0:*",
        "?format=car&entity-bytes=0:1",
        "/caf%E9?format=car",
        "/caf%E8?format=car",
        "?format=car&car-dups=y",
        "?format=car&car-order=unk",
        "/a/b?format=car",
        "/a%2Fb?format=car",
        "/b/a?format=car",
    ];
    let mut tags: Vec<HeaderValue> = Vec::new();
    for uri in uris {
        let (request, _) = ask(&format!("/ipfs/{ROOT}{uri}"), None);
        tags.push(etag(&request, &request.root));
    }
    let (request, _) = ask(
        &format!("/ipfs/{ROOT}?format=car"),
        Some("application/vnd.ipld.car;meta=eof+json"),
    );
    tags.push(etag(&request, &request.root));
    for (index, tag) in tags.iter().enumerate() {
        assert!(!tags[index + 1..].contains(tag), "{tag:?}");
    }
}

#[test]
fn the_path_header_cannot_break_lines_or_terminals() {
    let headers = answer(&format!("/ipfs/{ROOT}/a%7Eb%C4%85/c?format=raw"), None);
    assert_eq!(headers[X_IPFS_PATH], format!("/ipfs/{ROOT}/a~b%C4%85/c"));
    let headers = answer(
        &format!("/ipfs/{ROOT}/a%0D%0AX:%201%1B[0m?format=raw"),
        None,
    );
    assert_eq!(
        headers[X_IPFS_PATH],
        format!("/ipfs/{ROOT}/a%0D%0AX: 1%1B[0m")
    );
}

/// Names that are not UTF-8, or are control characters, leave headers of plain text.
#[test]
fn names_of_any_bytes_leave_safe_headers() {
    for (segment, shown) in [
        ("caf%E9", "caf%E9"),
        ("%00%0D%0A", "%00%0D%0A"),
        ("%FF%22%3B", "%FF\";"),
        ("x/../%E9", "%E9"),
    ] {
        let accept = Some("application/vnd.ipld.car");
        let headers = answer(&format!("/ipfs/{ROOT}/{segment}"), accept);
        assert_eq!(headers[X_IPFS_PATH], format!("/ipfs/{ROOT}/{shown}"));
        let escaped = segment.rsplit('/').next().unwrap();
        let location = format!("/ipfs/{ROOT}/{escaped}?format=car");
        assert_eq!(headers[CONTENT_LOCATION], location);
        for value in headers.values() {
            let is_plain = |byte: &u8| (b' '..=b'~').contains(byte);
            assert!(value.as_bytes().iter().all(is_plain), "{value:?}");
        }
        let name = headers[CONTENT_DISPOSITION].to_str().unwrap();
        let (_, ext) = name.split_once("filename*=UTF-8''").unwrap();
        assert!(percent_decode_str(ext).decode_utf8().is_ok(), "{name}");
        assert_eq!(name.matches('"').count(), 2, "{name}");
    }
}

/// The same content has one path in all that an answer says of it.
#[test]
fn dots_and_escapes_of_the_cid_are_gone_from_the_headers() {
    let accept = Some("application/vnd.ipld.car");
    let plain = answer(&format!("/ipfs/{ROOT}/b"), accept);
    let escaped = format!("%62{}", &ROOT[1..]);
    let dotted = answer(&format!("/ipfs/{escaped}/a/%2e%2e/./b"), accept);
    for name in [&X_IPFS_PATH, &CONTENT_LOCATION, &ETAG, &CONTENT_DISPOSITION] {
        assert_eq!(plain[name], dotted[name], "{name}");
    }
}

/// A range without a meaning beside the scope changes nothing.
#[test]
fn a_scope_that_wins_has_the_entity_tag_of_itself() {
    let tag = |query: &str| {
        let (request, _) = ask(&format!("/ipfs/{ROOT}?format=car&{query}"), None);
        etag(&request, &request.root)
    };
    assert_eq!(tag("dag-scope=all&entity-bytes=0:9"), tag("dag-scope=all"));
    assert_eq!(
        tag("dag-scope=block&entity-bytes=9:*"),
        tag("dag-scope=block")
    );
    assert_eq!(
        tag("entity-bytes=0:9"),
        tag("dag-scope=entity&entity-bytes=0:9")
    );
}

#[test]
fn the_longest_cid_and_file_name_fit() {
    // 128 bytes of identity digest: the longest text in base32.
    let multihash = carrack_formats::Multihash::wrap(0, &[0x42; 128]).unwrap();
    let cid = Cid::new_v1(0x0129, multihash);
    let name = "%C4%85".repeat(127);
    let headers = answer(&format!("/ipfs/{cid}/x/y?format=car&filename={name}"), None);
    assert!(len(&headers) <= RESPONSE_HEAD_LEN_MAX);
    assert!(headers.contains_key(X_IPFS_PATH));
    assert!(
        headers[CONTENT_DISPOSITION]
            .to_str()
            .unwrap()
            .contains(&cid.to_string())
    );
}

proptest! {
    #[test]
    fn all_headers_fit_whatever_the_path_and_query(
        segments in proptest::collection::vec("[ -~ą語]{1,200}", 0..40),
        name in "[ -~ą語]{0,60}",
        junk in "[a-z=&]{0,900}",
        car in any::<bool>(),
    ) {
        let mut path = String::new();
        for segment in segments.iter().filter(|segment| *segment != "." && *segment != "..") {
            path.push('/');
            path.extend(utf8_percent_encode(segment, NON_ALPHANUMERIC));
        }
        let name = utf8_percent_encode(&name, NON_ALPHANUMERIC);
        let accept = if car { "application/vnd.ipld.car" } else { "application/vnd.ipld.raw" };
        let uri = format!("/ipfs/{ROOT}{path}?filename={name}&j{junk}");
        // The junk may name a parameter of ours by chance; such a request is refused earlier.
        let parsed: Uri = uri.parse().unwrap();
        let mut fields = HeaderMap::new();
        fields.insert(http::header::ACCEPT, HeaderValue::from_static(accept));
        prop_assume!(parse(&Method::GET, &parsed, &fields, &Limits::default()).is_ok());
        prop_assert!(len(&answer(&uri, Some(accept))) <= RESPONSE_HEAD_LEN_MAX);
    }
}
