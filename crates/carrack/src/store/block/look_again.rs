//! Looking again at what was found out of service, for those who ask for it: the one policy of
//! every way in.
//!
//! In       an object that was found changed or missing, or a block of it that was wrong.
//! Out      whether it is back.
//! Limits   those of `store::stale`: one look at an object in
//!          [`LOOK_INTERVAL`](crate::store::stale::LOOK_INTERVAL), a few at one source; whoever
//!          comes while it goes on waits for its answer, at most [`LOOK_TIME_MAX`].
//! Not here commands that look whatever was found before: [`Blocks::check`], [`Blocks::survey`].
//!
//! A look at an object is one question what it is now, so that it costs its source the same whoever
//! asks: a HEAD, a want-have, a CAR. It goes on when those who wait for it leave, or whoever comes
//! and goes could keep an object away. A block that was wrong under the version that was added can
//! only be read again, which is its look. A file of this machine is looked at on every open; only
//! its wrong blocks wait for their turn to be hashed again.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use carrack_formats::Cid;
use futures_util::future::join_all;
use tokio::sync::watch;

use super::remote::{Elsewhere, Whereabouts, changed_elsewhere, range};
use super::{Blocks, block_len};
use crate::error::Result;
use crate::source::limiter::{Lane, Outcome};
use crate::source::validator::ObjectStamp;
use crate::source::{SourceError, SourceErrorKind};
use crate::store::hold;
use crate::store::location::{ContainerId, Location};
use crate::store::stale::Standing;

/// A source that answers does so within this time.
const LOOK_TIME_MAX: Duration = Duration::from_secs(10);

/// Looks that go on, and what comes of each: at most as many as sources grant.
#[derive(Debug, Default)]
pub(super) struct Looks {
    going_on: Mutex<HashMap<ContainerId, watch::Receiver<Option<bool>>>>,
}

impl Blocks {
    /// The block, if its container is in service or is found to be back; `None`: it was dropped.
    /// Cancel-safe.
    pub(super) async fn read_elsewhere(&self, cid: &Cid, at: Location) -> Result<Option<Bytes>> {
        let Some(container) = self.elsewhere(at.container)? else {
            return Ok(None);
        };
        let marks = self.inner.store.stale();
        let block = match marks.standing(at.container, at) {
            Standing::Served => self.read_in_service(cid, &container, at).await?,
            Standing::Away if self.is_back(&container).await => {
                self.read_in_service(cid, &container, at).await?
            }
            Standing::Damaged if marks.claim_look(at.container, container.place.source.id) => {
                self.read_damaged(cid, &container, at).await?
            }
            Standing::Away | Standing::Damaged => return Err(changed_elsewhere(&container)),
        };
        Ok(Some(block))
    }

    /// Length of a block that lies elsewhere, by the index; `None` if it is out of service, and
    /// was not found to be back. An error only if no copy is in service, and one may come back.
    pub(super) fn stat_elsewhere(&self, cid: &Cid, locations: &[Location]) -> Result<Option<u64>> {
        let mut failure = None;
        for location in locations {
            match self.stat_at(cid, *location) {
                Ok(true) => return Ok(Some(block_len(*location) as u64)),
                Ok(false) => {}
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(None), Err)
    }

    /// Whether the copy of a block at `at` is in service. Blocks while it is looked at again.
    fn stat_at(&self, cid: &Cid, at: Location) -> Result<bool> {
        let Some(container) = self.elsewhere(at.container)? else {
            return Ok(false);
        };
        match self.inner.store.stale().standing(at.container, at) {
            Standing::Served => {}
            Standing::Away => {
                let handle = self.inner.extents.sources().handle()?;
                if !handle.block_on(self.is_back(&container)) {
                    return Ok(false);
                }
            }
            Standing::Damaged => {
                // Only its bytes can tell. An error says that they did not.
                let handle = self.inner.extents.sources().handle()?;
                let read = handle.block_on(self.read_elsewhere(cid, at));
                return Ok(matches!(read, Ok(Some(_))));
            }
        }
        match container.require_answers() {
            Err(error) if !self.is_in_memory(cid, &container, at) => Err(error),
            _ => Ok(true),
        }
    }

    /// Whether a block that lies elsewhere and is in service can be had without its source.
    fn is_in_memory(&self, cid: &Cid, container: &Elsewhere, at: Location) -> bool {
        self.cached(cid).is_some() || self.inner.extents.has(&container.place, range(at))
    }

    /// Looks again at the objects elsewhere that blocks of these lie in, all at once, so that
    /// [`Self::stat`] finds those that are back and waits for none. Cancel-safe.
    pub async fn look_again(&self, cids: &[Cid]) {
        if !self.inner.store.stale().any() || !self.inner.store.has_sources() {
            return;
        }
        let mut away = HashSet::new();
        let mut looks = Vec::new();
        for cid in cids {
            for at in self.locate(cid.hash()).unwrap_or_default() {
                if self.inner.store.stale().standing(at.container, at) == Standing::Away
                    && away.insert(at.container)
                    && let Ok(Whereabouts::Elsewhere(container)) = self.whereabouts(at.container)
                {
                    looks.push(async move { self.is_back(&container).await });
                }
            }
        }
        join_all(looks).await;
    }

    /// Whether an object that was found changed or missing is what was added again: by a look that
    /// goes on, or one of this moment if it is time for one.
    async fn is_back(&self, container: &Arc<Elsewhere>) -> bool {
        let Some(mut said) = self.begin_look(container, false) else {
            return false;
        };
        let said = said.wait_for(Option::is_some).await;
        said.is_ok_and(|said| said.unwrap_or(false))
    }

    /// The same for somebody who may look at any time.
    pub(super) async fn is_back_now(&self, container: &Arc<Elsewhere>) -> bool {
        let Some(mut said) = self.begin_look(container, true) else {
            return false;
        };
        let said = said.wait_for(Option::is_some).await;
        said.is_ok_and(|said| said.unwrap_or(false))
    }

    /// Begins a look, or joins the one that goes on. `None`: it is not time for one.
    fn begin_look(
        &self,
        container: &Arc<Elsewhere>,
        at_any_time: bool,
    ) -> Option<watch::Receiver<Option<bool>>> {
        let (id, source) = (container.place.container, &container.place.source);
        let mut going_on = hold(&self.inner.looks.going_on);
        // One whose sender is gone was ended by a shutdown.
        if let Some(said) = going_on.get(&id).filter(|said| said.has_changed().is_ok()) {
            return Some(said.clone());
        }
        if !at_any_time && (source.is_down() || !self.store().stale().claim_look(id, source.id)) {
            return None;
        }
        let (said, receiver) = watch::channel(None);
        going_on.insert(id, receiver.clone());
        drop(going_on);
        let (blocks, container) = (self.clone(), Arc::clone(container));
        let look = async move {
            let is_back = blocks.look(&container).await;
            hold(&blocks.inner.looks.going_on).remove(&id);
            drop((blocks, container)); // Who hears of it may close the store.
            said.send_replace(Some(is_back));
        };
        // One that cannot begin is dropped, and has said no.
        let _ = self.inner.extents.begin(look);
        Some(receiver)
    }

    /// One question: what is the object now? A mark that is over is cleared.
    async fn look(&self, container: &Elsewhere) -> bool {
        let (place, marks) = (&container.place, self.inner.store.stale());
        let now = match ask(container).await {
            Ok(now) => now,
            Err(error) => {
                tracing::debug!(place = container.shown, %error, "still out of service");
                return false;
            }
        };
        if !now.agrees_with(&place.stamp) {
            return false;
        }
        marks.clear_if(place.container, |mark| !mark.is_of_bytes());
        marks.give_back(place.source.id);
        true
    }
}

/// Asks the source of an object what it is now, in its turn.
async fn ask(container: &Elsewhere) -> Result<ObjectStamp, SourceError> {
    let place = &container.place;
    let source = &place.source;
    let asking = async {
        let permit = source.limiter.acquire(Lane::Block, place.container.0).await;
        let leave = source.health.ask()?;
        let asked = source.source.stat(&place.path).await;
        match &asked {
            Ok(_) => {
                permit.first_byte();
                permit.done(Outcome::Good);
                leave.good();
            }
            Err(error) => {
                permit.done(Outcome::from(error));
                leave.failed(error);
            }
        }
        asked
    };
    let asked = tokio::time::timeout(LOOK_TIME_MAX, asking).await;
    asked.unwrap_or_else(|_| {
        let what = format!("no answer from {}: it is slow or hangs", source.name);
        Err(SourceError::new(SourceErrorKind::Unreachable, what))
    })
}
