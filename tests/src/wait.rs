//! Waiting for a condition. Elsewhere in this crate a sleep only sets a pace or separates two attempts; no test sleeps
//! and hopes that something has happened.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long a condition may take before the test fails. It does not slow down tests that pass, and is generous enough
/// for a busy machine.
pub const DEADLINE: Duration = Duration::from_secs(90);

/// The time between two checks of a condition.
const PAUSE: Duration = Duration::from_millis(10);

/// Waits until `condition` returns a value, and fails with `what` if that takes longer than [`DEADLINE`].
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

/// Waits until `condition` holds, and fails with `what` if that takes longer than [`DEADLINE`].
#[track_caller]
pub fn until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, || condition().then_some(()));
}

/// Sets the flag when it is dropped, also if the test fails. The threads that the test waits for stop when the flag is
/// set.
#[derive(Debug)]
pub struct SetAtTheEnd<'a>(pub &'a AtomicBool);

impl Drop for SetAtTheEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
