//! What Postgres has and pgrx does not declare. The rest comes from `pgrx::pg_sys`.

#![allow(non_snake_case)] // The names are Postgres's.

use std::ffi::{c_char, c_int};

use pgrx::prelude::*;

#[pg_guard]
unsafe extern "C-unwind" {
    /// Whether two datums of one type have the same image, compressed or moved out of line or not (utils/datum.h).
    pub fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: c_int) -> bool;

    /// Queues a notification for the end of the transaction (commands/async.h).
    pub fn Async_Notify(channel: *const c_char, payload: *const c_char);

    /// The compressed copy of a value, or null if it would not be shorter; method 0 is the session's default
    /// (access/toast_internals.h).
    pub fn toast_compress_datum(value: pg_sys::Datum, method: c_char) -> pg_sys::Datum;
}

/// What cannot raise an error and so needs no guard.
pub mod infallible {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        /// Writes the shortest digits that make the number, without a NUL; gives their count (common/shortest_dec.h).
        pub fn double_to_shortest_decimal_bufn(number: f64, result: *mut std::ffi::c_char) -> std::ffi::c_int;

        /// The same for a smaller one.
        pub fn float_to_shortest_decimal_bufn(number: f32, result: *mut std::ffi::c_char) -> std::ffi::c_int;

        /// The number of the running subtransaction (access/xact.h).
        pub fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;

        /// Takes a row apart (access/htup_details.h).
        pub fn heap_deform_tuple(
            tuple: pg_sys::HeapTuple,
            descriptor: pg_sys::TupleDesc,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
        );
    }
}

/// What opens a table and writes a row: one guard for several calls, where pgrx has one for each.
pub mod unguarded {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        /// Locks a table (storage/lmgr.h).
        pub fn LockRelationOid(table: pg_sys::Oid, mode: pg_sys::LOCKMODE);

        /// Gives the lock back (storage/lmgr.h).
        pub fn UnlockRelationOid(table: pg_sys::Oid, mode: pg_sys::LOCKMODE);

        /// Opens a table (access/table.h).
        pub fn table_open(table: pg_sys::Oid, mode: pg_sys::LOCKMODE) -> pg_sys::Relation;

        /// Makes a row (access/htup_details.h).
        pub fn heap_form_tuple(
            descriptor: pg_sys::TupleDesc,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
        ) -> pg_sys::HeapTuple;

        /// Frees it (access/htup_details.h).
        pub fn heap_freetuple(tuple: pg_sys::HeapTuple);

        /// Inserts it, and tells it where it stands (access/heapam.h).
        pub fn simple_heap_insert(table: pg_sys::Relation, tuple: pg_sys::HeapTuple);

        /// Opens and locks an index (access/genam.h).
        pub fn index_open(index: pg_sys::Oid, mode: pg_sys::LOCKMODE) -> pg_sys::Relation;

        /// Closes it (access/genam.h).
        pub fn index_close(index: pg_sys::Relation, mode: pg_sys::LOCKMODE);

        /// Its predicate, or null (utils/relcache.h).
        pub fn RelationGetIndexPredicate(index: pg_sys::Relation) -> *mut pg_sys::List;

        /// Inserts an entry into it (access/genam.h).
        pub fn index_insert(
            index: pg_sys::Relation,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
            place: pg_sys::ItemPointer,
            table: pg_sys::Relation,
            unique: pg_sys::IndexUniqueCheck::Type,
            is_unchanged: bool,
            info: *mut pg_sys::IndexInfo,
        ) -> bool;
    }
}

/// What runs a utility statement, without pgrx's guard: its errors are to pass as they are.
pub mod utility {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        /// Runs a utility statement (tcop/utility.h).
        pub fn standard_ProcessUtility(
            statement: *mut pg_sys::PlannedStmt,
            query: *const std::ffi::c_char,
            read_only_tree: bool,
            context: pg_sys::ProcessUtilityContext::Type,
            params: pg_sys::ParamListInfo,
            environment: *mut pg_sys::QueryEnvironment,
            dest: *mut pg_sys::DestReceiver,
            completion: *mut pg_sys::QueryCompletion,
        );
    }
}

/// Signal handlers, as they are: one must not go through pgrx's guard.
pub mod signal {
    unsafe extern "C-unwind" {
        /// Ends the process at the next point where that is safe (tcop/tcopprot.h).
        pub fn die(signal: std::ffi::c_int);
        /// Asks for the configuration to be read again (postmaster/interrupt.h).
        pub fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
    }
}
