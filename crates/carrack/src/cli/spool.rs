//! What a node says never waits for who reads it: a thread of its own writes it.
//!
//! In       pieces of whole lines, for one stream.
//! Out      the same, in order; how many lines were dropped, said when the reader reads again.
//! Limits   [`WAITING_LEN_MAX`] bytes wait. Data waits [`WAIT_MAX`] for a reader that takes
//!          nothing, once, and all else not at all; then pieces are dropped and counted.
//! Not here commands that end: they wait for their reader (`pipe`). The access log has a thread of
//!          its own (`http::access_log`).
//!
//! The thread may hang for ever in a write, and nothing but it: no lock is held meanwhile, nobody
//! joins it, and the process ends without it.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that wait to be written.
pub const WAITING_LEN_MAX: usize = 1 << 20;
/// Bytes that a piece takes beside its own.
const PIECE_COST: usize = 64;
/// How long data waits for a reader, and the end of the process for all that was said.
pub const WAIT_MAX: Duration = Duration::from_secs(1);

/// What is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Standard output: a reader that is slow is waited for, and an error is told to who writes.
    Data,
    /// Standard error: nobody is told, and nobody waits.
    Words,
}

/// Where pieces are left. Clones share the thread.
#[derive(Debug, Clone)]
pub struct Spool {
    kind: Kind,
    shared: Arc<Shared>,
    /// The same terminal's other stream: what was said there before comes before.
    other: Option<Arc<Shared>>,
}

#[derive(Debug, Default)]
struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    pieces: VecDeque<Vec<u8>>,
    /// What all pieces take, and of the one that is being written.
    len: usize,
    n_written: u64,
    /// `n_written` when somebody waited in vain: nobody waits again until it moves.
    given_up: Option<u64>,
    n_dropped: u64,
    failed: Option<io::ErrorKind>,
}

impl Spool {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// No thread can be started.
    pub fn start(kind: Kind, output: Box<dyn Write + Send>) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let spool = Self {
            kind,
            shared: Arc::clone(&shared),
            other: None,
        };
        let name = "words".to_owned();
        let thread = std::thread::Builder::new().name(name);
        thread.spawn(move || write_pieces(kind, output, &shared))?;
        Ok(spool)
    }

    /// The same, in order with `other`, whose terminal it shares.
    #[must_use]
    pub fn after(self, other: &Self) -> Self {
        Self {
            other: Some(Arc::clone(&other.shared)),
            ..self
        }
    }

    /// Waits until all is written, [`WAIT_MAX`] after `started` at the latest.
    pub fn settle(&self, started: Instant) {
        let left = WAIT_MAX.saturating_sub(started.elapsed());
        drop(self.shared.wait(left, |waiting| waiting.len == 0));
    }
}

impl Shared {
    fn hold(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `is_so`, unless that was in vain before and nothing has been written since.
    fn wait(
        &self,
        time_max: Duration,
        is_so: impl Fn(&Waiting) -> bool,
    ) -> MutexGuard<'_, Waiting> {
        let mut waiting = self.hold();
        if is_so(&waiting) || waiting.given_up == Some(waiting.n_written) {
            return waiting;
        }
        let is_not = |waiting: &mut Waiting| !is_so(waiting);
        let waited = self.changed.wait_timeout_while(waiting, time_max, is_not);
        let timed_out;
        (waiting, timed_out) = waited.unwrap_or_else(PoisonError::into_inner);
        if timed_out.timed_out() {
            waiting.given_up = Some(waiting.n_written);
        }
        waiting
    }
}

impl Write for Spool {
    /// Takes all of `bytes`, or drops all of them.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if let Some(other) = &self.other {
            drop(other.wait(WAIT_MAX, |waiting| waiting.len == 0));
        }
        let cost = bytes.len().saturating_add(PIECE_COST);
        let fits = |waiting: &Waiting| {
            waiting.len == 0 || waiting.len.saturating_add(cost) <= WAITING_LEN_MAX
        };
        let mut waiting = match self.kind {
            Kind::Data => self.shared.wait(WAIT_MAX, fits),
            Kind::Words => self.shared.hold(),
        };
        if let (Kind::Data, Some(failed)) = (self.kind, waiting.failed) {
            return Err(failed.into());
        }
        if !fits(&waiting) {
            waiting.n_dropped += bytes.iter().filter(|byte| **byte == b'\n').count() as u64;
        } else if !bytes.is_empty() {
            waiting.len += cost;
            waiting.pieces.push_back(bytes.to_vec());
            self.shared.changed.notify_all();
        }
        Ok(bytes.len())
    }

    /// Data is with its reader, or he takes nothing.
    fn flush(&mut self) -> io::Result<()> {
        if self.kind == Kind::Words {
            return Ok(());
        }
        let waiting = self.shared.wait(WAIT_MAX, |waiting| waiting.len == 0);
        waiting.failed.map_or(Ok(()), |failed| Err(failed.into()))
    }
}

/// Writes piece by piece, for as long as the process lives.
fn write_pieces(kind: Kind, mut output: Box<dyn Write + Send>, shared: &Shared) {
    loop {
        let waiting = shared.hold();
        let is_empty = |waiting: &mut Waiting| waiting.pieces.is_empty();
        let waited = shared.changed.wait_while(waiting, is_empty);
        let mut waiting = waited.unwrap_or_else(PoisonError::into_inner);
        let piece = waiting.pieces.pop_front().unwrap_or_default();
        // Said once the reader has caught up with what was said before.
        let n_dropped = match waiting.pieces.is_empty() {
            true => std::mem::take(&mut waiting.n_dropped),
            false => 0,
        };
        drop(waiting);
        let mut written = output.write_all(&piece).and_then(|()| output.flush());
        if n_dropped > 0 {
            const WHY: &str = "who reads them was too slow";
            match kind {
                Kind::Data => tracing::warn!(n_dropped, "lines of roots were dropped: {WHY}"),
                Kind::Words => {
                    let told = writeln!(output, "warning: {n_dropped} lines were dropped: {WHY}");
                    written = written.and(told);
                }
            }
        }
        let mut waiting = shared.hold();
        waiting.len = waiting.len.saturating_sub(piece.len() + PIECE_COST);
        waiting.n_written += 1;
        if let (Kind::Data, Err(error)) = (kind, written) {
            waiting.failed = Some(error.kind());
            waiting.pieces.clear();
            waiting.len = 0;
        }
        drop(waiting);
        shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, sync_channel};

    use super::*;
    use crate::cli::output::tests::Shared as Seen;

    /// A stream whose reader reads when it is told to.
    struct Stalled(Receiver<()>, Seen);

    impl Write for Stalled {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.0.recv(); // An error: he reads for ever.
            self.1.write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_does_not_fit_is_dropped_in_whole_lines_and_told_when_the_reader_is_back() {
        for kind in [Kind::Words, Kind::Data] {
            let (reads, reader) = sync_channel(0);
            let seen = Seen::default();
            let mut spool = Spool::start(kind, Box::new(Stalled(reader, seen.clone()))).unwrap();
            let started = Instant::now();
            let line = format!("{}\n", "x".repeat(9999));
            for _ in 0..1000 {
                spool.write_all(line.as_bytes()).unwrap();
            }
            spool.flush().unwrap();
            // Once for data, and not at all for words.
            assert!(started.elapsed() < WAIT_MAX * 5, "{kind:?}");
            drop(reads);
            spool.settle(Instant::now());
            spool.shared.hold().given_up = None;
            spool.flush().unwrap();
            spool.settle(Instant::now());
            let text = seen.text();
            let n_whole = text.lines().filter(|it| it.len() == 9999).count();
            assert_eq!(n_whole, WAITING_LEN_MAX / (10_000 + PIECE_COST), "{kind:?}");
            let rest = text.lines().filter(|it| it.len() != 9999);
            let rest: Vec<_> = rest.collect();
            match kind {
                Kind::Words => {
                    let told = "warning: 896 lines were dropped: who reads them was too slow";
                    assert_eq!(rest, [told]);
                }
                Kind::Data => assert!(rest.is_empty(), "{rest:?}"),
            }
        }
    }

    #[test]
    fn a_reader_of_data_that_is_slow_gets_all_and_one_that_has_gone_is_told() {
        struct Slow(usize);
        impl Write for Slow {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                std::thread::sleep(Duration::from_millis(1));
                self.0 -= 1;
                match self.0 {
                    0 => Err(io::ErrorKind::BrokenPipe.into()),
                    _ => Ok(bytes.len()),
                }
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut spool = Spool::start(Kind::Data, Box::new(Slow(301))).unwrap();
        for _ in 0..300 {
            spool.write_all(&[b'\n'; 10_000]).unwrap();
        }
        spool.flush().unwrap();
        assert_eq!(spool.shared.hold().n_dropped, 0);
        spool.write_all(b"one more\n").unwrap();
        let gone = spool.flush().unwrap_err();
        assert_eq!(gone.kind(), io::ErrorKind::BrokenPipe);
    }
}
