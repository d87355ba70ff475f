//! Marks and their ranges, and whose turn it is to look again.

use proptest::prelude::*;

use super::{
    IN_A_ROW_MAX, LOOKS_MAX, RANGES_MAX, RANGES_TOTAL_MAX, StaleMarks, Standing, look_cost, ranges,
};
use crate::source::validator::{FileStamp, FileTime, ObjectStamp};
use crate::store::catalog::{StaleMark, StaleReason, Validator};
use crate::store::location::{ContainerId, Location};

const ID: ContainerId = ContainerId(1);
const BLOCK: u64 = 1000;

fn version(size: u64) -> Validator {
    Validator::from(FileStamp {
        size,
        ..FileStamp::default()
    })
}

fn block(index: u64) -> Location {
    Location {
        container: ID,
        offset: index * BLOCK,
        len: BLOCK as u32,
        wrapped: false,
    }
}

/// Found by an answer, which tells seconds; known from a listing, which tells more.
#[test]
fn a_version_that_was_found_bad_is_known_by_what_both_tell() {
    let stamp = |etag: &str, nanos| {
        Validator::from(ObjectStamp {
            size: 5,
            etag: Some(etag.into()),
            version: None,
            modified: Some(FileTime { secs: 7, nanos }),
        })
    };
    let mark = StaleMark::new(StaleReason::Widespread, Some(stamp("a", 0)), None);
    let marks = StaleMarks::new([(ID, mark)]);
    assert!(marks.is_refuted(ID, &stamp("a", 5_000_000)));
    assert!(!marks.is_refuted(ID, &stamp("b", 0)));
}

/// One wrong block of a million: it alone is out of service, whatever else is read.
#[test]
fn one_bad_block_of_a_million_takes_no_other_with_it() {
    let (marks, now) = (StaleMarks::default(), version(1));
    marks.mark_damaged(ID, now.clone(), block(500_000));
    for index in (0..1_000_000).filter(|index| *index != 500_000) {
        assert!(!marks.is_out(ID, &now, block(index)), "{index}");
        if index % 100 == 0 {
            assert!(!marks.found_good(ID, &now, block(index)), "one is bad");
        }
    }
    assert!(marks.is_out(ID, &now, block(500_000)));
    assert!(!marks.is_out(ID, &version(2), block(500_000)), "of another");
    assert_eq!(marks.get(ID).unwrap().ranges, [range(500_000, 500_001)]);
    assert!(marks.found_good(ID, &now, block(500_000)));
    assert!(!marks.any());
}

fn range(first: u64, end: u64) -> std::ops::Range<u64> {
    first * BLOCK..end * BLOCK
}

/// Everything wrong, asked for in order or here and there: known after hashing a few dozen.
#[test]
fn a_container_that_was_rewritten_is_found_out_quickly() {
    for step in [1, 7, 104_729] {
        let (marks, now) = (StaleMarks::default(), version(1));
        let mut n_hashed = 0;
        for turn in 0..100_000 {
            let at = block(turn * step % 1_000_000);
            if !marks.is_out(ID, &now, at) {
                n_hashed += 1;
                marks.mark_damaged(ID, now.clone(), at);
            }
        }
        assert!(n_hashed <= u64::from(IN_A_ROW_MAX), "{step}: {n_hashed}");
        let mark = marks.get(ID).unwrap();
        assert_eq!(mark.reason, StaleReason::Widespread);
        assert!(mark.ranges.len() <= RANGES_MAX);
    }
}

/// More bad places than are remembered, sound blocks between them: all is out of service until a
/// look finds a sound block, and what was known then is known still.
#[test]
fn a_sound_block_opens_a_container_again_and_its_known_ranges_stay() {
    let (marks, now) = (StaleMarks::default(), version(1));
    let n_places = RANGES_MAX as u64 + 1;
    for place in 0..n_places {
        assert!(!marks.is_out(ID, &now, block(3 * place)));
        marks.mark_damaged(ID, now.clone(), block(3 * place));
        marks.found_good(ID, &now, block(3 * place + 1));
    }
    // The last place was one too many, and the sound block behind it opened it again.
    assert_eq!(marks.get(ID).unwrap().reason, StaleReason::Mismatch);
    marks.mark_damaged(ID, now.clone(), block(3 * n_places));
    assert_eq!(marks.get(ID).unwrap().reason, StaleReason::Widespread);
    assert!(marks.is_out(ID, &now, block(2)));
    assert!(!marks.claim_look(ID, 1), "it was looked at just now");
    marks.let_interval_pass();
    assert!(marks.claim_look(ID, 1));
    assert!(!marks.claim_look(ID, 1), "once in an interval");
    assert!(!marks.found_good(ID, &now, block(2)));
    assert!(!marks.is_out(ID, &now, block(2)));
    assert!(marks.is_out(ID, &now, block(3)), "known still");
}

/// The last damaged block that is found sound clears the mark; in whatever order, and merged.
#[test]
fn blocks_found_sound_again_leave_nothing_behind() {
    let (marks, now) = (StaleMarks::default(), version(1));
    for index in [4, 6, 5, 9] {
        marks.mark_damaged(ID, now.clone(), block(index));
    }
    assert_eq!(marks.get(ID).unwrap().ranges, [range(4, 7), range(9, 10)]);
    marks.take_changes();
    assert!(!marks.found_good(ID, &now, block(5)));
    let changes = marks.take_changes();
    assert_eq!(changes.len(), 1, "only what changed is saved");
    let left = [range(4, 5), range(6, 7), range(9, 10)];
    assert_eq!(changes[0].1.as_ref().unwrap().ranges, left);
    for (index, is_last) in [(4, false), (9, false), (6, true)] {
        assert_eq!(marks.found_good(ID, &now, block(index)), is_last);
    }
    assert_eq!(marks.take_changes(), [(ID, None)]);
    assert_eq!(marks.read().n_ranges, 0);
}

/// Ranges of 100,000 containers, each with many bad places, stay within their number.
#[test]
fn ranges_of_all_containers_are_bounded() {
    let (marks, now) = (StaleMarks::default(), version(1));
    for container in 0..100_000 {
        for place in 0..8 {
            let at = block(2 * place);
            marks.mark_damaged(ContainerId(container), now.clone(), at);
        }
    }
    let all = marks.all();
    let n_ranges: usize = all.iter().map(|(_, mark)| mark.ranges.len()).sum();
    assert_eq!(all.len(), 100_000);
    assert!(n_ranges <= RANGES_TOTAL_MAX, "{n_ranges}");
    assert!(all.iter().all(|(_, mark)| mark.is_of_bytes()));
    for (id, _) in all {
        marks.clear(id);
    }
    assert_eq!(marks.read().n_ranges, 0);
}

/// However many containers of a source are out of service: so many looks in an interval, and those
/// that find one back do not count.
#[test]
fn looks_at_one_source_are_bounded() {
    let marks = StaleMarks::default();
    let id = |index| ContainerId(index);
    for index in 0..1000 {
        marks.mark(id(index), StaleMark::new(StaleReason::Missing, None, None));
    }
    marks.let_interval_pass();
    let began = std::time::Instant::now();
    let n = (0..1000).filter(|index| marks.claim_look(id(*index), 2));
    let n = n.count() as u128;
    let n_late = began.elapsed().as_millis() / look_cost().as_millis() + 1;
    let n_max = u128::from(LOOKS_MAX);
    assert!(n >= n_max && n <= n_max + n_late, "{n}");
    assert!(marks.claim_look(id(999), 3), "another source has its own");
    marks.let_interval_pass();
    for index in 0..500 {
        assert!(marks.claim_look(id(index), 2), "{index}");
        marks.clear(id(index));
        marks.give_back(2);
    }
}

#[test]
fn a_container_that_went_away_stands_as_a_whole() {
    let marks = StaleMarks::default();
    marks.mark(ID, StaleMark::new(StaleReason::Missing, None, None));
    assert_eq!(marks.standing(ID, block(7)), Standing::Away);
    marks.mark_damaged(ID, version(1), block(3));
    assert_eq!(marks.standing(ID, block(3)), Standing::Damaged);
    assert_eq!(marks.standing(ID, block(4)), Standing::Served);
    assert_eq!(marks.standing(ContainerId(2), block(3)), Standing::Served);
}

proptest! {
    /// Against a set of bytes.
    #[test]
    fn ranges_are_what_was_put_in_and_not_taken_out(
        ops in prop::collection::vec((any::<bool>(), 0..60_u64, 1..9_u64), 0..60),
    ) {
        let (mut all, mut model) = (Vec::new(), [false; 80]);
        for (puts, start, len) in ops {
            let range = start..start + len;
            if puts {
                prop_assert!(ranges::insert(&mut all, range.clone(), 100));
            } else {
                ranges::cut(&mut all, &range, 100);
            }
            for at in range {
                model[at as usize] = puts;
            }
            prop_assert!(all.windows(2).all(|two| two[0].end < two[1].start));
            for at in 0..80 {
                let one = at..at + 1;
                prop_assert_eq!(ranges::meets(&all, &one), model[at as usize]);
                prop_assert_eq!(ranges::holds(&all, &one), model[at as usize]);
            }
        }
    }
}
