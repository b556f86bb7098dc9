//! The hooks on the executor, which tell [`crate::capture::command`] which queries are running.

use pgrx::pg_sys;

use crate::capture::command::{enter_query, enter_triggers, leave, query_has_run};
use crate::foreign::executor::{standard_ExecutorFinish, standard_ExecutorRun};

static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;
static mut PREVIOUS_FINISH: pg_sys::ExecutorFinish_hook_type = None;

/// Installs the hooks. Called from `_PG_init`.
pub fn init() {
    // SAFETY: called in the postmaster while it loads libraries, before there are other processes or threads.
    unsafe {
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(run);
        PREVIOUS_FINISH = pg_sys::ExecutorFinish_hook;
        pg_sys::ExecutorFinish_hook = Some(finish);
    }
}

/// The number of a query that changes rows.
///
/// # Safety
/// The query has been started.
unsafe fn number_of(query: *mut pg_sys::QueryDesc) -> Option<pg_sys::CommandId> {
    // SAFETY: the query has been started, as the caller promises, so it has a plan and a state.
    unsafe {
        let is_read = (*query).operation == pg_sys::CmdType::CMD_SELECT && !(*(*query).plannedstmt).hasModifyingCTE;
        (!is_read).then(|| (*(*query).estate).es_output_cid)
    }
}

/// Runs a query. Like the other hooks here, it has no guard and no values to drop, so an error passes through it
/// unchanged.
///
/// # Safety
/// The query has been started.
unsafe fn run_as(query: *mut pg_sys::QueryDesc, run: impl FnOnce()) {
    // SAFETY: the query has been started, as the caller promises.
    let Some(number) = (unsafe { number_of(query) }) else { return run() };
    let place = enter_query(number);
    run();
    query_has_run(place);
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    once: bool,
) {
    // SAFETY: the arguments are passed on as they came, to the hook before this one or to the standard.
    unsafe { run_as(query, || PREVIOUS_RUN.unwrap_or(standard_ExecutorRun)(query, direction, count, once)) }
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn run(query: *mut pg_sys::QueryDesc, direction: pg_sys::ScanDirection::Type, count: u64) {
    // SAFETY: the arguments are passed on as they came, to the hook before this one or to the standard.
    unsafe { run_as(query, || PREVIOUS_RUN.unwrap_or(standard_ExecutorRun)(query, direction, count)) }
}

/// The hook for the end of a query, where its triggers fire. The triggers of a query that a foreign key runs fire
/// later, together with those of the outer query.
unsafe extern "C-unwind" fn finish(query: *mut pg_sys::QueryDesc) {
    // SAFETY: the argument is passed on as it came, to the hook before this one or to the standard.
    unsafe {
        let next = PREVIOUS_FINISH.unwrap_or(standard_ExecutorFinish);
        let fires_later = (*(*query).estate).es_top_eflags & pg_sys::EXEC_FLAG_SKIP_TRIGGERS as i32 != 0;
        let Some(number) = number_of(query).filter(|_| !fires_later) else { return next(query) };
        let place = enter_triggers(number);
        next(query);
        leave(place);
    }
}
