//! Where a command's words go: data to standard output, everything else to standard error.
//!
//! In       lines, JSON values, progress.
//! Out      bytes on two streams, which may be this process's or a client's (`cli::control`).
//! Limits   a line is a line: what could end it, move the cursor, change colours or reverse the
//!          reading direction is escaped here, whatever the caller forgot.
//! Not here drawing (`screen`), exit codes (`error`), what is said (`cli::commands`).

use std::borrow::Cow;
use std::io::{self, Write};

use crate::cli::redact::redacted;
use crate::cli::screen::Screen;
use crate::cli::spool::Spool;
use crate::error::{Error, ErrorKind, Result};
use crate::ingest::Progress;

/// The two streams of one command.
pub struct Output {
    /// One JSON object a line instead of text for people.
    pub json: bool,
    out: Box<dyn Write + Send>,
    /// What `out` is, if nobody waits for its reader.
    spool: Option<Spool>,
    /// Standard output is a terminal, which is the one that is drawn on.
    out_is_terminal: bool,
    screen: Screen,
}

impl std::fmt::Debug for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Output")
            .field("json", &self.json)
            .finish_non_exhaustive()
    }
}

impl Output {
    /// An output of data to `out` and of all else to `screen`.
    #[must_use]
    pub fn new(
        json: bool,
        out: Box<dyn Write + Send>,
        out_is_terminal: bool,
        screen: Screen,
    ) -> Self {
        Self {
            json,
            out,
            spool: None,
            out_is_terminal,
            screen,
        }
    }

    /// The same of a node, which waits for no reader.
    #[must_use]
    pub fn of_node(json: bool, spool: Spool, out_is_terminal: bool, screen: Screen) -> Self {
        let mut output = Self::new(json, Box::new(spool.clone()), out_is_terminal, screen);
        output.spool = Some(spool);
        output
    }

    /// Another output to the same streams, for another thread; `None`: it is no node's.
    #[must_use]
    pub fn another(&self) -> Option<Self> {
        let spool = self.spool.clone()?;
        let screen = self.screen.clone();
        Some(Self::of_node(
            self.json,
            spool,
            self.out_is_terminal,
            screen,
        ))
    }

    /// Where everything but data goes.
    #[must_use]
    pub fn screen(&self) -> &Screen {
        &self.screen
    }

    /// Whether standard output is a terminal.
    #[must_use]
    pub fn out_is_terminal(&self) -> bool {
        self.out_is_terminal
    }

    /// Where data goes. On a terminal nothing is drawn any more.
    pub fn data(&mut self) -> &mut (dyn Write + Send) {
        if self.out_is_terminal {
            self.screen.close();
        }
        self.out.as_mut()
    }

    /// A line of data.
    ///
    /// # Errors
    /// `Unavailable` if it cannot be written; see [`is_broken_pipe`].
    pub fn line(&mut self, text: &str) -> Result<()> {
        self.write_line(&one_line(text, escape_for_people))
    }

    /// A JSON object as a line of data.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn object(&mut self, value: &serde_json::Value) -> Result<()> {
        self.write_line(&one_line(&value.to_string(), escape_for_json))
    }

    fn write_line(&mut self, line: &str) -> Result<()> {
        let out = &mut self.out;
        let line = format!("{line}\n"); // In one piece: a node drops whole ones.
        let written = match self.out_is_terminal {
            true => self
                .screen
                .aside(|| out.write_all(line.as_bytes()).and_then(|()| out.flush())),
            false => out.write_all(line.as_bytes()),
        };
        written.map_err(write_error)
    }

    /// A line for the person who waits, without the secrets of URLs that it may repeat. That it
    /// may be lost is no error.
    pub fn note(&mut self, text: &str) {
        self.screen
            .line(&one_line(&redacted(text), escape_for_people));
    }

    /// Everything written so far leaves.
    ///
    /// # Errors
    /// As [`Self::line`].
    pub fn flush(&mut self) -> Result<()> {
        self.screen.clear();
        self.out.flush().map_err(write_error)
    }
}

impl Progress for Output {
    fn note(&mut self, text: &str) {
        Self::note(self, text);
    }

    fn wants_total(&self) -> bool {
        self.screen.draws()
    }

    fn update(&mut self, what: &str, done: u64, total: Option<u64>) {
        self.screen.update(what, done, total);
    }

    fn detail(&mut self, what: &str, text: &str) {
        if self.screen.draws() {
            let text = one_line(&redacted(text), escape_for_people).into_owned();
            self.screen.detail(what, &text);
        }
    }

    fn end(&mut self, what: &str) {
        self.screen.end(what);
    }
}

/// `text` with all that a terminal would obey escaped.
fn one_line(text: &str, escape: fn(char, &mut String)) -> Cow<'_, str> {
    let is_obeyed = |c: char| c.is_control() || reorders(c);
    if !text.contains(is_obeyed) {
        return Cow::Borrowed(text);
    }
    let mut line = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match is_obeyed(c) {
            true => escape(c, &mut line),
            false => line.push(c),
        }
    }
    Cow::Owned(line)
}

fn escape_for_people(c: char, line: &mut String) {
    line.extend(c.escape_default());
}

/// In JSON such characters occur inside strings alone. All of them are of the basic plane.
fn escape_for_json(c: char, line: &mut String) {
    line.push_str(&format!("\\u{:04x}", u32::from(c)));
}

/// Why data cannot be written. A type of its own: another pipe that breaks is no success.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
struct Unwritten(io::Error);

/// Whether the reader of standard output has gone, which is success.
#[must_use]
pub fn is_broken_pipe(error: &Error) -> bool {
    std::error::Error::source(error)
        .and_then(|source| source.downcast_ref::<Unwritten>())
        .is_some_and(|unwritten| unwritten.0.kind() == io::ErrorKind::BrokenPipe)
}

/// An error of writing data.
pub fn write_error(error: io::Error) -> Error {
    let (kind, what) = (ErrorKind::Unavailable, "cannot write the output");
    Error::with(kind, what, Unwritten(error))
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
pub(crate) mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::{Output, bytes, shown};
    use crate::cli::screen::Screen;

    /// A stream whose bytes a test looks at.
    #[derive(Clone, Default)]
    pub(crate) struct Shared(pub(crate) Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        pub(crate) fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }
    }

    /// Whatever a command forgot to escape: there is no other way out for a line.
    #[test]
    fn no_line_drives_a_terminal_whoever_says_it() {
        let (data, err) = (Shared::default(), Shared::default());
        let screen = Screen::new(Box::new(err.clone()), None);
        let mut out = Output::new(false, Box::new(data.clone()), false, screen);
        let name = "a\x1b[2Jb\r\nc\u{9b}31m\u{202e}d";
        out.line(name).unwrap();
        out.note(name);
        out.object(&serde_json::json!({ "name": name })).unwrap();
        for text in [data.text(), err.text()] {
            let obeyed = |c: char| c != '\n' && (c.is_control() || super::reorders(c));
            assert!(!text.contains(obeyed), "{text:?}");
        }
        assert_eq!(
            (data.text().lines().count(), err.text().lines().count()),
            (2, 1)
        );
        let text = data.text();
        let object: serde_json::Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        assert_eq!(object["name"], name);
    }

    #[test]
    fn a_pipe_that_breaks_elsewhere_is_no_success() {
        use super::{is_broken_pipe, write_error};
        use crate::error::{Context, ErrorKind};
        let broken = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        assert!(is_broken_pipe(&write_error(broken())));
        let elsewhere: Result<(), _> = Err(broken());
        let error = elsewhere.context(ErrorKind::Unavailable, || "the node went away".into());
        assert!(!is_broken_pipe(&error.unwrap_err()));
    }

    #[test]
    fn bars_step_aside_for_lines_of_both_streams() {
        use crate::ingest::Progress;
        let terminal = Shared::default();
        let screen = Screen::new(Box::new(terminal.clone()), Some(Arc::new(|| 100)));
        let mut out = Output::new(false, Box::new(terminal.clone()), true, screen);
        out.update("hashing", 1 << 20, Some(4 << 20));
        assert!(terminal.text().contains("hashing ["), "{}", terminal.text());
        assert!(terminal.text().contains("1.00 MiB of 4.00 MiB"));
        out.line("first").unwrap();
        out.note("second");
        out.flush().unwrap();
        let text = terminal.text();
        for line in ["first\n", "second\n"] {
            let at = text.find(line).unwrap();
            assert!(text[..at].ends_with("\x1b[2K"), "{text:?}");
        }
        out.data().write_all(b"bytes").unwrap();
        out.update("hashing", 2 << 20, Some(4 << 20));
        assert!(terminal.text().ends_with("bytes"), "{:?}", terminal.text());
    }

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
