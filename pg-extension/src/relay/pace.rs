//! How much processor time the relay may use: each tick takes time that the writers could use.
//!
//! The relay has a budget that grows with time and that ticks use up (a token bucket). While some of it is left, a tick
//! follows a commit at once. Otherwise the relay rests until there is some, so that ticks become fewer and larger under
//! load. Only processor time counts, not the time that the relay waits for the disk.

use std::time::{Duration, Instant};

use nix::time::ClockId;

/// The longest rest that the budget requires, unless writers are busy. A debt that it does not repay remains for the
/// next ticks. After a slow flush, the commits that waited for it come all at once, and their ticks use up the budget:
/// with rests of up to 10 ms, at 500 transactions a second, the events after them were up to 10 ms late.
const MAX_REST: Duration = Duration::from_millis(3);

/// The longest rest after a tick that itself cost so much that it takes longer to repay.
const MAX_REST_OF_LARGE: Duration = Duration::from_millis(10);

/// A larger debt is forgotten. This one takes three of the usual rests.
const MAX_DEBT: Duration = Duration::from_millis(1);

/// Unless writers are busy, the relay uses at most one part in this many of a core in the long run, as long as a tick
/// costs no more than a millisecond.
const SHARE: u32 = 9;

/// While writers are busy, the relay rests this many times as long as the processor time of a tick, so that ticks
/// become larger under load.
const BUSY_SHARE: u32 = 10;

/// The shortest and the longest rest while writers are busy. Beside 32 writers on two cores, 10 to 20 ms made the 99th
/// percentile of the latency 2.5 times as long. The writers gained 2 % at most, which was within the noise.
const BUSY_REST: [Duration; 2] = [Duration::from_millis(3), Duration::from_millis(6)];

/// The largest budget. It is enough for some twenty ticks, so that a few commits in a row are not delayed.
const MAX_BUDGET: Duration = Duration::from_millis(2);

/// A tick with this many segments shows that writers are busy (over 800 transactions a second).
pub const BUSY_TICK: usize = 8;

/// The processor time is read at least this often, so that what the relay uses while nothing happens is no debt.
const READ_EVERY: Duration = Duration::from_secs(1);

/// An estimate of the processor time that it takes to wake the relay for a tick, on the high side.
const WAKE: Duration = Duration::from_micros(30);

/// The budget.
pub struct Pace {
    /// The remaining budget in nanoseconds. Negative if more was used.
    left: i64,
    /// When time was last added to it.
    filled: Instant,
    /// The processor time of this process when it was last read.
    used: Duration,
    /// When that was.
    read: Instant,
    /// What was taken from the budget since then, by estimates, in nanoseconds.
    estimated: i64,
}

impl Pace {
    /// Starts with a full budget.
    pub fn new() -> Self {
        let now = Instant::now();
        Self { left: nanos(MAX_BUDGET), filled: now, used: processor_time(), read: now, estimated: 0 }
    }

    /// Notes the end of a tick of this many segments that began at `start`. Returns how long to rest before the next
    /// one.
    pub fn end(&mut self, segments: usize, start: Instant) -> Duration {
        let now = Instant::now();
        let earned = nanos((now - self.filled) / SHARE);
        self.filled = now;
        self.left = (self.left + earned).min(nanos(MAX_BUDGET));
        // Reading the processor time is a system call. It is left out while more than half of the budget remains even
        // if the tick has used a processor all the time since it began.
        let most = nanos(now - start + WAKE);
        let is_known = now - self.read < READ_EVERY;
        if is_known && segments < BUSY_TICK && self.left - most > nanos(MAX_BUDGET) / 2 {
            self.left -= most;
            self.estimated += most;
            return Duration::ZERO;
        }
        // What the process has used between the ticks, mainly to be woken, is a part of their cost.
        let used = processor_time();
        let cost = used.saturating_sub(std::mem::replace(&mut self.used, used));
        self.read = now;
        let estimated = std::mem::take(&mut self.estimated);
        self.left = (self.left + estimated - nanos(cost)).max(-nanos(MAX_DEBT));
        // The cost of this tick alone, not that of the ticks before it, which were estimated.
        let cost = cost.saturating_sub(Duration::from_nanos(estimated.unsigned_abs()));
        if segments >= BUSY_TICK {
            return (cost * BUSY_SHARE).clamp(BUSY_REST[0], BUSY_REST[1]);
        }
        let debt = Duration::from_nanos(u64::try_from(-self.left).unwrap_or(0));
        (debt * SHARE).min((cost * SHARE).clamp(MAX_REST, MAX_REST_OF_LARGE))
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

/// The processor time that this process has used.
fn processor_time() -> Duration {
    ClockId::CLOCK_PROCESS_CPUTIME_ID.now().map_or(Duration::ZERO, Duration::from)
}
