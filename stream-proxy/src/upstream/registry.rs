//! Reports to the database which topics have subscribers, for `tidings.open_topics`: at most once a second, only what
//! changed, with a lease that expires if this proxy dies.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::metrics::Metrics;
use crate::stream::hub::Hub;
use crate::upstream::database::DatabaseError;
use crate::upstream::reads::Reads;

/// The shortest time between two reports.
const INTERVAL: Duration = Duration::from_secs(1);

/// How long a report is valid unless it is renewed.
const LEASE: Duration = Duration::from_secs(30);

/// How often the lease is renewed, and how long to wait after a failed report.
const RENEWAL: Duration = Duration::from_secs(10);

/// The most topics in one report.
const BATCH: usize = 5_000;

/// Reports the topics of one proxy.
#[derive(Debug)]
pub struct Registry {
    hub: Arc<Hub>,
    reads: Arc<Reads>,
    metrics: Arc<Metrics>,
    address: String,
    /// The name of this proxy in the reports so far.
    name: String,
    /// Whether the next report has to contain all topics: nothing has been reported under this name, or the database
    /// may have lost it.
    all: bool,
    /// How many connections for reports had been made at the end of the last report.
    connections: usize,
    /// The topics, with their numbers of subscribers, that no finished report has included. When the proxy shuts down,
    /// it gives up a report that is under way, and the last one has to repeat it.
    unreported: HashMap<Arc<str>, usize>,
}

impl Registry {
    /// A registry for a proxy that listens on `address`.
    pub fn new(hub: Arc<Hub>, reads: Arc<Reads>, metrics: Arc<Metrics>, address: &str) -> Self {
        let name = name(address);
        Self {
            hub,
            reads,
            metrics,
            address: address.into(),
            name,
            all: true,
            connections: 0,
            unreported: HashMap::new(),
        }
    }

    /// Reports forever.
    pub async fn run(&mut self) -> Infallible {
        let mut renewed = None;
        loop {
            sleep(INTERVAL).await;
            let due = renewed.is_none_or(|at: Instant| at.elapsed() >= RENEWAL);
            match self.report(due).await {
                Ok(true) => renewed = Some(Instant::now()),
                Ok(false) => {}
                Err(error) => {
                    self.metrics.report_errors.add(1);
                    tracing::debug!(%error, "open topics not reported");
                    self.start_again();
                    sleep(RENEWAL).await;
                }
            }
        }
    }

    /// Reports what changed; if nothing did, only when a renewal is due. True if the lease is renewed.
    pub async fn report(&mut self, due: bool) -> Result<bool, DatabaseError> {
        if !self.reads.takes_reports() {
            // After a promotion everything is reported. Until then the hub must not gather what has changed.
            self.start_again();
            drop(self.hub.subscriber_counts(false));
            return Ok(false);
        }
        self.unreported.extend(self.hub.subscriber_counts(self.all));
        let topics: Vec<_> = self.unreported.iter().map(|(topic, count)| (topic.clone(), *count)).collect();
        if topics.is_empty() && !due {
            return Ok(false);
        }
        // An empty report renews the lease.
        let batches = if topics.is_empty() { vec![&topics[..]] } else { topics.chunks(BATCH).collect() };
        for batch in batches {
            self.reads.report(&self.name, batch, LEASE).await?;
        }
        // A flood of topics leaves no memory allocated.
        self.unreported = HashMap::new();
        // A new connection may mean that the server has crashed, which empties the table of open topics.
        let connections = self.reads.report_connections();
        self.all = connections != self.connections && !self.all;
        self.connections = connections;
        Ok(true)
    }

    /// Makes the next report contain all topics, under a new name: it is unknown what the database has recorded for the
    /// old one, and that ends with its lease.
    fn start_again(&mut self) {
        (self.name, self.all) = (name(&self.address), true);
        self.unreported.clear();
    }
}

fn name(address: &str) -> String {
    format!("{address}/{:08x}", fastrand::u32(..))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stream::frame::Frame;
    use crate::stream::subscriber::Subscriber;
    use crate::upstream::database::Database;
    use crate::upstream::standing::Standing;

    #[tokio::test]
    async fn at_a_standby_changes_that_nobody_is_told_do_not_gather() {
        let metrics = Arc::new(Metrics::default());
        let (hub, standing) = (Hub::new(1000, metrics.clone()), Arc::new(Standing::new(Duration::ZERO)));
        standing.is_standby_now(false);
        let database = Database::parse("postgres://proxy@127.0.0.1/app", None).expect("a URL");
        let reads = Arc::new(Reads::new(database, None, standing, 1, metrics.clone()));
        let mut registry = Registry::new(hub.clone(), reads, metrics, "here");
        let subscriber = Subscriber::new(1000);
        hub.join(&subscriber, &["a".into()], |_| Frame::greeting());
        hub.leave(&subscriber);
        assert!(!registry.report(true).await.expect("no question to the database"));
        assert_eq!(hub.subscriber_counts(false), []);
    }
}
