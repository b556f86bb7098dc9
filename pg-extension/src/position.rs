//! The SQL functions about positions: the one of the current snapshot, and the parts of others.

use std::ops::ControlFlow;
use std::sync::atomic::Ordering::SeqCst;

use pgrx::prelude::*;
use tidings_wire::position::{END, MAX_COUNT, MAX_TEXT, PositionError};
use tidings_wire::{Position, Seen, Snapshot};

use crate::log::layout::log;
use crate::log::{durability, scan, snapshot};
use crate::{errors, preload, shared};

/// The bytes of a position without its snapshot: numbers and separators.
const ROOM_FOR_NUMBERS: usize = 64;

/// The most segments that are counted for a position, which takes some milliseconds. There are more only if the relay
/// was down. Then the position has no count.
const MAX_COUNTED: usize = 10_000;

/// `tidings.position()`: the position of the active snapshot, once everything that it sees is durable. NULL if even the
/// last tick that it sees has been removed since.
#[pg_extern]
fn position() -> Option<String> {
    preload::require();
    durability::secure_visible();
    let (tick, until) = scan::last_tick()?;
    let snapshot = snapshot::of_reader();
    let seen = match beyond(&until, &snapshot) {
        // The snapshot sees nothing after the tick, so it makes no difference.
        Some(Beyond { events: 0, .. }) => None,
        Some(Beyond { events, stamp }) => {
            let count = u32::try_from(events).unwrap_or(MAX_COUNT).min(MAX_COUNT);
            Some(Seen { stamp, snapshot, count: Some(count) })
        }
        None => Some(Seen { stamp: stamp_without_count(tick), snapshot, count: None }),
    };
    let text = Position { tick, n: END, seen: seen.map(Box::new) }.to_string();
    if text.len() > MAX_TEXT - ROOM_FOR_NUMBERS {
        errors::raise(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            "too many transactions are running for a position",
            "Try again when fewer transactions are running.",
        );
    }
    Some(text)
}

/// What a snapshot sees after a tick.
#[derive(Default)]
struct Beyond {
    events: u64,
    /// The highest stamp of the segments.
    stamp: u64,
}

/// What a reader's snapshot, which is the active one, sees after the tick that ends with `until`. None if that is too
/// much to be counted.
fn beyond(until: &Snapshot, snapshot: &Snapshot) -> Option<Beyond> {
    let mut beyond = Beyond::default();
    let mut left = MAX_COUNTED;
    scan::new_segments(&scan::open_log(), until, |_, row| {
        if !snapshot.sees(row[log::XID].value() as u64) {
            return ControlFlow::Continue(());
        }
        if left == 0 {
            return ControlFlow::Break(());
        }
        left -= 1;
        beyond.events += u64::from((row[log::EVENTS].value() as i32).unsigned_abs());
        beyond.stamp = beyond.stamp.max(row[log::STAMP].value() as u64);
        ControlFlow::Continue(())
    });
    (left > 0).then_some(beyond)
}

/// A time after the last start of the server before the active snapshot, for a position without a count.
fn stamp_without_count(tick: u64) -> u64 {
    if snapshot::is_of_recovery() {
        // A standby's clock is not the one of the ticks. The newest stamp is from after the primary's last start.
        tick.max(scan::last_stamp())
    } else if shared::my_database().is_some_and(|db| db.epoch_sealed.load(SeqCst)) {
        shared::next_stamp()
    } else {
        // The tick that seals the previous epoch does not exist yet, but this snapshot is from after the server's
        // start.
        i64::MAX as u64
    }
}

/// `tidings.seen()`: the active snapshot and the id of the next transaction, once everything that the snapshot sees is
/// durable.
#[pg_extern]
fn seen() -> TableIterator<'static, (name!(snapshot, String), name!(next, i64))> {
    preload::require();
    durability::secure_visible();
    TableIterator::once((snapshot::active().to_string(), snapshot::next_xid() as i64))
}

/// `tidings.parse_position(text)`: tick and number of a position, and its stamp and snapshot if it has them.
#[pg_extern]
fn parse_position(
    text: &str,
) -> TableIterator<'static, (name!(tick, i64), name!(n, i64), name!(stamp, Option<i64>), name!(snapshot, Option<String>))>
{
    preload::require();
    let position = position_of(text);
    let stamp = position.seen.as_ref().map(|seen| seen.stamp as i64);
    let snapshot = position.seen.as_ref().map(|seen| seen.snapshot.to_string());
    TableIterator::once((position.tick as i64, position.n.into(), stamp, snapshot))
}

/// `tidings.position_count(text)`: how many events after its tick a position's snapshot has seen, if it says that.
#[pg_extern]
fn position_count(text: &str) -> Option<i64> {
    preload::require();
    position_of(text).seen?.count.map(i64::from)
}

/// The position that an argument names.
pub fn position_of(text: &str) -> Position {
    text.parse().unwrap_or_else(|error: PositionError| {
        errors::raise(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            error.to_string(),
            "Give an event's id, a result of tidings.position(), or earliest.",
        )
    })
}
