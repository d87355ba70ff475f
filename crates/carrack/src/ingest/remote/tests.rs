//! Adding and importing from a source in memory that lists, fails and changes as it is told.

mod add;
mod import;
mod rescan;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::target::Target;
use crate::error::Result;
use crate::ingest::add::AddOptions;
use crate::ingest::import::ImportReport;
use crate::ingest::import::remote::import_remote;
use crate::ingest::tests::{Fixture, import_options, options};
use crate::ingest::{AddReport, Quiet, remote};
use crate::source::testing::{MemorySource, source_record};
use crate::store::catalog::{Batch, SOURCE_FIRST};
use crate::store::sources::Sources;

pub(crate) struct Bucket {
    pub(crate) fixture: Fixture,
    pub(crate) fake: Arc<MemorySource>,
    pub(crate) sources: Arc<Sources>,
    pub(crate) stop: AtomicBool,
}

impl Bucket {
    pub(crate) fn new() -> Self {
        Self::of(MemorySource::at("s3://fake"))
    }

    pub(crate) fn of(fake: MemorySource) -> Self {
        let fixture = Fixture::new();
        let sources = Arc::clone(fixture.blocks.extents().sources());
        let fake = Arc::new(fake);
        let mut batch = Batch::new();
        batch.put_source(SOURCE_FIRST, &source_record("fake", "s3://fake"));
        fixture.store().commit(batch).unwrap();
        sources.put(SOURCE_FIRST, Arc::clone(&fake) as _);
        Self {
            fixture,
            fake,
            sources,
            stop: AtomicBool::new(false),
        }
    }

    /// Puts an object, and writes a file of the same name and bytes.
    pub(crate) fn put(&self, path: &str, bytes: &[u8]) {
        self.fake.put(path, bytes);
        self.fixture.write(&format!("same/{path}"), bytes);
    }

    pub(crate) fn add(&self, paths: &[&str]) -> Result<AddReport> {
        self.add_with(paths, &options())
    }

    pub(crate) fn add_with(&self, paths: &[&str], options: &AddOptions) -> Result<AddReport> {
        let targets: Vec<Target> = paths.iter().map(|path| self.target(path)).collect();
        let store = self.fixture.store();
        remote::add(
            store,
            &self.sources,
            &targets,
            options,
            &mut Quiet,
            &self.stop,
        )
    }

    /// The root of the same files in a folder.
    pub(crate) fn expected(&self, path: &str, options: &AddOptions) -> carrack_formats::Cid {
        let other = Fixture::new();
        let path = self.fixture.path("same").join(path);
        other.add_with(&[&path], options).unwrap().roots[0].cid
    }

    pub(crate) fn target(&self, path: &str) -> Target {
        Target {
            source: self.sources.get(SOURCE_FIRST).unwrap(),
            path: path.as_bytes().to_vec(),
            is_new: false,
        }
    }

    pub(crate) fn import(&self, path: &str, verify: bool) -> Result<ImportReport> {
        let (store, sources, stop) = (self.fixture.store(), &self.sources, &self.stop);
        let (target, options) = (self.target(path), import_options());
        import_remote(store, sources, &target, &options, verify, &mut Quiet, stop)
    }
}
