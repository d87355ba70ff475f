//! carrack, kubo and nginx as the rows use them: fresh stores, commands, daemons.
//!
//! In       the directory of the run.
//! Out      commands and running [`Daemon`]s.
//! Not here what is measured (`rows`).

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use carrack_testkit::kubo::PEER_CONFIG;

use super::process::{Daemon, Run, run};
use super::{Bench, load};
use crate::shell;
use crate::shell::Result;

/// What accepts is ready soon.
const READY_TIME_MAX: Duration = Duration::from_secs(10);

impl Bench {
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Removes files and folders of the run whose names start so.
    pub(super) fn forget(&self, prefixes: &[&str]) -> Result {
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            if !prefixes.iter().any(|prefix| name.starts_with(prefix)) {
                continue;
            }
            if path.is_dir() {
                fs::remove_dir_all(path)?;
            } else {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// The big file, made once and in the page cache.
    pub(super) fn big_file(&self) -> Result<PathBuf> {
        let path = self.path("big-file");
        if !path.is_file() {
            load::file(&path, 1, self.sizes.file_len)?;
            // Else writing it back to the disk would share the cores with what is measured.
            shell::run(&mut Command::new("sync"))?;
        }
        Ok(path)
    }

    /// The tree of small files, and its bytes.
    pub(super) fn tree(&self) -> Result<(PathBuf, u64)> {
        let (path, len_file) = (self.path("small-files"), self.path("small-files-len"));
        if !len_file.is_file() {
            let len = load::tree(&path, self.sizes.n_files)?;
            fs::write(&len_file, len.to_string())?;
            shell::run(&mut Command::new("sync"))?;
        }
        Ok((path, fs::read_to_string(len_file)?.parse()?))
    }

    /// carrack on the store `name`.
    pub(super) fn carrack(&self, store: &str, args: &[&str], path: Option<&Path>) -> Command {
        let mut command = Command::new(&self.carrack);
        command
            .args(args)
            .args(path)
            .env("CARRACK_DATA_DIR", self.path(store));
        command
    }

    /// ipfs on the repository `name`.
    pub(super) fn ipfs(&self, repo: &str, args: &[&str], path: Option<&Path>) -> Command {
        let mut command = Command::new(self.peers.join("ipfs"));
        command
            .args(args)
            .args(path)
            .env("IPFS_PATH", self.path(repo));
        command
    }

    pub(super) fn measure(&self, mut command: Command) -> Result<Run> {
        run(&mut command, &self.path("out"))
    }

    /// Runs what `make` gives, each time after it made things fresh; the best rate, the median of
    /// CPU, the most memory.
    pub(super) fn best(&self, make: impl Fn() -> Result<Command>) -> Result<Run> {
        let mut runs = Vec::new();
        for _ in 0..self.sizes.n_runs {
            runs.push(self.measure(make()?)?);
        }
        Ok(Run {
            seconds: runs.iter().map(|run| run.seconds).fold(f64::MAX, f64::min),
            cpu_seconds: median(runs.iter().map(|run| run.cpu_seconds).collect()),
            memory: runs.iter().map(|run| run.memory).max().unwrap_or(0),
            stdout: runs.pop().ok_or("no runs")?.stdout,
        })
    }

    /// A new repository that fetches nothing and may reference files in place.
    pub(super) fn fresh_repo(&self, repo: &str) -> Result {
        self.forget(&[repo])?;
        let config = |key, value| self.ipfs(repo, &["config", "--json", key, value], None);
        self.measure(self.ipfs(repo, &["init", "--profile=test"], None))?;
        self.measure(self.ipfs(
            repo,
            &["config", "profile", "apply", "unixfs-v1-2025"],
            None,
        ))?;
        self.measure(config("Gateway.NoFetch", "true"))?;
        self.measure(config("Experimental.FilestoreEnabled", "true"))?;
        Ok(())
    }

    /// `carrack serve` on a store.
    pub(super) fn serve(&self, store: &str) -> Result<Daemon> {
        self.serve_with(store, &[])
    }

    pub(super) fn serve_with(&self, store: &str, options: &[&str]) -> Result<Daemon> {
        let mut command = self.carrack(store, &["serve", "--listen", "127.0.0.1:0"], None);
        command.args(options);
        self.started(&mut command, Path::new("serve.log"))
    }

    /// Runs a `serve` until it is ready.
    pub(super) fn started(&self, command: &mut Command, log: &Path) -> Result<Daemon> {
        let daemon = Daemon::start(command, &self.dir.join(log), |text| {
            let (_, rest) = text.split_once("listening on ")?;
            Some(rest.lines().next()?.trim_end_matches('/').trim().to_owned())
        })?;
        let deadline = Instant::now() + READY_TIME_MAX;
        while let Err(error) = load::drain(&daemon.url, "/readyz") {
            if Instant::now() > deadline {
                return Err(error);
            }
            park_timeout(Duration::from_millis(10));
        }
        Ok(daemon)
    }

    /// kubo's gateway on a repository.
    pub(super) fn kubo(&self, repo: &str) -> Result<Daemon> {
        self.kubo_with(repo, &["daemon", "--offline"])
    }

    /// kubo as a peer of bitswap who knows nobody.
    pub(super) fn kubo_peer(&self, repo: &str) -> Result<Daemon> {
        for (key, value) in PEER_CONFIG {
            self.measure(self.ipfs(repo, &["config", "--json", key, value], None))?;
        }
        self.kubo_with(repo, &["daemon"])
    }

    fn kubo_with(&self, repo: &str, args: &[&str]) -> Result<Daemon> {
        let log = self.path(&format!("kubo-{repo}.log"));
        let mut command = self.ipfs(repo, args, None);
        Daemon::start(command.env("IPFS_TELEMETRY", "off"), &log, |text| {
            text.contains("Daemon is ready").then_some(())?;
            let (_, rest) = text.split_once("Gateway server listening on /ip4/127.0.0.1/tcp/")?;
            Some(format!("http://127.0.0.1:{}", rest.lines().next()?.trim()))
        })
    }

    /// nginx on a folder of files.
    pub(super) fn nginx(&self, files: &Path) -> Result<Daemon> {
        let port = std::net::TcpListener::bind("127.0.0.1:0")?
            .local_addr()?
            .port();
        let dir = self.path("nginx-state");
        fs::create_dir_all(&dir)?;
        let (state, files) = (dir.display(), files.display());
        let config = format!(
            "daemon off; worker_processes auto; pid {state}/pid; error_log {state}/error.log;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             client_body_temp_path {state}/a; proxy_temp_path {state}/b;\n\
             fastcgi_temp_path {state}/c; uwsgi_temp_path {state}/d; scgi_temp_path {state}/e;\n\
             server {{ listen 127.0.0.1:{port}; root {files}; log_not_found off; }} }}\n"
        );
        let file = dir.join("nginx.conf");
        fs::write(&file, config)?;
        let mut command = Command::new(self.peers.join("nginx"));
        command.arg("-p").arg(&dir).arg("-c").arg(file);
        if rustix::process::getuid().is_root() {
            command.args(["-g", "user root;"]);
        }
        let url = format!("http://127.0.0.1:{port}");
        Daemon::start(&mut command, &self.path("nginx.log"), move |_| {
            Some(url.clone())
        })
    }
}

/// The middle one, the lower of two; 0 of none.
pub(super) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len().saturating_sub(1) / 2;
    values.get(middle).copied().unwrap_or(0.0)
}
