//! `import` of CARs that lie elsewhere.

use carrack_formats::Cid;
use carrack_formats::car::index::{IndexKind, Record, write};
use carrack_formats::car::v2;

use super::Bucket;
use crate::error::ErrorKind;
use crate::ingest::tests::{bytes, car, raw};
use crate::source::SourceErrorKind;
use crate::source::testing::Fault;

const BLOCK_LEN: usize = 40_000;

struct Sample {
    blocks: Vec<(Cid, Vec<u8>)>,
    car: Vec<u8>,
    /// Where the sections start.
    offsets: Vec<u64>,
}

fn sample(n: u64, len: usize) -> Sample {
    let blocks: Vec<_> = (0..n).map(|n| bytes(n, len + n as usize)).collect();
    let blocks: Vec<_> = blocks.into_iter().map(|data| (raw(&data), data)).collect();
    let mut offsets = Vec::new();
    for n in 0..blocks.len() {
        offsets.push(car(&[blocks[0].0], &blocks[..n]).len() as u64);
    }
    let car = car(&[blocks[0].0], &blocks);
    Sample {
        blocks,
        car,
        offsets,
    }
}

impl Sample {
    fn index(&self, kind: IndexKind, keep: impl Fn(usize) -> bool, shift: u64) -> Vec<u8> {
        let records = self.blocks.iter().zip(&self.offsets).enumerate();
        let records = records.filter(|(n, _)| keep(*n));
        let mut records: Vec<Record<'_>> = records
            .map(|(_, ((cid, _), offset))| Record {
                hash_code: Some(0x12),
                digest: cid.hash().digest(),
                offset: offset + shift,
            })
            .collect();
        write(kind, &mut records)
    }

    fn check(&self, bucket: &Bucket) {
        for (cid, data) in &self.blocks {
            let got = bucket.fixture.blocks.get_blocking(cid).unwrap();
            assert!(got == data[..], "{cid}");
        }
    }
}

#[test]
fn a_car_without_index_is_read_once_and_served_from_where_it_lies() {
    let (bucket, sample) = (Bucket::new(), sample(600, BLOCK_LEN));
    bucket.fake.put("a/x.car", &sample.car);
    for n in [10, 5 << 20, 100_000] {
        bucket.fake.fault_once("a/x.car", Fault::BreaksAfter(n));
    }
    let report = bucket.import("a/x.car", false).unwrap();
    assert_eq!((report.n_blocks, report.index.as_deref()), (600, None));
    assert!(report.roots_missing.is_empty());
    assert_eq!(report.roots[0].path.to_str(), Some("s3://fake/a/x.car"));
    let read = bucket.fake.take_counts().1;
    let most = sample.car.len() as u64 + 4096;
    assert!(read <= most, "{read} of {most}");
    sample.check(&bucket);
    bucket.fake.take_counts();
    assert!(bucket.import("a/x.car", false).unwrap().unchanged);
    assert!(bucket.fake.take_counts().1 <= 4096);
}

#[test]
fn an_index_saves_reading_the_car() {
    let sample = sample(100, BLOCK_LEN);
    for kind in [IndexKind::Sorted, IndexKind::MultihashSorted] {
        let index = sample.index(kind, |_| true, 0);
        let mut car_v2 = v2::write(sample.car.len() as u64, true).to_vec();
        car_v2.extend_from_slice(&sample.car);
        car_v2.extend_from_slice(&index);
        let bucket = Bucket::new();
        bucket.fake.put("v2.car", &car_v2);
        bucket.fake.put("v1.car", &sample.car);
        bucket.fake.put("v1.car.idx", &index);
        for name in ["v2.car", "v1.car"] {
            bucket.fake.take_counts();
            let report = bucket.import(name, false).unwrap();
            assert_eq!(report.n_blocks, 100);
            assert!(report.index.is_some() && report.roots_missing.is_empty());
            let read = bucket.fake.take_counts().1;
            assert!(read < 40_000, "{name}: {read} bytes were read");
        }
        sample.check(&bucket);
        let report = bucket.import("v1.car", true).unwrap();
        assert!(report.index.is_none(), "--verify reads all");
        assert!(bucket.fake.take_counts().1 > sample.car.len() as u64);
    }
}

#[test]
fn sections_that_an_index_omits_are_read() {
    let (bucket, sample) = (Bucket::new(), sample(100, BLOCK_LEN));
    let index = sample.index(IndexKind::MultihashSorted, |n| n % 10 != 3 && n != 99, 0);
    bucket.fake.put("x.car", &sample.car);
    bucket.fake.put("x.car.idx", &index);
    let report = bucket.import("x.car", false).unwrap();
    assert_eq!(report.n_blocks, 100);
    assert!(report.index.is_some());
    assert!(bucket.fake.take_counts().1 < 15 * BLOCK_LEN as u64);
    sample.check(&bucket);
}

#[test]
fn an_index_that_lies_is_refused_and_the_car_is_read() {
    let sample = sample(100, BLOCK_LEN);
    let good = sample.index(IndexKind::Sorted, |_| true, 0);
    let other = self::sample(100, BLOCK_LEN + 1);
    let mut flipped = good.clone();
    let end = flipped.len();
    flipped[end - 7] ^= 1; // An offset.
    for (what, index) in [
        ("shifted", sample.index(IndexKind::Sorted, |_| true, 1)),
        (
            "of another car",
            other.index(IndexKind::Sorted, |_| true, 0),
        ),
        (
            "out of bounds",
            sample.index(IndexKind::Sorted, |_| true, 1 << 40),
        ),
        ("one bad offset", flipped),
        ("cut", good[..good.len() - 20].to_vec()),
        ("noise", bytes(5, 500)),
        ("empty", Vec::new()),
    ] {
        let bucket = Bucket::new();
        bucket.fake.put("x.car", &sample.car);
        bucket.fake.put("x.car.idx", &index);
        let report = bucket.import("x.car", false).unwrap();
        assert_eq!(
            (report.n_blocks, report.index.as_deref()),
            (100, None),
            "{what}"
        );
        sample.check(&bucket);
    }
}

/// A sharded index of the sample, its slices blocks or sections, shifted by some bytes.
fn sharded(sample: &Sample, sections: bool, shift: u64) -> Vec<u8> {
    use carrack_formats::car::write;
    let head = |major: u8, n: u64, out: &mut Vec<u8>| {
        out.push(major << 5 | 27);
        out.extend((0..8).rev().map(|byte| (n >> (8 * byte)) as u8));
    };
    let cbor = |block: &[u8]| {
        let digest = carrack_formats::verify::sha256(block);
        carrack_formats::cid::from_sha256(::cid::Version::V1, 0x71, &digest)
    };
    let mut shard = Vec::new();
    let hash = |cid: &Cid, out: &mut Vec<u8>| {
        let bytes = cid.hash().to_bytes();
        head(2, bytes.len() as u64, out);
        out.extend_from_slice(&bytes);
    };
    head(4, 2, &mut shard);
    hash(&raw(&sample.car), &mut shard);
    head(4, sample.blocks.len() as u64, &mut shard);
    for (n, (cid, data)) in sample.blocks.iter().enumerate() {
        let end = sample.offsets.get(n + 1).copied();
        let end = end.unwrap_or(sample.car.len() as u64);
        let start = match sections {
            true => sample.offsets[n],
            false => end - data.len() as u64,
        };
        head(4, 2, &mut shard);
        hash(cid, &mut shard);
        head(4, 2, &mut shard);
        head(0, start - shift, &mut shard);
        head(0, end - start, &mut shard);
    }
    let mut root = Vec::new();
    head(5, 1, &mut root);
    head(3, 21, &mut root);
    root.extend_from_slice(b"index/sharded/dag@0.1");
    head(5, 1, &mut root);
    head(3, 6, &mut root);
    root.extend_from_slice(b"shards");
    head(4, 1, &mut root);
    head(6, 42, &mut root);
    let link = [&[0], &cbor(&shard).to_bytes()[..]].concat();
    head(2, link.len() as u64, &mut root);
    root.extend_from_slice(&link);
    let mut car = write::header(&[cbor(&root)]);
    for block in [&root, &shard] {
        write::frame_head(&mut car, &cbor(block), block.len());
        car.extend_from_slice(block);
    }
    car
}

#[test]
fn a_sharded_index_of_blocks_or_of_sections_is_understood_and_a_false_one_refused() {
    let sample = sample(100, BLOCK_LEN);
    for (sections, shift, is_used) in [(false, 0, true), (true, 0, true), (false, 1, false)] {
        let bucket = Bucket::new();
        bucket.fake.put("x.car", &sample.car);
        bucket
            .fake
            .put("x.car.idx", sharded(&sample, sections, shift));
        let report = bucket.import("x.car", false).unwrap();
        assert_eq!((report.n_blocks, report.index.is_some()), (100, is_used));
        let read = bucket.fake.take_counts().1;
        assert_eq!(read < 20 * (BLOCK_LEN as u64 + 100), is_used, "{read}");
        sample.check(&bucket);
    }
}

#[test]
fn a_car_of_short_blocks_is_read_rather_than_its_heads() {
    let (bucket, sample) = (Bucket::new(), sample(200, 500));
    bucket.fake.put("x.car", &sample.car);
    bucket
        .fake
        .put("x.car.idx", sample.index(IndexKind::Sorted, |_| true, 0));
    let report = bucket.import("x.car", false).unwrap();
    assert_eq!((report.n_blocks, report.index), (200, None));
    sample.check(&bucket);
}

#[test]
fn a_bad_car_leaves_nothing() {
    let sample = sample(30, BLOCK_LEN);
    let mut flipped = sample.car.clone();
    flipped[500_000] ^= 1;
    let cut = sample.car[..sample.car.len() - 5].to_vec();
    for (car, kind) in [
        (flipped, ErrorKind::Verification),
        (cut, ErrorKind::Verification),
        (b"no car at all".to_vec(), ErrorKind::Verification),
        (Vec::new(), ErrorKind::Verification),
    ] {
        let bucket = Bucket::new();
        bucket.fake.put("x.car", &car);
        assert_eq!(bucket.import("x.car", false).unwrap_err().kind(), kind);
        assert_eq!(bucket.fixture.n_roots(), 0);
        assert_eq!(bucket.fixture.n_containers(), 0);
    }
    let bucket = Bucket::new();
    assert_eq!(
        bucket.import("none.car", false).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    bucket.fake.put("x.car", &sample.car);
    let other = car(&[], &[]);
    bucket.fake.fault_once("x.car", Fault::ReplacedBy(other));
    assert_eq!(
        bucket.import("x.car", false).unwrap_err().kind(),
        ErrorKind::Changed
    );
    bucket.fake.put("x.car", &sample.car);
    bucket
        .fake
        .fault_once("x.car", Fault::Fails(SourceErrorKind::Denied));
    assert_eq!(
        bucket.import("x.car", false).unwrap_err().kind(),
        ErrorKind::Unavailable
    );
}
