//! What the fuzz targets do with bytes, one function a target.
//!
//! In       any bytes.
//! Out      a panic, if something that must hold does not.
//! Not here which bytes: a fuzzer (`fuzz/`) or a property test (`fuzz_on_stable`) brings them.

pub(crate) mod blocks;
pub(crate) mod graph;

use bytes::Bytes;
use carrack_formats::car::index::{Index, write as write_index};
use carrack_formats::car::{CarError, CarLimits, Parser, Section, Step, v2, write};
use carrack_formats::dag::{DagError, Links, PathStep, cbor, jose, json, links};
use carrack_formats::verify::{HashError, Verifier, verify};
use carrack_formats::{Cid, cid, varint};

/// Varints and CIDs: what is read writes the same bytes, so nothing has two encodings.
pub(crate) fn varint_cid(bytes: &[u8]) {
    if let Ok(Some((value, len))) = varint::read(bytes) {
        let mut again = Vec::new();
        varint::write(&mut again, value);
        assert_eq!(again, bytes[..len]);
    }
    if let Ok(Some((cid, len))) = cid::read_prefix(bytes) {
        assert_eq!(cid.to_bytes(), bytes[..len]);
        assert_eq!(cid::parse_bytes(&bytes[..len]), Ok(cid));
        assert_eq!(cid::parse_text(&cid.to_string()), Ok(cid));
        assert_eq!(cid::read_prefix(&bytes[..len - 1]), Ok(None));
        hash(&cid, &bytes[len..]);
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(cid) = cid::parse_text(text)
    {
        assert_eq!(cid::parse_bytes(&cid.to_bytes()), Ok(cid));
    }
}

/// A hash over pieces answers as one over the whole.
fn hash(cid: &Cid, data: &[u8]) {
    let whole = verify(cid, data);
    let pieces = Verifier::new(cid.hash()).and_then(|mut verifier| {
        data.chunks(7).for_each(|piece| verifier.update(piece));
        verifier.finish()
    });
    assert_eq!(whole, pieces);
    if let Some(inline) = cid::identity_data(cid) {
        assert_eq!(
            whole,
            if inline == data {
                Ok(())
            } else {
                Err(HashError::Mismatch)
            }
        );
    }
}

/// CARv1: read at once, byte by byte and seeking, a file gives the same; sections lie one behind
/// the other inside of it, and what was read can be written again.
pub(crate) fn car_v1(bytes: &[u8]) {
    let limits = CarLimits {
        section_len_max: 4096,
        ..CarLimits::default()
    };
    let (sections, at_once) = read_car(Parser::new(limits, 0), bytes, usize::MAX);
    let (slow_sections, slowly) = read_car(Parser::new(limits, 0), bytes, 1);
    assert_eq!(at_once, slowly);
    assert_eq!(sections, slow_sections);
    let mut bounded = Parser::new(limits, 0);
    bounded.set_end(bytes.len() as u64);
    assert_eq!(read_car(bounded, bytes, 64).1.is_ok(), at_once.is_ok());

    let mut end = at_once
        .as_ref()
        .map_or(None, |header_len| Some(*header_len));
    for section in &sections {
        if let Some(end) = end {
            assert_eq!(section.offset, end);
        }
        let (from, to) = (section.data_offset as usize, section.end() as usize);
        let mut again = Vec::new();
        write::frame_head(&mut again, &section.cid, to - from);
        assert_eq!(again, bytes[section.offset as usize..from]);
        assert!(to <= bytes.len());
        end = Some(section.end());
    }
    if at_once.is_ok() {
        assert_eq!(end, Some(bytes.len() as u64));
    }
    let padded = CarLimits {
        allow_zero_padding: true,
        ..limits
    };
    let (padded_sections, padded_end) = read_car(Parser::new(padded, 0), bytes, 64);
    assert!(padded_end.is_ok() || at_once.is_err());
    assert_eq!(sections, padded_sections);
}

/// The sections, and the length of the header or the error. A section whose data is not there
/// does not count: this is how a caller has to read.
fn read_car(
    mut parser: Parser,
    bytes: &[u8],
    piece_len: usize,
) -> (Vec<Section>, Result<u64, CarError>) {
    let mut header_len = 0;
    let mut sections = Vec::new();
    let mut known = 0;
    loop {
        let from = usize::try_from(parser.offset()).unwrap();
        if from > bytes.len() {
            let offset = sections.pop().map_or(0, |section: Section| section.offset);
            assert_eq!(
                parser.check_end(bytes.len() as u64),
                Err(CarError::Truncated { offset })
            );
            return (sections, Err(CarError::Truncated { offset }));
        }
        known = known.max(from);
        match parser.next(&bytes[from..known], known == bytes.len()) {
            Ok(Step::Need(len)) => {
                let from = usize::try_from(parser.offset()).unwrap();
                assert!(len > known - from, "asks for what it has");
                known = bytes.len().min(known.saturating_add(piece_len));
            }
            Ok(Step::Header(header)) => {
                header_len = header.len;
                let written = write::header(&header.roots);
                let again = Parser::new(CarLimits::default(), 0).next(&written, true);
                assert!(matches!(again, Ok(Step::Header(again)) if again.roots == header.roots));
            }
            Ok(Step::Section(section)) => sections.push(section),
            Ok(Step::End) => return (sections, Ok(header_len)),
            Err(error) => return (sections, Err(error)),
        }
    }
}

/// CARv2: ranges are inside of the file; an index that is sorted finds what it lists, and is
/// written as it was if it was written by the rules.
pub(crate) fn car_v2_index(bytes: &[u8]) {
    let file_len = bytes.len() as u64;
    let mut start = v2::write(1, true);
    let n_start = bytes.len().min(40);
    start[11..11 + n_start].copy_from_slice(&bytes[..n_start]);
    for start in [&start[..], bytes] {
        if let Ok(header) = v2::parse(start, file_len) {
            assert!(header.data_offset >= 51 && header.data_len > 0);
            assert!(header.data_offset.checked_add(header.data_len).unwrap() <= file_len);
            assert!(
                header
                    .index_offset
                    .is_none_or(|at| at < file_len && at >= header.data_end())
            );
        }
    }
    if let Ok(index) = Index::parse(bytes) {
        assert!(index.byte_len() <= bytes.len());
        let mut records: Vec<_> = index.iter().collect();
        assert_eq!(records.len(), index.len());
        for record in records.iter().take(16) {
            let code = record.hash_code.unwrap_or(0x12);
            let multihash = carrack_formats::Multihash::wrap(code, record.digest).unwrap();
            let _ = index.get(&multihash).count();
        }
        let sorted = write_index(index.kind(), &mut records);
        let again = Index::parse(&sorted).unwrap();
        let again: Vec<_> = again.iter().collect();
        assert!(again.len() <= records.len());
        for record in &again {
            let code = record.hash_code.unwrap_or(0x12);
            let multihash = carrack_formats::Multihash::wrap(code, record.digest).unwrap();
            let index = Index::parse(&sorted).unwrap();
            assert!(index.get(&multihash).any(|offset| offset == record.offset));
        }
    }
}

/// dag-cbor: see [`dag`].
pub(crate) fn dag_cbor(bytes: &[u8]) {
    dag(cid::DAG_CBOR, bytes, cbor::resolve);
}

/// dag-json: see [`dag`].
pub(crate) fn dag_json(bytes: &[u8]) {
    dag(cid::DAG_JSON, bytes, json::resolve);
}

/// dag-jose: see [`dag`]. Links with tags are those that dag-cbor has.
pub(crate) fn dag_jose(bytes: &[u8]) {
    dag(cid::DAG_JOSE, bytes, jose::resolve);
    let block = Bytes::copy_from_slice(bytes);
    if let (Ok(found), Ok(tagged)) = (links(cid::DAG_JOSE, &block), links(cid::DAG_CBOR, &block)) {
        assert!(tagged.len() <= found.len());
        let tagged: Vec<_> = tagged.iter().filter_map(Result::ok).collect();
        let found: Vec<_> = found.iter().filter_map(Result::ok).collect();
        assert!(tagged.iter().all(|cid| found.contains(cid)));
    }
}

/// git-raw: each link is the name of an object, of 20 bytes at least.
pub(crate) fn git_raw(bytes: &[u8]) {
    let block = Bytes::copy_from_slice(bytes);
    let Ok(found) = links(cid::GIT_RAW, &block) else {
        return;
    };
    assert!(found.len() * 20 <= bytes.len());
    assert!(found.memory_len() <= bytes.len() + found.len().max(4) * 2 * 8);
    for cid in found.iter() {
        let cid = cid.unwrap(); // Names are looked at when they are found.
        assert_eq!((cid.codec(), cid.hash().code()), (cid::GIT_RAW, cid::SHA1));
    }
}

/// Links are inside of the block, cost what they say, and a path ends where it may.
fn dag(
    codec: u64,
    bytes: &[u8],
    resolve: fn(&[u8], &[&'static str]) -> Result<PathStep, DagError>,
) {
    let block = Bytes::copy_from_slice(bytes);
    let found: Links = links(codec, &block).unwrap_or_default();
    assert!(found.len() <= bytes.len());
    assert!(found.memory_len() <= bytes.len() + found.len().max(4) * 2 * 8);
    let cids: Vec<Cid> = found.iter().filter_map(Result::ok).collect();
    let is_whole = links(codec, &block).is_ok();

    for path in [
        &["a"][..],
        &["0", "0"],
        &["a", "1", "b"],
        &["", "/"],
        &["roots", "0"],
        &["link", "a"],
    ] {
        match resolve(bytes, path) {
            Ok(PathStep::Link { cid, used }) => {
                assert!(used <= path.len());
                assert!(
                    !is_whole || cids.contains(&cid),
                    "a path to a link that is not listed"
                );
            }
            Ok(PathStep::Value { used }) => assert_eq!(used, path.len()),
            Ok(PathStep::Missing { used }) => assert!(used < path.len()),
            Err(_) => assert!(
                !is_whole || cids.len() < found.len(),
                "a good block: {path:?}"
            ),
        }
    }
}
