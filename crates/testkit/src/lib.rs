//! What carrack's tests and benches run against when the real thing must misbehave on demand.
//!
//! In       a real server's address, and what is to go wrong.
//! Out      a proxy in front of it that is slow, lies or breaks off, and counts what passes.
//! Not here the real servers (`xtask::peers`), the tests.

pub mod proxy;

pub use proxy::{Conduct, Counts, Fault, Proxy};
