//! Whatever a DBA sets for the database or for a role, the proxy and the relay use their own settings.

use tidings_tests::http::{self, Response};
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Session, shared, until};

use crate::access::{Team, open, status};
use crate::titles;

/// Settings that break a program that does not set them itself: what it reads, what it writes, how long its sessions
/// live.
const HOSTILE: &[(&str, &str)] = &[
    ("search_path", "trap, public, pg_catalog"),
    ("default_transaction_isolation", "serializable"),
    ("default_transaction_read_only", "on"),
    ("default_transaction_deferrable", "on"),
    ("lock_timeout", "1ms"),
    ("idle_session_timeout", "1s"),
    ("idle_in_transaction_session_timeout", "1ms"),
    ("client_encoding", "LATIN1"),
    ("standard_conforming_strings", "off"),
    ("backslash_quote", "off"),
    ("transform_null_equals", "on"),
    ("array_nulls", "off"),
    ("DateStyle", "German"),
    ("IntervalStyle", "sql_standard"),
    ("TimeZone", "Pacific/Kiritimati"),
    ("row_security", "off"),
    ("session_replication_role", "replica"),
    ("client_min_messages", "debug5"),
    ("exit_on_error", "on"),
    ("bytea_output", "escape"),
    ("extra_float_digits", "-15"),
    ("xmloption", "document"),
    ("quote_all_identifiers", "on"),
    ("plan_cache_mode", "force_custom_plan"),
    ("jit", "on"),
    ("jit_above_cost", "0"),
    ("enable_seqscan", "off"),
    ("enable_indexscan", "off"),
    ("enable_indexonlyscan", "off"),
    ("enable_bitmapscan", "off"),
    ("enable_nestloop", "off"),
    ("enable_hashjoin", "off"),
    ("enable_sort", "off"),
    ("enable_partition_pruning", "off"),
    ("parallel_setup_cost", "0"),
    ("parallel_tuple_cost", "0"),
    ("min_parallel_table_scan_size", "0"),
    ("temp_file_limit", "0"),
    ("synchronous_commit", "off"),
];

/// Sets all of these with the given statement, also those that only newer versions know.
fn be_hostile(session: &mut Session, alter: &str, role: &str) {
    let version: i32 = session.one("SELECT current_setting('server_version_num')::int / 10000");
    let newer = [(17, ("transaction_timeout", "1s")), (16, ("debug_parallel_query", "on"))];
    let newer = newer.into_iter().filter(|(since, _)| *since <= version).map(|(_, setting)| setting);
    for (name, value) in HOSTILE.iter().copied().chain(newer).chain([("role", role)]) {
        // In quotes, a list of schemas would be one name.
        let value = if name == "search_path" { value.to_owned() } else { format!("'{value}'") };
        session.run(&format!("{alter} SET {name} = {value}"));
    }
}

/// A separate cluster whose database, relay and proxy role have hostile settings, and a session from before.
struct Hostile<'c> {
    team: Team<'c>,
    writer: Session,
    /// A role without rights.
    nobody: String,
}

impl<'c> Hostile<'c> {
    fn within(cluster: &'c Cluster) -> Self {
        let team = Team::within(cluster);
        let (db, mut writer) = (&team.db, team.db.session());
        writer.run(
            "CREATE SCHEMA trap; GRANT USAGE ON SCHEMA trap TO PUBLIC;
             CREATE FUNCTION trap.sprung(text) RETURNS text LANGUAGE plpgsql AS $$BEGIN RAISE 'a trap'; END$$;
             CREATE OPERATOR trap.|| (LEFTARG = text, RIGHTARG = text, FUNCTION = textcat);
             CREATE FUNCTION trap.set_config(text, text, boolean) RETURNS text LANGUAGE sql AS 'SELECT trap.sprung($1)'",
        );
        let nobody = db.role("nobody");
        writer.run(&format!("GRANT {nobody} TO {}", db.proxy_role()));
        be_hostile(&mut writer, &format!("ALTER DATABASE {}", db.name()), &nobody);
        be_hostile(&mut writer, &format!("ALTER ROLE {}", db.proxy_role()), &nobody);
        Self { team, writer, nobody }
    }

    fn write(&mut self, id: i64, title: &str) {
        self.writer.run(&format!("INSERT INTO board_items VALUES ({id}, 5, '{title}')"));
    }
}

/// Reads the stream until it contains this.
#[track_caller]
fn read_until(stream: &mut Response, bytes: &mut Vec<u8>, text: &str) {
    while !String::from_utf8_lossy(bytes).contains(text) {
        assert!(stream.read(bytes).expect("the stream"), "it has ended: {}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_proxy_works_whatever_the_settings_of_the_database_and_its_role() {
    let cluster = Cluster::start(&[]);
    let mut hostile = Hostile::within(&cluster);
    let position: String = hostile.writer.one("SELECT tidings.position()");
    hostile.write(1, "before");
    let proxy = hostile.team.proxy(&["--channel", "boards_*", "--reauthorize", "1s"]);
    let token = hostile.team.token(1);
    // Through a rule; from the log, after an earlier position; live; by plain NOTIFY; and in the registry of open
    // topics.
    assert_eq!(status(&proxy, "/events?topic=boards_6", &token), 403);
    let mut old = proxy.open(&Request::resume(&["boards_5"], &position).by(&token));
    assert_eq!(titles(&[old.frame()]), ["before"]);
    let mut stream = open(&proxy, "boards_5", &token);
    let channel = format!("/channels/boards_5?token={token}");
    let mut channel = http::open(proxy.address(), &channel, &[]).expect("a channel");
    assert_eq!(channel.head.status, 200);
    let mut bytes = Vec::new();
    read_until(&mut channel, &mut bytes, ": tidings");
    hostile.writer.run("NOTIFY boards_5, 'called'");
    read_until(&mut channel, &mut bytes, "called");
    until("the registry knows", || {
        hostile.writer.one::<i64>("SELECT count(*) FROM tidings.open_topics WHERE topic = 'boards_5'") == 1
    });
    // Streams are checked again for longer than a session may be idle here.
    let checks = proxy.metric("tidings_auth_questions_total");
    until("streams are checked again", || proxy.metric("tidings_auth_questions_total") > checks + 2.0);
    hostile.write(2, "after");
    assert_eq!(titles(&[stream.frame()]), ["after"]);
    assert_eq!(proxy.metric("tidings_report_errors_total"), 0.0, "{}", proxy.log());
    let log = proxy.log();
    assert!(!log.contains("upstream lost") && !log.contains("not checked"), "{log}");
}

#[test]
fn a_relay_works_whatever_the_settings_of_its_database_and_the_superuser() {
    let cluster = Cluster::start(&[]);
    let mut hostile = Hostile::within(&cluster);
    let proxy = hostile.team.proxy(&[]);
    let mut stream = open(&proxy, "boards_5", &hostile.team.token(1));
    // The role of the relay's session. The writer's session is from before.
    be_hostile(&mut hostile.writer, "ALTER ROLE postgres", &hostile.nobody);
    hostile.writer.run(&format!("ALTER ROLE postgres SET session_authorization = '{}'", hostile.nobody));
    let relay = |writer: &mut Session| writer.one::<Option<i32>>("SELECT tidings.relay_pid()");
    let before = relay(&mut hostile.writer);
    hostile.writer.run("SELECT pg_terminate_backend(tidings.relay_pid())");
    until("another relay runs", || relay(&mut hostile.writer).is_some_and(|pid| Some(pid) != before));
    let running = relay(&mut hostile.writer);
    hostile.write(1, "a");
    assert_eq!(titles(&[stream.frame()]), ["a"]);
    // Longer than a session, a transaction or a lock may last here.
    let last = "SELECT max(tick) FROM tidings.tick";
    for id in 2..7 {
        let tick: i64 = hostile.writer.one(last);
        hostile.writer.run("SELECT pg_sleep(0.3)");
        hostile.write(id, "c");
        until("it has ticked", || hostile.writer.one::<i64>(last) > tick);
    }
    assert_eq!(relay(&mut hostile.writer), running, "{}", cluster.log_tail());
    // So does the launcher, which starts the next relay.
    hostile.writer.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type LIKE 'tidings%'");
    until("another relay runs", || relay(&mut hostile.writer).is_some_and(|pid| Some(pid) != running));
    hostile.write(9, "d");
    assert_eq!(titles(&stream.take(6))[5], "d");
}

#[test]
fn a_serializable_database_s_writers_do_not_fail_because_of_a_proxy() {
    let cluster = shared();
    let team = Team::within(cluster);
    let db = &team.db;
    db.session().run(&format!("ALTER DATABASE {} SET default_transaction_isolation = serializable", db.name()));
    let mut session = db.session();
    session.run("CREATE TABLE account (n int); INSERT INTO account VALUES (1)");
    let position: String = session.one("SELECT tidings.position()");
    session.run("INSERT INTO board_items VALUES (1, 5, 'before')");
    let proxy = team.proxy(&[]);
    // One transaction reads what another one then writes, which is fine. But if, in between, a third one with
    // serializable isolation reads what the first one is going to write (the log, for instance), the first one fails.
    let mut writer = db.session();
    writer.run("BEGIN; SELECT n FROM account; INSERT INTO board_items VALUES (2, 5, 'during')");
    session.run("UPDATE account SET n = 2");
    let mut stream = proxy.open(&Request::resume(&["boards_5"], &position).by(&team.token(1)));
    assert_eq!(titles(&[stream.frame()]), ["before"]);
    writer.run("COMMIT");
    assert_eq!(titles(&[stream.frame()]), ["during"]);
}
