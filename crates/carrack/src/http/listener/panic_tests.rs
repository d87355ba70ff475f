//! A panic ends what it happened in and nothing else, and gives back what that had.

use std::time::Duration;

use carrack_formats::Cid;
use carrack_formats::cid::RAW;
use http::{Request, StatusCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::super::limits::Limits;
use crate::gateway::testing::{Fault, Memory, Node};

/// Far more than any timeout of these tests: reached only if the node hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// A node that answers one request at a time, a sound block, and one with these faults.
async fn node(faults: &[Fault]) -> (Node, String, String) {
    let memory = Memory::default();
    let path = |cid: Cid| format!("/ipfs/{cid}?format=raw");
    let (sound, faulty) = (memory.put(RAW, vec![1; 100]), memory.put(RAW, vec![2; 100]));
    for fault in faults {
        memory.fault(&faulty, *fault);
    }
    let limits = Limits {
        requests_max: 1,
        ..Limits::default()
    };
    let node = Node::start(memory, limits).await;
    (node, path(sound), path(faulty))
}

/// Asks until the one place among requests has come back.
async fn is_answered(node: &Node, path: &str) {
    let answered = async {
        while node.get(path).await.status != 200 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, answered).await.expect("an answer");
}

#[tokio::test]
async fn a_panic_in_the_task_of_a_connection_ends_that_connection_alone() {
    let (node, sound, faulty) = node(&[Fault::Panics]).await;
    let mut other = TcpStream::connect(node.address).await.unwrap();
    for _ in 0..3 {
        let mut stream = TcpStream::connect(node.address).await.unwrap();
        let head = format!("GET {faulty} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut bytes = Vec::new();
        let end = timeout(PATIENCE, stream.read_to_end(&mut bytes)).await;
        assert!(end.unwrap().is_err() && bytes.is_empty());
        is_answered(&node, &sound).await;
    }
    let head = format!("GET {sound} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    other.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    other.read_to_end(&mut bytes).await.unwrap();
    assert!(bytes.starts_with(b"HTTP/1.1 200"));
}

#[tokio::test]
async fn a_panic_in_the_task_of_a_stream_ends_that_stream_alone() {
    let (node, sound, faulty) = node(&[Fault::Silent, Fault::Panics]).await;
    let stream = TcpStream::connect(node.address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    tokio::spawn(connection);
    let ask = async |path: &str| {
        let mut ready = client.clone().ready().await.unwrap();
        let request = Request::get(format!("http://x{path}")).body(()).unwrap();
        let (answer, _) = ready.send_request(request, true).unwrap();
        timeout(PATIENCE, answer)
            .await
            .expect("an answer or a reset")
    };
    for _ in 0..3 {
        assert!(ask(&faulty).await.unwrap_err().is_reset());
        let answered = async {
            while ask(&sound).await.unwrap().status() != StatusCode::OK {
                tokio::task::yield_now().await;
            }
        };
        timeout(PATIENCE, answered).await.expect("an answer");
    }
}

#[tokio::test]
async fn a_panic_in_a_blocking_job_is_500_and_no_more() {
    let (node, sound, faulty) = node(&[Fault::Cold, Fault::Panics]).await;
    for _ in 0..3 {
        let reply = timeout(PATIENCE, node.get(&faulty)).await.unwrap();
        assert_eq!(reply.status, 500, "{}", reply.text());
        is_answered(&node, &sound).await;
    }
}
