//! The hooks on utility statements and on changes of objects, and what they do for statements that concern the
//! extension.

use std::ffi::{c_char, c_int, c_void};

use pgrx::prelude::*;

use crate::capture::{command, watch};
use crate::shared::{self, State};
use crate::statements::{attach, pause, refusals, removal};
use crate::{catalog, foreign, transaction};

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;

/// Installs the hooks. Called from `_PG_init`.
pub fn init() {
    // SAFETY: called in the postmaster while it loads libraries, before there are other processes or threads.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
}

/// The hook that Postgres calls for each object that it alters or drops, whatever statement causes it: a column also
/// disappears with its type, its schema or its owner, or with an attribute of the type that its table is of. Like the
/// hook below, it has no guard: all it does is to set a flag or to remember a number.
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    column: c_int,
    argument: *mut c_void,
) {
    use pg_sys::ObjectAccessType::{OAT_DROP, OAT_POST_ALTER};
    if class == pg_sys::RelationRelationId && column > 0 && matches!(access, OAT_DROP | OAT_POST_ALTER) {
        watch::column_altered(object);
    } else if class == pg_sys::ExtensionRelationId && access == OAT_DROP {
        transaction::recheck_after_commit();
    }
    // SAFETY: the arguments are passed on as they came, to the hook before this one.
    unsafe {
        if let Some(next) = PREVIOUS_ACCESS {
            next(access, class, object, column, argument);
        }
    }
}

/// The hook that runs a utility statement. It has no guard and no values to drop. So an error of the statement passes
/// through it unchanged; a guard would turn it into a Rust panic and back, and lose some of its fields.
#[allow(clippy::too_many_arguments)] // Postgres gives the hook this signature.
unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    query: *const c_char,
    read_only_tree: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    dest: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: Postgres passes a valid statement. The arguments are passed on as they came, to the hook before this one
    // or to the standard function, as Postgres would do it.
    unsafe {
        let kind = before((*statement).utilityStmt);
        let next = PREVIOUS.unwrap_or(foreign::utility::standard_ProcessUtility);
        let place = command::enter_statement((*statement).utilityStmt);
        next(statement, query, read_only_tree, context, params, environment, dest, completion);
        if let Some(place) = place {
            command::leave(place);
        }
        after(kind);
    }
}

/// What happens before a statement.
///
/// # Safety
/// `node` is a statement.
#[pg_guard]
unsafe extern "C-unwind" fn before(node: *mut pg_sys::Node) -> Kind {
    // SAFETY: a statement that is about to run, as the caller promises.
    unsafe {
        pause::pause(node);
        refusals::check(node);
        removal::make_way(node);
        attach::check(node);
        Kind::of(node)
    }
}

/// What happens after a statement.
#[pg_guard]
extern "C-unwind" fn after(kind: Kind) {
    watch::check_altered();
    match kind {
        Kind::CommitPrepared => match shared::my_database().filter(|db| db.state() != State::Absent) {
            Some(db) => db.announce(),
            // The prepared transaction may have run CREATE EXTENSION.
            None => {
                // This backend's caches may not contain yet what was just committed.
                // SAFETY: inside a transaction, between two statements.
                unsafe { pg_sys::AcceptInvalidationMessages() };
                if catalog::extension().is_some() {
                    transaction::installed_after_commit();
                }
            }
        },
        Kind::CreateDatabase => transaction::look_for_databases_after_commit(),
        Kind::Other => {}
    }
}

/// The statements after which something is to be done.
#[repr(C)]
enum Kind {
    CommitPrepared,
    CreateDatabase,
    Other,
}

impl Kind {
    /// # Safety
    /// `node` is a statement.
    unsafe fn of(node: *mut pg_sys::Node) -> Self {
        // SAFETY: a statement, as the caller promises, whose tag says which struct it is.
        unsafe {
            match (*node).type_ {
                pg_sys::NodeTag::T_TransactionStmt
                    if (*node.cast::<pg_sys::TransactionStmt>()).kind
                        == pg_sys::TransactionStmtKind::TRANS_STMT_COMMIT_PREPARED =>
                {
                    Self::CommitPrepared
                }
                pg_sys::NodeTag::T_CreatedbStmt => Self::CreateDatabase,
                _ => Self::Other,
            }
        }
    }
}
