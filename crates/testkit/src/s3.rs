//! Real S3 servers on loopback, with objects in them.
//!
//! In       the program of versitygw, MinIO or moto, and a folder.
//! Out      a running server, ended when dropped; its key as the environment has it; signed URLs.
//! Limits   one bucket, [`BUCKET`]. versitygw's objects are files, so that a test can replace, cut
//!          or remove them behind its back.
//! Not here what is slow or broken about a server (`proxy`).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::fs::XattrFlags;
use rustix::process::{Pid, Signal, kill_process};
use sha2::{Digest, Sha256};

use crate::sigv4::{Key, encoded, hex, presigned};

/// The one bucket of each server.
pub const BUCKET: &str = "data";
const REGION: &str = "us-east-1";
const KEY_ID: &str = "AKIDCARRACKTEST";
const SECRET: &str = "not-a-secret-but-long-enough";
const READY_TIME_MAX: Duration = Duration::from_secs(60);
const END_TIME_MAX: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Versity,
    Minio,
    Moto,
}

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    child: Child,
    kind: Kind,
    address: SocketAddr,
    dir: PathBuf,
}

impl S3Server {
    /// versitygw on `dir`, which holds the bucket as a folder.
    ///
    /// # Errors
    /// The program does not start or is not ready in a minute.
    pub fn versitygw(program: &Path, dir: &Path) -> io::Result<Self> {
        let address = free_address()?;
        let command = Self::versitygw_command(program, dir, address)?;
        Self::start(command, Kind::Versity, address, dir)
    }

    /// The command that [`S3Server::versitygw`] runs, for who wants to become it.
    ///
    /// # Errors
    /// The folder cannot be made.
    pub fn versitygw_command(
        program: &Path,
        dir: &Path,
        address: SocketAddr,
    ) -> io::Result<Command> {
        fs::create_dir_all(dir.join(BUCKET))?;
        let mut command = Command::new(program);
        command
            .args(["--port", &address.to_string()])
            .args(["--keep-alive", "--quiet", "--region", REGION, "posix"])
            .arg(dir)
            .env("ROOT_ACCESS_KEY", KEY_ID)
            .env("ROOT_SECRET_KEY", SECRET);
        Ok(command)
    }

    /// MinIO on `dir`, in its own format.
    ///
    /// # Errors
    /// The program does not start or is not ready in a minute.
    pub fn minio(program: &Path, dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir.join(BUCKET))?;
        let (address, console) = (free_address()?, free_address()?);
        let mut command = Command::new(program);
        command
            .args(["server", "--quiet", "--address", &address.to_string()])
            .args(["--console-address", &console.to_string()])
            .arg(dir)
            .env("MINIO_ROOT_USER", KEY_ID)
            .env("MINIO_ROOT_PASSWORD", SECRET)
            .env("HOME", dir);
        Self::start(command, Kind::Minio, address, dir)
    }

    /// moto, in memory: slow, and the only one that keeps keys such as `a//b/../c` apart.
    ///
    /// # Errors
    /// The program does not start or is not ready in a minute.
    pub fn moto(program: &Path, dir: &Path) -> io::Result<Self> {
        let address = free_address()?;
        let mut command = Command::new(program);
        command
            .args(["-H", "127.0.0.1", "-p", &address.port().to_string()])
            .current_dir(dir);
        let server = Self::start(command, Kind::Moto, address, dir)?;
        match server.request("PUT", &format!("/{BUCKET}"), &[])? {
            200 => Ok(server),
            status => Err(io::Error::other(format!("no bucket: {status}"))),
        }
    }

    fn start(
        mut command: Command,
        kind: Kind,
        address: SocketAddr,
        dir: &Path,
    ) -> io::Result<Self> {
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self {
            child,
            kind,
            address,
            dir: dir.to_path_buf(),
        };
        let deadline = Instant::now() + READY_TIME_MAX;
        // A 404 to a signed GET says more than a port that accepts: MinIO answers 503 at first.
        while !matches!(server.status_of("GET", "no-such-key", &[]), Ok(404)) {
            if let Some(status) = server.child.try_wait()? {
                return Err(io::Error::other(format!("{command:?} ended: {status}")));
            }
            if Instant::now() > deadline {
                return Err(io::Error::other(format!("{command:?} is not ready")));
            }
            park_timeout(Duration::from_millis(20));
        }
        Ok(server)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `http://127.0.0.1:PORT`
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The process, for `/proc`.
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// What a client's environment says to reach the bucket by `endpoint`, which is this server's
    /// URL or that of a proxy before it.
    pub fn environment(endpoint: &str) -> [(&'static str, String); 4] {
        [
            ("AWS_ACCESS_KEY_ID", KEY_ID.to_owned()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.to_owned()),
            ("AWS_REGION", REGION.to_owned()),
            ("AWS_ENDPOINT_URL", endpoint.to_owned()),
        ]
    }

    /// Path and query of a signed GET, for a client that asks `host`.
    pub fn signed_get(host: SocketAddr, key: &str) -> String {
        signed("GET", host, key)
    }

    /// The file of an object of versitygw.
    pub fn file_of(&self, key: &str) -> PathBuf {
        self.dir.join(BUCKET).join(key)
    }

    /// Makes or replaces an object, as a PUT does: at once, with an ETag of its content.
    ///
    /// # Errors
    /// The disk's, or what the server answered.
    pub fn put(&self, key: &str, content: &[u8]) -> io::Result<()> {
        if self.kind != Kind::Versity {
            return match self.status_of("PUT", key, content)? {
                200 => Ok(()),
                status => Err(io::Error::other(format!("PUT {key}: {status}"))),
            };
        }
        let (to, part) = (self.file_of(key), self.dir.join("part"));
        fs::create_dir_all(to.parent().unwrap_or(&self.dir))?;
        fs::write(&part, content)?;
        tag(&part, &Sha256::digest(content))?;
        fs::rename(part, to)
    }

    /// Gives a file that lies in the bucket's folder an ETag, which versitygw reads from it.
    ///
    /// # Errors
    /// The file system keeps no extended attributes.
    pub fn tag_file(&self, key: &str, seed: &str) -> io::Result<()> {
        tag(&self.file_of(key), &Sha256::digest(seed.as_bytes()))
    }

    /// Removes an object.
    ///
    /// # Errors
    /// The disk's, or what the server answered.
    pub fn delete(&self, key: &str) -> io::Result<()> {
        if self.kind == Kind::Versity {
            return fs::remove_file(self.file_of(key));
        }
        match self.status_of("DELETE", key, &[])? {
            204 => Ok(()),
            status => Err(io::Error::other(format!("DELETE {key}: {status}"))),
        }
    }

    /// One signed request to the server itself.
    fn status_of(&self, method: &str, key: &str, content: &[u8]) -> io::Result<u16> {
        self.request(method, &signed(method, self.address, key), content)
    }

    fn request(&self, method: &str, target: &str, content: &[u8]) -> io::Result<u16> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(READY_TIME_MAX))?;
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\
             Content-Length: {}\r\n\r\n",
            self.address,
            content.len()
        )?;
        stream.write_all(content)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let status = answer.split(' ').nth(1).and_then(|word| word.parse().ok());
        status.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let deadline = Instant::now() + END_TIME_MAX;
        while Instant::now() < deadline {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            park_timeout(Duration::from_millis(5));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn signed(method: &str, host: SocketAddr, key: &str) -> String {
    let by = Key {
        id: KEY_ID,
        secret: SECRET,
        region: REGION,
    };
    presigned(by, method, &host.to_string(), &format!("/{BUCKET}/{key}"))
}

/// A path of the bucket as a request target has it, such as [`crate::Proxy::set_below`] takes.
pub fn target_of(key: &str) -> String {
    encoded(&format!("/{BUCKET}/{key}"), b"/")
}

fn tag(file: &Path, digest: &[u8]) -> io::Result<()> {
    let text = hex(digest.split_at(16).0);
    let file = File::open(file)?;
    let etag = format!("\"{text}\"");
    Ok(rustix::fs::fsetxattr(
        file,
        "user.etag",
        etag.as_bytes(),
        XattrFlags::empty(),
    )?)
}

/// A port of loopback that nobody listens on.
pub(crate) fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind("127.0.0.1:0")?.local_addr()
}
