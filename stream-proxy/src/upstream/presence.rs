//! Leaving a database that a statement needs without other sessions: DROP DATABASE, a rename, or CREATE DATABASE with
//! it as the template. The relay asks for it; then all connections of this proxy close, and for a moment no new ones
//! are made. By then the statement holds a lock that makes new connections wait until it has ended.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

/// How long the proxy stays away. The statement takes its lock as soon as the relay has left, within milliseconds.
pub const AWAY: Duration = Duration::from_secs(2);

/// Whether connections to a database may be made. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Presence(Arc<watch::Sender<Option<Instant>>>);

impl Presence {
    /// From now on all connections close, and no new ones are made for [`AWAY`].
    pub fn leave(&self) {
        self.0.send_replace(Some(Instant::now() + AWAY));
    }

    /// Whether no connection may be made now.
    pub fn is_away(&self) -> bool {
        self.0.borrow().is_some_and(|until| Instant::now() < until)
    }

    /// For a connection that is made now.
    pub fn seat(&self) -> Seat {
        Seat(self.0.subscribe())
    }
}

/// What a connection knows about having to leave.
#[derive(Debug)]
pub struct Seat(watch::Receiver<Option<Instant>>);

impl Seat {
    /// Waits until the connection has to close. It may be cancelled and called again.
    pub async fn left(&mut self) {
        if self.0.changed().await.is_err() {
            // Nobody can ask for it any more.
            std::future::pending().await
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_seats_are_left_and_new_ones_wait_for_a_while() {
        let presence = Presence::default();
        let mut before = presence.clone().seat();
        presence.leave();
        before.left().await;
        assert!(presence.is_away());
        tokio::time::advance(AWAY).await;
        assert!(!presence.is_away());
        // A connection that was made afterwards stays.
        let mut after = presence.seat();
        assert!(tokio::time::timeout(AWAY, after.left()).await.is_err());
    }
}
