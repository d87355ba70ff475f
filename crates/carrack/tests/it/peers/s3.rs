//! Buckets on real S3 servers: what is served out of them is what lies in them.
//!
//! In       versitygw and MinIO behind the faulty proxy.
//! Out      tests of adding and serving through `s3://`.
//! Not here single faults as the source module sees them (its own tests).

use crate::support::s3::Bucket;

/// What the other tests rely on: both dialects take signed requests through the proxy, give
/// ranges, refuse a changed object, and forget a deleted one.
fn is_a_sound_server(bucket: &Bucket) {
    bucket.put("a folder/ü.bin", b"0123456789");
    let whole = bucket.get("a folder/ü.bin", &[]).ok();
    assert_eq!(whole.body, b"0123456789");
    let etag = whole.header("etag").unwrap().to_owned();
    let range = [("Range", "bytes=2-4"), ("If-Match", etag.as_str())];
    let part = bucket.get("a folder/ü.bin", &range);
    assert_eq!((part.status, part.body.as_slice()), (206, &b"234"[..]));
    assert_eq!(bucket.bytes_read("a folder/"), 13);
    bucket.put("a folder/ü.bin", b"9876543210");
    assert_eq!(bucket.get("a folder/ü.bin", &range).status, 412);
    bucket.server.delete("a folder/ü.bin").unwrap();
    assert_eq!(bucket.get("a folder/ü.bin", &[]).status, 404);
    bucket.nothing_is_open();
}

#[test]
fn versitygw_is_a_sound_server_behind_the_proxy() {
    is_a_sound_server(&Bucket::new());
}

#[test]
fn minio_is_a_sound_server_behind_the_proxy() {
    is_a_sound_server(&Bucket::minio());
}

#[test]
fn moto_keeps_keys_that_are_no_paths() {
    let bucket = Bucket::moto();
    for key in ["a//b", "a/../b", "./a", "a/b/", " ", "a+b%2F"] {
        bucket.put(key, key.as_bytes());
        assert_eq!(bucket.get(key, &[]).ok().body, key.as_bytes(), "{key:?}");
    }
}
