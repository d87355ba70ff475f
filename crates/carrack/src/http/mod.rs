//! HTTP without what requests mean: connections, their limits and time-outs, the access log.
//!
//! In       a bound listener, options, a [`Service`](service::Service) that answers.
//! Out      answers that are counted, watched and logged; connections that become WebSockets.
//! Not here routes and content (services above), signals and configuration (`node`).

pub mod access_log;
pub mod accounts;
pub mod body;
pub mod io;
pub mod limits;
pub mod listener;
pub(crate) mod queue;
pub mod readiness;
pub mod refusal;
pub mod service;
pub mod watch;
pub mod websocket;

pub use listener::{ServeOptions, Shutdown, serve};
