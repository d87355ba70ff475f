use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use carrack_formats::Cid;
use futures_util::future::join_all;
use tokio::time::timeout;

use super::testing::{Bench, Deed, Scripted, content, error};
use super::{Lane, Pieces, Planned};
use crate::source::SourceErrorKind;
use crate::source::health::SourceState;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

fn joined(pieces: &Pieces) -> Vec<u8> {
    pieces.parts().concat()
}

fn slow(latency_ms: u64) -> Scripted {
    Scripted {
        latency: Duration::from_millis(latency_ms),
        ..Scripted::default()
    }
}

fn scripted(deeds: impl IntoIterator<Item = Deed>) -> Scripted {
    let source = slow(1);
    source.script.lock().unwrap().extend(deeds);
    source
}

#[tokio::test]
async fn a_range_is_read_once_for_all_who_ask_at_the_same_time() {
    let bench = Bench::new(64 * MIB, slow(20));
    let place = bench.object(1, 100 * MIB);
    let range = 5 * MIB..6 * MIB;
    let reads = (0..64).map(|_| bench.extents.read(&place, range.clone(), Lane::Block));
    for pieces in join_all(reads).await {
        let pieces = pieces.unwrap();
        assert_eq!(pieces.parts().len(), 1, "one slice");
        assert_eq!(joined(&pieces), content(range.clone()));
    }
    assert_eq!((bench.n_requests(), bench.n_bytes()), (1, MIB));
    bench.at_rest().await;
}

#[tokio::test]
async fn a_read_that_overlaps_others_fetches_its_gaps_only() {
    let bench = Bench::new(64 * MIB, slow(10));
    let place = bench.object(1, 100 * MIB);
    let read = |range| bench.extents.read(&place, range, Lane::Block);
    let (a, b, all) = tokio::join!(
        read(MIB..2 * MIB),
        read(4 * MIB..5 * MIB),
        read(0..10 * MIB)
    );
    assert_eq!(joined(&a.unwrap()), content(MIB..2 * MIB));
    assert_eq!(joined(&b.unwrap()), content(4 * MIB..5 * MIB));
    assert_eq!(joined(&all.unwrap()), content(0..10 * MIB));
    assert_eq!(bench.n_bytes(), 10 * MIB, "no byte twice");
    bench.at_rest().await;
}

#[tokio::test]
async fn a_waiter_is_woken_when_its_bytes_are_there_and_not_when_all_are() {
    let bench = Bench::new(256 * MIB, scripted([Deed::HangAfter(2 * MIB)]));
    let place = bench.object(1, 8 * MIB);
    let all = bench.extents.read(&place, 0..8 * MIB, Lane::Stream);
    tokio::pin!(all);
    assert!(timeout(Duration::from_millis(30), &mut all).await.is_err());
    let first = bench.extents.read(&place, 0..MIB, Lane::Block);
    let first = timeout(Duration::from_secs(1), first)
        .await
        .expect("it is there");
    assert_eq!(joined(&first.unwrap()), content(0..MIB));
    assert_eq!(bench.n_requests(), 1);
}

#[tokio::test]
async fn cancelled_first_request_does_not_fail_the_second() {
    let bench = Bench::new(64 * MIB, slow(60));
    let place = bench.object(1, 8 * MIB);
    let first = Box::pin(bench.extents.read(&place, 0..MIB, Lane::Block));
    let second = bench.extents.read(&place, 0..MIB, Lane::Block);
    tokio::pin!(second);
    let first = timeout(Duration::from_millis(10), first);
    let (first, early) = tokio::join!(first, timeout(Duration::from_millis(10), &mut second));
    assert!(first.is_err() && early.is_err());
    assert_eq!(joined(&second.await.unwrap()), content(0..MIB));
    assert_eq!(bench.n_requests(), 1);
}

#[tokio::test]
async fn a_read_that_nobody_wants_any_more_ends_and_a_later_one_starts_afresh() {
    let bench = Bench::new(64 * MIB, scripted([Deed::Hang]));
    let place = bench.object(1, 8 * MIB);
    let read = bench.extents.read(&place, 0..MIB, Lane::Block);
    assert!(timeout(Duration::from_millis(20), read).await.is_err());
    bench.at_rest().await;
    assert_eq!(bench.extents.stats().n_cancelled, 1);
    assert_eq!(bench.extents.inner.table.n_cells(), 0);
    let again = bench.extents.read(&place, 0..MIB, Lane::Block).await;
    assert_eq!(joined(&again.unwrap()), content(0..MIB));
}

#[tokio::test]
async fn a_client_that_comes_back_within_the_linger_finds_its_read_alive() {
    let bench = Bench::new(64 * MIB, slow(60));
    let place = bench.object(1, 8 * MIB);
    let read = || bench.extents.read(&place, 0..MIB, Lane::Block);
    assert!(timeout(Duration::from_millis(20), read()).await.is_err());
    assert_eq!(joined(&read().await.unwrap()), content(0..MIB));
    assert_eq!(bench.n_requests(), 1);
}

#[tokio::test]
async fn a_failure_is_of_those_who_waited_and_the_next_read_tries_anew() {
    let bench = Bench::new(
        64 * MIB,
        scripted([Deed::Fail(error(SourceErrorKind::Changed))]),
    );
    let place = bench.object(1, 8 * MIB);
    let read = || bench.extents.read(&place, 0..MIB, Lane::Block);
    let (a, b) = tokio::join!(read(), read());
    assert_eq!(a.unwrap_err().kind, SourceErrorKind::Changed);
    assert_eq!(b.unwrap_err().kind, SourceErrorKind::Changed);
    assert_eq!(bench.n_requests(), 1, "a change is final");
    assert_eq!(joined(&read().await.unwrap()), content(0..MIB));
    bench.at_rest().await;
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_continued_from_the_next_missing_byte() {
    let cut = Deed::FailAfter(MIB + 100 * KIB, error(SourceErrorKind::Unreachable));
    let bench = Bench::new(64 * MIB, scripted([cut]));
    let place = bench.object(1, 8 * MIB);
    let read = bench.extents.read(&place, 0..4 * MIB, Lane::Stream).await;
    assert_eq!(joined(&read.unwrap()), content(0..4 * MIB));
    let requests = bench.source.requests.lock().unwrap().clone();
    assert_eq!(requests, [0..4 * MIB, MIB + 100 * KIB..4 * MIB]);
    assert_eq!(bench.n_bytes(), 4 * MIB);
}

#[tokio::test]
async fn a_read_larger_than_the_budget_works() {
    let bench = Bench::new(4 * MIB, slow(1));
    let place = bench.object(1, 100 * MIB);
    let read = bench
        .extents
        .read(&place, MIB / 2..20 * MIB, Lane::Stream)
        .await;
    assert!(joined(&read.unwrap()) == content(MIB / 2..20 * MIB));
    bench.at_rest().await;
}

#[tokio::test]
async fn memory_stays_within_the_budget_whatever_is_read() {
    let bench = Bench::new(8 * MIB, slow(2));
    let reads = (0..64).map(|n| {
        let place = bench.object(n % 7, 100 * MIB);
        let start = (n * 37 % 90) * MIB + n;
        let extents = &bench.extents;
        async move { extents.read(&place, start..start + MIB, Lane::Block).await }
    });
    let watch = async {
        loop {
            let stats = bench.extents.stats();
            assert!(
                stats.in_flight_bytes + stats.landed_bytes <= 8 * MIB,
                "{stats:?}"
            );
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
    };
    tokio::select! {
        all = join_all(reads) => assert!(all.iter().all(Result::is_ok)),
        () = watch => {}
    }
    bench.at_rest().await;
    assert!(
        bench.extents.stats().landed_bytes <= 2 * MIB,
        "what nobody wants is trimmed"
    );
}

#[tokio::test]
async fn random_reads_fetch_exactly_what_is_asked() {
    let bench = Bench::new(64 * MIB, slow(2));
    let place = bench.object(1, 4096 * MIB);
    let reads = (0..64_u64).map(|client| {
        let (bench, place) = (&bench, &place);
        async move {
            for n in 0..8 {
                let block = (client * 8 + n).wrapping_mul(2_654_435_761) % 4096;
                let range = block * MIB..(block + 1) * MIB;
                bench.extents.read(place, range, Lane::Block).await.unwrap();
            }
        }
    });
    join_all(reads).await;
    assert_eq!(bench.n_bytes(), 64 * 8 * MIB);
    assert_eq!(bench.extents.stats().served_bytes, 64 * 8 * MIB);
}

#[tokio::test]
async fn neighbours_that_are_announced_are_one_request_and_one_slice_each() {
    let bench = Bench::new(256 * MIB, slow(2));
    let place = bench.object(1, 64 * MIB);
    let mut planned = bench.extents.planned();
    let ranges: Vec<_> = (0..32).map(|n| n * MIB + 200..(n + 1) * MIB).collect();
    let tickets: Vec<_> = ranges
        .iter()
        .map(|range| planned.announce(&place, range.clone()))
        .collect();
    planned.issue();
    for (ticket, range) in tickets.into_iter().zip(ranges) {
        let pieces = ticket.bytes().await.unwrap();
        assert_eq!(joined(&pieces), content(range));
        assert_eq!(pieces.parts().len(), 1);
    }
    // 1, 2, 4 MiB, what is left of the first cell, then a cell each.
    assert_eq!(bench.n_requests(), 4 + 3);
    assert!(bench.n_bytes() <= 32 * MIB);
    bench.at_rest().await;
}

/// What a lone reader has read is not kept for itself: when it has read more than the budget, reads
/// ahead of it still go on side by side.
#[tokio::test]
async fn a_lone_reader_reads_ahead_however_much_it_has_read() {
    let bench = Bench::new(32 * MIB, slow(20));
    let place = bench.object(1, 128 * MIB);
    let mut planned = bench.extents.planned();
    let announce = |planned: &mut Planned, n: u64| planned.announce(&place, n * MIB..(n + 1) * MIB);
    let mut tickets: VecDeque<_> = (0..16).map(|n| announce(&mut planned, n)).collect();
    let (mut next, mut done, mut n_ahead) = (16, 0, 0);
    while let Some(ticket) = tickets.pop_front() {
        ticket.bytes().await.unwrap();
        done += 1;
        if next < 128 {
            tickets.push_back(announce(&mut planned, next));
            next += 1;
        }
        // Bytes behind what was taken are on their way or here.
        n_ahead += u32::from(done > 48 && bench.n_bytes() >= (done + 2) * MIB);
    }
    assert!(n_ahead > 30, "{n_ahead} of 80");
    assert_eq!(bench.n_bytes(), 128 * MIB);
    bench.at_rest().await;
}

#[tokio::test]
async fn small_objects_that_are_announced_are_fetched_side_by_side() {
    let bench = Bench::new(64 * MIB, slow(30));
    let started = Instant::now();
    let mut planned = bench.extents.planned();
    let tickets: Vec<_> = (0..32)
        .map(|n| planned.announce(&bench.object(n, 32 * KIB), 0..32 * KIB))
        .collect();
    planned.issue();
    for ticket in tickets {
        assert_eq!(joined(&ticket.bytes().await.unwrap()), content(0..32 * KIB));
    }
    let took = started.elapsed();
    assert!(took < Duration::from_millis(32 * 30 / 4), "{took:?}");
    bench.at_rest().await;
}

#[tokio::test]
async fn tickets_that_are_dropped_stop_what_nobody_else_wants() {
    let bench = Bench::new(64 * MIB, slow(0));
    *bench.source.always.lock().unwrap() = Some(Deed::Hang);
    let place = bench.object(1, 64 * MIB);
    let mut planned = bench.extents.planned();
    let tickets: Vec<_> = (0..16)
        .map(|n| planned.announce(&place, n * MIB..(n + 1) * MIB))
        .collect();
    planned.issue();
    bench.until("asked", |bench| bench.n_requests() > 3).await;
    drop((tickets, planned));
    bench.at_rest().await;
    assert_eq!(bench.extents.inner.table.n_cells(), 0);
}

#[tokio::test]
async fn a_ticket_whose_bytes_were_evicted_reads_them_again() {
    let bench = Bench::new(4 * MIB, slow(1));
    let place = bench.object(1, 64 * MIB);
    let mut planned = bench.extents.planned();
    let ticket = planned.announce(&place, 0..256 * KIB);
    planned.issue();
    bench
        .until("landed", |bench| bench.extents.stats().landed_bytes > 0)
        .await;
    let other = bench.object(2, 64 * MIB);
    let read = bench.extents.read(&other, 0..32 * MIB, Lane::Block).await;
    assert_eq!(read.unwrap().len() as u64, 32 * MIB);
    assert_eq!(
        joined(&ticket.bytes().await.unwrap()),
        content(0..256 * KIB)
    );
    bench.at_rest().await;
}

#[tokio::test]
async fn clients_that_never_read_do_not_stop_those_who_do() {
    let bench = Bench::new(8 * MIB, slow(1));
    let mut stalled = Vec::new();
    for n in 0..64 {
        let place = bench.object(n, 64 * MIB);
        let mut planned = bench.extents.planned();
        let tickets: Vec<_> = (0..32)
            .map(|n| planned.announce(&place, n * MIB..(n + 1) * MIB))
            .collect();
        planned.issue();
        stalled.push((planned, tickets));
    }
    let place = bench.object(99, 64 * MIB);
    for n in 0..16 {
        let read = bench
            .extents
            .read(&place, n * MIB..(n + 1) * MIB, Lane::Background);
        let read = timeout(Duration::from_secs(5), read)
            .await
            .expect("room is made");
        assert_eq!(joined(&read.unwrap()), content(n * MIB..(n + 1) * MIB));
    }
    drop(stalled);
    bench.at_rest().await;
}

#[tokio::test]
async fn one_stalled_source_does_not_hold_the_others() {
    let bench = Bench::new(16 * MIB, slow(1));
    let hung: Vec<_> = (10..14)
        .map(|id| {
            let source = Arc::new(slow(0));
            *source.always.lock().unwrap() = Some(Deed::Hang);
            super::testing::open_source(id, &source)
        })
        .collect();
    let stuck = hung.iter().flat_map(|source| {
        (0..32_u64).map(|n| {
            let place = super::testing::object(source, u64::from(source.id) * 100 + n, 64 * MIB);
            let extents = &bench.extents;
            async move { extents.read(&place, 0..MIB, Lane::Block).await.map(drop) }
        })
    });
    let good = async {
        let place = bench.object(1, 64 * MIB);
        for n in 0..32 {
            let read = bench
                .extents
                .read(&place, n * MIB..(n + 1) * MIB, Lane::Block);
            timeout(Duration::from_secs(2), read)
                .await
                .expect("not held")
                .unwrap();
        }
    };
    tokio::select! {
        _ = join_all(stuck) => panic!("hung reads do not end so soon"),
        () = async { tokio::time::sleep(Duration::from_millis(20)).await; good.await } => {}
    }
}

#[tokio::test]
async fn what_was_proved_is_known_to_all_who_have_the_same_bytes() {
    let bench = Bench::new(64 * MIB, slow(1));
    let place = bench.object(1, 64 * MIB);
    let cid: Cid = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy"
        .parse()
        .unwrap();
    for range in [0..MIB, 7 * MIB + 5..9 * MIB] {
        let read = || bench.extents.read(&place, range.clone(), Lane::Stream);
        let first = read().await.unwrap();
        assert!(!first.is_proved(&cid));
        first.prove(&cid);
        assert!(read().await.unwrap().is_proved(&cid));
        let other = bench
            .extents
            .read(&place, range.start..range.end - 1, Lane::Stream);
        assert!(!other.await.unwrap().is_proved(&cid), "another range");
        let again = bench
            .extents
            .read_again(&place, range.clone())
            .await
            .unwrap();
        assert!(!again.is_proved(&cid), "other bytes");
        assert!(
            !read().await.unwrap().is_proved(&cid),
            "the old ones are forgotten"
        );
    }
    bench.at_rest().await;
}

#[tokio::test]
async fn close_ends_all_reads_and_leaves_no_task() {
    let bench = Bench::new(64 * MIB, slow(0));
    *bench.source.always.lock().unwrap() = Some(Deed::Hang);
    let place = bench.object(1, 64 * MIB);
    let mut planned = bench.extents.planned();
    let ticket = planned.announce(&place, 0..MIB);
    let reads = (0..20).map(|n| {
        let place = bench.object(n + 2, 64 * MIB);
        let extents = &bench.extents;
        async move { extents.read(&place, 0..MIB, Lane::Block).await }
    });
    let close = async {
        bench.until("asked", |bench| bench.n_requests() > 3).await;
        bench.extents.close(Duration::from_secs(1)).await
    };
    let (ended, ticket, is_closed) = tokio::join!(join_all(reads), ticket.bytes(), close);
    assert!(is_closed);
    assert!(ticket.is_err() && ended.iter().all(Result::is_err));
    assert_eq!(bench.extents.stats().n_fetches, 0);
    assert_eq!(bench.source.n_open.load(Ordering::SeqCst), 0);
    let late = bench.extents.read(&place, 0..MIB, Lane::Block).await;
    assert!(late.unwrap_err().what.contains("stopping"));
    drop(planned);
    bench.at_rest().await;
}

#[tokio::test]
async fn ten_thousand_small_objects_take_a_thirtieth_of_the_sequential_time() {
    const N: u64 = 10_000;
    let bench = Bench::new(256 * MIB, slow(30));
    let started = Instant::now();
    let mut planned = bench.extents.planned();
    let mut window = VecDeque::new();
    for n in 0..N {
        window.push_back(planned.announce(&bench.object(n, 32 * KIB), 0..32 * KIB));
        if window.len() >= 192 {
            let pieces = window.pop_front().unwrap().bytes().await.unwrap();
            assert_eq!(pieces.len() as u64, 32 * KIB);
        }
    }
    planned.issue();
    for ticket in window {
        assert_eq!(ticket.bytes().await.unwrap().len() as u64, 32 * KIB);
    }
    let (took, sequential) = (started.elapsed(), Duration::from_millis(31 * N));
    assert!(took * 30 < sequential, "{took:?}");
    assert_eq!(bench.n_requests(), N);
    assert!(bench.source.n_open_max.load(Ordering::SeqCst) <= 64);
    bench.at_rest().await;
}

#[tokio::test]
async fn a_throttled_source_is_asked_less_and_everything_comes() {
    let bench = Bench::new(64 * MIB, slow(2));
    let mut slow_down = error(SourceErrorKind::Throttled);
    slow_down.retry_after = Some(Duration::from_millis(50));
    let deeds = (0..8).map(|_| Deed::Fail(slow_down.clone()));
    bench.source.script.lock().unwrap().extend(deeds);
    let reads = (0..64).map(|n| {
        let place = bench.object(n, MIB);
        let extents = &bench.extents;
        async move { extents.read(&place, 0..64 * KIB, Lane::Stream).await }
    });
    assert!(join_all(reads).await.iter().all(Result::is_ok));
    assert_eq!(bench.n_requests(), 64 + 8);
    bench.at_rest().await;
}

#[tokio::test]
async fn a_source_that_is_down_fails_at_once_and_comes_back_by_itself() {
    let bench = Bench::new(64 * MIB, slow(1));
    *bench.source.always.lock().unwrap() = Some(Deed::Fail(error(SourceErrorKind::Unreachable)));
    let read = |n| {
        let place = bench.object(n, MIB);
        let extents = &bench.extents;
        async move { extents.read(&place, 0..64 * KIB, Lane::Block).await }
    };
    let mut n = 0;
    while !bench.open.is_down() {
        n += 1;
        assert!(read(n).await.is_err());
    }
    let (asked, started) = (bench.n_requests(), Instant::now());
    let error = read(n + 1).await.unwrap_err();
    assert!(started.elapsed() < Duration::from_millis(20) && error.retry_after.is_some());
    assert_eq!(bench.n_requests(), asked, "it was left alone");
    *bench.source.always.lock().unwrap() = None;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert!(read(n + 2).await.is_ok());
    let is_live = |bench: &Bench| bench.open.state() == SourceState::Live;
    bench.until("live", is_live).await;
    bench.at_rest().await;
}

#[tokio::test]
async fn sixty_four_clients_of_one_object_cost_one_copy_and_get_equal_shares() {
    const SIZE: u64 = 192 * MIB;
    let bench = Bench::new(64 * MIB, slow(10));
    let place = bench.object(1, SIZE);
    let clients = (0..64_u64).map(|client| {
        let (extents, place) = (bench.extents.clone(), Arc::clone(&place));
        tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(client)).await;
            let mut planned = extents.planned();
            let mut window = VecDeque::new();
            for n in 0..SIZE / MIB {
                window.push_back(planned.announce(&place, n * MIB..(n + 1) * MIB));
                if window.len() >= 16 {
                    let pieces = window.pop_front().unwrap().bytes().await.unwrap();
                    assert_eq!(pieces.parts().len(), 1);
                }
            }
            planned.issue();
            for ticket in window {
                ticket.bytes().await.unwrap();
            }
            Instant::now()
        })
    });
    let started = Instant::now();
    let mut ended: Vec<_> = join_all(clients).await;
    ended.sort_by_key(|end| *end.as_ref().unwrap());
    let took = |end: &Result<Instant, _>| end.as_ref().unwrap().duration_since(started);
    let (first, last) = (took(&ended[0]), took(&ended[63]));
    assert!(
        bench.n_bytes() * 10 <= SIZE * 11,
        "{} MiB",
        bench.n_bytes() / MIB
    );
    assert!(
        last.as_secs_f64() <= first.as_secs_f64() * 80.0 / 64.0 + 0.1,
        "{first:?} {last:?}"
    );
    bench.at_rest().await;
}

#[tokio::test]
async fn a_reader_in_order_is_read_ahead_of_on_evidence_and_not_too_far() {
    let bench = Bench::new(64 * MIB, slow(5));
    let place = bench.object(1, 64 * MIB);
    for n in 0..2 {
        let range = n * MIB..(n + 1) * MIB;
        bench
            .extents
            .read(&place, range, Lane::Block)
            .await
            .unwrap();
    }
    assert_eq!(bench.n_requests(), 2, "twice may be chance");
    for n in 2..32 {
        let range = n * MIB..(n + 1) * MIB;
        let read = bench.extents.read(&place, range.clone(), Lane::Block).await;
        assert!(joined(&read.unwrap()) == content(range));
    }
    bench.at_rest().await;
    assert!(bench.n_requests() < 24, "{} requests", bench.n_requests());
    assert!(bench.n_bytes() <= (32 + 8) * MIB);
}
