//! Tidings: captures the committed changes of watched tables and announces them.
//!
//! A change takes this way: in the writer's backend, [`capture`] turns a changed row into an event, whose values
//! [`value`] packs. At the commit, the transaction's events become rows of the [`mod@log`]. In a background worker, the
//! [`relay`] cuts the log into ticks and notifies.
//!
//! The other modules are used by these, or have nothing to do with a change:
//!
//! - [`transaction`]: what happens at the end of a transaction; [`subtransaction`]: code whose errors are caught;
//!   [`warnings`]: warnings to writers.
//! - [`statements`]: statements that concern the extension, such as DROP EXTENSION and ALTER TABLE.
//! - [`read`]: SQL functions for segments, positions and the relay's state. [`rules`] and [`rule_templates`]: SQL
//!   functions for subscription rules. [`state`]: the current rows of a topic, as events, for `since=snapshot`.
//!   [`subscriber`]: how code runs as a subscriber.
//! - [`standby`]: waiting on a hot standby for the replay of the next tick.
//! - [`shared`], [`shared_memory`]: shared memory. [`catalog`]: look-ups in the system catalogs. [`settings`]: the
//!   settings. [`errors`]: how errors are raised. [`preload`]: what happens if the library was not preloaded.
//!   [`foreign`]: functions of Postgres that pgrx does not declare.

// The library exports symbols to Postgres but no items to other crates, so its documentation may link to private items.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(target_endian = "big")]
compile_error!("values are packed in the byte order in which Postgres stores them, and read as little-endian");

// The guard that `#[pg_guard]` puts around foreign functions refers to this name.
use pgrx::pg_sys::ffi;
use pgrx::prelude::*;

mod capture;
mod catalog;
mod errors;
mod foreign;
mod log;
mod position;
mod preload;
mod read;
mod relay;
mod rule_templates;
mod rules;
mod settings;
mod shared;
mod shared_memory;
mod standby;
mod state;
mod statements;
mod subscriber;
mod subtransaction;
mod transaction;
mod value;
mod warnings;

pgrx::pg_module_magic!();

/// Called by Postgres when it loads the library: in the postmaster, by `shared_preload_libraries`.
#[pg_guard]
pub extern "C-unwind" fn _PG_init() {
    // SAFETY: reads two variables of the process. Postgres sets the first one before it loads any library.
    let (is_preloaded, creates_extension) =
        unsafe { (pg_sys::process_shared_preload_libraries_in_progress, pg_sys::creating_extension) };
    if !is_preloaded {
        // A watch's trigger may have loaded the library. That must not make a write fail. All other functions raise an
        // error that says what to set.
        if creates_extension {
            preload::require();
        }
        return;
    }
    preload::note();
    settings::init();
    shared::init();
    standby::init();
    transaction::init();
    log::table::init();
    static PIECES: [&shared_memory::Piece; 2] = [&log::ring::RING, &log::endings::NOTES];
    shared_memory::init(&PIECES);
    capture::watches::init();
    capture::executor::init();
    statements::hooks::init();
    relay::launcher::init();
}
