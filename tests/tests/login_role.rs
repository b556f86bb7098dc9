//! The role that a proxy logs in with: its rights, warnings about them, and which roles it may become.

use serde_json::json;
use tidings_tests::cluster::{SUPERUSER, free_port};
use tidings_tests::proxy::Proxy;
use tidings_tests::until;

use crate::access::{Team, ask, open, sign, status};

const BOARD: &str = "/events?topic=boards_5";

/// The warning in the log when the login role has rights of its own.
const WARNING: &str = "inherits the rights of these roles";

#[test]
fn the_proxys_role_has_no_other_rights() {
    let team = Team::new();
    let mut session = team.db.session_as(&team.db.proxy_role());
    for attempt in [
        "SELECT FROM boards",
        "SELECT FROM members",
        "SELECT FROM board_items",
        "SELECT FROM tidings.rule",
        "SELECT FROM tidings.rules",
        "SELECT tidings.allow('x', 'SELECT')",
        "SELECT tidings.disallow('boards_{id}')",
        "UPDATE boards SET public = true",
    ] {
        session.forbidden(attempt);
    }
}

/// Ways in which a role becomes one that the proxy must not be able to become; each makes a chain of two grants to
/// `{login}`.
fn ways_up(team: &Team<'_>) -> Vec<String> {
    let (middle, root) = (team.db.role("middle"), team.db.role("root"));
    let mut ways = vec![format!("ALTER ROLE {root} SUPERUSER; GRANT {root} TO {middle}")];
    for role in ["pg_execute_server_program", "pg_write_server_files", "pg_read_server_files"] {
        ways.push(format!("GRANT {role} TO {middle}"));
    }
    if team.db.session().one::<bool>("SELECT current_setting('server_version_num')::int < 160000") {
        ways.push(format!("ALTER ROLE {root} CREATEROLE; GRANT {root} TO {middle}"));
    }
    let undo = format!(
        "ALTER ROLE {root} NOSUPERUSER NOCREATEROLE;
         REVOKE {root}, pg_execute_server_program, pg_write_server_files, pg_read_server_files FROM {middle}"
    );
    ways.iter().map(|way| format!("{undo}; {way}; GRANT {middle} TO {{login}}")).collect()
}

#[track_caller]
fn is_refused_at_the_start(team: &Team<'_>, args: &[&str], database_url: &str, login: &str) {
    let secret = team.secret.to_str().expect("a path of text");
    let args = [&["--jwt-secret-file", secret, "--anon-role", &team.guest], args].concat();
    let mut proxy = Proxy::start_at(free_port(), database_url, &args);
    until("it says why it does not start", || proxy.log().contains("cannot start"));
    assert_eq!(proxy.terminate().code(), Some(1));
    assert!(proxy.log().contains(login) && proxy.log().contains("superuser"), "{}", proxy.log());
}

#[test]
fn a_login_that_is_or_can_become_a_superuser_is_refused_at_the_start() {
    let team = Team::new();
    let (own, gate) = (team.db.proxy_role(), team.gate_role());
    let url = |role: &str| team.db.cluster().url(team.db.name(), role);
    is_refused_at_the_start(&team, &[], &url("postgres"), "postgres");
    is_refused_at_the_start(&team, &["--gate-url", &url("postgres")], &url(&own), "postgres");
    for way in ways_up(&team) {
        let middle = format!("{}_middle", team.db.name());
        for login in [&own, &gate] {
            team.db.session().run(&way.replace("{login}", login));
            is_refused_at_the_start(&team, &["--gate-url", &url(&gate)], &url(&own), login);
            team.db.session().run(&format!("REVOKE {middle} FROM {login}"));
        }
    }
    assert_eq!(status(&team.proxy_with_gate(&[]), BOARD, &team.token(1)), 200, "without all that it does");
}

#[test]
fn a_login_that_gains_a_way_to_superuser_admits_nobody() {
    let team = Team::new();
    let gate = team.gate_role();
    let proxy = team.proxy_with_gate(&["--reauthorize", "200ms"]);
    let middle = format!("{}_middle", team.db.name());
    for way in ways_up(&team) {
        for login in [&team.db.proxy_role(), &gate] {
            let mut stream = open(&proxy, "boards_5", &team.token(1));
            team.db.session().run(&way.replace("{login}", login));
            assert_eq!(stream.rest(), [], "{way}");
            assert_eq!(status(&proxy, BOARD, &team.token(1)), 403, "{way}");
            team.db.session().run(&format!("REVOKE {middle} FROM {login}"));
            assert_eq!(status(&proxy, BOARD, &team.token(1)), 200);
        }
    }
    assert!(proxy.log().contains("is a superuser or can become one"), "{}", proxy.log());
}

#[test]
fn a_login_that_only_checks_access_reads_no_events() {
    let team = Team::new();
    let (own, gate) = (team.db.proxy_role(), team.gate_role());
    let proxy = team.proxy_with_gate(&["--anon-role", &team.guest]);
    assert_eq!((status(&proxy, BOARD, &team.token(1)), status(&proxy, BOARD, &team.token(2))), (200, 403));
    assert_eq!(ask(&proxy, "/events?topic=boards_8", &[]).0.status, 200);
    let mut session = team.db.session_as(&gate);
    let denied = format!("SELECT tidings.authorize('{}', '{{boards_5,boards_6}}')", team.claims(1));
    assert_eq!(session.one::<Vec<String>>(&denied), ["boards_6"]);
    for attempt in [
        "SELECT tidings.changes('earliest')",
        "SELECT tidings.segments('earliest')",
        "SELECT FROM tidings.events",
        "SELECT FROM tidings.log",
        "SELECT FROM tidings.rule",
        "SELECT tidings.rules_for('{boards_5}')",
        "SELECT tidings.ask_rule(10, '{}', 'SELECT', '{}', 'public')",
        "SELECT FROM boards",
    ] {
        session.forbidden(attempt);
    }
    // It reads the rows of topics only as a role that is a subscriber's.
    for role in [&*own, SUPERUSER] {
        session.forbidden(&format!("SELECT tidings.open_rows('{}', '{{boards_5}}')", json!({"role": role})));
    }
    // Nor can a login that reads events become the subscribers' roles.
    let claims = team.claims(1);
    let reason = format!("SELECT reason FROM tidings.check_subscription('{claims}', '{{boards_5}}')");
    let mut listener = team.db.session_as(&own);
    assert_eq!(listener.one::<String>(&reason), "the proxy may not take the role");
    // The role that listens is not a subscriber's role, even if it has members.
    team.db.session().run(&format!("GRANT {own} TO {gate}; GRANT SELECT ON boards TO {own}"));
    assert_eq!(status(&proxy, BOARD, &sign(&json!({"role": own, "sub": "1"}))), 403);
    assert!(proxy.log().contains("the role is a proxy's own"), "{}", proxy.log());
    assert_eq!(status(&proxy, BOARD, &sign(&json!({"role": gate, "sub": "1"}))), 403);
}

#[test]
fn a_login_role_with_inherited_rights_gives_a_warning() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 200);
    assert!(!proxy.log().contains(WARNING), "{}", proxy.log());
    let (role, readers) = (team.db.proxy_role(), team.db.role("readers"));
    team.db.session().run(&format!("ALTER ROLE {role} INHERIT; GRANT {readers} TO {role}"));
    let proxy = team.proxy(&[]);
    until("the log names them", || proxy.log().contains(WARNING) && proxy.log().contains(&readers));
}

#[test]
fn a_role_that_is_revoked_from_the_proxy_ends_its_streams() {
    let team = Team::new();
    let proxy = team.proxy(&["--reauthorize", "200ms", "--anon-role", &team.guest]);
    let mut stream = open(&proxy, "boards_5", &team.token(1));
    let mut public = open(&proxy, "boards_8", &team.token(2));
    team.db.session().run(&format!("REVOKE {} FROM {}", team.member, team.db.proxy_role()));
    assert_eq!((stream.rest(), public.rest()), (vec![], vec![]));
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 403);
    assert!(proxy.log().contains("the proxy may not take the role"), "{}", proxy.log());
    // The anonymous role is not used then.
    assert_eq!(status(&proxy, "/events?topic=boards_8", &team.token(1)), 403);
    assert_eq!(ask(&proxy, "/events?topic=boards_8", &[]).0.status, 200);
}
