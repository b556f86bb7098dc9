//! Tidings: captures the committed changes of watched tables and announces them.
//!
//! The rooms, along the way of a change:
//!
//! - [`watch`]: what a trigger's arguments ask for, compiled against its table, [`watches`]: those that a backend keeps, [`columns`]: which columns.
//! - [`value`]: a column's value, packed or as text, by [`user_code`] if its type has any ([`mod@array`], [`float`], [`time`], [`varlena`]: of those types), and [`payload`]: a whole
//!   event's payload.
//! - [`capture`]: the trigger function and `publish`.
//! - [`command`]: in which order the rows were changed.
//! - [`buffer`]: the events of the running transaction, savepoints included, up to its commit; [`run`]: how one behind the other is encoded.
//! - [`mod@log`]: one segment into `tidings.log`.
//! - [`shared`]: the clock and the flags that the processes share.
//! - [`relay`]: the background worker that cuts ticks and notifies, [`tick`]: one cut, [`backlog`]: where a backlog is cut, [`pace`]: how often,
//!   [`retention`]: what it throws away.
//! - [`launcher`]: keeps one relay running in every database that has the extension. [`own_settings`]: what the two depend on.
//! - [`utility`]: the statements that concern us: COMMIT PREPARED, those that want a database for themselves, what drops the
//!   extension, renames its schema or takes a column away from a watch. [`removal`]: how the extension goes without making writers fail.
//! - [`attach`]: partitions that have a watch of their own already.
//! - [`read`]: the functions that decode the log and positions for SQL.
//! - [`channel`]: the name of the channel, and who listens to it.
//! - [`access`]: topic templates as subscription rules use them, [`rules`]: a rule's query, run as the subscriber.
//! - [`preload`]: what is done where the library was not preloaded.
//! - [`settings`]: the settings, [`lock`]: locks and how long to wait for them, [`errors`]: how an error leaves, [`foreign`]: what pgrx
//!   does not declare.

// The library exports symbols to Postgres and no items to anyone: its documentation is for those who work on it.
#![allow(rustdoc::private_intra_doc_links)]

#[cfg(target_endian = "big")]
compile_error!("what Postgres stores is packed as it is, and read as little-endian");

// The guard that `#[pg_guard]` puts around foreign functions looks for this name.
use pgrx::pg_sys::ffi;
use pgrx::prelude::*;

mod access;
mod array;
mod attach;
mod backlog;
mod buffer;
mod capture;
mod channel;
mod columns;
mod command;
mod errors;
mod float;
mod foreign;
mod launcher;
mod lock;
mod log;
mod own_settings;
mod pace;
mod payload;
mod preload;
mod read;
mod relay;
mod removal;
mod retention;
mod rules;
mod run;
mod scan;
mod settings;
mod shared;
mod snapshot;
mod table;
mod tick;
mod time;
mod user_code;
mod utility;
mod value;
mod varlena;
mod watch;
mod watches;

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
    buffer::init();
    table::init();
    watches::init();
    command::init();
    utility::init();
    launcher::init();
}
