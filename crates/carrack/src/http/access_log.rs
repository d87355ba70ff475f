//! The access log: one line a request, written by a thread of its own. Off unless asked for.
//!
//! In       what a request said and how it was answered.
//! Out      lines of the combined log format with the time taken, or one JSON object a line.
//! Limits   `Limits::access_log_lines_max` lines wait; beyond it lines are dropped and counted, so
//!          that a slow disk never slows an answer. A field is at most [`FIELD_CHARS_MAX`] long.
//! Not here what happens inside the node (`tracing`).

use std::io::{BufWriter, Write};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use http::header::{HeaderMap, HeaderName, REFERER, USER_AGENT};
use http::{Method, Uri, Version};
use serde_json::json;

use crate::clock;
use crate::error::{Context, ErrorKind, Result};
use crate::source::url::is_secret;

/// Characters of one field that are kept.
pub const FIELD_CHARS_MAX: usize = 1024;

/// How long the end of the node waits for the last lines.
pub const FINISH_TIME_MAX: Duration = Duration::from_secs(1);
/// Dropped lines are told at most so often.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// How lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// `address - - [time] "request" status bytes "referer" "agent" seconds`.
    Combined,
    /// One object a line.
    Json,
}

/// Where entries go. Clones share it.
#[derive(Debug, Clone)]
pub struct AccessLog {
    lines: SyncSender<String>,
    dropped: Arc<AtomicU64>,
    format: LogFormat,
}

/// The thread that writes. It ends when the last [`AccessLog`] is gone, or hangs alone.
#[derive(Debug)]
pub struct LogWriter {
    outcome: Receiver<std::io::Result<()>>,
    dropped: Arc<AtomicU64>,
}

/// One request, until it is answered.
#[derive(Debug)]
pub struct Entry {
    log: AccessLog,
    started: Instant,
    address: IpAddr,
    method: Method,
    uri: Uri,
    version: Version,
    referer: String,
    agent: String,
    /// The status that was answered; 499: the client left before.
    pub status: u16,
}

impl AccessLog {
    /// Starts the thread that writes to `output`.
    ///
    /// # Errors
    /// `Unavailable`: no thread can be started.
    pub fn start(
        output: Box<dyn Write + Send>,
        format: LogFormat,
        lines_max: usize,
    ) -> Result<(Self, LogWriter)> {
        let (lines, waiting) = sync_channel(lines_max);
        let (ended, outcome) = sync_channel(1);
        let dropped = Arc::<AtomicU64>::default();
        let counted = Arc::clone(&dropped);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || {
                let outcome = write_lines(output, &waiting, &counted);
                if let Err(error) = &outcome {
                    tracing::error!(%error, "the access log cannot be written, and ends");
                }
                let _ = ended.send(outcome); // Nobody may wait any more.
            })
            .context(ErrorKind::Unavailable, || {
                "cannot start the access log".to_owned()
            })?;
        let log = Self {
            lines,
            dropped: Arc::clone(&dropped),
            format,
        };
        Ok((log, LogWriter { outcome, dropped }))
    }

    /// An entry for a request that has just come.
    #[must_use]
    pub fn entry(
        &self,
        address: IpAddr,
        method: &Method,
        uri: &Uri,
        version: Version,
        headers: &HeaderMap,
    ) -> Box<Entry> {
        let field = |name: HeaderName| {
            headers.get(name).map_or_else(String::new, |value| {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            })
        };
        Box::new(Entry {
            log: self.clone(),
            started: Instant::now(),
            address,
            method: method.clone(),
            uri: uri.clone(),
            version,
            referer: field(REFERER),
            agent: field(USER_AGENT),
            status: 499,
        })
    }
}

impl LogWriter {
    /// Waits until every line is written, [`FINISH_TIME_MAX`] at most. Blocks; call it after the
    /// last [`AccessLog`] is dropped.
    ///
    /// # Errors
    /// `Unavailable`: the log could not be written.
    pub fn finish(self) -> Result<()> {
        let outcome = match self.outcome.recv_timeout(FINISH_TIME_MAX) {
            Ok(outcome) => outcome,
            Err(RecvTimeoutError::Timeout) => {
                let what = "its disk or its reader takes nothing";
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, what))
            }
            Err(RecvTimeoutError::Disconnected) => {
                let what = "the thread of the access log panicked";
                Err(std::io::Error::other(what))
            }
        };
        if outcome.is_err() {
            tell_dropped(self.dropped.swap(0, Relaxed));
        }
        outcome.context(ErrorKind::Unavailable, || {
            "cannot write the access log".to_owned()
        })
    }
}

/// Writes lines as they come, and flushes when none waits. What was dropped is told then.
fn write_lines(
    output: Box<dyn Write + Send>,
    lines: &Receiver<String>,
    dropped: &AtomicU64,
) -> std::io::Result<()> {
    let mut output = BufWriter::new(output);
    let mut told: Option<Instant> = None;
    while let Ok(first) = lines.recv() {
        output.write_all(first.as_bytes())?;
        while let Ok(line) = lines.try_recv() {
            output.write_all(line.as_bytes())?;
        }
        output.flush()?;
        if dropped.load(Relaxed) > 0 && told.is_none_or(|told| told.elapsed() >= TELL_INTERVAL) {
            tell_dropped(dropped.swap(0, Relaxed));
            told = Some(Instant::now());
        }
    }
    tell_dropped(dropped.swap(0, Relaxed));
    output.flush()
}

fn tell_dropped(n_dropped: u64) {
    if n_dropped > 0 {
        let why = "its disk or its reader was too slow";
        tracing::warn!(n_dropped, "lines of the access log were dropped: {why}");
    }
}

impl Entry {
    /// The request is over: `bytes` of its body were handed to the connection.
    pub fn finish(self: Box<Self>, bytes: u64) {
        let took = self.started.elapsed();
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        let line = match self.log.format {
            LogFormat::Combined => self.combined(now, took, bytes),
            LogFormat::Json => self.json(now, took, bytes),
        };
        if self.log.lines.try_send(line).is_err() {
            self.log.dropped.fetch_add(1, Relaxed);
        }
    }

    fn combined(&self, now: Duration, took: Duration, bytes: u64) -> String {
        let or_dash = |text: &str| match text {
            "" => "-".to_owned(),
            text => quotable(text),
        };
        format!(
            "{} - - [{}] \"{} {} {:?}\" {} {} \"{}\" \"{}\" {}.{:06}\n",
            self.address,
            common_log_time(now),
            self.method,
            quotable(&without_secrets(&self.uri.to_string())),
            self.version,
            self.status,
            bytes,
            or_dash(&without_secrets(&self.referer)),
            or_dash(&self.agent),
            took.as_secs(),
            took.subsec_micros(),
        )
    }

    fn json(&self, now: Duration, took: Duration, bytes: u64) -> String {
        let short = |text: &str| text.chars().take(FIELD_CHARS_MAX).collect::<String>();
        let object = json!({
            "time_ms": u64::try_from(now.as_millis()).unwrap_or(u64::MAX),
            "address": self.address.to_string(),
            "method": self.method.as_str(),
            "uri": short(&without_secrets(&self.uri.to_string())),
            "version": format!("{:?}", self.version),
            "status": self.status,
            "bytes": bytes,
            "referer": short(&without_secrets(&self.referer)),
            "agent": short(&self.agent),
            "took_us": u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        });
        format!("{object}\n")
    }
}

/// A URL without a login and without a query that is one.
fn without_secrets(url: &str) -> String {
    let (url, query) = match url.split_once('?') {
        Some((url, query)) if is_secret(query) => (url, "?***"),
        _ => (url, ""),
    };
    let login = url.split_once("://").and_then(|(scheme, rest)| {
        let authority = rest.split('/').next().unwrap_or(rest);
        let (_, host) = rest.split_at(authority.rfind('@')?);
        Some(format!("{scheme}://***{host}"))
    });
    format!("{}{query}", login.as_deref().unwrap_or(url))
}

/// `text` for between quotes on one line of a terminal.
fn quotable(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for character in text.chars().take(FIELD_CHARS_MAX) {
        match character {
            '"' | '\\' => safe.extend(['\\', character]),
            ' '..='~' => safe.push(character),
            _ => safe.extend(character.escape_default()),
        }
    }
    safe
}

/// `20/Nov/2026:22:08:01 +0000`.
fn common_log_time(since_epoch: Duration) -> String {
    let seconds = since_epoch.as_secs();
    let days = i64::try_from(seconds / 86400).unwrap_or(i64::MAX);
    let (year, month, day) = clock::civil(days);
    let month = usize::try_from(month - 1).ok();
    let month = month.and_then(|month| clock::MONTHS.get(month));
    let month = month.copied().unwrap_or("???");
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{day:02}/{month}/{year:04}:{hour:02}:{minute:02}:{second:02} +0000")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::output::tests::Shared;

    fn lines(format: LogFormat) -> String {
        let output = Shared::default();
        let (log, writer) = AccessLog::start(Box::new(output.clone()), format, 8).unwrap();
        let mut headers = HeaderMap::new();
        headers.insert(
            USER_AGENT,
            http::HeaderValue::from_bytes(b"a\"b\\\xff").unwrap(),
        );
        let uri = "/ipfs/x?format=raw".parse().unwrap();
        let address = IpAddr::from([127, 0, 0, 1]);
        let mut entry = log.entry(address, &Method::GET, &uri, Version::HTTP_11, &headers);
        entry.status = 200;
        entry.finish(31);
        drop(log);
        writer.finish().unwrap();
        output.text()
    }

    #[test]
    fn a_line_cannot_be_forged() {
        let line = lines(LogFormat::Combined);
        assert!(line.starts_with("127.0.0.1 - - ["), "{line}");
        let expected =
            "\"GET /ipfs/x?format=raw HTTP/1.1\" 200 31 \"-\" \"a\\\"b\\\\\\u{fffd}\" 0.0";
        assert!(line.contains(expected), "{line}");
        assert_eq!(line.matches('\n').count(), 1);
    }

    #[test]
    fn json_lines_are_objects() {
        let object: serde_json::Value = serde_json::from_str(&lines(LogFormat::Json)).unwrap();
        assert_eq!(
            (&object["status"], &object["bytes"]),
            (&json!(200), &json!(31))
        );
        assert_eq!(object["agent"], "a\"b\\\u{fffd}");
    }

    #[test]
    fn the_calendar_knows_leap_years() {
        let table = [
            (0, "01/Jan/1970:00:00:00 +0000"),
            (951_782_399, "28/Feb/2000:23:59:59 +0000"),
            (951_782_400, "29/Feb/2000:00:00:00 +0000"),
            (1_709_251_199, "29/Feb/2024:23:59:59 +0000"),
            (1_709_251_200, "01/Mar/2024:00:00:00 +0000"),
            (4_107_542_400, "01/Mar/2100:00:00:00 +0000"),
            (1_795_212_481, "20/Nov/2026:22:08:01 +0000"),
        ];
        for (seconds, expected) in table {
            assert_eq!(common_log_time(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_full_queue_drops_lines_and_counts_them() {
        let (lines, _waiting) = sync_channel(1);
        let log = AccessLog {
            lines,
            dropped: Arc::default(),
            format: LogFormat::Combined,
        };
        for _ in 0..3 {
            let address = IpAddr::from([127, 0, 0, 1]);
            let uri = "/".parse().unwrap();
            let headers = HeaderMap::new();
            log.entry(address, &Method::GET, &uri, Version::HTTP_11, &headers)
                .finish(0);
        }
        assert_eq!(log.dropped.load(Relaxed), 2);
    }
}
