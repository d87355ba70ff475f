//! A certificate authority of its own, and a server's certificate for this machine.
//!
//! In       the program `openssl`, and a folder.
//! Out      the files a server and its clients are given.
//! Limits   `127.0.0.1` and `localhost`, [`DAYS`] days.
//! Not here servers that speak TLS (`nginx`). The program is asked, rather than a library linked:
//!          it is on most machines, and tests bring no second maker of certificates into the tree.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Longer than any test or try-out, and too short to be of use to anybody else.
const DAYS: &str = "30";
/// All that is told by `openssl`'s own configuration is left out: systems differ there.
const CONFIG: &str = "\
[req]
distinguished_name = name
prompt = no
[name]
CN = carrack test
[authority]
basicConstraints = critical, CA:true
keyUsage = critical, keyCertSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:false
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectAltName = IP:127.0.0.1, DNS:localhost
";

/// Files in PEM.
#[derive(Debug, Clone)]
pub struct Certificate {
    /// What clients have to trust, such as by `SSL_CERT_FILE`.
    pub authority: PathBuf,
    /// What the server shows.
    pub chain: PathBuf,
    /// What it keeps.
    pub key: PathBuf,
}

impl Certificate {
    /// Makes an authority and a certificate of it; its files are in `dir`.
    ///
    /// # Errors
    /// The program cannot be run, or says no.
    pub fn make(openssl: &Path, dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let at = |name: &str| dir.join(name);
        let (config, authority, signer) = (at("openssl.cnf"), at("ca.pem"), at("ca.key"));
        fs::write(&config, CONFIG)?;
        let made = Self {
            chain: at("server.pem"),
            key: at("server.key"),
            authority,
        };
        let request = |extensions: &str, subject: &str, key: &Path, to: &Path| {
            let mut command = Command::new(openssl);
            command
                .args(["req", "-x509", "-batch", "-noenc", "-days", DAYS])
                .args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"])
                .args(["-extensions", extensions, "-subj", subject, "-config"])
                .arg(&config)
                .arg("-keyout")
                .arg(key)
                .arg("-out")
                .arg(to);
            command
        };
        let subject = "/CN=carrack test authority";
        run(request("authority", subject, &signer, &made.authority))?;
        let mut signed = request("server", "/CN=localhost", &made.key, &made.chain);
        signed.arg("-CA").arg(&made.authority);
        signed.arg("-CAkey").arg(&signer);
        run(signed)?;
        // Nobody is to sign anything more.
        fs::remove_file(signer)?;
        Ok(made)
    }
}

fn run(mut command: Command) -> io::Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if output.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&output.stderr).into_owned();
    Err(io::Error::other(format!("{command:?}: {why}")))
}
