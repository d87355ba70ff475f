//! Parts of a node that run as long as it does: who panics is named at once, and starts again.
//!
//! In       a part's name, and how to run it.
//! Out      lines of the log and of `/readyz`; the part, running again.
//! Limits   [`PAUSE_FIRST`] before the second start, twice as long before each further one, at most
//!          [`PAUSE_MAX`]; a part that ran for [`CALM`] begins at the first again.
//! Not here what the parts do; requests and peers, whose tasks end with them.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use futures_util::FutureExt as _;

use crate::error::Error;
use crate::http::readiness::Readiness;

/// From the first panic to the next start.
const PAUSE_FIRST: Duration = Duration::from_secs(1);
/// The longest such time.
const PAUSE_MAX: Duration = Duration::from_secs(300);
/// A part that ran for so long is sound again.
const CALM: Duration = Duration::from_secs(600);
/// A thread that pauses looks so often whether it is to end.
const LOOK: Duration = Duration::from_millis(100);

/// One part, and how often it has failed of late.
#[derive(Debug)]
pub struct Part {
    name: &'static str,
    readiness: Readiness,
    started: Instant,
    n_failures: u32,
}

impl Part {
    /// A part that is not running yet.
    #[must_use]
    pub fn new(name: &'static str, readiness: &Readiness) -> Self {
        Self {
            name,
            readiness: readiness.clone(),
            started: Instant::now(),
            n_failures: 0,
        }
    }

    /// Runs it to its end, which is true; or until it panics, and waits until it is to be started
    /// again.
    pub async fn run(&mut self, run: impl Future<Output = ()>) -> bool {
        self.starts();
        // What it shares with others is behind locks that are taken whoever panicked with them.
        if AssertUnwindSafe(run).catch_unwind().await.is_ok() {
            return true;
        }
        tokio::time::sleep(self.failed("panicked")).await;
        false
    }

    /// It could not be started: waits until that is to be tried again. Why is for the log alone.
    pub async fn cannot_start(&mut self, error: &Error) {
        tracing::warn!(part = self.name, error = error.chain(), "cannot start");
        tokio::time::sleep(self.failed("does not start")).await;
    }

    fn starts(&mut self) {
        self.started = Instant::now();
        if self.n_failures > 0 {
            tracing::info!(part = self.name, "started again");
        }
        self.readiness.set_up(self.name);
    }

    /// Tells of a failure; how long to wait before the next start.
    fn failed(&mut self, why: &str) -> Duration {
        if self.started.elapsed() >= CALM {
            self.n_failures = 0;
        }
        let pause = PAUSE_FIRST.saturating_mul(1 << self.n_failures.min(16));
        let pause = pause.min(PAUSE_MAX);
        self.n_failures = self.n_failures.saturating_add(1);
        let (part, pause_s) = (self.name, pause.as_secs());
        tracing::error!(part, why, pause_s, "failed; it is started again");
        let why = format!("{why}; it is started again after {pause_s} s");
        self.readiness.set_down(part, why);
        pause
    }
}

/// Runs a part on this thread until it returns, again after each panic until the flag is raised.
pub fn run_again(
    name: &'static str,
    readiness: &Readiness,
    stopped: &AtomicBool,
    mut run: impl FnMut(),
) {
    let mut part = Part::new(name, readiness);
    loop {
        part.starts();
        // What it shares with others is behind locks that are taken whoever panicked with them.
        if catch_unwind(AssertUnwindSafe(&mut run)).is_ok() {
            return;
        }
        let until = Instant::now() + part.failed("panicked");
        while Instant::now() < until {
            if stopped.load(Relaxed) {
                return;
            }
            std::thread::sleep(LOOK);
        }
    }
}

/// Where tests say which part is to panic. Builds for release have no such thing.
#[cfg(debug_assertions)]
static FAILING: std::sync::OnceLock<std::path::PathBuf> = std::sync::OnceLock::new();

/// Lets tests make a part of this process panic, by a file of its name in `dir`.
#[cfg(debug_assertions)]
pub fn let_fail(dir: std::path::PathBuf) {
    let _ = FAILING.set(dir); // Once is enough.
}

/// Panics if a test asks for it.
pub fn fail_point(part: &str) {
    #[cfg(debug_assertions)]
    if let Some(dir) = FAILING.get() {
        let taken = std::fs::remove_file(dir.join(part));
        assert!(taken.is_err(), "a test has {part} panic");
    }
    #[cfg(not(debug_assertions))]
    let _ = part;
}

/// The same for futures: never ends. To be run beside a part.
pub async fn fail_points(part: &str) {
    if cfg!(debug_assertions) {
        loop {
            fail_point(part);
            tokio::time::sleep(LOOK).await;
        }
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_panics_is_told_of_at_once_and_runs_again() {
        let readiness = Readiness::default();
        let stopped = AtomicBool::new(false);
        let (told, tell) = std::sync::mpsc::sync_channel(4);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut n_runs = 0;
                run_again("merging", &readiness, &stopped, || {
                    n_runs += 1;
                    told.send(n_runs).unwrap();
                    assert!(n_runs > 1, "a fault of the test");
                });
            });
            assert_eq!(tell.recv(), Ok(1));
            while readiness.troubles().is_empty() {
                std::thread::yield_now();
            }
            let said = readiness.troubles();
            assert_eq!(said, ["merging: panicked; it is started again after 1 s"]);
            assert_eq!(tell.recv(), Ok(2));
        });
        assert!(readiness.troubles().is_empty());
    }

    #[test]
    fn a_thread_that_panics_ends_when_it_is_told_to() {
        let readiness = Readiness::default();
        let stopped = AtomicBool::new(false);
        let mut n_runs = 0;
        run_again("merging", &readiness, &stopped, || {
            n_runs += 1;
            stopped.store(true, Relaxed);
            panic!("a fault of the test");
        });
        assert_eq!(n_runs, 1);
    }

    #[test]
    fn what_fails_again_and_again_is_started_less_and_less_often() {
        let readiness = Readiness::default();
        let mut part = Part::new("libp2p", &readiness);
        let pauses: Vec<u64> = (0..11).map(|_| part.failed("panicked").as_secs()).collect();
        assert_eq!(pauses, [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300]);
        part.starts();
        part.started = Instant::now().checked_sub(CALM).unwrap();
        assert_eq!(part.failed("panicked").as_secs(), 1);
    }

    #[tokio::test]
    async fn a_future_that_panics_is_told_of_at_once_and_can_be_run_again() {
        let readiness = Readiness::default();
        let mut part = Part::new("libp2p", &readiness);
        let told = readiness.clone();
        let look = async {
            while told.troubles().is_empty() {
                tokio::task::yield_now().await;
            }
            told.troubles()
        };
        let run = part.run(async { panic!("a fault of the test") });
        let (ended, said) = tokio::join!(run, look);
        assert!(!ended);
        assert_eq!(said, ["libp2p: panicked; it is started again after 1 s"]);
        assert!(part.run(async {}).await && readiness.troubles().is_empty());
    }
}
