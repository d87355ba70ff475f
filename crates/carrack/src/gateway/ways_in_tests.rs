//! What was away and is back is served by whichever way it is asked for.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carrack_bitswap::server::Store as _;
use carrack_formats::Cid;

use super::testing::Node;
use crate::http::limits::Limits;
use crate::ingest::tests::{bytes, options, raw};
use crate::node::swarm::WantedBlocks;
use crate::source::validator::ObjectStamp;
use crate::store::block::remote::tests::{BLOCK, Setup};

/// How somebody asks for a block or for what is below a root.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    Raw,
    RawHead,
    Range,
    Car,
    CarHead,
    EntityBytes,
    WantHave,
    WantBlock,
    Cat,
    Export,
    Verify,
}

const WAYS: [Way; 11] = [
    Way::Raw,
    Way::RawHead,
    Way::Range,
    Way::Car,
    Way::CarHead,
    Way::EntityBytes,
    Way::WantHave,
    Way::WantBlock,
    Way::Cat,
    Way::Export,
    Way::Verify,
];

/// An object of three blocks, its node and all ways to it.
struct Object {
    setup: Arc<Setup>,
    node: Node,
    root: Cid,
    leaves: Vec<Cid>,
    data: Vec<u8>,
    /// What it was when it was added; `None`: it is a file of this machine.
    stamp: Option<ObjectStamp>,
}

/// Runs where blocking is allowed.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

impl Object {
    async fn new(is_here: bool) -> Self {
        let data = bytes(1, 3 * BLOCK);
        let setup = blocking(Setup::new).await;
        let (root, leaves, stamp) = if is_here {
            let file = setup.fixture.write("file", &data);
            let mut options = options();
            options.profile = options.profile.with_chunk_size(BLOCK as u32).unwrap();
            let report = setup.fixture.add_with(&[&file], &options).unwrap();
            let leaves = data.chunks(BLOCK).map(raw).collect();
            (report.roots[0].cid, leaves, None)
        } else {
            let (root, leaves) = setup.add("file", &data);
            (root, leaves, Some(setup.source.stamp("file")))
        };
        let node = Node::start(setup.fixture.blocks.clone(), Limits::default()).await;
        let setup = Arc::new(setup);
        Self {
            setup,
            node,
            root,
            leaves,
            data,
            stamp,
        }
    }

    /// Another process, after this one.
    async fn reopened(self) -> Self {
        let Self { setup, node, .. } = self;
        node.stop().await;
        let setup = blocking(|| Arc::into_inner(setup).unwrap().reopened()).await;
        let node = Node::start(setup.fixture.blocks.clone(), Limits::default()).await;
        let setup = Arc::new(setup);
        Self {
            setup,
            node,
            ..self
        }
    }

    async fn stop(self) {
        self.node.stop().await;
        blocking(move || drop(self.setup)).await;
    }

    fn goes_away(&self) {
        match self.stamp {
            Some(_) => drop(self.setup.source.put("file", bytes(9, 3 * BLOCK))),
            None => std::fs::remove_file(self.setup.fixture.path("file")).unwrap(),
        }
    }

    fn comes_back(&self) {
        match &self.stamp {
            Some(stamp) => self.setup.source.put_back("file", &self.data, stamp),
            None => drop(self.setup.fixture.write("file", &self.data)),
        }
    }

    fn let_interval_pass(&self) {
        self.setup.fixture.store().stale().let_interval_pass();
    }

    /// Whether all that was asked for came.
    async fn is_served(&self, way: Way) -> bool {
        let (leaf, root) = (self.leaves[1], self.root);
        let setup = Arc::clone(&self.setup);
        let blocks = setup.fixture.blocks.clone();
        let expected = self.data[BLOCK..2 * BLOCK].to_vec();
        let raw = format!("/ipfs/{leaf}?format=raw");
        match way {
            Way::Raw => {
                let reply = self.node.get(&raw).await;
                reply.status == 200 && reply.body == expected
            }
            Way::RawHead => self.node.ask("HEAD", &raw, &[]).await.status == 200,
            Way::Range => {
                let fields = [("range", "bytes=5-9")];
                let reply = self.node.ask("GET", &raw, &fields).await;
                reply.status == 206 && reply.body == expected[5..10]
            }
            Way::Car => {
                let path = format!("/ipfs/{root}?format=car");
                let reply = self.node.get(&path).await;
                reply.status == 200 && reply.whole && reply.car().0.len() == 4
            }
            Way::CarHead => {
                let path = format!("/ipfs/{leaf}?format=car");
                self.node.ask("HEAD", &path, &[]).await.status == 200
            }
            Way::EntityBytes => {
                let path = format!("/ipfs/{root}?format=car&entity-bytes={BLOCK}:*");
                let reply = self.node.get(&path).await;
                reply.status == 200 && reply.whole && reply.car().0.len() == 3
            }
            Way::WantHave => WantedBlocks::new(blocks).check(vec![leaf]).await == [true],
            Way::WantBlock => {
                let loaded = WantedBlocks::new(blocks).load(vec![leaf]).await;
                loaded[0].as_ref().is_some_and(|block| *block == expected)
            }
            Way::Cat => {
                let data = self.data.clone();
                let cat = move || setup.fixture.cat(&root);
                blocking(cat).await.is_ok_and(|read| read == data)
            }
            Way::Export => blocking(move || setup.car(root)).await.is_ok(),
            Way::Verify => {
                let check = move || {
                    let location = blocks.locate(leaf.hash()).unwrap()[0];
                    blocks.check(&leaf, location).is_ok()
                };
                blocking(check).await
            }
        }
    }
}

/// The ways by which what was away and is back was not served. `restarts`: another process serves
/// it then; else the time passes for which a failure is believed.
async fn unserved(is_here: bool, restarts: bool) -> Vec<Way> {
    let mut unserved = Vec::new();
    for way in WAYS {
        let mut object = Object::new(is_here).await;
        object.goes_away();
        assert!(!object.is_served(Way::Raw).await);
        assert!(!object.is_served(way).await, "{way:?}");
        object.comes_back();
        if restarts {
            object = object.reopened().await;
        } else {
            object.let_interval_pass();
        }
        if !object.is_served(way).await || !object.is_served(Way::Raw).await {
            unserved.push(way);
        }
        object.stop().await;
    }
    unserved
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_back_is_served_by_every_way_in() {
    assert_eq!(unserved(false, false).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_back_is_served_by_every_way_in_after_a_restart() {
    assert_eq!(unserved(false, true).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_back_is_served_by_every_way_in() {
    assert_eq!(unserved(true, false).await, []);
    assert_eq!(unserved(true, true).await, []);
}

/// All ways at once, by many clients, many times: one request of its source in an interval.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_away_costs_its_source_one_request_an_interval() {
    let object = Arc::new(Object::new(false).await);
    object.goes_away();
    assert!(!object.is_served(Way::Raw).await);
    let ways: Vec<Way> = WAYS.into_iter().filter(|way| *way != Way::Verify).collect();
    let source = &object.setup.source;
    source.stat_latency_ms.store(50, Ordering::SeqCst);
    source.take_requests();
    for interval in 0..3 {
        object.let_interval_pass();
        let clients: Vec<_> = (0..4)
            .flat_map(|_| &ways)
            .map(|way| {
                let (object, way) = (Arc::clone(&object), *way);
                tokio::spawn(async move { (way, object.is_served(way).await) })
            })
            .collect();
        for client in clients {
            let (way, is_served) = client.await.unwrap();
            assert!(!is_served, "{way:?}");
        }
        assert_eq!(source.take_requests(), 1, "{interval}");
    }
    // Back: whoever comes while it is looked at waits for that one look.
    object.comes_back();
    object.let_interval_pass();
    let clients: Vec<_> = ways
        .iter()
        .map(|way| {
            let (object, way) = (Arc::clone(&object), *way);
            tokio::spawn(async move { (way, object.is_served(way).await) })
        })
        .collect();
    for client in clients {
        let (way, is_served) = client.await.unwrap();
        assert!(is_served, "{way:?}");
    }
    assert_eq!(source.n_stats.load(Ordering::SeqCst), 1);
    Arc::into_inner(object).unwrap().stop().await;
}

/// A look goes on when the one who caused it leaves: nobody keeps an object away by coming and
/// going.
#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_ends_no_look() {
    let object = Object::new(false).await;
    object.goes_away();
    assert!(!object.is_served(Way::Raw).await);
    object.comes_back();
    object.let_interval_pass();
    let source = &object.setup.source;
    source.stat_latency_ms.store(100, Ordering::SeqCst);
    let (blocks, leaf) = (object.setup.fixture.blocks.clone(), object.leaves[1]);
    let client = tokio::spawn(async move { blocks.get(&leaf).await });
    while source.n_stats.load(Ordering::SeqCst) == 0 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    client.abort();
    assert!(object.is_served(Way::RawHead).await, "by that look");
    assert_eq!(source.n_stats.load(Ordering::SeqCst), 1);
    object.stop().await;
}
