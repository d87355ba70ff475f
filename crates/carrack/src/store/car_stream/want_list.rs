//! Blocks that somebody wants together, in no order of their own: read in the order in which they
//! lie, hashed together.
//!
//! In       CIDs.
//! Out      verified blocks in the order of the question; `None` for one that cannot be served.
//! Limits   a batch is about [`BATCH_LEN`](super::BATCH_LEN) bytes; what is asked for at once is
//!          read at once: the caller bounds it.
//! Not here who wants them, and in what order they are sent.

use bytes::Bytes;
use carrack_formats::Cid;
use carrack_formats::cid::identity_data;
use futures_util::future::{join_all, join3};

use super::filled::Filled;
use super::{BUFFER_LEN, Batch, Item};
use crate::store::block::Blocks;
use crate::store::blocking;
use crate::store::hasher::Messages;
use crate::store::location::Location;

/// Where the blocks of a want-list lie.
struct WantList {
    batches: Vec<Wanted>,
    /// Blocks that are at hand.
    held: Vec<(usize, Bytes)>,
    /// Blocks that may be damaged or away: no batch is to fail for them.
    noted: Vec<Place>,
}

/// One batch, and the places of its blocks.
struct Wanted {
    batch: Batch,
    places: Vec<Place>,
}

/// A block, and where in the question it is.
struct Place {
    index: usize,
    cid: Cid,
    len: usize,
}

/// Batches that are hashed in one go.
struct Together(Vec<Filled>);

impl Messages for Together {
    fn messages(&self) -> Vec<&[u8]> {
        self.0.iter().flat_map(Filled::messages).collect()
    }
}

impl Blocks {
    /// The verified blocks, from wherever they lie. Nothing blocks the thread that polls this.
    /// Cancel-safe.
    pub async fn get_many(&self, cids: Vec<Cid>) -> Vec<Option<Bytes>> {
        let n_cids = cids.len();
        let blocks = self.clone();
        let planned = blocking(move || Ok(blocks.plan_want_list(cids))).await;
        let mut found = vec![None; n_cids];
        let Ok(planned) = planned else {
            return found;
        };
        for (index, block) in planned.held {
            set(&mut found, index, Some(block));
        }
        let (far, near): (Vec<_>, Vec<_>) = planned
            .batches
            .into_iter()
            .partition(|wanted| wanted.batch.is_elsewhere());
        let far = join_all(far.into_iter().map(|wanted| self.read_far(wanted)));
        let noted = self.read_noted(planned.noted);
        let (far, near, noted) = join3(far, self.read_near(near), noted).await;
        for (index, block) in far.into_iter().flatten().chain(near).chain(noted) {
            set(&mut found, index, block);
        }
        found
    }

    /// What lies on this machine: read in one go, and hashed in one go.
    async fn read_near(&self, wanted: Vec<Wanted>) -> Vec<(usize, Option<Bytes>)> {
        if wanted.is_empty() {
            return Vec::new();
        }
        let read = blocking(move || {
            let (mut filled, mut places, mut failed) = (Vec::new(), Vec::new(), Vec::new());
            for wanted in wanted {
                match Filled::new(wanted.batch) {
                    Ok(batch) => {
                        filled.push(batch);
                        places.push(wanted.places);
                    }
                    Err(_) => failed.extend(wanted.places),
                }
            }
            Ok((filled, places, failed))
        });
        let Ok((filled, places, mut failed)) = read.await else {
            return Vec::new();
        };
        let mut blocks = Vec::new();
        if let Ok((filled, digests)) = self.hasher().digests(Together(filled)).await {
            let mut rest = digests.as_slice();
            for (filled, places) in filled.0.into_iter().zip(places) {
                let (digests, after) = rest.split_at(filled.n_unproved().min(rest.len()));
                rest = after;
                match filled.is_good(digests).then(|| filled.finish(digests)) {
                    Some(Ok(bytes)) => blocks.extend(cut(&bytes, places, |_, _| {})),
                    Some(Err(_)) | None => failed.extend(places),
                }
            }
        }
        blocks.extend(self.read_alone(failed).await);
        blocks
    }

    /// What comes from elsewhere is kept in memory for whoever asks next.
    async fn read_far(&self, wanted: Wanted) -> Vec<(usize, Option<Bytes>)> {
        match wanted.batch.read_together(()).await {
            Ok((bytes, ())) => {
                let keep = |cid: &Cid, block: &Bytes| self.keep_copy(cid, block);
                cut(&bytes, wanted.places, keep)
            }
            Err(_) => self.read_alone(wanted.places).await,
        }
    }

    /// What may be damaged or away: its objects are looked at together first.
    async fn read_noted(&self, places: Vec<Place>) -> Vec<(usize, Option<Bytes>)> {
        let cids: Vec<Cid> = places.iter().map(|place| place.cid).collect();
        self.look_again(&cids).await;
        self.read_alone(places).await
    }

    /// One by one: a block that cannot be served takes nothing from the others.
    async fn read_alone(&self, places: Vec<Place>) -> Vec<(usize, Option<Bytes>)> {
        let mut blocks = Vec::with_capacity(places.len());
        for Place { index, cid, .. } in places {
            let block = self.get(&cid).await;
            if let Err(error) = &block {
                tracing::debug!(%cid, error = error.chain(), "a block that is wanted");
            }
            blocks.push((index, block.ok()));
        }
        blocks
    }

    /// Looks up where blocks lie and plans how they are read. Blocks, but not for long.
    fn plan_want_list(&self, cids: Vec<Cid>) -> WantList {
        let (mut held, mut noted) = (Vec::new(), Vec::new());
        let mut lying: Vec<(usize, Cid, Vec<Location>)> = Vec::with_capacity(cids.len());
        for (index, cid) in cids.into_iter().enumerate() {
            if let Some(data) = identity_data(&cid) {
                held.push((index, Bytes::copy_from_slice(data)));
                continue;
            }
            let Ok(locations) = self.locate(cid.hash()) else {
                continue; // A damaged index has been told of.
            };
            match self.cached_at(&cid, &locations) {
                Some(block) => held.push((index, block)),
                None if self.are_all_noted(&locations) => noted.push(Place { index, cid, len: 0 }),
                None => lying.push((index, cid, locations)),
            }
        }
        lying.sort_by_key(|(_, _, locations)| {
            locations
                .first()
                .map(|first| (first.container, first.offset))
        });
        let mut planned = self.extents().planned();
        let mut batches: Vec<Wanted> = Vec::new();
        for (index, cid, locations) in lying {
            let Ok(item) = Item::planned(self, &mut planned, cid, locations) else {
                continue; // Dropped since it was asked for.
            };
            let fits = |wanted: &&mut Wanted| {
                !wanted.batch.is_full() && wanted.batch.len + item.len <= BUFFER_LEN
            };
            // What is here, or in one source, does not wait for what comes from another.
            let source = item.source();
            let suits = |wanted: &&mut Wanted| fits(wanted) && wanted.batch.source() == source;
            match batches.last_mut().filter(suits) {
                Some(wanted) => wanted.push(index, item),
                None => {
                    let mut wanted = Wanted::new(self);
                    wanted.push(index, item);
                    batches.push(wanted);
                }
            }
        }
        planned.issue();
        WantList {
            batches,
            held,
            noted,
        }
    }
}

impl Wanted {
    fn new(blocks: &Blocks) -> Self {
        let batch = Batch {
            blocks: blocks.clone(),
            items: Vec::new(),
            len: 0,
            is_bare: true,
        };
        Self {
            batch,
            places: Vec::new(),
        }
    }

    fn push(&mut self, index: usize, item: Item) {
        let (cid, len) = (item.cid, item.len);
        self.places.push(Place { index, cid, len });
        self.batch.push(item);
    }
}

/// The blocks of a batch, each a part of its bytes; `on` is told of each.
fn cut(
    bytes: &Bytes,
    places: Vec<Place>,
    on: impl Fn(&Cid, &Bytes),
) -> Vec<(usize, Option<Bytes>)> {
    let mut offset = 0;
    let part = |Place { index, cid, len }| {
        let block = bytes.slice(offset..offset + len);
        offset += len;
        on(&cid, &block);
        (index, Some(block))
    };
    places.into_iter().map(part).collect()
}

fn set(found: &mut [Option<Bytes>], index: usize, block: Option<Bytes>) {
    if let Some(slot) = found.get_mut(index) {
        *slot = block;
    }
}

#[cfg(test)]
mod tests;
