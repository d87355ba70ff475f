//! A kubo repository of its own, and perhaps its daemon.
//!
//! In       a temporary directory.
//! Out      CIDs, CARs and a gateway that fetches nothing.
//! Limits   offline: the daemon knows no other peer.
//! Not here what is compared with it.

use std::path::Path;
use std::process::Command;

use tempfile::TempDir;

use super::{program, run};
use crate::support::finish;

#[derive(Debug)]
pub(crate) struct Kubo {
    repo: TempDir,
}

impl Kubo {
    /// `profile` is one of kubo's import profiles.
    pub(crate) fn new(profile: &str) -> Self {
        let kubo = Self {
            repo: TempDir::new().unwrap(),
        };
        kubo.run(&["init", "--profile=test"]);
        kubo.run(&["config", "profile", "apply", profile]);
        kubo
    }

    pub(super) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(program("ipfs"));
        command.env("IPFS_PATH", self.repo.path()).args(args);
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> String {
        run(self.command(args))
    }

    /// Standard output as it is.
    pub(crate) fn run_bytes(&self, args: &[&str]) -> Vec<u8> {
        finish(self.command(args)).ok().stdout
    }

    pub(crate) fn run_with(&self, args: &[&str], path: &Path) -> String {
        let mut command = self.command(args);
        command.arg(path);
        run(command)
    }

    /// The root that kubo computes, without storing anything.
    pub(crate) fn cid_of(&self, path: &Path, options: &[&str]) -> String {
        let mut args = vec![
            "add",
            "--quieter",
            "--recursive",
            "--only-hash",
            "--offline",
        ];
        args.extend(options);
        self.run_with(&args, path).trim().to_owned()
    }

    /// Adds and stores; the root.
    pub(crate) fn add(&self, path: &Path) -> String {
        let args = [
            "add",
            "--quieter",
            "--recursive",
            "--offline",
            "--pin=false",
        ];
        self.run_with(&args, path).trim().to_owned()
    }

    /// `ipfs dag export` into `file`.
    pub(crate) fn export(&self, cid: &str, file: &Path) {
        let mut command = self.command(&["dag", "export", "--offline", "--progress=false", cid]);
        command.stdout(std::fs::File::create(file).unwrap());
        assert!(command.status().unwrap().success());
    }

    /// `ipfs get` into `path`.
    pub(crate) fn get(&self, cid: &str, path: &Path) {
        let path = path.to_str().unwrap();
        self.run(&[
            "get",
            "--offline",
            "--progress=false",
            "--output",
            path,
            cid,
        ]);
    }
}
