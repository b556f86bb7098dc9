//! Watches the statements that concern the extension: COMMIT PREPARED, statements that need a database for themselves,
//! the rename of our schema, an index that our tables do not support, a watch with a reserved event name, and
//! statements that drop the extension or remove a column from a watch.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::prelude::*;
use tidings_wire::topic::{TopicError, check_event};

use crate::capture::{buffer, command, watch};
use crate::errors::WatchError;
use crate::relay::process::{installed, wait};
use crate::shared::{self, State};
use crate::statements::{attach, removal};
use crate::{errors, foreign};

/// How long a statement that wants a database for itself waits for the relay to leave it.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

static mut PREVIOUS: pg_sys::ProcessUtility_hook_type = None;
static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;

/// Puts the hooks in; called from `_PG_init`.
pub fn init() {
    // SAFETY: in the postmaster, before there is anyone else.
    unsafe {
        PREVIOUS = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
    }
}

/// Postgres tells of each object that it alters or drops, whatever statement led to it: a column also goes with its
/// type, its schema or its owner, or with an attribute of the type that its table is of. Like the hook below it has no
/// guard: all it does is to set a flag or remember a number.
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
        buffer::recheck_after_commit();
    }
    // SAFETY: the arguments are passed on as they came.
    unsafe {
        if let Some(next) = PREVIOUS_ACCESS {
            next(access, class, object, column, argument);
        }
    }
}

/// The hook. It has no guard and nothing to drop: an error of the statement passes it as if it weren't there, with all
/// its fields, which it would lose on its way through a Rust panic.
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
    // SAFETY: Postgres hands over a valid statement; the arguments are passed on as they came, to the hook before this
    // one or to the standard, as Postgres would.
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

/// # Safety
/// `node` is a statement.
#[pg_guard]
unsafe extern "C-unwind" fn before(node: *mut pg_sys::Node) -> Kind {
    // SAFETY: as the caller promises.
    unsafe {
        if let Some(name) = database_wanted_alone(node) {
            pause(pg_sys::get_database_oid(name, true));
        }
        if renames_our_schema(node) {
            errors::raise(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "the schema of the extension tidings cannot be renamed",
                "Its tables and functions are found by this name.",
            );
        }
        if let Some(error) = bad_event_name(node) {
            error.raise();
        }
        if indexes_our_table_by_more_than_columns(node) {
            errors::raise(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                "an index of tidings' own tables cannot have an expression or a predicate",
                "Index plain columns, all rows.",
            );
        }
        removal::make_way(node);
        attach::check(node);
        Kind::of(node)
    }
}

#[pg_guard]
extern "C-unwind" fn after(kind: Kind) {
    watch::check_altered();
    match kind {
        Kind::CommitPrepared => {
            match shared::my_database().filter(|db| db.state() != State::Absent) {
                Some(db) => db.announce(),
                // A prepared transaction may contain CREATE EXTENSION.
                None => {
                    // What was committed just now may be missing in this backend's caches still.
                    // SAFETY: inside a transaction, between two statements.
                    unsafe { pg_sys::AcceptInvalidationMessages() };
                    if installed() != pg_sys::InvalidOid {
                        buffer::installed_after_commit();
                    }
                }
            }
        }
        Kind::CreateDatabase => buffer::wake_launcher_after_commit(),
        Kind::Other => {}
    }
}

/// What is to be done after a statement.
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
        // SAFETY: a node's tag says which struct it is.
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

/// Whether a statement renames the extension's schema: no writer would find the log any more.
///
/// # Safety
/// `node` is a statement.
unsafe fn renames_our_schema(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node's tag says which struct it is; a rename of a schema has its name. A look-up inside a transaction.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_RenameStmt {
            return false;
        }
        let rename = &*node.cast::<pg_sys::RenameStmt>();
        rename.renameType == pg_sys::ObjectType::OBJECT_SCHEMA
            && CStr::from_ptr(rename.subname) == c"tidings"
            && pg_sys::get_extension_oid(c"tidings".as_ptr(), true) != pg_sys::InvalidOid
    }
}

/// Whether a statement makes an index that no writer of our tables could keep (see [`crate::log::table`]).
///
/// # Safety
/// `node` is a statement.
unsafe fn indexes_our_table_by_more_than_columns(node: *mut pg_sys::Node) -> bool {
    // SAFETY: a node's tag says which struct it is; a parsed index has a table and columns. Look-ups inside a
    // transaction.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_IndexStmt {
            return false;
        }
        let index = &*node.cast::<pg_sys::IndexStmt>();
        let columns = &*index.indexParams;
        let is_expression =
            |i: usize| !(*(*columns.elements.add(i)).ptr_value.cast::<pg_sys::IndexElem>()).expr.is_null();
        if index.whereClause.is_null() && !(0..columns.length as usize).any(is_expression) {
            return false;
        }
        let (lock, flags) = (pg_sys::NoLock as i32, pg_sys::RVROption::RVR_MISSING_OK);
        let table = pg_sys::RangeVarGetRelidExtended(index.relation, lock, flags, None, std::ptr::null_mut());
        let schema = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        schema != pg_sys::InvalidOid && pg_sys::get_rel_namespace(table) == schema
    }
}

/// The error for the event name of a watch that a statement creates, if the stream reserves that name. Only such a name
/// is refused here, not when the trigger fires, because a name that an earlier version allowed must not fail every
/// write.
///
/// # Safety
/// `node` is a statement.
unsafe fn bad_event_name(node: *mut pg_sys::Node) -> Option<WatchError> {
    // SAFETY: a node's tag says which struct it is; a trigger's function and its arguments are lists of strings. Look-ups
    // inside a transaction.
    unsafe {
        if (*node).type_ != pg_sys::NodeTag::T_CreateTrigStmt {
            return None;
        }
        let trigger = &*node.cast::<pg_sys::CreateTrigStmt>();
        if strings(trigger.funcname).last() != Some(c"capture") {
            return None;
        }
        // Without its schema the name may mean our function, too: that depends on the session's search_path.
        let function = pg_sys::LookupFuncName(trigger.funcname, 0, std::ptr::null(), true);
        let schema = pg_sys::get_namespace_oid(c"tidings".as_ptr(), true);
        if function == pg_sys::InvalidOid || pg_sys::get_func_namespace(function) != schema {
            return None;
        }
        let name = strings(trigger.args).find_map(|argument| argument.to_str().ok()?.strip_prefix("event="))?;
        let error = check_event(name).err().filter(|error| *error == TopicError::Reserved)?;
        Some(WatchError::Event(name.into(), error))
    }
}

/// The texts of a parsed list.
///
/// # Safety
/// `list` is a list of strings that outlives the answer, or null.
unsafe fn strings<'a>(list: *mut pg_sys::List) -> impl Iterator<Item = &'a CStr> {
    // SAFETY: as the caller promises; a string's value is a C string.
    unsafe {
        let length = list.as_ref().map_or(0, |list| list.length as usize);
        (0..length).map(move |i| CStr::from_ptr((*(*(*list).elements.add(i)).ptr_value.cast::<pg_sys::String>()).sval))
    }
}

/// The name of the database that a statement needs for itself: DROP DATABASE, ALTER DATABASE … RENAME or SET
/// TABLESPACE, and CREATE DATABASE … TEMPLATE.
///
/// # Safety
/// `node` is a statement.
unsafe fn database_wanted_alone(node: *mut pg_sys::Node) -> Option<*mut c_char> {
    // SAFETY: a node's tag says which struct it is; names are C strings.
    let name = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            pg_sys::NodeTag::T_RenameStmt
                if (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE =>
            {
                (*node.cast::<pg_sys::RenameStmt>()).subname
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                pg_sys::defGetString(option((*node.cast::<pg_sys::CreatedbStmt>()).options, c"template")?)
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let statement = &*node.cast::<pg_sys::AlterDatabaseStmt>();
                option(statement.options, c"tablespace")?;
                statement.dbname
            }
            _ => return None,
        }
    };
    (!name.is_null()).then_some(name)
}

/// Keeps the relay out of a database until this transaction ends, well or not.
fn pause(oid: pg_sys::Oid) {
    let Some(db) = shared::database(oid).filter(|_| may_pause(oid)) else { return };
    buffer::let_relay_back_after_transaction(db);
    db.paused.store(true, SeqCst);
    db.wake_relay();
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    while db.pid.load(SeqCst) != 0 && Instant::now() < deadline {
        wait(Duration::from_millis(5));
    }
}

/// One of a statement's options.
///
/// # Safety
/// `options` is a list of DefElem, or null.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: as the caller promises; a parsed option's name is a C string.
    unsafe {
        let options = options.as_ref()?;
        (0..options.length as usize)
            .map(|i| (*options.elements.add(i)).ptr_value.cast::<pg_sys::DefElem>())
            .find(|option| CStr::from_ptr((**option).defname) == name)
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
