//! Where a command talks to a person: progress is drawn there, and steps aside for every line.
//!
//! In       a writer, which is standard error or a client's (`cli::control`); lines; progress.
//! Out      whole lines, never behind a bar; bars on a terminal, one for each name.
//! Limits   drawn at most [`DRAWINGS_PER_SECOND`] times; at most [`BARS_MAX`] bars.
//! Not here what is said and to whom (`output`).

use std::io::{self, BufWriter, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle, TermLike};

const DRAWINGS_PER_SECOND: u8 = 5;
/// More lines than that leave no room for anything else on a small terminal.
const BARS_MAX: usize = 8;
/// Columns of a terminal that does not tell.
const COLUMNS: u16 = 80;

const WITH_TOTAL: &str = "{prefix} [{bar:20}] {binary_bytes} of {binary_total_bytes}, \
                          {binary_bytes_per_sec}, {eta} left{msg}";
const WITHOUT_TOTAL: &str = "{prefix} {binary_bytes}, {binary_bytes_per_sec}{msg}";

/// How many columns a terminal has now; 0: it does not tell.
pub type Columns = Arc<dyn Fn() -> u16 + Send + Sync>;

type Writer = Arc<Mutex<BufWriter<Box<dyn Write + Send>>>>;

/// Clones share the terminal.
#[derive(Clone)]
pub struct Screen {
    err: Writer,
    bars: Option<Arc<Bars>>,
}

struct Bars {
    columns: Columns,
    all: MultiProgress,
    named: Mutex<Vec<Bar>>,
    /// Data goes to the same terminal: nothing is drawn any more.
    closed: AtomicBool,
}

struct Bar {
    name: String,
    total: Option<u64>,
    drawn: ProgressBar,
}

impl std::fmt::Debug for Screen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Screen")
            .field("draws", &self.draws())
            .finish_non_exhaustive()
    }
}

impl Screen {
    /// A screen on `err`; `columns` if it is a terminal, without it nothing is drawn.
    #[must_use]
    pub fn new(err: Box<dyn Write + Send>, columns: Option<Columns>) -> Self {
        let err: Writer = Arc::new(Mutex::new(BufWriter::new(err)));
        let bars = columns.map(|columns| {
            let terminal = Terminal {
                err: Arc::clone(&err),
                columns: Arc::clone(&columns),
            };
            let target =
                ProgressDrawTarget::term_like_with_hz(Box::new(terminal), DRAWINGS_PER_SECOND);
            Arc::new(Bars {
                columns,
                all: MultiProgress::with_draw_target(target),
                named: Mutex::new(Vec::new()),
                closed: AtomicBool::new(false),
            })
        });
        Self { err, bars }
    }

    /// Standard error of this process, where `err` writes.
    #[must_use]
    pub fn of_process(err: Box<dyn Write + Send>) -> Self {
        use std::io::IsTerminal;
        let columns = || {
            let size = rustix::termios::tcgetwinsize(io::stderr());
            size.map_or(0, |size| size.ws_col)
        };
        let is_terminal = io::stderr().is_terminal();
        let columns = is_terminal.then(|| Arc::new(columns) as Columns);
        Self::new(err, columns)
    }

    /// Whether progress is drawn.
    #[must_use]
    pub fn draws(&self) -> bool {
        let open = |bars: &Arc<Bars>| !bars.closed.load(Ordering::Relaxed);
        self.bars.as_ref().is_some_and(open)
    }

    /// Columns of the terminal; 0: there is none, or it does not tell.
    #[must_use]
    pub fn columns(&self) -> u16 {
        self.bars.as_ref().map_or(0, |bars| (bars.columns)())
    }

    /// Does `act`, which writes to the terminal, while nothing is drawn there.
    pub fn aside<T>(&self, act: impl FnOnce() -> T) -> T {
        match &self.bars {
            Some(bars) => bars.all.suspend(act),
            None => act(),
        }
    }

    /// Writes a line. That it may be lost is no error: there is nobody else to tell.
    pub fn line(&self, text: &str) {
        self.aside(|| {
            let mut err = hold(&self.err);
            // In one piece: a node drops whole ones.
            let line = format!("{text}\n");
            let _ = err.write_all(line.as_bytes()).and_then(|()| err.flush());
        });
    }

    /// `done` bytes of `total` have gone through `name`. The first time makes a bar.
    pub fn update(&self, name: &str, done: u64, total: Option<u64>) {
        self.with_bar(name, |bar| {
            let total = total.map(|total| total.max(done));
            if bar.total.is_some() != total.is_some() {
                bar.drawn.set_style(style(total.is_some()));
            }
            if bar.total != total {
                bar.total = total;
                bar.drawn.set_length(total.unwrap_or(0));
            }
            if done < bar.drawn.position() {
                // Another round under the same name.
                bar.drawn.reset();
            }
            bar.drawn.set_position(done);
        });
    }

    /// Words behind the numbers of `name`.
    pub fn detail(&self, name: &str, text: &str) {
        self.with_bar(name, |bar| bar.drawn.set_message(format!(", {text}")));
    }

    /// Takes the bar of `name` away.
    pub fn end(&self, name: &str) {
        let Some(bars) = &self.bars else { return };
        let mut named = hold(&bars.named);
        if let Some(at) = named.iter().position(|bar| bar.name == name) {
            named.swap_remove(at).drawn.finish_and_clear();
        }
    }

    /// Takes all bars away.
    pub fn clear(&self) {
        let Some(bars) = &self.bars else { return };
        for bar in hold(&bars.named).drain(..) {
            bar.drawn.finish_and_clear();
        }
    }

    /// Takes all bars away, for good.
    pub fn close(&self) {
        if let Some(bars) = &self.bars {
            bars.closed.store(true, Ordering::Relaxed);
        }
        self.clear();
    }

    fn with_bar(&self, name: &str, act: impl FnOnce(&mut Bar)) {
        let Some(bars) = self.bars.as_ref().filter(|_| self.draws()) else {
            return;
        };
        let mut named = hold(&bars.named);
        if let Some(bar) = named.iter_mut().find(|bar| bar.name == name) {
            return act(bar);
        }
        if named.len() >= BARS_MAX {
            return;
        }
        let drawn = ProgressBar::no_length().with_prefix(name.to_owned());
        drawn.set_style(style(false));
        let mut bar = Bar {
            name: name.to_owned(),
            total: None,
            drawn: bars.all.add(drawn),
        };
        act(&mut bar);
        named.push(bar);
    }
}

/// Raw bytes for the person, in whole lines: what a log writes.
impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.aside(|| {
            let mut err = hold(&self.err);
            err.write_all(bytes).and_then(|()| err.flush())
        })?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        hold(&self.err).flush()
    }
}

fn style(has_total: bool) -> ProgressStyle {
    let template = if has_total { WITH_TOTAL } else { WITHOUT_TOTAL };
    // Both are known to be sound: a test draws them.
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// What bars are drawn on.
struct Terminal {
    err: Writer,
    columns: Columns,
}

impl std::fmt::Debug for Terminal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Terminal").finish_non_exhaustive()
    }
}

impl Terminal {
    fn write(&self, text: std::fmt::Arguments<'_>) -> io::Result<()> {
        hold(&self.err).write_fmt(text)
    }

    fn move_cursor(&self, n: usize, direction: char) -> io::Result<()> {
        match n {
            0 => Ok(()),
            n => self.write(format_args!("\x1b[{n}{direction}")),
        }
    }
}

impl TermLike for Terminal {
    fn width(&self) -> u16 {
        match (self.columns)() {
            0 => COLUMNS,
            columns => columns,
        }
    }

    fn move_cursor_up(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'A')
    }

    fn move_cursor_down(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'B')
    }

    fn move_cursor_right(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'C')
    }

    fn move_cursor_left(&self, n: usize) -> io::Result<()> {
        self.move_cursor(n, 'D')
    }

    fn write_line(&self, text: &str) -> io::Result<()> {
        self.write(format_args!("{text}\r\n"))
    }

    fn write_str(&self, text: &str) -> io::Result<()> {
        self.write(format_args!("{text}"))
    }

    fn clear_line(&self) -> io::Result<()> {
        self.write(format_args!("\r\x1b[2K"))
    }

    fn flush(&self) -> io::Result<()> {
        hold(&self.err).flush()
    }
}

fn hold<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
