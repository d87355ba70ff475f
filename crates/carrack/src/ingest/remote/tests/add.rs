//! `add` of objects.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Bucket;
use crate::error::ErrorKind;
use crate::ingest::LeftOut;
use crate::ingest::add::AddOptions;
use crate::ingest::tests::{bytes, options};
use crate::source::SourceErrorKind;
use crate::source::testing::Fault;
use crate::store::catalog::{ContainerKind, PathKey, SOURCE_FIRST, Validator};

/// Objects of all lengths: empty, of parts of a leaf, whole leaves, and long enough for ranges.
fn put_all_lengths(bucket: &Bucket, chunk: usize) {
    for (n, len) in [0, 1, chunk - 1, chunk, chunk + 1, 5 * chunk + 17]
        .into_iter()
        .enumerate()
    {
        bucket.put(&format!("data/{n} ü%20.bin"), &bytes(n as u64, len));
    }
    bucket.put("data/deep/er/x", &bytes(77, 100));
    bucket.put("data/deep-er/x", &bytes(78, 100));
    bucket.put("data/deep.er", &bytes(79, 100));
    bucket.put("data/big", &bytes(80, (20 << 20) + 5));
}

#[test]
fn a_bucket_comes_to_the_same_root_as_a_folder_of_the_same_files() {
    for (raw, chunk_size) in [(true, 1 << 20), (false, 256 << 10)] {
        let bucket = Bucket::new();
        put_all_lengths(&bucket, chunk_size as usize);
        let profile = options().profile.with_chunk_size(chunk_size).unwrap();
        let profile = profile.with_raw_leaves(raw);
        let options = AddOptions {
            profile,
            ..options()
        };
        let report = bucket.add_with(&["data"], &options).unwrap();
        assert_eq!(report.n_left_out, 0, "{:?}", report.left_out);
        assert_eq!(report.roots[0].cid, bucket.expected("data", &options));
        assert_eq!(report.roots[0].path.to_str(), Some("s3://fake/data"));
        assert_eq!(report.files_hashed, 10);
        assert_eq!(report.bytes_hashed, bucket.fake.take_counts().1);
        // And it can be read back.
        for name in ["data/big", "data/5 ü%20.bin", "data/0 ü%20.bin"] {
            let cid = bucket.add_with(&[name], &options).unwrap().roots[0].cid;
            let bytes = std::fs::read(bucket.fixture.path("same").join(name)).unwrap();
            assert!(bucket.fixture.cat(&cid).unwrap() == bytes, "{name}");
        }
        // A file alone is its own root.
        let report = bucket.add_with(&["data/deep.er"], &options).unwrap();
        assert_eq!(
            report.roots[0].cid,
            bucket.expected("data/deep.er", &options)
        );
        assert_eq!(report.files_unchanged, 1);
    }
}

#[test]
fn containers_remember_source_path_and_version() {
    let bucket = Bucket::new();
    bucket.put("d/a b", b"content");
    let report = bucket.add(&["d"]).unwrap();
    let catalog = bucket.fixture.store().catalog();
    let root = &catalog.roots_of_cid(&report.roots[0].cid).unwrap()[0];
    assert_eq!(root.path, b"s3://fake/d");
    assert_eq!(
        (root.source, root.name.as_slice()),
        (SOURCE_FIRST, b"d".as_slice())
    );
    let members = catalog.members(root.id).unwrap();
    let records = members
        .iter()
        .map(|&id| catalog.container(id).unwrap().unwrap());
    let file = records
        .into_iter()
        .find(|one| one.kind == ContainerKind::File)
        .unwrap();
    assert_eq!(
        (file.source, file.path.as_slice()),
        (SOURCE_FIRST, b"d/a b".as_slice())
    );
    assert_eq!(file.validator, Validator::from(bucket.fake.stamp("d/a b")));
}

#[test]
fn only_objects_that_changed_are_read_again() {
    let bucket = Bucket::new();
    put_all_lengths(&bucket, 1 << 20);
    bucket.add(&["data"]).unwrap();
    bucket.fake.take_counts();
    let again = bucket.add(&["data"]).unwrap();
    assert_eq!(bucket.fake.take_counts(), (0, 0));
    assert_eq!((again.files_hashed, again.files_unchanged), (0, 10));
    bucket.put("data/deep.er", b"new");
    let report = bucket.add(&["data"]).unwrap();
    assert_eq!(bucket.fake.take_counts(), (1, 3));
    assert_eq!(report.roots[0].cid, bucket.expected("data", &options()));
    bucket.fake.delete("data/deep/er/x");
    std::fs::remove_dir_all(bucket.fixture.path("same/data/deep")).unwrap();
    let report = bucket.add(&["data"]).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("data", &options()));
    assert_eq!(bucket.fake.take_counts(), (0, 0));
}

#[test]
fn a_listing_that_tells_only_lengths_is_checked_before_reading() {
    let bucket = Bucket::new();
    bucket.fake.lists_sizes_only.store(true, Ordering::SeqCst);
    put_all_lengths(&bucket, 1 << 20);
    let report = bucket.add(&["data"]).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("data", &options()));
    bucket.fake.take_counts();
    let again = bucket.add(&["data"]).unwrap();
    assert_eq!(
        (again.files_unchanged, bucket.fake.take_counts()),
        (10, (0, 0))
    );
    bucket.put("data/deep.er", &bytes(1234, 100)); // The same length.
    let report = bucket.add(&["data"]).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("data", &options()));
    assert_eq!(bucket.fake.take_counts(), (1, 100));
}

#[test]
fn reads_that_break_off_go_on_at_the_next_byte() {
    let bucket = Bucket::new();
    bucket.put("d/big", &bytes(1, 30 << 20));
    bucket.put("d/small", &bytes(2, 100_000));
    for n in [1, 70_000, 500_000, 3 << 20] {
        bucket.fake.fault_once("d/big", Fault::BreaksAfter(n));
        bucket
            .fake
            .fault_once("d/small", Fault::BreaksAfter(n / 10));
    }
    for kind in [SourceErrorKind::Throttled, SourceErrorKind::Unreachable] {
        bucket.fake.fault_once("d/big", Fault::Fails(kind));
        bucket.fake.fault_once("d/small", Fault::Fails(kind));
    }
    let report = bucket.add(&["d"]).unwrap();
    assert_eq!(report.n_left_out, 0, "{:?}", report.left_out);
    assert_eq!(report.roots[0].cid, bucket.expected("d", &options()));
    assert_eq!(
        bucket.fake.take_counts().1,
        (30 << 20) + 100_000,
        "no byte twice"
    );
}

#[test]
fn an_object_that_changes_while_it_is_read_is_read_again_or_left_out() {
    let bucket = Bucket::new();
    let (old, new) = (bytes(1, 20 << 20), bytes(2, (20 << 20) - 3));
    for name in ["d/small", "d/never"] {
        bucket.put(name, b"old bytes");
    }
    bucket.put("d/big", &old);
    bucket.put("d/stays", b"x");
    bucket
        .fake
        .fault_once("d/big", Fault::ReplacedBy(new.clone()));
    bucket
        .fake
        .fault_once("d/small", Fault::ReplacedBy(b"others".to_vec()));
    for n in 0..3 {
        bucket
            .fake
            .fault_once("d/never", Fault::ReplacedBy(vec![n; 5]));
    }
    let report = bucket.add(&["d"]).unwrap();
    bucket.fixture.write("same/d/big", &new);
    bucket.fixture.write("same/d/small", b"others");
    std::fs::remove_file(bucket.fixture.path("same/d/never")).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("d", &options()));
    assert_eq!(report.n_left_out, 1);
    assert_eq!(report.left_out[0].path.to_str(), Some("s3://fake/d/never"));
    assert!(report.left_out[0].why.contains("changed"));
}

#[test]
fn what_cannot_be_part_of_the_tree_is_left_out_by_name() {
    let bucket = Bucket::new();
    bucket.put("d/ok", b"x");
    bucket.fake.put("d/a", b"an object");
    bucket.fake.put("d/a-1", b"between");
    bucket.fixture.write("same/d/a-1", b"between");
    bucket.put("d/a/b", b"and a folder of the same name");
    for odd in ["d//empty", "d/../up", "d/./here", "d/x/"] {
        bucket.fake.put(odd, b"odd");
    }
    bucket
        .fake
        .put_odd("d/marker/", "a folder marker with content");
    bucket.put("d/gone", b"y");
    bucket.fake.fault_once("d/gone", Fault::Deleted);
    bucket.put("d/denied", b"z");
    bucket
        .fake
        .fault_once("d/denied", Fault::Fails(SourceErrorKind::Denied));
    bucket.fake.put("d/.hidden/x", b"h");
    let report = bucket.add(&["d"]).unwrap();
    for name in ["gone", "denied"] {
        std::fs::remove_file(bucket.fixture.path("same/d").join(name)).unwrap();
    }
    let mut names: Vec<_> = report
        .left_out
        .iter()
        .map(|left| left.path.to_str().unwrap())
        .collect();
    names.sort_unstable();
    let expected = [
        "../up", "./here", "/empty", "a", "denied", "gone", "marker/", "x/",
    ];
    let expected = expected.map(|name| format!("s3://fake/d/{name}"));
    assert_eq!(names, expected);
    assert_eq!((report.n_left_out, report.hidden), (8, 1));
    assert_eq!(report.roots[0].cid, bucket.expected("d", &options()));
}

#[test]
fn a_listing_that_fails_is_an_error_and_nothing_is_lost() {
    let bucket = Bucket::new();
    bucket.put("d/a", b"x");
    for kind in [SourceErrorKind::Denied, SourceErrorKind::Unreachable] {
        bucket.fake.listing_fails(Some(kind));
        let error = bucket.add(&["d"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(error.chain().contains("s3://fake/d"), "{}", error.chain());
    }
    bucket.fake.listing_fails(None);
    assert_eq!(
        bucket.add(&["nothing"]).unwrap_err().kind(),
        ErrorKind::Invalid
    );
    assert_eq!(bucket.fixture.n_roots(), 0);
    bucket.add(&["d"]).unwrap();
}

fn journal_len(bucket: &Bucket) -> u64 {
    let journals = std::fs::read_dir(bucket.fixture.store().journal_dir()).unwrap();
    journals
        .map(|one| one.unwrap().metadata().unwrap().len())
        .sum()
}

#[test]
fn a_big_object_goes_on_where_an_interrupted_add_was() {
    let bucket = Bucket::new();
    bucket.put("d/big", &bytes(5, 64 << 20));
    bucket.fake.hangs_from.store(40 << 20, Ordering::Relaxed);
    let stop = &bucket.stop;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Five parts of eight leaves: their digests, without heads and checksums.
            while journal_len(&bucket) < 40 * 32 + 100 {
                std::thread::sleep(Duration::from_millis(10));
            }
            stop.store(true, Ordering::Relaxed);
        });
        let error = bucket.add(&["d"]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Unavailable);
    });
    stop.store(false, Ordering::Relaxed);
    bucket.fake.hangs_from.store(u64::MAX, Ordering::Relaxed);
    assert_eq!(bucket.fake.take_counts().1, 40 << 20);
    let report = bucket.add(&["d"]).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("d", &options()));
    assert_eq!(
        bucket.fake.take_counts().1,
        24 << 20,
        "only what is missing"
    );
    let journals = std::fs::read_dir(bucket.fixture.store().journal_dir()).unwrap();
    assert_eq!(journals.count(), 0);
}

#[test]
fn many_small_objects_are_read_at_once_and_bounded() {
    let bucket = Bucket::new();
    bucket.fake.latency_ms.store(2, Ordering::SeqCst);
    for n in 0..3000u64 {
        bucket.put(&format!("d/{:02}/{n}", n % 37), &bytes(n, n as usize % 700));
    }
    let report = bucket.add(&["d"]).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("d", &options()));
    let at_once = bucket.fake.n_under_way_max.load(Ordering::Relaxed);
    assert!((16..=64).contains(&at_once), "{at_once}"); // The bounds of the source's limiter.
    let key = PathKey {
        source: SOURCE_FIRST,
        profile: options().profile.fingerprint(),
        path: b"d/00/0".to_vec(),
    };
    assert!(
        bucket
            .fixture
            .store()
            .catalog()
            .path(&key)
            .unwrap()
            .is_some()
    );
}

#[test]
fn several_targets_are_roots_or_wrapped_into_one() {
    let bucket = Bucket::new();
    bucket.put("x/one/a", b"1");
    bucket.put("x/two/b", b"2");
    let report = bucket.add(&["x/one", "x/two"]).unwrap();
    let cids: Vec<_> = report.roots.iter().map(|root| root.cid).collect();
    assert_eq!(
        cids,
        [
            bucket.expected("x/one", &options()),
            bucket.expected("x/two", &options())
        ]
    );
    let wrap = AddOptions {
        wrap: true,
        ..options()
    };
    let report = bucket.add_with(&["x/two", "x/one"], &wrap).unwrap();
    assert_eq!(report.roots[0].cid, bucket.expected("x", &options()));
    let report = bucket.add(&[""]).unwrap();
    assert_eq!(report.roots[0].path.to_str(), Some("s3://fake"));
    let error = bucket.add_with(&["x/one", "x/one"], &wrap).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Invalid);
}

#[test]
fn an_object_that_claims_exbibytes_is_left_out_at_once() {
    for sizes_only in [false, true] {
        let bucket = Bucket::new();
        bucket
            .fake
            .lists_sizes_only
            .store(sizes_only, Ordering::SeqCst);
        bucket.fake.claim("d/long", 7 << 60);
        bucket.fake.claim("d/other", (1 << 47) + 1);
        bucket.fake.put("d/small", b"data");
        let report = bucket.add(&["d"]).unwrap();
        assert_eq!((report.n_left_out, report.files_hashed), (2, 1));
        let is_named = |left: &LeftOut| left.why.contains("128 TiB");
        assert!(report.left_out.iter().all(is_named), "{report:?}");
        assert_eq!(journal_len(&bucket), 0);
        // Known to be longer only when it is asked for itself.
        bucket.fake.claim("small", 7 << 60);
        assert_eq!(bucket.add(&["small"]).unwrap().n_left_out, 1);
    }
}
