//! What a plan tells of the memory that it takes.

use carrack_formats::walk::{Resolved, Scope, WalkLimits};
use carrack_formats::{Cid, cid, verify};

use super::{CarPlan, CarRequest, Next};
use crate::error::{Error, ErrorKind};
use crate::ingest::tests::{Fixture, car, import_options, raw};

/// A dag-cbor list of links.
#[expect(clippy::big_endian_bytes, reason = "CBOR is in network order")]
fn list(links: &[Cid]) -> (Cid, Vec<u8>) {
    let mut data = vec![0x9a];
    data.extend_from_slice(&u32::try_from(links.len()).unwrap().to_be_bytes());
    for link in links {
        let bytes = link.to_bytes();
        data.extend_from_slice(&[0xd8, 42, 0x58, u8::try_from(bytes.len() + 1).unwrap(), 0]);
        data.extend_from_slice(&bytes);
    }
    let digest = verify::sha256(&data);
    (
        cid::from_sha256(::cid::Version::V1, cid::DAG_CBOR, &digest),
        data,
    )
}

/// Some nodes of 100 KiB below each other are one batch, and all open at the end of it.
#[test]
fn a_walk_asks_for_what_it_holds_within_a_batch() {
    let leaf = raw(b"leaf");
    let mut blocks = vec![(leaf, b"leaf".to_vec())];
    let mut root = leaf;
    for _ in 0..8 {
        let mut links = vec![leaf; 2500];
        links[0] = root;
        let (cid, data) = list(&links);
        blocks.push((cid, data));
        root = cid;
    }
    let fixture = Fixture::new();
    let bytes = car(&[root], &blocks);
    fixture.import_copy(&bytes, &import_options()).unwrap();
    let plan = || {
        let request = CarRequest {
            root,
            resolved: Resolved::root(root),
            scope: Scope::All,
            range: None,
            dups: false,
        };
        CarPlan::new(fixture.blocks.clone(), request, WalkLimits::default())
    };
    let mut told = Vec::new();
    let first = plan().next_batch_within(&mut |len| {
        told.push(len);
        Ok(())
    });
    let Ok(Next::Batch(all)) = first else {
        panic!("a batch");
    };
    assert_eq!(all.n_blocks(), 9);
    assert!(told.len() >= 4 && told.is_sorted(), "{told:?}");

    let mut bounded = plan();
    let mut within = |len| match len > 300_000 {
        true => Err(Error::new(ErrorKind::Limit, "too much")),
        false => Ok(()),
    };
    let Ok(Next::Batch(before)) = bounded.next_batch_within(&mut within) else {
        panic!("what comes before");
    };
    assert!(before.n_blocks() < 9);
    let error = bounded.next_batch_within(&mut within).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Limit);
}
