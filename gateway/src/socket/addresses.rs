//! Who is connected from where. Addresses are counted from accept on, so that nobody who does not even sign in
//! can take all places: where there is none left, it is made by those who let us wait.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Connections of an address over its limit that are still told so; more are closed without a word.
const TOLD: usize = 8;

/// How long nobody has to make place: a request comes with its connection, or a moment later.
const MOMENT: Duration = Duration::from_millis(250);

/// What counts as one address. Whoever has IPv6 has at least a whole /64 of it.
pub(crate) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// The connections of each address on the public listener.
#[derive(Debug, Default)]
pub(crate) struct Addresses {
    callers: Mutex<Callers>,
    /// Connections that are no sockets, proxies' included.
    visitors: AtomicUsize,
    /// One of them has gone.
    gone: Notify,
}

#[derive(Debug, Default)]
struct Callers {
    of: HashMap<IpAddr, Connections>,
    /// Those of trusted proxies, which are as many clients'.
    of_proxies: Visitors,
    arrived: u64,
}

/// By their order of arrival.
type Visitors = BTreeMap<u64, Arc<Counts>>;

#[derive(Debug, Default)]
struct Connections {
    /// Counted only where addresses are limited.
    sockets: usize,
    visitors: Visitors,
}

#[derive(Debug)]
struct Counts {
    arrived: Instant,
    /// The peer has to do something next: finish its request, or take the answer.
    waits: AtomicBool,
    displaced: Notify,
}

/// A connection that is no socket yet, counted until it is dropped.
#[derive(Debug)]
pub(crate) struct Visitor {
    addresses: Arc<Addresses>,
    /// `None` for a proxy's.
    network: Option<IpAddr>,
    id: u64,
    state: Arc<Counts>,
}

impl Addresses {
    /// Counts a connection that was accepted. `None` when its address has far too many; `limit` 0 is none.
    pub(crate) fn arrive(
        self: &Arc<Self>,
        peer: IpAddr,
        is_proxy: bool,
        limit: usize,
        now: Instant,
    ) -> Option<Visitor> {
        let network = (!is_proxy).then(|| network(peer));
        let state = Arc::new(Counts { arrived: now, waits: AtomicBool::new(true), displaced: Notify::new() });
        let mut callers = self.callers.lock();
        callers.arrived += 1;
        let id = callers.arrived;
        match network {
            Some(network) => {
                let connections = callers.of.entry(network).or_default();
                let over = limit > 0 && connections.sockets + connections.visitors.len() >= limit + TOLD;
                if over && !displace_oldest(&mut connections.visitors, now) {
                    return None;
                }
                connections.visitors.insert(id, Arc::clone(&state));
            }
            None => drop(callers.of_proxies.insert(id, Arc::clone(&state))),
        }
        self.visitors.fetch_add(1, Ordering::Relaxed);
        drop(callers);
        Some(Visitor { addresses: Arc::clone(self), network, id, state })
    }

    /// Counts a socket, which its visitor has become, if the limit allows; visitors count too.
    pub(crate) fn seat(&self, network: IpAddr, limit: usize, visitor: Option<&Visitor>) -> bool {
        let mut callers = self.callers.lock();
        let connections = callers.of.entry(network).or_default();
        let same = visitor.filter(|visitor| visitor.network == Some(network));
        let was = same.and_then(|visitor| connections.visitors.remove_entry(&visitor.id));
        let free = connections.sockets + connections.visitors.len() < limit;
        match (free, was) {
            (true, _) => connections.sockets += 1,
            (false, Some((id, state))) => drop(connections.visitors.insert(id, state)),
            (false, None) => callers.forget_if_empty(network),
        }
        free
    }

    /// The socket has gone.
    pub(crate) fn leave(&self, network: IpAddr) {
        let mut callers = self.callers.lock();
        if let Some(connections) = callers.of.get_mut(&network) {
            connections.sockets -= 1;
        }
        callers.forget_if_empty(network);
    }

    /// How many connections are no sockets.
    pub(crate) fn visitors(&self) -> usize {
        self.visitors.load(Ordering::Relaxed)
    }

    /// Closes the oldest connection that lets us wait, of the address that has most of them; a proxy's last of all.
    /// `false` when there is none.
    pub(crate) fn displace(&self, now: Instant) -> bool {
        let callers = &mut *self.callers.lock();
        let waits = |connections: &Connections| connections.visitors.values().any(|state| state.waits(now));
        let most = callers.of.values_mut().filter(|connections| waits(connections));
        match most.max_by_key(|connections| connections.visitors.len()) {
            Some(connections) => displace_oldest(&mut connections.visitors, now),
            None => displace_oldest(&mut callers.of_proxies, now),
        }
    }

    /// Waits until a visitor has gone.
    pub(crate) async fn gone(&self) {
        self.gone.notified().await;
    }
}

fn displace_oldest(visitors: &mut Visitors, now: Instant) -> bool {
    let oldest = visitors.iter().find(|(_, state)| state.waits(now)).map(|(id, _)| *id);
    let Some(state) = oldest.and_then(|id| visitors.remove(&id)) else { return false };
    state.displaced.notify_one();
    true
}

impl Callers {
    fn forget_if_empty(&mut self, network: IpAddr) {
        if self.of.get(&network).is_some_and(|found| found.sockets == 0 && found.visitors.is_empty()) {
            self.of.remove(&network);
        }
    }
}

impl Counts {
    fn waits(&self, now: Instant) -> bool {
        self.waits.load(Ordering::Relaxed) && now.duration_since(self.arrived) >= MOMENT
    }
}

impl Visitor {
    /// Notes whether the peer has to do something next.
    pub(crate) fn waits(&self, waits: bool) {
        self.state.waits.store(waits, Ordering::Relaxed);
    }

    /// Waits until somebody else is to have this one's place.
    pub(crate) async fn displaced(&self) {
        self.state.displaced.notified().await;
    }

    /// It did not become a socket in the end.
    pub(crate) fn stays(&self) {
        if let Some(network) = self.network {
            let mut callers = self.addresses.callers.lock();
            callers.of.entry(network).or_default().visitors.insert(self.id, Arc::clone(&self.state));
        }
    }
}

impl Drop for Visitor {
    fn drop(&mut self) {
        let mut callers = self.addresses.callers.lock();
        match self.network {
            Some(network) => {
                if let Some(connections) = callers.of.get_mut(&network) {
                    connections.visitors.remove(&self.id);
                }
                callers.forget_if_empty(network);
            }
            None => drop(callers.of_proxies.remove(&self.id)),
        }
        drop(callers);
        self.addresses.visitors.fetch_sub(1, Ordering::Relaxed);
        self.addresses.gone.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn arrive(addresses: &Arc<Addresses>, from: &str, limit: usize) -> Option<Visitor> {
        addresses.arrive(address(from), false, limit, Instant::now())
    }

    fn later() -> Instant {
        Instant::now() + MOMENT
    }

    fn is_displaced(visitor: &Visitor) -> bool {
        futures_util::FutureExt::now_or_never(visitor.displaced()).is_some()
    }

    #[test]
    fn a_network_of_ipv6_is_one_address() {
        assert_eq!(network(address("2001:db8:1:2:3:4:5:6")), address("2001:db8:1:2::"));
        assert_ne!(network(address("2001:db8:1:3::1")), network(address("2001:db8:1:2::1")));
        assert_eq!(network(address("::ffff:10.1.2.3")), address("10.1.2.3"));
        assert_eq!(network(address("10.1.2.3")), address("10.1.2.3"));
    }

    #[test]
    fn visitors_count_until_they_go_and_once_when_they_become_sockets() {
        let (addresses, home) = (Arc::new(Addresses::default()), address("2001:db8::1"));
        let first = arrive(&addresses, "2001:db8::1", 2).unwrap();
        let second = arrive(&addresses, "2001:db8::2", 2).unwrap();
        let third = arrive(&addresses, "2001:db8::3", 2).unwrap();
        assert!(!addresses.seat(network(home), 2, Some(&first)), "two others are there");
        drop(third);
        assert!(addresses.seat(network(home), 2, Some(&first)) && addresses.seat(network(home), 2, Some(&second)));
        drop((first, second));
        assert_eq!(addresses.visitors(), 0);
        assert!(!addresses.seat(network(home), 2, None));
        addresses.leave(network(home));
        assert!(addresses.seat(network(home), 2, None));
        addresses.leave(network(home));
        addresses.leave(network(home));
        assert!(addresses.callers.lock().of.is_empty());
    }

    #[test]
    fn who_lets_us_wait_makes_place_the_address_with_most_of_them_first() {
        let addresses = Arc::new(Addresses::default());
        let proxied = addresses.arrive(address("10.0.0.1"), true, 0, Instant::now()).unwrap();
        let other = arrive(&addresses, "10.0.0.2", 0).unwrap();
        let many: Vec<_> = (0..3).map(|_| arrive(&addresses, "10.0.0.3", 0).unwrap()).collect();
        many[0].waits(false);
        assert!(!addresses.displace(Instant::now()), "they have only just come");
        assert!(addresses.displace(later()));
        assert!(is_displaced(&many[1]) && !is_displaced(&many[0]) && !is_displaced(&other));
        other.waits(false);
        assert!(addresses.displace(later()) && is_displaced(&many[2]));
        assert!(addresses.displace(later()) && is_displaced(&proxied));
        assert!(!addresses.displace(later()), "the others are being answered");
        assert_eq!(addresses.visitors(), 5, "until they have gone");
    }

    #[test]
    fn far_over_its_limit_an_address_is_not_even_told() {
        let addresses = Arc::new(Addresses::default());
        let told: Vec<_> = (0..1 + TOLD).map(|_| arrive(&addresses, "10.0.0.1", 1).unwrap()).collect();
        assert!(arrive(&addresses, "10.0.0.1", 1).is_none());
        assert!(arrive(&addresses, "10.0.0.2", 1).is_some());
        let next = addresses.arrive(address("10.0.0.1"), false, 1, later());
        assert!(next.is_some() && is_displaced(&told[0]), "the oldest makes place");
        told.iter().for_each(|visitor| visitor.waits(false));
        assert!(addresses.arrive(address("10.0.0.1"), false, 1, later()).is_none());
    }
}
