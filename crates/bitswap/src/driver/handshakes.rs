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

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use futures_util::FutureExt;
use libp2p::Multiaddr;
use libp2p::core::transport::{Boxed, DialOpts, ListenerId, TransportError, TransportEvent};
use tokio::sync::oneshot;

use super::limits::address_of;
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

    /// One more handshake, of `remote`.
    fn enter(&self, remote: IpAddr) -> Place {
        let (address, subnet) = (host(remote), subnet(remote));
        let mut table = hold(&self.table);
        table.make_room(address, subnet, self.is_trusted(remote), &self.limits);
        let number = table.n_ever;
        table.n_ever += 1;
        let (go_on, given_up) = oneshot::channel();
        let pending = Pending {
            address,
            subnet,
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
    /// those that are `meant`. Looks at all of them: a few hundred.
    fn give_up(&mut self, meant: impl Fn(&Pending) -> bool) {
        let meant = self.pending.iter().filter(|(_, pending)| meant(pending));
        let oldest = meant.max_by_key(|(number, pending)| {
            (
                n_of(&self.per_subnet, pending.subnet),
                n_of(&self.per_address, pending.address),
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
pub(super) struct Bounded<O> {
    transport: Boxed<O>,
    handshakes: Handshakes,
}

impl<O> Bounded<O> {
    pub(super) const fn new(transport: Boxed<O>, handshakes: Handshakes) -> Self {
        Self {
            transport,
            handshakes,
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

impl<O> libp2p::Transport for Bounded<O> {
    type Output = O;
    type Error = io::Error;
    type ListenerUpgrade = Handshake<<Boxed<O> as libp2p::Transport>::ListenerUpgrade>;
    type Dial = <Boxed<O> as libp2p::Transport>::Dial;

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
                TransportEvent::Incoming { send_back_addr, .. } => address_of(send_back_addr),
                _ => None,
            };
            let handshakes = &this.handshakes;
            event.map_upgrade(|future| Handshake {
                future,
                place: handshakes.enter(remote.unwrap_or(IpAddr::V4([0; 4].into()))),
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
        handshakes.enter(address.parse().unwrap())
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
