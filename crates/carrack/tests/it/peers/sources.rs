//! Sources as the code sees them: each real server passes the one suite, and each fault of a server
//! gives the right bytes or an error that says what to do.
//!
//! In       versitygw, MinIO, moto and nginx, behind the faulty proxy.
//! Out      tests of `carrack::source`.
//! Not here what carrack makes of it (`s3_faults`, `s3_fetch`).

use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use bytes::Bytes;
use carrack::source::config::{Environment, SourceConfig};
use carrack::source::conformance::{Place, run};
use carrack::source::retry::Patient;
use carrack::source::validator::ObjectStamp;
use carrack::source::{Listed, Source, SourceError, SourceErrorKind};
use carrack_testkit::{Conduct, Fault};
use futures_util::StreamExt;
use tempfile::TempDir;

use super::web::Plain;
use crate::support::s3::Bucket;

const SECRET_NAME: &str = "AWS_SECRET_ACCESS_KEY";

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
}

fn environment(bucket: &Bucket) -> Environment {
    let variables = bucket.environment().into_iter();
    Environment::new(variables.map(|(name, value)| (name.to_owned(), value)))
}

fn open_bucket(bucket: &Bucket, prefix: &str) -> Arc<dyn Source> {
    let config = SourceConfig {
        url: Bucket::url(prefix),
        endpoint: bucket.proxy.url(),
        ..SourceConfig::default()
    };
    carrack::source::open::open(&config, &environment(bucket)).unwrap()
}

fn open_web(url: &str) -> Arc<dyn Source> {
    let config = SourceConfig {
        url: url.to_owned(),
        ..SourceConfig::default()
    };
    carrack::source::open::open(&config, &Environment::default()).unwrap()
}

struct InBucket<'a>(&'a Bucket);

impl Place for InBucket<'_> {
    fn put(&self, path: &str, content: &[u8]) {
        self.0.put(&format!("set/{path}"), content);
    }

    fn delete(&self, path: &str) {
        self.0.server.delete(&format!("set/{path}")).unwrap();
    }
}

struct InFolder(PathBuf);

impl Place for InFolder {
    fn put(&self, path: &str, content: &[u8]) {
        let path = self.0.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let part = self.0.with_extension("part");
        fs::write(&part, content).unwrap();
        // nginx makes its tags of the length and the second.
        let later = std::time::SystemTime::now() + Duration::from_secs(content.len() as u64 % 97);
        fs::File::open(&part).unwrap().set_modified(later).unwrap();
        if path.is_file() {
            let before = fs::metadata(&path).unwrap().modified().unwrap();
            let later = before + Duration::from_secs(2);
            fs::File::open(&part).unwrap().set_modified(later).unwrap();
        }
        fs::rename(part, path).unwrap();
    }

    fn delete(&self, path: &str) {
        fs::remove_file(self.0.join(path)).unwrap();
    }
}

#[test]
fn a_bucket_of_versitygw_is_a_source() {
    let bucket = Bucket::new();
    let source = open_bucket(&bucket, "set/");
    runtime().block_on(run(source, &InBucket(&bucket)));
    bucket.nothing_is_open();
}

#[test]
fn a_bucket_of_minio_is_a_source() {
    let bucket = Bucket::minio();
    let source = open_bucket(&bucket, "set");
    runtime().block_on(run(source, &InBucket(&bucket)));
    bucket.nothing_is_open();
}

#[test]
fn a_directory_of_nginx_is_a_source() {
    let dir = TempDir::new().unwrap();
    let files = dir.path().join("files");
    fs::create_dir_all(files.join("set")).unwrap();
    let nginx = Plain::new(&dir.path().join("nginx"), &files);
    let source = open_web(&format!("{}/set/", nginx.proxy.url()));
    runtime().block_on(run(source, &InFolder(files.join("set"))));
}

#[test]
fn keys_that_no_directory_can_have_are_listed_as_odd() {
    let bucket = Bucket::moto();
    let odd = ["a//b", "a/../b", "./a", "..", "/a"];
    for key in odd.iter().chain(&["folder/", "good"]) {
        let content = if *key == "folder/" { "" } else { key };
        bucket.put(key, content.as_bytes());
    }
    bucket.put("folder with content/", b"x");
    let source = open_bucket(&bucket, "");
    let (mut objects, mut odd_found, mut folders) = (Vec::new(), Vec::new(), Vec::new());
    runtime().block_on(async {
        let mut listed = source.list(b"");
        while let Some(listed) = listed.next().await {
            match listed.unwrap() {
                Listed::Object { path, .. } => objects.push(String::from_utf8(path).unwrap()),
                Listed::Folder { path } => folders.push(String::from_utf8(path).unwrap()),
                Listed::Hidden { path } => panic!("{path:?}"),
                Listed::List => panic!("a bucket is no list"),
                Listed::Odd { path, .. } => odd_found.push(String::from_utf8(path).unwrap()),
            }
        }
    });
    let mut odd: Vec<&str> = odd.into_iter().chain(["folder with content/"]).collect();
    odd.sort_unstable();
    odd_found.sort_unstable();
    assert_eq!(folders, ["folder"]);
    assert_eq!(
        (objects, odd_found),
        (
            vec!["good".to_owned()],
            odd.iter().map(|s| (*s).to_owned()).collect()
        )
    );
}

async fn read(
    source: &Arc<dyn Source>,
    stamp: &ObjectStamp,
    range: Range<u64>,
) -> Result<Vec<u8>, SourceError> {
    let mut pieces = source.read(b"object", stamp, range).await?;
    let mut bytes = Vec::new();
    while let Some(piece) = pieces.next().await {
        bytes.extend_from_slice(&piece?);
    }
    Ok(bytes)
}

/// Every fault but a flipped bit, which only a hash can find.
#[test]
fn each_fault_of_a_server_is_an_error_of_its_kind_or_right_bytes() {
    use SourceErrorKind::{Changed, Denied, Missing, Throttled, Unreachable, Unusable};
    let bucket = Bucket::new();
    let content: Vec<u8> = (0..3_000_000_u32)
        .map(|at| (at / 3).to_le_bytes()[0])
        .collect();
    bucket.put("set/object", &content);
    let source = open_bucket(&bucket, "set");
    let status = |code| Fault::Status {
        code,
        retry_after: None,
    };
    let late = 2_000_000..2_500_000;
    let whole = 0..content.len() as u64;
    let runtime = runtime();
    let stamp = runtime.block_on(source.stat(b"object")).unwrap();
    for (fault, range, kinds) in [
        (status(404), late.clone(), &[Missing][..]),
        (status(403), late.clone(), &[Denied]),
        (status(412), late.clone(), &[Changed]),
        (status(429), late.clone(), &[Throttled]),
        (status(500), late.clone(), &[Unreachable]),
        (status(503), late.clone(), &[Throttled]),
        (Fault::Refuse, late.clone(), &[Unreachable]),
        (Fault::Reset, late.clone(), &[Unreachable]),
        (Fault::Cut, late.clone(), &[Unreachable]),
        (Fault::Short, late.clone(), &[Unreachable]),
        (Fault::OtherVersion, late.clone(), &[Changed]),
        (Fault::IgnoreRange, late.clone(), &[Unusable]),
        (Fault::RangeAs200, late.clone(), &[Unusable]),
        (Fault::WrongContentRange, late.clone(), &[Unusable]),
        (Fault::Gzip, late.clone(), &[Unusable]),
        (Fault::Gzip, whole.clone(), &[Unusable]),
        // The beginning could be read, and nothing behind it: told before it is taken.
        (Fault::IgnoreRange, whole, &[Unusable]),
    ] {
        bucket.proxy.set(Conduct::always(fault.clone()));
        let result = runtime.block_on(read(&source, &stamp, range.clone()));
        match result {
            Ok(bytes) => {
                let range = range.start as usize..range.end as usize;
                assert!(kinds.is_empty() && bytes == content[range], "{fault:?}");
            }
            Err(error) => {
                assert!(kinds.contains(&error.kind), "{fault:?}: {error:?}");
                assert!(error.what.contains("s3://data/set/object"), "{error}");
            }
        }
        bucket.proxy.clear();
    }
    bucket.nothing_is_open();
}

#[test]
fn a_read_goes_on_through_drops_and_throttling_and_reads_nothing_twice() {
    let bucket = Bucket::new();
    let content: Vec<u8> = (0..6_000_000_u32)
        .map(|at| (at / 7).to_le_bytes()[0])
        .collect();
    bucket.put("set/object", &content);
    let source = open_bucket(&bucket, "set");
    let runtime = runtime();
    let stamp = runtime.block_on(source.stat(b"object")).unwrap();
    let throttled = Fault::Status {
        code: 503,
        retry_after: None,
    };
    let conduct = Conduct::default()
        .with(Fault::Cut, 0.5)
        .with(throttled, 0.4);
    bucket.proxy.set(conduct);
    let _ = runtime.block_on(source.stat(b"object")); // The first answer is spared.
    bucket.proxy.reset_counts();
    let range = 5..content.len() as u64;
    let mut bytes = Vec::new();
    let reading = read_on(&source, &stamp, range, |piece| {
        bytes.extend_from_slice(&piece)
    });
    runtime.block_on(reading).unwrap();
    assert!(bytes == content[5..]);
    let counts = bucket.proxy.counts();
    assert!(counts.faults >= 2, "{counts:?}");
    // Each byte once, and what was on its way when a connection broke off.
    assert!(counts.body_bytes < 7_000_000, "{counts:?}");
}

#[test]
fn a_read_that_is_resumed_never_splices_two_versions() {
    let bucket = Bucket::new();
    let content = vec![1; 4_000_000];
    bucket.put("set/object", &content);
    let source = open_bucket(&bucket, "set");
    let runtime = runtime();
    let stamp = runtime.block_on(source.stat(b"object")).unwrap();
    bucket.proxy.set(Conduct::always(Fault::Cut));
    let mut n_bytes = 0;
    let reading = read_on(&source, &stamp, 0..4_000_000, |piece| {
        let is_old = piece.iter().all(|byte| *byte == 1);
        assert!(is_old, "bytes of another version");
        if n_bytes == 0 {
            bucket.put("set/object", &vec![2; 4_000_000]);
        }
        n_bytes += piece.len();
    });
    let error = runtime.block_on(reading).unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Changed);
    assert!((1..4_000_000).contains(&n_bytes), "{n_bytes}");
}

/// Reads as adds and imports do: on and on, as long as it is the same version.
async fn read_on(
    source: &Arc<dyn Source>,
    stamp: &ObjectStamp,
    range: Range<u64>,
    on: impl FnMut(Bytes) + Send,
) -> Result<(), SourceError> {
    let patient = Patient {
        source: source.as_ref(),
        limiter: &Arc::default(),
        attempts: 5,
        n_throttled: &AtomicU64::new(0),
    };
    patient.each_piece(b"object", stamp, range, on).await
}

#[test]
fn wrong_keys_and_wrong_hosts_say_what_to_do_and_tell_no_secret() {
    let bucket = Bucket::minio();
    bucket.put("object", b"content");
    let runtime = runtime();
    let stat = |endpoint: &str, secret: Option<&str>, credentials: &str| {
        let variables = bucket
            .environment()
            .into_iter()
            .filter_map(|(name, value)| {
                let value = if name == SECRET_NAME {
                    secret?.to_owned()
                } else {
                    value
                };
                Some((name.to_owned(), value))
            });
        let config = SourceConfig {
            url: Bucket::url(""),
            endpoint: endpoint.to_owned(),
            credentials: credentials.to_owned(),
            ..SourceConfig::default()
        };
        let source = carrack::source::open::open(&config, &Environment::new(variables))?;
        assert!(
            !format!("{source:?}").contains("hunter2hunter2"),
            "{source:?}"
        );
        runtime.block_on(source.stat(b"object"))
    };
    let here = bucket.proxy.url();
    for (endpoint, secret, credentials, kind, word) in [
        (
            here.as_str(),
            Some("hunter2hunter2"),
            "env",
            SourceErrorKind::Denied,
            "credentials",
        ),
        (&here, None, "env", SourceErrorKind::Unusable, SECRET_NAME),
        (
            &here,
            Some("hunter2hunter2"),
            "none",
            SourceErrorKind::Denied,
            "without credentials",
        ),
        (
            "http://no-such-host.invalid",
            Some("hunter2hunter2"),
            "env",
            SourceErrorKind::Unreachable,
            "AWS_ENDPOINT_URL",
        ),
        (
            "http://127.0.0.1:1",
            Some("x"),
            "none",
            SourceErrorKind::Unreachable,
            "AWS_ENDPOINT_URL",
        ),
        (
            "127.0.0.1:1",
            Some("x"),
            "none",
            SourceErrorKind::Unusable,
            "http",
        ),
    ] {
        let error = stat(endpoint, secret, credentials).unwrap_err();
        assert_eq!(error.kind, kind, "{error:?}");
        assert!(error.what.contains(word), "{error}");
        assert!(!format!("{error} {error:?}").contains("hunter2"), "{error}");
    }
}

#[test]
fn keys_of_a_profile_are_read_from_its_file() {
    let bucket = Bucket::minio();
    bucket.put("object", b"content");
    let dir = TempDir::new().unwrap();
    let keys: Vec<(&str, String)> = bucket.environment();
    let value = |name: &str| keys.iter().find(|(key, _)| *key == name).unwrap().1.clone();
    let (id, secret) = (value("AWS_ACCESS_KEY_ID"), value(SECRET_NAME));
    let text = format!("[work]\naws_access_key_id={id}\naws_secret_access_key = {secret}\n");
    let file = dir.path().join("credentials");
    fs::write(&file, text).unwrap();
    let file = file.display().to_string();
    for (credentials, variables) in [
        (
            "profile:work",
            vec![("AWS_SHARED_CREDENTIALS_FILE", file.clone())],
        ),
        (
            &format!("file:{file}"),
            vec![("AWS_PROFILE", "work".to_owned())],
        ),
        (
            "env",
            vec![
                ("AWS_PROFILE", "work".to_owned()),
                ("AWS_SHARED_CREDENTIALS_FILE", file.clone()),
            ],
        ),
    ] {
        let variables = variables
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value));
        let config = SourceConfig {
            url: Bucket::url(""),
            endpoint: bucket.proxy.url(),
            credentials: credentials.to_owned(),
            ..SourceConfig::default()
        };
        let source = carrack::source::open::open(&config, &Environment::new(variables)).unwrap();
        let stamp = runtime().block_on(source.stat(b"object")).unwrap();
        assert_eq!(stamp.size, 7, "{credentials}");
        assert!(!format!("{source:?}").contains(&secret), "{source:?}");
    }
}

#[test]
fn a_hang_ends_at_its_deadline() {
    let bucket = Bucket::new();
    bucket.put("set/object", &vec![1; 100_000]);
    let source = open_bucket(&bucket, "set");
    let runtime = runtime();
    let stamp = runtime.block_on(source.stat(b"object")).unwrap();
    bucket.proxy.set(Conduct::always(Fault::Hang));
    let began = Instant::now();
    let error = runtime
        .block_on(read(&source, &stamp, 0..100_000))
        .unwrap_err();
    assert_eq!(error.kind, SourceErrorKind::Unreachable, "{error}");
    assert!(
        began.elapsed() < Duration::from_secs(15),
        "{:?}",
        began.elapsed()
    );
    bucket.proxy.clear();
    drop((source, runtime));
    bucket.nothing_is_open();
}
