//! kubo and Helia fetch by bitswap what carrack serves where it lies.
//!
//! In       a file in place, a CAR in a folder, a CAR in a bucket, all behind one `serve`.
//! Out      a failed test when a root or another block does not come by TCP, QUIC or WebSocket, or
//!          is not what it should be.
//! Limits   one daemon, and one Helia, a transport: each begins with nothing.
//! Not here hostile peers, budgets.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use carrack_testkit::Transport;
use carrack_testkit::p2p::bitswap::DIALECTS;

use super::daemon::Daemon;
use super::helia;
use super::kubo::Kubo;
use crate::support::s3::Bucket;
use crate::support::{Carrack, Server, car, data};

const MIB: usize = 1 << 20;

/// What is fetched, and what must come.
struct Set {
    root: String,
    /// A block that is not the root.
    block: (String, Vec<u8>),
    /// The file or folder that the root is of.
    path: PathBuf,
}

impl Set {
    /// `bytes` are one leaf of `path`.
    fn new(root: String, path: PathBuf, bytes: &[u8]) -> Self {
        let cid = car::text(&car::raw_cid(bytes));
        assert_ne!(root, cid);
        Self {
            root,
            block: (cid, bytes.to_vec()),
            path,
        }
    }
}

struct Served {
    sets: [Set; 3],
    server: Server,
    carrack: Carrack,
    _elsewhere: Carrack,
    _bucket: Bucket,
}

/// A file in place, a CAR in a folder and a CAR in a bucket, served by one node.
fn served() -> Served {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let elsewhere = Carrack::new();
    let sets = [
        file_in_place(&carrack),
        car_in_a_folder(&carrack, &elsewhere),
        car_in_a_bucket(&carrack, &elsewhere, &bucket),
    ];
    let server = carrack.serve_peers::<&str>(&[]);
    Served {
        sets,
        server,
        carrack,
        _elsewhere: elsewhere,
        _bucket: bucket,
    }
}

fn file_in_place(carrack: &Carrack) -> Set {
    let file = carrack.path("file");
    data::file(&file, 41, 5 * MIB as u64 + 4321);
    let root = carrack.add_one(&file);
    let bytes = fs::read(&file).unwrap();
    Set::new(root, file, &bytes[2 * MIB..3 * MIB])
}

fn car_in_a_folder(carrack: &Carrack, elsewhere: &Carrack) -> Set {
    let tree = elsewhere.path("tree");
    data::tree(&tree, 42, 120, 60_000);
    let root = elsewhere.add_one(&tree);
    let folder = carrack.path("folder");
    fs::create_dir(&folder).unwrap();
    let file = folder.join("tree.car");
    fs::rename(elsewhere.export(&root, "tree.car"), &file).unwrap();
    let imported = carrack.run(&["import", "-Q", file.to_str().unwrap()]);
    assert_eq!(imported.ok().words(), [root.as_str()]);
    let bytes = fs::read(tree.join("part 1/3/file-101.bin")).unwrap();
    Set::new(root, tree, &bytes)
}

fn car_in_a_bucket(carrack: &Carrack, elsewhere: &Carrack, bucket: &Bucket) -> Set {
    let file = elsewhere.path("file");
    data::file(&file, 43, 4 * MIB as u64 + 99);
    let root = elsewhere.add_one(&file);
    let exported = fs::read(elsewhere.export(&root, "file.car")).unwrap();
    bucket.put("cars/file.car", &exported);
    let url = Bucket::url("cars/file.car");
    let imported = carrack.run(&["import", "-Q", &url]);
    assert_eq!(imported.ok().words(), [root.as_str()]);
    let bytes = fs::read(&file).unwrap();
    Set::new(root, file, &bytes[3 * MIB..4 * MIB])
}

impl Served {
    /// The root block, by the gateway.
    fn root_block(&self, set: &Set) -> Vec<u8> {
        let path = format!("/ipfs/{}?format=raw", set.root);
        self.server.get(&path).ok().body
    }
}

/// The block before its root, then the root alone, then all.
fn kubo_fetches_over(transport: Transport) {
    let served = served();
    let daemon = Daemon::start(Kubo::new("unixfs-v1-2025"));
    daemon.connect(&served.carrack.p2p_address(transport));
    for set in &served.sets {
        let (cid, bytes) = &set.block;
        assert!(daemon.block(cid) == *bytes, "{transport:?} {cid}");
        assert!(
            daemon.block(&set.root) == served.root_block(set),
            "{transport:?}"
        );
        daemon.pin(&set.root);
        let fetched = served.carrack.path("fetched");
        daemon.get(&set.root, &fetched);
        if set.path.is_dir() {
            let same = data::contents(&fetched) == data::contents(&set.path);
            assert!(same, "{transport:?} {}", set.root);
            fs::remove_dir_all(&fetched).unwrap();
        } else {
            let same = fs::read(&fetched).unwrap() == fs::read(&set.path).unwrap();
            assert!(same, "{transport:?} {}", set.root);
            fs::remove_file(&fetched).unwrap();
        }
    }
}

#[test]
fn kubo_fetches_roots_and_other_blocks_by_tcp() {
    kubo_fetches_over(Transport::Tcp);
}

#[test]
fn kubo_fetches_roots_and_other_blocks_by_quic() {
    kubo_fetches_over(Transport::Quic);
}

#[test]
fn kubo_fetches_roots_and_other_blocks_by_websocket() {
    kubo_fetches_over(Transport::WebSocket);
}

#[test]
fn helia_fetches_roots_and_other_blocks_by_every_transport() {
    let served = served();
    let mut blocks = Vec::new();
    for set in &served.sets {
        blocks.extend([set.block.0.as_str(), set.root.as_str()]);
    }
    let is_file = |set: &&Set| set.path.is_file();
    let files: Vec<&Set> = served.sets.iter().filter(is_file).collect();
    let roots: Vec<&str> = files.iter().map(|set| set.root.as_str()).collect();
    for transport in Transport::ALL {
        let fetched = helia::fetch(&served.carrack.p2p_address(transport), &blocks, &roots);
        for set in &served.sets {
            let (cid, bytes) = &set.block;
            assert!(fetched.block(cid) == *bytes, "{transport:?} {cid}");
            let root = fetched.block(&set.root);
            assert!(root == served.root_block(set), "{transport:?} {}", set.root);
        }
        for set in &files {
            let file = fetched.file(&set.root);
            assert!(file == fs::read(&set.path).unwrap(), "{transport:?}");
        }
    }
}

/// What kubo asks of each peer it meets.
#[test]
fn kubo_identifies_and_pings_a_node() {
    let carrack = Carrack::new();
    let _server = carrack.serve_peers::<&str>(&[]);
    let peer = carrack.run(&["id"]).ok().words().remove(0);
    let daemon = Daemon::start(Kubo::new("unixfs-v1-2025"));
    for address in carrack.p2p_addresses() {
        daemon.connect(&address);
        let known = daemon
            .kubo
            .run(&["id", "--format=<aver>\n<protocols>", &peer]);
        let lines: Vec<&str> = known.lines().collect();
        assert!(lines[0].starts_with("carrack/"), "{known}");
        for protocol in DIALECTS.into_iter().chain(["/ipfs/ping/1.0.0"]) {
            assert!(lines.contains(&protocol), "no {protocol} in {known}");
        }
        let pinged = daemon.kubo.run(&["ping", "--count=1", &peer]);
        assert!(pinged.contains("Average latency"), "{pinged}");
        daemon.kubo.run(&["swarm", "disconnect", &address]);
    }
}

/// kubo asks before the file is added; its want is answered when it is.
#[test]
fn kubo_gets_what_is_added_while_it_waits() {
    let carrack = Carrack::new();
    let _server = carrack.serve_peers::<&str>(&[]);
    let daemon = Daemon::start(Kubo::new("unixfs-v1-2025"));
    daemon.connect(&carrack.p2p_address(Transport::Tcp));
    let file = carrack.path("late");
    data::file(&file, 44, 3 * MIB as u64);
    let bytes = fs::read(&file).unwrap();
    let cid = car::text(&car::raw_cid(&bytes[MIB..2 * MIB]));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| daemon.block(&cid));
        std::thread::park_timeout(Duration::from_millis(700));
        assert!(!waiting.is_finished(), "there before it was added");
        let added = std::time::Instant::now();
        carrack.add_one(&file);
        assert!(waiting.join().unwrap() == bytes[MIB..2 * MIB]);
        // kubo itself asks again every half minute.
        assert!(
            added.elapsed() < Duration::from_secs(25),
            "{:?}",
            added.elapsed()
        );
    });
}
