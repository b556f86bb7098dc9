//! What the server is, as the live connection has found out: a primary or a standby, and how far a standby is behind.
//! The other parts of the proxy ask here.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// What the server is. Before the first connection it counts as a primary.
#[derive(Debug)]
pub struct Standing {
    /// How far a standby may be behind.
    max_lag: Duration,
    is_standby: AtomicBool,
    is_behind: AtomicBool,
}

impl Standing {
    /// Nothing is known yet. A standby may be behind by `max_lag`.
    pub fn new(max_lag: Duration) -> Self {
        Self { max_lag, is_standby: AtomicBool::new(false), is_behind: AtomicBool::new(false) }
    }

    /// How far a standby may be behind.
    pub fn max_lag(&self) -> Duration {
        self.max_lag
    }

    /// Whether the server is a standby.
    pub fn is_standby(&self) -> bool {
        self.is_standby.load(Relaxed)
    }

    /// Whether the server is a standby that is further behind than it may be.
    pub fn is_behind(&self) -> bool {
        self.is_standby() && self.is_behind.load(Relaxed)
    }

    /// Notes that the server is a primary.
    pub fn is_primary_now(&self) {
        self.is_standby.store(false, Relaxed);
    }

    /// Notes that the server is a standby, and whether it is too far behind.
    pub fn is_standby_now(&self, is_behind: bool) {
        self.is_behind.store(is_behind, Relaxed);
        self.is_standby.store(true, Relaxed);
    }
}
