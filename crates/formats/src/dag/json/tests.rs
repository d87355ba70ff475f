use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::Cid;
use crate::cid::{RAW, from_sha256};
use crate::verify::sha256;

fn raw(data: &[u8]) -> Cid {
    from_sha256(::cid::Version::V1, RAW, &sha256(data))
}

fn link(data: &[u8]) -> Value {
    json!({ "/": raw(data).to_string() })
}

fn found(block: &[u8]) -> Result<Vec<Cid>, DagError> {
    links(&Bytes::copy_from_slice(block))?.iter().collect()
}

fn as_link(value: &Value) -> Option<Cid> {
    let map = value.as_object().filter(|map| map.len() == 1)?;
    map.get("/")?
        .as_str()
        .map(|text| cid::parse_text(text).unwrap())
}

fn cids_of(value: &Value, out: &mut Vec<Cid>) {
    match value {
        _ if as_link(value).is_some() => out.extend(as_link(value)),
        Value::Array(items) => items.iter().for_each(|item| cids_of(item, out)),
        Value::Object(map) => map.values().for_each(|value| cids_of(value, out)),
        _ => {}
    }
}

/// All paths of a value, each with what it leads to.
fn paths(value: &Value, at: &[String], out: &mut Vec<(Vec<String>, PathStep)>) {
    let used = at.len();
    let missing = PathStep::Missing { used };
    if let Some(cid) = as_link(value) {
        if used > 0 {
            out.push((at.to_vec(), PathStep::Link { cid, used }));
            out.push((
                [at, &["/".to_owned()]].concat(),
                PathStep::Link { cid, used },
            ));
        }
        return;
    }
    out.push((at.to_vec(), PathStep::Value { used }));
    out.push(([at, &["no such key".to_owned()]].concat(), missing));
    match value {
        Value::Array(items) => {
            for (index, item) in items.iter().enumerate() {
                paths(item, &[at, &[index.to_string()]].concat(), out);
            }
            out.push(([at, &[items.len().to_string()]].concat(), missing));
        }
        Value::Object(map) => {
            // A byte string is not entered, although it looks like a map.
            for (key, value) in map.iter().filter(|(key, _)| *key != "/") {
                paths(value, &[at, std::slice::from_ref(key)].concat(), out);
            }
        }
        _ => {}
    }
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        any::<bool>().prop_map(Value::from),
        Just(Value::Null),
        any::<[u8; 4]>().prop_map(|data| link(&data)),
        Just(json!({ "/": { "bytes": "AQID" } })),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        let key = prop_oneof!["[a-c\"\\\\\n/é🚀]{1,2}", "[a-c]"]
            .prop_filter("reserved", |key| key != "/");
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            proptest::collection::btree_map(key, inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn on_small_stack(test: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(test)
        .unwrap()
        .join()
        .unwrap();
}

fn sample() -> Vec<u8> {
    let text = format!(
        r#" {{"a":[{{"/":"{0}"}}, 1.5e-3,-0, true ],"b":{{"/":{{"bytes":"AQ"}}}},
        "\u0063\n": {{ "/" : "{1}" }}, "d":{{}}, "e":[ ], "f":"q\"\\\/", "g":null, "h":false}} "#,
        raw(b"1"),
        raw(b"2"),
    );
    text.into_bytes()
}

#[test]
fn links_come_in_document_order() {
    assert_eq!(found(&sample()).unwrap(), [raw(b"1"), raw(b"2")]);
    let step = |path: &[&str]| resolve(&sample(), path).unwrap();
    assert_eq!(
        step(&["a", "0"]),
        PathStep::Link {
            cid: raw(b"1"),
            used: 2
        }
    );
    assert_eq!(
        step(&["c\n", "x"]),
        PathStep::Link {
            cid: raw(b"2"),
            used: 1
        }
    );
    assert_eq!(step(&["a", "3"]), PathStep::Value { used: 2 });
    assert_eq!(step(&["a", "4"]), PathStep::Missing { used: 1 });
    assert_eq!(step(&["b", "/"]), PathStep::Missing { used: 1 });
    assert_eq!(step(&["f", "x"]), PathStep::Missing { used: 1 });
    assert_eq!(step(&["h"]), PathStep::Value { used: 1 });
    assert_eq!(step(&["e", "0"]), PathStep::Missing { used: 1 });
    assert_eq!(step(&[]), PathStep::Value { used: 0 });
}

#[test]
fn every_cut_is_reported() {
    let block = sample();
    let end = block.len() - 1; // The space after the value.
    for cut in 0..end {
        assert!(found(&block[..cut]).is_err(), "cut at {cut}");
        let _ = resolve(&block[..cut], &["h"]);
    }
    assert!(found(&block[..end]).is_ok());
    assert!(found(&[&block[..], b"0"].concat()).is_err());
}

#[test]
fn every_flipped_bit_is_survived() {
    let block = sample();
    for bit in 0..block.len() * 8 {
        let mut block = block.clone();
        block[bit / 8] ^= 1 << (bit % 8);
        // Whoever takes less than a common JSON reader would be wrong about data that is good.
        if serde_json::from_slice::<Value>(&block).is_ok() {
            assert!(links(&block.clone().into()).is_ok(), "bit {bit}");
        }
        let _ = found(&block);
        for path in [&["a", "0"][..], &["h"], &["g", "x"]] {
            let _ = resolve(&block, path);
        }
    }
}

#[test]
fn only_the_exact_form_is_a_link() {
    let cid = raw(b"x").to_string();
    let is_link = |text: &str| found(text.replace('$', &cid).as_bytes());
    for text in [
        r#"{"/":"$"}"#,
        " {\t\"/\"\n:\r\"$\" } ",
        r#"{"\/":"$"}"#,
        r#"{"\u002f":"$"}"#,
    ] {
        assert_eq!(is_link(text).unwrap(), [raw(b"x")], "{text}");
    }
    for text in [
        r#"{"/":"$","a":1}"#,
        r#"{"a":1,"/":"$"}"#,
        r#"{"/":["$"]}"#,
        r#"{"/":{"bytes":"$"}}"#,
        r#"{"//":"$"}"#,
        r#"["/","$"]"#,
        r#""$""#,
    ] {
        assert_eq!(is_link(text).unwrap(), [], "{text}");
    }
    assert!(matches!(
        is_link(r#"{"/":"no cid"}"#),
        Err(DagError::Link { offset: 6, .. })
    ));
    assert!(matches!(is_link(r#"{"/":""}"#), Err(DagError::Link { .. })));
    assert!(matches!(
        is_link(r#"{"/":"\u0062afkqaaa"}"#),
        Err(DagError::Malformed { .. })
    ));
}

#[test]
fn what_is_no_json_is_refused() {
    for text in [
        "",
        " ",
        "{",
        "[",
        "]",
        "}",
        "[1",
        "[1,]",
        "[,1]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{1:1}",
        "tru",
        "nulll",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "1e+",
        "+1",
        "0x1",
        "NaN",
        "\"",
        "\"\\x\"",
        "\"\\u12g4\"",
        "\"\\u12",
        "\"\n\"",
        "'a'",
        "1 2",
        "[1 2]",
        "[1}",
        "{]",
        "// c\n1",
        "\u{feff}1",
        "{\"/\":\"bafkqaaa\"",
        "{\"/\":\"bafkqaaa\"]",
    ] {
        assert!(found(text.as_bytes()).is_err(), "{text:?}");
        assert!(serde_json::from_str::<Value>(text).is_err(), "{text:?}");
    }
    let got = links(&Bytes::from_static(b"\"a\xff\""));
    assert_eq!(
        got.unwrap_err(),
        DagError::malformed(2, "text is not UTF-8")
    );
}

#[test]
fn two_mebibytes_of_nesting_are_refused_at_once() {
    on_small_stack(|| {
        for piece in ["[", "{\"a\":", "{\"/\":", "[{\"/\":", "{\"/\":\"/\",\"a\":"] {
            let block = piece.repeat((2 << 20) / piece.len());
            let start = Instant::now();
            let got = links(&block.clone().into()).unwrap_err();
            assert!(matches!(got, DagError::TooDeep { .. }), "{piece}: {got}");
            let _ = resolve(block.as_bytes(), &vec!["a"; 5000]);
            let _ = resolve(block.as_bytes(), &vec!["0"; 5000]);
            assert!(
                start.elapsed() < Duration::from_millis(500),
                "{:?}",
                start.elapsed()
            );
        }
    });
    let nested = |depth: usize| ["[".repeat(depth), "]".repeat(depth)].concat();
    assert!(found(nested(NESTING_MAX).as_bytes()).is_ok());
    // The innermost list is empty and is never open.
    assert!(found(nested(NESTING_MAX + 1).as_bytes()).is_ok());
    assert!(found(nested(NESTING_MAX + 2).as_bytes()).is_err());
}

proptest! {
    #[test]
    fn links_and_paths_of_any_value_are_found(value in values(), is_pretty: bool) {
        let text = if is_pretty {
            serde_json::to_string_pretty(&value).unwrap()
        } else {
            value.to_string()
        };
        let mut want = Vec::new();
        cids_of(&value, &mut want);
        prop_assert_eq!(found(text.as_bytes()).unwrap(), want);

        let mut want = Vec::new();
        paths(&value, &[], &mut want);
        for (path, step) in want {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            prop_assert_eq!(resolve(text.as_bytes(), &path), Ok(step), "{} {:?}", text, path);
        }
    }

    #[test]
    fn any_text_is_answered(text in r#"[\[\]{}",:/\\u0-9a-f tnlre.+-]{0,40}"#) {
        let ours = links(&text.clone().into());
        let theirs: Result<Value, _> = serde_json::from_str(&text);
        if let Ok(links) = &ours {
            let _ = links.iter().count();
        }
        if theirs.is_ok() {
            prop_assert!(ours.is_ok(), "{}", text);
        }
        let _ = resolve(text.as_bytes(), &["a", "0"]);
    }
}
