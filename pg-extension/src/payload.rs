//! A whole event's payload: the default record form, or the shape that the watch gives.

use serde_json::Value;

use crate::columns::Columns;
use crate::value::{self, TooLong};
use crate::watch::WatchError;

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
pub struct Row {
    /// The values; meaningless where `nulls` is true.
    pub values: Vec<pgrx::pg_sys::Datum>,
    /// Which of them are NULL.
    pub nulls: Vec<bool>,
}

impl Row {
    /// The value of the attribute with this index, if it is not NULL.
    pub fn get(&self, index: usize) -> Option<pgrx::pg_sys::Datum> {
        (!self.nulls[index]).then(|| self.values[index])
    }
}

/// One change, as it is to be told.
pub struct Change<'a> {
    /// What happened.
    pub operation: Operation,
    /// The new row.
    pub new: Option<&'a Row>,
    /// The old row.
    pub old: Option<&'a Row>,
    /// The longest payload, in bytes.
    pub most: usize,
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

/// How the payload of a watch looks.
pub enum Shape {
    /// `{"schema", "table", "type", "record", "old_record"}`, with everything up to the type rendered already.
    Default(Vec<u8>),
    /// The JSON that the watch gives, cut at its placeholders.
    Custom(Vec<Piece>),
}

/// One piece of a payload with placeholders.
pub enum Piece {
    /// JSON that stands as it is.
    Json(Vec<u8>),
    /// `$column`: the value in the new row, or in the old one if there is no new one.
    Column(usize),
    /// `$old.column`.
    OldColumn(usize),
    /// `$record`.
    Record,
    /// `$old_record`.
    OldRecord,
    /// `$type`.
    Type,
}

impl Operation {
    fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
        }
    }
}

impl Shape {
    /// The default shape for a table.
    pub fn default_for(schema: &str, table: &str) -> Self {
        let mut head = b"{\"schema\":".to_vec();
        value::string(&mut head, schema.as_bytes());
        head.extend_from_slice(b",\"table\":");
        value::string(&mut head, table.as_bytes());
        head.extend_from_slice(b",\"type\":\"");
        Self::Default(head)
    }

    /// Compiles the JSON text of a custom shape.
    pub fn custom(json: &str, columns: &Columns, schema: &str, table: &str) -> Result<Self, WatchError> {
        let value: Value = serde_json::from_str(json).map_err(|error| WatchError::Payload(error.to_string()))?;
        let mut compiler = Compiler { pieces: Vec::new(), columns, schema, table };
        compiler.value(&value)?;
        Ok(Self::Custom(compiler.pieces))
    }

    /// Writes the payload of a change.
    pub fn write(
        &self,
        out: &mut Vec<u8>,
        columns: &Columns,
        old_record: OldRecord,
        change: &Change<'_>,
    ) -> Result<(), TooLong> {
        match self {
            Self::Default(head) => {
                out.extend_from_slice(head);
                out.extend_from_slice(change.operation.name().as_bytes());
                out.extend_from_slice(b"\",\"record\":");
                columns.write_record(out, change.new, change.most)?;
                out.extend_from_slice(b",\"old_record\":");
                write_old_record(out, columns, old_record, change)?;
                out.push(b'}');
            }
            Self::Custom(pieces) => {
                for piece in pieces {
                    piece.write(out, columns, old_record, change)?;
                }
            }
        }
        if out.len() > change.most { Err(TooLong) } else { Ok(()) }
    }

    /// Writes what is sent instead of a payload that is too long.
    pub fn write_truncated(&self, out: &mut Vec<u8>, operation: Operation) {
        match self {
            Self::Default(head) => {
                out.extend_from_slice(head);
                out.extend_from_slice(operation.name().as_bytes());
                out.extend_from_slice(b"\",\"record\":null,\"old_record\":null,\"truncated\":true}");
            }
            Self::Custom(_) => out.extend_from_slice(b"{\"truncated\":true}"),
        }
    }
}

impl Piece {
    fn write(
        &self,
        out: &mut Vec<u8>,
        columns: &Columns,
        old_record: OldRecord,
        change: &Change<'_>,
    ) -> Result<(), TooLong> {
        match self {
            Self::Json(json) => out.extend_from_slice(json),
            Self::Column(index) => columns.write_value(out, *index, change.new.or(change.old), change.most)?,
            Self::OldColumn(index) => columns.write_value(out, *index, change.old, change.most)?,
            Self::Record => columns.write_record(out, change.new, change.most)?,
            Self::OldRecord => write_old_record(out, columns, old_record, change)?,
            Self::Type => value::string(out, change.operation.name().as_bytes()),
        }
        Ok(())
    }
}

fn write_old_record(
    out: &mut Vec<u8>,
    columns: &Columns,
    old_record: OldRecord,
    change: &Change<'_>,
) -> Result<(), TooLong> {
    match (old_record, change.new, change.old) {
        (OldRecord::Changed, Some(new), Some(old)) => columns.write_changed(out, old, new, change.most),
        (OldRecord::None, Some(_), Some(_)) => columns.write_record(out, None, change.most),
        (_, _, old) => columns.write_record(out, old, change.most),
    }
}

/// Cuts a JSON value at its placeholders.
struct Compiler<'a> {
    pieces: Vec<Piece>,
    columns: &'a Columns,
    schema: &'a str,
    table: &'a str,
}

impl Compiler<'_> {
    fn json(&mut self, json: &[u8]) {
        match self.pieces.last_mut() {
            Some(Piece::Json(last)) => last.extend_from_slice(json),
            _ => self.pieces.push(Piece::Json(json.to_vec())),
        }
    }

    fn string(&mut self, text: &str) {
        let mut json = Vec::new();
        value::string(&mut json, text.as_bytes());
        self.json(&json);
    }

    fn value(&mut self, value: &Value) -> Result<(), WatchError> {
        match value {
            Value::String(text) => self.placeholder(text)?,
            Value::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.json(if i == 0 { b"[" } else { b"," });
                    self.value(item)?;
                }
                self.json(if items.is_empty() { b"[]" } else { b"]" });
            }
            Value::Object(members) => {
                for (i, (key, member)) in members.iter().enumerate() {
                    self.json(if i == 0 { b"{" } else { b"," });
                    self.string(key);
                    self.json(b":");
                    self.value(member)?;
                }
                self.json(if members.is_empty() { b"{}" } else { b"}" });
            }
            scalar => self.json(scalar.to_string().as_bytes()),
        }
        Ok(())
    }

    fn placeholder(&mut self, text: &str) -> Result<(), WatchError> {
        let Some(name) = text.strip_prefix('$') else {
            self.string(text);
            return Ok(());
        };
        let piece = match name {
            _ if name.starts_with('$') => {
                self.string(name);
                return Ok(());
            }
            "schema" => {
                self.string(self.schema);
                return Ok(());
            }
            "table" => {
                self.string(self.table);
                return Ok(());
            }
            "record" => Piece::Record,
            "old_record" => Piece::OldRecord,
            "type" => Piece::Type,
            _ => match name.strip_prefix("old.") {
                Some(column) => Piece::OldColumn(self.columns.find(column)?),
                None => Piece::Column(self.columns.find(name)?),
            },
        };
        self.pieces.push(piece);
        Ok(())
    }
}
