//! Who may subscribe to what. [`auth`] identifies a client by its [`token`] and the [`keys`] from a [`key_file`], and
//! decides. [`gate`] asks the database: each [`check`] waits in a [`line`], where identities take [`turns`], until a
//! [`worker`] asks it in a [`statement`] over its own connection. [`open_streams`] checks streams again after they were
//! admitted. [`login`] checks that the proxy's own database roles are not too powerful.
//!
//! Not here: the rules themselves, which are in the database.

pub mod auth;
pub mod check;
pub mod gate;
pub mod key_file;
pub mod keys;
pub mod line;
pub mod login;
pub mod open_streams;
pub mod statement;
pub mod token;
pub mod turns;
pub mod worker;
