//! Rules of the product that can be left out, to show that the checker notices.

use crate::server::{PROXY_ROLE, Server};

/// A rule that is left out. Each replaces `tidings.survivors`, which tells a proxy after a crash which events of its
/// lost ticks are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// The number of events is wrong, so the proxy takes them for lost.
    Count,
    /// The place behind the events is forgotten: the proxy continues before them.
    Place,
}

impl Sabotage {
    /// The one with this name.
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "count" => Some(Self::Count),
            "place" => Some(Self::Place),
            _ => None,
        }
    }

    /// Replaces the function in the database of a run.
    pub fn commit(self, server: &Server) {
        let result = match self {
            Self::Count => "s.events + 1, s.reached",
            Self::Place => "s.events, split_part(s.reached, '-', 1) || '-0'",
        };
        server.database(|database| {
            database.session().run(&format!(
                "ALTER FUNCTION tidings.survivors(bigint, bigint) RENAME TO right_survivors;
                 CREATE FUNCTION tidings.survivors(known bigint, horizon bigint, OUT events bigint, OUT reached text)
                   LANGUAGE sql STRICT SECURITY DEFINER AS
                   'SELECT {} FROM tidings.right_survivors(known, horizon) s';
                 GRANT EXECUTE ON FUNCTION tidings.survivors(bigint, bigint) TO {PROXY_ROLE}",
                result.replace('\'', "''")
            ));
        });
    }
}
