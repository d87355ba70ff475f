//! The gateway over a real socket, from a store in memory.

use carrack_formats::Cid;
use carrack_formats::cid::{DAG_CBOR, JSON, RAW};
use serde_json::Value;

use super::testing::{Fault, Memory, Node, Reply};
use crate::cli::output::tests::Shared;
use crate::http::ServeOptions;
use crate::http::access_log::{AccessLog, LogFormat};
use crate::http::limits::Limits;

const ABSENT: &str = "bafkreigh2akiscaildcqabsyg3dfr6chu3fgpregiymsck7e7aqa4s52zy";
const RAW_FIELD: (&str, &str) = ("accept", "application/vnd.ipld.raw");
const CAR_FIELD: (&str, &str) = ("accept", "application/vnd.ipld.car");
const META_FIELD: (&str, &str) = (
    "accept",
    "application/vnd.ipld.car; version=1; meta=eof+json",
);

async fn node(memory: &Memory) -> Node {
    Node::start(memory.clone(), Limits::default()).await
}

/// A list of `n` leaves of 1000 bytes, and the last leaf.
fn list_of(memory: &Memory, n: u32) -> (Cid, Cid) {
    let mut leaves = Vec::new();
    for index in 0..n {
        let mut data = vec![b'x'; 1000];
        data[..4].copy_from_slice(&index.to_le_bytes());
        leaves.push(memory.put(RAW, data));
    }
    (memory.put_list(&leaves), *leaves.last().unwrap())
}

fn refused(reply: &Reply, status: u16) {
    assert_eq!(reply.status, status, "{reply:?}");
    assert_eq!(reply.field("x-content-type-options"), Some("nosniff"));
    assert_eq!(
        reply.field("content-type"),
        Some("text/plain; charset=utf-8")
    );
    assert!(!reply.text().contains("/secret"), "{}", reply.text());
    let permanent = matches!(status, 400 | 405 | 406);
    assert_eq!(
        reply.field("cache-control"),
        (!permanent).then_some("no-store")
    );
}

#[tokio::test]
async fn what_is_not_here_is_404_and_412_if_only_cached() {
    let node = node(&Memory::default()).await;
    for query in [
        "?format=raw",
        "?format=car",
        "/a/b?format=raw",
        "/a/b?format=car",
    ] {
        let path = format!("/ipfs/{ABSENT}{query}");
        let reply = node.get(&path).await;
        refused(&reply, 404);
        assert!(reply.text().contains(ABSENT));
        let cached = [("cache-control", "only-if-cached")];
        refused(&node.ask("GET", &path, &cached).await, 412);
        assert_eq!(node.ask("HEAD", &path, &[]).await.status, 404);
        assert_eq!(node.ask("HEAD", &path, &cached).await.status, 412);
        // An entity tag says nothing about what is here.
        assert_eq!(
            node.ask("GET", &path, &[("if-none-match", "*")])
                .await
                .status,
            404
        );
    }
}

#[tokio::test]
async fn the_probe_is_answered_from_the_cid() {
    let node = node(&Memory::default()).await;
    for method in ["GET", "HEAD"] {
        let raw = node.ask(method, "/ipfs/bafkqaaa?format=raw", &[]).await;
        assert_eq!((raw.status, raw.field("content-length")), (200, Some("0")));
        assert_eq!(
            node.ask(method, "/ipfs/bafkqaaa", &[CAR_FIELD])
                .await
                .status,
            200
        );
    }
    let car = node.get("/ipfs/bafkqaaa?format=car").await;
    let (cids, roots, _) = car.car();
    assert!(cids.is_empty() && roots[0].to_string() == "bafkqaaa");
    let hello = node.get("/ipfs/bafkqabtimvwgy3yk?format=raw").await;
    assert_eq!(hello.text(), "hello\n");
}

#[tokio::test]
async fn identity_digests_end_at_128_bytes() {
    let node = node(&Memory::default()).await;
    for (len, expected) in [(128_u8, 200), (129, 400)] {
        // 0x01 0x55 0x00 varint(len) bytes, as IPIP-512 spells them.
        let mut bytes = vec![1, 0x55, 0, 0x80 | (len & 0x7f), 1];
        bytes.extend(vec![b'B'; usize::from(len)]);
        let text = multibase::encode(multibase::Base::Base32Lower, bytes);
        let reply = node.get(&format!("/ipfs/{text}?format=raw")).await;
        assert_eq!(reply.status, expected, "{len}");
        assert!(reply.head_len < 2048);
    }
}

#[tokio::test]
async fn raw_blocks_come_whole_in_ranges_and_as_heads() {
    let memory = Memory::default();
    let (warm, cold) = (
        memory.put(RAW, vec![1; 100_000]),
        memory.put(RAW, vec![2; 100_000]),
    );
    memory.fault(&cold, Fault::Cold);
    let node = node(&memory).await;
    for cid in [warm, cold] {
        let path = format!("/ipfs/{cid}");
        let whole = node.ask("GET", &path, &[RAW_FIELD]).await;
        assert_eq!(
            (whole.status, whole.body.len(), whole.whole),
            (200, 100_000, true)
        );
        assert_eq!(whole.field("vary"), Some("accept"));
        let head = node.ask("HEAD", &path, &[RAW_FIELD]).await;
        assert_eq!(
            (head.status, head.field("content-length")),
            (200, Some("100000"))
        );
        let part = node
            .ask("GET", &path, &[RAW_FIELD, ("range", "bytes=-7")])
            .await;
        assert_eq!((part.status, part.body.len()), (206, 7));
        assert_eq!(
            part.field("content-range"),
            Some("bytes 99993-99999/100000")
        );
        let beyond = node
            .ask("GET", &path, &[RAW_FIELD, ("range", "bytes=100000-")])
            .await;
        refused(&beyond, 416);
        assert_eq!(beyond.field("content-range"), Some("bytes */100000"));
        let etag = whole.field("etag").unwrap();
        let known = node
            .ask("GET", &path, &[RAW_FIELD, ("if-none-match", etag)])
            .await;
        assert_eq!((known.status, known.field("etag")), (304, Some(etag)));
        let range = ("range", "bytes=0-0");
        for (tag, status) in [(etag, 206), ("\"other\"", 200)] {
            let reply = node
                .ask("GET", &path, &[RAW_FIELD, range, ("if-range", tag)])
                .await;
            assert_eq!(reply.status, status);
        }
    }
}

/// RFC 9110 section 13.2.2: `If-Match`, then `If-None-Match`, then `Range` under `If-Range`. There
/// are no dates, so that conditions on them are ignored.
#[tokio::test]
async fn conditions_are_judged_in_their_order_for_get_and_head() {
    let memory = Memory::default();
    let (warm, cold) = (
        memory.put(RAW, vec![1; 1000]),
        memory.put(RAW, vec![2; 1000]),
    );
    memory.fault(&cold, Fault::Cold);
    let node = node(&memory).await;
    let (long_ago, soon) = (
        "Thu, 01 Jan 1970 00:00:01 GMT",
        "Fri, 01 Jan 2100 00:00:00 GMT",
    );
    for cid in [warm, cold] {
        let own = format!("\"{cid}.raw\"");
        let weak = format!("W/{own}");
        let list = format!("\"zz\", {own}");
        let (own, weak, list) = (own.as_str(), weak.as_str(), list.as_str());
        let range = ("range", "bytes=0-9");
        let beyond = ("range", "bytes=5000-");
        let table: &[(&[(&str, &str)], u16)] = &[
            (&[("if-match", "\"zz\"")], 412),
            (&[("if-match", "zz")], 412),
            (&[("if-match", weak)], 412),
            (&[("if-match", own)], 200),
            (&[("if-match", list)], 200),
            (&[("if-match", "*")], 200),
            (&[("if-match", "\"zz\""), ("if-none-match", own)], 412),
            (&[("if-match", own), ("if-none-match", own)], 304),
            (&[("if-match", own), ("if-none-match", "\"zz\"")], 200),
            (&[("if-match", "\"zz\""), range], 412),
            (&[("if-match", "\"zz\""), beyond], 412),
            (&[("if-match", own), range], 206),
            (&[("if-match", own), beyond], 416),
            (&[("if-none-match", own), beyond], 304),
            (&[("if-match", own), range, ("if-range", own)], 206),
            (&[("if-match", own), range, ("if-range", weak)], 200),
            (&[range, ("if-range", long_ago)], 200),
            (&[range, ("if-range", soon)], 200),
            (&[("if-modified-since", soon)], 200),
            (&[("if-unmodified-since", long_ago)], 200),
        ];
        for (conditions, status) in table {
            let fields = [&[RAW_FIELD], *conditions].concat();
            let path = format!("/ipfs/{cid}");
            let reply = node.ask("GET", &path, &fields).await;
            assert_eq!(reply.status, *status, "{conditions:?}");
            // Ranges are for GET alone.
            let head = node.ask("HEAD", &path, &fields).await;
            let expected = match *status {
                206 | 416 => 200,
                other => other,
            };
            assert_eq!(head.status, expected, "HEAD {conditions:?}");
        }
    }
    let absent = format!("/ipfs/{ABSENT}?format=raw");
    let path = format!("/ipfs/{warm}?format=car");
    for method in ["GET", "HEAD"] {
        // The entity tag of a CAR is weak, which names nothing that `If-Match` may name.
        let own = node.ask(method, &path, &[]).await;
        let own = own.field("etag").unwrap();
        for (tag, status) in [("\"zz\"", 412), (own, 412), ("*", 200)] {
            let reply = node.ask(method, &path, &[("if-match", tag)]).await;
            assert_eq!(reply.status, status, "{method} {tag}");
        }
        // What is not here is no question of conditions.
        let reply = node.ask(method, &absent, &[("if-match", "\"zz\"")]).await;
        assert_ne!(reply.status, 412, "{method}");
    }
    let reply = node.ask("GET", &path, &[("if-match", "\"zz\"")]).await;
    refused(&reply, 412);
}

#[tokio::test]
async fn a_changed_source_is_404_for_blocks_and_409_for_cars() {
    let memory = Memory::default();
    let (list, last) = list_of(&memory, 3);
    memory.fault(&last, Fault::Changed);
    let node = node(&memory).await;
    for method in ["GET", "HEAD"] {
        assert_eq!(
            node.ask(method, &format!("/ipfs/{last}"), &[RAW_FIELD])
                .await
                .status,
            404
        );
        assert_eq!(
            node.ask(method, &format!("/ipfs/{last}"), &[CAR_FIELD])
                .await
                .status,
            409
        );
    }
    refused(&node.get(&format!("/ipfs/{last}?format=raw")).await, 404);
    refused(&node.get(&format!("/ipfs/{list}?format=car")).await, 409);
    refused(&node.get(&format!("/ipfs/{list}/2?format=raw")).await, 404);
    refused(&node.get(&format!("/ipfs/{list}/2?format=car")).await, 409);
    assert_eq!(
        node.get(&format!("/ipfs/{list}/1?format=raw")).await.status,
        200
    );
}

#[tokio::test]
async fn a_failing_disk_is_503_with_a_time_to_wait() {
    let memory = Memory::default();
    let cid = memory.put(RAW, vec![1; 10]);
    memory.fault(&cid, Fault::Unreadable);
    let node = node(&memory).await;
    for format in ["raw", "car"] {
        let reply = node.get(&format!("/ipfs/{cid}?format={format}")).await;
        refused(&reply, 503);
        assert_eq!(reply.field("retry-after"), Some("60"));
    }
}

#[tokio::test]
async fn a_car_longer_than_its_first_batch_is_streamed_in_order() {
    let memory = Memory::default();
    let (list, _) = list_of(&memory, 100);
    let node = node(&memory).await;
    let reply = node.get(&format!("/ipfs/{list}?format=car")).await;
    assert!(reply.whole && reply.field("content-length").is_none());
    let (cids, roots, _) = reply.car();
    assert_eq!((cids.len(), cids[0], roots[0]), (101, list, list));
    let small = node
        .get(&format!("/ipfs/{list}?format=car&dag-scope=block"))
        .await;
    assert_eq!(
        small.field("content-length").unwrap(),
        small.body.len().to_string()
    );
    let path = format!("/ipfs/{list}/3?format=car");
    let below = node.get(&path).await;
    assert_eq!(below.car().0.len(), 2);
    let head = node.ask("HEAD", &path, &[]).await;
    assert_eq!(
        (head.status, head.field("etag")),
        (200, below.field("etag"))
    );
    let tag = ("if-none-match", below.field("etag").unwrap());
    assert_eq!(node.ask("GET", &path, &[tag]).await.status, 304);
}

#[tokio::test]
async fn an_error_after_the_first_byte_cuts_the_answer() {
    let memory = Memory::default();
    let (list, last) = list_of(&memory, 100);
    memory.fault(&last, Fault::Unreadable);
    let node = node(&memory).await;
    let reply = node.get(&format!("/ipfs/{list}?format=car")).await;
    assert_eq!(reply.status, 200);
    assert!(!reply.whole);
}

#[tokio::test]
async fn an_error_in_the_first_batches_has_a_status() {
    let memory = Memory::default();
    let (list, last) = list_of(&memory, 3);
    memory.fault(&last, Fault::Unreadable);
    refused(
        &node(&memory)
            .await
            .get(&format!("/ipfs/{list}?format=car"))
            .await,
        503,
    );
}

#[tokio::test]
async fn the_trailer_tells_what_was_sent_and_why_it_ended() {
    let memory = Memory::default();
    let (list, last) = list_of(&memory, 100);
    let node = node(&memory).await;
    let path = format!("/ipfs/{list}");
    for fails in [false, true] {
        if fails {
            memory.fault(&last, Fault::Unreadable);
        }
        let reply = node.ask("GET", &path, &[META_FIELD]).await;
        assert!(reply.whole);
        let media_type = reply.field("content-type").unwrap();
        assert_eq!(
            media_type,
            "application/vnd.ipld.car; version=1; order=dfs; dups=n; meta=eof+json"
        );
        let (cids, _, trailer) = reply.car();
        let car_len = reply.body.len() - trailer.len() - 1;
        let object: Value = serde_json::from_slice(&trailer).unwrap();
        let data = &object["data"];
        assert_eq!(data["car_bytes"], car_len);
        assert_eq!(data["block_count"], cids.len());
        assert_eq!(data["content_path"], path);
        let digest = blake3::hash(&reply.body[..car_len]);
        let checksum = [&[0x1e, 0x20], digest.as_bytes().as_slice()].concat();
        let checksum = multibase::encode(multibase::Base::Base58Btc, checksum);
        assert_eq!(data["b3checksum"], checksum);
        assert_eq!(object.get("error").is_some(), fails);
        assert_eq!(cids.len() == 101, !fails);
    }
    let plain = node.ask("GET", &path, &[CAR_FIELD]).await;
    let with_meta = node.ask("HEAD", &path, &[META_FIELD]).await;
    assert_ne!(plain.field("etag"), with_meta.field("etag"));
}

#[tokio::test]
async fn duplicates_end_at_a_budget_with_a_cut() {
    let memory = Memory::default();
    let mut node_cid = memory.put(RAW, vec![1; 10]);
    for _ in 0..30 {
        node_cid = memory.put_list(&[node_cid, node_cid]);
    }
    let limits = Limits {
        car_blocks_max: 10_000,
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    let reply = node
        .get(&format!("/ipfs/{node_cid}?format=car&car-dups=y"))
        .await;
    assert!(!reply.whole && reply.body.len() < 10_000 * 150);
    let once = node.get(&format!("/ipfs/{node_cid}?format=car")).await;
    assert_eq!(once.car().0.len(), 31);
}

/// A chain of long nodes holds each of them open: for one client, and not for many.
#[tokio::test]
async fn walks_share_a_budget_of_memory() {
    let memory = Memory::default();
    let pad = memory.put(RAW, vec![2; 10]);
    let mut root = memory.put(RAW, vec![1; 10]);
    for _ in 0..40 {
        let mut links = vec![pad; 2000];
        links[0] = root;
        root = memory.put_list(&links);
    }
    let path = format!("/ipfs/{root}?format=car");
    let small = format!("/ipfs/{pad}?format=car");
    let limits = Limits {
        walk_bytes_max: 1024 * 1024,
        ..Limits::default()
    };
    let tight = Node::start(memory.clone(), limits).await;
    let reply = tight.get(&path).await;
    assert!(reply.status == 429 || !reply.whole, "{}", reply.status);
    assert_eq!(tight.get(&small).await.status, 200);
    let wide = node(&memory).await;
    assert_eq!(wide.get(&path).await.car().0.len(), 42);
}

#[tokio::test]
async fn json_is_for_blocks_that_are_json() {
    let memory = Memory::default();
    let cids = [
        memory.put(RAW, "1"),
        memory.put(JSON, "2"),
        memory.put(DAG_CBOR, vec![3]),
    ];
    let node = node(&memory).await;
    for (cid, status) in cids.iter().zip([200, 200, 406]) {
        assert_eq!(
            node.get(&format!("/ipfs/{cid}?format=json")).await.status,
            status
        );
    }
}

#[tokio::test]
async fn a_missing_path_names_the_last_cid_that_resolved() {
    let memory = Memory::default();
    let (list, _) = list_of(&memory, 3);
    let node = node(&memory).await;
    for format in ["raw", "car"] {
        let reply = node
            .get(&format!("/ipfs/{list}/nope%1b?format={format}"))
            .await;
        refused(&reply, 404);
        assert!(reply.text().contains(&list.to_string()), "{}", reply.text());
        assert!(!reply.text().contains('\x1b'));
    }
}

#[tokio::test]
async fn other_routes_and_methods() {
    let node = node(&Memory::default()).await;
    assert_eq!(node.get("/healthz").await.text(), "ok\n");
    assert_eq!(node.get("/readyz").await.status, 503);
    let protocols = node.get("/.well-known/libp2p/protocols").await;
    let protocols: Value = serde_json::from_slice(&protocols.body).unwrap();
    assert_eq!(protocols["protocols"]["/ipfs/gateway"]["path"], "/");
    for path in ["/", "/ipfs", "/ipns/x", "/healthz/x"] {
        refused(&node.get(path).await, 404);
    }
    let options = node.ask("OPTIONS", &format!("/ipfs/{ABSENT}"), &[]).await;
    assert_eq!(
        (options.status, options.field("access-control-allow-origin")),
        (200, Some("*"))
    );
    for method in ["POST", "PUT", "DELETE", "PATCH", "TRACE"] {
        let reply = node
            .ask(method, &format!("/ipfs/{ABSENT}?format=raw"), &[])
            .await;
        refused(&reply, 405);
        assert_eq!(reply.field("allow"), Some("GET, HEAD, OPTIONS"));
    }
}

#[tokio::test]
async fn malformed_requests_get_a_sentence() {
    let node = node(&Memory::default()).await;
    for path in [
        "/ipfs/x?format=raw",
        "/ipfs/bafkqaaa",
        "/ipfs/bafkqaaa/%zz?format=car",
    ] {
        let reply = node.get(path).await;
        refused(&reply, 400);
        assert!(reply.text().trim().contains(' '));
    }
}

#[tokio::test]
async fn every_request_has_a_line_in_the_access_log() {
    let memory = Memory::default();
    let (list, last) = list_of(&memory, 100);
    memory.fault(&last, Fault::Unreadable);
    let output = Shared::default();
    let (log, writer) = AccessLog::start(Box::new(output.clone()), LogFormat::Json, 100).unwrap();
    let options = ServeOptions {
        access_log: Some(log),
        ..ServeOptions::default()
    };
    let node = Node::start_with(memory, options).await;
    let (absent, car) = (
        format!("/ipfs/{ABSENT}?format=raw"),
        format!("/ipfs/{list}?format=car"),
    );
    let sent = [
        node.get(&absent).await,
        node.get(&car).await,
        node.get("/healthz").await,
    ];
    node.stop().await;
    writer.finish().unwrap();
    let text = output.text();
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    for (reply, path) in sent.iter().zip([absent.as_str(), &car, "/healthz"]) {
        let line = lines.iter().find(|line| line["uri"] == path).unwrap();
        assert_eq!(line["status"], reply.status);
        assert!(line["bytes"].as_u64().unwrap() >= reply.body.len() as u64);
    }
}

/// What was sent is what the scope says, in the answer and in its trailer.
#[tokio::test]
async fn a_scope_beside_entity_bytes_is_kept() {
    let memory = Memory::default();
    let (root, _) = list_of(&memory, 12);
    let node = node(&memory).await;
    for (query, n_blocks, scope) in [
        ("dag-scope=all&entity-bytes=0:9", 13, "all"),
        ("dag-scope=block&entity-bytes=9:*", 1, "block"),
        ("entity-bytes=0:9", 1, "entity"),
    ] {
        let path = format!("/ipfs/{root}?{query}");
        let reply = node.ask("GET", &path, &[META_FIELD]).await;
        let (cids, _, trailer) = reply.car();
        assert_eq!(cids.len(), n_blocks, "{query}");
        let trailer: Value = serde_json::from_slice(&trailer).unwrap();
        let params = &trailer["data"]["dag_params"];
        assert_eq!(params["dag-scope"], scope, "{query}");
        let has_range = params.get("entity-bytes").is_some();
        assert_eq!(has_range, scope == "entity", "{query}");
        let path = format!("/ipfs/{root}?format=car&{query}");
        assert_eq!(node.get(&path).await.car().0.len(), n_blocks, "{query}");
    }
}

/// A DAG that may go on is no whole answer: 501 before the first byte, then a cut or a trailer.
#[tokio::test]
async fn a_codec_whose_links_are_unknown_is_told() {
    let memory = Memory::default();
    let odd = memory.put(0x90, vec![0xc0]);
    let node = node(&memory).await;
    for method in ["GET", "HEAD"] {
        let path = format!("/ipfs/{odd}?format=car");
        assert_eq!(node.ask(method, &path, &[]).await.status, 501);
    }
    let path = format!("/ipfs/{odd}?format=car");
    refused(&node.get(&path).await, 501);
    assert!(node.get(&path).await.text().contains("0x90"));
    for scope in ["block", "entity"] {
        let reply = node.get(&format!("{path}&dag-scope={scope}")).await;
        assert_eq!(reply.car().0, [odd]);
    }
    assert_eq!(
        node.get(&format!("/ipfs/{odd}?format=raw")).await.status,
        200
    );

    let leaves: Vec<Cid> = (0..20_u8).map(|n| memory.put(RAW, vec![n])).collect();
    let root = memory.put_list(&[&leaves[..], &[odd]].concat());
    let path = format!("/ipfs/{root}?format=car");
    let cut = node.get(&path).await;
    assert!(cut.status == 200 && !cut.whole);
    let named = node.ask("GET", &path, &[META_FIELD]).await;
    assert!(named.whole);
    let (cids, _, trailer) = named.car();
    assert!(cids.len() >= 20, "what is known is sent");
    let trailer: Value = serde_json::from_slice(&trailer).unwrap();
    assert!(trailer["error"].as_str().unwrap().contains("0x90"));
}
