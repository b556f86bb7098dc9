//! A connected client, and what goes wrong with its connection.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Response;
use hyper::body::Body as _;
use tokio::time::{Sleep, sleep};

use crate::http::body::Body;

/// An error that ends a connection.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// How many headers a request may have.
pub const MAX_HEADERS: usize = 64;

/// The fewest bytes in a second that a client must take of a response that is not a stream.
const SLOWEST: u64 = 1024;

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

impl Caller {
    /// Ends when the client has had enough time for a response that is not a stream: as much as for its request, and
    /// more if the response is large. A client that takes nothing would otherwise hold response and connection forever.
    pub fn patience(&self, response: &Response<Body>) -> Sleep {
        let bytes = response.body().size_hint().exact().unwrap_or(0);
        sleep(self.time.saturating_add(Duration::from_secs(bytes / SLOWEST)))
    }
}
