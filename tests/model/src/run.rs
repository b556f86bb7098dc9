//! Runs the checker, and describes a counterexample.

use std::fmt::Write;
use std::time::{Duration, Instant};

use stateright::{Checker, HasDiscoveries, Model};

use crate::actions::Action;
use crate::protocol::Protocol;
use crate::scenario::Scenario;
use crate::state::*;

/// What the checker found.
#[derive(Debug)]
pub struct Outcome {
    /// The number of different states.
    pub states: usize,
    /// The most actions from the beginning to a state.
    pub depth: usize,
    /// How long it took.
    pub took: Duration,
    /// The shortest way to a state in which a property fails, and that property.
    pub counterexample: Option<Counterexample>,
}

/// A way to a state in which a property fails.
#[derive(Debug)]
pub struct Counterexample {
    /// The property.
    pub property: &'static str,
    /// The way, with one action on each line.
    pub story: String,
}

/// Explores all states breadth first, until one of these properties (any property, if the list is empty) fails or all
/// states are visited. With one thread, the counterexample is a shortest one.
pub fn explore(scenario: Scenario, properties: &[&'static str], threads: usize) -> Outcome {
    let begin = Instant::now();
    let until = match properties {
        [] => HasDiscoveries::AnyFailures,
        _ => HasDiscoveries::AnyOf(properties.iter().copied().collect()),
    };
    let checker = Protocol { scenario }.checker().threads(threads).finish_when(until).spawn_bfs().join();
    let mut found = checker.discoveries().into_iter();
    let found = found.find(|(property, _)| properties.is_empty() || properties.contains(property));
    let counterexample =
        found.map(|(property, path)| Counterexample { property, story: tell(checker.model(), &path.into_vec()) });
    Outcome { states: checker.unique_state_count(), depth: checker.max_depth(), took: begin.elapsed(), counterexample }
}

fn tell(protocol: &Protocol, path: &[(State, Option<Action>)]) -> String {
    let mut story = String::new();
    for (i, (state, action)) in path.iter().enumerate() {
        let Some(action) = action else { break };
        let after = path.get(i + 1).map(|(after, _)| describe(protocol, state, after)).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(story, "{:>3}. {:<14} {after}", i + 1, format!("{action:?}"));
    }
    story
}

/// What an action changed.
fn describe(protocol: &Protocol, before: &State, after: &State) -> String {
    let mut changes = Vec::new();
    for (w, (was, is)) in before.writers.iter().zip(&after.writers).enumerate().filter(|(_, (was, is))| was != is) {
        let stamp = if was.stamps == is.stamps { String::new() } else { format!(", stamp {}", is.last_stamp()) };
        changes.push(format!("writer {w} was {:?}, is {:?} (xid {}{stamp})", was.phase, is.phase, is.xid));
    }
    for tick in after.database.ticks.iter().filter(|tick| !before.database.ticks.contains(tick)) {
        let how = if tick.flushed_first { "flushed" } else { "announced first" };
        let mark = if tick.mark { " with a mark" } else { "" };
        let events = protocol.events(after, tick);
        changes.push(format!("tick {}{mark} {how}: {}, ends at {}", tick.number, list(&events), show(tick.until)));
    }
    for tick in before.database.ticks.iter().filter(|tick| !after.database.ticks.contains(tick)) {
        changes.push(format!("tick {} is gone", tick.number));
    }
    if before.database.standby {
        describe_standby(protocol, before, after, &mut changes);
    }
    if before.database.removed != after.database.removed {
        changes.push(format!("the log starts behind tick {}", after.database.floor()));
    }
    for (p, (_, is)) in before.proxies.iter().zip(&after.proxies).enumerate().filter(|(_, (was, is))| was != is) {
        let skip = is.skip.map(|skip| format!(", passes over what {} sees", show(skip.snapshot))).unwrap_or_default();
        let place = is.place().map(place).unwrap_or_else(|| "nowhere".to_string());
        let how = if is.connected { "" } else { ", not connected" };
        let how = if is.at_standby { format!("{how}, by the standby") } else { how.to_string() };
        changes.push(format!("proxy {p} at {place}{how}{skip}"));
    }
    for (c, (_, is)) in before.clients.iter().zip(&after.clients).enumerate().filter(|(_, (was, is))| was != is) {
        let base =
            if is.base.is_empty() { String::new() } else { format!(", has read {} from the tables", list(&is.base)) };
        let at = is.at.map(|p| format!("at proxy {p}")).unwrap_or_else(|| "nowhere".to_string());
        let seen = is.seen.map(|seen| format!(" and what {} sees", show(seen.skip.snapshot))).unwrap_or_default();
        changes.push(format!("client {c} {at}, id {}{seen}, has {}{base}", place(is.id), list(&is.got)));
    }
    changes.join("; ")
}

fn describe_standby(protocol: &Protocol, before: &State, after: &State, changes: &mut Vec<String>) {
    if !after.database.standby {
        changes.push("the standby is the primary".to_string());
        return;
    }
    if let Some(tick) = after.database.hidden.filter(|_| before.database.hidden.is_none()) {
        let events = protocol.events(after, &tick);
        changes.push(format!("tick {} is cut: {}, but no session sees it yet", tick.number, list(&events)));
    }
    let (was, is) = (protocol.shown(before, true), protocol.shown(after, true));
    for tick in is.database.ticks.iter().filter(|tick| !was.database.ticks.contains(tick)) {
        changes.push(format!("the standby shows tick {}", tick.number));
    }
    for (w, _) in is
        .writers
        .iter()
        .zip(&was.writers)
        .enumerate()
        .filter(|(_, (is, was))| is.phase == Phase::Committed && was.phase != Phase::Committed)
    {
        changes.push(format!("the standby shows what writer {w} has committed"));
    }
}

fn show(snapshot: Snapshot) -> String {
    let running: Vec<_> = (0..32).filter(|xid| snapshot.running & 1 << xid != 0).map(|xid| xid.to_string()).collect();
    format!("{}:{}", snapshot.xmax, running.join(","))
}

fn place((tick, n): Place) -> String {
    if n == END { tick.to_string() } else { format!("{tick}-{n}") }
}

/// Events as letters, the writer's: `A`, or `A0` and `A1` would be of one transaction.
fn list(events: &[Event]) -> String {
    let names: Vec<_> = events.iter().map(|(w, n)| format!("{}{n}", char::from(b'A' + w))).collect();
    format!("[{}]", names.join(" "))
}
