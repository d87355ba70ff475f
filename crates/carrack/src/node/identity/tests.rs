use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Barrier;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// The ed25519 key among the test vectors of libp2p's PeerID specification, and its PeerID,
/// computed apart.
const VECTOR: &str = "080112407e0830617c4a7de83925dfb2694556b12936c477a0e1feb2e148ec9da60fee7d\
                      1ed1e8fae2c4a144b8be8fd4b47bf3d3b34b871c3cacf6010f0e42d474fce27e";
const VECTOR_PEER_ID: &str = "12D3KooWBtg3aaRMjxwedh83aGiUkwSxDwUZkzuJcfaqUmo7R3pq";

fn vector() -> Vec<u8> {
    let digits: Vec<u32> = VECTOR.chars().map(|c| c.to_digit(16).unwrap()).collect();
    digits
        .chunks(2)
        .map(|pair| u8::try_from(pair[0] * 16 + pair[1]).unwrap())
        .collect()
}

/// A directory whose key file holds `bytes`, with `mode`.
fn with_file(bytes: &[u8], mode: u32) -> (TempDir, PathBuf) {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    fs::write(&path, bytes).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
    (dir, path)
}

#[test]
fn a_key_is_made_once_and_stays() {
    let dir = TempDir::new().unwrap();
    let data_dir = dir.path().join("not/yet");
    let first = Identity::open_or_create(&data_dir).unwrap();
    let path = data_dir.join(FILE_NAME);
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(meta.mode() & 0o7777, 0o600);
    assert_eq!(meta.len(), FILE_LEN as u64);
    let bytes = fs::read(&path).unwrap();
    let second = Identity::open_or_create(&data_dir).unwrap();
    assert_eq!(first.peer_id(), second.peer_id());
    assert_eq!(fs::read(&path).unwrap(), bytes);
    let names: Vec<_> = fs::read_dir(&data_dir).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let other = Identity::open_or_create(&dir.path().join("other")).unwrap();
    assert_ne!(first.peer_id(), other.peer_id());
}

#[test]
fn a_key_of_other_libp2p_tools_is_taken() {
    let (dir, _) = with_file(&vector(), 0o600);
    let identity = Identity::open_or_create(dir.path()).unwrap();
    assert_eq!(identity.peer_id().to_string(), VECTOR_PEER_ID);
}

#[test]
fn the_key_is_not_shown() {
    let (dir, _) = with_file(&vector(), 0o400);
    let identity = Identity::open_or_create(dir.path()).unwrap();
    let shown = format!("{identity:?}");
    assert_eq!(shown, format!("Identity(PeerId(\"{VECTOR_PEER_ID}\"))"));
}

#[test]
fn first_starts_at_once_agree() {
    for _ in 0..20 {
        let dir = TempDir::new().unwrap();
        let barrier = Barrier::new(8);
        let start = || {
            barrier.wait();
            Identity::open_or_create(dir.path()).unwrap().peer_id()
        };
        let peer_ids: Vec<PeerId> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
            threads
                .into_iter()
                .map(|thread| thread.join().unwrap())
                .collect()
        });
        assert!(peer_ids.iter().all(|peer_id| *peer_id == peer_ids[0]));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn what_a_start_that_was_cut_short_leaves_is_removed() {
    let dir = TempDir::new().unwrap();
    fs::write(dir.path().join("identity.key.77-0.tmp"), [7; 200]).unwrap();
    Identity::open_or_create(dir.path()).unwrap();
    let entries = fs::read_dir(dir.path()).unwrap();
    let names: Vec<_> = entries.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, [FILE_NAME]);
}

#[test]
fn a_folder_that_holds_something_else_gets_no_key() {
    for name in ["mine", "packs.car", "identity.key.bak"] {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join(name), b"mine").unwrap();
        let error = Identity::open_or_create(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid, "{name}: {error}");
        assert!(error.to_string().contains("--data-dir"), "{error}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_file_of_a_person_that_is_called_like_a_temporary_one_is_not_written_over() {
    let dir = TempDir::new().unwrap();
    let mine = dir.path().join("identity.key.tmp");
    fs::write(&mine, b"mine").unwrap();
    Identity::open_or_create(dir.path()).unwrap();
    assert_eq!(fs::read(&mine).unwrap(), b"mine");
}

#[test]
fn what_lies_there_is_not_replaced() {
    let (dir, path) = with_file(b"other", 0o600);
    create(dir.path(), &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"other");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_key_that_others_may_use_is_refused_and_the_error_tells_how_to_mend_it() {
    for mode in [0o640, 0o604, 0o620, 0o660, 0o644, 0o601] {
        let (dir, path) = with_file(&vector(), mode);
        let error = Identity::open_or_create(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(error.chain().contains("chmod 600"), "{}", error.chain());
        assert!(error.chain().contains(path.to_str().unwrap()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        Identity::open_or_create(dir.path()).unwrap();
    }
}

#[test]
fn every_cut_and_every_flipped_bit_is_refused_and_left_alone() {
    let good = vector();
    let mut damaged: Vec<Vec<u8>> = (0..good.len()).map(|len| good[..len].to_vec()).collect();
    for bit in 0..good.len() * 8 {
        let mut bytes = good.clone();
        bytes[bit / 8] ^= 1 << (bit % 8);
        damaged.push(bytes);
    }
    damaged.push([good.as_slice(), b"\n"].concat());
    damaged.push(vec![0; 1 << 20]);
    for bytes in damaged {
        let (dir, path) = with_file(&bytes, 0o600);
        let error = Identity::open_or_create(dir.path()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{bytes:x?}");
        assert_eq!(fs::read(&path).unwrap(), bytes);
    }
}

#[test]
fn keys_of_other_kinds_are_named() {
    for (kind, name) in [(0, "RSA"), (2, "secp256k1"), (3, "ECDSA")] {
        let (dir, _) = with_file(&[8, kind, 0x12, 0x20, 1, 2, 3], 0o600);
        let error = Identity::open_or_create(dir.path()).unwrap_err();
        assert!(error.chain().contains(name), "{}", error.chain());
    }
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join(FILE_NAME);
    fs::create_dir(&path).unwrap();
    assert!(Identity::open_or_create(dir.path()).is_err());
    fs::remove_dir(&path).unwrap();
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let error = Identity::open_or_create(dir.path()).unwrap_err();
    assert!(error.chain().contains("regular file"), "{}", error.chain());
}

/// Secrets that are mounted come as links.
#[test]
fn a_link_to_a_key_is_followed_and_one_to_nothing_makes_none() {
    let (real, path) = with_file(&vector(), 0o400);
    let dir = TempDir::new().unwrap();
    symlink(&path, dir.path().join(FILE_NAME)).unwrap();
    let identity = Identity::open_or_create(dir.path()).unwrap();
    assert_eq!(identity.peer_id().to_string(), VECTOR_PEER_ID);
    drop(real);
    let error = Identity::open_or_create(dir.path()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Unavailable);
}

proptest! {
    #[test]
    fn only_the_form_that_is_written_is_read(
        mut bytes in prop::collection::vec(any::<u8>(), 0..100),
        with_head in any::<bool>(),
    ) {
        if with_head {
            bytes.splice(..bytes.len().min(4), HEAD);
        }
        if let Ok(keypair) = decode(&bytes) {
            prop_assert_eq!(keypair.to_protobuf_encoding().unwrap(), bytes);
        }
    }

    #[test]
    fn any_seed_comes_back(seed in any::<[u8; 32]>()) {
        let keypair = Keypair::ed25519_from_bytes(seed).unwrap();
        let encoded = keypair.to_protobuf_encoding().unwrap();
        let decoded = decode(&encoded).unwrap();
        prop_assert_eq!(decoded.public(), keypair.public());
    }
}
