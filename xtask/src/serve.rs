//! `cargo xtask s3` and `cargo xtask web`: real servers on a folder, to try carrack with.
//!
//! In       a folder.
//! Out      what clients need in their environment, then the server in place of this process, until
//!          it is interrupted.
//! Limits   loopback only, on a port that the system chooses.
//! Not here servers of tests and benches (`carrack_testkit`).

use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;

use carrack_testkit::s3::BUCKET;
use carrack_testkit::{Certificate, S3Server, Site};

use crate::peers;
use crate::shell::{Result, target_dir};

/// An S3 server; what lies in the folder's `data` is what lies in the bucket. Returns only if it
/// cannot be started.
pub(crate) fn bucket(dir: &str) -> Result<bool> {
    let program = peers::ensure(&peers::VERSITYGW)?;
    let dir = folder(dir)?;
    let address = free_address()?;
    let mut command = S3Server::versitygw_command(&program, &dir, address)?;
    for (name, value) in S3Server::environment(&format!("http://{address}")) {
        println!("export {name}={value}");
    }
    println!(
        "# s3://{BUCKET} is the folder {}",
        dir.join(BUCKET).display()
    );
    Err(command.exec().into())
}

/// An https server that lists what it has, of an authority that only who is told of it trusts.
/// Returns only if it cannot be started.
pub(crate) fn web(dir: &str) -> Result<bool> {
    let program = peers::ensure(&peers::NGINX)?;
    let openssl = peers::ensure(&peers::OPENSSL)?;
    let dir = folder(dir)?;
    let address = free_address()?;
    // Each has a place of its own, so that two at a time do not take each other's certificate.
    let state = fs::canonicalize(target_dir())?
        .join("web")
        .join(address.port().to_string());
    let certificate = Certificate::make(&openssl, &state)?;
    let site = Site {
        certificate: Some(&certificate),
        ..Site::new(&state, &dir)
    };
    let mut command = site.command(&program, address)?;
    println!("export SSL_CERT_FILE={}", certificate.authority.display());
    println!("# {}/ is the folder {}", site.url(address), dir.display());
    Err(command.exec().into())
}

fn folder(dir: &str) -> Result<PathBuf> {
    fs::create_dir_all(dir)?;
    Ok(fs::canonicalize(dir)?)
}

fn free_address() -> Result<SocketAddr> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?)
}
