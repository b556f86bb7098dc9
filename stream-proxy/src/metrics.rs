//! What the proxy counts, and the text that Prometheus scrapes. Labels have a fixed set of values, so nothing that a
//! client sends becomes a label.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A number that only rises.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }

    /// The count.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that rises and falls.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the value.
    pub fn set(&self, n: u64) {
        self.0.store(n, Relaxed);
    }

    /// Adds one.
    pub fn rise(&self) -> u64 {
        self.0.fetch_add(1, Relaxed) + 1
    }

    /// Subtracts one.
    pub fn fall(&self) {
        self.0.fetch_sub(1, Relaxed);
    }

    /// The value.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A time that rises and falls, shown in seconds.
#[derive(Debug, Default)]
pub struct Time(AtomicU64);

impl Time {
    /// Sets the value.
    pub fn set(&self, time: Duration) {
        self.0.store(u64::try_from(time.as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    /// The value in seconds.
    pub fn get(&self) -> f64 {
        self.0.load(Relaxed) as f64 / 1000.0
    }
}

/// The upper bounds of the delay histogram, in microseconds.
const BOUNDS: [u64; 14] =
    [250, 500, 1_000, 2_000, 4_000, 8_000, 16_000, 32_000, 64_000, 128_000, 256_000, 512_000, 1_000_000, 5_000_000];

/// How long something took, as a histogram.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len()],
    count: AtomicU64,
    sum_us: AtomicU64,
}

impl Histogram {
    /// Adds one observation.
    pub fn observe(&self, time: Duration) {
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        if let Some(bucket) = BOUNDS.iter().position(|bound| us <= *bound) {
            self.buckets[bucket].fetch_add(1, Relaxed);
        }
        self.count.fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    fn render(&self, out: &mut String, name: &str) {
        let mut below = 0;
        for (bound, bucket) in BOUNDS.iter().zip(&self.buckets) {
            below += bucket.load(Relaxed);
            let _ = writeln!(out, "{name}_bucket{{le=\"{}\"}} {below}", *bound as f64 / 1e6);
        }
        let count = self.count.load(Relaxed);
        let _ = writeln!(out, "{name}_bucket{{le=\"+Inf\"}} {count}");
        let _ = writeln!(out, "{name}_sum {}\n{name}_count {count}", self.sum_us.load(Relaxed) as f64 / 1e6);
    }
}

macro_rules! metrics {
    ($($kind:ident $name:literal $help:literal { $($field:ident $labels:literal)+ })+) => {
        /// All metrics.
        #[derive(Debug, Default)]
        pub struct Metrics {
            $($(
                #[doc = $help]
                pub $field: $kind,
            )+)+
            /// Time from the cut of a tick until all its events are queued to all subscribers. The tick's number is the
            /// time of the cut.
            pub fanout: Histogram,
        }

        impl Metrics {
            /// The text that Prometheus scrapes.
            pub fn render(&self) -> String {
                let mut out = String::with_capacity(8192);
                $(
                    let kind = if stringify!($kind) == "Counter" { "counter" } else { "gauge" };
                    let _ = writeln!(out, "# HELP {} {}\n# TYPE {} {kind}", $name, $help, $name);
                    $(
                        let _ = writeln!(out, "{}{} {}", $name, $labels, self.$field.get());
                    )+
                )+
                let name = "tidings_fanout_delay_seconds";
                let help = "Time from the cut of a tick until all its events are queued to all subscribers";
                let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} histogram");
                self.fanout.render(&mut out, name);
                out
            }
        }
    };
}

metrics! {
    Gauge "tidings_clients" "Streams open" { clients "" }
    Gauge "tidings_connections" "Connections without an HTTP/1.1 stream" { connections "" }
    Gauge "tidings_topics" "Topics with subscribers or history in memory" { topics "" }
    Gauge "tidings_history_bytes" "Bytes of history in memory" { history_bytes "" }
    Gauge "tidings_upstream_connected" "1 while the upstream connection is up and caught up" { upstream_connected "" }
    Gauge "tidings_upstream_deaf" "1 while something between the proxy and Postgres hides notifications, such as a pool in transaction mode" { deaf "" }
    Gauge "tidings_standby" "1 while the server is a standby" { standby "" }
    Time "tidings_standby_lag_seconds" "How far the standby's replay is behind what it has received, or for how long it has had no connection" { standby_lag "" }
    Gauge "tidings_standby_lag_bytes" "What the standby has received and not replayed" { standby_lag_bytes "" }
    Counter "tidings_standby_conflicts_total" "Reads of the upstream that the standby's replay cancelled, which were tried again" { standby_conflicts "" }
    Gauge "tidings_replays" "Clients that are being served from the log or wait for it" { replaying "" }
    Gauge "tidings_snapshots" "Readings of rows in progress" { snapshots "" }
    Gauge "tidings_snapshots_waiting" "Readings of rows that wait for others to end" { snapshots_waiting "" }
    Counter "tidings_streams_total" "Streams started" { streams "" }
    Counter "tidings_requests_refused_total" "Requests answered with an error, by class of status" {
        refused_4xx "{status=\"4xx\"}"
        refused_5xx "{status=\"5xx\"}"
    }
    Counter "tidings_over_limit_total" "Clients turned away by a limit" {
        over_connections "{limit=\"connections\"}"
        over_clients "{limit=\"clients\"}"
        over_address "{limit=\"clients_per_address\"}"
    }
    Counter "tidings_ticks_total" "Ticks published" { ticks "" }
    Counter "tidings_events_received_total" "Events received from the database" { events_in "" }
    Counter "tidings_events_sent_total" "Events queued to subscribers" { events_out "" }
    Counter "tidings_sent_bytes_total" "Bytes written to clients' streams" { bytes_out "" }
    Counter "tidings_evictions_total" "Streams ended because the client did not keep up" {
        evicted_overflow "{cause=\"queue\"}"
        evicted_stalled "{cause=\"heartbeat\"}"
    }
    Counter "tidings_resumes_total" "Streams resumed from a position, by source" {
        resumed_memory "{source=\"memory\"}"
        resumed_log "{source=\"log\"}"
    }
    Counter "tidings_snapshots_total" "Readings of rows, by how they ended" {
        snapshots_complete "{result=\"complete\"}"
        snapshots_failed "{result=\"failed\"}"
        snapshots_over "{result=\"too_long\"}"
    }
    Counter "tidings_snapshots_shared_total" "Streams that joined a reading that another stream had asked for" { snapshots_shared "" }
    Counter "tidings_snapshots_behind_total" "Streams that were too slow for a shared reading and started over" { snapshots_behind "" }
    Counter "tidings_snapshot_rows_total" "Rows read for since=snapshot" { snapshot_rows "" }
    Counter "tidings_snapshot_bytes_total" "Bytes of these rows as events" { snapshot_bytes "" }
    Counter "tidings_log_events_total" "Events read from the log for resuming clients" { log_events "" }
    Counter "tidings_resets_total" "Clients that got event: reset, by reason" {
        resets_expired "{reason=\"expired\"}"
        resets_lost "{reason=\"lost\"}"
        resets_channel "{reason=\"channel\"}"
    }
    Counter "tidings_upstream_reconnects_total" "Upstream connections that broke or could not be made" { reconnects "" }
    Counter "tidings_notifications_total" "Notifications, by result" {
        notifications "{result=\"published\"}"
        hints "{result=\"log\"}"
        old "{result=\"old\"}"
        mangled "{result=\"mangled\"}"
        forged "{result=\"forged\"}"
        dropped "{result=\"dropped\"}"
    }
    Counter "tidings_auth_total" "Requests, by result of the access check" {
        auth_allowed "{result=\"allowed\"}"
        auth_denied "{result=\"denied\"}"
        auth_no_token "{result=\"no_token\"}"
        auth_bad_token "{result=\"bad_token\"}"
        auth_expired_token "{result=\"expired_token\"}"
        auth_unanswered "{result=\"unanswered\"}"
    }
    Counter "tidings_auth_ended_total" "Streams ended because their token expired, their access was revoked, locks prevented its check too often, or the application gave no answer for too long" {
        auth_expired "{cause=\"expired\"}"
        auth_revoked "{cause=\"revoked\"}"
        auth_locked "{cause=\"locked\"}"
        auth_grace_over "{cause=\"unanswered\"}"
    }
    Counter "tidings_rechecks_total" "Streams whose right was checked again where the event of a guard stood, by result; without an answer they end too" {
        rechecks_allowed "{result=\"allowed\"}"
        rechecks_refused "{result=\"refused\"}"
        rechecks_unanswered "{result=\"unanswered\"}"
    }
    Counter "tidings_key_fetches_total" "Fetches of the keys at --jwks-url, by result" {
        keys_fetched "{result=\"fetched\"}"
        keys_not_fetched "{result=\"failed\"}"
    }
    Counter "tidings_application_answers_total" "Questions to the application of --auth-url, by what came of them; a question for several clients counts once" {
        application_yes "{answer=\"yes\"}"
        application_no "{answer=\"no\"}"
        application_unclear "{answer=\"unclear\"}"
        application_late "{answer=\"late\"}"
        application_unreachable "{answer=\"unreachable\"}"
    }
    Gauge "tidings_application_waiting" "Questions to the application that wait for an answer or for their turn" { application_waiting "" }
    Counter "tidings_auth_questions_total" "Statements that asked the database about access, each for all requests that waited" { checks "" }
    Gauge "tidings_auth_waiting" "Access checks that wait for an answer" { checks_waiting "" }
    Counter "tidings_auth_checks_late_total" "Access checks that got no answer in time" { checks_late "" }
    Counter "tidings_auth_checks_ended_total" "Access checks that were ended or dropped: they delayed others, took too long alone, waited for a lock, or their client had disconnected" {
        checks_slow "{cause=\"held_up_others\"}"
        checks_over "{cause=\"too_long\"}"
        checks_locked "{cause=\"locked\"}"
        checks_gone "{cause=\"gone\"}"
    }
    Counter "tidings_aged_total" "Streams ended because of their age" { aged "" }
    Counter "tidings_report_errors_total" "Reports of open topics that failed" { report_errors "" }
    Counter "tidings_accept_errors_total" "Connections that could not be accepted" { accept_errors "" }
}

impl Metrics {
    /// Notes that all events of `tick` have just been queued.
    pub fn fanned_out(&self, tick: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.fanout.observe(now.saturating_sub(Duration::from_micros(tick)));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_has_every_family_once_and_cumulative_buckets() {
        let metrics = Metrics::default();
        metrics.evicted_stalled.add(2);
        metrics.fanout.observe(Duration::from_micros(300));
        metrics.fanout.observe(Duration::from_secs(60));
        let text = metrics.render();
        assert_eq!(text.matches("# TYPE tidings_evictions_total counter").count(), 1);
        assert!(text.contains("\ntidings_evictions_total{cause=\"heartbeat\"} 2\n"));
        assert!(text.contains("\ntidings_fanout_delay_seconds_bucket{le=\"0.00025\"} 0\n"));
        assert!(text.contains("\ntidings_fanout_delay_seconds_bucket{le=\"0.0005\"} 1\n"));
        assert!(text.contains("\ntidings_fanout_delay_seconds_bucket{le=\"+Inf\"} 2\n"));
    }
}
