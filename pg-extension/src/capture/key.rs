//! The unique keys of a row, in short. They tell whether a command made a row with a key that another row had before.

use std::hash::{DefaultHasher, Hasher};

use pgrx::pg_sys;
use pgrx::pg_sys::IndexAttrBitmapKind::{INDEX_ATTR_BITMAP_KEY, INDEX_ATTR_BITMAP_PRIMARY_KEY};

use crate::capture::change::Tuple;
use crate::foreign::datum_image_hash;

/// The types of which equal values have equal images, except for collations. Others are `numeric`, where 1.0 is 1.00,
/// and all that are not listed here.
const EXACT: [pg_sys::Oid; 12] = [
    pg_sys::BOOLOID,
    pg_sys::INT2OID,
    pg_sys::INT4OID,
    pg_sys::INT8OID,
    pg_sys::OIDOID,
    pg_sys::UUIDOID,
    pg_sys::DATEOID,
    pg_sys::TIMESTAMPOID,
    pg_sys::TIMESTAMPTZOID,
    pg_sys::BYTEAOID,
    pg_sys::TEXTOID,
    pg_sys::VARCHAROID,
];

/// The collations in which different texts are never equal, as far as they are known without a look at the catalog:
/// that of a type without any, the database's, and `C`.
const EXACT_COLLATIONS: [pg_sys::Oid; 3] = [pg_sys::InvalidOid, pg_sys::DEFAULT_COLLATION_OID, pg_sys::C_COLLATION_OID];

/// The values of a row in all columns of unique keys.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key {
    table: pg_sys::Oid,
    hash: u64,
    /// The primary key has one column and is the table's only key, and two rows have the same key only if the hash is
    /// the same.
    is_exact: bool,
}

/// A table's OID, and the hash of a key; `None` stands for any key of the table.
pub type Name = (u32, Option<u64>);

impl Key {
    /// The key by which its row can be found again.
    pub fn name(self) -> Name {
        (self.table.to_u32(), self.is_exact.then_some(self.hash))
    }
}

/// The keys of a row.
///
/// # Safety
/// The row is alive and one of the relation, which is open and locked.
pub unsafe fn key(relation: pg_sys::Relation, row: pg_sys::HeapTuple) -> Key {
    let mut hasher = DefaultHasher::new();
    let mut values = Tuple::default();
    // SAFETY: the relation is open and the row is one of its rows, as the caller promises. Only rows of a heap table
    // have the attributes in the order of the descriptor, which says how each of them is stored. A set of columns is
    // null if it is empty.
    unsafe {
        let columns = pg_sys::RelationGetIndexAttrBitmap(relation, INDEX_ATTR_BITMAP_KEY);
        let primary = pg_sys::RelationGetIndexAttrBitmap(relation, INDEX_ATTR_BITMAP_PRIMARY_KEY);
        // If there are several columns, some of them may be another key.
        let is_single = pg_sys::bms_membership(columns) == pg_sys::BMS_Membership::BMS_SINGLETON;
        let mut is_exact = is_single && pg_sys::bms_equal(columns, primary);
        let descriptor = pgrx::PgTupleDesc::from_pg_unchecked((*relation).rd_att);
        values.take_apart(row, relation, descriptor.len());
        let mut member = -1;
        loop {
            member = pg_sys::bms_next_member(columns, member);
            // The set has room for the columns of the system, which have numbers below zero.
            let index = usize::try_from(member + pg_sys::FirstLowInvalidHeapAttributeNumber - 1).ok();
            let Some(index) = index.filter(|_| member >= 0) else { break };
            let Some(attribute) = descriptor.get(index) else { continue };
            is_exact &= EXACT.contains(&attribute.atttypid) && EXACT_COLLATIONS.contains(&attribute.attcollation);
            match values.get(index) {
                Some(value) => hasher.write_u32(datum_image_hash(value, attribute.attbyval, attribute.attlen.into())),
                None => hasher.write_u8(0),
            }
        }
        Key { table: (*relation).rd_id, hash: hasher.finish(), is_exact }
    }
}
