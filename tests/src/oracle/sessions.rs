//! Sessions that write in turns. One driver runs all of them, so the same seed gives the same interleaving; a statement
//! that would wait for another session fails after a moment instead.

use std::io::{Read, Write};

use fastrand::Rng;
use postgres::error::SqlState;

use super::schema::Table;
use super::statements::{Statement, alter, write};
use super::{Fault, History};
use crate::{Database, Session};

/// What a session may be refused: locks that others hold, conflicts of keys and snapshots, rows without a partition or
/// changed by a trigger of the same command, alterations that Postgres does not support.
const EXPECTED: [SqlState; 13] = [
    SqlState::LOCK_NOT_AVAILABLE,
    SqlState::UNIQUE_VIOLATION,
    SqlState::FOREIGN_KEY_VIOLATION,
    SqlState::CHECK_VIOLATION,
    SqlState::T_R_SERIALIZATION_FAILURE,
    SqlState::T_R_DEADLOCK_DETECTED,
    SqlState::CARDINALITY_VIOLATION,
    SqlState::TRIGGERED_DATA_CHANGE_VIOLATION,
    SqlState::OBJECT_IN_USE,
    SqlState::FEATURE_NOT_SUPPORTED,
    SqlState::NUMERIC_VALUE_OUT_OF_RANGE,
    SqlState::IN_FAILED_SQL_TRANSACTION,
    SqlState::NOT_NULL_VIOLATION,
];

/// Where PL/pgSQL refuses a row whose column has another type than at the last call in the session, with an error that
/// means more elsewhere.
const RETYPED: &str = "plpgsql_param_eval_recfield";

/// A session that is in no transaction alters a table one time in this many.
const ALTERATIONS: u8 = 8;

/// A session, and where it is in its transaction.
struct Writer {
    session: Session,
    number: usize,
    is_open: bool,
    has_failed: bool,
    savepoints: usize,
}

/// Sessions of one run.
pub struct Writers {
    writers: Vec<Writer>,
    /// The names of prepared transactions.
    prepared: Vec<String>,
    numbered: usize,
    schema: String,
}

impl Writers {
    /// Connects `count` sessions that work in a schema.
    pub fn start(db: &Database<'_>, schema: &str, count: usize) -> Self {
        let writer = |number| {
            let mut session = db.session();
            session.run(&format!(
                "SET search_path = {schema}; SET lock_timeout = '20ms'; SET client_min_messages = error"
            ));
            Writer { session, number, is_open: false, has_failed: false, savepoints: 0 }
        };
        Self {
            writers: (1..=count).map(writer).collect(),
            prepared: Vec::new(),
            numbered: 0,
            schema: schema.to_owned(),
        }
    }

    /// Lets some session do something.
    pub fn step(&mut self, random: &mut Rng, tables: &mut [Table], history: &mut History) -> Result<(), Fault> {
        let n = random.usize(..self.writers.len());
        if !self.prepared.is_empty() && random.u8(..6) == 0 {
            return self.end_prepared(random, history);
        }
        let writer = &mut self.writers[n];
        if !writer.is_open {
            if random.u8(..ALTERATIONS) == 0 {
                self.numbered += 1;
                return writer.alter(random, tables, self.numbered, history);
            }
            if random.u8(..3) > 0 {
                let level = ["READ COMMITTED", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"][random.usize(..4)];
                writer.run(&format!("BEGIN ISOLATION LEVEL {level}"), history)?;
                writer.is_open = true;
                return Ok(());
            }
            return writer.write(random, tables, history).map(drop);
        }
        if writer.has_failed {
            return match random.u8(..6) {
                0 => writer.write(random, tables, history).map(drop),
                1 => writer.end("COMMIT", history).map(drop),
                _ => writer.undo(history),
            };
        }
        match random.u8(..20) {
            0 => {
                writer.savepoints += 1;
                writer.run(&format!("SAVEPOINT s{}", writer.savepoints), history)?;
            }
            1 if writer.savepoints > 0 => writer.undo(history)?,
            2 if writer.savepoints > 0 => {
                writer.savepoints -= 1;
                writer.run(&format!("RELEASE SAVEPOINT s{}", writer.savepoints + 1), history)?;
            }
            3..6 => {
                writer.end("COMMIT", history)?;
            }
            6 => {
                writer.end("ROLLBACK", history)?;
            }
            7 => {
                self.numbered += 1;
                let name = format!("{} {}", self.schema, self.numbered);
                if writer.end(&format!("PREPARE TRANSACTION '{name}'"), history)? {
                    self.prepared.push(name);
                }
            }
            8 => {
                let publish = format!("SELECT tidings.publish('{}_noise', '{{\"noise\": 1}}')", self.schema);
                writer.run(&publish, history)?;
            }
            _ => {
                writer.write(random, tables, history)?;
            }
        }
        Ok(())
    }

    /// Ends all transactions.
    pub fn finish(&mut self, random: &mut Rng, history: &mut History) -> Result<(), Fault> {
        for writer in self.writers.iter_mut().filter(|writer| writer.is_open) {
            writer.end("COMMIT", history)?;
        }
        while !self.prepared.is_empty() {
            self.end_prepared(random, history)?;
        }
        Ok(())
    }

    fn end_prepared(&mut self, random: &mut Rng, history: &mut History) -> Result<(), Fault> {
        let name = self.prepared.swap_remove(random.usize(..self.prepared.len()));
        let end = if random.u8(..4) == 0 { "ROLLBACK" } else { "COMMIT" };
        // By any session that is not in a transaction itself.
        let Some(writer) = self.writers.iter_mut().find(|writer| !writer.is_open) else {
            self.prepared.push(name);
            return Ok(());
        };
        // A PREPARE that failed has rolled back instead.
        let sql = format!("SELECT FROM pg_prepared_xacts WHERE gid = '{name}'");
        if writer.session.all(&sql, &[]).is_empty() {
            return Ok(());
        }
        writer.run(&format!("{end} PREPARED '{name}'"), history).map(drop)
    }
}

impl Writer {
    /// Runs SQL; returns whether it succeeded. An expected error fails the open transaction.
    fn run(&mut self, sql: &str, history: &mut History) -> Result<bool, Fault> {
        history.session(self.number, sql);
        let result = self.session.client().batch_execute(sql);
        self.note(result, history)
    }

    fn note(&mut self, result: Result<(), postgres::Error>, history: &mut History) -> Result<bool, Fault> {
        let Err(error) = result else { return Ok(true) };
        let message = error.as_db_error().map_or_else(|| error.to_string(), |error| error.message().to_owned());
        history.note(&format!("refused: {message}"));
        self.has_failed = self.is_open;
        let is_retyped = error.as_db_error().is_some_and(|error| error.routine() == Some(RETYPED));
        match error.code() {
            Some(code) if EXPECTED.contains(code) || is_retyped => Ok(false),
            _ => Err(Fault(format!("session {} was refused: {error:?}", self.number))),
        }
    }

    fn write(&mut self, random: &mut Rng, tables: &[Table], history: &mut History) -> Result<bool, Fault> {
        match write(random, tables) {
            Statement::Sql(sql) => self.run(&sql, history),
            Statement::Copy { into, query } => self.copy(&into, &query, history),
        }
    }

    fn copy(&mut self, into: &str, query: &str, history: &mut History) -> Result<bool, Fault> {
        let mut rows = Vec::new();
        if !self.has_failed {
            let broken = |error: &dyn std::fmt::Display| Fault(format!("{query}: {error}"));
            let copy = self.session.client().copy_out(&format!("COPY ({query}) TO STDOUT"));
            copy.map_err(|error| broken(&error))?.read_to_end(&mut rows).map_err(|error| broken(&error))?;
        }
        history.session(self.number, &format!("COPY {into} FROM STDIN"));
        history.rows(&rows);
        let result = self.session.client().copy_in(&format!("COPY {into} FROM STDIN")).and_then(|mut copy| {
            // An error appears at the end.
            let _ = copy.write_all(&rows);
            copy.finish().map(drop)
        });
        self.note(result, history)
    }

    /// Back to a savepoint, or to nothing.
    fn undo(&mut self, history: &mut History) -> Result<(), Fault> {
        if self.savepoints == 0 {
            return self.end("ROLLBACK", history).map(drop);
        }
        self.back_to(&format!("s{}", self.savepoints), history)
    }

    fn back_to(&mut self, savepoint: &str, history: &mut History) -> Result<(), Fault> {
        self.run(&format!("ROLLBACK TO SAVEPOINT {savepoint}"), history)?;
        self.has_failed = false;
        Ok(())
    }

    /// Ends the transaction. A COMMIT or PREPARE of one that has failed rolls back.
    fn end(&mut self, how: &str, history: &mut History) -> Result<bool, Fault> {
        let was_whole = !self.has_failed;
        (self.is_open, self.has_failed, self.savepoints) = (false, false, 0);
        Ok(self.run(how, history)? && was_whole)
    }

    /// A transaction that alters a table between two writes, all in one step, so that the other sessions only see it
    /// whole.
    fn alter(
        &mut self,
        random: &mut Rng,
        tables: &mut [Table],
        number: usize,
        history: &mut History,
    ) -> Result<(), Fault> {
        let n = random.usize(..tables.len());
        let Some((sql, after)) = alter(random, &tables[n], number) else { return Ok(()) };
        let mut altered = tables.to_vec();
        altered[n] = after.clone();
        let (is_undone, is_kept) = (random.u8(..4) == 0, random.u8(..5) > 0);
        self.run("BEGIN", history)?;
        self.is_open = true;
        self.run("SAVEPOINT first", history)?;
        if !self.write(random, tables, history)? {
            self.back_to("first", history)?;
        }
        self.run("SAVEPOINT altered", history)?;
        let works = self.run(&sql, history)? && self.write(random, &altered, history)?;
        if is_undone || !works {
            self.back_to("altered", history)?;
            self.write(random, tables, history)?;
        }
        let is_committed = self.end(if is_kept { "COMMIT" } else { "ROLLBACK" }, history)?;
        if is_committed && is_kept && works && !is_undone {
            tables[n] = after;
        }
        Ok(())
    }
}
