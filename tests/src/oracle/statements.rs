//! Random statements.

use fastrand::Rng;
use serde_json::json;

use super::kinds::Kind;
use super::schema::{Column, Table, quoted};

/// How many keys there are, roughly: few, so that statements meet the same rows.
const KEYS: i32 = 10;

/// Something that a session executes.
#[derive(Clone, Debug)]
pub enum Statement {
    /// SQL.
    Sql(String),
    /// COPY of the rows that this query has.
    Copy { into: String, query: String },
}

/// A statement that writes a table.
pub fn write(random: &mut Rng, tables: &[Table]) -> Statement {
    let table = &tables[random.usize(..tables.len())];
    let sql = match random.u8(..20) {
        0..4 => insert(random, table),
        4..9 => update(random, table),
        9..11 => delete(random, table),
        11..13 => merge(random, table),
        13 => return copy(random, table),
        15 => return Statement::Sql(undone(random, table)),
        16 => moved(random, tables, table),
        17 => bulk(random, table),
        18 if table.has_child => {
            format!("INSERT INTO {}_heir (id, n) VALUES ({}, 5)", table.name, random.i32(1..=KEYS))
        }
        18 => format!(
            "WITH d AS (DELETE FROM {0} WHERE id = {1} RETURNING n)
             UPDATE {0} SET n = (SELECT max(n) FROM d) WHERE id = {2}",
            table.name,
            random.i32(1..=KEYS),
            random.i32(1..=KEYS)
        ),
        _ => update(random, table),
    };
    Statement::Sql(sql)
}

/// Some rows, by a condition.
fn some(random: &mut Rng) -> String {
    let id = random.i32(1..=KEYS);
    match random.u8(..6) {
        0 => format!("id BETWEEN {id} AND {}", id + 3),
        1 => format!("n > {}", random.i32(0..100)),
        2 => "true".into(),
        _ => format!("id = {id}"),
    }
}

fn key(random: &mut Rng, table: &Table) -> Vec<String> {
    table
        .key()
        .iter()
        .map(|column| random.i32(if column.name == "id" { 1..=KEYS } else { 0..=3 }).to_string())
        .collect()
}

fn value(random: &mut Rng, column: &Column) -> String {
    match column.name.as_str() {
        "n" if random.u8(..4) > 0 => random.i32(0..40).to_string(),
        _ if column.is_topical => column.kind.few(random),
        _ => column.kind.value(random),
    }
}

/// Some of the columns besides the key, and those that topics name more often than not.
fn columns<'t>(random: &mut Rng, table: &'t Table) -> Vec<&'t Column> {
    table.writable().filter(|column| random.u8(..4) < if column.is_topical { 3 } else { 2 }).collect()
}

fn insert(random: &mut Rng, table: &Table) -> String {
    let mut columns = columns(random, table);
    let reference = table.columns.iter().find(|column| column.name == "ref").filter(|_| random.bool());
    columns.extend(reference);
    let names: Vec<String> = table.key().iter().chain(columns.iter().copied()).map(|c| quoted(&c.name)).collect();
    let rows: Vec<String> = (0..random.usize(1..=4))
        .map(|_| {
            let mut row = key(random, table);
            row.extend(columns.iter().map(|column| match column.name.as_str() {
                "ref" => random.i32(1..=KEYS).to_string(),
                _ => value(random, column),
            }));
            format!("({})", row.join(", "))
        })
        .collect();
    let conflict = match random.u8(..5) {
        0 => String::new(),
        1 | 2 => " ON CONFLICT DO NOTHING".into(),
        _ => {
            let set: Vec<String> = columns.iter().map(|c| format!("{0} = excluded.{0}", quoted(&c.name))).collect();
            let set = if set.is_empty() { "n = 1".into() } else { set.join(", ") };
            format!(" ON CONFLICT ({}) DO UPDATE SET {set}", table.key_names().join(", "))
        }
    };
    format!("INSERT INTO {} ({}) VALUES {}{conflict}", table.name, names.join(", "), rows.join(", "))
}

fn update(random: &mut Rng, table: &Table) -> String {
    let mut set: Vec<String> = Vec::new();
    for column in columns(random, table) {
        let name = quoted(&column.name);
        set.push(if random.u8(..6) == 0 {
            format!("{name} = {name}")
        } else {
            format!("{name} = {}", value(random, column))
        });
    }
    if !table.keeps_keys && random.u8(..5) == 0 {
        let by = [1, 7, -1][random.usize(..3)];
        set.push(format!("id = id + {by}"));
    }
    if table.key().len() > 1 && !table.keeps_keys && random.bool() {
        set.push(format!("part = {}", random.i32(0..=3)));
    }
    if table.columns.iter().any(|column| column.name == "ref") && random.u8(..3) == 0 {
        set.push(format!("ref = {}", random.i32(1..=KEYS)));
    }
    if set.is_empty() {
        set.push("n = coalesce(n, 0) + 1".into());
    }
    format!("UPDATE {} SET {} WHERE {}", table.name, set.join(", "), some(random))
}

fn delete(random: &mut Rng, table: &Table) -> String {
    format!("DELETE FROM {} WHERE {}", table.name, some(random))
}

fn merge(random: &mut Rng, table: &Table) -> String {
    let start = random.i32(1..=KEYS);
    let on: Vec<String> = table.key_names().iter().map(|name| format!("m.{name} = s.{name}")).collect();
    let parts = if table.key().len() > 1 { ", g % 3 AS part" } else { "" };
    let names = table.key_names().join(", ");
    let from: Vec<String> = table.key_names().iter().map(|name| format!("s.{name}")).collect();
    let first = ["DELETE", "UPDATE SET n = m.n + 1", "DO NOTHING"][random.usize(..3)];
    format!(
        "MERGE INTO {} m USING (SELECT g AS id{parts} FROM generate_series({start}, {}) g) s ON {} \
         WHEN MATCHED AND s.id % 2 = 0 THEN {first} WHEN MATCHED THEN UPDATE SET n = s.id * 3 \
         WHEN NOT MATCHED THEN INSERT ({names}, n) VALUES ({}, 21)",
        table.name,
        start + random.i32(0..5),
        on.join(" AND "),
        from.join(", ")
    )
}

fn copy(random: &mut Rng, table: &Table) -> Statement {
    let columns = columns(random, table);
    let names: Vec<String> = table.key().iter().chain(columns.iter().copied()).map(|c| quoted(&c.name)).collect();
    let start = random.i32(1..=2 * KEYS);
    let mut values: Vec<String> = vec!["g".into()];
    values.extend(table.key().iter().skip(1).map(|_| "g % 3".to_owned()));
    values.extend(columns.iter().map(|column| value(random, column)));
    Statement::Copy {
        into: format!("{} ({})", table.name, names.join(", ")),
        query: format!("SELECT {} FROM generate_series({start}, {}) g", values.join(", "), start + random.i32(0..4)),
    }
}

/// Many rows at once.
fn bulk(random: &mut Rng, table: &Table) -> String {
    let columns = columns(random, table);
    let names: Vec<String> = table.key().iter().chain(columns.iter().copied()).map(|c| quoted(&c.name)).collect();
    let mut values: Vec<String> = vec!["g".into()];
    values.extend(table.key().iter().skip(1).map(|_| "g % 3".to_owned()));
    values.extend(columns.iter().map(|column| value(random, column)));
    format!(
        "INSERT INTO {} ({}) SELECT {} FROM generate_series(1, {}) g ON CONFLICT DO NOTHING",
        table.name,
        names.join(", "),
        values.join(", "),
        random.i32(5..60)
    )
}

/// A write that a subtransaction undoes, and one that it does not.
fn undone(random: &mut Rng, table: &Table) -> String {
    let (first, second) = (update(random, table), insert(random, table));
    format!(
        "DO $do$ BEGIN BEGIN {first}; {second}; RAISE EXCEPTION 'undo';
         EXCEPTION WHEN raise_exception THEN NULL; END; {}; END $do$",
        delete(random, table)
    )
}

/// Rows that leave one table for another.
fn moved(random: &mut Rng, tables: &[Table], from: &Table) -> String {
    let to = &tables[random.usize(..tables.len())];
    // A BEFORE trigger may change the new rows while the command runs, and then triggers fire in another order.
    if to.name == from.name || !to.watches.iter().all(|watch| watch.is_exact) {
        return delete(random, from);
    }
    format!(
        "WITH gone AS (DELETE FROM {} WHERE {} RETURNING id, n)
         INSERT INTO {} (id, n) SELECT DISTINCT ON (id) id, n FROM gone ON CONFLICT DO NOTHING",
        from.name,
        some(random),
        to.name
    )
}

/// A statement that needs the table for itself, and the table after it; `None` if the table has nothing to change.
pub fn alter(random: &mut Rng, table: &Table, number: usize) -> Option<(String, Table)> {
    let mut after = table.clone();
    let free: Vec<usize> =
        (0..table.columns.len()).filter(|i| !table.columns[*i].is_named && !table.columns[*i].is_topical).collect();
    let name = &table.name;
    let sql = match random.u8(..7) {
        0 | 1 => {
            let (kind, default, value) = [
                (Kind::Int, "", json!(null)),
                (Kind::Text, " NOT NULL DEFAULT 'as it was'", json!("as it was")),
                (Kind::Int, " DEFAULT 42", json!(42)),
            ][random.usize(..3)]
            .clone();
            let column = format!("added{number}");
            after.columns.push(Column {
                name: column.clone(),
                kind,
                is_topical: false,
                is_computed: !default.is_empty() && kind == Kind::Text,
                is_named: false,
            });
            after.changes.push(json!({"added": column, "value": value}));
            format!("ALTER TABLE {name} ADD COLUMN {column} {}{default}", kind.sql())
        }
        2 if !free.is_empty() => {
            let column = after.columns.remove(free[random.usize(..free.len())]);
            after.changes.push(json!({"dropped": column.name}));
            format!("ALTER TABLE {name} DROP COLUMN {}", quoted(&column.name))
        }
        3 if !free.is_empty() => {
            let column = &mut after.columns[free[random.usize(..free.len())]];
            let (old, new) = (column.name.clone(), format!("renamed{number}"));
            column.name.clone_from(&new);
            after.changes.push(json!({"renamed": old, "to": new}));
            format!("ALTER TABLE {name} RENAME COLUMN {} TO {new}", quoted(&old))
        }
        4 => format!("ALTER TABLE {name} ALTER COLUMN n TYPE {}", ["bigint", "numeric", "int"][random.usize(..3)]),
        // Not in other transactions: whoever reads the rows meanwhile would wait for its end.
        5 | 6 if table.is_truncated => format!("TRUNCATE {name}"),
        5 => {
            let watch = &table.watches[random.usize(..table.watches.len())];
            return watch.statements(table).into_iter().next().map(|sql| (sql, after));
        }
        _ => return None,
    };
    Some((sql, after))
}
