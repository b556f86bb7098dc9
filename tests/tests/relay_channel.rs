//! The channel that the relay notifies. Anyone who knows its name can read every event, so only granted roles get the
//! name, and it can be changed while events flow.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use tidings_tests::{Cluster, Database, Proxy, Session, SetAtTheEnd, shared, until};

use crate::rights::heard;
use crate::{all_until_now, boards, create_boards, skipped, titles};

fn channel(db: &Database<'_>) -> String {
    db.session().one("SELECT tidings.channel()")
}

/// Rotates the channel and waits until the proxies have switched to it, which their logs show.
fn rotate(db: &Database<'_>, proxies: &[&Proxy]) {
    let moves = |proxy: &Proxy| proxy.log().matches("the relay's channel has a new name").count();
    let before: Vec<_> = proxies.iter().map(|proxy| moves(proxy)).collect();
    db.session().run("SELECT tidings.rotate_channel()");
    for (proxy, before) in proxies.iter().zip(before) {
        until("the proxy has switched", || moves(proxy) > before);
    }
}

#[test]
fn the_channels_name_is_stored_where_nobody_else_can_read_it() {
    let available = "SELECT EXISTS (SELECT FROM pg_available_extensions WHERE name = 'pg_stat_statements')";
    let has_statistics = shared().session("postgres", "postgres").one(available);
    let mut settings =
        vec![("log_statement", "all"), ("log_min_duration_statement", "0"), ("log_parameter_max_length", "-1")];
    if has_statistics {
        settings.push(("shared_preload_libraries", "tidings, pg_stat_statements"));
        settings.push(("pg_stat_statements.track", "all"));
    } else {
        skipped("pg_stat_statements, which this Postgres does not have");
    }
    let cluster = Cluster::start(&settings);
    let db = cluster.database();
    create_boards(&db);
    let spy = db.role("spy");
    let mut dba = db.session();
    dba.run(&format!("GRANT pg_monitor TO {spy}"));
    if has_statistics {
        dba.run("CREATE EXTENSION pg_stat_statements");
    }
    let mut names = vec![channel(&db)];
    let proxy = db.proxy(&["--channel", "plain_*"]);
    let mut session = db.session_as(&spy);
    let mut shown = || {
        let mut shown: String = session.one("SELECT coalesce(string_agg(query, E'\n'), '') FROM pg_stat_activity");
        if has_statistics {
            shown += &session.one::<String>("SELECT coalesce(string_agg(query, E'\n'), '') FROM pg_stat_statements");
        }
        shown += &std::fs::read_to_string(cluster.log_file()).expect("the server's log");
        shown + &proxy.log()
    };
    // The proxy listens already.
    is_not_in(&names[0], &shown());
    let mut sse = proxy.live(&["boards_5"]);
    for n in 1..=2 {
        dba.run(&format!("INSERT INTO board_items VALUES ({n}, 5, 'a')"));
        assert_eq!(titles(&[sse.frame()]), ["a"]);
        rotate(&db, &[&proxy]);
        names.push(channel(&db));
    }
    assert_eq!(names.iter().collect::<BTreeSet<_>>().len(), 3);
    let shown = shown();
    assert!(shown.contains("tidings.listen()") && shown.contains("rotate_channel"), "{shown}");
    assert!(!has_statistics || shown.contains("UPDATE tidings.secret"), "{shown}");
    for name in names {
        is_not_in(&name, &shown);
    }
}

/// Fails if what others can read shows the channel's name.
#[track_caller]
fn is_not_in(name: &str, shown: &str) {
    let line = shown.lines().find(|line| line.contains(name));
    assert!(line.is_none(), "the channel's name is shown: {line:?}");
}

#[test]
fn a_channel_that_is_rotated_under_load_loses_and_repeats_nothing() {
    const ROTATIONS: usize = 5;
    const WRITERS: i64 = 2;
    let db = boards();
    let former = channel(&db);
    // Nobody reads before everything is written.
    let proxies = [(); 2].map(|()| db.proxy(&["--client-queue-bytes", "256MiB"]));
    let mut streams: Vec<_> = proxies.iter().map(|proxy| proxy.live(&["boards_5"])).collect();
    let done = AtomicBool::new(false);
    let written: usize = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| {
                let (mut session, done) = (db.session(), &done);
                scope.spawn(move || {
                    let mut n = 0;
                    while !done.load(Ordering::Relaxed) {
                        session.run(&format!("INSERT INTO board_items VALUES ({}, 5, 'x')", n * WRITERS + writer));
                        n += 1;
                    }
                    n as usize
                })
            })
            .collect();
        let over = SetAtTheEnd(&done);
        for _ in 0..ROTATIONS {
            rotate(&db, &[&proxies[0], &proxies[1]]);
        }
        // Nobody waits for these: the next rotation comes before the relay or the proxies have finished the last.
        let mut dba = db.session();
        for _ in 0..ROTATIONS {
            dba.run("SELECT tidings.rotate_channel()");
        }
        drop(over);
        writers.into_iter().map(|writer| writer.join().expect("a writer")).sum()
    });
    for (sse, proxy) in streams.iter_mut().zip(&proxies) {
        let frames = all_until_now(&db, "boards_5", sse);
        let ids: BTreeSet<i64> = frames.iter().filter_map(|frame| frame.json()["record"]["id"].as_i64()).collect();
        assert_eq!((frames.len(), ids.len()), (written, written), "each event once");
        assert_eq!(proxy.metric("tidings_upstream_reconnects_total"), 0.0);
        assert_eq!(proxy.metric("tidings_resets_total"), 0.0);
    }
    // A session that knows the old name receives nothing more, and events still arrive at once.
    let mut spy: Session = db.session();
    spy.run(&format!("LISTEN probe; LISTEN \"{former}\""));
    db.session().run("INSERT INTO board_items VALUES (-1, 5, 'secret')");
    streams[0].before(|frame| frame.data.contains("secret"));
    assert_eq!(heard(&mut spy, &db), []);
}

#[test]
fn a_rotation_that_is_rolled_back_changes_nothing() {
    let db = boards();
    let before = channel(&db);
    let mut session = db.session();
    session.run("BEGIN; SELECT tidings.rotate_channel(); ROLLBACK");
    assert_eq!(channel(&db), before);
    // A prepared rotation is noticed without a notification.
    let proxy = db.proxy(&[]);
    session.run("BEGIN; SELECT tidings.rotate_channel(); PREPARE TRANSACTION 'rotation'");
    session.run("COMMIT PREPARED 'rotation'");
    until("the proxy has switched", || proxy.log().contains("has a new name"));
}

#[test]
fn a_role_with_the_grant_can_listen_by_name_or_by_function() {
    let db = boards();
    let (role, stranger) = (db.role("granted"), db.role("stranger"));
    db.session().run(&format!(
        "GRANT USAGE ON SCHEMA tidings TO {role}; GRANT EXECUTE ON FUNCTION tidings.channel, tidings.listen TO {role}"
    ));
    let (mut by_name, mut by_function) = (db.session_as(&role), db.session_as(&role));
    let name: String = by_name.one("SELECT tidings.channel()");
    by_name.run(&format!("LISTEN probe; LISTEN \"{name}\""));
    by_function.run("LISTEN probe");
    assert_eq!(by_function.one::<String>("SELECT tidings.listen()"), name);
    // A second call has no further effect.
    by_function.run("SELECT tidings.listen()");
    db.session().run("INSERT INTO board_items VALUES (1, 5, 'heard')");
    db.session().publish("x", "1");
    let proxy = db.proxy(&[]);
    all_until_now(&db, "x", &mut proxy.live(&["x"]));
    let sent = |session: &mut Session| heard(session, &db).iter().filter(|(_, text)| text.contains("heard")).count();
    assert_eq!((sent(&mut by_name), sent(&mut by_function)), (1, 1));
    // The function leaves the old channel when the name has changed.
    db.session().run("SELECT tidings.rotate_channel()");
    let name: String = by_function.one("SELECT tidings.listen()");
    assert_eq!(
        by_function.one::<String>("SELECT string_agg(c, ' ' ORDER BY c = 'probe') FROM pg_listening_channels() c"),
        format!("{name} probe")
    );
    by_function.run("BEGIN READ ONLY; SELECT tidings.listen(); COMMIT");
    for role in [role, db.proxy_role(), stranger] {
        db.session_as(&role).forbidden("SELECT tidings.rotate_channel()");
    }
}
