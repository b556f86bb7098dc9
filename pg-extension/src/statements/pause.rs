//! Statements that need a database without other sessions: the relay leaves it until their transaction ends, and asks
//! the proxies to leave it for a moment. Postgres itself then waits five seconds for sessions to end.

use std::ffi::c_char;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use crate::relay::worker::wait;
use crate::statements::node::option;
use crate::{catalog, shared, transaction};

/// How long such a statement waits for the relay to leave the database.
const LEAVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often it checks whether the relay has left.
const CHECK: Duration = Duration::from_millis(5);

/// Makes the relay leave the database that a statement needs without other sessions, if it needs one, and if the role
/// may run such a statement: it owns the database, or creates a copy of one that is marked as a template.
///
/// # Safety
/// `node` is a statement.
pub unsafe fn pause(node: *mut pg_sys::Node) {
    // SAFETY: a statement, as the caller promises; its database's name is a C string. A look-up inside a transaction.
    unsafe {
        if let Some(name) = database_needed_alone(node) {
            let oid = pg_sys::get_database_oid(name, true);
            let is_copied = (*node).type_ == pg_sys::NodeTag::T_CreatedbStmt;
            let user = catalog::current_user();
            let is_permitted = catalog::is_owner(user, pg_sys::DatabaseRelationId, oid);
            if is_permitted || is_copied && catalog::may_create_databases(user) && catalog::is_template(oid) {
                pause_relay(oid);
            }
        }
    }
}

/// The name of the database that a statement needs without other sessions: DROP DATABASE, ALTER DATABASE … RENAME or
/// SET TABLESPACE, and CREATE DATABASE … TEMPLATE.
///
/// # Safety
/// `node` is a statement.
unsafe fn database_needed_alone(node: *mut pg_sys::Node) -> Option<*mut c_char> {
    // SAFETY: a statement, as the caller promises, whose tag says which struct it is. Names are C strings.
    let name = unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => (*node.cast::<pg_sys::DropdbStmt>()).dbname,
            pg_sys::NodeTag::T_RenameStmt
                if (*node.cast::<pg_sys::RenameStmt>()).renameType == pg_sys::ObjectType::OBJECT_DATABASE =>
            {
                (*node.cast::<pg_sys::RenameStmt>()).subname
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                // template1, the default, has no relay, like every database that is marked as a template when it is
                // found.
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

/// Keeps the relay out of a database until this transaction ends, whether it commits or not.
fn pause_relay(oid: pg_sys::Oid) {
    let Some(db) = shared::database(oid) else { return };
    transaction::end_pause_at_end(db);
    db.paused.store(true, SeqCst);
    db.wake_relay();
    let deadline = Instant::now() + LEAVE_TIMEOUT;
    while db.pid.load(SeqCst) != 0 && Instant::now() < deadline {
        wait(CHECK);
    }
}
