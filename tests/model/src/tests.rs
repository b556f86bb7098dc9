//! The model in a small size, and what the checker finds when a rule is left out.
//!
//! A test of a rule runs the same scenario twice: with all rules it must be sound, without this one it must not.

use crate::properties::*;
use crate::rules::{Rule, Rules};
use crate::run::explore;
use crate::scenario::*;
use crate::state::Left;

/// Nothing goes wrong in any order of events.
fn holds(scenario: Scenario) {
    let name = scenario.name;
    let outcome = explore(scenario, &[], 1);
    println!("{name}: {} states, at most {} steps, {:?}", outcome.states, outcome.depth, outcome.took);
    if let Some(found) = outcome.counterexample {
        panic!("{name}: not {}:\n{}", found.property, found.story);
    }
}

/// The scenario is sound with all rules, and without these one of the properties fails.
fn needs(rules: &[Rule], scenario: Scenario, expected: &[&'static str]) {
    holds(scenario.clone());
    fails(rules, scenario, expected);
}

/// Without these rules, one of the properties fails.
fn fails(rules: &[Rule], scenario: Scenario, expected: &[&'static str]) {
    let outcome = explore(Scenario { rules: Rules::without(rules), ..scenario }, expected, 1);
    let found = outcome.counterexample.unwrap_or_else(|| panic!("without {rules:?} nothing fails"));
    println!("without {rules:?}: not {}:\n{}", found.property, found.story);
}

/// A crash, with one proxy and a client that stays there.
fn crash(writers: &[Script]) -> Scenario {
    Scenario { left: Left { crashes: 1, ..Left::default() }, ..Scenario::new("a crash", writers) }
}

/// A failover to a standby that may lack anything.
fn failover(writers: &[Script]) -> Scenario {
    Scenario { name: "a failover", standby_lags: true, ..crash(writers) }
}

#[test]
fn a_crash_takes_nothing_back_and_repeats_nothing() {
    for scenario in small() {
        holds(scenario);
    }
}

#[test]
fn asynchronous_writers_need_a_flush_before_the_announcement() {
    needs(&[Rule::FlushForAsynchronous], crash(&[ASYNCHRONOUS]), &[DURABLE]);
}

#[test]
fn without_the_snapshot_in_the_announcement_a_proxy_that_heard_must_reset() {
    needs(&[Rule::SnapshotInAnnouncement], crash(&[PLAIN]), &[NO_NEEDLESS_RESET]);
}

#[test]
fn what_was_published_in_a_lost_tick_must_be_passed_over() {
    needs(&[Rule::PassOver], crash(&[PLAIN]), &[ONCE]);
}

#[test]
fn the_id_of_a_lost_tick_must_not_be_taken_for_known() {
    let scenario = Scenario { proxies: 2, left: Left { crashes: 1, cuts: 1, ..Left::default() }, ..crash(&[PLAIN]) };
    needs(&[Rule::LostIdsAreUnknown], scenario, &[ONCE]);
}

#[test]
fn a_proxy_must_ask_whether_what_it_published_is_left() {
    needs(&[Rule::AskWhatIsLeft], failover(&[PLAIN]), &[KEPT]);
}

#[test]
fn a_tick_that_leaves_out_an_earlier_transaction_must_be_flushed_first() {
    needs(&[Rule::FlushWhileEarlierEnd], crash(&[PLAIN, PLAIN]), &[ONE_ORDER]);
    needs(&[Rule::FlushWhileEarlierEnd], crash(&[PREPARED, PLAIN]), &[ONE_ORDER]);
}

#[test]
fn a_large_transaction_needs_a_stamp_of_its_commit() {
    let scenario = Scenario { slow_cut: true, ..crash(&[LARGE, PLAIN]) };
    needs(&[Rule::LargeOnesStampAgain], scenario, &[ONE_ORDER]);
}

#[test]
fn a_prepared_transaction_may_end_before_the_tick_is_cut_again() {
    needs(&[Rule::PreparedMayEnd], crash(&[PREPARED, PLAIN]), &[ONE_ORDER]);
}

#[test]
fn the_number_of_a_tick_can_stand_for_its_snapshot() {
    let by_horizon = |scenario| Scenario { by_horizon: true, slow_cut: true, ..scenario };
    needs(&[Rule::FlushForAsynchronous], by_horizon(crash(&[ASYNCHRONOUS])), &[DURABLE]);
    needs(&[Rule::FlushWhileEarlierEnd], by_horizon(crash(&[PLAIN, PLAIN])), &[ONE_ORDER]);
    needs(&[Rule::PreparedMayEnd], by_horizon(crash(&[PREPARED, PLAIN])), &[NO_NEEDLESS_RESET]);
    needs(&[Rule::LargeOnesStampAgain], by_horizon(crash(&[LARGE, PLAIN])), &[ONE_ORDER]);
    fails(&[Rule::LookCoversLaterStamps], by_horizon(crash(&[PLAIN, PLAIN, PLAIN])), &[ONE_ORDER]);
}

#[test]
fn without_that_flush_short_ids_repeat_events_at_one_proxy_and_lose_them_at_another() {
    let scenario =
        Scenario { proxies: 2, left: Left { crashes: 1, cuts: 1, ..Left::default() }, ..crash(&[PLAIN, PLAIN]) };
    fails(&[Rule::FlushWhileEarlierEnd], Scenario { heartbeats: false, ..scenario.clone() }, &[ONCE]);
    let rules = [Rule::FlushWhileEarlierEnd, Rule::MemoryKnowsItsGaps];
    fails(&rules, Scenario { piecemeal: true, heartbeats: false, ..scenario }, &[COMPLETE]);
}

#[test]
fn a_proxy_has_gaps_where_it_passed_over_events() {
    let left = Left { crashes: 1, deaths: 1, ..Left::default() };
    let scenario = Scenario { proxies: 2, clients: 2, left, ..crash(&[PLAIN, PLAIN]) };
    fails(&[Rule::MemoryKnowsItsGaps], scenario, &[COMPLETE]);
}

#[test]
fn a_tick_that_was_flushed_first_must_not_bring_its_snapshot() {
    needs(&[Rule::NoSnapshotOfFlushed], failover(&[PLAIN, PLAIN]), &[ONE_ORDER]);
}

#[test]
fn every_lost_tick_must_have_had_a_snapshot() {
    fails(&[Rule::AllLostTicksHeard], failover(&[PLAIN, PLAIN, PLAIN]), &[ONE_ORDER]);
}

#[test]
fn a_snapshot_needs_its_stamp_where_no_relay_ran_between_two_crashes() {
    let twice = Scenario { left: Left { crashes: 2, ..Left::default() }, ..crash(&[PLAIN, PLAIN, PLAIN]) };
    fails(&[Rule::SnapshotHasStamp], twice, &[NO_NEEDLESS_RESET]);
}

#[test]
#[ignore = "takes as long as all the others: a million states lie before it"]
fn a_snapshot_needs_its_stamp_where_the_mark_is_lost() {
    let twice = Scenario { left: Left { crashes: 2, ..Left::default() }, ..crash(&[PLAIN, PLAIN, PLAIN]) };
    fails(&[Rule::SnapshotHasStamp], twice, &[COMPLETE]);
}

#[test]
fn numbers_of_lost_transactions_are_given_again() {
    let rules = [Rule::SnapshotHasStamp, Rule::MarkAfterRestart];
    fails(&rules, crash(&[PLAIN, PLAIN, PLAIN]), &[COMPLETE]);
    fails(&rules, crash(&[PLAIN, PLAIN, PLAIN]), &[NO_NEEDLESS_RESET]);
}

#[test]
fn with_stamps_the_mark_is_not_needed() {
    let twice = Scenario { left: Left { crashes: 2, ..Left::default() }, ..crash(&[PLAIN, PLAIN]) };
    holds(Scenario { rules: Rules::without(&[Rule::MarkAfterRestart]), ..twice });
}

#[test]
fn what_was_stamped_after_the_look_may_be_behind_an_earlier_one() {
    let scenario = Scenario { slow_cut: true, ..crash(&[PLAIN, PLAIN, PLAIN]) };
    fails(&[Rule::LookCoversLaterStamps], scenario.clone(), &[NO_NEEDLESS_RESET]);
    fails(&[Rule::LookCoversLaterStamps], scenario, &[ONE_ORDER]);
}

#[test]
fn a_reader_of_the_log_must_not_skip_to_the_place_of_the_proxy() {
    let left = Left { crashes: 1, deaths: 1, cuts: 1, ..Left::default() };
    needs(&[Rule::LogEndsWhereItEnds], Scenario { left, ..crash(&[PLAIN, PLAIN]) }, &[COMPLETE]);
}

#[test]
fn a_commit_of_a_prepared_transaction_may_be_lost_and_come_again() {
    needs(&[Rule::FlushForPrepared], failover(&[PREPARED]), &[ONCE]);
}

#[test]
fn the_clock_must_not_go_back() {
    let scenario =
        Scenario { proxies: 2, left: Left { crashes: 1, cuts: 1, ..Left::default() }, ..crash(&[PLAIN, PLAIN]) };
    needs(&[Rule::ClockNeverGoesBack], scenario, &[COMPLETE]);
}

#[test]
fn a_position_older_than_retention_must_be_reset() {
    let left = Left { removals: 1, cuts: 1, deaths: 1, ..Left::default() };
    needs(&[Rule::CheckRetention], Scenario { left, ..Scenario::new("retention", &[PLAIN]) }, &[COMPLETE]);
}

#[test]
fn a_position_must_be_flushed() {
    let scenario = |writer| Scenario { left: Left { crashes: 1, starts: 1, ..Left::default() }, ..crash(&[writer]) };
    needs(&[Rule::PositionIsFlushed], scenario(PLAIN), &[NO_NEEDLESS_RESET]);
    needs(&[Rule::PositionIsFlushed], scenario(ASYNCHRONOUS), &[DURABLE]);
}

#[test]
fn a_position_needs_a_count_to_be_good_after_a_failover() {
    let scenario = Scenario { left: Left { crashes: 1, starts: 1, ..Left::default() }, ..failover(&[PLAIN, PLAIN]) };
    needs(&[Rule::PositionHasCount], scenario, &[KEPT]);
    // As the code does it, with a real standby; the position is read on either server.
    let left = Left { promotions: 1, starts: 1, ..Left::default() };
    let scenario = Scenario { standby_lags: true, left, ..with_standby("rows, lags", &[PLAIN]) };
    needs(&[Rule::PositionHasCount], scenario, &[KEPT]);
}

#[test]
fn the_count_of_a_position_is_good_within_a_tick_too() {
    let scenario = Scenario {
        by_horizon: true,
        piecemeal: true,
        heartbeats: false,
        left: Left { crashes: 1, starts: 1, ..Left::default() },
        ..failover(&[PLAIN, ASYNCHRONOUS])
    };
    needs(&[Rule::PositionHasCount], scenario, &[KEPT]);
}

#[test]
fn stragglers_must_be_looked_for() {
    needs(&[Rule::Stragglers], Scenario::new("stragglers", &[PLAIN, PLAIN]), &[COMPLETE, NEVER_STUCK]);
}

#[test]
fn numbers_of_transactions_are_not_the_order_of_a_row() {
    let scenario = Scenario { same_row: true, ..Scenario::new("a row", &[PLAIN, PLAIN]) };
    needs(&[Rule::OrderByStamp], scenario, &[ROW_ORDER]);
}

#[test]
fn a_large_transaction_has_the_place_of_its_last_stamp() {
    needs(&[Rule::OrderByLastStamp], Scenario::new("large", &[LARGE, PLAIN]), &[TOGETHER]);
}

#[test]
fn a_standby_must_not_get_what_its_primary_may_still_lose() {
    let left = Left { crashes: 1, ..Left::default() };
    needs(
        &[Rule::OnlyFlushedIsSent],
        Scenario { clients: 2, left, ..with_standby("sent early", &[ASYNCHRONOUS]) },
        &[DURABLE],
    );
}

#[test]
fn an_id_that_a_standby_has_not_replayed_is_waited_for() {
    let left = Left { cuts: 1, ..Left::default() };
    needs(&[Rule::UnreplayedIsAwaited], Scenario { left, ..with_standby("an id", &[PLAIN]) }, &[NO_NEEDLESS_RESET]);
    let left = Left { moves: 1, ..Left::default() };
    needs(&[Rule::UnreplayedIsAwaited], Scenario { left, ..with_standby("a place", &[PLAIN]) }, &[NO_NEEDLESS_RESET]);
}

#[test]
fn a_tick_that_only_the_standby_shows_yet_is_waited_for() {
    let left = Left { cuts: 1, ..Left::default() };
    let scenario = Scenario { clients: 2, left, ..with_standby("an id", &[ASYNCHRONOUS]) };
    needs(&[Rule::CutTickIsAwaited], scenario, &[NO_NEEDLESS_RESET]);
    let left = Left { moves: 1, ..Left::default() };
    let scenario = Scenario { clients: 2, left, ..with_standby("a place", &[ASYNCHRONOUS]) };
    needs(&[Rule::CutTickIsAwaited], scenario, &[NO_NEEDLESS_RESET]);
}

#[test]
fn what_a_position_has_seen_on_another_server_is_waited_for() {
    let left = Left { starts: 1, ..Left::default() };
    needs(&[Rule::SeenIsAwaited], Scenario { left, ..with_standby("a position", &[PLAIN]) }, &[NO_NEEDLESS_RESET]);
}

#[test]
fn a_promoted_standby_may_lack_what_was_published() {
    let left = Left { promotions: 1, ..Left::default() };
    let scenario = Scenario { standby_lags: true, left, ..with_standby("lags", &[PLAIN]) };
    needs(&[Rule::AskWhatIsLeft], scenario, &[KEPT]);
}

#[test]
fn a_standby_must_not_wait_for_a_tick_that_a_crash_has_lost() {
    let left = Left { crashes: 1, moves: 1, ..Left::default() };
    let scenario = Scenario { left, ..with_standby("a lost place", &[PLAIN]) };
    needs(&[Rule::EarlierTickIsLost], scenario, &[NEVER_STUCK]);
}
