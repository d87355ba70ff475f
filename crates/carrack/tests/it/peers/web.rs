//! A web server as a source: nginx, over TLS as it is met in the world.
//!
//! In       nginx, a certificate of an authority that nobody knows, curl.
//! Out      tests of add, serve, import and rescan; of trust, and of where logins go.
//! Not here what a faulty server does (`s3_places`, `sources`), listings (their unit tests).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, SystemTime};

use carrack_testkit::{Certificate, Nginx, Proxy, Site};

use super::s3_fetch::{LITTLE_MEMORY, mixed};
use crate::peers::{program, run};
use crate::sources::is_nowhere;
use crate::support::s3::Bucket;
use crate::support::{Carrack, Outcome, data, finish};

const SECRET: &str = "hunter2hunter2";

/// nginx without TLS, behind the proxy.
pub(super) struct Plain {
    _nginx: Nginx,
    pub(super) proxy: Proxy,
}

impl Plain {
    pub(super) fn new(state: &Path, files: &Path) -> Self {
        let nginx = Nginx::start(&program("nginx"), &Site::new(state, files)).unwrap();
        Self {
            proxy: Proxy::start(nginx.address()).unwrap(),
            _nginx: nginx,
        }
    }
}

/// A store that trusts an authority, and that authority's servers.
struct Setup {
    carrack: Carrack,
    certificate: Certificate,
    files: PathBuf,
}

impl Setup {
    fn new() -> Self {
        let mut carrack = Carrack::new();
        let certificate = Certificate::make(&program("openssl"), &carrack.path("tls")).unwrap();
        carrack.trust(&certificate.authority);
        let files = carrack.path("files");
        fs::create_dir(&files).unwrap();
        Self {
            carrack,
            certificate,
            files,
        }
    }

    /// nginx with TLS on the files, and `lines` in its configuration.
    fn https(&self, name: &str, lines: &str) -> Nginx {
        let state = self.carrack.path(name);
        let site = Site {
            certificate: Some(&self.certificate),
            lines,
            ..Site::new(&state, &self.files)
        };
        Nginx::start(&program("nginx"), &site).unwrap()
    }

    fn http(&self, name: &str, lines: &str) -> Nginx {
        let state = self.carrack.path(name);
        let site = Site {
            lines,
            ..Site::new(&state, &self.files)
        };
        Nginx::start(&program("nginx"), &site).unwrap()
    }

    /// `source add` with a login.
    fn add_with_login(&self, url: &str) -> Outcome {
        self.add_allowing(url, &[])
    }

    /// The same of a source that may be sent on to other places.
    fn add_allowing(&self, url: &str, others: &[&str]) -> Outcome {
        let file = self.carrack.path("login");
        fs::write(&file, format!("Authorization: Bearer {SECRET}\n")).unwrap();
        let reference = format!("file:{}", file.display());
        let mut args = vec!["source", "add", url, "--credentials", &reference];
        for other in others {
            args.extend(["--allow-redirect", *other]);
        }
        self.carrack.run(&args)
    }

    /// What curl gets of a server of ours.
    fn curl(&self, url: &str) -> Vec<u8> {
        let file = self.carrack.path("curl.car");
        let mut command = Command::new(program("curl"));
        command
            .args(["--silent", "--show-error", "--fail", "--output"])
            .arg(&file)
            .arg(url);
        run(command);
        fs::read(file).unwrap()
    }
}

/// The root and the CAR that the same files have as a folder of this machine.
fn as_a_folder(files: &Path) -> (String, Vec<u8>) {
    let local = Carrack::new();
    let root = local.add_one(files);
    let car = fs::read(local.export(&root, "local.car")).unwrap();
    (root, car)
}

/// As an editor writes: another time, at another second.
fn replace(file: &Path, content: &[u8]) {
    fs::write(file, content).unwrap();
    let later = SystemTime::now() + Duration::from_secs(5);
    fs::File::open(file).unwrap().set_modified(later).unwrap();
}

#[test]
fn one_command_serves_a_directory_behind_tls() {
    let setup = Setup::new();
    mixed(&setup.files, 70, 6 << 20);
    let nginx = setup.https("nginx", "");
    let (root, expected) = as_a_folder(&setup.files);
    let url = format!("{}/", nginx.url());
    let server = setup.carrack.serve(&[&url]);
    let car = setup.curl(&format!("{}/ipfs/{root}?format=car", server.url));
    assert!(car == expected, "another CAR than of the folder");
    drop(server);
    assert_eq!(setup.carrack.add(&[&url]), [root]);
    let requests = nginx.requests().unwrap();
    assert!(
        requests.iter().any(|line| line.contains("range=bytes=")),
        "no range was asked for"
    );
    let of_kept_connections = requests.iter().filter(|line| {
        let n_of_connection = line.split(' ').nth(1).unwrap();
        n_of_connection != "1"
    });
    let n_kept = of_kept_connections.count();
    assert!(
        n_kept * 2 > requests.len(),
        "{n_kept} of {} requests came over connections that were open",
        requests.len()
    );
}

#[test]
fn a_server_that_keeps_no_connection_open_is_read_all_the_same() {
    let setup = Setup::new();
    data::tree(&setup.files, 71, 20, 60_000);
    data::file(&setup.files.join("large"), 72, (3 << 20) + 7);
    let nginx = setup.https("nginx", "keepalive_timeout 0;");
    let (root, expected) = as_a_folder(&setup.files);
    let url = format!("{}/", nginx.url());
    let server = setup.carrack.serve(&[&url]);
    let car = server.get(&format!("/ipfs/{root}?format=car")).ok();
    assert!(car.body == expected);
}

#[test]
fn a_file_that_changed_behind_tls_is_refused_until_a_rescan_takes_it_up() {
    let setup = Setup::new();
    data::tree(&setup.files, 73, 10, 60_000);
    let changing = setup.files.join("changing");
    data::file(&changing, 74, (2 << 20) + 5);
    let nginx = setup.https("nginx", "");
    let url = format!("{}/", nginx.url());
    let root = setup.carrack.add(&[&url]).remove(0);
    let (_, expected) = as_a_folder(&setup.files);
    let server = setup.carrack.serve(&LITTLE_MEMORY);
    let get = |root: &str| server.get(&format!("/ipfs/{root}?format=car"));
    assert!(get(&root).ok().body == expected);

    let mut content = fs::read(&changing).unwrap();
    content[1 << 20] ^= 1;
    replace(&changing, &content);
    let refused = get(&format!("{root}/changing"));
    assert!(
        refused.status == 409 || !refused.whole,
        "{}",
        refused.status
    );
    let first = &expected[..refused.body.len().min(expected.len())];
    assert!(refused.status == 409 || first.len() < expected.len());
    // The first request that finds it may have begun to answer; the next knows.
    assert_eq!(get(&format!("{root}/changing")).status, 409);

    let rescanned = setup.carrack.run(&["source", "rescan", &url]).ok();
    let (now, expected) = as_a_folder(&setup.files);
    assert!(rescanned.text().contains(&now), "{}", rescanned.text());
    assert!(get(&now).ok().body == expected);
}

#[test]
fn a_certificate_of_an_unknown_authority_says_what_to_do_and_leaves_nothing() {
    let setup = Setup::new();
    data::file(&setup.files.join("file"), 75, 1_000);
    let nginx = setup.https("nginx", "");
    let stranger = Carrack::new();
    let url = format!("{}/", nginx.url());
    for args in [
        &["add", "-Q", &url][..],
        &["source", "add", &url],
        &["serve", "--listen", "127.0.0.1:0", &url],
    ] {
        let mut command = stranger.command(args);
        command.env_remove("SSL_CERT_FILE");
        let outcome = finish(command).exits(8);
        let told = &outcome.stderr;
        assert!(told.contains("SSL_CERT_FILE"), "{told}");
        assert!(told.contains("certificate"), "{told}");
        assert!(!told.contains("panicked"), "{told}");
        assert!(outcome.stdout.is_empty(), "{}", outcome.text());
    }
    for list in [&["ls", "--json"][..], &["source", "list", "--json"]] {
        assert!(stranger.run(list).ok().json().is_empty(), "{list:?}");
    }
    assert!(nginx.requests().unwrap().is_empty(), "it was asked");
}

#[test]
fn a_place_that_fails_is_forgotten_and_one_that_was_taken_stays() {
    let setup = Setup::new();
    data::file(&setup.files.join("file"), 83, 1_000);
    let nginx = setup.https("nginx", "");
    let (good, bad) = (format!("{}/", nginx.url()), "https://127.0.0.1:9/set/");
    let sources = || {
        let listed = setup.carrack.run(&["source", "list", "--json"]).ok().json();
        let name = |source: &serde_json::Value| source["name"].as_str().unwrap().to_owned();
        listed.iter().map(name).collect::<Vec<_>>()
    };
    setup.carrack.run(&["add", "-Q", &good, bad]).exits(6);
    assert_eq!(sources(), [good.as_str()]);
    // One that was there before stays, whatever becomes of it.
    let missing = format!("{good}missing.car");
    setup.carrack.run(&["import", &missing]).exits(2);
    setup
        .carrack
        .run(&[
            "source",
            "add",
            &good.replace("127.0.0.1", "localhost"),
            "--no-scan",
        ])
        .ok();
    let missing = missing.replace("127.0.0.1", "localhost");
    setup.carrack.run(&["add", "-Q", &missing]).exits(2);
    assert_eq!(sources().len(), 2);
}

/// As in a container that holds carrack alone.
#[test]
fn a_machine_without_certificates_reads_what_is_not_encrypted() {
    let setup = Setup::new();
    data::file(&setup.files.join("file"), 82, 1_000);
    let (root, _) = as_a_folder(&setup.files);
    let (plain, encrypted) = (setup.http("plain", ""), setup.https("encrypted", ""));
    let bucket = Bucket::new();
    bucket.put_tree("set/", &setup.files);
    let alone = Carrack::reaching(&bucket);
    let add = |url: &str| {
        let mut command = alone.command(&["add", "-Q", url]);
        command.env_remove("SSL_CERT_DIR");
        command.env("SSL_CERT_FILE", "/nonexistent");
        finish(command)
    };
    for url in [format!("{}/", plain.url()), Bucket::url("set/")] {
        assert_eq!(add(&url).ok().words(), [root.as_str()], "{url}");
    }
    let refused = add(&format!("{}/", encrypted.url())).exits(2);
    assert!(refused.stderr.contains("ca-certificates"), "{refused:?}");
}

#[test]
fn a_car_behind_tls_is_imported_and_read_there_by_ranges() {
    let setup = Setup::new();
    let tree = setup.carrack.path("tree");
    data::tree(&tree, 76, 20, 60_000);
    data::file(&tree.join("large"), 77, (3 << 20) + 7);
    let (root, expected) = as_a_folder(&tree);
    fs::write(setup.files.join("x.car"), &expected).unwrap();
    let nginx = setup.https("nginx", "");
    let url = format!("{}/x.car", nginx.url());
    let imported = setup.carrack.run(&["import", &url]).ok();
    assert!(imported.text().contains(&root), "{}", imported.text());
    let server = setup.carrack.serve(&LITTLE_MEMORY);
    let n_before = nginx.requests().unwrap().len();
    let car = setup.curl(&format!("{}/ipfs/{root}?format=car", server.url));
    assert!(car == expected, "another CAR than of the folder");
    drop(server);
    let requests = nginx.requests().unwrap();
    let read = &requests[n_before..];
    assert!(!read.is_empty(), "nothing was read of the CAR");
    for line in read {
        assert!(line.contains(" 206 GET /x.car range=bytes="), "{line}");
    }
}

#[test]
fn a_login_stays_with_its_server_when_that_sends_on_to_another() {
    let setup = Setup::new();
    let files = setup.files.join("set");
    data::tree(&files, 78, 5, 60_000);
    data::file(&files.join("moved"), 79, (2 << 20) + 3);
    let other = setup.https("other", "");
    let lines = format!(
        "if ($http_authorization != \"Bearer {SECRET}\") {{ return 401; }}\n\
         location = /set/moved {{ return 302 {}/set/moved; }}",
        other.url()
    );
    let first = setup.https("first", &lines);
    let url = format!("{}/set/", first.url());
    let refused = setup.carrack.run(&["add", "-Q", &url]).exits(8);
    assert!(refused.stderr.contains("--credentials"), "{refused:?}");

    let added = setup.add_allowing(&url, &[other.url()]).ok();
    let (root, expected) = as_a_folder(&files);
    assert!(added.text().contains(&root), "{}", added.text());
    let server = setup.carrack.serve(&LITTLE_MEMORY);
    let car = server.get(&format!("/ipfs/{root}?format=car")).ok();
    assert!(car.body == expected);
    drop(server);
    let got = |nginx: &Nginx| {
        let requests = nginx.requests().unwrap().into_iter();
        requests.partition::<Vec<_>, _>(|line| line.contains(SECRET))
    };
    let (with, _) = got(&first);
    assert!(!with.is_empty(), "the login was not sent at all");
    let (with, without) = got(&other);
    assert!(with.is_empty(), "the login went to another: {with:?}");
    let reads_in_place = |line: &&String| line.contains(" 206 GET /set/moved range=bytes=");
    assert!(without.iter().any(|line| reads_in_place(&line)));
    is_nowhere(&setup.carrack.path("data"), SECRET.as_bytes());
}

/// Also the own server's other port is another server: the error says whom to name.
#[test]
fn a_login_that_did_not_go_along_is_what_the_error_speaks_of() {
    let setup = Setup::new();
    data::file(&setup.files.join("file"), 80, 1_000);
    let wants_login = format!("if ($http_authorization != \"Bearer {SECRET}\") {{ return 401; }}");
    let encrypted = setup.https("encrypted", &wants_login);
    let plain = setup.http("plain", &format!("return 301 {}$uri;", encrypted.url()));
    let url = format!("{}/file", plain.url());
    let outcome = setup.add_with_login(&url).exits(2);
    assert!(outcome.stderr.contains(encrypted.url()), "{outcome:?}");
    assert!(encrypted.requests().unwrap().is_empty(), "nobody named it");
    let outcome = setup.add_allowing(&url, &[encrypted.url()]).exits(8);
    assert!(outcome.stderr.contains(encrypted.url()), "{outcome:?}");
    assert!(!outcome.stderr.contains(SECRET), "{outcome:?}");
    for line in encrypted.requests().unwrap() {
        assert!(line.ends_with("authorization=-"), "{line}");
    }
}

#[test]
fn nothing_is_asked_of_a_place_without_tls_that_one_with_it_sends_on_to() {
    let setup = Setup::new();
    data::file(&setup.files.join("file"), 81, 1_000);
    let plain = setup.http("plain", "");
    let lines = format!("location = /moved {{ return 302 {}/file; }}", plain.url());
    let encrypted = setup.https("encrypted", &lines);
    let url = format!("{}/moved", encrypted.url());
    let outcome = setup.add_with_login(&url);
    assert_ne!(outcome.code(), 0);
    assert!(outcome.stdout.is_empty(), "{}", outcome.text());
    assert!(outcome.stderr.contains("not encrypted"), "{outcome:?}");
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
    assert!(plain.requests().unwrap().is_empty(), "it was asked");
    assert!(setup.carrack.run(&["ls", "--json"]).ok().json().is_empty());
}

#[test]
fn a_server_that_sends_on_for_ever_is_left_after_a_few_requests() {
    let setup = Setup::new();
    let nginx = setup.https("nginx", "location = /round { return 302 /round; }");
    let url = format!("{}/round", nginx.url());
    let outcome = setup.carrack.run(&["add", "-Q", &url]);
    assert_ne!(outcome.code(), 0);
    assert!(outcome.stderr.contains("redirects"), "{outcome:?}");
    let n_requests = nginx.requests().unwrap().len();
    assert!(n_requests <= 12, "{n_requests} requests"); // Of a HEAD, and of a GET.
}

/// Buckets behind web servers sign the URLs that they send on to.
#[test]
fn a_signature_that_a_redirect_carries_is_told_to_nobody() {
    let setup = Setup::new();
    fs::write(
        setup.files.join("list"),
        "#carrack-manifest\nhttps://elsewhere.invalid/a\n",
    )
    .unwrap();
    fs::write(setup.files.join("keys"), "<ListBucketResult><Contents>").unwrap();
    let other = setup.https("other", "default_type text/plain;");
    let (to, signature) = (other.url(), format!("?signature={SECRET}"));
    let lines = format!(
        "location = /list.txt {{ return 302 {to}/list{signature}; }}\n\
         location = /keys/ {{ return 302 {to}/keys{signature}; }}\n\
         location = /gone {{ return 302 {to}/gone{signature}; }}"
    );
    let first = setup.https("first", &lines);
    for name in ["list.txt", "keys/", "gone"] {
        let url = format!("{}/{name}", first.url());
        for allowed in [&["--allow-redirect", other.url()][..], &[]] {
            let args = [&["source", "add", &url][..], allowed].concat();
            let mut command = setup.carrack.command(&args);
            command.env("RUST_LOG", "trace");
            let outcome = finish(command);
            assert_ne!(outcome.code(), 0, "{name}");
            assert!(outcome.stderr.contains(&url), "{outcome:?}");
            assert!(!outcome.stderr.contains(SECRET), "{outcome:?}");
        }
    }
    is_nowhere(&setup.carrack.path("data"), SECRET.as_bytes());
}
