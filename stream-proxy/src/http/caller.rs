//! A connected client, and what goes wrong with its connection.

use std::net::IpAddr;
use std::time::Duration;

/// An error that ends a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many headers a request may have.
pub const MAX_HEADERS: usize = 64;

/// A connected client.
#[derive(Clone, Copy, Debug)]
pub struct Caller {
    /// Its address.
    pub peer: IpAddr,
    /// How long it may take for its request.
    pub time: Duration,
    /// Whether it may only request health checks.
    pub reserved: bool,
}
