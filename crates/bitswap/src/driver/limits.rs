//! How many connections there may be: in all, of one address, of one subnet, and unproved ones.
//!
//! In       connections as they come and go.
//! Out      a refusal for one too many.
//! Limits   [`ConnectionLimits`].
//! Not here what a connection may ask for (`budget`).

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::IpAddr;
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, ListenFailure, NetworkBehaviour,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use crate::budget::{Network, subnet};

/// Numbers of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections. Each idle one takes about 40 KiB.
    pub established_max: usize,
    /// Connections whose handshake goes on: each costs a signature, 60 microseconds.
    pub pending_max: usize,
    /// Of one address, pending ones included.
    pub per_address_max: usize,
    /// Of an IPv4 /24 or IPv6 /48.
    pub per_subnet_max: usize,
    /// Networks whose addresses and subnets have no limit of their own: proxies bring everyone.
    pub trusted: Vec<Network>,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            established_max: 4096,
            pending_max: 256,
            per_address_max: 64,
            per_subnet_max: 512,
            trusted: crate::budget::Budget::default().trusted,
        }
    }
}

/// A connection is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// In all.
    #[error("as many connections as there may be")]
    Established,
    /// Handshakes.
    #[error("as many handshakes as there may be")]
    Pending,
    /// Of its address.
    #[error("as many connections from this address as there may be")]
    Address,
    /// Of its subnet.
    #[error("as many connections from this subnet as there may be")]
    Subnet,
}

/// Counts connections.
pub(super) struct Limits {
    limits: ConnectionLimits,
    /// Pending and open ones, and where they come from.
    known: HashMap<ConnectionId, (Stage, Option<IpAddr>)>,
    n_pending: usize,
    per_address: HashMap<IpAddr, usize>,
    per_subnet: HashMap<IpAddr, usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Pending,
    Established,
}

impl Limits {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            known: HashMap::new(),
            n_pending: 0,
            per_address: HashMap::new(),
            per_subnet: HashMap::new(),
        }
    }

    fn enter(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), TooMany> {
        let address = address_of(remote).filter(|address| !self.is_trusted(*address));
        if self.known.len() - self.n_pending >= self.limits.established_max {
            return Err(TooMany::Established);
        }
        if self.n_pending >= self.limits.pending_max {
            return Err(TooMany::Pending);
        }
        if let Some(address) = address {
            let n_open = |counts: &HashMap<IpAddr, usize>, key| counts.get(&key).copied();
            if n_open(&self.per_address, address).unwrap_or(0) >= self.limits.per_address_max {
                return Err(TooMany::Address);
            }
            let n_subnet = n_open(&self.per_subnet, subnet(address)).unwrap_or(0);
            if n_subnet >= self.limits.per_subnet_max {
                return Err(TooMany::Subnet);
            }
            *self.per_address.entry(address).or_default() += 1;
            *self.per_subnet.entry(subnet(address)).or_default() += 1;
        }
        self.known.insert(id, (Stage::Pending, address));
        self.n_pending += 1;
        Ok(())
    }

    fn establish(&mut self, id: ConnectionId) {
        if let Some((stage @ Stage::Pending, _)) = self.known.get_mut(&id) {
            *stage = Stage::Established;
            self.n_pending -= 1;
        }
    }

    fn leave(&mut self, id: ConnectionId) {
        let Some((stage, address)) = self.known.remove(&id) else {
            return;
        };
        if stage == Stage::Pending {
            self.n_pending -= 1;
        }
        if let Some(address) = address {
            count_down(&mut self.per_address, address);
            count_down(&mut self.per_subnet, subnet(address));
        }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.limits.trusted.iter().any(|it| it.contains(address))
    }
}

fn count_down(counts: &mut HashMap<IpAddr, usize>, key: IpAddr) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

/// The address of the machine that an address leads to.
#[must_use]
pub fn address_of(remote: &Multiaddr) -> Option<IpAddr> {
    remote.iter().find_map(|protocol| match protocol {
        Protocol::Ip4(address) => Some(IpAddr::V4(address)),
        Protocol::Ip6(address) => Some(IpAddr::V6(address).to_canonical()),
        _ => None,
    })
}

impl NetworkBehaviour for Limits {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        id: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        self.enter(id, remote).map_err(ConnectionDenied::new)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        _remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.establish(id);
        Ok(dummy::ConnectionHandler)
    }

    fn handle_established_outbound_connection(
        &mut self,
        _id: ConnectionId,
        _peer: PeerId,
        _address: &Multiaddr,
        _role: Endpoint,
        _port_use: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        match event {
            FromSwarm::ConnectionClosed(ConnectionClosed { connection_id, .. })
            | FromSwarm::ListenFailure(ListenFailure { connection_id, .. }) => {
                self.leave(connection_id);
            }
            _ => {}
        }
    }

    fn on_connection_handler_event(
        &mut self,
        _peer: PeerId,
        _id: ConnectionId,
        event: THandlerOutEvent<Self>,
    ) {
        match event {}
    }

    fn poll(
        &mut self,
        _cx: &mut Context<'_>,
    ) -> Poll<ToSwarm<Self::ToSwarm, THandlerInEvent<Self>>> {
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> Limits {
        Limits::new(ConnectionLimits {
            established_max: 6,
            pending_max: 3,
            per_address_max: 2,
            per_subnet_max: 4,
            ..ConnectionLimits::default()
        })
    }

    fn id(number: usize) -> ConnectionId {
        ConnectionId::new_unchecked(number)
    }

    fn at(address: &str) -> Multiaddr {
        let ip: IpAddr = address.parse().unwrap();
        Multiaddr::empty().with(ip.into()).with(Protocol::Tcp(1))
    }

    #[test]
    fn each_number_has_its_limit_and_is_given_back() {
        let mut limits = limits();
        for number in 0..3 {
            limits.enter(id(number), &at("127.0.0.1")).unwrap(); // Trusted.
        }
        assert_eq!(limits.enter(id(3), &at("127.0.0.1")), Err(TooMany::Pending));
        limits.establish(id(0));
        limits.establish(id(1));
        limits.enter(id(3), &at("192.0.2.1")).unwrap();
        limits.establish(id(3));
        limits.enter(id(4), &at("::ffff:192.0.2.1")).unwrap();
        limits.establish(id(4));
        assert_eq!(limits.enter(id(5), &at("192.0.2.1")), Err(TooMany::Address));
        limits.enter(id(5), &at("192.0.2.2")).unwrap();
        limits.establish(id(5));
        limits.enter(id(6), &at("192.0.2.3")).unwrap();
        assert_eq!(limits.enter(id(7), &at("192.0.2.4")), Err(TooMany::Subnet));
        limits.establish(id(6));
        assert_eq!(
            limits.enter(id(7), &at("198.51.100.1")),
            Err(TooMany::Established)
        );
        for number in 0..7 {
            limits.leave(id(number));
            limits.leave(id(number)); // Both a failure and an end may be told.
        }
        assert_eq!((limits.known.len(), limits.n_pending), (0, 0));
        assert!(limits.per_address.is_empty() && limits.per_subnet.is_empty());
    }
}
