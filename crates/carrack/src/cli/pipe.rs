//! Pipes that nobody reads, or fills: a command that waits for one ends when it is told to.
//!
//! In       a FIFO, or the pipe that standard input or output is.
//! Out      a [`Write`] or a [`Read`] that fails when it would have to wait and the command is to
//!          end. What need not wait is still written.
//! Limits   the flag is looked at every [`LOOK`].
//! Not here files, terminals and sockets: they are read and written as they are.
//!
//! Signals do not end a call that blocks in the kernel. A pipe is opened anew, so that it does not
//! block here and does for all others who have it.

use std::io::{self, LineWriter, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use rustix::fs::FileType;
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};
use tokio::runtime::Runtime;
use tokio::time::timeout;

/// How long nobody looks whether the command is to end.
const LOOK: Duration = Duration::from_millis(50);

/// Writes into a pipe.
pub struct PipeWriter<'a> {
    pipe: Sender,
    runtime: Runtime,
    stop: Stop<'a>,
}

/// Reads from a pipe.
pub struct PipeReader<'a> {
    pipe: Receiver,
    runtime: Runtime,
    stop: Stop<'a>,
}

/// What says that a command is to end.
enum Stop<'a> {
    Lent(&'a AtomicBool),
    Own(Arc<AtomicBool>),
}

impl Stop<'_> {
    fn is_raised(&self) -> bool {
        match self {
            Self::Lent(flag) => flag.load(Relaxed),
            Self::Own(flag) => flag.load(Relaxed),
        }
    }

    fn look(&self) -> io::Result<()> {
        match self.is_raised() {
            true => Err(io::Error::other("interrupted")),
            false => Ok(()),
        }
    }

    /// Waits until a pipe is ready, or it is time to look again.
    fn wait(
        &self,
        runtime: &Runtime,
        ready: impl Future<Output = io::Result<()>>,
    ) -> io::Result<()> {
        match runtime.block_on(async { timeout(LOOK, ready).await }) {
            Ok(ready) => ready,
            Err(_) => self.look(),
        }
    }
}

/// Opens a FIFO for writing, which waits for somebody who reads.
///
/// # Errors
/// It cannot be opened, or `stop` was raised.
pub fn open_fifo<'a>(path: &Path, stop: &'a AtomicBool) -> io::Result<PipeWriter<'a>> {
    let (runtime, stop) = (runtime()?, Stop::Lent(stop));
    loop {
        let opened = {
            let _guard = runtime.enter();
            OpenOptions::new().open_sender(path)
        };
        match opened {
            Err(error) if is_without_reader(&error) => {
                stop.look()?;
                std::thread::sleep(LOOK);
            }
            opened => {
                let pipe = opened?;
                return Ok(PipeWriter {
                    runtime,
                    pipe,
                    stop,
                });
            }
        }
    }
}

/// Standard output of this process. `stop` says that its command is to end.
#[must_use]
pub fn stdout(stop: &Arc<AtomicBool>) -> Box<dyn Write + Send> {
    let open = || -> io::Result<PipeWriter<'static>> {
        let runtime = runtime()?;
        let pipe = {
            let _guard = runtime.enter();
            OpenOptions::new().open_sender("/proc/self/fd/1")?
        };
        let stop = Stop::Own(Arc::clone(stop));
        Ok(PipeWriter {
            runtime,
            pipe,
            stop,
        })
    };
    match is_pipe(&io::stdout()).then(open) {
        // As the library writes it: by lines.
        Some(Ok(writer)) => Box::new(LineWriter::new(writer)),
        // A pipe of another user's cannot be opened anew.
        Some(Err(_)) | None => Box::new(io::stdout()),
    }
}

/// Standard input of this process. `stop` says that its command is to end.
#[must_use]
pub fn stdin(stop: &Arc<AtomicBool>) -> Box<dyn Read> {
    let open = || -> io::Result<PipeReader<'static>> {
        let runtime = runtime()?;
        let pipe = {
            let _guard = runtime.enter();
            OpenOptions::new().open_receiver("/proc/self/fd/0")?
        };
        let stop = Stop::Own(Arc::clone(stop));
        Ok(PipeReader {
            runtime,
            pipe,
            stop,
        })
    };
    match is_pipe(&io::stdin()).then(open) {
        Some(Ok(reader)) => Box::new(reader),
        Some(Err(_)) | None => Box::new(io::stdin()),
    }
}

fn runtime() -> io::Result<Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().build()
}

fn is_pipe(file: &impl AsFd) -> bool {
    let stat = rustix::fs::fstat(file);
    stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo)
}

fn is_without_reader(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error())
}

impl Write for PipeWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.pipe.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return written,
            }
            self.stop.wait(&self.runtime, self.pipe.writable())?;
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for PipeReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.pipe.try_read(buffer) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return read,
            }
            self.stop.wait(&self.runtime, self.pipe.readable())?;
        }
    }
}

impl std::fmt::Debug for PipeWriter<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeWriter").finish_non_exhaustive()
    }
}

impl std::fmt::Debug for PipeReader<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PipeReader").finish_non_exhaustive()
    }
}
