//! The everyday commands: what they print, how they exit, and that they work beside `serve`.

use std::fs;
use std::process::Stdio;

use crate::support::car::{of_blocks, raw_cid, text};
use crate::support::{Carrack, data, finish};

#[test]
fn add_prints_one_object_a_root() {
    let carrack = Carrack::new();
    let path = carrack.path("file");
    data::file(&path, 1, 3 << 20);
    let printed = carrack
        .run(&["add", "--json", path.to_str().unwrap()])
        .ok()
        .json();
    assert_eq!(printed.len(), 1);
    assert_eq!(printed[0]["bytes"], 3 << 20);
    assert_eq!(printed[0]["blocks"], 4);
    assert_eq!(printed[0]["path"], path.to_str().unwrap());
    assert_eq!(printed[0]["cid"], carrack.add_one(&path));
}

/// The first add reads the content; the second looks at names and times alone.
#[test]
fn an_unchanged_tree_is_not_read_again() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 2, 400, 50_000);
    data::file(&tree.join("large"), 3, 20 << 20);
    let add = ["add", "-Q", tree.to_str().unwrap()];
    let first = carrack.run(&add).ok();
    assert!(first.read_bytes > 20 << 20, "{}", first.read_bytes);
    let second = carrack.run(&add).ok();
    assert_eq!(first.words(), second.words());
    assert!(
        second.read_bytes < 5 << 20,
        "the second add read {} bytes",
        second.read_bytes
    );
    let report = carrack.run(&["add", "--json", add[2]]).ok().json();
    assert_eq!(report[0]["bytes_hashed"], 0);
}

#[test]
fn one_changed_file_is_read_alone() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::tree(&tree, 4, 400, 50_000);
    data::file(&tree.join("large"), 5, 20 << 20);
    let before = carrack.add_one(&tree);
    data::file(&tree.join("fresh"), 6, 1_000);
    let report = carrack
        .run(&["add", "--json", tree.to_str().unwrap()])
        .ok()
        .json();
    assert_ne!(report[0]["cid"], before);
    assert_eq!(report[0]["bytes_hashed"], 1_000);
    let elsewhere = Carrack::new();
    assert_eq!(report[0]["cid"], elsewhere.add_one(&tree));
}

#[test]
fn cat_gives_files_and_ranges() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    fs::create_dir_all(tree.join("sub")).unwrap();
    let path = tree.join("sub/file name");
    data::file(&path, 7, (2 << 20) + 100);
    let bytes = fs::read(&path).unwrap();
    let root = carrack.add_one(&tree);
    let target = format!("{root}/sub/file name");
    assert_eq!(carrack.run(&["cat", &target]).ok().stdout, bytes);
    for (range, expected) in [
        ("0-0", &bytes[..1]),
        ("1048575-1048576", &bytes[1_048_575..1_048_577]),
        ("2097152-", &bytes[2_097_152..]),
        ("-10", &bytes[bytes.len() - 10..]),
    ] {
        assert_eq!(
            carrack.run(&["cat", &target, "--range", range]).ok().stdout,
            expected,
            "{range}"
        );
    }
    for spelling in [
        format!("ipfs://{root}/sub/file%20name"),
        format!("/ipfs/{root}/sub/file name"),
        format!("http://127.0.0.1:8080/ipfs/{root}/sub/file%20name"),
    ] {
        assert_eq!(
            carrack.run(&["cat", &spelling]).ok().stdout,
            bytes,
            "{spelling}"
        );
    }
}

#[test]
fn exit_codes_tell_what_went_wrong() {
    let carrack = Carrack::new();
    let absent = text(&raw_cid(b"nowhere"));
    carrack.run(&["no-such-command"]).exits(2);
    carrack.run(&["cat", "not-a-cid"]).exits(2);
    carrack.run(&["cat", &absent]).exits(3);
    carrack.run(&["export", &absent]).exits(3);
    carrack.run(&["verify", &absent]).exits(3);
    carrack.run(&["rm", &absent]).exits(3);
    carrack.run(&["add", "--profile", "nonsense", "."]).exits(2);
    let path = carrack.path("absent");
    assert_ne!(carrack.run(&["add", path.to_str().unwrap()]).code(), 0);
    let file = carrack.path("file");
    data::file(&file, 8, 10);
    let root = carrack.add_one(&file);
    carrack
        .run(&["cat", &format!("{root}/below/a/file")])
        .exits(3);
}

#[test]
fn ls_lists_roots_and_entries() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    data::folder(&tree, 7_000);
    let root = carrack.add_one(&tree);
    let roots = carrack.run(&["ls", "--json"]).ok().json();
    assert_eq!((roots.len(), &roots[0]["cid"]), (1, &root.clone().into()));
    let entries = carrack.run(&["ls", &root, "--json"]).ok().json();
    let mut names: Vec<&str> = entries
        .iter()
        .map(|entry| entry["name"].as_str().unwrap())
        .collect();
    names.sort_unstable();
    assert_eq!(names.len(), 7_000);
    assert_eq!((names[0], names[6_999]), ("entry-000000", "entry-006999"));
}

#[test]
fn a_removed_root_is_gone_and_what_another_needs_stays() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    fs::create_dir(&tree).unwrap();
    data::file(&tree.join("kept"), 9, 50_000);
    data::file(&tree.join("dropped"), 10, 50_000);
    let folder = carrack.add_one(&tree);
    let kept = carrack.add_one(&tree.join("kept"));
    carrack.run(&["rm", &folder]).ok();
    carrack.run(&["cat", &format!("{folder}/dropped")]).exits(3);
    assert_eq!(carrack.run(&["cat", &kept]).ok().stdout.len(), 50_000);
    assert_eq!(carrack.add_one(&tree), folder);
    assert_eq!(
        carrack
            .run(&["cat", &format!("{folder}/dropped")])
            .ok()
            .stdout
            .len(),
        50_000
    );
}

#[test]
fn a_car_on_standard_input_is_copied() {
    let carrack = Carrack::new();
    let blocks: Vec<Vec<u8>> = (0_u8..50).map(|number| vec![number; 1_000]).collect();
    let car = carrack.path("in.car");
    fs::write(&car, of_blocks(&blocks)).unwrap();
    let mut command = carrack.command(&["import", "--copy", "-Q", "-"]);
    command.stdin(fs::File::open(&car).unwrap());
    assert_eq!(finish(command).ok().words(), [text(&raw_cid(&blocks[0]))]);
    fs::remove_file(car).unwrap();
    for block in &blocks {
        assert_eq!(
            carrack.run(&["cat", &text(&raw_cid(block))]).ok().stdout,
            *block
        );
    }
}

#[test]
fn the_reader_of_a_pipe_may_leave_early() {
    let carrack = Carrack::new();
    let file = carrack.path("file");
    data::file(&file, 11, 20 << 20);
    let root = carrack.add_one(&file);
    let mut child = carrack
        .command(&["cat", &root])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

/// Hidden files are counted, symbolic links kept, sockets and FIFOs passed over, each in a line.
#[test]
fn special_files_have_a_stated_behaviour() {
    let carrack = Carrack::new();
    let tree = carrack.path("tree");
    fs::create_dir_all(tree.join(".hidden folder")).unwrap();
    fs::write(tree.join(".hidden folder/file"), b"hidden").unwrap();
    fs::write(tree.join(".hidden"), b"hidden").unwrap();
    fs::write(tree.join("plain"), b"plain").unwrap();
    std::os::unix::fs::symlink("plain", tree.join("link")).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(tree.join("socket")).unwrap();
    let fifo = tree.join("fifo");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &fifo,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    let outcome = carrack.run(&["add", tree.to_str().unwrap()]);
    for word in ["symlink", "hidden", "sockets"] {
        assert!(
            outcome.stderr.contains(word),
            "no word of {word}: {}",
            outcome.stderr
        );
    }
    let root = outcome.words()[0].clone();
    let names = |root: &str| {
        let entries = carrack.run(&["ls", root, "--json"]).ok().json();
        let name = |entry: &serde_json::Value| entry["name"].as_str().unwrap().to_owned();
        let mut names: Vec<String> = entries.iter().map(name).collect();
        names.sort_unstable();
        names
    };
    assert_eq!(names(&root), ["link", "plain"]);
    let with_hidden = carrack.add(&["--hidden", tree.to_str().unwrap()]);
    assert_eq!(
        names(&with_hidden[0]),
        [".hidden", ".hidden folder", "link", "plain"]
    );
}

/// The store has one owner; while that is `serve`, it carries out the other commands.
#[test]
fn commands_work_while_serve_runs() {
    let carrack = Carrack::new();
    let [one, two] = ["one", "two"].map(|name| carrack.path(name));
    data::file(&one, 12, 3 << 20);
    data::tree(&two, 13, 50, 10_000);
    let server = carrack.serve(&[&one]);
    let root = carrack.add_one(&two);
    let answer = server.get(&format!("/ipfs/{root}?format=car")).ok();
    let exported = fs::read(carrack.export(&root, "out.car")).unwrap();
    assert_eq!(answer.body, exported);
    assert_eq!(carrack.run(&["ls", "--json"]).ok().json().len(), 2);
    carrack.run(&["status"]).ok();
    carrack.run(&["verify"]).ok();
    let blocks: Vec<Vec<u8>> = (0_u8..50).map(|number| vec![number; 100]).collect();
    let car = carrack.path("in.car");
    fs::write(&car, of_blocks(&blocks)).unwrap();
    let mut command = carrack.command(&["import", "--copy", "-Q", "-"]);
    command.stdin(fs::File::open(&car).unwrap());
    finish(command).ok();
    let raw = server
        .get(&format!("/ipfs/{}?format=raw", text(&raw_cid(&blocks[7]))))
        .ok();
    assert_eq!(raw.body, blocks[7]);
    carrack.run(&["rm", &root]).ok();
    for format in ["raw", "car"] {
        let path = format!("/ipfs/{root}?format={format}");
        assert_eq!(server.get(&path).status, 404, "{format}");
        assert_eq!(
            crate::support::http::request(&server.url, "HEAD", &path, &[]).status,
            404,
            "{format}"
        );
    }
}

#[test]
fn a_second_serve_on_one_store_says_who_has_it() {
    let carrack = Carrack::new();
    let _server = carrack.serve::<&str>(&[]);
    carrack.run(&["serve", "--listen", "127.0.0.1:0"]).exits(10);
}

/// What is added once is served by the next `serve`, which needs no argument.
#[test]
fn roots_outlive_the_process() {
    let carrack = Carrack::new();
    let file = carrack.path("file");
    data::file(&file, 14, 3 << 20);
    let server = carrack.serve(&[&file]);
    server.kill();
    let root = carrack.run(&["ls", "--json"]).ok().json()[0]["cid"]
        .as_str()
        .unwrap()
        .to_owned();
    let server = carrack.serve::<&str>(&[]);
    server.get(&format!("/ipfs/{root}?format=car")).ok();
}

#[test]
fn serve_ends_cleanly_when_asked() {
    let carrack = Carrack::new();
    let file = carrack.path("file");
    data::file(&file, 15, 1 << 20);
    let server = carrack.serve(&[&file]);
    server.get("/ipfs/bafkqaaa?format=raw").ok();
    let (status, log) = server.terminate();
    assert_eq!(status.code(), Some(0), "{log}");
    carrack.run(&["status"]).ok();
}

/// A 404 needs no look at any source, and tells nothing else apart.
#[test]
fn what_is_not_here_is_404() {
    let carrack = Carrack::new();
    let server = carrack.serve::<&str>(&[]);
    let absent = text(&raw_cid(b"nowhere"));
    for format in ["raw", "car"] {
        assert_eq!(
            server
                .get(&format!("/ipfs/{absent}?format={format}"))
                .status,
            404
        );
    }
    assert_eq!(server.get("/ipfs/not-a-cid?format=raw").status, 400);
}

/// The key is made by whoever comes first; `id` needs no store, and disturbs none.
#[test]
fn id_prints_the_peer_id_alone_also_beside_serve() {
    let carrack = Carrack::new();
    let first = carrack.run(&["id"]).ok();
    let peer_id = first.text().trim_end().to_owned();
    assert_eq!(first.text(), format!("{peer_id}\n"));
    assert!(peer_id.starts_with("12D3KooW"), "{peer_id}");
    let server = carrack.serve::<&str>(&[]);
    let object = &carrack.run(&["id", "--json"]).ok().json()[0];
    assert_eq!(object["peer_id"], peer_id);
    drop(server);
    assert_eq!(carrack.run(&["id"]).ok().text(), first.text());
}

#[test]
fn serve_takes_its_configuration_and_refuses_what_means_nothing() {
    let carrack = Carrack::new();
    let path = carrack.path("bounds.toml");
    let name = path.to_str().unwrap();
    fs::write(&path, "[bitswap]\nwants_max = 1000\n").unwrap();
    drop(carrack.serve(&["--config", name]));
    fs::write(&path, "[bitswap]\nwant_max = 1000\n").unwrap();
    let refused = carrack.run(&["serve", "--listen", "127.0.0.1:0", "--config", name]);
    let refused = refused.exits(2);
    let expected = "bounds.toml:2: unknown field `want_max`, expected one of `wants_per_peer_max`";
    assert!(refused.stderr.contains(expected), "{}", refused.stderr);
}

/// An interval that no clock can add to a time is refused, not met by a panic.
#[test]
fn intervals_beyond_any_clock_are_refused() {
    let carrack = Carrack::new();
    for interval in ["0", "31536001", "18446744073709551615"] {
        let place = carrack.path("");
        let mut command = carrack.command(&["serve", "--watch", "--watch-interval", interval]);
        command.arg(place);
        let outcome = finish(command).exits(2);
        assert!(
            outcome.stderr.contains("--watch-interval"),
            "{}",
            outcome.stderr
        );
    }
}
