//! `serve --watch`: what appears, changes or vanishes becomes part of a new root.
//!
//! In       the places that were added; what the kernel tells of folders; the time for others.
//! Out      new roots, printed; of those that a newer one replaced the newest [`SUPERSEDED_MAX`].
//! Limits   a place is gone through at most once a second, [`SETTLE_MAX`] after its first change at
//!          the latest; one place at a time.
//! Not here going through a place (`ingest::rescan`).
//!
//! Where the kernel does not tell (a bucket, a web server, no inotify watches left) a place is gone
//! through each interval: what has not changed is listed and not read.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use crate::error::Result;
use crate::ingest::Quiet;
use crate::ingest::add::AddOptions;
use crate::ingest::import::ImportOptions;
use crate::ingest::rescan::{Place, Rescanned, import_again, rescan_with};
use crate::node::supervisor::fail_point;
use crate::store::block::Blocks;
use crate::store::catalog::RootId;

/// Roots made here that newer ones replaced, kept for whoever still reads them.
const SUPERSEDED_MAX: usize = 8;
/// Nothing must have happened for so long before a folder is gone through.
const SETTLE: Duration = Duration::from_secs(1);
/// A folder that never rests is gone through after this.
const SETTLE_MAX: Duration = Duration::from_secs(10);
/// Time between two looks at the clock and at the flag.
const TICK: Duration = Duration::from_millis(100);

/// One place that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    place: Place,
    how: How,
    /// What the kernel tells; `None`: only time does.
    kernel: Option<Kernel>,
    due: Instant,
    superseded: VecDeque<RootId>,
    /// Said once, not each interval.
    last_trouble: String,
}

/// How a place becomes roots.
#[derive(Debug)]
pub(super) enum How {
    /// It is added.
    Add(AddOptions),
    /// It is a CAR.
    Import(ImportOptions),
}

#[derive(Debug)]
struct Kernel {
    _watcher: RecommendedWatcher,
    changed: Arc<Mutex<Option<Changed>>>,
}

#[derive(Debug, Clone, Copy)]
struct Changed {
    first: Instant,
    last: Instant,
}

impl Watched {
    /// Begins to watch: what changes from here on is seen. `own_dir` is the store's.
    #[must_use]
    pub(super) fn new(place: Place, how: How, own_dir: &Path, interval: Duration) -> Self {
        let kernel = match &place {
            Place::Local(path) | Place::Folder(_, path) => Kernel::of(path, own_dir)
                .inspect_err(|error| {
                    let path = path.display();
                    tracing::warn!(%path, %error, "not watched: it is looked at each interval");
                })
                .ok(),
            Place::Elsewhere(_) => None,
        };
        Self {
            place,
            how,
            kernel,
            due: Instant::now() + interval,
            superseded: VecDeque::new(),
            last_trouble: String::new(),
        }
    }

    /// Whether it is time to go through it.
    fn is_due(&mut self, interval: Duration) -> bool {
        let now = Instant::now();
        let Some(kernel) = &self.kernel else {
            let due = now >= self.due;
            if due {
                self.due = now + interval;
            }
            return due;
        };
        let mut changed = hold(&kernel.changed);
        let due = changed.is_some_and(|changed| {
            now.duration_since(changed.last) > SETTLE
                || now.duration_since(changed.first) > SETTLE_MAX
        });
        if due {
            *changed = None;
        }
        due
    }

    /// Goes through it again; gives what it came to if that is something new.
    fn look(&mut self, blocks: &Blocks, stop: &AtomicBool) -> Result<Option<Rescanned>> {
        let (store, sources) = (blocks.store(), blocks.extents().sources());
        let done = match &self.how {
            How::Add(options) => {
                rescan_with(store, sources, &self.place, options, &mut Quiet, stop)?
            }
            How::Import(options) => {
                import_again(store, sources, &self.place, options, &mut Quiet, stop)?
            }
        };
        if done.changes.is_empty() {
            return Ok(None);
        }
        for root in &done.report.roots {
            let known = store.catalog().roots_of_cid(&root.cid)?;
            let path = root.path.as_os_str().as_encoded_bytes();
            let newest = known.iter().rfind(|known| known.path == path);
            if let Some(newest) = newest {
                self.superseded.retain(|id| *id != newest.id);
                self.superseded.push_back(newest.id);
            }
        }
        while self.superseded.len() > SUPERSEDED_MAX + 1 {
            if let Some(oldest) = self.superseded.pop_front() {
                let _ingest = store.ingest_lock();
                store.remove_root(oldest)?;
            }
        }
        Ok(Some(done))
    }
}

impl Kernel {
    fn of(path: &Path, own_dir: &Path) -> notify::Result<Self> {
        let (first, last) = (Instant::now(), Instant::now());
        // What changed since it was added, before the kernel was asked, is looked for once.
        let changed = Arc::new(Mutex::new(Some(Changed { first, last })));
        let (told, own_dir) = (Arc::clone(&changed), own_dir.to_owned());
        let mut watcher = notify::recommended_watcher(move |event| {
            if concerns(&event, &own_dir) {
                let now = Instant::now();
                let mut told = hold(&told);
                let first = told.map_or(now, |told: Changed| told.first);
                *told = Some(Changed { first, last: now });
            }
        })?;
        watcher.watch(path, RecursiveMode::Recursive)?;
        Ok(Self {
            _watcher: watcher,
            changed,
        })
    }
}

/// Whether an event may change what a folder comes to: not reading, and not the store's own doing.
fn concerns(event: &notify::Result<notify::Event>, own_dir: &Path) -> bool {
    let Ok(event) = event else {
        return true; // Something was missed.
    };
    let is_own = |path: &PathBuf| path.starts_with(own_dir);
    !event.kind.is_access() && (event.paths.is_empty() || !event.paths.iter().all(is_own))
}

/// Watches until `stop` is set. `told` gets what is new, and what goes wrong. Whoever panics with
/// the places may go on with them.
pub(super) fn watch(
    places: &mut [Watched],
    blocks: &Blocks,
    interval: Duration,
    stop: &AtomicBool,
    told: &mut dyn FnMut(Result<Rescanned>),
) {
    while !stop.load(Ordering::Relaxed) {
        fail_point("watching");
        for place in places.iter_mut() {
            if !place.is_due(interval) || stop.load(Ordering::Relaxed) {
                continue;
            }
            match place.look(blocks, stop) {
                Ok(done) => {
                    place.last_trouble.clear();
                    done.into_iter().for_each(|done| told(Ok(done)));
                }
                Err(_) if stop.load(Ordering::Relaxed) => {}
                Err(error) => {
                    place.due = Instant::now() + interval;
                    let trouble = error.chain();
                    if trouble != place.last_trouble {
                        place.last_trouble = trouble;
                        told(Err(error));
                    }
                }
            }
        }
        std::thread::sleep(TICK);
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::sync::mpsc::sync_channel;
    use std::time::Duration;

    use super::{How, SUPERSEDED_MAX, Watched, watch};
    use crate::ingest::rescan::Place;
    use crate::ingest::tests::{Fixture, options};

    #[test]
    fn a_folder_that_changes_becomes_new_roots_and_old_ones_go() {
        let fixture = Fixture::new();
        fixture.write("d/a", b"first");
        let dir = fixture.path("d");
        fixture.add(&[&dir]);
        let (interval, stop) = (Duration::from_secs(300), AtomicBool::new(false));
        let own = fixture.store().dir().to_owned();
        let mut watched = [Watched::new(
            Place::Local(dir.clone()),
            How::Add(options()),
            &own,
            interval,
        )];
        assert!(watched[0].kernel.is_some());
        let (sender, receiver) = sync_channel(64);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut told = |done| sender.send(done).unwrap();
                watch(&mut watched, &fixture.blocks, interval, &stop, &mut told);
            });
            for n in 0..SUPERSEDED_MAX + 3 {
                fixture.write("d/a", format!("version {n}").as_bytes());
                let done = receiver
                    .recv_timeout(Duration::from_secs(60))
                    .unwrap()
                    .unwrap();
                assert_eq!((done.changes.changed, done.report.roots.len()), (1, 1));
            }
            std::fs::remove_dir_all(&dir).unwrap();
            let trouble = receiver.recv_timeout(Duration::from_secs(60)).unwrap();
            assert!(trouble.is_err());
            stop.store(true, Ordering::Relaxed);
        });
        // The one that was added, the newest, and those before it.
        assert_eq!(fixture.n_roots(), 1 + 1 + SUPERSEDED_MAX);
    }
}
