//! Partitions, and the watches of their partitioned tables.

use tidings_tests::Session;

use crate::log::{kinds, with};

const PARTS: &str = "CREATE TABLE whole (id int, half int) PARTITION BY LIST (half);
                     CREATE TABLE part PARTITION OF whole FOR VALUES IN (0);
                     CREATE TABLE other (id int, half int);";

/// Runs a statement that must be refused because it would make a second watch of the same name.
#[track_caller]
fn refused_as_second(session: &mut Session, sql: &str, names: &[&str]) {
    let error = session.refused(sql);
    assert_eq!(error.code().code(), "42710", "{error}");
    assert!(names.iter().all(|name| error.message().contains(name)), "{error}");
    assert!(!error.message().contains("tidings_default"), "of a watch, not of a trigger: {error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("another name")), "{error:?}");
}

#[test]
fn a_second_watch_of_the_same_name_is_refused_with_an_error_about_watches() {
    let (db, mut log) = with(PARTS);
    let mut session = db.session();
    session.run("SELECT tidings.watch('whole', topic => 'whole')");
    refused_as_second(&mut session, "SELECT tidings.watch('part', topic => 'part')", &["part", "whole", "default"]);
    session.run("SELECT tidings.watch('other', topic => 'other')");
    let attach = "ALTER TABLE whole ATTACH PARTITION other FOR VALUES IN (1)";
    refused_as_second(&mut session, attach, &["default"]);
    session.run(&format!(
        "SELECT tidings.unwatch('other'); {attach}; SELECT tidings.watch('other', topic => 'other', name => 'own')"
    ));
    // The watch of the partitioned table can be replaced; the partitions do not prevent that.
    session.run("SELECT tidings.watch('whole', topic => 'all')");
    log.skip_to_now();
    session.run("INSERT INTO whole VALUES (1, 0), (2, 1)");
    assert_eq!(kinds(&log.news()), ["INSERT all", "INSERT all", "INSERT other"]);
    // And the other way round.
    session.run("SELECT tidings.unwatch('whole'), tidings.watch('part', topic => 'part')");
    refused_as_second(&mut session, "SELECT tidings.watch('whole', topic => 'all')", &["part", "whole", "default"]);
    session.run("SELECT tidings.watch('whole', topic => 'all', name => 'whole')");
    session.run("SELECT tidings.watch('part', topic => 'truncated', operations => '{TRUNCATE}', name => 'whole')");
}

/// The number of compiled watches that a session keeps.
fn kept(session: &mut Session) -> i64 {
    session.one("SELECT count(*) FROM pg_backend_memory_contexts WHERE name = 'tidings watch'")
}

#[test]
fn partitions_share_a_compiled_watch_and_the_number_of_different_ones_is_bounded() {
    let (db, mut log) = with(
        "CREATE TABLE whole (id int, part int) PARTITION BY LIST (part);
         DO $$ BEGIN
             FOR i IN 1..300 LOOP EXECUTE format('CREATE TABLE p%s PARTITION OF whole FOR VALUES IN (%s)', i, i); END LOOP;
         END $$;
         CREATE TABLE odd (part int, gone int, id int); ALTER TABLE odd DROP gone;
         ALTER TABLE whole ATTACH PARTITION odd FOR VALUES IN (301);
         SELECT tidings.watch('whole', topic => 'w{part}');",
    );
    let mut session = db.session();
    session.run("INSERT INTO whole SELECT i, i FROM generate_series(1, 301) i");
    assert_eq!(kept(&mut session), 2, "one of most, one of the odd one");
    let events = log.news();
    assert_eq!(events.len(), 301);
    for event in events {
        assert_eq!(event.topic, format!("w{}", event.json()["record"]["id"]));
        assert_eq!(event.json()["table"], "whole");
    }
    // A partition that changes is no longer shared.
    session
        .run("ALTER TABLE whole ADD title text; INSERT INTO whole SELECT i, i, 'new' FROM generate_series(1, 301) i");
    assert!(log.news().iter().all(|event| event.json()["record"]["title"] == "new"));
    // Separate tables, more than a session keeps.
    session.run(
        "DO $$ BEGIN
             FOR i IN 1..510 LOOP
                 EXECUTE format('CREATE TABLE t%s (id int)', i);
                 EXECUTE format('CREATE TRIGGER tidings_default AFTER INSERT ON t%s FOR EACH ROW EXECUTE FUNCTION tidings.capture(''topic=t'')', i);
             END LOOP;
         END $$",
    );
    session
        .run("DO $$ BEGIN FOR i IN 1..510 LOOP EXECUTE format('INSERT INTO t%s VALUES (%s)', i, i); END LOOP; END $$");
    let count = kept(&mut session);
    assert!((1..=500).contains(&count), "{count}");
    assert_eq!(log.news().len(), 510);
}
