//! Limits on connections, in total and by address. A few connections are always reserved for health checks.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::addresses::{AddressPlace, Addresses};
use crate::metrics::Metrics;

/// How many connections without an HTTP/1.1 stream are allowed beyond the limit of streams.
const SPARE_CONNECTIONS: u64 = 1024;

/// The same for the connections of one address, if its streams are limited.
const SPARE_OF_ADDRESS: u32 = 16;

/// Connections beyond the limit that may request `/healthz` and `/readyz`: monitoring should not mistake a full proxy
/// for a dead one.
const RESERVE: usize = 32;

/// How long such a connection may take for its request. It is short because a flood of connections takes these places
/// too.
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
    reserve: Arc<Semaphore>,
}

/// A connection's place in the crowd; dropping it releases the place.
#[derive(Debug)]
pub struct Admitted {
    metrics: Arc<Metrics>,
    _address: Option<AddressPlace>,
    reserved: Option<OwnedSemaphorePermit>,
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
            reserve: Arc::new(Semaphore::new(RESERVE)),
        }
    }

    /// Admits a connection if there is a place for it.
    pub fn admit(&self, peer: IpAddr) -> Option<Admitted> {
        let room = self.metrics.connections.rise() <= self.most;
        let mut admitted = Admitted { metrics: self.metrics.clone(), _address: None, reserved: None };
        let address = self.most_of_address.map(|most| self.addresses.enter(peer, most));
        match address {
            None if room => return Some(admitted),
            Some(Some(place)) if room => {
                admitted._address = Some(place);
                return Some(admitted);
            }
            _ => {}
        }
        self.metrics.over_connections.add(1);
        admitted.reserved = Some(self.reserve.clone().try_acquire_owned().ok()?);
        Some(admitted)
    }
}

impl Admitted {
    /// Whether the connection may only request health checks.
    pub fn is_reserved(&self) -> bool {
        self.reserved.is_some()
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

    #[test]
    fn beyond_the_limit_health_checks_are_served_from_the_reserve() {
        let metrics = Arc::new(Metrics::default());
        let crowd = Crowd::new(10_000, 4, metrics.clone());
        let (one, other) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([192, 0, 2, 2]));
        let mut inside: Vec<_> = (0..4 + SPARE_OF_ADDRESS).map(|_| crowd.admit(one).unwrap()).collect();
        assert!(inside.iter().all(|admitted| !admitted.is_reserved()));
        let reserved: Vec<_> = (0..RESERVE).map(|_| crowd.admit(one).unwrap()).collect();
        assert!(reserved.iter().all(Admitted::is_reserved));
        assert!(crowd.admit(one).is_none());
        assert!(!crowd.admit(other).unwrap().is_reserved());
        inside.pop();
        assert!(!crowd.admit(one).unwrap().is_reserved());
        drop((inside, reserved));
        assert_eq!(metrics.connections.get(), 0);
        assert!(crowd.addresses.is_empty());
    }
}
