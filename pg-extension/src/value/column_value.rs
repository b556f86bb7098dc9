//! A value that may be trusted: the code that makes one promises that it is valid and of its column's type, so that
//! packing it is safe.

use std::marker::PhantomData;

use pgrx::pg_sys;

/// The value of a column in a row, or of an element in an array. It is not NULL.
#[derive(Clone, Copy)]
pub struct ColumnValue<'row> {
    datum: pg_sys::Datum,
    row: PhantomData<&'row ()>,
}

impl ColumnValue<'_> {
    /// # Safety
    /// The datum is not NULL, is of the type of every [`Writer`](super::writer::Writer) that it will be given to, and
    /// what it points to stays alive and unchanged for the lifetime.
    pub unsafe fn new(datum: pg_sys::Datum) -> Self {
        Self { datum, row: PhantomData }
    }

    /// The datum.
    pub fn datum(self) -> pg_sys::Datum {
        self.datum
    }
}
