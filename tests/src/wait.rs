//! Waiting for a condition. Who sleeps elsewhere in this crate sets a pace, or tries again; nobody hopes that something
//! has happened.

use std::time::{Duration, Instant};

/// How long a condition may take before the test has failed. It is a verdict, not a wait: generous enough for a machine
/// that is busy with something else.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` gives a value, and fails with `what` if it doesn't within [`DEADLINE`].
#[track_caller]
pub fn eventually<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition() {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "still not so after {DEADLINE:?}: {what}");
        std::thread::sleep(PAUSE);
    }
}

/// Waits until `condition` holds, and fails with `what` if it doesn't within [`DEADLINE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}
