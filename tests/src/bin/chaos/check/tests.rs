//! Streams that are right, and streams with one fault each.

use super::*;
use crate::homes::Home;
use tidings_tests::ledger::Write;

fn law(losses: &[u64], retention: Option<u64>) -> Law {
    let retention = retention.map(|seconds| seconds * 1_000_000);
    law_for(Fate { losses: losses.to_vec(), retention, ..Fate::default() }, &[])
}

fn law_for(fate: Fate, lives: &[Life]) -> Law {
    let known = [(10, 1, 0), (10, 2, 1), (20, 1, 0), (40, 1, 0), (40, 2, 0)];
    let known = known.iter().map(|(tick, n, topic)| Known {
        place: (*tick, *n),
        topic: *topic,
        print: tick * 100 + u64::from(*n),
        write: Write { name: format!("{tick}-{n}"), version: None },
    });
    Law::new(Log { known: known.collect(), ticks: BTreeSet::new() }, fate, lives)
}

const CONNECTED: Got = Got::Connected(Visit { home: None, is_long: false });

fn life(start: Start, got: &[Got]) -> Life {
    Life { topics: vec![0], start, got: got.to_vec(), ..Life::default() }
}

fn event(tick: u64, n: u32) -> Got {
    Got::Event((tick, n), tick * 100 + u64::from(n))
}

#[test]
fn what_is_right_has_no_fault() {
    let all = [event(10, 1), event(20, 1), Got::Id((30, u32::MAX)), CONNECTED, event(40, 1), event(40, 2)];
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
    assert_eq!(faults(&[event(10, 1), Got::Reset((20, u32::MAX), 25, Reset::Expired)]), 1, "a reset that is not due");
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
    assert_eq!(faults(&[&before[..], &[CONNECTED, event(40, 1)]].concat()), 1, "silently");
    assert_eq!(faults(&[&before[..], &[CONNECTED, RESET, event(40, 1), event(40, 2)]].concat()), 0);
    assert_eq!(faults(&[&before[..], &[RESET, event(40, 2)]].concat()), 1, "after the reset nothing may be missing");
    assert_eq!(faults(&[&before[..], &[RESET, event(20, 1)]].concat()), 1, "nor may anything from before it arrive");
    let early = Got::Reset((20, u32::MAX), 34, Reset::Lost);
    assert_eq!(faults(&[&before[..], &[early, event(40, 1)]].concat()), 1, "before anything was lost");
    let again = [Got::Id((40, 0)), Got::Reset((40, 0), 50, Reset::Lost), event(40, 1)];
    assert_eq!(faults(&[&before[..], &[RESET], &again].concat()), 1, "a client after the loss");
}

/// A crash between the ticks 20 and 40 took back tick 30, which had the first event of tick 40.
fn after_a_crash(fate: Fate, lives: &[&[Got]]) -> Vec<usize> {
    let lives: Vec<_> = lives.iter().map(|got| life(Start::Earliest, got)).collect();
    let law = law_for(Fate { crashes: vec![20..=40], ..fate }, &lives);
    lives.iter().map(|life| law.judge(life).faults.len()).collect()
}

fn at(home: Home, is_long: bool) -> Got {
    Got::Connected(Visit { home: Some(home), is_long })
}

const AGAIN: Got = Got::Event((30, 1), 4001);

#[test]
fn what_a_crash_took_back_comes_once_and_nothing_is_missing() {
    let faults = |got: &[Got]| after_a_crash(Fate::default(), &[&[&[event(10, 1), event(20, 1)], got].concat()])[0];
    assert_eq!(faults(&[AGAIN, event(40, 2)]), 0);
    assert_eq!(faults(&[AGAIN, Got::Id((30, u32::MAX)), Got::Id((40, 1)), event(40, 2)]), 0);
    assert_eq!(faults(&[event(40, 1), event(40, 2)]), 0, "from a proxy that did not hear it");
    assert_eq!(faults(&[AGAIN, event(40, 1), event(40, 2)]), 1, "again");
    assert_eq!(faults(&[AGAIN, CONNECTED, event(40, 1)]), 1, "again, from another proxy");
    assert_eq!(faults(&[AGAIN, Got::Id((40, 2))]), 1, "one is missing");
    assert_eq!(faults(&[Got::Event((30, 1), 4002), Got::Event((30, 2), 4001)]), 2, "in another order");
    assert_eq!(faults(&[Got::Event((30, 1), 7)]), 1, "an event that the crash took back");
    assert_eq!(faults(&[Got::Event((45, 1), 4001)]), 1, "a tick that no crash took back");
}

#[test]
fn a_crash_resets_only_who_comes_with_a_lost_id_to_a_proxy_that_did_not_hear_it() {
    let lost = Got::Reset((20, u32::MAX), 50, Reset::Lost);
    let before = [at((0, 0), false), event(10, 1), event(20, 1), AGAIN];
    let after = [lost, event(40, 1), event(40, 2)];
    let faults = |fate: Fate, comes: Got| after_a_crash(fate, &[&[&before[..], &[comes], &after].concat()])[0];
    assert_eq!(faults(Fate::default(), at((1, 0), false)), 0, "another proxy");
    assert_eq!(faults(Fate::default(), at((0, 2), false)), 0, "the proxy has been started again");
    assert_eq!(faults(Fate::default(), at((0, 0), false)), 1, "the proxy has heard it");
    assert_eq!(faults(Fate::default(), at((0, 0), true)), 0, "an id with a snapshot");
    assert_eq!(faults(Fate { forgets: true, ..Fate::default() }, at((0, 0), false)), 0);
    let stays = after_a_crash(Fate { forgets: true, ..Fate::default() }, &[&[&before[..], &after].concat()]);
    assert_eq!(stays, [1], "it did not move");
    let other = [at((1, 0), false), event(10, 1), event(20, 1), at((0, 0), false), lost];
    assert_eq!(after_a_crash(Fate::default(), &[&before, &other]), [0, 1], "its id was not lost");
    let third = [at((1, 0), false), event(10, 1), event(20, 1), AGAIN, at((0, 0), false), lost];
    assert_eq!(after_a_crash(Fate::default(), &[&before, &third]), [0, 1], "others heard it there");
}

#[test]
fn who_starts_within_a_lost_tick_does_not_get_its_events_again() {
    let start = |got: &[Got]| {
        let heard = life(Start::Earliest, &[event(10, 1), event(20, 1), AGAIN]);
        let late = life(Start::Live, got);
        let fate = Fate { crashes: vec![20..=40], ..Fate::default() };
        law_for(fate, &[heard, late.clone()]).judge(&late).faults.len()
    };
    assert_eq!(start(&[Got::Id((30, u32::MAX)), event(40, 2)]), 0);
    assert_eq!(start(&[Got::Id((30, u32::MAX)), event(40, 1)]), 1);
    assert_eq!(start(&[Got::Id((20, u32::MAX)), event(40, 2)]), 1);
}

#[test]
fn a_standby_that_had_the_events_but_not_the_tick_needs_no_reset() {
    let faults = |got: &[Got]| law(&[35], None).judge(&life(Start::Earliest, got)).faults.len();
    assert_eq!(faults(&[event(10, 1), event(20, 1), AGAIN, event(40, 2)]), 0);
    assert_eq!(faults(&[event(10, 1), event(20, 1), AGAIN, event(40, 1)]), 1);
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
    assert_eq!(faults(&[&before[..], &[CONNECTED, event(30, 1), RESET, event(40, 1)]].concat()), 0);
    assert_eq!(faults(&[&before[..], &[event(30, 1), RESET, event(40, 1)]].concat()), 1);
    assert_eq!(faults(&[&before[..], &[CONNECTED, event(20, 1)]].concat()), 2);
}

#[test]
fn a_reset_is_due_when_the_position_is_old() {
    let got = [event(10, 1), Got::Reset((20, u32::MAX), 2_000_010, Reset::Expired), event(40, 1)];
    let verdict = law(&[], Some(2)).judge(&life(Start::Live, &got));
    assert_eq!((verdict.faults, verdict.resets), (vec![], 1));
    assert_eq!(law(&[], Some(3)).judge(&life(Start::Live, &got)).faults.len(), 1);
}
