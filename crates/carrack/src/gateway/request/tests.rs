use super::*;

const ROOT: &str = "bafkreihhpc5y2pqvl5rbe5uuyhqjouybfs3rvlmisccgzue2kkt5zq6upq";

fn ask(uri: &str, fields: &[(&str, &str)]) -> Result<GatewayRequest, Refusal> {
    let mut headers = HeaderMap::new();
    for (name, value) in fields {
        headers.append(
            HeaderName::from_bytes(name.as_bytes()).unwrap(),
            HeaderValue::from_str(value).unwrap(),
        );
    }
    parse(
        &Method::GET,
        &uri.parse().unwrap(),
        &headers,
        &Limits::default(),
    )
}

fn ask_query(query: &str) -> Result<GatewayRequest, Refusal> {
    ask(&format!("/ipfs/{ROOT}?{query}"), &[])
}

fn status(result: Result<GatewayRequest, Refusal>) -> u16 {
    result.map_or_else(|refusal| refusal.status.as_u16(), |_| 200)
}

fn car(request: &GatewayRequest) -> CarOptions {
    match request.format {
        Format::Car(options) => options,
        ref other => panic!("{other:?}"),
    }
}

#[test]
fn what_is_malformed_is_refused_with_a_sentence() {
    let long_segment = "a".repeat(4097);
    let many_segments = "a/".repeat(257);
    let long_name = "a".repeat(256);
    let table = [
        ("/ipfs/".to_owned(), 400),
        ("/ipfs/?format=raw".to_owned(), 400),
        ("/ipfs/notacid?format=raw".to_owned(), 400),
        (format!("/ipfs/{}?format=raw", "b".repeat(100_000 / 8)), 400),
        (format!("/ipfs/{ROOT}"), 400),
        (format!("/ipfs/{ROOT}?format="), 400),
        (format!("/ipfs/{ROOT}?format=exe"), 400),
        (format!("/ipfs/{ROOT}?format=tar"), 406),
        (format!("/ipfs/{ROOT}?format=dag-json"), 406),
        (format!("/ipfs/{ROOT}/%zz?format=raw"), 400),
        (format!("/ipfs/{ROOT}/%f?format=raw"), 400),
        (format!("/ipfs/{ROOT}/%ff?format=raw"), 200),
        (format!("/ipfs/{ROOT}/../x?format=raw"), 400),
        (format!("/ipfs/{ROOT}/%2e%2e/x?format=raw"), 400),
        (format!("/ipfs/../{ROOT}?format=raw"), 400),
        (format!("/ipfs/{ROOT}%2Fx?format=raw"), 400),
        (format!("/ipfs/%FF{ROOT}?format=raw"), 400),
        (format!("/ipfs/%{ROOT}?format=raw"), 400),
        (format!("/ipfs/{}?format=raw", "%62".repeat(700)), 400),
        (format!("/ipfs/{ROOT}?format=raw&filename=%ff"), 400),
        (format!("/ipfs/{ROOT}/{long_segment}?format=raw"), 400),
        (format!("/ipfs/{ROOT}/{many_segments}?format=raw"), 400),
        (format!("/ipfs/{ROOT}?format=raw&filename={long_name}"), 400),
        (format!("/ipfs/{ROOT}?format=raw"), 200),
        (format!("/ipfs/{ROOT}?format=json"), 200),
        (format!("/ipfs/{ROOT}?format=car&unknown=%zz"), 200),
    ];
    for (uri, expected) in table {
        let got = ask(&uri, &[]);
        if let Err(refusal) = &got {
            assert!(!refusal.sentence.is_empty());
        }
        assert_eq!(status(got), expected, "{uri}");
    }
}

#[test]
fn car_parameters_have_a_table_of_values() {
    let table = [
        ("format=car&dag-scope=all", 200),
        ("format=car&dag-scope=entity", 200),
        ("format=car&dag-scope=block", 200),
        ("format=car&dag-scope=file", 400),
        ("format=car&car-version=1", 200),
        ("format=car&car-version=2", 400),
        ("format=car&car-order=unk", 200),
        ("format=car&car-order=bfs", 400),
        ("format=car&car-dups=n", 200),
        ("format=car&car-dups=no", 400),
        ("format=car&entity-bytes=0:*", 200),
        ("format=car&entity-bytes=0%3A%2A", 200),
        ("format=car&entity-bytes=-1:*", 200),
        ("format=car&entity-bytes=5:-5", 200),
        ("format=car&entity-bytes=-5:5", 200),
        ("format=car&entity-bytes=0:9223372036854775807", 200),
        ("format=car&entity-bytes=0:9223372036854775808", 400),
        ("format=car&entity-bytes=-9223372036854775809:*", 400),
        ("format=car&entity-bytes=5:3", 400),
        ("format=car&entity-bytes=-3:-5", 400),
        ("format=car&entity-bytes=*:5", 400),
        ("format=car&entity-bytes=5", 400),
        ("format=car&entity-bytes=", 400),
        ("format=car&entity-bytes=a:b", 400),
    ];
    for (query, expected) in table {
        assert_eq!(status(ask_query(query)), expected, "{query}");
    }
}

#[test]
fn defaults_are_dfs_without_duplicates() {
    let options = car(&ask_query("format=car").unwrap());
    assert_eq!(
        options,
        CarOptions {
            scope: Scope::All,
            entity_bytes: None,
            order: Order::Dfs,
            dups: false,
            meta: false
        }
    );
}

/// What a range means beyond one entity nobody has said; clients verify by the scope they wrote.
#[test]
fn entity_bytes_imply_the_entity_and_a_scope_that_is_written_wins() {
    let range = ByteRange {
        from: 1,
        to: Some(2),
    };
    for (query, scope, entity_bytes) in [
        ("entity-bytes=1:2", Scope::Entity, Some(range)),
        (
            "dag-scope=entity&entity-bytes=1:2",
            Scope::Entity,
            Some(range),
        ),
        ("entity-bytes=1:2&dag-scope=all", Scope::All, None),
        ("dag-scope=block&entity-bytes=1:2", Scope::Block, None),
        ("dag-scope=entity", Scope::Entity, None),
        ("", Scope::All, None),
    ] {
        for accept in ["*/*", "application/vnd.ipld.car; dups=y; meta=eof+json"] {
            let uri = format!("/ipfs/{ROOT}?format=car&{query}");
            let options = car(&ask(&uri, &[("accept", accept)]).unwrap());
            let got = (options.scope, options.entity_bytes);
            assert_eq!(got, (scope, entity_bytes), "{query}");
        }
    }
    // It is looked at all the same.
    let malformed = "format=car&dag-scope=all&entity-bytes=5:3";
    assert_eq!(status(ask_query(malformed)), 400);
}

#[test]
fn the_url_wins_over_accept_and_accept_fills_in() {
    let accept = (
        "accept",
        "application/vnd.ipld.car;order=unk;dups=y;meta=eof+json",
    );
    let request = ask(&format!("/ipfs/{ROOT}?format=car&car-dups=n"), &[accept]).unwrap();
    let options = car(&request);
    assert!(!options.dups && options.meta && !request.content_location);
    assert_eq!(options.order, Order::Unknown);

    let raw = ask(&format!("/ipfs/{ROOT}?format=raw"), &[accept]).unwrap();
    assert_eq!(raw.format, Format::Raw);
    let by_header = ask(&format!("/ipfs/{ROOT}"), &[accept]).unwrap();
    assert!(by_header.content_location && car(&by_header).dups);
    // A version that cannot be sent in `Accept` does not matter once the URL has decided.
    let version_2 = ("accept", "application/vnd.ipld.car;version=2");
    assert_eq!(
        status(ask(&format!("/ipfs/{ROOT}?format=car"), &[version_2])),
        200
    );
    assert_eq!(status(ask(&format!("/ipfs/{ROOT}"), &[version_2])), 400);
}

/// What Content-Location says without escapes has to be what was understood with them.
#[test]
fn escapes_in_the_names_of_parameters_count() {
    let request = ask_query("f%6Frmat=car&dag%2Dscope=block&dag-scope=all&%zz=1&%ff=2").unwrap();
    assert_eq!(car(&request).scope, Scope::Block);
}

#[test]
fn segments_are_decoded_and_empty_ones_dropped() {
    let request = ask(
        &format!("/ipfs/{ROOT}//a%20b/%C4%85/c%2Fd/?format=raw"),
        &[],
    )
    .unwrap();
    let want = ["a b", "ą", "c/d"].map(str::as_bytes);
    assert_eq!(request.segments, want);
    assert_eq!(request.plain_path, None);
}

/// Each way to write a path, and what it means.
#[test]
fn a_path_is_decoded_once_and_then_its_dots_are_resolved() {
    let table: [(&str, &[&[u8]]); 12] = [
        ("caf%E9", &[b"caf\xe9"]),
        ("%2541", &[b"%41"]),
        ("a%2F..%2Fb", &[b"a/../b"]),
        ("%00", &[b"\0"]),
        ("a+b", &[b"a+b"]),
        ("a/./b/.", &[b"a", b"b"]),
        ("a/../b", &[b"b"]),
        ("a/b//../c", &[b"a", b"c"]),
        ("a/%2e%2E/b/%2e/.%2e/c", &[b"c"]),
        ("a/..", &[]),
        ("..a/.b", &[b"..a", b".b"]),
        ("%252e%252e/x", &[b"%2e%2e", b"x"]),
    ];
    for (path, want) in table {
        let request = ask(&format!("/ipfs/{ROOT}/{path}?format=raw"), &[]).unwrap();
        assert_eq!(request.segments, want, "{path}");
    }
    for path in ["..", "a/../..", "%2e%2e/x", "a/../../a", "./.."] {
        let got = status(ask(&format!("/ipfs/{ROOT}/{path}?format=raw"), &[]));
        assert_eq!(got, 400, "{path}");
    }
}

#[test]
fn a_cid_may_be_written_with_escapes() {
    let escaped: String = ROOT.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let partly = format!("%62{}", &ROOT[1..]);
    for text in [escaped, partly] {
        let uri: Uri = format!("/ipfs/{text}/caf%E9/x?format=raw").parse().unwrap();
        let fields = HeaderMap::new();
        let request = parse(&Method::GET, &uri, &fields, &Limits::default()).unwrap();
        assert_eq!(request.root.to_string(), ROOT);
        assert_eq!(request.path(&uri), format!("/ipfs/{ROOT}/caf%E9/x"));
    }
}

#[test]
fn ranges_that_are_malformed_are_ignored() {
    let from = |first, last| RangeSpec::From { first, last };
    let table = [
        ("bytes=0-0", vec![from(0, Some(0))]),
        ("bytes=7-9,1-3", vec![from(7, Some(9)), from(1, Some(3))]),
        (
            "bytes= 5- , -3",
            vec![from(5, None), RangeSpec::Suffix { len: 3 }],
        ),
        (
            "bytes=0-18446744073709551615",
            vec![from(0, Some(u64::MAX))],
        ),
        ("bytes=0-18446744073709551616", vec![]),
        ("bytes=9-7", vec![]),
        ("bytes=+1-2", vec![]),
        ("bytes=-", vec![]),
        ("bytes=", vec![]),
        ("lines=0-1", vec![]),
        (
            "bytes=0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1,0-1",
            vec![],
        ),
    ];
    for (field, expected) in table {
        let got = ask(&format!("/ipfs/{ROOT}?format=raw"), &[("range", field)]).unwrap();
        assert_eq!(got.ranges, expected, "{field}");
    }
}

#[test]
fn only_if_cached_is_found_among_other_directives() {
    let field = ("cache-control", "max-age=0, Only-If-Cached");
    assert!(
        ask(&format!("/ipfs/{ROOT}?format=raw"), &[field])
            .unwrap()
            .only_if_cached
    );
}

#[test]
fn service_workers_are_refused() {
    let field = ("service-worker", "script");
    assert_eq!(
        status(ask(&format!("/ipfs/{ROOT}?format=raw"), &[field])),
        400
    );
}

proptest::proptest! {
    #[test]
    fn no_request_makes_it_panic(
        path in "[ -~\\x80-\\xff]{0,80}",
        query in "[ -~]{0,80}",
        accept in proptest::collection::vec(proptest::num::u8::ANY, 0..60),
        range in proptest::collection::vec(proptest::num::u8::ANY, 0..40),
    ) {
        let Ok(uri) = format!("/ipfs/{ROOT}/{path}?{query}").parse::<Uri>() else { return Ok(()) };
        let mut headers = HeaderMap::new();
        for (name, value) in [(ACCEPT, accept), (RANGE, range)] {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                headers.insert(name, value);
            }
        }
        let _ = parse(&Method::GET, &uri, &headers, &Limits::default());
    }

    #[test]
    fn no_query_of_known_names_makes_it_panic(
        pairs in proptest::collection::vec(
            ("(format|dag-scope|entity-bytes|car-order|car-dups|car-version|filename)",
             "(raw|car|json|y|n|dfs|unk|1|all|entity|block|[-0-9:*]{0,30}|[%+a-f0-9]{0,12})"),
            0..8,
        ),
    ) {
        let pair = |(name, value): &(_, _)| format!("{name}={value}");
        let query: Vec<String> = pairs.iter().map(pair).collect();
        let _ = ask_query(&query.join("&"));
    }
}
