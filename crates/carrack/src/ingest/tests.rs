//! Adding and importing into a real store, and reading back what came of it.

mod add;
mod import;
mod sink;
mod sparse;
mod swapped;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use carrack_formats::car::{CarLimits, v2, write};
use carrack_formats::unixfs::profile::UNIXFS_V1_2025;
use carrack_formats::{Cid, Multihash, cid, verify};
use tempfile::TempDir;

use super::add::{AddOptions, add};
use super::import::{ImportOptions, ImportReport, import, import_copy};
use super::{AddReport, Quiet};
use crate::error::{ErrorKind, Result};
use crate::store::block::Blocks;
use crate::store::file_reader::{FileReader, file_len};
use crate::store::{OpenMode, Store};

/// A store, and a place for files beside it.
pub(crate) struct Fixture {
    pub(crate) dir: TempDir,
    pub(crate) blocks: Blocks,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("data"), OpenMode::Create).unwrap();
        let blocks = Blocks::new(Arc::new(store), 1 << 20).unwrap();
        Self { dir, blocks }
    }

    /// The same store, opened by another process.
    pub(crate) fn reopened(self) -> Self {
        let Self { dir, blocks } = self;
        blocks.save_stale();
        drop(blocks);
        let store = Store::open(&dir.path().join("data"), OpenMode::Existing).unwrap();
        let blocks = Blocks::new(Arc::new(store), 1 << 20).unwrap();
        Self { dir, blocks }
    }

    pub(crate) fn store(&self) -> &Arc<Store> {
        self.blocks.store()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, bytes).unwrap();
        path
    }

    pub(crate) fn add(&self, paths: &[&Path]) -> AddReport {
        self.add_with(paths, &options()).unwrap()
    }

    pub(crate) fn add_with(&self, paths: &[&Path], options: &AddOptions) -> Result<AddReport> {
        let paths: Vec<PathBuf> = paths.iter().map(|&path| path.to_owned()).collect();
        let stop = AtomicBool::new(false);
        add(self.store(), &paths, options, &mut Quiet, &stop)
    }

    pub(crate) fn import(&self, path: &Path, options: &ImportOptions) -> Result<ImportReport> {
        let stop = AtomicBool::new(false);
        import(self.store(), path, options, &mut Quiet, &stop)
    }

    pub(crate) fn import_copy(&self, car: &[u8], options: &ImportOptions) -> Result<ImportReport> {
        self.import_copy_at(Path::new("-"), car, options)
    }

    pub(crate) fn import_copy_at(
        &self,
        name: &Path,
        mut car: &[u8],
        options: &ImportOptions,
    ) -> Result<ImportReport> {
        let stop = AtomicBool::new(false);
        import_copy(self.store(), name, &mut car, options, &mut Quiet, &stop)
    }

    pub(crate) fn cat(&self, cid: &Cid) -> Result<Vec<u8>> {
        let len = file_len(&self.blocks, cid)?;
        let mut reader = FileReader::new(self.blocks.clone(), *cid, 0, len);
        let mut bytes = Vec::new();
        while let Some(piece) = reader.next_piece()? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    pub(crate) fn has(&self, cid: &Cid) -> bool {
        match self.blocks.get_blocking(cid) {
            Ok(_) => true,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain());
                false
            }
        }
    }

    pub(crate) fn remove(&self, cid: &Cid) {
        for root in self.store().catalog().roots_of_cid(cid).unwrap() {
            self.store().remove_root(root.id).unwrap();
        }
    }

    pub(crate) fn n_roots(&self) -> usize {
        self.store().catalog().roots().unwrap().len()
    }

    pub(crate) fn n_containers(&self) -> u64 {
        self.store().catalog().n_containers().unwrap()
    }

    /// The file of the pack, if there is one.
    pub(crate) fn only_pack(&self) -> PathBuf {
        let packs = std::fs::read_dir(self.path("data/packs")).unwrap();
        let packs: Vec<_> = packs.map(|pack| pack.unwrap().path()).collect();
        assert_eq!(packs.len(), 1, "{packs:?}");
        packs[0].clone()
    }

    pub(crate) fn n_packs(&self) -> usize {
        std::fs::read_dir(self.path("data/packs")).unwrap().count()
    }
}

pub(crate) fn options() -> AddOptions {
    AddOptions {
        profile: UNIXFS_V1_2025,
        hidden: false,
        wrap: false,
        strict: false,
        n_threads: 2,
    }
}

pub(crate) fn import_options() -> ImportOptions {
    ImportOptions {
        salvage: false,
        legacy_hashes: false,
        limits: CarLimits::default(),
        n_threads: 2,
    }
}

pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&seed.to_le_bytes());
    hasher.finalize_xof().fill(&mut out);
    out
}

pub(crate) fn raw(data: &[u8]) -> Cid {
    cid::from_sha256(::cid::Version::V1, cid::RAW, &verify::sha256(data))
}

pub(crate) fn with_hash(code: u64, digest: &[u8]) -> Cid {
    Cid::new_v1(cid::RAW, Multihash::wrap(code, digest).unwrap())
}

pub(crate) fn car(roots: &[Cid], blocks: &[(Cid, Vec<u8>)]) -> Vec<u8> {
    let mut out = write::header(roots);
    for (cid, data) in blocks {
        write::frame_head(&mut out, cid, data.len());
        out.extend_from_slice(data);
    }
    out
}

pub(crate) fn car_v2(v1: &[u8]) -> Vec<u8> {
    let mut out = v2::write(v1.len() as u64, false).to_vec();
    out.extend_from_slice(v1);
    out
}
