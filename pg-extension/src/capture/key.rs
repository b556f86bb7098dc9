//! The primary key of a row, in short. It tells whether a command made a row whose key another row had before.

use std::hash::{DefaultHasher, Hasher};

use pgrx::pg_sys;

use crate::capture::change::Tuple;
use crate::foreign::datum_image_hash;

/// A table's OID, and a hash of the values in its primary key.
pub type Key = (u32, u64);

/// The key of a row; `None` if its table has no primary key.
///
/// # Safety
/// The row is alive and one of the relation, which is open and locked.
pub unsafe fn key(relation: pg_sys::Relation, row: pg_sys::HeapTuple) -> Option<Key> {
    let mut hasher = DefaultHasher::new();
    let mut values = Tuple::default();
    // SAFETY: the relation is open and the row is one of its rows, as the caller promises. Only rows of a heap table
    // have the attributes in the order of the descriptor, which says how each of them is stored. A set of columns is
    // null if it is empty.
    unsafe {
        let columns =
            pg_sys::RelationGetIndexAttrBitmap(relation, pg_sys::IndexAttrBitmapKind::INDEX_ATTR_BITMAP_PRIMARY_KEY);
        if columns.is_null() {
            return None;
        }
        let descriptor = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        values.take_apart(row, relation, descriptor.len());
        let mut member = -1;
        loop {
            member = pg_sys::bms_next_member(columns, member);
            // The set has room for the columns of the system, which have numbers below zero.
            let index = usize::try_from(member + pg_sys::FirstLowInvalidHeapAttributeNumber - 1).ok();
            let Some(index) = index.filter(|_| member >= 0) else { break };
            let (Some(attribute), Some(value)) = (descriptor.get(index), values.get(index)) else { continue };
            hasher.write_u32(datum_image_hash(value, attribute.attbyval, attribute.attlen.into()));
        }
        Some(((*relation).rd_id.to_u32(), hasher.finish()))
    }
}
