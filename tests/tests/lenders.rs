//! Rows of one session whose log stores only once what their payloads have in common, although each has a transaction
//! of its own: their events are complete.

use serde_json::json;
use tidings_tests::{Cluster, Database, Session, until};

use crate::log::{Event, Log};
use crate::{create_boards, titles};

/// A segment with an outline of its own.
const WHOLE: i32 = 3;

/// A segment that borrows the outline of an earlier one.
const BORROWING: i32 = 4;

/// A session that inserts rows one by one.
struct Writer {
    session: Session,
    /// The `id` of the next row.
    next: i64,
}

impl Writer {
    /// A session whose rows have ids from `first` on.
    fn new(db: &Database<'_>, first: i64) -> Self {
        Self { session: db.session(), next: first }
    }

    /// Inserts a row, and returns the version of its segment.
    fn insert(&mut self) -> i32 {
        let id = self.next;
        self.next += 1;
        self.session.run(&format!("INSERT INTO board_items VALUES ({id}, 5, 'row {id}')"));
        self.session.one("SELECT get_byte(data, 0) FROM tidings.log ORDER BY stamp DESC LIMIT 1")
    }

    /// Inserts rows until their segments borrow: not before the relay has checked the version of the extension.
    fn borrow(&mut self) {
        until("the session borrows", || self.insert() == BORROWING);
    }

    /// Waits until all rows are in ticks: before that, no retention removes them.
    fn wait_for_ticks(&mut self) {
        until("all rows are in ticks", || self.session.one::<bool>("SELECT waiting_since IS NULL FROM tidings.status"));
    }
}

/// The ids in events, each of which has the whole row.
#[track_caller]
fn ids(events: &[Event]) -> Vec<i64> {
    let id = |event: &Event| {
        let id = event.json()["record"]["id"].as_i64().unwrap_or_else(|| panic!("no row: {event:?}"));
        let row = json!({"id": id, "board_id": 5, "title": format!("row {id}")});
        let whole =
            json!({"schema": "public", "table": "board_items", "type": "INSERT", "record": row, "old_record": null});
        assert_eq!((event.topic.as_str(), event.event.as_str(), event.json()), ("boards_5", "changed", whole));
        id
    };
    events.iter().map(id).collect()
}

fn boards(cluster: &Cluster) -> Database<'_> {
    let db = cluster.database();
    create_boards(&db);
    db
}

#[test]
fn a_session_stores_an_outline_once_and_every_reader_gets_whole_events() {
    let cluster = Cluster::start(&[]);
    let db = boards(&cluster);
    let proxy = db.proxy(&[]);
    let mut sse = proxy.live(&["boards_5"]);
    let mut log = Log::from_here(&db);
    let start: String = db.session().one("SELECT tidings.position()");
    let mut writer = Writer::new(&db, 1);
    writer.borrow();
    let mut other = Writer::new(&db, 1000);
    assert_eq!(other.insert(), WHOLE, "a session borrows only from itself");
    other.borrow();
    let all: Vec<_> = (1..writer.next).chain(1000..other.next).collect();
    assert_eq!(ids(&log.news()), all);
    let frames: Vec<_> = all.iter().map(|_| sse.frame()).collect();
    assert_eq!(titles(&frames), all.iter().map(|id| format!("row {id}")).collect::<Vec<_>>());
    // Whoever reads the log gets segments that need nothing else, and so do proxies of the versions before.
    let mut session = db.session();
    let versions = format!("SELECT DISTINCT get_byte(data, 0) FROM tidings.segments('{start}') WHERE data IS NOT NULL");
    assert_eq!(session.one::<i32>(&versions), WHOLE);
    let counts = "SELECT count(*) = (SELECT count(*) FROM tidings.events WHERE topic = 'boards_5') FROM board_items";
    assert!(session.one::<bool>(counts));
    assert!(session.one::<bool>("SELECT bool_and(tidings.is_readable(data)) FROM tidings.log"));
    // A crash ends all sessions. What they wrote stays whole.
    db.crash();
    let mut writer = Writer::new(&db, 2000);
    assert_eq!(writer.insert(), WHOLE);
    assert!(db.session().one::<bool>(counts.replace("count(*) =", "count(*) - 1 <=").as_str()));
}

#[test]
fn a_transaction_that_does_not_commit_lends_nothing() {
    let cluster = Cluster::start(&[("max_prepared_transactions", "1")]);
    let db = boards(&cluster);
    Writer::new(&db, 1).borrow();
    let mut log = Log::from_here(&db);
    let mut writer = Writer::new(&db, 1000);
    // This fails after it has written its segment: Postgres refuses to empty a table that another one refers to.
    let refused = writer.session.refused(
        "BEGIN;
         CREATE TEMP TABLE emptied (id int PRIMARY KEY) ON COMMIT DELETE ROWS; CREATE TEMP TABLE referring (id int REFERENCES emptied);
         INSERT INTO board_items VALUES (999, 5, 'lost');
         COMMIT",
    );
    assert_eq!(refused.code().code(), "0A000", "{refused}");
    assert_eq!(writer.insert(), WHOLE);
    // A prepared one commits later, in whatever session.
    let mut preparing = Writer::new(&db, 2000);
    preparing.session.run("BEGIN; INSERT INTO board_items VALUES (1999, 5, 'row 1999'); PREPARE TRANSACTION 'p'");
    assert_eq!(preparing.insert(), WHOLE);
    preparing.session.run("COMMIT PREPARED 'p'");
    assert_eq!(preparing.insert(), BORROWING, "from the transaction between them");
    let mut found = ids(&log.news());
    found.sort_unstable();
    assert_eq!(found, [1000, 1999, 2000, 2001]);
}

#[test]
fn a_session_borrows_only_from_what_its_partition_still_has() {
    let cluster = Cluster::start(&[]);
    let db = boards(&cluster);
    let mut writer = Writer::new(&db, 1);
    writer.borrow();
    // As the retention does, only sooner.
    writer.wait_for_ticks();
    writer.session.run("TRUNCATE tidings.log_0");
    let mut log = Log::from_here(&db);
    let next = writer.next;
    assert_eq!((writer.insert(), writer.insert()), (WHOLE, BORROWING));
    // Another file of the same table, with the same rows.
    writer.session.run("VACUUM FULL tidings.log_0");
    assert_eq!((writer.insert(), writer.insert()), (WHOLE, BORROWING));
    // Another outline.
    writer.session.run("ALTER TABLE board_items ADD COLUMN more int; ALTER TABLE board_items DROP COLUMN more");
    writer.insert();
    writer.borrow();
    assert_eq!(ids(&log.news()), (next..writer.next).collect::<Vec<_>>());
}

#[test]
fn a_segment_that_was_borrowed_from_takes_few_others_along_when_it_is_lost() {
    let cluster = Cluster::start(&[]);
    let db = boards(&cluster);
    let mut writer = Writer::new(&db, 1);
    writer.borrow();
    writer.wait_for_ticks();
    // The last segment that begins with an outline of its own.
    let lender = "(SELECT max(stamp) FROM tidings.log WHERE get_byte(data, 0) = 3 AND get_byte(data, 2) = 1)";
    writer.session.run(&format!("UPDATE tidings.log SET data = '\\x03ffffff' WHERE stamp = {lender}"));
    writer.session.run(
        "DO $$ BEGIN FOR i IN 100000 .. 101100 LOOP INSERT INTO board_items VALUES (i, 5, 'row ' || i); COMMIT; END LOOP; END $$",
    );
    let unreadable = "SELECT count(*) FROM tidings.log WHERE NOT tidings.is_readable(data)";
    let mut reader = db.session();
    let lost: i64 = reader.one(unreadable);
    assert!((900..1010).contains(&lost), "{lost} are lost");
    let refused = reader.refused("SELECT FROM tidings.changes('earliest')");
    assert_eq!(refused.code().code(), "XX001", "{refused}");
    // Later ones are not.
    let mut log = Log::from_here(&db);
    let next = writer.next;
    writer.insert();
    assert_eq!(ids(&log.news()), [next]);
}

#[test]
fn a_standby_and_its_successor_read_what_was_borrowed() {
    let cluster = Cluster::start(&[]);
    let db = boards(&cluster);
    let start: String = db.session().one("SELECT tidings.position()");
    let mut writer = Writer::new(&db, 1);
    writer.borrow();
    let standby = cluster.standby();
    writer.insert();
    db.wait_standby(&standby);
    let there = Database::existing(&standby, db.name());
    let read = format!(
        "SELECT count(*) FROM tidings.changes('{start}') WHERE payload LIKE '%\"title\": \"row %' OR payload LIKE '%\"title\":\"row %'"
    );
    // The last row may be there before its tick.
    until("it reads all rows", || there.session().one::<i64>(&read) == writer.next - 1);
    cluster.kill();
    there.session().run("SELECT pg_promote()");
    there.wait_relay();
    let mut successor = Writer::new(&there, 1000);
    assert_eq!(successor.insert(), WHOLE);
    successor.borrow();
    until("everything is in ticks", || there.session().one::<i64>(&read) == writer.next - 1 + successor.next - 1000);
}
