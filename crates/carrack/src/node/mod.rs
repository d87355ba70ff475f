//! Wiring of a running node: limits, listener, shutdown, access log.
//!
//! In       a store, options, a bound listener. Out: a node that serves until it is told to stop.
//! Not here what requests mean (`gateway`); arguments and signals' meaning (`cli`).

pub mod access_log;
pub mod accounts;
pub mod config;
pub mod identity;
pub mod io;
pub mod limits;
pub mod listener;
pub mod shutdown;
pub mod supervisor;
pub mod swarm;
pub mod watch;
pub mod websocket;

pub use listener::{ServeOptions, Shutdown, serve};
