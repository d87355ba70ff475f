//! CARs that are cut or lie: a typed error that names the byte, and nothing indexed.

use std::fs;

use crate::support::car::{
    V2_DATA_OFFSET, framed, header, of_blocks, raw_cid, section, text, v2, varint,
};
use crate::support::{Carrack, Outcome, data::Seeded};

/// Exit code for bytes that are not what they claim to be.
const VERIFICATION: i32 = 4;
/// Exit code for work done in part.
const PARTIAL: i32 = 6;

fn blocks() -> Vec<Vec<u8>> {
    let mut random = Seeded::new(31);
    (0..20)
        .map(|number| random.bytes(number * 100 + 1))
        .collect()
}

fn import(carrack: &Carrack, car: &[u8], options: &[&str]) -> Outcome {
    let path = carrack.path("bad.car");
    fs::write(&path, car).unwrap();
    let mut args = vec!["import"];
    args.extend(options);
    args.push(path.to_str().unwrap());
    carrack.run(&args)
}

/// The import fails, says at which byte, and leaves nothing behind.
fn is_refused(what: &str, car: &[u8]) {
    let carrack = Carrack::new();
    let outcome = import(&carrack, car, &[]);
    assert_eq!(outcome.code(), VERIFICATION, "{what}: {}", outcome.stderr);
    assert!(
        outcome.stderr.contains("byte"),
        "{what}: names no byte: {}",
        outcome.stderr
    );
    assert!(
        carrack.run(&["ls", "--json"]).ok().json().is_empty(),
        "{what}: a root stayed"
    );
    let status = carrack.run(&["status", "--json"]).ok().json();
    assert_eq!(status[0]["index_entries"], 0, "{what}: entries stayed");
    for block in blocks() {
        let cid = text(&raw_cid(&block));
        carrack.run(&["cat", &cid]).exits(3);
    }
}

#[test]
fn a_car_cut_anywhere_inside_a_section_is_refused() {
    let car = of_blocks(&blocks());
    let len = car.len();
    for cut in [
        1,
        10,
        58,
        60,
        70,
        100,
        len / 3,
        len / 2,
        len - 1_000,
        len - 1,
    ] {
        is_refused(&format!("cut at {cut}"), &car[..cut]);
    }
    is_refused("empty", b"");
}

#[test]
fn a_block_that_does_not_hash_to_its_cid_is_refused() {
    let mut car = of_blocks(&blocks());
    let last = car.len() - 1;
    car[last] ^= 1;
    is_refused("last byte flipped", &car);
}

#[test]
fn lying_lengths_and_huge_headers_are_refused() {
    let blocks = blocks();
    let root = raw_cid(&blocks[0]);
    let good = of_blocks(&blocks);
    let huge = [varint(u64::MAX >> 1), vec![0; 100]].concat();
    is_refused("header of 2^62 bytes", &huge);
    is_refused("header of 2 MiB", &framed(&vec![0xa1; 2 << 20]));
    is_refused("header that is no map", &framed(b"\x80"));
    is_refused("section of 2^62 bytes", &[good.clone(), huge].concat());
    is_refused(
        "section of 3 MiB",
        &[good.clone(), varint(3 << 20), vec![0; 3 << 20]].concat(),
    );
    is_refused(
        "varint of ten bytes",
        &[good.clone(), vec![0xff; 10]].concat(),
    );
    is_refused(
        "varint not minimal",
        &[good.clone(), vec![0x80, 0x00]].concat(),
    );
    is_refused("zero padding", &[good.clone(), vec![0; 64]].concat());
    is_refused(
        "section shorter than its CID",
        &[header(&root), framed(&root[..20])].concat(),
    );
    is_refused(
        "CID version 9",
        &[header(&root), framed(&[9, 0x55, 0x12, 0x20])].concat(),
    );
    let mut identity = vec![0x01, 0x55, 0x00];
    identity.extend(framed(&[7; 300]));
    is_refused(
        "identity digest of 300 bytes",
        &[header(&root), section(&identity, b"")].concat(),
    );
}

#[test]
fn carv2_headers_out_of_range_are_refused() {
    let v1 = of_blocks(&blocks());
    let len = v1.len() as u64;
    let end = V2_DATA_OFFSET + len;
    for (what, data_offset, data_len, index_offset) in [
        ("data before the header", 11, len, 0),
        ("data after the end", end + 1, len, 0),
        ("data offset near 2^64", u64::MAX - 5, 10, 0),
        ("data longer than the file", V2_DATA_OFFSET, len + 1, 0),
        ("data length near 2^64", V2_DATA_OFFSET, u64::MAX, 0),
        ("index after the end", V2_DATA_OFFSET, len, end + 100),
        (
            "index inside the data",
            V2_DATA_OFFSET,
            len,
            V2_DATA_OFFSET + 1,
        ),
    ] {
        is_refused(what, &v2(&v1, data_offset, data_len, index_offset, b""));
    }
    is_refused(
        "cut inside the header",
        &v2(&v1, V2_DATA_OFFSET, len, 0, b"")[..30],
    );
}

/// The index of a CARv2 is a claim; what is indexed comes from the sections themselves.
#[test]
fn a_lying_index_never_makes_wrong_bytes() {
    let blocks = blocks();
    let v1 = of_blocks(&blocks);
    let len = v1.len() as u64;
    // MultihashIndexSorted, sha2-256, one bucket of width 40: every block at byte 7.
    let mut index = vec![0x81, 0x08];
    index.extend(1_u32.to_le_bytes());
    index.extend(0x12_u64.to_le_bytes());
    index.extend(1_u32.to_le_bytes());
    index.extend(40_u32.to_le_bytes());
    index.extend((40 * blocks.len() as u64).to_le_bytes());
    let mut digests: Vec<Vec<u8>> = blocks
        .iter()
        .map(|block| raw_cid(block)[4..].to_vec())
        .collect();
    digests.sort();
    for digest in digests {
        index.extend(digest);
        index.extend(7_u64.to_le_bytes());
    }
    let car = v2(&v1, V2_DATA_OFFSET, len, V2_DATA_OFFSET + len, &index);
    let carrack = Carrack::new();
    let outcome = import(&carrack, &car, &[]);
    if outcome.code() == VERIFICATION {
        return;
    }
    outcome.ok();
    for block in blocks {
        let got = carrack.run(&["cat", &text(&raw_cid(&block))]).ok();
        assert_eq!(got.stdout, block);
    }
}

#[test]
fn a_carv2_without_an_index_is_imported() {
    let blocks = blocks();
    let v1 = of_blocks(&blocks);
    let carrack = Carrack::new();
    import(
        &carrack,
        &v2(&v1, V2_DATA_OFFSET, v1.len() as u64, 0, b""),
        &[],
    )
    .ok();
    for block in blocks {
        assert_eq!(
            carrack.run(&["cat", &text(&raw_cid(&block))]).ok().stdout,
            block
        );
    }
}

#[test]
fn salvage_keeps_the_good_blocks_and_says_so() {
    let blocks = blocks();
    let mut car = of_blocks(&blocks);
    let last = car.len() - 1;
    car[last] ^= 1;
    let carrack = Carrack::new();
    import(&carrack, &car, &["--salvage"]).exits(PARTIAL);
    let (bad, good) = blocks.split_last().unwrap();
    for block in good {
        assert_eq!(
            carrack.run(&["cat", &text(&raw_cid(block))]).ok().stdout,
            *block
        );
    }
    assert_ne!(carrack.run(&["cat", &text(&raw_cid(bad))]).code(), 0);
}

#[test]
fn zero_padding_is_accepted_only_on_request() {
    let blocks = blocks();
    let car = [of_blocks(&blocks), vec![0; 4_096]].concat();
    let carrack = Carrack::new();
    assert_eq!(import(&carrack, &car, &[]).code(), VERIFICATION);
    import(&carrack, &car, &["--allow-padding"]).ok();
}
