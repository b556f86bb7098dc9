//! Functions of Postgres that pgrx does not declare. The others come from `pgrx::pg_sys`.

#![allow(non_snake_case)] // These are the names in Postgres.

use std::ffi::{c_char, c_int};

use pgrx::prelude::*;

#[pg_guard]
unsafe extern "C-unwind" {
    /// Whether two datums of one type are equal byte for byte, even if one is compressed or stored out of line
    /// (utils/datum.h).
    pub fn datum_image_eq(a: pg_sys::Datum, b: pg_sys::Datum, by_value: bool, length: c_int) -> bool;

    /// The same hash for datums of one type that are equal byte for byte (utils/datum.h).
    pub fn datum_image_hash(value: pg_sys::Datum, by_value: bool, length: c_int) -> u32;

    /// Queues a notification for the end of the transaction (commands/async.h).
    pub fn Async_Notify(channel: *const c_char, payload: *const c_char);

    /// Makes the session listen on a channel, from the end of the transaction on (commands/async.h).
    pub fn Async_Listen(channel: *const c_char);
    /// Makes the session stop listening on a channel, from the end of the transaction on (commands/async.h).
    pub fn Async_Unlisten(channel: *const c_char);

    /// Raises an error on a standby (miscadmin.h).
    pub fn PreventCommandDuringRecovery(command: *const c_char);

    /// A compressed copy of a value, or null if it would not be shorter. Method 0 is the session's default
    /// (access/toast_internals.h).
    pub fn toast_compress_datum(value: pg_sys::Datum, method: c_char) -> pg_sys::Datum;

    /// The partitioned tables that a partition belongs to, the nearest one first (catalog/partition.h).
    pub fn get_partition_ancestors(relation: pg_sys::Oid) -> *mut pg_sys::List;

    /// A table and all that inherit from it, or all partitions at any depth. The counts of parents are optional
    /// (catalog/pg_inherits.h).
    pub fn find_all_inheritors(
        table: pg_sys::Oid,
        mode: pg_sys::LOCKMODE,
        parents: *mut *mut pg_sys::List,
    ) -> *mut pg_sys::List;
}

unsafe extern "C" {
    /// The setting `max_prepared_transactions` (access/twophase.h).
    pub static mut max_prepared_xacts: c_int;
}

/// Functions that cannot raise an error and so need no guard.
pub mod infallible {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        /// Wakes all processes that wait at a condition variable (storage/condition_variable.h).
        pub fn ConditionVariableBroadcast(variable: *mut pg_sys::ConditionVariable);

        /// Writes the shortest digits that represent the number exactly, without a NUL. Returns their count
        /// (common/shortest_dec.h).
        pub fn double_to_shortest_decimal_bufn(number: f64, result: *mut std::ffi::c_char) -> std::ffi::c_int;

        /// The same for a `real`.
        pub fn float_to_shortest_decimal_bufn(number: f32, result: *mut std::ffi::c_char) -> std::ffi::c_int;

        /// The number of the running subtransaction (access/xact.h).
        pub fn GetCurrentSubTransactionId() -> pg_sys::SubTransactionId;

        /// The number of the running command. It can raise an error only if `used` is true (access/xact.h).
        pub fn GetCurrentCommandId(used: bool) -> pg_sys::CommandId;

        /// Whether a transaction is the current one, or a subtransaction of it that was not rolled back
        /// (access/xact.h).
        pub fn TransactionIdIsCurrentTransactionId(xid: pg_sys::TransactionId) -> bool;

        /// The command of this transaction that made a row version (access/htup_details.h).
        pub fn HeapTupleHeaderGetCmin(tuple: pg_sys::HeapTupleHeader) -> pg_sys::CommandId;

        /// The command of this transaction that deleted a row version (access/htup_details.h).
        pub fn HeapTupleHeaderGetCmax(tuple: pg_sys::HeapTupleHeader) -> pg_sys::CommandId;

        /// Takes a lightweight lock. It can raise an error only in a process that holds hundreds of them
        /// (storage/lwlock.h).
        pub fn LWLockAcquire(lock: *mut pg_sys::LWLock, mode: pg_sys::LWLockMode::Type) -> bool;

        /// Releases a lightweight lock (storage/lwlock.h).
        pub fn LWLockRelease(lock: *mut pg_sys::LWLock);

        /// Notes the time at which a statement starts (access/xact.h).
        pub fn SetCurrentStatementStartTimestamp();

        /// The id of the running transaction, with its epoch; invalid if it has none (access/xact.h).
        pub fn GetTopFullTransactionIdIfAny() -> pg_sys::FullTransactionId;

        /// The id of the next transaction, with its epoch (access/transam.h).
        pub fn ReadNextFullTransactionId() -> pg_sys::FullTransactionId;

        /// The active snapshot, or null (utils/snapmgr.h).
        pub fn GetActiveSnapshot() -> pg_sys::Snapshot;

        /// Up to where the write-ahead log is flushed. Not called in recovery. The timeline is optional
        /// (access/xlog.h).
        pub fn GetFlushRecPtr(timeline: *mut pg_sys::TimeLineID) -> pg_sys::XLogRecPtr;

        /// Whether this process applies changes of logical replication (replication/logicalworker.h).
        pub fn IsLogicalWorker() -> bool;

        /// Takes a row apart (access/htup_details.h).
        pub fn heap_deform_tuple(
            tuple: pg_sys::HeapTuple,
            descriptor: pg_sys::TupleDesc,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
        );
    }
}

/// Functions without pgrx's guard: several are called together, under one guard.
pub mod unguarded {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        /// A snapshot of this moment (utils/snapmgr.h).
        pub fn GetLatestSnapshot() -> pg_sys::Snapshot;

        /// Makes a copy of a snapshot the active one (utils/snapmgr.h).
        pub fn PushActiveSnapshot(snapshot: pg_sys::Snapshot);

        /// Waits for this process's latch, a time-out or the end of the postmaster (storage/latch.h).
        pub fn WaitLatch(
            latch: *mut pg_sys::Latch,
            events: std::ffi::c_int,
            milliseconds: std::ffi::c_long,
            reason: u32,
        ) -> std::ffi::c_int;

        /// Clears a latch (storage/latch.h).
        pub fn ResetLatch(latch: *mut pg_sys::Latch);

        /// Locks a table until the end of the transaction (storage/lmgr.h).
        pub fn LockRelationOid(table: pg_sys::Oid, mode: pg_sys::LOCKMODE);

        /// Releases such a lock (storage/lmgr.h).
        pub fn UnlockRelationOid(table: pg_sys::Oid, mode: pg_sys::LOCKMODE);

        /// Opens a table (access/table.h).
        pub fn table_open(table: pg_sys::Oid, mode: pg_sys::LOCKMODE) -> pg_sys::Relation;

        /// Makes a row (access/htup_details.h).
        pub fn heap_form_tuple(
            descriptor: pg_sys::TupleDesc,
            values: *mut pg_sys::Datum,
            nulls: *mut bool,
        ) -> pg_sys::HeapTuple;

        /// Frees a row (access/htup_details.h).
        pub fn heap_freetuple(tuple: pg_sys::HeapTuple);

        /// Inserts a row, and stores its place in it (access/heapam.h).
        pub fn simple_heap_insert(relation: pg_sys::Relation, tuple: pg_sys::HeapTuple);

        /// Opens an index, and locks it until the end of the transaction (access/genam.h).
        pub fn index_open(index: pg_sys::Oid, mode: pg_sys::LOCKMODE) -> pg_sys::Relation;

        /// Closes an index (access/genam.h).
        pub fn index_close(index: pg_sys::Relation, mode: pg_sys::LOCKMODE);

        /// The predicate of an index, or null (utils/relcache.h).
        pub fn RelationGetIndexPredicate(index: pg_sys::Relation) -> *mut pg_sys::List;

        /// Inserts an entry into an index (access/genam.h).
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

/// The function that runs a utility statement, without pgrx's guard, because its errors must pass unchanged.
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

/// Functions that run queries, without pgrx's guard, because their errors must pass unchanged.
pub mod executor {
    use pgrx::pg_sys;

    unsafe extern "C-unwind" {
        /// Runs a query (executor/executor.h).
        #[cfg(not(feature = "pg18"))]
        pub fn standard_ExecutorRun(
            query: *mut pg_sys::QueryDesc,
            direction: pg_sys::ScanDirection::Type,
            count: u64,
            once: bool,
        );

        /// Runs a query (executor/executor.h).
        #[cfg(feature = "pg18")]
        pub fn standard_ExecutorRun(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64);

        /// Ends a query, and fires its triggers (executor/executor.h).
        pub fn standard_ExecutorFinish(query: *mut pg_sys::QueryDesc);
    }
}

/// Signal handlers, which must not go through pgrx's guard.
pub mod signal {
    unsafe extern "C-unwind" {
        /// Ends the process at the next point where that is safe (tcop/tcopprot.h).
        pub fn die(signal: std::ffi::c_int);
        /// Asks for the configuration to be read again (postmaster/interrupt.h).
        pub fn SignalHandlerForConfigReload(signal: std::ffi::c_int);
    }
}
