//! Where the leaves of a file lie, by the account of its interior nodes.
//!
//! In       a file's CID; an index of the blocks that were found in packs and CARs.
//! Out      an entry for each leaf: lengths in the nodes add up to offsets. No file is read.
//! Limits   one node's links a level; a file has at most [`DEPTH_MAX`] levels.
//! Not here the blocks of packs and CARs (`scan`).
//!
//! Every node is hashed before it is believed.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::path::{Component, Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::cid::{self, DAG_PB, RAW, identity_data};
use carrack_formats::dag::pb::PbNode;
use carrack_formats::unixfs::leaf;
use carrack_formats::unixfs::node::{Kind, UnixFs};
use carrack_formats::verify::verify;
use carrack_formats::walk::{ResolveLimits, ResolveStep, Resolver};

use super::build::Builder;
use super::interrupted;
use crate::error::{Error, ErrorKind, Result};
use crate::source::local::LocalFile;
use crate::store::Store;
use crate::store::catalog::{ContainerKind, Snapshot};
use crate::store::index::Index;
use crate::store::location::{ContainerId, Location};

/// Levels of a file's tree; more than any length needs.
const DEPTH_MAX: usize = 64;
/// Packs and CARs kept open.
const OPEN_MAX: usize = 16;

pub(super) struct FileWalk<'a> {
    store: &'a Store,
    catalog: &'a Snapshot,
    nodes: &'a Index,
    /// The last used at the end.
    open: VecDeque<(ContainerId, LocalFile)>,
}

/// A file to be walked.
#[derive(Debug, Clone, Copy)]
pub(super) struct File {
    pub(super) cid: Cid,
    pub(super) file_len: u64,
    /// Blocks of its DAG; `None` if that is not known and all packs are there, so that a node
    /// that is not found is none.
    pub(super) n_blocks: Option<u64>,
}

/// A child of a node: a leaf, or a node below it.
#[derive(Debug, Clone, Copy)]
struct Child {
    cid: Cid,
    file_len: u64,
    dag_len: Option<u64>,
}

impl Child {
    /// A leaf's block is its bytes, or its bytes in a frame of known length; any node above it is
    /// longer by its links.
    fn is_leaf(&self) -> bool {
        self.cid.codec() == RAW
            || usize::try_from(self.file_len)
                .is_ok_and(|len| self.dag_len == Some(leaf::block_len(len) as u64))
    }
}

impl<'a> FileWalk<'a> {
    pub(super) fn new(store: &'a Store, catalog: &'a Snapshot, nodes: &'a Index) -> Self {
        Self {
            store,
            catalog,
            nodes,
            open: VecDeque::new(),
        }
    }

    /// Adds the leaves of `file`, which lie in `container` one behind the other.
    pub(super) fn file(
        &mut self,
        file: File,
        container: ContainerId,
        builder: &mut Builder<'_>,
        stop: &AtomicBool,
    ) -> Result<()> {
        let File { cid, file_len, .. } = file;
        let mut at = At::default();
        let mut levels = Vec::new();
        if self.is_leaf(&file)? {
            let whole = Child {
                cid,
                file_len,
                dag_len: None,
            };
            add_leaf(whole, container, &mut at, builder)?;
        } else {
            levels.push(self.children(&cid)?.into_iter());
        }
        while let Some(level) = levels.last_mut() {
            let Some(child) = level.next() else {
                levels.pop();
                continue;
            };
            if child.is_leaf() {
                add_leaf(child, container, &mut at, builder)?;
                continue;
            }
            if stop.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            if levels.len() >= DEPTH_MAX {
                return Err(odd(&cid));
            }
            levels.push(self.children(&child.cid)?.into_iter());
        }
        if at.offset == file_len {
            Ok(())
        } else {
            Err(odd(&cid))
        }
    }

    /// Whether all of the file is one leaf.
    fn is_leaf(&mut self, file: &File) -> Result<bool> {
        if let Some(n_blocks) = file.n_blocks {
            return Ok(n_blocks == 1);
        }
        if file.cid.codec() == RAW {
            return Ok(true);
        }
        // A wrapped leaf is in no pack, unless somebody imported it.
        let block = match self.node(&file.cid) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(true),
            block => block?,
        };
        let node = PbNode::parse(&block).map_err(|_| odd(&file.cid))?;
        Ok(node.n_links() == 0)
    }

    /// The children of a node of a file.
    fn children(&mut self, cid: &Cid) -> Result<Vec<Child>> {
        let block = self.node(cid)?;
        let node = PbNode::parse(&block).map_err(|_| odd(cid))?;
        let unixfs = UnixFs::parse_node(&node).map_err(|_| odd(cid))?;
        if unixfs.kind != Kind::File || unixfs.n_blocksizes != node.n_links() {
            return Err(odd(cid));
        }
        let mut children = Vec::with_capacity(node.n_links());
        for (link, len) in node.links().zip(unixfs.blocksizes()) {
            children.push(Child {
                cid: cid::parse_bytes(link.cid).map_err(|_| odd(cid))?,
                file_len: len,
                dag_len: link.tsize,
            });
        }
        Ok(children)
    }

    /// The file at `path` in the directory `root`, which was made from `base`.
    pub(super) fn below(&mut self, root: Cid, base: &Path, path: &Path) -> Result<Cid> {
        let missing = || {
            let what = "its root does not lead to it";
            Error::new(ErrorKind::NotFound, what)
        };
        let names = path.strip_prefix(base).map_err(|_| missing())?;
        let mut segments = Vec::new();
        for name in names.components() {
            let Component::Normal(name) = name else {
                return Err(missing());
            };
            segments.push(name.to_str().ok_or_else(missing)?.to_owned());
        }
        let limits = ResolveLimits::default();
        let mut resolver = Resolver::new(root, segments, limits).map_err(|_| missing())?;
        loop {
            match resolver.next().map_err(|_| missing())? {
                ResolveStep::Done(resolved) => return Ok(resolved.terminus),
                ResolveStep::Need(cid) => {
                    let block = self.node(&cid)?;
                    resolver.provide(&cid, &block).map_err(|_| missing())?;
                }
            }
        }
    }

    /// A block that lies in a pack or a CAR, hashed.
    fn node(&mut self, cid: &Cid) -> Result<Bytes> {
        if let Some(data) = identity_data(cid) {
            return Ok(Bytes::copy_from_slice(data));
        }
        let mut places = Vec::new();
        self.nodes.visit(cid.hash(), |location| {
            places.push(location);
            ControlFlow::Continue(())
        });
        let mut failure = None;
        for location in places {
            match self.read(cid, location) {
                Ok(block) => return Ok(block),
                Err(error) => failure = Some(error),
            }
        }
        Err(failure.unwrap_or_else(|| missing(cid)))
    }

    fn read(&mut self, cid: &Cid, location: Location) -> Result<Bytes> {
        let mut block = vec![0; location.len as usize]; // Below 2^24.
        let file = self.opened(location.container)?;
        let unreadable = |error| {
            let what = format!("{cid} cannot be read where it lies");
            Error::with(ErrorKind::Corrupt, what, error)
        };
        file.read_exact_at(&mut block, location.offset)
            .map_err(unreadable)?;
        verify(cid, &block).map_err(|error| {
            let what = format!("{cid} is not what lies in its place");
            Error::with(ErrorKind::Corrupt, what, error)
        })?;
        Ok(Bytes::from(block))
    }

    fn opened(&mut self, id: ContainerId) -> Result<&LocalFile> {
        if let Some(index) = self.open.iter().position(|(open, _)| *open == id) {
            let entry = self.open.remove(index);
            self.open.extend(entry);
        } else {
            let gone = || Error::new(ErrorKind::NotFound, "its container is gone");
            let record = self.catalog.container(id)?.ok_or_else(gone)?;
            let (path, opened) = match record.kind {
                ContainerKind::Pack => {
                    let path = self.store.pack_path(&record);
                    let opened = LocalFile::open_own(&path);
                    (path, opened)
                }
                _ => {
                    use std::os::unix::ffi::OsStrExt;
                    let path = PathBuf::from(std::ffi::OsStr::from_bytes(&record.path));
                    let opened = LocalFile::open(&path);
                    (path, opened)
                }
            };
            let file = opened.map_err(|error| {
                let what = format!("{} cannot be opened", path.display());
                Error::with(ErrorKind::Corrupt, what, error)
            })?;
            if self.open.len() >= OPEN_MAX {
                self.open.pop_front();
            }
            self.open.push_back((id, file));
        }
        let last = self.open.back().map(|(_, file)| file);
        last.ok_or_else(|| Error::new(ErrorKind::Internal, "no file is open"))
    }
}

/// How far a file was gone through.
#[derive(Default)]
struct At {
    offset: u64,
    /// The last leaf: one that repeats it, as in a hole, is found where that lies.
    last: Option<Cid>,
}

fn add_leaf(
    leaf: Child,
    container: ContainerId,
    at: &mut At,
    builder: &mut Builder<'_>,
) -> Result<()> {
    let len = u32::try_from(leaf.file_len).map_err(|_| odd(&leaf.cid))?;
    let location = Location {
        container,
        offset: at.offset,
        len,
        wrapped: leaf.cid.codec() == DAG_PB,
    };
    if at.last.replace(leaf.cid) != Some(leaf.cid) {
        builder.push(&leaf.cid, location)?;
    }
    at.offset = at.offset.saturating_add(leaf.file_len);
    Ok(())
}

fn missing(cid: &Cid) -> Error {
    Error::new(ErrorKind::NotFound, format!("its node {cid} is in no pack"))
}

fn odd(cid: &Cid) -> Error {
    let what = format!("{cid} is no part of the file that the catalog lists");
    Error::new(ErrorKind::Corrupt, what)
}
