//! What the kernel tells of one folder and all below.
//!
//! In       a folder's path, without symlinks.
//! Out      when something in it changed; whether there may be changes that are not told.
//! Limits   an inotify watch for each folder; symlinks are not followed.
//! Not here what its name leads to later (`name`), and what is done then (`watch`).

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use notify::event::ModifyKind;
use notify::{Config, EventKind, RecommendedWatcher, RecursiveMode, Watcher};

use super::{Changed, hold};
use crate::ingest::own::Own;

/// One watch. It ends when it is dropped.
#[derive(Debug)]
pub(super) struct Kernel {
    _watcher: RecommendedWatcher,
    told: Arc<Told>,
}

#[derive(Debug, Default)]
struct Told {
    changed: Mutex<Option<Changed>>,
    is_over: AtomicBool,
}

impl Kernel {
    /// Begins to watch.
    ///
    /// # Errors
    /// Those of inotify: no watches are left, or the folder is gone.
    pub(super) fn of(path: &Path, own_dir: &Path) -> notify::Result<Self> {
        let told = Arc::new(Told::default());
        let (teller, top) = (Arc::clone(&told), path.to_owned());
        let (own_dir, own) = (own_dir.to_owned(), Own::of(own_dir));
        let tell = move |event: notify::Result<notify::Event>| {
            if is_end(&event, &top) {
                teller.is_over.store(true, Ordering::Release);
            }
            if concerns(&event, &own_dir, &own) {
                Changed::note(&mut hold(&teller.changed));
            }
        };
        let config = Config::default().with_follow_symlinks(false);
        let mut watcher = RecommendedWatcher::new(tell, config)?;
        watcher.watch(path, RecursiveMode::Recursive)?;
        Ok(Self {
            _watcher: watcher,
            told,
        })
    }

    /// Adds what was told since the last call.
    pub(super) fn take(&self, changed: &mut Option<Changed>) {
        let Some(told) = hold(&self.told.changed).take() else {
            return;
        };
        let first = changed.map_or(told.first, |changed| changed.first.min(told.first));
        let last = changed.map_or(told.last, |changed| changed.last.max(told.last));
        *changed = Some(Changed { first, last });
    }

    /// Whether not all is told any more: the folder itself went or was renamed, events were lost,
    /// or a folder in it could not be watched.
    pub(super) fn is_over(&self) -> bool {
        self.told.is_over.load(Ordering::Acquire)
    }
}

fn is_end(event: &notify::Result<notify::Event>, top: &Path) -> bool {
    let Ok(event) = event else {
        return true;
    };
    let is_gone = matches!(
        event.kind,
        EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(_))
    );
    event.need_rescan() || (is_gone && event.paths.iter().any(|path| path == top))
}

/// Whether an event may change what a folder comes to: not reading, and not the store's own doing.
fn concerns(event: &notify::Result<notify::Event>, own_dir: &Path, own: &Own) -> bool {
    let Ok(event) = event else {
        return true; // Something was missed.
    };
    // A bind mount shows them under another path, too.
    let is_own = |path: &PathBuf| path.starts_with(own_dir) || own.holds(path);
    !event.kind.is_access() && (event.paths.is_empty() || !event.paths.iter().all(is_own))
}
