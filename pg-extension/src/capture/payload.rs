//! How the payload of an event is made: from the default payload, or from the one that the watch gives. Each operation
//! has its own plan.

use std::cell::Cell;

use serde_json::Value;
use tidings_wire::limit::WIDEST;
use tidings_wire::{Limit, Row, TooLong, outline, string};

use crate::capture::change::{Change, Operation};
use crate::capture::columns::Columns;
use crate::errors::WatchError;
use crate::value::writer::check_packed;

/// What `old_record` is in the event of an UPDATE. In that of a DELETE it is always the whole old row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldRecord {
    /// The previous values of the columns that changed.
    Changed,
    /// The whole old row.
    Full,
    /// NULL.
    None,
}

/// The payload of a watch that specifies none.
pub const DEFAULT: &str =
    r#"{"schema":"$schema","table":"$table","type":"$type","record":"$record","old_record":"$old_record"}"#;

/// Sent instead of a default payload that is too long.
pub const DEFAULT_TRUNCATED: &str =
    r#"{"schema":"$schema","table":"$table","type":"$type","record":null,"old_record":null,"truncated":true}"#;

/// Sent instead of any other payload that is too long.
pub const TRUNCATED: &str = r#"{"truncated":true}"#;

/// How the payload of one operation is made: its outline, and where each value comes from.
pub struct PayloadPlan {
    /// Identifies it in this process.
    pub number: u64,
    /// The outline: the constant text, with a NUL for each value.
    pub outline: String,
    /// The outline in its stored form.
    pub stored_outline: String,
    /// Where the values come from.
    sources: Vec<Source>,
    /// It has more than [`MAX_VALUES`] values.
    is_too_long: bool,
}

/// The most values of a payload. A payload with more counts as too long: each value takes memory in every backend that
/// writes, and a few kilobytes of `"$record"` would use up all memory. This is ten times the columns of the widest
/// table.
const MAX_VALUES: usize = 16_000;

/// Where a value comes from.
#[derive(Clone, Copy)]
enum Source {
    /// A column of the new row.
    New(usize),
    /// A column of the old row.
    Old(usize),
    /// An object with the old values of the captured columns that have changed.
    Changed,
}

impl PayloadPlan {
    /// Compiles the JSON text of a payload with its placeholders.
    pub fn compile(json: &str, table: &WatchedTable<'_>, operation: Operation) -> Result<Self, WatchError> {
        thread_local!(static NUMBERS: Cell<u64> = const { Cell::new(0) });
        let value: Value = serde_json::from_str(json).map_err(|error| WatchError::Payload(error.to_string()))?;
        let mut compiler = Compiler { text: String::new(), sources: Vec::new(), is_full: false, table, operation };
        compiler.value(&value)?;
        let Compiler { text, sources, is_full: is_too_long, .. } = compiler;
        NUMBERS.set(NUMBERS.get() + 1);
        let stored_outline = outline::shorten(&text);
        Ok(Self { number: NUMBERS.get(), outline: text, stored_outline, sources, is_too_long })
    }

    /// A payload that is the value of one column, and nothing else.
    pub fn of_column(index: usize) -> Self {
        let outline = "\0".to_owned();
        let stored_outline = outline::shorten(&outline);
        Self { number: 0, outline, stored_outline, sources: vec![Source::New(index)], is_too_long: false }
    }

    /// The columns of the new row that it has values of.
    pub fn columns(&self) -> impl Iterator<Item = usize> {
        self.sources.iter().filter_map(|source| match source {
            Source::New(index) => Some(*index),
            Source::Old(_) | Source::Changed => None,
        })
    }

    /// Packs the values of a change's payload. Fails if the payload would exceed the limit.
    pub fn pack(&self, row: &mut Row, columns: &Columns, change: &Change<'_>, limit: Limit) -> Result<(), TooLong> {
        if self.is_too_long {
            return Err(TooLong);
        }
        let (old, new) = (change.old_row(), change.new_row());
        for source in &self.sources {
            row.push(|out| match (*source, old, new) {
                (Source::New(index), _, new) => columns.pack_value(out, index, new, limit),
                (Source::Old(index), old, _) => columns.pack_value(out, index, old, limit),
                (Source::Changed, Some(old), Some(new)) => columns.pack_changed(out, old, new, limit),
                // Compiled for an UPDATE only, which has both rows.
                (Source::Changed, _, _) => Ok(()),
            })?;
            check_packed(row.size(), limit)?;
        }
        if limit.check(self.max_length(row)).is_err() {
            outline::fill(&self.outline, row, limit).map_err(|_| TooLong)?;
        }
        Ok(())
    }

    /// An upper bound for the length of the payload with these values.
    pub fn max_length(&self, row: &Row) -> usize {
        self.outline.len() + WIDEST * row.size() + "null".len() * row.count()
    }

    /// The payload with the values that [`Self::pack`] has packed.
    pub fn fill(&self, row: &Row) -> String {
        outline::fill(&self.outline, row, Limit::NONE)
            .expect("packed values can be rendered, and there are as many values as places")
    }
}

/// The table that a payload is compiled for.
pub struct WatchedTable<'a> {
    /// Its columns.
    pub columns: &'a Columns,
    /// The name of its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What `old_record` is in the event of an UPDATE.
    pub old_record: OldRecord,
}

/// Turns a JSON value with placeholders into an outline and its sources.
struct Compiler<'a> {
    text: String,
    sources: Vec<Source>,
    /// It has more than [`MAX_VALUES`] values; the further ones are left out.
    is_full: bool,
    table: &'a WatchedTable<'a>,
    operation: Operation,
}

impl Compiler<'_> {
    fn source(&mut self, source: Source) {
        self.is_full |= self.sources.len() == MAX_VALUES;
        if !self.is_full {
            self.text.push('\0');
            self.sources.push(source);
        }
    }

    fn string(&mut self, text: &str) {
        self.text += &string::quoted(text);
    }

    fn value(&mut self, value: &Value) -> Result<(), WatchError> {
        match value {
            Value::String(text) => self.placeholder(text)?,
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.text.push(if i == 0 { '[' } else { ',' });
                    self.value(item)?;
                }
                self.text += if items.is_empty() { "[]" } else { "]" };
            }
            Value::Object(members) => {
                for (i, (key, member)) in members.iter().enumerate() {
                    self.text.push(if i == 0 { '{' } else { ',' });
                    self.string(key);
                    self.text.push(':');
                    self.value(member)?;
                }
                self.text += if members.is_empty() { "{}" } else { "}" };
            }
            scalar => self.text += &scalar.to_string(),
        }
        Ok(())
    }

    fn placeholder(&mut self, text: &str) -> Result<(), WatchError> {
        use Operation::{Delete, Insert, Snapshot, Truncate, Update};
        let Some(name) = text.strip_prefix('$') else {
            self.string(text);
            return Ok(());
        };
        let WatchedTable { columns, schema, name: table, old_record } = *self.table;
        match name {
            _ if name.starts_with('$') => self.string(name),
            "schema" => self.string(schema),
            "table" => self.string(table),
            "type" => self.string(self.operation.name()),
            "record" => match self.operation {
                Insert | Update | Snapshot => self.record(Source::New),
                Delete | Truncate => self.text += "null",
            },
            "old_record" => match (self.operation, old_record) {
                (Update, OldRecord::Changed) => self.source(Source::Changed),
                (Update, OldRecord::Full) | (Delete, _) => self.record(Source::Old),
                _ => self.text += "null",
            },
            _ => {
                let old = name.strip_prefix("old.");
                let index = columns.find(old.unwrap_or(name))?;
                match (self.operation, old) {
                    (Insert | Update | Snapshot, None) => self.source(Source::New(index)),
                    (Delete, None) | (Update | Delete, Some(_)) => self.source(Source::Old(index)),
                    _ => self.text += "null",
                }
            }
        }
        Ok(())
    }

    /// An object with all captured columns of a row.
    fn record(&mut self, source: impl Fn(usize) -> Source) {
        for (i, index) in self.table.columns.captured().iter().enumerate() {
            if self.is_full {
                return;
            }
            self.text.push(if i == 0 { '{' } else { ',' });
            self.text += self.table.columns.key(*index);
            self.source(source(*index));
        }
        self.text += if self.table.columns.captured().is_empty() { "{}" } else { "}" };
    }
}
