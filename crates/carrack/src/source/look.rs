//! What objects are now: by one listing, or asked for one by one.
//!
//! In       a source, and the paths of objects that are remembered.
//! Out      for each path what it is, that it is not there, or why that cannot be told.
//! Limits   at most [`ASKED_MAX`] questions at once; up to [`FEW`] objects are asked for instead of
//!          listed; after [`FAILURES_MAX`] failures in a row nothing more is asked.
//! Not here what it means for what was added (`store::block`, `store::relocate`).

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use futures_util::StreamExt;

use super::retry::{Patience, Patient};
use super::validator::ObjectStamp;
use super::{Listed, Source, SourceError, SourceErrorKind};

/// Questions under way at once.
const ASKED_MAX: usize = 16;
/// Objects that are asked for one by one: a listing may be much longer than they are many.
const FEW: usize = 16;
/// Failures in a row after which a source counts as unreachable.
const FAILURES_MAX: u32 = 16;
/// Tries of one question or listing that may pass.
const TRIES_MAX: u32 = 4;
/// Time in which a place has to show that it is one.
const FIRST_ANSWER_TIME_MAX: Duration = Duration::from_secs(60);
/// Time between two looks at the stop flag.
const STOP_INTERVAL: Duration = Duration::from_millis(200);

/// What was seen of one object.
pub type Seen = Result<ObjectStamp, SourceError>;

/// Calls `seen` once for each of `paths`. False: it was stopped before the end.
pub async fn look(
    source: &dyn Source,
    mut paths: HashSet<Vec<u8>>,
    stop: &AtomicBool,
    mut seen: impl FnMut(Vec<u8>, Seen),
) -> bool {
    let mut unclear = Vec::new();
    if paths.len() > FEW {
        let prefix = common_directory(&paths);
        let listed = list(source, &prefix, &mut paths, &mut unclear, stop, &mut seen).await;
        match listed {
            Ok(true) => {
                let why = || SourceError::new(SourceErrorKind::Missing, "it is not there any more");
                paths.drain().for_each(|path| seen(path, Err(why())));
            }
            Ok(false) => return false,
            // A web server without listings still answers for single files.
            Err(error) if error.kind == SourceErrorKind::Unusable => {}
            Err(error) => {
                unclear.extend(paths);
                unclear
                    .into_iter()
                    .for_each(|path| seen(path, Err(error.clone())));
                return true;
            }
        }
    }
    unclear.extend(paths);
    ask(source, unclear, stop, &mut seen).await
}

/// Whether anything is listed. A wrong name or key is told now, not by the first reader.
///
/// # Errors
/// Those of the listing; `Unreachable` if there is none within a minute.
pub async fn answers(source: &dyn Source) -> Result<bool, SourceError> {
    let mut listing = source.list(b"");
    match tokio::time::timeout(FIRST_ANSWER_TIME_MAX, listing.next()).await {
        Ok(first) => Ok(first.transpose()?.is_some()),
        Err(_) => {
            let what = "the place does not answer: check its name and --endpoint";
            Err(SourceError::new(SourceErrorKind::Unreachable, what))
        }
    }
}

/// The longest path of whole names that everything lies below.
fn common_directory(paths: &HashSet<Vec<u8>>) -> Vec<u8> {
    let mut paths = paths.iter();
    let mut common = paths.next().cloned().unwrap_or_default();
    for path in paths {
        let same = common.iter().zip(path).take_while(|(a, b)| a == b).count();
        common.truncate(same);
    }
    let end = common.iter().rposition(|&byte| byte == b'/').unwrap_or(0);
    common.truncate(end);
    common
}

/// Takes what a listing tells from `paths`. What it does not tell enough of goes to `unclear`.
/// False: stopped.
async fn list(
    source: &dyn Source,
    prefix: &[u8],
    paths: &mut HashSet<Vec<u8>>,
    unclear: &mut Vec<Vec<u8>>,
    stop: &AtomicBool,
    seen: &mut impl FnMut(Vec<u8>, Seen),
) -> Result<bool, SourceError> {
    let mut patience = Patience::new(TRIES_MAX);
    'again: loop {
        let mut listing = source.list(prefix);
        loop {
            let Some(next) = unless(stop, listing.next()).await else {
                return Ok(false);
            };
            match next {
                None => return Ok(true),
                Some(Ok(Listed::Object { path, stamp })) => {
                    if !paths.remove(&path) {
                        continue;
                    }
                    if stamp.etag.is_none() && stamp.version.is_none() {
                        unclear.push(path); // A page for people has rounded lengths and times.
                    } else {
                        seen(path, Ok(stamp));
                    }
                }
                Some(Ok(
                    Listed::Odd { .. }
                    | Listed::Folder { .. }
                    | Listed::List
                    | Listed::Hidden { .. },
                )) => {}
                // A prefix that has gone has nothing in it.
                Some(Err(error)) if error.kind == SourceErrorKind::Missing => return Ok(true),
                Some(Err(error)) => {
                    drop(listing);
                    match unless(stop, patience.after(error)).await {
                        Some(waited) => waited?,
                        None => return Ok(false),
                    }
                    continue 'again;
                }
            }
        }
    }
}

/// What `future` gives; `None` if it is to stop first.
async fn unless<T>(stop: &AtomicBool, future: impl Future<Output = T>) -> Option<T> {
    tokio::pin!(future);
    while !stop.load(Ordering::Relaxed) {
        if let Ok(value) = tokio::time::timeout(STOP_INTERVAL, &mut future).await {
            return Some(value);
        }
    }
    None
}

/// Asks for each of `paths`. False: stopped.
async fn ask(
    source: &dyn Source,
    paths: Vec<Vec<u8>>,
    stop: &AtomicBool,
    seen: &mut impl FnMut(Vec<u8>, Seen),
) -> bool {
    let mut paths = paths.into_iter();
    let (limiter, n_throttled) = (Arc::default(), AtomicU64::new(0));
    let patient = Patient {
        source,
        limiter: &limiter,
        attempts: TRIES_MAX,
        n_throttled: &n_throttled,
    };
    let mut asked = futures_util::stream::FuturesUnordered::new();
    let mut n_failures = 0;
    loop {
        while asked.len() < ASKED_MAX
            && let Some(path) = paths.next()
        {
            asked.push(async move {
                let stamp = patient.stat(&path).await;
                (path, stamp)
            });
        }
        let Some(next) = unless(stop, asked.next()).await else {
            return false;
        };
        let Some((path, stamp)) = next else {
            return true;
        };
        let failure = stamp.as_ref().err().filter(|error| is_down(error)).cloned();
        n_failures = failure.as_ref().map_or(0, |_| n_failures + 1);
        seen(path, stamp);
        if let Some(error) = failure.filter(|_| n_failures >= FAILURES_MAX) {
            while let Some((path, stamp)) = asked.next().await {
                seen(path, stamp);
            }
            paths.for_each(|path| seen(path, Err(error.clone())));
            return true;
        }
    }
}

/// Whether the whole source, not one object, is the trouble.
#[must_use]
pub const fn is_down(error: &SourceError) -> bool {
    error.is_passing() || matches!(error.kind, SourceErrorKind::Denied)
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, HashSet};
    use std::sync::atomic::AtomicBool;

    use super::{common_directory, look};
    use crate::source::SourceErrorKind;
    use crate::source::testing::MemorySource;

    fn set(paths: &[&str]) -> HashSet<Vec<u8>> {
        paths.iter().map(|path| path.as_bytes().to_vec()).collect()
    }

    #[test]
    fn a_listing_starts_where_all_paths_lie() {
        for (paths, common) in [
            (["a/b/c", "a/b/d"], "a/b"),
            (["a/b/c", "a/bc/d"], "a"),
            (["ab", "ac"], ""),
            (["a/b", "a/b/c"], "a"),
        ] {
            assert_eq!(
                common_directory(&set(&paths)),
                common.as_bytes(),
                "{paths:?}"
            );
        }
    }

    #[tokio::test]
    async fn every_path_is_told_once_listed_or_asked() {
        for n in [3, 100] {
            let memory = MemorySource::default();
            let paths: Vec<String> = (0..n).map(|i| format!("d/{i:03}")).collect();
            for path in paths.iter().skip(1) {
                memory.put(path, path);
            }
            memory.put("e/other", "other");
            let wanted = paths.iter().map(|path| path.clone().into_bytes()).collect();
            let mut told = BTreeMap::new();
            let stop = AtomicBool::new(false);
            let whole = look(&memory, wanted, &stop, |path, seen| {
                assert!(told.insert(path, seen).is_none());
            });
            assert!(whole.await);
            assert_eq!(told.len(), n);
            for (path, seen) in told {
                match seen {
                    Ok(stamp) => assert_eq!(stamp.size, path.len() as u64),
                    Err(error) => {
                        assert_eq!(error.kind, SourceErrorKind::Missing);
                        assert_eq!(path, b"d/000");
                    }
                }
            }
        }
    }
}
