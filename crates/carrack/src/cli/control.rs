//! Commands while `carrack serve` runs: the store has one owner, so the owner carries them out.
//!
//! In       a command line and a working directory, over a socket in the data directory that only
//!          its owner can reach.
//! Out      the command's two output streams and its exit code.
//! Limits   frames of at most [`FRAME_LEN_MAX`] bytes, the request of [`REQUEST_LEN_MAX`], which
//!          comes within [`REQUEST_TIME_MAX`]; [`CLIENTS_MAX`] clients at once.
//! Not here what commands do (`cli::commands`).
//!
//! A frame is `kind u8 | length u32 little-endian | bytes`. The client sends one request, then its
//! standard input if the command reads it; a client that goes away stops its command.

use std::ffi::OsString;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::fs::Mode;
use serde::{Deserialize, Serialize};

use crate::cli::output::Output;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::config::Environment;

#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;

/// Name of the socket in the data directory.
pub const SOCKET_NAME: &str = "control.sock";
/// Longest frame, in bytes.
pub const FRAME_LEN_MAX: usize = 1 << 20;
/// Longest request, in bytes: any command line that the kernel takes, in JSON.
const REQUEST_LEN_MAX: usize = 16 << 20;
/// Time in which a client says what it wants.
const REQUEST_TIME_MAX: Duration = Duration::from_secs(10);
/// Commands carried out at once.
pub const CLIENTS_MAX: usize = 16;

const REQUEST: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const EXIT: u8 = 3;
const STDIN: u8 = 4;

/// A command to carry out.
#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    /// Arguments after the program's name, as bytes: paths need not be UTF-8.
    pub args: Vec<Vec<u8>>,
    /// Directory that relative paths start from.
    pub directory: Vec<u8>,
    /// The client's standard error is a terminal.
    pub terminal: bool,
    /// So is its standard output.
    #[serde(default)]
    pub out_is_terminal: bool,
    /// Columns of the terminal; 0: not known.
    #[serde(default)]
    pub columns: u16,
    /// The client's variables that sources may look at.
    #[serde(default)]
    pub environment: Variables,
}

/// Names and values; never shown, for values may be secrets.
#[derive(Default, Clone, Serialize, Deserialize)]
pub struct Variables(Vec<(String, String)>);

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Variables(..)")
    }
}

impl Variables {
    /// Those of `environment`.
    #[must_use]
    pub fn of(environment: &Environment) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self(environment.iter().map(owned).collect())
    }
}

/// Where the socket of a data directory is, short enough for a socket address however long the
/// directory's path is. The file keeps the directory open while the path is used.
///
/// # Errors
/// Those of opening the directory.
pub fn socket_path(data_dir: &Path) -> io::Result<(PathBuf, std::fs::File)> {
    let directory = std::fs::File::open(data_dir)?;
    let path = format!("/proc/self/fd/{}/{SOCKET_NAME}", directory.as_raw_fd());
    Ok((PathBuf::from(path), directory))
}

/// Removes a socket that nobody listens on any more; a file of another kind stays.
pub fn remove_socket(path: &Path) {
    use std::os::unix::fs::FileTypeExt;
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        let _ = std::fs::remove_file(path);
    }
}

/// What a client may tell the process that answers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Trust {
    /// Everything.
    Full,
    /// The command, and no variables: they may hold keys.
    WithoutSecrets,
}

/// How far a client trusts whoever listens on the socket in `directory`.
///
/// # Errors
/// `Unavailable` if that is another user.
fn trust(stream: &UnixStream, directory: &std::fs::File) -> Result<Trust> {
    use std::os::unix::fs::MetadataExt;
    let cannot = || "cannot tell who answers".to_owned();
    let listener = peer(stream).context(ErrorKind::Unavailable, cannot)?;
    let owner = directory
        .metadata()
        .context(ErrorKind::Unavailable, cannot)?;
    let own = rustix::process::geteuid().as_raw();
    trust_between(own, listener, owner.uid()).ok_or_else(|| {
        let what = format!(
            "whoever answers for this data directory is user {listener}, who may not have what is \
             yours: stop that process, or run this as that user"
        );
        Error::new(ErrorKind::Unavailable, what)
    })
}

/// A client hands its keys to its own user alone. The superuser may use a store of whoever owns its
/// directory, but does not give keys away.
const fn trust_between(own: u32, listener: u32, owner: u32) -> Option<Trust> {
    if listener == own {
        Some(Trust::Full)
    } else if own == 0 && listener == owner {
        Some(Trust::WithoutSecrets)
    } else {
        None
    }
}

/// The user at the other end.
fn peer(stream: &UnixStream) -> io::Result<u32> {
    Ok(rustix::net::sockopt::socket_peercred(stream)?.uid.as_raw())
}

/// Makes the socket of this process, which nobody else can reach at any moment.
///
/// # Errors
/// Those of `bind`.
pub fn bind(path: &Path) -> io::Result<UnixListener> {
    // Of the whole process for a moment: what others make then is their owner's alone, too.
    let mask = rustix::process::umask(Mode::from_bits_retain(0o177));
    let bound = UnixListener::bind(path);
    rustix::process::umask(mask);
    bound
}

/// Lets the process that owns `data_dir` carry out this command line.
///
/// # Errors
/// `Busy` if the owner takes no commands; `Unavailable` if the connection breaks.
pub fn forward(
    data_dir: &Path,
    args: &[OsString],
    environment: &Environment,
    reads_stdin: bool,
    out: &Output,
) -> Result<u8> {
    let busy = || "the store is in use by another carrack that takes no commands".to_owned();
    let (path, directory_held) = socket_path(data_dir).context(ErrorKind::Busy, busy)?;
    let mut stream = UnixStream::connect(path).context(ErrorKind::Busy, busy)?;
    let environment = match trust(&stream, &directory_held)? {
        Trust::Full => Variables::of(environment),
        Trust::WithoutSecrets => Variables::default(),
    };
    let broken = || "the running carrack went away".to_owned();
    let directory =
        std::env::current_dir().context(ErrorKind::Invalid, || "no directory".into())?;
    let request = Request {
        args: args.iter().map(|arg| arg.as_bytes().to_vec()).collect(),
        directory: directory.into_os_string().into_vec(),
        terminal: out.screen().draws(),
        out_is_terminal: out.out_is_terminal(),
        columns: out.screen().columns(),
        environment,
    };
    let request = serde_json::to_vec(&request).context(ErrorKind::Internal, broken)?;
    // Not taken, and so not carried out.
    write_frame(&mut stream, REQUEST, &request).context(ErrorKind::Busy, || {
        format!("the running carrack takes no more than {CLIENTS_MAX} commands at once")
    })?;
    if reads_stdin {
        let mut stream = stream.try_clone().context(ErrorKind::Unavailable, broken)?;
        // Ends with the process, or when the other side has enough.
        let send = move || send_input(&mut io::stdin().lock(), &mut stream);
        let sending = std::thread::Builder::new().spawn(send);
        // The other side sees input that breaks off.
        drop(sending.context(ErrorKind::Unavailable, no_thread)?);
    }
    loop {
        let frame = read_frame(&mut stream, FRAME_LEN_MAX);
        let (kind, bytes) = frame.context(ErrorKind::Unavailable, broken)?;
        let written = match kind {
            STDOUT => io::stdout()
                .write_all(&bytes)
                .and_then(|()| io::stdout().flush()),
            STDERR => io::stderr().write_all(&bytes),
            EXIT => return Ok(bytes.first().copied().unwrap_or(70)),
            _ => Ok(()),
        };
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(0),
            result => result.map_err(super::output::write_error)?,
        }
    }
}

fn no_thread() -> String {
    "cannot start a thread".to_owned()
}

fn send_input(input: &mut dyn Read, stream: &mut UnixStream) {
    let mut chunk = vec![0; 256 << 10];
    loop {
        let n = match input.read(&mut chunk) {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => {
                // Input that breaks off must not look like input that ends.
                let _ = stream.shutdown(std::net::Shutdown::Write);
                return;
            }
        };
        let sent = write_frame(stream, STDIN, chunk.get(..n).unwrap_or_default());
        if n == 0 || sent.is_err() {
            return;
        }
    }
}

/// A client of this process.
#[derive(Debug)]
pub struct Client {
    /// What it asks for.
    pub request: Request,
    /// Its standard input.
    pub stdin: ClientInput,
    /// Set when it went away.
    pub gone: Arc<AtomicBool>,
    stream: Arc<Mutex<UnixStream>>,
}

impl Client {
    /// Reads the request of a new connection.
    ///
    /// # Errors
    /// `Invalid` if it is none; `Unavailable` if no thread can be started for it.
    pub fn accept(stream: UnixStream) -> Result<Self> {
        let bad = || "not a carrack client".to_owned();
        let client = peer(&stream).context(ErrorKind::Invalid, bad)?;
        let own = rustix::process::geteuid().as_raw();
        if client != own && client != 0 {
            let what = format!("user {client} may not use the store of user {own}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut reader = stream.try_clone().context(ErrorKind::Invalid, bad)?;
        let timeout = |time| {
            stream
                .set_read_timeout(time)
                .context(ErrorKind::Invalid, bad)
        };
        timeout(Some(REQUEST_TIME_MAX))?;
        let frame = read_frame(&mut reader, REQUEST_LEN_MAX);
        let (kind, bytes) = frame.context(ErrorKind::Invalid, bad)?;
        timeout(None)?;
        if kind != REQUEST {
            return Err(Error::new(ErrorKind::Invalid, bad()));
        }
        let request = serde_json::from_slice(&bytes).context(ErrorKind::Invalid, bad)?;
        let gone = Arc::new(AtomicBool::new(false));
        let (sender, frames) = sync_channel(4);
        let left = Arc::clone(&gone);
        // Ends when the connection does, which `finish` or the client brings about.
        let listening = std::thread::Builder::new().spawn(move || {
            while let Ok((kind, bytes)) = read_frame(&mut reader, FRAME_LEN_MAX) {
                if kind == STDIN && sender.send(bytes).is_err() {
                    return;
                }
            }
            left.store(true, Ordering::Relaxed);
        });
        drop(listening.context(ErrorKind::Unavailable, no_thread)?);
        let stdin = ClientInput {
            frames,
            current: Vec::new(),
            at: 0,
            ended: false,
        };
        Ok(Self {
            request,
            stdin,
            gone,
            stream: Arc::new(Mutex::new(stream)),
        })
    }

    /// The client's standard output.
    #[must_use]
    pub fn stdout(&self) -> ClientOutput {
        ClientOutput {
            kind: STDOUT,
            stream: Arc::clone(&self.stream),
        }
    }

    /// The client's standard error.
    #[must_use]
    pub fn stderr(&self) -> ClientOutput {
        ClientOutput {
            kind: STDERR,
            stream: Arc::clone(&self.stream),
        }
    }

    /// Tells the client how it ended.
    pub fn finish(self, code: u8) {
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = write_frame(&mut stream, EXIT, &[code]); // It may have gone.
    }

    /// The request's arguments.
    #[must_use]
    pub fn args(&self) -> Vec<OsString> {
        self.request
            .args
            .iter()
            .map(|arg| OsString::from_vec(arg.clone()))
            .collect()
    }

    /// The client's variables that sources may look at.
    #[must_use]
    pub fn environment(&self) -> Environment {
        Environment::new(self.request.environment.0.iter().cloned())
    }

    /// The client's working directory.
    #[must_use]
    pub fn directory(&self) -> PathBuf {
        PathBuf::from(OsString::from_vec(self.request.directory.clone()))
    }
}

impl Drop for Client {
    /// Ends the connection, however the command ended: a panic must not let the client wait.
    fn drop(&mut self) {
        let stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = stream.shutdown(std::net::Shutdown::Both);
    }
}

/// Standard input of a client.
#[derive(Debug)]
pub struct ClientInput {
    frames: Receiver<Vec<u8>>,
    current: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Read for ClientInput {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if self.at == self.current.len() && !self.ended {
            self.at = 0;
            // A connection that broke is not the end of the input.
            self.current = self
                .frames
                .recv()
                .map_err(|_| io::ErrorKind::ConnectionReset)?;
            self.ended = self.current.is_empty();
        }
        let rest = self.current.get(self.at..).unwrap_or_default();
        let n = rest.len().min(buf.len());
        for (to, from) in buf.iter_mut().zip(rest) {
            *to = *from;
        }
        self.at += n;
        Ok(n)
    }
}

/// One of a client's output streams.
#[derive(Debug)]
pub struct ClientOutput {
    kind: u8,
    stream: Arc<Mutex<UnixStream>>,
}

impl Write for ClientOutput {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let part = bytes
            .get(..bytes.len().min(FRAME_LEN_MAX))
            .unwrap_or_default();
        let mut stream = self.stream.lock().unwrap_or_else(PoisonError::into_inner);
        write_frame(&mut stream, self.kind, part)?;
        Ok(part.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_frame(stream: &mut UnixStream, kind: u8, bytes: &[u8]) -> io::Result<()> {
    let len = u32::try_from(bytes.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(kind);
    frame.extend_from_slice(&len.to_le_bytes());
    frame.extend_from_slice(bytes);
    stream.write_all(&frame)
}

fn read_frame(stream: &mut impl Read, len_max: usize) -> io::Result<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    stream.read_exact(&mut head)?;
    let [kind, len @ ..] = head;
    let len = u32::from_le_bytes(len) as usize;
    if len > len_max {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes)?;
    Ok((kind, bytes))
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    use super::{
        Client, FRAME_LEN_MAX, REQUEST, REQUEST_LEN_MAX, Request, STDIN, Variables, read_frame,
        send_input, write_frame,
    };
    use crate::source::config::Environment;

    fn request() -> Vec<u8> {
        let args = vec![b"ls".to_vec(), b"\xff".to_vec()];
        serde_json::to_vec(&Request {
            args,
            directory: b"/".to_vec(),
            terminal: false,
            out_is_terminal: false,
            columns: 0,
            environment: Variables::default(),
        })
        .unwrap()
    }

    #[test]
    fn both_streams_and_the_exit_code_arrive_in_order() {
        let (mut near, far) = UnixStream::pair().unwrap();
        write_frame(&mut near, REQUEST, &request()).unwrap();
        write_frame(&mut near, STDIN, b"in").unwrap();
        write_frame(&mut near, STDIN, b"").unwrap();
        let mut client = Client::accept(far).unwrap();
        let mut input = String::new();
        client.stdin.read_to_string(&mut input).unwrap();
        assert_eq!(input, "in");
        client.stdout().write_all(b"out").unwrap();
        client.stderr().write_all(b"err").unwrap();
        client.finish(3);
        let frames: Vec<_> = (0..3)
            .map(|_| read_frame(&mut near, FRAME_LEN_MAX).unwrap())
            .collect();
        assert_eq!(
            frames,
            [(1, b"out".to_vec()), (2, b"err".to_vec()), (3, vec![3])]
        );
    }

    #[test]
    fn input_of_a_client_that_went_away_does_not_end_cleanly() {
        let (mut near, far) = UnixStream::pair().unwrap();
        write_frame(&mut near, REQUEST, &request()).unwrap();
        let mut client = Client::accept(far).unwrap();
        drop(near);
        assert!(client.stdin.read(&mut [0; 8]).is_err());
    }

    #[test]
    fn an_oversized_frame_is_refused_before_it_is_read() {
        let (mut near, far) = UnixStream::pair().unwrap();
        let len = u32::try_from(REQUEST_LEN_MAX + 1).unwrap();
        near.write_all(&[[REQUEST].as_slice(), &len.to_le_bytes()].concat())
            .unwrap();
        assert!(Client::accept(far).is_err());
    }

    struct Breaks;

    impl Read for Breaks {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::Other.into())
        }
    }

    #[test]
    fn input_that_breaks_off_does_not_end_cleanly() {
        let (mut near, far) = UnixStream::pair().unwrap();
        write_frame(&mut near, REQUEST, &request()).unwrap();
        let mut client = Client::accept(far).unwrap();
        let mut input = b"cut".chain(Breaks);
        send_input(&mut input, &mut near);
        let mut input = Vec::new();
        client.stdin.read_to_end(&mut input).unwrap_err();
        assert_eq!(input, b"cut");
    }

    /// A node that has enough to do closes the connection: nothing was done, and nobody is told
    /// that it was.
    #[test]
    fn a_command_that_is_not_taken_is_an_error() {
        use crate::cli::output::{Output, is_broken_pipe};
        use crate::cli::screen::Screen;
        let dir = tempfile::tempdir().unwrap();
        let listener = super::bind(&dir.path().join(super::SOCKET_NAME)).unwrap();
        let closing = std::thread::spawn(move || {
            for _ in 0..20 {
                drop(listener.accept().unwrap());
            }
        });
        let screen = Screen::new(Box::new(std::io::sink()), None);
        let out = Output::new(false, Box::new(std::io::sink()), false, screen);
        for len in 0..20 {
            // Longer than what fits the socket: some of it is written when the other side has gone.
            let args = ["x".repeat(len << 16).into()];
            let outcome = super::forward(dir.path(), &args, &Environment::default(), false, &out);
            assert!(!is_broken_pipe(&outcome.unwrap_err()));
        }
        closing.join().unwrap();
    }

    #[test]
    fn keys_are_told_to_the_same_user_alone() {
        use super::{Trust, trust_between};
        let (root, me, other) = (0, 1000, 1001);
        for (own, listener, owner, trust) in [
            (me, me, me, Some(Trust::Full)),
            (me, me, root, Some(Trust::Full)),
            (root, root, me, Some(Trust::Full)),
            (root, me, me, Some(Trust::WithoutSecrets)),
            (root, other, me, None),
            (me, other, me, None),
            (me, other, other, None),
            (me, root, me, None),
        ] {
            assert_eq!(
                trust_between(own, listener, owner),
                trust,
                "{own} {listener} {owner}"
            );
        }
    }

    #[test]
    fn a_command_that_panics_ends_the_connection() {
        let (mut near, far) = UnixStream::pair().unwrap();
        write_frame(&mut near, REQUEST, &request()).unwrap();
        let client = Client::accept(far).unwrap();
        let command = std::thread::spawn(move || {
            let _client = client;
            panic!("as it must not");
        });
        command.join().unwrap_err();
        read_frame(&mut near, FRAME_LEN_MAX).unwrap_err();
    }

    #[test]
    fn credentials_reach_the_command_and_nothing_else() {
        let pairs = [("AWS_SECRET_ACCESS_KEY", "s3cret"), ("LD_PRELOAD", "x")];
        let pairs = pairs.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let request = Request {
            args: Vec::new(),
            directory: b"/".to_vec(),
            terminal: false,
            out_is_terminal: false,
            columns: 0,
            environment: Variables::of(&Environment::new(pairs)),
        };
        let (mut near, far) = UnixStream::pair().unwrap();
        let bytes = serde_json::to_vec(&request).unwrap();
        write_frame(&mut near, REQUEST, &bytes).unwrap();
        let client = Client::accept(far).unwrap();
        let environment = client.environment();
        assert_eq!(environment.get("AWS_SECRET_ACCESS_KEY"), Some("s3cret"));
        assert_eq!(environment.get("LD_PRELOAD"), None);
        assert!(!format!("{client:?} {environment:?}").contains("s3cret"));
    }

    #[test]
    fn a_command_line_of_any_length_fits() {
        let args: Vec<Vec<u8>> = (0..20_000).map(|_| vec![b'x'; 100]).collect();
        let request = Request {
            args,
            directory: b"/".to_vec(),
            terminal: false,
            out_is_terminal: false,
            columns: 0,
            environment: Variables::default(),
        };
        let bytes = serde_json::to_vec(&request).unwrap();
        let (mut near, far) = UnixStream::pair().unwrap();
        let accepted = std::thread::spawn(move || Client::accept(far).unwrap().args().len());
        write_frame(&mut near, REQUEST, &bytes).unwrap();
        assert_eq!(accepted.join().unwrap(), 20_000);
    }
}
