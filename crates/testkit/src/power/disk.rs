//! Files and directories, as processes see them and as the disk has them.
//!
//! In       the changing operations of a file system, syncs, a cut.
//! Out      what is there; after a cut another disk, all of it durable.
//! Limits   numbers of files are never used again, over cuts, so that no cache can mix them up.
//! Not here when a cut comes, and what fails before it (`machine`).

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;

use rustix::io::Errno;

use super::chance::Chance;
use super::file::{Content, FILE_LEN_MAX};

/// Number of a file or directory.
pub type Ino = u64;

/// The top directory.
pub const ROOT: Ino = 1;

/// What an entry names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A socket.
    Socket,
}

/// What `stat` tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// Its number.
    pub ino: Ino,
    /// What it is.
    pub kind: Kind,
    /// Bytes of a file.
    pub len: u64,
    /// Permissions.
    pub mode: u32,
    /// When it was changed last, in changes of the disk.
    pub changed: u64,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The name.
    pub name: OsString,
    /// What it names.
    pub ino: Ino,
    /// What that is.
    pub kind: Kind,
}

/// What a cut does to changes that were not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// None of them happened.
    Everything,
    /// All of them happened.
    Nothing,
    /// Those after some moment did not happen, and the one of that moment in part.
    Later,
    /// Any of them did, each file sector by sector.
    Scattered,
}

impl Loss {
    /// One of them, the last most often.
    pub fn any(chance: &mut Chance) -> Self {
        match chance.below(10) {
            0..3 => Self::Everything,
            3 => Self::Nothing,
            4..6 => Self::Later,
            _ => Self::Scattered,
        }
    }
}

#[derive(Debug, Clone)]
struct Node {
    body: Body,
    mode: u32,
    durable_mode: u32,
    changed: u64,
    /// The last name it was given, for people.
    name: OsString,
}

#[derive(Debug, Clone)]
enum Body {
    File(Content),
    Directory(Listing),
    Symlink(OsString),
    Socket,
}

impl Body {
    const fn kind(&self) -> Kind {
        match self {
            Self::File(_) => Kind::File,
            Self::Directory(_) => Kind::Directory,
            Self::Symlink(_) => Kind::Symlink,
            Self::Socket => Kind::Socket,
        }
    }
}

type Names = BTreeMap<OsString, Ino>;

#[derive(Debug, Clone, Default)]
struct Listing {
    now: Names,
    durable: Names,
}

/// A place of a name.
type Key = (Ino, OsString);

/// Names that were given or taken in one step.
#[derive(Debug, Clone)]
struct EntryChange {
    at: u64,
    edits: Vec<(Key, Option<Ino>)>,
}

/// All of a file system.
#[derive(Debug, Clone)]
pub struct Disk {
    nodes: BTreeMap<Ino, Node>,
    next_ino: Ino,
    /// Of entries, since they were synced; oldest first.
    changes: Vec<EntryChange>,
    clock: u64,
}

impl Default for Disk {
    fn default() -> Self {
        let mut disk = Self {
            nodes: BTreeMap::new(),
            next_ino: ROOT,
            changes: Vec::new(),
            clock: 0,
        };
        disk.add(Body::Directory(Listing::default()), 0o755, OsStr::new(""));
        disk
    }
}

impl Disk {
    /// What `stat` tells.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn attributes(&self, ino: Ino) -> Result<Attributes, Errno> {
        let node = self.node(ino)?;
        let len = match &node.body {
            Body::File(content) => content.bytes().len(),
            Body::Symlink(target) => target.len(),
            Body::Directory(_) | Body::Socket => 0,
        };
        Ok(Attributes {
            ino,
            kind: node.body.kind(),
            len: len as u64,
            mode: node.mode,
            changed: node.changed,
        })
    }

    /// What a name in a directory names.
    ///
    /// # Errors
    /// `NOENT`, `NOTDIR`.
    pub fn lookup(&self, dir: Ino, name: &OsStr) -> Result<Ino, Errno> {
        let found = self.listing(dir)?.now.get(name).copied();
        found.ok_or(Errno::NOENT)
    }

    /// What a path below the top names.
    ///
    /// # Errors
    /// As [`Self::lookup`].
    pub fn find(&self, path: &Path) -> Result<Ino, Errno> {
        let mut names = path.iter();
        names.try_fold(ROOT, |dir, name| self.lookup(dir, name))
    }

    /// The entries of a directory.
    ///
    /// # Errors
    /// `NOENT`, `NOTDIR`.
    pub fn entries(&self, dir: Ino) -> Result<Vec<Entry>, Errno> {
        let names = self.listing(dir)?.now.iter();
        let entry = |(name, &ino): (&OsString, &Ino)| {
            Ok(Entry {
                name: name.clone(),
                ino,
                kind: self.node(ino)?.body.kind(),
            })
        };
        names.map(entry).collect()
    }

    /// The bytes of a file.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`.
    pub fn bytes(&self, ino: Ino) -> Result<&[u8], Errno> {
        match &self.node(ino)?.body {
            Body::File(content) => Ok(content.bytes()),
            _ => Err(Errno::ISDIR),
        }
    }

    /// Where a symbolic link leads.
    ///
    /// # Errors
    /// `NOENT`, `INVAL`.
    pub fn target(&self, ino: Ino) -> Result<&OsStr, Errno> {
        match &self.node(ino)?.body {
            Body::Symlink(target) => Ok(target),
            _ => Err(Errno::INVAL),
        }
    }

    /// The last name that a file was given, for people.
    #[must_use]
    pub fn name(&self, ino: Ino) -> String {
        let name = self.nodes.get(&ino).map(|node| node.name.to_string_lossy());
        name.unwrap_or_default().into_owned()
    }

    /// Every file below the top with its length.
    #[must_use]
    pub fn files(&self) -> BTreeMap<String, u64> {
        let mut found = BTreeMap::new();
        let mut open = vec![(ROOT, String::new())];
        while let Some((dir, path)) = open.pop() {
            for entry in self.entries(dir).unwrap_or_default() {
                let path = format!("{path}{}", entry.name.to_string_lossy());
                match entry.kind {
                    Kind::Directory => open.push((entry.ino, format!("{path}/"))),
                    _ => {
                        let len = self.attributes(entry.ino).map_or(0, |found| found.len);
                        found.insert(path, len);
                    }
                }
            }
        }
        found
    }

    /// Nothing would be lost now.
    #[must_use]
    pub fn is_durable(&self) -> bool {
        let durable = |node: &Node| match &node.body {
            Body::File(content) => content.is_durable() && node.mode == node.durable_mode,
            _ => true,
        };
        self.changes.is_empty() && self.nodes.values().all(durable)
    }

    /// Makes a file, directory or socket.
    ///
    /// # Errors
    /// `EXIST`, `NOENT`, `NOTDIR`.
    pub fn make(&mut self, dir: Ino, name: &OsStr, kind: Kind, mode: u32) -> Result<Ino, Errno> {
        let body = match kind {
            Kind::File => Body::File(Content::default()),
            Kind::Directory => Body::Directory(Listing::default()),
            Kind::Socket => Body::Socket,
            Kind::Symlink => return Err(Errno::INVAL),
        };
        self.make_body(dir, name, body, mode)
    }

    /// Makes a symbolic link.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn symlink(&mut self, dir: Ino, name: &OsStr, target: &OsStr) -> Result<Ino, Errno> {
        self.make_body(dir, name, Body::Symlink(target.to_owned()), 0o777)
    }

    /// Gives a file another name.
    ///
    /// # Errors
    /// As [`Self::make`].
    pub fn link(&mut self, ino: Ino, dir: Ino, name: &OsStr) -> Result<(), Errno> {
        self.must_be_free(dir, name)?;
        self.edit(vec![((dir, name.to_owned()), Some(ino))])
    }

    /// Takes a name away: of a directory if `is_dir`, which must be empty.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`, `NOTDIR`, `NOTEMPTY`.
    pub fn remove(&mut self, dir: Ino, name: &OsStr, is_dir: bool) -> Result<(), Errno> {
        let ino = self.lookup(dir, name)?;
        match &self.node(ino)?.body {
            Body::Directory(_) if !is_dir => return Err(Errno::ISDIR),
            Body::Directory(listing) if !listing.now.is_empty() => return Err(Errno::NOTEMPTY),
            Body::Directory(_) => {}
            _ if is_dir => return Err(Errno::NOTDIR),
            _ => {}
        }
        self.edit(vec![((dir, name.to_owned()), None)])
    }

    /// Gives what has the name `from` the name `to`, in one step.
    ///
    /// # Errors
    /// `NOENT`, `NOTEMPTY`; `EXIST` if nothing may be replaced.
    pub fn rename(
        &mut self,
        from: (Ino, &OsStr),
        to: (Ino, &OsStr),
        may_replace: bool,
    ) -> Result<(), Errno> {
        let ino = self.lookup(from.0, from.1)?;
        match self.lookup(to.0, to.1) {
            Ok(_) if !may_replace => return Err(Errno::EXIST),
            Ok(there) if there == ino => return Ok(()),
            Ok(there) => match &self.node(there)?.body {
                Body::Directory(listing) if !listing.now.is_empty() => {
                    return Err(Errno::NOTEMPTY);
                }
                _ => {}
            },
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
        let (from, to) = ((from.0, from.1.to_owned()), (to.0, to.1.to_owned()));
        self.edit(vec![(from, None), (to, Some(ino))])
    }

    /// Writes bytes of a file.
    ///
    /// # Errors
    /// `NOENT`, `ISDIR`; `FBIG` beyond [`FILE_LEN_MAX`].
    pub fn write(&mut self, ino: Ino, offset: u64, data: &[u8]) -> Result<(), Errno> {
        let offset = usize::try_from(offset).map_err(|_| Errno::FBIG)?;
        if offset.saturating_add(data.len()) > FILE_LEN_MAX {
            return Err(Errno::FBIG);
        }
        let at = self.tick();
        self.content_mut(ino, at)?.write(offset, data, at);
        Ok(())
    }

    /// Cuts a file, or makes it longer.
    ///
    /// # Errors
    /// As [`Self::write`].
    pub fn set_len(&mut self, ino: Ino, len: u64) -> Result<(), Errno> {
        let len = usize::try_from(len).map_err(|_| Errno::FBIG)?;
        if len > FILE_LEN_MAX {
            return Err(Errno::FBIG);
        }
        let at = self.tick();
        self.content_mut(ino, at)?.set_len(len, at);
        Ok(())
    }

    /// Sets permissions.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn set_mode(&mut self, ino: Ino, mode: u32) -> Result<(), Errno> {
        let at = self.tick();
        let node = self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?;
        (node.mode, node.changed) = (mode, at);
        Ok(())
    }

    /// Makes a file's bytes, length and mode durable, or a directory's entries.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn sync(&mut self, ino: Ino) -> Result<(), Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?;
        node.durable_mode = node.mode;
        match &mut node.body {
            Body::File(content) => content.sync(),
            Body::Directory(_) => self.sync_entries(ino, |_| true),
            Body::Symlink(_) | Body::Socket => {}
        }
        Ok(())
    }

    /// A sync that was under way at the cut.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn sync_partly(
        &mut self,
        ino: Ino,
        sector_len: usize,
        chance: &mut Chance,
    ) -> Result<(), Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?;
        match &mut node.body {
            Body::File(content) => content.sync_partly(sector_len, chance),
            Body::Directory(_) => {
                let end = self.clock - chance.below(self.changes.len() + 1) as u64;
                self.sync_entries(ino, |at| at <= end);
            }
            Body::Symlink(_) | Body::Socket => {}
        }
        Ok(())
    }

    /// A sync that failed. Entries may be synced again; bytes that did not reach the disk are lost
    /// without a word from later syncs.
    ///
    /// # Errors
    /// `NOENT`.
    pub fn fail_sync(
        &mut self,
        ino: Ino,
        sector_len: usize,
        chance: &mut Chance,
    ) -> Result<(), Errno> {
        match &mut self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?.body {
            Body::File(content) => content.fail_sync(sector_len, chance),
            Body::Directory(_) | Body::Symlink(_) | Body::Socket => {}
        }
        Ok(())
    }

    /// The disk at the next start after a cut now.
    #[must_use]
    pub fn after_cut(&self, loss: Loss, sector_len: usize, chance: &mut Chance) -> Self {
        let oldest = self.oldest_change();
        let span = usize::try_from(self.clock + 1 - oldest).unwrap_or(usize::MAX);
        let end = oldest + chance.below(span) as u64;
        let names = self.names_after(loss, end, chance);
        let mut after = self.clone();
        after.changes.clear();
        for (ino, node) in &mut after.nodes {
            match &mut node.body {
                Body::File(content) => {
                    let bytes = match loss {
                        Loss::Everything => content.least(),
                        Loss::Nothing => content.most(),
                        Loss::Later => Arc::new(content.until(end, sector_len, chance)),
                        Loss::Scattered => Arc::new(content.scattered(sector_len, chance)),
                    };
                    content.become_durable(bytes);
                }
                Body::Directory(listing) => {
                    listing.durable = names.get(ino).cloned().unwrap_or_default();
                    listing.now.clone_from(&listing.durable);
                }
                Body::Symlink(_) | Body::Socket => {}
            }
            let has_new_mode = match loss {
                Loss::Everything => false,
                Loss::Nothing => true,
                Loss::Later | Loss::Scattered => chance.one_in(2),
            };
            if !has_new_mode {
                node.mode = node.durable_mode;
            }
            node.durable_mode = node.mode;
        }
        after.renumbered(self.next_ino)
    }

    /// The same with other numbers, from `first` on; what nothing names is gone.
    #[must_use]
    pub fn renumbered(&self, first: Ino) -> Self {
        let mut numbers = BTreeMap::from([(ROOT, ROOT)]);
        let mut next_ino = first.max(self.next_ino);
        let mut open = vec![ROOT];
        while let Some(dir) = open.pop() {
            let Ok(listing) = self.listing(dir) else {
                continue;
            };
            for &ino in listing.now.values().chain(listing.durable.values()) {
                numbers.entry(ino).or_insert_with(|| {
                    next_ino += 1;
                    open.push(ino);
                    next_ino - 1
                });
            }
        }
        let number = |ino: &mut Ino| *ino = numbers.get(ino).copied().unwrap_or(*ino);
        let mut nodes = BTreeMap::new();
        for (ino, node) in &self.nodes {
            let Some(&ino) = numbers.get(ino) else {
                continue;
            };
            let mut node = node.clone();
            if let Body::Directory(listing) = &mut node.body {
                listing.now.values_mut().for_each(number);
                listing.durable.values_mut().for_each(number);
            }
            nodes.insert(ino, node);
        }
        let mut changes = self.changes.clone();
        for ((dir, _), ino) in changes.iter_mut().flat_map(|change| &mut change.edits) {
            number(dir);
            ino.iter_mut().for_each(number);
        }
        Self {
            nodes,
            next_ino,
            changes,
            clock: self.clock,
        }
    }

    /// Numbers below were given to something.
    #[must_use]
    pub const fn next_ino(&self) -> Ino {
        self.next_ino
    }

    /// When the first change was made that is not durable.
    fn oldest_change(&self) -> u64 {
        let of_files = self.nodes.values().filter_map(|node| match &node.body {
            Body::File(content) => content.oldest_change(),
            _ => None,
        });
        let of_entries = self.changes.first().map(|change| change.at);
        of_files.chain(of_entries).min().unwrap_or(self.clock)
    }

    /// The entries of each directory after a cut.
    fn names_after(&self, loss: Loss, end: u64, chance: &mut Chance) -> BTreeMap<Ino, Names> {
        let mut names: BTreeMap<Ino, Names> = BTreeMap::new();
        for (&ino, node) in &self.nodes {
            if let Body::Directory(listing) = &node.body {
                names.insert(ino, listing.durable.clone());
            }
        }
        let kept = chance.below(9);
        // What builds on an entry that did not happen did not happen, either.
        let mut lost: BTreeSet<&Key> = BTreeSet::new();
        for change in &self.changes {
            let is_kept = match loss {
                Loss::Everything => false,
                Loss::Nothing => true,
                Loss::Later => change.at < end,
                Loss::Scattered => chance.is_within(kept),
            };
            let mut keys = change.edits.iter().map(|(key, _)| key);
            if !is_kept || keys.any(|key| lost.contains(key)) {
                lost.extend(change.edits.iter().map(|(key, _)| key));
                continue;
            }
            for ((dir, name), ino) in &change.edits {
                edit(names.entry(*dir).or_default(), name, *ino);
            }
        }
        names
    }

    /// Makes changes in `dir` durable for which `is_due`, with those that they build on.
    fn sync_entries(&mut self, dir: Ino, is_due: impl Fn(u64) -> bool) {
        let mut needed: BTreeSet<Key> = BTreeSet::new();
        let (mut due, mut left) = (Vec::new(), Vec::new());
        for change in std::mem::take(&mut self.changes).into_iter().rev() {
            let is_here = change.edits.iter().any(|((of, _), _)| *of == dir);
            let is_needed = change.edits.iter().any(|(key, _)| needed.contains(key));
            if (is_here && is_due(change.at)) || is_needed {
                needed.extend(change.edits.iter().map(|(key, _)| key.clone()));
                due.push(change);
            } else {
                left.push(change);
            }
        }
        left.reverse();
        self.changes = left;
        for ((dir, name), ino) in due.into_iter().rev().flat_map(|change| change.edits) {
            if let Ok(listing) = self.listing_mut(dir) {
                edit(&mut listing.durable, &name, ino);
            }
        }
    }

    fn make_body(&mut self, dir: Ino, name: &OsStr, body: Body, mode: u32) -> Result<Ino, Errno> {
        self.must_be_free(dir, name)?;
        let ino = self.add(body, mode, name);
        self.edit(vec![((dir, name.to_owned()), Some(ino))])?;
        Ok(ino)
    }

    fn add(&mut self, body: Body, mode: u32, name: &OsStr) -> Ino {
        let ino = self.next_ino;
        self.next_ino += 1;
        let node = Node {
            body,
            mode,
            durable_mode: mode,
            changed: self.clock,
            name: name.to_owned(),
        };
        self.nodes.insert(ino, node);
        ino
    }

    fn must_be_free(&self, dir: Ino, name: &OsStr) -> Result<(), Errno> {
        match self.lookup(dir, name) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) if self.nodes.contains_key(&dir) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Changes entries as processes see them; the disk follows with a sync.
    fn edit(&mut self, edits: Vec<(Key, Option<Ino>)>) -> Result<(), Errno> {
        let at = self.tick();
        for ((dir, name), ino) in &edits {
            edit(&mut self.listing_mut(*dir)?.now, name, *ino);
            if let Some(node) = self.nodes.get_mut(dir) {
                node.changed = at;
            }
            if let Some(node) = ino.and_then(|ino| self.nodes.get_mut(&ino)) {
                node.name.clone_from(name);
            }
        }
        self.changes.push(EntryChange { at, edits });
        Ok(())
    }

    const fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    fn node(&self, ino: Ino) -> Result<&Node, Errno> {
        self.nodes.get(&ino).ok_or(Errno::NOENT)
    }

    fn content_mut(&mut self, ino: Ino, at: u64) -> Result<&mut Content, Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?;
        node.changed = at;
        match &mut node.body {
            Body::File(content) => Ok(content),
            _ => Err(Errno::ISDIR),
        }
    }

    fn listing(&self, ino: Ino) -> Result<&Listing, Errno> {
        match &self.node(ino)?.body {
            Body::Directory(listing) => Ok(listing),
            _ => Err(Errno::NOTDIR),
        }
    }

    fn listing_mut(&mut self, ino: Ino) -> Result<&mut Listing, Errno> {
        let node = self.nodes.get_mut(&ino).ok_or(Errno::NOENT)?;
        match &mut node.body {
            Body::Directory(listing) => Ok(listing),
            _ => Err(Errno::NOTDIR),
        }
    }
}

fn edit(names: &mut Names, name: &OsStr, ino: Option<Ino>) {
    match ino {
        Some(ino) => names.insert(name.to_owned(), ino),
        None => names.remove(name),
    };
}

#[cfg(test)]
mod tests;
