//! Wiring of a running node: limits, listener, shutdown, access log.

pub mod limits;
pub mod watch;
