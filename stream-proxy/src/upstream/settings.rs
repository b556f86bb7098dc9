//! The settings that the statements of a connection depend on. Each connection sets them before its first query, so
//! settings of the database, of the role and of `postgresql.conf` make no difference.
//!
//! SET looks up nothing through a search path, so it can't reach objects of other roles. All statements are one
//! message, so they cost one round trip.
//!
//! `DateStyle`, `IntervalStyle`, `TimeZone` and the locale stay unchanged: no statement here reads or writes a date,
//! and a rule should read dates as the rest of its database does. Only superusers can set `session_replication_role`,
//! and nothing that the proxy calls has triggers.

use std::fmt::Write;
use std::time::Duration;

/// The longest time that a statement may run in the server.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(15);

/// The version to assume for a server that does not report its own: the oldest with the extension.
const OLDEST: u32 = 15;

/// Names, values as written after the `=`, and the first version of Postgres that knows them: plain channels also work
/// with servers that are too old for the extension.
const SETTINGS: &[(&str, &str, u32)] = &[
    // Which role runs statements, and how names are looked up.
    ("search_path", "pg_catalog, pg_temp", 0),
    ("role", "none", 0),
    ("row_security", "on", 0),
    ("client_encoding", "'UTF8'", 0),
    ("standard_conforming_strings", "on", 0),
    ("transform_null_equals", "off", 0),
    ("array_nulls", "on", 0),
    ("bytea_output", "hex", 0),
    ("extra_float_digits", "1", 0),
    // A serializable reader could make writers fail.
    ("default_transaction_isolation", "'read committed'", 0),
    ("default_transaction_read_only", "off", 0),
    ("default_transaction_deferrable", "off", 0),
    // Timeouts that would end a connection or delay it. Each query has its own statement_timeout.
    ("exit_on_error", "off", 0),
    ("lock_timeout", "0", 0),
    ("idle_in_transaction_session_timeout", "0", 0),
    ("idle_session_timeout", "0", 14),
    ("transaction_timeout", "0", 17),
    ("client_min_messages", "warning", 0),
    // Plans: short queries that use an index.
    ("jit", "off", 11),
    ("plan_cache_mode", "auto", 12),
    ("max_parallel_workers_per_gather", "0", 0),
    ("enable_bitmapscan", "on", 0),
    ("enable_hashagg", "on", 0),
    ("enable_hashjoin", "on", 0),
    ("enable_indexonlyscan", "on", 0),
    ("enable_indexscan", "on", 0),
    ("enable_material", "on", 0),
    ("enable_mergejoin", "on", 0),
    ("enable_nestloop", "on", 0),
    ("enable_partition_pruning", "on", 11),
    ("enable_seqscan", "on", 0),
    ("enable_sort", "on", 0),
];

/// The statements that set all of these at a server of this version, as the server reports it.
pub fn statements(version: Option<&str>) -> String {
    let major = major(version.unwrap_or_default()).unwrap_or(OLDEST);
    // It also bounds the other statements.
    let mut sql = format!("SET statement_timeout = {};", STATEMENT_TIMEOUT.as_millis());
    for (name, value, _) in SETTINGS.iter().filter(|(_, _, since)| *since <= major) {
        // Writing to a string does not fail.
        let _ = write!(sql, "SET {name} = {value};");
    }
    sql
}

/// The major version of `15.20 (Debian 15.20-0+deb12u1)`, `18beta1` or `9.6.24`.
fn major(version: &str) -> Option<u32> {
    let end = version.find(|c: char| !c.is_ascii_digit()).unwrap_or(version.len());
    version[..end].parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_gets_no_setting_that_it_does_not_know() {
        let has = |version, name: &str| statements(version).contains(&format!("SET {name} ="));
        assert!(has(Some("17.9"), "transaction_timeout") && has(Some("18beta1"), "transaction_timeout"));
        for version in
            [Some("15.20 (Debian 15.20-0+deb12u1)"), Some("16"), Some("13.1"), Some("9.6.24"), Some("x"), None]
        {
            assert!(!has(version, "transaction_timeout"), "{version:?}");
            assert!(has(version, "search_path"), "{version:?}");
        }
        assert!(!has(Some("13.1"), "idle_session_timeout") && has(None, "idle_session_timeout"));
    }

    #[test]
    fn the_time_limit_comes_first() {
        assert!(statements(None).starts_with("SET statement_timeout = 15000;SET search_path = pg_catalog, pg_temp;"));
    }
}
