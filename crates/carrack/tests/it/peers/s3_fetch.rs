//! A data set that lies in a bucket, fetched by clients that know nothing of buckets, calm and
//! while its objects are replaced, cut, edited and deleted.
//!
//! In       `CARRACK_DATA_SET_MIB`: the size of the set (default 24; `cargo xtask interop` takes
//!          1024).
//! Out      a failed test when a byte is wrong, or when a cut answer looks whole.
//! Not here faults of the network (`s3_faults`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::peers::kubo::Kubo;
use crate::peers::{program, run};
use crate::support::s3::Bucket;
use crate::support::{Carrack, Server, data, finish};

/// Blocks that were read before are served from memory whatever became of their objects: here they
/// are to be read again.
pub(super) const LITTLE_MEMORY: [&str; 2] = ["--block-budget", "16"];

pub(super) fn data_set_len() -> u64 {
    let mib = std::env::var("CARRACK_DATA_SET_MIB").ok();
    mib.map_or(24, |mib| mib.parse().unwrap()) << 20
}

/// Half of `len` in one file, a quarter in middling ones, the rest in small ones; lengths about
/// that of a block among them, and none.
pub(super) fn mixed(dir: &Path, seed: u64, len: u64) {
    fs::create_dir_all(dir.join("sub folder/ü")).unwrap();
    fs::write(
        dir.join("sub folder/ü/leaf"),
        "a bucket has no empty folders",
    )
    .unwrap();
    data::file(&dir.join("half"), seed, len / 2 + 12_345);
    for number in 0..4 {
        let path = dir.join(format!("sub folder/sixteenth-{number}"));
        data::file(&path, seed + 10 + number, len / 16 - number);
    }
    for (number, len) in [0, 1, 1 << 20, (1 << 20) - 1, (1 << 20) + 1]
        .into_iter()
        .enumerate()
    {
        data::file(
            &dir.join(format!("ü-{len}")),
            seed + 20 + number as u64,
            len,
        );
    }
    let small_len = 40_000;
    data::tree(
        &dir.join("small"),
        seed + 30,
        len / 4 / (small_len / 2),
        small_len,
    );
}

/// A bucket with a data set, what it must look like, and a running server.
struct Served {
    bucket: Bucket,
    carrack: Carrack,
    server: Server,
    tree: PathBuf,
    root: String,
}

fn served(seed: u64, len: u64) -> Served {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let tree = carrack.path("tree");
    mixed(&tree, seed, len);
    bucket.put_tree("set/", &tree);
    let roots = carrack.add(&[Bucket::url("set/")]);
    assert_eq!(roots.len(), 1, "{roots:?}");
    let root = roots.into_iter().next().unwrap();
    let server = carrack.serve(&LITTLE_MEMORY);
    Served {
        bucket,
        carrack,
        server,
        tree,
        root,
    }
}

fn kubo_has_the_tree(car: &Path, root: &str, tree: &Path, to: &Path) {
    let kubo = Kubo::new("unixfs-v1-2025");
    let imported = kubo.run_with(&["dag", "import", "--offline", "--stats=false"], car);
    assert!(imported.contains(root), "{imported}");
    kubo.get(root, to);
    assert!(data::contents(to) == data::contents(tree));
}

fn curl(url: &str, to: &Path) -> Command {
    let mut command = Command::new(program("curl"));
    command
        .args(["--silent", "--show-error", "--fail", "--output"])
        .arg(to)
        .arg(url);
    command
}

fn lassie(server: &Server, root: &str, home: &Path, to: &Path) -> Command {
    let mut command = Command::new(program("lassie"));
    command
        .args(["fetch", "--providers", &server.url, "--output"])
        .arg(to)
        .arg(root)
        .env("HOME", home);
    command
}

/// The CAR that the same files give when they lie on this disk, and their root.
fn local_car(tree: &Path) -> (String, Vec<u8>) {
    let local = Carrack::new();
    let root = local.add_one(tree);
    let car = local.export(&root, "local.car");
    (root, fs::read(car).unwrap())
}

#[test]
fn kubo_lassie_and_curl_fetch_a_bucket_and_compare_equal() {
    let Served {
        bucket,
        carrack,
        server,
        tree,
        root,
    } = served(61, data_set_len());
    let (local_root, local_car) = local_car(&tree);
    assert_eq!(root, local_root, "the same files give the same root");
    let [by_curl, by_lassie] = ["curl.car", "lassie.car"].map(|name| carrack.path(name));
    run(curl(
        &format!("{}/ipfs/{root}?format=car", server.url),
        &by_curl,
    ));
    assert!(fs::read(&by_curl).unwrap() == local_car);
    kubo_has_the_tree(&by_curl, &root, &tree, &carrack.path("got by curl"));
    run(lassie(&server, &root, carrack.dir(), &by_lassie));
    kubo_has_the_tree(&by_lassie, &root, &tree, &carrack.path("got by lassie"));
    bucket.nothing_is_open();
}

#[test]
fn adding_a_bucket_reads_each_object_once_and_copies_none() {
    let bucket = Bucket::new();
    let carrack = Carrack::reaching(&bucket);
    let tree = carrack.path("tree");
    mixed(&tree, 62, 8 << 20);
    bucket.put_tree("set/", &tree);
    let lens = data::contents(&tree)
        .into_values()
        .map(|it| it.len() as u64);
    let len: u64 = lens.sum();
    let roots = carrack.add(&[Bucket::url("set/")]);
    assert_eq!(roots, [local_car(&tree).0]);
    assert_eq!(bucket.bytes_read("set/"), len);
    // Nothing changed: the listing tells, and no object is read.
    assert_eq!(carrack.add(&[Bucket::url("set/")]), roots);
    assert_eq!(bucket.bytes_read("set/"), len);
    let stored = data::contents(&carrack.path("data")).into_values();
    let stored: usize = stored.map(|it| it.len()).sum();
    assert!((stored as u64) < len / 2, "{stored} bytes for {len}");
}

#[test]
fn minio_serves_the_same_data_set() {
    let bucket = Bucket::minio();
    let carrack = Carrack::reaching(&bucket);
    let tree = carrack.path("tree");
    mixed(&tree, 63, 4 << 20);
    bucket.put_tree("set/", &tree);
    let (local_root, local_car) = local_car(&tree);
    assert_eq!(carrack.add(&[Bucket::url("set/")]), [local_root.as_str()]);
    let server = carrack.serve::<&str>(&[]);
    let car = server.get(&format!("/ipfs/{local_root}?format=car")).ok();
    assert!(car.body == local_car);
    drop(server);
    let server = carrack.serve(&LITTLE_MEMORY);
    bucket.put("set/half", b"another content");
    let car = server.get(&format!("/ipfs/{local_root}?format=car"));
    assert!(car.status != 200 || !car.whole, "served what is gone");
}

/// What happens to an object behind carrack's back.
fn disturb(bucket: &Bucket, random: &mut data::Seeded, key: &str, original: &[u8]) {
    let file = bucket.server.file_of(key);
    match random.between(0, 4) {
        0 => bucket.put(key, &random.bytes(original.len() + 1)),
        1 => bucket.put(key, &random.bytes(original.len())),
        2 => bucket.server.delete(key).unwrap(),
        3 => {
            // Cut in place: the ETag that the file carries stays.
            let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
            open.set_len(original.len() as u64 / 2).unwrap();
        }
        _ => {
            // An edit of one byte that neither length, ETag nor time tells: only the hash does.
            let modified = fs::metadata(&file).unwrap().modified().unwrap();
            let open = fs::OpenOptions::new().write(true).open(&file).unwrap();
            let offset = random.between(0, original.len() as u64 - 1);
            let byte = original[usize::try_from(offset).unwrap()] ^ 1;
            std::os::unix::fs::FileExt::write_all_at(&open, &[byte], offset).unwrap();
            open.set_modified(modified).unwrap();
        }
    }
}

/// Ends the disturbance, also when an assertion fails.
struct EndOnDrop<'a>(&'a AtomicBool);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn objects_that_change_under_a_fetch_give_right_bytes_or_a_cut_answer() {
    let Served {
        bucket,
        carrack,
        server,
        tree,
        root,
    } = served(64, data_set_len().max(48 << 20));
    let (_, whole_car) = local_car(&tree);
    let originals = data::contents(&tree);
    let keys: Vec<&String> = originals
        .iter()
        .filter(|(_, content)| !content.is_empty())
        .map(|(name, _)| name)
        .collect();
    let is_large = |key: &&String| originals[*key].len() > 1 << 20;
    let large: Vec<&String> = keys.iter().copied().filter(is_large).collect();
    let ended = AtomicBool::new(false);
    let (n_whole, n_cut, n_refused) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    let (bucket, server, whole_car) = (&bucket, &server, &whole_car);
    let fetch = |path: String| {
        let answer = server.get(&path);
        let count = match (answer.status, answer.whole) {
            (200, true) => {
                assert!(&answer.body == whole_car, "a whole answer with other bytes");
                &n_whole
            }
            (200, false) => {
                assert!(whole_car.starts_with(&answer.body), "wrong bytes");
                &n_cut
            }
            (404 | 409 | 500 | 502 | 503, _) => &n_refused,
            (status, _) => panic!("{status}"),
        };
        count.fetch_add(1, Ordering::Relaxed);
    };
    let mut random = data::Seeded::new(65);
    for round in 0..4 {
        ended.store(false, Ordering::Relaxed);
        std::thread::scope(|scope| {
            let end = EndOnDrop(&ended);
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    std::thread::park_timeout(Duration::from_millis(random.between(1, 300)));
                    // Small objects are many: the others are taken as often.
                    let of = if random.next().is_multiple_of(2) {
                        &large
                    } else {
                        &keys
                    };
                    let key = of[usize::try_from(random.next() % of.len() as u64).unwrap()];
                    let name = format!("set/{key}");
                    disturb(bucket, &mut random, &name, &originals[key]);
                    std::thread::park_timeout(Duration::from_millis(random.between(1, 200)));
                    bucket.put(&name, &originals[key]);
                }
            });
            let clients: Vec<_> = (0..3)
                .map(|_| {
                    scope.spawn(|| {
                        let end = Instant::now() + Duration::from_secs(2);
                        while Instant::now() < end {
                            fetch(format!("/ipfs/{root}?format=car"));
                        }
                    })
                })
                .collect();
            // Real clients meanwhile: what they call a success is one.
            let car = carrack.path(&format!("round-{round}.car"));
            let url = format!("{}/ipfs/{root}?format=car", server.url);
            if finish(curl(&url, &car)).status.success() {
                let got = fs::read(&car).unwrap();
                assert!(&got == whole_car, "curl got other bytes");
            }
            let car = carrack.path(&format!("lassie-{round}.car"));
            let fetched = finish(lassie(server, &root, carrack.dir(), &car));
            if fetched.status.success() {
                let got = carrack.path(&format!("lassie-{round}"));
                kubo_has_the_tree(&car, &root, &tree, &got);
            }
            let joined: Vec<_> = clients.into_iter().map(|client| client.join()).collect();
            drop(end);
            assert!(joined.iter().all(Result::is_ok), "a client saw wrong bytes");
        });
        eprintln!("{n_whole:?} whole, {n_cut:?} cut, {n_refused:?} refused");
        bucket.nothing_is_open();
        // All objects are back as they were: an add finds them, and everything is served again.
        assert_eq!(carrack.add(&[Bucket::url("set/")]), [root.as_str()]);
        let car = server.get(&format!("/ipfs/{root}?format=car")).ok();
        assert!(&car.body == whole_car);
    }
}
