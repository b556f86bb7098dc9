//! Elapsed time of this machine, by which the retention counts: unlike the server's clock, it never jumps.

use std::time::Duration;

use nix::time::ClockId;

use crate::shared;

/// The elapsed time in microseconds, from an arbitrary point. Setting the clock does not change it.
pub fn now() -> i64 {
    ClockId::CLOCK_MONOTONIC.now().map_or(0, |time| Duration::from(time).as_micros() as i64)
}

/// The elapsed time at which a tick was cut, by its number: the best guess after a start of the server. A number in the
/// future counts as now.
pub fn of_tick(tick: u64) -> i64 {
    now() - (shared::clock() - tick as i64).max(0)
}
