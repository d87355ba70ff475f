//! Web servers and buckets that send elsewhere, tell half of what they have, or lie about it.
//!
//! In       servers of the test's own (`support::web`), and Python's.
//! Out      tests of add, source add, import and serve: what is taken is whole, what is not taken
//!          is named, and nothing is asked of a place that nobody named.
//! Not here nginx with TLS and logins (`peers::web`), deadlines (unit tests of `source::http`).

use std::ffi::OsStr;
use std::fs;
use std::net::{TcpStream, ToSocketAddrs};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::support::web::{Asked, Web};
use crate::support::{Carrack, Outcome, data};

const SECRET: &str = "hunter2hunter2";
const CONTENT: &[u8] = b"what was meant to be served";
const MOVED: &[u8] = b"what was here before it was sent on";
const INSIDE: &[u8] = b"what only this machine may read";

/// A service that nobody named.
fn inside() -> Web {
    Web::start(|asked| asked.file(INSIDE))
}

/// A listing of `good` and of `moved`, which is sent on to `to` once `flag` says so.
fn sends_on(to: &str, flag: &Arc<AtomicBool>) -> Web {
    let (to, flag) = (format!("{to}/moved"), Arc::clone(flag));
    Web::start(move |asked| match asked.target.as_str() {
        "/" => asked.page(&[b"good", b"moved"]),
        "/moved" if flag.load(Ordering::SeqCst) => asked.sends_on(&to),
        "/moved" => asked.file(MOVED),
        _ => asked.file(CONTENT),
    })
}

fn now() -> Arc<AtomicBool> {
    Arc::new(AtomicBool::new(true))
}

fn folder_url(web: &Web) -> String {
    format!("{}/", web.url())
}

/// The root that a folder of this machine has.
fn root_of(folder: &Path) -> String {
    Carrack::new().add_one(folder)
}

/// The one root that a command printed with `-Q`.
fn one_root(outcome: &Outcome) -> String {
    let words = outcome.words();
    assert_eq!(words.len(), 1, "{outcome:?}");
    words[0].clone()
}

#[test]
fn a_listed_file_that_is_sent_on_to_another_service_is_named_and_nothing_is_asked_there() {
    let inside = inside();
    let web = sends_on(&inside.url(), &now());
    let carrack = Carrack::new();
    let added = carrack.run(&["add", "-Q", &folder_url(&web)]).exits(6);
    assert!(inside.asked().is_empty(), "{:?}", inside.asked());
    let told = &added.stderr;
    assert!(
        told.contains("moved") && told.contains(&inside.url()),
        "{told}"
    );
    assert!(told.contains("--allow-redirect"), "{told}");
    let folder = carrack.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("good"), CONTENT).unwrap();
    assert_eq!(one_root(&added), root_of(&folder));
}

#[test]
fn a_single_file_that_is_sent_on_to_another_service_is_refused() {
    let inside = inside();
    let web = sends_on(&inside.url(), &now());
    let url = format!("{}/moved", web.url());
    for args in [&["add", "-Q", &url][..], &["import", &url]] {
        let carrack = Carrack::new();
        let refused = carrack.run(args);
        assert_ne!(refused.code(), 0, "{refused:?}");
        assert!(refused.stderr.contains(&inside.url()), "{refused:?}");
        assert!(carrack.run(&["ls", "--json"]).ok().json().is_empty());
    }
    assert!(inside.asked().is_empty(), "{:?}", inside.asked());
}

#[test]
fn what_is_served_may_not_begin_to_lead_elsewhere() {
    let inside = inside();
    let flag = Arc::new(AtomicBool::new(false));
    let web = sends_on(&inside.url(), &flag);
    let carrack = Carrack::new();
    let root = carrack.add(&[&folder_url(&web)]).remove(0);
    flag.store(true, Ordering::SeqCst);
    let server = carrack.serve::<&str>(&[]);
    assert_eq!(
        server.get(&format!("/ipfs/{root}/good?format=raw")).status,
        200
    );
    let answer = server.get(&format!("/ipfs/{root}/moved?format=raw"));
    assert_ne!(answer.status, 200);
    assert!(inside.asked().is_empty(), "{:?}", inside.asked());
}

#[test]
fn a_place_that_the_source_names_may_be_sent_on_to_and_gets_no_login() {
    let other = Web::start(|asked| asked.file(CONTENT));
    let web = sends_on(&other.url(), &now());
    let carrack = Carrack::new();
    let login = carrack.path("login");
    fs::write(&login, format!("Authorization: Bearer {SECRET}\n")).unwrap();
    let (url, credentials) = (folder_url(&web), format!("file:{}", login.display()));
    let args = [
        "source",
        "add",
        "--name",
        "set",
        &url,
        "--credentials",
        &credentials,
    ];
    let added = carrack.run(&[&args[..], &["--allow-redirect", &other.url()]].concat());
    let root = added
        .ok()
        .words()
        .iter()
        .find(|word| word.starts_with("baf"))
        .unwrap()
        .clone();
    // Another process serves it: what was allowed is kept.
    let server = carrack.serve::<&str>(&[]);
    assert_eq!(
        server
            .get(&format!("/ipfs/{root}/moved?format=raw"))
            .ok()
            .body,
        CONTENT
    );
    drop(server);
    assert!(web.asked().iter().all(|asked| asked.head.contains(SECRET)));
    assert!(!other.asked().is_empty());
    assert!(
        other
            .asked()
            .iter()
            .all(|asked| !asked.head.contains(SECRET))
    );
    let listed = carrack.run(&["source", "list", "--json"]).ok().json();
    assert_eq!(listed[0]["redirects"][0], other.url());
    assert_eq!(listed[0]["private"], false);
}

/// A name of this machine that leads to its loopback address, and is not `localhost`.
fn private_name() -> Option<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
    let name = name.trim().to_owned();
    let mut addresses = (name.as_str(), 0).to_socket_addrs().ok()?;
    let is_here = addresses.all(|address| address.ip().is_loopback());
    (is_here && name != "localhost").then_some(name)
}

#[test]
fn a_name_that_leads_into_this_machine_is_a_source_only_if_that_is_said() {
    let Some(name) = private_name() else {
        eprintln!("the name of this machine does not lead to 127.0.0.1: see source::reach");
        return;
    };
    let web = Web::start(|asked| match asked.target.as_str() {
        "/" => asked.page(&[b"file"]),
        _ => asked.file(CONTENT),
    });
    let url = format!("http://{name}:{}/", web.port());
    let serve = ["serve", "--listen", "127.0.0.1:0", "--p2p", "off", &url];
    for args in [&["add", &url][..], &["source", "add", &url], &serve] {
        let carrack = Carrack::new();
        let refused = carrack.run(args).exits(2);
        assert!(refused.stderr.contains("--allow-private"), "{refused:?}");
        assert!(refused.stderr.contains("127.0.0.1"), "{refused:?}");
        assert!(
            carrack
                .run(&["source", "list", "--json"])
                .ok()
                .json()
                .is_empty()
        );
    }
    assert!(web.asked().is_empty(), "{:?}", web.asked());
    let carrack = Carrack::new();
    carrack
        .run(&["source", "add", &url, "--allow-private"])
        .ok();
    let root = carrack.run(&["ls", "--json"]).ok().json()[0]["cid"].clone();
    let server = carrack.serve::<&str>(&[]);
    let path = format!("/ipfs/{}/file?format=raw", root.as_str().unwrap());
    assert_eq!(server.get(&path).ok().body, CONTENT);
    // What was typed as an address, or as localhost, is meant.
    for host in ["127.0.0.1", "localhost"] {
        let url = format!("http://{host}:{}/", web.port());
        assert_eq!(
            Carrack::new().add(&[&url]),
            [root.as_str().unwrap()],
            "{host}"
        );
    }
}

/// Links as careless servers write them: each is an entry.
const ODD_NAMES: [&[u8]; 7] = [
    b"Note: x",
    b"what?.txt",
    b"a#b",
    b"caf\xe9",
    b"100% sure",
    b"back\\slash",
    "ünï".as_bytes(),
];

/// `percent-decoded` target, for a server that takes names as bytes.
fn decoded(target: &str) -> Vec<u8> {
    let bytes = target.as_bytes();
    let (mut out, mut at) = (Vec::new(), 0);
    while at < bytes.len() {
        let hex = bytes
            .get(at + 1..at + 3)
            .and_then(|hex| std::str::from_utf8(hex).ok());
        match (
            bytes[at],
            hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()),
        ) {
            (b'%', Some(byte)) => {
                out.push(byte);
                at += 3;
            }
            (byte, _) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    out
}

#[test]
fn each_entry_of_a_listing_is_taken_or_named() {
    let web = Web::start(|asked| {
        let path = decoded(&asked.target);
        let name = path.strip_prefix(b"/").unwrap();
        match name {
            b"" => {
                let mut links = ODD_NAMES.to_vec();
                links.extend([
                    &b"plain"[..],
                    b"gone",
                    b"denied",
                    b"sub",
                    b"empty/",
                    b"?C=N;O=D",
                ]);
                links.extend([&b".git/"[..], b"javascript:void(0)", b"#top", b"../"]);
                asked.page(&links)
            }
            // A folder that is linked without its slash.
            b"sub" => asked.sends_on("/sub/"),
            b"sub/" => asked.page(&[b"inner", b"deeper"]),
            b"sub/deeper" => asked.answer(301, "Location: deeper/\r\n", b""),
            b"sub/deeper/" => asked.page(&[b"deepest"]),
            b"empty/" => asked.page(&[b"../"]),
            b"plain" | b"sub/inner" | b"sub/deeper/deepest" => asked.file(CONTENT),
            b"denied" => asked.answer(403, "", b""),
            name if ODD_NAMES.contains(&name) => asked.file(name),
            _ => asked.answer(404, "", b""),
        }
    });
    let carrack = Carrack::new();
    let added = carrack.run(&["add", "-Q", &folder_url(&web)]).exits(6);
    for name in ["/gone", "/denied"] {
        assert!(added.stderr.contains(name), "{name}: {}", added.stderr);
    }
    assert!(
        added.stderr.contains("2 files are not part"),
        "{}",
        added.stderr
    );
    assert_eq!(web.n_asked("/.git"), 0, "nobody asked for what is hidden");
    let folder = carrack.path("folder");
    fs::create_dir_all(folder.join("sub/deeper")).unwrap();
    fs::create_dir(folder.join("empty")).unwrap();
    for name in ["plain", "sub/inner", "sub/deeper/deepest"] {
        fs::write(folder.join(name), CONTENT).unwrap();
    }
    for name in ODD_NAMES {
        fs::write(folder.join(OsStr::from_bytes(name)), name).unwrap();
    }
    assert_eq!(one_root(&added), root_of(&folder));
    // With what is hidden, its folder that cannot be listed is named, and nothing ends.
    let added = carrack
        .run(&["add", "-Q", "--hidden", &folder_url(&web)])
        .exits(6);
    assert!(added.stderr.contains(".git"), "{}", added.stderr);
    assert_eq!(one_root(&added), root_of(&folder));
}

/// Behind another server, a server names its own port and scheme when it adds a slash.
#[test]
fn a_folder_that_is_sent_on_to_the_port_behind_is_looked_for_where_it_was_asked_for() {
    let behind = inside();
    let port = behind.port();
    let web = Web::start(move |asked| match asked.target.as_str() {
        "/" => asked.page(&[b"sub"]),
        "/sub" => asked.sends_on(&format!("http://127.0.0.1:{port}/sub/")),
        "/sub/" => asked.page(&[b"inner"]),
        _ => asked.file(CONTENT),
    });
    let carrack = Carrack::new();
    let folder = carrack.path("folder");
    fs::create_dir_all(folder.join("sub")).unwrap();
    fs::write(folder.join("sub/inner"), CONTENT).unwrap();
    assert_eq!(carrack.add(&[&folder_url(&web)]), [root_of(&folder)]);
    assert!(behind.asked().is_empty(), "{:?}", behind.asked());
}

#[test]
fn a_folder_that_cannot_be_listed_is_named_and_the_rest_is_taken() {
    let web = Web::start(|asked| match asked.target.as_str() {
        "/" => asked.page(&[b"a", b"closed/", b"lost/", b"program/", b"z/"]),
        "/z/" => asked.page(&[b"file"]),
        "/closed/" => asked.answer(403, "", b""),
        "/lost/" => asked.answer(404, "", b""),
        "/program/" => asked.answer(200, "Content-Type: text/plain\r\n", b"hello"),
        _ => asked.file(CONTENT),
    });
    let carrack = Carrack::new();
    let added = carrack.run(&["add", "-Q", &folder_url(&web)]).exits(6);
    for name in ["/closed", "/lost", "/program"] {
        assert!(added.stderr.contains(name), "{name}: {}", added.stderr);
    }
    let folder = carrack.path("folder");
    fs::create_dir_all(folder.join("z")).unwrap();
    fs::write(folder.join("a"), CONTENT).unwrap();
    fs::write(folder.join("z/file"), CONTENT).unwrap();
    assert_eq!(one_root(&added), root_of(&folder));
}

#[test]
fn a_folder_that_shows_its_index_page_is_named() {
    let index = b"<html><body><a href=\"a\">a</a> <a href=\"https://elsewhere.invalid/\">e</a>";
    let web = Web::start(|asked| match asked.target.as_str() {
        "/" => asked.page(&[b"site/"]),
        "/site/" | "/site/index.html" => asked.file_with("Content-Type: text/html\r\n", index),
        "/site/a" | "/site/unlinked" => asked.file(CONTENT),
        _ => asked.answer(404, "", b""),
    });
    let carrack = Carrack::new();
    let added = carrack.run(&["add", "-Q", &folder_url(&web)]).exits(6);
    assert!(added.stderr.contains("/site: "), "{}", added.stderr);
    assert!(added.stderr.contains("index.html"), "{}", added.stderr);
    let folder = carrack.path("folder");
    fs::create_dir_all(folder.join("site")).unwrap();
    fs::write(folder.join("site/a"), CONTENT).unwrap();
    fs::write(folder.join("site/index.html"), index).unwrap();
    assert_eq!(one_root(&added), root_of(&folder));
}

#[test]
fn strict_makes_a_failure_of_what_would_be_left_out() {
    let web = Web::start(|asked| match asked.target.as_str() {
        "/" => asked.page(&[b"a", b"gone"]),
        "/a" => asked.file(CONTENT),
        _ => asked.answer(404, "", b""),
    });
    let url = folder_url(&web);
    for args in [
        &["add", "--strict", &url][..],
        &["add", "--strict", "--wrap", &url],
        &["source", "add", "--strict", &url],
    ] {
        let carrack = Carrack::new();
        let refused = carrack.run(args).exits(8);
        assert!(refused.stderr.contains("/gone"), "{refused:?}");
        assert!(!refused.text().contains("baf"), "{refused:?}");
        assert!(carrack.run(&["ls", "--json"]).ok().json().is_empty());
    }
    let added = Carrack::new().run(&["add", "-Q", &url]).exits(6);
    one_root(&added);
}

/// A bucket without a login that lists `keys` and has `CONTENT` behind each that is no marker.
fn bucket(keys: &'static [&'static str]) -> Web {
    Web::start(move |asked| {
        if !asked.target.contains("list-type=2") {
            return asked.file(CONTENT);
        }
        let prefix = asked.target.split("prefix=").nth(1).unwrap_or("");
        let prefix = prefix.replace("%2F", "/");
        let mut xml = "<ListBucketResult>".to_owned();
        for key in keys.iter().filter(|key| key.starts_with(&prefix)) {
            let len = if key.ends_with('/') { 0 } else { CONTENT.len() };
            xml.push_str(&format!(
                "<Contents><Key>{key}</Key><Size>{len}</Size>\
                 <ETag>\"tag-{len}\"</ETag></Contents>"
            ));
        }
        xml.push_str("<IsTruncated>false</IsTruncated></ListBucketResult>");
        asked.answer(200, "Content-Type: application/xml\r\n", xml.as_bytes())
    })
}

#[test]
fn an_empty_folder_of_a_bucket_is_an_empty_directory() {
    let web = bucket(&["a", "deep/er/", "full/", "full/b"]);
    let carrack = Carrack::new();
    let folder = carrack.path("folder");
    fs::create_dir_all(folder.join("deep/er")).unwrap();
    fs::create_dir(folder.join("full")).unwrap();
    fs::write(folder.join("a"), CONTENT).unwrap();
    fs::write(folder.join("full/b"), CONTENT).unwrap();
    let expected = root_of(&folder);
    let args = [
        "source",
        "add",
        "s3://bucket",
        "--endpoint",
        &web.url(),
        "--credentials",
        "none",
    ];
    let added = carrack.run(&args).ok();
    assert!(added.text().contains(&expected), "{}", added.text());
    // The same bucket as a web server shows it.
    let root = Web::start(move |asked| match asked.target.as_str() {
        "/" => asked.answer(200, "", b"<ListBucketResult></ListBucketResult>"),
        _ if asked.target.contains("list-type=2") => asked.answer(
            200,
            "",
            b"<ListBucketResult><Contents><Key>empty/</Key><Size>0</Size></Contents>\
              </ListBucketResult>",
        ),
        _ => asked.file(CONTENT),
    });
    let folder = carrack.path("other");
    fs::create_dir_all(folder.join("empty")).unwrap();
    assert_eq!(
        Carrack::new().add(&[&folder_url(&root)]),
        [root_of(&folder)]
    );
}

#[test]
fn a_page_that_ends_with_its_connection_has_to_say_that_it_ends() {
    let page = |links: &str| {
        let head = "HTTP/1.1 200 X\r\nConnection: close\r\nContent-Type: text/html\r\n\r\n";
        format!("{head}<html><body>{links}").into_bytes()
    };
    let web = Web::start(move |asked| match asked.target.as_str() {
        "/whole/" => page("<a href=\"a\">a</a>\n</body></HTML>\r\n"),
        "/cut/" => page("<a href=\"a\">a</a>\n"),
        "/" => asked.page(&[b"whole/", b"cut/"]),
        _ => asked.file(CONTENT),
    });
    let carrack = Carrack::new();
    let url = |path: &str| format!("{}/{path}", web.url());
    carrack.run(&["add", "-Q", &url("whole/")]).ok();
    let cut = carrack.run(&["add", "-Q", &url("cut/")]);
    assert_ne!(cut.code(), 0, "{cut:?}");
    assert!(cut.stderr.contains("</html>"), "{cut:?}");
    let below = carrack.run(&["add", "-Q", &url("")]).exits(6);
    assert!(below.stderr.contains("/cut"), "{below:?}");
}

/// Lists in a folder, and in a folder of that, and a bucket beside them.
fn lists_in_a_folder() -> Web {
    const LIST: &[u8] = b"#carrack-manifest\nok.txt\nin/ok.txt\n";
    const BUCKET: &[u8] = b"<ListBucketResult><Contents><Key>in/ok.txt</Key><Size>27</Size>\
        </Contents><Contents><Key>ok.txt</Key><Size>27</Size></Contents></ListBucketResult>";
    assert_eq!(CONTENT.len(), 27);
    Web::start(
        |asked| match asked.target.split('?').next().unwrap_or_default() {
            "/r/" => asked.page(&[b"m.txt", b"ok.txt", b"sub/", b"bucket/", b"z/"]),
            "/r/sub/" | "/r/z/" => asked.page(&[b"m.txt", b"ok.txt"]),
            "/r/bucket/" => asked.answer(200, "Content-Type: application/xml\r\n", BUCKET),
            "/r/m.txt" | "/r/sub/m.txt" | "/r/z/m.txt" => asked.file(LIST),
            target if target.ends_with("ok.txt") => asked.file(CONTENT),
            _ => asked.answer(404, "", b""),
        },
    )
}

/// What a list or a bucket comes to does not depend on whether a source holds the folder that it
/// lies in.
#[test]
fn a_list_or_a_bucket_in_a_folder_that_belongs_to_a_source_is_what_it_is_alone() {
    let web = lists_in_a_folder();
    let carrack = Carrack::new();
    let folder = carrack.path("folder");
    fs::create_dir_all(folder.join("in")).unwrap();
    fs::write(folder.join("ok.txt"), CONTENT).unwrap();
    fs::write(folder.join("in/ok.txt"), CONTENT).unwrap();
    let expected = root_of(&folder);
    let whole = carrack
        .run(&["add", "-Q", &format!("{}/r/", web.url())])
        .ok();
    let listed = carrack.run(&["ls", &format!("{}/bucket/in", one_root(&whole))]);
    assert!(
        listed.ok().text().contains("ok.txt"),
        "a bucket below a folder"
    );
    let after = carrack.run(&["ls", &format!("{}/z", one_root(&whole))]);
    assert!(
        after.ok().text().contains("ok.txt"),
        "what comes after a bucket"
    );
    for name in ["m.txt", "sub/m.txt", "bucket/"] {
        let url = format!("{}/r/{name}", web.url());
        for carrack in [&Carrack::new(), &carrack] {
            let added = carrack.run(&["add", "-Q", &url]).ok();
            assert_eq!(one_root(&added), expected, "{name}");
        }
    }
}

#[test]
fn a_head_that_says_zero_is_not_believed() {
    let web = Web::start(
        |asked| match (asked.method.as_str(), asked.target.as_str()) {
            (_, "/") => asked.page(&[b"lied", b"empty"]),
            (_, "/empty") => asked.file(b""),
            ("HEAD", _) => asked.answer(200, "", b""),
            _ => asked.file(CONTENT),
        },
    );
    let carrack = Carrack::new();
    let folder = carrack.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("lied"), CONTENT).unwrap();
    fs::write(folder.join("empty"), b"").unwrap();
    assert_eq!(carrack.add(&[&folder_url(&web)]), [root_of(&folder)]);
}

/// A server that sends the whole of a file, whatever range of it is asked for.
struct Python {
    child: Child,
    url: String,
}

impl Python {
    fn serve(folder: &Path) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let child = Command::new("python3")
            .args(["-m", "http.server", "--bind", "127.0.0.1"])
            .arg(address.port().to_string())
            .arg("--directory")
            .arg(folder)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while TcpStream::connect(address).is_err() {
            assert!(Instant::now() < deadline, "python3 does not start");
            std::thread::park_timeout(Duration::from_millis(20));
        }
        let url = format!("http://{address}");
        Self { child, url }
    }
}

impl Drop for Python {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn of_a_server_without_ranges_small_files_are_served_whole_and_large_ones_are_named() {
    let carrack = Carrack::new();
    let (files, small) = (carrack.path("files"), carrack.path("small"));
    for (index, len) in [1_000, 700_000].into_iter().enumerate() {
        for folder in [&files, &small] {
            fs::create_dir_all(folder).unwrap();
            data::file(&folder.join(format!("{len}")), index as u64, len);
        }
    }
    data::file(&files.join("large"), 7, 3 << 20);
    data::file(&files.join("larger"), 8, 20 << 20);
    let python = Python::serve(&files);
    let added = carrack
        .run(&["add", "-Q", &format!("{}/", python.url)])
        .exits(6);
    for name in ["/large: ", "/larger: ", "ranges"] {
        assert!(added.stderr.contains(name), "{name}: {}", added.stderr);
    }
    let root = one_root(&added);
    assert_eq!(root, root_of(&small));
    // What was taken is served.
    let server = carrack.serve::<&str>(&[]);
    let car = server.get(&format!("/ipfs/{root}?format=car")).ok().body;
    drop(server);
    let local = Carrack::new();
    local.add_one(&small);
    assert!(car == fs::read(local.export(&root, "local.car")).unwrap());
}

/// It is said also where all files are small enough.
#[test]
fn that_a_server_has_no_ranges_is_said_once() {
    let carrack = Carrack::new();
    let files = carrack.path("files");
    data::tree(&files, 9, 8, 60_000);
    let python = Python::serve(&files);
    let added = carrack
        .run(&["add", "-Q", &format!("{}/", python.url)])
        .ok();
    assert_eq!(
        added.stderr.matches("ranges").count(),
        1,
        "{}",
        added.stderr
    );
}

#[test]
fn a_car_on_a_server_without_ranges_is_refused_when_it_is_imported() {
    let carrack = Carrack::new();
    let (tree, files) = (carrack.path("tree"), carrack.path("files"));
    data::tree(&tree, 10, 4, 900_000);
    data::file(&tree.join("large"), 11, 3 << 20);
    fs::create_dir(&files).unwrap();
    let local = Carrack::new();
    let root = local.add_one(&tree);
    fs::copy(local.export(&root, "x.car"), files.join("x.car")).unwrap();
    let python = Python::serve(&files);
    let refused = carrack.run(&["import", &format!("{}/x.car", python.url)]);
    assert_ne!(refused.code(), 0);
    assert!(refused.stderr.contains("ranges"), "{}", refused.stderr);
    assert!(carrack.run(&["ls", "--json"]).ok().json().is_empty());
}

/// A server that answers 200 to a range that is all of the file has ranges all the same.
#[test]
fn a_whole_answer_to_a_whole_range_is_no_lack_of_ranges() {
    let content = data::Seeded::new(12).bytes(3 << 20);
    let served = content.clone();
    let web = Web::start(move |asked| match asked.range(served.len()) {
        _ if asked.target == "/" => asked.page(&[b"one", b"two"]),
        Some((0, last)) if last == served.len() - 1 => {
            let tag = format!("ETag: \"tag-{}\"\r\n", served.len());
            asked.answer(200, &tag, &served)
        }
        _ => asked.file(&served),
    });
    let carrack = Carrack::new();
    let folder = carrack.path("folder");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("one"), &content).unwrap();
    fs::write(folder.join("two"), &content).unwrap();
    assert_eq!(carrack.add(&[&folder_url(&web)]), [root_of(&folder)]);
    let probes = web
        .asked()
        .into_iter()
        .filter(|asked| asked.head.contains("bytes=1-1"));
    assert_eq!(probes.count(), 1, "one probe a server");
}

#[test]
fn bytes_that_are_stored_in_gzip_are_taken_as_they_are() {
    for encoding in ["gzip", "x-gzip"] {
        let content = data::Seeded::new(13).bytes(300_000);
        let served = content.clone();
        let headers =
            format!("Content-Encoding: {encoding}\r\nContent-Type: application/x-tar\r\n");
        let web = Web::start(move |asked| match asked.target.as_str() {
            "/" => asked.page(&[b"data.tar.gz"]),
            _ => asked.file_with(&headers, &served),
        });
        let carrack = Carrack::new();
        let folder = carrack.path("folder");
        fs::create_dir(&folder).unwrap();
        fs::write(folder.join("data.tar.gz"), &content).unwrap();
        let root = root_of(&folder);
        assert_eq!(
            carrack.add(&[&folder_url(&web)]),
            [root.as_str()],
            "{encoding}"
        );
        let server = carrack.serve::<&str>(&[]);
        let car = server
            .get(&format!("/ipfs/{root}/data.tar.gz?format=car"))
            .ok()
            .body;
        assert!(car.windows(1000).any(|window| window == &content[..1000]));
    }
}

/// Made on the way: the length, the tag or the ranges do not speak for it.
#[test]
fn bytes_that_are_encoded_on_the_way_are_named() {
    type Alter = fn(&Asked, &[u8]) -> Vec<u8>;
    let alters: [(&str, Alter); 3] = [
        ("no strong tag", |asked, content| {
            let answer = asked.file_with("Content-Encoding: gzip\r\n", content);
            replaced(answer, b"ETag: \"", b"ETag: W/\"")
        }),
        ("no ranges", |asked, content| {
            let headers = "Content-Encoding: gzip\r\nETag: \"a\"\r\n";
            asked.answer(200, headers, content)
        }),
        ("another tag", |asked, content| {
            let answer = asked.file_with("Content-Encoding: gzip\r\n", content);
            match asked.method.as_str() {
                "HEAD" => replaced(answer, b"ETag: \"tag", b"ETag: \"gat"),
                _ => answer,
            }
        }),
    ];
    for (what, alter) in alters {
        let web = Web::start(move |asked| match asked.target.as_str() {
            "/" => asked.page(&[b"data.gz", b"plain"]),
            "/plain" => asked.file(CONTENT),
            _ => alter(asked, &CONTENT.repeat(100)),
        });
        let added = Carrack::new()
            .run(&["add", "-Q", &folder_url(&web)])
            .exits(6);
        assert!(
            added.stderr.contains("/data.gz: "),
            "{what}: {}",
            added.stderr
        );
    }
}

fn replaced(mut answer: Vec<u8>, from: &[u8], to: &[u8]) -> Vec<u8> {
    let at = answer
        .windows(from.len())
        .position(|window| window == from)
        .unwrap();
    answer.splice(at..at + from.len(), to.iter().copied());
    answer
}

/// Neither the proof nor a dry run takes the login to a server that it was not made for.
#[test]
fn a_source_that_moves_to_another_server_takes_no_login_there() {
    let (web, other) = (
        Web::start(|asked| asked.file(CONTENT)),
        Web::start(|asked| asked.file(CONTENT)),
    );
    let carrack = Carrack::new();
    let login = carrack.path("login");
    fs::write(&login, format!("Authorization: Bearer {SECRET}\n")).unwrap();
    let credentials = format!("file:{}", login.display());
    let (url, place) = (format!("{}/a", web.url()), format!("{}/a", other.url()));
    let add = [
        "source",
        "add",
        "--name",
        "set",
        &url,
        "--credentials",
        &credentials,
    ];
    carrack.run(&add).ok();
    for dry_run in [&["--dry-run"][..], &[]] {
        let args = [&["source", "relocate", "set", &place], dry_run].concat();
        let refused = carrack.run(&args).exits(2);
        assert!(
            refused.stderr.contains("--credentials"),
            "{}",
            refused.stderr
        );
    }
    let told = other.asked();
    assert!(told.iter().all(|asked| !asked.head.contains(SECRET)));
}
