//! How much of the machine the relay may use: each tick costs processor time that the writers could use.
//!
//! The relay has a budget that time fills and ticks empty (a token bucket). While there is some left, a tick follows
//! its commit at once; without, the relay rests until there is, so ticks become fewer and larger as load grows. Waiting
//! for the disk costs nobody anything and is not counted.

use std::time::{Duration, Instant};

use nix::time::ClockId;

/// The longest rest that a budget makes for. While writers are busy, it is the shortest.
const MAX_REST: Duration = Duration::from_millis(10);

/// The relay uses one part in this many of a core at the most, in the long run, unless writers are busy.
const SHARE: i64 = 9;

/// While they are, it rests this many times what a tick has cost: batches grow with load.
const BUSY_SHARE: u32 = 20;

/// The longest rest then: latency stays below what a person can see.
const MAX_BUSY_REST: Duration = Duration::from_millis(20);

/// Budget that is kept for later: enough for a handful of ticks, so that a few commits in a row are not held up.
const MOST: Duration = Duration::from_millis(1);

/// A tick with this many segments shows that writers are busy (over 800 transactions a second).
pub const BATCH: usize = 8;

/// The budget.
pub struct Pace {
    /// In nanoseconds; below zero it is overdrawn.
    left: i64,
    /// When it was last filled.
    filled: Instant,
    /// This process's processor time when the tick began.
    began: Duration,
}

impl Pace {
    /// Starts with a full budget.
    pub fn new() -> Self {
        Self { left: nanos(MOST), filled: Instant::now(), began: processor_time() }
    }

    /// A tick begins.
    pub fn begin(&mut self) {
        self.began = processor_time();
    }

    /// A tick of that many segments has ended; gives how long to rest before the next one.
    pub fn end(&mut self, segments: usize) -> Duration {
        let cost = processor_time().saturating_sub(self.began);
        let now = Instant::now();
        let earned = nanos(now - self.filled) / SHARE;
        self.filled = now;
        // A debt is forgotten beyond what the longest rest makes up for.
        self.left = (self.left + earned).min(nanos(MOST)) - nanos(cost);
        self.left = self.left.max(-nanos(MAX_REST) / SHARE);
        if segments >= BATCH {
            return (cost * BUSY_SHARE).clamp(MAX_REST, MAX_BUSY_REST);
        }
        Duration::from_nanos(u64::try_from(-self.left * SHARE).unwrap_or(0))
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// The processor time that this process has used.
fn processor_time() -> Duration {
    ClockId::CLOCK_PROCESS_CPUTIME_ID.now().map_or(Duration::ZERO, Duration::from)
}
