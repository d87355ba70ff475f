//! What carrack's tests and benches run against when the real thing must misbehave on demand.
//!
//! In       a real server's program or address, and what is to go wrong.
//! Out      S3 servers with objects in them; web servers with a folder, also with TLS; a proxy in
//!          front that is slow, lies or breaks off, and counts what passes; peers of libp2p and
//!          bitswap that do what a test tells them, sensible or not; a file system that loses what
//!          was not synced; damaged bytes.
//! Not here installing the real servers (`xtask::peers`), the tests.

pub mod certificate;
#[cfg(feature = "damage")]
pub mod damage;
#[cfg(feature = "sources")]
pub mod faulty;
pub mod kubo;
pub mod nginx;
#[cfg(feature = "p2p")]
pub mod p2p;
pub mod power;
pub mod proxy;
pub mod s3;
mod sigv4;
pub mod terminal;
pub mod transport;

pub use certificate::Certificate;
#[cfg(feature = "sources")]
pub use faulty::{FaultySource, SourceConduct, SourceCounts, SourceFault};
pub use nginx::{Nginx, Site};
pub use proxy::{Conduct, Counts, Fault, Proxy};
pub use s3::S3Server;
pub use transport::Transport;
