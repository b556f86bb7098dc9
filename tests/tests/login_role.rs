//! The role that a proxy logs in with: what it can do, what it is warned of, and whom it may stand for.

use tidings_tests::proxy::Proxy;
use tidings_tests::until;

use crate::access::{Team, ask, open, status};

const BOARD: &str = "/events?topic=boards_5";

/// What the log says when the login role has rights of its own.
const WARNING: &str = "has the rights of these roles by itself";

#[test]
fn the_proxys_role_can_do_nothing_by_itself() {
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

#[test]
fn a_superuser_is_no_role_for_a_guarded_proxy() {
    let team = Team::new();
    let secret = team.secret.to_str().expect("a path of text");
    let url = team.db.cluster().url(team.db.name(), "postgres");
    let proxy = Proxy::start(&url, &["--jwt-secret-file", secret, "--anon-role", &team.guest]);
    assert_eq!(status(&proxy, "/events?topic=boards_5", &team.token(1)), 403);
    assert_eq!(ask(&proxy, "/events?topic=boards_8", &[]).0.status, 403);
    assert!(proxy.log().contains("the proxy's database role is a superuser"), "{}", proxy.log());
}

#[test]
fn rights_that_the_login_role_has_by_itself_are_told() {
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
fn a_role_that_the_proxy_may_not_take_any_more_ends_its_streams() {
    let team = Team::new();
    let proxy = team.proxy(&["--reauthorize", "200ms", "--anon-role", &team.guest]);
    let mut stream = open(&proxy, "boards_5", &team.token(1));
    let mut public = open(&proxy, "boards_8", &team.token(2));
    team.db.session().run(&format!("REVOKE {} FROM {}", team.member, team.db.proxy_role()));
    assert_eq!((stream.rest(), public.rest()), (vec![], vec![]));
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 403);
    assert!(proxy.log().contains("the proxy may not take the role"), "{}", proxy.log());
    // It is not the anonymous role's turn then.
    assert_eq!(status(&proxy, "/events?topic=boards_8", &team.token(1)), 403);
    assert_eq!(ask(&proxy, "/events?topic=boards_8", &[]).0.status, 200);
}
