//! The settings, each with the reason for its default.

use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

/// In seconds. An hour covers a laptop that is closed over lunch and a failed deployment, and takes a few GiB in a busy
/// database.
static RETENTION: GucSetting<i32> = GucSetting::<i32>::new(3600);
/// On, because capturing is the purpose of the trigger. A bulk load that no subscriber needs switches it off in its
/// session.
static CAPTURE: GucSetting<bool> = GucSetting::<bool>::new(true);
/// In KiB. A browser has no use for an event above 8 MiB, and a backend keeps a whole event in memory: packed, and
/// sometimes also rendered.
static MAX_PAYLOAD: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);
/// In KiB. Up to 64 KiB of a tick, notifications save every proxy a query; above, the query is cheaper.
static NOTIFY_INLINE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(64);
/// In KiB. The relay rests for at most 6 ms between two ticks. In that time, writers fill less than an eighth of a MiB
/// at 40,000 transactions a second, which is more than most machines do.
static RING_SIZE: GucSetting<i32> = GucSetting::<i32>::new(1024);
/// Off: it costs what the ring saves. The tests turn it on.
static VERIFY_RING: GucSetting<bool> = GucSetting::<bool>::new(false);
/// Off: a tick that is announced is flushed soon afterwards. The tests turn it on, so that a crash loses the tick.
static HOLD_FLUSH: GucSetting<bool> = GucSetting::<bool>::new(false);

/// One: the queue has room for gigabytes, which the tests need not write.
static QUEUE_FACTOR: GucSetting<i32> = GucSetting::<i32>::new(1);

/// Defines the settings. Called from `_PG_init`.
pub fn init() {
    GucRegistry::define_int_guc(
        c"tidings.retention",
        c"How long events are kept for subscribers that reconnect.",
        c"Events are never removed earlier. They may be kept for up to half as long again.",
        &RETENTION,
        1,
        30 * 24 * 3600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_bool_guc(
        c"tidings.capture",
        c"Whether changes to watched tables become events.",
        c"A session that loads data which no subscriber needs can switch it off.",
        &CAPTURE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tidings.max_payload",
        c"The longest payload of an event.",
        c"An event with a longer payload is sent without its record and marked as truncated.",
        &MAX_PAYLOAD,
        1,
        256 * 1024,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"tidings.notify_inline_limit",
        c"The most data of a tick that is sent inside its notifications.",
        c"A larger tick is only announced, and the proxies read it from the log.",
        &NOTIFY_INLINE_LIMIT,
        0,
        480,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"tidings.ring_size",
        c"Shared memory in which writers leave fresh segments for the relay.",
        c"All databases share it. What does not fit is read from the log, which takes the relay longer. 0 means none.",
        &RING_SIZE,
        0,
        1024 * 1024,
        GucContext::Postmaster,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_bool_guc(
        c"tidings.verify_ring",
        c"Whether the relay compares each tick that it reads from shared memory with the log.",
        c"For tests of the extension.",
        &VERIFY_RING,
        GucContext::Sighup,
        GucFlags::NO_SHOW_ALL,
    );
    GucRegistry::define_bool_guc(
        c"tidings.hold_flush",
        c"Whether the relay leaves it to others to flush a tick that it has announced.",
        c"For tests of the extension.",
        &HOLD_FLUSH,
        GucContext::Sighup,
        GucFlags::NO_SHOW_ALL,
    );
    GucRegistry::define_int_guc(
        c"tidings.queue_factor",
        c"The notification queue counts as this many times as full as it is.",
        c"For tests of the extension.",
        &QUEUE_FACTOR,
        1,
        1_000_000,
        GucContext::Sighup,
        GucFlags::NO_SHOW_ALL,
    );
    // A misspelt setting is an error, not a new variable.
    // SAFETY: called in the postmaster, while it loads libraries.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"tidings".as_ptr()) };
}

/// How long events are kept.
pub fn retention() -> Duration {
    Duration::from_secs(RETENTION.get().unsigned_abs().into())
}

/// Whether this session captures changes.
pub fn capture() -> bool {
    CAPTURE.get()
}

/// The longest payload, in bytes.
pub fn max_payload() -> usize {
    MAX_PAYLOAD.get().unsigned_abs() as usize * 1024
}

/// The most bytes of events that are sent inside the notifications of a tick.
pub fn notify_inline_limit() -> usize {
    NOTIFY_INLINE_LIMIT.get().unsigned_abs() as usize * 1024
}

/// The size of the ring, in bytes.
pub fn ring_size() -> usize {
    RING_SIZE.get().unsigned_abs() as usize * 1024
}

/// Whether the relay compares what it reads from the ring with the log.
pub fn verify_ring() -> bool {
    VERIFY_RING.get()
}

/// Whether the relay does not flush the ticks that it has announced.
pub fn hold_flush() -> bool {
    HOLD_FLUSH.get()
}

/// How many times as full as it is the notification queue counts.
pub fn queue_factor() -> f64 {
    QUEUE_FACTOR.get().into()
}
