//! `tidings-proxy check`: looks at each thing that must be right before events arrive, in the order in which a newcomer
//! meets them, and says how to mend what is not.
//!
//! [`arguments`] is the command line and [`report`] the output. [`settings`] looks at what needs no database,
//! [`database`] at the way to it and at the extension, with the database's own check (`tidings.check()`), [`roles`] at
//! tokens and at the roles that they name, and [`event`] sends an event through a proxy of its own. At a standby,
//! [`standby`] looks how far it is behind instead.

pub mod arguments;
pub mod database;
pub mod event;
pub mod report;
pub mod roles;
pub mod settings;
pub mod standby;

use std::sync::Arc;

use crate::check::arguments::Arguments;
use crate::check::report::Report;
use crate::judge::Judge;
use crate::metrics::Metrics;
use crate::upstream::dialect::Dialect;

/// Checks everything, and returns whether nothing must be mended.
pub async fn run(wanted: Arguments) -> bool {
    let mut report = Report::new(wanted.json);
    look(&wanted, &mut report).await;
    report.finish()
}

/// Goes from one thing to the next until something is wrong without which the rest can't be looked at.
async fn look(wanted: &Arguments, report: &mut Report) -> Option<()> {
    let metrics = Arc::new(Metrics::default());
    let judge = settings::access(&wanted.cli, &metrics, report).await;
    settings::cookie(&wanted.cli, report);
    settings::certificate(&wanted.cli, report);
    settings::address(&wanted.cli, report).await;
    let logins = settings::databases(&wanted.cli, report)?;
    let mut connections = database::connect(&logins.proxy, &metrics, report).await?;
    database::pool(&connections, report).await?;
    let dialect = database::extension(&connections, report).await?;
    if dialect == Dialect::Current {
        database::inside(&connections, matches!(judge, Judge::Tokens(_)), &wanted.topics, report).await?;
    }
    database::clock(&connections, report).await;
    if !connections.is_standby {
        database::notifications(&mut connections, report).await?;
    }
    if let Judge::Tokens(keys) = &judge {
        roles::look(wanted, keys, &logins, &metrics, report).await;
    }
    if connections.is_standby {
        return standby::look(&connections, wanted.cli.max_lag, report).await;
    }
    event::round_trip(wanted.cli.clone(), &logins.proxy, &connections, dialect, report).await
}
