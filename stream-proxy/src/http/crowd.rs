//! Limits on connections, in total and by address. A few connections are always reserved for health checks.

use std::future::pending;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::addresses::{AddressPermit, Addresses};
use crate::http::reserve::{Reserve, Reserved};
use crate::metrics::Metrics;

/// How many connections without an HTTP/1.1 stream are allowed beyond the limit of streams.
const SPARE_CONNECTIONS: u64 = 1024;

/// The same for the connections of one address, if its streams are limited.
const SPARE_OF_ADDRESS: u32 = 16;

/// How long a connection beyond the limits may take for its request. It is short because a flood takes these
/// connections too.
const RESERVE_PATIENCE: Duration = Duration::from_secs(1);

/// The connections that have no HTTP/1.1 stream.
#[derive(Debug)]
pub struct Crowd {
    metrics: Arc<Metrics>,
    /// The most connections.
    most: u64,
    /// The most connections of one address, if that is limited.
    most_of_address: Option<u32>,
    addresses: Addresses,
    reserve: Arc<Reserve>,
}

/// A connection that was admitted; it counts until this is dropped.
#[derive(Debug)]
pub struct Admitted {
    metrics: Arc<Metrics>,
    _address: Option<AddressPermit>,
    reserved: Option<Reserved>,
}

impl Crowd {
    /// The crowd of a proxy with these limits of streams; 0 for one address means no limit.
    pub fn new(max_clients: u64, max_clients_per_address: u32, metrics: Arc<Metrics>) -> Self {
        let limited = (max_clients_per_address > 0).then_some(max_clients_per_address);
        Self {
            metrics,
            most: max_clients.saturating_add(SPARE_CONNECTIONS),
            most_of_address: limited.map(|most| most.saturating_add(SPARE_OF_ADDRESS)),
            addresses: Addresses::default(),
            reserve: Arc::default(),
        }
    }

    /// Admits a connection, beyond the limits to the reserve.
    pub fn admit(&self, peer: IpAddr) -> Admitted {
        let room = self.metrics.connections.rise() <= self.most;
        let mut admitted = Admitted { metrics: self.metrics.clone(), _address: None, reserved: None };
        let address = self.most_of_address.map(|most| self.addresses.enter(peer, most));
        match address {
            None if room => return admitted,
            Some(Some(permit)) if room => {
                admitted._address = Some(permit);
                return admitted;
            }
            _ => {}
        }
        self.metrics.over_connections.add(1);
        admitted.reserved = Some(self.reserve.enter(peer));
        admitted
    }
}

impl Admitted {
    /// Whether the connection may only request health checks.
    pub fn is_reserved(&self) -> bool {
        self.reserved.is_some()
    }

    /// Waits until another connection displaces this one.
    pub async fn displaced(&mut self) {
        match &mut self.reserved {
            Some(reserved) => reserved.displaced().await,
            None => pending().await,
        }
    }

    /// How long the connection may take for its request, where `patience` is the time for other connections.
    pub fn patience(&self, patience: Duration) -> Duration {
        if self.is_reserved() { patience.min(RESERVE_PATIENCE) } else { patience }
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        self.metrics.connections.fall();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::http::reserve::RESERVE;
    use std::collections::VecDeque;
    use std::future::Future;
    use std::pin::pin;
    use std::task::{Context, Waker};

    fn is_displaced(admitted: &mut Admitted) -> bool {
        let mut displaced = pin!(admitted.displaced());
        displaced.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn beyond_the_limit_health_checks_are_served_from_the_reserve() {
        let metrics = Arc::new(Metrics::default());
        let crowd = Crowd::new(10_000, 4, metrics.clone());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut inside: Vec<_> = (0..4 + SPARE_OF_ADDRESS).map(|_| crowd.admit(one)).collect();
        assert!(inside.iter().all(|admitted| !admitted.is_reserved()));
        assert!(crowd.admit(one).is_reserved());
        assert!(!crowd.admit(other).is_reserved());
        inside.pop();
        assert!(!crowd.admit(one).is_reserved());
        drop(inside);
        assert_eq!(metrics.connections.get(), 0);
        assert!(crowd.addresses.is_empty() && crowd.reserve.count() == 0);
    }

    #[test]
    fn a_flood_displaces_its_own_connections_from_the_reserve() {
        let crowd = Crowd::new(0, 0, Arc::default());
        let _inside: Vec<_> = (0..SPARE_CONNECTIONS).map(|_| crowd.admit(IpAddr::from([192, 0, 2, 1]))).collect();
        let mut flood: VecDeque<_> = (0..RESERVE).map(|_| crowd.admit(IpAddr::from([192, 0, 2, 2]))).collect();
        assert!(flood.iter_mut().all(|admitted| admitted.is_reserved() && !is_displaced(admitted)));
        // Another address displaces the oldest of the flood, and the flood only its own.
        let mut probe = crowd.admit(IpAddr::from([192, 0, 2, 3]));
        for _ in 0..3 * RESERVE {
            assert!(is_displaced(&mut flood.pop_front().unwrap()));
            assert!(flood.iter_mut().all(|admitted| !is_displaced(admitted)));
            flood.push_back(crowd.admit(IpAddr::from([192, 0, 2, 2])));
        }
        assert!(probe.is_reserved() && !is_displaced(&mut probe));
        assert_eq!(crowd.reserve.count(), RESERVE);
        drop((flood, probe));
        assert!(crowd.reserve.count() == 0);
    }
}
