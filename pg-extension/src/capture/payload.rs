//! A whole event's payload: the default record form, or the shape that the watch gives, as one outline for each
//! operation.

use std::cell::Cell;

use serde_json::Value;
use tidings_wire::value::WIDEST;
use tidings_wire::{Row, outline, string};

use crate::capture::columns::Columns;
use crate::errors::WatchError;
use crate::value::writer::{TooLong, check_packed};

/// What happened to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// It is new, or new to its topic.
    Insert,
    /// It has other values than before.
    Update,
    /// It is gone, or gone from its topic.
    Delete,
    /// All rows are gone.
    Truncate,
}

/// A row as the trigger got it: one value and one null flag for each attribute, dropped ones included.
#[derive(Default)]
pub struct Tuple {
    /// The values; meaningless where `nulls` is true.
    pub values: Vec<pgrx::pg_sys::Datum>,
    /// Which of them are NULL.
    pub nulls: Vec<bool>,
}

impl Tuple {
    /// The value of the attribute with this index, if it is not NULL.
    pub fn get(&self, index: usize) -> Option<pgrx::pg_sys::Datum> {
        (!self.nulls[index]).then(|| self.values[index])
    }
}

/// One change, as it is to be told.
pub struct Change<'a> {
    /// The new row.
    pub new: Option<&'a Tuple>,
    /// The old row.
    pub old: Option<&'a Tuple>,
}

/// What an UPDATE tells of the old row. A DELETE always tells the whole of it: there is nothing else to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OldRecord {
    /// The previous values of the columns that changed.
    Changed,
    /// The whole old row.
    Full,
    /// Nothing.
    None,
}

/// The payload of a watch that gives none.
pub const DEFAULT: &str =
    r#"{"schema":"$schema","table":"$table","type":"$type","record":"$record","old_record":"$old_record"}"#;

/// What is sent instead of a default payload that is too long.
pub const DEFAULT_TRUNCATED: &str =
    r#"{"schema":"$schema","table":"$table","type":"$type","record":null,"old_record":null,"truncated":true}"#;

/// What is sent instead of any other.
pub const TRUNCATED: &str = r#"{"truncated":true}"#;

/// What the payloads of a watch have in common, for one operation: constant text, and values between.
pub struct Outline {
    /// Tells it from all others of this process.
    pub number: u64,
    /// The text, with a NUL for each value.
    pub text: String,
    /// The text as it is stored.
    pub short: String,
    /// Where the values come from.
    sources: Vec<Source>,
    /// It asks for more than [`MOST_VALUES`].
    is_too_long: bool,
}

/// Who asks for more values in a payload gets none of them, as if it were too long: each takes memory in every backend
/// that writes, and a few kilobytes of `"$record"` would ask for all that there is. Ten times all columns of the widest
/// table.
const MOST_VALUES: usize = 16_000;

/// Where a value comes from.
#[derive(Clone, Copy)]
enum Source {
    /// A column of the new row.
    New(usize),
    /// A column of the old row.
    Old(usize),
    /// The captured columns that have changed, as an object of their old values.
    Changed,
}

impl Operation {
    /// All of them, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
        }
    }
}

impl Outline {
    /// Compiles the JSON text of a payload with its placeholders.
    pub fn compile(json: &str, table: &Table<'_>, operation: Operation) -> Result<Self, WatchError> {
        thread_local!(static NUMBERS: Cell<u64> = const { Cell::new(0) });
        let value: Value = serde_json::from_str(json).map_err(|error| WatchError::Payload(error.to_string()))?;
        let mut compiler = Compiler { text: String::new(), sources: Vec::new(), is_full: false, table, operation };
        compiler.value(&value)?;
        let Compiler { text, sources, is_full: is_too_long, .. } = compiler;
        NUMBERS.set(NUMBERS.get() + 1);
        Ok(Self { number: NUMBERS.get(), short: outline::shorten(&text), text, sources, is_too_long })
    }

    /// Packs the values of a change's payload. Gives up on a payload of more than `most` bytes.
    pub fn pack(&self, row: &mut Row, columns: &Columns, change: &Change<'_>, most: usize) -> Result<(), TooLong> {
        if self.is_too_long {
            return Err(TooLong);
        }
        for source in &self.sources {
            row.push(|out| match *source {
                Source::New(index) => columns.pack_value(out, index, change.new, most),
                Source::Old(index) => columns.pack_value(out, index, change.old, most),
                Source::Changed => columns.pack_changed(out, change, most),
            })?;
            check_packed(row.size(), most)?;
        }
        if self.widest(row) > most {
            outline::fill(&self.text, row, most).map_err(|_| TooLong)?;
        }
        Ok(())
    }

    /// No payload with these values is longer.
    pub fn widest(&self, row: &Row) -> usize {
        self.text.len() + WIDEST * row.size() + "null".len() * row.count()
    }

    /// The payload with the values that it has packed.
    pub fn fill(&self, row: &Row) -> String {
        outline::fill(&self.text, row, usize::MAX)
            .expect("whatever was packed can be written, and there are as many values as places")
    }
}

/// The table that a payload is compiled for.
pub struct Table<'a> {
    /// Its columns.
    pub columns: &'a Columns,
    /// The name of its schema.
    pub schema: &'a str,
    /// Its name.
    pub name: &'a str,
    /// What an UPDATE tells of the old row.
    pub old_record: OldRecord,
}

/// Cuts a JSON value at its placeholders.
struct Compiler<'a> {
    text: String,
    sources: Vec<Source>,
    /// There is no room for one more.
    is_full: bool,
    table: &'a Table<'a>,
    operation: Operation,
}

impl Compiler<'_> {
    fn source(&mut self, source: Source) {
        self.is_full |= self.sources.len() == MOST_VALUES;
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
        use Operation::{Delete, Insert, Truncate, Update};
        let Some(name) = text.strip_prefix('$') else {
            self.string(text);
            return Ok(());
        };
        let Table { columns, schema, name: table, old_record } = *self.table;
        match name {
            _ if name.starts_with('$') => self.string(name),
            "schema" => self.string(schema),
            "table" => self.string(table),
            "type" => self.string(self.operation.name()),
            "record" => match self.operation {
                Insert | Update => self.record(Source::New),
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
                    (Insert | Update, None) => self.source(Source::New(index)),
                    (Delete, None) | (Update | Delete, Some(_)) => self.source(Source::Old(index)),
                    _ => self.text += "null",
                }
            }
        }
        Ok(())
    }

    /// All captured columns of a row, as an object.
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
