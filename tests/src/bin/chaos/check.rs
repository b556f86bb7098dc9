//! Compares what a client received with what it should have received.
//!
//! Events of ticks that the log has must arrive exactly: each once, in the log's order, none missing. A tick that the
//! log doesn't have was lost in a failover, and clients may only have seen it if there was such a failover at that
//! time. Its events may arrive again in a later tick, which the log has, or were lost with their transactions. So the
//! client must get a reset before any other event.

use std::collections::{BTreeSet, HashSet};

use crate::clients::{Got, Life, Reset, Start};
use crate::reference::{Known, Place};

/// The order of all events, and what may have happened to it.
#[derive(Debug)]
pub struct Law {
    known: Vec<Known>,
    ticks: BTreeSet<u64>,
    /// When a primary was lost whose last ticks its standby may not have had, in the numbers of ticks.
    losses: Vec<u64>,
    /// In microseconds.
    retention: Option<u64>,
}

/// The result for a client.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Events that arrived as they should.
    pub events: usize,
    /// Events of ticks that a failover lost, or of writes whose first commit it lost.
    pub lost_ticks: usize,
    /// Connections.
    pub connections: usize,
    /// Resets that were necessary.
    pub resets: usize,
    /// What is wrong.
    pub faults: Vec<String>,
}

impl Law {
    /// The expectations for a run whose log was `known`.
    pub fn new(known: Vec<Known>, losses: Vec<u64>, retention: Option<u64>) -> Self {
        let ticks = known.iter().map(|known| known.place.0).collect();
        Self { known, ticks, losses, retention: retention.map(|seconds| seconds * 1_000_000) }
    }

    /// The number of events.
    pub fn events(&self) -> usize {
        self.known.len()
    }

    /// Checks a life.
    pub fn judge(&self, life: &Life) -> Verdict {
        let mut expected = self.expected(life, &life.seen);
        let mut verdict = Verdict::default();
        // The next event that should arrive; `None` while it is unknown where the stream starts.
        let mut next = match life.start {
            Start::Live => None,
            Start::Earliest if self.retention.is_some() => None,
            Start::Earliest | Start::Snapshot => Some(0),
        };
        let mut last: Option<Place> = None;
        let mut position: Option<Place> = None;
        // The first event of a lost tick that the client has seen, until it gets a reset.
        let mut untold: Option<Place> = None;
        for got in &life.got {
            match *got {
                Got::Connected => {
                    verdict.connections += 1;
                    // Ids rise within a stream. A proxy that does not know of a failover yet may send lost ticks again
                    // to a client that comes from another proxy; events that are in the log are checked against its
                    // order below.
                    last = None;
                }
                Got::Id(place) => {
                    let next = next.get_or_insert_with(|| behind(&expected, place));
                    if expected.get(*next).is_some_and(|known| known.place <= place) {
                        verdict
                            .faults
                            .push(format!("the stream is at {place:?}: {}", missing(&expected, *next, place)));
                        *next = behind(&expected, place);
                    }
                    position = Some(place);
                }
                Got::Reset(place, at, why) => {
                    if position.is_some_and(|position| !self.is_due(position, at, why)) {
                        verdict
                            .faults
                            .push(format!("{why:?} to {place:?}, which was not due: it stood at {position:?}"));
                    }
                    verdict.resets += 1;
                    next = Some(match why {
                        Reset::Expired => next.unwrap_or(0).max(behind(&expected, place)),
                        Reset::Lost => {
                            // It drops what it had, and continues after that place, which may be an earlier one.
                            expected = self.expected(life, &HashSet::new());
                            behind(&expected, place)
                        }
                    });
                    (last, position, untold) = (None, Some(place), None);
                }
                Got::Event(place, print) => {
                    if last.is_some_and(|last| last >= place) {
                        verdict.faults.push(format!("{place:?} comes after {last:?}"));
                    }
                    (last, position) = (Some(place), Some(place));
                    if !self.ticks.contains(&place.0) {
                        if self.is_lost(place.0) {
                            verdict.lost_ticks += 1;
                            untold = untold.or(Some(place));
                        } else {
                            verdict.faults.push(format!("{place:?} was shown and is in no tick of the log"));
                        }
                        continue;
                    }
                    if let Some(lost) = untold.take() {
                        verdict.faults.push(format!("{place:?} arrived, and no reset said that {lost:?} was lost"));
                    }
                    if self.was_lost_from_snapshot(life, place, print) {
                        verdict.lost_ticks += 1;
                        continue;
                    }
                    let next = next.get_or_insert_with(|| expected.partition_point(|known| known.place < place));
                    match expected.get(*next) {
                        Some(known) if known.place == place => {
                            if known.print != print {
                                verdict.faults.push(format!("{place:?} says something else than the log"));
                            }
                            *next += 1;
                            verdict.events += 1;
                        }
                        Some(known) if known.place < place => {
                            verdict.faults.push(format!("before {place:?}: {}", missing(&expected, *next, place)));
                            *next = behind(&expected, place);
                        }
                        _ => verdict.faults.push(format!("{place:?} came, which was not its to come, or again")),
                    }
                }
            }
        }
        if let Some(fault) = &life.fault {
            verdict.faults.push(format!("{fault}; the last event was {last:?}"));
        }
        verdict
    }

    /// The events of a client's topics, except for writes that it has `seen` otherwise.
    fn expected(&self, life: &Life, seen: &HashSet<String>) -> Vec<&Known> {
        let due = |known: &&Known| life.topics.contains(&known.topic) && !seen.contains(&known.write.name);
        self.known.iter().filter(due).collect()
    }

    /// Whether a client at this place had to get a reset at that time.
    fn is_due(&self, place: Place, at: u64, why: Reset) -> bool {
        match why {
            Reset::Expired => self.retention.is_some_and(|time| at >= place.0 + time),
            Reset::Lost => self.losses.iter().any(|loss| (place.0..=at).contains(loss)),
        }
    }

    /// Whether the event is of a write that was in the client's snapshot and whose commit a failover may have undone:
    /// the standby had only its PREPARE, and a writer committed it again.
    fn was_lost_from_snapshot(&self, life: &Life, place: Place, print: u64) -> bool {
        let at = self.known.binary_search_by_key(&place, |known| known.place);
        let is_seen =
            at.is_ok_and(|at| self.known[at].print == print && life.seen.contains(&self.known[at].write.name));
        is_seen && self.losses.iter().any(|loss| (life.snapshot..=place.0).contains(loss))
    }

    /// Whether a failover may have lost the tick: one happened between the neighbouring ticks of the log.
    fn is_lost(&self, tick: u64) -> bool {
        let before = self.ticks.range(..tick).next_back().copied().unwrap_or(0);
        let after = self.ticks.range(tick..).next().copied().unwrap_or(u64::MAX);
        self.losses.iter().any(|loss| before <= *loss && *loss <= after)
    }
}

/// How many of the events lie at or before a place.
fn behind(expected: &[&Known], place: Place) -> usize {
    expected.partition_point(|known| known.place <= place)
}

fn missing(expected: &[&Known], next: usize, place: Place) -> String {
    let all: Vec<_> = expected[next..].iter().take_while(|known| known.place < place).collect();
    let some: Vec<_> = all.iter().take(5).map(|known| (known.place, &known.write.name)).collect();
    format!("{} events are missing, {some:?}", all.len().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tidings_tests::ledger::Write;

    fn law(losses: &[u64], retention: Option<u64>) -> Law {
        let known = [(10, 1, 0), (10, 2, 1), (20, 1, 0), (40, 1, 0), (40, 2, 0)];
        let known = known.iter().map(|(tick, n, topic)| Known {
            place: (*tick, *n),
            topic: *topic,
            print: tick * 100 + u64::from(*n),
            write: Write { name: format!("{tick}-{n}"), version: None },
        });
        Law::new(known.collect(), losses.to_vec(), retention)
    }

    fn life(start: Start, got: &[Got]) -> Life {
        Life { topics: vec![0], start, got: got.to_vec(), ..Life::default() }
    }

    fn event(tick: u64, n: u32) -> Got {
        Got::Event((tick, n), tick * 100 + u64::from(n))
    }

    #[test]
    fn what_is_right_has_no_fault() {
        let all = [event(10, 1), event(20, 1), Got::Id((30, u32::MAX)), Got::Connected, event(40, 1), event(40, 2)];
        let verdict = law(&[], None).judge(&life(Start::Earliest, &all));
        assert_eq!((verdict.faults, verdict.events), (vec![], 4));
        let late = [Got::Id((10, u32::MAX)), event(20, 1)];
        assert_eq!(law(&[], None).judge(&life(Start::Live, &late)).faults, Vec::<String>::new());
        // For a life that begins with an event, nothing is known about earlier ones.
        assert_eq!(law(&[], None).judge(&life(Start::Live, &late[1..])).faults, Vec::<String>::new());
    }

    #[test]
    fn each_fault_is_found() {
        let faults = |got: &[Got]| law(&[], None).judge(&life(Start::Earliest, got)).faults.len();
        assert_eq!(faults(&[event(20, 1)]), 1, "one is missing");
        assert_eq!(faults(&[event(10, 1), Got::Id((30, 1))]), 1, "one is missing before a place");
        assert_eq!(faults(&[event(10, 1), event(10, 1)]), 2, "twice, and back");
        assert_eq!(faults(&[event(10, 1), event(10, 2)]), 1, "another topic's");
        assert_eq!(faults(&[event(10, 1), event(20, 1), event(30, 1)]), 1, "of no tick");
        assert_eq!(faults(&[Got::Event((10, 1), 0)]), 1, "another text");
        assert_eq!(
            faults(&[event(10, 1), Got::Reset((20, u32::MAX), 25, Reset::Expired)]),
            1,
            "a reset that is not due"
        );
        let mut seen = life(Start::Snapshot, &[event(20, 1)]);
        seen.seen.insert("10-1".to_owned());
        assert_eq!(law(&[], None).judge(&seen).faults.len(), 0);
        seen.seen.clear();
        assert_eq!(law(&[], None).judge(&seen).faults.len(), 1, "not in the snapshot, and not shown");
    }

    /// A reset to the last tick before the loss.
    const RESET: Got = Got::Reset((20, u32::MAX), 36, Reset::Lost);

    #[test]
    fn a_lost_tick_is_excused_by_a_failover_at_its_time_only() {
        let got = [event(10, 1), event(20, 1), event(30, 1), RESET, event(40, 1)];
        let faults = |losses| law(losses, None).judge(&life(Start::Earliest, &got)).faults.len();
        assert_eq!((faults(&[]), faults(&[15]), faults(&[35])), (2, 2, 0));
    }

    #[test]
    fn who_saw_what_was_lost_is_told_before_anything_else_comes() {
        let faults = |got: &[Got]| law(&[35], None).judge(&life(Start::Earliest, got)).faults.len();
        let before = [event(10, 1), event(20, 1), event(30, 1)];
        assert_eq!(faults(&[&before[..], &[Got::Connected, event(40, 1)]].concat()), 1, "silently");
        assert_eq!(faults(&[&before[..], &[Got::Connected, RESET, event(40, 1), event(40, 2)]].concat()), 0);
        assert_eq!(
            faults(&[&before[..], &[RESET, event(40, 2)]].concat()),
            1,
            "after the reset nothing may be missing"
        );
        assert_eq!(
            faults(&[&before[..], &[RESET, event(20, 1)]].concat()),
            1,
            "nor may anything from before it arrive"
        );
        let early = Got::Reset((20, u32::MAX), 34, Reset::Lost);
        assert_eq!(faults(&[&before[..], &[early, event(40, 1)]].concat()), 1, "before anything was lost");
        let again = [Got::Id((40, 0)), Got::Reset((40, 0), 50, Reset::Lost), event(40, 1)];
        assert_eq!(faults(&[&before[..], &[RESET], &again].concat()), 1, "a client after the loss");
    }

    #[test]
    fn what_a_snapshot_had_may_come_only_if_its_commit_was_lost() {
        let faults = |losses: &[u64], snapshot| {
            let mut life = life(Start::Snapshot, &[event(20, 1), event(40, 1), event(40, 2)]);
            life.seen = ["10-1", "40-1"].map(str::to_owned).into();
            law(losses, None).judge(&Life { snapshot, ..life }).faults.len()
        };
        assert_eq!((faults(&[35], 10), faults(&[], 10), faults(&[5], 10), faults(&[45], 10)), (0, 1, 1, 1));
    }

    #[test]
    fn a_lost_tick_may_be_shown_again_in_another_stream_only() {
        let faults = |got: &[Got]| law(&[35], None).judge(&life(Start::Earliest, got)).faults.len();
        let before = [event(10, 1), event(20, 1), event(30, 1)];
        assert_eq!(faults(&[&before[..], &[Got::Connected, event(30, 1), RESET, event(40, 1)]].concat()), 0);
        assert_eq!(faults(&[&before[..], &[event(30, 1), RESET, event(40, 1)]].concat()), 1);
        assert_eq!(faults(&[&before[..], &[Got::Connected, event(20, 1)]].concat()), 2);
    }

    #[test]
    fn a_reset_is_due_when_the_position_is_old() {
        let got = [event(10, 1), Got::Reset((20, u32::MAX), 2_000_010, Reset::Expired), event(40, 1)];
        let verdict = law(&[], Some(2)).judge(&life(Start::Live, &got));
        assert_eq!((verdict.faults, verdict.resets), (vec![], 1));
        assert_eq!(law(&[], Some(3)).judge(&life(Start::Live, &got)).faults.len(), 1);
    }
}
