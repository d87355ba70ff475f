//! Listings of a tree, made on a thread of their own while the last ones are gone through.
//!
//! In       the top of a tree.
//! Out      each directory's listing when it is asked for, in the order of a walk by name.
//! Limits   at most [`LISTINGS_MAX`] listings wait.
//! Not here what becomes of the entries (`ingest::add`).

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};

use super::{EntryKind, Listing, list};
use crate::ingest::own::Own;

/// Listings made ahead. Each holds one directory's entries.
const LISTINGS_MAX: usize = 8;

/// A tree that is listed ahead.
#[derive(Debug)]
pub struct Ahead {
    listings: Receiver<(PathBuf, io::Result<Listing>)>,
    own: Own,
    with_hidden: bool,
    /// Listed, and not what was asked for last.
    waiting: Option<(PathBuf, io::Result<Listing>)>,
}

impl Ahead {
    /// Begins to list `top` and what is below it, but nothing of carrack's own.
    #[must_use]
    pub fn new(top: &Path, own: &Own, with_hidden: bool) -> Self {
        let (sender, listings) = sync_channel(LISTINGS_MAX);
        let (top, of_thread) = (top.to_owned(), own.clone());
        // Ends with the tree, or when nobody takes its listings any more.
        let started = std::thread::Builder::new().spawn(move || {
            let mut left = vec![top];
            while let Some(path) = left.pop() {
                let listing = list(&path, &of_thread, with_hidden);
                if let Ok(listing) = &listing {
                    let directories = listing.entries.iter().rev();
                    let directories = directories
                        .filter(|entry| matches!(entry.kind, EntryKind::Directory))
                        .map(|entry| path.join(&entry.name));
                    left.extend(directories);
                }
                if sender.send((path, listing)).is_err() {
                    return;
                }
            }
        });
        drop(started); // Without it, all is listed on the spot.
        Self {
            listings,
            own: own.clone(),
            with_hidden,
            waiting: None,
        }
    }

    /// The listing of `path`: the one made ahead if directories are asked for in the order in
    /// which they were met, else one made now.
    ///
    /// # Errors
    /// Those of [`list`].
    pub fn take(&mut self, path: &Path) -> io::Result<Listing> {
        let next = self.waiting.take().or_else(|| self.listings.recv().ok());
        match next {
            Some((listed, listing)) if listed == path => listing,
            next => {
                self.waiting = next;
                list(path, &self.own, self.with_hidden)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::Ahead;
    use crate::ingest::own::Own;

    fn names(ahead: &mut Ahead, path: &Path) -> Vec<String> {
        let entries = ahead.take(path).unwrap().entries;
        let name = |entry: &super::super::Entry| entry.name.to_str().unwrap().to_owned();
        entries.iter().map(name).collect()
    }

    #[test]
    fn every_order_of_asking_gets_the_right_listing() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        for path in ["a/x/deep", "b/y", "c"] {
            std::fs::create_dir_all(top.join(path)).unwrap();
        }
        let walk = ["", "a", "a/x", "a/x/deep", "b", "b/y", "c"].map(|path| top.join(path));
        let expected = [
            vec!["a", "b", "c"],
            vec!["x"],
            vec!["deep"],
            vec![],
            vec!["y"],
        ];
        let mut ahead = Ahead::new(top, &Own::default(), false);
        for (path, expected) in walk.iter().zip(expected) {
            assert_eq!(names(&mut ahead, path), expected, "{}", path.display());
        }
        // Out of order, again, and past the end: listed on the spot.
        for path in [&walk[6], &walk[4], &walk[4], &walk[0], &walk[5], &walk[6]] {
            let fresh = super::list(path, &Own::default(), false)
                .unwrap()
                .entries
                .len();
            assert_eq!(ahead.take(path).unwrap().entries.len(), fresh);
        }
        assert!(ahead.take(&top.join("none")).is_err());
    }

    #[test]
    fn what_is_carracks_own_is_not_listed_ahead() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        std::fs::create_dir_all(top.join("a/below")).unwrap();
        std::fs::create_dir_all(top.join("b")).unwrap();
        let mut ahead = Ahead::new(top, &Own::of(&top.join("a")), false);
        assert_eq!(names(&mut ahead, top), ["a", "b"]);
        assert!(ahead.take(&top.join("a")).unwrap().is_own);
        assert!(names(&mut ahead, &top.join("b")).is_empty());
        assert!(ahead.waiting.is_none());
        assert!(ahead.listings.recv().is_err(), "nothing else was listed");
    }
}
