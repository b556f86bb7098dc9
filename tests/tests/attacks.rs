//! What an attacker with a token may try to get a stream that is not theirs. Each attempt is refused, and does not
//! affect others. Attempts with topics, roles and rules are in `attacks_on_rules`.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings_tests::proxy::Proxy;

use crate::access::{SECRET, Team, ask, sign, silent_about, status};
use crate::key_set::{key_set, proxy_by_keys};

/// The stream of a board that person 1 sees and person 2 does not.
pub const BOARD: &str = "/events?topic=boards_5";

/// Base64 as in tokens.
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

/// A token with any header and signature.
fn raw(header: &Value, claims: &Value, signature: &str) -> String {
    format!("{}.{}.{signature}", base64(header.to_string().as_bytes()), base64(claims.to_string().as_bytes()))
}

/// The value of the header with a token.
pub fn bearer(token: &str) -> String {
    format!("Bearer {token}")
}

/// A permitted client still gets its stream.
#[track_caller]
pub fn still_serves(team: &Team<'_>, proxy: &Proxy) {
    assert_eq!(status(proxy, BOARD, &team.token(1)), 200);
    assert_eq!(status(proxy, BOARD, &team.token(2)), 403);
}

#[test]
fn a_public_key_is_not_accepted_as_a_secret() {
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
    // Nor the right key with the wrong algorithm.
    let (kid, _, rsa) = &keys[0];
    for algorithm in [Algorithm::RS384, Algorithm::RS512, Algorithm::PS256] {
        let header = Header { kid: Some((*kid).into()), ..Header::new(algorithm) };
        let token = encode(&header, &team.claims(1), rsa).expect("sign");
        assert_eq!(status(&proxy, BOARD, &token), 401, "{algorithm:?}");
    }
}

#[test]
fn a_token_without_a_signature_is_refused() {
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
    // The payload of one token and the signature of another.
    let swapped = raw(&json!({"alg": "HS256", "typ": "JWT"}), &json!({"role": team.member, "sub": "2"}), signature);
    assert_eq!(status(&proxy, BOARD, &swapped), 401);
    still_serves(&team, &proxy);
    silent_about(&proxy, &[&good, &swapped]);
}

#[test]
fn the_key_that_a_token_brings_is_ignored() {
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
fn the_size_of_a_token_is_limited() {
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
    // Deeply nested claims overflow no parser's stack, here or in the database.
    for depth in [100, 1500] {
        let payload =
            format!("{{\"role\":\"{}\",\"sub\":\"2\",\"x\":{}{}}}", team.member, "[".repeat(depth), "]".repeat(depth));
        let answer = status(&proxy, BOARD, &signed_text(&payload));
        assert!([401, 403].contains(&answer), "{depth} deep: {answer}");
    }
    still_serves(&team, &proxy);
    silent_about(&proxy, &[&fits, &large]);
}

/// A correctly signed token with exactly this text as its claims.
fn signed_text(payload: &str) -> String {
    let message = format!("{}.{}", base64(b"{\"alg\":\"HS256\"}"), base64(payload.as_bytes()));
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    let signature = jsonwebtoken::crypto::sign(message.as_bytes(), &key, Algorithm::HS256).expect("sign");
    format!("{message}.{signature}")
}

#[test]
fn a_claim_is_only_a_value_whatever_it_contains() {
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
    // Claims that are harmless work as before in the company of such values, except where jsonb can't represent them.
    for value in hostile {
        let mut claims = team.claims(1);
        claims["x"] = json!(value);
        let expected = if value.contains('\u{0}') { 403 } else { 200 };
        assert_eq!(status(&proxy, BOARD, &sign(&claims)), expected, "{value:?}");
    }
    for sub in [json!(null), json!([1]), json!({"a": 1}), json!(true), json!(1.5)] {
        let mut claims = team.claims(2);
        claims["sub"] = sub.clone();
        // The library that checks tokens expects a text there; the rule refuses what the library lets pass.
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
fn a_bad_claim_does_not_affect_other_clients_in_the_same_statement() {
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
fn only_the_first_token_counts() {
    let team = Team::new();
    let proxy = team.proxy(&["--token-cookie", "sid"]);
    let good = team.token(1);
    let (bearer, cookie) = (bearer(&good), format!("sid={good}"));
    for headers in [
        &[("Authorization", "Bearer x"), ("Authorization", &*bearer)][..],
        &[("Authorization", "Basic x"), ("Cookie", &*cookie)],
        &[("Cookie", &*format!("sid=x; {cookie}"))],
        &[("Cookie", "sid=x"), ("Cookie", &*cookie)],
        &[("Cookie", "sid=\u{fffd}"), ("Cookie", &*cookie)],
    ] {
        assert_eq!(ask(&proxy, BOARD, headers).0.status, 401, "{headers:?}");
    }
    // Given twice in the URL, it is an error, in either order.
    for twice in [format!("token=x&token={good}"), format!("token={good}&token=x")] {
        assert_eq!(ask(&proxy, &format!("{BOARD}&{twice}"), &[]).0.status, 400, "{twice}");
    }
    assert_eq!(ask(&proxy, &format!("{BOARD}&token={good}"), &[("Cookie", "sid=x")]).0.status, 401);
    // Other cookies do not matter, whatever their encoding.
    let beside = format!("name=Chloé; SID=x; sidx=y; {cookie}");
    assert_eq!(ask(&proxy, BOARD, &[("Cookie", &beside)]).0.status, 200);
}

#[test]
fn a_repeated_claim_counts_once() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let member = &team.member;
    for payload in [
        format!("{{\"role\":\"{member}\",\"sub\":\"1\",\"sub\":\"2\"}}"),
        format!("{{\"role\":\"{member}\",\"role\":\"{}\",\"sub\":\"1\"}}", team.guest),
        format!("{{\"exp\":9999999999,\"role\":\"{member}\",\"sub\":\"1\",\"exp\":1}}"),
        format!("{{\"exp\":1,\"role\":\"{member}\",\"sub\":\"1\",\"exp\":9999999999}}"),
    ] {
        let answer = status(&proxy, BOARD, &signed_text(&payload));
        assert!([401, 403].contains(&answer), "{payload}: {answer}");
    }
    still_serves(&team, &proxy);
}

#[test]
fn a_claim_cannot_forge_a_log_line() {
    let team = Team::new();
    let proxy = team.proxy(&[]);
    let mut claims = team.claims(2);
    claims["sub"] = json!("1\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[2K\u{9b}2K");
    assert_eq!(status(&proxy, BOARD, &sign(&claims)), 403);
    let log = proxy.log();
    assert!(log.contains("invalid input syntax for type bigint"), "{log}");
    assert!(!log.lines().any(|line| line.starts_with("2026-01-01T00:00:00Z ERROR")), "{log}");
    assert!(!log.contains(['\r', '\u{1b}', '\u{9b}']), "{log}");
}
