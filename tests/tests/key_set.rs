//! Tokens that are signed with a key of a set in a file. A set that is fetched is in `key_url`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::{Value, json};
use tidings_tests::process::{Signal, fresh_path};
use tidings_tests::{Proxy, until};

use crate::access::{Team, open, silent_about, status};
use crate::titles;

/// The key set of `keys/set.json`, in its own file, and the private key of each key.
pub fn key_set() -> (PathBuf, [(&'static str, Algorithm, EncodingKey); 4]) {
    let file = fresh_path("jwks");
    fs::write(&file, include_str!("keys/set.json")).expect("write the keys");
    let keys = [
        ("rsa", Algorithm::RS256, EncodingKey::from_rsa_der(include_bytes!("keys/rsa.der"))),
        ("ec", Algorithm::ES256, EncodingKey::from_ec_der(include_bytes!("keys/ec.der"))),
        ("ed", Algorithm::EdDSA, EncodingKey::from_ed_der(include_bytes!("keys/ed.der"))),
        ("oct", Algorithm::HS256, EncodingKey::from_secret(b"a secret of the key set, 32 bytes or more")),
    ];
    (file, keys)
}

/// Starts a proxy that uses a key set.
pub fn proxy_by_keys(team: &Team<'_>, file: &Path) -> Proxy {
    Proxy::start_verbose(&team.proxy_url(), &["--jwks-file", file.to_str().expect("a path of text")])
}

/// A token signed with a key of the set.
pub fn by_key(claims: &Value, kid: Option<&str>, algorithm: Algorithm, key: &EncodingKey) -> String {
    let header = Header { kid: kid.map(Into::into), ..Header::new(algorithm) };
    encode(&header, claims, key).expect("sign")
}

#[test]
fn a_key_set_verifies_each_kind_by_its_key_id() {
    let team = Team::new();
    let (file, keys) = key_set();
    let proxy = proxy_by_keys(&team, &file);
    let claims = team.claims(1);
    let mut tokens = Vec::new();
    for (kid, algorithm, key) in &keys {
        let token = by_key(&claims, Some(kid), *algorithm, key);
        assert_eq!(status(&proxy, "/events?topic=boards_5", &token), 200, "{kid}");
        tokens.push(token);
        assert_eq!(status(&proxy, "/events?topic=boards_5", &by_key(&claims, None, *algorithm, key)), 200, "{kid}");
        for other in ["rsa", "ec", "ed", "oct", "none"].iter().filter(|other| *other != kid) {
            let token = by_key(&claims, Some(other), *algorithm, key);
            assert_eq!(status(&proxy, "/events?topic=boards_5", &token), 401, "a {kid} token that names {other}");
        }
    }
    silent_about(&proxy, &tokens.iter().map(String::as_str).collect::<Vec<_>>());
}

#[test]
fn keys_are_read_again_on_sighup_and_when_their_file_changes() {
    let team = Team::new();
    let (file, [rsa, ec, ..]) = key_set();
    let proxy = proxy_by_keys(&team, &file);
    let [rsa, ec] = [rsa, ec].map(|(kid, algorithm, key)| by_key(&team.claims(1), Some(kid), algorithm, &key));
    let set: Value = serde_json::from_str(include_str!("keys/set.json")).expect("JSON");
    let only = |i: usize| json!({"keys": [set["keys"][i]]}).to_string();
    let answers = || [&rsa, &ec].map(|token| status(&proxy, "/events?topic=boards_5", token));
    let mut stream = open(&proxy, "boards_5", &rsa);
    assert_eq!(answers(), [200, 200]);

    // Always with the same modification time, so only the content differs; and never half written.
    let modified = fs::metadata(&file).and_then(|metadata| metadata.modified()).expect("the time of change");
    let replace = |text: &str| {
        let replacement = fresh_path("jwks");
        fs::write(&replacement, text).expect("write the keys");
        let opened = File::options().write(true).open(&replacement);
        opened.and_then(|opened| opened.set_modified(modified)).expect("set the time");
        fs::rename(&replacement, &file).expect("replace the keys");
    };
    replace(&only(1));
    until("the change is seen", || answers() == [401, 200]);

    replace(&only(0));
    proxy.signal(Signal::SIGHUP);
    until("the signal is followed", || answers() == [200, 401]);
    // A file that is not a key set changes nothing, and is logged once.
    let sent = || proxy.log().matches("the old ones stay").count();
    replace("{");
    until("it says so", || sent() == 1);
    assert_eq!(answers(), [200, 401]);
    // The same fault is not logged again; another one is.
    replace("{ ");
    fs::remove_file(&file).expect("remove the keys");
    until("it says so", || proxy.log().contains("No such file"));
    assert_eq!((sent(), answers()), (2, [200, 401]));
    // A key of a kind that this version does not know is skipped, and the others are still used.
    let unknown = json!({"kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AAAA"});
    replace(&json!({"keys": [unknown, set["keys"][1]]}).to_string());
    until("the rotation takes effect", || answers() == [401, 200]);
    assert!(proxy.log().contains("key 1 \"new\""), "{}", proxy.log());
    // The stream is still open after all this.
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&[stream.frame()]), ["a"]);
}
