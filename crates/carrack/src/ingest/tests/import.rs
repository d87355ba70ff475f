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

/// Three blocks in a CAR under the first, the CAR with only the first two, and their CIDs.
fn whole_and_part() -> (Vec<u8>, Vec<u8>, [carrack_formats::Cid; 3]) {
    let data = [bytes(1, 5000), bytes(2, 6000), bytes(3, 7000)];
    let cids = data.each_ref().map(|data| raw(data));
    let blocks: Vec<_> = cids.iter().copied().zip(data).collect();
    let whole = car(&[cids[0]], &blocks);
    (whole, car(&[cids[0]], &blocks[..2]), cids)
}

/// What was copied may be the only copy: the file that it came from may go, and mostly does.
#[test]
fn an_import_in_place_never_takes_the_place_of_a_copy() {
    let (whole, _, cids) = whole_and_part();
    let mut damaged = whole.clone();
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    for (then, options) in [(&whole, import_options()), (&damaged, salvage())] {
        let fixture = Fixture::new();
        let path = fixture.write("x.car", &whole);
        fixture
            .import_copy_at(&path, &whole, &import_options())
            .unwrap();
        fixture.write("x.car", then);
        for _ in 0..2 {
            fixture.import(&path, &options).unwrap();
        }
        assert_eq!((fixture.n_roots(), fixture.n_packs()), (1, 1));
        assert_eq!(fixture.n_containers(), 2);
        std::fs::remove_file(&path).unwrap();
        let fixture = fixture.reopened();
        cids.iter().for_each(|cid| assert!(fixture.has(cid)));
        fixture.remove(&cids[0]);
        assert_eq!((fixture.n_containers(), fixture.n_packs()), (0, 0));
    }
}

#[test]
fn a_copy_stays_until_another_holds_all_of_it() {
    let (whole, part, cids) = whole_and_part();
    let fixture = Fixture::new();
    fixture.import_copy(&whole, &import_options()).unwrap();
    for _ in 0..3 {
        fixture.import_copy(&part, &import_options()).unwrap();
        cids.iter().for_each(|cid| assert!(fixture.has(cid)));
        assert_eq!(
            (fixture.n_roots(), fixture.n_packs()),
            (1, 2),
            "no third one"
        );
    }
    fixture.import_copy(&whole, &import_options()).unwrap();
    assert_eq!((fixture.n_roots(), fixture.n_packs()), (1, 1));
    fixture.import_copy(&part, &import_options()).unwrap();
    fixture.remove(&cids[0]);
    assert_eq!((fixture.n_containers(), fixture.n_packs()), (0, 0));
}

/// A damaged CAR that is salvaged by a copy again holds less than the sound copy.
#[test]
fn a_salvaging_copy_takes_nothing_from_a_sound_one() {
    let (whole, _, cids) = whole_and_part();
    let fixture = Fixture::new();
    fixture.import_copy(&whole, &import_options()).unwrap();
    let mut damaged = whole;
    let last = damaged.len() - 1;
    damaged[last] ^= 1;
    fixture.import_copy(&damaged, &salvage()).unwrap();
    cids.iter().for_each(|cid| assert!(fixture.has(cid)));
    assert_eq!(fixture.n_roots(), 1);
}

/// Nothing is known of what a pack holds that cannot be read: it goes with its root.
#[test]
fn a_copy_whose_pack_is_damaged_is_made_good_by_another() {
    let (whole, _, cids) = whole_and_part();
    let fixture = Fixture::new();
    fixture.import_copy(&whole, &import_options()).unwrap();
    let pack = fixture.only_pack();
    let mut bytes = std::fs::read(&pack).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&pack, &bytes).unwrap();
    assert!(fixture.blocks.get_blocking(&cids[2]).is_err());
    fixture.import_copy(&whole, &import_options()).unwrap();
    assert!(fixture.has(&cids[2]));
    assert_eq!(fixture.n_packs(), 1, "a damaged block is in the new one");
    std::fs::write(fixture.only_pack(), &whole[..whole.len() / 2]).unwrap();
    fixture.import_copy(&whole, &import_options()).unwrap();
    assert!(fixture.has(&cids[2]));
    assert_eq!(fixture.n_packs(), 2, "what a cut one held is not known");
    fixture.remove(&cids[0]);
    assert_eq!((fixture.n_containers(), fixture.n_packs()), (0, 0));
}

#[test]
fn what_a_car_in_place_holds_no_longer_is_counted() {
    let (whole, part, cids) = whole_and_part();
    let fixture = Fixture::new();
    let path = fixture.write("x.car", &whole);
    assert_eq!(fixture.import(&path, &import_options()).unwrap().n_gone, 0);
    fixture.write("x.car", &part);
    let report = fixture.import(&path, &import_options()).unwrap();
    assert_eq!((report.n_blocks, report.n_gone), (2, 1));
    assert!(fixture.has(&cids[1]) && !fixture.has(&cids[2]));
    assert_eq!((fixture.n_roots(), fixture.n_containers()), (1, 1));
    let again = fixture.import(&path, &import_options()).unwrap();
    assert_eq!((again.unchanged, again.n_gone), (true, 0));
    fixture.write("x.car", &whole);
    assert_eq!(fixture.import(&path, &import_options()).unwrap().n_gone, 0);
}

#[test]
fn a_root_that_a_car_names_twice_has_one_row() {
    let (_, _, cids) = whole_and_part();
    let car = car(&[cids[0], cids[0]], &[(cids[0], bytes(1, 5000))]);
    both_ways(&car, &import_options(), |fixture, report| {
        assert_eq!(report.unwrap().roots.len(), 2);
        assert_eq!(fixture.n_roots(), 1);
    });
}

/// Where the sections of a CAR begin, and where it ends.
fn section_starts(car: &[u8]) -> Vec<usize> {
    let mut parser = carrack_formats::car::Parser::new(import_options().limits, 0);
    let mut starts = Vec::new();
    loop {
        let at = usize::try_from(parser.offset()).unwrap();
        match parser.next(&car[at..], true).unwrap() {
            carrack_formats::car::Step::Section(_) => starts.push(at),
            carrack_formats::car::Step::End => return [starts, vec![at]].concat(),
            _ => {}
        }
    }
}

/// A length that is wrong, bytes that are none, zeros: what lies behind them is found by its hash.
#[test]
fn salvage_goes_on_at_the_next_section_that_proves_itself() {
    let data: Vec<_> = (0..6).map(|n| bytes(n, 3000)).collect();
    let blocks: Vec<_> = data.iter().map(|data| (raw(data), data.clone())).collect();
    let good = car(&[blocks[0].0], &blocks);
    let starts = section_starts(&good);
    let (at, next) = (starts[2], starts[3]);
    let mut huge = good.clone();
    huge[at..at + 2].copy_from_slice(&[0xff, 0xff]);
    let mut short = good.clone();
    short[at] ^= 1;
    let mut overwritten = good.clone();
    overwritten[at..next].fill(0xa5);
    let zeros = [&good[..at], &[0; 700], &good[at..]].concat();
    let mut zeroed = good.clone();
    zeroed[at..next].fill(0);
    for (what, damaged, is_lost, n_untold_min) in [
        ("huge", &huge, true, 3000),
        ("short", &short, true, 0),
        ("overwritten", &overwritten, true, 3000),
        ("zeros between", &zeros, false, 700),
        ("zeroed", &zeroed, true, 3000),
        ("v2", &car_v2(&zeroed), true, 3000),
    ] {
        both_ways(damaged, &salvage(), |fixture, report| {
            let report = report.unwrap();
            assert!(report.n_bad > 0, "{what}");
            assert!(report.n_untold >= n_untold_min, "{what}: {report:?}");
            assert!(report.n_untold < 3100, "{what}: {report:?}");
            for (n, (cid, _)) in blocks.iter().enumerate() {
                assert_eq!(fixture.has(cid), n != 2 || !is_lost, "{what}: {n}");
            }
        });
        both_ways(damaged, &import_options(), |_, report| {
            assert_eq!(
                report.unwrap_err().kind(),
                ErrorKind::Verification,
                "{what}"
            );
        });
    }
}

/// A length that leads into a later section, in the middle and at the end.
#[test]
fn salvage_finds_what_a_wrong_length_would_hide() {
    let data: Vec<_> = (0..5).map(|n| bytes(n, 3000)).collect();
    let blocks: Vec<_> = data.iter().map(|data| (raw(data), data.clone())).collect();
    let good = car(&[blocks[0].0], &blocks);
    let at = section_starts(&good)[1];
    let mut long = good;
    long[at + 1] += 20; // 2560 bytes more.
    let fixture = Fixture::new();
    let path = fixture.write("x.car", &long);
    assert!(fixture.import(&path, &salvage()).unwrap().n_bad > 0);
    for (n, (cid, _)) in blocks.iter().enumerate() {
        assert_eq!(fixture.has(cid), n != 1, "{n}");
    }
}

#[test]
fn what_looks_like_sections_and_is_none_is_given_up() {
    let data = bytes(1, 50);
    let good = car(&[raw(&data)], &[(raw(&data), data.clone())]);
    // Everywhere a section of 2 MiB, of which nothing is true.
    let head = [&[0x80, 0x80, 0x80, 0x01][..], &raw(b"none").to_bytes()].concat();
    let noise = head.repeat(60_000);
    let damaged = [good.clone(), vec![0], noise, good].concat();
    let fixture = Fixture::new();
    let path = fixture.write("x.car", &damaged);
    let report = fixture.import(&path, &salvage()).unwrap();
    assert_eq!((report.n_bad, report.n_blocks), (1, 1));
    assert!(report.n_untold > 2_000_000, "{report:?}");
}
