//! `cargo xtask s3`: a real S3 server on a folder, to try buckets with.
//!
//! In       a folder; what lies in its `data` is what lies in the bucket.
//! Out      the environment that clients need, then versitygw in place of this process, until it
//!          is interrupted.
//! Not here servers of tests and benches (`carrack_testkit::s3`).

use std::fs;
use std::net::TcpListener;
use std::os::unix::process::CommandExt;

use carrack_testkit::S3Server;
use carrack_testkit::s3::BUCKET;

use crate::peers;
use crate::shell::Result;

/// Returns only if the server cannot be started.
pub(crate) fn serve(dir: &str) -> Result<bool> {
    let program = peers::ensure(&peers::VERSITYGW)?;
    fs::create_dir_all(dir)?;
    let dir = fs::canonicalize(dir)?;
    let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
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
