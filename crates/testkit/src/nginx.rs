//! nginx on loopback, on a folder, with its listing on; also with TLS.
//!
//! In       the program, a folder, a certificate, what else its configuration is to say.
//! Out      a running server, ended when dropped; a line of its log for each request.
//! Limits   one worker.
//! Not here certificates (`certificate`), what is slow or broken about a server (`proxy`).

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::park_timeout;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};

use crate::certificate::Certificate;
use crate::s3::free_address;

const READY_TIME_MAX: Duration = Duration::from_secs(10);
const LOG: &str = "access.log";

/// What is to be served.
#[derive(Debug, Clone)]
pub struct Site<'a> {
    /// A folder for what nginx writes.
    pub state: &'a Path,
    /// The folder that is served.
    pub files: &'a Path,
    /// With one it is `https`, else `http`.
    pub certificate: Option<&'a Certificate>,
    /// Further lines of nginx's `server` block.
    pub lines: &'a str,
}

impl<'a> Site<'a> {
    /// `files` over plain HTTP.
    pub const fn new(state: &'a Path, files: &'a Path) -> Self {
        Self {
            state,
            files,
            certificate: None,
            lines: "",
        }
    }

    /// Its URL at `address`, without a slash at its end.
    pub fn url(&self, address: SocketAddr) -> String {
        let scheme = if self.certificate.is_some() {
            "https"
        } else {
            "http"
        };
        format!("{scheme}://{address}")
    }

    /// The command that serves it, for who wants to become it.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn command(&self, program: &Path, address: SocketAddr) -> io::Result<Command> {
        fs::create_dir_all(self.state)?;
        let config = self.state.join("nginx.conf");
        fs::write(&config, self.config(address))?;
        let mut command = Command::new(program);
        command
            .arg("-e")
            .arg(self.state.join("error.log"))
            .arg("-p")
            .arg(self.state)
            .arg("-c")
            .arg(config);
        if getuid().is_root() {
            // Its workers would be of a user that may not see the folder.
            command.args(["-g", "user root;"]);
        }
        Ok(command)
    }

    fn config(&self, address: SocketAddr) -> String {
        let (state, files) = (self.state.display(), self.files.display());
        let (tls, certificate) = match self.certificate {
            None => ("", String::new()),
            Some(Certificate { chain, key, .. }) => {
                let (chain, key) = (chain.display(), key.display());
                let lines = format!("ssl_certificate \"{chain}\"; ssl_certificate_key \"{key}\";");
                (" ssl", lines)
            }
        };
        format!(
            "daemon off; pid \"{state}/pid\"; error_log \"{state}/error.log\";\n\
             events {{ worker_connections 256; }}\n\
             http {{ client_body_temp_path \"{state}/a\"; proxy_temp_path \"{state}/b\";\n\
             fastcgi_temp_path \"{state}/c\"; uwsgi_temp_path \"{state}/d\";\n\
             scgi_temp_path \"{state}/e\";\n\
             log_format line '$connection $connection_requests $status $request_method $uri '\n\
             'range=$http_range authorization=$http_authorization';\n\
             access_log \"{state}/{LOG}\" line;\n\
             server {{ listen {address}{tls}; {certificate}\n\
             root \"{files}\"; autoindex on;\n\
             {}\n}} }}\n",
            self.lines
        )
    }
}

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    child: Child,
    address: SocketAddr,
    url: String,
    log: PathBuf,
}

impl Nginx {
    /// Starts it and waits until it accepts.
    ///
    /// # Errors
    /// The program does not start, does not take its configuration, or is not ready in ten
    /// seconds.
    pub fn start(program: &Path, site: &Site<'_>) -> io::Result<Self> {
        let address = free_address()?;
        let mut command = site.command(program, address)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut server = Self {
            child,
            address,
            url: site.url(address),
            log: site.state.join(LOG),
        };
        let deadline = Instant::now() + READY_TIME_MAX;
        while TcpStream::connect(address).is_err() {
            if server.child.try_wait()?.is_some() || Instant::now() > deadline {
                let why = fs::read_to_string(site.state.join("error.log"))?;
                return Err(io::Error::other(format!("{command:?}: {why}")));
            }
            park_timeout(Duration::from_millis(5));
        }
        Ok(server)
    }

    /// Where it listens.
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://127.0.0.1:PORT`, or `http`.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A line for each request that has ended: the connection's number, which request of the
    /// connection it is, status, method, path, `range=` and `authorization=`.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn requests(&self) -> io::Result<Vec<String>> {
        let text = fs::read_to_string(&self.log)?;
        Ok(text.lines().map(String::from).collect())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
        let _ = self.child.wait();
    }
}
