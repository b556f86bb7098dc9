//! The order of one transaction's events: the order in which its rows were changed, whatever the order in which
//! triggers fire.

use std::collections::BTreeMap;
use std::io::Write;

use serde_json::Value;
use tidings_tests::{Database, Session, shared};

use crate::log::{Event, Log, with};

const NEST: &str = "CREATE TABLE nest (id int PRIMARY KEY, n int, pad text);
                    SELECT tidings.watch('nest', topic => 'nest');
                    CREATE FUNCTION bump() RETURNS trigger LANGUAGE plpgsql AS
                    $$ BEGIN UPDATE nest SET n = NEW.n + 1 WHERE id = NEW.id; RETURN NULL; END $$;";

/// Operation, key and value of each event, or what was published.
#[track_caller]
fn sent(events: &[Event]) -> Vec<String> {
    let sent = |event: &Event| {
        let json = event.json();
        let Some(kind) = json["type"].as_str() else { return format!("published {json}") };
        let row = if json["record"].is_null() { &json["old_record"] } else { &json["record"] };
        if row.is_null() { kind.to_owned() } else { format!("{kind} {} {}", row["id"], row["n"]) }
    };
    events.iter().map(sent).collect()
}

fn nest(more: &str) -> (Database<'static>, Log) {
    let (db, mut log) = with(&format!("{NEST} {more}"));
    log.skip_to_now();
    (db, log)
}

fn segments(session: &mut Session) -> i64 {
    session.one("SELECT count(*) FROM tidings.log")
}

#[test]
fn what_an_after_trigger_changes_comes_after_the_row_it_was_fired_for() {
    // Its name sorts before or after the watch's trigger.
    for name in ["a_bump", "z_bump"] {
        let (db, mut log) =
            nest(&format!("CREATE TRIGGER {name} AFTER INSERT ON nest FOR EACH ROW EXECUTE FUNCTION bump()"));
        let mut session = db.session();
        let before = segments(&mut session);
        session.run("INSERT INTO nest VALUES (1, 10)");
        assert_eq!(segments(&mut session) - before, 1, "in one row of the log");
        assert_eq!(sent(&log.news()), ["INSERT 1 10", "UPDATE 1 11"], "{name}");
        session.run("INSERT INTO nest VALUES (2, 20), (3, 30); INSERT INTO nest VALUES (4, 40)");
        let expected = ["INSERT 2 20", "INSERT 3 30", "UPDATE 2 21", "UPDATE 3 31", "INSERT 4 40", "UPDATE 4 41"];
        assert_eq!(sent(&log.news()), expected, "{name}");
        copy(&mut session, "5\t50\n6\t60\n");
        assert_eq!(sent(&log.news()), ["INSERT 5 50", "INSERT 6 60", "UPDATE 5 51", "UPDATE 6 61"], "{name}");
    }
}

#[track_caller]
fn copy(session: &mut Session, rows: &str) {
    let mut copy = session.client().copy_in("COPY nest (id, n) FROM STDIN").expect("COPY begins");
    copy.write_all(rows.as_bytes()).expect("rows are taken");
    copy.finish().expect("COPY ends");
}

#[test]
fn a_row_that_a_trigger_restores_exists_at_the_end() {
    let (db, mut log) = nest(
        "CREATE FUNCTION put_back() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO nest VALUES (OLD.id, OLD.n + 1); RETURN NULL; END $$;
         INSERT INTO nest VALUES (1, 10), (2, 20);
         CREATE TRIGGER a_put_back AFTER DELETE ON nest FOR EACH ROW EXECUTE FUNCTION put_back();",
    );
    log.skip_to_now();
    db.session().run("DELETE FROM nest");
    assert_eq!(sent(&log.news()), ["DELETE 1 10", "DELETE 2 20", "INSERT 1 11", "INSERT 2 21"]);
}

#[test]
fn a_key_that_a_statement_has_freed_may_be_used_again_before_its_next_row() {
    let (db, mut log) = nest(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO nest VALUES (OLD.id - 1, OLD.n + 1) ON CONFLICT DO NOTHING; RETURN coalesce(NEW, OLD); END $$;
         CREATE TRIGGER again BEFORE UPDATE OR DELETE ON nest FOR EACH ROW EXECUTE FUNCTION again();
         INSERT INTO nest VALUES (1, 10), (2, 20), (3, 30);",
    );
    log.skip_to_now();
    let mut session = db.session();
    session.run("DELETE FROM nest");
    let expected = ["INSERT 0 11", "DELETE 1 10", "INSERT 1 21", "DELETE 2 20", "INSERT 2 31", "DELETE 3 30"];
    assert_eq!(sent(&log.news()), expected);
    session.run("UPDATE nest SET id = id + 100 WHERE id > 0");
    let expected = ["DELETE 1 21", "INSERT 1 32", "INSERT 101 21", "UPDATE 102 31"];
    assert_eq!(sent(&log.news()), expected);
    session.run("INSERT INTO nest VALUES (101, 0), (102, 0) ON CONFLICT (id) DO UPDATE SET id = nest.id + 100");
    let expected = ["INSERT 100 22", "DELETE 101 21", "INSERT 101 32", "INSERT 201 21", "UPDATE 202 31"];
    assert_eq!(sent(&log.news()), expected);
}

#[test]
fn a_row_whose_old_key_is_used_again_gets_its_new_key_after_the_row_that_had_it() {
    let (db, mut log) = nest(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN IF OLD.id = 10 THEN INSERT INTO nest VALUES (1, 99); END IF; RETURN NEW; END $$;
         CREATE TRIGGER again BEFORE UPDATE ON nest FOR EACH ROW EXECUTE FUNCTION again();
         INSERT INTO nest VALUES (2, 20), (1, 10), (10, 100);",
    );
    log.skip_to_now();
    let mut session = db.session();
    session.run("SELECT tidings.watch('nest', topic => 'updates', operations => '{UPDATE}', name => 'updates')");
    session.run("UPDATE nest SET id = id + 1");
    let (updates, all): (Vec<_>, Vec<_>) = log.news().into_iter().partition(|event| event.topic == "updates");
    assert_eq!(sent(&all), ["DELETE 1 10", "INSERT 1 99", "UPDATE 3 20", "INSERT 2 10", "UPDATE 11 100"]);
    assert_eq!(sent(&updates), ["UPDATE 3 20", "UPDATE 2 10", "UPDATE 11 100"]);
}

#[test]
fn a_key_that_was_used_again_in_a_savepoint_that_was_rolled_back_moves_no_row() {
    let (db, mut log) = nest(
        "CREATE FUNCTION in_vain() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN
              BEGIN
                DELETE FROM nest WHERE id = 1;
                INSERT INTO nest VALUES (1, 5);
                RAISE division_by_zero;
              EXCEPTION WHEN division_by_zero THEN NULL;
              END;
              DELETE FROM nest WHERE id = 2;
              RETURN NEW;
            END $$;
         CREATE TRIGGER in_vain BEFORE UPDATE ON nest FOR EACH ROW EXECUTE FUNCTION in_vain();
         INSERT INTO nest VALUES (1, 10), (2, 20);",
    );
    log.skip_to_now();
    db.session().run("UPDATE nest SET id = 2 WHERE id = 1");
    assert_eq!(sent(&log.news()), ["DELETE 1 10", "DELETE 2 20", "INSERT 2 10"]);
}

/// The rows of a client that finds each by the number `id` and applies events one by one.
fn applied(events: &[Event]) -> BTreeMap<i64, i64> {
    let mut rows = BTreeMap::new();
    let id = |row: &Value| row["id"].to_string().trim_matches('"').parse::<f64>().map(|id| id as i64);
    for json in events.iter().map(Event::json) {
        if let Ok(id) = id(&json["old_record"]) {
            rows.remove(&id);
        }
        if let Ok(id) = id(&json["record"]) {
            rows.insert(id, json["record"]["n"].as_i64().expect("a number"));
        }
    }
    rows
}

#[test]
fn a_key_of_any_kind_may_be_used_again() {
    for (columns, one_less) in [
        // The same number, written in another way.
        ("id numeric PRIMARY KEY, n int", "((OLD.id - 1) || '.0')::numeric"),
        ("id text COLLATE other PRIMARY KEY, n int", "(OLD.id::int - 1)::text"),
        ("id int UNIQUE NOT NULL, n int", "OLD.id - 1"),
        ("id int UNIQUE, n int, other serial PRIMARY KEY", "OLD.id - 1"),
        ("id int UNIQUE, n int, PRIMARY KEY (id, n)", "OLD.id - 1"),
        ("id int PRIMARY KEY DEFERRABLE, n int", "OLD.id - 1"),
        ("id int, n int", "OLD.id - 1"),
    ] {
        let (db, mut log) = with(&format!(
            "CREATE COLLATION other FROM \"C\";
             CREATE TABLE nest ({columns});
             SELECT tidings.watch('nest', topic => 'nest');
             CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
             $$ BEGIN INSERT INTO nest (id, n) VALUES ({one_less}, OLD.n + 10); RETURN OLD; END $$;
             CREATE TRIGGER again BEFORE DELETE ON nest FOR EACH ROW EXECUTE FUNCTION again();
             INSERT INTO nest (id, n) SELECT i, i FROM generate_series(1, 3) i",
        ));
        let mut session = db.session();
        session.run("DELETE FROM nest");
        let table = session.all("SELECT id::int::bigint, n::bigint FROM nest", &[]);
        assert_eq!(table.len(), 3, "{columns}");
        let table = table.into_iter().map(|row| (row.get(0), row.get(1))).collect();
        assert_eq!(applied(&log.news()), table, "{columns}");
    }
}

#[test]
fn more_keys_than_are_remembered_are_used_again() {
    // Each row's trigger uses the key of the row before; another table's rows have used up the memory.
    let (db, mut log) = nest(
        "CREATE TABLE audit (id int PRIMARY KEY, n int);
         SELECT tidings.watch('audit', topic => 'audit');
         CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN
              INSERT INTO audit VALUES (OLD.id, 0);
              INSERT INTO nest VALUES (OLD.id - 1, OLD.n + 1);
              RETURN OLD;
            END $$;
         CREATE TRIGGER again BEFORE DELETE ON nest FOR EACH ROW EXECUTE FUNCTION again();
         INSERT INTO nest SELECT i, i FROM generate_series(1, 7000) i;",
    );
    log.skip_to_now();
    let mut session = db.session();
    session.run("DELETE FROM nest");
    let mut events = log.news();
    events.retain(|event| event.topic == "nest");
    let table = session.all("SELECT id::bigint, n::bigint FROM nest", &[]);
    assert_eq!(applied(&events), table.into_iter().map(|row| (row.get(0), row.get(1))).collect());
}

#[test]
fn more_rows_than_are_remembered_are_replaced_by_their_own_statement() {
    const ROWS: i64 = 25_000;
    let (db, mut log) = nest(
        "CREATE FUNCTION replace() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN DELETE FROM nest WHERE id = NEW.id; RETURN NEW; END $$;
         CREATE TRIGGER replace BEFORE INSERT ON nest FOR EACH ROW EXECUTE FUNCTION replace();",
    );
    db.session().run(&format!("INSERT INTO nest SELECT i % 1000, i FROM generate_series(1, {ROWS}) i"));
    assert_eq!(applied(&log.news()), (ROWS - 999..=ROWS).map(|n| (n % 1000, n)).collect());
}

#[test]
fn what_a_trigger_before_truncate_changes_comes_before_it() {
    let (db, mut log) = nest(
        "SELECT tidings.watch('nest', topic => 'nest', operations => '{TRUNCATE}', name => 'all');
         CREATE FUNCTION write() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO nest VALUES (5, 50); UPDATE nest SET id = 6 WHERE id = 5; RETURN NULL; END $$;
         CREATE TRIGGER write BEFORE TRUNCATE ON nest FOR EACH STATEMENT EXECUTE FUNCTION write();",
    );
    db.session().run("TRUNCATE nest");
    assert_eq!(sent(&log.news()), ["INSERT 5 50", "UPDATE 6 50", "TRUNCATE"]);
}

#[test]
fn what_a_trigger_before_truncate_changes_in_partitions_comes_before_it() {
    let (db, mut log) = with(
        "CREATE TABLE whole (id int PRIMARY KEY, n int) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (100);
         SELECT tidings.watch('whole', topic => 'whole', operations => '{INSERT,UPDATE,DELETE,TRUNCATE}');
         CREATE FUNCTION write() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO whole VALUES (5, 50); UPDATE whole SET id = 6 WHERE id = 5; RETURN NULL; END $$;
         CREATE TRIGGER write BEFORE TRUNCATE ON whole FOR EACH STATEMENT EXECUTE FUNCTION write();",
    );
    db.session().run("TRUNCATE whole");
    assert_eq!(sent(&log.news()), ["INSERT 5 50", "UPDATE 6 50", "TRUNCATE"]);
}

#[test]
fn what_a_before_trigger_changes_comes_before_the_row_it_was_fired_for() {
    let (db, mut log) = nest(
        "CREATE FUNCTION replace() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN DELETE FROM nest WHERE id = NEW.id; RETURN NEW; END $$;
         CREATE TRIGGER replace BEFORE INSERT ON nest FOR EACH ROW EXECUTE FUNCTION replace();
         INSERT INTO nest VALUES (1, 10);",
    );
    log.skip_to_now();
    let mut session = db.session();
    session.run("INSERT INTO nest VALUES (1, 11)");
    assert_eq!(sent(&log.news()), ["DELETE 1 10", "INSERT 1 11"]);
    // A row of the same statement.
    session.run("INSERT INTO nest VALUES (1, 12), (1, 13), (2, 20)");
    assert_eq!(sent(&log.news()), ["DELETE 1 11", "INSERT 1 12", "DELETE 1 12", "INSERT 1 13", "INSERT 2 20"]);
    copy(&mut session, "1\t14\n2\t21\n2\t22\n");
    let expected = ["DELETE 1 13", "DELETE 2 20", "INSERT 1 14", "INSERT 2 21", "DELETE 2 21", "INSERT 2 22"];
    assert_eq!(sent(&log.news()), expected);
}

#[test]
fn what_a_function_in_sql_changes_comes_before_the_row_for_which_it_is_called() {
    let (db, mut log) = nest(
        "CREATE FUNCTION gone(i int) RETURNS int LANGUAGE sql AS $$ DELETE FROM nest WHERE id = i RETURNING id $$;
         INSERT INTO nest VALUES (1, 10);",
    );
    log.skip_to_now();
    let mut session = db.session();
    session.run("INSERT INTO nest SELECT gone(1), 11");
    assert_eq!(sent(&log.news()), ["DELETE 1 10", "INSERT 1 11"]);
    session.run(
        "CREATE FUNCTION replace() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN NEW.n := NEW.n + coalesce(gone(NEW.id), 0); RETURN NEW; END $$;
         CREATE TRIGGER replace BEFORE INSERT ON nest FOR EACH ROW EXECUTE FUNCTION replace();
         INSERT INTO nest VALUES (1, 20)",
    );
    assert_eq!(sent(&log.news()), ["DELETE 1 11", "INSERT 1 21"]);
}

#[test]
fn positions_that_a_before_trigger_shifts_end_up_correct() {
    let (db, mut log) = nest(
        "CREATE FUNCTION shift() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN UPDATE nest SET n = n + 1 WHERE n >= NEW.n; RETURN NEW; END $$;
         CREATE TRIGGER shift BEFORE INSERT ON nest FOR EACH ROW EXECUTE FUNCTION shift();
         SELECT tidings.watch('nest', topic => 'again', name => 'again');",
    );
    db.session().run("INSERT INTO nest VALUES (1, 1), (2, 1), (3, 1)");
    let expected = ["INSERT 1 1", "UPDATE 1 2", "INSERT 2 1", "UPDATE 1 3", "UPDATE 2 2", "INSERT 3 1"];
    // Updates of one command may come in any order of rows.
    let in_order = |topic: &str, events: &[Event]| {
        let mut sent: Vec<String> =
            sent(&events.iter().filter(|event| event.topic == topic).cloned().collect::<Vec<_>>());
        sent[3..5].sort();
        sent
    };
    let events = log.news();
    assert_eq!(in_order("nest", &events), expected);
    assert_eq!(in_order("again", &events), expected, "each watch has its own events");
}

#[test]
fn what_before_and_after_triggers_change_comes_before_and_after_the_row() {
    let (db, mut log) = nest(
        "CREATE FUNCTION add_one() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN INSERT INTO nest VALUES (NEW.id + 100, 0); PERFORM tidings.publish('nest', '0'); RETURN NEW; END $$;
         CREATE TRIGGER a_bump AFTER INSERT ON nest FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION bump();
         CREATE TRIGGER add_one BEFORE INSERT ON nest FOR EACH ROW WHEN (pg_trigger_depth() = 0) EXECUTE FUNCTION add_one();",
    );
    let mut session = db.session();
    session.run("INSERT INTO nest VALUES (1, 10), (2, 20)");
    let expected =
        "INSERT 101 0, published 0, INSERT 102 0, published 0, INSERT 1 10, INSERT 2 20, UPDATE 1 11, UPDATE 2 21";
    assert_eq!(sent(&log.news()).join(", "), expected);
    // It is not specified where the rows of a COPY end and its triggers begin, but each row has its place.
    copy(&mut session, "3\t30\n4\t40\n");
    let expected =
        "INSERT 103 0, published 0, INSERT 104 0, published 0, INSERT 3 30, UPDATE 3 31, INSERT 4 40, UPDATE 4 41";
    assert_eq!(sent(&log.news()).join(", "), expected);
}

#[test]
fn what_a_trigger_before_a_statement_changes_comes_before_the_rows_of_a_copy() {
    let (db, mut log) = nest(
        "CREATE TABLE whole (id int, n int, PRIMARY KEY (id)) PARTITION BY RANGE (id);
         CREATE TABLE part PARTITION OF whole FOR VALUES FROM (0) TO (100);
         SELECT tidings.watch('whole', topic => 'whole');
         CREATE FUNCTION empty() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN EXECUTE format('DELETE FROM %I', TG_TABLE_NAME); RETURN NULL; END $$;
         CREATE TRIGGER a_bump AFTER INSERT ON nest FOR EACH ROW EXECUTE FUNCTION bump();
         INSERT INTO nest VALUES (1, 10);
         INSERT INTO whole VALUES (1, 10);
         CREATE TRIGGER empty BEFORE INSERT ON nest FOR EACH STATEMENT EXECUTE FUNCTION empty();
         CREATE TRIGGER empty BEFORE INSERT ON whole FOR EACH STATEMENT EXECUTE FUNCTION empty();",
    );
    log.skip_to_now();
    let mut session = db.session();
    copy(&mut session, "1\t20\n2\t30\n");
    assert_eq!(sent(&log.news()), ["DELETE 1 11", "INSERT 1 20", "UPDATE 1 21", "INSERT 2 30", "UPDATE 2 31"]);
    let mut partitions = session.client().copy_in("COPY whole FROM STDIN").expect("COPY begins");
    partitions.write_all(b"1\t20\n").expect("rows are taken");
    partitions.finish().expect("COPY ends");
    assert_eq!(sent(&log.news()), ["DELETE 1 10", "INSERT 1 20"]);
}

#[test]
fn cascades_publications_and_truncations_come_in_order() {
    let (db, mut log) = nest(
        "CREATE TABLE kid (id int PRIMARY KEY, n int REFERENCES nest ON DELETE CASCADE);
         SELECT tidings.watch('kid', topic => 'kid');
         CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS
         $$ BEGIN
              PERFORM tidings.publish('nest', to_jsonb(TG_ARGV[0]));
              IF TG_OP = 'TRUNCATE' THEN INSERT INTO nest VALUES (9, 90); END IF;
              RETURN NULL;
            END $$;
         CREATE TRIGGER a_say AFTER INSERT ON kid FOR EACH ROW EXECUTE FUNCTION say('kid');
         CREATE TRIGGER a_truncated AFTER TRUNCATE ON nest FOR EACH STATEMENT EXECUTE FUNCTION say('truncated');
         SELECT tidings.watch('nest', topic => 'nest', operations => '{TRUNCATE}', name => 'all');
         INSERT INTO nest VALUES (1, 10), (2, 20);",
    );
    log.skip_to_now();
    let mut session = db.session();
    session.run("SELECT tidings.publish('nest', '0'); INSERT INTO kid VALUES (1, 1), (2, 2); SELECT tidings.publish('nest', '1')");
    let expected = ["published 0", "INSERT 1 1", "INSERT 2 2", "published \"kid\"", "published \"kid\"", "published 1"];
    assert_eq!(sent(&log.news()), expected);
    session.run("DELETE FROM nest");
    assert_eq!(sent(&log.news()), ["DELETE 1 10", "DELETE 2 20", "DELETE 1 1", "DELETE 2 2"]);
    session
        .run("BEGIN; INSERT INTO nest VALUES (1, 10); TRUNCATE nest CASCADE; INSERT INTO nest VALUES (1, 11); COMMIT");
    let expected = ["INSERT 1 10", "TRUNCATE", "published \"truncated\"", "INSERT 9 90", "INSERT 1 11"];
    assert_eq!(sent(&log.news()), expected);
}

#[test]
fn rows_that_are_flushed_early_come_in_order_too() {
    const ROWS: usize = 300;
    // Kilobytes a row: many times what a buffer holds.
    let (db, mut log) = nest("CREATE TRIGGER a_bump AFTER INSERT ON nest FOR EACH ROW EXECUTE FUNCTION bump()");
    db.session().run(&format!(
        "BEGIN; INSERT INTO nest VALUES (0, 0);
         INSERT INTO nest SELECT i, i * 10, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 200 + i - i))
         FROM generate_series(1, {ROWS}) i;
         SAVEPOINT s; INSERT INTO nest VALUES (1000, 0); COMMIT"
    ));
    let mut expected = vec!["INSERT 0 0".to_owned(), "UPDATE 0 1".to_owned()];
    expected.extend((1..=ROWS).map(|i| format!("INSERT {i} {}", i * 10)));
    expected.extend((1..=ROWS).map(|i| format!("UPDATE {i} {}", i * 10 + 1)));
    expected.extend(["INSERT 1000 0".to_owned(), "UPDATE 1000 1".to_owned()]);
    let events = log.news();
    assert_eq!(sent(&events), expected);
    assert!(segments(&mut db.session()) > 10, "written early, or this test proves nothing");
    let tick = |event: &Event| event.position.split('-').next().map(str::to_owned);
    assert!(events.iter().all(|event| tick(event) == tick(&events[0])), "one transaction, one tick");
}

/// Tables whose triggers do random things, three levels deep.
const ANYTHING: &str = "
CREATE TABLE nodes (id int PRIMARY KEY, n int NOT NULL, pad text);
CREATE TABLE kids (id int PRIMARY KEY, node int REFERENCES nodes ON DELETE CASCADE ON UPDATE CASCADE, n int NOT NULL, pad text);
CREATE TABLE parts (id int, half int, n int NOT NULL, PRIMARY KEY (id, half)) PARTITION BY LIST (half);
CREATE TABLE parts_0 PARTITION OF parts FOR VALUES IN (0);
CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1);
SELECT tidings.watch(t, topic => 'all', old_record => 'full') FROM unnest('{nodes,kids,parts}'::regclass[]) t;

CREATE FUNCTION pad() RETURNS text LANGUAGE sql VOLATILE AS
$$ SELECT string_agg(md5(random()::text), '') FROM generate_series(1, CASE WHEN random() < 0.3 THEN 900 ELSE 1 END) $$;
CREATE FUNCTION any_id() RETURNS int LANGUAGE sql VOLATILE AS $$ SELECT (random() * 9)::int $$;

CREATE FUNCTION change() RETURNS int LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    dice int := (random() * 11)::int;
    a    int := any_id();
    b    int := any_id();
BEGIN
    IF random() < 0.1 THEN
        BEGIN
            PERFORM change();
            RAISE division_by_zero;
        EXCEPTION WHEN division_by_zero THEN NULL;
        END;
    END IF;
    CASE dice
        WHEN 0 THEN UPDATE nodes SET n = n + 1, pad = pad() WHERE id BETWEEN a AND b;
        WHEN 1 THEN DELETE FROM nodes WHERE id = a;
        WHEN 2 THEN UPDATE kids SET n = n + 1 WHERE node = a;
        WHEN 3 THEN DELETE FROM kids WHERE id IN (a, b);
        WHEN 4 THEN INSERT INTO nodes VALUES (a, 0, pad()), (b, 0, pad()) ON CONFLICT DO NOTHING;
        WHEN 5 THEN INSERT INTO nodes VALUES (a, 0, pad()) ON CONFLICT (id) DO UPDATE SET n = nodes.n + 10;
        WHEN 6 THEN UPDATE nodes SET id = a WHERE id = b AND NOT EXISTS (SELECT FROM nodes WHERE id = a);
        WHEN 7 THEN INSERT INTO kids SELECT any_id(), id, 0, pad() FROM nodes WHERE id >= a LIMIT 1 ON CONFLICT DO NOTHING;
        WHEN 8 THEN UPDATE parts SET half = 1 - half WHERE id = a AND NOT EXISTS (SELECT FROM parts p WHERE p.id = a AND p.half <> parts.half);
        WHEN 9 THEN INSERT INTO parts VALUES (a, b % 2, 0) ON CONFLICT DO NOTHING;
        WHEN 10 THEN
            MERGE INTO nodes USING (SELECT i FROM generate_series(least(a, b), greatest(a, b)) i) s ON id = i
            WHEN MATCHED AND i % 2 = 0 THEN DELETE
            WHEN MATCHED THEN UPDATE SET n = n + 100
            WHEN NOT MATCHED THEN INSERT VALUES (i, 1, '');
        ELSE
            WITH gone AS (DELETE FROM nodes WHERE id = a RETURNING id) INSERT INTO parts SELECT id + 100, 0, 0 FROM gone ON CONFLICT DO NOTHING;
    END CASE;
    RETURN 0;
END $$;

CREATE FUNCTION act() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF pg_trigger_depth() <= 3 AND random() < 0.3 THEN
        IF random() < 0.5 THEN
            BEGIN PERFORM change(); EXCEPTION WHEN OTHERS THEN NULL; END;
        ELSE
            PERFORM change();
        END IF;
    END IF;
    RETURN coalesce(NEW, OLD);
END $$;

CREATE TRIGGER a_before BEFORE INSERT OR UPDATE OR DELETE ON nodes FOR EACH ROW EXECUTE FUNCTION act();
CREATE TRIGGER a_after AFTER INSERT OR UPDATE OR DELETE ON nodes FOR EACH ROW EXECUTE FUNCTION act();
CREATE TRIGGER z_after AFTER INSERT OR UPDATE OR DELETE ON nodes FOR EACH ROW EXECUTE FUNCTION act();
CREATE TRIGGER a_before BEFORE INSERT ON kids FOR EACH ROW EXECUTE FUNCTION act();
CREATE TRIGGER a_after AFTER INSERT OR UPDATE OR DELETE ON kids FOR EACH ROW EXECUTE FUNCTION act();
CREATE TRIGGER a_after AFTER INSERT OR UPDATE OR DELETE ON parts FOR EACH ROW EXECUTE FUNCTION act();
CREATE TRIGGER statement BEFORE INSERT OR UPDATE ON nodes FOR EACH STATEMENT EXECUTE FUNCTION act();
CREATE TRIGGER z_statement AFTER INSERT OR UPDATE ON nodes FOR EACH STATEMENT EXECUTE FUNCTION act();
CREATE CONSTRAINT TRIGGER deferred AFTER INSERT OR DELETE ON kids DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION act();
";

/// The rows of a client that applies events one by one and checks that each is possible.
#[derive(Default)]
struct Client {
    rows: BTreeMap<String, Value>,
}

impl Client {
    fn apply(&mut self, event: &Event) -> Result<(), String> {
        let json = event.json();
        let key = |row: &Value| format!("{} {} {}", json["table"], row["id"], row["half"]);
        let (new, old) = (&json["record"], &json["old_record"]);
        if !old.is_null() {
            let had = self.rows.remove(&key(old));
            if had.as_ref() != Some(old) {
                return Err(format!("it has {had:?}"));
            }
        }
        if !new.is_null()
            && let Some(had) = self.rows.insert(key(new), new.clone())
        {
            return Err(format!("it has {had:?} already"));
        }
        Ok(())
    }
}

/// One transaction of a few statements, some of which fail, some of which are rolled back.
fn anything(session: &mut Session, random: &mut fastrand::Rng) {
    session.run(&format!("BEGIN; SELECT setseed({})", random.f64()));
    for _ in 0..random.usize(1..6) {
        let statement = match random.u32(..7) {
            0 => {
                "INSERT INTO nodes SELECT DISTINCT any_id(), change(), pad() FROM generate_series(1, 4) ON CONFLICT DO NOTHING"
            }
            1 => {
                "INSERT INTO nodes SELECT i, 0, pad() FROM generate_series(any_id(), 12) i ON CONFLICT (id) DO UPDATE SET n = nodes.n + 1"
            }
            2 => "UPDATE nodes SET n = n + 1",
            // Where the later ones are updated first, each takes the key of another one.
            3 => {
                "WITH a AS (SELECT any_id() AS id)
                 UPDATE nodes SET id = nodes.id + 1 FROM a WHERE nodes.id BETWEEN a.id AND a.id + 2"
            }
            _ => "SELECT change()",
        };
        session.run("SAVEPOINT s");
        let has_failed = session.client().batch_execute(statement).is_err();
        if has_failed || random.u32(..5) == 0 {
            session.run("ROLLBACK TO s");
        } else if random.bool() {
            session.run("RELEASE s");
        }
    }
    // A deferred trigger may fail.
    if session.client().batch_execute("COMMIT").is_err() {
        session.run("ROLLBACK");
    }
}

#[test]
fn applying_the_events_one_by_one_gives_the_rows_of_the_table() {
    const TRANSACTIONS: usize = 300;
    let seed = crate::seed();
    println!("seed {seed}");
    let db = shared().database();
    let mut session = db.session();
    let mut random = fastrand::Rng::with_seed(seed);
    // Keys are compared in two ways, by their type.
    let id = if random.bool() { "int" } else { "numeric" };
    session.run(
        &ANYTHING
            .replace("id int PRIMARY KEY", &format!("id {id} PRIMARY KEY"))
            .replace("node int", &format!("node {id}")),
    );
    let mut log = Log::from_here(&db);
    let mut client = Client::default();
    for i in 0..TRANSACTIONS {
        anything(&mut session, &mut random);
        if i % 10 > 0 {
            continue;
        }
        let events = log.news();
        for event in &events {
            if let Err(what) = client.apply(event) {
                let all: Vec<String> = events.iter().map(|e| format!("{} {}", e.position, brief(e))).collect();
                panic!("transactions up to {i}, {}: {what:.300}\n{}", brief(event), all.join("\n"));
            }
        }
        let sql = "SELECT '\"' || tableoid::regclass || '\"' t, to_jsonb(nodes)::text FROM nodes
                   UNION ALL SELECT '\"kids\"', to_jsonb(kids)::text FROM kids
                   UNION ALL SELECT '\"parts\"', to_jsonb(parts)::text FROM parts";
        let rows = session.all(sql, &[]).into_iter().map(|row| {
            let (table, json): (String, String) = (row.get(0), row.get(1));
            let json: Value = serde_json::from_str(&json).expect("JSON");
            (format!("{table} {} {}", json["id"], json["half"]), json)
        });
        assert_eq!(client.rows, rows.collect(), "transactions up to {i}");
    }
}

/// An event without its long texts.
fn brief(event: &Event) -> String {
    let mut json = event.json();
    for record in ["record", "old_record"] {
        if let Some(row) = json[record].as_object_mut() {
            row.remove("pad");
        }
    }
    json.to_string()
}
