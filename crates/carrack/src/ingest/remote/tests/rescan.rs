//! `rescan` of folders and buckets.

use std::sync::atomic::AtomicBool;

use carrack_formats::Cid;

use super::Bucket;
use crate::ingest::rescan::{Rescanned, rescan};
use crate::ingest::tests::{Fixture, bytes, import_options, options, raw};
use crate::ingest::{Changes, Quiet};

fn again(fixture: &Fixture) -> Rescanned {
    let root = fixture.store().catalog().roots().unwrap().pop().unwrap();
    let sources = fixture.blocks.extents().sources();
    let (options, stop) = (import_options(), AtomicBool::new(false));
    rescan(fixture.store(), sources, &root, &options, &mut Quiet, &stop).unwrap()
}

fn changes(added: u64, changed: u64, moved: u64, vanished: u64) -> Changes {
    Changes {
        added,
        changed,
        moved,
        vanished,
    }
}

#[test]
fn a_bucket_that_changed_becomes_a_new_root_and_the_old_one_keeps_its_blocks() {
    let bucket = Bucket::new();
    for name in ["stays", "edited", "goes", "moves", "deep/copied"] {
        bucket.put(&format!("d/{name}"), &bytes(1, 5000 + name.len()));
    }
    let before = bucket.add(&["d"]).unwrap().roots[0].cid;
    bucket.fake.take_counts();
    let same = again(&bucket.fixture);
    assert_eq!(
        (same.changes, same.report.roots[0].cid),
        (changes(0, 0, 0, 0), before)
    );
    bucket.put("d/new", b"new");
    bucket.put("d/edited", b"other");
    for (name, to) in [("moves", "moved"), ("goes", "")] {
        let from = bucket.fixture.path("same/d").join(name);
        if to.is_empty() {
            bucket.fake.delete("d/goes");
            std::fs::remove_file(from).unwrap();
        } else {
            bucket.fake.rename("d/moves", "d/moved");
            std::fs::rename(from, bucket.fixture.path("same/d/moved")).unwrap();
        }
    }
    bucket.fake.copy("d/deep/copied", "d/copy");
    let copied = std::fs::read(bucket.fixture.path("same/d/deep/copied")).unwrap();
    bucket.fixture.write("same/d/copy", &copied);
    let done = again(&bucket.fixture);
    assert_eq!(done.changes, changes(2, 1, 1, 1));
    let after = done.report.roots[0].cid;
    assert_eq!(after, bucket.expected("d", &options()));
    assert_eq!(bucket.fake.take_counts(), (2, 8), "what moved is not read");
    // The blocks of what moved are served from where they are now; what went is gone.
    assert!(
        bucket
            .fixture
            .blocks
            .get_blocking(&raw(&bytes(1, 5005)))
            .is_ok()
    );
    assert!(
        bucket
            .fixture
            .blocks
            .get_blocking(&raw(&bytes(1, 5011)))
            .is_ok()
    );
    assert!(
        bucket
            .fixture
            .blocks
            .get_blocking(&raw(&bytes(1, 5004)))
            .is_err()
    );
    assert_eq!(bucket.fixture.n_roots(), 2, "the old root stays");
    assert_eq!(again(&bucket.fixture).changes, changes(0, 0, 0, 0));
    let served = 5005 + 5011;
    assert_eq!(
        bucket.fake.take_counts().1,
        served,
        "what was asked for above"
    );
}

#[test]
fn a_folder_that_changed_is_gone_through_and_moves_are_not_read() {
    let fixture = Fixture::new();
    for name in ["stays", "edited", "goes", "moves"] {
        fixture.write(&format!("d/{name}"), &bytes(2, 3000 + name.len()));
    }
    fixture.add(&[&fixture.path("d")]);
    fixture.write("d/new", b"new");
    fixture.write("d/edited", b"other");
    std::fs::remove_file(fixture.path("d/goes")).unwrap();
    std::fs::create_dir(fixture.path("d/sub")).unwrap();
    std::fs::rename(fixture.path("d/moves"), fixture.path("d/sub/moved")).unwrap();
    let done = again(&fixture);
    assert_eq!(done.changes, changes(1, 1, 1, 1));
    assert_eq!(
        (done.report.files_hashed, done.report.files_unchanged),
        (2, 2)
    );
    assert!(fixture.has(&raw(&bytes(2, 3005))));
    let other = Fixture::new();
    let fresh = other.add(&[&fixture.path("d")]).roots[0].cid;
    assert_eq!(done.report.roots[0].cid, fresh);
    assert_eq!(again(&fixture).changes, changes(0, 0, 0, 0));
}

/// A folder that a server does not list this once is not taken for empty.
#[test]
fn what_lies_in_a_folder_that_cannot_be_listed_has_not_vanished() {
    let bucket = Bucket::new();
    for path in ["d/a", "d/sub/b", "d/subway"] {
        bucket.put(path, path.as_bytes());
    }
    bucket.add(&["d"]).unwrap();
    bucket.fake.delete("d/sub/b");
    bucket.fake.delete("d/subway");
    bucket.fake.put_odd("d/sub", "the server answers 403");
    let done = again(&bucket.fixture);
    assert_eq!(
        (done.changes, done.report.n_left_out),
        (changes(0, 0, 0, 1), 1)
    );
}

#[test]
fn what_is_found_where_it_was_or_elsewhere_is_served_at_once() {
    let bucket = Bucket::new();
    let data = bytes(3, 3 << 20);
    // One of them each time: what was served lies in the cache.
    let blocks: Vec<Cid> = data.chunks(1 << 20).map(raw).collect();
    bucket.put("d/a", &data);
    bucket.add(&["d"]).unwrap();
    let get = |cid| bucket.fixture.blocks.get_blocking(cid);
    // It is away when a client asks, and comes back: the next add says so.
    bucket.fake.rename("d/a", "elsewhere");
    assert!(get(&blocks[0]).is_err());
    bucket.fake.rename("elsewhere", "d/a");
    assert!(
        get(&blocks[0]).is_err(),
        "a failure is believed for a while"
    );
    assert_eq!(bucket.add(&["d"]).unwrap().files_unchanged, 1);
    assert!(get(&blocks[0]).is_ok());
    // It moves while it is served: a rescan finds it.
    bucket.fake.rename("d/a", "d/b");
    assert_eq!(again(&bucket.fixture).changes, changes(0, 0, 1, 0));
    assert!(get(&blocks[1]).is_ok());
    // It moves, a client finds it gone, and then it is found.
    bucket.fake.rename("d/b", "d/c");
    assert!(get(&blocks[2]).is_err());
    assert_eq!(again(&bucket.fixture).changes, changes(0, 0, 1, 0));
    assert!(get(&blocks[2]).is_ok());
    assert!(bucket.fixture.blocks.store().stale().all().is_empty());
    // It is damaged under its version, found so, and mended: only its bytes can tell.
    let block = raw(&bytes(4, 100_000));
    bucket.put("e/a", &bytes(4, 100_000));
    let before = bucket.add(&["e"]).unwrap().roots[0].cid;
    bucket.fake.corrupt("e/a", bytes(5, 100_000));
    assert!(get(&block).is_err());
    bucket.fake.put_again("e/a", bytes(4, 100_000));
    let added = bucket.add(&["e"]).unwrap();
    assert_eq!((added.files_hashed, added.roots[0].cid), (1, before));
    assert!(get(&block).is_ok());
}
