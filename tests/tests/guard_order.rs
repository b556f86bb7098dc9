//! A checker: several writers grant and revoke rights at random beside other changes, while proxies, sessions and the
//! relay are killed. No open stream gets an event between a revocation and the next grant, and nobody misses another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::thread;

use postgres::NoTls;
use tidings_tests::cluster::SUPERUSER;
use tidings_tests::membership::{Membership, PAUSE, SETUP, application, pairs, shares};
use tidings_tests::process::Signal::SIGKILL;
use tidings_tests::process::send;
use tidings_tests::sse::Request;
use tidings_tests::{Cluster, Database, Proxy, SetAtTheEnd, until};

/// Transactions of each writer.
const TRANSACTIONS: usize = 250;

/// Lets writers and clients work while `fault` strikes, and checks what the clients received. A reset is an error
/// unless it `may_reset`.
fn survive(may_reset: bool, fault: impl Fn(&Membership, &Database<'_>, &mut [Proxy; 2], usize) + Sync) {
    let cluster = Cluster::start(&[]);
    let db = cluster.database();
    db.session().run(SETUP);
    let config = cluster.config(db.name(), SUPERUSER);
    let membership = Membership::new(Arc::new(move || config.connect(NoTls).ok()));
    let config = cluster.config(db.name(), SUPERUSER);
    let application = application(Arc::new(move || config.connect(NoTls).ok()));
    let url = application.url("/may");
    let start = || db.proxy(&["--auth-url", &url, "--reauthorize", "1h", "--retry", "100ms"]);
    let mut proxies = [start(), start()];
    let addresses = [proxies[0].address(), proxies[1].address()];
    let mut random = fastrand::Rng::with_seed(crate::seed());
    let (is_over, never) = (AtomicBool::new(false), AtomicBool::new(false));
    thread::scope(|scope| {
        let (membership, never) = (&membership, &never);
        for pair in pairs() {
            let request = Request { cookie: Some(format!("session={}", pair.1)), ..Request::default() };
            scope.spawn(move || membership.follow(&addresses, pair, &request, may_reset, never));
        }
        let writers: Vec<_> = shares()
            .into_iter()
            .map(|own| {
                let random = random.fork();
                scope.spawn(move || membership.write(&own, random, |turn| turn < TRANSACTIONS))
            })
            .collect();
        let (striking, over) = (&mut proxies, &is_over);
        let (db, fault) = (&db, &fault);
        let striker = scope.spawn(move || {
            for round in 0.. {
                if over.load(SeqCst) {
                    return;
                }
                fault(membership, db, striking, round);
            }
        });
        let end = SetAtTheEnd(&is_over);
        writers.into_iter().for_each(|writer| writer.join().expect("a writer"));
        drop(end);
        striker.join().expect("the faults");
        membership.close();
    });
    let behind = membership.check().unwrap_or_else(|fault| panic!("{fault}"));
    assert!(behind > 100, "only {behind} events were behind a revocation: this says little");
}

#[test]
fn nothing_between_a_revocation_and_the_next_grant_reaches_an_open_stream() {
    survive(false, |_, _, _, _| thread::sleep(PAUSE));
}

#[test]
fn nothing_reaches_it_while_proxies_their_sessions_and_the_relay_are_killed() {
    // A crash may take back the tick of a client's id. The client is reset if it comes with it to a proxy that did not
    // hear that tick, or has been started again since.
    survive(true, |membership, db, proxies, round| {
        match round % 4 {
            0 => {
                let proxy = &mut proxies[round / 4 % 2];
                proxy.kill();
                proxy.restart();
            }
            1 => kill_sessions(membership, db),
            2 => thread::sleep(20 * PAUSE),
            _ if round % 8 == 3 => kill_relay(db),
            _ => thread::sleep(20 * PAUSE),
        }
        thread::sleep(10 * PAUSE);
    });
}

/// Terminates the proxies' sessions.
fn kill_sessions(membership: &Membership, db: &Database<'_>) {
    let sql = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{}_proxy'", db.name());
    membership.run(&mut membership.session(), &sql);
}

/// Ends the relay by SIGKILL, upon which Postgres restarts all sessions, and waits for its successor.
fn kill_relay(db: &Database<'_>) {
    let Some(old) = db.relay() else { return };
    send(old, SIGKILL);
    until("a new relay runs", || db.relay().is_some_and(|pid| pid != old));
}
