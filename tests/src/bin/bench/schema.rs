//! The compared tables: the same columns, and one way each to learn of a change.

use tidings_tests::Database;

/// A way to learn of a change, and so a table.
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

    /// The table's name.
    pub fn table(self) -> &'static str {
        match self {
            Self::None => "items_none",
            Self::Tidings => "items_tidings",
            Self::Notify => "items_notify",
            Self::Log => "items_log",
        }
    }

    /// How the report calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no trigger",
            Self::Tidings => "Tidings",
            Self::Notify => "plpgsql pg_notify",
            Self::Log => "plpgsql log table",
        }
    }
}

/// Creates the four tables.
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
    for way in Way::ALL {
        let table = way.table();
        session.run(&format!(
            "CREATE TABLE {table} (id bigserial PRIMARY KEY, board_id bigint NOT NULL, title text NOT NULL,
               position int NOT NULL DEFAULT 0, done boolean NOT NULL DEFAULT false, created_at timestamptz NOT NULL DEFAULT now())"
        ));
        match way {
            Way::None => {}
            Way::Tidings => session.run(&format!("SELECT tidings.watch('{table}', topic => 'boards_{{board_id}}')")),
            Way::Notify | Way::Log => session.run(&format!(
                "CREATE TRIGGER change AFTER INSERT OR UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION {}_change()",
                if way == Way::Notify { "notify" } else { "log" }
            )),
        }
    }
}

/// Empties the tables of a way.
pub fn empty(database: &Database<'_>, way: Way) {
    let mut session = database.session();
    session.run(&format!("TRUNCATE {}, change_log", way.table()));
}
