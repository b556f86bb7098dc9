//! Clients that keep rows by applying events, as a page does.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::{Map, Value};

use super::schema::Table;
use super::watches::Watch;
use super::{Fault, Sabotage};
use crate::sse::Request;
use crate::{Frame, Item, Sse};

/// A row: the payload that it came with, and what it says.
#[derive(Clone, Debug)]
pub struct Held {
    /// As it came, for Postgres: a number here would be rounded.
    pub payload: String,
    record: Value,
}

/// A client.
pub struct Client {
    /// Its name, which is also that of the topic of its marks.
    pub name: String,
    /// Its topics.
    pub topics: Vec<String>,
    /// The position from which it starts; a snapshot if it is `None`.
    since: Option<String>,
    stream: Option<Sse>,
    last_id: Option<String>,
    last_place: Option<(u64, u32)>,
    /// The rows, by the name of the watch's events and the key.
    pub held: BTreeMap<(String, String), Held>,
    is_whole: bool,
    taken: usize,
    sabotage: Option<Sabotage>,
}

impl Client {
    /// A client that starts with the rows that are there.
    pub fn of_snapshot(name: String, topics: Vec<String>, sabotage: Option<Sabotage>) -> Self {
        Self {
            name,
            topics,
            since: None,
            stream: None,
            last_id: None,
            last_place: None,
            held: BTreeMap::new(),
            is_whole: false,
            taken: 0,
            sabotage,
        }
    }

    /// A client that holds rows of a position, and starts there.
    pub fn of_position(name: String, topics: Vec<String>, position: String, sabotage: Option<Sabotage>) -> Self {
        Self { since: Some(position), is_whole: true, ..Self::of_snapshot(name, topics, sabotage) }
    }

    /// Whether it starts with the rows that are there.
    pub fn has_snapshot(&self) -> bool {
        self.since.is_none()
    }

    /// Gives it a row that it starts with.
    pub fn hold(&mut self, event: &str, key: String, payload: String, record: &Value) {
        self.held.insert((event.to_owned(), key), Held { payload, record: record.clone() });
    }

    /// Whether it has a stream.
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// Opens a stream, as a browser would.
    pub fn connect(&mut self, proxy: SocketAddr) -> Result<(), Fault> {
        let mut topics: Vec<&str> = self.topics.iter().map(String::as_str).collect();
        topics.push(&self.name);
        let request = Request {
            last_event_id: self.last_id.clone(),
            ..Request::since(&topics, self.since.as_deref().unwrap_or("snapshot"))
        };
        self.stream = Some(Sse::connect(proxy, &request).map_err(|error| Fault(format!("{}: {error}", self.name)))?);
        Ok(())
    }

    /// Closes the stream; what has arrived and was not read is lost.
    pub fn disconnect(&mut self) {
        self.stream = None;
    }

    /// Forgets the id of its last event, and is to start at another position.
    pub fn forget(&mut self, position: String) {
        (self.since, self.last_id) = (Some(position), None);
    }

    /// Reads until a mark, or without one until it has all rows, but at most so many events. Returns how many are left.
    pub fn read(&mut self, mark: Option<&str>, most: usize, tables: &[Table]) -> Result<usize, Fault> {
        let mut left = most;
        while left > 0 && (mark.is_some() || !self.is_whole) {
            let item = self.stream.as_mut().and_then(Sse::item);
            let Some(item) = item else { return Err(self.fault("the stream has ended")) };
            match item {
                Item::Position(id) => self.last_id = Some(id),
                Item::Frame(frame) => {
                    left -= 1;
                    self.take(&frame, tables)?;
                    if frame.event == "message" && mark == Some(frame.data.as_str()) {
                        break;
                    }
                }
                Item::Comment(_) | Item::Retry(_) => {}
            }
        }
        Ok(left)
    }

    fn fault(&self, what: impl std::fmt::Display) -> Fault {
        Fault(format!("client {}: {what}", self.name))
    }

    fn take(&mut self, frame: &Frame, tables: &[Table]) -> Result<(), Fault> {
        if let Some(id) = &frame.id {
            self.last_id = Some(id.clone());
            if frame.event != "reset" {
                let place = frame.place();
                if self.last_place.is_some_and(|last| last >= place) {
                    return Err(self.fault(format!("{frame:?} comes after {:?}", self.last_place)));
                }
                // A position is that of all events before it.
                self.last_place = (frame.event != "ready").then_some(place);
            }
        }
        match frame.event.as_str() {
            "reset" if self.has_snapshot() && frame.data.contains("\"snapshot\"") => {
                self.held.clear();
                (self.is_whole, self.last_place) = (false, None);
            }
            "reset" => return Err(self.fault(format!("it was told to start over: {frame:?}"))),
            "ready" => self.is_whole = true,
            "message" => {}
            name => {
                let mut all = tables.iter().flat_map(|table| table.watches.iter().map(move |watch| (table, watch)));
                let Some((table, watch)) = all.find(|(_, watch)| watch.event == name) else {
                    return Err(self.fault(format!("an event of no watch: {frame:?}")));
                };
                self.taken += 1;
                if !self.is_left_out(frame, watch) {
                    self.apply(frame, table, watch).map_err(|error| self.fault(format!("{error} by {frame:?}")))?;
                }
            }
        }
        Ok(())
    }

    /// Whether this client ignores the event, to see that it is noticed.
    fn is_left_out(&self, frame: &Frame, watch: &Watch) -> bool {
        let is_delete = || frame.json()[watch.members().kind] == "DELETE";
        match self.sabotage {
            Some(Sabotage::Events) => self.taken.is_multiple_of(20),
            Some(Sabotage::Deletes) => is_delete(),
            _ => false,
        }
    }

    /// Applies an event. If the watch shows every change, it must fit to what is held.
    fn apply(&mut self, frame: &Frame, table: &Table, watch: &Watch) -> Result<(), String> {
        let members = watch.members();
        let json: Value = serde_json::from_str(&frame.data).map_err(|error| error.to_string())?;
        let (kind, record) = (json[members.kind].as_str().unwrap_or_default(), &json[members.record]);
        let old_record = members.old_record.map_or(&Value::Null, |name| &json[name]);
        if self.is_whole == (kind == "SNAPSHOT") {
            return Err("a row where a change belongs, or the other way".into());
        }
        // A TRUNCATE is seen by snapshots that are older than it.
        let is_strict = watch.is_exact && !table.is_truncated;
        let at = |key: String| (watch.event.clone(), key);
        match kind {
            "TRUNCATE" => {
                self.held.retain(|(event, _), _| *event != watch.event);
                return Ok(());
            }
            "DELETE" => {
                let old = if members.old_key.is_some() { record } else { old_record };
                let held = self.held.remove(&at(key(table, old)?));
                if is_strict && !held.is_some_and(|held| agree(&held.record, old)) {
                    return Err("a row is deleted that is not there, or was another".into());
                }
                return Ok(());
            }
            "UPDATE" => {
                // What the row was, as far as the event says.
                let old = match members.old_key {
                    Some(name) => json[name].clone(),
                    None => merged(record, old_record),
                };
                let is_known = members.old_key.is_some() || !old_record.is_null();
                let held = self.held.remove(&at(key(table, &old)?));
                if is_strict && !held.is_some_and(|held| !is_known || agree(&held.record, &old)) {
                    return Err("a row is updated that is not there, or was another".into());
                }
            }
            "INSERT" | "SNAPSHOT" => {
                if is_strict && self.held.contains_key(&at(key(table, record)?)) {
                    return Err("a row comes twice".into());
                }
            }
            _ => return Err(format!("an unknown operation {kind:?}")),
        }
        let held = Held { payload: frame.data.clone(), record: record.clone() };
        self.held.insert(at(key(table, record)?), held);
        Ok(())
    }
}

/// A row's key, as Postgres writes an array.
fn key(table: &Table, record: &Value) -> Result<String, String> {
    let values: Option<Vec<String>> =
        table.key_names().iter().map(|name| record.get(name).map(Value::to_string)).collect();
    values.map(|values| format!("[{}]", values.join(", "))).ok_or_else(|| format!("no key in {record}"))
}

/// A row before its changed values were these.
fn merged(record: &Value, old: &Value) -> Value {
    let mut before: Map<String, Value> = record.as_object().cloned().unwrap_or_default();
    before.extend(old.as_object().cloned().unwrap_or_default());
    Value::Object(before)
}

/// Whether two records agree in the columns that both have. Others were added, dropped or renamed between them.
fn agree(a: &Value, b: &Value) -> bool {
    let (Some(a), Some(b)) = (a.as_object(), b.as_object()) else { return false };
    a.iter().all(|(name, value)| b.get(name).is_none_or(|other| other == value))
}
