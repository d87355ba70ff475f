//! Whether a source answers, so that those who ask a dead one are told at once.
//!
//! In       how requests went.
//! Out      leave to ask, or the error of a source that is down and when it will be asked again.
//! Limits   [`FAILURES`] in a row over at least [`ROW_MIN`] make it down; one request at a time,
//!          after [`BACK_OFF_MIN`] doubling to [`BACK_OFF_MAX`], finds out whether it is up again.
//! Not here how many requests it bears (`source::limiter`), single objects that are gone or
//!          changed.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::{SourceError, SourceErrorKind};
use crate::clock;

/// Failures in a row, with no answer between them.
const FAILURES: u32 = 5;
/// A shorter row is a moment's trouble: many requests fail in the same instant.
const ROW_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MIN: Duration = Duration::from_secs(1);
const BACK_OFF_MAX: Duration = Duration::from_secs(30);

/// What is known of a source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SourceState {
    /// It answers, or nobody has asked.
    Live,
    /// It does not.
    Down {
        /// When the first request failed, in seconds since 1970.
        since: u64,
        /// What came of the last request, and what to do if that is known.
        last_error: String,
        /// When it will be asked again.
        retry_in: Duration,
    },
}

/// The health of one source.
#[derive(Debug, Default)]
pub struct Health {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    n_failed: u32,
    first_failed: Option<Instant>,
    /// When it was first noticed that it does not answer, in seconds since 1970.
    since: Option<u64>,
    down: Option<Down>,
    /// What came of a look at all its objects of which none was answered.
    silent: Option<SourceError>,
}

#[derive(Debug)]
struct Down {
    last: SourceError,
    back_off: Duration,
    retry_at: Instant,
    /// Somebody is finding out.
    is_probed: bool,
}

/// Leave for one request. To be told how it went; dropping it says nothing.
#[derive(Debug)]
pub struct Leave<'a> {
    health: &'a Health,
    is_probe: bool,
}

impl Health {
    /// Leave to ask the source.
    ///
    /// # Errors
    /// What is wrong with it, while it is down and not to be asked yet.
    pub fn ask(&self) -> Result<Leave<'_>, SourceError> {
        let mut state = self.hold();
        let mut leave = Leave {
            health: self,
            is_probe: false,
        };
        let Some(down) = &mut state.down else {
            return Ok(leave);
        };
        let now = Instant::now();
        if now >= down.retry_at && !down.is_probed {
            down.is_probed = true;
            leave.is_probe = true;
            return Ok(leave);
        }
        leave.is_probe = false;
        let wait = down.retry_at.saturating_duration_since(now);
        Err(SourceError {
            kind: match down.last.kind {
                SourceErrorKind::Denied => SourceErrorKind::Denied,
                _ => SourceErrorKind::Unreachable,
            },
            what: down.last.what.clone(),
            retry_after: Some(wait.max(BACK_OFF_MIN)),
        })
    }

    /// What is known now.
    #[must_use]
    pub fn state(&self) -> SourceState {
        let state = self.hold();
        let (last, retry_in) = match (&state.down, &state.silent) {
            (Some(down), _) => {
                let retry_in = down.retry_at.saturating_duration_since(Instant::now());
                (&down.last, retry_in)
            }
            (None, Some(silent)) => (silent, Duration::ZERO),
            (None, None) => return SourceState::Live,
        };
        SourceState::Down {
            since: state.since.unwrap_or_else(clock::unix_seconds),
            last_error: last.what.clone(),
            retry_in,
        }
    }

    /// Somebody who looks at all objects got no answer. Since when there is none, as far as is
    /// known, in seconds since 1970. It is for reads to find out whether the source is down.
    pub fn unanswered(&self) -> u64 {
        *self.hold().since.get_or_insert_with(clock::unix_seconds)
    }

    /// Somebody who looked at all objects got no answer about any: it is told as down, and reads
    /// ask it all the same.
    pub fn silent(&self, error: &SourceError) {
        let mut state = self.hold();
        state.since.get_or_insert_with(clock::unix_seconds);
        state.silent = Some(error.clone());
    }

    /// Somebody who looks at all objects got an answer.
    pub fn answered(&self) {
        let mut state = self.hold();
        if state.down.is_none() {
            *state = State::default();
        }
    }

    fn hold(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leave<'_> {
    /// The source answered: with bytes, or with something that is about one object.
    pub fn good(self) {
        *self.health.hold() = State::default();
    }

    /// It did not, or not as it should. Errors about one object are [good](Self::good).
    pub fn failed(self, error: &SourceError) {
        use SourceErrorKind::{Denied, Unreachable};
        if !matches!(error.kind, Unreachable | Denied) {
            return self.good();
        }
        let now = Instant::now();
        let mut state = self.health.hold();
        state.n_failed = state.n_failed.saturating_add(1);
        let first = *state.first_failed.get_or_insert(now);
        state.since.get_or_insert_with(clock::unix_seconds);
        let is_row = state.n_failed >= FAILURES && now.duration_since(first) >= ROW_MIN;
        match &mut state.down {
            Some(down) if self.is_probe => {
                down.back_off = (down.back_off * 2).min(BACK_OFF_MAX);
                down.retry_at = now + down.back_off;
                down.last = error.clone();
            }
            None if is_row => {
                state.down = Some(Down {
                    last: error.clone(),
                    back_off: BACK_OFF_MIN,
                    retry_at: now + BACK_OFF_MIN,
                    is_probed: false,
                });
            }
            _ => {}
        }
    }
}

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        if !self.is_probe {
            return;
        }
        if let Some(down) = &mut self.health.hold().down {
            down.is_probed = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gone() -> SourceError {
        SourceError::new(SourceErrorKind::Unreachable, "no route")
    }

    /// As if a row of failures had begun two seconds ago.
    fn fail_for_long(health: &Health) {
        health.ask().unwrap().failed(&gone());
        health.hold().first_failed = Instant::now().checked_sub(ROW_MIN * 2);
        for _ in 1..FAILURES {
            health.ask().unwrap().failed(&gone());
        }
    }

    #[test]
    fn a_moment_of_trouble_takes_no_source_down() {
        let health = Health::default();
        for _ in 0..100 {
            health.ask().unwrap().failed(&gone());
        }
        assert_eq!(health.state(), SourceState::Live);
    }

    #[test]
    fn it_is_down_since_the_first_failure() {
        let health = Health::default();
        let noticed = health.unanswered();
        assert_eq!(health.state(), SourceState::Live, "reads find that out");
        health.hold().since = Some(noticed - 100);
        fail_for_long(&health);
        assert!(
            matches!(health.state(), SourceState::Down { since, .. } if since == noticed - 100)
        );
        health.answered();
        assert_eq!(health.unanswered(), noticed - 100, "its probe will tell");
        health.hold().down.as_mut().unwrap().retry_at = Instant::now();
        health.ask().unwrap().good();
        assert!(health.unanswered() >= noticed);
        health.answered();
        assert_eq!(health.hold().since, None);
    }

    #[test]
    fn a_source_that_was_looked_at_in_vain_is_told_as_down_and_asked() {
        let health = Health::default();
        let since = health.unanswered();
        health.silent(&gone());
        let down = SourceState::Down {
            since,
            last_error: "no route".to_owned(),
            retry_in: Duration::ZERO,
        };
        assert_eq!(health.state(), down);
        health.ask().unwrap().failed(&gone());
        assert_eq!(health.state(), down);
        health.ask().unwrap().good();
        assert_eq!(health.state(), SourceState::Live);
        health.silent(&gone());
        health.answered();
        assert_eq!(health.state(), SourceState::Live);
    }

    #[test]
    fn errors_of_single_objects_take_no_source_down() {
        let health = Health::default();
        for kind in [SourceErrorKind::Missing, SourceErrorKind::Changed] {
            fail_for_long(&health);
            health.hold().down = None;
            let error = SourceError::new(kind, "this one");
            health.ask().unwrap().failed(&error);
            assert_eq!(health.hold().n_failed, 0);
        }
    }

    #[test]
    fn a_source_that_is_down_fails_at_once_until_one_probe_finds_it_up() {
        let health = Health::default();
        fail_for_long(&health);
        let SourceState::Down { last_error, .. } = health.state() else {
            panic!("it is down");
        };
        assert_eq!(last_error, "no route");
        let error = health.ask().unwrap_err();
        assert_eq!(error.kind, SourceErrorKind::Unreachable);
        assert!(error.retry_after.is_some());
        let due = |health: &Health| health.hold().down.as_mut().unwrap().retry_at = Instant::now();
        due(&health);
        let probe = health.ask().unwrap();
        assert!(health.ask().is_err(), "one at a time");
        drop(probe); // Given up: the next one may.
        health.ask().unwrap().failed(&gone());
        assert!(health.ask().is_err(), "twice as long");
        assert_eq!(
            health.hold().down.as_ref().unwrap().back_off,
            BACK_OFF_MIN * 2
        );
        due(&health);
        health.ask().unwrap().good();
        assert_eq!(health.state(), SourceState::Live);
        assert!(health.ask().is_ok());
    }
}
