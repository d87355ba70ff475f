//! A program on a terminal of its own, for what it draws and writes there.
//!
//! In       a command.
//! Out      how it ended, and every byte that it sent to the terminal on either stream.
//! Limits   [`COLUMNS`] by [`LINES`].
//! Not here what the bytes come to on a screen (`vt100`, in the tests).

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, ExitStatus, Stdio};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

/// Columns of the terminal.
pub const COLUMNS: u16 = 200;
/// Its lines.
pub const LINES: u16 = 50;

/// Runs `command` with a terminal as standard output and standard error.
///
/// # Errors
/// Those of making the terminal and of starting the program.
pub fn run(command: &mut Command) -> io::Result<(ExitStatus, Vec<u8>)> {
    let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&ours)?;
    unlockpt(&ours)?;
    let name = ptsname(&ours, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let path = std::ffi::OsStr::from_bytes(name.as_bytes());
    let theirs: OwnedFd = rustix::fs::open(path, flags, Mode::empty())?;
    let size = Winsize {
        ws_row: LINES,
        ws_col: COLUMNS,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(&theirs, size)?;
    command
        .stdout(Stdio::from(theirs.try_clone()?))
        .stderr(Stdio::from(theirs));
    let mut child = command.spawn()?;
    // The command keeps its ends open, which would keep the terminal from ending.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut written = Vec::new();
    match File::from(ours).read_to_end(&mut written) {
        // The last end was closed: how Linux tells the end of a terminal.
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {}
        read => {
            read?;
        }
    }
    Ok((child.wait()?, written))
}
