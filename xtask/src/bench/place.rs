//! A bucket that is far away: versitygw on this machine, seen through the proxy.
//!
//! In       the directory of the run.
//! Out      objects made once, stores that know them, and what passed between.
//! Limits   100 MB/s a connection always; the latency is chosen for each figure.
//! Not here what is measured (`rows::s3`).

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use carrack_testkit::{Conduct, Proxy, S3Server};

use super::fetch::{Connection, at_once};
use super::process::{Daemon, Run};
use super::{Bench, load};
use crate::shell::{self, Result};

/// Server and proxy, running as long as the bench.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) server: S3Server,
    pub(crate) proxy: Proxy,
}

/// The latency that the rows are about.
pub(crate) const FAR: Duration = Duration::from_millis(30);
pub(crate) const NEAR: Duration = Duration::ZERO;

/// The big object's key.
pub(crate) const BIG: &str = "big/object";

impl Place {
    /// From the next request on.
    pub(crate) fn set_latency(&self, latency: Duration) {
        self.proxy.clear();
        self.proxy.set(Conduct {
            latency,
            ..Conduct::far()
        });
        self.proxy.reset_counts();
    }

    /// Bytes a second that plain GETs of parts of an object give, each on its own connection.
    pub(crate) fn plain_rate(&self, key: &str, n_connections: u64, len: u64) -> Result<f64> {
        let target = S3Server::signed_get(self.proxy.address(), key);
        let (url, bytes, start) = (self.proxy.url(), AtomicU64::new(0), Instant::now());
        let part = len / n_connections;
        at_once(usize::try_from(n_connections)?, |index| {
            let first = part * index as u64;
            let range = format!("Range: bytes={first}-{}\r\n", first + part - 1);
            let got = Connection::open(&url)?.get(&target, &range, &bytes)?;
            match got.status {
                206 => Ok(()),
                status => Err(format!("a plain GET of {key}: {status}").into()),
            }
        })?;
        Ok((part * n_connections) as f64 / start.elapsed().as_secs_f64())
    }
}

impl Bench {
    /// Started on first use.
    pub(super) fn place(&self) -> Result<&Place> {
        if let Some(place) = self.place.get() {
            return Ok(place);
        }
        let dir = self.path("s3-bucket");
        fs::create_dir_all(&dir)?;
        let server = S3Server::versitygw(&self.peers.join("versitygw"), &dir)?;
        let proxy = Proxy::start(server.address())?;
        Ok(self.place.get_or_init(|| Place { server, proxy }))
    }

    /// An object of `len` random bytes, in the page cache.
    pub(super) fn object(&self, key: &str, seed: u64, len: u64) -> Result {
        let file = self.place()?.server.file_of(key);
        if !file.is_file() {
            fs::create_dir_all(file.parent().ok_or("a key without a folder")?)?;
            load::file(&file, seed, len)?;
            self.place()?.server.tag_file(key, key)?;
            shell::run(&mut Command::new("sync"))?;
        }
        Ok(())
    }

    /// `n` objects of `len` bytes below `prefix`.
    pub(super) fn objects(&self, prefix: &str, n: u64, len: u64) -> Result {
        let dir = self.place()?.server.file_of(prefix);
        if dir.is_dir() {
            return Ok(());
        }
        fs::create_dir_all(&dir)?;
        for number in 0..n {
            let name = format!("object-{number:05}");
            load::file(&dir.join(&name), 1_000 + number, len)?;
            let key = format!("{prefix}/{name}");
            self.place()?.server.tag_file(&key, &key)?;
        }
        shell::run(&mut Command::new("sync"))
    }

    /// carrack with the bucket's key in its environment.
    pub(super) fn carrack_far(&self, store: &str, args: &[&str]) -> Result<Command> {
        let mut command = self.carrack(store, args, None);
        command.envs(S3Server::environment(&self.place()?.proxy.url()));
        Ok(command)
    }

    /// `carrack add -Q s3://data/KEY` into `store`; how it went.
    pub(super) fn add_far(&self, store: &str, key: &str) -> Result<Run> {
        let url = format!("s3://{}/{key}", carrack_testkit::s3::BUCKET);
        self.measure(self.carrack_far(store, &["add", "-Q", &url])?)
    }

    /// The root of what lies at `key`, added to `store` by an earlier row or now.
    pub(super) fn added_far(&self, store: &str, key: &str) -> Result<String> {
        let known = self.path(&format!("{store}.root"));
        if !known.is_file() {
            let place = self.place()?;
            place.set_latency(NEAR);
            let run = self.add_far(store, key)?;
            fs::write(&known, run.stdout.trim())?;
        }
        Ok(fs::read_to_string(known)?)
    }

    /// `carrack serve` on a store whose blocks lie in the bucket.
    pub(super) fn serve_far(&self, store: &str, options: &[&str]) -> Result<Daemon> {
        let mut command = self.carrack_far(store, &["serve", "--listen", "127.0.0.1:0"])?;
        command.args(options);
        self.started(&mut command, Path::new("serve-far.log"))
    }
}
