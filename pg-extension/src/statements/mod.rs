//! Statements of users that concern the extension. [`hooks`] sees every utility statement before and after it runs.
//! Before: [`refusals`] refuses some, [`attach`] checks ATTACH PARTITION, [`removal`] takes the locks for a DROP of the
//! extension, and [`pause`] makes the relay and the proxies leave a database. [`node`] helps to read parse trees.
//!
//! These files call the folders for the way of a change; none of those calls back.

pub mod attach;
pub mod hooks;
pub mod node;
pub mod pause;
pub mod refusals;
pub mod removal;
