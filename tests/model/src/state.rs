//! The state: the database, the proxies and the clients, each as small as the protocol allows.
//!
//! Nothing here acts; see `actions.rs`.

/// The number of a transaction, which Postgres gives again after a crash if nothing that names it was flushed.
pub type Xid = u8;

/// A reading of the clock that stamps segments and numbers ticks.
pub type Stamp = u8;

/// An event: its writer and its number within the transaction.
pub type Event = (u8, u8);

/// The number within a tick that stands for "all of it".
pub const END: u8 = u8::MAX;

/// Which transactions are visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Snapshot {
    /// Transactions from this on had not begun.
    pub xmax: Xid,
    /// Bit `x` is set for each transaction `x` below `xmax` that was running.
    pub running: u32,
}

impl Snapshot {
    /// Whether a transaction, if it was committed, is visible.
    pub fn sees(self, xid: Xid) -> bool {
        xid < self.xmax && self.running & (1 << xid) == 0
    }
}

/// How far a writer's transaction has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// Not begun.
    Idle,
    /// It has a number, and its first segment is in the log if it has two.
    Running,
    /// Its last segment is in the log, with its last stamp.
    Logged,
    /// PREPARE TRANSACTION has returned.
    Prepared,
    /// Its commit record is written, but nobody sees the transaction yet.
    Committing,
    /// Everybody sees it.
    Committed,
    /// Rolled back, by a crash, or lost in one.
    Gone,
}

/// A writer, which runs one transaction.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Writer {
    /// How far it is.
    pub phase: Phase,
    /// The transaction's number.
    pub xid: Xid,
    /// The stamps of its segments. Each segment has one event.
    pub stamps: Vec<Stamp>,
}

impl Writer {
    /// The stamp that orders the transaction; 0 before there is any.
    pub fn last_stamp(&self) -> Stamp {
        self.stamps.last().copied().unwrap_or(0)
    }

    /// Whether it is in the log with its last stamp, and is not visible.
    pub fn is_ending(&self) -> bool {
        matches!(self.phase, Phase::Logged | Phase::Prepared | Phase::Committing)
    }

    /// Whether a snapshot lists it as running.
    pub fn is_running(&self) -> bool {
        self.phase == Phase::Running || self.is_ending()
    }
}

/// What a record of the write-ahead log says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A segment of a writer's transaction.
    Segment(u8),
    /// PREPARE TRANSACTION of a writer.
    Prepare(u8),
    /// The commit of a writer.
    Commit(u8),
    /// The row of a tick and its commit.
    Tick(Stamp),
}

/// A record of the write-ahead log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Record {
    /// Its transaction.
    pub xid: Xid,
    /// What it says.
    pub kind: Kind,
}

/// A row of `tidings.tick`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tick {
    /// Its number, which the relay takes before the snapshot.
    pub number: Stamp,
    /// The tick has what this snapshot does not see ...
    pub since: Snapshot,
    /// ... and this one does.
    pub until: Snapshot,
    /// It ends a former life of the server: older snapshots mean nothing after it.
    pub mark: bool,
    /// It was flushed before it was announced.
    pub flushed_first: bool,
}

/// What the relay notes before it takes the snapshot of a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Look {
    /// The tick's number.
    pub number: Stamp,
    /// The lowest last stamp of the transactions that are about to become visible; [`Stamp::MAX`] if there are none.
    pub ending: Stamp,
    /// The same of those that are prepared.
    pub prepared: Stamp,
}

/// The database.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Database {
    /// Those records of the write-ahead log that the next fault may take away, the oldest first.
    pub wal: Vec<Record>,
    /// The next transaction's number if the next fault takes away all of them.
    pub safe_xid: Xid,
    /// The next transaction's number.
    pub next_xid: Xid,
    /// The first number that was given since the server started.
    pub first_xid: Xid,
    /// The clock.
    pub clock: Stamp,
    /// All ticks but lost ones.
    pub ticks: Vec<Tick>,
    /// How many of them lie before the start of what is retained.
    pub removed: u8,
    /// The relay runs, and has cut what was committed before the server started.
    pub relay: bool,
    /// The relay is about to cut a tick.
    pub look: Option<Look>,
    /// The last tick whose commit record is written, while the sessions of this server do not see it yet. Only where
    /// there is a standby, which may show it by then.
    pub hidden: Option<Tick>,
    /// There is a hot standby. The records of the write-ahead log that it has yet to replay stay in `wal`.
    pub standby: bool,
    /// How many of the first records of `wal` are flushed; only where there is a standby.
    pub flushed: u8,
    /// How many of them the standby has replayed although they are not flushed.
    pub replayed: u8,
}

impl Database {
    /// The last tick.
    pub fn last(&self) -> Tick {
        self.ticks[self.ticks.len() - 1]
    }

    /// The ticks that the table knows. The first one stands for the start of what is retained: its own events are gone.
    pub fn rows(&self) -> &[Tick] {
        &self.ticks[self.removed.into()..]
    }

    /// The start of what is retained.
    pub fn floor(&self) -> Stamp {
        self.rows()[0].number
    }

    /// Whether the table has a tick.
    pub fn knows(&self, number: Stamp) -> bool {
        self.rows().iter().any(|tick| tick.number == number)
    }

    /// Whether a tick is in the log, even if no session of this server sees it yet.
    pub fn has(&self, number: Stamp) -> bool {
        self.ticks.iter().chain(&self.hidden).any(|tick| tick.number == number)
    }

    /// The last tick up to a number that the table has, or the start.
    pub fn at_or_below(&self, number: Stamp) -> Tick {
        *self.rows().iter().rfind(|tick| tick.number <= number).unwrap_or(&self.rows()[0])
    }
}

/// A place in the order of all events: everything up to the n-th event of a tick, or to its [`END`].
pub type Place = (Stamp, u8);

/// A tick as a proxy remembers it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Heard {
    /// Its number.
    pub tick: Stamp,
    /// What was published, with the numbers within the tick.
    pub events: Vec<(u8, Event)>,
    /// How far the proxy is in it; [`END`] when it has all.
    pub n: u8,
    /// Up to where it passed over events, which its memory has in a tick that is lost.
    pub passed: u8,
    /// The snapshot that the announcement carried, with its stamp.
    pub snapshot: Option<Skip>,
    /// The proxy began at the end of this tick, so it has none of its events.
    pub start: bool,
    /// See [`Tick::flushed_first`]. The proxy does not use it: it is there for the properties.
    pub flushed_first: bool,
}

/// What is to be passed over, because it was published as part of a tick that is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Skip {
    /// What this snapshot sees ...
    pub snapshot: Snapshot,
    /// ... and has no later stamp than this.
    pub stamp: Stamp,
}

/// A proxy.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Proxy {
    /// Whether it is connected to the server as it runs now, and has found out where to go on.
    pub connected: bool,
    /// Its server is the standby.
    pub at_standby: bool,
    /// The ticks that it remembers. The last one is its place; empty before it has connected once.
    pub memory: Vec<Heard>,
    /// What it passes over.
    pub skip: Option<Skip>,
}

impl Proxy {
    /// Up to where it has published; none before it has connected once.
    pub fn place(&self) -> Option<Place> {
        self.memory.last().map(|heard| (heard.tick, heard.n))
    }

    /// What it has published after a place.
    pub fn published_after(&self, place: Place) -> impl Iterator<Item = (Place, Event)> {
        let all = self.memory.iter().flat_map(|heard| heard.events.iter().map(|(n, event)| ((heard.tick, *n), *event)));
        all.filter(move |(at, _)| *at > place)
    }
}

/// The long form of a position: what its client has read from the tables behind the tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Seen {
    /// What it has read.
    pub skip: Skip,
    /// How many of the events that it has read lie behind the tick of its id.
    pub count: u8,
}

/// A client.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The proxy that it is at.
    pub at: Option<u8>,
    /// Its last id.
    pub id: Place,
    /// What else it has read, if it comes with a position of `tidings.position()`.
    pub seen: Option<Seen>,
    /// The last tick when it read the tables with `tidings.position()`. No proxy uses it: it is there for the
    /// properties.
    pub read_at: Option<Stamp>,
    /// What it has got since the beginning, or since its last `reset`, in order.
    pub got: Vec<Event>,
    /// What it has read from the tables: what lay at or before its own position, or that of its last `reset`.
    pub base: Vec<Event>,
    /// It was reset without a reason.
    pub wronged: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// The writers.
    pub writers: Vec<Writer>,
    /// Those of them that change the same row, in the order in which they had it.
    pub row: Vec<u8>,
    /// The database.
    pub database: Database,
    /// The proxies.
    pub proxies: Vec<Proxy>,
    /// The clients.
    pub clients: Vec<Client>,
    /// What may still go wrong.
    pub left: Left,
}

/// How often each thing may still happen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Left {
    /// Crashes or failovers.
    pub crashes: u8,
    /// Promotions of the standby.
    pub promotions: u8,
    /// Proxies that go from one server to the other.
    pub moves: u8,
    /// Proxies that die and start again.
    pub deaths: u8,
    /// Clients that are cut off.
    pub cuts: u8,
    /// Ticks whose retention ends.
    pub removals: u8,
    /// Clients that read the tables with `tidings.position()`.
    pub starts: u8,
}
