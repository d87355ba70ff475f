//! The configured sources of a store, opened when they are first needed.
//!
//! In       ids of the catalog's `sources`; the environment that credentials are looked up in.
//! Out      open sources, and the threads that their reads run on.
//! Limits   one open source an id; [`N_THREADS`] threads, started with the first source.
//! Not here what a source does (`source`), how reads are shared (`store::extent`).

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard};
use std::time::Duration;

use tokio::runtime::{Handle, Runtime};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::Source;
use crate::source::config::{Environment, SourceConfig};
use crate::source::health::{Health, SourceState};
use crate::source::limiter::Limiter;
use crate::store::block::{SourceStatus, State};
use crate::store::catalog::SourceRecord;
use crate::store::{Store, hold};

/// Threads that reads of sources run on: they receive and copy, and hash while adding.
const N_THREADS: usize = 2;

/// The sources of one store. Share it by `Arc`.
pub struct Sources {
    store: Arc<Store>,
    environment: RwLock<Environment>,
    /// What commands of other processes told of single sources. In memory only.
    lent: Mutex<HashMap<u32, Environment>>,
    open: Mutex<HashMap<u32, Arc<OpenSource>>>,
    /// Names of those that could not be opened when they were wanted last.
    unopened: Mutex<BTreeMap<u32, String>>,
    urls: RwLock<HashMap<u32, String>>,
    threads: Mutex<Threads>,
}

/// What reads run on.
enum Threads {
    /// Nobody needed them yet.
    None,
    Running(Runtime),
    /// The node is stopping.
    Closed,
}

/// A source in use.
#[derive(Debug)]
pub struct OpenSource {
    /// Its id in the catalog.
    pub id: u32,
    /// What a person calls it.
    pub name: String,
    /// The place itself.
    pub source: Arc<dyn Source>,
    /// How many requests it is asked at a time.
    pub limiter: Arc<Limiter>,
    /// Whether it answers.
    pub health: Health,
}

impl OpenSource {
    /// A source that was just opened.
    #[must_use]
    pub fn new(id: u32, name: String, source: Arc<dyn Source>) -> Self {
        Self {
            id,
            name,
            source,
            limiter: Arc::default(),
            health: Health::default(),
        }
    }

    /// What is known of it.
    #[must_use]
    pub fn state(&self) -> SourceState {
        self.health.state()
    }

    /// Whether it did not answer, and is not to be asked yet.
    #[must_use]
    pub fn is_down(&self) -> bool {
        matches!(self.state(), SourceState::Down { retry_in, .. } if !retry_in.is_zero())
    }
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").finish_non_exhaustive()
    }
}

impl Sources {
    /// The sources of `store`. Opens none.
    #[must_use]
    pub fn new(store: Arc<Store>, environment: Environment) -> Arc<Self> {
        Arc::new(Self {
            store,
            environment: RwLock::new(environment),
            lent: Mutex::default(),
            open: Mutex::default(),
            unopened: Mutex::default(),
            urls: RwLock::default(),
            threads: Mutex::new(Threads::None),
        })
    }

    /// Where credentials are looked up.
    #[must_use]
    pub fn environment(&self) -> Environment {
        let environment = self.environment.read();
        environment.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The threads that everything which waits for a network runs on.
    ///
    /// # Errors
    /// `Unavailable` if they cannot be started, or the node is stopping.
    pub fn handle(&self) -> Result<Handle> {
        let mut threads = hold(&self.threads);
        match &*threads {
            Threads::Running(runtime) => return Ok(runtime.handle().clone()),
            Threads::Closed => {
                return Err(Error::new(ErrorKind::Unavailable, "this node is stopping"));
            }
            Threads::None => {}
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(N_THREADS)
            .thread_name("source")
            .enable_all()
            .build()
            .context(ErrorKind::Unavailable, || "cannot start threads".to_owned())?;
        let handle = runtime.handle().clone();
        *threads = Threads::Running(runtime);
        Ok(handle)
    }

    /// The source `id`, opened if it is not yet.
    ///
    /// # Errors
    /// `NotFound` if it is not configured any more; `Invalid` if what is configured cannot be.
    pub fn get(&self, id: u32) -> Result<Arc<OpenSource>> {
        let mut open = hold(&self.open);
        if let Some(source) = open.get(&id) {
            return Ok(Arc::clone(source));
        }
        let record = self.store.catalog().source(id)?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("source {id} is not configured"),
            )
        })?;
        let lent = hold(&self.lent).get(&id).cloned();
        let environment = lent.unwrap_or_else(|| self.environment());
        let opened = self.open_in(&record, &environment);
        let mut unopened = hold(&self.unopened);
        let source = match opened {
            Ok(source) => source,
            Err(error) => {
                unopened.insert(id, record.name);
                return Err(error);
            }
        };
        unopened.remove(&id);
        let source = Arc::new(OpenSource::new(id, record.name, source));
        open.insert(id, Arc::clone(&source));
        Ok(source)
    }

    /// Puts a source of a test's own in the place of `id`.
    #[cfg(test)]
    pub(crate) fn put(&self, id: u32, source: Arc<dyn Source>) {
        let name = source.url().to_owned();
        let source = Arc::new(OpenSource::new(id, name, source));
        hold(&self.open).insert(id, source);
    }

    /// A source as `record` describes it, whether it is in the catalog or not.
    ///
    /// # Errors
    /// `Invalid` if what is configured cannot be.
    pub fn open(&self, record: &SourceRecord) -> Result<Arc<dyn Source>> {
        self.open_in(record, &self.environment())
    }

    /// The same, with credentials looked up in `environment`.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_in(
        &self,
        record: &SourceRecord,
        environment: &Environment,
    ) -> Result<Arc<dyn Source>> {
        let config = SourceConfig {
            url: record.url.clone(),
            endpoint: record.endpoint.clone(),
            region: record.region.clone(),
            credentials: record.credentials.clone(),
            redirects: record.redirects.clone(),
            private: record.private,
        };
        let handle = self.handle()?;
        let _guard = handle.enter();
        Ok(crate::source::open::open(&config, environment)?)
    }

    /// Lets credentials of source `id` be looked up in `environment` from now on, if that tells
    /// anything: those of whoever added from it.
    pub fn lend(&self, id: u32, environment: &Environment) {
        if environment.iter().all(|(name, _)| name == "HOME") {
            return;
        }
        let before = hold(&self.lent).insert(id, environment.clone());
        if before.is_none_or(|before| !before.is_same(environment)) {
            self.forget(id);
        }
    }

    /// The sources that do not answer, a sentence each.
    #[must_use]
    pub fn troubles(&self) -> Vec<String> {
        let mut down = BTreeMap::new();
        for source in hold(&self.open).values() {
            if source.state() != SourceState::Live {
                let said = format!("source {} does not answer", source.name);
                down.insert(source.id, said);
            }
        }
        for (id, name) in &*hold(&self.unopened) {
            down.insert(*id, format!("source {name} cannot be opened"));
        }
        down.into_values().collect()
    }

    /// The state of a source as far as is known without asking it.
    #[must_use]
    pub fn state(&self, status: &SourceStatus) -> State {
        let open = hold(&self.open);
        let source = open.get(&status.id);
        let is_down = source.is_some_and(|source| source.state() != SourceState::Live);
        if is_down || hold(&self.unopened).contains_key(&status.id) {
            State::Unreachable
        } else {
            status.state
        }
    }

    /// Where something below a source is, for people; its path if the source is a folder.
    #[must_use]
    pub fn shown(&self, id: u32, path: &Path) -> PathBuf {
        let known = read(&self.urls).get(&id).cloned();
        let url = known.unwrap_or_else(|| {
            let record = self.store.catalog().source(id).ok().flatten();
            let url = record.map_or_else(|| format!("source {id}"), |record| record.url);
            let mut urls = self.urls.write().unwrap_or_else(PoisonError::into_inner);
            urls.insert(id, url.clone());
            url
        });
        if path.as_os_str().is_empty() {
            return PathBuf::from(url);
        }
        Path::new(&url).join(path)
    }

    /// Lets the next use of a source open it anew: its row has changed.
    pub fn forget(&self, id: u32) {
        let mut urls = self.urls.write().unwrap_or_else(PoisonError::into_inner);
        urls.remove(&id);
        hold(&self.open).remove(&id);
        hold(&self.unopened).remove(&id);
    }

    /// Ends all reads and closes all connections, waiting at most `timeout`.
    pub fn close(&self, timeout: Duration) {
        hold(&self.open).clear();
        let threads = std::mem::replace(&mut *hold(&self.threads), Threads::Closed);
        if let Threads::Running(runtime) = threads {
            runtime.shutdown_timeout(timeout);
        }
    }
}

impl Drop for Sources {
    fn drop(&mut self) {
        let threads = std::mem::replace(&mut *hold(&self.threads), Threads::Closed);
        if let Threads::Running(runtime) = threads {
            runtime.shutdown_background(); // May be dropped where waiting is not allowed.
        }
    }
}

fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}
