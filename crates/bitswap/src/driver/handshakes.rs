//! Handshakes that go on: how many of a transport, an address and a subnet, and which is given up.
//!
//! In       a transport; connections that nobody has proved anything about.
//! Out      the same transport. A handshake that was given up fails, and its connection is closed.
//! Limits   [`PendingLimits`], for each transport by itself. Nobody is refused: where there are as
//!          many as there may be, the oldest of them goes. Of all it is the oldest of the address
//!          that has most, in the subnet that has most: who says nothing is in nobody's way.
//! Not here connections with proved peers (`limits`); how long a handshake may take (`driver`).
//!
//! Whoever opens silent connections gives up his own. Only by as many addresses as there is room
//! for handshakes are others given up, and then the oldest, which had the longest time.
//!
//! Over QUIC an address may be forged. While half of a bound is taken, whoever comes has to prove
//! first that it is there ([`Gate`]): forged ones have the other half at most, and go before those
//! who have proved theirs.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use libp2p::core::transport::{DialOpts, ListenerId, TransportError, TransportEvent};
use libp2p::{Multiaddr, Transport};
use tokio::sync::oneshot;

use super::limits::address_or_none;
use super::quic::Gate;
use crate::budget::{Network, host, subnet};
use crate::hold;

/// Numbers of handshakes of one transport.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PendingLimits {
    pub(super) all_max: usize,
    pub(super) address_max: usize,
    pub(super) subnet_max: usize,
    /// Networks whose addresses and subnets have no limit of their own.
    pub(super) trusted: Vec<Network>,
}

/// The handshakes of one transport. Clones share them.
#[derive(Debug, Clone)]
pub(super) struct Handshakes {
    table: Arc<Mutex<Table>>,
    limits: Arc<PendingLimits>,
}

#[derive(Debug, Default)]
struct Table {
    /// By number: the oldest first.
    pending: BTreeMap<u64, Pending>,
    per_address: HashMap<IpAddr, usize>,
    per_subnet: HashMap<IpAddr, usize>,
    n_ever: u64,
}

#[derive(Debug)]
struct Pending {
    address: IpAddr,
    subnet: IpAddr,
    /// Whoever is there hears what is sent to the address.
    is_proved: bool,
    /// Dropped when it is given up.
    _go_on: oneshot::Sender<()>,
}

/// The place of a handshake, until it is dropped.
#[derive(Debug)]
struct Place {
    handshakes: Handshakes,
    number: u64,
    given_up: oneshot::Receiver<()>,
}

impl Handshakes {
    pub(super) fn new(limits: PendingLimits) -> Self {
        Self {
            table: Arc::default(),
            limits: Arc::new(limits),
        }
    }

    /// One more handshake, of `remote`, which may be forged unless it is proved.
    fn enter(&self, remote: IpAddr, is_proved: bool) -> Place {
        let (address, subnet) = (host(remote), subnet(remote));
        let mut table = hold(&self.table);
        table.make_room(address, subnet, self.is_trusted(remote), &self.limits);
        let number = table.n_ever;
        table.n_ever += 1;
        let (go_on, given_up) = oneshot::channel();
        let pending = Pending {
            address,
            subnet,
            is_proved,
            _go_on: go_on,
        };
        table.pending.insert(number, pending);
        *table.per_address.entry(address).or_default() += 1;
        *table.per_subnet.entry(subnet).or_default() += 1;
        Place {
            handshakes: self.clone(),
            number,
            given_up,
        }
    }

    fn is_trusted(&self, address: IpAddr) -> bool {
        self.limits.trusted.iter().any(|it| it.contains(address))
    }
}

impl Gate for Handshakes {
    fn must_prove(&self, remote: IpAddr) -> bool {
        let table = hold(&self.table);
        let is_half = |n: usize, max: usize| 2 * n >= max;
        let n_of_address = n_of(&table.per_address, host(remote));
        let n_of_subnet = n_of(&table.per_subnet, subnet(remote));
        is_half(table.pending.len(), self.limits.all_max)
            || !self.is_trusted(remote)
                && (is_half(n_of_address, self.limits.address_max)
                    || is_half(n_of_subnet, self.limits.subnet_max))
    }
}

impl Table {
    /// Gives up what must go for one more of `address`.
    fn make_room(&mut self, address: IpAddr, subnet: IpAddr, trusted: bool, to: &PendingLimits) {
        if !trusted && n_of(&self.per_address, address) >= to.address_max {
            self.give_up(|pending| pending.address == address);
        } else if !trusted && n_of(&self.per_subnet, subnet) >= to.subnet_max {
            self.give_up(|pending| pending.subnet == subnet);
        }
        if self.pending.len() >= to.all_max {
            self.give_up(|_| true);
        }
    }

    /// Gives up the oldest handshake of the address that has most, of the subnet that has most, of
    /// those that are `meant`; one that is not proved before one that is. Looks at all of them: a
    /// few hundred.
    fn give_up(&mut self, meant: impl Fn(&Pending) -> bool) {
        let meant = self.pending.iter().filter(|(_, pending)| meant(pending));
        let oldest = meant.max_by_key(|(number, pending)| {
            (
                n_of(&self.per_subnet, pending.subnet),
                n_of(&self.per_address, pending.address),
                !pending.is_proved,
                std::cmp::Reverse(**number),
            )
        });
        if let Some(number) = oldest.map(|(number, _)| *number) {
            self.leave(number);
        }
    }

    fn leave(&mut self, number: u64) {
        if let Some(pending) = self.pending.remove(&number) {
            count_down(&mut self.per_address, pending.address);
            count_down(&mut self.per_subnet, pending.subnet);
        }
    }
}

fn n_of(counts: &HashMap<IpAddr, usize>, key: IpAddr) -> usize {
    counts.get(&key).copied().unwrap_or(0)
}

/// One less of `key`.
pub(super) fn count_down(counts: &mut HashMap<IpAddr, usize>, key: IpAddr) {
    if let Some(count) = counts.get_mut(&key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(&key);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        hold(&self.handshakes.table).leave(self.number);
    }
}

/// A transport whose handshakes have places.
pub(super) struct Bounded<T: Transport> {
    transport: T,
    handshakes: Handshakes,
    is_proved: fn(&T::ListenerUpgrade) -> bool,
}

impl<T: Transport> Bounded<T> {
    /// `is_proved`: whether it is known that the peer of a handshake hears what is sent to its
    /// address.
    pub(super) const fn new(
        transport: T,
        handshakes: Handshakes,
        is_proved: fn(&T::ListenerUpgrade) -> bool,
    ) -> Self {
        Self {
            transport,
            handshakes,
            is_proved,
        }
    }
}

/// A handshake in its place.
pub(super) struct Handshake<F> {
    future: F,
    place: Place,
}

impl<O, F: Future<Output = io::Result<O>> + Unpin> Future for Handshake<F> {
    type Output = io::Result<O>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if self.place.given_up.poll_unpin(cx).is_ready() {
            let why = "given up for younger handshakes";
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionAborted, why)));
        }
        self.future.poll_unpin(cx)
    }
}

impl<T> Transport for Bounded<T>
where
    T: Transport<Error = io::Error> + Unpin,
    T::ListenerUpgrade: Unpin,
{
    type Output = T::Output;
    type Error = io::Error;
    type ListenerUpgrade = Handshake<T::ListenerUpgrade>;
    type Dial = T::Dial;

    fn listen_on(
        &mut self,
        id: ListenerId,
        address: Multiaddr,
    ) -> Result<(), TransportError<Self::Error>> {
        self.transport.listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.transport.remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        options: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        self.transport.dial(address, options)
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        let this = self.get_mut();
        Pin::new(&mut this.transport).poll(cx).map(|event| {
            let remote = match &event {
                TransportEvent::Incoming { send_back_addr, .. } => address_or_none(send_back_addr),
                _ => IpAddr::V4(Ipv4Addr::UNSPECIFIED), // There is no handshake.
            };
            event.map_upgrade(|future| Handshake {
                place: this.handshakes.enter(remote, (this.is_proved)(&future)),
                future,
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handshakes(all_max: usize, address_max: usize, subnet_max: usize) -> Handshakes {
        Handshakes::new(PendingLimits {
            all_max,
            address_max,
            subnet_max,
            trusted: crate::budget::Budget::default().trusted,
        })
    }

    fn enter(handshakes: &Handshakes, address: &str) -> Place {
        handshakes.enter(address.parse().unwrap(), true)
    }

    fn goes_on(place: &mut Place) -> bool {
        place.given_up.try_recv() == Err(oneshot::error::TryRecvError::Empty)
    }

    #[test]
    fn who_opens_most_gives_up_its_own_oldest_first() {
        let handshakes = handshakes(10, 100, 100);
        let mut early = enter(&handshakes, "198.51.100.1");
        let mut beside = enter(&handshakes, "192.0.2.2");
        let mut silent = Vec::new();
        for number in 0..100 {
            silent.push(enter(&handshakes, "192.0.2.1"));
            assert!(goes_on(&mut early) && goes_on(&mut beside), "{number}");
        }
        let are: Vec<bool> = silent.iter_mut().map(goes_on).collect();
        assert!(are[..92].iter().all(|goes_on| !goes_on));
        assert!(are[92..].iter().all(|goes_on| *goes_on));
        let mut late = enter(&handshakes, "203.0.113.1");
        assert!(goes_on(&mut late) && goes_on(&mut early) && !goes_on(&mut silent[92]));
        drop((silent, early, beside, late));
        let table = handshakes.table.lock().unwrap();
        let counts = (
            table.pending.len(),
            table.per_address.len(),
            table.per_subnet.len(),
        );
        assert_eq!(counts, (0, 0, 0));
    }

    #[test]
    fn an_address_and_a_subnet_have_their_own_limits_unless_they_are_trusted() {
        let handshakes = handshakes(100, 3, 5);
        let n_of = |address: fn(usize) -> String| {
            let mut all: Vec<Place> = (0..40).map(|n| enter(&handshakes, &address(n))).collect();
            all.iter_mut()
                .filter_map(|it| goes_on(it).then_some(()))
                .count()
        };
        assert_eq!(n_of(|_| "192.0.2.1".to_owned()), 3);
        assert_eq!(n_of(|n| format!("192.0.2.{n}")), 5);
        assert_eq!(n_of(|n| format!("2001:db8:1:1::{n}")), 3, "a /64");
        assert_eq!(n_of(|n| format!("2001:db8:1:{n}::1")), 5, "a /48");
        assert_eq!(n_of(|_| "127.0.0.1".to_owned()), 40);
    }

    #[test]
    fn as_many_addresses_as_there_is_room_give_up_the_oldest_of_all() {
        let handshakes = handshakes(4, 3, 3);
        let mut all: Vec<Place> = (0..6)
            .map(|n| enter(&handshakes, &format!("198.51.{n}.1")))
            .collect();
        let are: Vec<bool> = all.iter_mut().map(goes_on).collect();
        assert_eq!(are, [false, false, true, true, true, true]);
    }

    #[test]
    fn from_half_of_a_bound_on_addresses_are_to_be_proved() {
        let must_prove = |handshakes: &Handshakes, address: &str| {
            let address = address.parse().unwrap();
            handshakes.must_prove(address)
        };
        let all = handshakes(4, 100, 100);
        let _first = enter(&all, "192.0.2.1");
        assert!(!must_prove(&all, "192.0.2.1") && !must_prove(&all, "127.0.0.1"));
        let second = enter(&all, "192.0.2.1");
        assert!(must_prove(&all, "198.51.100.1") && must_prove(&all, "127.0.0.1"));
        drop(second);
        assert!(!must_prove(&all, "198.51.100.1"));

        let shares = handshakes(100, 2, 4);
        let _of_address = [enter(&shares, "192.0.2.1"), enter(&shares, "127.0.0.1")];
        assert!(must_prove(&shares, "192.0.2.1"));
        assert!(!must_prove(&shares, "192.0.2.2") && !must_prove(&shares, "127.0.0.1"));
        let _of_subnet = enter(&shares, "192.0.2.3");
        assert!(must_prove(&shares, "192.0.2.2") && !must_prove(&shares, "192.0.3.2"));
    }

    /// Somebody forges addresses, those of a client that means well among them.
    #[test]
    fn who_has_proved_its_address_stays_while_one_that_has_not_is_there() {
        let handshakes = handshakes(8, 4, 6);
        let forged = |address: &str| handshakes.enter(address.parse().unwrap(), false);
        let mut all = vec![forged("192.0.2.1"), forged("192.0.2.1")];
        let mut proved = enter(&handshakes, "192.0.2.1");
        all.extend([forged("198.51.100.1"), forged("203.0.113.1")]);
        // Others come from everywhere, and from beside it.
        let others: Vec<Place> = [1, 2, 3, 4, 5]
            .map(|host| format!("192.0.2.{host}"))
            .map(|address| enter(&handshakes, &address))
            .into();
        assert!(goes_on(&mut proved));
        let are: Vec<bool> = all.iter_mut().map(goes_on).collect();
        assert_eq!(are[..2], [false, false]);
        drop(others);
    }

    #[tokio::test]
    async fn a_handshake_that_is_given_up_fails_at_once() {
        let handshakes = handshakes(1, 1, 1);
        let handshake = Handshake {
            future: std::future::pending::<io::Result<()>>(),
            place: enter(&handshakes, "192.0.2.1"),
        };
        let waiting = tokio::spawn(handshake);
        tokio::task::yield_now().await;
        let _younger = enter(&handshakes, "192.0.2.2");
        let error = waiting.await.unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionAborted);
    }
}
