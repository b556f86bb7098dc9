//! The columns of a watched table: which ones are captured, and how their values are packed.

use pgrx::prelude::*;
use tidings_wire::{Limit, TooLong, string, value};

use crate::capture::change::Tuple;
use crate::errors::WatchError;
use crate::value::column_value::ColumnValue;
use crate::value::writer::{Writer, check_packed};

/// The columns of a table.
pub struct Columns {
    /// By attribute number minus one. None for dropped columns and virtual ones.
    all: Vec<Option<Column>>,
    /// The names of virtual generated columns, which have no value in a trigger (from PostgreSQL 18 on).
    virtual_columns: Vec<String>,
    /// The indexes of the columns that records include. An UPDATE is an event only if one of them changes.
    captured: Vec<usize>,
    /// The memory in which the writers keep their look-ups.
    context: pg_sys::MemoryContext,
}

struct Column {
    name: String,
    /// The name as a key in JSON, with the colon.
    key: String,
    writer: Writer,
}

/// `ATTRIBUTE_GENERATED_VIRTUAL`, which exists from PostgreSQL 18 on.
const VIRTUAL: std::ffi::c_char = b'v' as std::ffi::c_char;

impl Columns {
    /// The columns of a table. Those in `only` are captured; if it is empty, all except those in `exclude`.
    ///
    /// # Safety
    /// The relation is open and locked.
    pub unsafe fn of(relation: pg_sys::Relation, only: &[&str], exclude: &[&str]) -> Result<Self, WatchError> {
        // SAFETY: the relation is open, as the caller promises, so its descriptor is alive.
        let descriptor = unsafe { pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att) };
        Self::of_descriptor(&descriptor, only, exclude)
    }

    /// The same of rows of any origin.
    pub fn of_descriptor(
        descriptor: &pgrx::PgTupleDesc<'_>,
        only: &[&str],
        exclude: &[&str],
    ) -> Result<Self, WatchError> {
        // SAFETY: the parent context lives as long as the process; the new one lives until this value is dropped.
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

    /// The number of attributes of a row, including dropped ones.
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

    /// The indexes of the columns that records include.
    pub fn captured(&self) -> &[usize] {
        &self.captured
    }

    /// The column's name as a key in JSON, with the colon.
    pub fn key(&self, index: usize) -> &str {
        &self.column(index).key
    }

    /// The value of a column in a row, if it is not NULL.
    pub fn value<'row>(&self, index: usize, row: &'row Tuple) -> Option<ColumnValue<'row>> {
        // SAFETY: a row that was taken apart is used with the columns of its own table only, as `Tuple::take_apart`
        // requires. So the datum is of this column's type, and it lives as long as the row is borrowed.
        row.get(index).map(|datum| unsafe { ColumnValue::new(datum) })
    }

    /// The writer that packs a column's values.
    pub fn writer(&self, index: usize) -> &Writer {
        &self.column(index).writer
    }

    /// Whether a column has the same value in two rows.
    pub fn same(&self, index: usize, a: &Tuple, b: &Tuple) -> bool {
        match (self.value(index, a), self.value(index, b)) {
            (Some(a), Some(b)) => self.writer(index).same(a, b),
            (a, b) => a.is_none() && b.is_none(),
        }
    }

    /// Whether the value of a captured column has changed.
    pub fn changed(&self, old: &Tuple, new: &Tuple) -> bool {
        self.captured.iter().any(|index| !self.same(*index, old, new))
    }

    /// Packs one value of a row. NULL and the value of a missing row take no bytes. See [`Writer::pack`].
    pub fn pack_value(
        &self,
        out: &mut Vec<u8>,
        index: usize,
        row: Option<&Tuple>,
        limit: Limit,
    ) -> Result<(), TooLong> {
        let value = row.and_then(|row| self.value(index, row));
        value.map_or(Ok(()), |value| self.writer(index).pack(out, value, limit))
    }

    /// Packs the old values of the captured columns that have changed, as an object.
    pub fn pack_changed(&self, out: &mut Vec<u8>, old: &Tuple, new: &Tuple, limit: Limit) -> Result<(), TooLong> {
        let before = out.len();
        value::pack_members(out);
        for &index in self.captured.iter().filter(|index| !self.same(**index, old, new)) {
            let key = |out: &mut Vec<u8>| {
                out.extend_from_slice(self.key(index).as_bytes());
                Ok(())
            };
            value::pack_part(out, key)?;
            value::pack_part(out, |out| self.pack_value(out, index, Some(old), limit))?;
            check_packed(out.len() - before, limit)?;
        }
        Ok(())
    }
}

impl Drop for Columns {
    fn drop(&mut self) {
        // SAFETY: the context was created for this value, and nothing in it is used any more.
        unsafe { pg_sys::MemoryContextDelete(self.context) }
    }
}
