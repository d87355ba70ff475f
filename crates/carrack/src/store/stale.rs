//! Which containers are out of service, why, and since when.
//!
//! In       what the read path saw: a file missing, cut, or with other bytes than were added.
//! Out      marks that the next read, `carrack status` and the catalog can use.
//! Limits   one mark a container, however often it is asked for.
//! Not here the reading (`store::block`); deciding what a changed source means for a request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use crate::store::catalog::{StaleMark, Validator};
use crate::store::location::ContainerId;

/// Marks in memory; written to the catalog by whoever owns the store.
#[derive(Debug, Default)]
pub struct StaleMarks {
    marks: RwLock<HashMap<ContainerId, StaleMark>>,
    dirty: AtomicBool,
}

impl StaleMarks {
    /// The marks of an earlier run.
    #[must_use]
    pub fn new(marks: impl IntoIterator<Item = (ContainerId, StaleMark)>) -> Self {
        let marks = RwLock::new(marks.into_iter().collect());
        Self {
            marks,
            dirty: AtomicBool::new(false),
        }
    }

    /// Whether `observed` (`None`: no file) is the very state that was found bad before, so that
    /// reading it again would tell nothing new.
    #[must_use]
    pub fn is_refuted(&self, container: ContainerId, observed: Option<&Validator>) -> bool {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        let mark = marks.get(&container);
        mark.is_some_and(|mark| match (&mark.observed, observed) {
            // A listing tells less of a version than an answer does.
            (Some(Validator::Object(found)), Some(Validator::Object(now))) => {
                found.agrees_with(now)
            }
            (found, now) => found.as_ref() == now,
        })
    }

    /// Whether anything is out of service.
    #[must_use]
    pub fn any(&self) -> bool {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        !marks.is_empty()
    }

    /// The mark of a container.
    #[must_use]
    pub fn get(&self, container: ContainerId) -> Option<StaleMark> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks.get(&container).cloned()
    }

    /// Takes a container out of service. The first mark's time stays.
    pub fn mark(&self, container: ContainerId, mut mark: StaleMark) {
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(old) = marks.get(&container) {
            if old.observed == mark.observed && old.reason == mark.reason {
                return;
            }
            mark.since_unix = old.since_unix;
        }
        marks.insert(container, mark);
        self.dirty.store(true, Ordering::Release);
    }

    /// Puts a container back into service: it is what was added, or is no more.
    pub fn clear(&self, container: ContainerId) {
        self.clear_if(container, |_| true);
    }

    /// Bytes of version `observed` were found good, those at `offset`. That says nothing of other
    /// bytes of this version that were found wrong: such a mark stays, and false is returned.
    pub fn absolve(&self, container: ContainerId, observed: &Validator, offset: u64) -> bool {
        self.clear_if(container, |mark| {
            mark.observed.as_ref() != Some(observed) || mark.offset == offset
        })
    }

    /// Clears a mark that `is_over`; whether there is none now.
    pub fn clear_if(&self, container: ContainerId, is_over: impl Fn(&StaleMark) -> bool) -> bool {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        match marks.get(&container) {
            None => return true,
            Some(mark) if !is_over(mark) => return false,
            Some(_) => drop(marks),
        }
        let mut marks = self.marks.write().unwrap_or_else(PoisonError::into_inner);
        // Another thread may have found something worse meanwhile.
        if marks.get(&container).is_some_and(|mark| !is_over(mark)) {
            return false;
        }
        marks.remove(&container);
        self.dirty.store(true, Ordering::Release);
        true
    }

    /// Lets the next [`Self::take_changes`] give all marks: they were not saved.
    pub fn touch(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    /// All marks, if they changed since the last call.
    pub fn take_changes(&self) -> Option<Vec<(ContainerId, StaleMark)>> {
        self.dirty.swap(false, Ordering::AcqRel).then(|| self.all())
    }

    /// All marks.
    #[must_use]
    pub fn all(&self) -> Vec<(ContainerId, StaleMark)> {
        let marks = self.marks.read().unwrap_or_else(PoisonError::into_inner);
        marks
            .iter()
            .map(|(container, mark)| (*container, mark.clone()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::StaleMarks;
    use crate::source::validator::{FileTime, ObjectStamp};
    use crate::store::catalog::{StaleMark, StaleReason, Validator};
    use crate::store::location::ContainerId;

    /// Found by an answer, which tells seconds; known from a listing, which tells more.
    #[test]
    fn a_version_that_was_found_bad_is_known_by_what_both_tell() {
        let stamp = |etag: &str, nanos| {
            Validator::from(ObjectStamp {
                size: 5,
                etag: Some(etag.into()),
                version: None,
                modified: Some(FileTime { secs: 7, nanos }),
            })
        };
        let id = ContainerId(1);
        let mark = StaleMark {
            reason: StaleReason::Mismatch,
            observed: Some(stamp("a", 0)),
            since_unix: 1,
            offset: 0,
            len: 5,
        };
        let marks = StaleMarks::new([(id, mark)]);
        assert!(marks.is_refuted(id, Some(&stamp("a", 5_000_000))));
        assert!(!marks.is_refuted(id, Some(&stamp("b", 0))));
        assert!(!marks.is_refuted(id, None));
    }
}
