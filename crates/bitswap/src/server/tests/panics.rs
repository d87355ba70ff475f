//! A panic in the task of one peer.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_panic_in_the_task_of_a_peer_ends_that_peer_alone_and_it_may_come_back() {
    let (server, memory) = server(Options::default());
    let here = memory.put(vec![1; 5000]);
    let (absent, fatal) = (cid_of(b"absent"), cid_of(b"fatal"));
    let mut other = TestPeer::connect(&server, "other");
    other.want(&[block(&here)]).await;
    assert_eq!(other.next().await, Told::Block(vec![1; 5000].into()));
    for _ in 0..3 {
        let mut peer = TestPeer::connect(&server, "peer");
        peer.want(&[quiet(block(&absent))]).await;
        peer.want(&[block(&here)]).await;
        assert_eq!(peer.next().await, Told::Block(vec![1; 5000].into()));
        assert_eq!(server.totals().1, 1);
        *memory.fatal.lock().unwrap() = Some(*fatal.hash());
        peer.want(&[block(&fatal)]).await;
        // Its connection is told to close, and nothing is left of it.
        assert!(peer.commands.recv().await.is_none());
        *memory.fatal.lock().unwrap() = None;
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert_eq!((server.totals().1, server.bytes_in_flight()), (0, 0));
        other.want(&[block(&here)]).await;
        assert_eq!(other.next().await, Told::Block(vec![1; 5000].into()));
        drop(peer);
    }
    server.close().await;
}
