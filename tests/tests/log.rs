//! The log as SQL reads it: faster than a stream for a test of what was captured, not of how it is delivered.

use serde_json::Value;
use tidings_tests::{Database, Session, eventually, shared};

/// One event, as `tidings.changes` returns it.
#[derive(Clone, Debug)]
pub struct Event {
    pub position: String,
    pub topic: String,
    pub event: String,
    pub payload: String,
}

impl Event {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.payload).unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// `INSERT`, `UPDATE`, `DELETE` or `TRUNCATE`, in the default payload.
    #[track_caller]
    pub fn kind(&self) -> String {
        self.json()["type"].as_str().unwrap_or_else(|| panic!("no type: {self:?}")).to_owned()
    }
}

/// Reads a database's log from one place on.
pub struct Log {
    session: Session,
    after: String,
}

impl Log {
    /// Starts after everything that has been committed so far.
    pub fn from_here(db: &Database<'_>) -> Self {
        let mut session = db.session();
        let after = session.one("SELECT tidings.position()");
        Self { session, after }
    }

    /// Continues with a new session: the old one has ended with the server.
    pub fn reconnect(self, db: &Database<'_>) -> Self {
        Self { session: db.session(), after: self.after }
    }

    /// What has been committed since the last call, in order. A mark of this test comes after all of it.
    #[track_caller]
    pub fn news(&mut self) -> Vec<Event> {
        const MARK: &str = "a mark that comes after all others";
        self.session.publish(MARK, "null");
        let mut events = eventually("the mark is in a tick", || {
            let events = self.read();
            events.iter().any(|event| event.topic == MARK).then_some(events)
        });
        let mark = events.iter().position(|event| event.topic == MARK).unwrap_or_default();
        self.after = events[mark].position.clone();
        events.truncate(mark);
        events
    }

    /// Skips everything that has been committed so far.
    pub fn skip_to_now(&mut self) {
        self.after = self.session.one("SELECT tidings.position()");
    }

    /// The only event that has been committed since the last call.
    #[track_caller]
    pub fn only(&mut self) -> Event {
        let mut events = self.news();
        assert_eq!(events.len(), 1, "{events:?}");
        events.remove(0)
    }

    #[track_caller]
    fn read(&mut self) -> Vec<Event> {
        let sql = "SELECT position, topic, event, payload FROM tidings.changes($1, NULL, 1000000)";
        let rows = self.session.all(sql, &[&self.after]);
        let event = |row: &postgres::Row| Event {
            position: row.get(0),
            topic: row.get(1),
            event: row.get(2),
            payload: row.get(3),
        };
        rows.iter().map(event).collect()
    }
}

/// A new database after this SQL, and its log from there on.
pub fn with(sql: &str) -> (Database<'static>, Log) {
    let db = shared().database();
    db.session().run(sql);
    let log = Log::from_here(&db);
    (db, log)
}

/// The topics of events, in order.
pub fn topics(events: &[Event]) -> Vec<&str> {
    events.iter().map(|event| event.topic.as_str()).collect()
}

/// Operation and topic of events, in order.
#[track_caller]
pub fn kinds(events: &[Event]) -> Vec<String> {
    events.iter().map(|event| format!("{} {}", event.kind(), event.topic)).collect()
}
