//! What somebody tries who wants a stream that is not theirs. Each attempt is refused, and spoils nothing for the others.

use std::collections::BTreeSet;

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings_tests::http::escape;
use tidings_tests::proxy::Proxy;

use crate::access::{SECRET, Team, ask, key_set, proxy_by_keys, sign, silent_about, status};

const BOARD: &str = "/events?topic=boards_5";

/// Base64 as tokens have it.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::new();
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().fold(0, |bits, byte| bits << 8 | usize::from(*byte)) << (8 * (3 - chunk.len()));
        for i in 0..=chunk.len() {
            text.push(char::from(DIGITS[bits >> (18 - 6 * i) & 63]));
        }
    }
    text
}

/// A token whose header and signature are anything.
fn raw(header: &Value, claims: &Value, signature: &str) -> String {
    format!("{}.{}.{signature}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()))
}

fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// Whoever may still may.
#[track_caller]
fn still_serves(team: &Team<'_>, proxy: &Proxy) {
    assert_eq!(status(proxy, BOARD, &team.token(1)), 200);
    assert_eq!(status(proxy, BOARD, &team.token(2)), 403);
}

#[test]
fn a_public_key_is_no_secret() {
    let team = Team::new();
    let (file, keys) = key_set();
    let proxy = proxy_by_keys(&team, &file);
    let set: Value = serde_json::from_str(include_str!("keys/set.json")).expect("JSON");
    let mut known: Vec<Vec<u8>> = Vec::new();
    for pem in [include_str!("keys/rsa.pub.pem"), include_str!("keys/ec.pub.pem"), include_str!("keys/ed.pub.pem")] {
        known.extend([pem.into(), pem.trim_end().into()]);
    }
    for (i, member) in [(0, "n"), (1, "x"), (1, "y"), (2, "x")] {
        let text = set["keys"][i][member].as_str().expect("a text");
        known.push(text.into());
    }
    known.extend((0..3).map(|i| set["keys"][i].to_string().into_bytes()));
    known.push(Vec::new());
    for secret in &known {
        for kid in [Some("rsa"), Some("ec"), Some("ed"), Some("oct"), None] {
            for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
                let header = Header { kid: kid.map(Into::into), ..Header::new(algorithm) };
                let token = encode(&header, &team.claims(1), &EncodingKey::from_secret(secret)).expect("sign");
                assert_eq!(status(&proxy, BOARD, &token), 401, "{kid:?} {algorithm:?}");
            }
        }
    }
    // Nor is the right key with an algorithm that is not its own.
    let (kid, _, rsa) = &keys[0];
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        let header = Header { kid: Some((*kid).into()), ..Header::new(algorithm) };
        let token = encode(&header, &team.claims(1), rsa).expect("sign");
        assert_eq!(status(&proxy, BOARD, &token), 401, "{algorithm:?}");
    }
}

#[test]
fn a_token_without_a_signature_is_none() {
    let team = Team::new();
    let proxy = team.proxy(&["--anon-role", &team.guest]);
    let claims = team.claims(1);
    let good = team.token(1);
    let signature = good.rsplit('.').next().expect("a signature");
    for algorithm in ["none", "None", "NONE", "nOnE", "", "HS256", "hs256", "RS256"] {
        for signature in ["", signature, "AAAA", "=", "%00"] {
            let token = raw(&json!({"alg": algorithm, "typ": "JWT"}), &claims, signature);
            assert_eq!(status(&proxy, BOARD, &token), 401, "{algorithm} {signature}");
        }
    }
    for header in [json!({}), json!([]), json!("HS256"), json!({"alg": null}), json!({"alg": ["HS256"]})] {
        assert_eq!(status(&proxy, BOARD, &raw(&header, &claims, signature)), 401, "{header}");
    }
    // The payload of one and the signature of another.
    let swapped = raw(&json!({"alg": "HS256", "typ": "JWT"}), &json!({"role": team.member, "sub": "2"}), signature);
    assert_eq!(status(&proxy, BOARD, &swapped), 401);
    still_serves(&team, &proxy);
    silent_about(&proxy, &[&good, &swapped]);
}

#[test]
fn what_a_token_says_about_its_key_opens_nothing() {
    let team = Team::new();
    let (file, _) = key_set();
    let proxy = proxy_by_keys(&team, &file);
    let own = EncodingKey::from_secret(b"the attacker's own secret, long enough");
    for kid in [
        "../../../../dev/null",
        "/dev/null",
        "file:///dev/null",
        "oct/../oct",
        "oct\u{0}",
        "OCT",
        " oct",
        "oct' OR '1'='1",
        "x' UNION SELECT 'k",
        "|cat /etc/passwd",
        "",
    ] {
        for key in [&own, &EncodingKey::from_secret(b""), &EncodingKey::from_secret(b"\0")] {
            let header = Header { kid: Some(kid.into()), ..Header::default() };
            let token = encode(&header, &team.claims(1), key).expect("sign");
            assert_eq!(status(&proxy, BOARD, &token), 401, "{kid}");
        }
    }
    let jwk = json!({"kty": "oct", "kid": "oct", "k": base64(b"the attacker's own secret, long enough")});
    for (name, value) in [
        ("jwk", jwk.clone()),
        ("jku", json!(format!("http://{}/keys", proxy.address()))),
        ("x5u", json!("http://127.0.0.1:9/x")),
        ("x5c", json!(["MIIB"])),
        ("crit", json!(["exp"])),
    ] {
        let mut header = json!({"alg": "HS256", "kid": "oct"});
        header[name] = value;
        let signed = encode(&Header::default(), &team.claims(1), &own).expect("sign");
        let token = raw(&header, &team.claims(1), signed.rsplit('.').next().expect("a signature"));
        assert_eq!(status(&proxy, BOARD, &token), 401, "{name}");
    }
}

#[test]
fn a_token_has_a_size() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let mut claims = team.claims(1);
    claims["more"] = json!("x".repeat(5000));
    let fits = sign(&claims);
    assert_eq!(status(&proxy, BOARD, &fits), 200, "{} bytes", fits.len());
    claims["more"] = json!("x".repeat(7000));
    let large = sign(&claims);
    assert_eq!(status(&proxy, BOARD, &large), 401, "{} bytes, rightly signed", large.len());
    let answer = ask(&proxy, &format!("{BOARD}&token={}", "x".repeat(60_000)), &[]).0.status;
    assert!([401, 414, 431].contains(&answer), "{answer}");
    let answer = ask(&proxy, BOARD, &[("Authorization", &bearer(&"x".repeat(70_000)))]).0.status;
    assert!([401, 431].contains(&answer), "{answer}");
    // Deep claims overflow no parser's stack, here or in the database.
    for depth in [100, 1500] {
        let payload =
            format!("{{\"role\":\"{}\",\"sub\":\"2\",\"x\":{}{}}}", team.member, "[".repeat(depth), "]".repeat(depth));
        let answer = status(&proxy, BOARD, &signed_text(&payload));
        assert!([401, 403].contains(&answer), "{depth} deep: {answer}");
    }
    still_serves(&team, &proxy);
    silent_about(&proxy, &[&fits, &large]);
}

/// A rightly signed token whose claims are this very text.
fn signed_text(payload: &str) -> String {
    let message = format!("{}.{}", base64(b"{\"alg\":\"HS256\"}"), base64(payload.as_bytes()));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("sign");
    format!("{message}.{signature}")
}

#[test]
fn a_claim_is_a_value_whatever_it_holds() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let hostile = [
        "1' OR '1'='1",
        "1; DROP TABLE boards; --",
        "1\"}', true); SET ROLE postgres; --",
        "$$; RESET ROLE; $$",
        "\", \"role\": \"postgres",
        "{id}",
        "$1",
        "\\",
        "\u{0}",
        "1\u{0}",
        "\u{1F600}\u{202E}\r\nX: y",
    ];
    for value in hostile {
        for name in ["sub", "role", "x", "request.jwt.claims", value] {
            let mut claims = team.claims(2);
            claims[name] = json!(value);
            assert_eq!(status(&proxy, BOARD, &sign(&claims)), 403, "{name}: {value:?}");
        }
    }
    // Claims that are harmless with such values beside them are as good as before, but for what jsonb cannot hold.
    for value in hostile {
        let mut claims = team.claims(1);
        claims["x"] = json!(value);
        let expected = if value.contains('\u{0}') { 403 } else { 200 };
        assert_eq!(status(&proxy, BOARD, &sign(&claims)), expected, "{value:?}");
    }
    for sub in [json!(null), json!([1]), json!({"a": 1}), json!(true), json!(1.5)] {
        let mut claims = team.claims(2);
        claims["sub"] = sub.clone();
        // The library that checks tokens wants a text there; what it lets pass, the rule refuses.
        assert!([401, 403].contains(&status(&proxy, BOARD, &sign(&claims))), "{sub}");
    }
    for payload in ["[]", "null", "\"x\"", "1", "{", "", "{\"role\": \"a\"} x"] {
        assert_eq!(status(&proxy, BOARD, &signed_text(payload)), 401, "{payload}");
    }
    still_serves(&team, &proxy);
    let session = &mut team.db.session();
    assert_eq!(session.one::<i64>("SELECT count(*) FROM boards"), 4);
}

#[test]
fn one_bad_claim_spoils_nothing_for_those_who_come_with_it() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let mut poisoned = team.claims(1);
    poisoned["x"] = json!("\u{0}");
    let (ada, ben, poisoned) = (team.token(1), team.token(2), sign(&poisoned));
    std::thread::scope(|scope| {
        let (proxy, asked) = (&proxy, [(&ada, 200), (&ben, 403), (&poisoned, 403)]);
        for i in 0..30 {
            let (token, expected) = asked[i % asked.len()];
            scope.spawn(move || {
                for _ in 0..10 {
                    assert_eq!(status(proxy, BOARD, token), expected);
                }
            });
        }
    });
}

#[test]
fn nobody_becomes_a_role_that_is_not_for_subscribers() {
    let team = Team::new();
    let proxy = team.proxy(&["--anon-role", &team.guest]);
    let (own, stranger) = (team.db.proxy_role(), team.db.role("stranger"));
    // Even a superuser that the proxy was made a member of by mistake.
    let root = team.db.role("root");
    team.db.session().run(&format!(
        "ALTER ROLE {root} SUPERUSER; GRANT {root} TO {own}; GRANT SELECT ON boards TO {own}, {stranger}; ALTER TABLE boards DISABLE ROW LEVEL SECURITY"
    ));
    let upper = team.member.to_uppercase();
    let quoted = format!("\"{}\"", team.member);
    let spaced = format!("{} ", team.member);
    let long = format!("{}{}", team.member, "x".repeat(64));
    for role in [
        "postgres",
        "pg_read_all_data",
        "pg_write_all_data",
        "pg_execute_server_program",
        "pg_signal_backend",
        "none",
        "NONE",
        "public",
        "current_user",
        "session_user",
        "default",
        "",
        &own,
        &root,
        &stranger,
        &upper,
        &quoted,
        &spaced,
        &long,
    ] {
        let claims = json!({"role": role, "sub": "1"});
        assert_eq!(status(&proxy, BOARD, &sign(&claims)), 403, "{role}");
    }
    for role in [json!(null), json!(1), json!([team.member]), json!({"role": team.member}), json!(true)] {
        assert_eq!(status(&proxy, BOARD, &sign(&json!({"role": role, "sub": "1"}))), 403, "{role}");
    }
    assert_eq!(status(&proxy, BOARD, &team.token(1)), 200);
    // The anonymous role is no way in either.
    let proxy = team.proxy(&["--anon-role", "postgres"]);
    assert_eq!(ask(&proxy, BOARD, &[]).0.status, 403);
    assert_eq!(status(&proxy, BOARD, &sign(&json!({"sub": "1"}))), 403);
}

#[test]
fn what_a_rules_query_does_to_the_session_is_gone_after_it() {
    let team = Team::new();
    let proxy = team.proxy(&["--max-topics", "8"]);
    let ada = team.claims(1).to_string();
    for (topic, query) in [
        ("role", "SELECT set_config('role', 'none', false)".to_owned()),
        (
            "claims",
            format!(
                "SELECT set_config('request.jwt.claims', $q${}$q$, false)",
                ada.replace('{', "{{").replace('}', "}}")
            ),
        ),
        ("path", "SELECT set_config('search_path', 'pg_temp', false)".into()),
        ("write", "SELECT set_config('transaction_read_only', 'off', false)".into()),
        ("time", "SELECT set_config('statement_timeout', '0', false)".into()),
        ("security", "SELECT set_config('row_security', 'off', false)".into()),
        ("fails", "SELECT 1 / (SELECT 0 FROM (SELECT set_config('role', 'none', false)) s)".into()),
    ] {
        team.db.session().with("SELECT tidings.allow($1, $2)", &[&topic, &query]);
        // In the same question, and in the next on the same connection.
        for path in [format!("/events?topic={topic}&topic=boards_5"), format!("/events?topic=boards_5&topic={topic}")] {
            assert_eq!(status(&proxy, &path, &team.token(2)), 403, "{path}");
        }
        for _ in 0..4 {
            still_serves(&team, &proxy);
        }
    }
    // A rule reads and does not write.
    team.db.session().run(&format!(
        "CREATE TABLE seen (); GRANT INSERT, SELECT ON seen TO {};
         CREATE FUNCTION note() RETURNS boolean LANGUAGE sql AS 'INSERT INTO seen DEFAULT VALUES RETURNING true';
         SELECT tidings.allow('noted', 'SELECT note()')",
        team.member
    ));
    assert_eq!(status(&proxy, "/events?topic=noted", &team.token(1)), 403);
    // One that raises what the check itself raises is a failure, as any other error.
    team.db.session().run(
        "CREATE FUNCTION yes() RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN RAISE 'yes' USING ERRCODE = 'TI010'; END $$;
         SELECT tidings.allow('yes', 'SELECT yes()')",
    );
    assert_eq!(status(&proxy, "/events?topic=yes", &team.token(1)), 403);
    // One that takes too long is a no.
    team.db.session().run("SELECT tidings.allow('slow', 'SELECT pg_sleep(600)')");
    assert_eq!(status(&proxy, "/events?topic=slow", &team.token(1)), 403);
    still_serves(&team, &proxy);
}

#[test]
fn a_topic_that_only_looks_like_one_is_another() {
    let team = Team::new();
    let proxy = team.proxy(&["--route", "/api/boards/{id}/events=boards_{id}"]);
    let ben = team.token(2);
    for topic in [
        "boards_５",
        "bоards_5",
        "BOARDS_5",
        "boards_5\u{200B}",
        "boards_\u{660}5",
        "boards_5 OR true",
        "boards_5'::text OR '1'='1",
        "boards_5);SELECT pg_sleep(9)--",
        "boards_{id}",
        "boards_$1",
        "boards_5/",
        "boards_6/../boards_5",
        "boards_05",
        "boards_ 5",
        "boards_5 ",
        "boards_+5",
        "boards_0x5",
        "boards_5.0",
        "boards_NaN",
        "boards_99999999999999999999",
        "boards_abc",
        "boards_",
        "boards_*",
        "*",
        "tidings",
    ] {
        let path = format!("/events?topic={}", escape(topic));
        assert_eq!(status(&proxy, &path, &ben), 403, "{topic}");
        // Beside one that is his own it is refused as well.
        assert_eq!(status(&proxy, &format!("{path}&topic=boards_6"), &ben), 403, "{topic}");
    }
    for topic in [
        "boards_5%00",
        "%00boards_6",
        "boards_%C0%B5",
        "boards_%E0%80%B5",
        "boards_%ED%A0%80",
        "boards_6%0A",
        "boards_6%7F",
        "",
    ] {
        assert_eq!(status(&proxy, &format!("/events?topic={topic}"), &ben), 400, "{topic}");
    }
    for path in [
        "/api/boards/5%2F../events",
        "/api/boards/6%2F..%2F5/events",
        "/api/boards/6/../5/events",
        "/api/boards/%35/events",
        "/api/boards/5%00/events",
        "/api/boards/%C0%B5/events",
        "/api/boards/6/events?topic=boards_5",
        "/api/boards//events",
        "//events?topic=boards_5",
        "/events/?topic=boards_5",
        "/events%3Ftopic=boards_5",
        "/EVENTS?topic=boards_5",
    ] {
        let answer = status(&proxy, path, &ben);
        assert!([400, 403, 404].contains(&answer), "{path}: {answer}");
    }
    still_serves(&team, &proxy);
}

#[test]
fn a_board_that_is_not_theirs_answers_like_one_that_does_not_exist() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let ben = bearer(&team.token(2));
    let mut bodies = BTreeSet::new();
    // Not his, not there, no number, and no rule for it.
    for topic in ["boards_5", "boards_999", "boards_abc", "secrets_1"] {
        let (head, body) = ask(&proxy, &format!("/events?topic={topic}"), &[("Authorization", &ben)]);
        let names = ["content-type", "cache-control", "content-length", "retry-after", "www-authenticate"];
        let headers = names.map(|name| match (name, head.header(name)) {
            // The topic is in the body.
            ("content-length", Some(length)) => {
                Some((length.parse::<usize>().expect("a length") - topic.len()).to_string())
            }
            (_, value) => value.map(str::to_owned),
        });
        bodies.insert((head.status, headers, body.replace(topic, "TOPIC")));
    }
    assert_eq!(bodies.len(), 1, "{bodies:?}");
    assert!(bodies.iter().all(|(status, ..)| *status == 403));
    // The reason is in the log.
    let log = proxy.log();
    for reason in ["its rule finds no row", "invalid input syntax for type bigint", "no rule matches"] {
        assert!(log.contains(reason), "{reason}: {log}");
    }
}
