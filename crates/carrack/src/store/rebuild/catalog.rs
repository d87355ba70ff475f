//! A lost catalog made anew of what the packs tell.
//!
//! In       a store whose catalog is missing or damaged, or one that is sound and does not list
//!          every pack; nobody has it open.
//! Out      a catalog of the packs, an index of their blocks, and a root for each block that no
//!          other block in a pack links to. Every block is hashed. A sound catalog stays, and the
//!          packs that it does not list are taken in.
//! Limits   memory: 8 bytes and a bit for each block of a pack, one index run; [`ROOTS_MAX`] roots.
//! Not here what no pack tells: files, CARs and sources in their places, names and times of roots.
//!          They are added again, and come to the same CIDs.
//!
//! Nothing is written over or removed: the old catalog, old segments and packs without a sound
//! block stay beside under other names. Until the new catalog has its name, the old state is what
//! counts.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::ops::ControlFlow;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::car::Section;
use carrack_formats::cid::{DAG_PB, identity_data};
use carrack_formats::dag::{links, pb::PbNode};
use carrack_formats::unixfs::node::{Kind, UnixFs};

use super::build::Builder;
use super::scan::Sections;
use super::{BadBlock, CutPart, Watch, interrupted};
use crate::durable::{self, Temporary};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::local::LocalFile;
use crate::store::catalog::{
    Batch, Catalog, ContainerKind, ContainerRecord, RootKind, RootRecord, SOURCE_STORE, Validator,
};
use crate::store::gate::WriteGate;
use crate::store::index::{Index, SegmentId, segment_id_of};
use crate::store::location::{ContainerId, Location};
use crate::store::pack::{self, pack_id_of};
use crate::store::{OpenMode, Opened, Store, recover, unlisted};

/// Most roots that are made. Blocks beyond them are served, too.
pub const ROOTS_MAX: usize = 10_000;

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CatalogReport {
    /// Packs that the catalog lists now.
    pub n_packs: u64,
    /// Blocks in them.
    pub n_blocks: u64,
    /// Blocks that do not hash to their CID, and so are not in the index.
    pub n_bad: u64,
    /// The first of them.
    pub bad: Vec<BadBlock>,
    /// Roots that were made.
    pub n_roots: usize,
    /// Blocks that nothing links to, and that were too many to be roots.
    pub n_roots_left_out: u64,
    /// What was moved aside, under its new name.
    pub kept: Vec<PathBuf>,
    /// Packs that hold no sound block, under their new names.
    pub left_out: Vec<PathBuf>,
    /// What cannot be read of packs that hold sound blocks.
    pub cut: Vec<CutPart>,
    /// The catalog is sound: what it did not list was added, and nothing else was done.
    pub is_addition: bool,
    /// The catalog is sound, and the lost `format` was written again: nothing else was done.
    pub is_format_alone: bool,
}

/// Makes the catalog anew.
///
/// # Errors
/// `NotFound`: there is no store. `Invalid`: its catalog is sound and lists every pack. `Busy`;
/// `Unavailable` if it was stopped or the disk fails: then it is to be run again.
pub fn rebuild_catalog(
    dir: &Path,
    watch: &mut Watch<'_>,
    stop: &AtomicBool,
) -> Result<CatalogReport> {
    let held = recover::hold_lost(dir)?;
    let gate = Arc::new(WriteGate::default());
    let path = dir.join(recover::CATALOG);
    match refuse_sound(&path) {
        Err(error) if held.is_new && error.kind() == ErrorKind::Invalid => {
            recover::write_format(dir, &gate)?;
            return Ok(CatalogReport {
                is_format_alone: true,
                ..CatalogReport::default()
            });
        }
        Err(error) if error.kind() == ErrorKind::Invalid => {
            drop(held);
            return take_in(dir, watch, stop)?.ok_or(error);
        }
        refused => refused?,
    }
    recover::make_folders(dir, &gate)?;
    name_packs(dir, &gate)?;
    let making = || format!("making {}", path.display());
    let made = Temporary::of_owner(&path, durable::MODE_PRIVATE);
    let made = made.context(ErrorKind::Unavailable, making)?;
    Catalog::make(&made.file, made.path(), &gate)?;
    let (catalog, mut next) = Catalog::open(made.path(), &gate, false)?;
    let settled = unlisted::settle(dir, &catalog.snapshot(), None)?;
    (next.segment, next.pack) = (settled.segment.max(1), settled.pack.max(1));
    let opened = Opened {
        dir: dir.to_owned(),
        gate: Arc::clone(&gate),
        catalog,
        next,
        gone: Vec::new(),
        lock: None,
    };
    let store = Store::with_catalog(opened, false)?;
    let mut rebuild = Rebuild {
        store: &store,
        watch,
        stop,
        packs: Vec::new(),
        report: CatalogReport::default(),
    };
    let mut names = unlisted::names(&dir.join(recover::PACKS))?;
    names.retain(|(_, name)| pack_id_of(name).is_some_and(|(_, is_last)| is_last));
    rebuild.run(names)?;
    let mut report = rebuild.report;
    let listed = store.catalog().segments()?;
    let listed: HashSet<SegmentId> = listed.iter().map(|meta| meta.id).collect();
    drop(store); // Closes the new catalog.
    refuse_unsound(made.path())?;
    keep_segments(dir, &listed, &gate, &mut report)?;
    if path.try_exists().context(ErrorKind::Unavailable, making)? {
        report.kept.push(keep(&path, &gate)?);
    }
    gate.told(made.publish())?;
    if held.is_new {
        recover::write_format(dir, &gate)?;
    }
    drop(held);
    Ok(report)
}

/// Adds packs that a sound catalog does not list; nothing if there are none.
fn take_in(dir: &Path, watch: &mut Watch<'_>, stop: &AtomicBool) -> Result<Option<CatalogReport>> {
    let store = Store::open(dir, OpenMode::AnyIndex)?;
    let unlisted = store.unlisted()?.into_iter().filter(|file| file.is_pack);
    let name = |path: &Path| path.file_name().unwrap_or_default().as_bytes().to_vec();
    let names: Vec<_> = unlisted
        .map(|file| (file.path.clone(), name(&file.path)))
        .collect();
    if names.is_empty() {
        return Ok(None);
    }
    let _ingest = store.ingest_lock();
    let mut rebuild = Rebuild {
        store: &store,
        watch,
        stop,
        packs: Vec::new(),
        report: CatalogReport {
            is_addition: true,
            ..CatalogReport::default()
        },
    };
    rebuild.run(names)?;
    Ok(Some(rebuild.report))
}

/// Gives packs their last names: without a catalog nobody knows whether one listed them.
fn name_packs(dir: &Path, gate: &WriteGate) -> Result<()> {
    for (path, name) in unlisted::names(&dir.join(recover::PACKS))? {
        if let Some((id, false)) = pack_id_of(&name) {
            let last = path.with_file_name(pack::pack_name(id));
            gate.told(durable::rename_unless_there(&path, &last))?;
        }
    }
    Ok(())
}

/// An error if there is nothing to mend, or it cannot be told.
fn refuse_sound(path: &Path) -> Result<()> {
    match Catalog::open(path, &Arc::default(), true) {
        Ok((catalog, _)) => {
            let snapshot = catalog.snapshot();
            if snapshot.segments().is_err() || snapshot.packs().is_err() {
                return Ok(());
            }
            let what = format!("{} is sound: nothing is made anew", path.display());
            Err(Error::new(ErrorKind::Invalid, what))
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => Ok(()),
        Err(error) => Err(error),
    }
}

/// What was written is what will be read.
fn refuse_unsound(path: &Path) -> Result<()> {
    let (catalog, _) = Catalog::open(path, &Arc::default(), false)?;
    catalog.snapshot().packs().map(drop)
}

/// Moves what an older catalog listed aside: without it nobody knows what it speaks of.
fn keep_segments(
    dir: &Path,
    listed: &HashSet<SegmentId>,
    gate: &WriteGate,
    report: &mut CatalogReport,
) -> Result<()> {
    let segments = dir.join(recover::SEGMENTS);
    let mut aside = None;
    for (path, name) in unlisted::names(&segments)? {
        if segment_id_of(&name).is_none_or(|(id, is_last)| is_last && listed.contains(&id)) {
            continue;
        }
        let aside = match &aside {
            Some(aside) => aside,
            None => &*aside.insert(fresh(&segments, gate)?),
        };
        gate.told(durable::rename(
            &path,
            &aside.join(OsStr::from_bytes(&name)),
        ))?;
    }
    report.kept.extend(aside);
    Ok(())
}

/// A new directory beside `path`.
fn fresh(path: &Path, gate: &WriteGate) -> Result<PathBuf> {
    for n in 1u32.. {
        let aside = lost_name(path, n);
        match durable::create_private_dir(&aside) {
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            made => {
                let making = || format!("making {}", aside.display());
                made.context(ErrorKind::Unavailable, making)?;
                gate.told(durable::sync_name(&aside))?;
                return Ok(aside);
            }
        }
    }
    Err(Error::new(ErrorKind::Limit, "too many lost catalogs"))
}

/// Gives a file another name, where it stays.
fn keep(path: &Path, gate: &WriteGate) -> Result<PathBuf> {
    for n in 1u32.. {
        let aside = lost_name(path, n);
        if gate.told(durable::rename_unless_there(path, &aside))? {
            return Ok(aside);
        }
    }
    Err(Error::new(ErrorKind::Limit, "too many lost catalogs"))
}

fn lost_name(path: &Path, n: u32) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".lost-{n}"));
    path.with_file_name(name)
}

/// A pack with sound blocks.
struct Pack {
    id: ContainerId,
    path: PathBuf,
    name: Vec<u8>,
    len: u64,
    /// Where the sound blocks lie, ascending.
    offsets: Vec<u64>,
    /// A bit for each: another block links to it.
    linked: Vec<u64>,
    /// A pack that this one shares a DAG with; itself if there is none before it.
    group: usize,
}

struct Rebuild<'a, 'w> {
    store: &'a Store,
    watch: &'a mut Watch<'w>,
    stop: &'a AtomicBool,
    packs: Vec<Pack>,
    report: CatalogReport,
}

impl Rebuild<'_, '_> {
    /// Takes in the packs of these paths and names.
    fn run(&mut self, mut names: Vec<(PathBuf, Vec<u8>)>) -> Result<()> {
        let mut builder = Builder::new(self.store, self.stop)?;
        names.sort_unstable();
        for (path, name) in names {
            self.take(path, name, &mut builder)?;
        }
        builder.seal()?;
        let segments = self.store.dir.join(recover::SEGMENTS);
        let index = Index::open(&segments, builder.segments())?;
        for at in 0..self.packs.len() {
            self.link(at, &index)?;
        }
        let mut batch = Batch::new();
        for pack in &self.packs {
            batch.put_container(pack.id, &pack.record());
        }
        self.put_roots(&mut batch)?;
        for meta in builder.take()? {
            batch.add_segment(meta);
        }
        self.store.commit(batch).map(drop)
    }

    /// The blocks of one pack, up to where it is no CAR any more: what was written last may never
    /// have been committed.
    fn take(&mut self, path: PathBuf, name: Vec<u8>, builder: &mut Builder<'_>) -> Result<()> {
        let (id, mut n_bad, mut offsets) = (self.store.new_container_id(), 0, Vec::new());
        let read = read(&path, None, &mut |section, block| {
            self.step("reading packs", section)?;
            if block.is_none() {
                n_bad += 1;
                let bad = &mut self.report.bad;
                BadBlock::note(bad, &path, section.offset, Some(section.cid));
                return Ok(());
            }
            offsets.push(section.data_offset);
            let location = Location {
                container: id,
                offset: section.data_offset,
                len: section.data_len,
                wrapped: false,
            };
            builder.push(&section.cid, location)
        })?;
        self.report.n_bad += n_bad;
        if offsets.is_empty() {
            if read.cut.is_some() || n_bad > 0 || self.report.is_addition {
                // Or each opening would name it, for no catalog lists it.
                self.report.left_out.push(keep(&path, &self.store.gate)?);
            }
            return Ok(());
        }
        if let Some(why) = read.cut {
            let mut part = CutPart::of(path.clone(), read.end, why);
            part.len = read.len.saturating_sub(read.end);
            self.report.cut.push(part);
        }
        self.report.n_blocks += offsets.len() as u64;
        self.report.n_packs += 1;
        self.packs.push(Pack {
            id,
            path,
            name,
            len: read.end,
            linked: vec![0; offsets.len().div_ceil(64)],
            offsets,
            group: self.packs.len(),
        });
        Ok(())
    }

    fn step(&mut self, what: &str, section: &Section) -> Result<()> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(interrupted());
        }
        (self.watch)(what, section.end(), None);
        Ok(())
    }

    /// Marks what the blocks of a pack link to.
    fn link(&mut self, at: usize, index: &Index) -> Result<()> {
        let Some((path, len)) = self.place(at) else {
            return Ok(());
        };
        let read = read(&path, Some(len), &mut |section, block| {
            self.step("following links", section)?;
            let block = Bytes::copy_from_slice(block.unwrap_or_default());
            // Of a codec without links, or in a malformed block, there are none.
            let Ok(links) = links(section.cid.codec(), &block) else {
                return Ok(());
            };
            let links = links.iter().filter_map(Result::ok);
            for cid in links.filter(|cid| identity_data(cid).is_none()) {
                index.visit(cid.hash(), |location| {
                    self.mark(at, location);
                    ControlFlow::Continue(())
                });
            }
            Ok(())
        })?;
        read.whole()
    }

    fn place(&self, at: usize) -> Option<(PathBuf, u64)> {
        let pack = self.packs.get(at)?;
        Some((pack.path.clone(), pack.len))
    }

    fn mark(&mut self, from: usize, to: Location) {
        let found = self
            .packs
            .binary_search_by_key(&to.container, |pack| pack.id);
        let Ok(at) = found else { return };
        if let Some(pack) = self.packs.get_mut(at)
            && let Ok(index) = pack.offsets.binary_search(&to.offset)
            && let Some(word) = pack.linked.get_mut(index / 64)
        {
            *word |= 1 << (index % 64);
        }
        let (a, b) = (self.group(from), self.group(at));
        if let Some(pack) = self.packs.get_mut(a.max(b)) {
            pack.group = a.min(b);
        }
    }

    /// The first of the packs that share DAGs with this one.
    fn group(&self, mut at: usize) -> usize {
        while let Some(pack) = self.packs.get(at)
            && pack.group != at
        {
            at = pack.group;
        }
        at
    }

    /// A root for each block that nothing links to. It needs every pack of its group.
    fn put_roots(&mut self, batch: &mut Batch) -> Result<()> {
        let groups: Vec<usize> = (0..self.packs.len()).map(|at| self.group(at)).collect();
        let mut seen = HashSet::new();
        for (at, group) in groups.iter().enumerate() {
            let Some((path, len)) = self.place(at) else {
                continue;
            };
            let with_group = self.packs.iter().zip(&groups);
            let members = with_group.filter(|(_, other)| *other == group);
            let members: Vec<ContainerId> = members.map(|(pack, _)| pack.id).collect();
            let read = read(&path, Some(len), &mut |section, block| {
                self.step("looking for roots", section)?;
                let Some(block) = block.filter(|_| !self.is_linked(at, section)) else {
                    return Ok(());
                };
                if seen.len() >= ROOTS_MAX {
                    self.report.n_roots_left_out += 1;
                } else if seen.insert(section.cid) {
                    batch.put_root(self.root(at, &section.cid, block), members.clone());
                }
                Ok(())
            })?;
            read.whole()?;
        }
        self.report.n_roots = seen.len();
        Ok(())
    }

    fn is_linked(&self, at: usize, section: &Section) -> bool {
        let bit = self.packs.get(at).and_then(|pack| {
            let index = pack.offsets.binary_search(&section.data_offset).ok()?;
            Some(pack.linked.get(index / 64)? >> (index % 64) & 1)
        });
        bit != Some(0)
    }

    fn root(&self, at: usize, cid: &Cid, block: &[u8]) -> RootRecord {
        let name = self.packs.get(at).map(|pack| pack.name.as_slice());
        RootRecord {
            id: self.store.new_root_id(),
            cid: *cid,
            name: Vec::new(),
            path: [b"packs/".as_slice(), name.unwrap_or_default()].concat(),
            source: SOURCE_STORE,
            kind: RootKind::Import,
            profile: 0,
            created_unix: crate::clock::unix_seconds(),
            bytes: len_of(cid, block),
            n_blocks: 0,
            n_files: 0,
            is_whole: false,
        }
    }
}

impl Pack {
    fn record(&self) -> ContainerRecord {
        ContainerRecord {
            kind: ContainerKind::Pack,
            source: SOURCE_STORE,
            path: self.name.clone(),
            size: self.len,
            validator: Validator::default(),
        }
    }
}

/// How far a pack could be read.
struct Read {
    /// Behind the last whole section; before a cut, behind the last that is what it is called.
    end: u64,
    /// Bytes of the file.
    len: u64,
    /// Why there is no more, unless the file ends there.
    cut: Option<String>,
}

impl Read {
    /// An error unless all of it was read, as it was before.
    fn whole(self) -> Result<()> {
        match self.cut {
            None => Ok(()),
            Some(why) => Err(Error::new(ErrorKind::Unavailable, why)),
        }
    }
}

/// Told of a section, and of its bytes if they are what they are called.
type Found<'a> = dyn FnMut(&Section, Option<&[u8]>) -> Result<()> + 'a;

/// Calls `found` with each section of a pack, and its bytes if they are what they are called.
fn read(path: &Path, len: Option<u64>, found: &mut Found<'_>) -> Result<Read> {
    let mut read = Read {
        end: 0,
        len: 0,
        cut: None,
    };
    match read_sections(path, len, &mut read, found) {
        Ok(()) => Ok(read),
        Err(Cut::Here(why)) => Ok(Read {
            cut: Some(why),
            ..read
        }),
        Err(Cut::Fatal(error)) => Err(error),
    }
}

/// Why no further section is read.
enum Cut {
    Here(String),
    Fatal(Error),
}

impl From<std::io::Error> for Cut {
    fn from(error: std::io::Error) -> Self {
        Self::Here(error.to_string())
    }
}

fn read_sections(
    path: &Path,
    len: Option<u64>,
    read: &mut Read,
    found: &mut Found<'_>,
) -> std::result::Result<(), Cut> {
    let file = LocalFile::open_own(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => Cut::Fatal(recover::not_let_in(path, error)),
        _ => Cut::from(error),
    })?;
    read.len = file.validator.size();
    let mut head = pack::header();
    file.read_exact_at(&mut head, 0)?;
    if head != pack::header() {
        return Err(Cut::Here("it does not begin as a pack does".to_owned()));
    }
    let len = len.unwrap_or(read.len);
    let mut sections = Sections::open(&file, len).map_err(Cut::Here)?;
    let mut data = Vec::new();
    let mut end = 0;
    while let Some(section) = sections.next().map_err(Cut::Here)? {
        data.resize(section.data_len as usize, 0); // At most the limit on sections.
        file.read_exact_at(&mut data, section.data_offset)?;
        let is_sound = section.verify(&data).is_ok();
        found(&section, is_sound.then_some(data.as_slice())).map_err(Cut::Fatal)?;
        end = section.end();
        if is_sound {
            read.end = end;
        }
    }
    read.end = end;
    Ok(())
}

/// Bytes that a root stands for, as far as its own block tells.
fn len_of(cid: &Cid, block: &[u8]) -> u64 {
    if cid.codec() != DAG_PB {
        return block.len() as u64;
    }
    let Ok(node) = PbNode::parse(block) else {
        return block.len() as u64;
    };
    match UnixFs::parse_node(&node) {
        Ok(unixfs) if unixfs.kind == Kind::File => unixfs.filesize.unwrap_or_default(),
        _ => node
            .links()
            .filter_map(|link| link.tsize)
            .fold(0, u64::saturating_add),
    }
}
