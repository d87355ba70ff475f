//! `serve --watch`: what appears, changes or vanishes becomes part of a new root.
//!
//! In       the places that were named; what the kernel tells of folders and mounts; what their
//!          names lead to, looked at once a second; the time.
//! Out      new roots, printed; of those that a newer one replaced the newest [`SUPERSEDED_MAX`],
//!          and all that hold what was copied
//!          or what other roots use.
//! Limits   a place is gone through at most once a second, [`SETTLE_MAX`] after its first change at
//!          the latest; one place at a time. Without a change that is told it is gone through each
//!          interval, a folder that the kernel tells of for one [`REST`]th of the time at most.
//! Not here going through a place (`ingest::rescan`).
//!
//! What a name leads to is what is watched. The kernel tells of a folder, whatever it is called, so
//! its name is looked at as well (`name`): when it leads to another folder, that is watched from
//! then on. The kernel does not tell of what is written through a map of a file, through a hard
//! link from elsewhere, or by another machine, and nothing tells of a bucket or a web server: any
//! place is gone through each interval as well. What has not changed is listed and not read.

mod kernel;
mod mounts;
mod name;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use self::kernel::Kernel;
use self::mounts::Mounts;
pub(super) use self::name::Name;
use self::name::Seen;
use crate::error::{Context, ErrorKind, Result};
use crate::ingest::Quiet;
use crate::ingest::add::AddOptions;
use crate::ingest::dependents::dependents;
use crate::ingest::import::{ImportOptions, holds_copy};
use crate::ingest::remote::target::Target;
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
/// Time between two looks at what a name leads to.
const NAME_INTERVAL: Duration = Duration::from_secs(1);
/// A folder of which the kernel tells rests for so many times what going through it took.
const REST: u32 = 20;
/// Looks in a row that find nothing before that is told: a name may be on its way to another file.
const LOOKS_MAX: u32 = 2;
/// Time between two looks at the clock and at the flag.
const TICK: Duration = Duration::from_millis(100);

/// One place that is watched.
#[derive(Debug)]
pub(super) struct Watched {
    place: Spot,
    how: How,
    /// The store's directory.
    own_dir: PathBuf,
    /// What the name led to when it was last looked at; `None`: nothing that can be watched.
    seen: Option<Seen>,
    n_failed: u32,
    next_look: Instant,
    /// What the kernel tells of a folder; `None`: only time does.
    kernel: Option<Kernel>,
    /// That the kernel cannot tell was said.
    is_deaf: bool,
    /// A hash of what is mounted at, above and below it.
    mounts: u64,
    remounted: bool,
    changed: Option<Changed>,
    /// When it is gone through whatever is told.
    due: Option<Instant>,
    /// How long going through it took.
    took: Duration,
    superseded: VecDeque<RootId>,
    /// Said once, not each interval.
    last_trouble: String,
}

/// Where a place is.
#[derive(Debug)]
pub(super) enum Spot {
    /// On this machine.
    Here(Name),
    /// In a source elsewhere.
    Elsewhere(Target),
}

/// How a place becomes roots.
#[derive(Debug)]
pub(super) enum How {
    /// It is added.
    Add(AddOptions),
    /// It is a CAR.
    Import(ImportOptions),
}

/// When something happened.
#[derive(Debug, Clone, Copy)]
struct Changed {
    first: Instant,
    last: Instant,
}

impl Changed {
    /// One more change, just now.
    fn note(changed: &mut Option<Self>) {
        let now = Instant::now();
        let first = changed.map_or(now, |changed| changed.first);
        *changed = Some(Self { first, last: now });
    }

    fn is_settled(self, now: Instant) -> bool {
        now.duration_since(self.last) > SETTLE || now.duration_since(self.first) > SETTLE_MAX
    }
}

impl Watched {
    /// Begins to watch: what changes from here on is seen. `own_dir` is the store's.
    #[must_use]
    pub(super) fn new(place: Spot, how: How, own_dir: &Path, interval: Duration) -> Self {
        let mut watched = Self {
            due: matches!(place, Spot::Elsewhere(_)).then(|| Instant::now() + interval),
            place,
            how,
            own_dir: own_dir.to_owned(),
            seen: None,
            n_failed: 0,
            next_look: Instant::now(),
            kernel: None,
            is_deaf: false,
            mounts: 0,
            remounted: false,
            changed: None,
            took: Duration::ZERO,
            superseded: VecDeque::new(),
            last_trouble: String::new(),
        };
        watched.note_mounts(&mounts::now());
        watched.remounted = false;
        // What changed since it was added is looked for once.
        if let Err(error) = watched.follow(interval) {
            tracing::debug!(error = error.chain(), "nothing to watch yet");
        }
        watched
    }

    /// Whether what is `mounted` now is something else where the place lies: it is looked at.
    fn note_mounts(&mut self, mounted: &[u8]) {
        let Spot::Here(name) = &self.place else {
            return;
        };
        let mounts = mounts::concerning(name.real(), mounted);
        if std::mem::replace(&mut self.mounts, mounts) != mounts {
            self.remounted = true;
            self.next_look = Instant::now();
        }
    }

    /// Looks where the name leads now, and watches that. An error if it leads to nothing, or to
    /// what must not be followed.
    fn follow(&mut self, interval: Duration) -> Result<()> {
        let now = Instant::now();
        let Spot::Here(name) = &mut self.place else {
            return Ok(());
        };
        if now < self.next_look {
            return Ok(());
        }
        self.next_look = now + NAME_INTERVAL;
        let seen = match name.look() {
            Ok(seen) => seen,
            Err(error) => {
                (self.seen, self.kernel, self.due) = (None, None, None);
                self.is_deaf = false;
                self.n_failed += 1;
                let cannot = || format!("cannot watch {}", name.path().display());
                return match self.n_failed < LOOKS_MAX {
                    true => Ok(()),
                    false => Err(error).context(ErrorKind::Unavailable, cannot),
                };
            }
        };
        if std::mem::take(&mut self.n_failed) >= LOOKS_MAX {
            tracing::info!(path = %name.path().display(), "it is there again, and watched");
        }
        let remounted = std::mem::take(&mut self.remounted);
        let before = self.seen.replace(seen.clone());
        let is_same = before.as_ref().is_some_and(|before| before.is_same(&seen));
        if before.is_some() && !is_same {
            let (path, real) = (name.path().display(), seen.real.display());
            tracing::info!(%path, %real, "the name leads to something else now, which is watched");
            self.mounts = mounts::concerning(&seen.real, &mounts::now());
        }
        if before.as_ref() != Some(&seen) && self.kernel.is_none() {
            Changed::note(&mut self.changed);
        }
        let is_told = self.kernel.as_ref().is_some_and(|kernel| !kernel.is_over());
        let retries = self.kernel.is_none() && self.due.is_some_and(|due| now >= due);
        let is_over = !is_told && self.kernel.is_some();
        if seen.is_folder && (!is_same || is_over || remounted || retries) {
            self.watch_folder(&seen.real, interval);
        }
        if !seen.is_folder && !is_same {
            (self.kernel, self.due, self.is_deaf) = (None, None, false);
        }
        Ok(())
    }

    /// Lets the kernel tell of a folder from now on.
    fn watch_folder(&mut self, real: &Path, interval: Duration) {
        // Dropped first: its watches are there for the next one.
        if let Some(kernel) = self.kernel.take() {
            kernel.take(&mut self.changed);
            Changed::note(&mut self.changed);
        }
        let path = real.display();
        match Kernel::of(real, &self.own_dir) {
            Ok(kernel) => {
                self.kernel = Some(kernel);
                self.is_deaf = false;
                self.due = Some(Instant::now() + self.rest(interval));
                Changed::note(&mut self.changed);
            }
            Err(error) if !std::mem::replace(&mut self.is_deaf, true) => {
                tracing::warn!(%path, %error, "not watched: it is looked at each interval");
                self.due = Some(Instant::now() + interval);
            }
            Err(_) => {} // As before.
        }
    }

    /// Whether it is time to go through it.
    fn is_due(&mut self, interval: Duration) -> bool {
        let now = Instant::now();
        if matches!(self.place, Spot::Here(_)) && self.seen.is_none() {
            return false; // There is nothing.
        }
        if let Some(kernel) = &self.kernel {
            kernel.take(&mut self.changed);
        }
        let is_settled = self.changed.is_some_and(|changed| changed.is_settled(now));
        let is_due = is_settled || self.due.is_some_and(|due| now >= due);
        if is_due {
            self.changed = None;
            let by_time = match &self.place {
                Spot::Elsewhere(_) => true,
                Spot::Here(_) => self.seen.as_ref().is_some_and(|seen| seen.is_folder),
            };
            self.due = by_time.then(|| now + self.rest(interval));
        }
        is_due
    }

    /// Time until it is gone through again if nothing is told.
    fn rest(&self, interval: Duration) -> Duration {
        match self.kernel {
            Some(_) => interval.max(self.took * REST),
            None => interval,
        }
    }

    /// It was gone through in `took`.
    fn rests(&mut self, took: Duration, interval: Duration) {
        self.took = took;
        if self.due.is_some() {
            self.due = Some(Instant::now() + self.rest(interval));
        }
    }

    fn where_it_is(&self) -> Place {
        match &self.place {
            Spot::Here(name) => Place::Local(name.real().to_owned()),
            Spot::Elsewhere(target) => Place::Elsewhere(target.clone()),
        }
    }

    /// Goes through it again; gives what it came to if that is something new.
    fn look(&mut self, blocks: &Blocks, stop: &AtomicBool) -> Result<Option<Rescanned>> {
        let (store, sources) = (blocks.store(), blocks.extents().sources());
        let place = self.where_it_is();
        let done = match &self.how {
            How::Add(options) => rescan_with(store, sources, &place, options, &mut Quiet, stop)?,
            How::Import(options) => {
                import_again(store, sources, &place, options, &mut Quiet, stop)?
            }
        };
        if done.changes.is_empty() {
            return Ok(None);
        }
        for root in &done.report.roots {
            let known = store.catalog().roots_of_cid(&root.cid)?;
            let path = root.path.as_os_str().as_encoded_bytes();
            let newest = known.iter().rfind(|known| known.path == path);
            if let Some(newest) = newest
                && !holds_copy(store, newest.id)?
            {
                self.superseded.retain(|id| *id != newest.id);
                self.superseded.push_back(newest.id);
            }
        }
        while self.superseded.len() > SUPERSEDED_MAX + 1 {
            if let Some(oldest) = self.superseded.pop_front() {
                let _ingest = store.ingest_lock();
                if dependents(blocks, &[oldest], &mut Quiet, stop)?.is_empty() {
                    store.remove_root(oldest)?;
                }
            }
        }
        Ok(Some(done))
    }
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
    let listening = Mounts::listen();
    if let Err(error) = &listening {
        tracing::debug!(%error, "nothing tells of mounts");
    }
    let mut is_remounted = true; // Nobody listened before.
    while !stop.load(Ordering::Relaxed) {
        fail_point("watching");
        if is_remounted {
            let mounted = mounts::now();
            places
                .iter_mut()
                .for_each(|place| place.note_mounts(&mounted));
            std::thread::sleep(TICK); // However often things are mounted.
        }
        for place in places.iter_mut() {
            let looked = match place.follow(interval) {
                Ok(()) if !place.is_due(interval) => continue,
                Ok(()) => {
                    let started = Instant::now();
                    let looked = place.look(blocks, stop);
                    place.rests(started.elapsed(), interval);
                    looked
                }
                Err(error) => Err(error),
            };
            if stop.load(Ordering::Relaxed) {
                return;
            }
            match looked {
                Ok(done) => {
                    place.last_trouble.clear();
                    done.into_iter().for_each(|done| told(Ok(done)));
                }
                Err(error) => {
                    place.due = Some(Instant::now() + place.rest(interval));
                    let trouble = error.chain();
                    if trouble != place.last_trouble {
                        place.last_trouble = trouble;
                        told(Err(error));
                    }
                }
            }
        }
        is_remounted = match &listening {
            Ok(mounts) => mounts.wait(TICK),
            Err(_) => {
                std::thread::sleep(TICK);
                false
            }
        };
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
