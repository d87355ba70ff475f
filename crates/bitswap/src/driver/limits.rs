//! How many connections with proved peers there may be: in all, of one address, of one subnet.
//!
//! In       connections as they come and go.
//! Out      a refusal for one too many: before its handshake, and when that has come to its end.
//! Limits   [`ConnectionLimits`].
//! Not here what a connection may ask for (`budget`); those that nobody has proved anything about
//!          (`handshakes`), so that nobody who is silent takes the places of an address.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::task::{Context, Poll};

use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::{
    ConnectionClosed, ConnectionDenied, ConnectionId, FromSwarm, ListenFailure, NetworkBehaviour,
    THandler, THandlerInEvent, THandlerOutEvent, ToSwarm, dummy,
};
use libp2p::{Multiaddr, PeerId};

use super::handshakes::{PendingLimits, count_down};
use crate::budget::{Network, host, subnet};

/// Numbers of connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConnectionLimits {
    /// Open connections. Each idle one takes about 40 KiB.
    pub established_max: usize,
    /// Connections of each transport whose handshake goes on: each costs a signature, 60
    /// microseconds. Beyond it the oldest of those who have most is given up.
    pub pending_max: usize,
    /// The same of one address. Handshakes take a few round trips.
    pub pending_per_address_max: usize,
    /// The same of an IPv4 /24 or IPv6 /48.
    pub pending_per_subnet_max: usize,
    /// Open ones of one IPv4 address or IPv6 /64.
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
            pending_per_address_max: 32,
            pending_per_subnet_max: 128,
            per_address_max: 64,
            per_subnet_max: 512,
            trusted: crate::budget::Budget::default().trusted,
        }
    }
}

impl ConnectionLimits {
    /// Those of handshakes of one transport.
    pub(super) fn pending(&self) -> PendingLimits {
        PendingLimits {
            all_max: self.pending_max,
            address_max: self.pending_per_address_max,
            subnet_max: self.pending_per_subnet_max,
            trusted: self.trusted.clone(),
        }
    }
}

/// A connection is one too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TooMany {
    /// In all.
    #[error("as many connections as there may be")]
    Established,
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
    /// Open ones, and the address that each counts for.
    open: HashMap<ConnectionId, Option<IpAddr>>,
    per_address: HashMap<IpAddr, usize>,
    per_subnet: HashMap<IpAddr, usize>,
}

impl Limits {
    pub(super) fn new(limits: ConnectionLimits) -> Self {
        Self {
            limits,
            open: HashMap::new(),
            per_address: HashMap::new(),
            per_subnet: HashMap::new(),
        }
    }

    /// Whether one more may come from there; the address that it would count for.
    fn look(&self, remote: &Multiaddr) -> Result<Option<IpAddr>, TooMany> {
        if self.open.len() >= self.limits.established_max {
            return Err(TooMany::Established);
        }
        let Some(address) = address_of(remote).filter(|address| !self.is_trusted(*address)) else {
            return Ok(None);
        };
        let n_open = |counts: &HashMap<IpAddr, usize>, key| counts.get(&key).copied().unwrap_or(0);
        if n_open(&self.per_address, host(address)) >= self.limits.per_address_max {
            return Err(TooMany::Address);
        }
        // Nobody has more than is free, so that others find room however many take all they can.
        let n_free = self.limits.established_max - self.open.len();
        let subnet_max = self.limits.per_subnet_max.min(n_free);
        if n_open(&self.per_subnet, subnet(address)) >= subnet_max {
            return Err(TooMany::Subnet);
        }
        Ok(Some(address))
    }

    /// A handshake has come to its end. Others may have been faster.
    fn enter(&mut self, id: ConnectionId, remote: &Multiaddr) -> Result<(), TooMany> {
        let address = self.look(remote)?;
        if let Some(address) = address {
            *self.per_address.entry(host(address)).or_default() += 1;
            *self.per_subnet.entry(subnet(address)).or_default() += 1;
        }
        self.open.insert(id, address);
        Ok(())
    }

    fn leave(&mut self, id: ConnectionId) {
        if let Some(Some(address)) = self.open.remove(&id) {
            count_down(&mut self.per_address, host(address));
            count_down(&mut self.per_subnet, subnet(address));
        }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.limits.trusted.iter().any(|it| it.contains(address))
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

/// The same; of one that leads to no machine, the address of none.
pub(super) fn address_or_none(remote: &Multiaddr) -> IpAddr {
    address_of(remote).unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
}

impl NetworkBehaviour for Limits {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Infallible;

    fn handle_pending_inbound_connection(
        &mut self,
        _id: ConnectionId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<(), ConnectionDenied> {
        let one_more = self.look(remote).map_err(ConnectionDenied::new);
        one_more.map(drop)
    }

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        _peer: PeerId,
        _local: &Multiaddr,
        remote: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.enter(id, remote).map_err(ConnectionDenied::new)?;
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
            established_max: 40,
            per_address_max: 2,
            per_subnet_max: 3,
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
        for number in 10..45 {
            limits.enter(id(number), &at("127.0.0.1")).unwrap(); // Trusted.
        }
        for number in 10..30 {
            limits.leave(id(number));
        }
        limits.enter(id(2), &at("192.0.2.1")).unwrap();
        limits.enter(id(3), &at("::ffff:192.0.2.1")).unwrap();
        let one_more = |limits: &Limits, address| limits.look(&at(address)).unwrap_err();
        assert_eq!(one_more(&limits, "192.0.2.1"), TooMany::Address);
        limits.enter(id(4), &at("192.0.2.2")).unwrap();
        assert_eq!(one_more(&limits, "192.0.2.3"), TooMany::Subnet);
        for number in 10..30 {
            limits.enter(id(number), &at("127.0.0.1")).unwrap();
        }
        limits.enter(id(1), &at("127.0.0.1")).unwrap();
        limits.enter(id(5), &at("198.51.100.1")).unwrap();
        for address in ["203.0.113.1", "127.0.0.1"] {
            assert_eq!(one_more(&limits, address), TooMany::Established);
            let late = limits.enter(id(6), &at(address));
            assert_eq!(late, Err(TooMany::Established), "others were faster");
        }
        limits.leave(id(5));
        limits.look(&at("203.0.113.1")).unwrap();
        for number in 0..45 {
            limits.leave(id(number));
            limits.leave(id(number)); // Both a failure and an end may be told.
        }
        assert!(limits.open.is_empty());
        assert!(limits.per_address.is_empty() && limits.per_subnet.is_empty());
    }

    #[test]
    fn however_many_subnets_take_all_they_can_there_is_room_for_another() {
        let mut limits = Limits::new(ConnectionLimits::default());
        let mut number = 0;
        for subnet in 0..9 {
            for host in 0..20 * 64 {
                let address = at(&format!("198.51.{subnet}.{}", host % 20));
                number += usize::from(limits.enter(id(number), &address).is_ok());
            }
        }
        let n_free = limits.limits.established_max - limits.open.len();
        assert!(n_free > 64, "{n_free} left");
        limits.enter(id(number), &at("203.0.113.1")).unwrap();
    }

    #[test]
    fn an_ipv6_64_is_one_address() {
        let mut limits = limits();
        for number in 0..2 {
            let address = format!("2001:db8:1:1::{number}");
            limits.enter(id(number), &at(&address)).unwrap();
        }
        let address = limits.look(&at("2001:db8:1:1:ffff::1"));
        assert_eq!(address, Err(TooMany::Address));
        limits.enter(id(2), &at("2001:db8:1:2::1")).unwrap();
        let subnet = limits.look(&at("2001:db8:1:3::1"));
        assert_eq!(subnet, Err(TooMany::Subnet));
    }
}
