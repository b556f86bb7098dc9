//! Who may subscribe to what. [`auth`] decides by the [`credentials`] of a request, in one of two ways: [`by_token`]
//! identifies a client by its [`token`], with the [`keys`] from a [`key_file`] or a [`key_url`], and applies the
//! [`rules`] in the database; [`application`] asks the application over HTTP, with [`fetch`]. Both check their
//! [`open_streams`] again from time to time, and end those that are no longer allowed. Where a guard's event stands,
//! they [`recheck`] at once.
//!
//! [`gate`] asks the database: each [`check`] waits in a [`mod@line`], where identities take [`turns`], until a
//! [`worker`] asks it in a [`statement`] over its own connection. [`login`] checks that the proxy's own database roles
//! are not too powerful. [`denied`] lists the reasons to turn a request away.
//!
//! Not here: the rules themselves, which are in the database.

pub mod application;
pub mod auth;
pub mod by_token;
pub mod check;
pub mod credentials;
pub mod denied;
pub mod fetch;
pub mod gate;
pub mod key_file;
pub mod key_url;
pub mod keys;
pub mod line;
pub mod login;
pub mod open_streams;
pub mod recheck;
pub mod rules;
pub mod statement;
pub mod token;
pub mod turns;
pub mod worker;
