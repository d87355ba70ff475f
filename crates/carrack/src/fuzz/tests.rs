//! The bodies of the fuzz targets under property tests: random bytes and damaged good ones. Finds
//! less than a fuzzer, on every run of the tests.

use carrack_testkit::damage::{damaged, damages};
use proptest::collection::vec;
use proptest::prelude::*;

const ROOT: &str = "/ipfs/bafkreihhpc5y2pqvl5rbe5uuyhqjouybfs3rvlmisccgzue2kkt5zq6upq";

const REQUESTS: [&str; 6] = [
    "/a/b%20c?format=car&dag-scope=entity&entity-bytes=5:-3&car-dups=y&filename=x%0d%0ay.car",
    "\naapplication/vnd.ipld.car;order=dfs;dups=y;q=0.5\nrbytes=0-5,-7",
    "?x=a+b%26&format=\naapplication/vnd.ipld.raw, */*;q=0.1\nn\"x\", W/\"y\"\ni\"x\"",
    "/%E2%82%AC/a%2Fb?format=raw\nrbytes=9-\nconly-if-cached",
    "?dag%2Dscope=block&dag-scope=all\naapplication/vnd.ipld.car; meta=eof+json",
    "?car-order=unk&car-version=1\naapplication/vnd.ipld.car",
];

const NAMES: &[&str] = &[
    "format",
    "f%6Frmat",
    "dag-scope",
    "entity-bytes",
    "car-dups",
    "car-order",
    "filename",
    "x",
];

const VALUES: &[&str] = &[
    "car", "raw", "entity", "all", "0:*", "y", "n", "unk", "a+b", "%61", "", "a%26b=c", "a=b",
];

/// Found by the property below: the CID of a record was believed with two bytes behind it.
#[test]
fn a_record_with_bytes_behind_its_cid_has_no_second_form() {
    let values = include_str!("../../tests/fixtures/catalog-v1.txt");
    let path = values.lines().find_map(|line| line.strip_prefix("path: "));
    let mut value = multibase::Base::Base16Lower.decode(path.unwrap()).unwrap();
    let cid_len_at = value.len() - 36 - 4;
    assert_eq!(value[cid_len_at..cid_len_at + 4], [36, 0, 0, 0]);
    value[cid_len_at] += 2;
    value.extend([0, 0]);
    super::record(&value);
}

proptest! {
    #[test]
    fn random_bytes_pass(bytes in vec(any::<u8>(), 0..400)) {
        super::control(&bytes);
        super::journal(&bytes);
        super::record(&bytes);
        super::request(&bytes);
        super::websocket(&bytes);
    }

    #[test]
    fn damaged_messages_pass(
        sizes in any::<[u8; 4]>(),
        firsts in vec(prop::sample::select(&[0x02, 0x00, 0x80, 0x82, 0x89, 0x8a, 0x88_u8]), 0..8),
        payloads in vec(vec(any::<u8>(), 0..200), 8),
        damages in damages(),
    ) {
        let mut frames = Vec::new();
        for (first, payload) in firsts.iter().zip(payloads) {
            let len = payload.len() as u8;
            match len {
                0..126 => frames.extend([*first, 0x80 | len]),
                _ => frames.extend([*first, 0xfe, 0, len]),
            }
            frames.extend([len, 7, !len, 9]);
            frames.extend(payload);
        }
        super::websocket(&[&sizes, &damaged(frames, &damages)[..]].concat());
    }

    #[test]
    fn damaged_segments_pass(bytes in vec(any::<u8>(), 0..48)) {
        super::segment(&bytes);
    }

    #[test]
    fn damaged_requests_pass(which in 0..REQUESTS.len(), damages in damages()) {
        let text = [ROOT, REQUESTS[which]].concat();
        super::request(&damaged(text.into_bytes(), &damages));
    }

    #[test]
    fn requests_of_known_parameters_pass(
        names in vec(prop::sample::select(NAMES), 0..5),
        values in vec(prop::sample::select(VALUES), 5),
        accept in prop::sample::select(&["car", "raw", "car;dups=y;order=unk", "car;version=1"]),
    ) {
        let query: Vec<String> =
            names.iter().zip(values).map(|(name, value)| format!("{name}={value}")).collect();
        let text = format!("{ROOT}?{}\naapplication/vnd.ipld.{accept}", query.join("&"));
        super::request(text.as_bytes());
    }

    #[test]
    fn damaged_frames_pass(damages in damages()) {
        let request = br#"{"args":[[108,115],[255]],"directory":[47],"terminal":false}"#;
        let frame = [&[0, request.len() as u8, 0, 0, 0][..], request, &[4, 1, 0, 0, 0, 7]].concat();
        super::control(&damaged(frame, &damages));
    }

    #[test]
    fn records_of_a_journal_pass(
        first in any::<u64>(),
        n in 0_u32..5,
        leaves in vec(any::<u8>(), 0..128),
    ) {
        super::journal(&[&first.to_le_bytes()[..], &n.to_le_bytes(), &leaves].concat());
    }

    #[test]
    fn damaged_values_of_the_catalog_pass(
        which in any::<prop::sample::Index>(),
        damages in damages(),
    ) {
        let values = include_str!("../../tests/fixtures/catalog-v1.txt");
        let values: Vec<Vec<u8>> = values
            .split_whitespace()
            .filter_map(|word| multibase::Base::Base16Lower.decode(word).ok())
            .filter(|value| value.len() > 8)
            .collect();
        super::record(&damaged(which.get(&values).clone(), &damages));
    }
}
