//! The channel that the relay notifies. Any role may listen on a channel whose name it knows. So the name is read and
//! used only here, and never appears in the text of a statement, which views, statistics and logs may show to other
//! roles.

use std::cell::RefCell;
use std::ffi::CString;

use pgrx::prelude::*;
use tidings_wire::LEAVE;

use crate::foreign::infallible::heap_deform_tuple;
use crate::foreign::{Async_Listen, Async_Notify, Async_Unlisten, PreventCommandDuringRecovery};
use crate::log::snapshot::with_latest;
use crate::log::table::Table;
use crate::subscriber::refuse_subscriber;
use crate::{errors, preload, transaction};

thread_local! {
    /// The channel that this session listens on through [`listen`].
    static LISTENING: RefCell<Option<CString>> = const { RefCell::new(None) };
}

/// The committed name of the channel. Called inside a transaction.
pub fn name() -> CString {
    let table = Table::open(c"secret", pg_sys::AccessShareLock);
    let name = table.and_then(|table| with_latest(|| first(&table)));
    name.unwrap_or_else(|| error!("tidings.secret is empty: drop and create the extension"))
}

/// The first column, which is a text, of the first row that the active snapshot sees.
fn first(table: &Table) -> Option<CString> {
    // SAFETY: the table is open, a snapshot is active, and the arrays have a place for each column. The name is copied
    // before the scan ends.
    unsafe {
        let (relation, snapshot) = (table.relation(), pg_sys::GetActiveSnapshot());
        let scan = pg_sys::systable_beginscan(relation, pg_sys::InvalidOid, false, snapshot, 0, std::ptr::null_mut());
        let tuple = pg_sys::systable_getnext(scan);
        let mut name = None;
        if !tuple.is_null() {
            let columns = (*(*relation).rd_att).natts as usize;
            let (mut values, mut nulls) = (vec![pg_sys::Datum::null(); columns], vec![true; columns]);
            heap_deform_tuple(tuple, (*relation).rd_att, values.as_mut_ptr(), nulls.as_mut_ptr());
            name = String::from_datum(values[0], nulls[0]).and_then(|name| CString::new(name).ok());
        }
        pg_sys::systable_endscan(scan);
        name
    }
}

/// Asks the proxies to leave the database, for a statement that needs it without other sessions. They come back by
/// themselves. Called by the relay, inside a transaction.
pub fn ask_to_leave() {
    let (channel, payload) = (name(), CString::new(LEAVE).unwrap_or_default());
    // SAFETY: inside a transaction; the names are C strings and are copied.
    unsafe { Async_Notify(channel.as_ptr(), payload.as_ptr()) };
}

/// `tidings.listen()`: executes LISTEN and returns the channel's name, by which the caller recognizes the
/// notifications. If the name has changed since an earlier call, the session stops listening on the old channel.
#[pg_extern]
fn listen() -> String {
    refuse_subscriber();
    let name = name();
    let former = LISTENING.take().filter(|former| *former != name);
    // SAFETY: inside a transaction; the names are C strings and are copied.
    unsafe {
        PreventCommandDuringRecovery(c"tidings.listen()".as_ptr());
        if pg_sys::MyBackendType != pg_sys::BackendType::B_BACKEND {
            errors::raise(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "a background process cannot listen",
                "Call tidings.listen() in a client's session.",
            );
        }
        Async_Listen(name.as_ptr());
        if let Some(former) = former {
            Async_Unlisten(former.as_ptr());
        }
    }
    let text = name.to_string_lossy().into_owned();
    LISTENING.set(Some(name));
    text
}

/// `tidings.rotate_channel()`: sets a new name. The relay uses it once the transaction has committed.
#[pg_extern]
fn rotate_channel() {
    preload::require();
    // The server generates the name, so that it appears in no statement.
    let sql = "UPDATE tidings.secret SET channel = 'tidings_' OPERATOR(pg_catalog.||)
        pg_catalog.replace(pg_catalog.gen_random_uuid()::pg_catalog.text, '-', '')";
    Spi::run(sql).unwrap_or_else(|error| error!("cannot change the channel: {error}"));
    transaction::recheck_after_commit();
}
