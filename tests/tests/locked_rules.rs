//! Locks on what rules read, such as a migration takes. Waiting for a lock means "not now": it is not an answer. Rules
//! that take long are in `storms`.

use tidings_tests::{Session, until};

use crate::access::{Team, ask, open, sign, status};
use crate::attacks::BOARD;

/// How many clients ask for topics whose table is locked.
const CROWD: usize = 60;

/// Locks a table, as a migration does, until the session rolls back.
fn lock(team: &Team<'_>, table: &str) -> Session {
    let mut session = team.db.session();
    session.run(&format!("BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE"));
    session
}

/// A rule for topics `busy_…` that allows access until [`claim_a_lock`].
fn with_busy_topics(team: &Team<'_>) {
    team.db.session().run(
        "CREATE FUNCTION public.busy() RETURNS boolean LANGUAGE plpgsql AS 'BEGIN RETURN true; END';
         SELECT tidings.allow('busy_{x}', 'SELECT public.busy()')",
    );
}

/// From now on the rule claims that it waited for a lock.
fn claim_a_lock(team: &Team<'_>) {
    team.db.session().run(
        "CREATE OR REPLACE FUNCTION public.busy() RETURNS boolean LANGUAGE plpgsql
         AS $$ BEGIN RAISE 'busy' USING ERRCODE = 'lock_not_available'; END $$",
    );
}

#[test]
fn a_locked_table_means_not_now() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let bearer = format!("Bearer {}", team.token(1));
    for table in ["boards", "tidings.rule"] {
        let mut lock = lock(&team, table);
        let (head, _) = ask(&proxy, BOARD, &[("Authorization", &bearer)]);
        assert_eq!((head.status, head.header("retry-after").is_some()), (503, true), "{table}");
        lock.run("ROLLBACK");
        assert_eq!(status(&proxy, BOARD, &team.token(1)), 200, "{table}");
        assert_eq!(status(&proxy, BOARD, &team.token(2)), 403, "{table}");
    }
}

#[test]
fn an_open_stream_outlives_a_lock_and_is_checked_after_it() {
    let team = Team::new();
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    for (n, table) in ["boards", "tidings.rule"].into_iter().enumerate() {
        let mut his = open(&proxy, "boards_7", &team.token(2));
        let given_up = || proxy.metrics()["tidings_auth_checks_ended_total{cause=\"locked\"}"];
        let before = given_up();
        let mut lock = lock(&team, table);
        until("two checks gave up", || given_up() >= before + 2.0);
        team.db.session().run(&format!("INSERT INTO board_items VALUES ({n}, 7, 'still his')"));
        assert_eq!(crate::titles(&[his.frame()]), ["still his"], "{table}");
        team.db.session().run("DELETE FROM members WHERE person = 2");
        lock.run("ROLLBACK");
        assert_eq!(his.rest(), [], "{table}");
        team.db.session().run("INSERT INTO members VALUES (7, 2)");
    }
    assert_eq!(proxy.metrics()["tidings_auth_ended_total{cause=\"locked\"}"], 0.0);
}

#[test]
fn a_rule_that_claims_to_wait_for_a_lock_admits_nobody_and_keeps_no_stream_open_forever() {
    let team = Team::new();
    with_busy_topics(&team);
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    let mut its = open(&proxy, "busy_1", &team.token(1));
    let mut hers = open(&proxy, "boards_7", &team.token(1));
    claim_a_lock(&team);
    assert_eq!(status(&proxy, "/events?topic=busy_1", &team.token(1)), 503);
    assert_eq!(its.rest(), []);
    until("it is counted", || proxy.metrics()["tidings_auth_ended_total{cause=\"locked\"}"] == 1.0);
    // Another topic does not open it, whatever their order.
    for path in ["/events?topic=boards_7&topic=busy_1", "/events?topic=busy_1&topic=boards_7"] {
        assert_eq!(status(&proxy, path, &team.token(1)), 503, "{path}");
    }
    team.db.session().run("INSERT INTO board_items VALUES (1, 7, 'still hers')");
    assert_eq!(crate::titles(&[hers.frame()]), ["still hers"]);
}

#[test]
fn a_check_that_waits_for_a_lock_does_not_delay_others() {
    let team = Team::new();
    team.db.session().run(&format!(
        "CREATE TABLE public.rooms (); GRANT SELECT ON public.rooms TO {};
         SELECT tidings.allow('rooms_{{x}}', 'SELECT FROM public.rooms')",
        team.member
    ));
    let proxy = team.proxy(&["--reauthorize", "200ms"]);
    let mut his = open(&proxy, "boards_7", &team.token(2));
    let mut lock = lock(&team, "public.rooms");
    let given_up = || proxy.metrics()["tidings_auth_checks_ended_total{cause=\"locked\"}"];
    std::thread::scope(|scope| {
        for n in 0..CROWD {
            let mut claims = team.claims(1000);
            claims["n"] = n.into();
            let (proxy, token) = (&proxy, sign(&claims));
            scope.spawn(move || {
                // After the lock is gone the rule finds no row.
                let status = status(proxy, &format!("/events?topic=rooms_{n}"), &token);
                assert!([403, 503].contains(&status), "{status}");
            });
        }
        until("all of them wait", || proxy.metric("tidings_connections") >= CROWD as f64);
        for _ in 0..3 {
            assert_eq!((status(&proxy, BOARD, &team.token(1)), status(&proxy, BOARD, &team.token(2))), (200, 403));
        }
        team.db.session().run("DELETE FROM members WHERE person = 2");
        assert_eq!(his.rest(), []);
        assert!(given_up() < CROWD as f64 / 2.0, "the others were answered first");
        lock.run("ROLLBACK");
    });
}
