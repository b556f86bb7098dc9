//! One change of a row, as the trigger receives it.

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};

use pgrx::pg_sys;

use crate::foreign::infallible::heap_deform_tuple;

/// A change, with the rows that it has.
#[derive(Clone, Copy)]
pub enum Change<'a> {
    /// The row is new, or new to its topic.
    Insert {
        /// The new row.
        new: &'a Tuple,
    },
    /// Values of the row have changed.
    Update {
        /// The row before the change.
        old: &'a Tuple,
        /// The row after the change.
        new: &'a Tuple,
    },
    /// The row is gone, or gone from its topic.
    Delete {
        /// The row that is gone.
        old: &'a Tuple,
    },
    /// All rows are gone.
    Truncate,
}

/// What an event says of a row: the kind of a change, or that the row is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    Insert,
    Update,
    Delete,
    Truncate,
    /// The row is there, and a stream starts with it. No change is of this kind.
    Snapshot,
}

impl Operation {
    /// The kinds of changes, in the order of their numbers.
    pub const ALL: [Self; 4] = [Self::Insert, Self::Update, Self::Delete, Self::Truncate];

    /// Its name in SQL, or the like.
    pub fn name(self) -> &'static str {
        match self {
            Self::Insert => "INSERT",
            Self::Update => "UPDATE",
            Self::Delete => "DELETE",
            Self::Truncate => "TRUNCATE",
            Self::Snapshot => "SNAPSHOT",
        }
    }
}

impl<'a> Change<'a> {
    /// The kind of the change.
    pub fn operation(&self) -> Operation {
        match self {
            Self::Insert { .. } => Operation::Insert,
            Self::Update { .. } => Operation::Update,
            Self::Delete { .. } => Operation::Delete,
            Self::Truncate => Operation::Truncate,
        }
    }

    /// The new row, if there is one.
    pub fn new_row(&self) -> Option<&'a Tuple> {
        match *self {
            Self::Insert { new } | Self::Update { new, .. } => Some(new),
            Self::Delete { .. } | Self::Truncate => None,
        }
    }

    /// The old row, if there is one.
    pub fn old_row(&self) -> Option<&'a Tuple> {
        match *self {
            Self::Update { old, .. } | Self::Delete { old } => Some(old),
            Self::Insert { .. } | Self::Truncate => None,
        }
    }
}

/// A row, taken apart: one value and one null flag for each attribute, including dropped ones.
#[derive(Default)]
pub struct Tuple {
    /// The values; meaningless where `nulls` is true.
    values: Vec<pg_sys::Datum>,
    /// Which of them are NULL.
    nulls: Vec<bool>,
}

impl Tuple {
    /// Takes a row apart, into the memory of this one.
    ///
    /// # Safety
    /// `row` is a row of `relation`, which has `count` attributes. It stays alive and unchanged until this is used for
    /// the next row or dropped. Until then this is used only with the columns of a watch on that relation.
    pub unsafe fn take_apart(&mut self, row: pg_sys::HeapTuple, relation: pg_sys::Relation, count: usize) {
        self.values.resize(count, pg_sys::Datum::null());
        self.nulls.resize(count, true);
        // SAFETY: the row is alive and belongs to the relation, as the caller promises; both vectors have `count`
        // places.
        unsafe {
            prefetch_before((*row).t_data.cast(), (*row).t_len as usize);
            heap_deform_tuple(row, (*relation).rd_att, self.values.as_mut_ptr(), self.nulls.as_mut_ptr());
        }
    }

    /// A row with these values, and one null flag for each.
    ///
    /// # Safety
    /// They are the values of a row of the columns that this is used with, and stay alive as long as this is used.
    pub unsafe fn of(values: Vec<pg_sys::Datum>, nulls: Vec<bool>) -> Self {
        Self { values, nulls }
    }

    /// The value of the attribute with this index, if it is not NULL.
    pub fn get(&self, index: usize) -> Option<pg_sys::Datum> {
        (!self.nulls[index]).then(|| self.values[index])
    }
}

/// Prefetches the memory before a row. A page is filled from its end, so the next row of a bulk change lies there. It
/// is in no cache any more, because all rows were written before the first trigger ran. Without this, an UPDATE of wide
/// rows waits for memory during a tenth of its time.
#[cfg(target_arch = "x86_64")]
fn prefetch_before(start: *const u8, length: usize) {
    const LINE: usize = 64;
    for distance in (0..length + 2 * LINE).step_by(LINE) {
        // SAFETY: a prefetch is only a hint; it has no effect if the address is invalid.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(start.wrapping_sub(distance).cast()) };
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn prefetch_before(_start: *const u8, _length: usize) {}
