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
use futures_util::future::join_all;

use super::{BUFFER_LEN, Batch, Item, Origin};
use crate::store::block::Blocks;
use crate::store::blocking;
use crate::store::location::Location;

/// Where the blocks of a want-list lie.
struct WantList {
    batches: Vec<Wanted>,
    /// Blocks that are at hand.
    held: Vec<(usize, Bytes)>,
}

/// One batch, and the places of its blocks in the question.
struct Wanted {
    batch: Batch,
    at: Vec<(usize, Cid)>,
    /// Some of it comes from elsewhere: it is kept in memory for whoever asks next.
    keeps: bool,
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
        let reads = planned
            .batches
            .into_iter()
            .map(|wanted| self.read_wanted(wanted));
        for (index, block) in join_all(reads).await.into_iter().flatten() {
            set(&mut found, index, block);
        }
        found
    }

    async fn read_wanted(&self, wanted: Wanted) -> Vec<(usize, Option<Bytes>)> {
        let Wanted { batch, at, keeps } = wanted;
        let lens: Vec<usize> = batch.items.iter().map(|item| item.len).collect();
        if let Ok((bytes, ())) = batch.read_together(()).await {
            let mut offset = 0;
            let slice = |((index, cid), len): ((usize, Cid), usize)| {
                let block = bytes.slice(offset..offset + len);
                offset += len;
                if keeps {
                    self.keep_copy(&cid, &block);
                }
                (index, Some(block))
            };
            return at.into_iter().zip(lens).map(slice).collect();
        }
        // One that cannot be served takes nothing from the others.
        let mut blocks = Vec::with_capacity(at.len());
        for (index, cid) in at {
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
        let mut held = Vec::new();
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
            let elsewhere = matches!(item.from, Origin::Announced(..));
            match batches.last_mut().filter(fits) {
                Some(wanted) => wanted.push(index, item, elsewhere),
                None => {
                    let mut wanted = Wanted::new(self);
                    wanted.push(index, item, elsewhere);
                    batches.push(wanted);
                }
            }
        }
        planned.issue();
        WantList { batches, held }
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
            at: Vec::new(),
            keeps: false,
        }
    }

    fn push(&mut self, index: usize, item: Item, elsewhere: bool) {
        self.at.push((index, item.cid));
        self.keeps |= elsewhere;
        self.batch.push(item);
    }
}

fn set(found: &mut [Option<Bytes>], index: usize, block: Option<Bytes>) {
    if let Some(slot) = found.get_mut(index) {
        *slot = block;
    }
}
