//! What all requests share, and what an open stream holds.

use std::net::IpAddr;
use std::sync::Arc;

use tidings_wire::Position;
use tokio::sync::watch;

use crate::access::auth::{Access, Identity, Reader};
use crate::access::open_streams::Pass;
use crate::addresses::{AddressPermit, Addresses};
use crate::cli::Cli;
use crate::metrics::Metrics;
use crate::stream::channels::Channels;
use crate::stream::frame::Frame;
use crate::stream::heartbeat::Wheel;
use crate::stream::hub::{Hub, Joined};
use crate::stream::place::Place;
use crate::stream::subscriber::Subscriber;
use crate::stream::writer::CountBytes;
use crate::upstream::dialect::{Dialect, MISSING};
use crate::upstream::reads::Reads;
use crate::upstream::replay::{Replay, TopicLog};
use crate::upstream::session::Readiness;
use crate::upstream::snapshots::{Arrival, Form, Snapshots, Wish};
use crate::upstream::standing::Standing;

/// The running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// The settings.
    pub cli: Cli,
    /// Who may subscribe.
    pub access: Access,
    /// Topics, subscribers, history.
    pub hub: Arc<Hub>,
    /// Plain channels.
    pub channels: Arc<Channels>,
    /// The read connection.
    pub reads: Arc<Reads>,
    /// Readings of rows, for streams that start with them.
    pub snapshots: Arc<Snapshots>,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// Whether the server is a standby.
    pub standing: Arc<Standing>,
    /// All streams, for heartbeats.
    pub wheel: Wheel,
    /// Whether the upstream is ready.
    pub upstream: watch::Receiver<Readiness>,
    /// Whether the proxy is shutting down.
    pub draining: watch::Sender<bool>,
    /// The number of streams of each address, if it is limited.
    pub addresses: Addresses,
}

/// Why no stream can be opened now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    /// The limit of streams is reached.
    #[error("the limit of streams is reached")]
    OverLimit,
    /// The right was taken away while the answer waited for an event.
    #[error("access has ended: ask again")]
    Revoked,
    /// The proxy is shutting down.
    #[error("shutting down")]
    Draining,
    /// The proxy has not reached the database since it started.
    #[error("the database has not been reached yet")]
    NotReady,
    /// A plain channel at a standby.
    #[error("the server is a standby, where nobody can listen: plain channels are served at the primary")]
    Standby,
    /// Rows, from a database whose SQL is older than the proxy.
    #[error("{MISSING}")]
    OldSql,
}

/// Where a stream starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StartAt {
    /// At the next event.
    Live,
    /// At the first event that is retained.
    Earliest,
    /// After this position.
    After(Position),
    /// With the rows that are there.
    Rows,
}

/// A request for a stream.
#[derive(Debug, PartialEq, Eq)]
pub struct StreamRequest {
    /// The topics, without duplicates.
    pub topics: Vec<Arc<str>>,
    /// Where to start.
    pub start: StartAt,
    /// Whether the stream starts over with the rows if its position can't be served.
    pub wants_rows: bool,
}

/// An open stream. Dropping it releases everything that the stream holds.
#[derive(Debug)]
pub struct Subscription {
    proxy: Arc<Proxy>,
    subscriber: Arc<Subscriber>,
    /// Whether the stream is of a channel, not of topics.
    channel: bool,
    /// Its permit among the streams of its address, if their number is limited.
    address: Option<Box<AddressPermit>>,
    /// Its entry among the streams that access is checked for again, if there is one.
    pass: Option<Pass>,
}

impl Proxy {
    /// Whether the proxy is shutting down.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Why the proxy is not ready, if it is not.
    pub fn unready(&self) -> Option<Arc<str>> {
        if self.is_draining() {
            return Some(NotNow::Draining.to_string().into());
        }
        match &*self.upstream.borrow() {
            Readiness::Ready => None,
            Readiness::Waiting(reason) => Some(reason.clone()),
        }
    }

    /// Opens a stream of topics.
    pub fn subscribe(
        self: &Arc<Self>,
        wanted: StreamRequest,
        who: Identity,
        peer: IpAddr,
    ) -> Result<Subscription, NotNow> {
        self.must_have_rows(&wanted)?;
        let mut subscription = self.open(peer)?;
        let subscriber = subscription.subscriber();
        let reader = who.reader(peer);
        subscription.admit(who, &wanted.topics);
        let (retry, heartbeat) = (self.cli.next_retry(), self.cli.heartbeat);
        let hello = |place: Option<Place>| Frame::hello(retry, heartbeat, place.map(Place::position));
        match wanted.start {
            StartAt::Live => self.hub.join(&subscriber, &wanted.topics, hello),
            StartAt::Earliest | StartAt::After(_) | StartAt::Rows => {
                subscriber.push(hello(None));
                self.resume(subscriber.clone(), wanted, reader);
            }
        }
        self.wheel.add(subscriber);
        Ok(subscription)
    }

    /// Refuses a request for rows that the database can't serve.
    pub fn must_have_rows(&self, wanted: &StreamRequest) -> Result<(), NotNow> {
        match self.reads.installed().dialect() {
            Dialect::Old if wanted.wants_rows => Err(NotNow::OldSql),
            _ => Ok(()),
        }
    }

    /// Opens a stream of a plain channel.
    pub fn listen(self: &Arc<Self>, name: &str, who: Identity, peer: IpAddr) -> Result<Subscription, NotNow> {
        if self.standing.is_standby() {
            return Err(NotNow::Standby);
        }
        let mut subscription = self.open(peer)?;
        subscription.channel = true;
        let subscriber = subscription.subscriber();
        subscription.pass = self.access.admit(who, &subscriber, &[]);
        subscriber.push(Frame::retry(self.cli.next_retry()));
        self.channels.join(&name.into(), &subscriber);
        self.wheel.add(subscriber);
        Ok(subscription)
    }

    /// Opens a stream that has nothing yet.
    pub fn open(self: &Arc<Self>, peer: IpAddr) -> Result<Subscription, NotNow> {
        if self.is_draining() {
            return Err(NotNow::Draining);
        }
        let mut subscription = Subscription {
            proxy: self.clone(),
            subscriber: Subscriber::new(self.cli.client_queue_bytes),
            channel: false,
            address: None,
            pass: None,
        };
        if self.metrics.clients.rise() > self.cli.max_clients {
            self.metrics.over_clients.add(1);
            return Err(NotNow::OverLimit);
        }
        if self.cli.max_clients_per_address > 0 {
            subscription.address = self.addresses.enter(peer, self.cli.max_clients_per_address).map(Box::new);
            if subscription.address.is_none() {
                self.metrics.over_address.add(1);
                return Err(NotNow::OverLimit);
            }
        }
        self.metrics.streams.add(1);
        Ok(subscription)
    }

    /// Sends a subscriber what it missed: at once from memory if possible, otherwise by a replay; or the rows.
    fn resume(&self, subscriber: Arc<Subscriber>, wanted: StreamRequest, reader: Reader) {
        if wanted.wants_rows {
            subscriber.want_rows();
        }
        let mut after = match wanted.start {
            StartAt::After(position) => Some(position),
            _ => None,
        };
        if let Some(position) = after.as_mut().filter(|position| position.seen.is_none()) {
            match self.hub.resume(&subscriber, &wanted.topics, (&*position).into()) {
                Joined::Live => return self.metrics.resumed_memory.add(1),
                Joined::Partly(place) => *position = place.position(),
                Joined::TooOld | Joined::Ahead => {}
            }
        }
        let log = self.log_of(&wanted.topics);
        if wanted.wants_rows {
            tokio::spawn(self.arrival(subscriber, log, reader, Form::Events).run(after));
        } else {
            tokio::spawn(Replay { log, subscriber }.run(after));
        }
    }

    /// Starts an answer in JSON with the rows.
    pub fn send_rows(&self, subscription: Subscription, log: TopicLog, reader: Reader) -> Subscription {
        let subscriber = subscription.subscriber();
        subscriber.send_json();
        tokio::spawn(self.arrival(subscriber.clone(), log, reader, Form::Json).run_once());
        self.wheel.add(subscriber);
        subscription
    }

    /// The log of these topics.
    pub fn log_of(&self, topics: &[Arc<str>]) -> TopicLog {
        let (hub, reads, metrics) = (self.hub.clone(), self.reads.clone(), self.metrics.clone());
        TopicLog { hub, reads, metrics, topics: topics.into() }
    }

    fn arrival(&self, subscriber: Arc<Subscriber>, log: TopicLog, reader: Reader, form: Form) -> Arrival {
        let Reader { claims, identity } = reader;
        let wish = Wish { claims, topics: log.topics.clone(), form };
        let (snapshots, long_retry) = (self.snapshots.clone(), self.cli.long_retry());
        Arrival { snapshots, wish, identity, log, subscriber, long_retry }
    }
}

impl Subscription {
    /// The stream's subscriber.
    pub fn subscriber(&self) -> Arc<Subscriber> {
        self.subscriber.clone()
    }

    /// Registers the stream, so that it ends when the right to it does.
    pub fn admit(&mut self, who: Identity, topics: &[Arc<str>]) {
        self.pass = self.proxy.access.admit(who, &self.subscriber, topics);
    }
}

impl CountBytes for Subscription {
    fn wrote(&self, bytes: usize) {
        self.proxy.metrics.bytes_out.add(bytes as u64);
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        if self.channel {
            self.proxy.channels.leave(&self.subscriber);
        } else {
            self.proxy.hub.leave(&self.subscriber);
        }
        self.proxy.metrics.clients.fall();
    }
}
