//! Tidings: captures the committed changes of watched tables and announces them.
//!
//! The modules, along the path of a change:
//!
//! - [`watch`]: a trigger's arguments, compiled against its table; [`watches`]: the compiled ones that a backend keeps;
//!   [`columns`]: which columns are captured.
//! - [`value`]: a column's value, packed or as text; [`user_code`]: code of users that this may run; [`mod@array`],
//!   [`float`], [`time`] and [`varlena`]: values of these types; [`payload`]: a whole event's payload.
//! - [`capture`]: the trigger function and `publish`.
//! - [`command`]: the order in which the rows were changed.
//! - [`buffer`]: the events of the running transaction, savepoints included, until its commit; [`run`]: how consecutive
//!   events are encoded.
//! - [`mod@log`]: writes a segment into `tidings.log`.
//! - [`shared`]: the clock and the flags that the processes share.
//! - [`relay`]: the background worker that cuts ticks and notifies; [`tick`]: one cut; [`backlog`]: where a backlog is
//!   cut; [`pace`]: how often; [`retention`]: what is removed, and when.
//! - [`launcher`]: keeps one relay running in every database that has the extension; [`own_settings`]: the settings
//!   that both depend on.
//! - [`utility`]: the statements that concern the extension: COMMIT PREPARED, those that need a database for
//!   themselves, those that drop the extension, rename its schema or remove a column from a watch; [`removal`]: removes
//!   the extension without making writers fail.
//! - [`attach`]: partitions that already have their own watch.
//! - [`read`]: the functions that decode the log and positions for SQL.
//! - [`channel`]: the name of the channel, and LISTEN on it.
//! - [`access`]: topic templates as subscription rules use them; [`rules`]: a rule's query, run as the subscriber.
//! - [`preload`]: what happens if the library was not preloaded.
//! - [`settings`]: the settings; [`lock`]: locks and how long to wait for them; [`errors`]: how errors are raised;
//!   [`foreign`]: what pgrx does not declare.

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
