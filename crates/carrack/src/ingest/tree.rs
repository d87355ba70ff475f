//! The directories of an add that still wait for entries.
//!
//! In       directories as they are listed, and what became of each entry, in any order.
//! Out      directories whose last entry has come, to be built; in the end one sum a root.
//! Limits   holds the directories on the way to files that are being hashed, not the whole tree.
//! Not here building a directory's node (`ingest::add`).

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use carrack_formats::Cid;

/// What one file, directory or symlink came to.
#[derive(Debug, Clone, Copy)]
pub struct Sum {
    /// Its CID.
    pub cid: Cid,
    /// Bytes of the files in it.
    pub file_len: u64,
    /// Bytes of all its blocks: a link's Tsize.
    pub dag_len: u64,
    /// Its blocks, each counted where it occurs.
    pub n_blocks: u64,
    /// Files in it.
    pub n_files: u64,
}

/// Where a result belongs.
#[derive(Debug, Clone, Copy)]
pub enum Parent {
    /// It is the root with this index.
    Root(usize),
    /// It is an entry of a directory.
    Entry {
        /// The directory's place in the [`Tree`].
        directory: usize,
        /// The entry's place in the directory.
        entry: usize,
    },
}

/// A directory with all its entries known.
#[derive(Debug)]
pub struct Directory {
    /// Where it lies; empty for one that lies nowhere (`--wrap`).
    pub path: PathBuf,
    /// Which root it is part of.
    pub root: usize,
    /// Where its own sum goes.
    pub parent: Parent,
    /// Names and sums; an entry without a sum or a name was left out.
    pub entries: Vec<(Vec<u8>, Option<Sum>)>,
    waiting_for: usize,
}

/// All directories under way.
#[derive(Debug, Default)]
pub struct Tree {
    directories: Vec<Option<Directory>>,
    free: Vec<usize>,
}

impl Tree {
    /// A directory with the entries `names`. It waits for all of them, and for
    /// [`Self::all_listed`] once more, so that it cannot be complete before it was gone through.
    pub fn open(
        &mut self,
        path: PathBuf,
        root: usize,
        parent: Parent,
        names: impl IntoIterator<Item = Vec<u8>>,
    ) -> usize {
        let entries: Vec<_> = names.into_iter().map(|name| (name, None)).collect();
        let waiting_for = entries.len() + 1;
        let directory = Some(Directory {
            path,
            root,
            parent,
            entries,
            waiting_for,
        });
        match self.free.pop() {
            Some(index) => {
                if let Some(place) = self.directories.get_mut(index) {
                    *place = directory;
                }
                index
            }
            None => {
                self.directories.push(directory);
                self.directories.len() - 1
            }
        }
    }

    /// One more entry of a directory that is not [listed to its end](Self::all_listed). Gives its
    /// place.
    pub fn add_entry(&mut self, directory: usize, name: Vec<u8>) -> usize {
        let Some(open) = self.directories.get_mut(directory).and_then(Option::as_mut) else {
            return usize::MAX; // No entry has this place: nothing can be settled there.
        };
        open.entries.push((name, None));
        open.waiting_for += 1;
        open.entries.len() - 1
    }

    /// An entry will not be part of its directory, whatever it comes to. It keeps its place.
    pub fn void(&mut self, directory: usize, entry: usize) {
        let open = self.directories.get_mut(directory).and_then(Option::as_mut);
        if let Some(place) = open.and_then(|open| open.entries.get_mut(entry)) {
            place.0 = Vec::new(); // No entry that counts has an empty name.
        }
    }

    /// Where a directory lies.
    #[must_use]
    pub fn path(&self, directory: usize) -> Option<&[u8]> {
        let open = self.directories.get(directory)?.as_ref()?;
        Some(open.path.as_os_str().as_bytes())
    }

    /// The name of an entry.
    #[must_use]
    pub fn name(&self, directory: usize, entry: usize) -> Option<&[u8]> {
        let open = self.directories.get(directory)?.as_ref()?;
        Some(&open.entries.get(entry)?.0)
    }

    /// An entry has come to something, or was left out. Gives the directory if that was its last.
    pub fn settle(
        &mut self,
        directory: usize,
        entry: usize,
        sum: Option<Sum>,
    ) -> Option<Directory> {
        let open = self.directories.get_mut(directory)?.as_mut()?;
        if let Some(place) = open.entries.get_mut(entry) {
            place.1 = sum;
        }
        self.count_down(directory)
    }

    /// Every entry of the directory has been handed on. Gives it if nothing is awaited any more.
    pub fn all_listed(&mut self, directory: usize) -> Option<Directory> {
        self.count_down(directory)
    }

    fn count_down(&mut self, index: usize) -> Option<Directory> {
        let place = self.directories.get_mut(index)?;
        let open = place.as_mut()?;
        open.waiting_for = open.waiting_for.saturating_sub(1);
        if open.waiting_for > 0 {
            return None;
        }
        self.free.push(index);
        place.take()
    }
}
