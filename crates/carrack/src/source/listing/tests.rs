use proptest::collection::vec;
use proptest::prelude::{any, proptest};
use reqwest::Url;

use super::{Entry, Format, fuzz, html, json, manifest, s3};

const PAGE: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name><Prefix></Prefix>
<IsTruncated>true</IsTruncated><EncodingType>url</EncodingType>
<NextContinuationToken>1/a+b=</NextContinuationToken>
<Contents><Key>a+b%2Bc/%E2%82%AC%26</Key><LastModified>2026-11-21T09:59:53.250Z</LastModified>
<ETag>&quot;d41d8&quot;</ETag><Size>5368709121</Size><Owner><DisplayName>Key</DisplayName></Owner>
</Contents><CommonPrefixes><Prefix>p/</Prefix></CommonPrefixes>
<Contents><Size>0</Size><Key>z&#x20;&amp;%2F</Key></Contents></ListBucketResult>"#;

#[test]
fn a_page_tells_what_it_is_by_its_beginning() {
    for (page, format) in [
        (PAGE, Some(Format::S3)),
        (
            "<html>\r\n<head><title>Index of /</title>",
            Some(Format::Html),
        ),
        ("<!DOCTYPE HTML PUBLIC>", Some(Format::Html)),
        ("[\n{ \"name\":\"a\"}]", Some(Format::Json)),
        ("#carrack-manifest\na", Some(Format::Manifest)),
        ("#carrack-manifesto\na", None),
        ("hello", None),
        ("", None),
    ] {
        assert_eq!(Format::of(page.as_bytes()), format, "{page}");
    }
}

#[test]
fn a_page_of_a_bucket_gives_keys_and_where_it_goes_on() {
    let page = s3::page(PAGE.as_bytes()).unwrap();
    assert_eq!(page.next.as_deref(), Some("1/a+b="));
    let [first, second] = page.objects.as_slice() else {
        panic!("{page:?}");
    };
    assert_eq!(first.key, "a b+c/€&".as_bytes());
    assert_eq!(first.stamp.size, 5_368_709_121);
    assert_eq!(first.stamp.etag.as_deref(), Some("\"d41d8\""));
    assert_eq!(first.stamp.modified.unwrap().nanos, 250_000_000);
    assert_eq!(
        (second.key.as_slice(), &second.stamp.etag),
        (&b"z &/"[..], &None)
    );
}

#[test]
fn a_page_of_a_bucket_goes_on_however_it_says_so() {
    let told = "<IsTruncated>true</IsTruncated>";
    for (says, goes_on) in [
        ("<IsTruncated>1</IsTruncated>", true),
        ("<IsTruncated>TRUE</IsTruncated>", true),
        ("<IsTruncated> true\n</IsTruncated>", true),
        ("<IsTruncated/>", true),
        ("", true),
        ("<IsTruncated>false</IsTruncated>", false),
        ("<IsTruncated>0</IsTruncated>", false),
    ] {
        let page = s3::page(PAGE.replace(told, says).as_bytes()).unwrap();
        assert_eq!(page.next.is_some(), goes_on, "{says}");
    }
    let unclear = PAGE.replace(told, "<IsTruncated>perhaps</IsTruncated>");
    assert!(s3::page(unclear.as_bytes()).is_err());
}

#[test]
fn a_listing_of_empty_pages_and_ever_new_tokens_is_given_up() {
    let page = |n: u32, objects| s3::Page {
        objects,
        next: Some(n.to_string()),
    };
    let mut course = s3::Course::default();
    let n_sound = (1..5000).take_while(|n| course.is_sound(&page(*n, Vec::new()), ""));
    assert_eq!(n_sound.count(), 1000);
    let objects = s3::page(PAGE.as_bytes()).unwrap().objects;
    assert!(course.is_sound(&page(1, objects), ""));
    assert!(course.is_sound(&page(2, Vec::new()), "1"));
    assert!(!course.is_sound(&page(2, Vec::new()), "2"), "in circles");
}

#[test]
fn a_page_of_a_bucket_that_is_cut_is_refused() {
    for end in 0..PAGE.len() {
        if PAGE.is_char_boundary(end) {
            let page = s3::page(&PAGE.as_bytes()[..end]);
            assert!(page.is_err(), "{}", &PAGE[..end]);
        }
    }
    let without = PAGE.replace("<NextContinuationToken>1/a+b=</NextContinuationToken>", "");
    assert!(s3::page(without.as_bytes()).is_err());
    let bomb = PAGE.replace("<Name>b", "<Name>&lol;");
    assert!(s3::page(bomb.as_bytes()).is_err());
}

#[test]
fn an_error_of_a_bucket_is_understood() {
    let fault = s3::fault(b"<Error><Code>SlowDown</Code><Message>less &lt;</Message></Error>");
    assert_eq!(
        (fault.code.as_str(), fault.message.as_str()),
        ("SlowDown", "less <")
    );
    assert_eq!(s3::fault(b"<html>no"), s3::Fault::default());
}

fn entry(name: &str) -> Entry {
    Entry::new(name.as_bytes()).unwrap()
}

#[test]
fn only_links_directly_below_a_page_are_names() {
    let page = br#"<html><!-- <a href="commented"> --><a href="?C=N;O=D">Name</a>
        <a href="../">up</a><a href="/">root</a><a href="/a%20b/">self</a><A HREF='x%20y'>x</A>
        <a class=i href=plain>p</a><a href="dir/">d</a><a href="dir">d</a><a href="./dot">.</a>
        <a href="/a%20b/absolute">a</a><a href="/a b/other/deep">no</a><a href="//evil/x">no</a>
        <a href="http://host/a%20b/full">f</a><a href="https://host/a%20b/tls">no</a>
        <a href="javascript:alert(1)">no</a><a href="&#x61;&amp;b">e</a><a href="x%2Fy">odd</a>
        <a href="%2e%2e/">no</a><a href="n%00l">odd</a><a href="dir/?C=N">no</a>
        <a href="%E2%82%AC">u</a><a href="%FF">raw</a><abbr href="no"><a href="/a%20b/?C=M">no</a>
        <a name=x>none</a><a href='#top'><a href="mailto:a@b">no</a><a href="ftp://host/x">no</a>"#;
    let url = Url::parse("http://host/a%20b/").unwrap();
    let mut expected: Vec<Entry> = [
        "x y", "plain", "dir/", "dot", "absolute", "full", "a&b", "€",
    ]
    .map(entry)
    .into();
    expected.push(Entry::new(b"\xff").unwrap());
    expected.sort_unstable();
    let names = html::entries(page, &url).unwrap();
    assert_eq!(names.entries, expected);
    let odd: Vec<_> = names.odd.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(odd, [&b"n\0l"[..], b"x/y"]);
}

/// As careless servers write them; the server itself says whether it has such a file.
#[test]
fn names_that_a_browser_would_read_as_something_else_are_names() {
    for (link, name) in [
        (&b"Note: x"[..], &b"Note: x"[..]),
        (b"a:b?c#d", b"a:b?c#d"),
        (b"what?.txt", b"what?.txt"),
        (b"/a%20b/q?x=1", b"q?x=1"),
        (b"a#b", b"a#b"),
        (b"12:30.log", b"12:30.log"),
        (b"caf\xe9", b"caf\xe9"),
        (b"\xe9 \xc3\xa9", b"\xe9 \xc3\xa9"),
        (b"100% sure", b"100% sure"),
        (b"back\\slash", b"back\\slash"),
        (b"Note: dir/", b"Note: dir/"),
    ] {
        let page = [b"<html><a href=\"", link, b"\">x</a>"].concat();
        let url = Url::parse("http://host/a%20b/").unwrap();
        let names = html::entries(&page, &url).unwrap();
        assert_eq!(
            names.entries,
            [Entry::new(name).unwrap()],
            "{}",
            link.escape_ascii()
        );
        assert!(names.odd.is_empty());
    }
}

#[test]
fn servers_that_speak_json_are_understood() {
    let nginx = br#"[{ "name":"d", "type":"directory", "mtime":"x" },
        { "name":"f", "type":"file", "size":6 }, { "name":"s", "type":"other" },
        { "name":"../x", "type":"file" }]"#;
    let names = json::entries(nginx).unwrap();
    assert_eq!(names.entries, [entry("d/"), entry("f")]);
    let odd: Vec<_> = names.odd.iter().map(|(name, _)| name.as_slice()).collect();
    assert_eq!(odd, [&b"s"[..], b"../x"]);
    let caddy =
        br#"[{"name":"d/","size":1,"url":"./d/","is_dir":true},{"name":"f","is_dir":false}]"#;
    assert_eq!(
        json::entries(caddy).unwrap().entries,
        [entry("d/"), entry("f")]
    );
    assert!(json::entries(b"[{").is_err());
}

#[test]
fn a_manifest_has_a_url_a_line() {
    let text = b"#carrack-manifest\n\n# all of it\na/b%20c\r\n/d\t12\nhttp://host/e\t 7\n";
    let lines = manifest::lines(text).unwrap();
    let lines: Vec<_> = lines.iter().map(|line| (line.url, line.size)).collect();
    assert_eq!(
        lines,
        [
            ("a/b%20c", None),
            ("/d", Some(12)),
            ("http://host/e", Some(7))
        ]
    );
    for text in [
        "a\nb",
        "#carrack-manifest\na\tx",
        "#carrack-manifest\n\u{feff}a\t-1",
    ] {
        assert!(manifest::lines(text.as_bytes()).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn any_bytes_are_survived(bytes in vec(any::<u8>(), 0..200)) {
        fuzz::listing(&bytes);
    }

    #[test]
    fn a_damaged_page_is_survived(at in 0..PAGE.len(), bytes in vec(any::<u8>(), 0..4)) {
        let mut page = PAGE.as_bytes().to_vec();
        let end = page.len().min(at + 2);
        page.splice(at..end, bytes.iter().copied());
        fuzz::listing(&page);
        let html = [b"<html><a href='".as_slice(), &bytes, &page[at..], b"'>"].concat();
        fuzz::listing(&html);
    }
}
