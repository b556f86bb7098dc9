//! The settings, each with the reason for its default.

use std::time::Duration;

use pgrx::{GucContext, GucFlags, GucRegistry, GucSetting, pg_sys};

/// An hour covers a closed laptop over lunch and a deployment gone wrong, and costs a busy database a few GiB.
static RETENTION: GucSetting<i32> = GucSetting::<i32>::new(3600);
/// Capture is what the trigger is there for; a bulk load that nobody watches switches it off in its session.
static CAPTURE: GucSetting<bool> = GucSetting::<bool>::new(true);
/// No browser wants an event above 8 MiB, in KiB, and a backend holds one event whole, packed and sometimes rendered,
/// too.
static MAX_PAYLOAD: GucSetting<i32> = GucSetting::<i32>::new(8 * 1024);
/// Up to 64 KiB a tick, in KiB, the notification saves every proxy a query; beyond, the query is the cheaper way.
static NOTIFY_INLINE_LIMIT: GucSetting<i32> = GucSetting::<i32>::new(64);

/// Defines the settings; called from `_PG_init`.
pub fn init() {
    GucRegistry::define_int_guc(
        c"tidings.retention",
        c"How long events are kept for subscribers that come back.",
        c"Events are never removed earlier; they may stay up to half as long again.",
        &RETENTION,
        1,
        30 * 24 * 3600,
        GucContext::Sighup,
        GucFlags::UNIT_S,
    );
    GucRegistry::define_bool_guc(
        c"tidings.capture",
        c"Whether changes of watched tables become events.",
        c"A session that loads data nobody needs to hear of may switch it off.",
        &CAPTURE,
        GucContext::Suset,
        GucFlags::default(),
    );
    GucRegistry::define_int_guc(
        c"tidings.max_payload",
        c"The longest payload of an event.",
        c"An event with a longer one is sent without its record and says so.",
        &MAX_PAYLOAD,
        1,
        256 * 1024,
        GucContext::Suset,
        GucFlags::UNIT_KB,
    );
    GucRegistry::define_int_guc(
        c"tidings.notify_inline_limit",
        c"How much of a tick travels inside its notification.",
        c"A larger tick is announced by a hint, and the proxies read it from the log.",
        &NOTIFY_INLINE_LIMIT,
        0,
        480,
        GucContext::Sighup,
        GucFlags::UNIT_KB,
    );
    // A misspelt setting is an error, not one more variable.
    // SAFETY: in the postmaster, while it loads libraries.
    unsafe { pg_sys::MarkGUCPrefixReserved(c"tidings".as_ptr()) };
}

/// How long events are kept.
pub fn retention() -> Duration {
    Duration::from_secs(RETENTION.get().unsigned_abs().into())
}

/// Whether this session captures.
pub fn capture() -> bool {
    CAPTURE.get()
}

/// The longest payload, in bytes.
pub fn max_payload() -> usize {
    MAX_PAYLOAD.get().unsigned_abs() as usize * 1024
}

/// The most bytes of events that travel inside a tick's notifications.
pub fn notify_inline_limit() -> usize {
    NOTIFY_INLINE_LIMIT.get().unsigned_abs() as usize * 1024
}
