//! Random tables: columns of all types, keys, partitions, foreign keys, and triggers that write other watched tables.

use fastrand::Rng;

use super::kinds::Kind;
use super::watches::Watch;

/// A column.
#[derive(Clone, Debug)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// Its type.
    pub kind: Kind,
    /// Whether it is of few values, because topics name it.
    pub is_topical: bool,
    /// Whether Postgres computes it, or its values are those of another table's key, so that it has no values here.
    pub is_computed: bool,
    /// Whether a watch or an expression names it, so that it can't be dropped or renamed.
    pub is_named: bool,
}

/// How a table is partitioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Partitions {
    /// By list of `part`, which is in the key.
    List,
    /// By range of `id`.
    Range,
    /// By hash of `id`.
    Hash,
}

/// A change of a table's columns, as `oracle.now` knows it.
pub type Change = serde_json::Value;

/// A table with its watches.
#[derive(Clone, Debug)]
pub struct Table {
    /// Its name.
    pub name: String,
    /// Its columns. The key is the first, or the first two.
    pub columns: Vec<Column>,
    /// How it is partitioned.
    pub partitions: Option<Partitions>,
    /// Another table inherits from it.
    pub has_child: bool,
    /// Rows of another table refer to it.
    pub is_referenced: bool,
    /// It is truncated from time to time.
    pub is_truncated: bool,
    /// Its triggers may write the table itself, and foreign keys and other triggers its rows, so that its rows change
    /// in another order than triggers fire.
    pub is_wild: bool,
    /// Its keys never change, because a watch says nothing of the old row.
    pub keeps_keys: bool,
    /// Its watches.
    pub watches: Vec<Watch>,
    /// What has happened to its columns since the beginning.
    pub changes: Vec<Change>,
}

impl Table {
    /// The columns of its key.
    pub fn key(&self) -> &[Column] {
        &self.columns[..if self.partitions == Some(Partitions::List) { 2 } else { 1 }]
    }

    /// The names of the columns of its key.
    pub fn key_names(&self) -> Vec<&str> {
        self.key().iter().map(|column| column.name.as_str()).collect()
    }

    /// The columns besides the key that statements write.
    pub fn writable(&self) -> impl Iterator<Item = &Column> {
        self.columns[self.key().len()..].iter().filter(|column| !column.is_computed)
    }

    /// The column with this name.
    pub fn column(&self, name: &str) -> &Column {
        self.columns.iter().find(|column| column.name == name).expect("a column of the table")
    }

    /// The table as a query reads it, without those that inherit from it.
    pub fn only(&self) -> String {
        format!("{}{}", if self.has_child { "ONLY " } else { "" }, self.name)
    }
}

/// Tables, and the SQL that creates them.
#[derive(Clone, Debug)]
pub struct Schema {
    /// The tables.
    pub tables: Vec<Table>,
    /// The statements.
    pub statements: Vec<String>,
}

impl Schema {
    /// Draws tables with watches. Topics begin with `prefix`.
    pub fn draw(random: &mut Rng, prefix: &str) -> Self {
        let count = random.usize(2..=4);
        let mut tables: Vec<Table> = (0..count).map(|n| draw_table(random, n)).collect();
        // In a table that writes itself, triggers fire in another order than that in which rows change. Then the
        // oracle's own triggers are wrong, so all of its watches must show every change.
        for table in &mut tables {
            table.is_wild = random.u8(..4) == 0;
            table.is_truncated = !table.is_wild && random.u8(..3) == 0;
        }
        let references = draw_references(random, &mut tables);
        for table in &mut tables {
            let watches = (1..=random.usize(1..=3)).map(|n| Watch::draw(random, table, n, prefix)).collect();
            table.watches = watches;
            table.keeps_keys = table.watches.iter().any(|watch| watch.hides_old_key());
            for watch in &table.watches {
                let named = watch.named_columns();
                table.columns.iter_mut().for_each(|column| column.is_named |= named.contains(&column.name));
            }
        }
        let mut statements: Vec<String> = Vec::new();
        for table in &tables {
            statements.extend(create(random, table));
        }
        statements.extend(references);
        statements.extend(writing_triggers(random, &tables));
        for table in &tables {
            statements.extend(table.watches.iter().flat_map(|watch| watch.statements(table)));
        }
        Self { tables, statements }
    }
}

fn draw_table(random: &mut Rng, n: usize) -> Table {
    let column = |name: &str, kind| Column {
        name: name.to_owned(),
        kind,
        is_topical: false,
        is_computed: false,
        is_named: true,
    };
    let partitions = match random.u8(..9) {
        0 => Some(Partitions::List),
        1 => Some(Partitions::Range),
        2 => Some(Partitions::Hash),
        _ => None,
    };
    let mut columns = vec![column("id", Kind::Int)];
    if partitions == Some(Partitions::List) {
        columns.push(column("part", Kind::Int));
    }
    columns.push(column("n", Kind::Int));
    for i in 0..random.usize(1..=3) {
        let mut topical = column(&format!("t{i}"), Kind::of_topic(random));
        (topical.is_topical, topical.is_named) = (true, false);
        columns.push(topical);
    }
    for i in 0..random.usize(..=5) {
        // Names that need quotes, or mean something elsewhere.
        let name = ["c{}", "C {}", "new{}", "$c{}", "ключ{}"][random.usize(..5)].replace("{}", &i.to_string());
        let kind = Kind::any(random);
        columns.push(Column { is_named: false, ..column(&name, kind) });
    }
    let has_child = partitions.is_none() && random.u8(..8) == 0;
    Table {
        name: format!("tab{n}"),
        columns,
        partitions,
        has_child,
        is_referenced: false,
        is_truncated: false,
        is_wild: false,
        keeps_keys: false,
        watches: Vec::new(),
        changes: Vec::new(),
    }
}

/// Lets tables refer to earlier ones.
fn draw_references(random: &mut Rng, tables: &mut [Table]) -> Vec<String> {
    let mut statements = Vec::new();
    for n in 1..tables.len() {
        let parent = random.usize(..n);
        // A row that refers to a table that writes itself may change twice in one command, and so in another order than
        // its triggers fire.
        let fits = tables[parent].partitions != Some(Partitions::List) && !tables[parent].has_child;
        if random.bool() || !fits || (tables[parent].is_wild && !tables[n].is_wild) {
            continue;
        }
        tables[parent].is_referenced = true;
        tables[parent].is_truncated = false;
        tables[n].columns.push(Column {
            name: "ref".into(),
            kind: Kind::Int,
            is_topical: false,
            is_computed: true,
            is_named: true,
        });
        let on_delete = ["CASCADE", "SET NULL", "CASCADE"][random.usize(..3)];
        let when = if random.u8(..4) == 0 { " DEFERRABLE INITIALLY DEFERRED" } else { "" };
        let (child, parent) = (&tables[n].name, &tables[parent].name);
        statements.push(format!(
            "ALTER TABLE {child} ADD FOREIGN KEY (ref) REFERENCES {parent} (id)
               ON DELETE {on_delete} ON UPDATE CASCADE{when}"
        ));
    }
    statements
}

/// A name as SQL writes it.
pub fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text as SQL writes it.
pub fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if text.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

fn definition(column: &Column) -> String {
    let not_null = match column.name.as_str() {
        "id" => " NOT NULL",
        "part" => " NOT NULL DEFAULT 0",
        _ => "",
    };
    format!("{} {}{not_null}", quoted(&column.name), column.kind.sql())
}

/// The statements that create a table.
fn create(random: &mut Rng, table: &Table) -> Vec<String> {
    let name = &table.name;
    let mut columns: Vec<String> = table.columns.iter().map(definition).collect();
    // A generated column, and one that is gone before anything is watched.
    let is_computed = random.u8(..3) == 0;
    let computed = "\"sum\" int GENERATED ALWAYS AS (id * 2 + coalesce(n, 0)) STORED".to_owned();
    let has_gone = random.bool();
    if has_gone {
        columns.insert(random.usize(..columns.len()), "gone text DEFAULT 'gone'".into());
    }
    if is_computed {
        columns.push(computed.clone());
    }
    let by = match table.partitions {
        None => "",
        Some(Partitions::List) => " PARTITION BY LIST (part)",
        Some(Partitions::Range) => " PARTITION BY RANGE (id)",
        Some(Partitions::Hash) => " PARTITION BY HASH (id)",
    };
    let key = table.key_names().join(", ");
    let mut statements = vec![format!("CREATE TABLE {name} ({}, PRIMARY KEY ({key})){by}", columns.join(", "))];
    if has_gone {
        statements.push(format!("ALTER TABLE {name} DROP COLUMN gone"));
    }
    if table.has_child {
        statements.push(format!("CREATE TABLE {name}_heir (more int DEFAULT 7) INHERITS ({name})"));
    }
    let bounds: &[&str] = match table.partitions {
        None => &[],
        Some(Partitions::List) => &["FOR VALUES IN (0, 1)", "FOR VALUES IN (2)", "DEFAULT"],
        Some(Partitions::Range) => &["FOR VALUES FROM (MINVALUE) TO (4)", "FOR VALUES FROM (4) TO (9)", "DEFAULT"],
        Some(Partitions::Hash) => {
            &["FOR VALUES WITH (MODULUS 2, REMAINDER 0)", "FOR VALUES WITH (MODULUS 2, REMAINDER 1)"]
        }
    };
    for (i, bound) in bounds.iter().enumerate() {
        let part = format!("{name}_{i}");
        match random.u8(..3) {
            0 => statements.push(format!("CREATE TABLE {part} PARTITION OF {name} {bound}")),
            1 if table.partitions != Some(Partitions::Hash) => {
                statements.push(format!("CREATE TABLE {part} PARTITION OF {name} {bound} PARTITION BY HASH (id)"));
                statements.extend((0..2).map(|n| {
                    format!("CREATE TABLE {part}_{n} PARTITION OF {part} FOR VALUES WITH (MODULUS 2, REMAINDER {n})")
                }));
            }
            // Its columns are in another order, and there are others that are gone.
            _ => {
                let mut own: Vec<String> = table.columns.iter().map(definition).collect();
                own.extend(is_computed.then(|| computed.clone()));
                own.push("junk int".into());
                random.shuffle(&mut own);
                statements.push(format!("CREATE TABLE {part} ({})", own.join(", ")));
                statements.push(format!("ALTER TABLE {part} DROP COLUMN junk"));
                statements.push(format!("ALTER TABLE {name} ATTACH PARTITION {part} {bound}"));
            }
        }
    }
    statements
}

/// Triggers that write later tables, or their own.
fn writing_triggers(random: &mut Rng, tables: &[Table]) -> Vec<String> {
    let mut statements = Vec::new();
    for (n, table) in tables.iter().enumerate() {
        for i in 0..random.usize(..=2) {
            let mut targets: Vec<&Table> = tables[n + 1..].iter().filter(|other| is_for_triggers(other)).collect();
            if table.is_wild {
                targets.extend([table, table]);
            }
            if targets.is_empty() {
                continue;
            }
            let target = targets[random.usize(..targets.len())];
            let (name, to) = (&table.name, &target.name);
            let change = match random.u8(..6) {
                0 => format!("INSERT INTO {to} (id, n) VALUES (r.id, r.n) ON CONFLICT DO NOTHING"),
                1 => format!("DELETE FROM {to} WHERE id = r.id + 1"),
                2 => format!(
                    "BEGIN UPDATE {to} SET n = 77 WHERE id < 4; RAISE EXCEPTION 'undo';
                     EXCEPTION WHEN raise_exception THEN NULL; END"
                ),
                3 => format!(
                    "DELETE FROM {to} WHERE id = r.id % 5 + 1;
                     INSERT INTO {to} (id, n) VALUES (r.id % 5 + 1, 55) ON CONFLICT DO NOTHING"
                ),
                _ => format!("UPDATE {to} SET n = coalesce(n, 0) + 1 WHERE id = r.id % 5 + 1"),
            };
            let before = random.u8(..3) == 0;
            let own = if before && random.bool() {
                "IF TG_OP <> 'DELETE' THEN NEW.n := coalesce(NEW.n, 0) + 3; r := NEW; END IF; "
            } else {
                ""
            };
            statements.push(format!(
                "CREATE FUNCTION {name}_f{i}() RETURNS trigger LANGUAGE plpgsql AS $f$ DECLARE r record;\n\
                 BEGIN IF TG_OP = 'DELETE' THEN r := OLD; ELSE r := NEW; END IF; {own}{change}; RETURN r; END $f$"
            ));
            let (time, operations) = (
                if before { "BEFORE" } else { "AFTER" },
                ["INSERT", "UPDATE", "DELETE", "INSERT OR UPDATE OR DELETE"][random.usize(..4)],
            );
            // Before or after that of the watch, in the order of names.
            let trigger = ["a_write", "z_write"][random.usize(..2)];
            statements.push(format!(
                "CREATE TRIGGER {trigger}{i} {time} {operations} ON {name} FOR EACH ROW WHEN (pg_trigger_depth() < 2)
                 EXECUTE FUNCTION {name}_f{i}()"
            ));
        }
    }
    statements
}

/// Whether triggers of other tables may write it. A foreign key's action and a trigger can change a row in another
/// order than its triggers fire, so that a table has one or the other, unless all its watches show every change.
fn is_for_triggers(table: &Table) -> bool {
    table.is_wild || !table.columns.iter().any(|column| column.name == "ref")
}
