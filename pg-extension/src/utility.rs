//! The statements that concern a relay, seen as they pass: COMMIT PREPARED, CREATE and DROP EXTENSION, and those that
//! want a database for themselves.

use std::ffi::CStr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::buffer;
use crate::relay::wait;
use crate::shared::{self, Database, State};

/// How long a statement that wants a database for itself waits for the relay to leave it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;

/// Puts the hook in; called from `_PG_init`.
pub fn init() {
    // SAFETY: in the postmaster, before there is anyone else.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
}

#[pg_guard]
#[allow(clippy::too_many_arguments)] // Postgres gives the hook this signature.
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const std::ffi::c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: Postgres hands over a valid statement; the arguments are passed on as they came.
    let (kind, _pause) = unsafe { (Kind::of((*statement).utilityStmt), Pause::of((*statement).utilityStmt)) };
    // SAFETY: as above; the hook before this one, or the standard, is called as Postgres would.
    unsafe {
        match PREVIOUS {
            Some(next) => pg_sys::ffi::pg_guard_ffi_boundary(|| {
                next(statement, query, read_only_tree, context, params, environment, dest, completion);
            }),
            None => pg_sys::standard_ProcessUtility(
                statement,
                query,
                read_only_tree,
                context,
                params,
                environment,
                dest,
                completion,
            ),
        }
    }
    match kind {
        Kind::CommitPrepared => {
            if let Some(db) = shared::my_database() {
                db.announce();
            }
        }
        Kind::DropExtension => buffer::wake_relay_after_commit(),
        Kind::CreateDatabase => buffer::wake_launcher_after_commit(),
        Kind::Other => {}
    }
}

/// What is to be done after a statement.
enum Kind {
    CommitPrepared,
    DropExtension,
    CreateDatabase,
    Other,
}

impl Kind {
    /// # Safety
    /// `node` is a statement.
    unsafe fn of(node: *mut pg_sys::Node) -> Self {
        // SAFETY: a node's tag says which struct it is.
        unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_TransactionStmt
                    if (*node.cast::<pg_sys::TransactionStmt>()).kind
                        == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED =>
                {
                    Self::CommitPrepared
                }
                pg_sys::NodeTag::T_DropStmt
                    if (*node.cast::<pg_sys::DropStmt>()).removeType == pg_sys::ObjectType::OBJECT_EXTENSION =>
                {
                    Self::DropExtension
                }
                pg_sys::NodeTag::T_CreatedbStmt => Self::CreateDatabase,
                _ => Self::Other,
            }
        }
    }
}

/// Keeps the relay out of a database while a statement wants it for itself: DROP DATABASE, ALTER DATABASE … RENAME, and
/// CREATE DATABASE … TEMPLATE.
struct Pause(&'static Database);

impl Pause {
    /// # Safety
    /// `node` is a statement.
    unsafe fn of(node: *mut pg_sys::Node) -> Option<Self> {
        // SAFETY: a node's tag says which struct it is; names are C strings.
        let name = unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
                pg_sys::NodeTag::T_RenameStmt
                    if (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE =>
                {
                    (*node.cast::<pg_sys::RenameStmt>()).subname
                }
                pg_sys::NodeTag::T_CreatedbStmt => template((*node.cast::<pg_sys::CreatedbStmt>()).options)?,
                _ => return None,
            }
        };
        if name.is_null() {
            return None;
        }
        // SAFETY: inside a transaction; `name` is a C string.
        let oid = unsafe { pg_sys::get_database_oid(name, true) };
        let db = shared::database(oid).filter(|_| may_pause(oid))?;
        // From here on the guard lets the relay back in, also when an error unwinds.
        let pause = Self(db);
        db.paused.store(true, SeqCst);
        db.wake_relay();
        let deadline = Instant::now() + LEAVE_TIMEOUT;
        while db.pid.load(SeqCst) != 0 && Instant::now() < deadline {
            wait(Duration::from_millis(5));
        }
        Some(pause)
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        self.0.change_state(State::Running, State::Wanted);
        self.0.paused.store(false, SeqCst);
        shared::wake_launcher();
    }
}

/// The TEMPLATE option of CREATE DATABASE.
///
/// # Safety
/// `options` is a list of DefElem, or null.
unsafe fn template(options: *mut pg_sys::List) -> Option<*mut std::ffi::c_char> {
    // SAFETY: as the caller promises; a parsed option's name is a C string.
    unsafe {
        let options = options.as_ref()?;
        let option = (0..options.length as usize)
            .map(|i| (*options.elements.add(i)).ptr_value.cast::<pg_sys::DefElem>())
            .find(|option| CStr::from_ptr((**option).defname) == c"template")?;
        Some(pg_sys::defGetString(option))
    }
}

/// Only who may do such things to a database may stop its relay.
fn may_pause(oid: pg_sys::Oid) -> bool {
    // SAFETY: look-ups in the system caches, inside a transaction.
    unsafe {
        #[cfg(feature = "pg15")]
        let owner = pg_sys::pg_database_ownercheck(oid, pg_sys::GetUserId());
        #[cfg(not(feature = "pg15"))]
        let owner = pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, oid, pg_sys::GetUserId());
        owner
    }
}
