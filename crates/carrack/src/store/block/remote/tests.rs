//! Objects elsewhere that change, go away, break off or lie, and clients that leave.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::unixfs::build::{FileBuilder, Leaf};
use carrack_formats::unixfs::profile::UNIXFS_V1_2025;
use carrack_formats::walk::{Resolved, Scope, WalkLimits};

use crate::error::ErrorKind;
use crate::ingest::sink::{Origin, Sink};
use crate::ingest::tests::{Fixture, bytes, car, import_options, raw};
use crate::ingest::tree::Sum;
use crate::source::testing::{Fault, MemorySource, source_record};
use crate::source::validator::ObjectStamp;
use crate::store::block::Blocks;
use crate::store::car_stream::{CarPlan, CarRequest};
use crate::store::catalog::{
    Batch, ContainerKind, RootKind, SOURCE_FIRST, SourceRecord, StaleReason, Validator,
};
use crate::store::location::Location;

pub(crate) const BLOCK: usize = 8 << 10;

/// A store with one source elsewhere.
pub(crate) struct Setup {
    pub(crate) fixture: Fixture,
    pub(crate) source: Arc<MemorySource>,
}

impl Setup {
    pub(crate) fn new() -> Self {
        let fixture = Fixture::new();
        let source = Arc::new(MemorySource::default());
        let record = source_record("memory", "memory://");
        let mut batch = Batch::new();
        batch.put_source(SOURCE_FIRST, &record);
        fixture.store().commit(batch).unwrap();
        let sources = fixture.blocks.extents().sources();
        sources.put(SOURCE_FIRST, Arc::clone(&source) as _);
        Self { fixture, source }
    }

    /// Another source, whose objects are added by [`Self::add_to`].
    pub(crate) fn other_source(&self) -> Arc<MemorySource> {
        let (id, source) = (SOURCE_FIRST + 7, Arc::new(MemorySource::at("other://")));
        let mut batch = Batch::new();
        batch.put_source(id, &source_record("other", "other://"));
        self.fixture.store().commit(batch).unwrap();
        let sources = self.fixture.blocks.extents().sources();
        sources.put(id, Arc::clone(&source) as _);
        source
    }

    /// As [`Self::add`], to [`Self::other_source`].
    pub(crate) fn add_to(&self, source: &MemorySource, path: &str, data: &[u8]) -> (Cid, Vec<Cid>) {
        let stamp = source.put(path, data);
        self.index(SOURCE_FIRST + 7, path, data, stamp)
    }

    /// The same store, opened by another process that reads the same source.
    pub(crate) fn reopened(self) -> Self {
        let Self { fixture, source } = self;
        let fixture = fixture.reopened();
        let sources = fixture.blocks.extents().sources();
        sources.put(SOURCE_FIRST, Arc::clone(&source) as _);
        Self { fixture, source }
    }

    /// Puts an object and indexes it as a file of blocks of [`BLOCK`] bytes. Its root and leaves.
    pub(crate) fn add(&self, path: &str, data: &[u8]) -> (Cid, Vec<Cid>) {
        let stamp = self.source.put(path, data);
        self.index(SOURCE_FIRST, path, data, stamp)
    }

    /// Indexes what lies in a source that cannot be opened: its row is gone, or (`has_row`) its
    /// credentials are.
    pub(crate) fn add_locked(&self, path: &str, data: &[u8], has_row: bool) -> (Cid, Vec<Cid>) {
        let id = SOURCE_FIRST + 1 + u32::from(has_row);
        if has_row {
            let record = SourceRecord {
                credentials: "web-identity".to_owned(),
                ..source_record("locked", "s3://locked")
            };
            let mut batch = Batch::new();
            batch.put_source(id, &record);
            self.fixture.store().commit(batch).unwrap();
        }
        let stamp = self.source.put("elsewhere", data);
        self.index(id, path, data, stamp)
    }

    fn index(&self, source: u32, path: &str, data: &[u8], stamp: ObjectStamp) -> (Cid, Vec<Cid>) {
        let origin = Origin {
            source,
            base: "".into(),
            shown: b"memory://".to_vec(),
        };
        let mut sink = Sink::of(self.fixture.store(), origin).unwrap();
        let container = sink.new_container();
        let profile = UNIXFS_V1_2025.with_chunk_size(BLOCK as u32).unwrap();
        let (mut builder, mut nodes, mut leaves) =
            (FileBuilder::new(&profile), Vec::new(), Vec::new());
        for (index, chunk) in data.chunks(BLOCK).enumerate() {
            let cid = raw(chunk);
            let location = Location {
                container,
                offset: (index * BLOCK) as u64,
                len: chunk.len() as u32,
                wrapped: false,
            };
            sink.range(&cid, location).unwrap();
            let len = chunk.len() as u64;
            let leaf = Leaf {
                cid,
                file_len: len,
                block_len: len,
            };
            builder.push_leaf(leaf, &mut |cid, block| nodes.push((cid, block)));
            leaves.push(cid);
        }
        let built = builder.finish(&mut |cid, block| nodes.push((cid, block)));
        let mut members = vec![container];
        for (cid, block) in &nodes {
            members.push(sink.node(cid, block).unwrap());
        }
        let validator = Validator::from(stamp);
        let path = Path::new(path);
        sink.container(container, ContainerKind::File, path, &validator);
        let sum = Sum {
            cid: built.cid,
            file_len: data.len() as u64,
            dag_len: built.dag_len,
            n_blocks: leaves.len() as u64,
            n_files: 1,
        };
        sink.root(&built.cid, path, RootKind::Add, 1, sum, members)
            .unwrap();
        sink.finish().unwrap();
        (built.cid, leaves)
    }

    fn get(&self, cid: &Cid) -> Result<Bytes, ErrorKind> {
        let got = self.fixture.blocks.get_blocking(cid);
        got.map_err(|error| error.kind())
    }

    fn reason(&self) -> Option<StaleReason> {
        let marks = self.fixture.blocks.store().stale().all();
        assert!(marks.len() <= 1);
        marks.first().map(|(_, mark)| mark.reason)
    }

    pub(crate) fn car(&self, root: Cid) -> crate::error::Result<Vec<u8>> {
        whole_car(&self.fixture.blocks, root)
    }
}

/// The CAR of all below `root`.
pub(crate) fn whole_car(blocks: &Blocks, root: Cid) -> crate::error::Result<Vec<u8>> {
    let request = CarRequest {
        root,
        resolved: Resolved::root(root),
        scope: Scope::All,
        range: None,
        dups: false,
    };
    let mut plan = CarPlan::new(blocks.clone(), request, WalkLimits::default());
    let mut car = plan.header();
    while let Some(batch) = plan.next_batch_blocking()? {
        car.extend_from_slice(&batch.read()?);
    }
    Ok(car)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Runtime::new().unwrap()
}

#[test]
fn blocks_and_cars_come_from_elsewhere() {
    let setup = Setup::new();
    let data = bytes(1, 5 * BLOCK + 77);
    let (root, leaves) = setup.add("a/file", &data);
    for (cid, chunk) in leaves.iter().zip(data.chunks(BLOCK)) {
        assert_eq!(setup.get(cid).unwrap(), chunk);
        let len = setup.fixture.blocks.stat(cid).unwrap();
        assert_eq!(len, Some(chunk.len() as u64));
    }
    let n_bytes = setup.source.n_bytes.load(Ordering::SeqCst);
    assert_eq!(n_bytes, data.len() as u64, "each byte once");
    assert_eq!(setup.fixture.cat(&root).unwrap(), data);
    let n_bytes = setup.source.n_bytes.load(Ordering::SeqCst);
    assert_eq!(n_bytes, data.len() as u64, "from the cache");
    let car = setup.car(root).unwrap();
    let found = car.windows(BLOCK).any(|window| window == &data[..BLOCK]);
    assert!(found && car.len() > data.len());
}

#[test]
fn an_object_that_was_replaced_is_out_of_service_with_all_its_blocks_and_no_others() {
    let setup = Setup::new();
    let (data, other) = (bytes(1, 3 * BLOCK), bytes(2, 2 * BLOCK));
    let (root, leaves) = setup.add("file", &data);
    let (_, others) = setup.add("other", &other);
    setup.source.put("file", bytes(3, 3 * BLOCK));
    for cid in &leaves {
        assert_eq!(setup.get(cid), Err(ErrorKind::Changed));
        assert_eq!(setup.fixture.blocks.stat(cid).unwrap(), None);
    }
    assert_eq!(setup.reason(), Some(StaleReason::Changed));
    assert_eq!(setup.car(root).unwrap_err().kind(), ErrorKind::Changed);
    assert!(others.iter().all(|cid| setup.get(cid).is_ok()));
    let n_reads = setup.source.reads();
    let _ = setup.get(&leaves[0]);
    assert_eq!(
        setup.source.reads(),
        n_reads,
        "it is left alone for a while"
    );
}

/// A block whose file is gone answers an error, and nothing panics.
#[test]
fn a_block_whose_object_is_gone_is_an_error() {
    let setup = Setup::new();
    let (_, leaves) = setup.add("file", &bytes(1, BLOCK));
    setup.source.delete("file");
    assert_eq!(setup.get(&leaves[0]), Err(ErrorKind::Changed));
    assert_eq!(setup.reason(), Some(StaleReason::Missing));
}

/// An edit of the same length under the same validator: the hash tells, and takes one block.
#[test]
fn bytes_that_are_wrong_under_the_same_validator_take_one_block_out_of_service() {
    let setup = Setup::new();
    let data = bytes(1, 3 * BLOCK);
    let (_, leaves) = setup.add("file", &data);
    let mut edited = data.clone();
    edited[BLOCK + 5] ^= 1;
    setup.source.corrupt("file", edited);
    assert_eq!(setup.get(&leaves[1]), Err(ErrorKind::Changed));
    assert_eq!(setup.reason(), Some(StaleReason::Mismatch));
    assert_eq!(setup.fixture.blocks.stat(&leaves[1]).unwrap(), None);
    assert_eq!(setup.get(&leaves[0]).unwrap(), &data[..BLOCK]);
    assert_eq!(setup.get(&leaves[2]).unwrap(), &data[2 * BLOCK..]);
    assert_eq!(setup.reason(), Some(StaleReason::Mismatch), "still known");
}

/// A damaged range of an object costs its source one look an interval, and none of it once mended.
#[test]
fn a_damaged_range_of_an_object_is_served_again_when_it_is_mended() {
    let setup = Setup::new();
    let data = bytes(1, 3 * BLOCK);
    let (root, leaves) = setup.add("file", &data);
    let mut edited = data.clone();
    edited[BLOCK + 5] ^= 1;
    setup.source.corrupt("file", edited);
    assert_eq!(setup.get(&leaves[1]), Err(ErrorKind::Changed));
    setup.source.take_requests();
    let stale = setup.fixture.blocks.store().stale();
    for _ in 0..5 {
        assert_eq!(setup.get(&leaves[1]), Err(ErrorKind::Changed));
        assert_eq!(setup.fixture.blocks.stat(&leaves[1]).unwrap(), None);
        assert!(setup.car(leaves[1]).is_err());
    }
    assert_eq!(setup.source.take_requests(), 0, "it is left alone");
    for _ in 0..3 {
        stale.let_interval_pass();
        for _ in 0..3 {
            assert_eq!(setup.get(&leaves[1]), Err(ErrorKind::Changed));
        }
        assert_eq!(setup.source.take_requests(), 1, "one look an interval");
    }
    assert_eq!(setup.get(&leaves[0]).unwrap(), &data[..BLOCK]);
    setup.source.corrupt("file", &data);
    stale.let_interval_pass();
    let len = setup.fixture.blocks.stat(&leaves[1]).unwrap();
    assert_eq!(len, Some(BLOCK as u64));
    assert_eq!(setup.reason(), None);
    assert!(setup.car(root).is_ok());
}

#[test]
fn bytes_that_came_wrong_once_are_read_again() {
    let setup = Setup::new();
    let data = bytes(1, BLOCK);
    let (_, leaves) = setup.add("file", &data);
    setup.source.fault_once("file", Fault::Lies);
    assert_eq!(setup.get(&leaves[0]).unwrap(), data);
    assert_eq!(setup.reason(), None);
}

#[test]
fn a_valid_second_copy_is_tried() {
    let setup = Setup::new();
    let data = bytes(1, BLOCK);
    let (_, leaves) = setup.add("file", &data);
    let (_, copies) = setup.add("copy", &data);
    assert_eq!(leaves, copies);
    setup.source.delete("file");
    assert_eq!(
        setup.get(&leaves[0]).unwrap(),
        data,
        "from the other object"
    );
    setup.source.fault("copy", Some(Fault::DOWN));
    setup.fixture.blocks.inner.cache.clear();
    let car = car(&[leaves[0]], &[(leaves[0], data.clone())]);
    setup.fixture.import_copy(&car, &import_options()).unwrap();
    assert_eq!(setup.get(&leaves[0]).unwrap(), data, "from this machine");
}

#[test]
fn a_copy_whose_source_cannot_be_opened_hides_no_good_one() {
    for has_row in [false, true] {
        for bad_first in [false, true] {
            let setup = Setup::new();
            let data = bytes(1, 2 * BLOCK);
            let bad = || setup.add_locked("bad", &data, has_row);
            let bad_before = bad_first.then(bad);
            let (root, leaves) = setup.add("good", &data);
            let bad = bad_before.unwrap_or_else(bad);
            assert_eq!(bad, (root, leaves.clone()));
            assert_eq!(setup.get(&leaves[0]).unwrap(), &data[..BLOCK]);
            let len = setup.fixture.blocks.stat(&leaves[1]).unwrap();
            assert_eq!(len, Some(BLOCK as u64));
            assert!(setup.car(root).is_ok());
            setup.source.delete("good");
            setup.fixture.blocks.inner.cache.clear();
            let car = car(&[leaves[0]], &[(leaves[0], data[..BLOCK].to_vec())]);
            setup.fixture.import_copy(&car, &import_options()).unwrap();
            assert_eq!(setup.get(&leaves[0]).unwrap(), &data[..BLOCK], "from here");
            assert!(setup.car(leaves[0]).is_ok(), "from here");
        }
    }
}

#[test]
fn a_source_that_cannot_be_opened_is_one_that_does_not_answer() {
    for has_row in [false, true] {
        let setup = Setup::new();
        let (root, leaves) = setup.add_locked("bad", &bytes(1, 2 * BLOCK), has_row);
        assert_eq!(setup.get(&leaves[0]), Err(ErrorKind::Unreachable));
        let stat = setup.fixture.blocks.stat(&leaves[0]);
        assert_eq!(stat.unwrap_err().kind(), ErrorKind::Unreachable);
        assert_eq!(setup.car(root).unwrap_err().kind(), ErrorKind::Unreachable);
        assert_eq!(setup.reason(), None);
    }
}

#[test]
fn a_source_that_is_down_makes_no_marks() {
    let setup = Setup::new();
    let (root, leaves) = setup.add("file", &bytes(1, 2 * BLOCK));
    setup.source.fault("file", Some(Fault::DOWN));
    assert_eq!(setup.get(&leaves[0]), Err(ErrorKind::Unreachable));
    assert_eq!(setup.car(root).unwrap_err().kind(), ErrorKind::Unreachable);
    assert_eq!(setup.reason(), None);
}

#[test]
fn a_cancelled_first_request_does_not_fail_the_second() {
    let setup = Setup::new();
    let data = bytes(1, BLOCK);
    let (_, leaves) = setup.add("file", &data);
    setup.source.fault("file", Some(Fault::Slow(300)));
    let blocks = setup.fixture.blocks.clone();
    runtime().block_on(async {
        let (first, second) = (blocks.clone(), blocks.clone());
        let cid = leaves[0];
        let first = tokio::spawn(async move { first.get(&cid).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let second = tokio::spawn(async move { second.get(&cid).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        first.abort();
        assert_eq!(second.await.unwrap().unwrap(), data);
    });
}

#[test]
fn one_slow_read_does_not_hold_the_others() {
    let setup = Setup::new();
    let (_, slow) = setup.add("slow", &bytes(1, BLOCK));
    let (_, fast) = setup.add("fast", &bytes(2, 20 * BLOCK));
    setup.source.fault("slow", Some(Fault::Hangs));
    let blocks = setup.fixture.blocks.clone();
    runtime().block_on(async {
        let waiting = blocks.clone();
        let cid = slow[0];
        let waiting = tokio::spawn(async move { waiting.get(&cid).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        let all = async {
            for cid in &fast {
                blocks.get(cid).await.unwrap();
            }
        };
        tokio::time::timeout(Duration::from_secs(2), all)
            .await
            .unwrap();
        assert!(!waiting.is_finished());
        waiting.abort();
    });
}

#[test]
fn shutdown_ends_reads_and_closes_sources() {
    let setup = Setup::new();
    let (_, leaves) = setup.add("file", &bytes(1, BLOCK));
    setup.source.fault("file", Some(Fault::Hangs));
    let (blocks, cid) = (setup.fixture.blocks.clone(), leaves[0]);
    let waiting = std::thread::spawn(move || blocks.get_blocking(&cid).unwrap_err().kind());
    while setup.source.reads() == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    let sources = Arc::clone(setup.fixture.blocks.extents().sources());
    sources.close(Duration::from_secs(2));
    assert_eq!(waiting.join().unwrap(), ErrorKind::Unreachable);
    assert_eq!(setup.source.n_under_way.load(Ordering::SeqCst), 0);
    assert_eq!(setup.get(&leaves[0]), Err(ErrorKind::Unavailable));
    let is_dropped = Arc::clone(&setup.source.is_dropped);
    drop(setup);
    drop(sources);
    assert!(is_dropped.load(Ordering::SeqCst));
}
