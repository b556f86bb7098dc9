//! What a client holds, compared with what Postgres says.

use std::collections::BTreeMap;

use serde_json::Value;

use super::clients::Client;
use super::schema::Table;
use super::watches::Watch;
use super::{Fault, Sabotage};
use crate::Session;

/// How many differences are shown.
const SHOWN: usize = 5;

/// Compares what a client holds in the end with the tables.
pub fn compare(session: &mut Session, client: &Client, tables: &[Table]) -> Result<(), Fault> {
    for (table, watch) in all(tables) {
        if !is_defined(client, watch) {
            continue;
        }
        let held = client.held.iter().filter(|((event, _), _)| *event == watch.event);
        let (keys, payloads): (Vec<&str>, Vec<&str>) =
            held.map(|((_, key), held)| (key.as_str(), held.payload.as_str())).unzip();
        let changes = if watch.shows_new_columns() { Value::from(table.changes.clone()) } else { Value::Array(vec![]) };
        // What the oracle's triggers have kept is as old as what was sent.
        let wanted = if watch.is_exact { "record" } else { "oracle.now(record, $5::text::jsonb)" };
        let sql = format!(
            "WITH wanted AS (SELECT key, {wanted} AS record FROM ({}) w),
                  held AS (SELECT key, oracle.now(payload::jsonb -> $4::text, $5::text::jsonb) AS record
                           FROM unnest($2::text[], $3::text[]) h (key, payload))
             SELECT key, held.record::text, wanted.record::text FROM held FULL JOIN wanted USING (key)
             WHERE held.record IS DISTINCT FROM wanted.record",
            watch.held(table)
        );
        let changes = changes.to_string();
        let rows = session.all(&sql, &[&client.topics, &keys, &payloads, &watch.members().record, &changes]);
        if !rows.is_empty() {
            let show = |row: &postgres::Row| {
                let side = |n| row.get::<_, Option<String>>(n).unwrap_or_else(|| "nothing".into());
                format!("key {}: it has {}, Postgres has {}", side(0), side(1), side(2))
            };
            let shown: Vec<_> = rows.iter().take(SHOWN).map(show).collect();
            return Err(Fault(format!("watch {} differs in {} rows:\n{}", watch.event, rows.len(), shown.join("\n"))));
        }
    }
    Ok(())
}

fn all(tables: &[Table]) -> impl Iterator<Item = (&Table, &Watch)> {
    tables.iter().flat_map(|table| table.watches.iter().map(move |watch| (table, watch)))
}

/// Whether it is clear what this client must hold of the watch. A snapshot has the rows of now, and the changes of a
/// watch that leaves some out don't make them those of later. And such a watch may leave the same row in two topics.
fn is_defined(client: &Client, watch: &Watch) -> bool {
    watch.is_exact || (!client.has_snapshot() && client.topics.len() == 1)
}

/// A client that starts with the rows of one snapshot of the database and its position. They must also be those of
/// `tidings.state()`.
pub fn read(
    session: &mut Session,
    name: String,
    topics: Vec<String>,
    tables: &[Table],
    beginning: &str,
    sabotage: Option<Sabotage>,
) -> Result<Client, Fault> {
    session.run("BEGIN ISOLATION LEVEL REPEATABLE READ");
    let position: String = session.one("SELECT tidings.position()");
    check_state(session, &topics, tables)?;
    let mut rows: BTreeMap<(String, String), String> = BTreeMap::new();
    for (table, watch) in all(tables) {
        for row in session.all(&format!("SELECT key, record::text FROM ({}) r", watch.held(table)), &[&topics]) {
            rows.insert((watch.event.clone(), row.get(0)), row.get(1));
        }
    }
    session.run("COMMIT");
    let position = if sabotage == Some(Sabotage::Positions) { beginning.to_owned() } else { position };
    let mut client = Client::of_position(name, topics, position, sabotage);
    for ((event, key), record) in rows {
        let members = all(tables).find(|(_, watch)| watch.event == event).map(|(_, watch)| watch.members());
        let member = members.map_or("record", |members| members.record);
        let parsed = serde_json::from_str(&record).map_err(|error| Fault(error.to_string()))?;
        client.hold(&event, key, format!("{{\"{member}\": {record}}}"), &parsed);
    }
    Ok(client)
}

/// Compares `tidings.state()` with queries of the tables, in the same snapshot.
fn check_state(session: &mut Session, topics: &[String], tables: &[Table]) -> Result<(), Fault> {
    session.run("SAVEPOINT state");
    for (table, watch) in all(tables).filter(|(_, watch)| watch.has_state()) {
        let sql = format!(
            "WITH wanted AS ({}),
                  state AS (SELECT payload::jsonb -> $3::text AS record, payload::jsonb ->> $4::text AS kind
                            FROM tidings.state($1) WHERE event = $2)
             SELECT (SELECT jsonb_agg(record ORDER BY record::text)::text FROM wanted),
                    (SELECT jsonb_agg(record ORDER BY record::text)::text FROM state),
                    (SELECT coalesce(bool_and(kind = 'SNAPSHOT'), true) FROM state)",
            watch.rows(table, true)
        );
        let members = watch.members();
        let rows = session.all(&sql, &[&topics, &watch.event, &members.record, &members.kind]);
        let (wanted, state): (Option<String>, Option<String>) = (rows[0].get(0), rows[0].get(1));
        if wanted != state || !rows[0].get::<_, bool>(2) {
            return Err(Fault(format!(
                "tidings.state({topics:?}) of watch {} has\n{}, and the table\n{}",
                watch.event,
                state.unwrap_or_default(),
                wanted.unwrap_or_default()
            )));
        }
    }
    session.run("ROLLBACK TO SAVEPOINT state");
    Ok(())
}
