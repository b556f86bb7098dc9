//! Keys that an identity provider publishes: their rotation, and what happens while they can't be had.

use serde_json::{Value, json};
use tidings_tests::application::{Application, Reply};
use tidings_tests::{Proxy, until};

use crate::access::{Team, open, silent_about, status};
use crate::key_set::{by_key, key_set};
use crate::{all_until_now, titles};

const EVENTS: &str = "/events?topic=boards_5";

/// The keys of the set with these numbers.
fn keys(numbers: &[usize]) -> Value {
    let set: Value = serde_json::from_str(include_str!("keys/set.json")).expect("JSON");
    json!({"keys": numbers.iter().map(|n| set["keys"][*n].clone()).collect::<Vec<_>>()})
}

/// Starts a proxy that fetches the keys, without waiting for them.
fn proxy(team: &Team<'_>, publisher: &Application, args: &[&str]) -> Proxy {
    let url = publisher.url("/.well-known/jwks.json?client=tidings");
    Proxy::start_verbose(&team.proxy_url(), &[&["--jwks-url", &url], args].concat())
}

fn fetches(proxy: &Proxy, result: &str) -> f64 {
    proxy.metrics()[&format!("tidings_key_fetches_total{{result=\"{result}\"}}")]
}

/// Waits for up to a minute, because the keys are fetched no more often.
#[test]
fn a_key_that_is_not_known_is_looked_for_once_a_minute() {
    let team = Team::new();
    let publisher = Application::start(|_| Reply::json(&keys(&[0])));
    // With the usual time for an answer: one that came too late would be asked for again.
    let proxy = proxy(&team, &publisher, &[]);
    let (_, [rsa, ec, ..]) = key_set();
    let [rsa, ec] = [rsa, ec].map(|(kid, algorithm, key)| by_key(&team.claims(1), Some(kid), algorithm, &key));
    until("the keys are there", || status(&proxy, EVENTS, &rsa) == 200);
    let mut stream = open(&proxy, "boards_5", &rsa);
    publisher.answer(|_| Reply::json(&keys(&[1])));
    for _ in 0..50 {
        assert_eq!(status(&proxy, EVENTS, &ec), 401, "not so soon after the last time");
    }
    assert_eq!(publisher.count(), 1);
    assert_eq!(publisher.asked()[0].target, "/.well-known/jwks.json?client=tidings");
    until("the rotation is followed", || status(&proxy, EVENTS, &ec) == 200);
    assert_eq!((publisher.count(), status(&proxy, EVENTS, &rsa)), (2, 401));
    team.db.session().run("INSERT INTO board_items VALUES (1, 5, 'a')");
    assert_eq!(titles(&all_until_now(&team.db, "boards_5", &mut stream)), ["a"], "the stream is still open");
    silent_about(&proxy, &[&rsa, &ec]);
}

#[test]
fn until_there_are_keys_nobody_is_admitted_or_denied() {
    let team = Team::new();
    let publisher = Application::start(|_| Reply::Silence);
    let proxy = proxy(&team, &publisher, &["--auth-timeout", "300ms"]);
    let (_, [(kid, algorithm, key), ..]) = key_set();
    let token = by_key(&team.claims(1), Some(kid), algorithm, &key);
    // Each of these is one attempt; the next comes a few seconds later.
    let junk: [(&str, Reply); 4] = [
        ("no answer", Reply::Silence),
        ("more than", Reply::Flood(10 * 1024 * 1024)),
        ("is not a JSON Web Key Set", Reply::Text(200, "<html>".into())),
        ("answered 302", Reply::With(302, format!("Location: {}\r\n", publisher.url("/keys")), String::new())),
    ];
    for (error, reply) in junk {
        publisher.answer(move |_| reply.clone());
        until(error, || proxy.log().contains(error));
        assert_eq!(status(&proxy, EVENTS, &token), 503, "{error}");
    }
    assert!(fetches(&proxy, "failed") >= 4.0 && !publisher.asked().iter().any(|asked| asked.target == "/keys"));
    // A secret in a set that everyone can read is no key.
    let (_, [.., (oct, hs256, secret)]) = key_set();
    let leaked = by_key(&team.claims(1), Some(oct), hs256, &secret);
    publisher.answer(|_| Reply::json(&keys(&[0, 3])));
    until("the keys are there", || status(&proxy, EVENTS, &token) == 200);
    assert_eq!((status(&proxy, EVENTS, &leaked), status(&proxy, EVENTS, "x")), (401, 401));
    publisher.go_down();
    assert_eq!(status(&proxy, EVENTS, &token), 200, "the keys stay");
    assert_eq!(fetches(&proxy, "fetched"), 1.0);
}
