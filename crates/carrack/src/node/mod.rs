//! Wiring of a running node: configuration, identity, peers, shutdown, and parts that run as long
//! as it does.
//!
//! In       a store, options, a bound listener. Out: a node that serves until it is told to stop.
//! Not here what requests mean (`gateway`); arguments and signals' meaning (`cli`).

pub mod config;
pub mod identity;
pub mod shutdown;
pub mod supervisor;
pub mod swarm;
