use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::cid::{RAW, from_sha256};
use crate::verify::sha256;

fn raw(data: &[u8]) -> Cid {
    from_sha256(::cid::Version::V1, RAW, &sha256(data))
}

/// A value to encode, with lengths written in `width` extra bytes or the shortest form.
#[derive(Debug, Clone)]
enum Value {
    Number(u64),
    Negative(u64),
    Bytes(Vec<u8>),
    Text(String),
    Null,
    Float(f64),
    Link(Vec<u8>),
    Tagged(Box<Value>),
    List(Vec<Value>),
    Map(Vec<(String, Value)>),
}

#[expect(clippy::big_endian_bytes, reason = "RFC 8949 has network order")]
fn head(out: &mut Vec<u8>, major: u8, argument: u64, is_long: bool) {
    let bytes = argument.to_be_bytes();
    match argument {
        _ if is_long => out.extend([&[major << 5 | 27], &bytes[..]].concat()),
        0..24 => out.push(major << 5 | argument as u8),
        24..0x100 => out.extend([&[major << 5 | 24], &bytes[7..]].concat()),
        0x100..0x1_0000 => out.extend([&[major << 5 | 25], &bytes[6..]].concat()),
        0x1_0000..0x1_0000_0000 => out.extend([&[major << 5 | 26], &bytes[4..]].concat()),
        _ => out.extend([&[major << 5 | 27], &bytes[..]].concat()),
    }
}

fn encode(out: &mut Vec<u8>, value: &Value, is_long: bool) {
    match value {
        Value::Number(number) => head(out, 0, *number, is_long),
        Value::Negative(number) => head(out, 1, *number, is_long),
        Value::Bytes(bytes) => {
            head(out, 2, bytes.len() as u64, is_long);
            out.extend_from_slice(bytes);
        }
        Value::Text(text) => {
            head(out, 3, text.len() as u64, is_long);
            out.extend_from_slice(text.as_bytes());
        }
        Value::Null => out.push(0xf6),
        Value::Float(float) => out.extend([&[0xfb], &float.to_be_bytes()[..]].concat()),
        Value::Link(bytes) => {
            head(out, 6, 42, is_long);
            head(out, 2, bytes.len() as u64 + 1, is_long);
            out.push(0);
            out.extend_from_slice(bytes);
        }
        Value::Tagged(value) => {
            head(out, 6, 1, is_long);
            encode(out, value, is_long);
        }
        Value::List(items) => {
            head(out, 4, items.len() as u64, is_long);
            items.iter().for_each(|item| encode(out, item, is_long));
        }
        Value::Map(pairs) => {
            head(out, 5, pairs.len() as u64, is_long);
            for (key, value) in pairs {
                encode(out, &Value::Text(key.clone()), is_long);
                encode(out, value, is_long);
            }
        }
    }
}

fn encoded(value: &Value) -> Bytes {
    let mut out = Vec::new();
    encode(&mut out, value, false);
    out.into()
}

fn cids_of(value: &Value, out: &mut Vec<Cid>) {
    match value {
        Value::Link(bytes) => out.push(cid::parse_bytes(bytes).unwrap()),
        Value::Tagged(value) => cids_of(value, out),
        Value::List(items) => items.iter().for_each(|item| cids_of(item, out)),
        Value::Map(pairs) => pairs.iter().for_each(|(_, value)| cids_of(value, out)),
        _ => {}
    }
}

/// All paths of a value, each with what it leads to.
fn paths(value: &Value, at: &[String], out: &mut Vec<(Vec<String>, PathStep)>) {
    let used = at.len();
    match value {
        Value::Tagged(value) => return paths(value, at, out),
        Value::Link(bytes) if used > 0 => {
            let cid = cid::parse_bytes(bytes).unwrap();
            out.push((at.to_vec(), PathStep::Link { cid, used }));
            let beyond = [at, &["more".to_owned(), "0".to_owned()]].concat();
            out.push((beyond, PathStep::Link { cid, used }));
            return;
        }
        Value::Link(_) => return,
        Value::List(items) => {
            for (index, item) in items.iter().enumerate() {
                paths(item, &[at, &[index.to_string()]].concat(), out);
            }
            let beyond = [at, &[items.len().to_string()]].concat();
            out.push((beyond, PathStep::Missing { used }));
        }
        Value::Map(pairs) => {
            for (index, (key, value)) in pairs.iter().enumerate() {
                if pairs[..index].iter().all(|(other, _)| other != key) {
                    paths(value, &[at, std::slice::from_ref(key)].concat(), out);
                }
            }
        }
        _ => {}
    }
    out.push((at.to_vec(), PathStep::Value { used }));
    out.push((
        [at, &["no such key".to_owned()]].concat(),
        PathStep::Missing { used },
    ));
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        any::<u64>().prop_map(Value::Number),
        any::<u64>().prop_map(Value::Negative),
        proptest::collection::vec(any::<u8>(), 0..40).prop_map(Value::Bytes),
        "\\PC{0,12}".prop_map(Value::Text),
        Just(Value::Null),
        any::<f64>().prop_map(Value::Float),
        any::<[u8; 4]>().prop_map(|data| Value::Link(raw(&data).to_bytes())),
    ];
    leaf.prop_recursive(4, 40, 6, |inner| {
        prop_oneof![
            inner
                .clone()
                .prop_map(|value| Value::Tagged(Box::new(value))),
            proptest::collection::vec(inner.clone(), 0..6).prop_map(Value::List),
            proptest::collection::vec(("[a-c]{0,2}", inner), 0..6).prop_map(Value::Map),
        ]
    })
}

fn sample() -> Value {
    Value::Map(vec![
        (
            "a".into(),
            Value::List(vec![Value::Link(raw(b"1").to_bytes()), Value::Float(0.5)]),
        ),
        ("bytes".into(), Value::Bytes(vec![0xd8, 42, 0x41, 0])),
        ("link".into(), Value::Link(raw(b"2").to_bytes())),
        ("again".into(), Value::Link(raw(b"1").to_bytes())),
        ("text".into(), Value::Text("x".repeat(300))),
        ("number".into(), Value::Number(1 << 40)),
    ])
}

/// Runs with the stack of a careful server's thread: recursion over the block would overflow it.
fn on_small_stack(test: impl FnOnce() + Send + 'static) {
    thread::Builder::new()
        .stack_size(256 * 1024)
        .spawn(test)
        .unwrap()
        .join()
        .unwrap();
}

#[test]
fn links_come_in_document_order() {
    let links = links(&encoded(&sample())).unwrap();
    let got: Vec<Cid> = links.iter().map(Result::unwrap).collect();
    assert_eq!(got, [raw(b"1"), raw(b"2"), raw(b"1")]);
    assert_eq!(
        (links.len(), links.is_empty(), links.get(3)),
        (3, false, None)
    );
}

#[test]
fn every_cut_is_reported() {
    let block = encoded(&sample());
    for cut in 0..block.len() {
        let got = links(&block.slice(..cut));
        assert!(
            matches!(got, Err(DagError::Truncated { .. })),
            "cut at {cut}: {got:?}"
        );
        let _ = resolve(&block[..cut], &["number"]);
    }
    let longer: Bytes = [&block[..], &[0]].concat().into();
    let reason = "bytes follow the value";
    assert_eq!(
        links(&longer).unwrap_err(),
        DagError::malformed(block.len(), reason)
    );
}

#[test]
fn every_flipped_bit_is_survived() {
    let block = encoded(&sample());
    for bit in 0..block.len() * 8 {
        let mut block = block.to_vec();
        block[bit / 8] ^= 1 << (bit % 8);
        if let Ok(links) = links(&block.clone().into()) {
            let _ = links.iter().count();
        }
        for path in [&["a", "0"][..], &["link"], &["number", "x"]] {
            let _ = resolve(&block, path);
        }
    }
}

#[test]
fn two_mebibytes_of_nesting_are_refused_at_once() {
    on_small_stack(|| {
        for byte in [0x81, 0xa1] {
            let block = Bytes::from(vec![byte; 2 << 20]);
            let start = Instant::now();
            let got = links(&block).unwrap_err();
            assert!(
                matches!(got, DagError::TooDeep { offset } if offset <= 2048),
                "{got}"
            );
            assert!(
                start.elapsed() < Duration::from_millis(50),
                "{:?}",
                start.elapsed()
            );
            let path = vec!["0"; 3000];
            assert!(resolve(&block, &path).is_err() || byte == 0x81);
        }
        // Tags nest, too, but nothing has to be remembered of them.
        let mut tags = vec![0xc1; 2 << 20];
        assert!(matches!(
            links(&tags.clone().into()),
            Err(DagError::Truncated { .. })
        ));
        tags.push(0xf6);
        assert!(links(&tags.into()).unwrap().is_empty());
    });
}

#[test]
fn nesting_ends_at_its_limit() {
    let nested = |depth: usize| {
        let mut block = vec![0x81; depth];
        block.push(0xf6);
        Bytes::from(block)
    };
    assert!(links(&nested(NESTING_MAX)).is_ok());
    let offset = NESTING_MAX;
    assert_eq!(
        links(&nested(NESTING_MAX + 1)).unwrap_err(),
        DagError::TooDeep { offset }
    );
}

/// CVE-2026-35480: counts that nothing stands behind.
#[test]
fn counts_are_not_believed() {
    let huge = [0xff; 8];
    for major in [0x9b, 0xbb, 0x5b, 0x7b] {
        for depth in 1..10 {
            let one = [&[major], &huge[..]].concat();
            let block = [&[0x81].repeat(depth), &one.repeat(depth)[..]].concat();
            let offset = depth;
            assert_eq!(
                links(&block.into()).unwrap_err(),
                DagError::Truncated { offset }
            );
        }
    }
    // A count that could just be: the items are not there, and no room is made for them.
    let mut block = vec![0x9a, 0x00, 0x1f, 0xff, 0x00];
    block.resize(2 << 20, 0x81);
    assert!(matches!(
        links(&block.into()),
        Err(DagError::TooDeep { .. })
    ));
}

#[test]
fn what_is_no_dag_cbor_is_refused() {
    let link = |body: &[u8]| [&[0xd8, 42], body].concat();
    let table: &[Vec<u8>] = &[
        vec![],
        vec![0x9f, 0xff],
        vec![0x5f, 0xff],
        vec![0xff],
        vec![0x1c],
        vec![0xf8, 0x20],
        vec![0xe0],
        link(&[0x40]),
        link(&[0x41, 1]),
        link(&[0x61, 0]),
        link(&[0x80]),
        link(&[0xd8, 42, 0x41, 0]),
    ];
    for bytes in table {
        assert!(links(&bytes.clone().into()).is_err(), "{bytes:02x?}");
    }
    let no_cid: Bytes = link(&[0x43, 0, 1, 2]).into();
    let got = links(&no_cid).unwrap().get(0).unwrap();
    assert_eq!(
        got,
        Err(DagError::Link {
            offset: 4,
            source: cid::CidError::Truncated
        })
    );
    // Just a link, `undefined`, and keys that are no text are found in old data.
    assert_eq!(
        links(&encoded(&Value::Link(raw(b"").to_bytes())))
            .unwrap()
            .len(),
        1
    );
    assert!(links(&Bytes::from_static(&[0xf7])).is_ok());
    let odd = [0xa2, 0x01, 0x02, 0x61, b'k', 0x03];
    assert!(links(&Bytes::copy_from_slice(&odd)).is_ok());
    assert_eq!(resolve(&odd, &["k"]), Ok(PathStep::Value { used: 1 }));
}

#[test]
fn list_indexes_have_one_form() {
    let block = encoded(&Value::List(vec![Value::Null; 12]));
    for (index, is_there) in [
        ("0", true),
        ("11", true),
        ("12", false),
        ("00", false),
        ("01", false),
        ("+1", false),
    ]
    .into_iter()
    .chain([
        ("-1", false),
        ("", false),
        ("1 ", false),
        ("99999999999999999999", false),
    ]) {
        let want = if is_there {
            PathStep::Value { used: 1 }
        } else {
            PathStep::Missing { used: 0 }
        };
        assert_eq!(resolve(&block, &[index]), Ok(want), "{index:?}");
    }
}

#[test]
fn a_path_of_no_segments_is_the_block() {
    let link = encoded(&Value::Link(raw(b"").to_bytes()));
    assert_eq!(resolve::<&str>(&link, &[]), Ok(PathStep::Value { used: 0 }));
    let step = PathStep::Link {
        cid: raw(b""),
        used: 0,
    };
    assert_eq!(resolve(&link, &["a"]), Ok(step));
}

proptest! {
    #[test]
    fn links_and_paths_of_any_value_are_found(value in values(), is_long: bool) {
        let mut block = Vec::new();
        encode(&mut block, &value, is_long);
        let block = Bytes::from(block);
        let mut want = Vec::new();
        cids_of(&value, &mut want);
        let got: Result<Vec<Cid>, _> = links(&block).unwrap().iter().collect();
        prop_assert_eq!(got.unwrap(), want);

        let mut want = Vec::new();
        paths(&value, &[], &mut want);
        for (path, step) in want {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            prop_assert_eq!(resolve(&block, &path), Ok(step), "{:?}", path);
        }
        for cut in 0..block.len() {
            prop_assert!(links(&block.slice(..cut)).is_err());
        }
    }

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
        let _ = resolve(&bytes, &["a", "0"]);
        if let Ok(links) = links(&bytes.into()) {
            let _ = links.iter().count();
        }
    }
}
