//! Access must be checked at the server whose events the proxy publishes. If a connection string leads to several
//! servers, another one may be a standby that has not replayed a change yet: its answer would still be yes.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

/// How long a connection to another server waits for the upstream to follow that server: longer than the upstream waits
/// before it connects again.
const PATIENCE: Duration = Duration::from_secs(6);

/// A server, from its start to its end: the time at which it was started, in microseconds since the Unix epoch. Two
/// servers hardly ever share it, and a promotion does not change it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Server(i64);

impl Server {
    /// The query for that time.
    pub const STARTED: &str = "SELECT (pg_catalog.date_part('epoch', pg_catalog.pg_postmaster_start_time())
        OPERATOR(pg_catalog.*) 1000000::pg_catalog.float8)::pg_catalog.int8";

    /// The server that was started at this time.
    pub fn started_at(time: i64) -> Self {
        Self(time)
    }
}

/// The server that the upstream follows, or followed last. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Followed(Arc<watch::Sender<Option<Server>>>);

impl Followed {
    /// The upstream follows this server from now on.
    pub fn set(&self, server: Server) {
        self.0.send_replace(Some(server));
    }

    /// Whether access may be checked there: it is the server that the upstream follows, or the upstream has none yet.
    pub fn is(&self, server: Server) -> bool {
        self.0.borrow().is_none_or(|followed| followed == server)
    }

    /// Waits until the upstream follows one of these servers, but not for long.
    pub async fn becomes_one_of(&self, servers: &[Server]) {
        let mut followed = self.0.subscribe();
        let one_of = |followed: &Option<Server>| followed.is_some_and(|followed| servers.contains(&followed));
        // Too late or in time, the next attempt finds out.
        let _ = timeout(PATIENCE, followed.wait_for(one_of)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_the_server_that_is_followed_is_asked() {
        let (followed, here, there) = (Followed::default(), Server(1), Server(2));
        assert!(followed.is(here) && followed.is(there));
        followed.set(here);
        assert!(followed.is(here) && !followed.is(there));
        let other = followed.clone();
        let waiting = tokio::spawn(async move { other.becomes_one_of(&[there]).await });
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        followed.set(there);
        timeout(PATIENCE / 2, waiting).await.expect("it is noticed at once").expect("no panic");
    }
}
