//! Teamboard, the demonstration: its schema and people in a database, and its backend's binary.

use std::path::{Path, PathBuf};

use crate::database::Database;

/// The schema, its watches and rules, and somebody to play with; it creates the extension and the roles below.
const SCHEMA: &str = include_str!("../../sql/examples/teamboard.sql");

/// The role that its backend logs in with.
pub const BACKEND_ROLE: &str = "teamboard_backend";

/// The role that its proxy logs in with.
pub const PROXY_ROLE: &str = "teamboard_proxy";

/// The cookie in which its people carry their token.
pub const COOKIE: &str = "teamboard_token";

/// The URL of a board's stream, as the page has it, for `--route`.
pub const ROUTE: &str = "/api/boards/{id}/events=boards_{id}";

/// Creates it in an empty database, and waits until the relay runs.
pub fn create(database: &Database<'_>) {
    database.session().run(SCHEMA);
    database.wait_relay();
}

/// The backend's binary: `TEAMBOARD`, or what `make build` made.
pub fn binary() -> PathBuf {
    std::env::var_os("TEAMBOARD")
        .map(PathBuf::from)
        .unwrap_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/release/teamboard"))
}
