//! Where a command's words go: data to standard output, everything else to standard error.
//!
//! In       lines, JSON values, progress.
//! Out      bytes on two writers, which may be this process's or a client's (`cli::control`).
//! Limits   progress is drawn at most five times a second, and only on a terminal.
//! Not here exit codes (`error`), what is said (`cli::commands`).

use std::io::{self, Write};
use std::time::{Duration, Instant};

use crate::cli::redact::redacted;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;

/// Time between two drawings of the progress line.
const DRAW_INTERVAL: Duration = Duration::from_millis(200);

/// The two streams of one command.
pub struct Output {
    /// One JSON object a line instead of text for people.
    pub json: bool,
    /// Standard error is a terminal: progress may be drawn.
    pub terminal: bool,
    out: Box<dyn Write + Send>,
    err: Box<dyn Write + Send>,
    drawn: Option<(Instant, Instant)>,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("json", &self.json)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// An output on two writers.
    #[must_use]
    pub fn new(
        json: bool,
        terminal: bool,
        out: Box<dyn Write + Send>,
        err: Box<dyn Write + Send>,
    ) -> Self {
        Self {
            json,
            terminal,
            out,
            err,
            drawn: None,
        }
    }

    /// Where data goes.
    pub fn data(&mut self) -> &mut (dyn Write + Send) {
        self.out.as_mut()
    }

    /// A line of data.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be written; see [`is_broken_pipe`].
    pub fn line(&mut self, text: &str) -> Result<()> {
        writeln!(self.out, "{text}").map_err(write_error)
    }

    /// A JSON object as a line of data.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn object(&mut self, value: &serde_json::Value) -> Result<()> {
        self.line(&value.to_string())
    }

    /// A line for the person who waits, without the secrets of URLs that it may repeat. That it
    /// may be lost is no error.
    pub fn note(&mut self, text: &str) {
        self.clear_progress();
        let _ = writeln!(self.err, "{}", redacted(text));
        let _ = self.err.flush();
    }

    /// Everything written so far leaves.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn flush(&mut self) -> Result<()> {
        self.clear_progress();
        self.out.flush().map_err(write_error)
    }

    fn clear_progress(&mut self) {
        if self.drawn.take().is_some() {
            let _ = write!(self.err, "\r\x1b[K");
        }
    }
}

impl Progress for Output {
    fn note(&mut self, text: &str) {
        Self::note(self, text);
    }

    fn wants_total(&self) -> bool {
        self.terminal
    }

    fn update(&mut self, what: &str, done: u64, total: Option<u64>) {
        if !self.terminal {
            return;
        }
        let now = Instant::now();
        let started = match self.drawn {
            Some((_, last)) if now.duration_since(last) < DRAW_INTERVAL => return,
            Some((started, _)) => started,
            None => now,
        };
        self.drawn = Some((started, now));
        let seconds = now.duration_since(started).as_secs_f64().max(0.001);
        #[expect(clippy::cast_precision_loss, reason = "a rate for the eye")]
        let rate = done as f64 / seconds;
        let mut line = format!("{what} {}", bytes(done));
        if let Some(total) = total.filter(|total| *total >= done) {
            line.push_str(&format!(" of {}", bytes(total)));
            #[expect(clippy::cast_precision_loss, reason = "an estimate for the eye")]
            let left = (total - done) as f64 / rate.max(1.0);
            if seconds > 1.0 {
                line.push_str(&format!(", {left:.0} s left"));
            }
        }
        if seconds > 0.5 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "a rate for the eye"
            )]
            line.push_str(&format!(", {}/s", bytes(rate as u64)));
        }
        let _ = write!(self.err, "\r\x1b[K{line}");
        let _ = self.err.flush();
    }
}

/// Whether the reader of standard output has gone, which is success.
#[must_use]
pub fn is_broken_pipe(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<io::Error>())
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// An error of writing data.
pub fn write_error(error: io::Error) -> Error {
    Error::with(ErrorKind::Unavailable, "cannot write the output", error)
}

/// A number of bytes for people, in binary units.
#[must_use]
pub fn bytes(n: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if n < 1024 {
        return format!("{n} B");
    }
    #[expect(clippy::cast_precision_loss, reason = "a size for the eye")]
    let mut value = n as f64 / 1024.0;
    let mut unit = UNITS[0];
    for larger in UNITS.iter().skip(1) {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

/// Marks that change the reading direction of what follows.
fn reorders(c: char) -> bool {
    matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A name or path from a DAG or a disk, safe for a terminal: what could move the cursor, change
/// colours or reverse the reading direction is escaped.
#[must_use]
pub fn shown(name: &[u8]) -> String {
    let mut text = String::with_capacity(name.len());
    for piece in name.utf8_chunks() {
        for c in piece.valid().chars() {
            if c.is_control() || reorders(c) || c == '\\' {
                text.extend(c.escape_default());
            } else {
                text.push(c);
            }
        }
        piece
            .invalid()
            .iter()
            .for_each(|byte| text.push_str(&format!("\\x{byte:02x}")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::{bytes, shown};

    #[test]
    fn names_cannot_drive_a_terminal() {
        assert_eq!(shown(b"a\x1b[31mred\r\nb"), "a\\u{1b}[31mred\\r\\nb");
        assert_eq!(shown("x\u{202e}cod.exe".as_bytes()), "x\\u{202e}cod.exe");
        assert_eq!(shown(b"\xff\xfe ok"), "\\xff\\xfe ok");
        assert_eq!(shown("ağaç 木".as_bytes()), "ağaç 木");
    }

    #[test]
    fn sizes_read_well() {
        assert_eq!(
            [bytes(0), bytes(1023), bytes(1536), bytes(5 << 30)].join(" "),
            "0 B 1023 B 1.5 KiB 5.0 GiB"
        );
    }
}
