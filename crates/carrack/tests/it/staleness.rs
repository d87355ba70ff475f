//! A source file changes behind carrack's back: refused, named in `status`, served again when it is
//! put back, and never wrong bytes.

use std::collections::BTreeSet;
use std::fs::{self, File, FileTimes};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::support::{Carrack, Server, car, data, http};

/// Exit code for a source that changed.
const CHANGED: i32 = 7;
const LEN: u64 = 300_000;

struct Setup {
    carrack: Carrack,
    server: Server,
    /// Of the file that changes; its root is its only block.
    file: PathBuf,
    root: String,
    /// Of the folder with that file, and a sibling.
    folder: String,
    sibling: String,
}

fn setup() -> Setup {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    fs::create_dir(&tree).unwrap();
    let file = tree.join("b file");
    data::file(&tree.join("a sibling"), 41, LEN);
    data::file(&file, 42, LEN);
    let folder = carrack.add_one(&tree);
    let root = carrack.add_one(&file);
    let sibling = carrack.add_one(&tree.join("a sibling"));
    let server = carrack.serve::<&str>(&[]);
    Setup {
        carrack,
        server,
        file,
        root,
        folder,
        sibling,
    }
}

impl Setup {
    fn is_refused(&self) {
        let Self {
            carrack,
            server,
            root,
            folder,
            sibling,
            ..
        } = self;
        let car = server.get(&format!("/ipfs/{root}?format=car"));
        assert_eq!(car.status, 409, "{}", String::from_utf8_lossy(&car.body));
        assert_eq!(server.get(&format!("/ipfs/{root}?format=raw")).status, 404);
        let folder = server.get(&format!("/ipfs/{folder}?format=car"));
        assert!(
            folder.status == 409 || !folder.whole,
            "a CAR without its file looks whole"
        );
        server.get(&format!("/ipfs/{sibling}?format=car")).ok();
        carrack.run(&["cat", root]).exits(CHANGED);
        let states = self.states();
        assert!(!states.is_empty(), "status names no file");
        assert!(
            !states.contains("touched"),
            "status knows more than that: {states:?}"
        );
        assert_ne!(carrack.run(&["verify", root]).code(), 0);
    }

    fn is_served(&self, expected: &[u8]) {
        let Self {
            carrack,
            server,
            root,
            folder,
            ..
        } = self;
        let raw = server.get(&format!("/ipfs/{root}?format=raw")).ok();
        assert_eq!(raw.body, expected);
        server.get(&format!("/ipfs/{root}?format=car")).ok();
        server.get(&format!("/ipfs/{folder}?format=car")).ok();
        assert_eq!(carrack.run(&["cat", root]).ok().stdout, expected);
        carrack.run(&["verify"]).ok();
        // Its times are others; that its bytes are not is known.
        let states = self.states();
        assert!(states.iter().all(|state| state == "touched"), "{states:?}");
        carrack.add_one(&self.file);
        carrack.add_one(self.file.parent().unwrap());
        assert_eq!(self.states(), BTreeSet::new(), "after another add");
    }

    /// What `status` says of the file; it must not name another.
    fn states(&self) -> BTreeSet<String> {
        let status = self.carrack.run(&["status", "--json"]).ok().json();
        let stale = status[0]["stale"].as_array().unwrap();
        let text = |value: &serde_json::Value| value.as_str().unwrap().to_owned();
        assert!(
            stale
                .iter()
                .all(|entry| text(&entry["path"]).ends_with("b file")),
            "{stale:?}"
        );
        stale.iter().map(|entry| text(&entry["state"])).collect()
    }
}

/// Changes the file by `change`, checks the refusal, undoes it by `restore`, checks that it serves.
fn changed_and_back(change: impl Fn(&Path), restore: impl Fn(&Path, &[u8])) {
    let setup = setup();
    let before = fs::read(&setup.file).unwrap();
    change(&setup.file);
    setup.is_refused();
    restore(&setup.file, &before);
    setup.is_served(&before);
}

#[test]
fn a_file_that_grew() {
    changed_and_back(
        |file| fs::write(file, vec![1; 400_000]).unwrap(),
        |file, before| fs::write(file, before).unwrap(),
    );
}

#[test]
fn a_file_that_was_truncated() {
    changed_and_back(
        |file| {
            File::options()
                .write(true)
                .open(file)
                .unwrap()
                .set_len(100)
                .unwrap()
        },
        |file, before| fs::write(file, before).unwrap(),
    );
}

#[test]
fn a_file_that_went_away() {
    changed_and_back(
        |file| fs::rename(file, file.with_file_name("elsewhere")).unwrap(),
        |file, _| fs::rename(file.with_file_name("elsewhere"), file).unwrap(),
    );
}

#[test]
fn a_file_replaced_by_another_of_its_size() {
    changed_and_back(
        |file| {
            fs::rename(file, file.with_file_name("elsewhere")).unwrap();
            data::file(file, 43, LEN);
        },
        |file, _| fs::rename(file.with_file_name("elsewhere"), file).unwrap(),
    );
}

/// Size and modification time are as before; change time and hash are not.
#[test]
fn one_byte_edited_and_the_time_restored() {
    let with_time_kept = |file: &Path, offset: u64, byte: u8| {
        let modified = fs::metadata(file).unwrap().modified().unwrap();
        let handle = File::options().write(true).open(file).unwrap();
        handle.write_all_at(&[byte], offset).unwrap();
        handle
            .set_times(FileTimes::new().set_modified(modified))
            .unwrap();
    };
    changed_and_back(
        |file| with_time_kept(file, 1_000, fs::read(file).unwrap()[1_000] ^ 0xff),
        |file, before| with_time_kept(file, 1_000, before[1_000]),
    );
}

/// Times change when a backup restores a file; the bytes are what counts.
#[test]
fn a_touched_file_with_the_same_bytes_is_served() {
    let setup = setup();
    let bytes = fs::read(&setup.file).unwrap();
    fs::write(&setup.file, &bytes).unwrap();
    setup.is_served(&bytes);
}

#[test]
fn a_changed_file_is_served_under_its_new_root_after_the_next_add() {
    let setup = setup();
    data::file(&setup.file, 44, LEN / 2);
    let root = setup.carrack.add_one(&setup.file);
    assert_ne!(root, setup.root);
    let bytes = fs::read(&setup.file).unwrap();
    assert_eq!(
        setup
            .server
            .get(&format!("/ipfs/{root}?format=raw"))
            .ok()
            .body,
        bytes
    );
    assert_eq!(
        setup
            .server
            .get(&format!("/ipfs/{}?format=raw", setup.root))
            .status,
        404
    );
}

/// The change comes when the answer has begun: the stream is cut, and the reader sees it.
#[test]
fn a_change_after_the_first_byte_cuts_the_stream() {
    let carrack = Carrack::new();
    let file = carrack.path("large");
    data::file(&file, 45, 64 << 20);
    let root = carrack.add_one(&file);
    let handle = File::options().write(true).open(&file).unwrap();
    handle.write_all_at(b"changed", 60 << 20).unwrap();
    let server = carrack.serve::<&str>(&[]);
    let answer = server.get(&format!("/ipfs/{root}?format=car"));
    assert!(
        answer.status == 409 || !answer.whole,
        "a CAR with a changed file looks whole"
    );
}

/// Six bytes in the third of five leaves: it is refused and named, and whatever needs it; the other
/// leaves are served, also after a restart. Put back, all is served.
#[test]
fn a_damaged_range_is_named_and_the_rest_is_served() {
    const LEAF: u64 = 1 << 20;
    let carrack = Carrack::new();
    let file = carrack.path("five leaves");
    data::file(&file, 46, 5 * LEAF);
    let before = fs::read(&file).unwrap();
    let root = carrack.add_one(&file);
    let leaves: Vec<String> = before
        .chunks(LEAF as usize)
        .map(|leaf| car::raw(leaf).to_string())
        .collect();
    let write = |bytes: &[u8]| {
        let handle = File::options().write(true).open(&file).unwrap();
        handle.write_all_at(bytes, 2 * LEAF + 500).unwrap();
    };
    write(b"rotten");
    let check = |server: &Server, bad: Option<usize>| {
        for (index, leaf) in leaves.iter().enumerate() {
            let expected = if bad == Some(index) { 404 } else { 200 };
            for _ in 0..2 {
                let raw = server.get(&format!("/ipfs/{leaf}?format=raw"));
                assert_eq!(raw.status, expected, "{index}");
                let head = http::request(
                    &server.url,
                    "HEAD",
                    &format!("/ipfs/{leaf}?format=raw"),
                    &[],
                );
                assert_eq!(head.status, expected, "HEAD {index}");
                let one = server.get(&format!("/ipfs/{leaf}?format=car"));
                assert_eq!(one.status, if bad == Some(index) { 409 } else { 200 });
            }
        }
        let whole = server.get(&format!("/ipfs/{root}?format=car"));
        assert_eq!(whole.status == 200 && whole.whole, bad.is_none());
        let tail = format!("/ipfs/{root}?format=car&entity-bytes={}:*", 3 * LEAF);
        let tail = server.get(&tail);
        assert!(tail.status == 200 && tail.whole, "beside the damage");
    };
    let server = carrack.serve::<&str>(&[]);
    check(&server, Some(2));
    let status = carrack.run(&["status", "--json"]).ok().json();
    let ranges = &status[0]["stale"][0]["ranges"];
    assert_eq!(ranges[0]["offset"], 2 * LEAF);
    assert_eq!(ranges[0]["len"], LEAF);
    assert_eq!(ranges.as_array().unwrap().len(), 1);
    let named = format!("bytes {}..{}", 2 * LEAF, 3 * LEAF);
    assert!(carrack.run(&["status"]).ok().text().contains(&named));
    let verify = carrack.run(&["verify"]);
    assert!(verify.code() != 0 && verify.text().contains(&named));
    let verify = carrack.run(&["verify", "--json"]).json();
    assert_eq!(
        (&verify[0]["offset"], &verify[0]["len"]),
        (&ranges[0]["offset"], &ranges[0]["len"])
    );
    let (status, _) = server.terminate();
    assert!(status.success());
    let server = carrack.serve::<&str>(&[]);
    check(&server, Some(2));
    write(&before[2 * LEAF as usize + 500..][..6]);
    check(&server, None);
    carrack.run(&["verify"]).ok();
}
