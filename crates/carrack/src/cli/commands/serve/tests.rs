//! How `serve` ends.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{CLOSE_TIME_MAX, close};
use crate::error::ErrorKind;
use crate::ingest::tests::bytes;
use crate::source::testing::Fault;
use crate::store::block::remote::tests::{BLOCK, Setup, whole_car};

/// Reads hang in every way there is: for a block, for a job on the blocking threads, for a plan.
#[test]
fn hanging_reads_end_with_the_node_and_its_sources_are_closed() {
    let setup = Setup::new();
    let (_, leaves) = setup.add("file", &bytes(1, 3 * BLOCK));
    setup.source.fault("file", Some(Fault::Hangs));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let blocks = &setup.fixture.blocks;
    let (get, get_blocking, plan) = (blocks.clone(), blocks.clone(), blocks.clone());
    let (first, second, third) = (leaves[0], leaves[1], leaves[2]);
    let waiting = [
        runtime.spawn(async move { get.get(&first).await.map(drop) }),
        runtime.spawn_blocking(move || get_blocking.get_blocking(&second).map(drop)),
        runtime.spawn_blocking(move || whole_car(&plan, third).map(drop)),
    ];
    while setup.source.n_under_way.load(Ordering::SeqCst) < 3 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let began = Instant::now();
    close(blocks, runtime);
    // Nothing had to be given up: jobs ended because their reads did.
    assert!(began.elapsed() < CLOSE_TIME_MAX, "{:?}", began.elapsed());
    let watched = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    for job in waiting {
        let ended = watched.block_on(job);
        // Tasks of the runtime may have been dropped before they could tell.
        if let Ok(ended) = ended {
            assert_eq!(ended.unwrap_err().kind(), ErrorKind::Unreachable);
        }
    }
    assert_eq!(setup.source.n_under_way.load(Ordering::SeqCst), 0);
    let is_dropped = Arc::clone(&setup.source.is_dropped);
    drop(setup);
    assert!(is_dropped.load(Ordering::SeqCst), "the source is closed");
}
