//! Tidings: captures the committed changes of watched tables and announces them.
//!
//! The way of a change: [`capture`] turns a changed row into an event in the writer's backend, with its values packed by
//! [`value`]; at the commit the events become rows of the [`mod@log`]; the [`relay`] cuts them into ticks and notifies.
//!
//! Beside the way:
//!
//! - [`statements`]: hooks on statements that concern the extension, such as DROP EXTENSION and ALTER TABLE.
//! - [`read`]: the functions that decode the log and positions for SQL. [`rules`], [`rule_templates`]: subscription
//!   rules.
//! - [`shared`]: the clock and the flags that the processes share. [`settings`]: the settings. [`preload`]: what happens
//!   if the library was not preloaded. [`errors`]: how errors are raised. [`foreign`]: what pgrx does not declare.

// The library exports symbols to Postgres and no items to anyone: its documentation is for those who work on it.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(target_endian = "big")]
compile_error!("what Postgres stores is packed as it is, and read as little-endian");

// The guard that `#[pg_guard]` puts around foreign functions looks for this name.
use pgrx::pg_sys::ffi;
use pgrx::prelude::*;

mod capture;
mod errors;
mod foreign;
mod log;
mod preload;
mod read;
mod relay;
mod rule_templates;
mod rules;
mod settings;
mod shared;
mod statements;
mod value;

pgrx::pg_module_magic!();

/// Called by Postgres when it loads the library: in the postmaster, by `shared_preload_libraries`.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: plain flags of the process; Postgres writes the first one before it loads any library.
    let (is_preloaded, creates_extension) =
        unsafe { (pg_sys::process_shared_preload_libraries_in_progress, pg_sys::creating_extension) };
    if !is_preloaded {
        // The trigger of a watch may have loaded the library. No write fails because of that; all other functions say
        // what is missing.
        if creates_extension {
            preload::require();
        }
        return;
    }
    preload::note();
    settings::init();
    shared::init();
    capture::buffer::init();
    log::table::init();
    capture::watches::init();
    capture::command::init();
    statements::hooks::init();
    relay::launcher::init();
}
