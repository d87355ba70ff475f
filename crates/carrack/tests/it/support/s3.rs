//! A bucket on a real S3 server, seen through a proxy that a test can make slow or faulty.
//!
//! In       a peer's program.
//! Out      [`Bucket`]: objects to put, replace, cut and delete; counts of what was read of it.
//! Limits   one bucket, named `data`, gone with the test.
//! Not here installing the servers (`xtask`), the proxy itself (`carrack-testkit`).

#![allow(dead_code, reason = "what tests of sources take besides")]

use std::path::Path;
use std::time::{Duration, Instant};

use carrack_testkit::s3::{BUCKET, target_of};
use carrack_testkit::{Proxy, S3Server};
use tempfile::TempDir;

use super::http;
use crate::peers;

/// The server, and the proxy that carrack is told to use.
#[derive(Debug)]
pub(crate) struct Bucket {
    pub(crate) proxy: Proxy,
    pub(crate) server: S3Server,
    _dir: TempDir,
}

impl Bucket {
    /// On versitygw, whose objects are files.
    pub(crate) fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let server = S3Server::versitygw(&peers::program("versitygw"), dir.path()).unwrap();
        Self::before(server, dir)
    }

    /// On MinIO.
    pub(crate) fn minio() -> Self {
        let dir = TempDir::new().unwrap();
        let server = S3Server::minio(&peers::program("minio"), dir.path()).unwrap();
        Self::before(server, dir)
    }

    /// On moto, for keys that are no paths.
    pub(crate) fn moto() -> Self {
        let dir = TempDir::new().unwrap();
        let server = S3Server::moto(&peers::program("moto"), dir.path()).unwrap();
        Self::before(server, dir)
    }

    fn before(server: S3Server, dir: TempDir) -> Self {
        Self {
            proxy: Proxy::start(server.address()).unwrap(),
            server,
            _dir: dir,
        }
    }

    /// What carrack needs to find in its environment.
    pub(crate) fn environment(&self) -> Vec<(&'static str, String)> {
        S3Server::environment(&self.proxy.url()).to_vec()
    }

    /// `s3://data/KEY`
    pub(crate) fn url(key: &str) -> String {
        format!("s3://{BUCKET}/{key}")
    }

    pub(crate) fn put(&self, key: &str, content: &[u8]) {
        self.server.put(key, content).unwrap();
    }

    /// Puts every file below `dir`, its key `prefix` and its path.
    pub(crate) fn put_tree(&self, prefix: &str, dir: &Path) {
        for (name, content) in super::data::contents(dir) {
            self.put(&format!("{prefix}{name}"), &content);
        }
    }

    /// One GET with a signed URL, through the proxy.
    pub(crate) fn get(&self, key: &str, headers: &[(&str, &str)]) -> http::Answer {
        let target = S3Server::signed_get(self.proxy.address(), key);
        http::request(&self.proxy.url(), "GET", &target, headers)
    }

    /// Bytes that were read of the object, or of those below a prefix.
    pub(crate) fn bytes_read(&self, key: &str) -> u64 {
        self.proxy.body_bytes_below(&target_of(key))
    }

    /// Fails the test when requests are still open after a moment.
    pub(crate) fn nothing_is_open(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        while self.proxy.counts().in_flight > 0 {
            let open = self.proxy.counts().in_flight;
            assert!(Instant::now() < deadline, "{open} requests are still open");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
}
