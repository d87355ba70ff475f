//! The gateway over a real socket, from objects in a source elsewhere.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use carrack_formats::Cid;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::testing::{Node, Reply};
use crate::http::limits::Limits;
use crate::ingest::tests::bytes;
use crate::source::health::SourceState;
use crate::source::testing::Fault;
use crate::store::block::remote::tests::{BLOCK, Setup};
use crate::store::block::{Scope, State};
use crate::store::catalog::SOURCE_FIRST;

struct Running {
    setup: Setup,
    node: Node,
}

impl Running {
    async fn start() -> Self {
        Self::start_within(Limits::default()).await
    }

    async fn start_within(limits: Limits) -> Self {
        // The store is made and dropped on threads that may block.
        let setup = tokio::task::spawn_blocking(Setup::new).await.unwrap();
        let node = Node::start(setup.fixture.blocks.clone(), limits).await;
        Self { setup, node }
    }

    async fn car(&self, root: &Cid) -> Reply {
        self.node.get(&format!("/ipfs/{root}?format=car")).await
    }

    async fn raw(&self, cid: &Cid) -> Reply {
        self.node.get(&format!("/ipfs/{cid}?format=raw")).await
    }

    /// Nothing is being read any more, or will be soon.
    async fn is_quiet(&self) {
        let source = &self.setup.source;
        for _ in 0..200 {
            if source.n_under_way.load(Ordering::SeqCst) == 0 {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("reads go on for nobody");
    }

    async fn stop(self) {
        self.node.stop().await;
        tokio::task::spawn_blocking(move || drop(self.setup))
            .await
            .unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn cars_and_blocks_of_objects_elsewhere() {
    let running = Running::start().await;
    // More than one window: the plan goes on while what was announced comes.
    let data = bytes(7, 12 << 20);
    let (root, leaves) = running.setup.add("big", &data);
    let reply = running.car(&root).await;
    assert_eq!(reply.status, 200);
    assert!(reply.whole);
    let (cids, roots, _) = reply.car();
    assert_eq!(roots, [root]);
    assert_eq!(cids.len(), leaves.len() + 1 + leaves.len().div_ceil(1024));
    let n_bytes = running.setup.source.n_bytes.load(Ordering::SeqCst);
    assert!(n_bytes <= data.len() as u64 * 21 / 20, "{n_bytes}");
    let reply = running.raw(&leaves[3]).await;
    assert_eq!(
        (reply.status, reply.body),
        (200, data[3 * BLOCK..4 * BLOCK].to_vec())
    );
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_is_down_is_404_for_its_blocks_and_503_for_cars() {
    let running = Running::start().await;
    let (root, leaves) = running.setup.add("file", &bytes(1, 3 * BLOCK));
    let (other, _) = running.setup.add("other", &bytes(2, 3 * BLOCK));
    running.setup.source.fault("file", Some(Fault::DOWN));
    let reply = running.raw(&leaves[0]).await;
    assert_eq!(reply.status, 404);
    assert_eq!(reply.field("cache-control"), Some("no-store"));
    let reply = running.car(&root).await;
    assert_eq!(reply.status, 503);
    assert!(reply.field("retry-after").is_some());
    assert_eq!(
        running.node.get("/readyz").await.status,
        503,
        "nobody said ready"
    );
    assert_eq!(running.node.get("/healthz").await.status, 200);
    running.setup.source.fault("file", None);
    // It is left alone for a second or so, then asked again.
    let mut status = 0;
    for _ in 0..100 {
        status = running.car(&other).await.status;
        if status == 200 {
            break;
        }
        assert_eq!(status, 503);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(status, 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_cannot_be_opened_is_404_for_its_blocks_and_503_for_cars() {
    let running = Running::start().await;
    let (root, leaves) = running.setup.add_locked("file", &bytes(1, 3 * BLOCK), true);
    assert_eq!(running.raw(&leaves[0]).await.status, 404);
    for root in [root, leaves[0]] {
        let reply = running.car(&root).await;
        assert_eq!(reply.status, 503);
        assert!(reply.field("retry-after").is_some());
    }
    let sources = running.setup.fixture.blocks.extents().sources();
    let said = sources.troubles();
    assert!(said[0].ends_with("cannot be opened"), "{said:?}");
    running.stop().await;
}

/// `/readyz` says it as `source status` found it, before any read fails.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_look_at_a_source_finds_is_told_everywhere() {
    let running = Running::start().await;
    running.setup.add("file", &bytes(1, 3 * BLOCK));
    let blocks = running.setup.fixture.blocks.clone();
    let look = async || {
        let blocks = blocks.clone();
        let survey = move || {
            let asks = Scope {
                only: None,
                asks: true,
            };
            let found = blocks.survey(asks, &false.into()).unwrap();
            let it = found.iter().find(|it| it.id == SOURCE_FIRST).unwrap();
            (it.state, blocks.extents().sources().state(it))
        };
        tokio::task::spawn_blocking(survey).await.unwrap()
    };
    let troubles = || blocks.extents().sources().troubles();
    assert_eq!(look().await, (State::Live, State::Live));
    assert!(troubles().is_empty());
    running.setup.source.is_down.store(true, Ordering::SeqCst);
    assert_eq!(look().await, (State::Unreachable, State::Unreachable));
    let said = troubles();
    assert!(
        said.len() == 1 && said[0].ends_with("does not answer"),
        "{said:?}"
    );
    running.setup.source.is_down.store(false, Ordering::SeqCst);
    assert_eq!(look().await, (State::Live, State::Live));
    assert!(troubles().is_empty());
    drop(blocks);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_object_is_404_for_its_blocks_and_409_for_cars() {
    let running = Running::start().await;
    let (root, leaves) = running.setup.add("file", &bytes(1, 3 * BLOCK));
    running.setup.source.put("file", bytes(9, 3 * BLOCK));
    assert_eq!(running.raw(&leaves[0]).await.status, 404);
    assert_eq!(running.car(&root).await.status, 409);
    running.setup.source.delete("file");
    assert_eq!(running.raw(&leaves[1]).await.status, 404);
    running.stop().await;
}

/// GET and HEAD of both forms, HEAD first.
async fn statuses(running: &Running, query: &str, cid: &Cid) -> Vec<u16> {
    let mut statuses = Vec::new();
    for (method, format) in [
        ("HEAD", "raw"),
        ("HEAD", "car"),
        ("GET", "raw"),
        ("GET", "car"),
    ] {
        let path = format!("/ipfs/{cid}?format={format}{query}");
        statuses.push(running.node.ask(method, &path, &[]).await.status);
    }
    statuses
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_memory_of_a_source_that_is_down_is_served_and_head_says_so() {
    let running = Running::start().await;
    let (root, leaves) = running.setup.add("file", &bytes(1, 3 * BLOCK));
    let (_, others) = running.setup.add("other", &bytes(2, 3 * BLOCK));
    assert_eq!(running.car(&root).await.status, 200);
    running.setup.source.fault("file", Some(Fault::DOWN));
    running.setup.source.fault("other", Some(Fault::DOWN));
    let sources = running.setup.fixture.blocks.extents().sources();
    let source = sources.get(SOURCE_FIRST).unwrap();
    // Down for so long that the requests below come before it is asked again.
    let is_down = || match source.state() {
        SourceState::Down { retry_in, .. } => retry_in > Duration::from_secs(3),
        SourceState::Live => false,
    };
    while !is_down() {
        assert_eq!(running.raw(&others[0]).await.status, 404);
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // What the store looked up before is looked up anew.
    running.setup.add("more", &bytes(3, BLOCK));
    assert_eq!(statuses(&running, "", &leaves[0]).await, [200; 4]);
    assert_eq!(
        statuses(&running, "", &others[0]).await,
        [404, 503, 404, 503]
    );
    drop(source);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn head_of_a_car_says_what_get_says_of_a_damaged_range() {
    let running = Running::start().await;
    let data = bytes(1, 3 * BLOCK);
    let (root, leaves) = running.setup.add("file", &data);
    let mut edited = data.clone();
    edited[BLOCK + 5] ^= 1;
    running.setup.source.corrupt("file", edited);
    assert_eq!(running.raw(&leaves[1]).await.status, 404);
    for (range, expected) in [("8192:8200", 409), ("0:*", 409), ("0:9", 200)] {
        let path = format!("/ipfs/{root}?format=car&entity-bytes={range}");
        for method in ["HEAD", "GET"] {
            let status = running.node.ask(method, &path, &[]).await.status;
            assert_eq!(status, expected, "{method} {range}");
        }
    }
    running.stop().await;
}

/// Bytes that are wrong far into an answer cut it: no wrong byte, no clean end.
#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_edited_while_it_is_sent_cuts_the_answer() {
    let running = Running::start().await;
    let data = bytes(7, 12 << 20);
    let (root, _) = running.setup.add("big", &data);
    let mut edited = data.clone();
    let at = edited.len() - 5;
    edited[at] ^= 1;
    let edited_tail = edited[at - 20..].to_vec();
    running.setup.source.corrupt("big", edited);
    let reply = running.car(&root).await;
    assert_eq!(reply.status, 200);
    assert!(!reply.whole);
    let tail = &edited_tail;
    assert!(!reply.body.windows(tail.len()).any(|window| window == tail));
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_leaves_stops_what_was_read_for_it() {
    let running = Running::start().await;
    let data = bytes(7, 12 << 20);
    let (root, _) = running.setup.add("big", &data);
    running.setup.source.fault("big", Some(Fault::Hangs));
    let mut stream = TcpStream::connect(running.node.address).await.unwrap();
    let head = format!("GET /ipfs/{root}?format=car HTTP/1.1\r\nhost: x\r\n\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut byte = [0];
    let read = tokio::time::timeout(Duration::from_millis(300), stream.read(&mut byte)).await;
    assert!(read.is_err(), "it hangs");
    assert!(running.setup.source.reads() > 0);
    drop(stream);
    running.is_quiet().await;
    running.stop().await;
}

/// Many clients at once that each want the same object.
#[tokio::test(flavor = "multi_thread")]
async fn clients_of_the_same_object_share_its_reads() {
    let running = Running::start().await;
    let data = bytes(7, 6 << 20);
    let (root, _) = running.setup.add("big", &data);
    running.setup.source.fault("big", Some(Fault::Slow(20)));
    let running = Arc::new(running);
    let clients: Vec<_> = (0..16)
        .map(|_| {
            let running = Arc::clone(&running);
            tokio::spawn(async move { running.car(&root).await })
        })
        .collect();
    for client in clients {
        let reply = client.await.unwrap();
        assert!(reply.status == 200 && reply.whole);
    }
    let n_bytes = running.setup.source.n_bytes.load(Ordering::SeqCst);
    assert!(
        n_bytes <= data.len() as u64 * 11 / 10,
        "{n_bytes} of {}",
        data.len()
    );
    Arc::into_inner(running).unwrap().stop().await;
}

/// Asks for `paths`, each on a connection of its own, and waits until each has been taken up.
async fn ask_for_all(running: &Running, paths: &[String]) -> Vec<TcpStream> {
    let mut streams = Vec::new();
    for path in paths {
        let mut stream = TcpStream::connect(running.node.address).await.unwrap();
        let head = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        streams.push(stream);
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    streams
}

/// Behind a proxy all clients have one address, which is trusted.
async fn hung_source_leaves_the_rest(limits: Limits, format: &str) {
    let is_bytes = limits.bytes_in_flight_max < Limits::default().bytes_in_flight_max;
    let running = Running::start_within(limits).await;
    let setup = &running.setup;
    let data = bytes(1, 64 * BLOCK);
    let (_, hung) = setup.add("hung", &data);
    // Its nodes lie here.
    let (local, _) = setup.add("root", &bytes(2, 2 * BLOCK));
    let other = setup.other_source();
    let (other_root, others) = setup.add_to(&other, "other", &bytes(3, 2 * BLOCK));
    setup.source.fault("hung", Some(Fault::Hangs));
    let paths: Vec<_> = hung
        .iter()
        .map(|cid| format!("/ipfs/{cid}?format={format}"))
        .collect();
    let mut streams = ask_for_all(&running, &paths).await;
    for path in [
        format!("/ipfs/{local}?format=raw"),
        format!("/ipfs/{local}?format=car&dag-scope=block"),
        format!("/ipfs/{}?format=raw", others[0]),
        format!("/ipfs/{other_root}?format=car"),
    ] {
        let asked = tokio::time::timeout(Duration::from_secs(3), running.node.get(&path));
        let status = asked.await.map(|reply| reply.status);
        assert_eq!(status, Ok(200), "{path} beside {format} of a hung source");
    }
    // Those beyond the share are refused: at once, or when they have waited for long enough.
    let mut answer = [0; 12];
    let last = streams.last_mut().unwrap();
    last.read_exact(&mut answer).await.unwrap();
    let expected = match is_bytes {
        true => b"HTTP/1.1 503",
        false => b"HTTP/1.1 429",
    };
    assert_eq!(&answer, expected);
    // All of it comes back.
    drop(streams);
    setup.source.fault("hung", None);
    let mut status = 0;
    for _ in 0..100 {
        status = running.raw(&hung[63]).await.status;
        if status == 200 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(status, 200);
    running.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_leaves_bytes_in_flight_to_all_others() {
    let limits = Limits {
        bytes_in_flight_max: 32 * BLOCK,
        room_timeout: Duration::from_secs(1),
        ..Limits::default()
    };
    for format in ["raw", "car"] {
        hung_source_leaves_the_rest(limits.clone(), format).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_source_that_hangs_leaves_requests_to_all_others() {
    let limits = Limits {
        requests_max: 64,
        ..Limits::default()
    };
    for format in ["raw", "car"] {
        hung_source_leaves_the_rest(limits.clone(), format).await;
    }
}
