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
