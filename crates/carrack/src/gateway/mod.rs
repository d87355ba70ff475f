//! The HTTP gateway: blocks, CARs and byte ranges for any trustless client.
//!
//! In       HTTP requests for `/ipfs/{cid}[/path]`.
//! Out      answers that the client verifies: raw blocks and CARs.
//! Not here sockets, timeouts and shutdown (`http`); where bytes lie (`store`).
//!
//! Spec: <https://specs.ipfs.tech/http-gateways/trustless-gateway/>

pub mod backend;
mod car;
pub mod conditions;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod fuzz;
pub mod headers;
pub mod negotiate;
pub mod pool;
mod raw;
pub mod request;
pub mod service;
pub mod shares;
pub mod trailer;
mod walks;

#[cfg(test)]
mod elsewhere_tests;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;
#[cfg(test)]
mod ways_in_tests;
