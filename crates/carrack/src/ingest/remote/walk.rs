//! A flat listing becomes a tree of directories.
//!
//! In       paths of objects and folders, in an order in which each directory comes without
//!          interruption.
//! Out      for each object its place in the tree; directories opened and closed on the way.
//! Limits   the directories on the way to the last object are open; each remembers 16 bytes a name.
//! Not here reading objects (`ingest::remote`), directories whose files are still being read
//!          (`ingest::tree`).

use std::collections::HashMap;
use std::ffi::OsStr;
use std::hash::{BuildHasher, RandomState};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::ingest::assembly::{Assembly, Place};
use crate::ingest::tree::Parent;

/// Directories deeper than this are left out: each costs memory.
const DEPTH_MAX: usize = 1000;

/// The tree below one target.
pub(super) struct Walk {
    /// The target's path, or that of the folder of a list.
    prefix: Vec<u8>,
    place: Place,
    levels: Vec<Level>,
    hasher: RandomState,
}

/// A directory whose objects are being listed.
struct Level {
    directory: usize,
    /// Bytes of its path.
    path_len: usize,
    /// Entries by the hash of their names.
    entries: HashMap<u64, Seen>,
}

#[derive(Clone, Copy)]
struct Seen {
    entry: usize,
    is_folder: bool,
}

/// Where an object belongs.
pub(super) enum Spot {
    At(Place),
    /// Hidden objects are not asked for.
    Hidden,
    /// It cannot be part of the tree.
    Odd(&'static str),
}

impl Walk {
    pub(super) fn new(prefix: Vec<u8>, place: Place) -> Self {
        Self {
            prefix,
            place,
            levels: Vec::new(),
            hasher: RandomState::new(),
        }
    }

    /// Whether this is the path of the target.
    pub(super) fn is_top(&self, path: &[u8]) -> bool {
        path == self.prefix
    }

    /// The target is a list: the tree is that of the folder that it lies in.
    pub(super) fn is_list(&mut self) {
        let len = self.prefix.iter().rposition(|&byte| byte == b'/');
        self.prefix.truncate(len.unwrap_or(0));
    }

    /// The path of the object relative to the target; `None` if it is not below it.
    fn below<'p>(&self, path: &'p [u8]) -> Option<&'p [u8]> {
        if self.prefix.is_empty() {
            return Some(path);
        }
        path.strip_prefix(self.prefix.as_slice())?
            .strip_prefix(b"/")
    }

    /// The place of the next object, which lies below the target.
    pub(super) fn object(&mut self, path: &[u8], assembly: &mut Assembly<'_>) -> Result<Spot> {
        if let Some(spot) = self.reach(path, path, assembly)? {
            return Ok(spot);
        }
        let name = path.rsplit(|&byte| byte == b'/').next().unwrap_or(path);
        Ok(self.file(name, assembly))
    }

    /// The next folder, which lies below the target and may stay empty. `None`: it is part of the
    /// tree.
    pub(super) fn folder(
        &mut self,
        path: &[u8],
        assembly: &mut Assembly<'_>,
    ) -> Result<Option<Spot>> {
        self.reach(path, &[path, b"/"].concat(), assembly)
    }

    /// Opens the directories on the way to `inside`, which is `path` or lies in it. `None`: done.
    fn reach(
        &mut self,
        path: &[u8],
        inside: &[u8],
        assembly: &mut Assembly<'_>,
    ) -> Result<Option<Spot>> {
        let Some(below) = self.below(path) else {
            return Ok(Some(Spot::Odd("it is not below what was asked for")));
        };
        let names: Vec<&[u8]> = below.split(|&byte| byte == b'/').collect();
        if let Some(why) = names.iter().find_map(|name| odd(name)) {
            return Ok(Some(Spot::Odd(why)));
        }
        if names.len() > DEPTH_MAX {
            return Ok(Some(Spot::Odd("it lies too deep")));
        }
        let is_hidden = |name: &&[u8]| name.starts_with(b".");
        if !assembly.options.hidden && names.iter().any(is_hidden) {
            return Ok(Some(Spot::Hidden));
        }
        self.close_others(inside, assembly)?;
        if self.levels.is_empty() {
            self.open(self.prefix.len(), inside, self.place.parent, assembly);
        }
        while let Some(name) = self.next_folder(inside) {
            if let Err(why) = self.enter(inside, &name, assembly) {
                return Ok(Some(Spot::Odd(why)));
            }
        }
        Ok(None)
    }

    /// Closes the directories that `path` is not below.
    fn close_others(&mut self, path: &[u8], assembly: &mut Assembly<'_>) -> Result<()> {
        while let Some(level) = self.levels.last() {
            let tree = assembly.tree.path(level.directory);
            let is_below = level.path_len == 0
                || (tree.is_some_and(|own| path.starts_with(own))
                    && path.get(level.path_len) == Some(&b'/'));
            if is_below {
                break;
            }
            self.close(assembly)?;
        }
        Ok(())
    }

    /// The name of the next directory on the way to `path`; `None` once its parent is reached.
    fn next_folder(&self, path: &[u8]) -> Option<Vec<u8>> {
        let start = self.levels.last().map_or(0, Level::entry_start);
        let rest = path.get(start..)?;
        let len = rest.iter().position(|&byte| byte == b'/')?;
        Some(rest.get(..len)?.to_vec())
    }

    fn open(&mut self, path_len: usize, path: &[u8], parent: Parent, assembly: &mut Assembly<'_>) {
        let own = path_of(path.get(..path_len).unwrap_or_default());
        let (root, names) = (self.place.root, std::iter::empty());
        self.levels.push(Level {
            directory: assembly.tree.open(own, root, parent, names),
            path_len,
            entries: HashMap::new(),
        });
    }

    fn enter(
        &mut self,
        path: &[u8],
        name: &[u8],
        assembly: &mut Assembly<'_>,
    ) -> std::result::Result<(), &'static str> {
        let hash = self.hasher.hash_one(name);
        let Some(level) = self.levels.last_mut() else {
            return Err("it has no parent");
        };
        let directory = level.directory;
        if let Some(seen) = level.known(hash, name, assembly) {
            if seen.is_folder {
                return Err("the listing came back to a folder that was over");
            }
            assembly.tree.void(directory, seen.entry);
            let end = level.entry_start() + name.len();
            let object = path_of(path.get(..end).unwrap_or_default());
            assembly.name_left_out(&object, "a folder has the same name".to_owned());
        }
        let entry = assembly.tree.add_entry(directory, name.to_vec());
        let is_folder = true;
        level.entries.insert(hash, Seen { entry, is_folder });
        let path_len = level.entry_start() + name.len();
        self.open(path_len, path, Parent::Entry { directory, entry }, assembly);
        Ok(())
    }

    fn file(&mut self, name: &[u8], assembly: &mut Assembly<'_>) -> Spot {
        let hash = self.hasher.hash_one(name);
        let Some(level) = self.levels.last_mut() else {
            return Spot::Odd("it has no parent");
        };
        match level.known(hash, name, assembly) {
            Some(seen) if seen.is_folder => return Spot::Odd("a folder has the same name"),
            Some(_) => return Spot::Odd("it was listed twice"),
            None => {}
        }
        let directory = level.directory;
        let entry = assembly.tree.add_entry(directory, name.to_vec());
        let is_folder = false;
        level.entries.insert(hash, Seen { entry, is_folder });
        Spot::At(Place {
            parent: Parent::Entry { directory, entry },
            root: self.place.root,
        })
    }

    /// Nothing was listed below the target so far.
    pub(super) fn is_empty(&self) -> bool {
        self.levels.is_empty()
    }

    /// An empty directory stands for a target below which nothing can be taken.
    pub(super) fn open_empty(&mut self, assembly: &mut Assembly<'_>) {
        let prefix = self.prefix.clone();
        self.open(prefix.len(), &prefix, self.place.parent, assembly);
    }

    /// The listing is over.
    pub(super) fn finish(&mut self, assembly: &mut Assembly<'_>) -> Result<()> {
        while !self.levels.is_empty() {
            self.close(assembly)?;
        }
        Ok(())
    }

    fn close(&mut self, assembly: &mut Assembly<'_>) -> Result<()> {
        let level = self.levels.pop();
        let complete = level.and_then(|level| assembly.tree.all_listed(level.directory));
        complete.map_or(Ok(()), |directory| assembly.directory_done(directory))
    }
}

impl Level {
    /// Where the names of its entries start in their paths.
    fn entry_start(&self) -> usize {
        self.path_len + usize::from(self.path_len > 0)
    }

    fn known(&self, hash: u64, name: &[u8], assembly: &Assembly<'_>) -> Option<Seen> {
        let seen = *self.entries.get(&hash)?;
        (assembly.tree.name(self.directory, seen.entry)? == name).then_some(seen)
    }
}

/// Why no directory can have an entry of this name.
fn odd(name: &[u8]) -> Option<&'static str> {
    match name {
        b"" => Some("a name in its path is empty"),
        b"." | b".." => Some("a name in its path is . or .."),
        name if name.contains(&0) => Some("a name in its path has a zero byte"),
        _ => None,
    }
}

pub(super) fn path_of(bytes: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(bytes)).to_owned()
}
