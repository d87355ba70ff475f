//! Helia as a client of bitswap.
//!
//! In       the multiaddr of a server, a CID.
//! Out      what Helia in Node made of the blocks it was sent.
//! Limits   what does not come in Helia's own minute fails the test, with Helia's words.
//! Not here the program (`xtask/oracles/helia`).

use std::process::Command;

use tempfile::TempDir;

use super::{program, run};

/// What Helia fetched.
#[derive(Debug)]
pub(crate) struct Fetched(TempDir);

/// Fetches these blocks and the content of these files, over one connection.
pub(crate) fn fetch(address: &str, blocks: &[&str], files: &[&str]) -> Fetched {
    let dir = TempDir::new().unwrap();
    let mut command = Command::new(program("helia"));
    command.args(["get", address]).arg(dir.path());
    command.args(blocks.iter().map(|cid| format!("block:{cid}")));
    command.args(files.iter().map(|cid| format!("file:{cid}")));
    run(command);
    Fetched(dir)
}

impl Fetched {
    pub(crate) fn block(&self, cid: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(format!("{cid}.block"))).unwrap()
    }

    pub(crate) fn file(&self, cid: &str) -> Vec<u8> {
        std::fs::read(self.0.path().join(format!("{cid}.file"))).unwrap()
    }
}
