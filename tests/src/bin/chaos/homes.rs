//! Which process of which proxy serves a client: what a proxy has heard ends with its process.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};

/// A process of a proxy: the proxy's number, and how often it has been started.
pub type Home = (usize, u64);

/// The proxies, and how often each has been started.
#[derive(Debug)]
pub struct Homes {
    addresses: Vec<SocketAddr>,
    /// Odd while the proxy is being replaced.
    starts: Vec<AtomicU64>,
}

impl Homes {
    /// Proxies that have just been started.
    pub fn new(addresses: &[SocketAddr]) -> Self {
        let starts = addresses.iter().map(|_| AtomicU64::new(0)).collect();
        Self { addresses: addresses.to_vec(), starts }
    }

    /// The process that answers at an address. None for a balancer, and while the proxy is being replaced.
    pub fn at(&self, address: SocketAddr) -> Option<Home> {
        let proxy = self.addresses.iter().position(|known| *known == address)?;
        let starts = self.starts[proxy].load(Ordering::SeqCst);
        starts.is_multiple_of(2).then_some((proxy, starts))
    }

    /// The proxy's process is about to end.
    pub fn leave(&self, proxy: usize) {
        self.starts[proxy].fetch_add(1, Ordering::SeqCst);
    }

    /// The proxy has a new process.
    pub fn enter(&self, proxy: usize) {
        self.starts[proxy].fetch_add(1, Ordering::SeqCst);
    }
}
