//! Compares what a client received with what it should have received.
//!
//! Events of ticks that the log has must arrive exactly: each once, in the log's order, none missing. A tick that the
//! log doesn't have was lost, in one of two ways:
//!
//! - By a crash, or a failover to a synchronous standby, before it was flushed. All of its events are in later ticks of
//!   the log. The client must not get them again. It gets a reset only if it comes with an id of that tick to a proxy
//!   that did not hear the tick, or has been started again since.
//! - By a failover to an asynchronous standby, which may also have lost the events. Then the client must get a reset
//!   before any other event.

use std::collections::{BTreeSet, HashSet};
use std::ops::RangeInclusive;

use crate::clients::{Got, Life, Reset, Start, Visit};
use crate::lost::Lost;
use crate::reference::{Known, Log, Place};

/// What may have happened to the order of all events.
#[derive(Clone, Debug, Default)]
pub struct Fate {
    /// When a primary was lost whose last ticks its standby may not have had, in the numbers of ticks.
    pub losses: Vec<u64>,
    /// The ticks between which everything lies that a crash may have taken back without losing any event.
    pub crashes: Vec<RangeInclusive<u64>>,
    /// Events are only kept this long, in microseconds.
    pub retention: Option<u64>,
    /// Proxies may forget a tick that they have heard, because their history is small.
    pub forgets: bool,
    /// The server's clock may go back, so a lost tick may have a higher number than what follows it.
    pub clock_jumps: bool,
}

/// The order of all events, and what may have happened to it.
#[derive(Debug)]
pub struct Law {
    known: Vec<Known>,
    ticks: BTreeSet<u64>,
    fate: Fate,
    lost: Lost,
}

/// The result for a client.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events that arrived as they should.
    pub events: usize,
    /// Events of ticks that are not in the log, or of writes whose first commit a failover lost.
    pub lost_ticks: usize,
    /// Connections.
    pub connections: usize,
    /// Resets that were necessary.
    pub resets: usize,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Verdict {
    /// Adds the numbers of another one.
    pub fn add(&mut self, other: &Self) {
        self.events += other.events;
        self.lost_ticks += other.lost_ticks;
        self.connections += other.connections;
        self.resets += other.resets;
    }
}

impl Law {
    /// The expectations for a run with this log, in which clients lived these lives.
    pub fn new(log: Log, fate: Fate, lives: &[Life]) -> Self {
        let Log { known, mut ticks } = log;
        ticks.extend(known.iter().map(|known| known.place.0));
        let lost = Lost::new(&known, &ticks, fate.crashes.clone(), lives);
        Self { known, ticks, fate, lost }
    }

    /// The number of events.
    pub fn events(&self) -> usize {
        self.known.len()
    }

    /// How many ticks this crash took back that clients had been shown.
    pub fn lost_by(&self, crash: &RangeInclusive<u64>) -> usize {
        self.lost.by(crash)
    }

    /// Checks a life.
    pub fn judge(&self, life: &Life) -> Verdict {
        let mut judge = Judge {
            law: self,
            life,
            expected: self.expected(life, &life.seen),
            next: match life.start {
                Start::Live => None,
                Start::Earliest if self.fate.retention.is_some() => None,
                Start::Earliest | Start::Snapshot => Some(0),
            },
            last: None,
            position: None,
            untold: None,
            visit: Visit { home: None, is_long: false },
            is_fresh: true,
            verdict: Verdict::default(),
        };
        for got in &life.got {
            match *got {
                Got::Connected(visit) => judge.connect(visit),
                Got::Id(place) => judge.id(place),
                Got::Reset(place, at, why) => judge.reset(place, at, why),
                Got::Event(place, print) => judge.event(place, print),
            }
        }
        if let Some(fault) = &life.fault {
            judge.fault(format!("{fault}; the last event was {:?}", judge.last));
        }
        judge.verdict
    }

    /// The events of a client's topics, except for writes that it has `seen` otherwise.
    fn expected(&self, life: &Life, seen: &HashSet<String>) -> Vec<&Known> {
        let due = |known: &&Known| life.topics.contains(&known.topic) && !seen.contains(&known.write.name);
        self.known.iter().filter(due).collect()
    }

    /// Whether the event is of a write that was in the client's snapshot and whose commit a failover may have undone:
    /// the standby had only its PREPARE, and a writer committed it again.
    fn was_lost_from_snapshot(&self, life: &Life, place: Place, print: u64) -> bool {
        let at = self.known.binary_search_by_key(&place, |known| known.place);
        let is_seen =
            at.is_ok_and(|at| self.known[at].print == print && life.seen.contains(&self.known[at].write.name));
        is_seen && self.fate.losses.iter().any(|loss| (life.snapshot..=place.0).contains(loss))
    }

    /// Whether a failover may have lost the tick: one happened between the neighbouring ticks of the log.
    fn is_lost_by_failover(&self, tick: u64) -> bool {
        let before = self.ticks.range(..tick).next_back().copied().unwrap_or(0);
        let after = self.ticks.range(tick..).next().copied().unwrap_or(u64::MAX);
        self.fate.losses.iter().any(|loss| before <= *loss && *loss <= after)
    }
}

/// How far a life has been checked.
struct Judge<'a> {
    law: &'a Law,
    life: &'a Life,
    expected: Vec<&'a Known>,
    /// The next event that should arrive; `None` while it is unknown where the stream starts.
    next: Option<usize>,
    /// The last event of the stream.
    last: Option<Place>,
    /// The last id.
    position: Option<Place>,
    /// The first event that a failover lost and the client has seen, until it gets a reset.
    untold: Option<Place>,
    visit: Visit,
    /// Nothing has arrived since it connected.
    is_fresh: bool,
    verdict: Verdict,
}

impl Judge<'_> {
    fn fault(&mut self, fault: String) {
        self.verdict.faults.push(fault);
    }

    fn connect(&mut self, visit: Visit) {
        self.verdict.connections += 1;
        (self.visit, self.is_fresh) = (visit, true);
        // Ids rise within a stream. A proxy that does not know of a failover yet may send lost ticks again to a client
        // that comes from another proxy; events that are in the log are checked against its order below.
        self.last = None;
    }

    fn id(&mut self, place: Place) {
        self.is_fresh = false;
        let behind = self.behind(place);
        let next = *self.next.get_or_insert(behind);
        if next < behind {
            self.fault(format!("the stream is at {place:?}: {}", self.missing(next, behind)));
            self.next = Some(behind);
        }
        self.position = Some(place);
    }

    fn reset(&mut self, place: Place, at: u64, why: Reset) {
        if let Some(position) = self.position.filter(|position| !self.is_due(*position, at, why)) {
            self.fault(format!(
                "{why:?} to {place:?}, which was not due: it stood at {position:?}, {:?}{}",
                self.visit,
                if self.is_fresh { ", and had just connected" } else { "" }
            ));
        }
        self.verdict.resets += 1;
        self.next = Some(match why {
            Reset::Expired => self.next.unwrap_or(0).max(self.behind(place)),
            Reset::Lost => {
                // It drops what it had, and continues after that place, which may be an earlier one.
                self.expected = self.law.expected(self.life, &HashSet::new());
                self.behind(place)
            }
        });
        (self.last, self.position, self.untold, self.is_fresh) = (None, Some(place), None, false);
    }

    /// Whether a client at this place had to get a reset at that time.
    fn is_due(&self, place: Place, at: u64, why: Reset) -> bool {
        let fate = &self.law.fate;
        if why == Reset::Expired {
            return fate.retention.is_some_and(|time| at >= place.0 + time);
        }
        if fate.losses.iter().any(|loss| (place.0..=at).contains(loss)) {
            return true;
        }
        if !self.law.lost.has(place.0) {
            return false;
        }
        // Proxies know only ids without a snapshot.
        let is_known =
            !self.visit.is_long && self.visit.home.is_some_and(|home| self.law.lost.is_known_at(home, place));
        fate.clock_jumps || (self.is_fresh && (!is_known || fate.forgets))
    }

    fn event(&mut self, place: Place, print: u64) {
        if self.last.is_some_and(|last| last >= place) {
            self.fault(format!("{place:?} comes after {:?}", self.last));
        }
        (self.last, self.position, self.is_fresh) = (Some(place), Some(place), false);
        let Some(there) = self.place_in_log(place, print) else { return };
        if let Some(lost) = self.untold.take() {
            self.fault(format!("{place:?} arrived, and no reset said that {lost:?} was lost"));
        }
        if self.law.was_lost_from_snapshot(self.life, place, print) {
            self.verdict.lost_ticks += 1;
            return;
        }
        let start = self.expected.partition_point(|known| known.place < there);
        let next = *self.next.get_or_insert(start);
        match self.expected.get(next) {
            Some(known) if known.place == there => {
                if known.print != print {
                    self.fault(format!("{place:?} says something else than the log"));
                }
                self.next = Some(next + 1);
                self.verdict.events += 1;
            }
            Some(known) if known.place < there => {
                let fault = format!("before {place:?}: {}", self.missing(next, start));
                self.fault(fault);
                self.next = Some(self.behind(there));
            }
            _ => self.fault(format!("{place:?} ({there:?} in the log) came, which was not its to come, or again")),
        }
    }

    /// Where the log has an event; `None` if a failover lost it.
    fn place_in_log(&mut self, place: Place, print: u64) -> Option<Place> {
        let law = self.law;
        if law.ticks.contains(&place.0) {
            return Some(place);
        }
        self.verdict.lost_ticks += 1;
        let there = law.lost.place_of(print);
        if law.lost.has(place.0) {
            if there.is_none() {
                self.fault(format!("a crash took back {place:?}, which was shown"));
            }
            return there;
        }
        if !law.is_lost_by_failover(place.0) {
            self.fault(format!("{place:?} was shown and is in no tick of the log"));
            return None;
        }
        // The standby may have had the events, but not the tick.
        let is_next = |next: usize| self.expected.get(next).is_some_and(|known| Some(known.place) == there);
        if self.untold.is_none() && self.next.is_some_and(is_next) {
            return there;
        }
        self.untold = self.untold.or(Some(place));
        None
    }

    /// How many of the events lie at or before a place.
    fn behind(&self, place: Place) -> usize {
        let place = self.law.lost.translate(place);
        self.expected.partition_point(|known| known.place <= place)
    }

    fn missing(&self, next: usize, end: usize) -> String {
        let all = &self.expected[next..end.max(next)];
        let some: Vec<_> = all.iter().take(5).map(|known| (known.place, &known.write.name)).collect();
        format!("{} events are missing, {some:?}", all.len().max(1))
    }
}

#[cfg(test)]
mod tests;
