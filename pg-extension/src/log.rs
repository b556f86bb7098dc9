//! One segment into `tidings.log`, whoever the writer is.

use std::cell::RefCell;
use std::ffi::CString;
use std::sync::atomic::Ordering::Relaxed;

use pgrx::prelude::*;
use pgrx::spi::OwnedPreparedStatement;
use tidings_wire::segment;

use crate::shared::{self, SLOTS};
use crate::tick::xid8;

/// A run of events that goes into one row.
pub struct Segment<'a> {
    /// How many events of its transaction were captured before it.
    pub ordinal: i64,
    /// How many events it holds.
    pub events: i32,
    /// The events, encoded, without the version byte.
    pub bytes: &'a [u8],
}

thread_local! {
    static INSERT: RefCell<[Option<OwnedPreparedStatement>; SLOTS]> = const { RefCell::new([const { None }; SLOTS]) };
}

/// Writes one segment with the rights of the extension's owner.
///
/// Raises what any write may raise (disk full, out of memory); the transaction is then aborted like by any other write.
/// Does nothing if the extension was dropped in this transaction: with it went the watches.
pub fn write(segment: &Segment<'_>) {
    let slot = shared::my_database().map_or(0, |db| db.slot.load(Relaxed)) as usize % SLOTS;
    let Some(owner) = owner() else { return };
    let _owner = AsOwner::switch(owner);
    let mut data = Vec::with_capacity(segment.bytes.len() + 1);
    data.push(segment::VERSION);
    data.extend_from_slice(segment.bytes);
    // SAFETY: called inside a transaction that may write; it gets its id here at the latest.
    let xid = unsafe { pg_sys::GetTopFullTransactionId() }.value;

    Spi::connect_mut(|client| {
        let plan = INSERT.with_borrow_mut(|plans| plans[slot].take());
        let plan = match plan {
            Some(plan) => plan,
            None => {
                let sql = format!(
                    "INSERT INTO tidings.log_{slot} (slot, xid, stamp, ordinal, events, data) VALUES ({slot}, $1, $2, $3, $4, $5)"
                );
                let types = [pg_sys::XID8OID, pg_sys::INT8OID, pg_sys::INT8OID, pg_sys::INT4OID, pg_sys::BYTEAOID];
                client.prepare_mut(sql.as_str(), &types.map(PgOid::from))?.keep()
            }
        };
        // The stamp is taken last, so that it is later than anything this transaction waited for.
        let args = [
            xid8(xid),
            (shared::next_stamp() as i64).into(),
            segment.ordinal.into(),
            segment.events.into(),
            data.into(),
        ];
        client.update(&plan, None, &args)?;
        INSERT.with_borrow_mut(|plans| plans[slot] = Some(plan));
        Ok::<_, spi::Error>(())
    })
    .unwrap_or_else(|error| error!("cannot write to tidings.log: {error}"));
}

/// Who owns the log, or None if it is not there.
fn owner() -> Option<pg_sys::Oid> {
    let name = CString::from(c"log");
    // SAFETY: plain look-ups in the system caches, inside a transaction; the tuple is released before its cache entry.
    unsafe {
        let namespace = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        let relation = pg_sys::get_relname_relid(name.as_ptr(), namespace);
        let tuple = pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, relation.into());
        if tuple.is_null() {
            return None;
        }
        let class = pg_sys::GETSTRUCT(tuple).cast::<pg_sys::FormData_pg_class>();
        let owner = (*class).relowner;
        pg_sys::ReleaseSysCache(tuple);
        Some(owner)
    }
}

/// The session as the extension's owner sees it, until dropped: its rights, a transaction that may write and no
/// lock timeout, for the only lock in the way is the relay's, held while it truncates an old partition.
struct AsOwner {
    user: pg_sys::Oid,
    context: i32,
    read_only: bool,
    lock_timeout: i32,
}

impl AsOwner {
    fn switch(owner: pg_sys::Oid) -> Self {
        let mut before = Self { user: pg_sys::InvalidOid, context: 0, read_only: false, lock_timeout: 0 };
        // SAFETY: plain variables of this backend; `drop` puts them back, also when an error unwinds.
        unsafe {
            pg_sys::GetUserIdAndSecContext(&mut before.user, &mut before.context);
            before.read_only = pg_sys::XactReadOnly;
            before.lock_timeout = pg_sys::LockTimeout;
            pg_sys::SetUserIdAndSecContext(owner, before.context | pg_sys::SECURITY_LOCAL_USERID_CHANGE as i32);
            pg_sys::XactReadOnly = false;
            pg_sys::LockTimeout = 0;
        }
        before
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        // SAFETY: as in `switch`.
        unsafe {
            pg_sys::SetUserIdAndSecContext(self.user, self.context);
            pg_sys::XactReadOnly = self.read_only;
            pg_sys::LockTimeout = self.lock_timeout;
        }
    }
}
