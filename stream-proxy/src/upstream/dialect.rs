//! What differs while the extension's SQL in the database is older than the proxy. Proxies may be replaced before the
//! database: until `ALTER EXTENSION tidings UPDATE`, they ask as the proxies of that release did, and go without what
//! is new. All statements that differ are here, and the version that is installed chooses between them.
//!
//! Not here: who sends the statements (`log`, `reads`, `access::worker`). The library may be older too, but that makes
//! no difference: it has the same formats.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

/// The first numbers of the versions with the old SQL.
const OLD: &str = "0.1.";

/// What the old SQL has not, and what to do about it.
pub const MISSING: &str =
    "the extension's SQL is older than this proxy: since=snapshot works after ALTER EXTENSION tidings UPDATE";

/// Why a standby with the old SQL can't be followed.
pub const OLD_STANDBY: &str = "the server is a standby, and its extension's SQL is older than proxies at standbys: \
    ALTER EXTENSION tidings UPDATE at its primary, or name the primary in --database-url";

/// The version of the extension that the database has; no row without the extension.
pub const VERSION: &str =
    "SELECT extversion FROM pg_catalog.pg_extension WHERE extname OPERATOR(pg_catalog.=) 'tidings'";

/// The version of the SQL, as far as the proxy's statements depend on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// That of 0.1.0 and 0.1.1.
    Old,
    /// That of this version.
    Current,
}

/// The dialect of the database, as the live connection has found out. Clones share it. Before the first connection it
/// is the current one.
#[derive(Clone, Debug, Default)]
pub struct Installed(Arc<AtomicBool>);

impl Installed {
    /// The dialect to use now.
    pub fn dialect(&self) -> Dialect {
        if self.0.load(Relaxed) { Dialect::Old } else { Dialect::Current }
    }

    /// Notes the version that is installed, if any is, and logs what a change means.
    pub fn note(&self, version: Option<&str>) {
        let dialect = Dialect::of(version);
        let is_old = dialect == Dialect::Old;
        let has_changed = self.0.swap(is_old, Relaxed) != is_old;
        match dialect {
            Dialect::Old if has_changed => tracing::warn!(
                version,
                "the extension's SQL is older than this proxy, which serves it as a proxy of that version does. Until \
                 ALTER EXTENSION tidings UPDATE these are missing: since=snapshot, guards, standbys, early \
                 announcements, a channel whose name no statement shows, and rules that can't leave their role \
                 (docs/operations.md)"
            ),
            Dialect::Current if has_changed => {
                tracing::info!(version, "the extension's SQL was updated: nothing is missing any more");
            }
            _ => {}
        }
    }
}

impl Dialect {
    /// The dialect of this version of the extension, if there is an extension.
    pub fn of(version: Option<&str>) -> Self {
        if version.is_some_and(|version| version.starts_with(OLD)) { Self::Old } else { Self::Current }
    }

    /// The relay's channel and process, the position, the relay's state, whether this session listens on the channel,
    /// and the last tick that a running relay has cut. The current SQL listens by itself, and the name appears in no
    /// statement. With the old SQL, every tick that was announced is in the log.
    pub fn introduction(self) -> &'static str {
        match self {
            Self::Current => {
                "SELECT tidings.listen(), r.pid, tidings.position(), r.state, true,
                        CASE WHEN r.pid IS NOT NULL THEN r.tick END
                 FROM tidings.relay() AS r"
            }
            Self::Old => {
                "SELECT c.channel, r.pid, tidings.position(), r.state, EXISTS (
                     SELECT FROM pg_catalog.pg_listening_channels() AS l
                     WHERE l.l OPERATOR(pg_catalog.=) c.channel), NULL::pg_catalog.int8
                 FROM tidings.relay() AS r, (SELECT tidings.channel()) AS c"
            }
        }
    }

    /// A page of the log for a client that catches up. The parameters are its position, its topics, and how many bytes
    /// the page should have and may cost.
    ///
    /// The old SQL returns the events, one a row, and has no bound on what it reads. The last row has no topic. It says
    /// where to continue (NULL: after the last event), and whether there is more. How far the events were read is not
    /// known exactly: at least up to the last tick that was there when the statement began. An update is noticed only a
    /// little later, so the statement must also be right with the current SQL, whose positions have a count of events.
    pub fn page(self) -> &'static str {
        match self {
            Self::Current => {
                "SELECT segments, seen, reached, more FROM tidings.page(
                     $1::pg_catalog.text, $2::pg_catalog.text[], $3::pg_catalog.int4, $4::pg_catalog.int4)"
            }
            Self::Old => {
                "WITH read AS MATERIALIZED (
                     SELECT c.position, c.topic, c.event, c.payload,
                            pg_catalog.sum(pg_catalog.octet_length(c.payload)) OVER (ROWS UNBOUNDED PRECEDING)
                            OPERATOR(pg_catalog.-) pg_catalog.octet_length(c.payload) AS before,
                            pg_catalog.count(*) OVER () AS count
                     FROM tidings.changes($1::pg_catalog.text, $2::pg_catalog.text[], 250) AS c
                 ), page AS MATERIALIZED (
                     SELECT r.position, r.topic, r.event, r.payload, r.count
                     FROM read AS r WHERE r.before OPERATOR(pg_catalog.=) 0 OR r.before OPERATOR(pg_catalog.<) $3
                 ), events AS (
                     SELECT COALESCE(pg_catalog.max(p.count) OPERATOR(pg_catalog.>=) 250 OR
                                     pg_catalog.max(p.count) OPERATOR(pg_catalog.>) pg_catalog.count(*), false) AS more,
                            pg_catalog.max(pg_catalog.split_part(p.position, '-', 1)::pg_catalog.int8) AS last
                     FROM page AS p
                 ), log AS MATERIALIZED (
                     SELECT pg_catalog.split_part(
                                pg_catalog.split_part(tidings.position(), ':', 1), '-', 1)::pg_catalog.int8 AS tick,
                            pg_catalog.split_part($1, ':', 1) AS after
                 )
                 SELECT p.position, p.topic, p.event, p.payload, NULL::pg_catalog.bool FROM page AS p
                 UNION ALL
                 SELECT CASE WHEN e.more OR e.last OPERATOR(pg_catalog.>) l.tick THEN NULL
                             WHEN pg_catalog.split_part(l.after, '-', 1)::pg_catalog.int8 OPERATOR(pg_catalog.>) l.tick
                             THEN l.after
                             ELSE l.tick::pg_catalog.text END,
                        NULL, NULL, NULL, e.more
                 FROM events AS e, log AS l"
            }
        }
    }

    /// What must be asked after each page: whether the position of the page is still known, and the version of the
    /// extension. Otherwise a page could lack events that a failover has lost, and the events of guards, which exist
    /// only after an update. The current SQL needs no such question.
    pub fn after_page(self) -> Option<&'static str> {
        match self {
            Self::Current => None,
            Self::Old => Some(
                "SELECT tidings.locate($1::pg_catalog.text) OPERATOR(pg_catalog.=) $1, (
                     SELECT e.extversion FROM pg_catalog.pg_extension AS e
                     WHERE e.extname OPERATOR(pg_catalog.=) 'tidings')",
            ),
        }
    }

    /// How long a rule may wait for a lock; zero means as long as its statement may run. The old SQL takes the error
    /// after `limit` for a no, and a short wait must not end a stream.
    pub fn lock_limit(self, limit: Duration) -> Duration {
        match self {
            Self::Current => limit,
            Self::Old => Duration::ZERO,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_installed_version_chooses_the_dialect() {
        let installed = Installed::default();
        assert_eq!(installed.dialect(), Dialect::Current);
        for (version, dialect) in [
            (Some("0.1.0"), Dialect::Old),
            (Some("0.1.1"), Dialect::Old),
            (None, Dialect::Current),
            (Some("0.1.1"), Dialect::Old),
            (Some("0.2.0"), Dialect::Current),
            (Some("0.10.0"), Dialect::Current),
            (Some("1.0.1"), Dialect::Current),
        ] {
            installed.clone().note(version);
            assert_eq!(installed.dialect(), dialect, "{version:?}");
        }
    }
}
