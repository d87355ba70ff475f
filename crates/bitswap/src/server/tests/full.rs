//! What is full, and who is served all the same.

use super::*;

/// `n` CIDs of nothing, each of its own.
fn absent(seed: u32, n: usize) -> Vec<Cid> {
    let data = |it: usize| [seed.to_le_bytes(), (it as u32).to_le_bytes()].concat();
    (0..n).map(|it| cid_of(&data(it))).collect()
}

/// Peers of `addresses` that want as much of what is absent as is remembered of them.
async fn fill(server: &Server<Memory>, addresses: &[&str], n: usize) -> Vec<TestPeer> {
    let mut peers = Vec::new();
    for (number, address) in addresses.iter().enumerate() {
        let name = format!("{address} {number}");
        let mut peer = TestPeer::connect_from(server, &name, address);
        let wants = absent(number as u32, n);
        let entries: Vec<Entry> = wants.iter().map(|cid| quiet(block(cid))).collect();
        peer.want(&entries).await;
        peers.push(peer);
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    peers
}

#[tokio::test(start_paused = true)]
async fn what_is_here_is_answered_however_full_the_registry_is() {
    let (server, memory) = server(Options {
        wants_per_peer_max: 10,
        wants_max: 20,
        ..Options::default()
    });
    let large = memory.put(vec![1; 5000]);
    let small = memory.put(vec![2; 50]);
    // Trusted: whoever comes by a proxy has no share of its own that could leave room.
    let _full = fill(&server, &["127.0.0.1"; 2], 10).await;
    assert_eq!(server.totals().1, 20);
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[have(&large)]).await;
    assert_eq!(peer.next().await, Told::Have(large));
    peer.want(&[block(&large)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![1; 5000].into()));
    peer.want(&[have(&small)]).await;
    assert_eq!(peer.next().await, Told::Block(vec![2; 50].into()));
    let absent = cid_of(b"absent");
    peer.want(&[block(&absent), quiet(block(&cid_of(b"other")))])
        .await;
    assert_eq!(peer.next().await, Told::DontHave(absent));
    peer.silence().await;
}

#[tokio::test(start_paused = true)]
async fn a_subnet_full_of_wants_leaves_room_for_those_of_others() {
    let v4 = ["192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.3"];
    let v6 = ["2001:db8:1:1::1", "2001:db8:1:1::2", "2001:db8:1:1::3"];
    let wide = ["2001:db8:1:1::1", "2001:db8:1:2::1", "2001:db8:1:3::1"];
    for hostile in [&v4[..], &v6, &wide] {
        let (server, memory) = server(Options {
            wants_per_peer_max: 100,
            wants_max: 200,
            ..Options::default()
        });
        let _full = fill(&server, hostile, 100).await;
        assert!(server.totals().1 < 200, "{hostile:?}");
        let mut other = TestPeer::connect_from(&server, "other", "198.51.100.1");
        let late = cid_of(b"late");
        other.want(&[quiet(block(&late))]).await;
        other.silence().await;
        memory.put(&b"late"[..]);
        server.store_has_changed();
        assert_eq!(other.next().await, Told::Block(Bytes::from_static(b"late")));
    }
}

#[tokio::test(start_paused = true)]
async fn a_block_that_comes_between_the_look_up_and_the_subscription_is_sent() {
    let (server, memory) = server(Options::default());
    let late = Bytes::from_static(b"late");
    let cid = cid_of(&late);
    let (sweeper, store) = (server.clone(), memory.clone());
    memory.after_find(move || {
        store.put(late.clone());
        sweeper.store_has_changed();
    });
    let mut peer = TestPeer::connect(&server, "p");
    peer.want(&[quiet(block(&cid))]).await;
    assert_eq!(peer.next().await, Told::Block(Bytes::from_static(b"late")));
    peer.silence().await;
    assert_eq!(server.totals().1, 0);
}

#[tokio::test(start_paused = true)]
async fn what_is_absent_is_looked_up_once_while_nothing_comes() {
    let (server, memory) = server(Options::default());
    let mut peer = TestPeer::connect(&server, "p");
    let n_finds = || memory.n_finds.swap(0, Ordering::Relaxed);
    let absent = absent(0, 100);
    let wants: Vec<Entry> = absent.iter().map(|cid| quiet(block(cid))).collect();
    peer.want(&wants).await;
    peer.silence().await;
    assert_eq!(n_finds(), 100);
    // What has come before does not matter.
    server.store_has_changed();
    n_finds();
    peer.want(&[quiet(block(&cid_of(b"other")))]).await;
    peer.silence().await;
    assert_eq!(n_finds(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_want_that_is_repeated_is_checked_once_at_a_time() {
    let (server, memory) = server(Options::default());
    let cid = memory.put(vec![1; 5000]);
    let gate = memory.hold_checks();
    let mut peer = TestPeer::connect_from(&server, "p", "127.0.0.1");
    for _ in 0..40 {
        peer.want(&vec![quiet(have(&cid)); 1000]).await;
        // A cancel begins a want anew, and is no way around it.
        peer.want(&[cancel(&cid)]).await;
    }
    peer.want(&[have(&cid)]).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    gate.add_permits(1000);
    assert_eq!(peer.next().await, Told::Have(cid));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let n_checks = memory.n_checks.load(Ordering::Relaxed);
    assert!(n_checks <= 3, "{n_checks} checks of one want");
}

/// Bytes that are remembered of a peer and are to be said to it.
fn lists_len(server: &Server<Memory>) -> usize {
    let peers = server.hold_peers();
    let lens = peers
        .values()
        .map(|it| it.stats.lists_len.load(Ordering::Relaxed));
    lens.sum::<u64>() as usize
}

#[tokio::test(start_paused = true)]
async fn the_lists_of_a_peer_become_as_long_as_they_may_and_no_longer() {
    let (server, memory) = server(Options::default());
    let cids: Vec<Cid> = (0..1000_u32)
        .map(|n| memory.put(n.to_le_bytes().repeat(500)))
        .collect();
    let _gate = memory.hold_checks();
    let mut peer = TestPeer::connect_from(&server, "p", "127.0.0.1");
    let haves: Vec<Entry> = cids.iter().map(have).collect();
    let mut longest = 0;
    for round in 0..100 {
        let absent: Vec<Entry> = absent(round, 1000).iter().map(block).collect();
        let asked = async {
            peer.want(&absent).await;
            peer.want(&haves).await;
            peer.want(&[&absent[..], &absent].concat()).await;
        };
        // It takes nothing, and is not read when that is enough.
        let asked = tokio::time::timeout(Duration::from_millis(100), asked).await;
        longest = longest.max(lists_len(&server));
        if asked.is_err() {
            break;
        }
        assert!(round < 99, "it is read without end");
    }
    let max = peer::lists_len_max(Options::default().wants_per_peer_max);
    assert!(longest <= max && longest > max / 2, "{longest} of {max}");
}

#[tokio::test(start_paused = true)]
async fn when_the_lists_of_all_are_too_long_less_is_remembered_of_each() {
    let (server, memory) = server(Options {
        lists_len_max: 1 << 20,
        ..Options::default()
    });
    let addresses: Vec<String> = (0..30).map(|n| format!("198.51.{n}.1")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let _hungry = fill(&server, &addresses, 1000).await;
    let len = lists_len(&server);
    assert_eq!(len, server.shared.lists_len.load(Ordering::Relaxed));
    let max = (1 << 20) + 30 * (32 << 10);
    assert!(len > 1 << 20 && len <= max, "{len} of {max}");
    assert!(server.totals().0.wants_dropped.get() > 10_000);
    // Others are served, and remembered.
    let here = memory.put(vec![1; 5000]);
    let mut peer = TestPeer::connect_from(&server, "p", "203.0.113.1");
    peer.want(&[block(&here), quiet(block(&cid_of(b"late")))])
        .await;
    assert_eq!(peer.next().await, Told::Block(vec![1; 5000].into()));
    memory.put(&b"late"[..]);
    server.store_has_changed();
    assert_eq!(peer.next().await, Told::Block(Bytes::from_static(b"late")));
    drop(_hungry);
    drop(peer);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(server.shared.lists_len.load(Ordering::Relaxed), 0);
    assert_eq!(server.totals().1, 0);
}

#[tokio::test(start_paused = true)]
async fn a_long_frame_in_small_pieces_takes_its_room_once() {
    let (server, memory) = server(Options {
        frames_len_max: 4 << 20,
        ..Options::default()
    });
    let cid = memory.put(vec![1; 3000]);
    let mut peer = TestPeer::connect_from(&server, "p", "127.0.0.1");
    for junk_len in [40 << 10, 1 << 20] {
        let junk = Bytes::from(vec![7; junk_len]);
        let mut message = Outgoing::new(Dialect::V1_2);
        assert!(message.push_block(&cid_of(&junk), junk));
        assert!(message.push_entry(&block(&cid)));
        let message = message.finish().concat();
        for piece in message.chunks(1000) {
            peer.wants.write_all(piece).await.unwrap();
            tokio::time::sleep(Duration::from_millis(1)).await; // It is read.
        }
        assert_eq!(peer.next().await, Told::Block(vec![1; 3000].into()));
    }
}

#[tokio::test(start_paused = true)]
async fn long_frames_of_a_subnet_leave_room_for_those_of_others() {
    let (server, memory) = server(Options {
        frames_len_max: 16 << 20,
        ..Options::default()
    });
    let cid = memory.put(vec![1; 3000]);
    let junk = Bytes::from(vec![7; 1 << 20]);
    let mut message = Outgoing::new(Dialect::V1_2);
    assert!(message.push_block(&cid_of(&junk), junk));
    assert!(message.push_entry(&block(&cid)));
    let message = message.finish().concat();
    let mut hostile = Vec::new();
    for number in 0..12 {
        let address = format!("192.0.2.{number}");
        let mut peer = TestPeer::connect_from(&server, &address, &address);
        let most = &message[..message.len() - 1];
        let sent = peer.wants.write_all(most);
        let _ = tokio::time::timeout(Duration::from_millis(10), sent).await;
        hostile.push(peer);
    }
    let mut peer = TestPeer::connect_from(&server, "p", "203.0.113.1");
    let sent = peer.wants.write_all(&message);
    let sent = tokio::time::timeout(Duration::from_secs(1), sent).await;
    sent.expect("there is room").unwrap();
    assert_eq!(peer.next().await, Told::Block(vec![1; 3000].into()));
}

#[tokio::test(start_paused = true)]
async fn streams_of_a_peer_that_is_not_read_for_long_are_dropped() {
    let (server, memory) = server(Options::default());
    let cids: Vec<Cid> = (0..1000_u32)
        .map(|n| memory.put(n.to_le_bytes().repeat(500)))
        .collect();
    let gate = memory.hold_checks();
    let mut peer = TestPeer::connect(&server, "p");
    let haves: Vec<Entry> = cids.iter().map(|cid| quiet(have(cid))).collect();
    peer.want(&haves).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    peer.want(&[block(&cids[0])]).await; // Into the pipe: nobody reads it.
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert!(peer.wants.write_all(&[0]).await.is_err());
    // It is heard again when there is less to do, on a stream of its choice.
    gate.add_permits(1000);
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (wants, theirs) = pipe(1 << 16);
    peer.connection.opened(theirs);
    peer.wants = wants;
    peer.want(&[block(&cids[1])]).await;
    while peer.next().await != Told::Block(1_u32.to_le_bytes().repeat(500).into()) {}
}
