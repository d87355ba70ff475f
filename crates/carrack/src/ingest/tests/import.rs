//! CARs of every kind, in place and copied.

use carrack_formats::cid;
use sha2::Digest as _;

use super::{Fixture, bytes, car, car_v2, import_options, raw, with_hash};
use crate::error::ErrorKind;
use crate::ingest::import::{ImportOptions, ImportReport};

/// Both ways to take a CAR, for what must hold for both.
fn both_ways(
    car: &[u8],
    options: &ImportOptions,
    check: impl Fn(&Fixture, crate::error::Result<ImportReport>),
) {
    let fixture = Fixture::new();
    let path = fixture.write("x.car", car);
    let report = fixture.import(&path, options);
    check(&fixture, report);
    let fixture = Fixture::new();
    let report = fixture.import_copy(car, options);
    check(&fixture, report);
}

fn salvage() -> ImportOptions {
    ImportOptions {
        salvage: true,
        ..import_options()
    }
}

/// SHA-1 names prove little any more: they are taken when asked for, and verified all the same.
#[test]
fn legacy_hashes_are_taken_only_when_asked_for() {
    let twice = sha2::Sha256::digest(sha2::Sha256::digest(b"data"));
    let cid = with_hash(0x56, &twice);
    let car = car(&[cid], &[(cid, b"data".to_vec())]);
    both_ways(&car, &import_options(), |fixture, report| {
        assert_eq!(report.unwrap_err().kind(), ErrorKind::Verification);
        assert!(!fixture.has(&cid));
    });
    let allowed = ImportOptions {
        legacy_hashes: true,
        ..import_options()
    };
    both_ways(&car, &allowed, |fixture, report| {
        assert_eq!(report.unwrap().n_blocks, 1);
        assert!(fixture.has(&cid));
    });
}

#[test]
fn blocks_of_every_kind_are_served() {
    let data = bytes(1, 5000);
    let cids = [
        raw(&data),
        with_hash(0x13, &sha2::Sha512::digest(&data)),
        with_hash(0x1e, blake3::hash(&data).as_bytes()),
        with_hash(0x12, &sha2::Sha256::digest(&data)[..20]),
        raw(b""),
    ];
    let identity = with_hash(0, b"inline");
    let mut blocks: Vec<_> = cids.iter().map(|cid| (*cid, data.clone())).collect();
    blocks[4].1.clear();
    blocks.push((identity, b"inline".to_vec()));
    let v1 = car(&cids, &blocks);
    for car in [v1.clone(), car_v2(&v1)] {
        both_ways(&car, &import_options(), |fixture, report| {
            let report = report.unwrap();
            assert_eq!(report.n_blocks, 6);
            assert!(report.roots_missing.is_empty());
            let roots: Vec<_> = report.roots.iter().map(|root| root.cid).collect();
            assert_eq!(roots, cids);
            for (cid, data) in &blocks {
                assert_eq!(fixture.blocks.get_blocking(cid).unwrap(), data);
                let len = fixture.blocks.stat(cid).unwrap();
                assert_eq!(len, Some(data.len() as u64));
                if *cid != cids[0] {
                    continue;
                }
                let once_more = fixture.blocks.try_get(cid).unwrap();
                assert!(once_more.is_none_or(|got| got == data));
            }
        });
    }
}

#[test]
fn a_car_without_roots_can_be_listed_and_dropped() {
    let data = bytes(1, 50);
    let car = car(&[], &[(raw(&data), data.clone())]);
    both_ways(&car, &import_options(), |fixture, report| {
        assert!(report.unwrap().roots.is_empty());
        assert!(fixture.has(&raw(&data)));
        assert_eq!(fixture.n_roots(), 1);
        fixture.remove(&cid::empty_identity());
        assert!(!fixture.has(&raw(&data)));
        assert_eq!(fixture.n_containers(), 0);
    });
}

#[test]
fn a_root_that_is_not_in_the_car_is_named() {
    let data = bytes(1, 50);
    let roots = [raw(b"elsewhere"), raw(&data), with_hash(0, b"inline")];
    let car = car(&roots, &[(raw(&data), data.clone())]);
    both_ways(&car, &import_options(), |_, report| {
        assert_eq!(report.unwrap().roots_missing, [raw(b"elsewhere")]);
    });
    both_ways(
        &super::car(&[], &[]),
        &import_options(),
        |fixture, report| {
            assert_eq!(report.unwrap().n_blocks, 0);
            assert_eq!(fixture.n_roots(), 1);
        },
    );
}

#[test]
fn a_second_import_reads_only_the_header_and_restores_a_dropped_root() {
    let fixture = Fixture::new();
    let data = [bytes(1, 5000), bytes(2, 6000)];
    let cids = data.each_ref().map(|data| raw(data));
    let blocks: Vec<_> = cids.iter().copied().zip(data.clone()).collect();
    let path = fixture.write("x.car", &car(&cids, &blocks));
    let first = fixture.import(&path, &import_options()).unwrap();
    fixture.remove(&cids[1]);
    assert_eq!(fixture.n_roots(), 1);
    let second = fixture.import(&path, &import_options()).unwrap();
    assert!(!first.unchanged && second.unchanged);
    assert_eq!(
        (second.n_blocks, second.bytes),
        (first.n_blocks, first.bytes)
    );
    assert_eq!((second.roots.len(), fixture.n_roots()), (2, 2));
    assert_eq!(fixture.n_containers(), 1);
    cids.iter().for_each(|cid| fixture.remove(cid));
    let third = fixture.import(&path, &import_options()).unwrap();
    assert!(!third.unchanged, "nothing is known of it any more");
    assert!(fixture.has(&cids[0]) && fixture.has(&cids[1]));
}

#[test]
fn a_car_that_does_not_verify_leaves_nothing() {
    let data = [bytes(1, 50), bytes(2, 60), bytes(3, 70)];
    let mut blocks: Vec<_> = data.iter().map(|data| (raw(data), data.clone())).collect();
    blocks[1].1[7] ^= 1;
    let flipped = car(&[raw(&data[0])], &blocks);
    blocks[1].1[7] ^= 1;
    let good = car(&[raw(&data[0])], &blocks);
    let cut = &good[..good.len() - 1];
    for bad in [&flipped, cut, &car_v2(&good)[..good.len()], b""] {
        both_ways(bad, &import_options(), |fixture, report| {
            assert_eq!(report.unwrap_err().kind(), ErrorKind::Verification);
            assert!(!fixture.has(&raw(&data[0])));
            assert_eq!((fixture.n_roots(), fixture.n_packs()), (0, 0));
            assert_eq!(fixture.n_containers(), 0);
        });
    }
    both_ways(&flipped, &salvage(), |fixture, report| {
        let report = report.unwrap();
        assert_eq!((report.n_bad, report.n_blocks), (1, 2));
        assert!(fixture.has(&raw(&data[0])) && !fixture.has(&raw(&data[1])));
    });
    both_ways(cut, &salvage(), |fixture, report| {
        assert_eq!(report.unwrap().n_bad, 1);
        assert!(fixture.has(&raw(&data[1])) && !fixture.has(&raw(&data[2])));
    });
    both_ways(&good[..3], &salvage(), |fixture, report| {
        assert_eq!(report.unwrap_err().kind(), ErrorKind::Verification);
        assert_eq!(fixture.n_roots(), 0);
    });
}

/// What was salvaged is not taken for sound by the next import.
#[test]
fn a_salvaged_car_is_verified_again() {
    let fixture = Fixture::new();
    let data = bytes(1, 50);
    let blocks = [(raw(&data), data.clone()), (raw(b"right"), b"wrong".into())];
    let path = fixture.write("x.car", &car(&[raw(&data)], &blocks));
    assert_eq!(fixture.import(&path, &salvage()).unwrap().n_bad, 1);
    let error = fixture.import(&path, &import_options()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Verification);
    assert!(fixture.has(&raw(&data)), "what was salvaged stays");
    assert_eq!(fixture.import(&path, &salvage()).unwrap().n_bad, 1);
    assert_eq!((fixture.n_roots(), fixture.n_containers()), (1, 1));
}

#[test]
fn padding_is_taken_only_if_asked_for() {
    let data = bytes(1, 50);
    let good = car(&[raw(&data)], &[(raw(&data), data.clone())]);
    let mut options = import_options();
    options.limits.allow_zero_padding = true;
    for n_zeros in [1, 100, 300_000] {
        let padded = [good.clone(), vec![0; n_zeros]].concat();
        both_ways(&padded, &import_options(), |_, report| {
            assert_eq!(report.unwrap_err().kind(), ErrorKind::Verification);
        });
        both_ways(&padded, &options, |fixture, report| {
            assert_eq!(report.unwrap().n_blocks, 1);
            assert!(fixture.has(&raw(&data)));
        });
        let broken = [padded, vec![1]].concat();
        both_ways(&broken, &options, |_, report| {
            assert_eq!(report.unwrap_err().kind(), ErrorKind::Verification);
        });
    }
}

/// A CARv1 cannot tell a cut between sections, a CARv2 can, also one that is a stream.
#[test]
fn a_carv2_that_ends_early_is_cut_wherever_it_ends() {
    let data = [bytes(1, 50), bytes(2, 60)];
    let blocks: Vec<_> = data.iter().map(|data| (raw(data), data.clone())).collect();
    let whole = car_v2(&car(&[raw(&data[0])], &blocks));
    let between = whole.len() - (1 + 36 + 60);
    for cut in [between, between + 1, 60, 51, 50, 12, 11] {
        both_ways(&whole[..cut], &import_options(), |fixture, report| {
            assert_eq!(report.unwrap_err().kind(), ErrorKind::Verification);
            assert_eq!(fixture.n_packs(), 0);
        });
    }
    let indexed = [whole, vec![0xff; 1000]].concat();
    both_ways(&indexed, &import_options(), |_, report| {
        assert_eq!(report.unwrap().n_blocks, 2);
    });
}

#[test]
fn sections_of_all_lengths_mix() {
    let mut random = bytes(7, 4000).into_iter();
    let mut blocks = Vec::new();
    for (seed, size) in (0..2000).zip(random.by_ref()) {
        let len = match size % 16 {
            0 => 200_000 + usize::from(size),
            1 => 0,
            _ => usize::from(size),
        };
        let data = bytes(seed, len);
        blocks.push((raw(&data), data));
    }
    let car = car(&[blocks[0].0], &blocks);
    both_ways(&car, &import_options(), |fixture, report| {
        assert_eq!(report.unwrap().n_blocks, 2000);
        for (cid, data) in &blocks {
            assert_eq!(fixture.blocks.get_blocking(cid).unwrap(), data);
        }
    });
}

#[test]
fn a_copy_again_takes_the_place_of_the_first() {
    let fixture = Fixture::new();
    let data = bytes(1, 50);
    let car = car(&[raw(&data)], &[(raw(&data), data.clone())]);
    for _ in 0..3 {
        fixture.import_copy(&car, &import_options()).unwrap();
        assert!(fixture.has(&raw(&data)));
        assert_eq!((fixture.n_roots(), fixture.n_packs()), (1, 1));
    }
}
