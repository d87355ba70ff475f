//! All sources at a glance, and what the catalog remembers of those out of service.
//!
//! In       the containers of the catalog; one `lstat` each of this machine's, one listing of each
//!          source elsewhere that is to be asked; the marks that reads have set.
//! Out      a [`SourceStatus`] for each source; rows that outlive the process.
//! Limits   8 bytes a container of this machine and about 400 bytes one of a source that is asked,
//!          while it looks; of what is not live, [`NAMED_MAX`] objects a source are named.
//! Not here reading blocks, and what makes a mark (`store::block`); asking (`source::look`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Blocks;
use crate::durable;
use crate::error::{Error, ErrorKind, Result};
use crate::source::health::Health;
use crate::source::local;
use crate::source::look::{Seen, look};
use crate::source::nofollow::{self, Kind};
use crate::source::{SourceError, SourceErrorKind};
use crate::store::catalog::{
    Batch, ContainerKind, ContainerRecord, ObjectStamp, SOURCE_LOCAL, SOURCE_STORE, SourceRecord,
    StaleMark, StaleReason, Validator,
};
use crate::store::location::ContainerId;

/// Objects of one source that are named; the rest is counted.
const NAMED_MAX: usize = 100_000;

/// What an object is, from good to bad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// As it was added, as far as can be told without reading it.
    Live,
    /// Another version.
    Stale,
    /// Not there.
    Missing,
    /// The version that was added, with other bytes.
    Corrupt,
    /// Its source does not answer, or does not let us in.
    Unreachable,
}

impl State {
    /// All, from good to bad.
    pub const ALL: [Self; 5] = [
        Self::Live,
        Self::Stale,
        Self::Missing,
        Self::Corrupt,
        Self::Unreachable,
    ];

    /// As reports have it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Live => "live",
            Self::Stale => "stale",
            Self::Missing => "missing",
            Self::Corrupt => "corrupt",
            Self::Unreachable => "unreachable",
        }
    }
}

/// An object that is not as it was added.
#[derive(Debug, Clone)]
pub struct Change {
    /// Where it is, for people.
    pub path: PathBuf,
    /// [`State::Live`]: only its times differ, and it was not read yet.
    pub state: State,
    /// What was seen, in a few words.
    pub reason: String,
    /// When that was first noticed, in seconds since 1970.
    pub since_unix: Option<u64>,
    /// The ranges of it that were found wrong, in bytes; without any it is out of service as a
    /// whole, unless it is [`State::Live`].
    pub ranges: Vec<Range<u64>>,
}

/// What became of one source.
#[derive(Debug, Clone)]
pub struct SourceStatus {
    /// Its id in the catalog.
    pub id: u32,
    /// What a person calls it.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// The worst state of its objects; [`State::Unreachable`] if it does not answer.
    pub state: State,
    /// Since when it is not live, as far as is known.
    pub since_unix: Option<u64>,
    /// Objects by state, in the order of [`State::ALL`]. A file of which several versions are
    /// promised counts once for each.
    pub counts: [u64; 5],
    /// What is not live, and what was touched, by path; at most [`NAMED_MAX`].
    pub changes: Vec<Change>,
    /// Containers and their bytes.
    pub n_containers: u64,
    /// Bytes of all containers.
    pub n_bytes: u64,
}

impl SourceStatus {
    fn new(id: u32, name: String, url: String) -> Self {
        Self {
            id,
            name,
            url,
            state: State::Live,
            since_unix: None,
            counts: [0; 5],
            changes: Vec::new(),
            n_containers: 0,
            n_bytes: 0,
        }
    }

    /// Objects in this state.
    #[must_use]
    pub fn count(&self, state: State) -> u64 {
        let place = State::ALL.iter().position(|one| *one == state);
        place
            .and_then(|place| self.counts.get(place))
            .copied()
            .unwrap_or(0)
    }

    fn note(&mut self, state: State, change: Option<Change>) {
        let place = State::ALL.iter().position(|one| *one == state);
        if let Some(count) = place.and_then(|place| self.counts.get_mut(place)) {
            *count += 1;
        }
        self.state = self.state.max(state);
        let Some(change) = change else { return };
        if state != State::Live {
            let since = [self.since_unix, change.since_unix];
            self.since_unix = since.into_iter().flatten().min();
        }
        if self.changes.len() < NAMED_MAX {
            self.changes.push(change);
        }
    }

    /// One line a path: the worst of what was seen of its versions.
    fn tidy(&mut self) {
        self.changes
            .sort_by(|a, b| (&a.path, b.state).cmp(&(&b.path, a.state)));
        self.changes.dedup_by(|next, kept| next.path == kept.path);
    }
}

/// What to look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct Scope {
    /// Only this source.
    pub only: Option<u32>,
    /// Sources elsewhere are asked; else what is known of them is told.
    pub asks: bool,
}

/// Containers of one source elsewhere, to be compared with what it says.
struct Remembered {
    source: SourceRecord,
    objects: HashMap<Vec<u8>, Vec<(ContainerId, Arc<ObjectStamp>)>>,
}

impl Blocks {
    /// Compares every container with what was added, and gives what became of each source: those
    /// that are configured, this machine's paths if anything was added from there, and carrack's
    /// own packs.
    ///
    /// # Errors
    /// Those of the catalog; `Unavailable` if it was stopped.
    pub fn survey(&self, scope: Scope, stop: &AtomicBool) -> Result<Vec<SourceStatus>> {
        let catalog = self.inner.store.catalog();
        let marks: HashMap<_, _> = self.inner.store.stale().all().into_iter().collect();
        let mut found: BTreeMap<u32, SourceStatus> = BTreeMap::new();
        let mut elsewhere: HashMap<u32, Remembered> = HashMap::new();
        for (id, source) in catalog.sources()? {
            if scope.only.is_some_and(|only| only != id) {
                continue;
            }
            let (name, url) = (source.name.clone(), source.url.clone());
            found.insert(id, SourceStatus::new(id, name, url));
            let objects = HashMap::new();
            elsewhere.insert(id, Remembered { source, objects });
        }
        let mut ids = Vec::new();
        catalog.container_ids(|id| ids.push(id))?;
        for id in ids {
            if stop.load(Ordering::Relaxed) {
                return Err(interrupted());
            }
            let Some(record) = catalog.container(id)? else {
                continue;
            };
            if scope.only.is_some_and(|only| only != record.source) {
                continue;
            }
            let status = found
                .entry(record.source)
                .or_insert_with(|| self.unnamed(record.source));
            status.n_containers += 1;
            status.n_bytes += record.size;
            let mark = marks.get(&id);
            match (record.validator.object(), record.kind) {
                (Some(stamp), ContainerKind::File | ContainerKind::Car) if scope.asks => {
                    if let Some(remembered) = elsewhere.get_mut(&record.source) {
                        let versions = remembered.objects.entry(record.path).or_default();
                        versions.push((id, Arc::clone(stamp)));
                    }
                }
                (Some(_), _) => status.note_marked(self.path_of(&record), mark),
                (None, _) => self.look_here(id, &record, mark, status),
            }
        }
        for (id, remembered) in elsewhere {
            if let Some(status) = found.get_mut(&id).filter(|_| scope.asks) {
                self.look_elsewhere(status, remembered, &marks, stop)?;
            }
        }
        let mut found: Vec<_> = found.into_values().collect();
        found.iter_mut().for_each(SourceStatus::tidy);
        // What people configured comes first, carrack's own last.
        found.sort_by_key(|status| match status.id {
            SOURCE_STORE => u64::MAX,
            SOURCE_LOCAL => u64::MAX - 1,
            id => u64::from(id),
        });
        Ok(found)
    }

    fn unnamed(&self, id: u32) -> SourceStatus {
        let (name, url) = match id {
            SOURCE_STORE => ("store".to_owned(), self.inner.store.dir().join("packs")),
            SOURCE_LOCAL => ("local".to_owned(), PathBuf::from("/")),
            other => (format!("source {other}"), PathBuf::new()),
        };
        SourceStatus::new(id, name, url.to_string_lossy().into_owned())
    }

    /// A file of this machine.
    fn look_here(
        &self,
        id: ContainerId,
        record: &ContainerRecord,
        mark: Option<&StaleMark>,
        status: &mut SourceStatus,
    ) {
        let path = self.path_of(record);
        let is_pack = record.kind == ContainerKind::Pack;
        let seen = seen(&path, is_pack);
        let refuted = |now: &Validator| mark.filter(|mark| mark.observed.as_ref() == Some(now));
        let mut ranges: &[Range<u64>] = &[];
        let (state, reason) = match &seen {
            Err(error) if is_gone(error) => (State::Missing, "it is not there".to_owned()),
            // Something else is there, or a symlink on the way.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                (State::Stale, error.to_string())
            }
            Err(error) => (State::Unreachable, format!("it cannot be read: {error}")),
            Ok(now) if is_pack && now.size() < record.size => {
                let what = format!("{} of {} bytes are left", now.size(), record.size);
                (State::Corrupt, what)
            }
            Ok(_) if is_pack => return status.note(State::Live, None),
            Ok(now) if refuted(now).is_some() => {
                let (state, what) = match *now == record.validator {
                    true => (State::Corrupt, "other bytes, and the times do not tell"),
                    false => (State::Stale, "other bytes than were added"),
                };
                ranges = refuted(now).map_or(&[], noted);
                (state, format!("{what}{}", places(ranges)))
            }
            Ok(now) if *now == record.validator => return status.note(State::Live, None),
            Ok(now) if now.size() != record.size => {
                let what = format!("{} bytes, was {}", now.size(), record.size);
                (State::Stale, what)
            }
            // Its bytes may still be the same: a request or `verify` will tell.
            Ok(_) => (State::Live, "touched: only its times differ".to_owned()),
        };
        let mut since_unix = mark.map(|mark| mark.since_unix);
        let is_new = since_unix.is_none() && state != State::Live && !is_pack;
        if is_new && status.changes.len() < NAMED_MAX {
            // So that it is known since when; the next read would find the same.
            let reason = match state {
                State::Unreachable => StaleReason::Unreadable,
                State::Missing => StaleReason::Missing,
                _ => StaleReason::Changed,
            };
            let mark = mark_now(reason, seen.ok());
            since_unix = Some(mark.since_unix);
            self.inner.store.stale().mark(id, mark);
        }
        let change = Change {
            path,
            state,
            reason,
            since_unix,
            ranges: ranges.to_vec(),
        };
        status.note(state, Some(change));
    }

    /// All objects of a source elsewhere.
    fn look_elsewhere(
        &self,
        status: &mut SourceStatus,
        remembered: Remembered,
        marks: &HashMap<ContainerId, StaleMark>,
        stop: &AtomicBool,
    ) -> Result<()> {
        let Remembered {
            source,
            mut objects,
        } = remembered;
        if objects.is_empty() {
            return Ok(());
        }
        let sources = self.inner.extents.sources();
        let open = match sources.get(status.id) {
            Ok(open) => open,
            Err(error) => {
                let error = SourceError::new(
                    SourceErrorKind::Unreachable,
                    format!("source {} cannot be opened: {}", source.name, error.chain()),
                );
                let health = Health::default(); // Nobody can have asked it.
                for (path, versions) in objects {
                    let seen = Err(error.clone());
                    self.compare(status, &health, &path, versions, &seen, marks);
                }
                return Ok(());
            }
        };
        let paths: HashSet<Vec<u8>> = objects.keys().cloned().collect();
        let (mut has_answered, mut silent) = (false, None);
        let looked = look(open.source.as_ref(), paths, stop, |path, seen| {
            match &seen {
                Err(error) if error.kind != SourceErrorKind::Missing => {
                    silent = Some(error.clone())
                }
                _ => has_answered = true,
            }
            if let Some(versions) = objects.remove(&path) {
                self.compare(status, &open.health, &path, versions, &seen, marks);
            }
        });
        if !sources.handle()?.block_on(looked) {
            return Err(interrupted());
        }
        if let Some(error) = silent.filter(|_| !has_answered) {
            open.health.silent(&error);
        }
        Ok(())
    }

    /// One object elsewhere, all its versions that are promised.
    fn compare(
        &self,
        status: &mut SourceStatus,
        health: &Health,
        path: &[u8],
        versions: Vec<(ContainerId, Arc<ObjectStamp>)>,
        seen: &Seen,
        marks: &HashMap<ContainerId, StaleMark>,
    ) {
        let is_answer = match seen {
            Ok(_) => true,
            Err(error) => error.kind == SourceErrorKind::Missing,
        };
        let unanswered_since = match is_answer {
            true => {
                health.answered();
                None
            }
            false => Some(health.unanswered()),
        };
        for (id, expected) in versions {
            let known = marks.get(&id);
            let mut ranges: &[Range<u64>] = &[];
            let (state, reason, found) = match seen {
                Ok(now) if !now.agrees_with(&expected) => (
                    State::Stale,
                    difference(now, &expected),
                    Some(StaleReason::Changed),
                ),
                Ok(_) if known.is_some_and(StaleMark::is_of_bytes) => {
                    ranges = known.map_or(&[], noted);
                    (State::Corrupt, damaged_as_added(ranges), None)
                }
                Ok(_) => {
                    if known.is_some() {
                        self.inner.store.stale().clear(id); // It was away, and is back.
                    }
                    status.note(State::Live, None);
                    continue;
                }
                Err(error) if error.kind == SourceErrorKind::Missing => {
                    let what = "it is not there".to_owned();
                    (State::Missing, what, Some(StaleReason::Missing))
                }
                Err(error) => (State::Unreachable, error.what.clone(), None),
            };
            let mut since_unix = unanswered_since.or(known.map(|mark| mark.since_unix));
            if let Some(reason) = found
                && status.changes.len() < NAMED_MAX
            {
                let observed = seen.as_ref().ok().cloned().map(Validator::from);
                let mark = mark_now(reason, observed);
                since_unix = since_unix.or(Some(mark.since_unix));
                self.inner.store.stale().mark(id, mark);
            }
            let change = Change {
                path: self.inner.extents.sources().shown(status.id, as_path(path)),
                state,
                reason,
                since_unix,
                ranges: ranges.to_vec(),
            };
            status.note(state, Some(change));
        }
    }

    /// Writes what changed of what is out of service to the catalog. A failure is logged: it is
    /// tried again, and the marks are found again by the next reads.
    pub fn save_stale(&self) {
        if self.inner.store.is_resting() {
            return; // The reason was told.
        }
        let marks = self.inner.store.stale();
        let changes = marks.take_changes();
        if changes.is_empty() {
            return;
        }
        let ids: Vec<_> = changes.iter().map(|(id, _)| *id).collect();
        if let Err(error) = self.save_marks(changes) {
            ids.into_iter().for_each(|id| marks.touch(id));
            tracing::warn!(error = error.chain(), "stale marks were not saved");
        }
    }

    fn save_marks(&self, changes: Vec<(ContainerId, Option<StaleMark>)>) -> Result<()> {
        let catalog = self.inner.store.catalog();
        let mut batch = Batch::new();
        for (id, mark) in changes {
            match mark {
                Some(mark) if catalog.has_container(id)? => batch.put_stale(id, mark),
                Some(_) => self.inner.store.stale().clear(id), // It was dropped.
                None if catalog.stale(id)?.is_some() => batch.clear_stale(id),
                None => {}
            }
        }
        self.inner.store.commit(batch).map(|_| ())
    }
}

impl SourceStatus {
    /// An object elsewhere, by what is known of it without asking.
    fn note_marked(&mut self, path: PathBuf, mark: Option<&StaleMark>) {
        let Some(mark) = mark else {
            return self.note(State::Live, None);
        };
        let (state, reason) = match mark.reason {
            StaleReason::Missing => (State::Missing, "it was not there".to_owned()),
            StaleReason::Mismatch | StaleReason::Widespread => {
                (State::Corrupt, damaged_as_added(noted(mark)))
            }
            StaleReason::Changed | StaleReason::Short | StaleReason::Unreadable => {
                (State::Stale, "another version than was added".to_owned())
            }
        };
        let change = Change {
            path,
            state,
            reason,
            since_unix: Some(mark.since_unix),
            ranges: noted(mark).to_vec(),
        };
        self.note(state, Some(change));
    }
}

fn mark_now(reason: StaleReason, observed: Option<Validator>) -> StaleMark {
    StaleMark::new(reason, observed, None)
}

/// The ranges that are out of service; none if all of it is.
fn noted(mark: &StaleMark) -> &[Range<u64>] {
    match mark.reason {
        StaleReason::Mismatch => &mark.ranges,
        _ => &[],
    }
}

/// Behind what is wrong: in how many places.
fn places(ranges: &[Range<u64>]) -> String {
    match ranges.len() {
        0 => " in most places that were read".to_owned(),
        1 => " in one place".to_owned(),
        n => format!(" in {n} places"),
    }
}

fn damaged_as_added(ranges: &[Range<u64>]) -> String {
    let places = places(ranges);
    format!("other bytes{places} under the version that was added")
}

fn as_path(path: &[u8]) -> &Path {
    use std::os::unix::ffi::OsStrExt;
    Path::new(std::ffi::OsStr::from_bytes(path))
}

/// What is at a path, if it is something that would be read.
fn seen(path: &Path, is_pack: bool) -> io::Result<Validator> {
    if is_pack {
        let meta = durable::at_either(path, |path| std::fs::symlink_metadata(path))?;
        return Ok(local::validator_of(&meta));
    }
    let looked = nofollow::look(path)?;
    match looked.kind {
        Kind::File => Ok(looked.validator),
        kind => Err(kind.refused()),
    }
}

fn is_gone(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn difference(now: &ObjectStamp, expected: &ObjectStamp) -> String {
    if now.size == expected.size {
        "another version of the same length".to_owned()
    } else {
        format!("{} bytes, was {}", now.size, expected.size)
    }
}

fn interrupted() -> Error {
    Error::new(ErrorKind::Unavailable, "interrupted")
}
