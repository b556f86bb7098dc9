//! The compared tables: the same columns, and each a different way to learn of a change.

use tidings_tests::Database;

/// A way to learn of a change, and its table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// No trigger at all.
    None,
    /// `tidings.watch`.
    Tidings,
    /// A plpgsql trigger that calls `pg_notify` with the row as JSON, as the article's application did.
    Notify,
    /// A plpgsql trigger that inserts the row as JSON into a log table.
    Log,
}

impl Way {
    /// All of them, in the order of a round.
    pub const ALL: [Self; 4] = [Self::None, Self::Tidings, Self::Notify, Self::Log];

    fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Tidings => "tidings",
            Self::Notify => "notify",
            Self::Log => "log",
        }
    }

    /// Its name in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no trigger",
            Self::Tidings => "Tidings",
            Self::Notify => "plpgsql pg_notify",
            Self::Log => "plpgsql log table",
        }
    }
}

/// What a row contains.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rows {
    /// Six columns.
    Narrow,
    /// Thirty columns of mixed types, some 850 bytes of JSON.
    Wide,
}

/// The columns that every table has.
const COLUMNS: &str = "id bigserial PRIMARY KEY, board_id bigint NOT NULL, title text NOT NULL,
    position int NOT NULL DEFAULT 0, done boolean NOT NULL DEFAULT false, created_at timestamptz NOT NULL DEFAULT now()";

/// Those that only a wide one has.
const MORE_COLUMNS: &str =
    ", author_id bigint, parent_id bigint, kind text, color varchar(20), body text, note text, email text,
    url text, price numeric(12,2), amount numeric, ratio double precision, weight real, size smallint, likes int,
    is_public boolean, is_archived boolean, updated_at timestamptz, due date, starts timestamp, opens time, token uuid,
    tags text[], settings jsonb, duration interval";

impl Rows {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Narrow, Self::Wide];

    /// Their names in the report.
    pub fn name(self) -> &'static str {
        match self {
            Self::Narrow => "rows",
            Self::Wide => "wide rows",
        }
    }

    /// The table of a way.
    pub fn table(self, way: Way) -> String {
        let word = match self {
            Self::Narrow => "items",
            Self::Wide => "wide",
        };
        format!("{word}_{}", way.word())
    }

    /// The columns of a table, for its definition.
    pub fn definition(self) -> String {
        match self {
            Self::Narrow => COLUMNS.to_owned(),
            Self::Wide => format!("{COLUMNS}{MORE_COLUMNS}"),
        }
    }

    /// The columns that a writer sets.
    pub fn columns(self) -> &'static str {
        match self {
            Self::Narrow => "board_id, title, position",
            Self::Wide => {
                "board_id, title, position, author_id, parent_id, kind, color, body, note, email, url, price, amount, ratio, weight, \
                 size, likes, is_public, is_archived, updated_at, due, starts, opens, token, tags, settings, duration"
            }
        }
    }

    /// Values for those columns as one client writes them, except for the board, which pgbench knows.
    pub fn literals(self) -> &'static str {
        match self {
            Self::Narrow => ":board, 'Buy milk, bread and a bicycle', 7",
            Self::Wide => {
                ":board, 'Buy milk, bread and a bicycle', 7, 4711, NULL, 'note', '#ffcc00', \
                 'Two litres of milk, a loaf of rye bread, and a bicycle with a basket that is large enough for both.', \
                 'She said: \"before noon\".', 'ada@example.org', 'https://example.org/boards/5/items/4711?view=full', 1249.90, \
                 0.000123456789, 0.1, 12.5, 3, 42, true, false, '2026-05-01 10:00:00+00', '2026-06-01', '2026-06-01 08:30:00', '08:30', \
                 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '{milk,bread,\"a bicycle\"}', \
                 '{\"pinned\": true, \"width\": 240, \"labels\": [\"home\", \"urgent\"]}', '1 day 02:30:00'"
            }
        }
    }

    /// Values for those columns in a separate row for each `i`.
    pub fn expressions(self) -> &'static str {
        match self {
            Self::Narrow => "i % 1000, 'Item number ' || i, i % 17",
            Self::Wide => {
                "i % 1000, 'Item number ' || i, i % 17, i * 31, CASE WHEN i % 3 = 0 THEN i / 3 END, 'note', '#' || left(md5(i::text), 6), \
                 'What is to be done on day ' || i || ' and the reasons for it: ' || md5((i + 1)::text) || md5((i + 2)::text), \
                 'She said: \"' || i || '\".', 'user' || i || '@example.org', 'https://example.org/boards/' || i % 1000 || '/items/' || i, \
                 i % 100000 / 100.0, i / 7.0, i / 3.0::float8, i / 3.0::real, i % 1000, i % 77, i % 2 = 0, i % 5 = 0, \
                 '2026-01-01'::timestamptz + i * interval '17.123456 seconds', '2026-01-01'::date + i % 365, \
                 '2026-01-01'::timestamp + i * interval '61 seconds', '00:00'::time + i * interval '1 second', md5(i::text)::uuid, \
                 ARRAY['tag ' || i % 10, 'home', 'urgent'], jsonb_build_object('pinned', i % 2 = 0, 'width', i % 500, 'label', 'l' || i), \
                 i * interval '1 second'"
            }
        }
    }
}

/// Creates the tables.
pub fn create(database: &Database<'_>) {
    let mut session = database.session();
    session.run(
        "CREATE TABLE change_log (id bigserial PRIMARY KEY, topic text NOT NULL, payload jsonb NOT NULL);
         CREATE FUNCTION notify_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           PERFORM pg_notify('boards_' || NEW.board_id, to_jsonb(NEW)::text);
           RETURN NULL;
         END $$;
         CREATE FUNCTION log_change() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
           INSERT INTO change_log (topic, payload) VALUES ('boards_' || NEW.board_id, to_jsonb(NEW));
           RETURN NULL;
         END $$;",
    );
    for (rows, way) in Rows::ALL.into_iter().flat_map(|rows| Way::ALL.map(|way| (rows, way))) {
        let table = rows.table(way);
        session.run(&format!("CREATE TABLE {table} ({})", rows.definition()));
        match way {
            Way::None => {}
            Way::Tidings => session.run(&format!("SELECT tidings.watch('{table}', topic => 'boards_{{board_id}}')")),
            Way::Notify | Way::Log => session.run(&format!(
                "CREATE TRIGGER change AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {}_change()",
                way.word()
            )),
        }
    }
}

/// Empties the tables of a way.
pub fn empty(database: &Database<'_>, rows: Rows, way: Way) {
    let mut session = database.session();
    session.run(&format!("TRUNCATE {}, change_log", rows.table(way)));
}
