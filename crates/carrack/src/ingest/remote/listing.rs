//! A listing of a source that goes on while its objects are read.
//!
//! In       a source and a path below it.
//! Out      lots of what is listed, in their order.
//! Limits   [`LISTED_MAX`] objects a lot; [`LOTS_MAX`] lots wait for whoever takes them.
//! Not here what becomes of objects (`ingest::remote`).

use std::collections::VecDeque;
use std::sync::Arc;

use futures_util::StreamExt;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::source::{Listed, SourceError};
use crate::store::sources::OpenSource;

/// Objects that are listed at once, and such lots that wait.
const LISTED_MAX: usize = 256;
const LOTS_MAX: usize = 4;

/// Some of what is listed.
pub(super) type Lot = Vec<Result<Listed, SourceError>>;

/// A listing under way. Dropping it ends it.
pub(super) struct Listing {
    pub(super) lots: mpsc::Receiver<Lot>,
    /// What was received and not yet taken.
    pub(super) lot: VecDeque<Result<Listed, SourceError>>,
    pub(super) is_over: bool,
    _task: JoinSet<()>,
}

impl Listing {
    /// Lists on a task of `handle`, some lots ahead.
    pub(super) fn begin(
        source: Arc<OpenSource>,
        prefix: Vec<u8>,
        hidden: bool,
        handle: &Handle,
    ) -> Self {
        let (sender, lots) = mpsc::channel(LOTS_MAX);
        let mut task = JoinSet::new();
        let listing = async move {
            let listed = match hidden {
                true => source.source.list(&prefix),
                false => source.source.list_shown(&prefix),
            };
            let mut listed = listed.ready_chunks(LISTED_MAX);
            while let Some(lot) = listed.next().await {
                if sender.send(lot).await.is_err() {
                    return;
                }
            }
        };
        task.spawn_on(listing, handle);
        Self {
            lots,
            lot: VecDeque::new(),
            is_over: false,
            _task: task,
        }
    }
}
