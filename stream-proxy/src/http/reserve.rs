//! The connections beyond all limits: a few, and only for health checks.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::addresses::network;

/// Connections beyond the limit that may request `/healthz` and `/readyz`: monitoring should not mistake a full proxy
/// for a dead one. A flood takes these connections too, so when there are as many, a new one displaces one of them.
pub const RESERVE: usize = 32;

/// The connections in the reserve.
#[derive(Debug, Default)]
pub struct Reserve(Mutex<Queue>);

#[derive(Debug, Default)]
struct Queue {
    /// Oldest first.
    connections: VecDeque<Held>,
    next_key: u64,
}

/// A connection in the reserve. Dropping it here displaces the connection.
#[derive(Debug)]
struct Held {
    address: IpAddr,
    _held: oneshot::Sender<Infallible>,
    /// The key of the [`Reserved`] that belongs to it.
    key: u64,
}

/// A connection's hold on the reserve, until it is dropped.
#[derive(Debug)]
pub struct Reserved {
    reserve: Arc<Reserve>,
    key: u64,
    displaced: oneshot::Receiver<Infallible>,
}

impl Reserve {
    /// Adds a connection. If there are too many, the oldest one of the address with the most connections is displaced:
    /// a flood from a few addresses does not displace clients with another address.
    pub fn enter(self: &Arc<Self>, peer: IpAddr) -> Reserved {
        let (held, displaced) = oneshot::channel();
        let mut queue = self.0.lock();
        if queue.connections.len() >= RESERVE {
            let connections = &queue.connections;
            let share = |held: &Held| connections.iter().filter(|other| other.address == held.address).count();
            let largest = connections.iter().map(share).max();
            let oldest = connections.iter().position(|held| Some(share(held)) == largest);
            oldest.and_then(|oldest| queue.connections.remove(oldest));
        }
        let key = queue.next_key;
        queue.next_key += 1;
        queue.connections.push_back(Held { address: network(peer), _held: held, key });
        Reserved { reserve: self.clone(), key, displaced }
    }

    /// The number of connections.
    #[cfg(test)]
    pub fn count(&self) -> usize {
        self.0.lock().connections.len()
    }
}

impl Reserved {
    /// Waits until another connection displaces this one.
    pub async fn displaced(&mut self) {
        // Nothing is ever sent: the wait ends when the sender is dropped.
        let _ = (&mut self.displaced).await;
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        self.reserve.0.lock().connections.retain(|held| held.key != self.key);
    }
}
