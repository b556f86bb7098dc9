//! The columns of a watched table: which of them are captured, and how their values are packed.

use pgrx::prelude::*;
use tidings_wire::{string, value};

use crate::capture::payload::{Change, Tuple};
use crate::errors::WatchError;
use crate::value::writer::{TooLong, Writer, check_packed};

/// The columns of a table, by attribute number less one.
pub struct Columns {
    all: Vec<Option<Column>>,
    /// The names of those that have no value in a trigger and so are not in `all` (from PostgreSQL 18 on).
    virtual_columns: Vec<String>,
    /// Those that go into records and whose change makes an UPDATE an event.
    captured: Vec<usize>,
    /// Where the writers' function look-ups live.
    context: pg_sys::MemoryContext,
}

struct Column {
    name: String,
    /// The name as the key of a JSON member, with its colon.
    key: String,
    writer: Writer,
}

/// `ATTRIBUTE_GENERATED_VIRTUAL`, which PostgreSQL has from 18 on.
const VIRTUAL: std::ffi::c_char = b'v' as std::ffi::c_char;

impl Columns {
    /// The columns of a table; those to capture are named by `only`, or are all but those named by `exclude`.
    ///
    /// # Safety
    /// The relation is open and locked.
    pub unsafe fn of(relation: pg_sys::Relation, only: &[&str], exclude: &[&str]) -> Result<Self, WatchError> {
        // SAFETY: the context lives under the cache's context until this value is dropped.
        let context = unsafe {
            pg_sys::AllocSetContextCreateInternal(
                pg_sys::CacheMemoryContext,
                c"tidings watch".as_ptr(),
                pg_sys::ALLOCSET_SMALL_MINSIZE as usize,
                pg_sys::ALLOCSET_SMALL_INITSIZE as usize,
                pg_sys::ALLOCSET_SMALL_MAXSIZE as usize,
            )
        };
        let mut columns = Self { all: Vec::new(), virtual_columns: Vec::new(), captured: Vec::new(), context };
        // SAFETY: the caller holds the relation open; its descriptor has natts attributes.
        let descriptor = unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att) };
        for attribute in (0..descriptor.len()).map(|i| descriptor.get(i)) {
            let attribute = attribute.filter(|a| !a.attisdropped);
            if let Some(attribute) = attribute.filter(|a| a.attgenerated == VIRTUAL) {
                columns.virtual_columns.push(attribute.name().into());
                columns.all.push(None);
                continue;
            }
            columns.all.push(attribute.map(|attribute| {
                let key = string::quoted(attribute.name()) + ":";
                let writer = Writer::new(attribute.atttypid, attribute.attbyval, attribute.attlen, context);
                Column { name: attribute.name().into(), key, writer }
            }));
        }
        columns.captured = match (only, exclude) {
            ([], []) => columns.indexes().collect(),
            (names, []) => names.iter().map(|name| columns.find(name)).collect::<Result<_, _>>()?,
            ([], names) => {
                let left_out: Vec<_> = names.iter().map(|name| columns.find(name)).collect::<Result<_, _>>()?;
                columns.indexes().filter(|index| !left_out.contains(index)).collect()
            }
            _ => return Err(WatchError::ColumnsAndExclude),
        };
        if let Some(twice) =
            columns.captured.iter().enumerate().find(|(i, index)| columns.captured[..*i].contains(index))
        {
            return Err(WatchError::RepeatedColumn(columns.column(*twice.1).name.clone()));
        }
        if columns.captured.is_empty() && columns.indexes().next().is_some() {
            return Err(WatchError::NoColumns);
        }
        Ok(columns)
    }

    fn indexes(&self) -> impl Iterator<Item = usize> {
        self.all.iter().enumerate().filter_map(|(index, column)| column.as_ref().map(|_| index))
    }

    /// How many attributes a row has, dropped ones included.
    pub fn count(&self) -> usize {
        self.all.len()
    }

    /// The index of the column with this name.
    pub fn find(&self, name: &str) -> Result<usize, WatchError> {
        let named = |column: &Option<Column>| column.as_ref().is_some_and(|column| column.name == name);
        self.all.iter().position(named).ok_or_else(|| {
            let is_virtual = self.virtual_columns.iter().any(|column| column == name);
            if is_virtual { WatchError::Virtual(name.into()) } else { WatchError::Column(name.into()) }
        })
    }

    fn column(&self, index: usize) -> &Column {
        self.all[index].as_ref().expect("only live columns are captured or named")
    }

    /// The columns that go into records.
    pub fn captured(&self) -> &[usize] {
        &self.captured
    }

    /// The column's name as the key of a JSON member, with its colon.
    pub fn key(&self, index: usize) -> &str {
        &self.column(index).key
    }

    /// What packs a column's values.
    pub fn writer(&self, index: usize) -> &Writer {
        &self.column(index).writer
    }

    /// Whether a column has the same value in two rows.
    pub fn same(&self, index: usize, a: &Tuple, b: &Tuple) -> bool {
        match (a.get(index), b.get(index)) {
            (Some(a), Some(b)) => self.writer(index).same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// Whether a captured column has changed.
    pub fn changed(&self, old: &Tuple, new: &Tuple) -> bool {
        self.captured.iter().any(|index| !self.same(*index, old, new))
    }

    /// Packs one value of a row, if there is one; see [`Writer::pack`].
    pub fn pack_value(&self, out: &mut Vec<u8>, index: usize, row: Option<&Tuple>, most: usize) -> Result<(), TooLong> {
        row.and_then(|row| row.get(index)).map_or(Ok(()), |value| self.writer(index).pack(out, value, most))
    }

    /// Packs the old values of the captured columns that have changed, as an object.
    pub fn pack_changed(&self, out: &mut Vec<u8>, change: &Change<'_>, most: usize) -> Result<(), TooLong> {
        let before = out.len();
        value::pack_members(out);
        let (Some(old), Some(new)) = (change.old, change.new) else { return Ok(()) };
        for &index in self.captured.iter().filter(|index| !self.same(**index, old, new)) {
            let key = |out: &mut Vec<u8>| {
                out.extend_from_slice(self.key(index).as_bytes());
                Ok(())
            };
            value::pack_part(out, key)?;
            value::pack_part(out, |out| self.pack_value(out, index, change.old, most))?;
            check_packed(out.len() - before, most)?;
        }
        Ok(())
    }
}

impl Drop for Columns {
    fn drop(&mut self) {
        // SAFETY: made by this value, and nothing that lives in it is used any more.
        unsafe { pg_sys::MemoryContextDelete(self.context) }
    }
}
